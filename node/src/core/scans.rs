//! Reads of many keys. One may walk through millions of rows, and meanwhile the node must go on: so
//! the core fixes *what* is read (the shards, the revision), the host executes it beside the turns,
//! and the leader's right to answer is checked when the result is there.
//!
//! Versions do not change, so it does not matter what is applied meanwhile. What may be lost is
//! history: a compaction that passes the revision of a read of the newest state. Such a read begins
//! anew.

use super::lead::Waiter;
use super::reads::{WaitingRead, explicit_revision, read_failure};
use super::{Core, Machine};
use bytes::Bytes;
use paxos::{GroupId, NodeId, Time};
use shardkv::moving::{Chunk, Position};
use shardkv::ops::{Op, OpResult};
use shardkv::request::{OpError, ReadMode as Freshness, ReplyBody, Request, RequestBody};
use shardkv::store::Store;
use shardkv::types::{Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{Measured, ReadError, Reader};

/// A read to execute: all of it is fixed.
#[derive(Clone, Debug)]
pub struct ScanJob {
    /// Reported back.
    pub number: u64,
    /// The group whose keys are read; [`Core::reader`] knows them.
    pub group: GroupId,
    /// What is read.
    pub work: ScanWork,
    /// Afterwards nobody wants the result.
    pub expires: Time,
}

/// What a [`ScanJob`] reads.
#[derive(Clone, Debug)]
pub enum ScanWork {
    /// Keys, for a client.
    Read {
        /// The shards that the keys lie in.
        shards: Vec<(ShardId, Epoch)>,
        /// What is read.
        op: Op,
        /// At which revision.
        at: Revision,
        /// Only who owns the shards can answer.
        newest: bool,
    },
    /// A piece of a shard that moves.
    Copy {
        /// The shard.
        shard: ShardId,
        /// The move.
        mv: MoveId,
        /// From where on.
        at: Position,
        /// About how much.
        bytes_max: usize,
    },
    /// What the group's shards hold, about.
    Measure,
    /// The middle of a shard.
    Middle {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        epoch: Epoch,
    },
}

/// What a [`ScanJob`] has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanResult {
    /// Of [`ScanWork::Read`].
    Read(OpResult),
    /// Of [`ScanWork::Copy`].
    Copied(Chunk),
    /// Of [`ScanWork::Middle`].
    Middle(Option<Bytes>),
    /// Of [`ScanWork::Measure`].
    Measured(Vec<Measured>),
}

impl ScanJob {
    /// Executes it. `None` if it came too late: `now` tells the time, and is asked while it runs, too.
    pub fn execute<S: Store>(
        &self,
        now: impl Fn() -> Time,
        reader: &Reader<S>,
    ) -> Option<Result<ScanResult, ReadError>> {
        let late = || now() >= self.expires;
        if late() {
            return None;
        }
        let read = match &self.work {
            ScanWork::Read { shards, op, at, newest } => {
                reader.read_until(shards, op, *at, *newest, &late).map(ScanResult::Read)
            }
            ScanWork::Copy { shard, mv, at, bytes_max } => {
                reader.chunk(*shard, *mv, at, *bytes_max).map(ScanResult::Copied)
            }
            ScanWork::Measure => reader.measure(&late).map(ScanResult::Measured),
            ScanWork::Middle { shard, epoch } => reader.middle(*shard, *epoch).map(ScanResult::Middle),
        };
        (read != Err(ReadError::Stopped)).then_some(read)
    }
}

/// A scan under way.
pub(super) enum Scan {
    /// For a client.
    Read {
        group: GroupId,
        read: Box<WaitingRead>,
        header: Revision,
        /// The leader's term that answers for it; a serializable read needs none.
        term: Option<u64>,
    },
    /// For the leader, on this node, of the group that a shard moves to.
    Copy { from: GroupId, node: NodeId, to: GroupId, shard: ShardId, mv: MoveId },
    /// For an operator.
    Middle { waiter: Waiter },
    /// For the load of this node's shards.
    Measure { group: GroupId },
    /// For the shardmaster's leader, which wants to have the shard split.
    Halve { node: NodeId, shard: ShardId, epoch: Epoch },
}

/// Whether an operation may read more than it names.
pub(super) fn reads_ranges(op: &Op) -> bool {
    let mut ranges = false;
    op.for_each_keys(&mut |keys, _| ranges |= !matches!(keys, Keys::One(_)));
    ranges
}

impl<S: Store> Core<S> {
    /// What a group's keys are read with, here.
    pub fn reader(&self, group: GroupId) -> Option<Reader<S>> {
        match &self.groups.get(&group)?.machine {
            Machine::Data(reader) => Some(reader.clone()),
            Machine::Master(_) => None,
        }
    }

    /// Has a read executed beside the turns; its answer will carry `header`.
    pub(super) fn begin_scan(&mut self, id: GroupId, read: WaitingRead, at: Revision, header: Revision) {
        let waiter = Waiter::Gateway(read.token, read.request.id);
        let RequestBody::Read { shards, op, mode } = &read.request.body else { return };
        if self.scans.len() >= self.config.limits.scans_max {
            return self.answer(waiter, ReplyBody::Failed(OpError::Overloaded));
        }
        let term = match mode {
            Freshness::Serializable => None,
            Freshness::Linearizable | Freshness::At(_) => {
                let lead = self.groups.get(&id).and_then(|group| group.lead.as_ref());
                let Some(lead) = lead else { return self.answer(waiter, ReplyBody::NotLeader { hint: None }) };
                Some(lead.term)
            }
        };
        self.next_scan += 1;
        self.out.scans.push(ScanJob {
            number: self.next_scan,
            group: id,
            work: ScanWork::Read { shards: shards.clone(), op: op.clone(), at, newest: read.needs_owner() },
            expires: read.expires,
        });
        self.scans.insert(self.next_scan, Scan::Read { group: id, read: Box::new(read), header, term });
    }

