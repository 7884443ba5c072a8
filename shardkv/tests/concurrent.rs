//! Readers and the collector beside apply, on both stores: a read at a fixed revision at or above
//! the floor is exact, whatever goes on.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command};
use shardkv::ops::{Delete, Op, OpResult, Put, Range};
use shardkv::request::SessionTag;
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, ReadError, Reader, Store, codec};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SHARD: ShardId = ShardId(1);
const EPOCH: Epoch = Epoch(1);
const KEYS: u64 = 8;
const ROUNDS: u64 = 600;

fn key(n: u64) -> Bytes {
    format!("key{n}").into()
}

/// Round r writes value r to all keys, at one revision; every fifth round deletes them instead.
fn entry(round: u64) -> Bytes {
    let revision = Revision(round * 2);
    let put = |n| {
        Op::Put(Put {
            key: key(n),
            value: round.to_string().into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    };
    let op = match round % 5 {
        0 => Op::Delete(Delete { keys: Keys::From(Bytes::new()), prev_kv: false }),
        _ => Op::Txn(shardkv::ops::Txn { success: (0..KEYS).map(put).collect(), ..Default::default() }),
    };
    let session = SessionTag { session: 1, born: Revision(1), sequence: round, low_water: round };
    let mut commands = match round {
        1 => vec![Command::Activate { revision, shard: SHARD, bounds: Bounds::default(), epoch: EPOCH, by: MoveId(0) }],
        _ => vec![Command::Write { revision, shard: SHARD, epoch: EPOCH, also: vec![], session, op }],
    };
    if round.is_multiple_of(7) {
        commands.push(Command::Compact { revision: Revision(revision.0.saturating_sub(40)) });
    }
    codec::encode(&Batch { commands })
}

fn check_reads<S: Store>(reader: &Reader<S>, stop: &AtomicBool, seed: u64) -> u64 {
    let (mut exact, mut turn) = (0, seed);
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let (_, last) = reader.applied();
        let at = Revision(last.0.saturating_sub(turn * 7 % 48));
        let keys = if turn.is_multiple_of(2) { Keys::From(Bytes::new()) } else { Keys::One(key(turn % KEYS)) };
        let expected = if turn.is_multiple_of(2) { KEYS } else { 1 };
        match reader.read(&[(SHARD, EPOCH)], &Op::Range(Range::all(keys)), at) {
            Ok(OpResult::Range(found)) => {
                let round = at.0 / 2;
                let expected = if round.is_multiple_of(5) || round < 2 { 0 } else { expected };
                assert_eq!(found.count, expected, "at {at}");
                assert!(found.kvs.iter().all(|pair| pair.value == round.to_string()), "at {at}: {found:?}");
                exact += 1;
            }
            Err(ReadError::Compacted { floor }) => assert!(at < floor),
            Err(ReadError::WrongShard) => assert!(last < Revision(2)),
            other => panic!("at {at}: {other:?}"),
        }
    }
    exact
}

fn suite<S: Store>(store: S) {
    let mut group = DataGroup::open(Arc::new(store), GroupId(2), 1).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|seed| {
                let (reader, stop) = (group.reader(), &stop);
                scope.spawn(move || check_reads(&reader, stop, seed))
            })
            .collect();
        let (collector, stopped) = (group.reader(), &stop);
        scope.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                collector.collect(16).unwrap();
            }
        });
        for round in 1..=ROUNDS {
            group.apply(&[(Slot(round), entry(round))]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let exact: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(exact > 0, "no read was answered");
    });
}

#[test]
fn reads_are_exact_beside_apply_and_collection_in_memory() {
    suite(MemoryStore::new());
}

#[cfg(feature = "rocks")]
#[test]
fn reads_are_exact_beside_apply_and_collection_on_rocks() {
    let directory = tempfile::tempdir().unwrap();
    suite(shardkv::RocksStore::open(directory.path(), shardkv::RocksOptions::default()).unwrap());
}
