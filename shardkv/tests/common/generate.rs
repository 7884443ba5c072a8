//! Random operations over few keys, which lie around the borders of three shards.

use bytes::Bytes;
use proptest::prelude::*;
use shardkv::ops::{Compare, Delete, Op, Operand, Put, Range, Relation, Sort, SortTarget, Txn};
use shardkv::types::{Bounds, Epoch, Keys, Revision, ShardId};

const KEYS: [&[u8]; 10] = [b"a", b"a\0", b"a\0\x01", b"a\xff", b"b", b"h", b"h\0", b"k", b"p", b"\xff\xff"];

/// The starts of the shards and keys around them.
pub fn boundaries() -> Vec<Bytes> {
    ["", "g", "gzz", "h", "h\0", "o", "ozz", "p", "p\0"].iter().map(|key| Bytes::from_static(key.as_bytes())).collect()
}

/// Three shards that tile the keyspace.
pub fn shards() -> [(ShardId, Bounds); 3] {
    let end = |key: &'static str| Some(Bytes::from_static(key.as_bytes()));
    [
        (ShardId(1), Bounds { start: "".into(), end: end("h") }),
        (ShardId(2), Bounds { start: "h".into(), end: end("p") }),
        (ShardId(3), Bounds { start: "p".into(), end: None }),
    ]
}

pub const EPOCH: Epoch = Epoch(4);

pub fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(&KEYS[..]).prop_map(Bytes::from_static)
}

pub fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![
        4 => key().prop_map(Keys::One),
        3 => (key(), key()).prop_map(|(start, end)| Keys::Range { start, end }),
        1 => key().prop_map(Keys::From),
        1 => Just(Keys::From(Bytes::new())),
    ]
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::sample::select(&["", "v", "w", "x"][..]).prop_map(|value| Bytes::from_static(value.as_bytes()))
}

/// Revisions near what a run of a hundred commands sees.
fn revision() -> impl Strategy<Value = Revision> {
    prop_oneof![3 => Just(0u64), 2 => 1u64..400].prop_map(Revision)
}

pub fn range() -> impl Strategy<Value = Range> {
    let target = prop::sample::select(vec![
        SortTarget::Key,
        SortTarget::Key,
        SortTarget::Version,
        SortTarget::Create,
        SortTarget::Mod,
        SortTarget::Value,
    ]);
    let sort = (target, any::<bool>()).prop_map(|(target, descending)| Sort { target, descending });
    let filters = (revision(), revision(), revision(), revision());
    let switches = (prop::bool::weighted(0.2), prop::bool::weighted(0.1), prop::bool::weighted(0.3));
    (keys(), 0u64..4, revision(), sort, filters, switches).prop_map(|(keys, limit, revision, sort, filters, on)| {
        let zero = Revision(0);
        let filters = if on.2 { filters } else { (zero, zero, zero, zero) };
        Range {
            keys,
            limit,
            revision,
            sort,
            keys_only: on.0,
            count_only: on.1,
            uncounted: false,
            mod_revision_min: filters.0,
            mod_revision_max: filters.1,
            create_revision_min: filters.2,
            create_revision_max: filters.3,
        }
    })
}

fn put() -> impl Strategy<Value = Put> {
    let ignore = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (key(), value(), 0i64..3, any::<bool>(), ignore).prop_map(|(key, value, lease, prev_kv, (value_too, lease_too))| {
        Put { key, value, lease, prev_kv, ignore_value: value_too, ignore_lease: lease_too }
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let relation = prop::sample::select(vec![Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater]);
    let operand = prop_oneof![
        (0i64..4).prop_map(Operand::Version),
        (0i64..300).prop_map(Operand::Create),
        (0i64..300).prop_map(Operand::Mod),
        (0i64..3).prop_map(Operand::Lease),
        value().prop_map(Operand::Value),
        Just(Operand::Mod(0)),
    ];
    (keys(), relation, operand).prop_map(|(keys, relation, operand)| Compare { keys, relation, operand })
}

/// Any operation, also ones that a gateway would refuse (the same key twice in a transaction).
pub fn op() -> impl Strategy<Value = Op> {
    let leaf = prop_oneof![
        2 => range().prop_map(Op::Range),
        6 => put().prop_map(Op::Put),
        3 => (keys(), any::<bool>()).prop_map(|(keys, prev_kv)| Op::Delete(Delete { keys, prev_kv })),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let list = || prop::collection::vec(inner.clone(), 0..4);
        (prop::collection::vec(compare(), 0..3), list(), list())
            .prop_map(|(compare, success, failure)| Op::Txn(Txn { compare, success, failure }))
    })
}

/// Operations that only read.
pub fn read() -> impl Strategy<Value = Op> {
    let ranges = || prop::collection::vec(range().prop_map(Op::Range), 0..3);
    prop_oneof![
        3 => range().prop_map(Op::Range),
        1 => (prop::collection::vec(compare(), 0..2), ranges(), ranges())
            .prop_map(|(compare, success, failure)| Op::Txn(Txn { compare, success, failure })),
    ]
}
