//! When a group's history is collected, and how far: below its floors, a while after they have risen. The runtime
//! and the simulator ask this, and collect.

use paxos::Time;
use shardkv::OwnedShard;
use shardkv::types::{Epoch, Revision, ShardId};

/// How far a group is collected, and what it waits for.
#[derive(Debug, Default)]
pub struct Standing {
    /// Below this nothing is left to do, in these shards.
    collected: Revision,
    of: Vec<(ShardId, Epoch)>,
    /// The floor that is waited for, and since when. One that rises meanwhile waits for its own turn.
    risen: Option<(Revision, Time)>,
}

impl Standing {
    /// The floor to collect below, once it has been there for long enough.
    pub fn due(&mut self, shards: &[OwnedShard], now: Time, lag_micros: u64) -> Option<Revision> {
        if !self.of.iter().copied().eq(shards.iter().map(|shard| (shard.id, shard.epoch))) {
            // What has come was collected elsewhere, up to where it was kept for its move.
            self.of = shards.iter().map(|shard| (shard.id, shard.epoch)).collect();
            self.collected = Revision(0);
        }
        let floor = shards.iter().map(|shard| shard.floor).max()?;
        if floor <= self.collected {
            return None;
        }
        let (waited_for, since) = *self.risen.get_or_insert((floor, now));
        (now.since(since) >= lag_micros).then_some(waited_for)
    }

    /// Everything below `limit` is gone, but for what was kept for a shard that leaves.
    pub fn done(&mut self, shards: &[OwnedShard], limit: Revision) {
        self.collected = shards.iter().map(OwnedShard::kept_from).min().map_or(limit, |kept| kept.min(limit));
        self.risen = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paxos::{GroupId, StateMachine};
    use shardkv::command::{Batch, Command};
    use shardkv::types::{Bounds, MoveId};
    use shardkv::{DataGroup, MemoryStore, codec};
    use std::sync::Arc;

    struct Replica(DataGroup<MemoryStore>);

    impl Replica {
        fn apply(&mut self, command: Command) -> Vec<OwnedShard> {
            let slot = self.0.applied().next();
            let entry = codec::encode(&Batch { commands: vec![command] });
            self.0.apply(&[(slot, entry)]).expect("a store in memory");
            self.0.shards()
        }
    }

    /// While a shard leaves, history is kept for whoever gets it; when it stays after all, that is collected, too.
    #[test]
    fn what_was_kept_for_a_move_is_collected_when_the_move_is_over() {
        let mut group = Replica(DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).expect("an empty store"));
        let (id, bounds, epoch, by) = (ShardId(1), Bounds::default(), Epoch(1), MoveId(0));
        group.apply(Command::Activate { revision: Revision(2), shard: id, bounds, epoch, by });
        group.apply(Command::Depart { shard: id, epoch, mv: MoveId(1) });
        let leaving = group.apply(Command::Compact { revision: Revision(100) });
        let mut standing = Standing::default();
        assert_eq!(standing.due(&leaving, Time(0), 0), Some(Revision(100)));
        standing.done(&leaving, Revision(100));
        let stayed = group.apply(Command::Stay { shard: id, mv: MoveId(1) });
        assert_eq!(standing.due(&stayed, Time(0), 0), Some(Revision(100)), "{leaving:?}");
        standing.done(&stayed, Revision(100));
        assert_eq!(standing.due(&stayed, Time(0), 0), None);
    }

    /// A shard comes whose history reaches below what is collected here.
    #[test]
    fn what_has_come_is_collected() {
        let mut group = Replica(DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).expect("an empty store"));
        let half =
            |start: &'static str, end: Option<&'static str>| Bounds { start: start.into(), end: end.map(Into::into) };
        let (epoch, by) = (Epoch(1), MoveId(0));
        let activate = |revision, shard, bounds| Command::Activate {
            revision: Revision(revision),
            shard: ShardId(shard),
            bounds,
            epoch,
            by,
        };
        group.apply(activate(2, 1, half("", Some("m"))));
        let before = group.apply(Command::Compact { revision: Revision(100) });
        let mut standing = Standing::default();
        assert_eq!(standing.due(&before, Time(0), 0), Some(Revision(100)));
        standing.done(&before, Revision(100));
        assert_eq!(standing.due(&before, Time(0), 0), None);
        let after = group.apply(activate(101, 2, half("m", None)));
        assert_eq!(standing.due(&after, Time(0), 0), Some(Revision(100)));
    }
}
