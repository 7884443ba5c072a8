//! Operations on keys and their results, in our own words: the gateway translates the etcd API
//! into these, groups log and apply them. Numbers that etcd types as int64 are `u64` here where
//! they cannot be negative.

use crate::types::{Keys, Revision};
use bytes::Bytes;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::cell::Cell;

/// One operation; transactions nest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Reads keys.
    Range(Range),
    /// Writes one key.
    Put(Put),
    /// Deletes keys.
    Delete(Delete),
    /// Compares, then runs one of two lists of operations, atomically.
    Txn(Txn),
}

/// Reads keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Which keys.
    pub keys: Keys,
    /// At most this many key-value pairs; 0 means all.
    pub limit: u64,
    /// Read at this revision; 0 means the newest. Inside a transaction it may be set, too.
    pub revision: Revision,
    /// The order of the answer; ties are ordered by key.
    pub sort: Sort,
    /// Leave the values out.
    pub keys_only: bool,
    /// Answer the count only.
    pub count_only: bool,
    /// Nobody looks at the count behind the limit: a page of a large range costs what it holds, and not what
    /// lies behind it.
    pub uncounted: bool,
    /// Drop pairs with a smaller mod revision; 0 means none. Likewise the three below.
    pub mod_revision_min: Revision,
    /// Drop pairs with a larger mod revision.
    pub mod_revision_max: Revision,
    /// Drop pairs with a smaller create revision.
    pub create_revision_min: Revision,
    /// Drop pairs with a larger create revision.
    pub create_revision_max: Revision,
}

impl Range {
    /// Reads all of `keys` at the newest revision, in key order.
    pub fn all(keys: Keys) -> Range {
        let zero = Revision(0);
        Range {
            keys,
            limit: 0,
            revision: zero,
            sort: Sort::default(),
            keys_only: false,
            count_only: false,
            uncounted: false,
            mod_revision_min: zero,
            mod_revision_max: zero,
            create_revision_min: zero,
            create_revision_max: zero,
        }
    }
}

/// The order of a range's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sort {
    /// By what.
    pub target: SortTarget,
    /// Descending instead of ascending.
    pub descending: bool,
}

/// What a range's answer is ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// Writes since its creation.
    Version,
    /// The revision of its creation.
    Create,
    /// The revision of its last write.
    Mod,
    /// The value.
    Value,
}

/// Writes one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The key; never empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to attach; 0 means none.
    pub lease: i64,
    /// Answer the pair before.
    pub prev_kv: bool,
    /// Keep the present value (the key must exist).
    pub ignore_value: bool,
    /// Keep the present lease (the key must exist).
    pub ignore_lease: bool,
}

/// Deletes keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// Which keys.
    pub keys: Keys,
    /// Answer the pairs before.
    pub prev_kv: bool,
}

/// If all of `compare` hold, `success` runs, else `failure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// The conditions; none means true.
    pub compare: Vec<Compare>,
    /// Runs if all hold.
    #[serde(deserialize_with = "nested")]
    pub success: Vec<Op>,
    /// Runs otherwise.
    #[serde(deserialize_with = "nested")]
    pub failure: Vec<Op>,
}

/// Transactions inside transactions; deeper ones do not decode, and the gateway refuses them.
pub const TXN_DEPTH_MAX: u32 = 64;

/// Decodes a branch, unless it lies too deep: a few bytes per level must not overflow the stack of
/// whoever decodes them.
fn nested<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Op>, D::Error> {
    thread_local!(static DEPTH: Cell<u32> = const { Cell::new(0) });
    let depth = DEPTH.get();
    if depth >= TXN_DEPTH_MAX {
        return Err(D::Error::custom("transactions are nested too deeply"));
    }
    DEPTH.set(depth + 1);
    let ops = Vec::deserialize(deserializer);
    DEPTH.set(depth);
    ops
}

/// A condition on one key, or on every key of a range. A missing key compares as zeros, except a
/// value, which is then unequal to everything and the compare false for every relation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// Which keys.
    pub keys: Keys,
    /// The relation between the stored attribute (left) and the operand (right).
    pub relation: Relation,
    /// The attribute and the operand.
    pub operand: Operand,
}

/// A relation between two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// The attribute that a compare looks at, with the value to compare it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Operand {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
}

/// A stored pair as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Empty if only keys were asked for.
    pub value: Bytes,
    /// The revision of its creation.
    pub create_revision: Revision,
    /// The revision of its last write.
    pub mod_revision: Revision,
    /// Writes since its creation; 1 for a new key.
    pub version: u64,
    /// The attached lease, or 0.
    pub lease: i64,
}

/// What an operation answers; nests as the operation did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResult {
    /// Of a [`Range`].
    Range(RangeResult),
    /// Of a [`Put`].
    Put {
        /// The pair before, if asked for and there was one.
        prev_kv: Option<KeyValue>,
    },
    /// Of a [`Delete`].
    Delete {
        /// How many keys were deleted.
        deleted: u64,
        /// The pairs before, if asked for.
        prev_kvs: Vec<KeyValue>,
    },
    /// Of a [`Txn`].
    Txn {
        /// Whether all compares held.
        succeeded: bool,
        /// Of the branch that ran, in order.
        results: Vec<OpResult>,
    },
}

/// What a range answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeResult {
    /// The pairs, in the order asked for.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit cut some off.
    pub more: bool,
    /// Keys in the whole range, whatever the limit and the filters; of an uncounted range, how many were met.
    pub count: u64,
}

impl Op {
    /// Whether nothing in it, in any branch, could write.
    pub fn is_read_only(&self) -> bool {
        match self {
            Op::Range(_) => true,
            Op::Put(_) | Op::Delete(_) => false,
            Op::Txn(txn) => txn.success.iter().chain(&txn.failure).all(Op::is_read_only),
        }
    }

    /// Calls `f` with every key or range that it names (compares, both branches, nested ones).
    pub fn for_each_keys<'a>(&'a self, f: &mut dyn FnMut(&'a Keys, Access)) {
        match self {
            Op::Range(range) => f(&range.keys, Access::Read),
            Op::Put(_) => {}
            Op::Delete(delete) => f(&delete.keys, Access::Write),
            Op::Txn(txn) => {
                txn.compare.iter().for_each(|compare| f(&compare.keys, Access::Read));
                txn.success.iter().chain(&txn.failure).for_each(|op| op.for_each_keys(f));
            }
        }
    }

    /// The first key that it names, as it is written; `None` only for a transaction without any.
    pub fn first_key(&self) -> Option<&[u8]> {
        match self {
            Op::Range(range) => Some(range.keys.bounds().0),
            Op::Put(put) => Some(&put.key),
            Op::Delete(delete) => Some(delete.keys.bounds().0),
            Op::Txn(txn) => {
                let compared = txn.compare.first().map(|compare| compare.keys.bounds().0);
                compared.or_else(|| txn.success.iter().chain(&txn.failure).find_map(Op::first_key))
            }
        }
    }

    /// Calls `f` with every key that a put in it names (both branches, nested ones).
    pub fn for_each_put<'a>(&'a self, f: &mut dyn FnMut(&'a Put)) {
        match self {
            Op::Range(_) | Op::Delete(_) => {}
            Op::Put(put) => f(put),
            Op::Txn(txn) => txn.success.iter().chain(&txn.failure).for_each(|op| op.for_each_put(f)),
        }
    }
}

/// How an operation touches keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Access {
    Read,
    Write,
}
