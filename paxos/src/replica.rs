//! One replica of one group: the door through which everything goes.
//!
//! [`Replica::step`] takes an input and the time, and returns what is to be logged, what may be sent
//! at once, what may be sent only after the log's tail as of this step is durable, and what has been
//! decided. The host performs these and reports back with [`Input::Durable`].
//!
//! Branching happens here; the acceptor (safety), the leader's bookkeeping and elections (liveness)
//! are leaves.

use crate::acceptor::{Acceptor, Synced};
use crate::election::Election;
use crate::flaw::{self, Flaw};
use crate::heartbeat::Heartbeats;
use crate::interface::{Input, Outputs, ReplicaConfig};
use crate::leader::{Confirm, Leading, Preparing, quorum_of};
use crate::message::{Envelope, Message, Promise};
use crate::record::{Record, Recovered};
use crate::{Ballot, ConfigId, Configuration, GroupId, NodeId, Slot, Time};
use std::collections::{BTreeMap, VecDeque};

/// Entries in flight to one peer beyond what it acknowledged.
pub(crate) const PIPELINE_SLOTS_MAX: u64 = 256;

#[derive(Clone, Debug)]
pub(crate) enum Role {
    Follower,
    Preparing(Preparing),
    Leading(Leading),
}

/// What becomes true when a record is durable.
#[derive(Clone, Copy, Debug)]
struct Mark {
    record: u64,
    promised: Ballot,
    accepted: Ballot,
    length: Slot,
}

/// Whether an acceptor that promised `promised` may promise `ballot` now: to the same node, after a
/// hand-over by the old leader, when the lease that it granted has ended, or in a later configuration: where
/// that has begun (and only who knows it asks, or answers) no leader of a former one serves any more.
fn may_promise(
    heartbeats: &Heartbeats,
    group: GroupId,
    promised: Ballot,
    ballot: Ballot,
    handover: Option<Ballot>,
    now: Time,
) -> bool {
    promised.node == ballot.node
        || promised.config < ballot.config
        || handover == Some(promised)
        || now >= heartbeats.grant_ends(group, promised)
}

/// A replica.
#[derive(Clone, Debug)]
pub struct Replica {
    pub(crate) config: ReplicaConfig,
    pub(crate) acceptor: Acceptor,
    pub(crate) election: Election,
    pub(crate) role: Role,
    pub(crate) durable_promised: Ballot,
    tail: u64,
    marks: VecDeque<Mark>,
    /// The last slot given out in [`Outputs::decided`].
    delivered: Slot,
    /// The ballot whose leader this replica has heard of in this life. One that restarts at the ballot
    /// it followed before may lack what the leader believes it has.
    heard: Ballot,
    /// Leadership was handed over at this ballot; it serves nothing any more.
    abdicated: Option<(Ballot, Time)>,
    /// As a candidate that lagged too far behind, and nothing came of it yet.
    pub(crate) gave_way: bool,
    /// The configuration that this replica is in: the newest whose stop-sign it knows to be decided.
    pub(crate) configuration: Configuration,
    /// Who is to follow the log, while this replica leads, without a vote.
    pub(crate) learners: Vec<NodeId>,
    /// Rounds for which the leader of the sealed configuration may find the next one's.
    pub(crate) patience: u32,
}

impl Replica {
    /// A replica with its recovered state. `applied` is the state machine's slot.
    pub fn new(config: ReplicaConfig, recovered: Recovered, applied: Slot) -> Replica {
        let acceptor = Acceptor::new(recovered);
        let promised = acceptor.promised();
        assert!(applied <= acceptor.decided(), "applied {applied} beyond decided {}", acceptor.decided());
        let mut configuration = config.configuration.clone();
        for slot in applied.0 + 1..=acceptor.decided().0 {
            let entry = acceptor.log().get(Slot(slot));
            if let Some(next) = entry.and_then(|entry| Configuration::of_stop_sign(entry))
                && next.id > configuration.id
            {
                configuration = next;
            }
        }
        Replica {
            election: Election::new(config.me, promised),
            configuration,
            learners: Vec::new(),
            patience: 0,
            config,
            acceptor,
            role: Role::Follower,
            durable_promised: promised,
            tail: 0,
            marks: VecDeque::new(),
            delivered: applied,
            heard: Ballot::default(),
            abdicated: None,
            gave_way: false,
        }
    }

