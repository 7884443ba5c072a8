//! Somebody who never leaves shards alone, for tests in which clients must not notice.

use proto::admin::admin_client::AdminClient;
use proto::admin::{
    CancelMoveRequest, MergeShardsRequest, MoveShardRequest, MovesListRequest, Shard, ShardsListRequest,
    SplitShardRequest,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The longest pause between two wishes, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 30;
const SEED: u64 = 20_261_129;

/// Wants something of a random shard: mostly that it moves. The number of the change.
async fn wish(admin: &mut AdminClient<Channel>, random: &mut StdRng, groups: u64) -> Result<u64, Status> {
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
            let wish = MoveShardRequest { shard, group: random.random_range(2..=1 + groups) };
            Ok(admin.move_shard(wish).await?.get_ref().id)
        }
    }
}

/// Wants something again and again, over so many data groups. How many changes were planned.
///
/// # Panics
/// If a wish is refused for another reason than that it cannot be.
pub async fn keep_moving(mut admin: AdminClient<Channel>, groups: u64, stop: Arc<AtomicBool>) -> u64 {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut last = 0;
    while !stop.load(Ordering::Relaxed) {
        match wish(&mut admin, &mut random, groups).await {
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

/// Waits until no change of shards is under way.
///
/// # Panics
/// If that takes too long.
pub async fn await_rest(admin: &mut AdminClient<Channel>) {
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
