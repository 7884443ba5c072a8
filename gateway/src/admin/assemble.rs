//! One status of the cluster, out of what its nodes say of themselves. Pure.

use super::AdminError;
use paxos::{GroupId, NodeId};
use proto::admin::{
    BalanceExplainResponse, Ballot, Group, Move, MovesListResponse, Node, NodeReport, Pin, Replica, ReplicaReport,
    ReplicaState, Sequencer, ShardLoad, StatusResponse,
};
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardMap};
use shardkv::types::Revision;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The map, and what each of its nodes said.
#[derive(Debug)]
pub struct Answers {
    /// The map.
    pub map: Arc<ShardMap>,
    /// Of every node of the map.
    pub reports: BTreeMap<NodeId, Result<NodeReport, AdminError>>,
    /// The largest revision that the asked gateway knows.
    pub known_revision: Revision,
    /// The asked gateway's version.
    pub version: String,
}

impl Answers {
    /// What the replica of `group` on `node` said.
    fn replica(&self, group: GroupId, node: NodeId) -> Option<&ReplicaReport> {
        let report = self.reports.get(&node)?.as_ref().ok()?;
        report.replicas.iter().find(|replica| replica.group == group.0)
    }

    /// The leader of `group`: of those who say they lead, the one with the greatest ballot. An
    /// overthrown leader that has not heard of it still says so, with a lower one.
    pub(super) fn leader(&self, group: GroupId) -> Option<(NodeId, Ballot)> {
        let reports = self.reports.iter().filter_map(|(node, report)| Some((*node, report.as_ref().ok()?)));
        reports
            .flat_map(|(node, report)| report.replicas.iter().map(move |replica| (node, replica)))
            .filter(|(_, replica)| replica.group == group.0 && replica.state() == ReplicaState::Leader)
            .map(|(node, replica)| (node, replica.ballot.unwrap_or_default()))
            .max_by_key(|(_, ballot)| order(ballot))
    }

    fn group(&self, info: &GroupInfo) -> Group {
        let nodes: BTreeSet<NodeId> = info.replicas.iter().chain(&info.next).copied().collect();
        let reports = nodes.iter().filter_map(|node| self.replica(info.id, *node));
        let decided = reports.map(|report| report.decided).max().unwrap_or_default();
        let replica = |node: &NodeId| {
            let report = self.replica(info.id, *node);
            Replica {
                node: node.0,
                alive: report.is_some(),
                report: report.cloned(),
                lag_slots: report.map_or(0, |report| decided.saturating_sub(report.applied)),
            }
        };
        let leader = self.leader(info.id);
        Group {
            id: info.id.0,
            leader: leader.map_or(0, |(node, _)| node.0),
            ballot: leader.map(|(_, ballot)| ballot),
            decided,
            shards: self.map.shards.iter().filter(|shard| shard.group == info.id).count() as u64,
            replicas: nodes.iter().map(replica).collect(),
            config: info.config.0,
            members: info.replicas.iter().map(|node| node.0).collect(),
            next: info.next.iter().map(|node| node.0).collect(),
            emptying: info.emptying,
        }
    }

    fn node(&self, info: &NodeInfo) -> Node {
        let node = Node {
            id: info.id.0,
            name: info.name.clone(),
            peer_address: info.peer_address.clone(),
            client_address: info.client_address.clone(),
            draining: info.draining,
            zone: info.zone.clone(),
            ..Default::default()
        };
        match self.reports.get(&info.id) {
            Some(Ok(report)) => Node {
                alive: true,
                roles: report.roles.clone(),
                version: report.version.clone(),
                boot: report.boot,
                uptime_seconds: report.uptime_seconds,
                no_space: report.no_space,
                ..node
            },
            Some(Err(error)) => Node { error: error.to_string(), silent_seconds: self.silent_seconds(info.id), ..node },
            None => Node { error: "it was not asked".to_owned(), ..node },
        }
    }