    /// The one door. `heartbeats` are the node's: who is reachable, which grants run.
    pub fn step(&mut self, now: Time, heartbeats: &Heartbeats, input: Input) -> Outputs {
        let mut out = Outputs::default();
        match input {
            Input::Tick => self.tick(now, heartbeats, &mut out),
            Input::Message { from, message } => self.receive(now, heartbeats, from, message, &mut out),
            Input::Propose(entry) => self.propose(now, entry, &mut out),
            Input::Durable(record) => self.durable(now, record, &mut out),
            Input::Installed { slot, configuration } => {
                let config = configuration.as_ref().map_or(ConfigId(0), |configuration| configuration.id);
                self.acceptor.installed(slot, config, &mut out.records);
                if let Some(configuration) = configuration {
                    self.enter(configuration);
                }
                self.delivered = self.delivered.max(slot);
                self.gave_way = false;
                self.fetch_behind_image(now, slot, &mut out);
            }
            Input::Trim { slot, keep_bytes } => self.acceptor.trim(slot.min(self.delivered), keep_bytes),
            Input::TellDecided => self.tell_decided(&mut out),
            Input::Confirm => self.confirm(now, &mut out),
            Input::HandOver(to) => self.hand_over(now, to, &mut out),
            Input::Learners(nodes) => self.set_learners(nodes),
            Input::Seal(next) => self.seal_with(now, &next, &mut out),
            Input::Checkpoint(flushed) => {
                self.acceptor.checkpoint(flushed.min(self.delivered), self.config.piece_bytes_max, &mut out.records);
            }
            Input::Bar(barred) => self.bar(now, heartbeats, barred, &mut out),
        }
        self.follow_ballots();
        self.finish(now, heartbeats, out)
    }

    /// Delivers what is decided, numbers the records, and notes what becomes true with them.
    fn finish(&mut self, now: Time, heartbeats: &Heartbeats, mut out: Outputs) -> Outputs {
        self.advance(&mut out);
        while self.delivered < self.acceptor.decided() {
            let slot = self.delivered.next();
            // Below the first kept slot a snapshot stands; the host installs it and says so.
            let Some(entry) = self.acceptor.log().get(slot).cloned() else { break };
            if let Some(next) = Configuration::of_stop_sign(&entry) {
                let (accepted, length) = (self.acceptor.accepted(), self.acceptor.log().length());
                let last = slot == length || accepted.config >= next.id;
                assert!(last, "{accepted} has entries up to {length} behind its stop-sign at {slot}");
                if !flaw::is(Flaw::ForgetSeal) {
                    out.records.push(Record::Sealed(slot));
                }
                self.enter(next);
                // Its leader waits to hear of it.
                let promised = self.acceptor.promised();
                if self.acceptor.accepted() == promised && promised.node != self.config.me {
                    self.answer_accepted(promised.node, promised, &mut out);
                }
            }
            out.decided.push((slot, entry));
            self.delivered = slot;
        }
        self.begin_next(now, heartbeats, &mut out);
        self.tail += out.records.len() as u64;
        out.tail = self.tail;
        if !out.records.is_empty() {
            self.marks.push_back(Mark {
                record: self.tail,
                promised: self.acceptor.promised(),
                accepted: self.acceptor.accepted(),
                length: self.acceptor.log().length(),
            });
        }
        out
    }

    /// A higher ballot anywhere ends our own role; a promise is a ballot seen.
    pub(crate) fn follow_ballots(&mut self) {
        self.election.saw(self.acceptor.promised());
        let current = self.election.leader();
        let ours = match &self.role {
            Role::Follower => return,
            Role::Preparing(preparing) => preparing.ballot,
            Role::Leading(leading) => leading.ballot,
        };
        if current > ours || self.acceptor.promised() > ours {
            self.role = Role::Follower;
        }
    }

