//! The gateway's machine: calls and replies in, requests and answers out.

use crate::call::{Answer, AnswerBody, Call, CallError, GatewayConfig, Input, Outputs, Status};
use crate::core::{Attempt, Core, NEVER, Owner};
use crate::merge::op_bytes;
use crate::pending::{Cx, Next, Pending};
use paxos::{NodeId, Time};
use shardkv::map::{SHARDMASTER_GROUP, ShardMap};
use shardkv::request::{Reply, ReplyBody, TraceContext};
use shardkv::types::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Routes calls to the groups' leaders, retries them within their deadlines, and puts the answers
/// together. One door: [`Gateway::step`].
#[derive(Debug)]
pub struct Gateway {
    core: Core,
    calls: BTreeMap<u64, Pending>,
}

impl Gateway {
    /// A gateway that knows nothing yet but whom to ask.
    pub fn new(config: GatewayConfig) -> Gateway {
        Gateway { core: Core::new(config), calls: BTreeMap::new() }
    }

    /// Takes one input and says what is to be done. `now` never falls.
    pub fn step(&mut self, now: Time, input: Input) -> Outputs {
        let mut out = Outputs::default();
        self.step_into(now, input, &mut out);
        out
    }

    /// Like [`Gateway::step`], adding to what earlier inputs of the same batch wanted done.
    pub fn step_into(&mut self, now: Time, input: Input, out: &mut Outputs) {
        match input {
            Input::Call { token, call, deadline, trace } => self.on_call(now, token, call, deadline, trace, out),
            Input::Cancel { token } => {
                if let Some(pending) = self.calls.remove(&token) {
                    pending.release(token, &mut self.core);
                }
            }
            Input::Reply { from, reply } => self.on_reply(now, from, reply, out),
            Input::NodeDown { node } => self.on_node_down(now, node, out),
            Input::Tick => {}
        }
        self.fire_timers(now, out);
        let timer = self.core.timers.first().map_or(NEVER, |(time, _)| *time);
        out.wake_at = Some(timer.min(self.core.asks_map_at())).filter(|wake| *wake != NEVER);
    }

    /// The map it routes by, if it has one yet.
    pub fn map(&self) -> Option<&Arc<ShardMap>> {
        self.core.router.map()
    }

    /// What the gateway knows itself.
    pub fn status(&self) -> Status {
        Status {
            map: self.core.router.map().cloned(),
            shardmaster_leader: self.core.router.known_leader(SHARDMASTER_GROUP),
            calls: self.calls.len(),
            bytes: self.core.bytes,
            retries: self.core.retries,
            stray_replies: self.core.strays,
        }
    }

    /// The newest number that the sequencer is known to have handed out.
    pub fn known(&self) -> Revision {
        self.core.known
    }

    fn on_call(
        &mut self,
        now: Time,
        token: u64,
        call: Call,
        deadline: Time,
        trace: Option<TraceContext>,
        out: &mut Outputs,
    ) {
        assert!(!self.calls.contains_key(&token), "token {token} is in use by a call in flight");
        if call == Call::Status {
            let body = AnswerBody::Status(self.status());
            out.answers.push((token, Ok(Answer { revision: self.core.known, body })));
            return;
        }
        let bytes = size_of::<Pending>()
            + match &call {
                Call::Op { op, .. } => op_bytes(op),
                Call::ChangeMembers { members, .. } => members.len() * size_of::<NodeId>(),
                Call::AddNode { name, peer_address, .. } => name.len() + peer_address.len(),
                _ => 0,
            };
        let config = &self.core.config;
        if self.calls.len() >= config.calls_max || self.core.bytes + bytes > config.bytes_max {
            out.answers.push((token, Err(CallError::Overloaded)));
            return;
        }
        if deadline <= now {
            out.answers.push((token, Err(CallError::NOTHING_DONE)));
            return;
        }
        self.core.refresh(now, out);
        self.core.bytes += bytes;
        self.calls.insert(token, Pending::new(call, deadline, bytes, trace));
        self.with_call(now, token, out, Pending::start);
    }

