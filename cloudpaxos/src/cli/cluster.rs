//! `cloudpaxos status` and `cloudpaxos shards list`: the admin service, for people and programs.

use super::ClientOptions;
use super::groups::name_of;
use super::output::{self, Format};
use crate::failure::Failure;
use bytes::Bytes;
use proto::admin::{
    Ballot, Group, Node, Replica, ReplicaReport, ReplicaState, Role, Shard, ShardsListRequest, StatusRequest,
    StatusResponse,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// A replica that catches up, or cannot prove its log, is worth a word from so many slots on.
const CATCHING_UP_SLOTS_MAX: u64 = 1_000;
/// And any other one from so many.
const LAG_SLOTS_MAX: u64 = 10_000;

/// `cloudpaxos status`.
pub(super) async fn status(options: ClientOptions) -> Result<(), Failure> {
    let answer = options.client()?.admin(async |admin| admin.status(StatusRequest {}).await).await?;
    match options.format() {
        Format::Json => output::json(&status_json(&answer)),
        Format::Table => status_tables(&answer),
    }
}

/// `cloudpaxos shards list`.
pub(super) async fn shards(options: ClientOptions) -> Result<(), Failure> {
    let answer = options.client()?.admin(async |admin| admin.shards_list(ShardsListRequest {}).await).await?;
    match options.format() {
        Format::Json => output::json(&json!({
            "cluster_id": format!("{:016x}", answer.cluster_id),
            "map_version": answer.map_version,
            "shards": answer.shards.iter().map(shard_json).collect::<Vec<_>>(),
        })),
        Format::Table => output::table(
            &["SHARD", "START", "END", "GROUP", "EPOCH", "LEADER", "REPLICAS"],
            answer.shards.iter().map(|shard| {
                let start = if shard.start.is_empty() { "(lowest)".to_owned() } else { output::shown(&shard.start) };
                let end = if shard.unbounded { "(highest)".to_owned() } else { output::shown(&shard.end) };
                let replicas: Vec<String> = shard.replicas.iter().map(u64::to_string).collect();
                let (id, group, epoch) = (shard.id.to_string(), shard.group.to_string(), shard.epoch.to_string());
                vec![id, start, end, group, epoch, or_dash(shard.leader), replicas.join(",")]
            }),
        ),
    }
}

fn status_tables(answer: &StatusResponse) -> Result<(), Failure> {
    output::line(format!("cluster {:016x}, shard map version {}", answer.cluster_id, answer.map_version))?;
    let sequencer = answer.sequencer.as_ref().map_or("no sequencer answers".to_owned(), |sequencer| {
        let (node, given, reserved) = (sequencer.node, sequencer.handed_out, sequencer.reserved_up_to);
        format!("sequencer on node {node} at {given}, reserved up to {reserved}")
    });
    output::line(format!("revision {} known here; {sequencer}\n", answer.known_revision))?;
    output::table(
        &["NODE", "NAME", "ALIVE", "ROLES", "PEER", "CLIENT", "BOOT", "UP", "VERSION"],
        answer.nodes.iter().map(node_row),
    )?;
    output::line("")?;
    let rows = answer.groups.iter().flat_map(|group| group.replicas.iter().map(move |replica| (group, replica)));
    output::table(
        &["GROUP", "REPLICA", "STATE", "BALLOT", "DECIDED", "APPLIED", "LAG", "KEPT FROM", "SHARDS"],
        rows.map(|(group, replica)| replica_row(group, replica)),
    )?;
    match trouble(answer) {
        None => Ok(()),
        Some(trouble) => output::line(format!("\nattention: {trouble}")),
    }
}

/// What an operator must see first, if anything.
fn trouble(answer: &StatusResponse) -> Option<String> {
    let silent = answer.nodes.iter().filter(|node| !node.alive);
    let silent = silent.map(|node| format!("node {} ({}) does not answer: {}", node.id, node.name, node.error));
    let full = answer.nodes.iter().filter(|node| node.no_space);
    let full = full.map(|node| format!("node {} ({}) takes no writes: free space on its disk", node.id, node.name));
    let orphaned = answer.groups.iter().filter(|group| group.leader == 0);
    let orphaned = orphaned.map(|group| format!("group {} has no leader among the nodes that answer", group.id));
    let replicas = answer.groups.iter().flat_map(|group| group.replicas.iter().map(move |replica| (group, replica)));
    let behind = replicas.filter(|(_, replica)| lags(replica)).map(|(group, replica)| {
        let name = name_of(answer, replica.node);
        format!("group {}: the replica on {name} is {} entries behind", group.id, replica.lag_slots)
    });
    let wrong = answer.groups.iter().filter_map(|group| wrong_states(answer, group));
    let troubles: Vec<String> = silent.chain(full).chain(orphaned).chain(wrong).chain(behind).collect();
    (!troubles.is_empty()).then(|| troubles.join("; "))
}

/// What is to be said of a group whose replicas have not all the same state.
fn wrong_states(answer: &StatusResponse, group: &Group) -> Option<String> {
    let reports = || group.replicas.iter().filter_map(|it| Some((it.node, it.report.as_ref()?)));
    let fenced = reports().filter(|(_, report)| report.state() == ReplicaState::Fenced).map(|(node, _)| node);
    let fenced: Vec<String> = fenced.map(|node| name_of(answer, node)).collect();
    let differ = reports().filter(|(_, report)| !report.differing.is_empty());
    let differing: BTreeSet<u64> =
        differ.flat_map(|(node, report)| report.differing.iter().copied().chain(Some(node))).collect();
    match (&fenced[..], differing.is_empty()) {
        ([], true) => None,
        ([], false) => {
            let names: Vec<String> = differing.into_iter().map(|node| name_of(answer, node)).collect();
            Some(format!("group {}: the replicas on {} have come to different states", group.id, names.join(", ")))
        }
        _ => Some(format!(
            "group {}: the state on {} is not what the others have come to; it serves nothing until it gets the leader's: \
             check memory and disk there",
            group.id,
            fenced.join(", ")
        )),
    }
}

/// Whether a replica is so far behind that its group has one to spare less. One that follows is soon there again.
fn lags(replica: &Replica) -> bool {
    let state = replica.report.as_ref().map_or(ReplicaState::Unspecified, ReplicaReport::state);
    let slots_max = match state {
        ReplicaState::CatchingUp | ReplicaState::Suspect | ReplicaState::Fenced => CATCHING_UP_SLOTS_MAX,
        ReplicaState::Unspecified | ReplicaState::Leader | ReplicaState::Follower => LAG_SLOTS_MAX,
    };
    replica.alive && replica.lag_slots > slots_max
}

fn node_row(node: &Node) -> Vec<String> {
    let alive = if node.alive { "yes" } else { "no" };
    let known = |text: String| if node.alive { text } else { "-".to_owned() };
    let client = if node.client_address.is_empty() { "-" } else { &node.client_address };
    vec![
        node.id.to_string(),
        node.name.clone(),
        alive.to_owned(),
        known(node.roles().map(role_word).collect::<Vec<_>>().join(",")),
        node.peer_address.clone(),
        client.to_owned(),
        known(node.boot.to_string()),
        known(humantime::format_duration(Duration::from_secs(node.uptime_seconds)).to_string()),
        known(node.version.clone()),
    ]
}

fn replica_row(group: &Group, replica: &Replica) -> Vec<String> {
    let (id, node) = (group.id.to_string(), replica.node.to_string());
    let Some(report) = replica.report.as_ref().filter(|_| replica.alive) else {
        let mut row = vec![id, node, "unknown".to_owned()];
        row.resize_with(8, || "-".to_owned());
        row.push(group.shards.to_string());
        return row;
    };
    let state = match (report.state(), report.lease_valid) {
        (ReplicaState::Leader, false) => "leader (no lease)",
        (state, _) => state_word(state),
    };
    vec![
        id,
        node,
        state.to_owned(),
        report.ballot.as_ref().map_or("-".to_owned(), ballot_text),
        report.decided.to_string(),
        report.applied.to_string(),
        replica.lag_slots.to_string(),
        report.first_kept.to_string(),
        group.shards.to_string(),
    ]
}

fn status_json(answer: &StatusResponse) -> Value {
    json!({
        "cluster_id": format!("{:016x}", answer.cluster_id),
        "map_version": answer.map_version,
        "version": answer.version,
        "known_revision": answer.known_revision,
        "compacted_revision": answer.compacted_revision,
        "sequencer": answer.sequencer.as_ref().map(|sequencer| json!({
            "node": sequencer.node,
            "handed_out": sequencer.handed_out,
            "reserved_up_to": sequencer.reserved_up_to,
        })),
        "nodes": answer.nodes.iter().map(node_json).collect::<Vec<_>>(),
        "groups": answer.groups.iter().map(group_json).collect::<Vec<_>>(),
    })
}

fn node_json(node: &Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "alive": node.alive,
        "error": (!node.alive).then_some(&node.error),
        "roles": node.roles().map(role_word).collect::<Vec<_>>(),
        "peer_address": node.peer_address,
        "client_address": node.client_address,
        "boot": node.boot,
        "uptime_seconds": node.uptime_seconds,
        "no_space": node.no_space,
        "version": node.version,
    })
}

