//! The shard map: which group owns which range of keys. The shardmaster decides it, gateways route
//! by it, groups hold their own part of it.

use crate::types::{Bounds, Epoch, Keys, MoveId, ShardId};
use bytes::Bytes;
use paxos::{ConfigId, GroupId, NodeId};
use serde::{Deserialize, Serialize};

/// One shard and its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardInfo {
    /// The shard.
    pub id: ShardId,
    /// Its keys.
    pub bounds: Bounds,
    /// The owner.
    pub group: GroupId,
    /// Counts the owners.
    pub epoch: Epoch,
    /// The change by which the owner has it like this: a move, a split or a merge; 0 if it was never changed.
    pub by: MoveId,
}

/// A shard that is to move to another group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveInfo {
    /// The move.
    pub id: MoveId,
    /// The shard.
    pub shard: ShardId,
    /// Its owner.
    pub from: GroupId,
    /// The epoch at which it is owned.
    pub epoch: Epoch,
    /// The next owner.
    pub to: GroupId,
}

/// Shards of one group that are to be cut anew: a split or a merge. The map has the new ones already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReshapeInfo {
    /// The change; these are counted together with moves.
    pub id: MoveId,
    /// The group.
    pub group: GroupId,
    /// As they were, in key order.
    pub from: Vec<ShardInfo>,
    /// As they are to be, in key order, over the same keys.
    pub to: Vec<ShardInfo>,
}

/// What is wanted of the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardChange {
    /// A shard is to move to another group.
    Move {
        /// The shard.
        shard: ShardId,
        /// Where to.
        to: GroupId,
    },
    /// A move is called off, if it is not over.
    CancelMove {
        /// Which.
        mv: MoveId,
    },
    /// A shard becomes two: it keeps what lies below a key, and a new one gets the rest.
    Split {
        /// The shard.
        shard: ShardId,
        /// The first key of the new one.
        at: Bytes,
    },
    /// Two neighbours of one group become one, under the id of the left one.
    Merge {
        /// The one with the lower keys.
        left: ShardId,
        /// The other.
        right: ShardId,
    },
    /// The balancer is to do nothing, or to go on.
    Pause {
        /// Whether it is to do nothing.
        paused: bool,
    },
    /// The keys with a prefix are to lie in a group.
    Pin(Pin),
    /// They may lie anywhere again.
    Unpin {
        /// The prefix.
        prefix: Bytes,
    },
}

/// What is wanted of the data groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupChange {
    /// There is to be one more.
    Create {
        /// The nodes that hold its replicas; none for those that hold least, spread over zones.
        members: Vec<NodeId>,
        /// A random number, the same when it is asked for again.
        nonce: u64,
    },
    /// One is to give its shards to others, or may have some again.
    Empty {
        /// Which.
        group: GroupId,
        /// Whether it is to.
        emptying: bool,
    },
    /// One that has no shards is to go.
    Remove {
        /// Which.
        group: GroupId,
    },
}

/// The keys with a prefix lie in a group, whatever the load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The prefix; no other pin's begins with it, or is the beginning of it.
    pub prefix: Bytes,
    /// The group.
    pub group: GroupId,
}

impl Pin {
    /// The pinned keys.
    pub fn bounds(&self) -> Bounds {
        let kept = self.prefix.iter().rposition(|&byte| byte < 0xFF);
        let end = kept.map(|last| {
            let mut end = self.prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        });
        Bounds { start: self.prefix.clone(), end }
    }

    /// The prefix, for people.
    pub fn shown(&self) -> String {
        format!("{}*", self.prefix.escape_ascii())
    }
}

/// What operators want of the balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceSettings {
    /// It does nothing.
    pub paused: bool,
    /// Sorted by prefix.
    pub pins: Vec<Pin>,
}

