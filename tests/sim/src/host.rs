//! What a running process does: the simulated counterpart of the node's runtime. The order of
//! effects is the runtime's: a turn drains everything; records go to the log in order, group by
//! group commit; messages leave at once; entries go to the state machines in order.

mod brief;
mod log;
mod machines;

use self::brief::Brief;
use crate::invariants::Invariants;
use crate::mutant::Mutant;
use crate::network::Endpoint;
use crate::process::{Job, Process};
use crate::world::{Event, NodeEvent, World};
use node::core::{Input, Outputs, TRANSFER_PIECE_BYTES};
use node::wire::NodeMessage;
use paxos::{GroupId, Message, NodeId, Wire};
use shardkv::codec;

/// An image's piece has no more bytes than these, with the row that ends it; the queue to a peer has room for many.
const IMAGE_PIECE_BYTES_MAX: usize = 2 * TRANSFER_PIECE_BYTES;
/// Nor any other message than these: pieces of logs and of shards are smaller here, and so are maps.
const MESSAGE_BYTES_MAX: usize = 320 << 10;

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
            NodeEvent::Wake => {
                if let Some(process) = self.process(node) {
                    process.wakes_at = None;
                }
                self.wake(node);
                Ok(())
            }
            NodeEvent::WalCommit => self.wal_commit(node),
            NodeEvent::WalIdle => self.wal_idle(node),
            NodeEvent::Apply => self.apply(node),
            NodeEvent::Scan(place) => {
                self.scan(node, place);
                Ok(())
            }
            NodeEvent::Flushed(number) => {
                self.flushed(node, number);
                Ok(())
            }
            NodeEvent::Collect => self.collect(node),
            NodeEvent::Stop(down) => {
                self.kill_process(node, down);
                Ok(())
            }
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
        for hosted in std::mem::take(&mut process.opened) {
            process.core.open(hosted);
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
        self.note_nodes(node);
        self.arm_core(node);
        self.check_fences(node)?;
        self.check_leases(node)
    }

    /// Has the core woken when it wants to be.
    fn arm_core(&mut self, node: NodeId) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        let (clock, now) = (site.clock, self.now);
        let Some(process) = site.process.as_mut() else { return };
        let Some(at) = process.core.wake_at().map(|at| clock.when(at).max(now + 1)) else { return };
        if process.wakes_at.is_none_or(|armed| at < armed) {
            process.wakes_at = Some(at);
            self.later(node, at - now, NodeEvent::Wake);
        }
    }

    /// Writes down which nodes there are, for the next start.
    fn note_nodes(&mut self, node: NodeId) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        let Some(map) = site.process.as_ref().map(|process| process.core.map()) else { return };
        // After a crash it may begin with a map that is older than what it has noted.
        let last = map.newest_node();
        if map.nodes.is_empty() || last < site.met.1 {
            return;
        }
        let met = &site.met.0;
        if map.nodes.len() != met.len() || map.nodes.iter().zip(met).any(|(info, met)| info.id != *met) {
            site.met.0 = map.nodes.iter().map(|info| info.id).collect();
        }
        site.met.1 = last;
    }

    /// Whether a node has a stream to another one, or lets it open one.
    fn knows(&self, node: NodeId, other: NodeId) -> bool {
        let Some(site) = self.sites.get(&node) else { return false };
        if site.met.0.is_empty() { self.plan.founders.contains(&other) } else { site.met.0.contains(&other) }
    }

    /// A message arrives, if whoever is there lets its sender in.
    pub(crate) fn message_arrives(&mut self, from: NodeId, to: NodeId, message: NodeMessage) {
        if self.knows(to, from) {
            self.deliver(to, Input::Message { from, message });
        } else {
            self.coverage.hit("net.stranger");
        }
    }

    fn perform(&mut self, node: NodeId, out: Outputs) -> Result<(), String> {
        if !out.log.is_empty() {
            self.append(node, out.ticket, &out.log);
        }
        for (to, message) in out.send {
            self.send(node, to, message)?;
        }
        for job in &out.apply {
            for (slot, entry) in &job.entries {
                self.invariants.decided(node, job.group, *slot, entry)?;
                if paxos::Configuration::of_stop_sign(entry).is_some() {
                    self.coverage.hit("members.changed");
                }
            }
        }
        let mut jobs: Vec<Job> = Vec::new();
        for job in out.apply {
            // The runtime applies a little at once where its thread has nothing to do with the group.
            let idle = self.process(node).is_some_and(|process| !process.applying && process.jobs.is_empty());
            if idle && job.urgent && job.next && jobs.is_empty() && self.random.chance(500) {
                self.coverage.hit("apply.at_once");
                self.apply_now(node, job)?;
            } else {
                jobs.push(Job::Apply(job));
            }
        }
        jobs.extend(out.snapshots.into_iter().map(Job::Snapshot));
        jobs.extend(out.hosting.into_iter().map(Job::Hosting));
        if let Some(process) = self.process(node).filter(|_| !jobs.is_empty()) {
            process.jobs.extend(jobs);
            self.kick_apply(node);
        }
        for job in out.scans {
            let most = self.plan.scan_micros_max.unwrap_or(self.plan.apply_micros_max);
            let delay = self.random.skewed(10, most);
            let Some(process) = self.process(node) else { break };
            let Some(reader) = process.core.reader(job.group) else {
                process.mailbox.push_back(Input::Scanned { number: job.number, result: None });
                self.wake(node);
                continue;
            };
            process.scans.push((job, reader));
            // Several threads: what comes later may be done before.
            let place = self.random.below(4);
            self.later(node, delay, NodeEvent::Scan(usize::try_from(place).unwrap_or_default()));
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

    fn send(&mut self, from: NodeId, to: NodeId, message: NodeMessage) -> Result<(), String> {
        if let NodeMessage::Paxos(Wire::Group(group, said)) = &message {
            self.invariants.said(from, *group, said);
            self.count(said);
        }
        let life = self.sites.get(&from).map_or(0, |site| site.life);
        self.trace.line(self.now, format_args!("{from}/{life} → {to} {}", Brief(&message)));
        self.forge(from, to, &message);
        if !self.knows(from, to) {
            return Ok(());
        }
        let message = travelled(message)?;
        let copies = self.network.route(Endpoint::Node(from), Endpoint::Node(to), &mut self.random, &mut self.coverage);
        for delay in copies {
            self.schedule(delay, Event::Message { from, to, message: message.clone() });
        }
        Ok(())
    }

    fn count(&mut self, said: &Message) {
        match said {
            Message::Prepare { .. } => self.coverage.hit("election"),
            Message::Handover { .. } => self.coverage.hit("handover"),
            Message::Confirmed { .. } => self.coverage.hit("confirmed"),
            Message::AcceptSync { .. } => self.coverage.hit("accept_sync"),
            Message::Fetch { .. } => self.coverage.hit("fetch"),
            Message::SyncProgress { .. } => self.coverage.hit("sync.in_pieces"),
            _ => {}
        }
    }

    /// Mutants that make up what a peer has not said.
    fn forge(&mut self, me: NodeId, peer: NodeId, message: &NodeMessage) {
        let groups = self.hosted.clone();
        let leads = |process: &mut Process| {
            groups.iter().any(|id| process.core.replica(*id).is_some_and(|it| it.leading().is_some()))
        };
        if self.plan.options.mutant.is_none() || !self.process(me).is_some_and(leads) {
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
                let pong = paxos::heartbeat::Heartbeat::Pong {
                    sequence: *sequence,
                    ping_boot: statuses.boot,
                    granted_micros: paxos::heartbeat::Timing::default().lease_micros,
                    statuses: same,
                };
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
        for group in &self.hosted {
            if holds(&node, *group) {
                let holders: Vec<NodeId> = self.plan.nodes.iter().copied().filter(|id| holds(id, *group)).collect();
                Invariants::lease(*group, &holders)?;
            }
        }
        Ok(())
    }
}

/// What is left of a message when it was encoded, queued and decoded.
fn travelled(message: NodeMessage) -> Result<NodeMessage, String> {
    let bytes = codec::encode(&message);
    let most = match message {
        NodeMessage::SnapshotPiece { .. } => IMAGE_PIECE_BYTES_MAX,
        _ => MESSAGE_BYTES_MAX,
    };
    if bytes.len() > most {
        return Err(format!(
            "a message of {} bytes would not fit into the queue to a peer: {}",
            bytes.len(),
            Brief(&message)
        ));
    }
    let decoded = codec::decode(&bytes).map_err(|error| format!("{error}: {}", Brief(&message)))?;
    if decoded == message { Ok(decoded) } else { Err(format!("{message:?} arrives as {decoded:?}")) }
}