    fn tick(&mut self, now: Time, heartbeats: &Heartbeats, out: &mut Outputs) {
        let (config, voters) = self.scope(now, heartbeats);
        let reached = heartbeats.reached(now, self.config.group, &voters);
        let wants = self.election.round(config, voters.len(), &reached, self.acceptor.promised());
        let wants = wants && voters.contains(&self.config.me) && self.patience == 0;
        self.patience = self.patience.saturating_sub(1);
        let timing = heartbeats.timing();
        // The one we handed over to did not take it.
        let stuck = self
            .abdicated
            .is_some_and(|(ballot, at)| self.election.leader() == ballot && now.since(at) > timing.peer_timeout_micros);
        let stuck = stuck && voters.contains(&self.config.me) && !self.election.is_barred();
        if (wants || stuck) && !self.acceptor.suspect() {
            self.take_over(now, config, None);
        }
        self.follow_ballots();
        self.begin_phase_1(now, heartbeats, out);
        self.report_in(out);
        self.resend(now, heartbeats, out);
    }

    /// After a restart: tells the leader that was followed before how far the log reaches now.
    fn report_in(&self, out: &mut Outputs) {
        let promised = self.acceptor.promised();
        if self.heard == promised || promised.node == self.config.me || promised == Ballot::default() {
            return;
        }
        if self.acceptor.suspect() {
            self.send_durable(out, promised.node, Message::Promise(self.promise()));
        } else if self.acceptor.accepted() == promised {
            self.answer_accepted(promised.node, promised, out);
        }
    }

    /// A suspect does not vote: it says what it is, and the leader repairs it.
    fn suspect_instead(&self, from: NodeId, ballot: Ballot, out: &mut Outputs) -> bool {
        let suspect = self.acceptor.suspect();
        if suspect && self.acceptor.promised() == ballot {
            self.send_durable(out, from, Message::Promise(self.promise()));
        }
        suspect
    }

    /// A replica whose life began in the middle of a ballot (it was closed, and opened again) has none of what
    /// the leader believes it has, and says so.
    fn stranger_instead(&self, from: NodeId, ballot: Ballot, out: &mut Outputs) -> bool {
        let stranger = self.acceptor.promised() == ballot && self.acceptor.accepted() != ballot;
        if stranger {
            self.send_durable(out, from, Message::Promise(self.promise()));
        }
        stranger
    }

    /// What a promise reports now.
    pub(crate) fn promise(&self) -> Promise {
        let promise = self.acceptor.promise(self.votes_in(self.acceptor.promised().config));
        Promise { barred: self.election.is_barred(), ..promise }
    }

    /// Wants to lead, with a ballot above everything seen.
    pub(crate) fn take_over(&mut self, now: Time, config: ConfigId, handover: Option<Ballot>) {
        let ballot = self.election.take_over(config, self.config.boot);
        let voters = self.configuration.voters_of(config).unwrap_or_default().to_vec();
        self.abdicated = None;
        let promises = BTreeMap::new();
        let (since, sent_at) = (now, now);
        self.role = Role::Preparing(Preparing { ballot, voters, promises, fetch: None, handover, since, sent_at });
    }

    /// Phase 1a, as soon as our own acceptor may promise: it, too, may have granted a lease.
    pub(crate) fn begin_phase_1(&mut self, now: Time, heartbeats: &Heartbeats, out: &mut Outputs) {
        let Role::Preparing(preparing) = &mut self.role else { return };
        let (ballot, handover) = (preparing.ballot, preparing.handover);
        let promised = self.acceptor.promised();
        if promised >= ballot || !may_promise(heartbeats, self.config.group, promised, ballot, handover, now) {
            return;
        }
        preparing.sent_at = now;
        let voters = preparing.voters.clone();
        let _ = self.acceptor.prepare(ballot, true, &mut out.records);
        for peer in self.but_me(&voters) {
            self.send_durable(out, peer, Message::Prepare { ballot, handover, elected: false });
        }
    }