/// A replica group and where its replicas live.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// The group.
    pub id: GroupId,
    /// Its replicas' nodes, ascending.
    pub replicas: Vec<NodeId>,
    /// The configuration whose members they are.
    pub config: ConfigId,
    /// The members wanted next, ascending; empty while no change is under way.
    pub next: Vec<NodeId>,
    /// The members of the next configuration, where its stop-sign is decided and it has not begun: whatever is
    /// wanted by now, it needs them.
    pub sealed: Vec<NodeId>,
    /// It is to give its shards to other groups.
    pub emptying: bool,
    /// The number under which it was asked for; 0 for the first groups.
    pub nonce: u64,
}

impl GroupInfo {
    /// A group in its first configuration.
    pub fn new(id: GroupId, replicas: Vec<NodeId>) -> GroupInfo {
        GroupInfo { id, replicas, ..GroupInfo::default() }
    }

    /// Whether a node is to host a replica, now or next.
    pub fn involves(&self, node: NodeId) -> bool {
        [&self.replicas, &self.next, &self.sealed].iter().any(|nodes| nodes.contains(&node))
    }
}

/// A node as the cluster knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node.
    pub id: NodeId,
    /// The operator's name for it.
    pub name: String,
    /// `host:port` of its peer port.
    pub peer_address: String,
    /// `host:port` that clients use; empty where it serves no clients.
    pub client_address: String,
    /// It is to hold no replicas any more.
    pub draining: bool,
    /// Where it stands; the replicas of a group are spread over zones. Empty where nothing is said.
    pub zone: String,
    /// Whether it may hold replicas of the shardmaster's group, and of data groups.
    pub keeps_metadata: bool,
    /// See above.
    pub keeps_data: bool,
    /// The random number of its data directory; 0 until a founder of the cluster has told it.
    pub incarnation: u64,
}

impl NodeInfo {
    /// Whether both say the same of how the node is reached, where it stands, and what its data directory is.
    pub fn says_the_same(&self, other: &NodeInfo) -> bool {
        let NodeInfo { id, peer_address, client_address, zone, incarnation, .. } = other;
        (self.id, &self.zone, self.incarnation) == (*id, zone, *incarnation)
            && (&self.peer_address, &self.client_address) == (peer_address, client_address)
    }

    /// Whether what is said may come from this node: it has this data directory, as far as is known.
    pub fn may_be(&self, other: &NodeInfo) -> bool {
        self.id == other.id && (self.incarnation == 0 || self.incarnation == other.incarnation)
    }
}

/// All shards, groups and nodes at one version. Shards are sorted by start, tile the keyspace
/// without gap or overlap, and there is at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// Rises with every change.
    pub version: u64,
    /// The cluster's id, equal on all nodes and gateways.
    pub cluster_id: u64,
    /// The cluster's incarnation: 1, and one more with each restore. Clients see it as `raft_term`.
    pub incarnation: u64,
    /// History below this revision is (being) dropped; 0 means none yet.
    pub compacted: crate::types::Revision,
    /// Sorted by start.
    pub shards: Vec<ShardInfo>,
    /// Moves under way, sorted by id; at most one per shard.
    pub moves: Vec<MoveInfo>,
    /// The last change (move, split, merge) that was planned. A move that is not in `moves`, and is not above, is over:
    /// its shard is owned by it, or it was called off.
    pub last_move: MoveId,
    /// Splits and merges that their groups have not carried out yet, sorted by id; at most one per shard.
    pub reshapes: Vec<ReshapeInfo>,
    /// The largest id that a shard ever had. One that is not in `shards`, and is not above, is none any more.
    pub last_shard: ShardId,
    /// What operators want of the balancer.
    pub balance: BalanceSettings,
    /// The shardmaster's own group.
    pub shardmaster: GroupInfo,
    /// Data groups, sorted by id. The shardmaster group is not among them.
    pub groups: Vec<GroupInfo>,
    /// The largest id that a group ever had. One that is not in `groups`, and is not above, is none any more.
    pub last_group: GroupId,
    /// All nodes, sorted by id.
    pub nodes: Vec<NodeInfo>,
    /// The largest id that a node ever had. One that is not in `nodes`, and is not above, was removed for good.
    pub last_node: NodeId,
}

/// The group that holds the shard map and the sequencer.
pub const SHARDMASTER_GROUP: GroupId = GroupId(1);

