//! The basics that every etcd client uses, one after the other, each answer compared.

use crate::HarnessError;
use crate::client::{channel, kv};
use crate::cluster::Cluster;
use crate::observe;
use crate::system::{Layout, System};
use bytes::Bytes;
use checkers::{Revision, Value};
use proto::etcdserverpb as pb;
use std::fmt::Debug;
use std::path::PathBuf;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Kv = pb::kv_client::KvClient<Channel>;

/// Runs all steps; each talks to another gateway than the one before.
pub async fn run(system: System, layout: Layout, directory: PathBuf) -> Result<(), HarnessError> {
    let cluster = Cluster::start(system, layout, &directory).await?;
    let mut clients = cluster.endpoints().iter().map(|e| kv(channel(e))).collect::<Vec<_>>().into_iter().cycle();
    let mut next = || clients.next().expect("every layout serves clients");
    puts_and_gets(&mut next()).await?;
    idle_groups(&mut next()).await?;
    ranges(&mut next()).await?;
    transactions(&mut next()).await?;
    deletions(&mut next()).await?;
    errors(&mut next()).await?;
    if system.serves_watch() {
        watch(&cluster, &mut next()).await?;
    }
    compaction(&mut next()).await
}

fn expect<T: PartialEq + Debug>(what: &str, actual: T, expected: T) -> Result<(), HarnessError> {
    if actual == expected {
        return Ok(());
    }
    Err(HarnessError::Wrong { what: what.to_owned(), detail: format!("{actual:?} instead of {expected:?}") })
}

