//! Shards that are cut anew (design §7): one becomes two, or two become one. Only what is known of them changes,
//! no row does: the halves of a shard share its spaces, and a shard that was merged has the spaces of both.
//!
//! What sessions have done is wanted by all that hold any of the keys afterwards: a retry goes to whichever of them
//! has the first key of its command. So a table is copied to each of these, as rows of this call; what was written
//! before them about a shard that gets such a copy does not count any more ([`OwnedShard::since`]).

use crate::apply::Call;
use crate::codec;
use crate::command::Outcome;
use crate::request::OpError;
use crate::sessions::Executed;
use crate::state::{OwnedShard, Shard, Stretch};
use crate::store::Store;
use crate::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use paxos::flaw::{self, Flaw};
use std::sync::Arc;

/// A shard as it is to be.
type Target = (ShardId, Bounds, Epoch);

impl<S: Store> Call<'_, S> {
    pub(crate) fn reshape(&mut self, by: MoveId, from: &[(ShardId, Epoch)], to: &[Target]) -> Outcome {
        let is_done = |(id, bounds, epoch): &Target| {
            let shard = self.state.shards.get(id).map(|shard| &shard.info);
            shard.is_some_and(|info| info.epoch == *epoch && info.bounds == *bounds)
        };
        if !to.is_empty() && to.iter().all(is_done) {
            return Outcome::Moved;
        }
        let owned = |(id, epoch): &(ShardId, Epoch)| {
            let shard = self.state.shards.get(id).map(|shard| shard.info.clone());
            shard.filter(|info| info.epoch == *epoch && info.out.is_none())
        };
        let Some(before) = from.iter().map(owned).collect::<Option<Vec<OwnedShard>>>() else {
            return Outcome::WrongShard;
        };
        if let Err(why) = self.check_reshape(&before, to) {
            return Outcome::Failed(OpError::Malformed(why));
        }
        let after: Vec<OwnedShard> = to.iter().map(|target| self.reshaped(&before, target)).collect();
        let outcomes: Vec<Vec<Executed>> = after.iter().map(|info| self.outcomes_for(&before, info)).collect();
        for old in before.iter().filter(|old| !after.iter().any(|new| new.id == old.id)) {
            Arc::make_mut(&mut self.state.shards).remove(&old.id);
            // Its number is given to no other: a leader with an old map must not bring it to life again.
            Arc::make_mut(&mut self.state.gone).insert(old.id, Epoch(u64::MAX));
            self.changed_shards.insert(old.id);
            self.changed_gone.insert(old.id);
            self.forget_sessions(old.id);
        }
        for (mut info, outcomes) in after.into_iter().zip(outcomes) {
            if !keeps_table(&before, &info) {
                self.forget_sessions(info.id);
                info.since = self.row;
                let (evicted, kept) = self.state.sessions.adopt(info.id, outcomes, info.evicted, self.row);
                info.evicted = evicted;
                self.executed.extend(kept);
            }
            self.changed_shards.insert(info.id);
            Arc::make_mut(&mut self.state.shards).insert(info.id, Shard::new(info, self.keys));
        }
        self.mix(b'/', Revision(0), u64::from(crc32fast::hash(&codec::encode(&(by, from, to)))));
        Outcome::Moved
    }

    /// What is wrong with a new cut, if anything: apply is total.
    fn check_reshape(&self, before: &[OwnedShard], to: &[Target]) -> Result<(), String> {
        let meets = |a: &Bounds, b: &Bounds| a.end.as_ref() == Some(&b.start);
        let (Some(first), Some(last)) = (before.first(), before.last()) else { return Err("it has no shards".into()) };
        let (Some(left), Some(right)) = (to.first(), to.last()) else { return Err("it leaves no shards".into()) };
        let whole = left.1.start == first.bounds.start && right.1.end == last.bounds.end;
        let tiled = before.windows(2).all(|pair| meets(&pair[0].bounds, &pair[1].bounds))
            && to.windows(2).all(|pair| meets(&pair[0].1, &pair[1].1));
        let full = |bounds: &Bounds| bounds.end.as_ref().is_none_or(|end| bounds.start < *end);
        if !whole || !tiled || !to.iter().all(|(_, bounds, _)| full(bounds)) {
            return Err("the shards do not cover the same keys before and after".into());
        }
        for (at, (id, _, epoch)) in to.iter().enumerate() {
            let known = before.iter().find(|old| old.id == *id);
            let rises = known.is_none_or(|old| old.epoch < *epoch);
            let free = known.is_some() || !self.state.shards.contains_key(id);
            let lives = self.state.gone.get(id).is_none_or(|gone| gone < epoch);
            let once = !to[..at].iter().any(|(other, _, _)| other == id);
            if !rises || !free || !lives || !once || self.state.arrivals.contains_key(id) {
                return Err(format!("{id} cannot become one of these shards"));
            }
        }
        Ok(())
    }

    fn reshaped(&self, before: &[OwnedShard], (id, bounds, epoch): &Target) -> OwnedShard {
        let all = bounds.keys();
        let sources: Vec<&OwnedShard> = before.iter().filter(|old| old.bounds.intersects(&all)).collect();
        let parts = sources.iter().flat_map(|old| old.parts()).filter(|(part, _)| part.intersects(&all));
        let mut stretches: Vec<Stretch> = Vec::new();
        for (part, space) in parts {
            if stretches.last().is_none_or(|last| last.space != space) {
                stretches.push(Stretch { start: part.start.max(bounds.start.clone()), space });
            }
        }
        let most = |of: fn(&OwnedShard) -> Revision| sources.iter().map(|old| of(old)).max().unwrap_or_default();
        let own = before.iter().find(|old| old.id == *id);
        OwnedShard {
            id: *id,
            bounds: bounds.clone(),
            epoch: *epoch,
            floor: most(|old| old.floor),
            evicted: most(|old| old.evicted),
            stretches,
            since: own.map_or(self.row, |old| old.since),
            stayed: sources.iter().map(|old| old.stayed).max().unwrap_or_default(),
            out: None,
        }
    }

    /// What sessions have done to any of the keys, in the order of revisions.
    fn outcomes_for(&self, before: &[OwnedShard], after: &OwnedShard) -> Vec<Executed> {
        if flaw::is(Flaw::CutWithoutSessions) {
            return Vec::new();
        }
        let all = after.bounds.keys();
        let sources: Vec<&OwnedShard> = before.iter().filter(|old| old.bounds.intersects(&all)).collect();
        let table = |old: &&OwnedShard| self.state.sessions.export_shard(old.id, Revision(0));
        let mut found: Vec<Executed> = sources.iter().flat_map(table).collect();
        // Where one of them has forgotten what a session did, all do: a retry of that must not pass for new because of what the
        // session did to another.
        let forgotten = |it: &Executed| sources.iter().any(|old| self.state.sessions.may_have_evicted(old.id, &it.tag));
        found.retain(|executed| !forgotten(executed));
        found.sort_by_key(|executed| executed.revision);
        found
    }
}

/// Whether a shard goes on with its own session table: none of its keys was another's.
fn keeps_table(before: &[OwnedShard], after: &OwnedShard) -> bool {
    let all = after.bounds.keys();
    before.iter().filter(|old| old.bounds.intersects(&all)).all(|old| old.id == after.id)
}
