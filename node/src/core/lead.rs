//! What a group's leader keeps for one term: commands waiting to be stamped, batches waiting for
//! their revisions, proposals in flight, reads waiting for writes.

use super::Limits;
use super::reads::WaitingRead;
use super::traces::{Traced, Waiting};
use paxos::flaw::{self, Flaw};
use paxos::{Ballot, Slot, Time};
use shardkv::command::Command;
use shardkv::ops::{Access, Op};
use shardkv::request::Reply;
use shardkv::types::{Keys, Revision, ShardId};
use std::collections::{BTreeMap, VecDeque};

/// Counters of in-flight writes by key hash.
const HASH_SLOTS: usize = 4096;

/// Who waits for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A gateway: the host's token and the request's id.
    Gateway(u64, u64),
    /// The leader itself (activations, compactions that it noticed).
    Nobody,
}

/// A command on its way.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) waiter: Waiter,
    pub(super) command: Command,
    pub(super) bytes: usize,
    /// Its place in the order of arrival.
    pub(super) index: u64,
    /// If it is followed.
    pub(super) trace: Option<Waiting>,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) number: u64,
    pub(super) sent_at: Time,
    pub(super) first: Option<Revision>,
    pub(super) batch: Vec<Pending>,
}

#[derive(Debug)]
pub(super) struct Proposed {
    pub(super) slot: Slot,
    pub(super) since: Time,
    pub(super) waiters: Vec<(Waiter, u64)>,
    /// Those of its writes that are followed.
    pub(super) traces: Vec<Traced>,
}

/// A leader's term.
pub(super) struct Lead {
    pub(super) ballot: Ballot,
    pub(super) term: u64,
    pub(super) since: Time,
    /// The no-op of this term; once it is applied the leader serves.
    pub(super) noop: Slot,
    pub(super) ready: bool,
    pub(super) inbox: VecDeque<Pending>,
    pub(super) inbox_bytes: usize,
    pub(super) asked: VecDeque<Asked>,
    pub(super) asks: u64,
    pub(super) proposed: VecDeque<Proposed>,
    /// Commands that have arrived, and the last that is applied or dropped.
    pub(super) arrived: u64,
    pub(super) done: u64,
    by_hash: Vec<u64>,
    last_range_write: u64,
    pub(super) last_stamp: Revision,
    /// Everything up to here is complete; later stamps lie above.
    pub(super) closed: Revision,
    pub(super) reads: BTreeMap<u64, Vec<WaitingRead>>,
    pub(super) reads_waiting: usize,
    /// Reads that wait for the lease.
    pub(super) unleased: Vec<WaitingRead>,
    /// Replies that wait for a confirmation round.
    pub(super) confirming: VecDeque<(u64, u64, Reply)>,
    /// No more proposals: leadership is about to be handed over.
    pub(super) handing_over: bool,
    /// Likewise: the group's members are about to change.
    pub(super) sealing: bool,
    /// Shards whose activation, and the floor whose compaction, is on its way.
    pub(super) activating: Option<u64>,
    /// The last step of a move that was logged for a shard.
    pub(super) steps: BTreeMap<ShardId, u64>,
    /// A compaction that the shardmaster has logged, and the write that it must be logged behind.
    pub(super) compaction: Option<(u64, Revision)>,
    pub(super) compacting: Revision,
}

fn hash_slot(key: &[u8]) -> usize {
    // FNV-1a: a write and a read of one key must agree, nothing more.
    let hash =
        key.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    (hash % HASH_SLOTS as u64) as usize
}

impl Lead {
    pub(super) fn new(ballot: Ballot, term: u64, noop: Slot, now: Time) -> Lead {
        Lead {
            ballot,
            term,
            since: now,
            noop,
            ready: false,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            asked: VecDeque::new(),
            asks: 0,
            proposed: VecDeque::new(),
            arrived: 0,
            done: 0,
            by_hash: vec![0; HASH_SLOTS],
            last_range_write: 0,
            last_stamp: Revision(0),
            closed: Revision(0),
            reads: BTreeMap::new(),
            reads_waiting: 0,
            unleased: Vec::new(),
            confirming: VecDeque::new(),
            handing_over: false,
            sealing: false,
            activating: None,
            steps: BTreeMap::new(),
            compaction: None,
            compacting: Revision(0),
        }
    }

    /// Puts a command in line and notes which keys it may write. The end of a shard here counts as a write to all of
    /// them: reads that come later must not be answered before it is applied.
    pub(super) fn enqueue(&mut self, waiter: Waiter, command: Command, bytes: usize) {
        self.enqueue_traced(waiter, command, bytes, None);
    }

    /// The same, for a command that is perhaps followed.
    pub(super) fn enqueue_traced(&mut self, waiter: Waiter, command: Command, bytes: usize, trace: Option<Waiting>) {
        self.arrived += 1;
        let index = self.arrived;
        if let Command::Write { op, .. } = &command {
            op.for_each_put(&mut |put| self.by_hash[hash_slot(&put.key)] = index);
            op.for_each_keys(&mut |keys, access| match (access, keys) {
                (Access::Read, _) => {}
                (Access::Write, Keys::One(key)) => self.by_hash[hash_slot(key)] = index,
                (Access::Write, Keys::Range { .. } | Keys::From(_)) => self.last_range_write = index,
            });
        }
        if matches!(command, Command::Freeze { .. }) && !flaw::is(Flaw::ReadFrozen) {
            self.last_range_write = index;
        }
        self.inbox_bytes += bytes;
        self.inbox.push_back(Pending { waiter, command, bytes, index, trace });
    }

    /// The last write that arrived so far and may touch what `op` reads.
    pub(super) fn last_write_on(&self, op: &Op) -> u64 {
        let mut last = self.last_range_write;
        op.for_each_keys(&mut |keys, _| {
            last = last.max(match keys {
                Keys::One(key) => self.by_hash[hash_slot(key)],
                Keys::Range { .. } | Keys::From(_) => self.arrived,
            });
        });
        last
    }

    /// The last write that arrived so far.
    pub(super) fn last_write(&self) -> u64 {
        self.arrived
    }

    /// Commands that wait or are in flight.
    pub(super) fn in_flight(&self) -> u64 {
        self.arrived - self.done
    }

    /// Whether it takes nothing new, because it is about to end.
    pub(super) fn is_draining(&self) -> bool {
        self.handing_over || self.sealing
    }

    pub(super) fn is_drained(&self) -> bool {
        self.asked.is_empty() && self.proposed.is_empty()
    }

    pub(super) fn take_batch(&mut self, limits: &Limits) -> Vec<Pending> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.inbox.front() {
            if batch.len() >= limits.batch_commands_max
                || (bytes + next.bytes > limits.batch_bytes_max && !batch.is_empty())
            {
                break;
            }
            bytes += next.bytes;
            batch.extend(self.inbox.pop_front());
        }
        self.inbox_bytes -= bytes;
        batch
    }

    pub(super) fn put_back(&mut self, batch: Vec<Pending>) {
        self.inbox_bytes += batch.iter().map(|pending| pending.bytes).sum::<usize>();
        batch.into_iter().rev().for_each(|pending| self.inbox.push_front(pending));
    }
}
