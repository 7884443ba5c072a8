//! What a call makes of the replies to its attempts.

use super::{Cx, Next, Pending, RENEWALS_MAX};
use crate::call::{Answer, AnswerBody, Call, CallError};
use crate::core::{Attempt, Route};
use crate::merge::{fits, merge, range_bytes};
use bytes::Bytes;
use paxos::NodeId;
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::{Op, OpResult, RangeResult};
use shardkv::request::{OpError, ReplyBody};
use shardkv::types::Revision;

impl Pending {
    /// A reply to the attempt `id`.
    pub(crate) fn on_reply(&mut self, id: u64, attempt: Attempt, body: ReplyBody, cx: &mut Cx<'_>) -> Next {
        self.attempts.retain(|attempt| *attempt != id);
        // The part may have been planned anew meanwhile, for another group.
        let Attempt { part: index, group, node: from, .. } = attempt;
        let Some(part) = self.parts.get(index) else { return Next::Wait };
        let is_current = part.current == Some(id);
        if is_current {
            self.parts[index].rest();
        }
        match body {
            ReplyBody::Done { revision, result } => self.on_done(index, is_current, from, revision, result, cx),
            ReplyBody::Node(node) if matches!(self.call, Call::AddNode { .. }) => {
                Next::Finish(Ok(Answer { revision: cx.core.known, body: AnswerBody::Node(node) }))
            }
            ReplyBody::Group(group) if matches!(self.call, Call::ChangeGroups(_)) => {
                Next::Finish(Ok(Answer { revision: cx.core.known, body: AnswerBody::Group(group) }))
            }
            ReplyBody::Middle(key) if matches!(self.call, Call::Middle { .. }) => {
                Next::Finish(Ok(Answer { revision: cx.core.known, body: AnswerBody::Middle(key) }))
            }
            ReplyBody::Move(mv) if matches!(self.call, Call::ChangeShards(_)) => {
                Next::Finish(Ok(Answer { revision: cx.core.known, body: AnswerBody::Move(mv) }))
            }
            ReplyBody::Logged if self.call.master_request().is_some() => {
                Next::Finish(Ok(Answer { revision: cx.core.known, body: AnswerBody::Noted }))
            }
            ReplyBody::Logged => self.on_compacted(index, is_current, cx),
            ReplyBody::NotLeader { hint } => {
                if hint.is_none() && group != SHARDMASTER_GROUP {
                    // The group may have other members by now than the map says.
                    cx.core.ask_map(None, cx.now, cx.out);
                }
                cx.core.router.not_leader(group, from, hint);
                self.refused(index, is_current, cx)
            }
            ReplyBody::WrongShard if is_current => {
                cx.core.ask_map(None, cx.now, cx.out);
                self.pause(index, cx)
            }
            ReplyBody::WrongShard => self.refused(index, is_current, cx),
            ReplyBody::Failed(error) if is_current => self.on_failed(index, error, cx),
            ReplyBody::Failed(_) => self.refused(index, is_current, cx),
            // The last two are not answers to what was asked: what that node did is unknown.
            ReplyBody::Lost
            | ReplyBody::Current { .. }
            | ReplyBody::Map(_)
            | ReplyBody::KnownMap { .. }
            | ReplyBody::Node(_)
            | ReplyBody::Move(_)
            | ReplyBody::Middle(_)
            | ReplyBody::Group(_) => self.lost(index, is_current, cx),
        }
    }

    /// An attempt that certainly did nothing.
    fn refused(&mut self, index: usize, is_current: bool, cx: &mut Cx<'_>) -> Next {
        if is_current {
            return self.retry(index, cx);
        }
        assert!(self.unresolved > 0, "a given-up attempt was refused, {} are unresolved", self.unresolved);
        self.unresolved -= 1;
        Next::Wait
    }

    /// An attempt whose outcome will never be known.
    fn lost(&mut self, index: usize, is_current: bool, cx: &mut Cx<'_>) -> Next {
        if !is_current {
            return Next::Wait; // counted when it was given up
        }
        self.unresolved += 1;
        self.retry(index, cx)
    }

    fn on_done(
        &mut self,
        index: usize,
        is_current: bool,
        from: NodeId,
        revision: Revision,
        result: OpResult,
        cx: &mut Cx<'_>,
    ) -> Next {
        if !self.op().is_some_and(|op| fits(op, &result)) {
            return self.lost(index, is_current, cx);
        }
        if is_current && self.route() == Route::Leader {
            cx.core.router.is_leader(self.parts[index].share.group, from);
        }
        match result {
            OpResult::Range(range) if self.parts.len() > 1 => self.finish_if_complete(index, revision, range, cx),
            OpResult::Range(range) if range_bytes(&range) > cx.core.config.answer_bytes_max => {
                let limit_bytes = cx.core.config.answer_bytes_max;
                Next::Finish(Err(CallError::AnswerTooLarge { limit_bytes }))
            }
            result => Next::Finish(Ok(Answer { revision, body: AnswerBody::Op(result) })),
        }
    }

