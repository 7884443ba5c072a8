//! The admin API: what an operator asks a cluster (`cloudpaxos status`, `cloudpaxos shards list`).
//!
//! Every gateway can answer for the whole cluster. It takes the shard map, asks every node of the map
//! for its own report, all at once and none for longer than [`REPORT_TIMEOUT`], and puts the answers
//! together ([`assemble()`]). A node that is silent is part of the answer, not a failure of it.
//!
//! - [`AdminSource`] is what a gateway must know for that; its host implements it.
//! - [`AdminService`] serves `cloudpaxos.admin.Admin` on the client port.
//! - [`ReportService`] serves `cloudpaxos.admin.NodeReports` on a node's peer port, and [`Reports`]
//!   asks for them from elsewhere, over one connection per node.
//!
//! Invariants: nothing here is on the way of a read or a write; what changes anything is a command in the
//! shardmaster's log, never done here.

mod assemble;
mod reports;

pub use assemble::{Answers, assemble};
pub use reports::{ReportService, ReportSource, Reports};

use crate::call::{AnswerBody, Call};
use futures_util::future::join_all;
use paxos::{GroupId, NodeId};
use proto::admin::admin_server::{Admin, AdminServer};
use proto::admin::{
    BalanceExplainRequest, BalanceExplainResponse, CancelMoveRequest, CancelMoveResponse, ChangeMembersRequest,
    ChangeMembersResponse, CreateGroupRequest, CreateGroupResponse, DrainNodeRequest, DrainNodeResponse,
    EmptyGroupRequest, EmptyGroupResponse, MergeShardsRequest, MergeShardsResponse, MoveShardRequest,
    MoveShardResponse, MovesListRequest, MovesListResponse, NodeReport, PauseBalanceRequest, PauseBalanceResponse,
    PinPrefixRequest, PinPrefixResponse, RemoveGroupRequest, RemoveGroupResponse, RemoveNodeRequest,
    RemoveNodeResponse, Shard, ShardsListRequest, ShardsListResponse, ShardsTopRequest, ShardsTopResponse,
    SplitShardRequest, SplitShardResponse, StatusRequest, StatusResponse,
};
use shardkv::map::{GroupChange, NodeInfo, Pin, ShardChange, ShardInfo, ShardMap};
use shardkv::types::{MoveId, Revision, ShardId};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// An operator waits for a silent node no longer than this.
pub const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why an operator gets no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No shard map has arrived here yet.
    #[error("this gateway has no shard map yet: no shardmaster replica has answered it; try another endpoint or wait")]
    NoMap,
    /// The node cannot be asked.
    #[error("{0}")]
    NoReport(String),
}

impl From<AdminError> for Status {
    fn from(error: AdminError) -> Status {
        Status::unavailable(error.to_string())
    }
}

/// What a gateway knows of the cluster, and whom it can ask.
#[tonic::async_trait]
pub trait AdminSource: Send + Sync + 'static {
    /// The newest shard map that can be had.
    async fn map(&self) -> Result<Arc<ShardMap>, AdminError>;

    /// Makes a call that is not a client's: what the shardmaster is to log, or where a shard's middle is. Its answer.
    async fn call(&self, call: Call) -> Result<AnswerBody, Status>;

    /// The largest revision that this gateway knows.
    fn known_revision(&self) -> Revision;

    /// A node's report of itself; its own host answers for itself without a connection. May take as
    /// long as it likes: the caller does not wait longer than [`REPORT_TIMEOUT`].
    async fn report(&self, node: &NodeInfo) -> Result<NodeReport, AdminError>;
}

/// Serves the admin API from a source.
#[derive(Clone)]
pub struct AdminService {
    source: Arc<dyn AdminSource>,
    version: String,
}

impl AdminService {
    /// A service of this process, whose version is `version`.
    pub fn new(source: Arc<dyn AdminSource>, version: impl Into<String>) -> AdminService {
        AdminService { source, version: version.into() }
    }

    /// Ready to be added to a server.
    pub fn into_server(self) -> AdminServer<AdminService> {
        AdminServer::new(self)
    }

