//! Where questions go: the shard map, and who leads each group as far as replies have told.
//!
//! Everything here is a guess that replies correct. Nothing depends on it for safety: ownership is
//! checked where commands are applied, leadership where they are proposed.

use paxos::{GroupId, NodeId};
use shardkv::map::{SHARDMASTER_GROUP, ShardInfo, ShardMap};
use shardkv::ops::Op;
use shardkv::types::{Epoch, Keys, KeysEnd, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The part of a question that one group can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupShare {
    pub(crate) group: GroupId,
    /// The shards concerned, the one with the operation's first key in front.
    pub(crate) shards: Vec<(ShardId, Epoch)>,
}

#[derive(Debug, Default)]
struct Leadership {
    /// Who leads, as far as known.
    leader: Option<NodeId>,
    /// Which replica to try while it is not known; counts up.
    next: usize,
}

/// The shard map and the leaders.
#[derive(Debug)]
pub(crate) struct Router {
    map: Option<Arc<ShardMap>>,
    groups: BTreeMap<GroupId, Leadership>,
    contacts: Vec<NodeId>,
    local: Option<NodeId>,
}

impl Router {
    pub(crate) fn new(mut contacts: Vec<NodeId>, local: Option<NodeId>) -> Router {
        // The own node knows the map, whoever else is gone.
        contacts.extend(local);
        contacts.sort();
        contacts.dedup();
        let mut router = Router { map: None, groups: BTreeMap::new(), contacts, local };
        router.begin_with_local(SHARDMASTER_GROUP);
        router
    }

    pub(crate) fn map(&self) -> Option<&Arc<ShardMap>> {
        self.map.as_ref()
    }

    pub(crate) fn map_version(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.version)
    }

    /// Takes a map if it is newer and sound. Returns whether it did. Versions begin anew with a restore.
    pub(crate) fn adopt(&mut self, map: ShardMap) -> bool {
        let known = self.map.as_ref().map_or((0, 0), |map| (map.incarnation, map.version));
        if (map.incarnation, map.version) <= known || map.check().is_err() {
            return false;
        }
        self.groups.retain(|group, _| *group == SHARDMASTER_GROUP || map.group(*group).is_some());
        let groups: Vec<GroupId> = map.groups.iter().map(|group| group.id).collect();
        // A node that joined later may hold the shardmaster by now, and one that was removed never answers.
        if !map.nodes.is_empty() {
            self.contacts = map.nodes.iter().map(|node| node.id).collect();
            let gone = |leader: &mut NodeId| !map.nodes.iter().any(|node| node.id == *leader);
            if let Some(leadership) = self.groups.get_mut(&SHARDMASTER_GROUP) {
                leadership.leader.take_if(gone);
            }
        }
        self.map = Some(Arc::new(map));
        for group in groups {
            if !self.groups.contains_key(&group) {
                self.begin_with_local(group);
            }
        }
        true
    }

    /// The first try of a new group goes to the own node: a call there is a function call.
    fn begin_with_local(&mut self, group: GroupId) {
        let next = self.replicas(group).iter().position(|node| Some(*node) == self.local).unwrap_or(0);
        self.groups.insert(group, Leadership { leader: None, next });
    }

    /// The nodes that hold a group. The shardmaster's may all be others by now than an old map says, and without them
    /// there is no newer one; every node knows the way to them.
    fn replicas(&self, group: GroupId) -> &[NodeId] {
        if group == SHARDMASTER_GROUP {
            return &self.contacts;
        }
        self.map.as_ref().and_then(|map| map.group(group)).map_or(&[], |group| &group.replicas)
    }

    /// Whom to ask for something that only the leader answers.
    pub(crate) fn leader(&self, group: GroupId) -> Option<NodeId> {
        let leadership = self.groups.get(&group)?;
        leadership.leader.or_else(|| {
            let replicas = self.replicas(group);
            replicas.get(leadership.next.checked_rem(replicas.len())?).copied()
        })
    }

    /// The leader, if one is known.
    pub(crate) fn known_leader(&self, group: GroupId) -> Option<NodeId> {
        self.groups.get(&group)?.leader
    }

    /// Whom to ask, for the `attempt`-th time, for something that any replica answers.
    pub(crate) fn any_replica(&self, group: GroupId, attempt: u32) -> Option<NodeId> {
        let replicas = self.replicas(group);
        let first = replicas
            .iter()
            .position(|node| Some(*node) == self.local)
            .or_else(|| replicas.iter().position(|node| Some(*node) == self.known_leader(group)))
            .unwrap_or(0);
        replicas.get((first + attempt as usize).checked_rem(replicas.len())?).copied()
    }

    /// `node` answered as the leader of `group`.
    pub(crate) fn is_leader(&mut self, group: GroupId, node: NodeId) {
        if let Some(leadership) = self.groups.get_mut(&group) {
            leadership.leader = Some(node);
        }
    }

    /// `node` does not lead `group`, or cannot be reached. A hint replaces the guess; without one
    /// the next replica is tried. News about a node that nobody would ask changes nothing, so that
    /// many failed attempts at one node count once.
    pub(crate) fn not_leader(&mut self, group: GroupId, node: NodeId, hint: Option<NodeId>) {
        if self.leader(group) != Some(node) {
            return;
        }
        let here = self.replicas(group).iter().position(|replica| *replica == node);
        if let Some(leadership) = self.groups.get_mut(&group) {
            leadership.leader = hint.filter(|hint| *hint != node);
            leadership.next = here.unwrap_or(leadership.next) + 1;
        }
    }

    /// `node` cannot be reached: it is nobody's leader here.
    pub(crate) fn unreachable(&mut self, node: NodeId) {
        let led: Vec<GroupId> = self.groups.keys().copied().filter(|group| self.leader(*group) == Some(node)).collect();
        led.into_iter().for_each(|group| self.not_leader(group, node, None));
    }

    /// The group that a shard belongs to; `None` without a map, or where it is no shard of it.
    pub(crate) fn share_of(&self, shard: ShardId) -> Option<GroupShare> {
        self.map.as_ref()?.shard(shard).map(one_share)
    }

    /// Which groups an operation concerns, in the order of the map; `None` without a map. An
    /// operation that names no key, or only empty ranges, goes to the shard of its first key.
    pub(crate) fn shares(&self, op: &Op) -> Option<Vec<GroupShare>> {
        let map = self.map.as_ref()?;
        match op {
            Op::Put(put) => Some(vec![one_share(map.shard_of(&put.key)?)]),
            Op::Range(range) => shares_of_keys(map, &range.keys),
            Op::Delete(delete) => shares_of_keys(map, &delete.keys),
            Op::Txn(_) => shares_of_txn(map, op),
        }
    }
}

