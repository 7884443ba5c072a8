//! What is to be done about the load of the shards: a pure function from the map, and from what nodes have said, to
//! changes and to the reasons for them. It runs at whoever leads the shardmaster; what it wants becomes a command of
//! the log like an operator's.
//!
//! In this order: pins are heeded, groups that are to be emptied are; shards that are too large are split; shards that
//! make their group busier than the others are split, then moved; where requests say nothing, bytes decide, and where
//! those say nothing, the number of shards; small cold neighbours are merged when nothing else is to be done.
//!
//! - Nothing moves unless a group has more than its share by a margin, or much more than another one, and a move must
//!   bring it nearer to that.
//! - What has just changed rests, so that its load is known before it changes again.
//! - Leaders stay where they are: each write needs the sequencer, and the leader of a group is best at its side.

use crate::load::ShardLoad;
use crate::reshapes::SHARDS_MAX;
use paxos::GroupId;
use shardkv::map::{GroupInfo, MoveInfo, Pin, ShardChange, ShardInfo, ShardMap};
use shardkv::types::ShardId;
use std::collections::{BTreeMap, BTreeSet};

/// What the balancer goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A shard with more bytes in storage is split.
    pub split_bytes: u64,
    /// Requests per second, in the whole cluster, below which they say nothing.
    pub requests_min: u64,
    /// Bytes between two groups below which they say nothing.
    pub bytes_min: u64,
    /// Moves under way at the same time, at most.
    pub moves_max: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { split_bytes: 512 << 20, requests_min: 200, bytes_min: 128 << 20, moves_max: 4 }
    }
}

/// What is known beside the map.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The load of each shard, if anything is known of it.
    pub loads: BTreeMap<ShardId, ShardLoad>,
    /// Shards that have just changed.
    pub resting: BTreeSet<ShardId>,
    /// Shards that have been small and cold for long.
    pub cold: BTreeSet<ShardId>,
    /// Groups whose leaders have been heard lately, and can write. The others neither get nor give anything: their silence
    /// is no sign of leisure.
    pub led: BTreeSet<GroupId>,
    /// Shards that were to be split in their middle, and have none.
    pub whole: BTreeSet<ShardId>,
    /// [`Plan::apart`] of the round before.
    pub was_apart: bool,
}

/// A thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To be logged.
    Change(ShardChange),
    /// A shard is to be split in its middle, which its group has to tell.
    Halve(ShardId),
}

/// What is to be done, and why, or why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// In words, for an operator.
    pub why: Vec<String>,
    /// Two groups differ by too many requests: something is done about it if they still do in the next round.
    pub apart: bool,
}

/// Shards that are split in one round.
const SPLITS_MAX: usize = 8;
/// As many shards per group are left, however cold.
const SHARDS_PER_GROUP: usize = 4;
/// A group with so many replicas is as good as one with more.
const REPLICAS_ENOUGH: usize = 3;
/// A shard is small, and may be merged, below this part of [`Policy::split_bytes`].
const SMALL: u64 = 16;

mod spread;

struct Planner<'a> {
    map: &'a ShardMap,
    facts: &'a Facts,
    policy: Policy,
    plan: Plan,
    /// Shards that this plan or an earlier one has changed: they are left alone.
    busy: BTreeSet<ShardId>,
    /// Where each shard is, or will be.
    homes: BTreeMap<ShardId, GroupId>,
    moves: usize,
}

/// Plans one round.
pub fn plan(map: &ShardMap, facts: &Facts, policy: Policy) -> Plan {
    let moving = map.moves.iter().map(|planned| planned.shard);
    let cut = map.reshapes.iter().flat_map(|planned| planned.to.iter().map(|shard| shard.id));
    let busy = moving.chain(cut).chain(facts.resting.iter().copied()).collect();
    let mut homes: BTreeMap<ShardId, GroupId> = map.shards.iter().map(|shard| (shard.id, shard.group)).collect();
    homes.extend(map.moves.iter().map(|planned| (planned.shard, planned.to)));
    // A move that waits for a leader must not keep the others waiting.
    let goes_on = |planned: &&MoveInfo| facts.led.contains(&planned.from) && facts.led.contains(&planned.to);
    let moves = map.moves.iter().filter(goes_on).count();
    let mut planner = Planner { map, facts, policy, plan: Plan::default(), busy, homes, moves };
    planner.describe();
    planner.heed_pins();
    planner.empty_groups();
    planner.split_large();
    planner.spread_requests();
    planner.spread_bytes();
    planner.spread_counts();
    planner.merge_cold();
    if map.balance.paused {
        planner.plan.steps.clear();
        planner.plan.why.push("balancing is paused: nothing of this is done until `cloudpaxos balance resume`".into());
    } else if planner.plan.steps.is_empty() {
        planner.plan.why.push("nothing is to be done".into());
    }
    planner.plan
}

