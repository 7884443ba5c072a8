//! Groups that carry more than their share give of it: requests first, then bytes, then the number of shards.
//!
//! A group that has nothing to give, since its shards are pinned, or one key has all the load, keeps no other one from giving.

use super::{Planner, SPLITS_MAX};
use crate::reshapes::SHARDS_MAX;
use paxos::GroupId;
use shardkv::map::{ShardChange, ShardInfo};
use shardkv::types::ShardId;
use std::collections::{BTreeMap, BTreeSet};

/// A group carries more than its share, in thousandths of it: from here on something is done about it.
const TOO_MUCH: u64 = 1150;
/// Two groups differ by more than this part of a fair share, in thousandths: from here on something is done about it.
const TOO_FAR: u64 = 180;
/// And by more than so many square roots of it.
const WAVERING: u64 = 6;
/// A group holds more than its share of bytes, in thousandths of it: more than for requests, for they cost more to move.
const TOO_MANY_BYTES: u64 = 1300;
/// A shard with more than this part of a group's fair share, in thousandths, is split before anything is moved.
const TOO_COARSE: u64 = 200;
/// With more shards per group, none is split by load: whoever writes to ever new keys would have them split for ever.
const SHARDS_PER_GROUP_MAX: usize = 64;
/// A move must lower the larger of two sums by this part of a fair share, in thousandths: or a shard that has most of the
/// load would go to and fro.
const GAIN_MIN: u64 = 50;

/// What groups carry, the most first.
fn fullest(carried: &BTreeMap<GroupId, u64>) -> Vec<(GroupId, u64)> {
    let mut groups: Vec<(GroupId, u64)> = carried.iter().map(|(group, sum)| (*group, *sum)).collect();
    groups.sort_by_key(|(group, sum)| std::cmp::Reverse((*sum, *group)));
    groups
}

fn emptiest(carried: &BTreeMap<GroupId, u64>) -> Option<(GroupId, u64)> {
    carried.iter().map(|(group, sum)| (*group, *sum)).min_by_key(|(group, sum)| (*sum, *group))
}

/// What each group would carry, but for those that cannot give.
fn share(carried: &BTreeMap<GroupId, u64>, stuck: &BTreeSet<GroupId>) -> u64 {
    let others = || carried.iter().filter(|(group, _)| !stuck.contains(group)).map(|(_, sum)| *sum);
    others().sum::<u64>() / others().count().max(1) as u64
}

fn is_crowded(sum: u64, fair: u64) -> bool {
    sum * 1000 > fair * TOO_MUCH
}

/// Two groups differ by more than the load's own wavering, which is that of requests counted for a second or two.
fn are_far_apart(most: u64, least: u64, fair: u64) -> bool {
    let gap = most.saturating_sub(least);
    gap * 1000 > fair * TOO_FAR && gap.saturating_mul(gap) > fair.saturating_mul(WAVERING * WAVERING)
}

fn is_uneven(most: u64, least: u64, fair: u64) -> bool {
    is_crowded(most, fair) || are_far_apart(most, least, fair)
}

/// A group is to give to one that has `gap` less.
struct Give {
    from: GroupId,
    gap: u64,
    fair: u64,
}

impl Give {
    /// Whether the group with more of the two has enough less afterwards.
    fn is_useful(&self, weight: u64) -> bool {
        let gain = || self.gap - self.gap.saturating_sub(weight).max(weight);
        weight < self.gap && gain().saturating_mul(1000) >= self.fair * GAIN_MIN
    }
}

