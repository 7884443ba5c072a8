//! Disks that fail, under real processes: nothing that was acknowledged is lost.

use bytes::Bytes;
use e2e::client::{channel, kv};
use e2e::cluster::{Cluster, Number, Start};
use e2e::system::{Layout, Member, System};
use proto::admin::StatusRequest;
use proto::admin::admin_client::AdminClient;
use proto::etcdserverpb as pb;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// How long one request may take; a refusal must come within it, too.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long the cluster may take until it serves (again).
const SERVE_LIMIT: Duration = Duration::from_secs(60);
/// Less than a node wants to have, more than RocksDB writes at once.
const LEFT_BYTES: u64 = 24 << 20;
const VALUE_BYTES: usize = 64 << 10;

/// A client that remembers what was acknowledged.
struct Writer {
    endpoints: Vec<String>,
    sent: u64,
    /// Key number → revision answered.
    acknowledged: BTreeMap<u64, i64>,
}

fn key(number: u64) -> Bytes {
    format!("/disk/{number:06}").into()
}

fn value(number: u64) -> Bytes {
    number.to_be_bytes().repeat(VALUE_BYTES / 8).into()
}

impl Writer {
    fn new(cluster: &Cluster) -> Writer {
        Writer { endpoints: cluster.endpoints(), sent: 0, acknowledged: BTreeMap::new() }
    }