    fn receive(&mut self, now: Time, heartbeats: &Heartbeats, from: NodeId, message: Message, out: &mut Outputs) {
        if from == self.config.me {
            return;
        }
        if matches!(message, Message::Accept { .. } | Message::AcceptSync { .. } | Message::Decide { .. })
            && message.ballot() == self.acceptor.promised()
        {
            self.heard = message.ballot();
        }
        match message {
            Message::Accept { ballot, .. } | Message::Decide { ballot, .. }
                if self.suspect_instead(from, ballot, out) || self.stranger_instead(from, ballot, out) => {}
            Message::Prepare { ballot, handover, elected } => {
                let asks = elected || self.votes_for(from, ballot.config);
                if asks && ballot.node == from {
                    let may = elected || self.may_promise(now, heartbeats, ballot, handover);
                    self.on_prepare(ballot, may, out);
                }
            }
            Message::AcceptSync { ballot, cut, start, end, entries, decided } => {
                let synced = self.acceptor.accept_sync(ballot, cut, start, end, entries, &mut out.records);
                match synced {
                    Synced::Ignored => {}
                    Synced::Staged(staged) => self.send_now(out, from, Message::SyncProgress { ballot, staged }),
                    Synced::Adopted => {
                        self.gave_way = false;
                        self.acceptor.announce(ballot, decided);
                        self.answer_accepted(from, ballot, out);
                    }
                }
            }
            Message::Accept { ballot, start, entries, decided } => {
                let placed = self.acceptor.accept(ballot, start, entries, &mut out.records);
                self.acceptor.announce(ballot, decided);
                if placed || self.acceptor.accepted() == ballot {
                    self.answer_accepted(from, ballot, out);
                }
            }
            Message::Decide { ballot, decided, answer } => {
                self.acceptor.announce(ballot, decided);
                if answer && self.acceptor.accepted() == ballot {
                    self.answer_accepted(from, ballot, out);
                }
            }
            Message::Confirm { ballot, round } => {
                if self.acceptor.promised() == ballot {
                    self.send_durable(out, from, Message::Confirmed { ballot, round });
                }
            }
            Message::Fetch { ballot, start, end } => self.answer_fetch(from, ballot, start, end, out),
            Message::Handover { ballot } => {
                // From its leader, or from a candidate that found our log to be far ahead of its own.
                let follows = self.election.leader() == ballot && self.acceptor.promised() == ballot;
                let votes = self.configuration.contains(self.config.me);
                let may = votes && !self.acceptor.suspect() && !self.election.is_barred();
                if follows && ballot.node == from && may {
                    self.take_over(now, self.configuration.id, Some(ballot));
                    self.begin_phase_1(now, heartbeats, out);
                }
            }
            Message::Promise(_)
            | Message::Fetched { .. }
            | Message::SyncProgress { .. }
            | Message::Accepted { .. }
            | Message::Confirmed { .. } => self.receive_as_leader(now, from, message, out),
        }
    }

    /// The leader's lease, if someone else holds one here, must end before another is promised. But not where a quorum
    /// has promised already: each of them waited, so that lease has ended, whatever was granted here. (A learner would
    /// otherwise wait for ever: it hears of no election, and goes on granting.)
    fn may_promise(&self, now: Time, heartbeats: &Heartbeats, ballot: Ballot, handover: Option<Ballot>) -> bool {
        let promised = self.acceptor.promised();
        ballot <= promised || may_promise(heartbeats, self.config.group, promised, ballot, handover, now)
    }

    fn on_prepare(&mut self, ballot: Ballot, may: bool, out: &mut Outputs) {
        if !may {
            return;
        }
        let votes = self.votes_in(ballot.config);
        if let Some(promise) = self.acceptor.prepare(ballot, votes, &mut out.records) {
            let promise = Promise { barred: self.election.is_barred(), ..promise };
            self.send_durable(out, ballot.node, Message::Promise(promise));
        }
    }

    fn answer_accepted(&self, to: NodeId, ballot: Ballot, out: &mut Outputs) {
        let (length, decided) = (self.acceptor.log().length(), self.acceptor.decided());
        self.send_durable(out, to, Message::Accepted { ballot, length, decided });
    }

    fn answer_fetch(&self, to: NodeId, ballot: Ballot, start: Slot, end: Slot, out: &mut Outputs) {
        if self.acceptor.promised() != ballot {
            return;
        }
        if start < self.acceptor.log().first_kept() {
            out.snapshot_wanted.extend(Some(to).filter(|_| !self.election.is_barred()));
            return;
        }
        let entries = self.acceptor.log().piece(start, end, self.config.piece_bytes_max);
        self.send_now(out, to, Message::Fetched { ballot, start, entries });
    }

