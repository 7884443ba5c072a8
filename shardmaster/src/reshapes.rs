//! Shards that are split or merged (design §7). The map has them at once as they are to be; the group that owns them
//! follows, as one entry of its log, and says so. Until then they do not move, and are not cut again.

use crate::state::{MasterOutcome, MasterState, refused};
use bytes::Bytes;
use shardkv::map::{ReshapeInfo, ShardInfo};
use shardkv::types::{Bounds, Epoch, MoveId, ShardId};

/// Shards of a cluster: all of them are in the map, which every gateway and node has.
pub(crate) const SHARDS_MAX: usize = 10_000;
/// Bytes of the keys that shards begin at, all together: twice as many, and some, are one message to each node.
const BOUNDARY_BYTES_MAX: usize = 2 << 20;
/// Of the first key of a shard.
pub const SPLIT_KEY_BYTES_MAX: usize = 4096;

impl MasterState {
    pub(crate) fn split_shard(&mut self, id: ShardId, at: Bytes) -> MasterOutcome {
        let known = self.map.shard(id);
        if let Some(done) = known.filter(|shard| shard.bounds.end.as_ref() == Some(&at) && shard.by > MoveId(0)) {
            return MasterOutcome::Move(done.by); // asked again
        }
        if at.len() > SPLIT_KEY_BYTES_MAX {
            return refused(format!("a key of {} bytes cuts no shards: {SPLIT_KEY_BYTES_MAX} at most", at.len()));
        }
        let old = match self.to_be_cut(id) {
            Ok(old) => old,
            Err(outcome) => return outcome,
        };
        if at <= old.bounds.start || !old.bounds.contains(&at) {
            return refused(format!("{id} cannot be split there: the key must lie inside of it, behind its first one"));
        }
        if self.map.shards.len() >= SHARDS_MAX {
            return refused(format!("there are {SHARDS_MAX} shards, and there cannot be more: merge some first"));
        }
        let boundaries = self.map.shards.iter().map(|shard| shard.bounds.start.len()).sum::<usize>() + at.len();
        if boundaries > BOUNDARY_BYTES_MAX {
            return refused(format!(
                "the keys that shards begin at would have {boundaries} bytes, and must not have more than \
                 {BOUNDARY_BYTES_MAX}, for every node has them all: split at a shorter key, or merge some shards first"
            ));
        }
        let by = self.next_change();
        self.map.last_shard = ShardId(self.map.last_shard.0 + 1);
        let left = Bounds { start: old.bounds.start.clone(), end: Some(at.clone()) };
        let right = Bounds { start: at, end: old.bounds.end.clone() };
        let epoch = Epoch(old.epoch.0 + 1);
        let left = ShardInfo { bounds: left, epoch, by, ..old };
        let right = ShardInfo { id: self.map.last_shard, bounds: right, epoch: Epoch(1), by, ..old };
        self.reshape(by, vec![old], vec![left, right])
    }

    pub(crate) fn merge_shards(&mut self, left: ShardId, right: ShardId) -> MasterOutcome {
        let (left, right) = match (self.to_be_cut(left), self.to_be_cut(right)) {
            (Ok(left), Ok(right)) => (left, right),
            (Err(outcome), _) | (_, Err(outcome)) => return outcome,
        };
        if left.bounds.end.as_ref() != Some(&right.bounds.start) {
            return refused(format!(
                "{} does not end where {} begins: only neighbours can be merged",
                left.id, right.id
            ));
        }
        if left.group != right.group {
            return refused(format!(
                "{} is in {}, {} in {}: move one of them first",
                left.id, left.group, right.id, right.group
            ));
        }
        let by = self.next_change();
        let bounds = Bounds { start: left.bounds.start.clone(), end: right.bounds.end.clone() };
        let merged = ShardInfo { bounds, epoch: Epoch(left.epoch.max(right.epoch).0 + 1), by, ..left };
        self.reshape(by, vec![left, right], vec![merged])
    }

    /// A group has carried out a change.
    pub(crate) fn reshaped(&mut self, by: MoveId) -> MasterOutcome {
        let before = self.map.reshapes.len();
        self.map.reshapes.retain(|planned| planned.id != by);
        self.map.version += u64::from(self.map.reshapes.len() != before);
        MasterOutcome::Applied
    }

    fn to_be_cut(&self, id: ShardId) -> Result<ShardInfo, MasterOutcome> {
        let Some(shard) = self.map.shard(id) else {
            let once = if id <= self.map.last_shard && id > ShardId(0) { " any more: it was merged" } else { "" };
            return Err(refused(format!("{id} is no shard of the map{once}")));
        };
        if let Some(planned) = self.map.moves.iter().find(|planned| planned.shard == id) {
            return Err(refused(format!(
                "{id} is moving to {} (move {}): wait for it, or cancel it",
                planned.to, planned.id.0
            )));
        }
        if self.map.reshape_to(id).is_some() {
            return Err(refused(format!("{id} is being split or merged: try again in a moment")));
        }
        Ok(shard.clone())
    }

    pub(crate) fn next_change(&mut self) -> MoveId {
        self.map.last_move = MoveId(self.map.last_move.0 + 1);
        self.map.last_move
    }

