//! A cluster in this process: real data groups on memory stores behind a fake log and a fake
//! shardmaster, reached by calls instead of messages.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod scenarios;
pub mod transcript;

use gateway::GatewayConfig;
use gateway::driver::{Handle, Links, Replies, start};
use gateway::etcd::{Info, Limits, NodeStatus, Readiness, Tls, routes, serve};
use paxos::{GroupId, NodeId, Slot, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardInfo, ShardMap};
use shardkv::ops::Op;
use shardkv::request::{OpError, ReadMode, Reply, ReplyBody, Request, RequestBody};
use shardkv::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, ReadError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tower::layer::util::Identity;

pub const NODE: NodeId = NodeId(1);

/// Answers requests within `send`.
struct FakeLinks {
    replies: Replies,
    state: Mutex<FakeCluster>,
}

impl Links for FakeLinks {
    fn send(&self, to: NodeId, requests: Vec<Request>) {
        let answers = {
            let mut state = self.state.lock().expect("no test panics with the lock");
            requests.into_iter().map(|request| state.serve(request)).collect()
        };
        self.replies.deliver(to, answers);
    }
}

pub struct FakeCluster {
    /// The newest number handed out.
    revision: u64,
    map: ShardMap,
    groups: BTreeMap<GroupId, DataGroup<MemoryStore>>,
}

