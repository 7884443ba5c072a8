//! Between etcd's messages and our operations. Requests were checked before (see `check`).

use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget as PbTarget};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::response_op::Response;
use proto::mvccpb;
use shardkv::ops::{
    Compare, Delete, KeyValue, Op, OpResult, Operand, Put, Range, RangeResult, Relation, Sort, SortTarget, Txn,
};
use shardkv::types::{Keys, Revision};

/// etcd's numbers are signed; ours never reach the sign.
pub(crate) fn to_i64(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A negative number where etcd takes it for "none".
fn or_none(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// An upper bound on a revision. 0 means none; a negative one admits nothing, like 1, which no key
/// has.
fn at_most(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(1))
}

fn keys(key: Bytes, range_end: Bytes) -> Keys {
    match &range_end[..] {
        [] => Keys::One(key),
        [0] => Keys::From(key),
        _ => Keys::Range { start: key, end: range_end },
    }
}

pub(crate) fn range(request: pb::RangeRequest) -> Range {
    let target = match PbTarget::try_from(request.sort_target).unwrap_or_default() {
        PbTarget::Key => SortTarget::Key,
        PbTarget::Version => SortTarget::Version,
        PbTarget::Create => SortTarget::Create,
        PbTarget::Mod => SortTarget::Mod,
        PbTarget::Value => SortTarget::Value,
    };
    let descending = SortOrder::try_from(request.sort_order) == Ok(SortOrder::Descend);
    Range {
        keys: keys(request.key, request.range_end),
        limit: or_none(request.limit),
        revision: Revision(or_none(request.revision)),
        sort: Sort { target, descending },
        keys_only: request.keys_only,
        count_only: request.count_only,
        uncounted: false,
        mod_revision_min: Revision(or_none(request.min_mod_revision)),
        mod_revision_max: at_most(request.max_mod_revision),
        create_revision_min: Revision(or_none(request.min_create_revision)),
        create_revision_max: at_most(request.max_create_revision),
    }
}

pub(crate) fn put(request: pb::PutRequest) -> Put {
    Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub(crate) fn delete(request: pb::DeleteRangeRequest) -> Delete {
    Delete { keys: keys(request.key, request.range_end), prev_kv: request.prev_kv }
}

pub(crate) fn txn(request: pb::TxnRequest) -> Txn {
    Txn {
        compare: request.compare.into_iter().map(compare).collect(),
        success: request.success.into_iter().filter_map(op).collect(),
        failure: request.failure.into_iter().filter_map(op).collect(),
    }
}

fn op(op: pb::RequestOp) -> Option<Op> {
    Some(match op.request? {
        Request::RequestRange(request) => Op::Range(range(request)),
        Request::RequestPut(request) => Op::Put(put(request)),
        Request::RequestDeleteRange(request) => Op::Delete(delete(request)),
        Request::RequestTxn(request) => Op::Txn(txn(request)),
    })
}

fn compare(request: pb::Compare) -> Compare {
    let relation = match CompareResult::try_from(request.result).unwrap_or_default() {
        CompareResult::Equal => Relation::Equal,
        CompareResult::Greater => Relation::Greater,
        CompareResult::Less => Relation::Less,
        CompareResult::NotEqual => Relation::NotEqual,
    };
    // An operand of another kind than the target counts as absent, and an absent one as zero.
    let operand = match (CompareTarget::try_from(request.target).unwrap_or_default(), request.target_union) {
        (CompareTarget::Version, Some(TargetUnion::Version(number))) => Operand::Version(number),
        (CompareTarget::Version, _) => Operand::Version(0),
        (CompareTarget::Create, Some(TargetUnion::CreateRevision(number))) => Operand::Create(number),
        (CompareTarget::Create, _) => Operand::Create(0),
        (CompareTarget::Mod, Some(TargetUnion::ModRevision(number))) => Operand::Mod(number),
        (CompareTarget::Mod, _) => Operand::Mod(0),
        (CompareTarget::Value, Some(TargetUnion::Value(value))) => Operand::Value(value),
        (CompareTarget::Value, _) => Operand::Value(Bytes::new()),
        (CompareTarget::Lease, Some(TargetUnion::Lease(number))) => Operand::Lease(number),
        (CompareTarget::Lease, _) => Operand::Lease(0),
    };
    Compare { keys: keys(request.key, request.range_end), relation, operand }
}

/// Whether any put in a transaction names a lease.
pub(crate) fn names_lease(op: &Op) -> bool {
    let mut named = false;
    op.for_each_put(&mut |put| named |= put.lease != 0);
    named
}

/// Whether every range of a transaction may be stale; then so may the transaction, if it only reads.
pub(crate) fn is_serializable(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(Request::RequestRange(range)) => range.serializable,
        Some(Request::RequestTxn(txn)) => is_serializable(txn),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => false,
    })
}

