//! The metadata and its commands. Everything here is a pure function of the log.

use crate::placement;
use paxos::{ConfigId, GroupId, NodeId};
use serde::{Deserialize, Serialize};
use shardkv::map::{GroupChange, GroupInfo, NodeInfo, ShardChange, ShardMap};
use shardkv::request::OpError;
use shardkv::types::{MoveId, Revision};

/// Replicas of one group at most: more would make every write wait for more, and survive little more.
pub(crate) const MEMBERS_MAX: usize = 7;

/// One entry of the shardmaster's log, encoded with [`shardkv::codec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterCommand {
    /// The first shard map. Only the first one that is applied counts.
    Genesis(Box<ShardMap>),
    /// How a node of the map is reached now, and which data directory it has.
    Register(Box<NodeInfo>),
    /// A new node joins, or asks again.
    AddNode {
        /// The id of the cluster that it wants to join.
        cluster: u64,
        /// The operator's name for it.
        name: String,
        /// The random number of its data directory.
        incarnation: u64,
        /// Where the others reach it.
        peer_address: String,
        /// Whether it may hold replicas of the shardmaster's group, and of data groups.
        keeps: (bool, bool),
    },
    /// A node is to hold no replicas any more, or may again.
    DrainNode {
        /// Which.
        node: NodeId,
        /// Whether it is to be emptied.
        drain: bool,
    },
    /// A node that holds nothing is forgotten. Its id is given to no other.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// A group is to have other members.
    ChangeMembers {
        /// Which.
        group: GroupId,
        /// Whom; its present ones call off a change that is under way.
        members: Vec<NodeId>,
    },
    /// A group is in this configuration now, or is about to be: its leader has said so.
    Configured {
        /// Which.
        group: GroupId,
        /// The configuration.
        config: ConfigId,
        /// Who votes there.
        members: Vec<NodeId>,
        /// Whether it has begun: a majority of them has everything. Else the stop-sign is decided, no more.
        begun: bool,
    },
    /// Shards are to move, or to be cut anew.
    ChangeShards(ShardChange),
    /// There are to be more or fewer groups.
    ChangeGroups(GroupChange),
    /// All of a shard is where it moves to: from now on it belongs there.
    Arrived {
        /// By this move.
        mv: MoveId,
    },
    /// A group has carried out a split or a merge.
    Reshaped {
        /// Which.
        by: MoveId,
    },
    /// The sequencer may hand out numbers up to this one.
    Reserve {
        /// The new bound; a lower one than before changes nothing.
        up_to: Revision,
    },
    /// History below this revision is to be dropped, in all groups. The leader has checked that the
    /// sequencer had handed it out.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
    },
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterOutcome {
    /// It was applied (or had been before).
    Applied,
    /// The id of the node that has joined.
    Node(NodeId),
    /// The move, split or merge that was planned, or was already.
    Move(MoveId),
    /// The group that was created, or was already.
    Group(GroupId),
    /// Refused with nothing done.
    Failed(OpError),
    /// A leader's no-op.
    Nothing,
    /// The entry does not decode. Nothing was done.
    Malformed(String),
}

/// The metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterState {
    /// Shards, groups, nodes; without a shard until genesis.
    pub map: ShardMap,
    /// Numbers up to here may have been handed out; a new leader starts above.
    pub reserved_up_to: Revision,
}

impl MasterState {
    /// Whether genesis was applied.
    pub fn is_initialised(&self) -> bool {
        !self.map.shards.is_empty()
    }

