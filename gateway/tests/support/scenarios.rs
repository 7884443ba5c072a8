//! What is asked of every server. No scenario sends an unknown enum value: some kill etcd.

use super::transcript::Transcript;
use bytes::Bytes;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request as Op;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

fn range(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

fn delete(key: &str, end: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(key), range_end: bytes(end), prev_kv: false }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    op(Op::RequestPut(put(key, value)))
}

fn range_op(key: &str, end: &str) -> pb::RequestOp {
    op(Op::RequestRange(range(key, end)))
}

fn delete_op(key: &str, end: &str) -> pb::RequestOp {
    op(Op::RequestDeleteRange(delete(key, end)))
}

fn txn(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { compare, success, failure }
}

fn txn_op(compare: Vec<pb::Compare>, success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
    op(Op::RequestTxn(txn(compare, success, failure)))
}

fn compare(key: &str, result: CompareResult, target: CompareTarget, operand: Option<TargetUnion>) -> pb::Compare {
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: bytes(key),
        range_end: Bytes::new(),
        target_union: operand,
    }
}

/// A compare that always holds, or never does.
fn always(holds: bool) -> pb::Compare {
    let result = if holds { CompareResult::Equal } else { CompareResult::NotEqual };
    compare("nowhere", result, CompareTarget::Version, Some(TargetUnion::Version(0)))
}

async fn fill(t: &mut Transcript, keys: &[&str]) {
    for key in keys {
        t.put(put(key, &format!("value of {key}"))).await;
    }
}

/// Lives of a key.
pub async fn versions(t: &mut Transcript) {
    t.range(get("a")).await;
    t.put(put("a", "1")).await;
    t.put(put("a", "2")).await;
    t.range(get("a")).await;
    t.delete(delete("a", "")).await;
    t.range(get("a")).await;
    t.delete(delete("a", "")).await;
    t.put(put("a", "")).await;
    t.range(get("a")).await;
    t.say("a pair before is answered where there was one");
    t.put(pb::PutRequest { prev_kv: true, ..put("a", "3") }).await;
    t.put(pb::PutRequest { prev_kv: true, ..put("b", "3") }).await;
    t.delete(pb::DeleteRangeRequest { prev_kv: true, ..delete("a", "z") }).await;
}

/// What a put may not say, and what it keeps.
pub async fn puts(t: &mut Transcript) {
    t.put(put("", "1")).await;
    t.put(pb::PutRequest { ignore_value: true, ..put("a", "") }).await;
    t.put(pb::PutRequest { ignore_lease: true, ..put("a", "1") }).await;
    t.put(put("a", "1")).await;
    t.put(pb::PutRequest { ignore_value: true, ..put("a", "") }).await;
    t.put(pb::PutRequest { ignore_lease: true, prev_kv: true, ..put("a", "2") }).await;
    t.range(get("a")).await;
    t.put(pb::PutRequest { ignore_value: true, ..put("a", "3") }).await;
    t.put(pb::PutRequest { ignore_lease: true, lease: 5, ..put("a", "3") }).await;
    t.put(pb::PutRequest { ignore_value: true, ignore_lease: true, lease: 5, ..put("", "3") }).await;
    t.put(pb::PutRequest { lease: 4711, ..put("a", "3") }).await;
    t.range(get("a")).await;
    t.say("bytes of any kind");
    let key = Bytes::from_static(b"\0\xff");
    t.put(pb::PutRequest { key: key.clone(), value: Bytes::from_static(b"\xff\0"), ..Default::default() }).await;
    t.range(pb::RangeRequest { key, ..Default::default() }).await;
}