fn one_share(shard: &ShardInfo) -> GroupShare {
    GroupShare { group: shard.group, shards: vec![(shard.id, shard.epoch)] }
}

/// The shards that `keys` touch, as indices into the map.
fn indices(map: &ShardMap, keys: &Keys) -> std::ops::Range<usize> {
    let (start, end) = keys.bounds();
    let starts_at_or_before = |key: &[u8]| map.shards.partition_point(|shard| &shard.bounds.start[..] <= key);
    let first = starts_at_or_before(start).saturating_sub(1);
    let behind = match end {
        KeysEnd::Inclusive(_) => first + 1,
        KeysEnd::Before(end) => map.shards.partition_point(|shard| &shard.bounds.start[..] < end),
        KeysEnd::Unbounded => map.shards.len(),
    };
    // An empty range still belongs to the shard of its start, which answers it.
    first..behind.max(first + 1)
}

fn shares_of_keys(map: &ShardMap, keys: &Keys) -> Option<Vec<GroupShare>> {
    Some(group_up(map.shards.get(indices(map, keys))?.iter()))
}

fn shares_of_txn(map: &ShardMap, op: &Op) -> Option<Vec<GroupShare>> {
    let mut touched = std::collections::BTreeSet::new();
    op.for_each_keys(&mut |keys, _| touched.extend(indices(map, keys)));
    op.for_each_put(&mut |put| {
        let behind = map.shards.partition_point(|shard| shard.bounds.start <= put.key);
        touched.insert(behind.saturating_sub(1));
    });
    if touched.is_empty() {
        touched.insert(0);
    }
    let shards: Option<Vec<&ShardInfo>> = touched.into_iter().map(|index| map.shards.get(index)).collect();
    Some(group_up(shards?.into_iter()))
}