    async fn answers(&self) -> Result<Answers, AdminError> {
        let map = self.source.map().await?;
        let reports = join_all(map.nodes.iter().map(async |node| {
            let report = tokio::time::timeout(REPORT_TIMEOUT, self.source.report(node)).await;
            let report = report.unwrap_or_else(|_| {
                Err(AdminError::NoReport(format!("no report within {} ms", REPORT_TIMEOUT.as_millis())))
            });
            (node.id, report.and_then(|report| belongs(&map, node, report)))
        }))
        .await;
        Ok(Answers {
            reports: reports.into_iter().collect(),
            known_revision: self.source.known_revision(),
            version: self.version.clone(),
            map,
        })
    }
}

/// Something else may listen where the map says that a node is.
fn belongs(map: &ShardMap, node: &NodeInfo, report: NodeReport) -> Result<NodeReport, AdminError> {
    let (cluster, id) = (map.cluster_id, node.id.0);
    if report.cluster_id == cluster && report.node == id {
        return Ok(report);
    }
    Err(AdminError::NoReport(format!(
        "at {} answers node {} of cluster {:016x}, expected was node {id} of cluster {cluster:016x}",
        node.peer_address, report.node, report.cluster_id
    )))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(assemble(self.answers().await?)))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersResponse>, Status> {
        let ChangeMembersRequest { group, members } = request.into_inner();
        let members = members.into_iter().map(NodeId).collect();
        self.source.call(Call::ChangeMembers { group: GroupId(group), members }).await?;
        Ok(Response::new(ChangeMembersResponse {}))
    }

    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        let CreateGroupRequest { members, nonce } = request.into_inner();
        let members = members.into_iter().map(NodeId).collect();
        match self.source.call(Call::ChangeGroups(GroupChange::Create { members, nonce })).await? {
            AnswerBody::Group(group) => Ok(Response::new(CreateGroupResponse { group: group.0 })),
            other => Err(Status::internal(format!("the shardmaster answered {other:?} to a new group"))),
        }
    }

    async fn empty_group(&self, request: Request<EmptyGroupRequest>) -> Result<Response<EmptyGroupResponse>, Status> {
        let EmptyGroupRequest { group, emptying } = request.into_inner();
        self.source.call(Call::ChangeGroups(GroupChange::Empty { group: GroupId(group), emptying })).await?;
        Ok(Response::new(EmptyGroupResponse {}))
    }

    async fn remove_group(
        &self,
        request: Request<RemoveGroupRequest>,
    ) -> Result<Response<RemoveGroupResponse>, Status> {
        let group = GroupId(request.into_inner().group);
        self.source.call(Call::ChangeGroups(GroupChange::Remove { group })).await?;
        Ok(Response::new(RemoveGroupResponse {}))
    }

    async fn drain_node(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        let DrainNodeRequest { node, drain } = request.into_inner();
        self.source.call(Call::DrainNode { node: NodeId(node), drain }).await?;
        Ok(Response::new(DrainNodeResponse {}))
    }

    async fn remove_node(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeResponse>, Status> {
        self.source.call(Call::RemoveNode { node: NodeId(request.into_inner().node) }).await?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn move_shard(&self, request: Request<MoveShardRequest>) -> Result<Response<MoveShardResponse>, Status> {
        let MoveShardRequest { shard, group } = request.into_inner();
        match self
            .source
            .call(Call::ChangeShards(ShardChange::Move { shard: ShardId(shard), to: GroupId(group) }))
            .await?
        {
            AnswerBody::Move(mv) => Ok(Response::new(MoveShardResponse { id: mv.0 })),
            other => Err(Status::internal(format!("the shardmaster answered {other:?} to a move"))),
        }
    }

    async fn shards_top(&self, _: Request<ShardsTopRequest>) -> Result<Response<ShardsTopResponse>, Status> {
        let answers = self.answers().await?;
        let shards = answers.map.shards.iter().map(|shard| shard_row(&answers, shard)).collect();
        Ok(Response::new(ShardsTopResponse { shards, loads: assemble::loads(&answers) }))
    }

    async fn split_shard(&self, request: Request<SplitShardRequest>) -> Result<Response<SplitShardResponse>, Status> {
        let SplitShardRequest { shard, mut at } = request.into_inner();
        let shard = ShardId(shard);
        if at.is_empty() {
            at = match self.source.call(Call::Middle { shard }).await? {
                AnswerBody::Middle(Some(key)) => key,
                AnswerBody::Middle(None) => {
                    return Err(Status::failed_precondition(format!("{shard} holds too few keys to be split")));
                }
                other => {
                    return Err(Status::internal(format!("a group answered {other:?} to where a shard's middle is")));
                }
            };
        }
        match self.source.call(Call::ChangeShards(ShardChange::Split { shard, at: at.clone() })).await? {
            AnswerBody::Move(id) => Ok(Response::new(SplitShardResponse { id: id.0, at })),
            other => Err(Status::internal(format!("the shardmaster answered {other:?} to a split"))),
        }
    }

    async fn merge_shards(
        &self,
        request: Request<MergeShardsRequest>,
    ) -> Result<Response<MergeShardsResponse>, Status> {
        let MergeShardsRequest { left, right } = request.into_inner();
        let change = ShardChange::Merge { left: ShardId(left), right: ShardId(right) };
        match self.source.call(Call::ChangeShards(change)).await? {
            AnswerBody::Move(id) => Ok(Response::new(MergeShardsResponse { id: id.0 })),
            other => Err(Status::internal(format!("the shardmaster answered {other:?} to a merge"))),
        }
    }

    async fn balance_explain(
        &self,
        _: Request<BalanceExplainRequest>,
    ) -> Result<Response<BalanceExplainResponse>, Status> {
        Ok(Response::new(assemble::balance(&self.answers().await?)))
    }

    async fn pause_balance(
        &self,
        request: Request<PauseBalanceRequest>,
    ) -> Result<Response<PauseBalanceResponse>, Status> {
        let paused = request.into_inner().paused;
        self.source.call(Call::ChangeShards(ShardChange::Pause { paused })).await?;
        Ok(Response::new(PauseBalanceResponse {}))
    }

    async fn pin_prefix(&self, request: Request<PinPrefixRequest>) -> Result<Response<PinPrefixResponse>, Status> {
        let PinPrefixRequest { prefix, group } = request.into_inner();
        let change = match group {
            0 => ShardChange::Unpin { prefix },
            group => ShardChange::Pin(Pin { prefix, group: GroupId(group) }),
        };
        self.source.call(Call::ChangeShards(change)).await?;
        Ok(Response::new(PinPrefixResponse {}))
    }

    async fn cancel_move(&self, request: Request<CancelMoveRequest>) -> Result<Response<CancelMoveResponse>, Status> {
        let change = ShardChange::CancelMove { mv: MoveId(request.into_inner().id) };
        self.source.call(Call::ChangeShards(change)).await?;
        Ok(Response::new(CancelMoveResponse {}))
    }

    async fn moves_list(&self, _: Request<MovesListRequest>) -> Result<Response<MovesListResponse>, Status> {
        Ok(Response::new(assemble::moves(&self.answers().await?)))
    }

    async fn shards_list(&self, _: Request<ShardsListRequest>) -> Result<Response<ShardsListResponse>, Status> {
        let answers = self.answers().await?;
        let shards = answers.map.shards.iter().map(|shard| shard_row(&answers, shard)).collect();
        let (cluster_id, map_version) = (answers.map.cluster_id, answers.map.version);
        let changes = answers.map.reshapes.iter().map(|planned| planned.id.0).collect();
        let last = answers.map.last_move.0;
        Ok(Response::new(ShardsListResponse { cluster_id, map_version, shards, changes, last }))
    }
}

fn shard_row(answers: &Answers, shard: &ShardInfo) -> Shard {
    let replicas = |group: GroupId| answers.map.group(group).map(|group| &group.replicas[..]).unwrap_or_default();
    Shard {
        id: shard.id.0,
        start: shard.bounds.start.clone(),
        end: shard.bounds.end.clone().unwrap_or_default(),
        unbounded: shard.bounds.end.is_none(),
        group: shard.group.0,
        epoch: shard.epoch.0,
        leader: answers.leader(shard.group).map_or(0, |(node, _)| node.0),
        replicas: replicas(shard.group).iter().map(|node| node.0).collect(),
    }
}

#[cfg(test)]
mod tests;
