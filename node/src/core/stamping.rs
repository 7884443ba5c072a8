//! What a leader does with the commands that its term ([`Lead`]) holds: ask the sequencer for
//! revisions, stamp, propose, and answer when they are applied.
//!
//! Rules (design §1, Stamping):
//! - only revisions requested within this term, never for a command that arrived after the request;
//! - stamps rise in log order, above everything stamped or closed before;
//! - a batch whose revisions arrive too late or out of order is asked for anew.

use super::lead::{Asked, Lead, Pending, Proposed, Waiter};
use super::traces::{Traced, Waiting};
use super::{Core, EntryOutcome, Machine};
use crate::wire::{AskId, NodeMessage};
use paxos::{GroupId, Slot, Time};
use shardkv::codec;
use shardkv::command::{Batch, Command, Outcome};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::Op;
use shardkv::request::{OpError, Reply, ReplyBody, RequestBody};
use shardkv::store::Store;
use shardkv::types::{Epoch, Keys, Revision, ShardId};
use shardmaster::MasterOutcome;

/// Requests to the sequencer outstanding per group.
const ASKS_MAX: usize = 4;
/// Commands of the shardmaster's log under way; those who ask for more are refused.
pub(super) const MASTER_PROPOSALS_MAX: usize = 1024;
/// An unanswered request to the sequencer is given up and made anew after this.
const ASK_TIMEOUT_MICROS: u64 = 300_000;

/// The entry, who waits for its commands, and which of them are followed.
fn stamp_commands(batch: Vec<Pending>, first: Revision, asked: Time) -> (Batch, Vec<(Waiter, u64)>, Vec<Traced>) {
    let traces = batch.iter().filter_map(|pending| Some(Traced::new(pending.trace?, asked))).collect();
    let mut commands = Vec::with_capacity(batch.len());
    let mut waiters = Vec::with_capacity(batch.len());
    for (offset, pending) in batch.into_iter().enumerate() {
        let mut command = pending.command;
        match &mut command {
            Command::Write { revision, .. } | Command::Activate { revision, .. } | Command::Freeze { revision, .. } => {
                *revision = Revision(first.0 + offset as u64)
            }
            // They write nothing at a revision of their own; their numbers stay gaps.
            Command::Compact { .. }
            | Command::Depart { .. }
            | Command::Stay { .. }
            | Command::Drop { .. }
            | Command::Arrive { .. }
            | Command::Import { .. }
            | Command::Discard { .. }
            | Command::Reshape { .. } => {}
        }
        commands.push(command);
        waiters.push((pending.waiter, pending.index));
    }
    (Batch { commands }, waiters, traces)
}

impl<S: Store> Core<S> {
    /// Begins or ends this node's term as a group's leader, as its replica says.
    pub(super) fn follow_leadership(&mut self, now: Time, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let leading = group.replica.leading();
        if group.lead.as_ref().map(|lead| lead.ballot) == leading {
            return;
        }
        let noop = group.replica.next_slot().prev();
        let ended = group.lead.take();
        if let Some(ballot) = leading {
            self.terms += 1;
            group.tally.terms_led += 1;
            group.lead = Some(Lead::new(ballot, self.terms, noop, now));
        }
        if self.is_master(id) {
            self.sequencer = None;
        }
        if let Some(ended) = ended {
            self.end_term(id, ended);
        }
    }

    /// What was proposed has an unknown outcome; what was not was never done.
    pub(super) fn end_term(&mut self, id: GroupId, lead: Lead) {
        for (waiter, _) in lead.proposed.into_iter().flat_map(|proposed| proposed.waiters) {
            self.answer(waiter, ReplyBody::Lost);
        }
        let hint = self.hint(id);
        let unproposed = lead.asked.into_iter().flat_map(|asked| asked.batch).chain(lead.inbox);
        for pending in unproposed {
            self.answer(pending.waiter, ReplyBody::NotLeader { hint });
        }
        let reads = lead.reads.into_values().flatten().chain(lead.unleased);
        for read in reads {
            self.answer(Waiter::Gateway(read.token, read.request.id), ReplyBody::NotLeader { hint });
        }
        for (_, token, reply) in lead.confirming {
            self.answer(Waiter::Gateway(token, reply.id), ReplyBody::NotLeader { hint });
        }
    }

    pub(super) fn answer(&mut self, waiter: Waiter, body: ReplyBody) {
        if let Waiter::Gateway(token, id) = waiter {
            let reply = self.reply(id, body);
            self.out.replies.push((token, reply));
        }
    }

    /// An answer, with what this node knows beside it.
    pub(super) fn reply(&self, id: u64, body: ReplyBody) -> Reply {
        Reply { id, known: self.known, map_version: self.map.version, body }
    }

