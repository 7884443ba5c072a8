//! The collector: removes history below the floors, in small steps, a minute after a floor has
//! risen, so that readers that chose a revision just before still find it.

use paxos::GroupId;
use shardkv::store::Store;
use shardkv::types::{Epoch, Revision, ShardId};
use shardkv::{OwnedShard, Progress, Reader};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Collection lags the floor by this.
const LAG: Duration = Duration::from_secs(60);
/// Between two looks at the floors.
const PERIOD: Duration = Duration::from_secs(1);
/// Changes looked at in one step, and the pause between steps.
const BUDGET: usize = 512;
const PAUSE: Duration = Duration::from_millis(5);

/// Ends the thread when dropped, and waits for its end: it holds the store open.
pub struct Collector {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread itself.
            drop(thread.join());
        }
    }
}

/// What is collected: the readers of the replicas that there are. Shared, for replicas come and go.
pub type Readers<S> = Arc<Mutex<BTreeMap<GroupId, Reader<S>>>>;

/// Starts the thread.
pub fn spawn<S: Store>(readers: Readers<S>) -> std::io::Result<Collector> {
    let (stop, stopped) = channel();
    let thread = std::thread::Builder::new().name("collect".into()).spawn(move || run(&readers, &stopped))?;
    Ok(Collector { stop: Some(stop), thread: Some(thread) })
}

/// How far a group is collected.
#[derive(Default)]
struct Standing {
    /// Below this nothing is left to do, in these shards.
    collected: Revision,
    of: Vec<(ShardId, Epoch)>,
    /// The floor that is waited for, and since when. One that rises meanwhile waits for its own turn.
    risen: Option<(Revision, Instant)>,
}

impl Standing {
    /// The floor to collect below, once it has been there for long enough.
    fn due(&mut self, shards: &[OwnedShard], lag: Duration) -> Option<Revision> {
        if !self.of.iter().copied().eq(shards.iter().map(|shard| (shard.id, shard.epoch))) {
            // What has come was collected elsewhere, up to where it was kept for its move.
            self.of = shards.iter().map(|shard| (shard.id, shard.epoch)).collect();
            self.collected = Revision(0);
        }
        let floor = shards.iter().map(|shard| shard.floor).max()?;
        if floor <= self.collected {
            return None;
        }
        let (waited_for, since) = *self.risen.get_or_insert_with(|| (floor, Instant::now()));
        (since.elapsed() >= lag).then_some(waited_for)
    }

    /// Everything below `limit` is gone, but for what was kept for a shard that leaves.
    fn done(&mut self, shards: &[OwnedShard], limit: Revision) {
        self.collected = shards.iter().map(OwnedShard::kept_from).min().map_or(limit, |kept| kept.min(limit));
        self.risen = None;
    }
}

fn run<S: Store>(readers: &Readers<S>, stopped: &Receiver<()>) {
    let mut standings: BTreeMap<GroupId, Standing> = BTreeMap::new();
    while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        let present = readers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        standings.retain(|group, _| present.contains_key(group));
        for (group, reader) in &present {
            let standing = standings.entry(*group).or_default();
            let shards = reader.shards();
            if let Some(floor) = standing.due(&shards, LAG)
                && collect(reader, floor, stopped)
            {
                standing.done(&shards, floor);
            }
        }
    }
}

/// Collects until nothing below `limit` is left; `false` if it must be tried again.
fn collect<S: Store>(reader: &Reader<S>, limit: Revision, stopped: &Receiver<()>) -> bool {
    loop {
        match reader.collect_below(BUDGET, limit) {
            Ok(Progress::More(_)) => {}
            Ok(Progress::Done(_)) => return true,
            Ok(Progress::Paused) => return false,
            Err(error) => {
                tracing::error!(%error, "collecting old history failed");
                return false;
            }
        }
        if stopped.recv_timeout(PAUSE) != Err(RecvTimeoutError::Timeout) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paxos::StateMachine;
    use shardkv::command::{Batch, Command};
    use shardkv::types::{Bounds, MoveId};
    use shardkv::{DataGroup, MemoryStore, codec};

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
        let none = Duration::ZERO;
        let mut group = Replica(DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).expect("an empty store"));
        let (id, bounds, epoch, by) = (ShardId(1), Bounds::default(), Epoch(1), MoveId(0));
        group.apply(Command::Activate { revision: Revision(2), shard: id, bounds, epoch, by });
        group.apply(Command::Depart { shard: id, epoch, mv: MoveId(1) });
        let leaving = group.apply(Command::Compact { revision: Revision(100) });
        let mut standing = Standing::default();
        assert_eq!(standing.due(&leaving, none), Some(Revision(100)));
        standing.done(&leaving, Revision(100));
        let stayed = group.apply(Command::Stay { shard: id, mv: MoveId(1) });
        assert_eq!(standing.due(&stayed, none), Some(Revision(100)), "{leaving:?}");
        standing.done(&stayed, Revision(100));
        assert_eq!(standing.due(&stayed, none), None);
    }

    /// A shard comes whose history reaches below what is collected here.
    #[test]
    fn what_has_come_is_collected() {
        let none = Duration::ZERO;
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
        assert_eq!(standing.due(&before, none), Some(Revision(100)));
        standing.done(&before, Revision(100));
        assert_eq!(standing.due(&before, none), None);
        let after = group.apply(activate(101, 2, half("m", None)));
        assert_eq!(standing.due(&after, none), Some(Revision(100)));
    }
}
