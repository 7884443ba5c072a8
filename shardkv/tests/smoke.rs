//! The shortest way through the crate: activate, write, read, retry, compact, restart.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Delete, Op, OpResult, Put, Range};
use shardkv::request::SessionTag;
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, ReadError, codec};
use std::sync::Arc;

const SHARD: ShardId = ShardId(1);
const EPOCH: Epoch = Epoch(1);

fn put(revision: u64, sequence: u64, key: &str, value: &str) -> Command {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    let op = Op::Put(Put { key, value, lease: 0, prev_kv: true, ignore_value: false, ignore_lease: false });
    let session = SessionTag { session: 7, born: Revision(1), sequence, low_water: sequence.saturating_sub(2) };
    Command::Write { revision: Revision(revision), shard: SHARD, epoch: EPOCH, also: vec![], session, op }
}

fn entry(commands: Vec<Command>) -> Bytes {
    codec::encode(&Batch { commands })
}

fn activate(revision: u64) -> Command {
    Command::Activate {
        revision: Revision(revision),
        shard: SHARD,
        bounds: Bounds::default(),
        epoch: EPOCH,
        by: MoveId(0),
    }
}

#[test]
fn a_life() {
    let store = Arc::new(MemoryStore::new());
    let mut group = DataGroup::open(Arc::clone(&store), GroupId(2), 1).unwrap();
    let entries = [
        (Slot(1), entry(vec![activate(2), put(3, 1, "a", "one")])),
        (Slot(2), Bytes::new()),
        (Slot(3), entry(vec![put(5, 2, "a", "two"), put(9, 1, "a", "one")])),
        (Slot(4), Bytes::from_static(b"rubbish")),
    ];
    let outcomes = group.apply(&entries).unwrap();
    assert_eq!(outcomes[0][0], Outcome::Activated);
    assert!(outcomes[1].is_empty());
    assert!(matches!(outcomes[3][..], [Outcome::Malformed(_)]));
    let done = |revision: u64, before: Option<&'static str>| {
        move |outcome: &Outcome| match outcome {
            Outcome::Done { revision: at, result: OpResult::Put { prev_kv } } => {
                *at == Revision(revision) && prev_kv.as_ref().map(|pair| &pair.value[..]) == before.map(str::as_bytes)
            }
            _ => false,
        }
    };
    assert!(done(3, None)(&outcomes[0][1]));
    assert!(done(5, Some("one"))(&outcomes[2][0]));
    assert!(done(3, None)(&outcomes[2][1]), "a retry gets the first answer: {:?}", outcomes[2][1]);

    let hash = group.hash();
    drop(group);
    let mut group = DataGroup::open(Arc::clone(&store), GroupId(2), 2).unwrap();
    assert_eq!((group.applied(), group.hash()), (Slot(4), hash));
    let reader = group.reader();
    let get = Op::Range(Range::all(Keys::One("a".into())));
    let value = |at: u64| match reader.read(&[(SHARD, EPOCH)], &get, Revision(at)) {
        Ok(OpResult::Range(found)) => found.kvs.first().map(|pair| pair.value.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(value(2), None);
    assert_eq!(value(4), Some("one".into()));
    assert_eq!(value(9), Some("two".into()));

    group.apply(&[(Slot(5), entry(vec![Command::Compact { revision: Revision(6) }]))]).unwrap();
    while reader.collect(1).unwrap() != shardkv::Progress::Done(0) {}
    let below = reader.read(&[(SHARD, EPOCH)], &get, Revision(5));
    assert_eq!(below, Err(ReadError::Compacted { floor: Revision(6) }));
    assert_eq!(value(6), Some("two".into()));
    assert_eq!(reader.read(&[(SHARD, Epoch(2))], &get, Revision(9)), Err(ReadError::WrongShard));
}

/// Pieces of an image must fit into the queue to a peer, however many outcomes one entry has left behind.
#[test]
fn outcomes_of_one_entry_travel_in_several_pieces() {
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).unwrap();
    let mut commands = vec![activate(2)];
    let write = |number: u64| {
        let session = SessionTag { session: u128::from(number), born: Revision(2), sequence: 1, low_water: 1 };
        let Command::Write { op, .. } = put(3 + number, 1, "a", "one") else { panic!("a put is a write") };
        Command::Write { revision: Revision(3 + number), shard: SHARD, epoch: EPOCH, also: vec![], session, op }
    };
    commands.extend((0..3000).map(write));
    group.apply(&[(Slot(1), entry(commands))]).unwrap();
    let mut source = group.snapshot().unwrap();
    let mut other = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).unwrap();
    let mut sink = other.begin_install().unwrap();
    let mut largest = 0;
    while let Some(piece) = source.next_piece(200).unwrap() {
        largest = largest.max(piece.len());
        sink.piece(piece).unwrap();
    }
    other.finish_install(sink).unwrap();
    assert_eq!(other.hash(), group.hash());
    // Each outcome is a session's number, revisions and the answer: about ten bytes.
    assert!((1024 * 5..=1024 * 20).contains(&largest), "{largest} bytes");
}

/// A queue may begin with any number of keys that were deleted: they are walked over, but not for ever.
#[test]
fn keys_are_counted_on_a_walk_that_has_an_end() {
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).unwrap();
    group.apply(&[(Slot(1), entry(vec![activate(2)]))]).unwrap();
    let mut revision = 2;
    let mut write = |group: &mut DataGroup<MemoryStore>, key: &str, delete: bool| {
        revision += 1;
        let mut command = put(revision, revision, key, "v");
        if let (Command::Write { op, .. }, true) = (&mut command, delete) {
            *op = Op::Delete(Delete { keys: Keys::One(Bytes::copy_from_slice(key.as_bytes())), prev_kv: false });
        }
        let slot = group.applied().next();
        group.apply(&[(slot, entry(vec![command]))]).unwrap();
        group.reader().measure(&|| false).unwrap()[0].keys
    };
    for number in 0..1500 {
        let key = format!("a{number:04}");
        write(&mut group, &key, false);
        assert_eq!(write(&mut group, &key, true), 0);
    }
    assert_eq!(write(&mut group, "b", false), 0, "the first thousand rows speak for the rest");
    assert_eq!(write(&mut group, "a", false), 1, "one of the first thousand");
}

/// What RocksDB has in memory it does not count.
#[cfg(feature = "rocks")]
#[test]
fn a_small_shard_is_no_empty_shard() {
    let directory = tempfile::tempdir().unwrap();
    let store = shardkv::RocksStore::open(directory.path(), shardkv::RocksOptions::default()).unwrap();
    let mut group = DataGroup::open(Arc::new(store), GroupId(2), 1).unwrap();
    group
        .apply(&[(Slot(1), entry(vec![activate(2), put(3, 1, "key", "value"), put(4, 2, "other", "value")]))])
        .unwrap();
    let measured = group.reader().measure(&|| false).unwrap();
    assert_eq!(measured[0].keys, 2);
    assert!((20..200).contains(&measured[0].bytes), "{measured:?}");
}
