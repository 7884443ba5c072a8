//! Shards move between groups, are split and merged, while clients append to keys in all of them: no request fails, none is lost or
//! done twice, no read is stale; not even while nodes are killed.

use e2e::append::Appenders;
use e2e::client::channel;
use e2e::cluster::Cluster;
use e2e::mover::{await_rest, keep_moving};
use e2e::system::{Layout, System};
use proto::admin::StatusRequest;
use proto::admin::admin_client::AdminClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 11;
const MOVING: Duration = Duration::from_secs(6);
/// How long an append and its reading may be held up at most: with a node killed, an election comes on top.
const STALL_MAX: Duration = Duration::from_secs(5);

/// Moves shards about for a while, and does `meanwhile`, under the eyes of eleven clients, who ask all members that serve
/// clients by turns.
async fn move_about(cluster: &mut Cluster, meanwhile: impl AsyncFnOnce(&mut Cluster)) -> (u64, Duration) {
    let endpoints = cluster.endpoints();
    let clients = Appenders::start(&endpoints, CLIENTS);
    let mut admin = AdminClient::new(channel(&endpoints[0]));
    let enough = Arc::new(AtomicBool::new(false));
    let mover = tokio::spawn(keep_moving(admin.clone(), 2, enough.clone()));
    meanwhile(cluster).await;
    enough.store(true, Ordering::Relaxed);
    let moves = mover.await.expect("the mover ends");
    await_rest(&mut admin).await;
    let (appends, longest) = clients.finish().await;
    eprintln!("{moves} changes, {appends} appends, the longest took {longest:?}");
    assert!(appends > 500, "{appends} appends");
    (moves, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_move_and_no_request_fails() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, parent.path()).await.expect("a cluster");
    let (moves, longest) = move_about(&mut cluster, async |_| tokio::time::sleep(MOVING).await).await;
    assert!(moves > 20, "{moves} moves");
    assert!(longest < STALL_MAX, "{longest:?}");
}

/// Waits until all nodes answer what the status asks of them.
async fn await_nodes(cluster: &Cluster) {
    let mut admin = AdminClient::new(channel(&cluster.endpoints()[0]));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = admin.status(StatusRequest::default()).await.map(tonic::Response::into_inner);
        if status.as_ref().is_ok_and(|status| status.nodes.iter().all(|node| node.alive)) {
            return;
        }
        assert!(Instant::now() < deadline, "not all nodes answer: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_survive_kills() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::Gateways, parent.path()).await.expect("a cluster");
    let kills = async |cluster: &mut Cluster| {
        for number in [0, 1, 0] {
            tokio::time::sleep(MOVING / 4).await;
            cluster.kill(number).expect("kill -9");
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.launch(number).expect("it is started");
            await_nodes(cluster).await;
        }
    };
    let (moves, longest) = move_about(&mut cluster, kills).await;
    assert!(moves > 10, "{moves} moves");
    assert!(longest < STALL_MAX, "{longest:?}");
}
