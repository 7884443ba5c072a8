use super::*;
use bytes::Bytes;
use paxos::NodeId;
use proto::admin::admin_client::AdminClient;
use proto::admin::{Ballot, ReplicaReport, ReplicaState, Sequencer, SilentNode};
use proto::dial::PlainText;
use shardkv::map::{GroupInfo, SHARDMASTER_GROUP};
use shardkv::types::{Bounds, Epoch, MoveId, ShardId};
use std::collections::BTreeMap;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

const CLUSTER: u64 = 0xc1;
const DATA_GROUP: GroupId = GroupId(2);

fn map(addresses: &[String]) -> ShardMap {
    let ids = || (1..=addresses.len() as u64).map(NodeId);
    let node = |(id, address): (NodeId, &String)| NodeInfo {
        id,
        name: format!("n{}", id.0),
        peer_address: address.clone(),
        client_address: String::new(),
        ..NodeInfo::default()
    };
    let shard = |id, start: &'static [u8], end: Option<&'static [u8]>| ShardInfo {
        id: ShardId(id),
        bounds: Bounds { start: Bytes::from_static(start), end: end.map(Bytes::from_static) },
        group: DATA_GROUP,
        epoch: Epoch(id + 10),
        by: MoveId(0),
    };
    ShardMap {
        version: 7,
        cluster_id: CLUSTER,
        incarnation: 1,
        compacted: Revision(5),
        shards: vec![shard(1, b"", Some(b"m")), shard(2, b"m", None)],
        shardmaster: GroupInfo::new(SHARDMASTER_GROUP, ids().collect()),
        groups: vec![GroupInfo::new(DATA_GROUP, ids().collect())],
        nodes: ids().zip(addresses).map(node).collect(),
        ..ShardMap::default()
    }
}

fn ballot(round: u64, node: u64) -> Ballot {
    Ballot { config: 0, round, node, boot: 1 }
}

fn replica(group: GroupId, state: ReplicaState, ballot: Ballot, decided: u64, applied: u64) -> ReplicaReport {
    let state = state.into();
    ReplicaReport { group: group.0, state, ballot: Some(ballot), decided, applied, ..Default::default() }
}

fn report(node: u64, replicas: Vec<ReplicaReport>) -> NodeReport {
    NodeReport { node, cluster_id: CLUSTER, boot: node + 1, replicas, ..Default::default() }
}

fn answers(reports: Vec<(u64, Result<NodeReport, AdminError>)>) -> Answers {
    let addresses: Vec<String> = reports.iter().map(|(node, _)| format!("127.0.0.1:{node}")).collect();
    Answers {
        map: Arc::new(map(&addresses)),
        reports: reports.into_iter().map(|(node, report)| (NodeId(node), report)).collect::<BTreeMap<_, _>>(),
        known_revision: Revision(99),
        version: "1.2.3".to_owned(),
    }
}

/// Node 1 was cut off while it led; node 2 leads now; node 3 is silent.
fn partitioned() -> Answers {
    use ReplicaState::{Follower, Leader};
    let sequencer = |handed_out| Some(Sequencer { node: 0, handed_out, reserved_up_to: 2000 });
    let old = vec![
        replica(SHARDMASTER_GROUP, Leader, ballot(1, 1), 10, 10),
        replica(DATA_GROUP, Leader, ballot(4, 1), 70, 60),
    ];
    let new = vec![
        replica(SHARDMASTER_GROUP, Leader, ballot(2, 2), 12, 11),
        replica(DATA_GROUP, Follower, ballot(4, 1), 90, 90),
    ];
    let silent = |seconds| vec![SilentNode { node: 3, seconds }];
    answers(vec![
        (1, Ok(NodeReport { sequencer: sequencer(1000), silent: silent(5), ..report(1, old) })),
        (2, Ok(NodeReport { sequencer: sequencer(1500), silent: silent(42), ..report(2, new) })),
        (3, Err(AdminError::NoReport("connection refused".to_owned()))),
    ])
}

#[test]
fn of_two_who_say_they_lead_the_greater_ballot_does() {
    let status = assemble(partitioned());
    let leaders: Vec<_> = status.groups.iter().map(|group| (group.id, group.leader)).collect();
    assert_eq!(leaders, [(1, 2), (2, 1)]);
    assert_eq!(status.groups[0].ballot, Some(ballot(2, 2)));
    let sequencer = status.sequencer.expect("the shardmaster's leader has it");
    assert_eq!((sequencer.node, sequencer.handed_out), (2, 1500), "the overthrown leader's number was taken");
}

