//! Which replicas live on this node, and changes of a group's members.
//!
//! The shard map says who is wanted (`GroupInfo::next`), and every node does its part by itself:
//! - a node that the map names for a group it has no replica of opens one, which learns;
//! - the group's leader has the newcomers follow its log; when they are close it drains, and proposes the
//!   stop-sign;
//! - the leader of the next configuration, once it serves, tells the shardmaster what is in force;
//! - a node that the map does not name any more closes its replica.
//!
//! Invariants, for maps may be old:
//! - A replica is closed only where the map knows of a configuration at least as new as every one that the
//!   replica has taken part in.
//! - A node that had a vote in a configuration, and closed its replica, opens none that votes there: what it
//!   has accepted is gone. Tombstones remember which.

use super::lead::Waiter;
use super::{Core, Group, Hosted};
use crate::wire::NodeMessage;
use paxos::flaw::{self, Flaw};
use paxos::{Ballot, ConfigId, Configuration, GroupId, NodeId, Record, Slot, Time, quorum_of};
use shardkv::map::{GroupInfo, SHARDMASTER_GROUP};
use shardkv::store::Store;
use shardmaster::MasterCommand;
use std::collections::{BTreeMap, BTreeSet};

/// How often the shardmaster's leader looks whether replicas must move.
const PLACE_MICROS: u64 = 1_000_000;
/// A configuration that has begun is led, and the map knows it, within this; or something is amiss.
const UNLED_MICROS: u64 = 1_000_000;
/// A newcomer is close enough to vote when it lacks at most so many entries.
const CLOSE_SLOTS: u64 = 64;

/// What the host does about replicas, in the order of its work for state machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosting {
    /// Open an empty state machine, deleting what may be left of an earlier one, and hand the replica to
    /// [`Core::open`].
    Open {
        /// The group.
        group: GroupId,
        /// The replica promises nothing below.
        floor: Ballot,
        /// The members of a group that begins here and now; others learn who votes.
        founders: Option<Vec<NodeId>>,
    },
    /// Remember that this replica's state is another one than the other replicas', if no image has taken its place.
    Fence {
        /// The group.
        group: GroupId,
        /// What it had come to then; an image of this slot or a later one is not it.
        slot: Slot,
    },
    /// Delete the state of a replica that has ended, and report [`super::Input::Closed`].
    Close {
        /// The group.
        group: GroupId,
    },
}

/// Replicas that come and go.
#[derive(Debug, Default)]
pub(super) struct Comings {
    /// The host was asked to open these.
    pub(super) opening: BTreeSet<GroupId>,
    /// These have ended; the ticket of the record that says so, until it is durable.
    closing: BTreeMap<GroupId, Option<u64>>,
    /// What replicas that have ended here had promised.
    pub(super) ended: BTreeMap<GroupId, Ballot>,
    /// Groups whose leader, here, drains for a change.
    sealing: BTreeSet<GroupId>,
    /// Since when the map lags behind the configuration that replicas here are in.
    pub(super) behind: BTreeMap<GroupId, Time>,
    /// Since when nodes have not been reached.
    pub(super) unreached: BTreeMap<NodeId, Time>,
    /// When replicas were last placed anew.
    placed_at: Time,
}

impl<S: Store> Core<S> {
    /// Nodes that have joined are met, and those that were removed forgotten.
    pub(super) fn meet_nodes(&mut self) {
        if self.map.nodes.is_empty() {
            return;
        }
        let mut present: Vec<NodeId> = self.map.nodes.iter().map(|node| node.id).collect();
        let absent = self.config.nodes.iter().filter(|node| !present.contains(node));
        // Of a node that joined after it the map says nothing: it may be older than what this node knew before a crash.
        let (gone, later): (Vec<NodeId>, Vec<NodeId>) = absent.partition(|node| **node <= self.map.newest_node());
        gone.into_iter().for_each(|node| self.beats.remove_peer(node));
        present.iter().for_each(|node| self.beats.add_peer(*node));
        present.extend(later);
        self.config.nodes = present;
    }

