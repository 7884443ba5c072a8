//! The balancer at work: whoever leads the shardmaster gathers what nodes say of the load of their shards, asks
//! [`shardmaster::balance`] what is to be done, and logs it. Nothing of this must survive: the next leader gathers anew,
//! and waits until it knows enough.

use super::lead::Waiter;
use super::scans::{Scan, ScanJob, ScanWork};
use super::{Core, Machine};
use crate::wire::NodeMessage;
use bytes::Bytes;
use paxos::{GroupId, NodeId, Time};
use shardkv::map::{SHARDMASTER_GROUP, ShardChange, ShardInfo};
use shardkv::store::Store;
use shardkv::types::{Epoch, ShardId};
use shardmaster::balance::{Facts, Plan, Policy, Step};
use shardmaster::load::{self, ShardLoad};
use shardmaster::{MasterCommand, SPLIT_KEY_BYTES_MAX};
use std::collections::BTreeMap;

/// What a node has said counts for so long.
const LOADS_LAST_MICROS: u64 = 30_000_000;
/// Between two plans.
const ROUND_MICROS: u64 = 2_000_000;
/// A new leader has heard of all that are busy after this: what has not changed is told again within ten seconds.
const WARM_UP_MICROS: u64 = 12_000_000;
/// A shard that has changed rests: a whole window of its load must have passed.
const REST_MICROS: u64 = 4_000_000;
/// A shard that has had so few requests per second for so long is cold.
const COLD_REQUESTS: u64 = 2;
/// See above.
const COLD_MICROS: u64 = 60_000_000;
/// A shard without a middle is not asked for it again before.
const WHOLE_MICROS: u64 = 600_000_000;
/// The middle of a shard is waited for for so long.
const HALVING_MICROS: u64 = 30_000_000;

/// A shard, as it was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    epoch: Epoch,
    since: Time,
    /// Requests per second, reads and writes, when it was last known.
    rates: (u64, u64),
    cold_since: Option<Time>,
}

/// What a node has said last.
#[derive(Debug)]
struct Told {
    at: Time,
    led: Vec<GroupId>,
    loads: Vec<ShardLoad>,
}

/// Kept in memory by whoever leads the shardmaster.
#[derive(Debug, Default)]
pub(super) struct Balancing {
    told: BTreeMap<NodeId, Told>,
    leads_since: Option<Time>,
    planned_at: Time,
    seen: BTreeMap<ShardId, Seen>,
    /// Shards whose middle is asked for.
    halving: BTreeMap<ShardId, Time>,
    /// Shards that have no middle, and since when that is known.
    whole: BTreeMap<ShardId, Time>,
    plan: Plan,
}

impl<S: Store> Core<S> {
    /// A node says how busy its shards are.
    pub(super) fn loads_told(&mut self, now: Time, from: NodeId, led: Vec<GroupId>, loads: Vec<ShardLoad>) {
        if self.ready_lead(SHARDMASTER_GROUP).is_ok() {
            self.balancing.told.insert(from, Told { at: now, led, loads });
        }
    }

    /// Why the balancer does what it does; empty on a node that does not lead the shardmaster.
    pub(super) fn balance_why(&self) -> Vec<String> {
        match self.ready_lead_exists() {
            true if self.config.balance.is_none() => vec!["this node was started with balancing off".to_owned()],
            true if self.balancing.plan.why.is_empty() => vec!["the load of the shards is being gathered".to_owned()],
            _ => self.balancing.plan.why.clone(),
        }
    }

    fn ready_lead_exists(&self) -> bool {
        self.groups.get(&SHARDMASTER_GROUP).and_then(|group| group.lead.as_ref()).is_some_and(|lead| lead.ready)
    }