    /// Applies one command.
    pub fn apply(&mut self, command: MasterCommand) -> MasterOutcome {
        match command {
            MasterCommand::Genesis(map) => {
                if self.is_initialised() {
                    return MasterOutcome::Applied;
                }
                if let Err(problem) = map.check() {
                    return MasterOutcome::Failed(OpError::Malformed(problem));
                }
                self.map = map.counted();
                self.map.version = self.map.version.max(1);
                MasterOutcome::Applied
            }
            MasterCommand::Register(info) => match self.map.nodes.iter_mut().find(|node| node.id == info.id) {
                Some(node) if node.says_the_same(&info) => MasterOutcome::Applied,
                Some(node) if !node.may_be(&info) => {
                    refused(format!("{} has another data directory, and its promises are in that one", info.id))
                }
                Some(node) => {
                    (node.peer_address, node.client_address) = (info.peer_address, info.client_address);
                    (node.zone, node.incarnation) = (info.zone, info.incarnation);
                    self.map.version += 1;
                    MasterOutcome::Applied
                }
                None => MasterOutcome::Failed(OpError::Malformed(format!("{} is no node of the map", info.id))),
            },
            MasterCommand::AddNode { cluster, .. } if cluster != self.map.cluster_id => refused(format!(
                "this is cluster {:016x}, the new node wants to join {cluster:016x}: give it the --initial-cluster, \
                 --cluster-token, --data-groups and --shard-boundaries that this cluster was formed with, and --descent, if it \
                 was restored from a backup",
                self.map.cluster_id
            )),
            MasterCommand::AddNode { name, incarnation, peer_address, keeps, .. } => {
                let (keeps_metadata, keeps_data) = keeps;
                let info =
                    NodeInfo { name, peer_address, keeps_metadata, keeps_data, incarnation, ..NodeInfo::default() };
                self.add_node(info)
            }
            MasterCommand::DrainNode { node, drain } => {
                let Some(info) = self.map.nodes.iter_mut().find(|info| info.id == node) else {
                    return refused(format!("{node} is no node of the map"));
                };
                self.map.version += u64::from(info.draining != drain);
                info.draining = drain;
                if !drain {
                    self.stays(node);
                }
                MasterOutcome::Applied
            }
            MasterCommand::RemoveNode { node } => self.remove_node(node),
            MasterCommand::ChangeMembers { group, members } => self.change_members(group, members),
            MasterCommand::Configured { group, config, members, begun } => {
                self.configured(group, config, members, begun)
            }
            MasterCommand::ChangeGroups(change) => self.change_groups(change),
            MasterCommand::ChangeShards(change) => self.change_shards(change),
            MasterCommand::Arrived { mv } => self.arrived(mv),
            MasterCommand::Reshaped { by } => self.reshaped(by),
            MasterCommand::Reserve { up_to } => {
                self.reserved_up_to = self.reserved_up_to.max(up_to);
                MasterOutcome::Applied
            }
            MasterCommand::Compact { revision } => {
                if revision <= self.map.compacted {
                    return MasterOutcome::Failed(OpError::Compacted { floor: self.map.compacted });
                }
                self.map.compacted = revision;
                self.map.version += 1;
                MasterOutcome::Applied
            }
        }
    }

    fn add_node(&mut self, info: NodeInfo) -> MasterOutcome {
        let again = |node: &&NodeInfo| node.incarnation != 0 && node.incarnation == info.incarnation;
        if let Some(node) = self.map.nodes.iter().find(again) {
            return MasterOutcome::Node(node.id);
        }
        if self.map.nodes.iter().any(|node| node.name == info.name) {
            return refused(format!(
                "there is a node called {} already, with another data directory: start it with its own one, or give \
                 the new node another name, and drain and remove the old one",
                info.name
            ));
        }
        let id = NodeId(self.map.newest_node().0 + 1);
        self.map.last_node = id;
        self.map.nodes.push(NodeInfo { id, ..info });
        self.map.version += 1;
        MasterOutcome::Node(id)
    }

    /// A node is not drained any more: what would take its replicas, and is not sealed yet, is called off.
    fn stays(&mut self, node: NodeId) {
        let leaves = |group: &&mut GroupInfo| {
            let next = &group.next;
            group.replicas.contains(&node) && !next.is_empty() && !next.contains(&node) && group.sealed.is_empty()
        };
        for group in std::iter::once(&mut self.map.shardmaster).chain(&mut self.map.groups).filter(leaves) {
            group.next.clear();
            self.map.version += 1;
        }
    }