    /// Promises and votes count when durable, our own too.
    fn durable(&mut self, now: Time, record: u64, out: &mut Outputs) {
        let mut reached = None;
        while let Some(mark) = self.marks.front().filter(|mark| mark.record <= record) {
            reached = Some(*mark);
            self.marks.pop_front();
        }
        let Some(mark) = reached else { return };
        assert!(mark.promised >= self.durable_promised, "promise fell {} → {}", self.durable_promised, mark.promised);
        self.durable_promised = mark.promised;
        self.acceptor.persisted(mark.accepted, mark.length);
        self.own_durable(now, mark.promised, out);
    }

    fn confirm(&mut self, now: Time, out: &mut Outputs) {
        let me = self.config.me;
        let Role::Leading(leading) = &mut self.role else { return };
        let peers: Vec<NodeId> = leading.voters.iter().copied().filter(|node| *node != me).collect();
        if leading.confirm.confirmed < leading.confirm.begun {
            leading.confirm.again = true;
            return;
        }
        let (ballot, confirm) = (leading.ballot, &mut leading.confirm);
        *confirm =
            Confirm { begun: confirm.begun + 1, confirmed: confirm.confirmed, sent_at: now, ..Confirm::default() };
        confirm.acks.insert(me);
        if quorum_of(peers.len() + 1) == 1 {
            confirm.confirmed = confirm.begun;
        }
        let round = confirm.begun;
        for peer in peers {
            self.send_now(out, peer, Message::Confirm { ballot, round });
        }
    }

    fn hand_over(&mut self, now: Time, to: NodeId, out: &mut Outputs) {
        let Role::Leading(leading) = &self.role else { return };
        let ballot = leading.ballot;
        if self.seal().is_some() {
            return;
        }
        let caught_up = leading.peers.get(&to).is_some_and(|peer| peer.matched == Some(self.acceptor.log().length()));
        if caught_up && leading.voters.contains(&to) {
            self.abdicate(now, ballot, to, out);
        }
    }

    /// Ends our own role, if we must not lead: in favour of the one that has most of our log, so that nobody need wait
    /// for the lease to end.
    fn bar(&mut self, now: Time, heartbeats: &Heartbeats, barred: bool, out: &mut Outputs) {
        self.election.bar(barred);
        if !barred {
            return;
        }
        let (ballot, closest) = match &self.role {
            Role::Follower => return,
            Role::Preparing(preparing) => (preparing.ballot, None),
            Role::Leading(leading) => {
                let may_lead =
                    |node: &NodeId| leading.voters.contains(node) && heartbeats.may_lead(now, *node, self.config.group);
                let voters = leading.peers.iter().filter(|(node, _)| may_lead(node));
                (leading.ballot, voters.max_by_key(|(_, peer)| peer.matched).map(|(node, _)| *node))
            }
        };
        self.role = Role::Follower;
        // When it may lead again, it must not take itself for the leader that it was.
        self.abdicated = Some((ballot, now));
        if let Some(to) = closest {
            self.send_now(out, to, Message::Handover { ballot });
        }
    }

    /// Ends our own role at `ballot` for good, in favour of `to`.
    pub(crate) fn abdicate(&mut self, now: Time, ballot: Ballot, to: NodeId, out: &mut Outputs) {
        self.role = Role::Follower;
        self.abdicated = Some((ballot, now));
        self.send_now(out, to, Message::Handover { ballot });
    }

    pub(crate) fn but_me(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.iter().copied().filter(|node| *node != self.config.me).collect()
    }

    pub(crate) fn send_now(&self, out: &mut Outputs, to: NodeId, message: Message) {
        out.send_now.push(self.envelope(to, message));
    }

    pub(crate) fn send_durable(&self, out: &mut Outputs, to: NodeId, message: Message) {
        out.send_durable.push(self.envelope(to, message));
    }

    fn envelope(&self, to: NodeId, message: Message) -> Envelope {
        Envelope { from: self.config.me, to, group: self.config.group, message }
    }
}