    /// Runs `f` on a call in flight, and finishes the call or sets its timer.
    fn with_call(
        &mut self,
        now: Time,
        token: u64,
        out: &mut Outputs,
        f: impl FnOnce(&mut Pending, &mut Cx<'_>) -> Next,
    ) {
        let Some(pending) = self.calls.get_mut(&token) else { return };
        match f(pending, &mut Cx { core: &mut self.core, out, now, token }) {
            Next::Wait => pending.rearm(token, &mut self.core),
            Next::Finish(result) => {
                if let Some(pending) = self.calls.remove(&token) {
                    pending.release(token, &mut self.core);
                }
                out.answers.push((token, result));
            }
        }
    }

    fn on_reply(&mut self, now: Time, from: NodeId, reply: Reply, out: &mut Outputs) {
        self.core.learn(reply.known, now);
        self.core.heard_of_map(reply.map_version, now, out);
        if let ReplyBody::Done { revision, .. } | ReplyBody::Current { revision } = &reply.body {
            self.core.learn(*revision, now);
        }
        // An id serves once: a duplicate finds nothing. A reply from elsewhere than where the
        // request went is not an answer to it.
        let Some(attempt) = self.core.attempts.get(&reply.id).copied().filter(|attempt| attempt.node == from) else {
            self.core.strays += 1;
            return;
        };
        self.core.attempts.remove(&reply.id);
        match attempt.owner {
            Owner::Call(token) => {
                let Reply { id, body, .. } = reply;
                self.with_call(now, token, out, |call, cx| call.on_reply(id, attempt, body, cx));
            }
            owner @ (Owner::Sequencer | Owner::Map) => self.on_shared_reply(now, owner, attempt, reply, out),
        }
    }

    /// A reply to a question that many calls wait for.
    fn on_shared_reply(&mut self, now: Time, owner: Owner, attempt: Attempt, reply: Reply, out: &mut Outputs) {
        let shared = if owner == Owner::Map { &self.core.maps } else { &self.core.sequencer };
        if shared.part.current != Some(reply.id) {
            // An older attempt's: it began before some who now wait for the newest.
            self.core.strays += 1;
            return;
        }
        match (owner, reply.body) {
            (Owner::Sequencer, ReplyBody::Current { revision }) if revision > Revision(0) => {
                self.core.router.is_leader(SHARDMASTER_GROUP, attempt.node);
                self.core.refreshed(now);
                let waiting = self.core.sequencer.take_waiting();
                self.core.shared_done(owner, now, out);
                self.wake_all(now, waiting, out, |call, cx| call.on_revision(revision, cx));
            }
            (Owner::Map, ReplyBody::Map(map)) => {
                self.core.router.is_leader(SHARDMASTER_GROUP, attempt.node);
                if let Some(map) = map {
                    self.core.router.adopt(*map);
                }
                if self.core.router.map().is_none() {
                    // It has none to give yet (or an unsound one): a cluster that is being made.
                    self.core.shared_failed(owner, now, out);
                    return;
                }
                self.core.map_confirmed(now);
                let waiting = self.core.maps.take_waiting();
                self.core.shared_done(owner, now, out);
                self.wake_all(now, waiting, out, Pending::on_map);
            }
            (Owner::Map, ReplyBody::KnownMap { map, hint }) => {
                // It may name nodes, and where they are, that were unknown here; then the leader is asked.
                self.core.adopt_known(*map);
                self.core.router.not_leader(SHARDMASTER_GROUP, attempt.node, hint);
                self.core.shared_failed(owner, now, out);
            }
            (_, ReplyBody::NotLeader { hint }) => {
                self.core.router.not_leader(SHARDMASTER_GROUP, attempt.node, hint);
                self.core.shared_failed(owner, now, out);
            }
            _ => self.core.shared_failed(owner, now, out),
        }
    }

    fn wake_all(
        &mut self,
        now: Time,
        tokens: BTreeSet<u64>,
        out: &mut Outputs,
        f: impl Fn(&mut Pending, &mut Cx<'_>) -> Next,
    ) {
        for token in tokens {
            self.with_call(now, token, out, &f);
        }
    }

    fn on_node_down(&mut self, now: Time, node: NodeId, out: &mut Outputs) {
        self.core.router.unreachable(node);
        let there: Vec<(u64, Owner)> = self
            .core
            .attempts
            .iter()
            .filter(|(_, attempt)| attempt.node == node)
            .map(|(id, attempt)| (*id, attempt.owner))
            .collect();
        for (id, owner) in there {
            match owner {
                Owner::Call(token) => self.with_call(now, token, out, |call, cx| call.on_node_down(id, cx)),
                Owner::Sequencer if self.core.sequencer.part.current == Some(id) => {
                    self.core.attempts.remove(&id);
                    self.core.shared_failed(owner, now, out);
                }
                Owner::Map if self.core.maps.part.current == Some(id) => {
                    self.core.attempts.remove(&id);
                    self.core.shared_failed(owner, now, out);
                }
                Owner::Sequencer | Owner::Map => {
                    self.core.attempts.remove(&id);
                }
            }
        }
    }

    /// Does what is due. Every timer that fires is moved behind `now` or removed, so this ends.
    fn fire_timers(&mut self, now: Time, out: &mut Outputs) {
        if self.core.asks_map_at() <= now {
            self.core.ask_map(None, now, out);
        }
        while let Some((time, owner)) = self.core.timers.first().copied()
            && time <= now
        {
            match owner {
                Owner::Call(token) => self.with_call(now, token, out, Pending::on_timer),
                Owner::Sequencer | Owner::Map => self.on_shared_timer(now, owner, out),
            }
        }
    }

    fn on_shared_timer(&mut self, now: Time, owner: Owner, out: &mut Outputs) {
        let shared = if owner == Owner::Map { &self.core.maps } else { &self.core.sequencer };
        match shared.part.current.and_then(|id| self.core.attempts.remove(&id)) {
            Some(attempt) => {
                self.core.router.not_leader(SHARDMASTER_GROUP, attempt.node, None);
                self.core.shared_timed_out(owner, now, out);
            }
            None => self.core.send_shared(owner, now, out),
        }
    }
}