    fn on_compacted(&mut self, index: usize, is_current: bool, cx: &mut Cx<'_>) -> Next {
        if !matches!(self.call, Call::Compact { .. }) {
            return self.lost(index, is_current, cx);
        }
        if self.parts[index].share.group == SHARDMASTER_GROUP {
            self.logged = true;
            self.forget_attempts(cx.core);
            return self.plan(cx);
        }
        self.parts[index].rest();
        self.finish_if_complete(index, Revision(0), RangeResult::default(), cx)
    }

    /// Keeps a part's result; with the last one the call is done.
    pub(super) fn finish_if_complete(
        &mut self,
        index: usize,
        revision: Revision,
        result: RangeResult,
        cx: &mut Cx<'_>,
    ) -> Next {
        self.parts[index].rest();
        if self.results[index].is_none() {
            let bytes = range_bytes(&result);
            self.result_bytes += bytes;
            self.bytes += bytes;
            cx.core.bytes += bytes;
            self.results[index] = Some((revision, result));
        }
        let limit_bytes = cx.core.config.answer_bytes_max;
        if self.result_bytes > limit_bytes {
            return Next::Finish(Err(CallError::AnswerTooLarge { limit_bytes }));
        }
        if cx.core.bytes > cx.core.config.bytes_max {
            return Next::Finish(Err(CallError::Overloaded));
        }
        if self.results.iter().any(Option::is_none) {
            return Next::Wait;
        }
        Next::Finish(Ok(self.complete(cx.core.known)))
    }

    /// The answer, from the results of all parts.
    fn complete(&mut self, known: Revision) -> Answer {
        let results: Vec<(Revision, RangeResult)> = self.results.drain(..).flatten().collect();
        let Call::Op { op: Op::Range(range), .. } = &self.call else {
            return Answer { revision: known, body: AnswerBody::Compacted };
        };
        // Serializable parts were read at different revisions: only up to the smallest of them
        // does the answer miss nothing.
        let smallest = results.iter().map(|(revision, _)| *revision).min().unwrap_or(known);
        let revision = self.revision.unwrap_or(smallest);
        let parts = results.into_iter().map(|(_, part)| part).collect();
        let mut merged = merge(range.sort, range.limit, parts);
        if range.keys_only {
            merged.kvs.iter_mut().for_each(|pair| pair.value = Bytes::new());
        }
        Answer { revision, body: AnswerBody::Op(OpResult::Range(merged)) }
    }

    /// The newest attempt failed definitely.
    fn on_failed(&mut self, index: usize, error: OpError, cx: &mut Cx<'_>) -> Next {
        match (&self.call, &error) {
            (Call::Compact { revision, .. }, OpError::Compacted { floor }) => {
                // The shardmaster logged it for an earlier attempt, or the group is beyond it already.
                let done = self.logged || (self.unresolved > 0 && floor == revision);
                if done { self.on_compacted(index, true, cx) } else { Next::Finish(Err(error.into())) }
            }
            (Call::Compact { .. }, OpError::FutureRevision { .. }) if !self.logged => Next::Finish(Err(error.into())),
            (Call::Compact { .. }, _) => self.pause(index, cx),
            (Call::Op { .. }, _) if self.is_write() => self.on_failed_write(index, error, cx),
            // The gateway chose the revision, and it was collected meanwhile: choose a newer one.
            (_, OpError::Compacted { .. }) if self.parts.len() > 1 && self.explicit_revision().is_none() => {
                self.restart_read(cx)
            }
            (_, OpError::TooLarge) => {
                let limit_bytes = cx.core.config.answer_bytes_max;
                Next::Finish(Err(CallError::AnswerTooLarge { limit_bytes }))
            }
            (_, OpError::SessionExpired) => self.pause(index, cx),
            _ => Next::Finish(Err(error.into())),
        }
    }

    fn on_failed_write(&mut self, index: usize, error: OpError, cx: &mut Cx<'_>) -> Next {
        match error {
            // Only this attempt was refused. Another may have been carried out: ask until we know.
            OpError::Overloaded | OpError::NoSpace if self.unresolved > 0 => self.pause(index, cx),
            // The shard has forgotten whether it carried out the earlier attempt.
            _ if self.unresolved > 0 => Next::Finish(Err(CallError::MAYBE_DONE)),
            OpError::SessionExpired if self.renewals < RENEWALS_MAX => {
                // No attempt can have been carried out: a fresh tag is safe.
                if let Some(tag) = self.tag.take() {
                    cx.core.sessions.expire(tag);
                    cx.core.sessions.close(tag);
                }
                self.renewals += 1;
                self.revision = None;
                self.plan(cx)
            }
            OpError::SessionExpired => Next::Finish(Err(CallError::NOTHING_DONE)),
            error => Next::Finish(Err(error.into())),
        }
    }
}
