//! A client's call in flight: which groups it asks, what it makes of their replies.
//!
//! A call goes through stages: it may first need a shard map or a number from the sequencer, then
//! it asks one or several groups until each part is answered. What decides its outcome:
//!
//! - A write keeps its session tag for all attempts. `Done` of *any* attempt is its answer, however
//!   late. A failure is its answer only if no other attempt can have been, or can still be, carried
//!   out; otherwise the outcome is unknown and the call says so.
//! - A read over several groups reads all at one revision R, taken from the sequencer after the call
//!   arrived. If a shard moves meanwhile the whole read starts over: parts planned by different
//!   maps may overlap.

mod question;
mod replies;

use self::question::{Question, compaction_shares, newest_named, over_groups};
use crate::call::{Answer, AnswerBody, Call, CallError, Outputs};
use crate::core::{Ask, Core, NEVER, Owner, Part, Route};
use crate::routing::GroupShare;
use crate::session::Tag;
use paxos::Time;
use shardkv::ops::{Op, RangeResult};
use shardkv::request::{OpError, TraceContext};
use shardkv::types::Revision;

/// How often a command may open a new session because a shard has evicted the last one.
const RENEWALS_MAX: u32 = 8;

/// What a call is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for a shard map; no group can be asked without one.
    NeedMap,
    /// Waits for a number that the sequencer hands out after now.
    NeedRevision,
    /// Asks the groups.
    Asking,
}

/// Whether a call goes on.
#[must_use]
pub(crate) enum Next {
    Wait,
    Finish(Result<Answer, CallError>),
}

/// What a call's methods work with.
pub(crate) struct Cx<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) out: &'a mut Outputs,
    pub(crate) now: Time,
    pub(crate) token: u64,
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Pending {
    call: Call,
    /// If it is followed.
    trace: Option<TraceContext>,
    deadline: Time,
    /// Counted in [`Core::bytes`].
    pub(crate) bytes: usize,
    stage: Stage,
    parts: Vec<Part>,
    /// Of the parts that are answered.
    results: Vec<Option<(Revision, RangeResult)>>,
    /// Bytes of those results.
    result_bytes: usize,
    /// The map that the parts were planned by.
    map_version: u64,
    /// Of a write, from its first attempt on.
    tag: Option<Tag>,
    renewals: u32,
    /// Earlier attempts whose outcome is unknown: they may have been carried out, or may still be.
    unresolved: u32,
    /// Every attempt that is still in [`Core::attempts`].
    attempts: Vec<u64>,
    /// Attempts of parts that were planned before and given up, and how many took too long; the budget is the call's.
    spent: (u32, u32),
    /// The sequencer's number taken for this call.
    revision: Option<Revision>,
    /// A compaction that the shardmaster has logged.
    logged: bool,
    /// Its entry in [`Core::timers`].
    timer: Time,
}

impl Pending {
    pub(crate) fn new(call: Call, deadline: Time, bytes: usize, trace: Option<TraceContext>) -> Pending {
        Pending {
            call,
            trace,
            deadline,
            bytes,
            stage: Stage::Asking,
            parts: Vec::new(),
            results: Vec::new(),
            result_bytes: 0,
            map_version: 0,
            tag: None,
            renewals: 0,
            unresolved: 0,
            attempts: Vec::new(),
            spent: (0, 0),
            revision: None,
            logged: false,
            timer: NEVER,
        }
    }

    fn is_write(&self) -> bool {
        matches!(&self.call, Call::Op { op, .. } if !op.is_read_only())
    }

    fn route(&self) -> Route {
        match &self.call {
            Call::Op { op, serializable: true } if op.is_read_only() => Route::AnyReplica,
            _ => Route::Leader,
        }
    }

    /// The revision that a range asks for explicitly.
    fn explicit_revision(&self) -> Option<Revision> {
        match self.op() {
            Some(Op::Range(range)) if range.revision > Revision(0) => Some(range.revision),
            Some(_) | None => None,
        }
    }

    /// Whether the call may have been carried out, or may still be.
    fn maybe_done(&self) -> bool {
        let logs = matches!(self.call, Call::Compact { .. }) || self.call.master_request().is_some();
        let changes = self.is_write() || logs;
        changes && (self.logged || self.unresolved > 0 || self.parts.iter().any(|part| part.current.is_some()))
    }

    fn unavailable(&self) -> Next {
        Next::Finish(Err(CallError::Unavailable { maybe_done: self.maybe_done() }))
    }

    /// Begins, or begins anew.
    pub(crate) fn start(&mut self, cx: &mut Cx<'_>) -> Next {
        if self.call == Call::Map || cx.core.router.map().is_none() {
            self.stage = Stage::NeedMap;
            cx.core.ask_map(Some(cx.token), cx.now, cx.out);
            return Next::Wait;
        }
        self.plan(cx)
    }

    /// A map has arrived that was asked for after this call came.
    pub(crate) fn on_map(&mut self, cx: &mut Cx<'_>) -> Next {
        if self.stage != Stage::NeedMap {
            return Next::Wait;
        }
        match (&self.call, cx.core.router.map()) {
            (Call::Map, Some(map)) => {
                let body = AnswerBody::Map(map.clone());
                Next::Finish(Ok(Answer { revision: cx.core.known, body }))
            }
            _ => self.start(cx),
        }
    }