    /// Opens and closes replicas as the map says.
    pub(super) fn follow_placement(&mut self) {
        let (map, me) = (self.map.clone(), self.config.me);
        for plan in map.all_groups().filter(|plan| plan.id.0 != 0) {
            let id = plan.id;
            let busy = self.comings.opening.contains(&id) || self.comings.closing.contains_key(&id);
            let ended = self.comings.ended.get(&id).copied().unwrap_or_default();
            // A replica ends only by a map that knows at least its configuration: one that knows less is old.
            let voted = plan.config == ended.config && plan.replicas.contains(&me);
            let forgot = self.comings.ended.contains_key(&id) && (voted || plan.config < ended.config);
            match self.groups.get(&id) {
                None if plan.involves(me) && !busy && !forgot => {
                    let floor = Configuration::floor(plan.config).max(ended);
                    // A node that was a founder, and closed its replica, has a tombstone.
                    let founds =
                        plan.config == ConfigId(0) && plan.replicas.contains(&me) && ended == Ballot::default();
                    let founders = founds.then(|| plan.replicas.clone());
                    self.comings.opening.insert(id);
                    self.out.hosting.push(Hosting::Open { group: id, floor, founders });
                }
                Some(group) if !plan.involves(me) && plan.config >= newest_config(group) => self.close(id),
                _ => {}
            }
        }
        // Groups that are none any more.
        let removed = |id: &&GroupId| **id <= map.last_group && map.group(**id).is_none();
        let removed: Vec<GroupId> = self.groups.keys().filter(removed).copied().collect();
        removed.into_iter().for_each(|id| self.close(id));
    }

    /// A replica's life ends: first for the others, then, when that is durable, on the disk.
    fn close(&mut self, id: GroupId) {
        let Some(group) = self.groups.remove(&id) else { return };
        let newest = newest_config(&group);
        tracing::info!(group = %id, "this node's replica has ended: the group has other members");
        if let Some(lead) = group.lead {
            self.end_term(id, lead);
        }
        self.busy.remove(&id);
        self.untold.remove(&id);
        self.comings.behind.remove(&id);
        self.beats.forget(id);
        self.end_transfers(id);
        let promised = group.replica.acceptor().promised().max(Configuration::floor(newest));
        let promised = if flaw::is(Flaw::ForgetTombstone) { Ballot::default() } else { promised };
        self.comings.ended.insert(id, promised);
        self.out.log.push((id, Record::Closed(promised)));
        self.comings.closing.insert(id, Some(self.next_ticket));
    }

    /// Ends that are durable: the state may go.
    pub(super) fn durably_closed(&mut self, ticket: u64) {
        for (id, waits) in &mut self.comings.closing {
            if waits.take_if(|waits| *waits <= ticket).is_some() {
                self.out.hosting.push(Hosting::Close { group: *id });
            }
        }
    }

    /// The host has deleted a replica's state.
    pub(super) fn closed(&mut self, id: GroupId) {
        self.comings.closing.remove(&id);
        self.follow_placement();
    }

    /// Before the first turn: what replicas that ended here before this start had promised.
    pub fn remember(&mut self, ended: BTreeMap<GroupId, Ballot>) {
        self.comings.ended = ended;
    }

    /// A replica that the host has opened. Its first record is logged here.
    pub fn open(&mut self, mut hosted: Hosted<S>) {
        let id = hosted.group;
        if !self.comings.opening.remove(&id) || self.groups.contains_key(&id) {
            return;
        }
        if flaw::is(Flaw::VoteBeforeLearning) && hosted.configuration.members.is_empty() {
            hosted.configuration = self.opened_for(id);
        }
        let floor = Record::Opened(hosted.recovered.promised);
        self.forget_flushing(id);
        self.host(hosted);
        let ticket = self.next_ticket;
        self.comings.ended.remove(&id);
        if let Some(group) = self.groups.get_mut(&id) {
            // Nothing that it says may leave before.
            group.last_ticket = ticket;
            group.tails.push_back((ticket, 0));
            self.dirty.push_back((ticket, id));
        }
        self.out.log.push((id, floor));
    }

