//! The loop on the log's thread: take, write, sync, publish.

use crate::error::LogError;
use crate::log::Log;
use crate::thread::{Job, Queue, Shared, WalEvent};
use crate::types::{Append, Config, Synced};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

pub(crate) struct Worker {
    log: Log,
    config: Config,
    shared: Arc<Shared>,
    on_event: Box<dyn Fn(WalEvent) + Send>,
    /// Appended since the next segment was last worked on.
    unprepared_bytes: u64,
    full: bool,
}

/// What the thread does next.
enum Turn {
    Batch {
        jobs: Vec<Job>,
        reclaim: bool,
    },
    Release(u64),
    /// Nothing came for a while.
    Idle,
    End,
}

impl Worker {
    pub(crate) fn new(log: Log, shared: Arc<Shared>, on_event: Box<dyn Fn(WalEvent) + Send>) -> Worker {
        let config = log.config().clone();
        let mut worker = Worker { log, config, shared, on_event, unprepared_bytes: 0, full: false };
        worker.publish_stats(0, 0, Duration::ZERO);
        worker
    }

    pub(crate) fn run(&mut self) {
        loop {
            let done = match self.next() {
                Turn::Batch { jobs, reclaim } => self.commit(jobs, reclaim),
                Turn::Release(through) => self.release(through),
                Turn::Idle => self.idle(),
                Turn::End => break,
            };
            if let Err(error) = done {
                self.stop(error);
                return;
            }
        }
        if let Err(error) = self.log.mark_idle() {
            self.stop(error);
        }
        self.shared.lock().stopped = true;
    }

    fn stop(&mut self, error: LogError) {
        let mut queue = self.shared.lock();
        queue.stopped = true;
        queue.jobs.clear();
        queue.bytes = 0;
        drop(queue);
        (self.on_event)(WalEvent::Failed(error));
    }

    /// Waits for work. While the disk is full a batch is only given out as a new attempt.
    fn next(&mut self) -> Turn {
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        loop {
            if let Some(through) = queue.release_through.take() {
                return Turn::Release(through);
            }
            if !queue.jobs.is_empty() {
                return self.batch(&mut queue);
            }
            if queue.closing {
                return Turn::End;
            }
            let more_to_do = self.log.needs_mark() || self.unprepared_bytes > 0;
            if !more_to_do {
                queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let idle = Duration::from_millis(self.config.idle_mark_millis);
            let (woken, timeout) = shared.wake.wait_timeout(queue, idle).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            if timeout.timed_out() && queue.jobs.is_empty() {
                return Turn::Idle;
            }
        }
    }

    fn batch(&self, queue: &mut Queue) -> Turn {
        let reclaim = queue.reclaims > 0;
        let (mut jobs, mut bytes, mut records) = (Vec::new(), 0, 0);
        while let Some(job) = queue.jobs.pop_front() {
            bytes += job.bytes();
            records += job.records.len();
            let over = bytes > self.config.batch_bytes_max || records > self.config.batch_records_max;
            if over && !jobs.is_empty() {
                queue.jobs.push_front(job);
                break;
            }
            queue.bytes -= job.bytes();
            queue.reclaims -= usize::from(job.reclaim);
            jobs.push(job);
        }
        Turn::Batch { jobs, reclaim }
    }

    fn commit(&mut self, mut jobs: Vec<Job>, reclaim: bool) -> Result<(), LogError> {
        let Some(ticket) = jobs.last().map(|job| job.ticket) else { return Ok(()) };
        #[expect(clippy::disallowed_methods, reason = "the thread, unlike the core, may measure itself")]
        let started = Instant::now();
        let records: Vec<Append> = jobs.iter_mut().flat_map(|job| std::mem::take(&mut job.records)).collect();
        let payload_bytes: u64 = records.iter().map(|record| record.payload.len() as u64).sum();
        let synced = self.append_with_patience(&records, reclaim)?;
        let Some(synced) = synced else {
            self.abandon();
            return Ok(());
        };
        let (records, took) = (records.len() as u64, started.elapsed());
        self.publish_stats(records, payload_bytes, took);
        (self.on_event)(WalEvent::Durable { ticket, synced, records, took });
        self.prepare(payload_bytes)
    }

    /// Closed while a batch waits for space. Nothing behind it may be written either, though it might
    /// fit: the log would have a hole that no chain shows.
    fn abandon(&mut self) {
        let mut queue = self.shared.lock();
        queue.stopped = true;
        queue.jobs.clear();
        (queue.bytes, queue.reclaims) = (0, 0);
    }

    /// Appends, and on a full disk waits for space and tries again. `None`: closed meanwhile.
    fn append_with_patience(&mut self, records: &[Append], mut reclaim: bool) -> Result<Option<Synced>, LogError> {
        loop {
            let appended = if reclaim { self.log.append_reclaim(records) } else { self.log.append(records) };
            match appended {
                Ok(synced) => {
                    self.set_full(false);
                    return Ok(Some(synced));
                }
                Err(LogError::Full { .. }) => self.set_full(true),
                Err(error) => return Err(error),
            }
            let shared = Arc::clone(&self.shared);
            let retry = Duration::from_millis(self.config.full_retry_millis);
            let queue = shared.lock();
            if queue.closing {
                return Ok(None);
            }
            // A reclaim or a release may have been queued before the wait began.
            let (mut queue, _) = shared
                .wake
                .wait_timeout_while(queue, retry, |queue| {
                    queue.release_through.is_none() && (reclaim || queue.reclaims == 0) && !queue.closing
                })
                .unwrap_or_else(PoisonError::into_inner);
            reclaim |= queue.reclaims > 0;
            let release = queue.release_through.take();
            drop(queue);
            if let Some(through) = release {
                self.release(through)?;
            }
        }
    }

    fn set_full(&mut self, full: bool) {
        if self.full == full {
            return;
        }
        self.full = full;
        self.shared.lock().stats.full = full;
        (self.on_event)(if full { WalEvent::Full } else { WalEvent::SpaceBack });
    }

    fn release(&mut self, through: u64) -> Result<(), LogError> {
        match self.log.release(through) {
            Ok(()) => self.publish_stats(0, 0, Duration::ZERO),
            // Tried again with the next release: nothing has changed.
            Err(error @ (LogError::Full { .. } | LogError::ReleaseBeyondHead { .. })) => {
                tracing::warn!(through, "segments not released: {error}");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Zero-fills a mebibyte of the next segment for each mebibyte appended, so that it is ready
    /// when it is needed and nobody waits for all of it.
    fn prepare(&mut self, appended_bytes: u64) -> Result<(), LogError> {
        self.unprepared_bytes += appended_bytes.max(4096);
        if self.unprepared_bytes >= 1 << 20 {
            self.unprepared_bytes = 0;
            self.log.prepare()?;
        }
        Ok(())
    }

    fn idle(&mut self) -> Result<(), LogError> {
        self.log.mark_idle()?;
        self.unprepared_bytes = if self.log.prepare()? { 1 } else { 0 };
        Ok(())
    }

    fn publish_stats(&mut self, records: u64, payload_bytes: u64, busy: Duration) {
        let (live, live_bytes) = (self.log.live_segments(), self.log.live_bytes());
        let stats = &mut self.shared.lock().stats;
        stats.first_segment = *live.start();
        stats.head_segment = *live.end();
        stats.live_bytes = live_bytes;
        stats.drains += u64::from(records > 0);
        stats.records += records;
        stats.payload_bytes += payload_bytes;
        stats.busy += busy;
    }
}