/// Gathers shards by owner, keeping the order in which owners and shards first appear.
fn group_up<'a>(shards: impl Iterator<Item = &'a ShardInfo>) -> Vec<GroupShare> {
    let mut shares: Vec<GroupShare> = Vec::with_capacity(1);
    let mut place: BTreeMap<GroupId, usize> = BTreeMap::new();
    for shard in shards {
        match place.get(&shard.group) {
            Some(&index) => shares[index].shards.push((shard.id, shard.epoch)),
            None => {
                place.insert(shard.group, shares.len());
                shares.push(one_share(shard));
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use shardkv::map::{GroupInfo, NodeInfo};
    use shardkv::ops::{Compare, Delete, Operand, Put, Range, Relation, Txn};
    use shardkv::types::{Bounds, MoveId, Revision};

    /// Shards split at "g", "p" and "t", owned by groups 2, 3, 2, 3.
    fn map(version: u64) -> ShardMap {
        let starts: [&'static [u8]; 4] = [b"", b"g", b"p", b"t"];
        let shards = (0..4)
            .map(|i| ShardInfo {
                id: ShardId(i as u64 + 1),
                bounds: Bounds {
                    start: Bytes::from_static(starts[i]),
                    end: starts.get(i + 1).map(|end| Bytes::from_static(end)),
                },
                group: GroupId(2 + i as u64 % 2),
                epoch: Epoch(1),
                by: MoveId(0),
            })
            .collect();
        let group = |id| GroupInfo::new(GroupId(id), vec![NodeId(1), NodeId(2), NodeId(3)]);
        let node = |id| NodeInfo {
            id: NodeId(id),
            name: format!("n{id}"),
            peer_address: String::new(),
            client_address: String::new(),
            ..NodeInfo::default()
        };
        let map = ShardMap {
            version,
            cluster_id: 7,
            incarnation: 1,
            compacted: Revision(0),
            shards,
            shardmaster: group(1),
            groups: vec![group(2), group(3)],
            nodes: vec![node(1), node(2), node(3)],
            ..ShardMap::default()
        };
        assert_eq!(map.check(), Ok(()));
        map
    }

    fn router() -> Router {
        let mut router = Router::new(vec![NodeId(1)], None);
        assert!(router.adopt(map(1)));
        router
    }

    fn key(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn put(text: &'static str) -> Op {
        Op::Put(Put {
            key: key(text),
            value: Bytes::new(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        })
    }

    fn groups_and_shards(op: &Op) -> Vec<(u64, Vec<u64>)> {
        let shares = router().shares(op).expect("there is a map");
        shares.iter().map(|s| (s.group.0, s.shards.iter().map(|(id, _)| id.0).collect())).collect()
    }

    #[test]
    fn operations_go_to_the_shards_that_hold_their_keys() {
        let range = |start, end| Op::Range(Range::all(Keys::Range { start: key(start), end: key(end) }));
        assert_eq!(groups_and_shards(&put("a")), [(2, vec![1])]);
        assert_eq!(groups_and_shards(&put("g")), [(3, vec![2])], "a start belongs to its shard");
        assert_eq!(groups_and_shards(&range("a", "g")), [(2, vec![1])], "an end does not");
        assert_eq!(groups_and_shards(&range("a", "g\0")), [(2, vec![1]), (3, vec![2])]);
        assert_eq!(groups_and_shards(&range("x", "b")), [(3, vec![4])], "an empty range goes to its start");
        let all = Op::Delete(Delete { keys: Keys::From(Bytes::new()), prev_kv: false });
        assert_eq!(groups_and_shards(&all), [(2, vec![1, 3]), (3, vec![2, 4])]);
    }

    #[test]
    fn transactions_concern_compares_and_both_branches_at_any_depth() {
        let compare =
            |text| Compare { keys: Keys::One(key(text)), relation: Relation::Equal, operand: Operand::Version(0) };
        let nested = Op::Txn(Txn { compare: vec![compare("q")], success: vec![], failure: vec![put("a")] });
        let txn = Op::Txn(Txn { compare: vec![compare("b")], success: vec![], failure: vec![nested.clone()] });
        assert_eq!(groups_and_shards(&txn), [(2, vec![1, 3])]);
        let txn = Op::Txn(Txn { compare: vec![compare("z")], success: vec![nested], failure: vec![] });
        assert_eq!(groups_and_shards(&txn), [(2, vec![1, 3]), (3, vec![4])]);
        assert_eq!(groups_and_shards(&Op::Txn(Txn::default())), [(2, vec![1])], "no key at all");
    }

    #[test]
    fn leaders_are_found_by_hints_and_by_trying() {
        let mut router = router();
        let group = GroupId(2);
        assert_eq!(router.leader(group), Some(NodeId(1)));
        router.not_leader(group, NodeId(1), None);
        router.not_leader(group, NodeId(1), None);
        assert_eq!(router.leader(group), Some(NodeId(2)), "two failures at one node count once");
        router.not_leader(group, NodeId(2), Some(NodeId(1)));
        assert_eq!(router.known_leader(group), Some(NodeId(1)));
        router.unreachable(NodeId(1));
        assert_eq!(router.leader(group), Some(NodeId(2)));
        router.is_leader(group, NodeId(3));
        router.not_leader(group, NodeId(2), Some(NodeId(1)));
        assert_eq!(router.leader(group), Some(NodeId(3)), "late news about another node");
    }

    #[test]
    fn a_node_that_was_removed_is_not_asked_for_the_shardmaster() {
        let mut router = router();
        router.is_leader(SHARDMASTER_GROUP, NodeId(1));
        let node = |id| shardkv::map::NodeInfo { id: NodeId(id), ..Default::default() };
        assert!(router.adopt(ShardMap { nodes: vec![node(4), node(5)], ..map(2) }));
        for _ in 0..3 {
            let asked = router.leader(SHARDMASTER_GROUP).expect("somebody");
            assert!([4, 5].map(NodeId).contains(&asked), "{asked}");
            router.not_leader(SHARDMASTER_GROUP, asked, None);
        }
    }

    #[test]
    fn only_newer_and_sound_maps_are_adopted() {
        let mut router = router();
        assert!(!router.adopt(map(1)));
        let mut torn = map(2);
        torn.shards.remove(1);
        assert!(!router.adopt(torn));
        assert_eq!(router.map_version(), 1);
        assert!(router.adopt(map(2)));
    }

    #[test]
    fn serializable_reads_begin_at_the_own_node_and_then_go_round() {
        let mut router = Router::new(vec![NodeId(1)], Some(NodeId(2)));
        assert!(router.adopt(map(1)));
        let tried: Vec<_> = (0..4).filter_map(|attempt| router.any_replica(GroupId(2), attempt)).map(|n| n.0).collect();
        assert_eq!(tried, [2, 3, 1, 2]);
    }
}