    /// For a mutant: the configuration that a replica is opened for, by the map.
    fn opened_for(&self, id: GroupId) -> Configuration {
        let plan = self.map.group(id).cloned().unwrap_or_default();
        let mut present = Configuration::first(plan.replicas);
        present.id = plan.config;
        let next = if plan.sealed.is_empty() { plan.next } else { plan.sealed };
        if next.contains(&self.config.me) { present.next(next) } else { present }
    }

    /// A leader's part in a change of its group's members.
    pub(super) fn follow_plan(&mut self, now: Time, id: GroupId) {
        let Some(plan) = self.map.group(id).cloned() else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        if let Some(next) = group.replica.sealed_into() {
            // It waits for members who may have closed their replicas, because something else is wanted by now.
            if plan.sealed != next.members {
                self.tell_configuration(now, id, next, false);
            }
            return;
        }
        let present = group.replica.configuration().clone();
        if plan.config < present.id {
            let serves = group.lead.as_ref().is_some_and(|lead| lead.ready);
            return self.tell_begun(now, &plan, present, serves);
        }
        self.comings.behind.remove(&id);
        let Some(lead) = group.lead.as_mut() else { return };
        let wanted = wanted(&plan, &present);
        let learners: Vec<NodeId> = wanted.iter().copied().filter(|node| !present.contains(*node)).collect();
        let (matched, length) = (group.replica.matched(), group.replica.next_slot().prev());
        let me = self.config.me;
        let beats = &self.beats;
        let close = |node: &NodeId| {
            let near = matched.get(node).copied().flatten().is_some_and(|slot| slot.0 + CLOSE_SLOTS >= length.0);
            // One that must not lead is none to rely on.
            *node == me || (near && beats.may_lead(now, *node, id))
        };
        // One that stays may be away for a while; but the next configuration must be able to begin.
        let ready = wanted.iter().filter(|node| close(node)).count() >= quorum_of(wanted.len());
        lead.sealing = !wanted.is_empty() && lead.ready && ready && learners.iter().all(close);
        let (sealing, drained) = (lead.sealing, lead.is_drained());
        if group.replica.learners() != learners {
            self.step(now, id, paxos::Input::Learners(learners));
        }
        match (sealing, drained) {
            (true, true) => self.step(now, id, paxos::Input::Seal(present.next(wanted))),
            (true, false) => drop(self.comings.sealing.insert(id)),
            (false, _) => {}
        }
    }

    /// Leaders that drain for a change: the ticks alone would be slow.
    pub(super) fn seal_drained(&mut self, now: Time) {
        let drained = |id: &&GroupId| {
            let lead = self.groups.get(id).and_then(|group| group.lead.as_ref());
            lead.is_none_or(|lead| !lead.sealing || lead.is_drained())
        };
        let drained: Vec<GroupId> = self.comings.sealing.iter().filter(drained).copied().collect();
        for id in drained {
            self.comings.sealing.remove(&id);
            self.follow_plan(now, id);
        }
    }

