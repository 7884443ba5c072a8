//! The collector: removes history below the floors, in small steps, a minute after a floor has
//! risen, so that readers that chose a revision just before still find it.

use crate::collection::Standing;
use paxos::GroupId;
use shardkv::store::Store;
use shardkv::types::Revision;
use shardkv::{Progress, Reader};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Collection lags the floor by this.
const LAG_MICROS: u64 = 60_000_000;
/// Between two looks at the floors.
const PERIOD: Duration = Duration::from_secs(1);
/// Changes looked at in one step.
const BUDGET: usize = 512;
/// The shortest rest between two steps.
const REST_MIN: Duration = Duration::from_millis(5);
/// The longest: a step may have waited for room on the disk, which collection is to make.
const REST_MAX: Duration = Duration::from_secs(1);
/// Rests are so many times as long as the step before: all replicas collect at the same time, and beside them clients are to
/// notice nothing.
const RESTS: u32 = 4;
/// Whatever is not done after this, of all groups together, is in the way of the next floors, and is hurried up.
const PATIENCE: Duration = Duration::from_secs(60);

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

fn run<S: Store>(readers: &Readers<S>, stopped: &Receiver<()>) {
    let mut standings: BTreeMap<GroupId, Standing> = BTreeMap::new();
    // Since when there has been something to do all the time.
    let mut behind: Option<Instant> = None;
    while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
        let present = readers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        standings.retain(|group, _| present.contains_key(group));
        let mut all_done = true;
        for (group, reader) in &present {
            let standing = standings.entry(*group).or_default();
            let shards = reader.shards();
            let Some(floor) = standing.due(&shards, super::now(), LAG_MICROS) else { continue };
            let since = *behind.get_or_insert_with(Instant::now);
            match collect(reader, floor, since, stopped) {
                true => standing.done(&shards, floor),
                false => all_done = false,
            }
        }
        behind = behind.filter(|_| !all_done);
    }
}

/// Collects until nothing below `limit` is left; `false` if it must be tried again. There has been something to do since
/// `behind`.
fn collect<S: Store>(reader: &Reader<S>, limit: Revision, behind: Instant, stopped: &Receiver<()>) -> bool {
    loop {
        let step = Instant::now();
        match reader.collect_below(BUDGET, limit) {
            Ok(Progress::More(_)) => {}
            Ok(Progress::Done(_)) => return true,
            Ok(Progress::Paused) => return false,
            Err(error) => {
                tracing::error!(%error, "collecting old history failed");
                return false;
            }
        }
        if stopped.recv_timeout(rest(step.elapsed(), behind.elapsed())) != Err(RecvTimeoutError::Timeout) {
            return false;
        }
    }
}

/// How long to rest after a step that took so long, where there has been something to do for so long.
fn rest(step: Duration, behind: Duration) -> Duration {
    let times = if behind < PATIENCE { RESTS } else { 1 };
    step.saturating_mul(times).clamp(REST_MIN, REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collection_takes_a_fifth_of_a_core_until_the_next_floor_waits_for_it() {
        let millis = Duration::from_millis;
        assert_eq!(rest(millis(6), millis(0)), millis(24));
        assert_eq!(rest(millis(1), millis(0)), millis(5));
        assert_eq!(rest(millis(6), millis(60_000)), millis(6));
        let waited_for_room = Duration::from_secs(7_200);
        assert_eq!(rest(waited_for_room, waited_for_room), REST_MAX);
        assert_eq!(rest(waited_for_room, millis(0)), REST_MAX);
    }
}
