//! What a running process does: the simulated counterpart of the node's runtime. The order of
//! effects is the runtime's: a turn drains everything; records go to the log in order, group by
//! group commit; messages leave at once; entries go to the state machines in order.

use crate::invariants::Invariants;
use crate::mutant::Mutant;
use crate::network::Endpoint;
use crate::process::{Job, Process};
use crate::world::{Event, NodeEvent, World};
use node::core::{Applied, Input, Machine, Outputs, SnapshotEvent};
use node::wire::NodeMessage;
use paxos::{GroupId, Message, NodeId, Wire};
use shardkv::Progress;
use std::fmt;
use wal::{Append, LogError};

/// Records and bytes of one group commit, as the log's thread bounds them.
const COMMIT_RECORDS_MAX: usize = 1024;
/// An idle log writes its mark after this.
const IDLE_MARK_MICROS: u64 = 10_000;
/// A full disk is tried again after this.
const FULL_RETRY_MICROS: u64 = 200_000;
/// The collector's period.
const COLLECT_MICROS: u64 = 500_000;

impl World {
    /// Something happens on a node whose process runs.
    pub(crate) fn node_event(&mut self, node: NodeId, what: NodeEvent) -> Result<(), String> {
        match what {
            NodeEvent::Turn => self.turn(node),
            NodeEvent::Tick => {
                let micros = paxos::heartbeat::Timing::default().heartbeat_micros;
                self.later(node, micros, NodeEvent::Tick);
                self.deliver(node, Input::Tick);
                Ok(())
            }
            NodeEvent::WalCommit => self.wal_commit(node),
            NodeEvent::WalIdle => self.wal_idle(node),
            NodeEvent::Apply => self.apply(node),
            NodeEvent::Flushed(number) => {
                self.flushed(node, number);
                Ok(())
            }
            NodeEvent::Collect => self.collect(node),
        }
    }

    /// Has something happen on a node after a while, unless its process dies before.
    pub(crate) fn later(&mut self, node: NodeId, delay: u64, what: NodeEvent) {
        let Some(life) = self.sites.get(&node).map(|site| site.life) else { return };
        self.schedule(delay, Event::Node(node, life, what));
    }

    fn process(&mut self, node: NodeId) -> Option<&mut Process> {
        self.sites.get_mut(&node)?.process.as_mut()
    }

    fn turn(&mut self, node: NodeId) -> Result<(), String> {
        let Some(site) = self.sites.get_mut(&node) else { return Ok(()) };
        let now = site.clock.read(self.now);
        let Some(process) = site.process.as_mut() else { return Ok(()) };
        process.turning = false;
        if let Some(full) = process.wal.no_space.take() {
            process.core.input(now, Input::NoSpace(full));
        }
        if let Some((ticket, segment)) = process.wal.durable.take() {
            process.core.input(now, Input::Durable { ticket, segment });
        }
        for (group, machine) in std::mem::take(&mut process.replaced) {
            process.core.replace_machine(group, machine);
        }
        for input in std::mem::take(&mut process.mailbox) {
            process.core.input(now, input);
        }
        while let Some(process) = self.process(node) {
            let out = process.core.turn(now);
            if out.is_empty() {
                break;
            }
            self.perform(node, out)?;
        }
        self.check_leases(node)
    }

    fn perform(&mut self, node: NodeId, out: Outputs) -> Result<(), String> {
        if !out.log.is_empty() {
            self.append(node, out.ticket, &out.log);
        }
        for (to, message) in out.send {
            self.send(node, to, message);
        }
        for job in &out.apply {
            for (slot, entry) in &job.entries {
                self.invariants.decided(node, job.group, *slot, entry)?;
            }
        }
        let jobs = out.apply.into_iter().map(Job::Apply).chain(out.snapshots.into_iter().map(Job::Snapshot));
        let jobs: Vec<Job> = jobs.collect();
        if let Some(process) = self.process(node).filter(|_| !jobs.is_empty()) {
            process.jobs.extend(jobs);
            self.kick_apply(node);
        }
        for (token, reply) in out.replies {
            self.reply(node, token, reply);
        }
        if let Some(number) = out.flush {
            self.begin_flush(node, number);
        }
        if let Some(through) = out.release.filter(|_| self.plan.options.mutant != Some(Mutant::ReleaseEarly)) {
            self.release(node, through);
        }
        Ok(())
    }

    // The log.

