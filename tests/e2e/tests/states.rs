//! A store that loses rows under real processes: the replica that has them no more is found out, serves nothing
//! from then on, and gets the leader's state; clients notice nothing.

use bytes::Bytes;
use e2e::append::Appenders;
use e2e::client::{channel, kv};
use e2e::cluster::{Cluster, Number};
use e2e::operator::run;
use e2e::system::{Layout, System};
use proto::etcdserverpb as pb;
use serde_json::Value;
use shardkv::store::{RowRange, Store, View, WriteBatch};
use shardkv::{RocksOptions, RocksStore};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take until the replica is found out, and until it has another state.
const MEND_LIMIT: Duration = Duration::from_secs(60);
const VALUE_BYTES: usize = 64 << 10;
/// Enough that the store writes files: it keeps a few megabytes in memory.
const KEYS: u64 = 600;
const N3: Number = 2;

fn key(number: u64) -> Bytes {
    format!("/states/{number:06}").into()
}

async fn put(endpoint: &str, number: u64, value: Bytes) {
    let mut request = tonic::Request::new(pb::PutRequest { key: key(number), value, ..Default::default() });
    request.set_timeout(REQUEST_LIMIT);
    let put = kv(channel(endpoint)).put(request).await;
    put.unwrap_or_else(|status| panic!("put {number} through {endpoint}: {status}"));
}

/// What a node's own replica has, or, if it must not say so, what the leader has.
async fn any_replica_has(endpoint: &str, number: u64) -> Option<Bytes> {
    let request = pb::RangeRequest { key: key(number), serializable: true, ..Default::default() };
    let mut request = tonic::Request::new(request);
    request.set_timeout(REQUEST_LIMIT);
    let answer = kv(channel(endpoint)).range(request).await;
    let answer = answer.unwrap_or_else(|status| panic!("reading {number} through {endpoint}: {status}"));
    answer.into_inner().kvs.into_iter().next().map(|pair| pair.value)
}

/// Deletes the rows of keys from the store of a node that does not run.
fn lose_rows(data: &Path, numbers: &[u64]) {
    let store = RocksStore::open(&data.join("store"), RocksOptions::default()).expect("the store opens");
    let mut batch = WriteBatch::default();
    for number in numbers {
        let key = key(*number);
        let mut found = Vec::new();
        let all = RowRange { start: Vec::new(), end: vec![0xFF; 16] };
        let visit = &mut |row: &[u8], _: &[u8]| {
            // The newest version's row ends with an L and the key itself.
            if row.strip_suffix(&key[..]).is_some_and(|rest| rest.ends_with(b"L")) {
                found.push(row.to_vec());
            }
            Ok(ControlFlow::Continue(()))
        };
        store.scan(&all, visit).expect("it can be read");
        assert_eq!(found.len(), 1, "rows of {number} that were written to files");
        found.into_iter().for_each(|row| batch.delete(row));
    }
    store.write(&batch).expect("it can be written");
    store.flush().expect("it can be flushed");
}

/// What the cluster says of n3's replicas: their groups, and the words for what they do.
fn reported(address: &str) -> Vec<(u64, String)> {
    let status = run(&["status", "-o", "json", "--endpoints", address]).expect("a status");
    let status: Value = serde_json::from_str(&status).expect("it is JSON");
    let groups = status["groups"].as_array().expect("groups");
    let of_third = |group: &Value| {
        let replicas = group["replicas"].as_array()?;
        let third = replicas.iter().find(|replica| replica["node"] == 3)?;
        Some((group["id"].as_u64()?, third["report"]["state"].as_str()?.to_owned()))
    };
    groups.iter().filter_map(of_third).collect()
}

/// How often n3 has said something.
fn said(cluster: &Cluster, what: &str) -> usize {
    std::fs::read_to_string(cluster.log(N3)).expect("it has a log").matches(what).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_store_lost_rows_is_found_out_and_mended() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, directory.path()).await.expect("a cluster");
    let (first, third) = (cluster.endpoint(0).expect("it serves"), cluster.endpoint(N3).expect("it serves"));
    let address = first.trim_start_matches("http://").to_owned();
    let (old, new) = (Bytes::from(vec![b'o'; VALUE_BYTES]), Bytes::from_static(b"new"));
    for number in 0..KEYS {
        put(&first, number, old.clone()).await;
    }
    cluster.kill(N3).expect("kill -9");
    let (rewritten, silent) = (1, 2);
    tokio::task::block_in_place(|| lose_rows(&cluster.member(N3).data, &[rewritten, silent]));
    cluster.launch(N3).expect("it starts: it cannot know");
    cluster.wait_ready().await.expect("it serves");
    let clients = Appenders::start(std::slice::from_ref(&first), 4);

    // The others have a second version of this key; n3 takes it for the first.
    put(&first, rewritten, new.clone()).await;
    let deadline = Instant::now() + MEND_LIMIT;
    let found_out = "is not what a majority has";
    while said(&cluster, found_out) == 0 {
        put(&first, KEYS, new.clone()).await;
        assert!(Instant::now() < deadline, "nobody noticed: {:?}", reported(&address));
    }
    // Whoever is asked from now on, the replica is not.
    assert_eq!(any_replica_has(&third, silent).await.as_ref(), Some(&old));

    let sound = |state: &str| ["leader", "follower"].contains(&state);
    loop {
        let states = tokio::task::block_in_place(|| reported(&address));
        if states.len() == 3 && states.iter().all(|(_, state)| sound(state)) {
            break;
        }
        assert!(Instant::now() < deadline, "it stays fenced: {states:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (appends, longest) = clients.finish().await;
    eprintln!("{appends} appends, the longest took {longest:?}");
    assert_eq!((said(&cluster, found_out), said(&cluster, "serves again")), (1, 1), "once, in one group");
    // Its own state has the rows now: it answers alone.
    cluster.kill(0).expect("kill -9");
    cluster.kill(1).expect("kill -9");
    assert_eq!(any_replica_has(&third, silent).await, Some(old));
    assert_eq!(any_replica_has(&third, rewritten).await, Some(new));
}