    /// Has a piece of a shard read for `node`, which leads `to`.
    pub(super) fn begin_copy(&mut self, id: GroupId, node: NodeId, to: GroupId, work: ScanWork, expires: Time) {
        let ScanWork::Copy { shard, mv, .. } = work else { return };
        self.next_scan += 1;
        self.out.scans.push(ScanJob { number: self.next_scan, group: id, work, expires });
        self.scans.insert(self.next_scan, Scan::Copy { from: id, node, to, shard, mv });
    }

    /// A scan has ended.
    pub(super) fn scanned(&mut self, now: Time, number: u64, result: Option<Result<ScanResult, ReadError>>) {
        // Without a result whoever asked has given up, as the job has.
        match (self.scans.remove(&number), result) {
            (Some(Scan::Read { group, read, header, term }), Some(result)) => {
                let result = result.and_then(|result| match result {
                    ScanResult::Read(result) => Ok(result),
                    ScanResult::Copied(_) | ScanResult::Middle(_) | ScanResult::Measured(_) => {
                        Err(ReadError::Malformed("a read that does something else".into()))
                    }
                });
                self.read_done(now, group, *read, (header, term), result);
            }
            // A piece of what is wrong goes nowhere.
            (Some(Scan::Copy { from, mv, .. }), _) if self.is_fenced(from) => self.copy_ended(from, mv),
            (Some(Scan::Copy { from, node, to, shard, mv }), result) => {
                self.copy_ended(from, mv);
                match result {
                    Some(Ok(ScanResult::Copied(chunk))) => self.copied(now, node, to, shard, mv, chunk),
                    // The shard has moved on meanwhile, or the piece will be asked for again.
                    Some(Err(ReadError::WrongShard))
                    | Some(Ok(ScanResult::Read(_) | ScanResult::Middle(_) | ScanResult::Measured(_)))
                    | None => {}
                    Some(Err(error)) => {
                        tracing::error!(group = %from, %shard, %error, "a piece of a shard that moves cannot be read");
                    }
                }
            }
            (Some(Scan::Middle { waiter }), Some(result)) => {
                let body = match result {
                    Ok(ScanResult::Middle(middle)) => ReplyBody::Middle(middle),
                    Ok(ScanResult::Read(_) | ScanResult::Copied(_) | ScanResult::Measured(_)) => ReplyBody::WrongShard,
                    Err(error) => read_failure(error),
                };
                self.answer(waiter, body);
            }
            (Some(Scan::Halve { node, shard, epoch }), Some(Ok(ScanResult::Middle(at)))) => {
                self.halved(now, node, shard, epoch, at);
            }
            (Some(Scan::Measure { group }), result) => {
                let stored = match result {
                    Some(Ok(ScanResult::Measured(stored))) => Some(stored),
                    Some(Err(error)) => {
                        tracing::warn!(%group, %error, "shards cannot be measured");
                        None
                    }
                    Some(Ok(_)) | None => None,
                };
                self.measured(group, stored);
            }
            _ => {}
        }
    }

    /// Has the middle of a shard looked for. It is an estimate: whoever leads may tell.
    pub(super) fn middle_asked(&mut self, now: Time, waiter: Waiter, request: &Request, shard: ShardId, epoch: Epoch) {
        let group = request.group;
        if let Err(refusal) = self.ready_lead(group) {
            return self.answer(waiter, refusal);
        }
        if self.scans.len() >= self.config.limits.scans_max {
            return self.answer(waiter, ReplyBody::Failed(OpError::Overloaded));
        }
        self.next_scan += 1;
        let (work, expires) = (ScanWork::Middle { shard, epoch }, now.plus(request.patience_micros));
        self.out.scans.push(ScanJob { number: self.next_scan, group, work, expires });
        self.scans.insert(self.next_scan, Scan::Middle { waiter });
    }

    fn read_done(
        &mut self,
        now: Time,
        id: GroupId,
        read: WaitingRead,
        (header, term): (Revision, Option<u64>),
        result: Result<OpResult, ReadError>,
    ) {
        let waiter = Waiter::Gateway(read.token, read.request.id);
        let lead = self.groups.get(&id).and_then(|group| group.lead.as_ref());
        let is_over = term.is_some_and(|term| lead.is_none_or(|lead| lead.term != term));
        if is_over || self.is_fenced(id) {
            let hint = self.hint(id);
            return self.answer(waiter, ReplyBody::NotLeader { hint });
        }
        let body = match result {
            Ok(result) => ReplyBody::Done { revision: header, result },
            Err(ReadError::Compacted { .. }) if read.wants_newest() => return self.read_or_scan(now, id, read),
            Err(error) => read_failure(error),
        };
        match term {
            Some(_) => self.release(now, id, read, body),
            None => self.answer(waiter, body),
        }
    }
}

impl WaitingRead {
    /// Whether it asks for the newest state: only who owns the keys can say what that is.
    pub(super) fn needs_owner(&self) -> bool {
        match &self.request.body {
            RequestBody::Read { op: Op::Range(range), mode: Freshness::Linearizable, .. } => {
                range.revision == Revision(0)
            }
            RequestBody::Read { mode, .. } => *mode == Freshness::Linearizable,
            _ => true,
        }
    }

    /// Whether it is up to us at which revision it is read.
    fn wants_newest(&self) -> bool {
        match &self.request.body {
            RequestBody::Read { op, mode: Freshness::Linearizable | Freshness::Serializable, .. } => {
                explicit_revision(op).0 == 0
            }
            _ => false,
        }
    }
}
