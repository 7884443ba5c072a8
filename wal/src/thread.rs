//! The log's thread: group commit.
//!
//! One loop: take what is queued (up to a bound), write it as one frame, sync, publish. What arrives
//! during the sync is the next group commit. There is no linger: a lone append is written at once.
//! The queue is bounded in bytes and never blocks whoever appends.
//!
//! When the disk is full the drained batch stays at the front and nothing is written; the thread
//! tries again after every release and every `full_retry_millis`. The order of records never changes.

use crate::error::LogError;
use crate::log::Log;
use crate::types::{Append, Synced};
use crate::worker::Worker;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// The queue is at its bound, or the log has stopped: nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the log's queue is full or the log has stopped: refuse the request and let the client retry")]
pub struct Full;

/// What the thread tells its owner. Called on the log's thread, in order; must not block.
#[derive(Debug)]
pub enum WalEvent {
    /// Everything up to this ticket is durable. One event per drain, not per append.
    Durable {
        /// The last ticket of the drain.
        ticket: u64,
        /// Where the log stands.
        synced: Synced,
        /// How many records became durable together.
        records: u64,
        /// From the moment when they were taken from the queue.
        took: Duration,
    },
    /// A write or a sync failed. Nothing will become durable any more: stop the node.
    Failed(LogError),
    /// The disk is full. Nothing of the batch was written; it stays queued and is tried again.
    Full,
    /// The disk has space again; the batch that had to wait is durable with the next event.
    SpaceBack,
}

/// Figures for metrics, as of the last drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// The first live segment.
    pub first_segment: u64,
    /// The segment that is being written.
    pub head_segment: u64,
    /// The size of the live segments.
    pub live_bytes: u64,
    /// Group commits so far.
    pub drains: u64,
    /// Records so far.
    pub records: u64,
    /// Payload bytes so far.
    pub payload_bytes: u64,
    /// Time spent in group commits so far.
    pub busy: Duration,
    /// Bytes waiting in the queue now.
    pub queued_bytes: u64,
    /// The disk is full, and a batch waits for space.
    pub full: bool,
}

pub(crate) struct Job {
    pub(crate) ticket: u64,
    pub(crate) records: Vec<Append>,
    pub(crate) reclaim: bool,
}

impl Job {
    /// What the job counts in the queue: payloads and a record's own cost, so that empty records are
    /// bounded, too.
    pub(crate) fn bytes(&self) -> u64 {
        self.records.iter().map(|record| record.payload.len() as u64 + RECORD_COST_BYTES).sum::<u64>()
            + RECORD_COST_BYTES
    }
}

const RECORD_COST_BYTES: u64 = 64;

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) bytes: u64,
    /// Jobs of a reclaim among them: while there are any, the reserve may be used.
    pub(crate) reclaims: usize,
    pub(crate) release_through: Option<u64>,
    pub(crate) closing: bool,
    pub(crate) stopped: bool,
    pub(crate) stats: WalStats,
}

pub(crate) struct Shared {
    queue: Mutex<Queue>,
    pub(crate) wake: Condvar,
    bytes_max: u64,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent between any two statements; a panic elsewhere is reported there.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the log's thread. Clones lead to the same thread; when the last one is dropped, the
/// thread writes what is queued and ends.
#[derive(Clone)]
pub struct WalHandle(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl WalHandle {
    /// Queues records. Never blocks. Tickets are the caller's numbers, reported back in order. No
    /// records make a barrier: its ticket is reported when all before it is durable.
    pub fn append(&self, ticket: u64, records: Vec<Append>) -> Result<(), Full> {
        self.queue(Job { ticket, records, reclaim: false })
    }

    /// Like [`WalHandle::append`], for what a reclaim rewrites: on a full disk this job, and those
    /// queued before it, may use the reserve.
    pub fn append_reclaim(&self, ticket: u64, records: Vec<Append>) -> Result<(), Full> {
        self.queue(Job { ticket, records, reclaim: true })
    }

    /// Releases all segments through `through_segment`, soon. Later calls may overtake earlier ones
    /// that were not yet performed; the highest counts.
    pub fn release(&self, through_segment: u64) {
        let mut queue = self.0.shared.lock();
        queue.release_through = queue.release_through.max(Some(through_segment));
        drop(queue);
        self.0.shared.wake.notify_one();
    }

    /// Whether the log has failed or was closed.
    pub fn is_stopped(&self) -> bool {
        let queue = self.0.shared.lock();
        queue.stopped || queue.closing
    }

    /// Figures for metrics.
    pub fn stats(&self) -> WalStats {
        let queue = self.0.shared.lock();
        WalStats { queued_bytes: queue.bytes, ..queue.stats }
    }

    /// Writes what is queued, ends the thread and waits for it. Not to be called in an event.
    pub fn close(&self) {
        self.0.close();
    }

    fn queue(&self, job: Job) -> Result<(), Full> {
        let mut queue = self.0.shared.lock();
        let bytes = job.bytes();
        // A job alone is always taken, else one larger than the bound could never be.
        let over = queue.bytes > 0 && queue.bytes + bytes > self.0.shared.bytes_max;
        if queue.stopped || queue.closing || over {
            return Err(Full);
        }
        queue.bytes += bytes;
        queue.reclaims += usize::from(job.reclaim);
        queue.jobs.push_back(job);
        drop(queue);
        self.0.shared.wake.notify_one();
        Ok(())
    }
}

impl Owner {
    fn close(&self) {
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may be dropped inside an event, on the thread itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            drop(thread.join());
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Starts the log's thread. `on_event` is called on it.
pub fn spawn(log: Log, on_event: Box<dyn Fn(WalEvent) + Send>) -> WalHandle {
    let shared =
        Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new(), bytes_max: log.config().queue_bytes_max });
    let mut worker = Worker::new(log, Arc::clone(&shared), on_event);
    let thread = std::thread::Builder::new().name("wal".to_owned()).spawn(move || worker.run());
    let thread = thread.expect("a node that cannot start its log's thread cannot start");
    WalHandle(Arc::new(Owner { shared, thread: Mutex::new(Some(thread)) }))
}
