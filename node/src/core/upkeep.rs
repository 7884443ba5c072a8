//! What leaders do by themselves: heartbeats, taking over shards, noticing compactions, moving
//! leadership to the sequencer's node, or away from a full disk.

use super::lead::Waiter;
use super::{Core, Group, Machine};
use crate::wire::NodeMessage;
use paxos::{GroupId, NodeId, Time, Wire};
use shardkv::command::Command;
use shardkv::map::{SHARDMASTER_GROUP, ShardInfo};
use shardkv::store::Store;
use shardkv::types::{Epoch, MoveId, Revision, ShardId};
use std::collections::BTreeMap;

/// A leader stays for at least this long before it hands over to a better one.
const SETTLED_MICROS: u64 = 2_000_000;
/// A leader that cannot drain in this time serves on.
const DRAIN_MICROS: u64 = 500_000;

impl<S: Store> Core<S> {
    pub(super) fn tick(&mut self, now: Time) {
        if !self.stalled(now) {
            self.ping(now);
        }
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in groups {
            self.step(now, id, paxos::Input::Tick);
            self.drop_expired(now, id);
            self.ask_anew(now, id);
            self.follow_plan(now, id);
            self.prefer_another(now, id);
            self.mend(now, id);
            let leads = self.groups.get(&id).is_some_and(|group| group.lead.is_some());
            if leads {
                self.busy.insert(id);
            }
        }
        self.tick_transfers(now);
        self.weigh(now);
        self.balance(now);
        self.follow_placement();
        self.place_replicas(now);
        self.ask_for_map();
        self.tell_address(now);
    }

    /// Where the map says something else about this node, the shardmaster's leader is told. A node that knows no map yet
    /// tells everybody: where the map has it elsewhere, no answer would find it.
    fn tell_address(&mut self, now: Time) {
        let ours = &self.config.info;
        let knows_none = self.map.version == 0 && ours.id == self.config.me;
        if !knows_none && !self.map.nodes.iter().any(|node| node.id == ours.id && !node.says_the_same(ours)) {
            return;
        }
        let info = ours.clone();
        match self.leader_of(SHARDMASTER_GROUP) {
            Some(leader) if leader == self.config.me => self.register(now, info),
            Some(leader) => self.out.send.push((leader, NodeMessage::Register(Box::new(info)))),
            None if knows_none => {
                let others = self.config.nodes.iter().filter(|node| **node != self.config.me);
                let tell = others.map(|node| (*node, NodeMessage::Register(Box::new(info.clone()))));
                self.out.send.extend(tell);
            }
            None => {}
        }
    }

    pub(super) fn ping(&mut self, now: Time) {
        let pings = self.beats.ping(now, None);
        let wire = |(node, beat)| (node, NodeMessage::Paxos(Wire::Heartbeat(beat)));
        self.out.send.extend(pings.into_iter().map(wire));
    }

    /// A node without a replica of the shardmaster learns the map from those that have one. One that follows
    /// nobody is as good as none: its group may have other members by now.
    fn ask_for_map(&mut self) {
        let follows = |group: &Group<S>| {
            let (replica, acceptor) = (&group.replica, group.replica.acceptor());
            replica.configuration().contains(self.config.me) && acceptor.accepted() == replica.leader() && !group.fenced
        };
        if self.groups.get(&SHARDMASTER_GROUP).is_some_and(follows) && !self.is_outdated(SHARDMASTER_GROUP) {
            return;
        }
        let have_version = self.map.version;
        let nodes: Vec<NodeId> = self.config.nodes.iter().copied().filter(|node| *node != self.config.me).collect();
        self.out.send.extend(nodes.into_iter().map(|node| (node, NodeMessage::MapRequest { have_version })));
    }