fn expect_error<T: Debug>(what: &str, result: Result<T, Status>, code: Code, text: &str) -> Result<(), HarnessError> {
    match result {
        Err(status) => expect(what, (status.code(), status.message()), (code, text)),
        Ok(answer) => Err(HarnessError::Wrong { what: what.to_owned(), detail: format!("success: {answer:?}") }),
    }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    pb::PutRequest { key, value, ..Default::default() }
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

fn range(from: &str, to: &str) -> pb::RangeRequest {
    pb::RangeRequest { range_end: Bytes::copy_from_slice(to.as_bytes()), ..get(from) }
}

fn delete(from: &str, to: &str) -> pb::DeleteRangeRequest {
    let (key, range_end) = (Bytes::copy_from_slice(from.as_bytes()), Bytes::copy_from_slice(to.as_bytes()));
    pb::DeleteRangeRequest { key, range_end, prev_kv: true }
}

fn header(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

async fn store(kv: &mut Kv, key: &str, value: &str) -> Result<i64, HarnessError> {
    let answer = kv.put(put(key, value)).await.map_err(HarnessError::rpc(format!("put {key}")))?.into_inner();
    Ok(header(&answer.header))
}

async fn read(kv: &mut Kv, request: pb::RangeRequest) -> Result<pb::RangeResponse, HarnessError> {
    Ok(kv.range(request).await.map_err(HarnessError::rpc("range"))?.into_inner())
}

fn values(answer: &pb::RangeResponse) -> Vec<String> {
    answer.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).collect()
}

async fn puts_and_gets(kv: &mut Kv) -> Result<(), HarnessError> {
    expect("a missing key", read(kv, get("smoke/none")).await?.kvs.len(), 0)?;
    let first = store(kv, "smoke/a", "1").await?;
    let second = store(kv, "smoke/a", "2").await?;
    expect("revisions rise", second > first, true)?;
    let answer = read(kv, get("smoke/a")).await?;
    expect("the value after two puts", values(&answer), vec!["2".to_owned()])?;
    let facts = |kv: &proto::mvccpb::KeyValue| (kv.create_revision, kv.mod_revision, kv.version);
    expect("revisions and version", answer.kvs.first().map(facts), Some((first, second, 2)))?;
    let old = read(kv, pb::RangeRequest { revision: first, ..get("smoke/a") }).await?;
    expect("the value at the first revision", values(&old), vec!["1".to_owned()])?;
    expect("the header of an old read is current", header(&old.header) >= second, true)?;
    let answer = kv.put(pb::PutRequest { prev_kv: true, ..put("smoke/a", "3") }).await;
    let previous = answer.map_err(HarnessError::rpc("put with prev_kv"))?.into_inner().prev_kv;
    expect("prev_kv", previous.map(|kv| kv.value), Some(Bytes::from_static(b"2")))
}

/// A write is a revision of the whole store, also where its group has nothing to do with it.
async fn idle_groups(kv: &mut Kv) -> Result<(), HarnessError> {
    let revision = store(kv, "smoke/a", "4").await?;
    // Keys of every shard.
    for key in ["!", "5", "A", "Z", "a", "m", "z", "~"] {
        for serializable in [false, true] {
            let request = pb::RangeRequest { revision, serializable, ..get(key) };
            let answer = read(kv, request.clone()).await?;
            expect("the header of a read at a given revision", header(&answer.header) >= revision, true)?;
            read(kv, pb::RangeRequest { range_end: Bytes::from([key, "0"].concat()), ..request }).await?;
        }
    }
    Ok(())
}

async fn ranges(kv: &mut Kv) -> Result<(), HarnessError> {
    for number in 0..10 {
        store(kv, &format!("smoke/range/{number}"), &number.to_string()).await?;
    }
    let all = read(kv, range("smoke/range/", "smoke/range0")).await?;
    expect("a prefix", (all.count, all.more, values(&all).concat().as_str()), (10, false, "0123456789"))?;
    let limited = read(kv, pb::RangeRequest { limit: 3, ..range("smoke/range/", "smoke/range0") }).await?;
    expect("a limit", (limited.count, limited.more, values(&limited).concat().as_str()), (10, true, "012"))?;
    let descending = pb::RangeRequest {
        sort_order: pb::range_request::SortOrder::Descend as i32,
        sort_target: pb::range_request::SortTarget::Key as i32,
        limit: 2,
        ..range("smoke/range/", "smoke/range0")
    };
    expect("descending", values(&read(kv, descending).await?).concat().as_str(), "98")?;
    let count = pb::RangeRequest { count_only: true, ..range("smoke/range/", "smoke/range0") };
    let counted = read(kv, count).await?;
    expect("count only", (counted.count, counted.kvs.len()), (10, 0))?;
    let keys = pb::RangeRequest { keys_only: true, ..get("smoke/range/4") };
    expect("keys only", values(&read(kv, keys).await?), vec![String::new()])
}

async fn transactions(kv: &mut Kv) -> Result<(), HarnessError> {
    let request = |operation| pb::RequestOp { request: Some(operation) };
    let compare = pb::Compare {
        result: pb::compare::CompareResult::Equal as i32,
        target: pb::compare::CompareTarget::Version as i32,
        key: Bytes::from_static(b"smoke/txn"),
        range_end: Bytes::new(),
        target_union: Some(pb::compare::TargetUnion::Version(0)),
    };
    let create = pb::TxnRequest {
        compare: vec![compare],
        success: vec![
            request(pb::request_op::Request::RequestPut(put("smoke/txn", "created"))),
            request(pb::request_op::Request::RequestPut(put("smoke/txn/also", "created"))),
        ],
        failure: vec![request(pb::request_op::Request::RequestRange(get("smoke/txn")))],
    };
    let done = kv.txn(create.clone()).await.map_err(HarnessError::rpc("txn"))?.into_inner();
    expect("a first creation", (done.succeeded, done.responses.len()), (true, 2))?;
    let both = read(kv, range("smoke/txn", "smoke/txn0")).await?;
    let revisions: Vec<i64> = both.kvs.iter().map(|kv| kv.mod_revision).collect();
    expect("one revision per transaction", revisions, vec![header(&done.header); 2])?;
    let refused = kv.txn(create).await.map_err(HarnessError::rpc("txn"))?.into_inner();
    expect("a second creation", refused.succeeded, false)?;
    let found = refused.responses.into_iter().next().and_then(|response| response.response);
    match found {
        Some(pb::response_op::Response::ResponseRange(answer)) => {
            expect("what is there", values(&answer), vec!["created".to_owned()])
        }
        other => {
            let detail = format!("{other:?}");
            Err(HarnessError::Wrong { what: "the answer of the failure branch".to_owned(), detail })
        }
    }
}

async fn deletions(kv: &mut Kv) -> Result<(), HarnessError> {
    let deleted = kv.delete_range(delete("smoke/range/3", "")).await.map_err(HarnessError::rpc("delete"))?.into_inner();
    let previous: Vec<Bytes> = deleted.prev_kvs.into_iter().map(|kv| kv.value).collect();
    expect("one deletion", (deleted.deleted, previous), (1, vec![Bytes::from_static(b"3")]))?;
    let again = kv.delete_range(delete("smoke/range/3", "")).await.map_err(HarnessError::rpc("delete"))?.into_inner();
    expect("a deletion of nothing", again.deleted, 0)?;
    let rest = kv.delete_range(delete("smoke/range/", "smoke/range0")).await;
    expect("a deleted prefix", rest.map_err(HarnessError::rpc("delete"))?.into_inner().deleted, 9)?;
    expect("nothing is left", read(kv, range("smoke/range/", "smoke/range0")).await?.count, 0)?;
    store(kv, "smoke/range/3", "new").await?;
    let versions: Vec<i64> = read(kv, get("smoke/range/3")).await?.kvs.iter().map(|kv| kv.version).collect();
    expect("versions begin anew", versions, vec![1])
}

async fn errors(kv: &mut Kv) -> Result<(), HarnessError> {
    let no_key = kv.put(put("", "value")).await;
    expect_error("a put without key", no_key, Code::InvalidArgument, "etcdserver: key is not provided")?;
    let now = header(&read(kv, get("smoke/a")).await?.header);
    let future = kv.range(pb::RangeRequest { revision: now + 1_000_000, ..get("smoke/a") }).await;
    let text = "etcdserver: mvcc: required revision is a future revision";
    expect_error("a read of the future", future, Code::OutOfRange, text)?;
    let twice = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put("smoke/twice", "1"))) };
    let txn = kv.txn(pb::TxnRequest { success: vec![twice.clone(), twice], ..Default::default() }).await;
    let text = "etcdserver: duplicate key given in txn request";
    expect_error("one key twice", txn, Code::InvalidArgument, text)
}

