//! Data groups that are created, emptied and removed while the cluster serves. A new group begins in configuration 0 with
//! the members that the map names; nobody has voted there before, because no number is given twice.

use crate::placement;
use crate::state::{MEMBERS_MAX, MasterOutcome, MasterState, refused};
use paxos::{GroupId, NodeId};
use shardkv::map::{GroupChange, GroupInfo, SHARDMASTER_GROUP};
use std::collections::BTreeSet;

/// Data groups of a cluster.
const GROUPS_MAX: usize = 1000;
/// Replicas of a new group, where nobody says and there are so many nodes.
pub const REPLICAS: usize = 3;

impl MasterState {
    pub(crate) fn change_groups(&mut self, change: GroupChange) -> MasterOutcome {
        match change {
            GroupChange::Create { members, nonce } => self.create_group(members, nonce),
            GroupChange::Empty { group, emptying } => self.empty_group(group, emptying),
            GroupChange::Remove { group } => self.remove_group(group),
        }
    }

    fn create_group(&mut self, mut members: Vec<NodeId>, nonce: u64) -> MasterOutcome {
        if let Some(known) = self.map.groups.iter().find(|group| nonce > 0 && group.nonce == nonce) {
            return MasterOutcome::Group(known.id);
        }
        if self.map.groups.len() >= GROUPS_MAX {
            return refused(format!("there are {GROUPS_MAX} data groups, and there cannot be more"));
        }
        if members.is_empty() {
            members = placement::spread(&self.map, REPLICAS, &BTreeSet::new());
        }
        members.sort_unstable();
        members.dedup();
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return refused(format!("a group has 1 to {MEMBERS_MAX} replicas, not {}", members.len()));
        }
        let keeps = |node: &NodeId| self.map.nodes.iter().any(|known| known.id == *node && known.keeps_data);
        if let Some(stranger) = members.iter().find(|node| !keeps(node)) {
            return refused(format!(
                "{} is no node of the map that holds replicas of data groups",
                self.called(*stranger)
            ));
        }
        let leaves = |node: &&NodeId| self.map.nodes.iter().any(|known| known.id == **node && known.draining);
        if let Some(node) = members.iter().find(leaves) {
            return refused(format!(
                "{} is being drained: stop that first, or choose another node",
                self.called(*node)
            ));
        }
        let id = GroupId(self.map.last_group.0 + 1);
        self.map.last_group = id;
        self.map.groups.push(GroupInfo { nonce, ..GroupInfo::new(id, members) });
        self.map.version += 1;
        MasterOutcome::Group(id)
    }

    fn empty_group(&mut self, id: GroupId, emptying: bool) -> MasterOutcome {
        let others = self.map.groups.iter().any(|group| group.id != id && !group.emptying);
        let group = self.map.groups.iter_mut().find(|group| group.id == id);
        let Some(group) = group else { return refused(format!("{id} is no group that holds shards")) };
        if emptying && !others {
            return refused(format!("{id} is the only group that takes shards: create another one first"));
        }
        if let Some(pin) = self.map.balance.pins.iter().find(|pin| emptying && pin.group == id) {
            return refused(format!("{} is pinned to {id}: unpin it first", pin.shown()));
        }
        let changes = group.emptying != emptying;
        group.emptying = emptying;
        if emptying {
            // What is on its way there would have to go on at once.
            self.map.moves.retain(|planned| planned.to != id);
        }
        self.map.version += u64::from(changes);
        MasterOutcome::Applied
    }

    fn remove_group(&mut self, id: GroupId) -> MasterOutcome {
        if id == SHARDMASTER_GROUP {
            return refused(format!("{id} is the shardmaster's own group"));
        }
        if id.0 > 0 && id <= self.map.last_group && self.map.group(id).is_none() {
            return MasterOutcome::Applied; // asked again
        }
        let map = &self.map;
        let shards = map.shards.iter().filter(|shard| shard.group == id).count();
        let moves = map.moves.iter().filter(|planned| [planned.from, planned.to].contains(&id)).count();
        let cut = map.reshapes.iter().filter(|planned| planned.group == id).count();
        if shards + moves + cut > 0 {
            let coming = if moves > 0 { format!(", and {moves} are on their way") } else { String::new() };
            return refused(format!("{id} has {shards} shards{coming}: empty it first"));
        }
        if let Some(pin) = map.balance.pins.iter().find(|pin| pin.group == id) {
            return refused(format!("{} is pinned to {id}: unpin it first", pin.shown()));
        }
        if map.group(id).is_none() {
            return refused(format!("{id} is no group of the map"));
        }
        if map.groups.len() == 1 {
            return refused(format!("{id} is the only data group"));
        }
        self.map.groups.retain(|group| group.id != id);
        self.map.version += 1;
        MasterOutcome::Applied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MasterCommand;
    use shardkv::map::{NodeInfo, ShardChange, ShardMap};
    use shardkv::types::{MoveId, ShardId};

    fn state() -> MasterState {
        let node = |id, zone: &str| NodeInfo {
            id: NodeId(id),
            zone: zone.into(),
            keeps_data: true,
            keeps_metadata: true,
            ..NodeInfo::default()
        };
        let members = [1, 2, 3].map(NodeId).to_vec();
        let map = ShardMap {
            shards: crate::initial_shards(&[], &[GroupId(2)]),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, members.clone()),
            groups: vec![GroupInfo::new(GroupId(2), members)],
            nodes: vec![node(1, "a"), node(2, "a"), node(3, "b"), node(4, "b"), node(5, "c")],
            ..ShardMap::default()
        };
        let mut state = MasterState::default();
        assert_eq!(state.apply(MasterCommand::Genesis(Box::new(map))), MasterOutcome::Applied);
        state
    }

    fn change(state: &mut MasterState, change: GroupChange) -> MasterOutcome {
        state.apply(MasterCommand::ChangeGroups(change))
    }

    /// Whoever moves shards by hand, or did so a moment ago, must not keep a group from being emptied.
    #[test]
    fn nothing_moves_to_a_group_that_is_to_be_emptied() {
        let mut state = state();
        let (shard, to) = (ShardId(1), GroupId(3));
        change(&mut state, GroupChange::Create { members: vec![], nonce: 1 });
        let start = |state: &mut MasterState| state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard, to }));
        assert!(matches!(start(&mut state), MasterOutcome::Move(_)));
        change(&mut state, GroupChange::Empty { group: to, emptying: true });
        assert_eq!(state.map.moves, []);
        assert!(matches!(start(&mut state), MasterOutcome::Failed(_)));
        let pin = shardkv::map::Pin { prefix: "/x".into(), group: to };
        let pin = state.apply(MasterCommand::ChangeShards(ShardChange::Pin(pin)));
        assert!(matches!(pin, MasterOutcome::Failed(_)));
        change(&mut state, GroupChange::Empty { group: to, emptying: false });
        assert!(matches!(start(&mut state), MasterOutcome::Move(_)));
    }

    /// What is pinned stays: the group would never be empty.
    #[test]
    fn a_group_that_keys_are_pinned_to_is_not_emptied() {
        let mut state = state();
        change(&mut state, GroupChange::Create { members: vec![], nonce: 1 });
        let pin = shardkv::map::Pin { prefix: "/x".into(), group: GroupId(2) };
        state.apply(MasterCommand::ChangeShards(ShardChange::Pin(pin)));
        let empty = GroupChange::Empty { group: GroupId(2), emptying: true };
        assert!(matches!(change(&mut state, empty.clone()), MasterOutcome::Failed(_)));
        state.apply(MasterCommand::ChangeShards(ShardChange::Unpin { prefix: "/x".into() }));
        assert_eq!(change(&mut state, empty), MasterOutcome::Applied);
    }

    #[test]
    fn a_group_is_created_where_there_is_room_and_once() {
        let mut state = state();
        let create = GroupChange::Create { members: vec![], nonce: 77 };
        assert_eq!(change(&mut state, create.clone()), MasterOutcome::Group(GroupId(3)));
        assert_eq!(change(&mut state, create), MasterOutcome::Group(GroupId(3)), "asked again");
        let members = &state.map.group(GroupId(3)).expect("it is there").replicas;
        assert_eq!(*members, [1, 4, 5].map(NodeId), "the emptiest of each zone");
        let stranger = GroupChange::Create { members: vec![NodeId(9)], nonce: 78 };
        assert!(matches!(change(&mut state, stranger), MasterOutcome::Failed(_)));
        state.apply(MasterCommand::DrainNode { node: NodeId(5), drain: true });
        let leaves = GroupChange::Create { members: vec![NodeId(4), NodeId(5)], nonce: 79 };
        assert!(matches!(change(&mut state, leaves), MasterOutcome::Failed(_)), "it is being drained");
    }

    #[test]
    fn a_group_goes_only_when_it_is_empty_and_its_number_is_never_given_again() {
        let mut state = state();
        change(&mut state, GroupChange::Create { members: vec![NodeId(4)], nonce: 1 });
        let (two, three) = (GroupId(2), GroupId(3));
        assert!(matches!(change(&mut state, GroupChange::Remove { group: two }), MasterOutcome::Failed(_)));
        assert_eq!(change(&mut state, GroupChange::Empty { group: two, emptying: true }), MasterOutcome::Applied);
        let last = GroupChange::Empty { group: three, emptying: true };
        assert!(matches!(change(&mut state, last), MasterOutcome::Failed(_)), "somebody must take the shards");
        state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard: ShardId(1), to: three }));
        assert!(matches!(change(&mut state, GroupChange::Remove { group: two }), MasterOutcome::Failed(_)));
        state.apply(MasterCommand::Arrived { mv: MoveId(1) });
        assert_eq!(change(&mut state, GroupChange::Remove { group: two }), MasterOutcome::Applied);
        assert_eq!(change(&mut state, GroupChange::Remove { group: two }), MasterOutcome::Applied, "asked again");
        assert!(matches!(change(&mut state, GroupChange::Remove { group: GroupId(0) }), MasterOutcome::Failed(_)));
        assert!(matches!(change(&mut state, GroupChange::Remove { group: three }), MasterOutcome::Failed(_)));
        let create = GroupChange::Create { members: vec![NodeId(1)], nonce: 2 };
        assert_eq!(change(&mut state, create), MasterOutcome::Group(GroupId(4)));
    }
}
