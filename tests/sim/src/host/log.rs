//! A node's log: group commits, full disks, failing syncs.

use crate::mutant::Mutant;
use crate::world::{NodeEvent, World};
use paxos::{GroupId, NodeId};
use wal::{Append, LogError};

/// Records and bytes of one group commit, as the log's thread bounds them.
const COMMIT_RECORDS_MAX: usize = 1024;
/// An idle log writes its mark after this.
const IDLE_MARK_MICROS: u64 = 10_000;
/// A full disk is tried again after this.
const FULL_RETRY_MICROS: u64 = 200_000;

impl World {
    pub(super) fn append(&mut self, node: NodeId, ticket: u64, records: &[(GroupId, paxos::Record)]) {
        let mutant = self.plan.options.mutant;
        let once = mutant == Some(Mutant::LosePromises);
        let append = |(group, record): &(GroupId, paxos::Record)| Append {
            group: group.0,
            payload: record.encode(),
            twice: record.is_promise(),
        };
        let kept = |(_, record): &&(GroupId, paxos::Record)| !(once && matches!(record, paxos::Record::Promised(_)));
        let appends = records.iter().filter(kept).map(append).collect();
        let Some(process) = self.process(node) else { return };
        process.wal.queue.push_back((ticket, appends));
        if mutant == Some(Mutant::SendBeforeDurable) {
            process.wal.durable = Some((ticket, *process.log.live_segments().end()));
            self.wake(node);
        }
        self.kick_wal(node);
    }

    pub(super) fn release(&mut self, node: NodeId, through: u64) {
        if let Some(process) = self.process(node) {
            process.wal.release = Some(through);
            self.kick_wal(node);
        }
    }

    /// Begins the next group commit with everything that waits.
    pub(super) fn kick_wal(&mut self, node: NodeId) {
        let Some(process) = self.process(node) else { return };
        let wal = &mut process.wal;
        if wal.commit.is_none() {
            let mut jobs = 0;
            while let Some((ticket, records)) = wal.queue.pop_front() {
                jobs += 1;
                let (last, commit) = wal.commit.get_or_insert_with(|| (0, Vec::new()));
                *last = ticket;
                commit.extend(records);
                if commit.len() > COMMIT_RECORDS_MAX {
                    break;
                }
            }
            if jobs > 1 {
                self.coverage.hit("group_commit.shared");
            }
        }
        let Some(process) = self.process(node) else { return };
        let wal = &mut process.wal;
        if wal.scheduled || (wal.commit.is_none() && wal.release.is_none()) {
            return;
        }
        wal.scheduled = true;
        let slow = self.sites.get(&node).is_some_and(|site| site.slow_until > self.now);
        let most = if slow { 1_500_000 } else { self.plan.sync_micros_max };
        let delay = self.random.skewed(40, most);
        self.later(node, delay, NodeEvent::WalCommit);
    }

    pub(super) fn wal_commit(&mut self, node: NodeId) -> Result<(), String> {
        let doomed = self.sites.get_mut(&node).and_then(|site| site.doomed.take());
        let Some(process) = self.process(node) else { return Ok(()) };
        if let Some(down) = doomed.filter(|_| process.wal.commit.is_some()) {
            self.cut_power(node, down);
            return Ok(());
        }
        process.wal.scheduled = false;
        if let Some(through) = process.wal.release.take() {
            let released = process.log.release(through);
            let live = process.log.live_segments();
            self.trace.line(self.now, format_args!("{node} releases segments through {through}, live {live:?}"));
            match released {
                Ok(()) => self.coverage.hit("segments.released"),
                Err(LogError::Full { .. } | LogError::ReleaseBeyondHead { .. }) => {
                    self.coverage.hit("segments.release_refused")
                }
                Err(error) => return self.log_failed(node, &error),
            }
        }
        let Some(process) = self.process(node) else { return Ok(()) };
        let Some((ticket, records)) = process.wal.commit.take() else {
            self.kick_wal(node);
            return Ok(());
        };
        match process.log.append(&records) {
            Ok(synced) => {
                process.wal.durable = Some((ticket, synced.segment));
                if std::mem::take(&mut process.wal.full) {
                    process.wal.no_space = Some(false);
                }
                self.trace.line(
                    self.now,
                    format_args!(
                        "{node} synced ticket {ticket}: {} records, segment {}",
                        records.len(),
                        synced.segment
                    ),
                );
                self.wake(node);
                self.kick_wal(node);
                self.later(node, IDLE_MARK_MICROS, NodeEvent::WalIdle);
                Ok(())
            }
            Err(LogError::Full { .. }) => {
                process.wal.commit = Some((ticket, records));
                process.wal.scheduled = true;
                if !std::mem::replace(&mut process.wal.full, true) {
                    process.wal.no_space = Some(true);
                    self.coverage.hit("disk.full");
                    self.trace.line(self.now, format_args!("{node} disk full"));
                    self.wake(node);
                }
                self.later(node, FULL_RETRY_MICROS, NodeEvent::WalCommit);
                Ok(())
            }
            Err(error) => self.log_failed(node, &error),
        }
    }

    pub(super) fn wal_idle(&mut self, node: NodeId) -> Result<(), String> {
        let Some(process) = self.process(node) else { return Ok(()) };
        if process.wal.scheduled || process.wal.commit.is_some() {
            return Ok(());
        }
        let done = process.log.mark_idle().and_then(|()| process.log.prepare());
        match done {
            Ok(_) => Ok(()),
            Err(error) => self.log_failed(node, &error),
        }
    }

    /// Nothing more can be made durable: the process ends; what is on the disk counts.
    pub(super) fn log_failed(&mut self, node: NodeId, error: &LogError) -> Result<(), String> {
        self.trace.line(self.now, format_args!("{node} stops: {error}"));
        if matches!(error, LogError::RecordTooLarge { .. }) {
            return Err(format!("the simulator's segments are too small: {error}"));
        }
        self.coverage.hit("disk.fsync_error");
        let down = self.random.between(10_000, 3_000_000);
        self.kill_process(node, down);
        Ok(())
    }
}
