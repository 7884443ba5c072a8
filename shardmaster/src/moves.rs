//! Moves of shards: planned, called off, or done (design §7). What a move needs is decided here, in this log,
//! and nowhere else: a shard has the owner that the map names, at the epoch that the map names.

use crate::state::{MasterOutcome, MasterState, refused};
use paxos::GroupId;
use shardkv::map::{MoveInfo, SHARDMASTER_GROUP, ShardChange};
use shardkv::types::{Epoch, MoveId, ShardId};

/// Moves under way at the same time, in the whole cluster: each copies a shard over the network.
const MOVES_MAX: usize = 16;

impl MasterState {
    pub(crate) fn change_shards(&mut self, change: ShardChange) -> MasterOutcome {
        match change {
            ShardChange::Move { shard, to } => self.move_shard(shard, to),
            ShardChange::CancelMove { mv } => self.cancel_move(mv),
            ShardChange::Split { shard, at } => self.split_shard(shard, at),
            ShardChange::Merge { left, right } => self.merge_shards(left, right),
            ShardChange::Pause { paused } => {
                self.map.version += u64::from(self.map.balance.paused != paused);
                self.map.balance.paused = paused;
                MasterOutcome::Applied
            }
            ShardChange::Pin(pin) => self.pin(pin),
            ShardChange::Unpin { prefix } => self.unpin(&prefix),
        }
    }

    fn move_shard(&mut self, id: ShardId, to: GroupId) -> MasterOutcome {
        let map = &self.map;
        let Some(shard) = map.shard(id) else { return refused(format!("{id} is no shard of the map")) };
        if to == SHARDMASTER_GROUP || map.group(to).is_none() {
            return refused(format!("{to} is no group that holds shards"));
        }
        if let Some(planned) = map.moves.iter().find(|planned| planned.shard == id) {
            return match planned.to == to {
                true => MasterOutcome::Move(planned.id),
                false => refused(format!(
                    "{id} is moving to {} already (move {}): wait for it, or cancel it",
                    planned.to, planned.id.0
                )),
            };
        }
        if shard.group == to {
            return refused(format!("{id} is in {to} already"));
        }
        if map.group(to).is_some_and(|group| group.emptying) {
            return refused(format!("{to} is to be emptied: choose another group, or let it keep its shards"));
        }
        if map.reshape_to(id).is_some() {
            return refused(format!("{id} is being split or merged: try again in a moment"));
        }
        if map.moves.len() >= MOVES_MAX {
            return refused(format!("{MOVES_MAX} shards are moving already: wait for one of them"));
        }
        let (from, epoch) = (shard.group, shard.epoch);
        let mv = self.next_change();
        self.map.moves.push(MoveInfo { id: mv, shard: id, from, epoch, to });
        self.map.version += 1;
        MasterOutcome::Move(mv)
    }

    fn cancel_move(&mut self, mv: MoveId) -> MasterOutcome {
        if mv > self.map.last_move {
            return refused(format!("there was no move {}", mv.0));
        }
        if self.map.reshapes.iter().any(|planned| planned.id == mv) {
            return refused(format!("{} is a split or a merge, which is done at once and cannot be called off", mv.0));
        }
        if self.map.shards.iter().any(|shard| shard.by == mv) {
            return refused(format!("move {} is done: to undo it, move the shard back", mv.0));
        }
        if self.map.move_of(mv).is_none() {
            return refused(format!("move {} is over already: it was called off, or the shard has moved again", mv.0));
        }
        self.map.moves.retain(|planned| planned.id != mv);
        self.map.version += 1;
        MasterOutcome::Applied
    }

