//! The first shard map of a cluster, from its description.

use crate::config::{Address, Genesis, Member, Role};
use paxos::{GroupId, NodeId};
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardMap};
use shardkv::types::{MoveId, Revision, ShardId};
use std::collections::BTreeMap;

fn nodes_with(genesis: &Genesis, role: Role) -> Vec<NodeId> {
    genesis.members.iter().filter(|member| member.roles.has(role)).map(|member| member.id).collect()
}

/// The shardmaster's group.
pub(super) fn shardmaster(genesis: &Genesis) -> GroupInfo {
    GroupInfo::new(SHARDMASTER_GROUP, nodes_with(genesis, Role::Shardmaster))
}

/// The data groups.
pub(super) fn data_groups(genesis: &Genesis) -> Vec<GroupInfo> {
    let replicas = nodes_with(genesis, Role::Shardkv);
    let first = SHARDMASTER_GROUP.0 + 1;
    let ids = first..first + u64::from(genesis.data_groups);
    ids.map(|id| GroupInfo::new(GroupId(id), replicas.clone())).collect()
}

/// The nodes, where the others reach them.
pub(super) fn node_infos(genesis: &Genesis, addresses: &BTreeMap<NodeId, String>) -> Vec<NodeInfo> {
    let info = |member: &Member| NodeInfo {
        id: member.id,
        name: member.name.to_string(),
        peer_address: addresses.get(&member.id).cloned().unwrap_or_default(),
        keeps_metadata: member.roles.has(Role::Shardmaster),
        keeps_data: member.roles.has(Role::Shardkv),
        ..NodeInfo::default()
    };
    genesis.members.iter().map(info).collect()
}

/// Where the description says that nodes are.
pub fn described_addresses(genesis: &Genesis) -> BTreeMap<NodeId, String> {
    genesis.members.iter().map(|member| (member.id, member.peer_address.to_string())).collect()
}

/// The same with further nodes, whose ids are not known yet: until the shard map tells, they go by ids that no node has.
pub(super) fn addresses_to_ask(genesis: &Genesis, known: &[Address]) -> BTreeMap<NodeId, String> {
    let further = known.iter().zip(0..).map(|(address, number)| (NodeId(u64::MAX - 1 - number), address.to_string()));
    described_addresses(genesis).into_iter().chain(further).collect()
}

/// The whole map.
pub fn first_map(genesis: &Genesis, addresses: &BTreeMap<NodeId, String>) -> ShardMap {
    let groups = data_groups(genesis);
    let ids: Vec<GroupId> = groups.iter().map(|group| group.id).collect();
    ShardMap {
        version: 1,
        cluster_id: genesis.cluster_id(),
        incarnation: genesis.incarnation(),
        compacted: Revision(0),
        shards: shardmaster::initial_shards(&genesis.boundaries, &ids),
        moves: Vec::new(),
        last_move: MoveId(0),
        reshapes: Vec::new(),
        balance: Default::default(),
        last_shard: ShardId(0),
        shardmaster: shardmaster(genesis),
        last_group: GroupId(0),
        last_node: NodeId(0),
        groups,
        nodes: node_infos(genesis, addresses),
    }
    .counted()
}