    fn append(&mut self, node: NodeId, ticket: u64, records: &[(GroupId, paxos::Record)]) {
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

    fn release(&mut self, node: NodeId, through: u64) {
        if let Some(process) = self.process(node) {
            process.wal.release = Some(through);
            self.kick_wal(node);
        }
    }

    /// Begins the next group commit with everything that waits.
    fn kick_wal(&mut self, node: NodeId) {
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

    fn wal_commit(&mut self, node: NodeId) -> Result<(), String> {
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

    fn wal_idle(&mut self, node: NodeId) -> Result<(), String> {
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
    fn log_failed(&mut self, node: NodeId, error: &LogError) -> Result<(), String> {
        self.trace.line(self.now, format_args!("{node} stops: {error}"));
        if matches!(error, LogError::RecordTooLarge { .. }) {
            return Err(format!("the simulator's segments are too small: {error}"));
        }
        self.coverage.hit("disk.fsync_error");
        let down = self.random.between(10_000, 3_000_000);
        self.kill_process(node, down);
        Ok(())
    }

    // The state machines.

    fn kick_apply(&mut self, node: NodeId) {
        let most = self.plan.apply_micros_max;
        let Some(process) = self.process(node) else { return };
        if process.applying || process.jobs.is_empty() {
            return;
        }
        process.applying = true;
        let delay = self.random.skewed(10, most);
        self.later(node, delay, NodeEvent::Apply);
    }

    /// Takes one job, with the neighbouring entries of its group.
    fn apply(&mut self, node: NodeId) -> Result<(), String> {
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
                let applied = process.machines.apply(job).map_err(|error| format!("{node} cannot apply: {error}"))?;
                self.coverage.add("apply.entries", entries as u64);
                if let Some(applied) = applied {
                    self.entries_applied(node, group, applied)?;
                }
            }
            Some(Job::Snapshot(job)) => {
                let done = process.machines.snapshot(job).map_err(|error| format!("{node}, image: {error}"))?;
                if let Some((event, machine)) = done {
                    self.piece_done(node, event, machine);
                }
            }
            None => {}
        }
        self.kick_apply(node);
        Ok(())
    }

    fn entries_applied(&mut self, node: NodeId, group: GroupId, applied: Applied) -> Result<(), String> {
        let Some(process) = self.process(node) else { return Ok(()) };
        let hash = process.machines.hash(group);
        process.mailbox.push_back(Input::Applied(applied));
        self.wake(node);
        if let Some((slot, hash)) = hash {
            self.trace.line(self.now, format_args!("{node} {group} applied {slot}, state {hash:016x}"));
            self.invariants.state(node, group, slot, hash)?;
        }
        Ok(())
    }

    fn piece_done(
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

    // The store.

    fn begin_flush(&mut self, node: NodeId, number: u64) {
        let delay = self.random.skewed(1_000, 500_000);
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

    fn flushed(&mut self, node: NodeId, number: u64) {
        let Some(process) = self.process(node) else { return };
        let flushed = process.machines.flush();
        self.coverage.hit("store.flushed");
        self.trace.line(self.now, format_args!("{node} flushed the store ({number}): {flushed:?}"));
        self.deliver(node, Input::Flushed(number));
    }

    fn collect(&mut self, node: NodeId) -> Result<(), String> {
        self.later(node, COLLECT_MICROS, NodeEvent::Collect);
        let (now, lag) = (self.now, self.plan.compaction.unwrap_or(u64::MAX));
        let groups: Vec<GroupId> = self.plan.hosted(node).map(|(group, _)| *group).collect();
        for group in groups {
            let Some(process) = self.process(node) else { return Ok(()) };
            let Some(Machine::Data(reader)) = process.machines.machine(group) else { continue };
            let floor = reader.shards().iter().map(|shard| shard.floor).max().unwrap_or_default();
            let (done, since) = process.collected.entry(group).or_default();
            if floor <= *done || now - *since.get_or_insert(now) < lag {
                continue;
            }
            let budget = 64;
            let progress =
                process.machines.collect(group, budget).map_err(|error| format!("{node} collecting: {error}"))?;
            if let Some(Progress::Done(_)) = progress {
                process.collected.insert(group, (floor, None));
                self.coverage.hit("history.collected");
            }
            self.trace.line(self.now, format_args!("{node} {group} collects below {floor}: {progress:?}"));
        }
        Ok(())
    }

    // Messages.

    fn send(&mut self, from: NodeId, to: NodeId, message: NodeMessage) {
        if let NodeMessage::Paxos(Wire::Group(group, said)) = &message {
            self.invariants.said(from, *group, said);
            self.count(said);
        }
        let life = self.sites.get(&from).map_or(0, |site| site.life);
        self.trace.line(self.now, format_args!("{from}/{life} → {to} {}", Brief(&message)));
        self.forge(from, to, &message);
        let copies = self.network.route(Endpoint::Node(from), Endpoint::Node(to), &mut self.random, &mut self.coverage);
        for delay in copies {
            self.schedule(delay, Event::Message { from, to, message: message.clone() });
        }
    }

    fn count(&mut self, said: &Message) {
        match said {
            Message::Prepare { .. } => self.coverage.hit("election"),
            Message::Handover { .. } => self.coverage.hit("handover"),
            Message::Confirmed { .. } => self.coverage.hit("confirmed"),
            Message::NeedSnapshot { .. } => self.coverage.hit("snapshot.wanted"),
            Message::AcceptSync { .. } => self.coverage.hit("accept_sync"),
            Message::Fetch { .. } => self.coverage.hit("fetch"),
            _ => {}
        }
    }

    /// Mutants that make up what a peer has not said.
    fn forge(&mut self, me: NodeId, peer: NodeId, message: &NodeMessage) {
        let leads = |process: &mut Process, plan: &crate::plan::Plan| {
            plan.hosted(me).any(|(group, _)| process.core.replica(*group).is_some_and(|it| it.leading().is_some()))
        };
        let plan = self.plan.clone();
        if plan.options.mutant.is_none() || !self.process(me).is_some_and(|process| leads(process, &plan)) {
            return;
        }
        match (self.plan.options.mutant, message) {
            (
                Some(Mutant::CountUnsentVotes),
                NodeMessage::Paxos(Wire::Group(group, Message::Accept { ballot, start, entries, decided })),
            ) => {
                let length = paxos::Slot(start.0 + entries.len() as u64 - 1);
                let vote = Message::Accepted { ballot: *ballot, length, decided: *decided };
                self.deliver(me, Input::Message { from: peer, message: NodeMessage::Paxos(Wire::Group(*group, vote)) });
            }
            (
                Some(Mutant::MakeUpGrants),
                NodeMessage::Paxos(Wire::Heartbeat(paxos::heartbeat::Heartbeat::Ping { sequence, statuses })),
            ) => {
                let (boot, version) = statuses.known;
                let known = (statuses.boot, statuses.version);
                let same = paxos::heartbeat::Statuses { boot, base: version, version, changed: Vec::new(), known };
                let pong =
                    paxos::heartbeat::Heartbeat::Pong { sequence: *sequence, ping_boot: statuses.boot, statuses: same };
                self.deliver(me, Input::Message { from: peer, message: NodeMessage::Paxos(Wire::Heartbeat(pong)) });
            }
            _ => {}
        }
    }

    /// Nobody else holds a lease that this node holds, at this very moment.
    fn check_leases(&self, node: NodeId) -> Result<(), String> {
        let holds = |id: &NodeId, group: GroupId| {
            let site = self.sites.get(id);
            let process = site.and_then(|site| Some((site.clock.read(self.now), site.process.as_ref()?)));
            process.is_some_and(|(now, process)| process.core.holds_lease(now, group))
        };
        for (group, replicas) in self.plan.hosted(node) {
            if holds(&node, *group) {
                let holders: Vec<NodeId> = replicas.iter().copied().filter(|id| holds(id, *group)).collect();
                Invariants::lease(*group, &holders)?;
            }
        }
        Ok(())
    }
}

/// A message in a few words.
pub(crate) struct Brief<'a>(pub(crate) &'a NodeMessage);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            NodeMessage::Paxos(Wire::Group(group, message)) => match message {
                Message::Accept { ballot, start, entries, decided } => {
                    write!(f, "{group} Accept {ballot} from {start}, {} entries, decided {decided}", entries.len())
                }
                Message::AcceptSync { ballot, cut, start, end, entries, decided } => write!(
                    f,
                    "{group} AcceptSync {ballot} cut {cut}, from {start}, {} entries, end {end}, decided {decided}",
                    entries.len()
                ),
                Message::Fetched { ballot, start, entries } => {
                    write!(f, "{group} Fetched {ballot} from {start}, {} entries", entries.len())
                }
                Message::Promise(promise) => write!(
                    f,
                    "{group} Promise {} accepted {} length {} decided {} kept {} suspect {}",
                    promise.ballot,
                    promise.accepted,
                    promise.length,
                    promise.decided,
                    promise.first_kept,
                    promise.suspect
                ),
                other => write!(f, "{group} {other:?}"),
            },
            NodeMessage::Paxos(Wire::Heartbeat(beat)) => match beat {
                paxos::heartbeat::Heartbeat::Ping { sequence, .. } => write!(f, "Ping {sequence}"),
                paxos::heartbeat::Heartbeat::Pong { sequence, .. } => write!(f, "Pong {sequence}"),
            },
            NodeMessage::SnapshotPiece { group, transfer, sequence, slot, piece, last } => {
                write!(f, "{group} SnapshotPiece {transfer:x}/{sequence} of {slot}, {} bytes, last {last}", piece.len())
            }
            NodeMessage::MapReply(map) => write!(f, "MapReply version {}", map.version),
            other => write!(f, "{other:?}"),
        }
    }
}