    /// The sequencer handed out `revision` after this call came.
    pub(crate) fn on_revision(&mut self, revision: Revision, cx: &mut Cx<'_>) -> Next {
        if self.stage != Stage::NeedRevision {
            return Next::Wait;
        }
        self.revision = Some(revision);
        self.plan(cx)
    }

    fn need_revision(&mut self, cx: &mut Cx<'_>) -> Next {
        self.stage = Stage::NeedRevision;
        cx.core.ask_sequencer(Some(cx.token), cx.now, cx.out);
        Next::Wait
    }

    /// Decides which groups to ask, by the present map, and asks them.
    fn plan(&mut self, cx: &mut Cx<'_>) -> Next {
        self.map_version = cx.core.router.map_version();
        let shares = match &self.call {
            Call::Op { op, .. } => cx.core.router.shares(op),
            Call::Compact { .. } => Some(compaction_shares(self.logged, cx.core)),
            Call::Middle { shard } => Some(cx.core.router.share_of(*shard).into_iter().collect()),
            Call::Map | Call::Status => Some(Vec::new()),
            _ => Some(compaction_shares(false, cx.core)),
        };
        let Some(shares) = shares.filter(|shares| !shares.is_empty()) else { return self.unavailable() };
        if let Some(next) = self.check_plan(&shares, cx) {
            return next;
        }
        self.stage = Stage::Asking;
        if self.is_write() && self.tag.is_none() {
            let known = cx.core.known;
            self.tag = Some(cx.core.sessions.open(shares[0].group, cx.now, known, &mut cx.core.rng));
        }
        self.results = shares.iter().map(|_| None).collect();
        self.parts = shares.into_iter().map(Part::new).collect();
        self.parts.iter_mut().for_each(|part| (part.attempts, part.timeouts) = self.spent);
        self.ask_all(cx)
    }

    /// What has to come before the groups are asked, or why they cannot be.
    fn check_plan(&mut self, shares: &[GroupShare], cx: &mut Cx<'_>) -> Option<Next> {
        let Call::Op { op, .. } = &self.call else { return None };
        if shares.len() > 1 && !matches!(op, Op::Range(_)) {
            // An earlier attempt may have found the keys together and done it.
            let error = match self.maybe_done() {
                true => CallError::MAYBE_DONE,
                false => CallError::Unimplemented(over_groups(shares)),
            };
            return Some(Next::Finish(Err(error)));
        }
        if self.is_write() {
            // A session is born at a number of the sequencer.
            let needs = self.tag.is_none() && (cx.core.known == Revision(0) || self.renewals > 0);
            return (needs && self.revision.is_none()).then(|| self.need_revision(cx));
        }
        let newest_named = newest_named(op);
        if self.route() == Route::AnyReplica && newest_named <= cx.core.known {
            return None;
        }
        let Some(revision) = self.revision else {
            // A range over groups needs one revision for all; a revision that nobody has told us of
            // may lie in the future, and a leader takes our word only for what the sequencer said.
            let merged = shares.len() > 1 && self.route() == Route::Leader;
            let needs = merged || newest_named > cx.core.known;
            return needs.then(|| self.need_revision(cx));
        };
        // Of a transaction that only reads, either branch counts: whichever runs, its revisions exist.
        (newest_named > revision.max(cx.core.known))
            .then(|| Next::Finish(Err(OpError::FutureRevision { current: revision }.into())))
    }

    fn ask_all(&mut self, cx: &mut Cx<'_>) -> Next {
        for index in 0..self.parts.len() {
            if let Next::Finish(result) = self.ask(index, cx) {
                return Next::Finish(result);
            }
        }
        Next::Wait
    }

    /// Sends the next attempt of one part.
    fn ask(&mut self, index: usize, cx: &mut Cx<'_>) -> Next {
        if self.parts[index].attempts >= cx.core.config.attempts_max {
            return self.unavailable();
        }
        let patience_micros = self.deadline.since(cx.now);
        let ask =
            Ask { owner: Owner::Call(cx.token), part: index, route: self.route(), patience_micros, trace: self.trace };
        let question = Question {
            call: &self.call,
            tag: self.tag,
            revision: self.revision.filter(|_| self.parts.len() > 1),
            is_merged: self.parts.len() > 1,
            logged: self.logged,
        };
        let part = &mut self.parts[index];
        if cx.core.send(ask, part, cx.now, cx.out, |core, share| question.body(core, share)) {
            self.attempts.extend(part.current);
        }
        Next::Wait
    }