    fn reshape(&mut self, id: MoveId, from: Vec<ShardInfo>, to: Vec<ShardInfo>) -> MasterOutcome {
        let group = from[0].group;
        self.map.shards.retain(|shard| !from.iter().any(|old| old.id == shard.id));
        self.map.shards.extend(to.iter().cloned());
        self.map.shards.sort_by(|a, b| a.bounds.start.cmp(&b.bounds.start));
        self.map.reshapes.push(ReshapeInfo { id, group, from, to });
        self.map.version += 1;
        MasterOutcome::Move(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MasterCommand;
    use paxos::GroupId;
    use shardkv::map::{GroupInfo, SHARDMASTER_GROUP, ShardChange, ShardMap};

    const S: GroupId = GroupId(2);
    const D: GroupId = GroupId(3);

    /// Shards 1 (to "m") of S, 2 (to "t") of S, 3 of D.
    fn state() -> MasterState {
        let map = ShardMap {
            shards: crate::initial_shards(&["m".into(), "t".into()], &[S, S, D]),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, Vec::new()),
            groups: vec![GroupInfo::new(S, Vec::new()), GroupInfo::new(D, Vec::new())],
            ..ShardMap::default()
        };
        let mut state = MasterState::default();
        assert_eq!(state.apply(MasterCommand::Genesis(Box::new(map))), MasterOutcome::Applied);
        state
    }

    fn split(state: &mut MasterState, shard: u64, at: &'static str) -> MasterOutcome {
        state.apply(MasterCommand::ChangeShards(ShardChange::Split { shard: ShardId(shard), at: at.into() }))
    }

    fn merge(state: &mut MasterState, left: u64, right: u64) -> MasterOutcome {
        state.apply(MasterCommand::ChangeShards(ShardChange::Merge { left: ShardId(left), right: ShardId(right) }))
    }

    fn cuts(state: &MasterState) -> Vec<(u64, u64, GroupId)> {
        assert_eq!(state.map.check(), Ok(()));
        state.map.shards.iter().map(|shard| (shard.id.0, shard.epoch.0, shard.group)).collect()
    }

    #[test]
    fn a_shard_is_split_and_merged_again() {
        let mut state = state();
        assert_eq!(split(&mut state, 1, "f"), MasterOutcome::Move(MoveId(1)));
        assert_eq!(cuts(&state), [(1, 2, S), (4, 1, S), (2, 1, S), (3, 1, D)]);
        let uncut: Vec<(u64, u64)> = state.map.uncut().map(|shard| (shard.id.0, shard.epoch.0)).collect();
        assert_eq!(uncut, [(2, 1), (3, 1), (1, 1)], "the group has not done it yet");
        assert_eq!(split(&mut state, 1, "f"), MasterOutcome::Move(MoveId(1)), "asked again");
        for refused in [split(&mut state, 1, "c"), split(&mut state, 4, "g"), merge(&mut state, 1, 4)] {
            assert!(matches!(refused, MasterOutcome::Failed(_)), "{refused:?}");
        }
        let moved = state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard: ShardId(4), to: D }));
        assert!(matches!(moved, MasterOutcome::Failed(_)), "{moved:?}");
        state.apply(MasterCommand::Reshaped { by: MoveId(1) });
        assert!(state.map.reshapes.is_empty());
        assert_eq!(merge(&mut state, 1, 4), MasterOutcome::Move(MoveId(2)));
        assert_eq!(cuts(&state), [(1, 3, S), (2, 1, S), (3, 1, D)]);
        state.apply(MasterCommand::Reshaped { by: MoveId(2) });
        assert_eq!(split(&mut state, 1, "f"), MasterOutcome::Move(MoveId(3)));
        assert_eq!(cuts(&state)[1], (5, 1, S), "no id is given twice");
        let version = state.map.version;
        state.apply(MasterCommand::Reshaped { by: MoveId(2) });
        assert_eq!(state.map.version, version, "said twice");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut state = state();
        let before = state.clone();
        for (shard, at) in [(1, ""), (1, "m"), (1, "z"), (2, "m"), (9, "a")] {
            let outcome = split(&mut state, shard, at);
            assert!(matches!(outcome, MasterOutcome::Failed(_)), "{shard} at {at}: {outcome:?}");
        }
        for (left, right) in [(1, 1), (2, 1), (1, 3), (2, 3), (3, 9)] {
            let outcome = merge(&mut state, left, right);
            assert!(matches!(outcome, MasterOutcome::Failed(_)), "{left} and {right}: {outcome:?}");
        }
        state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard: ShardId(1), to: D }));
        assert!(matches!(split(&mut state, 1, "f"), MasterOutcome::Failed(_)), "it moves");
        assert!(matches!(merge(&mut state, 1, 2), MasterOutcome::Failed(_)), "one of them moves");
        state.apply(MasterCommand::ChangeShards(ShardChange::CancelMove { mv: MoveId(1) }));
        assert_eq!(state.map.shards, before.map.shards);
    }

    /// The map is one message to each node, and must fit into the queue to it.
    #[test]
    fn the_keys_that_shards_begin_at_are_bounded_all_together() {
        let mut state = state();
        let mut cut = |number: u64| {
            let at = [b"n".as_slice(), &number.to_be_bytes(), &[b'x'; SPLIT_KEY_BYTES_MAX - 9]].concat();
            let shard = state.map.shard_of(&at).expect("every key has a shard").id;
            let outcome = state.apply(MasterCommand::ChangeShards(ShardChange::Split { shard, at: at.into() }));
            if let MasterOutcome::Move(by) = outcome {
                state.apply(MasterCommand::Reshaped { by });
            }
            outcome
        };
        let most = (BOUNDARY_BYTES_MAX / SPLIT_KEY_BYTES_MAX) as u64;
        let refused = (0..2 * most).map(&mut cut).position(|outcome| matches!(outcome, MasterOutcome::Failed(_)));
        assert!(refused.is_some_and(|cuts| (most / 2..=most).contains(&(cuts as u64))), "{refused:?} of {most}");
        let said = format!("{:?}", cut(2 * most));
        assert!(said.contains("merge some shards first"), "{said}");
    }
}
