//! The threads that execute reads of ranges, beside the turn loop.

use super::mailbox::Mailbox;
use crate::core::{Input, ScanJob, ScanWork};
use paxos::Time;
use shardkv::Reader;
use shardkv::store::Store;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Two, so that a small range need not wait for a huge one.
const THREADS: usize = 2;

struct Queue<S> {
    /// Bounded by the core (`Limits::scans_max`).
    jobs: VecDeque<(ScanJob, Reader<S>)>,
    closed: bool,
}

type Shared<S> = Arc<(Mutex<Queue<S>>, Condvar)>;

/// The way to the threads. They end when it is dropped.
pub struct ScanThreads<S: Store> {
    shared: Shared<S>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: Store> ScanThreads<S> {
    /// Starts the threads.
    pub fn spawn(mailbox: &Arc<Mailbox>) -> std::io::Result<ScanThreads<S>> {
        let queue = Queue { jobs: VecDeque::new(), closed: false };
        let mut pool = ScanThreads { shared: Arc::new((Mutex::new(queue), Condvar::new())), threads: Vec::new() };
        for _ in 0..THREADS {
            let (shared, mailbox) = (pool.shared.clone(), mailbox.clone());
            let thread = std::thread::Builder::new().name("scan".into());
            pool.threads.push(thread.spawn(move || run(&shared, &mailbox))?);
        }
        Ok(pool)
    }

    /// Queues a read.
    pub fn push(&self, job: ScanJob, reader: Reader<S>) {
        let mut queue = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        match job.work {
            // A shard may be frozen until it is read.
            ScanWork::Copy { .. } => queue.jobs.push_front((job, reader)),
            ScanWork::Read { .. } | ScanWork::Middle { .. } | ScanWork::Measure => queue.jobs.push_back((job, reader)),
        }
        drop(queue);
        self.shared.1.notify_one();
    }
}

impl<S: Store> Drop for ScanThreads<S> {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.1.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there was printed by the thread itself.
            drop(thread.join());
        }
    }
}

fn run<S: Store>(shared: &Shared<S>, mailbox: &Mailbox) {
    // When the node ends, a scan that runs ends, too: for it, time is over.
    let closed = || shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed;
    let now = || if closed() { Time(u64::MAX) } else { super::now() };
    while let Some((job, reader)) = next_job(shared) {
        let result = job.execute(now, &reader);
        mailbox.push(Input::Scanned { number: job.number, result });
    }
}

/// `None` when the node stops.
fn next_job<S: Store>(shared: &Shared<S>) -> Option<(ScanJob, Reader<S>)> {
    let mut queue = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    while queue.jobs.is_empty() && !queue.closed {
        queue = shared.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
    if queue.closed { None } else { queue.jobs.pop_front() }
}