    /// A request to log a write.
    pub(super) fn write(&mut self, now: Time, token: u64, request: shardkv::request::Request) {
        let waiter = Waiter::Gateway(token, request.id);
        let trace = request.trace.map(|context| Waiting { context, arrived: now });
        let RequestBody::Write { shard, epoch, also, session, op } = request.body else { return };
        let bytes = approximate_bytes(&op);
        let counted: Vec<ShardId> = std::iter::once(shard).chain(also.iter().map(|(shard, _)| *shard)).collect();
        let frozen = self.is_frozen(request.group, shard, &also);
        let command = Command::Write { revision: Revision(0), shard, epoch, also, session, op };
        let refusal = match self.ready_lead(request.group).err() {
            Some(refusal) => Some(refusal),
            None if self.no_space => Some(ReplyBody::Failed(OpError::NoSpace)),
            // It would be refused when it is applied; the log, and the shard's last pieces in it, have better to do.
            None if frozen => Some(ReplyBody::WrongShard),
            None => self.overloaded(request.group, bytes).then_some(ReplyBody::Failed(OpError::Overloaded)),
        };
        if let Some(refusal) = refusal {
            if let (ReplyBody::Failed(_), Some(group)) = (&refusal, self.groups.get_mut(&request.group)) {
                group.tally.refused += 1;
            }
            self.answer(waiter, refusal);
            return;
        }
        if let Some(lead) = self.groups.get_mut(&request.group).and_then(|group| group.lead.as_mut()) {
            if let Command::Write { op, .. } = &command {
                self.meter.count(counted.into_iter(), op, true);
            }
            lead.enqueue_traced(waiter, command, bytes, trace);
            self.busy.insert(request.group);
        }
    }

    /// Whether a shard of these has ended here, as far as this leader has applied: only the log can undo that.
    fn is_frozen(&self, id: GroupId, shard: ShardId, also: &[(ShardId, Epoch)]) -> bool {
        let Some(Machine::Data(reader)) = self.groups.get(&id).map(|group| &group.machine) else { return false };
        let named: Vec<(ShardId, Epoch)> = std::iter::once((shard, Epoch(0))).chain(also.iter().copied()).collect();
        reader.frozen(&named).is_some()
    }

    pub(super) fn overloaded(&self, id: GroupId, bytes: usize) -> bool {
        let limits = &self.config.limits;
        self.groups.get(&id).is_some_and(|group| {
            let waiting = group.lead.as_ref().map_or(0, |lead| lead.inbox_bytes);
            waiting + bytes > limits.inbox_bytes_max || group.applying_bytes > limits.apply_lag_bytes_max
        })
    }

    /// The term of a leader that serves, or what to answer instead. One that reaches no majority does not: it would keep
    /// its callers waiting while others lead.
    pub(super) fn ready_lead(&mut self, id: GroupId) -> Result<&mut Lead, ReplyBody> {
        let (hint, content) = (self.hint(id), self.is_content(id));
        let group = self.groups.get_mut(&id).ok_or(ReplyBody::NotLeader { hint })?;
        match group.lead.as_mut() {
            Some(lead) if lead.ready && !lead.is_draining() && content => Ok(lead),
            Some(_) | None => Err(ReplyBody::NotLeader { hint }),
        }
    }