/// Where ranges begin and end.
pub async fn ranges(t: &mut Transcript) {
    t.range(range("a", "\0")).await;
    fill(t, &["a", "aa", "ab", "b", "m", "z"]).await;
    t.range(range("a", "b")).await;
    t.range(range("aa", "\0")).await;
    t.range(range("\0", "\0")).await;
    t.range(range("b", "a")).await;
    t.range(range("b", "b")).await;
    t.range(range("c", "d")).await;
    t.range(range("", "z")).await;
    t.range(get("")).await;
    t.say("limits");
    for limit in [1, 2, 6, 7, -1] {
        t.range(pb::RangeRequest { limit, ..range("a", "\0") }).await;
    }
    t.say("keys and counts only");
    t.range(pb::RangeRequest { keys_only: true, ..range("a", "b") }).await;
    t.range(pb::RangeRequest { count_only: true, ..range("a", "b") }).await;
    t.range(pb::RangeRequest { count_only: true, limit: 1, ..range("a", "b") }).await;
    t.range(pb::RangeRequest { count_only: true, keys_only: true, ..get("a") }).await;
    t.say("serializable");
    t.range(pb::RangeRequest { serializable: true, ..range("a", "b") }).await;
    t.range(pb::RangeRequest { serializable: true, revision: 1_000_000, ..range("a", "b") }).await;
}

/// Orders. No two keys tie, but where the order is by key.
pub async fn sorting(t: &mut Transcript) {
    for (key, value) in [("c", "2"), ("a", "3"), ("b", "1"), ("a", "4"), ("a", "5"), ("b", "0")] {
        t.put(put(key, value)).await;
    }
    let targets = [SortTarget::Key, SortTarget::Version, SortTarget::Create, SortTarget::Mod, SortTarget::Value];
    for target in targets {
        for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
            let sorted = pb::RangeRequest { sort_order: order as i32, sort_target: target as i32, ..range("a", "z") };
            t.range(pb::RangeRequest { keys_only: true, ..sorted.clone() }).await;
            t.range(pb::RangeRequest { limit: 2, ..sorted }).await;
        }
    }
}

