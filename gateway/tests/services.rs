//! The services beside KV: what they answer, and that what is missing says so.

mod support;

use gateway::etcd::{Readiness, UNCOUNTED};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::auth_client::AuthClient;
use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::health::health_check_response::ServingStatus;
use proto::health::{HealthCheckRequest, health_client::HealthClient};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

const SHARDS: &[(&str, u64)] = &[("", 2), ("m", 3)];

async fn channel() -> Channel {
    let url = support::server(SHARDS).await;
    Endpoint::from_shared(url).expect("a URL").connect().await.expect("a server")
}

#[tokio::test]
async fn members_are_the_nodes_with_their_client_urls() {
    let mut client = ClusterClient::new(channel().await);
    for linearizable in [false, true] {
        let response =
            client.member_list(pb::MemberListRequest { linearizable }).await.expect("it answers").into_inner();
        assert_eq!(response.header.map(|header| (header.cluster_id, header.member_id)), Some((7, 1)));
        let [member] = &response.members[..] else { panic!("{response:?}") };
        assert_eq!((member.id, member.name.as_str()), (1, "one"));
        assert_eq!(member.client_ur_ls, ["http://127.0.0.1:2"]);
    }
    let refused = client.member_add(pb::MemberAddRequest::default()).await.expect_err("not by this API");
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn status_tells_version_sizes_leader_and_incarnation() {
    let mut client = MaintenanceClient::new(channel().await);
    let status = client.status(pb::StatusRequest {}).await.expect("it answers").into_inner();
    assert_eq!(status.version, "3.5.13");
    assert_eq!((status.db_size, status.db_size_in_use), (4096, 1024));
    assert_eq!((status.leader, status.raft_term, status.raft_index), (1, 1, 9));
    let alarms = client.alarm(pb::AlarmRequest::default()).await.expect("it answers").into_inner();
    assert!(alarms.alarms.is_empty());
    client.defragment(pb::DefragmentRequest {}).await.expect("a no-op");
    let refused = client.snapshot(pb::SnapshotRequest {}).await.expect_err("there is no one file");
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn what_is_missing_says_so() {
    let channel = channel().await;
    let mut auth = AuthClient::new(channel.clone());
    let refused = auth.authenticate(pb::AuthenticateRequest::default()).await.expect_err("it is off");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.message(), "etcdserver: authentication is not enabled");
    let status = auth.auth_status(pb::AuthStatusRequest {}).await.expect("it answers").into_inner();
    assert!(!status.enabled);
    let refused = auth.user_add(pb::AuthUserAddRequest::default()).await.expect_err("there are no users");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unimplemented, "cloudpaxos: users and roles are not implemented yet")
    );
    let refused = LeaseClient::new(channel).lease_grant(pb::LeaseGrantRequest::default()).await.expect_err("no leases");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unimplemented, "cloudpaxos: leases are not implemented yet")
    );
}

#[tokio::test]
async fn health_is_of_the_server_and_of_each_service() {
    let mut client = HealthClient::new(channel().await);
    for service in ["", "etcdserverpb.KV"] {
        let response = client.check(HealthCheckRequest { service: service.into() }).await.expect("it answers");
        assert_eq!(response.get_ref().status(), ServingStatus::Serving);
    }
    let unknown = client.check(HealthCheckRequest { service: "nobody".into() }).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watch = client.watch(HealthCheckRequest::default()).await.expect("it answers").into_inner();
    let first = watch.message().await.expect("a stream").expect("its first message");
    assert_eq!(first.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn who_watches_a_server_that_stops_is_told_and_let_go() {
    let stopping = Arc::new(AtomicBool::new(false));
    let readiness = {
        let stopping = stopping.clone();
        move || if stopping.load(Ordering::Relaxed) { Readiness::Stopping } else { Readiness::Ready }
    };
    let address = support::server_with(SHARDS, Arc::new(readiness)).await;
    let channel = Endpoint::from_shared(address).expect("a URL").connect().await.expect("a server");
    let mut client = HealthClient::new(channel);
    let mut watch = client.watch(HealthCheckRequest::default()).await.expect("it answers").into_inner();
    let first = watch.message().await.expect("a stream").expect("its first message");
    assert_eq!(first.status(), ServingStatus::Serving);
    stopping.store(true, Ordering::Relaxed);
    let next = watch.message().await.expect("a stream").expect("another message");
    assert_eq!(next.status(), ServingStatus::NotServing);
    assert!(watch.message().await.expect("a stream").is_none(), "nothing more is to be said");
}

#[tokio::test]
async fn a_page_that_nobody_counts_ends_at_its_limit() {
    let mut client = KvClient::new(channel().await);
    for key in ["l1", "l2", "l3", "l4", "l5"] {
        let put = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
        client.put(put).await.expect("it is stored");
    }
    let range = pb::RangeRequest { key: "l".into(), range_end: "m".into(), limit: 2, ..Default::default() };
    let counted = client.range(range.clone()).await.expect("it answers").into_inner();
    let mut request = Request::new(range);
    request.metadata_mut().insert(UNCOUNTED, "1".parse().expect("a value"));
    let uncounted = client.range(request).await.expect("it answers").into_inner();
    assert_eq!((counted.count, counted.more), (5, true));
    assert_eq!((uncounted.count, uncounted.more), (3, true), "one beyond the limit tells that there is more");
    assert_eq!(uncounted.kvs, counted.kvs);
}

#[tokio::test]
async fn writes_over_groups_name_the_groups() {
    let mut client = KvClient::new(channel().await);
    let all = pb::DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: false };
    let refused = client.delete_range(all).await.expect_err("it spans groups");
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("(g2, g3)"), "{}", refused.message());
}

#[tokio::test]
async fn unknown_enum_values_are_refused() {
    let mut client = KvClient::new(channel().await);
    let range = pb::RangeRequest { key: "a".into(), ..Default::default() };
    for request in [pb::RangeRequest { sort_target: 99, ..range.clone() }, pb::RangeRequest { sort_order: -1, ..range }]
    {
        let refused = client.range(request).await.expect_err("unknown");
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: invalid sort option"));
    }
    let compare = pb::Compare { key: "a".into(), target: 99, ..Default::default() };
    let txn = pb::TxnRequest { compare: vec![compare], ..Default::default() };
    assert_eq!(client.txn(txn).await.expect_err("unknown").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_streamed_range_merges_into_the_range() {
    let mut client = KvClient::new(channel().await);
    for i in 0..6u8 {
        let put = pb::PutRequest { key: vec![b'l' + i].into(), value: vec![i; 200_000].into(), ..Default::default() };
        client.put(put).await.expect("it is stored");
    }
    let range = pb::RangeRequest { key: "a".into(), range_end: "z".into(), limit: 5, ..Default::default() };
    let whole = client.range(range.clone()).await.expect("it answers").into_inner();
    let mut stream = client.range_stream(range.clone()).await.expect("it answers").into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = stream.message().await.expect("a stream") {
        pieces.extend(piece.range_response);
    }
    assert!(pieces.len() > 1, "a megabyte comes in pieces");
    let last = pieces.last().expect("there is one");
    assert_eq!((last.more, last.count), (true, 6));
    assert!(pieces.iter().rev().skip(1).all(|piece| piece.header.is_none()));
    let kvs: Vec<_> = pieces.into_iter().flat_map(|piece| piece.kvs).collect();
    assert_eq!(kvs, whole.kvs);
    let sorted = pb::RangeRequest { sort_order: 2, ..range };
    assert_eq!(client.range_stream(sorted).await.err().map(|status| status.code()), Some(Code::Unimplemented));
}
