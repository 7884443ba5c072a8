//! The apply thread: state machines take in what was decided, and images are read and installed.
//!
//! A little that somebody waits for is applied by the caller itself while the thread has nothing to do
//! with its group and the store would not wait: two hops between threads are a tenth of a lone put's
//! time.

use super::mailbox::Mailbox;
use crate::core::{Applied, ApplyJob, Hosted, Hosting, Input, Machine, SnapshotJob};
use crate::host::Machines;
use paxos::GroupId;
use shardkv::store::{Store, StoreError};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long entries that nobody waits for (a follower's) may lie, so that several share one batch.
/// A serializable read elsewhere is that much staler; a new leader has that much more to apply.
const LAZY_MAX: Duration = Duration::from_millis(5);
/// Jobs, and bytes of entries, that are taken at once whoever waits.
const LAZY_JOBS: usize = 64;
const LAZY_BYTES: usize = 1 << 20;
/// Entries, and their bytes, that are little.
const LITTLE_ENTRIES: usize = 4;
const LITTLE_BYTES: usize = 4096;

/// Work for the thread, in order.
pub enum Job {
    /// Entries to apply.
    Apply(ApplyJob),
    /// An image's piece to read or install.
    Snapshot(SnapshotJob),
    /// A replica to open or to delete.
    Hosting(Hosting),
}

impl Job {
    /// The group that it is about; closing an image is about none.
    fn group(&self) -> Option<GroupId> {
        match self {
            Job::Apply(job) => Some(job.group),
            Job::Snapshot(SnapshotJob::Read { group, .. } | SnapshotJob::Install { group, .. }) => Some(*group),
            Job::Hosting(Hosting::Open { group, .. } | Hosting::Close { group } | Hosting::Fence { group, .. }) => {
                Some(*group)
            }
            Job::Snapshot(SnapshotJob::Close { .. }) => None,
        }
    }
}

/// What the thread reports beside the mailbox.
pub enum Report<S: Store> {
    /// The state of a group was replaced: read from this one now.
    Machine(GroupId, Machine<S>),
    /// A replica was opened.
    Opened(Hosted<S>),
    /// The store failed; the node must stop.
    Failed(StoreError),
}

/// The queue. What is in it is bounded by the core (its apply lag, one piece per transfer).
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Bytes of the entries in `jobs`.
    bytes: usize,
    /// Somebody waits for one of them.
    urgent: bool,
    /// The thread performs what it has taken.
    busy: bool,
    closed: bool,
}

impl Queue {
    /// Whether the thread has, or will have, to do with a group.
    fn concerns(&self, group: GroupId) -> bool {
        self.busy || self.jobs.iter().any(|job| job.group() == Some(group))
    }

    fn push(&mut self, job: Job) {
        match &job {
            Job::Apply(job) => {
                self.bytes += job.entries.iter().map(|(_, entry)| entry.len()).sum::<usize>();
                self.urgent |= job.urgent;
            }
            Job::Snapshot(_) | Job::Hosting(_) => self.urgent = true,
        }
        self.jobs.push_back(job);
    }

    fn is_due(&self) -> bool {
        self.urgent || self.closed || self.jobs.len() >= LAZY_JOBS || self.bytes >= LAZY_BYTES
    }
}

/// The way to the apply thread.
pub struct ApplyThread<S: Store> {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    machines: Arc<Mutex<Machines<S>>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Store> ApplyThread<S> {
    /// Starts the thread. `report` is called on it.
    pub fn spawn(
        machines: Machines<S>,
        mailbox: Arc<Mailbox>,
        report: impl Fn(Report<S>) + Send + 'static,
    ) -> std::io::Result<ApplyThread<S>> {
        let shared = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let queue = shared.clone();
        let machines = Arc::new(Mutex::new(machines));
        let ours = machines.clone();
        let thread = std::thread::Builder::new().name("apply".into()).spawn(move || {
            while let Some(jobs) = next_jobs(&queue) {
                let mut machines = ours.lock().unwrap_or_else(PoisonError::into_inner);
                let performed = perform(&mut machines, jobs, &mailbox, &report);
                drop(machines);
                if let Err(error) = performed {
                    report(Report::Failed(error));
                    return;
                }
                queue.0.lock().unwrap_or_else(PoisonError::into_inner).busy = false;
            }
        })?;
        Ok(ApplyThread { shared, machines, thread: Some(thread) })
    }