/// Bounds on revisions.
pub async fn filters(t: &mut Transcript) {
    fill(t, &["a", "b", "c", "a"]).await;
    let (first, third, fourth) = (t.w(1), t.w(3), t.w(4));
    let all = || range("a", "z");
    t.range(pb::RangeRequest { min_mod_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { max_mod_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { min_mod_revision: third, max_mod_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { max_create_revision: first, ..all() }).await;
    t.range(pb::RangeRequest { min_create_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { min_mod_revision: fourth, min_create_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { limit: 1, min_mod_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { limit: 1, count_only: true, min_mod_revision: third, ..all() }).await;
    t.range(pb::RangeRequest { max_mod_revision: -1, ..all() }).await;
    t.range(pb::RangeRequest { min_mod_revision: -1, ..all() }).await;
    t.range(pb::RangeRequest { max_create_revision: -1, ..all() }).await;
}

/// Reads in the past.
pub async fn history(t: &mut Transcript) {
    fill(t, &["a", "b"]).await;
    t.put(put("a", "new")).await;
    t.delete(delete("b", "")).await;
    let all = |revision| pb::RangeRequest { revision, ..range("a", "z") };
    for n in 1..=4 {
        let revision = t.w(n);
        t.range(all(revision)).await;
    }
    t.range(all(-1)).await;
    let (second, future) = (t.w(2), t.future());
    t.range(pb::RangeRequest { limit: 1, ..all(second) }).await;
    t.range(pb::RangeRequest { count_only: true, ..all(second) }).await;
    t.range(all(future)).await;
    t.range(pb::RangeRequest { revision: future, ..get("a") }).await;
}

/// Deletions.
pub async fn deletes(t: &mut Transcript) {
    fill(t, &["a", "b", "c", "d"]).await;
    t.delete(delete("", "")).await;
    t.delete(delete("x", "")).await;
    t.delete(delete("c", "b")).await;
    t.delete(pb::DeleteRangeRequest { prev_kv: true, ..delete("b", "d") }).await;
    t.range(range("\0", "\0")).await;
    t.delete(delete("a", "\0")).await;
    t.range(range("\0", "\0")).await;
    t.delete(delete("\0", "\0")).await;
}

/// Every target and relation, on a key that is there and on one that is not.
pub async fn compares(t: &mut Transcript) {
    fill(t, &["b", "a", "a"]).await;
    let (create, modified) = (t.w(2), t.w(3));
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let operands = [
        (CompareTarget::Version, [TargetUnion::Version(0), TargetUnion::Version(2)]),
        (CompareTarget::Create, [TargetUnion::CreateRevision(0), TargetUnion::CreateRevision(create)]),
        (CompareTarget::Mod, [TargetUnion::ModRevision(0), TargetUnion::ModRevision(modified)]),
        (CompareTarget::Value, [TargetUnion::Value(bytes("")), TargetUnion::Value(bytes("value of a"))]),
        (CompareTarget::Lease, [TargetUnion::Lease(0), TargetUnion::Lease(1)]),
    ];
    for key in ["a", "nowhere"] {
        for (target, operands) in &operands {
            for operand in operands {
                for result in [Equal, Greater, Less, NotEqual] {
                    t.txn(txn(vec![compare(key, result, *target, Some(operand.clone()))], vec![], vec![])).await;
                }
            }
            t.txn(txn(vec![compare(key, Equal, *target, None)], vec![], vec![])).await;
        }
    }
    t.say("an operand of another kind");
    let other = compare("a", Greater, CompareTarget::Version, Some(TargetUnion::Value(bytes("1"))));
    t.txn(txn(vec![other], vec![], vec![])).await;
    t.say("ranges must hold for every key; an empty one compares like a missing key");
    for (key, end) in [("a", "c"), ("a", "\0"), ("x", "z"), ("c", "a")] {
        for (target, operand) in [
            (CompareTarget::Version, TargetUnion::Version(1)),
            (CompareTarget::Version, TargetUnion::Version(0)),
            (CompareTarget::Value, TargetUnion::Value(bytes("value"))),
        ] {
            let compare = compare(key, Greater, target, Some(operand));
            t.txn(txn(vec![pb::Compare { range_end: bytes(end), ..compare }], vec![], vec![])).await;
        }
    }
    t.say("all must hold");
    t.txn(txn(vec![always(true), always(false)], vec![], vec![])).await;
    t.txn(txn(vec![compare("", Equal, CompareTarget::Version, None)], vec![], vec![])).await;
}

/// Transactions: branches, what they see of themselves, nesting.
pub async fn txns(t: &mut Transcript) {
    t.txn(txn(vec![], vec![], vec![])).await;
    t.txn(txn(vec![always(false)], vec![put_op("a", "then")], vec![put_op("a", "else")])).await;
    t.txn(txn(vec![always(false)], vec![put_op("a", "then")], vec![])).await;
    t.say("operations see the ones before them");
    let ops = vec![range_op("a", "z"), put_op("b", "1"), range_op("a", "z"), delete_op("a", ""), range_op("a", "z")];
    t.txn(txn(vec![], ops, vec![])).await;
    t.range(range("a", "z")).await;
    t.say("one revision for all");
    t.txn(txn(vec![], vec![put_op("x", "1"), put_op("y", "1"), delete_op("b", "")], vec![])).await;
    t.range(range("a", "zz")).await;
    t.say("deletes of nothing take no revision");
    t.txn(txn(vec![], vec![delete_op("nothing", ""), range_op("x", "")], vec![])).await;
    t.say("pairs before");
    let before = pb::PutRequest { prev_kv: true, ..put("x", "2") };
    let gone = pb::DeleteRangeRequest { prev_kv: true, ..delete("y", "") };
    t.txn(txn(vec![], vec![op(Op::RequestPut(before)), op(Op::RequestDeleteRange(gone))], vec![])).await;
    t.say("nested compares look at the state before the whole transaction");
    let is_two = || compare("x", CompareResult::Equal, CompareTarget::Value, Some(TargetUnion::Value(bytes("2"))));
    let nested = txn_op(vec![is_two()], vec![put_op("n", "two"), range_op("m", "o")], vec![put_op("n", "other")]);
    t.txn(txn(vec![], vec![put_op("x", "3"), nested, range_op("x", "")], vec![])).await;
    let deep = txn_op(vec![], vec![txn_op(vec![always(false)], vec![], vec![put_op("deep", "1")])], vec![]);
    t.txn(txn(vec![], vec![deep, range_op("deep", "")], vec![])).await;
    t.txn(txn(vec![], vec![txn_op(vec![], vec![range_op("x", "")], vec![])], vec![])).await;
    t.say("kept values and leases");
    let kept = pb::PutRequest { ignore_value: true, ..put("missing", "") };
    t.txn(txn(vec![], vec![put_op("q", "1"), op(Op::RequestPut(kept.clone()))], vec![])).await;
    t.txn(txn(vec![always(false)], vec![op(Op::RequestPut(kept))], vec![put_op("q", "2")])).await;
    t.range(range("a", "z")).await;
}

/// Reads at a revision inside a transaction.
pub async fn txn_history(t: &mut Transcript) {
    fill(t, &["a", "a"]).await;
    let (first, future) = (t.w(1), t.future());
    let at = |revision| op(Op::RequestRange(pb::RangeRequest { revision, ..get("a") }));
    t.txn(txn(vec![], vec![at(first)], vec![])).await;
    t.txn(txn(vec![], vec![put_op("a", "new"), at(first), range_op("a", "")], vec![])).await;
    t.txn(txn(vec![], vec![at(future)], vec![])).await;
    t.txn(txn(vec![], vec![put_op("a", "newer"), at(future)], vec![])).await;
    t.txn(txn(vec![always(false)], vec![at(future)], vec![put_op("b", "1")])).await;
    t.range(range("a", "z")).await;
}

/// What a transaction may not say.
pub async fn txn_checks(t: &mut Transcript) {
    t.txn(txn(vec![], vec![put_op("", "1")], vec![])).await;
    t.txn(txn(vec![], vec![], vec![range_op("", "")])).await;
    t.txn(txn(vec![], vec![delete_op("", "z")], vec![])).await;
    t.txn(txn(vec![], vec![pb::RequestOp { request: None }], vec![])).await;
    t.txn(txn(vec![], vec![op(Op::RequestPut(pb::PutRequest { ignore_value: true, ..put("a", "1") }))], vec![])).await;
    t.txn(txn(
        vec![],
        vec![op(Op::RequestPut(pb::PutRequest { ignore_lease: true, lease: 1, ..put("a", "1") }))],
        vec![],
    ))
    .await;
    t.txn(txn(vec![], vec![op(Op::RequestPut(pb::PutRequest { lease: 4711, ..put("a", "1") }))], vec![])).await;
    t.say("no key is written twice");
    t.txn(txn(vec![], vec![put_op("a", "1"), put_op("a", "1")], vec![])).await;
    t.txn(txn(vec![], vec![put_op("a", "1"), delete_op("a", "")], vec![])).await;
    t.txn(txn(vec![], vec![delete_op("a", "c"), put_op("b", "1")], vec![])).await;
    t.txn(txn(vec![], vec![put_op("c", "1"), delete_op("a", "c")], vec![])).await;
    t.txn(txn(vec![], vec![delete_op("a", ""), delete_op("a", "c")], vec![])).await;
    t.txn(txn(vec![], vec![], vec![put_op("a", "1"), put_op("a", "1")])).await;
    t.txn(txn(vec![], vec![put_op("d", "1")], vec![put_op("d", "1")])).await;
    t.say("also not by a nested transaction, whichever branch it takes");
    t.txn(txn(vec![], vec![txn_op(vec![], vec![put_op("a", "1")], vec![]), put_op("a", "1")], vec![])).await;
    t.txn(txn(vec![], vec![txn_op(vec![], vec![], vec![put_op("a", "1")]), put_op("a", "1")], vec![])).await;
    t.txn(txn(vec![], vec![txn_op(vec![], vec![put_op("e", "1")], vec![put_op("e", "1")])], vec![])).await;
    let each = || txn_op(vec![], vec![put_op("a", "1")], vec![]);
    t.txn(txn(vec![], vec![each(), each()], vec![])).await;
    t.txn(txn(vec![], vec![txn_op(vec![], vec![delete_op("a", "c")], vec![]), put_op("b", "1")], vec![])).await;
    t.txn(txn(vec![], vec![txn_op(vec![], vec![put_op("b", "1")], vec![]), delete_op("a", "c")], vec![])).await;
    t.say("a deletion of all that follows");
    t.txn(txn(vec![], vec![delete_op("a", "\0"), put_op("z", "1")], vec![])).await;
    t.txn(txn(vec![], vec![delete_op("z", "a"), put_op("b", "1")], vec![])).await;
    t.say("so many operations and no more");
    let puts = |count: usize| (0..count).map(|i| put_op(&format!("k{i:03}"), "")).collect::<Vec<_>>();
    t.txn(txn(vec![always(false)], puts(128), vec![])).await;
    t.txn(txn(vec![], puts(129), vec![])).await;
    t.txn(txn(vec![always(true); 129], vec![], vec![])).await;
    t.txn(txn(vec![always(false)], vec![txn_op(vec![], puts(127), vec![])], vec![])).await;
    t.txn(txn(vec![always(false)], vec![txn_op(vec![], puts(128), vec![])], vec![])).await;
}

/// Sizes.
pub async fn sizes(t: &mut Transcript) {
    let value = |bytes: usize| pb::PutRequest { value: vec![b'v'; bytes].into(), ..put("big", "") };
    t.put(value(1 << 20)).await;
    t.put(value((3 << 19) + 1)).await;
    t.put(value(2_000_000)).await;
    t.say("reads are not logged, and may be larger");
    let read = || op(Op::RequestRange(pb::RangeRequest { key: vec![b'k'; 800_000].into(), ..Default::default() }));
    t.txn(txn(vec![], vec![read(), read()], vec![])).await;
    t.delete(pb::DeleteRangeRequest { key: vec![b'k'; 1_600_000].into(), ..Default::default() }).await;
    t.range(pb::RangeRequest { count_only: true, ..range("\0", "\0") }).await;
    let half = || op(Op::RequestPut(pb::PutRequest { value: vec![b'v'; 800_000].into(), ..put("x", "") }));
    t.txn(txn(
        vec![],
        vec![
            half(),
            op(Op::RequestPut(pb::PutRequest {
                key: bytes("y"),
                value: vec![b'v'; 800_000].into(),
                ..Default::default()
            })),
        ],
        vec![],
    ))
    .await;
    t.txn(txn(vec![], vec![half()], vec![])).await;
}

/// Compaction; the last, it reaches into every other scenario's history.
pub async fn compaction(t: &mut Transcript) {
    fill(t, &["a", "a", "b", "a"]).await;
    let (first, second, third, future) = (t.w(1), t.w(2), t.w(3), t.future());
    t.compact(future, false).await;
    t.compact(third, true).await;
    let at = |revision| pb::RangeRequest { revision, ..range("a", "z") };
    t.range(at(second)).await;
    t.range(pb::RangeRequest { revision: first, ..get("a") }).await;
    t.range(at(third)).await;
    t.range(at(0)).await;
    t.compact(third, false).await;
    t.compact(second, false).await;
    let inside = |revision| op(Op::RequestRange(pb::RangeRequest { revision, ..get("a") }));
    t.txn(txn(vec![], vec![inside(second)], vec![])).await;
    t.txn(txn(vec![], vec![put_op("a", "never"), inside(second)], vec![])).await;
    t.txn(txn(vec![], vec![put_op("a", "new"), inside(third)], vec![])).await;
    let newest = t.w(5);
    t.compact(newest, false).await;
    t.range(at(newest)).await;
    t.delete(delete("a", "z")).await;
    let gone = t.w(6);
    t.compact(gone, true).await;
    t.range(at(gone)).await;
    t.range(at(newest)).await;
    t.compact(0, false).await;
    t.compact(-1, false).await;
}