/// A watch from the past delivers what happened, a deletion included.
async fn watch(cluster: &Cluster, kv: &mut Kv) -> Result<(), HarnessError> {
    let first = store(kv, "smoke/watch", "1").await?;
    let deleted = kv.delete_range(delete("smoke/watch", "")).await.map_err(HarnessError::rpc("delete"))?.into_inner();
    let last = store(kv, "smoke/watch", "2").await?;
    let revision = |number: i64| Revision(u64::try_from(number).unwrap_or_default());
    let log = observe::log_of_changes(cluster.endpoints(), revision(last)).await?;
    let ours: Vec<_> = log.into_iter().filter(|change| change.key.0 == "smoke/watch").collect();
    let seen: Vec<_> = ours.into_iter().map(|change| (change.revision, change.value)).collect();
    let expected = vec![
        (revision(first), Some(Value::new("1"))),
        (revision(header(&deleted.header)), None),
        (revision(last), Some(Value::new("2"))),
    ];
    expect("the watched changes", seen, expected)
}

async fn compaction(kv: &mut Kv) -> Result<(), HarnessError> {
    let old = store(kv, "smoke/compact", "old").await?;
    let new = store(kv, "smoke/compact", "new").await?;
    let at = |revision| pb::RangeRequest { revision, ..get("smoke/compact") };
    let compact = |revision| pb::CompactionRequest { revision, physical: true };
    kv.compact(compact(new)).await.map_err(HarnessError::rpc("compact"))?;
    let text = "etcdserver: mvcc: required revision has been compacted";
    expect_error("a read below the compaction", kv.range(at(old)).await, Code::OutOfRange, text)?;
    expect_error("a compaction again", kv.compact(compact(new)).await, Code::OutOfRange, text)?;
    expect("a read at the compaction", values(&read(kv, at(new)).await?), vec!["new".to_owned()])?;
    expect("a read of now", values(&read(kv, get("smoke/compact")).await?), vec!["new".to_owned()])?;
    let text = "etcdserver: mvcc: required revision is a future revision";
    expect_error("a compaction of the future", kv.compact(compact(new + 1_000_000)).await, Code::OutOfRange, text)
}
