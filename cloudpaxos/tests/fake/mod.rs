//! A gateway that is a map: enough of the API for the client commands to be tested against.

use bytes::Bytes;
use proto::admin::admin_server::{Admin, AdminServer};
use proto::admin::{
    BalanceExplainRequest, BalanceExplainResponse, Ballot, CancelMoveRequest, CancelMoveResponse, ChangeMembersRequest,
    ChangeMembersResponse, CreateGroupRequest, CreateGroupResponse, DrainNodeRequest, DrainNodeResponse,
    EmptyGroupRequest, EmptyGroupResponse, Group, HotKey, MergeShardsRequest, MergeShardsResponse, Move, MoveReport,
    MoveShardRequest, MoveShardResponse, MoveStage, MovesListRequest, MovesListResponse, Node, PauseBalanceRequest,
    PauseBalanceResponse, Pin, PinPrefixRequest, PinPrefixResponse, RemoveGroupRequest, RemoveGroupResponse,
    RemoveNodeRequest, RemoveNodeResponse, Replica, ReplicaReport, ReplicaState, Shard, ShardLoad, ShardsListRequest,
    ShardsListResponse, ShardsTopRequest, ShardsTopResponse, SplitShardRequest, SplitShardResponse, StatusRequest,
    StatusResponse,
};
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::kv_server::{Kv, KvServer};
use proto::etcdserverpb::request_op::Request as Op;
use proto::etcdserverpb::response_op::Response as Done;
use proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use proto::mvccpb::KeyValue;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// How the gateway feels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    Good,
    /// It has no leader.
    Unavailable,
}

#[derive(Default)]
struct Store {
    revision: i64,
    pairs: BTreeMap<Bytes, KeyValue>,
}

#[derive(Clone)]
struct Gateway {
    mood: Mood,
    store: Arc<Mutex<Store>>,
}

/// A running gateway; ends with the value.
pub struct Fake {
    gateway: Gateway,
    address: String,
    _runtime: Runtime,
}

impl Fake {
    pub fn start(mood: Mood) -> Fake {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let gateway = Gateway { mood, store: Arc::new(Mutex::new(Store { revision: 1, pairs: BTreeMap::new() })) };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let server = Server::builder()
            .add_service(KvServer::new(gateway.clone()))
            .add_service(AdminServer::new(gateway.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        Fake { gateway, address, _runtime: runtime }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Writes `key0000`, `key0001`, …
    pub fn fill(&self, keys: usize) {
        let mut store = self.gateway.store();
        for key in 0..keys {
            store.put(format!("key{key:04}").into(), Bytes::from_static(b"v"));
        }
    }
}

impl Gateway {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no test panics with the lock")
    }

    fn well(&self) -> Result<MutexGuard<'_, Store>, Status> {
        match self.mood {
            Mood::Good => Ok(self.store()),
            Mood::Unavailable => Err(Status::unavailable("etcdserver: no leader")),
        }
    }
}

impl Store {
    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader { cluster_id: 0xc1, revision: self.revision, ..Default::default() })
    }

    fn put(&mut self, key: Bytes, value: Bytes) -> Option<KeyValue> {
        self.revision += 1;
        let old = self.pairs.get(&key).cloned();
        let (create_revision, version) =
            old.as_ref().map_or((self.revision, 0), |old| (old.create_revision, old.version));
        let (mod_revision, version) = (self.revision, version + 1);
        self.pairs.insert(key.clone(), KeyValue { key, create_revision, mod_revision, version, value, lease: 0 });
        old
    }

    fn select(&self, key: &Bytes, end: &Bytes) -> Vec<KeyValue> {
        let inside = |candidate: &Bytes| match &end[..] {
            b"" => candidate == key,
            b"\0" => candidate >= key,
            _ => candidate >= key && candidate < end,
        };
        self.pairs.values().filter(|pair| inside(&pair.key)).cloned().collect()
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Status> {
        if request.revision > self.revision {
            return Err(Status::out_of_range("etcdserver: mvcc: required revision is a future revision"));
        }
        let mut kvs = self.select(&request.key, &request.range_end);
        let count = kvs.len();
        let limit = if request.limit == 0 { count } else { request.limit as usize };
        kvs.truncate(if request.count_only { 0 } else { limit });
        Ok(RangeResponse { header: self.header(), more: count > limit, count: count as i64, kvs })
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let gone = self.select(&request.key, &request.range_end);
        self.revision += i64::from(!gone.is_empty());
        gone.iter().for_each(|pair| {
            self.pairs.remove(&pair.key);
        });
        let deleted = gone.len() as i64;
        DeleteRangeResponse {
            header: self.header(),
            deleted,
            prev_kvs: if request.prev_kv { gone } else { Vec::new() },
        }
    }
}

