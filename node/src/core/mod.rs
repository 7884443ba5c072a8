//! The node as one synchronous machine: all replicas, their leaders' queues, the sequencer, routing
//! of answers. It reads no clock and does no I/O; the runtime and the simulator drive the same code.
//!
//! Inputs go in with [`Core::input`], as many as are there; [`Core::turn`] then lets leaders stamp
//! and propose what has gathered and hands out everything to be done. So a turn is the unit of
//! batching: what arrives while the last turn's work is being done becomes the next batch.
//!
//! The host appends [`Outputs::log`] under [`Outputs::ticket`] and reports [`Input::Durable`]; the
//! core holds back whatever must not leave before.

mod balancing;
mod digests;
mod lead;
mod load;
mod members;
mod moves;
mod progress;
mod reads;
mod reclaim;
mod scans;
mod sequencing;
mod stamping;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod traces;
mod transfer;
mod types;
mod upkeep;

pub use members::Hosting;
pub use progress::MoveStatus;
pub use scans::{ScanJob, ScanResult, ScanWork};
pub use status::{CoreStatus, GroupStatus};
pub use traces::{Span, Stage};
pub use transfer::{PIECE_BYTES as TRANSFER_PIECE_BYTES, SnapshotEvent, SnapshotJob};
pub use types::{Applied, ApplyJob, CoreConfig, EntryOutcome, Hosted, Input, Limits, Machine, Outputs, ReadMode};

use crate::tally::GroupTally;
use crate::wire::NodeMessage;
use lead::Lead;
use paxos::election::Status;
use paxos::flaw::{self, Flaw};
use paxos::heartbeat::Heartbeats;
use paxos::{Envelope, GroupId, NodeId, Replica, ReplicaConfig, Slot, Time, Wire};
use sequencing::SequencerTerm;
use shardkv::map::{SHARDMASTER_GROUP, ShardMap};
use shardkv::store::Store;
use shardkv::types::Revision;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use transfer::Transfers;

/// Followers learn what is decided with the next Accept, or after this.
const TELL_DELAY_MICROS: u64 = 3_000;

/// One replica and what hangs on it.
struct Group<S: Store> {
    replica: Replica,
    machine: Machine<S>,
    applied: Slot,
    applying_bytes: usize,
    /// The ticket of the newest record of this group.
    last_ticket: u64,
    /// (ticket, record number of the replica), oldest first.
    tails: VecDeque<(u64, u64)>,
    /// Messages that wait for a ticket.
    gated: VecDeque<(u64, Envelope)>,
    lead: Option<Lead>,
    tally: GroupTally,
    digests: digests::Digests,
    /// Its state is another one than the other replicas': it must not be read, nor lead.
    fenced: bool,
    /// What is to be applied once that is no longer so; `applying_bytes` bounds it.
    held: Vec<ApplyJob>,
    /// When images were last begun for replicas that are fenced, where this node leads.
    mended: BTreeMap<NodeId, Time>,
}

/// A node.
pub struct Core<S: Store> {
    config: CoreConfig,
    beats: Heartbeats,
    groups: BTreeMap<GroupId, Group<S>>,
    /// Groups whose leader has something to stamp or to release.
    busy: BTreeSet<GroupId>,
    sequencer: Option<SequencerTerm>,
    /// Of the last input, or turn.
    now: Time,
    known: Revision,
    map: Arc<ShardMap>,
    terms: u64,
    next_ticket: u64,
    durable_ticket: u64,
    /// (ticket, group) of records that are not durable yet, oldest first.
    dirty: VecDeque<(u64, GroupId)>,
    /// When the oldest of them was emitted; a disk that stalls gives up leadership.
    dirty_since: VecDeque<(u64, Time)>,
    no_space: bool,
    /// The node is about to stop: it hands over what it leads, and takes no lead.
    retiring: bool,
    /// Groups led here whose peers have not heard what is decided, and when they shall be told.
    untold: BTreeMap<GroupId, Time>,
    transfers: Transfers,
    comings: members::Comings,
    followed: traces::FollowedEntries,
    moving: moves::Moving,
    meter: load::Meter,
    balancing: balancing::Balancing,
    scans: BTreeMap<u64, scans::Scan>,
    next_scan: u64,
    reclaim: reclaim::Reclaim,
    out: Outputs,
}