    fn remove_node(&mut self, node: NodeId) -> MasterOutcome {
        if let Some(group) = self.map.all_groups().find(|group| group.involves(node)) {
            let (id, name) = (group.id, self.called(node));
            return refused(match group.replicas.contains(&node) {
                true => format!("{name} holds a replica of {id}: drain it first"),
                false => format!("{name} is to get a replica of {id}: drain it first, or call that change off"),
            });
        }
        let before = self.map.nodes.len();
        self.map.last_node = self.map.newest_node();
        self.map.nodes.retain(|known| known.id != node);
        self.map.version += u64::from(self.map.nodes.len() != before);
        MasterOutcome::Applied
    }

    /// A node by its name, as operators know it; where that is not what its number looks like, by both.
    pub(crate) fn called(&self, node: NodeId) -> String {
        match self.map.nodes.iter().find(|known| known.id == node).map(|known| known.name.as_str()) {
            Some(name) if !name.is_empty() && name != node.to_string() => format!("{name} (number {})", node.0),
            _ => node.to_string(),
        }
    }

    fn change_members(&mut self, id: GroupId, mut members: Vec<NodeId>) -> MasterOutcome {
        members.sort_unstable();
        members.dedup();
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return refused(format!("a group has 1 to {MEMBERS_MAX} replicas, not {}", members.len()));
        }
        let Some(group) = self.map.group(id) else { return refused(format!("{id} is no group of the map")) };
        let known =
            |node: &NodeId| self.map.nodes.iter().any(|known| known.id == *node) || group.replicas.contains(node);
        if let Some(stranger) = members.iter().find(|node| !known(node)) {
            return refused(format!("{stranger} is no node of the map"));
        }
        let newcomer = |node: &&NodeInfo| members.contains(&node.id) && !group.replicas.contains(&node.id);
        for node in self.map.nodes.iter().filter(newcomer) {
            if !placement::keeps(node, id) {
                let name = self.called(node.id);
                return refused(format!("{name} holds no replicas of groups like {id}: its roles are others"));
            }
            if node.draining {
                let name = self.called(node.id);
                return refused(format!("{name} is being drained: stop that first, or choose another node"));
            }
        }
        let Some(group) = self.map.group_mut(id) else { return refused(format!("{id} is no group of the map")) };
        let next = if group.replicas == members { Vec::new() } else { members };
        if group.next != next {
            group.next = next;
            self.map.version += 1;
        }
        MasterOutcome::Applied
    }

    fn configured(&mut self, id: GroupId, config: ConfigId, members: Vec<NodeId>, begun: bool) -> MasterOutcome {
        let Some(group) = self.map.group_mut(id) else { return refused(format!("{id} is no group of the map")) };
        if begun && config > group.config {
            if group.next == members {
                group.next.clear();
            }
            group.sealed.clear();
            (group.config, group.replicas) = (config, members);
            self.map.version += 1;
        } else if !begun && config.0 == group.config.0 + 1 && group.sealed != members {
            group.sealed = members;
            self.map.version += 1;
        }
        MasterOutcome::Applied
    }
}

