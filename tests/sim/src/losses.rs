//! Nodes that are lost for good: their disks are gone, or what is left of them cannot prove its promises.
//! Somebody gives the cluster a new node for each, which gets an id of its own; the cluster replaces the lost
//! one by itself, or is told to; and when nothing of it is left anywhere, it is forgotten.

use crate::mutant::Mutant;
use crate::plan::Fault;
use crate::process::{LastWords, Site};
use crate::world::{Event, Phase, World};
use paxos::{NodeId, quorum_of};
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::request::RequestBody;
use std::collections::{BTreeMap, BTreeSet};

/// Between two things that are done about lost nodes.
const REPLACE_MICROS: u64 = 400_000;

/// Nodes that will never start again.
#[derive(Debug, Default)]
pub struct Losses {
    /// For each, the name of the node that comes in its place, and that one's id, once it has one.
    successors: BTreeMap<NodeId, (String, Option<NodeId>)>,
    /// Those that are forgotten.
    removed: BTreeSet<NodeId>,
    /// Somebody is at work.
    replacing: bool,
    /// What the operator has asked for, and when: it may be on its way, and come into force all the same.
    wishes: Vec<(u64, Vec<NodeId>)>,
}

/// A wish is on its way no longer than this.
const WISH_MICROS: u64 = 10_000_000;

impl Losses {
    /// The operator wants these members for some group.
    pub(crate) fn wished(&mut self, now: u64, members: Vec<NodeId>) {
        self.wishes.retain(|(at, _)| now - at < WISH_MICROS);
        self.wishes.push((now, members));
    }
}

impl World {
    /// The nodes that are not lost.
    pub(crate) fn present_nodes(&self) -> Vec<NodeId> {
        let lost = |node: &NodeId| self.sites.get(node).is_some_and(|site| site.retired);
        self.plan.nodes.iter().copied().filter(|node| !lost(node)).collect()
    }

    /// Some node loses its disks, if the others can do without it.
    pub(crate) fn next_loss(&mut self) {
        let Some(most) = self.plan.losses_micros_max.filter(|_| self.phase == Phase::Faults) else { return };
        let next = self.random.skewed(1_000_000, most);
        self.schedule(next, Event::Loss);
        let candidates = match self.may(Fault::Rot) {
            // Its log may rot, too, and more than a minority must not be lost.
            true => vec![self.plan.rotting],
            false => self.present_nodes(),
        };
        let Some(node) = self.random.pick(&candidates).copied().filter(|node| self.can_be_spared(*node)) else {
            return;
        };
        self.coverage.hit("nodes.wiped");
        if self.sites.iter().any(|(id, site)| *id != node && site.process.is_none() && !site.retired) {
            self.coverage.hit("nodes.wiped_beside_another");
        }
        self.trace.line(self.now, format_args!("{node} loses its disks"));
        self.cut_power(node, 1_000_000);
        if self.plan.options.mutant == Some(Mutant::RejoinUnderOldId) {
            let empty = Site::new(&mut self.random, 0);
            if let Some(site) = self.sites.get_mut(&node) {
                (site.disk, site.store, site.boot, site.formed) = (empty.disk, empty.store, 0, false);
            }
            return;
        }
        self.give_up(node);
    }