impl<S: Store> Core<S> {
    /// A node that starts now.
    pub fn new(config: CoreConfig, hosted: Vec<Hosted<S>>, now: Time) -> Core<S> {
        let beats = Heartbeats::new(config.me, config.boot, config.timing, &config.nodes, now);
        let mut core = Core {
            beats,
            groups: BTreeMap::new(),
            busy: BTreeSet::new(),
            sequencer: None,
            now,
            known: Revision::EMPTY_STORE,
            map: Arc::new(ShardMap::default()),
            // Never the number of a term from before a restart: a late answer to that must meet nobody.
            terms: config.boot << 32,
            next_ticket: 1,
            durable_ticket: 0,
            dirty: VecDeque::new(),
            dirty_since: VecDeque::new(),
            no_space: false,
            retiring: false,
            untold: BTreeMap::new(),
            transfers: Transfers::default(),
            comings: members::Comings::default(),
            followed: traces::FollowedEntries::default(),
            moving: moves::Moving::default(),
            meter: load::Meter::default(),
            balancing: balancing::Balancing::default(),
            scans: BTreeMap::new(),
            next_scan: 0,
            reclaim: reclaim::Reclaim::default(),
            out: Outputs::default(),
            config,
        };
        for hosted in hosted {
            core.host(hosted);
        }
        core.meet_nodes();
        core
    }

    fn host(&mut self, hosted: Hosted<S>) {
        let Hosted { group, configuration, recovered, applied, fenced, machine } = hosted;
        let config = ReplicaConfig {
            me: self.config.me,
            group,
            configuration,
            boot: self.config.boot,
            piece_bytes_max: self.config.limits.piece_bytes_max,
        };
        let replica = Replica::new(config, recovered, applied);
        if let Machine::Master(state) = &machine {
            // One that is opened while the node runs is empty: what the node knows already is newer.
            if state.map.version >= self.map.version && !fenced {
                self.map = Arc::new(state.map.clone());
            }
        }
        let state = Group {
            replica,
            machine,
            applied,
            applying_bytes: 0,
            last_ticket: 0,
            tails: VecDeque::new(),
            gated: VecDeque::new(),
            lead: None,
            tally: GroupTally::default(),
            digests: digests::Digests::default(),
            fenced,
            held: Vec::new(),
            mended: BTreeMap::new(),
        };
        self.groups.insert(group, state);
        self.publish(group);
        if fenced {
            tracing::error!(%group, "the state of this node's replica was not what a majority had: it stays fenced");
            self.fence(self.now, group);
        }
    }

    /// Takes one input in. What it leads to comes out of the next [`Core::turn`].
    pub fn input(&mut self, now: Time, input: Input) {
        self.now = now;
        match input {
            Input::Message { from, message } => self.message(now, from, message),
            Input::Request { token, request } => self.request(now, token, request),
            Input::Durable { ticket, segment } => {
                // In this order: a segment that the rewritten states themselves have filled is no reason to write them again.
                self.segment_reached(segment);
                self.durable(now, ticket);
            }
            Input::Applied(applied) => self.applied(now, applied),
            Input::Scanned { number, result } => self.scanned(now, number, result),
            Input::Tick => self.tick(now),
            Input::Flushed(number) => self.flushed(now, number),
            Input::Snapshot(event) => self.snapshot_event(now, event),
            Input::Closed(group) => self.closed(group),
            Input::Retire => {
                self.retiring = true;
                self.publish_reluctance();
                // The others need not wait for the next heartbeat to hear of it.
                self.ping(now);
            }
            Input::NoSpace(full) => {
                self.no_space = full;
                self.publish_reluctance();
                if full {
                    self.begin_reclaim();
                }
            }
        }
    }

    /// Whether others had better lead.
    fn is_reluctant(&self) -> bool {
        self.no_space || self.retiring
    }

    fn publish_reluctance(&mut self) {
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        groups.into_iter().for_each(|id| self.publish(id));
    }

    /// Tells the other nodes how a replica stands, where that is news.
    fn publish(&mut self, id: GroupId) {
        let Some(group) = self.groups.get(&id) else { return };
        self.beats.publish(id, Status { reluctant: self.is_reluctant(), ..group.replica.status() });
    }

    /// Lets leaders stamp and propose what has gathered, and hands out what is to be done.
    pub fn turn(&mut self, now: Time) -> Outputs {
        self.now = now;
        self.wake_fetches(now);
        while let Some(group) = self.busy.pop_first() {
            self.stamp(now, group);
        }
        self.tell_decided(now);
        if self.retiring {
            self.hand_over_all(now);
        }
        self.seal_drained(now);
        let mut out = std::mem::take(&mut self.out);
        if !out.log.is_empty() {
            out.ticket = self.next_ticket;
            self.dirty_since.push_back((self.next_ticket, now));
            self.next_ticket += 1;
        }
        out
    }

    /// When the next turn is due at the latest, beside the ticks.
    pub fn wake_at(&self) -> Option<Time> {
        self.untold.values().min().copied().into_iter().chain(self.next_fetch()).min()
    }