    /// Applies a job here and now, if it is little, somebody waits for it, and nothing stands in its way;
    /// else gives it back.
    pub fn try_now(&self, job: ApplyJob) -> Result<Result<Option<Applied>, StoreError>, ApplyJob> {
        let bytes = job.entries.iter().map(|(_, entry)| entry.len()).sum::<usize>();
        let little = job.entries.len() <= LITTLE_ENTRIES && bytes <= LITTLE_BYTES;
        if !(job.urgent && job.next && little)
            || self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).concerns(job.group)
        {
            return Err(job);
        }
        // The thread takes it only for what it has taken from the queue, and then it is busy.
        match self.machines.try_lock() {
            Ok(machines) if machines.would_wait() => Err(job),
            Ok(mut machines) => Ok(machines.apply(job)),
            Err(_) => Err(job),
        }
    }

    /// Queues work.
    pub fn push(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut queue = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (was_empty, was_due) = (queue.jobs.is_empty(), queue.is_due());
        jobs.into_iter().for_each(|job| queue.push(job));
        // The first job starts the thread's clock; what follows wakes it only if it is due.
        if (was_empty && !queue.jobs.is_empty()) || (!was_due && queue.is_due()) {
            self.shared.1.notify_one();
        }
    }
}

impl<S: Store> Drop for ApplyThread<S> {
    fn drop(&mut self) {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.1.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread itself.
            drop(thread.join());
        }
    }
}

/// Everything queued, once it is due. `None` when the node stops.
fn next_jobs(shared: &(Mutex<Queue>, Condvar)) -> Option<VecDeque<Job>> {
    let mut queue = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    while queue.jobs.is_empty() && !queue.closed {
        queue = shared.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
    let due_at = Instant::now() + LAZY_MAX;
    while !queue.is_due() {
        let left = due_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        queue = shared.1.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    if queue.closed {
        return None;
    }
    (queue.bytes, queue.urgent, queue.busy) = (0, false, true);
    Some(std::mem::take(&mut queue.jobs))
}

/// Applies what is queued; neighbouring entries of one group in one batch.
fn perform<S: Store>(
    machines: &mut Machines<S>,
    mut jobs: VecDeque<Job>,
    mailbox: &Mailbox,
    report: &impl Fn(Report<S>),
) -> Result<(), StoreError> {
    while let Some(job) = jobs.pop_front() {
        match job {
            Job::Apply(mut job) => {
                while let Some(Job::Apply(next)) = jobs.front_mut().filter(|next| same_group(next, job.group)) {
                    job.entries.append(&mut next.entries);
                    job.urgent |= next.urgent;
                    jobs.pop_front();
                }
                let urgent = job.urgent;
                if let Some(applied) = machines.apply(job)? {
                    let report = Input::Applied(applied);
                    if urgent { mailbox.push(report) } else { mailbox.push_quietly(report) }
                }
            }
            Job::Snapshot(job) => {
                if let Some((event, machine)) = machines.snapshot(job)? {
                    if let Some((group, machine)) = machine {
                        report(Report::Machine(group, machine));
                    }
                    mailbox.push(Input::Snapshot(event));
                }
            }
            Job::Hosting(Hosting::Open { group, floor, founders }) => {
                if let Some(hosted) = machines.begin(group, floor, founders)? {
                    report(Report::Opened(hosted));
                    mailbox.wake();
                }
            }
            Job::Hosting(Hosting::Fence { group, slot }) => machines.fence(group, slot)?,
            Job::Hosting(Hosting::Close { group }) => {
                machines.close(group)?;
                mailbox.push(Input::Closed(group));
            }
        }
    }
    Ok(())
}

fn same_group(job: &Job, group: GroupId) -> bool {
    matches!(job, Job::Apply(next) if next.group == group)
}
