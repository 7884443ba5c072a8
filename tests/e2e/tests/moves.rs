//! Shards move between groups, are split and merged, while clients append to keys in all of them: no request fails, none is lost or
//! done twice, no read is stale; not even while nodes are killed.

use e2e::append::append;
use e2e::client::channel;
use e2e::cluster::Cluster;
use e2e::system::{Layout, System};
use proto::admin::admin_client::AdminClient;
use proto::admin::{
    CancelMoveRequest, MergeShardsRequest, MoveShardRequest, MovesListRequest, Shard, ShardsListRequest,
    SplitShardRequest,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status};

const CLIENTS: u64 = 11;
/// The longest pause between two wishes, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 30;
const MOVING: Duration = Duration::from_secs(6);
/// How long an append and its reading may be held up at most: with a node killed, an election comes on top.
const STALL_MAX: Duration = Duration::from_secs(5);
const SEED: u64 = 20_261_129;

/// Wants something of a random shard: mostly that it moves. The number of the change.
async fn wish(admin: &mut AdminClient<Channel>, random: &mut StdRng) -> Result<u64, Status> {
    let shards = admin.shards_list(ShardsListRequest {}).await?.into_inner().shards;
    let at = random.random_range(0..shards.len());
    let Shard { id: shard, group, .. } = shards[at];
    match random.random_range(0..10) {
        0 | 1 => {
            let key = vec![random.random_range(b'a'..=b'z'), b'/', b'q'];
            let holds = |shard: &&Shard| shard.start < key && (shard.unbounded || shard.end > key);
            let Some(holder) = shards.iter().find(holds).map(|shard| shard.id) else { return Ok(0) };
            Ok(admin.split_shard(SplitShardRequest { shard: holder, at: key.into() }).await?.get_ref().id)
        }
        2 => match shards.get(at + 1).filter(|next| next.group == group) {
            Some(next) => {
                Ok(admin.merge_shards(MergeShardsRequest { left: shard, right: next.id }).await?.get_ref().id)
            }
            None => Ok(0),
        },
        _ => {
            let wish = MoveShardRequest { shard, group: random.random_range(2..=3) };
            Ok(admin.move_shard(wish).await?.get_ref().id)
        }
    }
}

/// Wants something again and again. How many changes were planned.
async fn keep_moving(mut admin: AdminClient<Channel>, stop: Arc<AtomicBool>) -> u64 {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        match wish(&mut admin, &mut random).await {
            Ok(id) => last = last.max(id),
            // It changes already, or is there already.
            Err(refused) if refused.code() == Code::InvalidArgument => {}
            // Nobody leads the shardmaster at the moment.
            Err(unavailable) => assert_eq!(unavailable.code(), Code::Unavailable, "{unavailable}"),
        }
        if random.random_range(0..20) == 0 {
            // It may be done, or be called off; either is fine.
            drop(admin.cancel_move(CancelMoveRequest { id: last }).await);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..=PAUSE_MILLIS_MAX))).await;
    }
    last
}

async fn await_rest(admin: &mut AdminClient<Channel>) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let moves = admin.moves_list(MovesListRequest {}).await.map(tonic::Response::into_inner);
        let shards = admin.shards_list(ShardsListRequest {}).await.map(tonic::Response::into_inner);
        let moved = moves.as_ref().is_ok_and(|moves| moves.moves.is_empty());
        if moved && shards.as_ref().is_ok_and(|shards| shards.changes.is_empty()) {
            return;
        }
        assert!(Instant::now() < deadline, "changes do not end: {moves:?}, {shards:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Moves shards about for a while, and does `meanwhile`, under the eyes of eleven clients at n3.
async fn move_about(cluster: &mut Cluster, meanwhile: impl AsyncFnOnce(&mut Cluster)) -> (u64, Duration) {
    let endpoint = cluster.endpoint(2).expect("it serves clients");
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let client = |number| tokio::spawn(append(endpoint.clone(), number, stop.clone(), done.clone()));
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    let mut admin = AdminClient::new(channel(&endpoint));
    let enough = Arc::new(AtomicBool::new(false));
    let mover = tokio::spawn(keep_moving(admin.clone(), enough.clone()));
    meanwhile(cluster).await;
    enough.store(true, Ordering::Relaxed);
    let moves = mover.await.expect("the mover ends");
    await_rest(&mut admin).await;
    stop.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for client in clients {
        longest = longest.max(client.await.expect("no request failed"));
    }
    let appends = done.load(Ordering::Relaxed);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_survive_kills() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, parent.path()).await.expect("a cluster");
    let kills = async |cluster: &mut Cluster| {
        for number in [0, 1, 0] {
            tokio::time::sleep(MOVING / 4).await;
            cluster.kill(number).expect("kill -9");
            tokio::time::sleep(Duration::from_millis(500)).await;
            cluster.launch(number).expect("it is started");
            let ready = cluster.endpoint(number).expect("it serves clients");
            let mut again = AdminClient::new(channel(&ready));
            let deadline = Instant::now() + Duration::from_secs(20);
            while again.shards_list(ShardsListRequest {}).await.is_err() {
                assert!(Instant::now() < deadline, "{number} does not serve again");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let (moves, longest) = move_about(&mut cluster, kills).await;
    assert!(moves > 10, "{moves} moves");
    assert!(longest < STALL_MAX, "{longest:?}");
}