    /// Puts the next key through one endpoint after the other. Panics if there is no answer in time:
    /// a request may fail, it may not hang.
    async fn put(&mut self) -> Result<(), Status> {
        let number = self.sent;
        self.sent += 1;
        let endpoint = &self.endpoints[number as usize % self.endpoints.len()];
        let request = pb::PutRequest { key: key(number), value: value(number), ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.set_timeout(REQUEST_LIMIT / 2);
        let answer = tokio::time::timeout(REQUEST_LIMIT, kv(channel(endpoint)).put(request)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to put {number} by {endpoint}"))?;
        let revision = answer.into_inner().header.map_or(0, |header| header.revision);
        self.acknowledged.insert(number, revision);
        Ok(())
    }

    /// Puts until `done` says of an answer that it is the one waited for.
    async fn put_until(&mut self, what: &str, done: impl Fn(&Result<(), Status>) -> bool) {
        let deadline = Instant::now() + SERVE_LIMIT;
        loop {
            let answer = self.put().await;
            if done(&answer) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {SERVE_LIMIT:?}: {what}; the last answer: {answer:?}");
        }
    }

    /// Reads back everything acknowledged, through every endpoint.
    async fn verify(&self) {
        assert!(!self.acknowledged.is_empty());
        for endpoint in &self.endpoints {
            let mut kv = kv(channel(endpoint));
            for (&number, &revision) in &self.acknowledged {
                let request = pb::RangeRequest { key: key(number), ..Default::default() };
                let answer = kv.range(request).await.unwrap_or_else(|status| panic!("reading {number}: {status}"));
                let answer = answer.into_inner();
                let Some(pair) = answer.kvs.first() else { panic!("{endpoint} lost the acknowledged {number}") };
                assert_eq!((&pair.value, pair.mod_revision), (&value(number), revision), "{endpoint}, {number}");
            }
        }
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

#[tokio::test]
async fn a_node_whose_sync_fails_ends_and_what_was_acknowledged_stays() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Only the log's thread syncs so often. `when` counts per thread.
    let inject = words(&[
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:error=EIO:when=100+",
    ]);
    let how = |member: &Member| Start {
        wrapper: if member.name == "n1" { inject.clone() } else { Vec::new() },
        ..Start::default()
    };
    let started = Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, directory.path(), how).await;
    let mut cluster = started.expect("a cluster starts (strace must be there and may trace)");
    let mut writer = Writer::new(&cluster);
    const N1: Number = 0;
    let deadline = Instant::now() + SERVE_LIMIT;
    while cluster.check_alive().is_ok() {
        // Some fail while the others take over.
        let _answer = writer.put().await;
        assert!(Instant::now() < deadline, "n1 goes on with a disk that cannot sync");
    }
    let (status, said) = cluster.wait_exit(N1).expect("n1 has ended");
    assert!(!status.success(), "{status}: {said}");
    assert!(said.contains("the log failed") && said.contains("nothing more can be made durable"), "{said}");
    writer.endpoints.remove(N1);
    writer.put_until("the other two serve", Result::is_ok).await;
    writer.verify().await;
    cluster.launch(N1).expect("n1 starts on a disk that works");
    cluster.wait_ready().await.expect("n1 serves again");
    writer.endpoints = cluster.endpoints();
    writer.verify().await;
}

/// A mount namespace in which every node's data directory is a small file system of its own. It
/// outlives the nodes, and goes with the test.
struct Disks {
    holder: Child,
}

impl Disks {
    /// `None` where no mount namespace can be made (a container without the right to); said aloud. With
    /// CLOUDPAXOS_TESTS_COMPLETE set, as ./ci/acceptance does, that is a failure.
    fn new() -> Option<Disks> {
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        // `cat` ends when this end of its input is closed.
        command.args(["sh", "-c", "echo ready && exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare (of util-linux) starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it can be read");
        let disks = Disks { holder };
        if line != "ready\n" {
            let complete = std::env::var_os("CLOUDPAXOS_TESTS_COMPLETE").is_some();
            assert!(!complete, "no mount namespace can be made here");
            eprintln!("SKIPPED: no mount namespace can be made here, so no small file system for a test");
            return None;
        }
        Some(disks)
    }

    /// Starts a node in there.
    fn start(&self, member: &Member) -> Start {
        // Its root, too: entering a mount namespace alone leads out of a chroot.
        let mut wrapper = words(&["nsenter", "--mount", "--root"]);
        if !rustix::process::geteuid().is_root() {
            wrapper.extend(words(&["--user", "--preserve-credentials"]));
        }
        let mount = r#"mkdir -p "$0"; mountpoint -q "$0" || mount -t tmpfs -o size=256m tmpfs "$0" && exec "$@""#;
        wrapper.extend(words(&["--target", &self.holder.id().to_string(), "sh", "-c", mount]));
        wrapper.push(member.data.clone().into());
        Start { wrapper, options: vec![("--wal-segment-bytes", "32MiB".into())] }
    }

    /// Where a member's data can be seen from here.
    fn data(&self, member: &Member) -> PathBuf {
        format!("/proc/{}/root{}", self.holder.id(), member.data.display()).into()
    }

    /// Takes the room that a member has left, but for what a flush that runs may need.
    fn fill(&self, member: &Member) {
        self.fill_up_to(member, LEFT_BYTES);
    }

    /// Takes the room that a member has left, but for so many bytes.
    fn fill_up_to(&self, member: &Member, left: u64) {
        let data = self.data(member);
        let system = rustix::fs::statvfs(&data).expect("the file system tells its room");
        let bytes = (system.f_bavail * system.f_frsize).saturating_sub(left);
        let file =
            File::options().create(true).append(true).open(data.join("ballast")).expect("a file beside the data");
        let there = file.metadata().expect("its size can be read").len();
        if bytes > 0 {
            let flags = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(&file, flags, there, bytes).expect("there is that much room");
        }
    }

    /// Whether a member has given up its reserve, and lives on what that was.
    fn lives_on_reserve(&self, member: &Member) -> bool {
        !self.data(member).join("store-reserve").exists()
    }

    fn clear(&self, member: &Member) {
        std::fs::remove_file(self.data(member).join("ballast")).expect("the ballast goes away");
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        if let Err(error) = self.holder.wait() {
            eprintln!("waiting for the holder of the mount namespace: {error}");
        }
    }
}

fn says_full(answer: &Result<(), Status>) -> bool {
    answer.as_ref().is_err_and(|status| status.code() == Code::ResourceExhausted)
}

#[tokio::test]
async fn full_disks_refuse_writes_and_answer_reads_also_after_a_restart_until_there_is_room() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(disks) = Disks::new() else { return };
    let started =
        Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, directory.path(), |member| disks.start(member)).await;
    let mut cluster = started.expect("a cluster starts, each node on a disk of its own");
    let mut writer = Writer::new(&cluster);
    // More than memtables hold, so that a restart flushes.
    for _ in 0..400 {
        writer.put_until("there is room", Result::is_ok).await;
    }
    cluster.numbers().into_iter().for_each(|number| disks.fill(cluster.member(number)));
    // Every node notices at its own time; meanwhile those lead that have not.
    let (mut refused, deadline) = (0, Instant::now() + SERVE_LIMIT);
    while refused < 20 {
        let answer = writer.put().await;
        refused = if says_full(&answer) { refused + 1 } else { 0 };
        assert!(Instant::now() < deadline, "every disk is full, but: {answer:?}");
        // A node may have freed some room itself, of its log.
        for member in cluster.numbers().into_iter().map(|number| cluster.member(number)) {
            if !disks.lives_on_reserve(member) {
                disks.fill(member);
            }
        }
    }
    cluster.check_alive().expect("a full disk ends no node");
    writer.verify().await;

    for number in cluster.numbers() {
        cluster.kill(number).expect("a node is killed");
    }
    for number in cluster.numbers() {
        let start = disks.start(cluster.member(number));
        cluster.launch_as(number, &start).expect("a process starts");
    }
    if let Err(error) = cluster.wait_ready().await {
        let log = |number| std::fs::read_to_string(cluster.log(number)).unwrap_or_default();
        let logs: Vec<String> = cluster.numbers().into_iter().map(log).collect();
        panic!("a start needs no room, but: {error}\n{}", logs.join("\n\n"));
    }
    writer.put_until("they refuse again", says_full).await;
    writer.verify().await;
    cluster.check_alive().expect("all nodes run");
    let mut admin = AdminClient::new(channel(&cluster.endpoints()[0]));
    let status = admin.status(StatusRequest {}).await.expect("nodes answer with full disks").into_inner();
    assert!(status.nodes.iter().any(|node| node.no_space), "nobody says so: {:?}", status.nodes);

    cluster.numbers().into_iter().for_each(|number| disks.clear(cluster.member(number)));
    writer.put_until("writes go on once there is room", Result::is_ok).await;
    writer.verify().await;
    cluster.check_alive().expect("all nodes run");
}

#[tokio::test]
async fn a_node_starts_on_a_disk_that_was_filled_while_it_was_down() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(disks) = Disks::new() else { return };
    let started =
        Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, directory.path(), |member| disks.start(member)).await;
    let mut cluster = started.expect("a cluster starts, each node on a disk of its own");
    let mut writer = Writer::new(&cluster);
    const N1: Number = 0;
    for _ in 0..20 {
        writer.put_until("there is room", Result::is_ok).await;
    }
    cluster.kill(N1).expect("n1 is killed");
    assert!(!disks.lives_on_reserve(cluster.member(N1)), "its reserve is there");
    disks.fill_up_to(cluster.member(N1), 0);
    let start = disks.start(cluster.member(N1));
    cluster.launch_as(N1, &start).expect("a process starts");
    if let Err(error) = cluster.wait_ready().await {
        panic!("a start needs no room, but: {error}\n{}", std::fs::read_to_string(cluster.log(N1)).unwrap_or_default());
    }
    writer.put_until("the others have room", Result::is_ok).await;
    writer.verify().await;
    cluster.check_alive().expect("all nodes run");
}

#[tokio::test]
async fn a_full_disk_of_one_node_stops_no_writes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(disks) = Disks::new() else { return };
    let started =
        Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, directory.path(), |member| disks.start(member)).await;
    let mut cluster = started.expect("a cluster starts, each node on a disk of its own");
    let mut writer = Writer::new(&cluster);
    writer.put_until("it serves", Result::is_ok).await;
    // One after the other, so that the leader is among them.
    for number in cluster.numbers() {
        let member = cluster.member(number);
        disks.fill(member);
        // A leader there refuses until it has handed over.
        let mut served = 0;
        let deadline = Instant::now() + SERVE_LIMIT;
        while served < 20 {
            served = if writer.put().await.is_ok() { served + 1 } else { 0 };
            assert!(Instant::now() < deadline, "a full disk of {} stops all writes", member.name);
        }
        disks.clear(member);
    }
    writer.verify().await;
    cluster.check_alive().expect("all nodes run");
}
