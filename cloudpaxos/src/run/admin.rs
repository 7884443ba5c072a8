//! What the admin API asks of this process: the map, and every node's report.

use crate::config::{Role, Roles};
use crate::identity::Identity;
use bytes::Bytes;
use gateway::admin::{AdminError, AdminSource, REPORT_TIMEOUT, ReportSource, Reports};
use gateway::driver::Handle;
use gateway::{AnswerBody, Call, CallError};
use node::core::{CoreStatus, GroupStatus, MoveStatus};
use node::runtime::NodeHandle;
use paxos::NodeId;
use proto::admin::{self, MoveReport, MoveStage, NodeReport, ReplicaReport, ReplicaState, SilentNode};
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::moving::Position;
use shardkv::request::OpError;
use shardkv::types::Revision;
use shardmaster::load::ShardLoad;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Status;

/// How long the shardmaster may take to log a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A node whose turn takes longer is as good as silent; shorter than [`REPORT_TIMEOUT`], so that the reason
/// arrives.
const TURN_TIMEOUT: Duration = REPORT_TIMEOUT.saturating_sub(Duration::from_millis(250));

/// A node's report of itself, as of the turn that answers: what an operator has just done is in it.
pub(super) struct NodeReporter {
    node: NodeHandle,
    id: NodeId,
    /// What does not change while the process runs.
    fixed: NodeReport,
    began: Instant,
}

impl NodeReporter {
    /// A reporter of `node`, which began at `began`.
    pub(super) fn new(node: NodeHandle, identity: &Identity, roles: Roles, began: Instant) -> NodeReporter {
        let fixed = NodeReport {
            node: identity.node_id.0,
            name: identity.name.to_string(),
            cluster_id: identity.cluster_id,
            incarnation: identity.incarnation,
            boot: identity.boot,
            roles: roles.iter().map(|role| role_number(role) as i32).collect(),
            version: crate::VERSION.to_owned(),
            ..NodeReport::default()
        };
        NodeReporter { node, id: identity.node_id, fixed, began }
    }
}

#[tonic::async_trait]
impl ReportSource for NodeReporter {
    async fn report(&self) -> Result<NodeReport, AdminError> {
        let why = match tokio::time::timeout(TURN_TIMEOUT, self.node.status()).await {
            Ok(Some(status)) => {
                let fixed = NodeReport { uptime_seconds: self.began.elapsed().as_secs(), ..self.fixed.clone() };
                return Ok(fill(fixed, &status));
            }
            Ok(None) => "the node has stopped".to_owned(),
            Err(_) => format!("no turn of the node within {} ms", TURN_TIMEOUT.as_millis()),
        };
        Err(AdminError::NoReport(why))
    }
}

fn role_number(role: Role) -> admin::Role {
    match role {
        Role::Shardmaster => admin::Role::Shardmaster,
        Role::Shardkv => admin::Role::Shardkv,
        Role::Gateway => admin::Role::Gateway,
    }
}

fn fill(report: NodeReport, status: &CoreStatus) -> NodeReport {
    let sequencer = status.sequencer.map(|handed_out| admin::Sequencer {
        node: status.node.0,
        handed_out: handed_out.0,
        reserved_up_to: status.reserved_up_to.0,
    });
    let moves = status.moves.iter().map(move_report).collect();
    let loads = status.loads.iter().map(load_report).collect();
    let (replicas, balance) = (status.groups.iter().map(replica_report).collect(), status.balance.clone());
    let silent = |(node, micros): &(NodeId, u64)| SilentNode { node: node.0, seconds: micros / 1_000_000 };
    let (silent, no_space) = (status.silent.iter().map(silent).collect(), status.no_space);
    NodeReport { replicas, sequencer, moves, loads, balance, silent, no_space, ..report }
}

fn load_report(load: &ShardLoad) -> admin::ShardLoad {
    let stored = load.stored.unwrap_or_default();
    let hot = |(key, per_mille): &(Bytes, u32)| admin::HotKey { key: key.clone(), per_mille: *per_mille };
    admin::ShardLoad {
        shard: load.shard.0,
        reads_per_second: load.reads,
        writes_per_second: load.writes,
        measured: load.stored.is_some(),
        stored_bytes: stored.bytes,
        keys: stored.keys,
        hottest: load.hottest.iter().map(hot).collect(),
    }
}

fn move_report(status: &MoveStatus) -> MoveReport {
    let stage = match status.at {
        Position::Versions { .. } => MoveStage::Copying,
        Position::Changes { .. } => MoveStage::CatchingUp,
        Position::Sessions { .. } => MoveStage::HandingOver,
        Position::End => MoveStage::Arrived,
    };
    let (id, stage) = (status.mv.0, stage.into());
    MoveReport {
        id,
        stage,
        copied_bytes: status.bytes,
        copied_per_mille: status.copied,
        bytes_per_second: status.bytes_per_second,
        still_millis: status.still_micros / 1_000,
    }
}

fn replica_report(group: &GroupStatus) -> ReplicaReport {
    let state = if group.fenced {
        ReplicaState::Fenced
    } else if group.suspect {
        ReplicaState::Suspect
    } else if group.serves {
        ReplicaState::Leader
    } else if group.accepted == group.leader {
        ReplicaState::Follower
    } else {
        ReplicaState::CatchingUp
    };
    let promised = group.promised;
    ReplicaReport {
        group: group.group.0,
        state: state as i32,
        leader: group.leader.node.0,
        ballot: Some(admin::Ballot {
            config: promised.config.0,
            round: promised.round,
            node: promised.node.0,
            boot: promised.boot,
        }),
        decided: group.decided.0,
        applied: group.applied.0,
        first_kept: group.first_kept.0,
        lease_valid: group.leased,
        differing: group.differing.iter().map(|node| node.0).collect(),
    }
}

/// The cluster, as a gateway can ask it.
pub(super) struct Source {
    gateway: Handle,
    own: Option<Arc<NodeReporter>>,
    reports: Reports,
}

impl Source {
    /// A source for `gateway`; other nodes are reached as `reports` does.
    pub(super) fn new(gateway: Handle, own: Option<Arc<NodeReporter>>, reports: Reports) -> Source {
        Source { gateway, own, reports }
    }
}

#[tonic::async_trait]
impl AdminSource for Source {
    async fn map(&self) -> Result<Arc<ShardMap>, AdminError> {
        match self.gateway.call(Call::Map, REPORT_TIMEOUT).await {
            Ok(answer) => match answer.body {
                AnswerBody::Map(map) => Ok(map),
                _ => Err(AdminError::NoMap),
            },
            // The shardmaster is silent; what is known of it is worth showing all the same.
            Err(_) => self.gateway.map().ok_or(AdminError::NoMap),
        }
    }

    async fn call(&self, call: Call) -> Result<AnswerBody, Status> {
        match self.gateway.call(call, CHANGE_TIMEOUT).await {
            Ok(answer) => Ok(answer.body),
            Err(CallError::Failed(OpError::Malformed(why))) => Err(Status::invalid_argument(why)),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    fn known_revision(&self) -> Revision {
        self.gateway.known()
    }

    async fn report(&self, node: &NodeInfo) -> Result<NodeReport, AdminError> {
        match &self.own {
            Some(own) if own.id == node.id => own.report().await,
            _ => self.reports.ask(node).await,
        }
    }
}