    /// For how long the shardmaster's leader has not reached a node: it is the one that has dead nodes replaced.
    fn silent_seconds(&self, node: NodeId) -> u64 {
        let report = self.leader(SHARDMASTER_GROUP).and_then(|(leader, _)| self.reports.get(&leader)?.as_ref().ok());
        let silent = report.and_then(|report| report.silent.iter().find(|silent| silent.node == node.0));
        silent.map_or(0, |silent| silent.seconds)
    }

    /// The shardmaster's leader holds the sequencer.
    fn sequencer(&self) -> Option<Sequencer> {
        let (node, _) = self.leader(SHARDMASTER_GROUP)?;
        let report = self.reports.get(&node)?.as_ref().ok()?;
        report.sequencer.map(|sequencer| Sequencer { node: node.0, ..sequencer })
    }
}

/// Puts the answers together.
pub fn assemble(answers: Answers) -> StatusResponse {
    let groups = answers.map.all_groups();
    StatusResponse {
        cluster_id: answers.map.cluster_id,
        map_version: answers.map.version,
        nodes: answers.map.nodes.iter().map(|node| answers.node(node)).collect(),
        groups: groups.map(|group| answers.group(group)).collect(),
        sequencer: answers.sequencer(),
        known_revision: answers.known_revision.0,
        compacted_revision: answers.map.compacted.0,
        version: answers.version.clone(),
    }
}

/// The moves under way, with what the leaders of the groups that get the shards say: the one who is further, where
/// an overthrown one says so, too.
pub(super) fn moves(answers: &Answers) -> MovesListResponse {
    let reports = || answers.reports.values().flatten().flat_map(|report| &report.moves);
    let moves = answers.map.moves.iter().map(|planned| Move {
        id: planned.id.0,
        shard: planned.shard.0,
        from: planned.from.0,
        to: planned.to.0,
        report: reports().filter(|report| report.id == planned.id.0).max_by_key(|report| report.copied_bytes).copied(),
    });
    MovesListResponse { moves: moves.collect(), last: answers.map.last_move.0 }
}

/// What the leader of the shardmaster says of the balancer.
pub(super) fn balance(answers: &Answers) -> BalanceExplainResponse {
    let leader = answers.leader(SHARDMASTER_GROUP).and_then(|(node, _)| answers.reports.get(&node)?.as_ref().ok());
    let settings = &answers.map.balance;
    let pin = |pin: &shardkv::map::Pin| Pin { prefix: pin.prefix.clone(), group: pin.group.0 };
    BalanceExplainResponse {
        paused: settings.paused,
        why: leader.map(|report| report.balance.clone()).unwrap_or_default(),
        pins: settings.pins.iter().map(pin).collect(),
    }
}

/// The load of each shard: requests to it add up over the nodes, the rest is what the busiest of them says.
pub(super) fn loads(answers: &Answers) -> Vec<ShardLoad> {
    let mut all: BTreeMap<u64, ShardLoad> = BTreeMap::new();
    for load in answers.reports.values().flatten().flat_map(|report| &report.loads) {
        let Some(known) = all.get_mut(&load.shard) else {
            all.insert(load.shard, load.clone());
            continue;
        };
        let requests = |load: &ShardLoad| load.reads_per_second + load.writes_per_second;
        if requests(load) > requests(known) {
            known.hottest.clone_from(&load.hottest);
        }
        known.reads_per_second += load.reads_per_second;
        known.writes_per_second += load.writes_per_second;
        if load.measured {
            (known.measured, known.stored_bytes, known.keys) = (true, load.stored_bytes, load.keys);
        }
    }
    all.into_values().collect()
}

/// Ballots in the order of `paxos::Ballot`.
fn order(ballot: &Ballot) -> (u32, u64, u64, u64) {
    (ballot.config, ballot.round, ballot.node, ballot.boot)
}