    /// The shardmaster's leader moves replicas from nodes that are dead or being drained.
    pub(super) fn place_replicas(&mut self, now: Time) {
        self.count_silence(now);
        if self.ready_lead(SHARDMASTER_GROUP).is_err() {
            return;
        }
        if now.since(self.comings.placed_at) < PLACE_MICROS {
            return;
        }
        self.comings.placed_at = now;
        let after = self.config.dead_after_micros;
        let dead = self.comings.unreached.iter().filter(|(_, since)| after > 0 && now.since(**since) >= after);
        let dead = dead.map(|(node, _)| *node).collect();
        let silent = self.map.nodes.iter().map(|node| node.id).filter(|node| *node != self.config.me);
        let silent = silent.filter(|node| !self.beats.reaches(now, *node)).collect();
        for command in shardmaster::replacements(&self.map, &dead, &silent) {
            tracing::info!(?command, "a replica moves from a node that is dead or being drained");
            self.propose_master(now, Waiter::Nobody, &command);
        }
    }

    /// Since when nodes are silent. Everybody counts, so that the next leader of the shardmaster need not begin anew; but
    /// who reaches neither that leader nor a majority of the nodes is more likely to be cut off itself.
    fn count_silence(&mut self, now: Time) {
        let nodes = self.map.nodes.len();
        let votes = |group: &&Group<S>| group.replica.configuration().contains(self.config.me);
        let master = self.groups.get(&SHARDMASTER_GROUP).filter(votes);
        let is_led = master.is_some_and(|group| group.replica.is_content());
        let others = self.map.nodes.iter().map(|node| node.id).filter(|node| *node != self.config.me);
        let unreached: BTreeSet<NodeId> = others.filter(|node| !self.beats.reaches(now, *node)).collect();
        if !is_led && nodes - unreached.len() < quorum_of(nodes) {
            self.comings.unreached.clear();
            return;
        }
        self.comings.unreached.retain(|node, _| unreached.contains(node));
        for node in unreached {
            self.comings.unreached.entry(node).or_insert(now);
        }
    }

    /// A configuration has begun, and the map does not know. Its leader says so once it serves. Where that takes long,
    /// everybody in it says that it is needed: a member may have no replica, for it followed as a learner, and closed when
    /// something else was wanted; then nobody may ever lead. (Who believes that somebody does can be wrong: a node that
    /// has no replica looks like one that follows.)
    fn tell_begun(&mut self, now: Time, plan: &GroupInfo, present: Configuration, serves: bool) {
        let since = *self.comings.behind.entry(plan.id).or_insert(now);
        let unled = now.since(since) >= UNLED_MICROS && present.contains(self.config.me);
        if serves || (unled && plan.sealed != present.members) {
            self.tell_configuration(now, plan.id, present, serves);
        }
    }

    /// The shardmaster is told what is in force, or about to be, until the map says so.
    fn tell_configuration(&mut self, now: Time, group: GroupId, configuration: Configuration, begun: bool) {
        let Configuration { id: config, members, .. } = configuration;
        match self.leader_of(SHARDMASTER_GROUP) {
            Some(leader) if leader == self.config.me => self.configured(now, group, config, members, begun),
            Some(leader) => self.out.send.push((leader, NodeMessage::Configured { group, config, members, begun })),
            None => {}
        }
    }

    /// A group's leader says which configuration is in force, or about to be.
    pub(super) fn configured(
        &mut self,
        now: Time,
        group: GroupId,
        config: ConfigId,
        members: Vec<NodeId>,
        begun: bool,
    ) {
        let news = self.map.group(group).is_some_and(|known| match begun {
            true => known.config < config,
            false => known.config.0 + 1 == config.0 && known.sealed != members,
        });
        if news {
            self.note_master(now, &MasterCommand::Configured { group, config, members, begun });
        }
    }
}

/// The newest configuration that a replica has taken part in.
fn newest_config<S: Store>(group: &Group<S>) -> ConfigId {
    let acceptor = group.replica.acceptor();
    group.replica.configuration().id.max(acceptor.promised().config).max(acceptor.accepted().config)
}

/// The members that a leader is to bring about; none while there is nothing to do.
fn wanted(plan: &GroupInfo, present: &Configuration) -> Vec<NodeId> {
    match plan.config == present.id && plan.next != present.members {
        true => plan.next.clone(),
        false => Vec::new(),
    }
}