    /// The one moment at which a shard changes hands.
    pub(crate) fn arrived(&mut self, mv: MoveId) -> MasterOutcome {
        let Some(planned) = self.map.move_of(mv).cloned() else {
            // It was called off, or this was said before.
            return MasterOutcome::Applied;
        };
        let owned = |shard: &shardkv::map::ShardInfo| shard.group == planned.from && shard.epoch == planned.epoch;
        let shard = self.map.shards.iter_mut().find(|shard| shard.id == planned.shard);
        let Some(shard) = shard.filter(|shard| owned(shard)) else {
            return refused(format!("{} has another owner than when move {} was planned", planned.shard, mv.0));
        };
        (shard.group, shard.epoch, shard.by) = (planned.to, Epoch(planned.epoch.0 + 1), mv);
        self.map.moves.retain(|other| other.id != mv);
        self.map.version += 1;
        MasterOutcome::Applied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MasterCommand;
    use shardkv::map::{GroupInfo, ShardMap};

    const S: GroupId = GroupId(2);
    const D: GroupId = GroupId(3);
    const SHARD: ShardId = ShardId(1);

    fn state() -> MasterState {
        let map = ShardMap {
            shards: crate::initial_shards(&["m".into()], &[S]),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, Vec::new()),
            groups: vec![GroupInfo::new(S, Vec::new()), GroupInfo::new(D, Vec::new())],
            ..ShardMap::default()
        };
        let mut state = MasterState::default();
        assert_eq!(state.apply(MasterCommand::Genesis(Box::new(map))), MasterOutcome::Applied);
        state
    }

    fn owner(state: &MasterState) -> (GroupId, Epoch, MoveId) {
        let shard = state.map.shard(SHARD).expect("it is there");
        (shard.group, shard.epoch, shard.by)
    }

    fn start(state: &mut MasterState, to: GroupId) -> MasterOutcome {
        state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard: SHARD, to }))
    }

    fn cancel(state: &mut MasterState) -> MasterOutcome {
        state.apply(MasterCommand::ChangeShards(ShardChange::CancelMove { mv: MoveId(1) }))
    }

    #[test]
    fn a_shard_changes_hands_once_it_has_arrived() {
        let mut state = state();
        assert_eq!(start(&mut state, D), MasterOutcome::Move(MoveId(1)));
        assert_eq!(start(&mut state, D), MasterOutcome::Move(MoveId(1)));
        assert_eq!(owner(&state), (S, Epoch(1), MoveId(0)));
        state.apply(MasterCommand::Arrived { mv: MoveId(1) });
        assert_eq!(owner(&state), (D, Epoch(2), MoveId(1)));
        assert!(state.map.is_over(MoveId(1)) && !state.map.is_over(MoveId(2)));
        let version = state.map.version;
        state.apply(MasterCommand::Arrived { mv: MoveId(1) });
        assert_eq!(state.map.version, version, "said twice");
        assert!(matches!(cancel(&mut state), MasterOutcome::Failed(_)));
        assert_eq!(start(&mut state, S), MasterOutcome::Move(MoveId(2)));
    }

    #[test]
    fn a_move_that_was_called_off_cannot_come_true() {
        let mut state = state();
        start(&mut state, D);
        assert_eq!(cancel(&mut state), MasterOutcome::Applied);
        state.apply(MasterCommand::Arrived { mv: MoveId(1) });
        assert_eq!(owner(&state), (S, Epoch(1), MoveId(0)));
        assert_eq!(start(&mut state, D), MasterOutcome::Move(MoveId(2)));
        state.apply(MasterCommand::Arrived { mv: MoveId(1) });
        assert_eq!(owner(&state), (S, Epoch(1), MoveId(0)), "it was another one that arrived");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut state = state();
        for (shard, to) in [(SHARD, S), (SHARD, SHARDMASTER_GROUP), (SHARD, GroupId(9)), (ShardId(9), D)] {
            let outcome = state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard, to }));
            assert!(matches!(outcome, MasterOutcome::Failed(_)), "{shard} to {to}: {outcome:?}");
        }
        assert!(matches!(cancel(&mut state), MasterOutcome::Failed(_)));
    }
}