#[tonic::async_trait]
impl Kv for Gateway {
    type RangeStreamStream = tokio_stream::Empty<Result<RangeStreamResponse, Status>>;

    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.well()?.range(request.get_ref()).map(Response::new)
    }

    async fn range_stream(&self, _: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("no client command uses it"))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let mut store = self.well()?;
        let request = request.into_inner();
        let old = store.put(request.key, request.value);
        Ok(Response::new(PutResponse { header: store.header(), prev_kv: old.filter(|_| request.prev_kv) }))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Ok(Response::new(self.well()?.delete(request.get_ref())))
    }

    /// Compares creation revisions for equality only.
    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let mut store = self.well()?;
        let request = request.into_inner();
        let succeeded = request.compare.iter().all(|compare| {
            let created = store.pairs.get(&compare.key).map_or(0, |pair| pair.create_revision);
            compare.target_union == Some(TargetUnion::CreateRevision(created))
        });
        let mut responses = Vec::new();
        for op in if succeeded { request.success } else { request.failure } {
            let done = match op.request {
                Some(Op::RequestRange(range)) => Done::ResponseRange(store.range(&range)?),
                Some(Op::RequestPut(put)) => {
                    store.put(put.key, put.value);
                    Done::ResponsePut(PutResponse::default())
                }
                Some(Op::RequestDeleteRange(delete)) => Done::ResponseDeleteRange(store.delete(&delete)),
                Some(Op::RequestTxn(_)) | None => return Err(Status::unimplemented("no client command sends it")),
            };
            responses.push(ResponseOp { response: Some(done) });
        }
        Ok(Response::new(TxnResponse { header: store.header(), succeeded, responses }))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented("no client command uses it"))
    }
}