    /// Stamps and proposes what has gathered, as far as the pipeline has room.
    pub(super) fn stamp(&mut self, now: Time, id: GroupId) {
        if self.is_master(id) {
            self.sequence(now);
        } else {
            self.carry_moves(now, id);
            self.propose_upkeep(id);
        }
        loop {
            let in_flight_max = self.config.limits.proposals_max;
            let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) else { return };
            let room = lead.proposed.len() + lead.asked.len() < in_flight_max && lead.asked.len() < ASKS_MAX;
            if !lead.ready || lead.is_draining() || lead.inbox.is_empty() || !room {
                break;
            }
            let in_order = lead.asked.is_empty();
            let batch = lead.take_batch(&self.config.limits);
            if let Some(first) = in_order.then(|| self.take_here(now, batch.len() as u64)).flatten() {
                self.stamped(id, 0);
                self.propose_batch(now, id, batch, first, now);
                continue;
            }
            let asked = self.ask_sequencer(now, id, batch);
            if !asked {
                break;
            }
        }
        self.confirmed(id);
        self.release_reads(now, id);
    }

    /// Asks the sequencer's node for revisions; without one the batch goes back in line.
    fn ask_sequencer(&mut self, now: Time, id: GroupId, batch: Vec<Pending>) -> bool {
        let sequencer = self.leader_of(SHARDMASTER_GROUP);
        let me = self.config.me;
        let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) else { return false };
        let Some(node) = sequencer else {
            lead.put_back(batch);
            return false;
        };
        lead.asks += 1;
        let (ask, count) = (AskId { group: id, term: lead.term, number: lead.asks }, batch.len() as u64);
        lead.asked.push_back(Asked { number: ask.number, sent_at: now, first: None, batch });
        if node == me {
            self.take_asked(now, me, ask, count);
        } else {
            self.out.send.push((node, NodeMessage::Take { ask, count }));
        }
        true
    }

    /// The sequencer answered. Answers count in the order of the requests.
    pub(super) fn taken(&mut self, now: Time, ask: AskId, first: Revision) {
        let Some(lead) = self.groups.get_mut(&ask.group).and_then(|group| group.lead.as_mut()) else { return };
        if lead.term != ask.term {
            return;
        }
        let Some(asked) = lead.asked.iter_mut().find(|asked| asked.number == ask.number) else { return };
        asked.first = Some(first);
        self.known = self.known.max(Revision(first.0 + asked.batch.len() as u64 - 1));
        while let Some(lead) = self.groups.get_mut(&ask.group).and_then(|group| group.lead.as_mut()) {
            let Some(first) = lead.asked.front().and_then(|asked| asked.first) else { break };
            let Some(asked) = lead.asked.pop_front() else { break };
            if first <= lead.last_stamp || first <= lead.closed {
                // Overtaken: these numbers are no longer above everything stamped or closed. What was asked
                // for later goes back in line, too: `done` counts on the log's order being that of arrival.
                lead.asked.push_front(asked);
                while let Some(asked) = lead.asked.pop_back() {
                    lead.put_back(asked.batch);
                }
                break;
            }
            self.stamped(ask.group, now.since(asked.sent_at));
            self.propose_batch(now, ask.group, asked.batch, first, asked.sent_at);
        }
        self.busy.insert(ask.group);
    }

    fn stamped(&mut self, id: GroupId, micros: u64) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.tally.stamp_micros.record(micros);
        }
    }

    fn propose_batch(&mut self, now: Time, id: GroupId, batch: Vec<Pending>, first: Revision, asked: Time) {
        let last = Revision(first.0 + batch.len() as u64 - 1);
        let (batch, waiters, traces) = stamp_commands(batch, first, asked);
        let contexts = traces.iter().map(|trace| trace.waiting.context).collect();
        let entry = codec::encode(&batch);
        let Some(group) = self.groups.get_mut(&id) else { return };
        let slot = group.replica.next_slot();
        let Some(lead) = group.lead.as_mut() else { return };
        assert!(
            first > lead.last_stamp && first > lead.closed,
            "stamp {first} not above {} and {}",
            lead.last_stamp,
            lead.closed
        );
        lead.last_stamp = last;
        group.tally.batch_commands.record(waiters.len() as u64);
        group.tally.batch_bytes.record(entry.len() as u64);
        lead.proposed.push_back(Proposed { slot, since: now, waiters, traces });
        self.step(now, id, paxos::Input::Propose(entry));
        self.tell_traces(id, slot, contexts);
    }

    /// Entries were applied: answers those who wait, and lets reads go on.
    pub(super) fn settle(&mut self, now: Time, id: GroupId, first: Slot, outcomes: Vec<EntryOutcome>) {
        let (mut answers, mut complete) = (Vec::new(), Vec::new());
        let Some(group) = self.groups.get_mut(&id) else { return };
        let applied = group.applied;
        let revision = match &group.machine {
            Machine::Data(reader) => reader.applied().1,
            Machine::Master(_) => Revision(0),
        };
        self.known = self.known.max(revision);
        let Some(lead) = group.lead.as_mut() else { return };
        if !lead.ready && applied >= lead.noop {
            lead.ready = true;
            lead.last_stamp = lead.last_stamp.max(revision);
        }
        for (offset, outcome) in outcomes.into_iter().enumerate() {
            let slot = Slot(first.0 + offset as u64);
            if lead.proposed.front().is_none_or(|proposed| proposed.slot != slot) {
                continue;
            }
            let Some(proposed) = lead.proposed.pop_front() else { continue };
            group.tally.commit_micros.record(now.since(proposed.since));
            if let Some((_, index)) = proposed.waiters.last() {
                lead.done = lead.done.max(*index);
            }
            if !proposed.traces.is_empty() {
                complete.push(Proposed { slot, since: proposed.since, waiters: Vec::new(), traces: proposed.traces });
            }
            answers.extend(pair(proposed.waiters, outcome));
        }
        for proposed in complete {
            self.traces_applied(now, id, &proposed);
        }
        for (waiter, body) in answers {
            self.answer(waiter, body);
        }
        self.busy.insert(id);
    }

    /// Requests to the sequencer that nobody answered are made anew, in order.
    pub(super) fn ask_anew(&mut self, now: Time, id: GroupId) {
        let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) else { return };
        if lead.asked.front().is_none_or(|asked| now.since(asked.sent_at) < ASK_TIMEOUT_MICROS) {
            return;
        }
        while let Some(asked) = lead.asked.pop_back() {
            lead.put_back(asked.batch);
        }
        self.busy.insert(id);
    }

    /// A command of the shardmaster's log that somebody asks for, unless too many are under way.
    pub(super) fn ask_master(&mut self, now: Time, waiter: Waiter, command: &shardmaster::MasterCommand) {
        match self.ready_lead(SHARDMASTER_GROUP).map(|lead| lead.proposed.len()) {
            Ok(under_way) if under_way >= MASTER_PROPOSALS_MAX => {
                self.answer(waiter, ReplyBody::Failed(OpError::Overloaded));
            }
            Ok(_) => self.propose_master(now, waiter, command),
            Err(refusal) => self.answer(waiter, refusal),
        }
    }

    /// What a node reports until the map says so: a command of the shardmaster's log, unless too many are under way.
    pub(super) fn note_master(&mut self, now: Time, command: &shardmaster::MasterCommand) {
        if self.ready_lead(SHARDMASTER_GROUP).is_ok_and(|lead| lead.proposed.len() < MASTER_PROPOSALS_MAX) {
            self.propose_master(now, Waiter::Nobody, command);
        }
    }

    /// A command of the shardmaster's log, whatever else is under way.
    pub(super) fn propose_master(&mut self, now: Time, waiter: Waiter, command: &shardmaster::MasterCommand) {
        let Some(group) = self.groups.get_mut(&SHARDMASTER_GROUP) else { return };
        let slot = group.replica.next_slot();
        let Some(lead) = group.lead.as_mut() else { return };
        lead.arrived += 1;
        lead.proposed.push_back(Proposed {
            slot,
            since: now,
            waiters: vec![(waiter, lead.arrived)],
            traces: Vec::new(),
        });
        let entry = codec::encode(command);
        self.step(now, SHARDMASTER_GROUP, paxos::Input::Propose(entry));
    }
}

