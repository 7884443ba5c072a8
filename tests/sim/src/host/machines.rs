//! A node's state machines: applying, reading, images, flushing, collecting.

use crate::mutant::Mutant;
use crate::process::Job;
use crate::world::{NodeEvent, World};
use node::core::{Applied, ApplyJob, Input, Machine, SnapshotEvent};
use paxos::{GroupId, NodeId, Slot, Time};
use shardkv::Progress;

/// The collector's period.
const COLLECT_MICROS: u64 = 500_000;
/// Changes that it looks at in one step.
const COLLECT_BUDGET: usize = 64;

impl World {
    pub(super) fn kick_apply(&mut self, node: NodeId) {
        let most = self.plan.apply_micros_max;
        let Some(process) = self.process(node) else { return };
        if process.applying || process.jobs.is_empty() {
            return;
        }
        process.applying = true;
        let delay = self.random.skewed(10, most);
        self.later(node, delay, NodeEvent::Apply);
    }

    /// Applies entries within the turn that decided them.
    pub(super) fn apply_now(&mut self, node: NodeId, job: ApplyJob) -> Result<(), String> {
        let group = job.group;
        let applied = self.apply_job(node, job)?;
        let Some(site) = self.sites.get_mut(&node) else { return Ok(()) };
        let now = site.clock.read(self.now);
        let Some(process) = site.process.as_mut() else { return Ok(()) };
        let hash = process.machines.hash(group);
        if let Some(applied) = applied {
            process.core.input(now, Input::Applied(applied));
        }
        self.check_owners(node, group)?;
        self.check_hash(node, group, hash)
    }

    /// Takes one job, with the neighbouring entries of its group.
    pub(super) fn apply(&mut self, node: NodeId) -> Result<(), String> {
        let skip = self.plan.options.mutant == Some(Mutant::SkipEntry) && self.random.chance(2);
        let Some(process) = self.process(node) else { return Ok(()) };
        process.applying = false;
        match process.jobs.pop_front() {
            Some(Job::Apply(mut job)) => {
                while let Some(Job::Apply(next)) =
                    process.jobs.front_mut().filter(|next| matches!(next, Job::Apply(next) if next.group == job.group))
                {
                    job.entries.append(&mut next.entries);
                    process.jobs.pop_front();
                }
                if let Some((_, entry)) = job.entries.first_mut().filter(|_| skip) {
                    entry.clear();
                }
                let (group, entries) = (job.group, job.entries.len());
                let applied = self.apply_job(node, job)?;
                self.coverage.add("apply.entries", entries as u64);
                if let Some(applied) = applied {
                    self.entries_applied(node, group, applied)?;
                }
            }
            Some(Job::Snapshot(job)) => {
                let done = process.machines.snapshot(job).map_err(|error| format!("{node}, image: {error}"))?;
                if let Some((event, machine)) = done {
                    let replaced = machine.as_ref().map(|(group, _)| *group);
                    self.piece_done(node, event, machine);
                    if let Some(group) = replaced {
                        self.check_owners(node, group)?;
                    }
                }
            }
            Some(Job::Hosting(hosting)) => self.place(node, hosting)?,
            None => {}
        }
        self.kick_apply(node);
        Ok(())
    }

    pub(super) fn entries_applied(&mut self, node: NodeId, group: GroupId, applied: Applied) -> Result<(), String> {
        let Some(process) = self.process(node) else { return Ok(()) };
        let hash = process.machines.hash(group);
        process.mailbox.push_back(Input::Applied(applied));
        self.wake(node);
        self.check_owners(node, group)?;
        self.check_hash(node, group, hash)
    }

    /// What a replica owns nobody else does.
    fn check_owners(&mut self, node: NodeId, group: GroupId) -> Result<(), String> {
        let machine = self.process(node).and_then(|process| process.machines.machine(group));
        let Some(Machine::Data(reader)) = machine else { return Ok(()) };
        for shard in reader.shards() {
            if self.invariants.owned(group, &shard)? {
                self.coverage.hit("shards.changed");
            }
        }
        Ok(())
    }

    fn check_hash(&mut self, node: NodeId, group: GroupId, hash: Option<(Slot, u64)>) -> Result<(), String> {
        if let Some((slot, hash)) = hash {
            self.trace.line(self.now, format_args!("{node} {group} applied {slot}, state {hash:016x}"));
            match self.invariants.state(node, group, slot, hash) {
                Err(_) if self.spoils.concern(group) => self.coverage.hit("digests.spoiled"),
                checked => checked?,
            }
        }
        Ok(())
    }

