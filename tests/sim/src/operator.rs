//! An operator who never sits still: wants other members for a group now and then, by the shardmaster, and
//! does not wait for the last wish to come true.

use crate::plan::Fault;
use crate::world::{Event, Phase, World};
use node::core::{Hosting, Input};
use paxos::{Configuration, GroupId, NodeId};
use shardkv::map::{GroupChange, SHARDMASTER_GROUP, ShardChange, ShardMap};
use shardkv::request::{Request, RequestBody};
use shardkv::types::Revision;

/// The token of the operator's requests; no gateway has it, and nobody waits for the answer.
pub const TOKEN: u64 = u64::MAX;

impl World {
    /// Wishes for something, and comes back later.
    pub(crate) fn operator_acts(&mut self) {
        let Some(most) = self.plan.changes_micros_max.filter(|_| self.phase == Phase::Faults) else { return };
        let next = self.random.skewed(100_000, most);
        self.schedule(next, Event::Operator);
        let groups = self.groups();
        let Some(group) = self.random.pick(&groups).copied() else { return };
        let members = self.members();
        self.coverage.hit("members.wanted");
        self.trace.line(self.now, format_args!("operator wants {members:?} in {group}"));
        self.losses.wished(self.now, members.clone());
        self.ask_shardmaster(&RequestBody::ChangeMembers { group, members });
    }

    /// Wants a shard elsewhere, split or merged, or calls off a move.
    pub(crate) fn mover_acts(&mut self) {
        let Some(most) = self.plan.moves_micros_max.filter(|_| self.phase == Phase::Faults) else { return };
        let next = self.random.skewed(10_000, most);
        self.schedule(next, Event::Mover);
        let wish = match self.random.chance(120) {
            true => self.wish_for_groups().map(RequestBody::ChangeGroups),
            false => self.wish().map(RequestBody::ChangeShards),
        };
        let Some(body) = wish else { return };
        self.coverage.hit("moves.wanted");
        self.trace.line(self.now, format_args!("operator wants {body:?}"));
        self.ask_shardmaster(&body);
    }

    /// A group more, or less.
    fn wish_for_groups(&mut self) -> Option<GroupChange> {
        let map = self.newest_map()?;
        let group = self.random.pick(&map.groups).map(|group| group.id)?;
        Some(match self.random.below(10) {
            0..4 if map.groups.len() < self.plan.groups.len() + 2 => {
                let mut members = self.members();
                if self.plan.losses_micros_max.is_some() && members.len() == 1 {
                    // Its only node could be lost before anybody knows of the group.
                    members = self.present_nodes().into_iter().take(3).collect();
                    if members.len() < 3 {
                        return None;
                    }
                }
                GroupChange::Create { members, nonce: self.random.below(1 << 20) + 1 }
            }
            0..6 => GroupChange::Empty { group, emptying: true },
            6 => GroupChange::Empty { group, emptying: false },
            _ => GroupChange::Remove { group },
        })
    }

    /// The groups of the newest map.
    pub(crate) fn groups(&self) -> Vec<GroupId> {
        let map = self.newest_map().filter(|map| !map.groups.is_empty());
        map.map_or_else(
            || self.plan.groups.iter().map(|(group, _)| *group).collect(),
            |map| map.all_groups().map(|group| group.id).collect(),
        )
    }

    fn wish(&mut self) -> Option<ShardChange> {
        let map = self.newest_map()?;
        let at = usize::try_from(self.random.below(map.shards.len().max(1) as u64)).unwrap_or_default();
        let shard = map.shards.get(at)?;
        let groups: Vec<GroupId> = map.groups.iter().map(|group| group.id).collect();
        Some(match self.random.below(100) {
            0..12 => ShardChange::CancelMove { mv: map.last_move },
            12..30 => {
                let key = self.random.pick(&self.plan.keys).cloned()?;
                ShardChange::Split { shard: map.shard_of(&key)?.id, at: key }
            }
            30..45 => ShardChange::Merge { left: shard.id, right: map.shards.get(at + 1)?.id },
            _ => ShardChange::Move { shard: shard.id, to: self.random.pick(&groups).copied()? },
        })
    }

    /// The newest map that any process knows.
    pub(crate) fn newest_map(&self) -> Option<ShardMap> {
        let processes = self.sites.values().filter_map(|site| site.process.as_ref());
        processes.map(|process| process.core.map()).max_by_key(|map| map.version).cloned()
    }

    /// Whoever leads the shardmaster takes it; nobody waits for the answer.
    pub(crate) fn ask_shardmaster(&mut self, body: &RequestBody) {
        for node in self.plan.nodes.clone() {
            let body = body.clone();
            let (known, patience_micros) = (Revision(0), 1_000_000);
            let request = Request { id: 0, group: SHARDMASTER_GROUP, known, patience_micros, trace: None, body };
            self.deliver(node, Input::Request { token: TOKEN, request });
        }
    }

    /// One, three or five of the nodes; the one that may rot is never alone.
    fn members(&mut self) -> Vec<NodeId> {
        let mut nodes = self.present_nodes();
        let size = *self.random.pick(&[1, 3, 3, 3, 5]).unwrap_or(&3);
        while nodes.len() > size {
            let out = self.random.below(nodes.len() as u64);
            nodes.remove(usize::try_from(out).unwrap_or_default());
        }
        if self.may(Fault::Rot) && nodes[..] == [self.plan.rotting] {
            nodes = self.present_nodes().into_iter().filter(|node| *node != self.plan.rotting).take(1).collect();
        }
        nodes
    }

    /// A replica is opened or deleted on a node.
    pub(crate) fn place(&mut self, node: NodeId, hosting: Hosting) -> Result<(), String> {
        self.trace.line(self.now, format_args!("{node} {hosting:?}"));
        let failed = |error: shardkv::StoreError| format!("{node}: {error}");
        let Some(process) = self.sites.get_mut(&node).and_then(|site| site.process.as_mut()) else { return Ok(()) };
        match hosting {
            Hosting::Open { group, floor, founders } => {
                let opened = process.machines.begin(group, floor, founders).map_err(failed)?;
                process.opened.extend(opened);
                self.hosted.insert(group);
                self.invariants.opened(node, group, floor)?;
                self.coverage.hit("members.opened");
            }
            Hosting::Fence { group, slot } => {
                process.machines.fence(group, slot).map_err(failed)?;
                return self.fenced(node, group);
            }
            Hosting::Close { group } => {
                process.machines.close(group).map_err(failed)?;
                process.mailbox.push_back(Input::Closed(group));
                self.coverage.hit("members.closed");
            }
        }
        self.wake(node);
        Ok(())
    }

    /// The newest configuration of a group that any process knows.
    pub(crate) fn newest_configuration(&self, group: GroupId) -> Configuration {
        let first = self.plan.groups.iter().find(|(id, _)| *id == group).map(|(_, replicas)| replicas.clone());
        let known = self.sites.values().filter_map(|site| site.process.as_ref()?.core.replica(group));
        let known = known.map(|replica| replica.configuration().clone());
        known.chain(first.map(Configuration::first)).max_by_key(|it| it.id).unwrap_or_default()
    }
}