/// Pairs the outcomes of an entry with who waits for them.
fn pair(waiters: Vec<(Waiter, u64)>, outcome: EntryOutcome) -> Vec<(Waiter, ReplyBody)> {
    match outcome {
        EntryOutcome::Data(outcomes) if outcomes.len() == waiters.len() => {
            waiters.into_iter().map(|(waiter, _)| waiter).zip(outcomes.into_iter().map(reply_body)).collect()
        }
        EntryOutcome::Data(_) => waiters.into_iter().map(|(waiter, _)| (waiter, ReplyBody::Lost)).collect(),
        EntryOutcome::Master(outcome) => {
            waiters.into_iter().map(|(waiter, _)| (waiter, master_body(outcome.clone()))).collect()
        }
    }
}

fn reply_body(outcome: Outcome) -> ReplyBody {
    match outcome {
        Outcome::Done { revision, result } => ReplyBody::Done { revision, result },
        Outcome::WrongShard => ReplyBody::WrongShard,
        Outcome::Failed(error) => ReplyBody::Failed(error),
        Outcome::Activated | Outcome::Moved | Outcome::Compacted => ReplyBody::Logged,
        Outcome::Malformed(what) => ReplyBody::Failed(OpError::Malformed(what)),
    }
}

fn master_body(outcome: MasterOutcome) -> ReplyBody {
    match outcome {
        MasterOutcome::Applied | MasterOutcome::Nothing => ReplyBody::Logged,
        MasterOutcome::Node(node) => ReplyBody::Node(node),
        MasterOutcome::Group(group) => ReplyBody::Group(group),
        MasterOutcome::Move(mv) => ReplyBody::Move(mv),
        MasterOutcome::Failed(error) => ReplyBody::Failed(error),
        MasterOutcome::Malformed(what) => ReplyBody::Failed(OpError::Malformed(what)),
    }
}

/// About how many bytes an operation takes in the log.
fn approximate_bytes(op: &Op) -> usize {
    let mut bytes = 64;
    op.for_each_put(&mut |put| bytes += put.key.len() + put.value.len() + 16);
    op.for_each_keys(&mut |keys, _| {
        bytes += 16
            + match keys {
                Keys::One(key) | Keys::From(key) => key.len(),
                Keys::Range { start, end } => start.len() + end.len(),
            };
    });
    bytes
}
