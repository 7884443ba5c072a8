//! Which node takes a replica's place: a pure function from the map, and from who is dead, to commands.
//!
//! Only what must move does: replicas on nodes that are dead or being drained, and one of two in the same zone, where
//! another zone has none. A newcomer comes before the other one leaves, so a group that loses its last spare keeps
//! its size, with a dead member in it, until there is a node to go to. A change that waits for a newcomer which has
//! died meanwhile would wait for ever: somebody else comes in its place, or the change is called off.

use crate::state::MasterCommand;
use paxos::{GroupId, NodeId, quorum_of};
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardMap};
use std::collections::{BTreeMap, BTreeSet};

/// Groups whose members change at the same time: each copies its data over the network.
const CHANGES_MAX: usize = 2;

/// What is to be logged so that no replica stays on a node that is dead or being drained. Nothing goes to nodes that are
/// silent, though they may be back soon.
pub fn replacements(map: &ShardMap, dead: &BTreeSet<NodeId>, silent: &BTreeSet<NodeId>) -> Vec<MasterCommand> {
    // A group that has lost its majority stands still, also where those that are silent are not dead yet, or never will be
    // by the settings: it must not keep the others from being mended.
    let goes_on = |group: &&GroupInfo| {
        let there = |node: &&NodeId| !dead.contains(node) && !silent.contains(node) && is_known(map, **node);
        let votes = group.replicas.iter().filter(there);
        votes.count() >= quorum_of(group.replicas.len())
    };
    let under_way = map.all_groups().filter(|group| !group.next.is_empty()).filter(goes_on).count();
    let mut spares = Spares { map, dead, silent, replicas: count_replicas(map) };
    let mut commands = Vec::new();
    // A better spread can wait for those that have lost somebody.
    for change in [replaced, respread] {
        for group in map.all_groups().filter(|group| group.next.is_empty()) {
            if under_way + commands.len() >= CHANGES_MAX {
                break;
            }
            if let Some(members) = change(&mut spares, group) {
                commands.push(MasterCommand::ChangeMembers { group: group.id, members });
            }
        }
    }
    let lost = |node: &NodeId| dead.contains(node) || is_leaving(map, *node);
    for group in map.all_groups() {
        if group.next.iter().any(|node| !group.replicas.contains(node) && lost(node)) {
            let planned = GroupInfo { replicas: group.next.clone(), ..GroupInfo::new(group.id, Vec::new()) };
            let stays =
                |members: &Vec<NodeId>| !members.iter().any(|node| !group.replicas.contains(node) && lost(node));
            // Somebody for each of those that are lost, or nobody at all.
            let members = replaced(&mut spares, &planned).filter(stays);
            let members = members.unwrap_or_else(|| group.replicas.clone());
            commands.push(MasterCommand::ChangeMembers { group: group.id, members });
        }
    }
    commands
}

fn is_known(map: &ShardMap, node: NodeId) -> bool {
    map.nodes.iter().any(|known| known.id == node)
}

/// Whether a node is being drained, or was removed before the map knew what it held.
fn is_leaving(map: &ShardMap, node: NodeId) -> bool {
    map.nodes.iter().find(|known| known.id == node).is_none_or(|known| known.draining)
}

/// How many replicas each node holds, or is to hold.
fn count_replicas(map: &ShardMap) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<NodeId, usize> = map.nodes.iter().map(|node| (node.id, 0)).collect();
    for group in map.all_groups() {
        let nodes: BTreeSet<NodeId> = group.replicas.iter().chain(&group.next).copied().collect();
        nodes.into_iter().for_each(|node| *counts.entry(node).or_default() += 1);
    }
    counts
}

/// Whether a node keeps replicas of a group's kind.
pub(crate) fn keeps(node: &NodeInfo, group: GroupId) -> bool {
    if group == SHARDMASTER_GROUP { node.keeps_metadata } else { node.keeps_data }
}

/// Where a replica can go.
struct Spares<'a> {
    map: &'a ShardMap,
    dead: &'a BTreeSet<NodeId>,
    silent: &'a BTreeSet<NodeId>,
    /// How many each node holds, or is to hold.
    replicas: BTreeMap<NodeId, usize>,
}