    /// Plans a round where it is time, and has it logged.
    pub(super) fn balance(&mut self, now: Time) {
        if self.ready_lead(SHARDMASTER_GROUP).is_err() {
            self.balancing = Balancing::default();
            return;
        }
        let since = *self.balancing.leads_since.get_or_insert(now);
        let Some(policy) = self.config.balance else { return };
        if now.since(self.balancing.planned_at) < ROUND_MICROS {
            return;
        }
        self.balancing.planned_at = now;
        let facts = self.facts(now, policy);
        if now.since(since) < WARM_UP_MICROS {
            return;
        }
        self.balancing.plan = shardmaster::balance::plan(&self.map, &facts, policy);
        for step in self.balancing.plan.steps.clone() {
            tracing::info!(?step, "the balancer");
            match step {
                Step::Change(change) => {
                    self.propose_master(now, Waiter::Nobody, &MasterCommand::ChangeShards(change));
                }
                Step::Halve(shard) => self.ask_for_middle(now, shard),
            }
        }
    }

    /// What is known of the shards, as of now.
    fn facts(&mut self, now: Time, policy: Policy) -> Facts {
        let map = self.map.clone();
        let (beats, me) = (&self.beats, self.config.me);
        let balancing = &mut self.balancing;
        // What a node said before it fell silent would be counted beside what its successor says.
        let counts = |node: &NodeId, told: &Told| {
            now.since(told.at) < LOADS_LAST_MICROS && (*node == me || beats.reaches(now, *node))
        };
        balancing.told.retain(|node, told| counts(node, told));
        balancing.halving.retain(|_, at| now.since(*at) < HALVING_MICROS);
        balancing.whole.retain(|_, at| now.since(*at) < WHOLE_MICROS);
        let told = balancing.told.iter().flat_map(|(node, told)| told.loads.iter().map(|load| (*node, load)));
        let led = balancing.told.values().flat_map(|told| &told.led).copied().collect();
        let whole = balancing.whole.keys().copied().collect();
        let was_apart = balancing.plan.apart;
        let mut facts = Facts { loads: load::sum(told), led, whole, was_apart, ..Facts::default() };
        let before = std::mem::take(&mut balancing.seen);
        for shard in &map.shards {
            let load =
                facts.loads.entry(shard.id).or_insert_with(|| ShardLoad { shard: shard.id, ..Default::default() });
            let told = (load.reads, load.writes);
            let seen = match before.get(&shard.id) {
                Some(seen) if seen.epoch == shard.epoch => *seen,
                Some(seen) => {
                    Seen { epoch: shard.epoch, since: now, rates: after_split(seen.rates, shard, &map.shards), ..*seen }
                }
                None => {
                    // The other half of a split was there before.
                    let twin =
                        map.shards.iter().find(|other| is_twin(other, shard)).and_then(|twin| before.get(&twin.id));
                    let rates = twin.map_or((0, 0), |twin| (twin.rates.0 / 2, twin.rates.1 / 2));
                    Seen { epoch: shard.epoch, since: now, rates, cold_since: None }
                }
            };
            let rests = now.since(seen.since) < REST_MICROS && !before.is_empty();
            // Where it has just come, or become another, its requests are not all counted yet.
            let rates = if rests { (told.0.max(seen.rates.0), told.1.max(seen.rates.1)) } else { told };
            (load.reads, load.writes) = rates;
            let small = load.stored.is_some_and(|stored| stored.bytes < policy.split_bytes);
            let cold = small && rates.0 + rates.1 <= COLD_REQUESTS && !rests;
            let cold_since = cold.then(|| seen.cold_since.unwrap_or(now));
            if rests || balancing.halving.contains_key(&shard.id) {
                facts.resting.insert(shard.id);
            }
            if cold_since.is_some_and(|since| now.since(since) >= COLD_MICROS) {
                facts.cold.insert(shard.id);
            }
            let rates = if rests { seen.rates } else { rates };
            balancing.seen.insert(shard.id, Seen { rates, cold_since, ..seen });
        }
        facts.loads.retain(|shard, _| balancing.seen.contains_key(shard));
        facts
    }

    /// At the shardmaster: the leader of a shard's group is asked where its middle is.
    fn ask_for_middle(&mut self, now: Time, id: ShardId) {
        let Some((group, epoch)) = self.map.shard(id).map(|shard| (shard.group, shard.epoch)) else { return };
        let Some(leader) = self.leader_of(group) else { return };
        self.balancing.halving.insert(id, now);
        match leader == self.config.me {
            true => self.halve(now, self.config.me, group, id, epoch),
            false => self.out.send.push((leader, NodeMessage::Halve { group, shard: id, epoch })),
        }
    }