    /// A node will never start again.
    pub(crate) fn give_up(&mut self, node: NodeId) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        site.retired = true;
        let name = format!("n{}b", node.0);
        self.losses.successors.insert(node, (name, None));
        // What ran inside it is started elsewhere.
        for index in 0..self.gateways.len() {
            if self.gateways[index].local == Some(node) {
                self.stop_gateway(index);
                self.gateways[index].local = None;
                self.schedule(500_000, Event::GatewayStart(index));
            }
        }
        if !std::mem::replace(&mut self.losses.replacing, true) {
            self.schedule(REPLACE_MICROS, Event::Replace);
        }
    }

    /// Whether every group keeps a majority without this node: in each configuration that is in force somewhere, is
    /// about to be, or may come, by what is on disks now. Others may be down, and come back.
    fn can_be_spared(&self, node: NodeId) -> bool {
        let present = self.present_nodes();
        // Not before the last one is replaced.
        if self.unreplaced().is_some() || !present.contains(&node) {
            return false;
        }
        let dead = self.sites.values().filter(|site| site.process.is_none() && !site.retired);
        let dead: Vec<&LastWords> = dead.map(|site| &site.last_words).collect();
        let noted = dead.iter().filter_map(|words| words.map.clone()).chain(self.newest_map());
        let Some(map) = noted.max_by_key(|map| map.version).filter(|map| !map.nodes.is_empty()) else { return false };
        let enough = |members: &Vec<NodeId>| {
            let others = members.iter().filter(|id| **id != node && present.contains(id)).count();
            members.is_empty() || others >= quorum_of(members.len())
        };
        let planned = map.all_groups().flat_map(|group| [&group.replicas, &group.next, &group.sealed]);
        let first = self.plan.groups.iter().map(|(_, replicas)| replicas);
        let wishes = self.losses.wishes.iter().filter(|(at, _)| self.now - at < WISH_MICROS);
        let wishes = wishes.map(|(_, members)| members);
        let running = self.sites.values().filter_map(|site| site.process.as_ref()).map(LastWords::of);
        planned.chain(first.filter(|_| map.version <= 1)).chain(wishes).all(enough)
            && dead.iter().flat_map(|words| &words.configurations).all(|it| enough(&it.members))
            && running.flat_map(|words| words.configurations).all(|it| enough(&it.members))
    }

    /// What is still to be done about lost nodes, and by whom it is remembered.
    pub(crate) fn unreplaced(&self) -> Option<String> {
        let lost = self.losses.successors.keys().find(|node| !self.losses.removed.contains(node))?;
        Some(format!("{lost} is lost, and not forgotten yet"))
    }

    /// Starts nodes in place of lost ones, has those replaced, and forgets them.
    pub(crate) fn replace_lost(&mut self) {
        if self.phase == Phase::Over || self.unreplaced().is_none() {
            self.losses.replacing = false;
            return;
        }
        self.schedule(REPLACE_MICROS, Event::Replace);
        let Some(map) = self.newest_map().filter(|map| !map.nodes.is_empty()) else { return };
        for (lost, (name, successor)) in self.losses.successors.clone() {
            match (successor, map.nodes.iter().find(|node| node.name == name)) {
                (None, Some(info)) => self.join(lost, info),
                (None, None) => self.ask_for_id(name),
                (Some(_), _) => self.retire_lost(&map, lost),
            }
        }
    }

    fn ask_for_id(&mut self, name: String) {
        let incarnation = u64::from(crc32fast::hash(name.as_bytes()));
        let (cluster, peer_address, keeps) = (self.plan.seed, String::new(), (true, true));
        self.ask_shardmaster(&RequestBody::AddNode { cluster, name, incarnation, peer_address, keeps });
    }

    /// A new node starts, under the id that it was given.
    fn join(&mut self, lost: NodeId, info: &NodeInfo) {
        let id = info.id;
        if let Some((_, successor)) = self.losses.successors.get_mut(&lost) {
            *successor = Some(id);
        }
        self.coverage.hit("nodes.joined");
        self.trace.line(self.now, format_args!("{id} comes for {lost}"));
        self.plan.nodes.push(id);
        let map = self.newest_map();
        let met =
            map.map(|map| (map.nodes.iter().map(|info| info.id).collect(), map.newest_node())).unwrap_or_default();
        let site = Site { met, ..Site::new(&mut self.random, info.incarnation) };
        self.sites.insert(id, site);
        let delay = self.random.below(200_000);
        self.schedule(delay, Event::Restart(id));
    }

    /// Where nobody notices by himself that a node is dead, it is drained; then it is forgotten.
    fn retire_lost(&mut self, map: &ShardMap, lost: NodeId) {
        let Some(info) = map.nodes.iter().find(|node| node.id == lost) else {
            if self.losses.removed.insert(lost) {
                self.coverage.hit("nodes.removed");
                self.trace.line(self.now, format_args!("{lost} is forgotten"));
            }
            return;
        };
        let holds = map.all_groups().any(|group| group.involves(lost));
        if holds && self.plan.dead_after_micros == 0 && !info.draining {
            self.ask_shardmaster(&RequestBody::DrainNode { node: lost, drain: true });
        } else if !holds {
            self.ask_shardmaster(&RequestBody::RemoveNode { node: lost });
        }
    }
}