impl Spares<'_> {
    fn must_leave(&self, node: NodeId) -> bool {
        self.dead.contains(&node) || is_leaving(self.map, node)
    }

    /// Nodes that could hold one more replica of a group.
    fn free<'s>(&'s self, group: GroupId, members: &'s [NodeId]) -> impl Iterator<Item = NodeId> + 's {
        let usable =
            move |node: &&NodeInfo| keeps(node, group) && !self.must_leave(node.id) && !self.silent.contains(&node.id);
        self.map.nodes.iter().filter(usable).map(|node| node.id).filter(|node| !members.contains(node))
    }
}

/// A group's members without those that must leave; `None` if nobody must, or nobody can take their place.
fn replaced(spares: &mut Spares<'_>, group: &GroupInfo) -> Option<Vec<NodeId>> {
    let mut members = group.replicas.clone();
    let mut leaving: Vec<NodeId> = group.replicas.iter().copied().filter(|node| spares.must_leave(*node)).collect();
    // Where there are too few places, the dead come first: the others still vote.
    leaving.sort_by_key(|node| !spares.dead.contains(node) && is_known(spares.map, *node));
    for leaving in leaving {
        let staying: Vec<NodeId> = members.iter().copied().filter(|node| *node != leaving).collect();
        let newcomer = best(spares.map, spares.free(group.id, &members), &staying, &spares.replicas);
        let Some(newcomer) = newcomer else { continue };
        members.retain(|node| *node != leaving);
        members.push(newcomer);
        *spares.replicas.entry(newcomer).or_default() += 1;
    }
    members.sort_unstable();
    (members != group.replicas).then_some(members)
}

/// A group's members, one of two in the same zone replaced by a node in another one; `None` if nobody must leave it, or
/// somebody must for another reason.
fn respread(spares: &mut Spares<'_>, group: &GroupInfo) -> Option<Vec<NodeId>> {
    if group.replicas.iter().any(|node| spares.must_leave(*node)) {
        return None;
    }
    let (leaving, newcomer) = better_spread(spares, group)?;
    let mut members: Vec<NodeId> = group.replicas.iter().copied().filter(|node| *node != leaving).collect();
    members.push(newcomer);
    members.sort_unstable();
    *spares.replicas.entry(newcomer).or_default() += 1;
    Some(members)
}

fn zone(map: &ShardMap, node: NodeId) -> &str {
    map.nodes.iter().find(|known| known.id == node).map_or("", |known| &known.zone)
}

/// How many of these nodes stand in a node's zone; none where nothing is said of it.
fn neighbours(map: &ShardMap, node: NodeId, others: &[NodeId]) -> usize {
    let here = zone(map, node);
    others.iter().filter(|other| **other != node && !here.is_empty() && zone(map, **other) == here).count()
}

/// Of the free nodes, the one in the emptiest zone of the group, then the one with the fewest replicas.
fn best(
    map: &ShardMap,
    free: impl Iterator<Item = NodeId>,
    members: &[NodeId],
    replicas: &BTreeMap<NodeId, usize>,
) -> Option<NodeId> {
    free.min_by_key(|node| (neighbours(map, *node, members), replicas.get(node).copied().unwrap_or(0), *node))
}

/// A member that shares its zone, and a node in a zone where the group has nobody.
fn better_spread(spares: &Spares<'_>, group: &GroupInfo) -> Option<(NodeId, NodeId)> {
    let (map, members) = (spares.map, &group.replicas);
    let crowded = members.iter().copied().filter(|node| neighbours(map, *node, members) > 0);
    let held = |node: NodeId| spares.replicas.get(&node).copied();
    let leaving = crowded.max_by_key(|node| (neighbours(map, *node, members), held(*node), *node))?;
    let alone = |node: &NodeId| !zone(map, *node).is_empty() && neighbours(map, *node, members) == 0;
    Some((leaving, best(map, spares.free(group.id, members).filter(alone), members, &spares.replicas)?))
}