pub(crate) fn refused(why: String) -> MasterOutcome {
    MasterOutcome::Failed(OpError::Malformed(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardkv::map::SHARDMASTER_GROUP;

    const CLUSTER: u64 = 7;
    const GROUP: GroupId = GroupId(2);

    fn ids(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn state() -> MasterState {
        let members = ids(&[1, 2, 3]);
        let node = |id: &NodeId| {
            let name = id.to_string();
            NodeInfo { id: *id, name, keeps_metadata: true, keeps_data: true, ..NodeInfo::default() }
        };
        let map = ShardMap {
            cluster_id: CLUSTER,
            shards: crate::initial_shards(&[], &[GROUP]),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, members.clone()),
            groups: vec![GroupInfo::new(GROUP, members.clone())],
            nodes: members.iter().map(node).collect(),
            ..ShardMap::default()
        };
        let mut state = MasterState::default();
        assert_eq!(state.apply(MasterCommand::Genesis(Box::new(map))), MasterOutcome::Applied);
        state
    }

    fn join(state: &mut MasterState, name: &str, incarnation: u64) -> MasterOutcome {
        let (name, peer_address) = (name.to_owned(), String::new());
        state.apply(MasterCommand::AddNode { cluster: CLUSTER, name, incarnation, peer_address, keeps: (true, true) })
    }

    fn change(state: &mut MasterState, members: &[u64]) -> MasterOutcome {
        state.apply(MasterCommand::ChangeMembers { group: GROUP, members: ids(members) })
    }

    fn is_refused(outcome: &MasterOutcome) -> bool {
        matches!(outcome, MasterOutcome::Failed(_))
    }

    #[test]
    fn a_node_joins_once_and_no_id_is_given_twice() {
        let mut state = state();
        assert_eq!(join(&mut state, "n4", 44), MasterOutcome::Node(NodeId(4)));
        let version = state.map.version;
        assert_eq!(join(&mut state, "n4", 44), MasterOutcome::Node(NodeId(4)), "asked again");
        assert_eq!(state.map.version, version);
        assert!(is_refused(&join(&mut state, "n4", 45)), "another directory under the same name");
        assert_eq!(state.apply(MasterCommand::RemoveNode { node: NodeId(4) }), MasterOutcome::Applied);
        assert_eq!(join(&mut state, "n4", 45), MasterOutcome::Node(NodeId(5)), "a new one may have the name");
        let stranger = MasterCommand::AddNode {
            cluster: CLUSTER + 1,
            name: "n6".into(),
            incarnation: 6,
            peer_address: String::new(),
            keeps: (true, true),
        };
        assert!(is_refused(&state.apply(stranger)));
    }

    #[test]
    fn a_node_with_replicas_is_not_forgotten() {
        let mut state = state();
        assert!(is_refused(&state.apply(MasterCommand::RemoveNode { node: NodeId(1) })));
        join(&mut state, "n4", 44);
        change(&mut state, &[2, 3, 4]);
        assert!(is_refused(&state.apply(MasterCommand::RemoveNode { node: NodeId(4) })), "it is to get one");
    }

    #[test]
    fn a_wish_stands_until_it_has_come_true_or_is_called_off() {
        let mut state = state();
        let next = |state: &MasterState| state.map.group(GROUP).map(|group| group.next.clone()).unwrap_or_default();
        assert!(is_refused(&change(&mut state, &[])) && is_refused(&change(&mut state, &[1, 2, 9])));
        join(&mut state, "n4", 44);
        assert_eq!(change(&mut state, &[4, 3, 3, 2]), MasterOutcome::Applied);
        assert_eq!(next(&state), ids(&[2, 3, 4]));
        change(&mut state, &[1, 2, 3]);
        assert_eq!(next(&state), [], "called off");
        change(&mut state, &[2, 3, 4]);
        let configured = |config, members: &[u64]| {
            let (config, members) = (ConfigId(config), ids(members));
            MasterCommand::Configured { group: GROUP, config, members, begun: true }
        };
        state.apply(configured(1, &[1, 2]));
        assert_eq!(next(&state), ids(&[2, 3, 4]), "another change came first");
        state.apply(configured(2, &[2, 3, 4]));
        let group = state.map.group(GROUP).expect("it is there").clone();
        assert_eq!((group.config, group.replicas, group.next), (ConfigId(2), ids(&[2, 3, 4]), vec![]));
        let version = state.map.version;
        state.apply(configured(1, &[1, 2]));
        assert_eq!(state.map.version, version, "an old report changes nothing");
    }

    #[test]
    fn who_is_named_by_a_decided_stop_sign_is_needed_whatever_is_wanted_by_now() {
        let mut state = state();
        join(&mut state, "n4", 44);
        let sealed = |config, begun| {
            let (config, members) = (ConfigId(config), ids(&[2, 3, 4]));
            MasterCommand::Configured { group: GROUP, config, members, begun }
        };
        state.apply(sealed(1, false));
        change(&mut state, &[1, 2, 3]);
        let group = |state: &MasterState| state.map.group(GROUP).expect("it is there").clone();
        assert!(group(&state).involves(NodeId(4)) && group(&state).replicas == ids(&[1, 2, 3]));
        assert!(is_refused(&state.apply(MasterCommand::RemoveNode { node: NodeId(4) })));
        state.apply(sealed(1, true));
        assert_eq!((group(&state).replicas, group(&state).sealed), (ids(&[2, 3, 4]), vec![]));
        state.apply(sealed(1, false));
        assert_eq!(group(&state).sealed, [], "an old report changes nothing");
    }

    #[test]
    fn where_a_node_is_reached_does_not_undo_its_draining() {
        let mut state = state();
        state.apply(MasterCommand::DrainNode { node: NodeId(1), drain: true });
        let info = NodeInfo { id: NodeId(1), name: "n1".into(), peer_address: "there".into(), ..NodeInfo::default() };
        state.apply(MasterCommand::Register(Box::new(info)));
        let node = &state.map.nodes[0];
        assert_eq!((node.draining, node.peer_address.as_str()), (true, "there"));
    }

    /// Numbers and names are two things once a node was removed: n5 may be the seventh.
    #[test]
    fn refusals_name_nodes_as_operators_do() {
        let mut state = state();
        assert_eq!(join(&mut state, "n5", 5), MasterOutcome::Node(NodeId(4)));
        change(&mut state, &[1, 2, 4]);
        let MasterOutcome::Failed(why) = state.apply(MasterCommand::RemoveNode { node: NodeId(4) }) else {
            panic!("it is to get a replica");
        };
        assert!(why.to_string().contains("n5 (number 4)"), "{why}");
        assert_eq!(state.called(NodeId(2)), "n2");
    }

    /// A founder says which data directory it has; whoever comes under its name with another one changes nothing.
    #[test]
    fn the_data_directory_of_a_node_is_noted_once() {
        let mut state = state();
        let mut says = |incarnation, zone: &str| {
            let info = NodeInfo { id: NodeId(1), incarnation, zone: zone.into(), ..NodeInfo::default() };
            let outcome = state.apply(MasterCommand::Register(Box::new(info)));
            (is_refused(&outcome), state.map.nodes[0].incarnation, state.map.nodes[0].zone.clone())
        };
        assert_eq!(says(11, "a"), (false, 11, "a".into()));
        assert_eq!(says(12, "b"), (true, 11, "a".into()));
        assert_eq!(says(11, "b"), (false, 11, "b".into()));
    }

    #[test]
    fn replicas_go_only_where_they_may_be() {
        let mut state = state();
        let (name, peer_address, keeps) = ("n4".into(), String::new(), (true, false));
        let joins = MasterCommand::AddNode { cluster: CLUSTER, name, incarnation: 4, peer_address, keeps };
        assert_eq!(state.apply(joins), MasterOutcome::Node(NodeId(4)));
        assert!(is_refused(&change(&mut state, &[1, 2, 4])), "it keeps no data");
        assert_eq!(join(&mut state, "n5", 5), MasterOutcome::Node(NodeId(5)));
        state.apply(MasterCommand::DrainNode { node: NodeId(5), drain: true });
        assert!(is_refused(&change(&mut state, &[1, 2, 5])), "it is being drained");
        state.apply(MasterCommand::DrainNode { node: NodeId(3), drain: true });
        assert_eq!(change(&mut state, &[1, 3]), MasterOutcome::Applied, "one that is there may stay");
    }

    #[test]
    fn a_node_that_is_not_drained_any_more_keeps_its_replicas() {
        let mut state = state();
        assert_eq!(join(&mut state, "n4", 4), MasterOutcome::Node(NodeId(4)));
        state.apply(MasterCommand::DrainNode { node: NodeId(3), drain: true });
        assert_eq!(change(&mut state, &[1, 2, 4]), MasterOutcome::Applied);
        state.apply(MasterCommand::DrainNode { node: NodeId(3), drain: false });
        assert!(state.map.group(GROUP).is_some_and(|group| group.next.is_empty()), "{:?}", state.map);
        change(&mut state, &[1, 3, 4]);
        state.apply(MasterCommand::DrainNode { node: NodeId(3), drain: false });
        assert_eq!(
            state.map.group(GROUP).map(|group| group.next.clone()),
            Some(ids(&[1, 3, 4])),
            "it is not concerned"
        );
    }
}