    /// A data group's leader takes over the shards that the map gives it, and logs compactions that
    /// the shardmaster has logged.
    pub(super) fn propose_upkeep(&mut self, id: GroupId) {
        let map = self.map.clone();
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (Machine::Data(reader), Some(lead)) = (&group.machine, group.lead.as_mut()) else { return };
        if !lead.ready || lead.is_draining() {
            return;
        }
        if lead.activating.is_some_and(|last| lead.done < last) {
            return;
        }
        lead.activating = None;
        let owned: BTreeMap<ShardId, Epoch> = reader.epochs().into_iter().collect();
        let arrivals = reader.arrivals();
        let is_here = |shard: &ShardInfo| {
            shard.by == MoveId(0) || arrivals.iter().any(|it| it.mv == shard.by && it.is_complete())
        };
        let missing = map
            .uncut()
            .filter(|shard| shard.group == id && owned.get(&shard.id).is_none_or(|owned| *owned < shard.epoch))
            .filter(|shard| is_here(shard) && !reader.has_gone(shard.id, shard.epoch));
        for shard in missing {
            if shard.by != MoveId(0) {
                tracing::info!(group = %id, shard = %shard.id, epoch = shard.epoch.0, "a shard that has moved here is taken over");
            }
            let command = Command::Activate {
                revision: Revision(0),
                shard: shard.id,
                bounds: shard.bounds.clone(),
                epoch: shard.epoch,
                by: shard.by,
            };
            lead.enqueue(Waiter::Nobody, command, 256);
            lead.activating = Some(lead.last_write());
        }
        let floor = reader.lowest_floor().unwrap_or(map.compacted);
        // The compaction's revision was handed out before we read of it: what arrives from now on is
        // stamped above it, and what is in line already has to be applied first.
        if map.compacted > floor && map.compacted > lead.compacting {
            lead.compacting = map.compacted;
            lead.compaction = Some((lead.last_write(), map.compacted));
        }
        let done = lead.done;
        if let Some((_, revision)) = lead.compaction.take_if(|(behind, _)| *behind <= done) {
            lead.closed = lead.closed.max(revision);
            lead.enqueue(Waiter::Nobody, Command::Compact { revision }, 64);
        }
    }

    /// Whether this node could hand the lead of a group to another.
    fn may_lead(&self, now: Time, id: GroupId, node: NodeId) -> bool {
        node != self.config.me
            && self.beats.may_lead(now, node, id)
            && self.beats.status_of(node, id).is_some_and(|status| !status.reluctant)
    }

    /// Who had better lead a group that is led here. Every write needs the sequencer, so that is the
    /// sequencer's node; and a node whose disk is full, or that is about to stop, leads only if all are.
    fn better_leader(&self, now: Time, id: GroupId) -> Option<NodeId> {
        if !self.is_master(id) {
            let sequencer = self.leader_of(SHARDMASTER_GROUP).filter(|node| self.may_lead(now, id, *node));
            let leads = |node: &NodeId| {
                self.beats.status_of(*node, SHARDMASTER_GROUP).is_some_and(|status| status.leader.node == *node)
            };
            if let Some(sequencer) = sequencer {
                return Some(sequencer).filter(leads);
            }
        }
        let group = self.groups.get(&id).filter(|_| self.is_reluctant())?;
        let follows = |node: &NodeId| {
            self.beats.status_of(*node, id).is_some_and(|status| status.leader == group.replica.leader())
        };
        group.replica.replicas().iter().copied().find(|node| self.may_lead(now, id, *node) && follows(node))
    }

    /// Hands over what is led here as soon as it is drained; the ticks alone would be slow.
    pub(super) fn hand_over_all(&mut self, now: Time) {
        let led = self.groups.iter().filter(|(_, group)| group.lead.is_some());
        let led: Vec<GroupId> = led.map(|(id, _)| *id).collect();
        for id in led {
            self.prefer_another(now, id);
        }
    }

    /// A leader hands over to one that is better placed, once things have settled.
    fn prefer_another(&mut self, now: Time, id: GroupId) {
        let leads = self.groups.get(&id).is_some_and(|group| group.lead.is_some());
        let target = if leads { self.better_leader(now, id) } else { None };
        let Some(target) = target else {
            if let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) {
                lead.handing_over = false;
            }
            return;
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let length = group.replica.next_slot().prev();
        let close =
            group.replica.matched().get(&target).copied().flatten().is_some_and(|matched| matched.0 + 1024 > length.0);
        let Some(lead) = group.lead.as_mut() else { return };
        let age = now.since(lead.since);
        // Whoever is about to stop has no time to settle, and need not serve on.
        let now_or_never = self.retiring;
        let in_time = age > SETTLED_MICROS && (age - SETTLED_MICROS) % (4 * SETTLED_MICROS) < DRAIN_MICROS;
        lead.handing_over = close && lead.ready && (now_or_never || in_time);
        if lead.handing_over && lead.is_drained() {
            self.step(now, id, paxos::Input::HandOver(target));
        }
    }
}
