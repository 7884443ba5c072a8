//! Backups of a cluster that goes on, and new clusters from them, with another number of groups.

use bytes::Bytes;
use e2e::client::{channel, kv};
use e2e::cluster::{Cluster, free_ports};
use e2e::process::Process;
use e2e::system::{Layout, System};
use proto::etcdserverpb as pb;
use proto::mvccpb::KeyValue;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const KEYS: u32 = 3000;
/// So that a backup has several pages.
const VALUE_BYTES: usize = 8 << 10;

fn run(words: &[&str]) -> Output {
    let binary = System::Cloudpaxos.binary().expect("the binary is built");
    Command::new(binary).args(words).output().expect("it runs")
}

fn run_well(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn address(endpoint: &str) -> &str {
    endpoint.trim_start_matches("http://")
}

fn key(number: u32) -> Bytes {
    // Over all shards: the first character varies.
    let first = char::from(b'!' + u8::try_from(number % 90).expect("below 90"));
    Bytes::from(format!("{first}/{number:06}"))
}

/// All keys, at a revision or now.
async fn all(endpoint: &str, revision: i64) -> (pb::ResponseHeader, BTreeMap<Bytes, KeyValue>) {
    let mut client = kv(channel(endpoint));
    let (mut pairs, mut header) = (BTreeMap::new(), pb::ResponseHeader::default());
    let mut next = Some(Bytes::from_static(b"\0"));
    while let Some(key) = next {
        let range_end = Bytes::from_static(b"\0");
        let request = pb::RangeRequest { key, range_end, revision, limit: 500, ..Default::default() };
        let answer = client.range(request).await.expect("it answers").into_inner();
        header = answer.header.expect("a header");
        let last = answer.kvs.last().map(|pair| [&pair.key[..], b"\0"].concat().into());
        next = last.filter(|_| answer.more);
        pairs.extend(answer.kvs.into_iter().map(|pair| (pair.key.clone(), pair)));
    }
    (header, pairs)
}

async fn load(endpoint: &str) {
    let client = kv(channel(endpoint));
    let writing = (0..16u32).map(|writer| {
        let mut client = client.clone();
        tokio::spawn(async move {
            for number in (writer..KEYS).step_by(16) {
                let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
                let put = pb::PutRequest { key: key(number), value, ..Default::default() };
                client.put(put).await.expect("it answers");
            }
        })
    });
    for writer in writing.collect::<Vec<_>>() {
        writer.await.expect("all writes succeed");
    }
}

/// Three new nodes, each restored, and one that joins them; their endpoints.
fn restore(directory: &Path, backups: &str, name: &str) -> (Vec<Process>, Vec<String>) {
    let ports = free_ports(8).expect("eight free ports");
    let ports: Vec<[u16; 2]> = ports.chunks(2).map(|ports| [ports[0], ports[1]]).collect();
    let list: Vec<String> = ports.iter().zip(1..=3).map(|([_, peer], n)| format!("n{n}=127.0.0.1:{peer}")).collect();
    let (list, mut nodes) = (list.join(","), Vec::new());
    let settings = |n: usize| {
        let data = directory.join(format!("restored-{n}")).to_str().expect("UTF-8").to_owned();
        let node = [("--name", format!("n{n}")), ("--data-dir", data), ("--initial-cluster", list.clone())];
        node.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect::<Vec<_>>()
    };
    let mut said = String::new();
    for n in 1..=3 {
        let words = ["restore", "--from", backups, "--backup", name, "--data-groups", "3"].map(str::to_owned);
        let words: Vec<String> = words.into_iter().chain(settings(n)).collect();
        said = run_well(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let descent = said.lines().find_map(|line| line.split_once("--descent ")).expect("it says so").1;
    for (index, [client, peer]) in ports.iter().enumerate() {
        let listen = ["--listen-client".into(), format!("127.0.0.1:{client}"), "--listen-peer".into()];
        let words = ["start".to_owned()].into_iter().chain(settings(index + 1)).chain(listen);
        let joins = ["--join", "--data-groups", "3", "--descent", descent, "--advertise-peer"].map(str::to_owned);
        let joins = joins.into_iter().chain([format!("127.0.0.1:{peer}")]);
        let words = words.chain([format!("127.0.0.1:{peer}")]).chain(joins.filter(|_| index == 3));
        let words: Vec<OsString> = words.map(OsString::from).collect();
        let log = directory.join(format!("restored-{index}.log"));
        let binary = System::Cloudpaxos.binary().expect("the binary is built");
        nodes.push(Process::start("restored", &binary, &words, &log).expect("it starts"));
    }
    (nodes, ports.iter().map(|[client, _]| format!("http://127.0.0.1:{client}")).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_becomes_another_cluster() {
    let parent = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, parent.path()).await.expect("a cluster");
    let endpoints = cluster.endpoints();
    load(&endpoints[0]).await;
    let backups = parent.path().join("backups").to_str().expect("UTF-8").to_owned();

    // Somebody writes meanwhile, over keys of all shards.
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, endpoint) = (stop.clone(), endpoints[1].clone());
    let writing = tokio::spawn(async move {
        let mut client = kv(channel(&endpoint));
        for number in (0..KEYS).cycle() {
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            let put = pb::PutRequest { key: key(number), value: Bytes::from_static(b"new"), ..Default::default() };
            client.put(put).await.expect("a backup stops nobody");
        }
    });
    // One is killed at an early moment, another soon after, and one comes to its end.
    for (name, patience) in [("cut-1", 5), ("cut-2", 60)] {
        let binary = System::Cloudpaxos.binary().expect("the binary is built");
        let words = ["backup", "create", "--to", &backups, "--name", name, "--endpoints", address(&endpoints[2])];
        let mut backup = Command::new(binary).args(words).stdout(Stdio::null()).spawn().expect("it starts");
        tokio::time::sleep(Duration::from_millis(patience)).await;
        backup.kill().expect("kill -9");
        backup.wait().expect("it ends");
    }
    run_well(&["backup", "create", "--to", &backups, "--name", "whole", "--endpoints", address(&endpoints[2])]);
    stop.store(true, Ordering::Relaxed);
    writing.await.expect("all writes succeed");

    for name in ["cut-1", "cut-2"] {
        let output = run(&["backup", "verify", name, "--from", &backups]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // It may have been killed before its first file, or behind its last.
        let said_so = told.contains("cut short") || told.contains("there is no backup called");
        assert!(output.status.success() || said_so, "{told}");
    }
    let verified = run_well(&["backup", "verify", "whole", "--from", &backups, "-o", "json"]);
    let verified: serde_json::Value = serde_json::from_str(&verified).expect("JSON");
    let revision = verified["manifest"]["revision"].as_i64().expect("a number");
    let (old, at_revision) = all(&endpoints[0], revision).await;
    assert_eq!(at_revision.len(), KEYS as usize);

    // Of the complete ones two stay.
    run_well(&["backup", "create", "--to", &backups, "--name", "whole-2", "--endpoints", address(&endpoints[0])]);
    run_well(&["backup", "prune", "--from", &backups, "--keep", "2"]);
    let left: Vec<_> = std::fs::read_dir(&backups)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.join("manifest.json").exists())
        .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");

    let (mut nodes, restored) = restore(parent.path(), &backups, "whole");
    let deadline = Instant::now() + LIMIT;
    for endpoint in &restored {
        while !e2e::client::answers(endpoint).await {
            nodes.iter_mut().for_each(|node| node.check_alive().expect("it runs"));
            assert!(Instant::now() < deadline, "{endpoint} does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (new, found) = all(&restored[0], 0).await;
    assert!(found == at_revision, "every key is as it was, with its revisions and version");
    assert_ne!(new.cluster_id, old.cluster_id);
    assert!(new.revision > old.revision, "nothing goes back in time: {} behind {}", new.revision, old.revision);
    assert_eq!(new.raft_term, old.raft_term + 1);

    // It is a cluster like any other, and one more node has joined it.
    let listed = run_well(&["nodes", "list", "--endpoints", address(&restored[3])]);
    assert!(listed.contains(" n4 "), "{listed}");
    let mut client = kv(channel(&restored[1]));
    let put = pb::PutRequest { key: key(1), value: Bytes::from_static(b"newer"), prev_kv: true, ..Default::default() };
    let answer = client.put(put).await.expect("it answers").into_inner();
    assert_eq!(answer.prev_kv, at_revision.get(&key(1)).cloned());
    let status = run_well(&["shards", "list", "--endpoints", address(&restored[2]), "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let groups: std::collections::BTreeSet<_> =
        status["shards"].as_array().expect("shards").iter().map(|shard| shard["group"].to_string()).collect();
    assert_eq!(groups.len(), 3);
    // A node's directory is not overwritten.
    let told = run(&[
        "restore",
        "--from",
        &backups,
        "--backup",
        "whole",
        "--name",
        "n1",
        "--initial-cluster",
        "n1=127.0.0.1:1",
        "--data-dir",
        cluster.member(0).data.to_str().expect("UTF-8"),
    ]);
    assert!(!told.status.success(), "it is somebody's");
    assert!(String::from_utf8_lossy(&told.stderr).contains("is the directory of n1 already"));
}