impl Planner<'_> {
    /// No group is to have many more requests than another.
    pub(super) fn spread_requests(&mut self) {
        let carried = self.carried(|shard| self.requests(shard));
        let total: u64 = carried.values().sum();
        if carried.len() < 2 || total < self.policy.requests_min {
            return;
        }
        let fair = total / carried.len() as u64;
        let most = carried.values().max().copied().unwrap_or_default();
        let Some((_, least)) = emptiest(&carried) else { return };
        self.plan.apart = are_far_apart(most, least, fair);
        // One look may be the first of a new leader, or at a group that stood still for a moment.
        let lasts = self.facts.was_apart;
        let uneven = |most: u64, least: u64, fair: u64| is_crowded(most, fair) || lasts && is_uneven(most, least, fair);
        if uneven(most, least, fair) {
            self.split_busy(&carried, fair);
        }
        // Each time either a shard moves, and only so many may, or there is one group less to look at.
        let mut stuck = BTreeSet::new();
        loop {
            let carried = self.carried(|shard| self.requests(shard));
            let fair = share(&carried, &stuck);
            let from = fullest(&carried).into_iter().find(|(group, _)| !stuck.contains(group));
            let (Some((from, sum)), Some((to, least))) = (from, emptiest(&carried)) else { return };
            if !uneven(sum, least, fair) {
                return;
            }
            let give = Give { from, gap: sum - least, fair };
            let Some(shard) = self.best_to_move(&give, |shard| self.requests(shard)) else {
                if self.will_give(&give, |shard| self.requests(shard)) {
                    return;
                }
                stuck.insert(from);
                self.say(format!(
                    "{from} has {sum} requests/s, fair are {fair}, and no shard that may move would help"
                ));
                continue;
            };
            let rate = self.requests(shard);
            let why = format!(
                "{shard} with {rate} requests/s moves to {to}: {from} has {sum}, {to} {least}, fair are {fair}"
            );
            self.send(shard, to, why);
        }
    }

    fn split_busy(&mut self, carried: &BTreeMap<GroupId, u64>, fair: u64) {
        let map = self.map;
        if map.shards.len() >= (SHARDS_PER_GROUP_MAX * carried.len()).min(SHARDS_MAX - SPLITS_MAX) {
            return self.say(format!("no shard is split for its load: there are {} already", map.shards.len()));
        }
        let crowded = |group: GroupId| carried.get(&group).is_some_and(|sum| *sum > fair);
        let coarse = map.shards.iter().filter(|shard| {
            // Pieces of one that is pinned could not go anywhere.
            let may = self.is_free(shard) && self.pin_of(shard).is_none();
            crowded(shard.group) && self.requests(shard.id) * 1000 > fair * TOO_COARSE && may
        });
        for shard in coarse.take(SPLITS_MAX).collect::<Vec<_>>() {
            let rate = self.requests(shard.id);
            let Some(load) = self.facts.loads.get(&shard.id) else { continue };
            let inside = load.middle.clone().filter(|key| *key > shard.bounds.start && shard.bounds.contains(key));
            match (inside, load.hottest.first()) {
                (Some(at), _) => {
                    let why =
                        format!("{} is split: it has {rate} requests/s, and a group's fair share is {fair}", shard.id);
                    self.change(shard.id, ShardChange::Split { shard: shard.id, at }, why);
                }
                (None, Some((key, share))) if *share >= 250 => {
                    let (key, share) = (key.escape_ascii().to_string(), share / 10);
                    self.say(format!(
                        "{} has {rate} requests/s, and is not split: {share} % of them are for the one key {key}",
                        shard.id
                    ));
                }
                (None, _) => {
                    self.say(format!("{} has {rate} requests/s; where to split it is not known yet", shard.id))
                }
            }
        }
    }

    /// The shard that may move and brings two groups nearest to each other, if that is worth it.
    fn best_to_move(&self, give: &Give, of: impl Fn(ShardId) -> u64) -> Option<ShardId> {
        let may = self.here(give.from).filter(|shard| self.may_move(shard));
        let useful = may.map(|shard| (of(shard.id), shard.id)).filter(|(weight, _)| give.is_useful(*weight));
        let left = |(weight, id): &(u64, ShardId)| (weight.saturating_mul(2).abs_diff(give.gap), self.bytes(*id), *id);
        useful.min_by_key(left).map(|(_, shard)| shard)
    }

    /// Whether there may be such a shard once what is under way is done: pieces of one that is being split, perhaps.
    fn will_give(&self, give: &Give, of: impl Fn(ShardId) -> u64) -> bool {
        self.here(give.from).filter(|shard| self.pin_of(shard).is_none()).any(|shard| {
            let weight = of(shard.id);
            let changes = self.busy.contains(&shard.id) && weight.saturating_mul(1000) >= give.fair * GAIN_MIN;
            changes || give.is_useful(weight)
        })
    }

    /// The shards that a group has, or will have.
    fn here(&self, group: GroupId) -> impl Iterator<Item = &ShardInfo> {
        self.map.shards.iter().filter(move |shard| self.homes.get(&shard.id) == Some(&group))
    }

    /// Where requests say nothing, or nothing is to be done for them, no group is to hold many more bytes.
    pub(super) fn spread_bytes(&mut self) {
        if !self.plan.steps.is_empty() || !self.map.moves.is_empty() {
            return;
        }
        let takers = self.takers();
        let known = |shard: &ShardInfo| self.facts.loads.get(&shard.id).is_some_and(|load| load.stored.is_some());
        if !self.map.shards.iter().filter(|shard| takers.contains(&shard.group)).all(known) {
            return; // what has not been measured is not empty
        }
        let carried = self.carried(|shard| self.bytes(shard));
        let Some((to, least)) = emptiest(&carried) else { return };
        let mut stuck = BTreeSet::new();
        let (from, most, shard) = loop {
            let fair = share(&carried, &stuck);
            let Some((from, most)) = fullest(&carried).into_iter().find(|(group, _)| !stuck.contains(group)) else {
                return;
            };
            let many = u128::from(most) * 1000 > u128::from(fair) * u128::from(TOO_MANY_BYTES);
            let give = Give { from, gap: most - least, fair };
            if !many || give.gap < self.policy.bytes_min {
                return;
            }
            match self.best_to_move(&give, |shard| self.bytes(shard)) {
                Some(shard) => break (from, most, shard),
                None if self.will_give(&give, |shard| self.bytes(shard)) => return,
                None => stuck.insert(from),
            };
        };
        let requests = self.carried(|shard| self.requests(shard));
        let shared: u64 = requests.values().sum::<u64>() / requests.len().max(1) as u64;
        let of = |group: GroupId| requests.get(&group).copied().unwrap_or(0);
        let rate = self.requests(shard);
        let (after, rest) = (of(to) + rate, of(from).saturating_sub(rate));
        // Else the requests would send it back.
        if shared * requests.len() as u64 >= self.policy.requests_min && is_uneven(after, rest, shared) {
            return self
                .say(format!("{from} holds more bytes than {to}, but {to} would get too many requests with {shard}"));
        }
        let (size, most, least) = (self.bytes(shard) >> 20, most >> 20, least >> 20);
        self.send(shard, to, format!("{shard} with {size} MiB moves to {to}: {from} has {most} MiB, {to} {least}"));
    }

    /// Where nothing is known of a load, the groups are to have about as many shards.
    pub(super) fn spread_counts(&mut self) {
        let requests: u64 = self.carried(|shard| self.requests(shard)).values().sum();
        let bytes: u64 = self.carried(|shard| self.bytes(shard)).values().sum();
        let quiet = requests < self.policy.requests_min && bytes < self.policy.bytes_min;
        if !quiet || !self.plan.steps.is_empty() {
            return;
        }
        loop {
            let carried = self.carried(|_| 1);
            let Some((to, few)) = emptiest(&carried) else { return };
            let gives = |(from, many)| {
                let shard = self.here(from).find(|shard| self.may_move(shard))?;
                Some((from, many, shard.id))
            };
            let more = |(_, many): &(GroupId, u64)| *many > few + 1;
            let Some((from, many, shard)) = fullest(&carried).into_iter().take_while(more).find_map(gives) else {
                return;
            };
            self.send(shard, to, format!("{shard} moves to {to}: {from} has {many} shards, {to} {few}"));
        }
    }
}