impl FakeCluster {
    /// Shards that begin at the given keys, owned by the given groups.
    pub fn new(shards: &[(&'static str, u64)]) -> FakeCluster {
        let bounds = |i: usize| Bounds {
            start: shards[i].0.as_bytes().into(),
            end: shards.get(i + 1).map(|(end, _)| end.as_bytes().into()),
        };
        let infos: Vec<ShardInfo> = (0..shards.len())
            .map(|i| ShardInfo {
                id: ShardId(i as u64 + 1),
                bounds: bounds(i),
                group: GroupId(shards[i].1),
                epoch: Epoch(1),
                by: MoveId(0),
            })
            .collect();
        let ids: std::collections::BTreeSet<GroupId> = infos.iter().map(|info| info.group).collect();
        let store = Arc::new(MemoryStore::new());
        let open = |id: &GroupId| (*id, DataGroup::open(store.clone(), *id, 1).expect("memory does not fail"));
        let node = NodeInfo {
            id: NODE,
            name: "one".into(),
            peer_address: String::new(),
            client_address: "127.0.0.1:2".into(),
            ..NodeInfo::default()
        };
        let map = ShardMap {
            version: 1,
            cluster_id: 7,
            incarnation: 1,
            compacted: Revision(0),
            shards: infos.clone(),
            moves: Vec::new(),
            last_move: MoveId(0),
            reshapes: Vec::new(),
            balance: Default::default(),
            last_shard: ShardId(infos.len() as u64),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, vec![NODE]),
            last_group: GroupId(0),
            last_node: NodeId(0),
            groups: ids.iter().map(|id| GroupInfo::new(*id, vec![NODE])).collect(),
            nodes: vec![node],
        };
        let mut cluster = FakeCluster { revision: 1, map, groups: ids.iter().map(open).collect() };
        for ShardInfo { id, bounds, group, epoch, by } in infos {
            let revision = cluster.next();
            let outcome = cluster.apply(group, Command::Activate { revision, shard: id, bounds, epoch, by });
            assert_eq!(outcome, Outcome::Activated);
        }
        cluster
    }

    fn next(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }

    fn apply(&mut self, group: GroupId, command: Command) -> Outcome {
        let group = self.groups.get_mut(&group).expect("the map names only groups that exist");
        let slot: Slot = group.applied().next();
        let entry = shardkv::codec::encode(&Batch { commands: vec![command] });
        let mut outcomes = group.apply(&[(slot, entry)]).expect("memory does not fail");
        outcomes.remove(0).remove(0)
    }

    pub fn serve(&mut self, request: Request) -> Reply {
        let Request { id, group, body, .. } = request;
        let body = match body {
            RequestBody::CurrentRevision => ReplyBody::Current { revision: Revision(self.revision) },
            RequestBody::Map { have_version } => {
                let is_newer = self.map.version > have_version;
                ReplyBody::Map(is_newer.then(|| Box::new(self.map.clone())))
            }
            RequestBody::LogCompaction { revision } => self.log_compaction(revision),
            RequestBody::ChangeMembers { .. }
            | RequestBody::AddNode { .. }
            | RequestBody::DrainNode { .. }
            | RequestBody::ChangeShards(_)
            | RequestBody::ChangeGroups(_)
            | RequestBody::Middle { .. }
            | RequestBody::RemoveNode { .. } => panic!("nobody changes the cluster here"),
            RequestBody::Compact { revision } => {
                assert_eq!(self.apply(group, Command::Compact { revision }), Outcome::Compacted);
                ReplyBody::Logged
            }
            RequestBody::Write { shard, epoch, also, session, op } => {
                let revision = self.next();
                match self.apply(group, Command::Write { revision, shard, epoch, also, session, op }) {
                    Outcome::Done { revision, result } => ReplyBody::Done { revision, result },
                    Outcome::WrongShard => ReplyBody::WrongShard,
                    Outcome::Failed(error) => ReplyBody::Failed(error),
                    other => panic!("a write answers {other:?}"),
                }
            }
            RequestBody::Read { shards, op, mode } => {
                assert_ne!(group, SHARDMASTER_GROUP);
                self.read(group, &shards, &op, mode)
            }
        };
        Reply { id, known: Revision(self.revision), map_version: self.map.version, body }
    }

    fn log_compaction(&mut self, revision: Revision) -> ReplyBody {
        if revision <= self.map.compacted {
            return ReplyBody::Failed(OpError::Compacted { floor: self.map.compacted });
        }
        if revision.0 > self.revision {
            return ReplyBody::Failed(OpError::FutureRevision { current: Revision(self.revision) });
        }
        self.map.compacted = revision;
        ReplyBody::Logged
    }

    fn read(&mut self, group: GroupId, shards: &[(ShardId, Epoch)], op: &Op, mode: ReadMode) -> ReplyBody {
        let current = Revision(self.revision);
        if let Op::Range(range) = op
            && range.revision > current
        {
            return ReplyBody::Failed(OpError::FutureRevision { current });
        }
        let reader = self.groups[&group].reader();
        let read = match mode {
            ReadMode::Linearizable => reader.read(shards, op, current).map(|result| (current, result)),
            ReadMode::At(revision) => reader.read(shards, op, revision).map(|result| (revision, result)),
            ReadMode::Serializable => reader.serializable(shards, op),
        };
        match read {
            Ok((revision, result)) => ReplyBody::Done { revision, result },
            Err(ReadError::WrongShard) => ReplyBody::WrongShard,
            Err(ReadError::Compacted { floor }) => ReplyBody::Failed(OpError::Compacted { floor }),
            Err(error) => panic!("a read failed: {error}"),
        }
    }
}

/// A gateway over a cluster in this process.
pub fn gateway(shards: &[(&'static str, u64)]) -> Handle {
    let config = GatewayConfig { seed: [1, 2], nodes: vec![NODE], ..GatewayConfig::default() };
    let state = Mutex::new(FakeCluster::new(shards));
    start(config, |replies| FakeLinks { replies, state })
}

/// Serves the etcd API of a cluster in this process on a loopback port; returns its address.
pub async fn server(shards: &[(&'static str, u64)]) -> String {
    server_with(shards, Arc::new(|| Readiness::Ready)).await
}

/// The same, with something to say about whether it is ready.
pub async fn server_with(
    shards: &[(&'static str, u64)],
    readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
) -> String {
    let node = || NodeStatus {
        db_size_bytes: 4096,
        db_size_in_use_bytes: 1024,
        decided_slot: 9,
        applied_slot: 9,
        ..NodeStatus::default()
    };
    let info = Info {
        cluster_id: 7,
        member_id: NODE.0,
        raft_term: 1,
        limits: Limits::default(),
        tls: Tls::default(),
        node: Arc::new(node),
        readiness,
    };
    let routes = routes(gateway(shards), info);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let address = listener.local_addr().expect("a bound listener has one");
    tokio::spawn(async move { serve(TcpIncoming::from(listener), routes, Identity::new(), &Limits::default()).await });
    format!("http://{address}")
}