    /// The call's timer fired: its deadline, an attempt's timeout or the end of a pause.
    pub(crate) fn on_timer(&mut self, cx: &mut Cx<'_>) -> Next {
        if cx.now >= self.deadline {
            return self.unavailable();
        }
        for index in 0..self.parts.len() {
            let Some(part) = self.parts.get(index).filter(|part| part.wake <= cx.now) else { continue };
            if let Some(id) = part.current {
                if let Some(attempt) = cx.core.attempts.get(&id).copied()
                    && self.route() == Route::Leader
                {
                    cx.core.router.not_leader(attempt.group, attempt.node, None);
                }
                self.parts[index].timeouts += 1;
                self.give_up_attempt(index);
            }
            if let Next::Finish(result) = self.ask_again(index, cx) {
                return Next::Finish(result);
            }
        }
        Next::Wait
    }

    /// The newest attempt's outcome will perhaps never be known. Its id is kept: a late `Done` counts.
    fn give_up_attempt(&mut self, index: usize) {
        self.unresolved += 1;
        self.parts[index].current = None;
    }

    /// The stream broke under the newest attempt of a part.
    pub(crate) fn on_node_down(&mut self, id: u64, cx: &mut Cx<'_>) -> Next {
        let Some(index) = self.parts.iter().position(|part| part.current == Some(id)) else { return Next::Wait };
        self.give_up_attempt(index);
        self.retry(index, cx)
    }

    /// Asks a part again, at once or after a pause.
    fn retry(&mut self, index: usize, cx: &mut Cx<'_>) -> Next {
        if cx.core.again(&mut self.parts[index], cx.now, cx.out) { self.ask_again(index, cx) } else { Next::Wait }
    }

    fn pause(&mut self, index: usize, cx: &mut Cx<'_>) -> Next {
        cx.core.pause(&mut self.parts[index], cx.now, cx.out);
        Next::Wait
    }

    /// Asks a part again, by a new plan if the map has changed.
    fn ask_again(&mut self, index: usize, cx: &mut Cx<'_>) -> Next {
        if self.map_version == cx.core.router.map_version() {
            return self.ask(index, cx);
        }
        let shares = match &self.call {
            Call::Op { op, .. } => cx.core.router.shares(op),
            _ => None,
        };
        if shares.is_some_and(|shares| shares.iter().eq(self.parts.iter().map(|part| &part.share))) {
            self.map_version = cx.core.router.map_version();
            return self.ask(index, cx);
        }
        match &self.call {
            Call::Op { .. } if self.is_write() => self.replan_write(cx),
            Call::Op { .. } | Call::Middle { .. } => self.restart_read(cx),
            // A group that is gone has nothing left to compact.
            Call::Compact { .. } if self.logged && cx.core.router.leader(self.parts[index].share.group).is_none() => {
                self.parts[index].rest();
                self.finish_if_complete(index, Revision(0), RangeResult::default(), cx)
            }
            _ => self.ask(index, cx),
        }
    }

    /// The same command under the same tag, to whoever owns its keys now.
    fn replan_write(&mut self, cx: &mut Cx<'_>) -> Next {
        let Some(shares) = self.op().and_then(|op| cx.core.router.shares(op)) else { return self.unavailable() };
        if let Some(next) = self.check_plan(&shares, cx) {
            return next;
        }
        self.map_version = cx.core.router.map_version();
        if let (Some(part), Some(share)) = (self.parts.first_mut(), shares.into_iter().next()) {
            part.share = share;
        }
        self.ask(0, cx)
    }

    /// Forgets all that was read, and reads again.
    fn restart_read(&mut self, cx: &mut Cx<'_>) -> Next {
        let most = |of: fn(&Part) -> u32| self.parts.iter().map(of).max();
        let (attempts, timeouts) = (most(|part| part.attempts), most(|part| part.timeouts));
        self.spent = (attempts.unwrap_or(self.spent.0), timeouts.unwrap_or(self.spent.1));
        self.forget_attempts(cx.core);
        self.parts.clear();
        self.results.clear();
        cx.core.bytes -= self.result_bytes;
        self.bytes -= self.result_bytes;
        (self.result_bytes, self.unresolved) = (0, 0);
        // The old number's history may be collected before all is read; a fresh one costs little.
        self.revision = None;
        self.plan(cx)
    }

    fn op(&self) -> Option<&Op> {
        match &self.call {
            Call::Op { op, .. } => Some(op),
            _ => None,
        }
    }

    fn forget_attempts(&mut self, core: &mut Core) {
        for id in self.attempts.drain(..) {
            core.attempts.remove(&id);
        }
    }

    /// Sets the call's timer to whatever comes first.
    pub(crate) fn rearm(&mut self, token: u64, core: &mut Core) {
        let first = self.parts.iter().map(|part| part.wake).min().unwrap_or(NEVER).min(self.deadline);
        core.rearm(Owner::Call(token), self.timer, first);
        self.timer = first;
    }

    /// Releases all that the call holds.
    pub(crate) fn release(mut self, token: u64, core: &mut Core) {
        self.forget_attempts(core);
        core.rearm(Owner::Call(token), self.timer, NEVER);
        if let Some(tag) = self.tag {
            core.sessions.close(tag);
        }
        match self.stage {
            Stage::NeedMap => core.maps.forget(token),
            Stage::NeedRevision => core.sequencer.forget(token),
            Stage::Asking => {}
        }
        core.bytes -= self.bytes;
    }
}
