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
use paxos::{GroupId, Time};
use shardkv::ops::{Op, OpResult};
use shardkv::request::{OpError, ReadMode as Freshness, ReplyBody, RequestBody};
use shardkv::store::Store;
use shardkv::types::{Epoch, Keys, Revision, ShardId};
use shardkv::{ReadError, Reader};

/// A read to execute: all of it is fixed.
#[derive(Clone, Debug)]
pub struct ScanJob {
    /// Reported back.
    pub number: u64,
    /// The group whose keys are read; [`Core::reader`] knows them.
    pub group: GroupId,
    /// The shards that the keys lie in.
    pub shards: Vec<(ShardId, Epoch)>,
    /// What is read.
    pub op: Op,
    /// At which revision.
    pub at: Revision,
    /// Afterwards nobody wants the result.
    pub expires: Time,
}

impl ScanJob {
    /// Executes it. `None` if it came too late: `now` tells the time, and is asked while it runs, too.
    pub fn execute<S: Store>(&self, now: impl Fn() -> Time, reader: &Reader<S>) -> Option<Result<OpResult, ReadError>> {
        let late = || now() >= self.expires;
        if late() {
            return None;
        }
        let read = reader.read_until(&self.shards, &self.op, self.at, &late);
        (read != Err(ReadError::Stopped)).then_some(read)
    }
}

/// A scan under way.
pub(super) struct Scan {
    group: GroupId,
    read: WaitingRead,
    header: Revision,
    /// The leader's term that answers for it; a serializable read needs none.
    term: Option<u64>,
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
            shards: shards.clone(),
            op: op.clone(),
            at,
            expires: read.expires,
        });
        self.scans.insert(self.next_scan, Scan { group: id, read, header, term });
    }

    /// A scan has ended.
    pub(super) fn scanned(&mut self, now: Time, number: u64, result: Option<Result<OpResult, ReadError>>) {
        let Some(Scan { group: id, read, header, term }) = self.scans.remove(&number) else { return };
        // Whoever asked has given up, as the job has.
        let Some(result) = result else { return };
        let waiter = Waiter::Gateway(read.token, read.request.id);
        if let Some(term) = term {
            let lead = self.groups.get(&id).and_then(|group| group.lead.as_ref());
            if lead.is_none_or(|lead| lead.term != term) {
                let hint = self.leader_of(id).filter(|node| *node != self.config.me);
                return self.answer(waiter, ReplyBody::NotLeader { hint });
            }
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