pub(crate) fn pair(pair: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: pair.key,
        create_revision: to_i64(pair.create_revision.0),
        mod_revision: to_i64(pair.mod_revision.0),
        version: to_i64(pair.version),
        value: pair.value,
        lease: pair.lease,
    }
}

pub(crate) fn range_response(header: pb::ResponseHeader, result: RangeResult) -> pb::RangeResponse {
    pb::RangeResponse {
        header: Some(header),
        kvs: result.kvs.into_iter().map(pair).collect(),
        more: result.more,
        count: to_i64(result.count),
    }
}

pub(crate) fn put_response(header: pb::ResponseHeader, prev_kv: Option<KeyValue>) -> pb::PutResponse {
    pb::PutResponse { header: Some(header), prev_kv: prev_kv.map(pair) }
}

pub(crate) fn delete_response(
    header: pb::ResponseHeader,
    deleted: u64,
    prev_kvs: Vec<KeyValue>,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header: Some(header),
        deleted: to_i64(deleted),
        prev_kvs: prev_kvs.into_iter().map(pair).collect(),
    }
}

pub(crate) fn txn_response(header: pb::ResponseHeader, succeeded: bool, results: Vec<OpResult>) -> pb::TxnResponse {
    let after = header.revision;
    let before = if results.iter().any(changes) { after - 1 } else { after };
    let mut inner = Inner { revision: before, after };
    let responses = results.into_iter().map(|result| inner.response(result)).collect();
    pb::TxnResponse { header: Some(header), succeeded, responses }
}

/// Whether a result is of something that wrote.
fn changes(result: &OpResult) -> bool {
    match result {
        OpResult::Range(_) => false,
        OpResult::Put { .. } => true,
        OpResult::Delete { deleted, .. } => *deleted > 0,
        OpResult::Txn { results, .. } => results.iter().any(changes),
    }
}

/// Headers inside a transaction carry a revision only: of the state that the operation left, which
/// is the one below the transaction's until something is written.
struct Inner {
    revision: i64,
    after: i64,
}

impl Inner {
    fn response(&mut self, result: OpResult) -> pb::ResponseOp {
        if !matches!(result, OpResult::Txn { .. }) && changes(&result) {
            self.revision = self.after;
        }
        let header = pb::ResponseHeader { revision: self.revision, ..Default::default() };
        let response = match result {
            OpResult::Range(result) => Response::ResponseRange(range_response(header, result)),
            OpResult::Put { prev_kv } => Response::ResponsePut(put_response(header, prev_kv)),
            OpResult::Delete { deleted, prev_kvs } => {
                Response::ResponseDeleteRange(delete_response(header, deleted, prev_kvs))
            }
            OpResult::Txn { succeeded, results } => {
                let responses = results.into_iter().map(|result| self.response(result)).collect();
                // etcd leaves the header of a nested transaction empty.
                let header = Some(pb::ResponseHeader::default());
                Response::ResponseTxn(pb::TxnResponse { header, succeeded, responses })
            }
        };
        pb::ResponseOp { response: Some(response) }
    }
}