    pub(super) fn piece_done(
        &mut self,
        node: NodeId,
        event: SnapshotEvent,
        machine: Option<(GroupId, Machine<shardkv::MemoryStore>)>,
    ) {
        match &event {
            SnapshotEvent::Read { transfer, sequence, slot, piece } => {
                self.coverage.hit("snapshot.read");
                let last = piece.as_ref().map(|(_, last)| *last);
                self.trace
                    .line(self.now, format_args!("{node} image {transfer:x}/{sequence} of {slot} read, last {last:?}"));
            }
            SnapshotEvent::Stored { group, transfer, sequence, installed, failed } => {
                self.coverage.hit(match (installed, failed) {
                    (Some(_), _) => "snapshot.installed",
                    (None, true) => "snapshot.failed",
                    (None, false) => "snapshot.stored",
                });
                self.trace.line(
                    self.now,
                    format_args!(
                        "{node} {group} image {transfer:x}/{sequence} stored, installed {installed:?}, failed {failed}"
                    ),
                );
            }
        }
        let Some(process) = self.process(node) else { return };
        process.replaced.extend(machine);
        process.mailbox.push_back(Input::Snapshot(event));
        self.wake(node);
    }

    pub(super) fn scan(&mut self, node: NodeId, place: usize) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        let now = site.clock.read(self.now);
        let Some(process) = site.process.as_mut().filter(|process| !process.scans.is_empty()) else { return };
        let (job, reader) = process.scans.remove(place.min(process.scans.len() - 1));
        let result = job.execute(|| now, &reader);
        self.coverage.hit("reads.scanned");
        self.trace.line(self.now, format_args!("{node} {} read {:?}: {}", job.group, job.work, result.is_some()));
        self.deliver(node, Input::Scanned { number: job.number, result });
    }

    pub(super) fn begin_flush(&mut self, node: NodeId, number: u64) {
        let delay = self.random.skewed(1_000, 500_000);
        if let Some(site) = self.sites.get_mut(&node) {
            let written = site.store.written();
            site.process.iter_mut().for_each(|process| process.flushing = written);
        }
        match self.plan.options.mutant {
            Some(Mutant::ReportFlushEarly) => self.deliver(node, Input::Flushed(number)),
            Some(Mutant::ReleaseEarly) => {
                if let Some(through) = self.process(node).map(|process| process.log.live_segments().end() - 1) {
                    self.release(node, through);
                }
                self.later(node, delay, NodeEvent::Flushed(number));
            }
            _ => self.later(node, delay, NodeEvent::Flushed(number)),
        }
    }

    pub(super) fn flushed(&mut self, node: NodeId, number: u64) {
        let Some(site) = self.sites.get(&node) else { return };
        let Some(written) = site.process.as_ref().map(|process| process.flushing) else { return };
        // What was applied while it ran is not in it.
        site.store.flush_written(written);
        let left = site.store.unflushed();
        self.coverage.hit("store.flushed");
        self.trace.line(self.now, format_args!("{node} flushed the store ({number}); {left} batches came meanwhile"));
        self.deliver(node, Input::Flushed(number));
    }

    pub(super) fn collect(&mut self, node: NodeId) -> Result<(), String> {
        self.later(node, COLLECT_MICROS, NodeEvent::Collect);
        let lag = self.plan.compaction.unwrap_or(u64::MAX);
        let now = self.sites.get(&node).map_or(Time(0), |site| site.clock.read(self.now));
        let Some(process) = self.process(node) else { return Ok(()) };
        let groups: Vec<GroupId> = process.machines.hosted().collect();
        process.standings.retain(|group, _| groups.contains(group));
        for group in groups {
            let Some(process) = self.process(node) else { return Ok(()) };
            let Some(Machine::Data(reader)) = process.machines.machine(group) else { continue };
            let (shards, standing) = (reader.shards(), process.standings.entry(group).or_default());
            let Some(limit) = standing.due(&shards, now, lag) else { continue };
            let progress =
                reader.collect_below(COLLECT_BUDGET, limit).map_err(|error| format!("{node} collecting: {error}"))?;
            if let Progress::Done(_) = progress {
                standing.done(&shards, limit);
                self.coverage.hit("history.collected");
            }
            self.trace.line(self.now, format_args!("{node} {group} collects below {limit}: {progress:?}"));
        }
        Ok(())
    }
}
