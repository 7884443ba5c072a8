//! Requests that are followed: when each stage of their way through this node began and ended.
//!
//! Few requests are (a gateway chooses one in a hundred, say), and those that are not cost nothing here.
//! Nothing in the core depends on what is noted; whoever hosts it makes spans of it.

use super::lead::Proposed;
use super::reads::WaitingRead;
use super::{Core, Group};
use crate::wire::NodeMessage;
use paxos::{GroupId, Slot, Time};
use shardkv::request::TraceContext;
use shardkv::store::Store;
use std::collections::VecDeque;

/// Entries of other leaders that are followed at once; more are not.
const FOLLOWED_MAX: usize = 256;

/// A stage of a request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A write waits in line at its leader.
    Queue,
    /// Its batch waits for revisions from the sequencer.
    Stamp,
    /// Its entry is made durable in this node's log: the leader's, or another replica's.
    Log,
    /// From the entry's proposal until a quorum has it.
    Quorum,
    /// From there until it is applied at the leader.
    Apply,
    /// A read at its leader, from its arrival to its answer.
    Read,
}

impl Stage {
    /// Its name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::Stamp => "stamp",
            Stage::Log => "log.sync",
            Stage::Quorum => "quorum",
            Stage::Apply => "apply",
            Stage::Read => "read",
        }
    }
}

/// A stage that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub context: TraceContext,
    /// Which.
    pub stage: Stage,
    /// The group concerned, and the entry's slot if there is one.
    pub group: GroupId,
    /// See above.
    pub slot: Option<Slot>,
    /// From when to when, by the core's clock.
    pub begin: Time,
    /// See above.
    pub end: Time,
}

/// A write that is followed, in line at its leader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) context: TraceContext,
    pub(super) arrived: Time,
}

/// A write that is followed, and proposed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traced {
    pub(super) waiting: Waiting,
    /// When its revision was asked for.
    pub(super) asked: Time,
    /// Under which its entry is logged here.
    ticket: u64,
    /// When its entry was durable here, and decided.
    logged: Option<Time>,
    decided: Option<Time>,
}

impl Traced {
    pub(super) fn new(waiting: Waiting, asked: Time) -> Traced {
        Traced { waiting, asked, ticket: u64::MAX, logged: None, decided: None }
    }
}

/// An entry of another node's, until it is durable here.
#[derive(Debug)]
struct Followed {
    ticket: u64,
    group: GroupId,
    slot: Slot,
    contexts: Vec<TraceContext>,
    since: Time,
}

/// What is followed here and led elsewhere.
#[derive(Debug, Default)]
pub(super) struct FollowedEntries(VecDeque<Followed>);

fn traced<S: Store>(group: &mut Group<S>) -> impl Iterator<Item = (Slot, &mut Traced)> {
    let proposed = group.lead.iter_mut().flat_map(|lead| lead.proposed.iter_mut());
    proposed.flat_map(|Proposed { slot, traces, .. }| {
        let slot = *slot;
        traces.iter_mut().map(move |trace| (slot, trace))
    })
}

impl<S: Store> Core<S> {
    /// Tells the other replicas whose writes an entry holds that was just proposed.
    pub(super) fn tell_traces(&mut self, id: GroupId, slot: Slot, contexts: Vec<TraceContext>) {
        let Some(group) = self.groups.get_mut(&id).filter(|_| !contexts.is_empty()) else { return };
        let ticket = group.last_ticket;
        traced(group).filter(|(at, _)| *at == slot).for_each(|(_, trace)| trace.ticket = ticket);
        let peers = group.replica.replicas().iter().copied().filter(|node| *node != self.config.me);
        let message = |node| (node, NodeMessage::Follow { group: id, slot, contexts: contexts.clone() });
        self.out.send.extend(peers.map(message));
    }

    /// Another node's entry, which came just before this, is followed.
    pub(super) fn follow_entry(&mut self, now: Time, id: GroupId, slot: Slot, contexts: Vec<TraceContext>) {
        let Some(group) = self.groups.get(&id) else { return };
        let ticket = group.last_ticket;
        if ticket > self.durable_ticket && self.followed.0.len() < FOLLOWED_MAX {
            self.followed.0.push_back(Followed { ticket, group: id, slot, contexts, since: now });
        }
    }

    /// What was logged under this ticket is durable.
    pub(super) fn traces_durable(&mut self, now: Time, ticket: u64) {
        while let Some(entry) = self.followed.0.pop_front_if(|entry| entry.ticket <= ticket) {
            let Followed { group, slot, contexts, since, .. } = entry;
            let span = |context| Span { context, stage: Stage::Log, group, slot: Some(slot), begin: since, end: now };
            self.out.spans.extend(contexts.into_iter().map(span));
        }
    }

    /// What this leader has logged under tickets up to this one is durable here.
    pub(super) fn traces_logged(&mut self, now: Time, id: GroupId, ticket: u64) {
        if let Some(group) = self.groups.get_mut(&id) {
            let logged = traced(group).filter(|(_, trace)| trace.ticket <= ticket && trace.logged.is_none());
            logged.for_each(|(_, trace)| trace.logged = Some(now));
        }
    }

    /// A quorum has the entries up to `slot`.
    pub(super) fn traces_decided(&mut self, now: Time, id: GroupId, slot: Slot) {
        if let Some(group) = self.groups.get_mut(&id) {
            let decided = traced(group).filter(|(at, trace)| *at <= slot && trace.decided.is_none());
            decided.for_each(|(_, trace)| trace.decided = Some(now));
        }
    }

    /// An entry is applied: the ways of its writes are complete.
    pub(super) fn traces_applied(&mut self, now: Time, group: GroupId, proposed: &Proposed) {
        for trace in &proposed.traces {
            let Traced { waiting: Waiting { context, arrived }, asked, logged, decided, .. } = *trace;
            let (since, decided) = (proposed.since, decided.unwrap_or(now));
            let mut note = |stage, begin, end| {
                let slot = Some(proposed.slot);
                self.out.spans.push(Span { context, stage, group, slot, begin, end });
            };
            note(Stage::Queue, arrived, asked);
            note(Stage::Stamp, asked, since);
            note(Stage::Log, since, logged.unwrap_or(decided));
            note(Stage::Quorum, since, decided);
            note(Stage::Apply, decided, now);
        }
    }

    /// A read is answered.
    pub(super) fn trace_read(&mut self, now: Time, group: GroupId, read: &WaitingRead) {
        if let Some(context) = read.request.trace {
            let begin = Time(read.expires.0.saturating_sub(read.request.patience_micros));
            self.out.spans.push(Span { context, stage: Stage::Read, group, slot: None, begin, end: now });
        }
    }
}
