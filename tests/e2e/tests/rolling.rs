//! Nodes that are told to stop hand over what they lead: behind gateways nobody notices a rolling restart.

use bytes::Bytes;
use e2e::client::{channel, kv, wait_ready};
use e2e::cluster::{Cluster, Start, free_ports};
use e2e::system::{Layout, Role, System};
use proto::etcdserverpb as pb;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const WRITERS: u64 = 8;
/// Restarts of each node.
const ROUNDS: usize = 2;

/// Writes one key without a pause, and counts; the longest that a write took.
async fn write(endpoint: String, number: u64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Duration {
    let mut client = kv(channel(&endpoint));
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let key = Bytes::from(format!("rolling/{number}"));
        let begun = Instant::now();
        client.put(pb::PutRequest { key, ..Default::default() }).await.expect("no request fails");
        longest = longest.max(begun.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    let parent = tempfile::tempdir().expect("a directory");
    let ports = free_ports(3).expect("three free ports");
    let metrics = |number: usize| Start {
        wrapper: Vec::new(),
        options: vec![("--listen-metrics", OsString::from(format!("127.0.0.1:{}", ports[number])))],
    };
    let start = |member: &e2e::system::Member| match member.role {
        Role::Node | Role::DataNode => metrics(usize::from(member.name.as_bytes()[1] - b'1')),
        Role::Gateway => Start::default(),
    };
    let mut cluster =
        Cluster::start_as(System::Cloudpaxos, Layout::Gateways, parent.path(), start).await.expect("a cluster");
    for port in &ports {
        wait_ready(*port).await;
    }
    let endpoints = cluster.endpoints();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .zip(endpoints.iter().cycle())
        .map(|(number, endpoint)| tokio::spawn(write(endpoint.clone(), number, stop.clone(), done.clone())))
        .collect();
    for number in (0..3).cycle().take(3 * ROUNDS) {
        let before = done.load(Ordering::Relaxed);
        let stopping = Instant::now();
        cluster.stop(number).expect("it ends in time, and well");
        assert!(stopping.elapsed() < Duration::from_secs(5), "it handed over at once: {:?}", stopping.elapsed());
        cluster.launch_as(number, &metrics(number)).expect("it starts again");
        wait_ready(ports[number]).await;
        let deadline = Instant::now() + LIMIT;
        while done.load(Ordering::Relaxed) < before + 200 {
            assert!(writers.iter().all(|writer| !writer.is_finished()), "a request failed");
            assert!(Instant::now() < deadline, "writes do not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for writer in writers {
        longest = longest.max(writer.await.expect("no request failed"));
    }
    println!("{} writes, the longest took {longest:?}", done.load(Ordering::Relaxed));
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    for number in 0..3 {
        let log = std::fs::read_to_string(cluster.log(number)).expect("it has a log");
        assert!(!log.contains("not every leadership could be handed over"), "{log}");
    }
}