/// Nodes for a new data group: the emptiest ones that are not silent, in as many zones as there are. An odd number of them, where there are
/// not enough.
pub fn spread(map: &ShardMap, count: usize, silent: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let replicas = count_replicas(map);
    let usable = map.nodes.iter().filter(|node| node.keeps_data && !node.draining && !silent.contains(&node.id));
    let usable: Vec<NodeId> = usable.map(|node| node.id).collect();
    let count = count.min(usable.len());
    let count = if count.is_multiple_of(2) { count.saturating_sub(1) } else { count };
    let mut members = Vec::new();
    while members.len() < count {
        let free = usable.iter().copied().filter(|node| !members.contains(node));
        let Some(next) = best(map, free, &members, &replicas) else { break };
        members.push(next);
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(nodes: u64, groups: &[&[u64]]) -> ShardMap {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let node = |id| NodeInfo { id: NodeId(id), keeps_metadata: true, keeps_data: true, ..NodeInfo::default() };
        let mut infos = groups.iter().zip(1..).map(|(members, id)| GroupInfo::new(GroupId(id), ids(members)));
        let shardmaster = infos.next().unwrap_or_default();
        ShardMap { shardmaster, groups: infos.collect(), nodes: (1..=nodes).map(node).collect(), ..ShardMap::default() }
    }

    fn one(command: MasterCommand) -> (u64, Vec<u64>) {
        match command {
            MasterCommand::ChangeMembers { group, members } => (group.0, members.iter().map(|node| node.0).collect()),
            other => panic!("{other:?}"),
        }
    }

    fn wanted(map: &ShardMap, dead: &[u64]) -> Vec<(u64, Vec<u64>)> {
        let dead = dead.iter().copied().map(NodeId).collect();
        replacements(map, &dead, &dead).into_iter().map(one).collect()
    }

    #[test]
    fn nothing_moves_where_nobody_must_leave() {
        assert_eq!(wanted(&map(5, &[&[1, 2, 3], &[1, 2, 3]]), &[]), []);
        assert_eq!(wanted(&map(5, &[&[1, 2, 3]]), &[4]), [], "it holds nothing");
    }

    #[test]
    fn a_dead_node_is_replaced_by_the_emptiest_and_a_few_groups_at_a_time() {
        let map = map(5, &[&[1, 2, 3], &[1, 2, 4], &[1, 2, 4], &[1, 2, 3]]);
        assert_eq!(wanted(&map, &[1]), [(1, vec![2, 3, 5]), (2, vec![2, 4, 5])]);
        assert_eq!(wanted(&map, &[5]), []);
    }

    #[test]
    fn nothing_goes_to_nodes_that_are_silent_though_they_may_be_back() {
        let mut map = map(5, &[&[1, 2, 3]]);
        map.nodes[0].draining = true;
        let silent = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<NodeId>>();
        let go = |nodes: &[u64]| {
            replacements(&map, &BTreeSet::new(), &silent(nodes)).into_iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(go(&[4]), [(1, vec![2, 3, 5])]);
        assert_eq!(go(&[4, 5]), []);
        assert_eq!(go(&[2]), [(1, vec![2, 3, 4])], "a member may be away");
    }

    #[test]
    fn groups_that_cannot_change_any_more_do_not_keep_others_waiting() {
        let mut map = map(6, &[&[1, 2, 3], &[3, 4, 5], &[3, 4, 5], &[1, 2, 5]]);
        map.groups.iter_mut().take(2).for_each(|group| group.next = [3, 4, 6].map(NodeId).to_vec());
        assert_eq!(wanted(&map, &[5]), [], "two at a time");
        assert_eq!(wanted(&map, &[4, 5]), [(4, vec![1, 2, 6])], "two have lost their majorities");
        map.nodes[4].draining = true;
        let silent = [4, 5].map(NodeId).into();
        let steps = replacements(&map, &BTreeSet::new(), &silent).into_iter().map(one).collect::<Vec<_>>();
        assert_eq!(steps, [(4, vec![1, 2, 6])], "nobody is ever dead by the settings, but one is drained");
    }

    #[test]
    fn a_better_spread_over_zones_waits_for_those_that_have_lost_somebody() {
        let mut map = map(6, &[&[1, 2, 3], &[1, 2, 3], &[1, 3, 5], &[1, 3, 5]]);
        for (node, zone) in map.nodes.iter_mut().zip(["a", "a", "b", "b", "c", "c"]) {
            node.zone = zone.into();
        }
        assert_eq!(wanted(&map, &[5]), [(3, vec![1, 3, 6]), (4, vec![1, 3, 6])]);
    }

    #[test]
    fn a_drained_node_is_emptied_and_nothing_goes_there() {
        let mut map = map(4, &[&[1, 2, 3], &[2, 3, 4]]);
        map.nodes[0].draining = true;
        assert_eq!(wanted(&map, &[]), [(1, vec![2, 3, 4])]);
        assert_eq!(wanted(&map, &[2]), [(1, vec![1, 3, 4])], "one place for two: the drained one waits");
        map.nodes[3].draining = true;
        assert_eq!(wanted(&map, &[]), [], "there is nowhere to go to");
    }

    /// A configuration that began unnoticed names a node that was forgotten meanwhile.
    #[test]
    fn a_member_that_the_map_does_not_know_is_replaced() {
        let mut map = map(4, &[&[1, 2, 3]]);
        map.nodes.remove(2);
        assert_eq!(wanted(&map, &[]), [(1, vec![1, 2, 4])]);
        map.nodes[0].draining = true;
        assert_eq!(wanted(&map, &[]), [(1, vec![1, 2, 4])], "one place for two: the one that still votes waits");
        map.nodes[2].draining = true;
        assert_eq!(wanted(&map, &[]), [], "there is nowhere to go to");
    }

    /// What is asked for is done: a stranger that is a member already keeps nobody from leaving.
    #[test]
    fn the_dead_are_replaced_beside_a_member_that_the_map_does_not_know() {
        let mut map = map(5, &[&[1, 2, 3, 4]]);
        map.nodes.retain(|node| node.id != NodeId(4));
        let mut state = crate::MasterState { map, ..crate::MasterState::default() };
        let dead = [NodeId(3)].into();
        for command in replacements(&state.map, &dead, &dead) {
            assert_eq!(state.apply(command), crate::MasterOutcome::Applied);
        }
        let next: Vec<u64> = state.map.shardmaster.next.iter().map(|node| node.0).collect();
        assert_eq!(next, [1, 2, 4, 5], "one place for two");
    }

    #[test]
    fn replicas_are_spread_over_zones_and_stay_there() {
        let mut map = map(6, &[&[1, 2, 3]]);
        for (node, zone) in map.nodes.iter_mut().zip(["a", "a", "b", "b", "c", "c"]) {
            node.zone = zone.into();
        }
        assert_eq!(wanted(&map, &[]), [(1, vec![1, 3, 5])], "two in zone a");
        map.shardmaster.replicas = [1, 3, 5].map(NodeId).to_vec();
        assert_eq!(wanted(&map, &[]), []);
        assert_eq!(wanted(&map, &[5]), [(1, vec![1, 3, 6])], "the other one of the dead node's zone");
        map.nodes[5].draining = true;
        assert_eq!(wanted(&map, &[5]), [(1, vec![1, 2, 3])], "a full zone is better than a dead member");
    }

    #[test]
    fn a_change_under_way_is_waited_for_and_kinds_are_kept_apart() {
        let mut map = map(5, &[&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]]);
        map.shardmaster.next = vec![NodeId(2), NodeId(3), NodeId(4)];
        map.nodes[3].keeps_data = false;
        assert_eq!(wanted(&map, &[1]), [(2, vec![2, 3, 5])], "two changes at a time, and n4 keeps no data");
    }

    #[test]
    fn a_change_that_waits_for_a_dead_newcomer_gets_another_one_or_is_called_off() {
        let mut map = map(5, &[&[1, 2, 3]]);
        map.shardmaster.next = [2, 3, 4].map(NodeId).to_vec();
        assert_eq!(wanted(&map, &[1]), [], "its newcomer lives");
        assert_eq!(wanted(&map, &[4]), [(1, vec![2, 3, 5])]);
        assert_eq!(wanted(&map, &[1, 4]), [(1, vec![2, 3, 5])]);
        map.nodes[4].draining = true;
        assert_eq!(wanted(&map, &[1, 4]), [(1, vec![1, 2, 3])], "nobody can come in its place");
        let mut map = self::map(6, &[&[1, 2, 3]]);
        map.shardmaster.next = [1, 4, 5].map(NodeId).to_vec();
        map.nodes.iter_mut().filter(|node| [2, 3, 5].contains(&node.id.0)).for_each(|node| node.draining = true);
        assert_eq!(wanted(&map, &[4]), [(1, vec![1, 2, 3])], "one spare for two that are lost");
    }

    #[test]
    fn a_new_group_gets_the_emptiest_nodes_that_are_not_silent() {
        let map = map(5, &[&[1, 2, 3], &[1, 2, 3]]);
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let silent = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<NodeId>>();
        assert_eq!(spread(&map, 3, &silent(&[])), ids(&[4, 5, 1]));
        assert_eq!(spread(&map, 3, &silent(&[4])), ids(&[5, 1, 2]), "a dead node is always the emptiest");
        assert_eq!(spread(&map, 3, &silent(&[1, 2, 4])).len(), 1, "two could not go on without one of them");
    }
}