impl ShardMap {
    /// The shard that holds `key`; `None` only on an empty map.
    pub fn shard_of(&self, key: &[u8]) -> Option<&ShardInfo> {
        let behind = self.shards.partition_point(|shard| &shard.bounds.start[..] <= key);
        self.shards.get(behind.checked_sub(1)?)
    }

    /// The shards that `keys` touch, in key order.
    pub fn shards_of<'a>(&'a self, keys: &'a Keys) -> impl Iterator<Item = &'a ShardInfo> {
        self.shards.iter().filter(|shard| shard.bounds.intersects(keys))
    }

    /// A shard by its id.
    pub fn shard(&self, id: ShardId) -> Option<&ShardInfo> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    /// A move under way, by its id.
    pub fn move_of(&self, id: MoveId) -> Option<&MoveInfo> {
        self.moves.iter().find(|planned| planned.id == id)
    }

    /// A split or merge that a shard, as it is in the map, will come from.
    pub fn reshape_to(&self, id: ShardId) -> Option<&ReshapeInfo> {
        self.reshapes.iter().find(|planned| planned.to.iter().any(|shard| shard.id == id))
    }

    /// What the map says of shards as their groups have them, as long as they have not been cut anew.
    pub fn uncut(&self) -> impl Iterator<Item = &ShardInfo> {
        let cut = |shard: &&ShardInfo| self.reshape_to(shard.id).is_none();
        self.shards.iter().filter(cut).chain(self.reshapes.iter().flat_map(|planned| &planned.from))
    }

    /// Whether a move is over, as far as this map knows: one that it has never heard of may be yet to come.
    pub fn is_over(&self, id: MoveId) -> bool {
        id <= self.last_move && self.move_of(id).is_none()
    }

    /// A group by its id, the shardmaster's among them.
    pub fn group(&self, id: GroupId) -> Option<&GroupInfo> {
        self.all_groups().find(|group| group.id == id)
    }

    /// The same, to be changed.
    pub fn group_mut(&mut self, id: GroupId) -> Option<&mut GroupInfo> {
        std::iter::once(&mut self.shardmaster).chain(&mut self.groups).find(|group| group.id == id)
    }

    /// The shardmaster's group, then the data groups.
    pub fn all_groups(&self) -> impl Iterator<Item = &GroupInfo> {
        std::iter::once(&self.shardmaster).chain(&self.groups)
    }

    /// The largest id that a node ever had; none is given twice.
    pub fn newest_node(&self) -> NodeId {
        self.nodes.iter().map(|node| node.id).max().unwrap_or_default().max(self.last_node)
    }

    /// Counts the shards, groups and nodes that there are, for a map that begins with some.
    pub fn counted(mut self) -> ShardMap {
        let shards = self.shards.iter().map(|shard| shard.id).max().unwrap_or_default();
        let groups = self.all_groups().map(|group| group.id).max().unwrap_or_default();
        self.last_node = self.newest_node();
        (self.last_shard, self.last_group) = (self.last_shard.max(shards), self.last_group.max(groups));
        self
    }

    /// What is wrong with the map, if anything: a gap, an overlap, an unknown owner.
    pub fn check(&self) -> Result<(), String> {
        let Some(first) = self.shards.first() else { return Err("the map has no shard".into()) };
        if !first.bounds.start.is_empty() {
            return Err(format!("the first shard {} does not start at the empty key", first.id));
        }
        for pair in self.shards.windows(2) {
            if pair[0].bounds.end.as_ref() != Some(&pair[1].bounds.start) {
                return Err(format!("shards {} and {} do not meet", pair[0].id, pair[1].id));
            }
        }
        if let Some(last) = self.shards.last().filter(|last| last.bounds.end.is_some()) {
            return Err(format!("the last shard {} does not reach the end of the keyspace", last.id));
        }
        match self.shards.iter().find(|shard| shard.group == SHARDMASTER_GROUP || self.group(shard.group).is_none()) {
            Some(orphan) => Err(format!("shard {} is owned by the unknown group {}", orphan.id, orphan.group)),
            None => Ok(()),
        }
    }
}
