//! Whatever lies in the log: decoding and applying it ends with an outcome.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::generate;
use paxos::{GroupId, Slot, StateMachine};
use proptest::prelude::*;
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Op, TXN_DEPTH_MAX, Txn};
use shardkv::request::SessionTag;
use shardkv::types::{MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, codec};
use std::sync::Arc;

fn group() -> DataGroup<MemoryStore> {
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).unwrap();
    let commands = generate::shards().into_iter().enumerate().map(|(at, (shard, bounds))| Command::Activate {
        revision: Revision(2 + at as u64),
        shard,
        bounds,
        epoch: generate::EPOCH,
        by: MoveId(0),
    });
    let outcomes = group.apply(&[(Slot(1), codec::encode(&Batch { commands: commands.collect() }))]).unwrap();
    assert!(outcomes[0].iter().all(|outcome| *outcome == Outcome::Activated));
    group
}

fn write(revision: u64, op: Op) -> Command {
    let session = SessionTag { session: 1, born: Revision(1), sequence: revision, low_water: 0 };
    let also = vec![(ShardId(2), generate::EPOCH), (ShardId(3), generate::EPOCH)];
    Command::Write { revision: Revision(revision), shard: ShardId(1), epoch: generate::EPOCH, also, session, op }
}

proptest! {
    #[test]
    fn any_bytes_give_an_outcome(bytes: Vec<u8>, versioned: bool) {
        let bytes = if versioned { [&[codec::CODEC_VERSION], &bytes[..]].concat() } else { bytes };
        let outcomes = group().apply(&[(Slot(2), bytes.into())]).unwrap();
        prop_assert_eq!(outcomes.len(), 1);
    }

    /// A valid batch with a few bytes changed: much of it still decodes, and means something odd.
    #[test]
    fn a_mangled_batch_gives_an_outcome(
        ops in prop::collection::vec(generate::op(), 1..5),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let commands: Vec<Command> = ops.into_iter().zip(9..).map(|(op, revision)| write(revision, op)).collect();
        let mut bytes = codec::encode(&Batch { commands }).to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let bytes = Bytes::from(bytes);
        let (mut one, mut other) = (group(), group());
        let outcomes = one.apply(&[(Slot(2), bytes.clone())]).unwrap();
        prop_assert_eq!(outcomes, other.apply(&[(Slot(2), bytes)]).unwrap());
        prop_assert_eq!(one.hash(), other.hash());
        prop_assert_eq!(one.applied(), Slot(2));
    }

    #[test]
    fn batches_round_trip(ops in prop::collection::vec(generate::op(), 0..5)) {
        let commands = ops.into_iter().zip(1..).map(|(op, revision)| write(revision, op)).collect();
        let batch = Batch { commands };
        prop_assert_eq!(codec::decode::<Batch>(&codec::encode(&batch)).unwrap(), batch);
    }
}

fn nested(depth: u32) -> Op {
    let leaf = Op::Txn(Txn::default());
    (1..depth).fold(leaf, |op, _| Op::Txn(Txn { success: vec![op], ..Txn::default() }))
}

#[test]
fn nesting_is_bounded_before_the_stack_is() {
    let deep = codec::encode(&Batch { commands: vec![write(9, nested(TXN_DEPTH_MAX))] });
    let outcomes = group().apply(&[(Slot(2), deep)]).unwrap();
    assert!(matches!(outcomes[0][..], [Outcome::Done { .. }]), "{outcomes:?}");
    let deeper = codec::encode(&Batch { commands: vec![write(9, nested(TXN_DEPTH_MAX + 1))] });
    let outcomes = group().apply(&[(Slot(2), deeper)]).unwrap();
    assert!(matches!(outcomes[0][..], [Outcome::Malformed(_)]), "{outcomes:?}");
    // The bytes of a level, repeated: far deeper than any value that could be encoded here.
    let level = codec::encode(&Op::Txn(Txn { success: vec![Op::Txn(Txn::default())], ..Txn::default() }));
    let mut bomb = codec::encode(&Batch { commands: vec![write(9, nested(1))] }).to_vec();
    bomb.truncate(bomb.len() - 4);
    bomb.extend(level[1..4].repeat(1_000_000));
    let outcomes = group().apply(&[(Slot(2), bomb.into())]).unwrap();
    assert!(matches!(outcomes[0][..], [Outcome::Malformed(_)]), "{outcomes:?}");
}
