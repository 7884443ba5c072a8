//! What applying and reading cost on RocksDB. Not a test of anything: run it by hand with
//! `cargo test --release -p shardkv --features rocks --test rocks_cost -- --ignored --nocapture`.
#![cfg(feature = "rocks")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // it measures time

use bytes::Bytes;
use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command};
use shardkv::ops::{Op, OpResult, Put, Range};
use shardkv::request::SessionTag;
use shardkv::store::{Store, View, WriteBatch};
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, RocksOptions, RocksStore, codec};
use std::sync::Arc;
use std::time::Instant;

const SHARD: ShardId = ShardId(1);
const EPOCH: Epoch = Epoch(1);
const KEYS: u64 = 100_000;
const BATCH: u64 = 50;

/// A permutation-like scatter of numbers (splitmix64).
fn scatter(n: u64) -> u64 {
    let n = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let n = (n ^ n >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ n >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ n >> 31
}

fn key(n: u64) -> Bytes {
    format!("/registry/objects/{:016x}", scatter(n % KEYS)).into()
}

fn entry(first: u64, revision: u64) -> Bytes {
    let commands = (0..BATCH).map(|i| {
        let sequence = first + i + 1;
        let value: Vec<u8> = (0..32).flat_map(|j| scatter(sequence * 32 + j).to_le_bytes()).collect();
        let put = Put {
            key: key(scatter(first + i)),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        };
        let session =
            SessionTag { session: 1 << 100, born: Revision(1), sequence, low_water: sequence.saturating_sub(100) };
        Command::Write {
            revision: Revision(revision + i),
            shard: SHARD,
            epoch: EPOCH,
            also: vec![],
            session,
            op: Op::Put(put),
        }
    });
    codec::encode(&Batch { commands: commands.collect() })
}

/// Microseconds of CPU that this thread, and the whole process, have used: the machine may be busy
/// with something else.
fn cpu() -> (f64, f64) {
    let nanos = |path: &str| {
        let stat = std::fs::read_to_string(path).unwrap();
        stat.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let all = threads.map(|thread| nanos(thread.unwrap().path().join("schedstat").to_str().unwrap())).sum::<f64>();
    (nanos("/proc/thread-self/schedstat") / 1e3, all / 1e3)
}

/// What the store itself takes for the same rows, as the yardstick: absolute figures move with the
/// machine.
fn yardstick() {
    let directory = tempfile::tempdir().unwrap();
    let store = RocksStore::open(directory.path(), RocksOptions::default()).unwrap();
    let value = Bytes::from(vec![7; 270]);
    for round in 0..2 {
        let (thread, _) = cpu();
        for n in 0..KEYS / BATCH {
            let mut batch = WriteBatch::default();
            (0..BATCH).for_each(|i| batch.put(key(scatter(round * KEYS + n * BATCH + i)).to_vec(), value.clone()));
            store.write(&batch).unwrap();
        }
        let write = (cpu().0 - thread) / KEYS as f64;
        let (thread, _) = cpu();
        for n in 0..KEYS {
            store.get(&key(scatter(n))).unwrap();
        }
        let get = (cpu().0 - thread) / KEYS as f64;
        println!("yardstick: write {write:.2} µs, lookup {get:.2} µs CPU per random row");
    }
}

#[test]
#[ignore = "a measurement"]
fn rocks_apply_cost() {
    yardstick();
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(RocksStore::open(directory.path(), RocksOptions::default()).unwrap());
    let mut group = DataGroup::open(Arc::clone(&store), GroupId(2), 1).unwrap();
    let activate = Command::Activate {
        revision: Revision(2),
        shard: SHARD,
        bounds: Bounds::default(),
        epoch: EPOCH,
        by: MoveId(0),
    };
    group.apply(&[(Slot(1), codec::encode(&Batch { commands: vec![activate] }))]).unwrap();
    let mut slot = 1;
    for round in 0..4 {
        let entries: Vec<Bytes> =
            (0..KEYS / BATCH).map(|n| entry(round * KEYS + n * BATCH, 3 + round * KEYS + n * BATCH)).collect();
        let (start, (thread, process)) = (Instant::now(), cpu());
        for entry in entries {
            slot += 1;
            group.apply(&[(Slot(slot), entry)]).unwrap();
        }
        let micros = start.elapsed().as_secs_f64() * 1e6 / KEYS as f64;
        let (thread, process) = (cpu().0 - thread, cpu().1 - process);
        let (thread, process) = (thread / KEYS as f64, process / KEYS as f64);
        println!(
            "round {round}: {micros:.2} µs per put, {thread:.2} µs CPU here, {process:.2} with background ({})",
            if round == 0 { "63 % new keys" } else { "mostly overwrites" }
        );
    }
    let reader = group.reader();
    let (_, at) = reader.applied();
    for name in ["hot memtables", "flushed"] {
        let ops: Vec<Op> = (0..KEYS).map(|n| Op::Range(Range::all(Keys::One(key(scatter(n)))))).collect();
        let (start, (thread, _)) = (Instant::now(), cpu());
        let mut found = 0;
        for op in &ops {
            match reader.read(&[(SHARD, EPOCH)], op, at).unwrap() {
                OpResult::Range(range) => found += range.count,
                other => panic!("{other:?}"),
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let thread = (cpu().0 - thread) / KEYS as f64;
        println!("{name}: {:.0} gets per second, {thread:.2} µs CPU each ({found} found)", KEYS as f64 / seconds);
        group.flush().unwrap();
    }
    let all = Op::Range(Range { limit: 100, ..Range::all(Keys::From(Bytes::new())) });
    let (start, (thread, _)) = (Instant::now(), cpu());
    let rounds = 20;
    for _ in 0..rounds {
        reader.read(&[(SHARD, EPOCH)], &all, at).unwrap();
    }
    println!(
        "range of all keys, limit 100: {:.2} ms, {:.2} ms CPU",
        start.elapsed().as_secs_f64() * 1e3 / f64::from(rounds),
        (cpu().0 - thread) / 1e3 / f64::from(rounds)
    );
    let start = Instant::now();
    slot += 1;
    group.apply(&[(Slot(slot), codec::encode(&Batch { commands: vec![Command::Compact { revision: at }] }))]).unwrap();
    let mut looked_at = 0;
    while let shardkv::Progress::More(more) = reader.collect(512).unwrap() {
        looked_at += more;
    }
    println!("collection: {:.2} µs per change ({looked_at})", start.elapsed().as_secs_f64() * 1e6 / looked_at as f64);
    println!("size: {} MB", store.size_bytes().unwrap() / 1_000_000);
}