#[test]
fn lag_is_counted_from_the_greatest_decided_slot() {
    let status = assemble(partitioned());
    let lags: Vec<_> = status.groups[1].replicas.iter().map(|replica| (replica.alive, replica.lag_slots)).collect();
    assert_eq!(lags, [(true, 30), (true, 0), (false, 0)]);
    assert_eq!(status.groups[1].shards, 2);
}

#[test]
fn a_silent_node_is_part_of_the_answer() {
    let status = assemble(partitioned());
    let alive: Vec<_> = status.nodes.iter().map(|node| (node.id, node.alive, node.boot)).collect();
    assert_eq!(alive, [(1, true, 2), (2, true, 3), (3, false, 0)]);
    assert_eq!((&status.nodes[2].error[..], status.nodes[2].silent_seconds), ("connection refused", 42));
    assert_eq!((status.cluster_id, status.known_revision, status.compacted_revision), (CLUSTER, 99, 5));
}

/// A gateway's host whose nodes are all asked over the network, as in a process without replicas.
struct Remote {
    map: Arc<ShardMap>,
    reports: Reports,
}

#[tonic::async_trait]
impl AdminSource for Remote {
    async fn map(&self) -> Result<Arc<ShardMap>, AdminError> {
        if self.map.nodes.is_empty() { Err(AdminError::NoMap) } else { Ok(self.map.clone()) }
    }
    async fn call(&self, call: Call) -> Result<AnswerBody, Status> {
        Err(Status::not_found(format!("{call:?}")))
    }
    fn known_revision(&self) -> Revision {
        Revision(99)
    }
    async fn report(&self, node: &NodeInfo) -> Result<NodeReport, AdminError> {
        self.reports.ask(node).await
    }
}

struct Fixed(NodeReport);

#[tonic::async_trait]
impl ReportSource for Fixed {
    async fn report(&self) -> Result<NodeReport, AdminError> {
        Ok(self.0.clone())
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

/// Serves `report` as a node would, and returns its address.
async fn node(report: NodeReport) -> String {
    let (listener, address) = listener().await;
    let service = ReportService::new(Arc::new(Fixed(report))).into_server();
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn gateway(map: ShardMap) -> AdminClient<Channel> {
    let (listener, address) = listener().await;
    let source = Remote { map: Arc::new(map), reports: Reports::new(PlainText::shared(), BTreeMap::new()) };
    let service = AdminService::new(Arc::new(source), "1.2.3").into_server();
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    AdminClient::new(endpoint.connect().await.expect("the gateway listens"))
}

#[tokio::test]
async fn a_gateway_answers_for_nodes_that_are_there_gone_silent_or_somebody_else() {
    let leader = replica(DATA_GROUP, ReplicaState::Leader, ballot(3, 1), 8, 8);
    let there = node(report(1, vec![leader.clone()])).await;
    let (gone, gone_address) = listener().await;
    drop(gone);
    // Takes connections and never says a word.
    let (_silent, silent_address) = listener().await;
    let stranger = node(NodeReport { cluster_id: 0xbad, ..report(4, vec![leader]) }).await;

    let mut client = gateway(map(&[there, gone_address, silent_address, stranger])).await;
    let status = client.status(StatusRequest {}).await.expect("an answer").into_inner();
    let alive: Vec<_> = status.nodes.iter().map(|node| node.alive).collect();
    assert_eq!(alive, [true, false, false, false], "{:#?}", status.nodes);
    assert!(status.nodes[3].error.contains("0000000000000bad"), "{}", status.nodes[3].error);
    assert_eq!(status.version, "1.2.3");

    let shards = client.shards_list(ShardsListRequest {}).await.expect("an answer").into_inner();
    assert_eq!((shards.cluster_id, shards.map_version), (CLUSTER, 7));
    let rows: Vec<_> =
        shards.shards.iter().map(|shard| (shard.id, shard.epoch, shard.leader, shard.unbounded)).collect();
    assert_eq!(rows, [(1, 11, 1, false), (2, 12, 1, true)]);
    assert_eq!((&shards.shards[0].end[..], &shards.shards[1].start[..]), (&b"m"[..], &b"m"[..]));
    assert_eq!(shards.shards[0].replicas, [1, 2, 3, 4]);
}

#[tokio::test]
async fn without_a_map_the_operator_is_told_to_go_elsewhere() {
    let mut client = gateway(ShardMap::default()).await;
    let status = client.status(StatusRequest {}).await.expect_err("there is no map");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("no shard map yet"), "{}", status.message());
}
