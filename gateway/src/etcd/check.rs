//! What etcd checks before a request enters its log, in its order.

use super::errors::{
    DUPLICATE_KEY, EMPTY_KEY, EtcdError, INVALID_COMPARE, INVALID_SORT, KEY_NOT_FOUND, LEASE_PROVIDED, TOO_MANY_OPS,
    VALUE_PROVIDED,
};
use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request;
use shardkv::ops::TXN_DEPTH_MAX;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn range(request: &pb::RangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EMPTY_KEY);
    }
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() {
        return Err(INVALID_SORT);
    }
    Ok(())
}

pub(crate) fn put(request: &pb::PutRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EMPTY_KEY);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(LEASE_PROVIDED);
    }
    Ok(())
}

pub(crate) fn delete(request: &pb::DeleteRangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() { Err(EMPTY_KEY) } else { Ok(()) }
}

pub(crate) fn txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), EtcdError> {
    txn_ops(request, ops_max, TXN_DEPTH_MAX)?;
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// The longest of the three lists counts, and what is left is the budget of the nested ones.
fn txn_ops(request: &pb::TxnRequest, ops_max: usize, depth_max: u32) -> Result<(), EtcdError> {
    let Some(depth_left) = depth_max.checked_sub(1) else { return Err(TOO_MANY_OPS) };
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = ops_max.checked_sub(ops) else { return Err(TOO_MANY_OPS) };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EMPTY_KEY);
    }
    for compare in &request.compare {
        let result = pb::compare::CompareResult::try_from(compare.result);
        let target = pb::compare::CompareTarget::try_from(compare.target);
        if result.is_err() || target.is_err() {
            return Err(INVALID_COMPARE);
        }
    }
    request.success.iter().chain(&request.failure).try_for_each(|op| match &op.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete(request),
        Some(Request::RequestTxn(request)) => txn_ops(request, left, depth_left),
        // An operation without content; etcd's choice of words.
        None => Err(KEY_NOT_FOUND),
    })
}

/// What one list of operations may write, whichever branches its nested transactions take. No key
/// may be put twice, or put and deleted, at one revision.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Intervals,
}

impl Writes {
    fn of(ops: &[pb::RequestOp]) -> Result<Writes, EtcdError> {
        let mut writes = Writes::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                writes.deletes.add(&delete.key, &delete.range_end);
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                writes.add_nested(Writes::of(&txn.success)?, Writes::of(&txn.failure)?)?;
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                writes.add_put(put.key.clone())?;
            }
        }
        Ok(writes)
    }

    /// Both branches of a nested transaction: they exclude each other, but not what is beside them.
    fn add_nested(&mut self, success: Writes, failure: Writes) -> Result<(), EtcdError> {
        let both: BTreeSet<Bytes> = success.puts.union(&failure.puts).cloned().collect();
        for key in both {
            self.add_put(key)?;
        }
        self.deletes.add_all(success.deletes);
        self.deletes.add_all(failure.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: Bytes) -> Result<(), EtcdError> {
        if self.deletes.contains(&key) || !self.puts.insert(key) { Err(DUPLICATE_KEY) } else { Ok(()) }
    }
}

/// A set of keys as disjoint intervals `start → end`. Adding costs a logarithm, so that a request
/// full of deletions costs no more than its bytes suggest.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    fn add(&mut self, key: &Bytes, range_end: &Bytes) {
        let end = match &range_end[..] {
            [] => [key, &b"\0"[..]].concat().into(),
            // A deletion of all that follows ends with "\0" here, below its start, and so counts
            // for nothing: etcd lets puts behind it pass, and they win by their place in the list.
            _ => range_end.clone(),
        };
        if end > *key {
            self.insert(key.clone(), end);
        }
    }

    fn add_all(&mut self, other: Intervals) {
        other.0.into_iter().for_each(|(start, end)| self.insert(start, end));
    }

    fn insert(&mut self, mut start: Bytes, mut end: Bytes) {
        if let Some((before, _)) =
            self.0.range(..=start.clone()).next_back().filter(|(_, before_end)| **before_end >= start)
        {
            start = before.clone();
        }
        while let Some(key) = self.0.range(start.clone()..=end.clone()).next().map(|(key, _)| key.clone()) {
            end = self.0.remove(&key).map_or(end.clone(), |other| other.max(end));
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.0.range(..=key.clone()).next_back().is_some_and(|(_, end)| key < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_op(key: &str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: bytes(key), ..Default::default() }))
    }

    fn delete_op(key: &str, end: &str) -> pb::RequestOp {
        let (key, range_end) = (bytes(key), bytes(end));
        op(Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false }))
    }

    fn txn_op(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest { compare: vec![], success, failure }))
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), EtcdError> {
        txn(&pb::TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn a_key_is_written_once_whichever_branch_runs() {
        let duplicate = Err(DUPLICATE_KEY);
        assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), duplicate);
        assert_eq!(check(vec![delete_op("a", "c"), put_op("b")]), duplicate);
        assert_eq!(check(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(check(vec![delete_op("a", ""), delete_op("a", "")]), Ok(()), "twice deleted is fine");
        assert_eq!(check(vec![delete_op("a", "\0"), put_op("b")]), Ok(()), "as etcd has it");
        assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()), "either, never both");
        assert_eq!(check(vec![txn_op(vec![put_op("a")], vec![]), put_op("a")]), duplicate);
        assert_eq!(check(vec![txn_op(vec![], vec![put_op("a")]), txn_op(vec![put_op("a")], vec![])]), duplicate);
        assert_eq!(check(vec![txn_op(vec![delete_op("a", "c")], vec![]), put_op("b")]), duplicate);
        assert_eq!(
            check(vec![txn_op(vec![txn_op(vec![put_op("b")], vec![])], vec![]), delete_op("a", "c")]),
            duplicate
        );
    }

    #[test]
    fn nested_operations_share_the_budget() {
        let puts = |from: usize, count: usize| (from..from + count).map(|i| put_op(&i.to_string())).collect::<Vec<_>>();
        assert_eq!(check(puts(0, 128)), Ok(()));
        assert_eq!(check(puts(0, 129)), Err(TOO_MANY_OPS));
        assert_eq!(check(vec![txn_op(puts(0, 127), vec![])]), Ok(()));
        assert_eq!(check(vec![txn_op(puts(0, 128), vec![])]), Err(TOO_MANY_OPS));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = |levels: u32| (1..levels).fold(vec![], |inner, _| vec![txn_op(inner, vec![])]);
        assert_eq!(check(deep(TXN_DEPTH_MAX)), Ok(()));
        assert_eq!(check(deep(TXN_DEPTH_MAX + 1)), Err(TOO_MANY_OPS));
    }

    proptest! {
        /// The intervals hold exactly the keys that one of the added ones holds.
        #[test]
        fn intervals_are_the_union(added in prop::collection::vec(("[a-d]{1,2}", "[a-d]{0,2}"), 0..12), probe in "[a-d]{1,2}") {
            let mut intervals = Intervals::default();
            for (key, end) in &added {
                intervals.add(&bytes(key), &bytes(end));
            }
            let expected = added.iter().any(|(key, end)| if end.is_empty() { *key == probe } else { *key <= probe && probe < *end });
            prop_assert_eq!(intervals.contains(&bytes(&probe)), expected);
        }
    }
}