#[tonic::async_trait]
impl Admin for Gateway {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let node = |id: u64, alive| Node {
            id,
            name: format!("n{id}"),
            alive,
            error: if alive { String::new() } else { "connection refused".to_owned() },
            ..Default::default()
        };
        let ballot = Some(Ballot { config: 0, round: 3, node: 1, boot: 1 });
        let report = ReplicaReport {
            group: 1,
            state: ReplicaState::Leader.into(),
            leader: 1,
            ballot,
            lease_valid: true,
            ..Default::default()
        };
        let replicas = vec![
            Replica { node: 1, alive: true, report: Some(report), lag_slots: 0 },
            Replica { node: 2, ..Default::default() },
        ];
        Ok(Response::new(StatusResponse {
            cluster_id: 0xc1,
            nodes: vec![node(1, true), node(2, false)],
            groups: vec![Group { id: 1, leader: 1, ballot, replicas, members: vec![1, 2], ..Default::default() }],
            ..Default::default()
        }))
    }

    async fn shards_list(&self, _: Request<ShardsListRequest>) -> Result<Response<ShardsListResponse>, Status> {
        let shard = Shard { id: 2, start: Bytes::from_static(b"m"), unbounded: true, group: 2, ..Default::default() };
        Ok(Response::new(ShardsListResponse { shards: vec![shard], changes: vec![9], last: 9, ..Default::default() }))
    }

    async fn change_members(
        &self,
        _: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersResponse>, Status> {
        Err(Status::invalid_argument("a group has 1 to 7 replicas, not 0"))
    }

    async fn create_group(&self, _: Request<CreateGroupRequest>) -> Result<Response<CreateGroupResponse>, Status> {
        Ok(Response::new(CreateGroupResponse { group: 1 }))
    }

    async fn empty_group(&self, request: Request<EmptyGroupRequest>) -> Result<Response<EmptyGroupResponse>, Status> {
        match request.into_inner().group {
            1 => Ok(Response::new(EmptyGroupResponse {})),
            group => Err(Status::invalid_argument(format!("g{group} is no group that holds shards"))),
        }
    }

    async fn remove_group(&self, _: Request<RemoveGroupRequest>) -> Result<Response<RemoveGroupResponse>, Status> {
        Err(Status::invalid_argument("g2 has 4 shards, and 1 are on their way: empty it first"))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        Ok(Response::new(DrainNodeResponse {}))
    }

    async fn remove_node(&self, _: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        Err(Status::invalid_argument("n1 holds a replica of g1: drain it first"))
    }

    async fn move_shard(&self, request: Request<MoveShardRequest>) -> Result<Response<MoveShardResponse>, Status> {
        match request.into_inner() {
            MoveShardRequest { shard: 2, .. } => Ok(Response::new(MoveShardResponse { id: 7 })),
            MoveShardRequest { shard, .. } => Err(Status::invalid_argument(format!("s{shard} is no shard of the map"))),
        }
    }

    async fn balance_explain(
        &self,
        _: Request<BalanceExplainRequest>,
    ) -> Result<Response<BalanceExplainResponse>, Status> {
        let why = vec!["g2: 3 shards, 40 requests/s, 5 MiB".to_owned(), "nothing is to be done".to_owned()];
        let pins = vec![Pin { prefix: Bytes::from_static(b"/jobs/"), group: 3 }];
        Ok(Response::new(BalanceExplainResponse { paused: false, why, pins }))
    }

    async fn pause_balance(&self, _: Request<PauseBalanceRequest>) -> Result<Response<PauseBalanceResponse>, Status> {
        Ok(Response::new(PauseBalanceResponse {}))
    }

    async fn pin_prefix(&self, request: Request<PinPrefixRequest>) -> Result<Response<PinPrefixResponse>, Status> {
        match request.into_inner() {
            PinPrefixRequest { group: 0, .. } => Err(Status::invalid_argument("/x* is not pinned")),
            PinPrefixRequest { .. } => Ok(Response::new(PinPrefixResponse {})),
        }
    }

    async fn shards_top(&self, _: Request<ShardsTopRequest>) -> Result<Response<ShardsTopResponse>, Status> {
        let shard = |id, start| Shard { id, start, group: 2, ..Default::default() };
        let shards = vec![shard(1, Bytes::new()), shard(2, Bytes::from_static(b"m"))];
        let hottest = vec![HotKey { key: Bytes::from_static(b"m/hot"), per_mille: 420 }];
        let load = ShardLoad {
            shard: 2,
            reads_per_second: 30,
            writes_per_second: 12,
            measured: true,
            stored_bytes: 5 << 20,
            keys: 1234,
            hottest,
        };
        Ok(Response::new(ShardsTopResponse { shards, loads: vec![load] }))
    }

    async fn split_shard(&self, request: Request<SplitShardRequest>) -> Result<Response<SplitShardResponse>, Status> {
        let SplitShardRequest { shard, at } = request.into_inner();
        match (shard, &at[..]) {
            (2, b"") => Ok(Response::new(SplitShardResponse { id: 8, at: Bytes::from_static(b"m\x00") })),
            (2, _) => Ok(Response::new(SplitShardResponse { id: 9, at })),
            _ => Err(Status::invalid_argument(format!("s{shard} is no shard of the map"))),
        }
    }

    async fn merge_shards(
        &self,
        request: Request<MergeShardsRequest>,
    ) -> Result<Response<MergeShardsResponse>, Status> {
        match request.into_inner() {
            MergeShardsRequest { left: 1, right: 2 } => Ok(Response::new(MergeShardsResponse { id: 8 })),
            MergeShardsRequest { left, .. } => Err(Status::invalid_argument(format!("s{left} is no shard of the map"))),
        }
    }

    async fn cancel_move(&self, _: Request<CancelMoveRequest>) -> Result<Response<CancelMoveResponse>, Status> {
        Err(Status::invalid_argument("move 7 is done: to undo it, move the shard back"))
    }

    async fn moves_list(&self, _: Request<MovesListRequest>) -> Result<Response<MovesListResponse>, Status> {
        let stage = MoveStage::Copying.into();
        let (copied_bytes, copied_per_mille, bytes_per_second, still_millis) = (3 << 20, 250, 1 << 20, 4_200);
        let report = MoveReport { id: 7, stage, copied_bytes, copied_per_mille, bytes_per_second, still_millis };
        let under_way = Move { id: 7, shard: 2, from: 2, to: 3, report: Some(report) };
        Ok(Response::new(MovesListResponse { moves: vec![under_way], last: 7 }))
    }
}