fn group_json(group: &Group) -> Value {
    let replica = |replica: &Replica| {
        json!({
            "node": replica.node,
            "alive": replica.alive,
            "lag_slots": replica.alive.then_some(replica.lag_slots),
            "report": replica.report.as_ref().map(|report| json!({
                "state": state_word(report.state()),
                "leader": report.leader,
                "ballot": report.ballot.as_ref().map(ballot_text),
                "decided": report.decided,
                "applied": report.applied,
                "first_kept": report.first_kept,
                "lease_valid": report.lease_valid,
                "differing": report.differing,
            })),
        })
    };
    json!({
        "id": group.id,
        "leader": (group.leader != 0).then_some(group.leader),
        "ballot": group.ballot.as_ref().map(ballot_text),
        "decided": group.decided,
        "shards": group.shards,
        "replicas": group.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

fn shard_json(shard: &Shard) -> Value {
    let end: Option<&Bytes> = (!shard.unbounded).then_some(&shard.end);
    json!({
        "id": shard.id,
        "start": output::value(&shard.start),
        "end": end.map(output::value),
        "group": shard.group,
        "epoch": shard.epoch,
        "leader": (shard.leader != 0).then_some(shard.leader),
        "replicas": shard.replicas,
    })
}

fn or_dash(number: u64) -> String {
    if number == 0 { "-".to_owned() } else { number.to_string() }
}

/// As ballots appear in logs: configuration, round, node, boot.
fn ballot_text(ballot: &Ballot) -> String {
    let Ballot { config, round, node, boot } = ballot;
    format!("{config}.{round}.{node}b{boot}")
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "unknown",
        Role::Shardmaster => "shardmaster",
        Role::Shardkv => "shardkv",
        Role::Gateway => "gateway",
    }
}

fn state_word(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Unspecified => "unknown",
        ReplicaState::Leader => "leader",
        ReplicaState::Follower => "follower",
        ReplicaState::CatchingUp => "catching up",
        ReplicaState::Suspect => "suspect",
        ReplicaState::Fenced => "fenced",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_that_lag_are_worth_attention() {
        let group = |state: ReplicaState, lag_slots| {
            let report = Some(ReplicaReport { state: state.into(), ..ReplicaReport::default() });
            let replicas = vec![Replica { node: 2, alive: true, report, lag_slots }];
            Group { id: 3, leader: 1, replicas, ..Group::default() }
        };
        let told = |state, lag_slots| {
            let nodes = vec![Node { id: 2, name: "n2".to_owned(), alive: true, ..Node::default() }];
            trouble(&StatusResponse { nodes, groups: vec![group(state, lag_slots)], ..StatusResponse::default() })
        };
        let text = "group 3: the replica on n2 is 1001 entries behind";
        assert_eq!(told(ReplicaState::CatchingUp, 1001).as_deref(), Some(text));
        assert_eq!(told(ReplicaState::Suspect, 1001).as_deref(), Some(text));
        assert_eq!(told(ReplicaState::CatchingUp, 1000), None);
        assert_eq!(told(ReplicaState::Follower, 1001), None);
        assert!(told(ReplicaState::Follower, 10_001).is_some());
    }

    #[test]
    fn states_that_differ_are_worth_attention() {
        let told = |states: &[(ReplicaState, &[u64])]| {
            let replicas = states.iter().zip(1..).map(|((state, differing), node)| {
                let (state, differing) = (i32::from(*state), differing.to_vec());
                let report = Some(ReplicaReport { state, differing, ..ReplicaReport::default() });
                Replica { node, alive: true, report, lag_slots: 0 }
            });
            let group = Group { id: 3, leader: 1, replicas: replicas.collect(), ..Group::default() };
            let node = |id: u64| Node { id, name: format!("n{id}"), alive: true, ..Node::default() };
            let nodes = (1..=3).map(node).collect();
            trouble(&StatusResponse { nodes, groups: vec![group], ..StatusResponse::default() })
        };
        let (leader, follower, fenced) = (ReplicaState::Leader, ReplicaState::Follower, ReplicaState::Fenced);
        assert_eq!(told(&[(leader, &[]), (follower, &[])]), None);
        let text = "group 3: the replicas on n1, n2 have come to different states";
        assert_eq!(told(&[(leader, &[2]), (follower, &[1])]).as_deref(), Some(text));
        let text = "group 3: the state on n2 is not what the others have come to; it serves nothing until it gets the \
                    leader's: check memory and disk there";
        assert_eq!(told(&[(leader, &[2]), (fenced, &[1, 3]), (follower, &[2])]).as_deref(), Some(text));
    }

    #[test]
    fn a_full_disk_is_worth_attention() {
        let node = |no_space| Node { id: 2, name: "n2".to_owned(), alive: true, no_space, ..Node::default() };
        let told = |no_space| trouble(&StatusResponse { nodes: vec![node(no_space)], ..StatusResponse::default() });
        assert_eq!(told(true).as_deref(), Some("node 2 (n2) takes no writes: free space on its disk"));
        assert_eq!(told(false), None);
    }
}