    /// At a group's leader: the shardmaster's asks where the middle of a shard is.
    pub(super) fn halve(&mut self, now: Time, from: NodeId, group: GroupId, shard: ShardId, epoch: Epoch) {
        let leads = self.groups.get(&group).is_some_and(|it| {
            matches!(it.machine, Machine::Data(_)) && it.lead.as_ref().is_some_and(|lead| lead.ready)
        });
        if !leads || self.scans.len() >= self.config.limits.scans_max {
            return;
        }
        self.next_scan += 1;
        let (number, work, expires) = (self.next_scan, ScanWork::Middle { shard, epoch }, now.plus(HALVING_MICROS));
        self.out.scans.push(ScanJob { number, group, work, expires });
        self.scans.insert(number, Scan::Halve { node: from, shard, epoch });
    }

    /// At a group's leader: the middle was found, or there is none.
    pub(super) fn halved(&mut self, now: Time, node: NodeId, shard: ShardId, epoch: Epoch, at: Option<Bytes>) {
        match node == self.config.me {
            true => self.split_there(now, shard, epoch, at),
            false => self.out.send.push((node, NodeMessage::Halved { shard, epoch, at })),
        }
    }

    /// At the shardmaster: a shard that was to be split has its middle here.
    pub(super) fn split_there(&mut self, now: Time, shard: ShardId, epoch: Epoch, at: Option<Bytes>) {
        let asked = self.balancing.halving.remove(&shard).is_some();
        let Some(at) = at.filter(|key| key.len() <= SPLIT_KEY_BYTES_MAX) else {
            self.balancing.whole.insert(shard, now);
            return;
        };
        let same = self.map.shard(shard).is_some_and(|known| known.epoch == epoch);
        if asked && same && !self.map.balance.paused && self.ready_lead(SHARDMASTER_GROUP).is_ok() {
            let change = ShardChange::Split { shard, at };
            self.propose_master(now, Waiter::Nobody, &MasterCommand::ChangeShards(change));
        }
    }
}

/// Whether two shards were made by the same split.
fn is_twin(other: &ShardInfo, shard: &ShardInfo) -> bool {
    other.id != shard.id && other.by == shard.by && other.by.0 > 0
}

/// The requests of a shard that has changed: half of them, if it was split.
fn after_split(rates: (u64, u64), shard: &ShardInfo, all: &[ShardInfo]) -> (u64, u64) {
    match all.iter().any(|other| is_twin(other, shard)) {
        true => (rates.0 / 2, rates.1 / 2),
        false => rates,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::CoreConfig;
    use paxos::election::Status;
    use shardkv::MemoryStore;
    use shardkv::map::ShardMap;
    use shardkv::types::{Bounds, MoveId};
    use std::sync::Arc;

    /// n2 led a group and fell silent: what it said of its shards would be counted beside what n3 says, who leads now.
    #[test]
    fn what_a_node_said_before_it_fell_silent_does_not_count() {
        let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3]), Vec::new(), Time(0));
        let (bounds, by) = (Bounds::default(), MoveId(0));
        let shard = ShardInfo { id: ShardId(1), bounds, group: GroupId(2), epoch: Epoch(1), by };
        core.map = Arc::new(ShardMap { version: 1, shards: vec![shard], ..ShardMap::default() });
        let load = ShardLoad { shard: ShardId(1), epoch: Epoch(1), reads: 100, writes: 10, ..ShardLoad::default() };
        let told = |at| Told { at, led: vec![GroupId(2)], loads: vec![load.clone()] };
        let (then, now) = (Time(1_000_000), Time(9_000_000));
        core.hear(then, NodeId(2), Status::default());
        core.balancing.told.insert(NodeId(2), told(then));
        core.hear(now, NodeId(3), Status::default());
        core.balancing.told.insert(NodeId(3), told(now));
        let facts = core.facts(now, Policy::default());
        assert_eq!(facts.loads[&ShardId(1)].reads, 100, "{facts:?}");
    }
}
