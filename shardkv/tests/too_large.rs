//! One operation must not take a replica's memory, least of all a logged one, which every restart would
//! repeat.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Delete, Op, OpResult, Put, Range, Txn};
use shardkv::request::{OpError, SessionTag};
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, ReadError, codec};
use std::cell::Cell;
use std::sync::Arc;

const SHARD: ShardId = ShardId(1);
const EPOCH: Epoch = Epoch(1);
/// More than one operation may hold, in values of a mebibyte.
const KEYS: u64 = 300;

fn write(revision: u64, op: Op) -> Command {
    let session = SessionTag { session: 7, born: Revision(1), sequence: revision, low_water: revision };
    Command::Write { revision: Revision(revision), shard: SHARD, epoch: EPOCH, also: vec![], session, op }
}

fn everything() -> Keys {
    Keys::From(Bytes::new())
}

fn count(group: &DataGroup<MemoryStore>) -> u64 {
    let counted = Op::Range(Range { count_only: true, ..Range::all(everything()) });
    match group.reader().read(&[(SHARD, EPOCH)], &counted, group.last_revision()).unwrap() {
        OpResult::Range(range) => range.count,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_too_large_is_refused_with_nothing_done() {
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).unwrap();
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    let bounds = Bounds::default();
    let mut commands =
        vec![Command::Activate { revision: Revision(2), shard: SHARD, bounds, epoch: EPOCH, by: MoveId(0) }];
    for number in 0..KEYS {
        let key = Bytes::from(format!("{number:04}"));
        let op = Put { key, value: value.clone(), lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false };
        commands.push(write(3 + number, Op::Put(op)));
    }
    group.apply(&[(Slot(1), codec::encode(&Batch { commands }))]).unwrap();

    let delete = |keys| Op::Delete(Delete { keys, prev_kv: false });
    let half = Keys::Range { start: Bytes::new(), end: Bytes::from_static(b"0150") };
    let ranges = [Op::Range(Range::all(half.clone())), Op::Range(Range::all(half.clone()))];
    let twice = |op: Op| Op::Txn(Txn { success: vec![op, ranges[0].clone(), ranges[1].clone()], ..Txn::default() });
    let keep = Put {
        key: Bytes::from_static(b"x"),
        value: Bytes::new(),
        lease: 0,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let ops = [delete(everything()), twice(Op::Put(keep)), delete(half)];
    let commands = ops.into_iter().zip(1000..).map(|(op, revision)| write(revision, op)).collect();
    let outcomes = group.apply(&[(Slot(2), codec::encode(&Batch { commands }))]).unwrap();
    let too_large = Outcome::Failed(OpError::TooLarge);
    assert_eq!(outcomes[0][..2], [too_large.clone(), too_large], "all keys; two halves of them and a put");
    assert!(matches!(outcomes[0][2], Outcome::Done { .. }), "half of them");
    assert_eq!(count(&group), KEYS - 150);
}

#[test]
fn a_read_that_nobody_waits_for_ends_soon() {
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).unwrap();
    let bounds = Bounds::default();
    let mut commands =
        vec![Command::Activate { revision: Revision(2), shard: SHARD, bounds, epoch: EPOCH, by: MoveId(0) }];
    for number in 0..5_000u64 {
        let op = Put {
            key: Bytes::from(number.to_be_bytes().to_vec()),
            value: Bytes::new(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        commands.push(write(3 + number, Op::Put(op)));
    }
    group.apply(&[(Slot(1), codec::encode(&Batch { commands }))]).unwrap();
    assert_eq!(count(&group), 5_000);
    let asked = Cell::new(0);
    let stop = || {
        asked.set(asked.get() + 1);
        asked.get() == 2
    };
    let all = Op::Range(Range::all(everything()));
    let read = group.reader().read_until(&[(SHARD, EPOCH)], &all, group.last_revision(), true, &stop);
    assert_eq!((read, asked.get()), (Err(ReadError::Stopped), 2));
}
