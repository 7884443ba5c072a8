//! The shortest way through the crate: activate, write, read, retry, compact, restart.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Op, OpResult, Put, Range};
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
