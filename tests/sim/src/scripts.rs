//! What cannot happen in the world, because no route leads there, is told to the state machines directly: a rule that is
//! the second line of defence must hold, too.

use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Op, Put};
use shardkv::request::SessionTag;
use shardkv::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, codec};
use std::sync::Arc;

/// Every script; an error says which rule was broken.
pub fn play() -> Result<(), String> {
    only_the_present_epoch_is_taken()
}

/// A group takes commands for a shard at the epoch that it owns it at, and at none before or behind: the map that a
/// newer one comes from may have given the shard to another group.
fn only_the_present_epoch_is_taken() -> Result<(), String> {
    let failed = |error: shardkv::StoreError| format!("a store in memory fails: {error}");
    let (shard, own) = (ShardId(1), Epoch(7));
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).map_err(failed)?;
    let mut revision = Revision(1);
    let mut tell = |command: &dyn Fn(Revision) -> Command| {
        revision = Revision(revision.0 + 1);
        let entry = codec::encode(&Batch { commands: vec![command(revision)] });
        let outcomes = group.apply(&[(Slot(revision.0 - 1), entry)]).map_err(failed)?;
        Ok::<Outcome, String>(outcomes.into_iter().flatten().next().unwrap_or(Outcome::WrongShard))
    };
    let begun = tell(&|revision| {
        let (bounds, by) = (Bounds::default(), MoveId(0));
        Command::Activate { revision, shard, bounds, epoch: own, by }
    })?;
    for epoch in [Epoch(own.0 - 1), own, Epoch(own.0 + 1)] {
        let outcome = tell(&|revision| {
            let (key, value) = ("k".into(), "v".into());
            let put = Put { key, value, lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false };
            let session = SessionTag { session: 1, born: Revision(1), sequence: revision.0, low_water: revision.0 };
            Command::Write { revision, shard, epoch, also: Vec::new(), session, op: Op::Put(put) }
        })?;
        let done = matches!(outcome, Outcome::Done { .. });
        if done != (epoch == own) {
            return Err(format!(
                "a stale owner: {shard}, here at epoch {} ({begun:?}), answers a write at epoch {}: {outcome:?}",
                own.0, epoch.0
            ));
        }
    }
    Ok(())
}