    /// What is decided travels with the next Accept, and alone only if none comes soon: in a busy
    /// group that halves what followers are woken for.
    fn tell_decided(&mut self, now: Time) {
        let due: Vec<GroupId> = self.untold.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.untold.remove(&id);
            self.step(now, id, paxos::Input::TellDecided);
        }
    }

    fn message(&mut self, now: Time, from: NodeId, message: NodeMessage) {
        match message {
            NodeMessage::Paxos(Wire::Group(group, message)) => {
                if matches!(message, paxos::Message::Accept { .. }) && self.lags(group) {
                    // The leader sends it again; until then its window is full and it slows down.
                    return;
                }
                self.step(now, group, paxos::Input::Message { from, message });
                if self.config.read_mode == ReadMode::Quorum {
                    self.busy.insert(group);
                }
            }
            NodeMessage::Paxos(Wire::Heartbeat(heartbeat)) => {
                if self.stalled(now) {
                    // Whoever cannot log must neither lead nor lend its voice to a leader.
                    return;
                }
                let is_pong = matches!(heartbeat, paxos::heartbeat::Heartbeat::Pong { .. });
                if let Some(pong) = self.beats.receive(now, from, heartbeat) {
                    self.out.send.push((from, NodeMessage::Paxos(Wire::Heartbeat(pong))));
                }
                if is_pong {
                    self.lease_may_be_back(now);
                }
            }
            NodeMessage::Take { ask, count } => self.take_asked(now, from, ask, count),
            NodeMessage::Taken { ask, first } => self.taken(now, ask, first),
            NodeMessage::MapRequest { have_version } => {
                if self.map.version > have_version {
                    let map = Box::new(ShardMap::clone(&self.map));
                    self.out.send.push((from, NodeMessage::MapReply(map)));
                }
            }
            NodeMessage::Digest { group, digest } => self.digest_told(now, from, group, digest),
            NodeMessage::Follow { group, slot, contexts } => self.follow_entry(now, group, slot, contexts),
            NodeMessage::Register(info) => self.register(now, *info),
            NodeMessage::Configured { group, config, members, begun } => {
                self.configured(now, group, config, members, begun);
            }
            NodeMessage::Fetch(fetch) => self.fetch_asked(now, from, *fetch),
            NodeMessage::Fetched { group, shard, mv, chunk } => self.fetched(now, group, shard, mv, *chunk),
            NodeMessage::Arrived { mv } => self.shard_arrived(now, mv),
            NodeMessage::Halve { group, shard, epoch } => self.halve(now, from, group, shard, epoch),
            NodeMessage::Halved { shard, epoch, at } => self.split_there(now, shard, epoch, at),
            NodeMessage::Loads { led, loads } => self.loads_told(now, from, led, loads),
            NodeMessage::Reshaped { by } => self.shards_reshaped(now, by),
            NodeMessage::MapReply(map) => self.learn_map(Arc::new(*map)),
            NodeMessage::SnapshotPiece { .. }
            | NodeMessage::SnapshotAck { .. }
            | NodeMessage::SnapshotRefused { .. } => {
                self.snapshot_message(now, from, message);
            }
        }
    }

    /// Steps a replica and takes its outputs in.
    fn step(&mut self, now: Time, id: GroupId, input: paxos::Input) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let before = group.replica.leader().node;
        let out = group.replica.step(now, &self.beats, input);
        let leader = group.replica.leader();
        if leader.node != before {
            group.tally.leader_changes += 1;
            tracing::info!(group = %id, leader = %leader.node, round = leader.round, "another leader");
        }
        self.absorb(now, id, out);
    }

    fn absorb(&mut self, now: Time, id: GroupId, out: paxos::Outputs) {
        self.publish(id);
        let Some(group) = self.groups.get_mut(&id) else { return };
        if !out.records.is_empty() {
            let ticket = self.next_ticket;
            if group.last_ticket != ticket {
                self.dirty.push_back((ticket, id));
                group.tails.push_back((ticket, out.tail));
            } else if let Some(last) = group.tails.back_mut() {
                last.1 = out.tail;
            }
            group.last_ticket = ticket;
            self.out.log.extend(out.records.into_iter().map(|record| (id, record)));
        }
        self.out.send.extend(out.send_now.into_iter().map(to_wire));
        let durable = group.last_ticket <= self.durable_ticket;
        for envelope in out.send_durable {
            if durable && group.gated.is_empty() {
                self.out.send.push(to_wire(envelope));
            } else {
                group.gated.push_back((group.last_ticket, envelope));
            }
        }
        let decided = out.decided.last().map(|(slot, _)| *slot);
        if !out.decided.is_empty() {
            group.applying_bytes += out.decided.iter().map(|(_, entry)| entry.len()).sum::<usize>();
            let next = out.decided.first().is_some_and(|(first, _)| *first == group.applied.next());
            let job = ApplyJob { group: id, next, entries: out.decided, urgent: group.lead.is_some() };
            if group.fenced { group.held.push(job) } else { self.out.apply.push(job) }
        }
        if let Some(slot) = decided {
            self.traces_decided(now, id, slot);
        }
        for peer in out.snapshot_wanted {
            self.start_transfer(now, id, peer);
        }
        if out.untold {
            self.untold.entry(id).or_insert(now.plus(TELL_DELAY_MICROS));
        } else {
            self.untold.remove(&id);
        }
        if out.ping {
            self.ping(now);
        }
        self.follow_leadership(now, id);
    }

    fn durable(&mut self, now: Time, ticket: u64) {
        self.durable_ticket = self.durable_ticket.max(ticket);
        while self.dirty_since.front().is_some_and(|(first, _)| *first <= ticket) {
            self.dirty_since.pop_front();
        }
        while let Some((_, id)) = self.dirty.front().copied().filter(|(first, _)| *first <= ticket) {
            self.dirty.pop_front();
            let Some(group) = self.groups.get_mut(&id) else { continue };
            let mut record = None;
            while let Some((_, tail)) = group.tails.front().copied().filter(|(first, _)| *first <= ticket) {
                group.tails.pop_front();
                record = Some(tail);
            }
            while let Some((waits, _)) = group.gated.front() {
                if *waits > ticket {
                    break;
                }
                self.out.send.extend(group.gated.pop_front().map(|(_, envelope)| to_wire(envelope)));
            }
            self.traces_logged(now, id, ticket);
            if let Some(record) = record {
                self.step(now, id, paxos::Input::Durable(record));
            }
        }
        self.traces_durable(now, ticket);
        self.durably_closed(ticket);
        self.release_segments(ticket);
    }

    fn applied(&mut self, now: Time, applied: Applied) {
        let Applied { group: id, slot, first, outcomes, bytes, master, digests } = applied;
        let Some(group) = self.groups.get_mut(&id) else { return };
        // A report that overtakes another would leave those waiting whom the other answers.
        let ordered = group.lead.is_none() || outcomes.is_empty() || first <= group.applied.next();
        assert!(ordered, "{id}: entries from {first} on reported behind {}", group.applied);
        group.tally.applied_entries += slot.0.saturating_sub(group.applied.0);
        group.tally.applied_bytes += bytes as u64;
        group.applied = group.applied.max(slot);
        group.applying_bytes = group.applying_bytes.saturating_sub(bytes);
        // First of all: what is wrong must answer nobody.
        self.digested(now, id, digests);
        if let Some(state) = master {
            if !self.is_fenced(id) {
                self.learn_map(Arc::new(state.map.clone()));
            }
            if let Some(group) = self.groups.get_mut(&id) {
                group.machine = Machine::Master(state);
            }
            self.reservation_applied(now);
        }
        self.settle(now, id, first, outcomes);
    }

    fn learn_map(&mut self, map: Arc<ShardMap>) {
        if map.version > self.map.version {
            self.map = map;
            self.meet_nodes();
            self.follow_placement();
            self.busy.extend(self.groups.keys().copied());
        }
    }

    /// The node that leads a group, as far as this node knows.
    fn leader_of(&self, id: GroupId) -> Option<NodeId> {
        // A replica that has no vote (yet, or any more) need not hear of every leader.
        let member = |group: &&Group<S>| group.replica.configuration().contains(self.config.me);
        let Some(group) = self.groups.get(&id).filter(member) else { return self.guess_leader(id) };
        if self.is_outdated(id) {
            return self.guess_leader(id);
        }
        let leader = group.replica.leader();
        (leader.node.0 != 0).then_some(leader.node)
    }

    /// Whether a group has decided more than its state machine should have to catch up with.
    fn lags(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|group| group.applying_bytes > self.config.limits.apply_lag_bytes_max)
    }

    /// Whether the log has not become durable for so long that the node must not lead.
    fn stalled(&self, now: Time) -> bool {
        let oldest = self.dirty_since.front();
        oldest.is_some_and(|(_, since)| now.since(*since) > self.config.timing.peer_timeout_micros)
    }

    /// Whether this node holds the lease of a group that it leads, now.
    fn has_lease(&self, now: Time, id: GroupId) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        let Some(ballot) = group.replica.leading() else { return false };
        if flaw::is(Flaw::ReadWithoutLease) {
            return true;
        }
        self.beats.lease_until(now, id, ballot, group.replica.replicas()).is_some_and(|until| now < until)
    }

    fn is_master(&self, id: GroupId) -> bool {
        id == SHARDMASTER_GROUP
    }
}

fn to_wire(envelope: Envelope) -> (NodeId, NodeMessage) {
    (envelope.to, NodeMessage::Paxos(Wire::Group(envelope.group, envelope.message)))
}