impl Planner<'_> {
    /// Groups that may get shards: not those with fewer replicas than the others, for what is moved is to be as safe as it
    /// was before.
    fn takers(&self) -> Vec<GroupId> {
        let takes = |group: &&GroupInfo| !group.emptying && self.facts.led.contains(&group.id);
        let enough = self.map.groups.iter().filter(takes).map(|group| group.replicas.len()).max();
        let enough = enough.unwrap_or(0).min(REPLICAS_ENOUGH);
        let safe = |group: &&GroupInfo| takes(group) && group.replicas.len() >= enough;
        self.map.groups.iter().filter(safe).map(|group| group.id).collect()
    }

    /// Whether a shard may be changed: nothing else is under way, and its group has a leader to do it.
    fn is_free(&self, shard: &ShardInfo) -> bool {
        !self.busy.contains(&shard.id) && self.facts.led.contains(&shard.group)
    }

    fn requests(&self, shard: ShardId) -> u64 {
        self.facts.loads.get(&shard).map_or(0, |load| load.reads + load.writes)
    }

    fn bytes(&self, shard: ShardId) -> u64 {
        self.facts.loads.get(&shard).and_then(|load| load.stored).map_or(0, |stored| stored.bytes)
    }

    /// What each group that takes shards will carry once all that is planned is done.
    fn carried(&self, of: impl Fn(ShardId) -> u64) -> BTreeMap<GroupId, u64> {
        self.takers().into_iter().map(|group| (group, self.carried_by(group, &of))).collect()
    }

    /// The same of one group, whether it takes shards or not.
    fn carried_by(&self, group: GroupId, of: impl Fn(ShardId) -> u64) -> u64 {
        self.homes.iter().filter(|(_, home)| **home == group).map(|(shard, _)| of(*shard)).sum()
    }

    fn pin_of(&self, shard: &ShardInfo) -> Option<&Pin> {
        self.map.balance.pins.iter().find(|pin| pin.bounds().intersects(&shard.bounds.keys()))
    }

    fn say(&mut self, why: String) {
        self.plan.why.push(why);
    }

    fn describe(&mut self) {
        let takers = self.takers();
        for group in &self.map.groups {
            let shards = self.map.shards.iter().filter(|shard| shard.group == group.id).count();
            let rate = self.carried_by(group.id, |shard| self.requests(shard));
            let held = self.carried_by(group.id, |shard| self.bytes(shard)) >> 20;
            // Of a shard that has just come, or was just cut, nobody has told it yet.
            let unknown = |shard: ShardId| self.facts.loads.get(&shard).is_none_or(|load| load.stored.is_none());
            let least = if self.carried_by(group.id, |shard| u64::from(unknown(shard))) > 0 { "at least " } else { "" };
            let emptying = if group.emptying { ", to be emptied" } else { "" };
            let state = match self.facts.led.contains(&group.id) {
                false => ", without a leader that can write: left alone",
                true if !group.emptying && !takers.contains(&group.id) => {
                    ", with fewer replicas than others: it gets no shards but those pinned to it"
                }
                true => "",
            };
            let text = format!("{}: {shards} shards, {least}{rate} requests/s, {held} MiB{emptying}{state}", group.id);
            self.plan.why.push(text);
        }
        for planned in &self.map.moves {
            let (shard, from, to) = (planned.shard, planned.from, planned.to);
            let leaderless = [from, to].into_iter().find(|group| !self.facts.led.contains(group));
            let waits = leaderless.map_or(String::new(), |group| format!(", waits for a leader of {group}"));
            self.plan.why.push(format!("{shard} is moving from {from} to {to} (move {}){waits}", planned.id.0));
        }
        if self.moves >= self.policy.moves_max {
            self.say(format!("{} shards are moving, and no more may at the same time: others wait", self.moves));
        }
    }

    fn change(&mut self, shard: ShardId, change: ShardChange, why: String) {
        self.busy.insert(shard);
        self.plan.steps.push(Step::Change(change));
        self.say(why);
    }

    fn send(&mut self, shard: ShardId, to: GroupId, why: String) {
        self.moves += 1;
        self.homes.insert(shard, to);
        self.change(shard, ShardChange::Move { shard, to }, why);
    }

    fn may_move(&self, shard: &ShardInfo) -> bool {
        self.moves < self.policy.moves_max && self.is_free(shard) && self.pin_of(shard).is_none()
    }

    /// Keys that are pinned to a group lie in shards of their own, and there.
    fn heed_pins(&mut self) {
        let map = self.map;
        for pin in &map.balance.pins {
            let takes = |group: &GroupInfo| !group.emptying && self.facts.led.contains(&group.id);
            if !map.group(pin.group).is_some_and(takes) {
                self.say(format!("{} is pinned to {}, which takes no shards", pin.shown(), pin.group));
                continue;
            }
            let bounds = pin.bounds();
            for shard in map.shards.iter().filter(|shard| shard.bounds.intersects(&bounds.keys())) {
                if !self.is_free(shard) {
                    continue;
                }
                let ends = std::iter::once(&bounds.start).chain(&bounds.end);
                let cut = ends.into_iter().find(|key| **key > shard.bounds.start && shard.bounds.contains(key));
                if let Some(at) = cut.cloned() {
                    let why = format!("{} is split where the pinned keys {} begin or end", shard.id, pin.shown());
                    self.change(shard.id, ShardChange::Split { shard: shard.id, at }, why);
                } else if shard.group != pin.group && self.moves < self.policy.moves_max {
                    let why = format!("{} moves to {}: {} is pinned there", shard.id, pin.group, pin.shown());
                    self.send(shard.id, pin.group, why);
                }
            }
        }
    }

    /// A group that is to go gives its shards to those that carry least.
    fn empty_groups(&mut self) {
        let map = self.map;
        let emptying = |group: GroupId| map.group(group).is_some_and(|info| info.emptying);
        for shard in map.shards.iter().filter(|shard| emptying(shard.group)) {
            if !self.may_move(shard) {
                continue;
            }
            let weight = |shard: ShardId| self.requests(shard) * 1024 + self.bytes(shard) / 1024 + 1;
            let Some((to, _)) = self.carried(weight).into_iter().min_by_key(|(group, sum)| (*sum, *group)) else {
                return self.say("no group is left that could take the shards of those to be emptied".into());
            };
            let why = format!("{} moves to {to}: {} is to be emptied", shard.id, shard.group);
            self.send(shard.id, to, why);
        }
    }

    fn split_large(&mut self) {
        let map = self.map;
        let most = self.policy.split_bytes >> 20;
        let large = map.shards.iter().filter(|shard| self.bytes(shard.id) > self.policy.split_bytes);
        let large = large.filter(|shard| self.is_free(shard));
        let (whole, large): (Vec<_>, Vec<_>) = large.partition(|shard| self.facts.whole.contains(&shard.id));
        for shard in whole {
            let has = self.bytes(shard.id) >> 20;
            self.say(format!("{} has {has} MiB, more than {most}, and is not split: one key has most of it", shard.id));
        }
        for shard in large.into_iter().take(SPLITS_MAX) {
            let has = self.bytes(shard.id) >> 20;
            if map.shards.len() >= SHARDS_MAX {
                return self.say(format!("{} is large, but there are {SHARDS_MAX} shards already", shard.id));
            }
            self.busy.insert(shard.id);
            self.plan.steps.push(Step::Halve(shard.id));
            self.say(format!("{} is split in its middle: it has {has} MiB, more than {most}", shard.id));
        }
    }

    /// When nothing else is to be done, two small cold neighbours become one.
    fn merge_cold(&mut self) {
        let map = self.map;
        let enough = map.shards.len() > SHARDS_PER_GROUP * self.takers().len().max(1);
        if !self.plan.steps.is_empty() || !map.moves.is_empty() || !enough {
            return;
        }
        let small = |shard: &ShardInfo| {
            let idle = self.facts.cold.contains(&shard.id) && self.is_free(shard);
            idle && self.bytes(shard.id) < self.policy.split_bytes / SMALL
        };
        // What is pinned lies in shards of its own.
        let alike =
            |left: &ShardInfo, right: &ShardInfo| left.group == right.group && self.pin_of(left) == self.pin_of(right);
        let pair = map.shards.windows(2).find(|pair| alike(&pair[0], &pair[1]) && small(&pair[0]) && small(&pair[1]));
        if let Some([left, right]) = pair {
            let (left, right) = (left.id, right.id);
            let why = format!("{left} and {right} become one: both are small and cold, and neighbours in one group");
            self.busy.insert(right);
            self.change(left, ShardChange::Merge { left, right }, why);
        }
    }
}

#[cfg(test)]
mod tests;
