//! Puts together what several groups answered about their parts of one range.

use shardkv::ops::{KeyValue, Op, OpResult, RangeResult, Sort, SortTarget};
use std::cmp::Ordering;

/// The bytes of a pair that count, with its numbers.
pub(crate) fn pair_bytes(pair: &KeyValue) -> usize {
    pair.key.len() + pair.value.len() + size_of::<KeyValue>()
}

/// The bytes that a range's answer holds.
pub(crate) fn range_bytes(result: &RangeResult) -> usize {
    result.kvs.iter().map(pair_bytes).sum()
}

/// The bytes that an operation holds.
pub(crate) fn op_bytes(op: &Op) -> usize {
    let inner = match op {
        Op::Range(_) | Op::Delete(_) => 0,
        Op::Put(put) => put.key.len() + put.value.len(),
        Op::Txn(txn) => {
            let compares = txn.compare.len() * size_of::<shardkv::ops::Compare>();
            compares + txn.success.iter().chain(&txn.failure).map(op_bytes).sum::<usize>()
        }
    };
    size_of::<Op>() + inner
}

/// Whether `result` is an answer to `op`, in kind. A peer that answers otherwise is not believed.
pub(crate) fn fits(op: &Op, result: &OpResult) -> bool {
    matches!(
        (op, result),
        (Op::Range(_), OpResult::Range(_))
            | (Op::Put(_), OpResult::Put { .. })
            | (Op::Delete(_), OpResult::Delete { .. })
            | (Op::Txn(_), OpResult::Txn { .. })
    )
}

/// The order of a range's answer: by the target, ties by key.
pub(crate) fn compare_pairs(sort: Sort, a: &KeyValue, b: &KeyValue) -> Ordering {
    let by_target = match sort.target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    let by_target = if sort.descending { by_target.reverse() } else { by_target };
    by_target.then_with(|| a.key.cmp(&b.key))
}

/// Merges the groups' answers. Each of them is ordered and cut to the limit already: the first
/// `limit` pairs of the whole are among the first `limit` pairs of the parts, in whatever order is
/// asked for, so no group need send more.
pub(crate) fn merge(sort: Sort, limit: u64, parts: Vec<RangeResult>) -> RangeResult {
    let count = parts.iter().map(|part| part.count).sum();
    let mut more = parts.iter().any(|part| part.more);
    let mut kvs: Vec<KeyValue> = Vec::with_capacity(parts.iter().map(|part| part.kvs.len()).sum());
    for mut part in parts {
        kvs.append(&mut part.kvs);
    }
    // A stable sort that finds runs: it costs a merge where the parts are ordered.
    kvs.sort_by(|a, b| compare_pairs(sort, a, b));
    if limit > 0 && kvs.len() as u64 > limit {
        kvs.truncate(limit as usize);
        more = true;
    }
    RangeResult { kvs, more, count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shardkv::types::Revision;

    fn sort_strategy() -> impl Strategy<Value = Sort> {
        use SortTarget::{Create, Key, Mod, Value, Version};
        let target = prop_oneof![Just(Key), Just(Version), Just(Create), Just(Mod), Just(Value)];
        (target, any::<bool>()).prop_map(|(target, descending)| Sort { target, descending })
    }

    fn answer(sort: Sort, limit: u64, mut kvs: Vec<KeyValue>) -> RangeResult {
        let count = kvs.len() as u64;
        kvs.sort_by(|a, b| compare_pairs(sort, a, b));
        let more = limit > 0 && count > limit;
        if more {
            kvs.truncate(limit as usize);
        }
        RangeResult { kvs, more, count }
    }

    proptest! {
        /// Merging the parts' answers gives the answer of the whole.
        #[test]
        fn merged_parts_equal_the_whole(
            pairs in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..3), (0u64..4, 0u64..4, 0u8..3, 0usize..3), 0..20),
            sort in sort_strategy(),
            limit in 0u64..8,
        ) {
            let mut all = Vec::new();
            let mut parts = vec![Vec::new(); 3];
            for (key, (version, revision, value, part)) in pairs {
                let pair = KeyValue {
                    key: key.into(),
                    value: vec![value].into(),
                    create_revision: Revision(revision / 2),
                    mod_revision: Revision(revision),
                    version,
                    lease: 0,
                };
                all.push(pair.clone());
                parts[part].push(pair);
            }
            let parts = parts.into_iter().map(|kvs| answer(sort, limit, kvs)).collect();
            prop_assert_eq!(merge(sort, limit, parts), answer(sort, limit, all));
        }
    }
}
