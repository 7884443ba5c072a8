//! What the cluster does about its shards by itself: a hot range on one of four groups is spread, and no request fails; a
//! large shard is split, and operators are told.

use bytes::Bytes;
use e2e::balancing;
use e2e::client::{channel, kv};
use e2e::cluster::{Cluster, Start};
use e2e::operator::{await_answer, run};
use e2e::system::{Layout, System};
use proto::etcdserverpb as pb;
use std::time::Duration;

/// The bar is 60 s, on a machine with nothing else to do (`e2e balance`); here other tests run beside this one.
const LIMIT: Duration = Duration::from_secs(150);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_range_is_spread() {
    let parent = tempfile::tempdir().expect("a directory");
    let seen = balancing::run(4, LIMIT, parent.path()).await.expect("a cluster");
    for (at, requests, spread) in &seen.looks {
        eprintln!("{at:.1?} {requests:?} differ by {:.0} %", spread * 100.0);
    }
    assert_eq!(seen.failed, 0, "of {} requests, the longest {:?}", seen.answered, seen.longest);
    assert!(seen.after.is_some(), "it is not spread after {LIMIT:?}, over {} shards", seen.shards);
    assert!(seen.shards > 8, "{} shards", seen.shards);
}

const SHARD_BYTES_MAX: u64 = 1 << 20;
const KEYS: u64 = 96;
const VALUE_BYTES: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_shard_is_split_and_operators_are_told() {
    let parent = tempfile::tempdir().expect("a directory");
    let how =
        |_: &_| Start { options: vec![("--shard-bytes-max", SHARD_BYTES_MAX.to_string().into())], ..Start::default() };
    let started = Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, parent.path(), how).await;
    let cluster = started.expect("a cluster");
    let endpoint = cluster.endpoint(0).expect("it serves clients");
    let mut client = kv(channel(&endpoint));
    for number in 0..KEYS {
        let (key, value) = (format!("jobs/{number:03}").into(), Bytes::from(vec![number as u8; VALUE_BYTES]));
        client.put(pb::PutRequest { key, value, ..Default::default() }).await.expect("a put");
    }
    let address = endpoint.trim_start_matches("http://");
    let top = ["shards", "top", "--limit", "0", "-o", "json", "--endpoints", address];
    // Sizes are estimates: one may be half as large again.
    let small = |bytes: &serde_json::Value| bytes.as_u64().is_some_and(|bytes| bytes < 3 * SHARD_BYTES_MAX / 2);
    await_answer(&top, "a shard stays large", |told| {
        let shards = told["shards"].as_array().cloned().unwrap_or_default();
        shards.len() >= 12 && shards.iter().all(|shard| small(&shard["stored_bytes"]))
    })
    .await;
    let range = pb::RangeRequest { key: "jobs/".into(), range_end: "jobs0".into(), ..Default::default() };
    let all = client.range(range).await.expect("a range").into_inner().kvs;
    let whole = |pair: &proto::mvccpb::KeyValue| pair.version == 1 && pair.value.len() == VALUE_BYTES;
    assert!(all.len() as u64 == KEYS && all.iter().all(whole), "{} keys", all.len());
    let why = tokio::task::block_in_place(|| run(&["balance", "explain", "--endpoints", address])).expect("an answer");
    assert!(why.contains("g2: ") && why.contains(" MiB"), "{why}");
}
