//! How busy the shards are that are served here: requests per second, a sample of the keys asked for, and, of the
//! groups led here, what the shards hold. The shardmaster's leader is told, and whoever asks the node.
//!
//! A request costs a count and, now and then, a copy of its key; idle shards cost nothing.

use super::scans::{Scan, ScanJob, ScanWork};
use super::{Core, Machine};
use crate::wire::NodeMessage;
use bytes::Bytes;
use paxos::{GroupId, Time};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::Op;
use shardkv::store::Store;
use shardkv::types::{Epoch, ShardId};
use shardkv::{Measured, OwnedShard};
use shardmaster::load::{HOTTEST_MAX, ShardLoad, Stored};
use std::collections::{BTreeMap, BTreeSet};

/// Requests are counted over so long.
const WINDOW_MICROS: u64 = 2_000_000;
/// What is told again though nothing has changed: after so many windows.
const WINDOWS_PER_REFRESH: u32 = 5;
/// Keys remembered per shard and window.
const SAMPLE_KEYS: usize = 64;
/// Fewer say nothing.
const SAMPLE_KEYS_MIN: usize = 16;
/// Shards that are counted at all in a window.
const SHARDS_MAX: usize = 16_384;
/// Of a key in a sample; a shard may as well be cut at the beginning of one.
const SAMPLE_KEY_BYTES: usize = 128;
/// What a group's shards hold is measured no more often.
const MEASURE_MICROS: u64 = 10_000_000;
/// A measurement that waits for so long is not wanted any more.
const MEASURE_LIMIT_MICROS: u64 = 30_000_000;
/// A cut leaves at most this share of the requests on one side, in thousandths, or it is not worth it.
const LARGER_SIDE_MAX: usize = 750;

/// The requests to a shard in one window.
#[derive(Debug, Default)]
struct Counter {
    reads: u64,
    writes: u64,
    sample: Vec<Bytes>,
}

/// What is known of a shard's requests lately.
#[derive(Debug, Default)]
struct Rates {
    reads: u64,
    writes: u64,
    /// Sorted.
    sample: Vec<Bytes>,
}

#[derive(Debug, Default)]
struct Held {
    at: Option<Time>,
    /// Bytes that the group had applied then.
    applied_bytes: u64,
    /// By shard, with the epoch at which it was measured.
    stored: BTreeMap<ShardId, (Epoch, Stored)>,
}

/// The load of this node's shards.
#[derive(Debug, Default)]
pub(super) struct Meter {
    began: Time,
    counters: BTreeMap<ShardId, Counter>,
    rates: BTreeMap<ShardId, Rates>,
    measured: BTreeMap<GroupId, Held>,
    /// One at a time: clients' ranges are read by the same threads.
    measuring: bool,
    /// What the shardmaster was told last, and windows since then.
    told: (Vec<GroupId>, Vec<ShardLoad>),
    windows: u32,
    draws: u64,
}

impl Meter {
    /// A request to shards of a group here.
    pub(super) fn count(&mut self, shards: impl Iterator<Item = ShardId>, op: &Op, writes: bool) {
        for shard in shards {
            if self.counters.len() >= SHARDS_MAX && !self.counters.contains_key(&shard) {
                continue;
            }
            let counter = self.counters.entry(shard).or_default();
            let seen = counter.reads + counter.writes;
            (counter.reads, counter.writes) = (counter.reads + u64::from(!writes), counter.writes + u64::from(writes));
            // Every request has the same chance to be in the sample at the window's end (Vitter's algorithm R).
            self.draws = self.draws.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let place = match counter.sample.len() {
                free if free < SAMPLE_KEYS => free,
                _ => (mixed(self.draws) % (seen + 1)) as usize,
            };
            if place >= SAMPLE_KEYS {
                continue;
            }
            let Some(key) = op.first_key() else { continue };
            let key = Bytes::copy_from_slice(&key[..key.len().min(SAMPLE_KEY_BYTES)]);
            match counter.sample.get_mut(place) {
                Some(old) => *old = key,
                None => counter.sample.push(key),
            }
        }
    }

    fn roll(&mut self, now: Time) {
        let micros = now.since(self.began).max(1);
        self.began = now;
        let mut counters = std::mem::take(&mut self.counters);
        for shard in self.rates.keys() {
            counters.entry(*shard).or_default();
        }
        for (shard, counter) in counters {
            let is_new = !self.rates.contains_key(&shard);
            let rates = self.rates.entry(shard).or_default();
            let smooth = |before: u64, count: u64| (before + count * 1_000_000 / micros).div_ceil(2);
            // An end, or it would approach it for ever.
            let smooth = |before, count| match (before, count) {
                _ if is_new => count * 1_000_000 / micros,
                (0 | 1, 0) => 0,
                _ => smooth(before, count),
            };
            (rates.reads, rates.writes) = (smooth(rates.reads, counter.reads), smooth(rates.writes, counter.writes));
            if counter.sample.len() >= SAMPLE_KEYS_MIN {
                rates.sample = counter.sample;
                rates.sample.sort_unstable();
            }
        }
        self.rates.retain(|_, rates| rates.reads + rates.writes > 0);
    }
}

/// The finish of splitmix64.
fn mixed(number: u64) -> u64 {
    let mixed = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

/// The key of a sorted sample that halves it best; `None` where one key has most of it.
fn middle(sample: &[Bytes]) -> Option<Bytes> {
    if sample.len() < SAMPLE_KEYS_MIN {
        return None;
    }
    let cuts = (1..sample.len()).filter(|at| sample[*at] != sample[at - 1]);
    let larger = |at: &usize| (*at).max(sample.len() - at);
    let best = cuts.min_by_key(larger)?;
    (larger(&best) * 1000 <= sample.len() * LARGER_SIDE_MAX).then(|| sample[best].clone())
}

/// The keys that a sorted sample has most often, with their shares in thousandths of so many requests.
fn hottest(sample: &[Bytes], requests: usize) -> Vec<(Bytes, u32)> {
    let mut runs: Vec<(usize, &Bytes)> =
        sample.chunk_by(|a, b| a == b).filter(|run| run.len() > 1).map(|run| (run.len(), &run[0])).collect();
    runs.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let share = |count: usize| (count * 1000 / requests) as u32;
    runs.into_iter().take(HOTTEST_MAX).map(|(count, key)| (key.clone(), share(count))).collect()
}

impl<S: Store> Core<S> {
    /// Ends a window where it is time, and tells what it has shown.
    pub(super) fn weigh(&mut self, now: Time) {
        if now.since(self.meter.began) < WINDOW_MICROS {
            return;
        }
        self.meter.roll(now);
        self.measure_led(now);
        let loads = self.loads();
        self.meter.windows += 1;
        // Who cannot write does not take part in balancing.
        let ready = |group: &super::Group<S>| group.lead.as_ref().is_some_and(|lead| lead.ready);
        let led = self.groups.iter().filter(|(_, group)| ready(group) && !self.no_space);
        let led: Vec<GroupId> = led.map(|(id, _)| *id).collect();
        let told = (led.clone(), loads.clone());
        if told == self.meter.told && self.meter.windows < WINDOWS_PER_REFRESH {
            return;
        }
        let Some(leader) = self.leader_of(SHARDMASTER_GROUP) else { return };
        self.meter.windows = 0;
        self.meter.told = told;
        match leader == self.config.me {
            true => self.loads_told(now, leader, led, loads),
            false => self.out.send.push((leader, NodeMessage::Loads { led, loads })),
        }
    }

    /// Of every shard that is served here, or led here.
    pub(super) fn loads(&self) -> Vec<ShardLoad> {
        let mut loads: BTreeMap<ShardId, ShardLoad> = BTreeMap::new();
        for (id, group) in &self.groups {
            let Machine::Data(reader) = &group.machine else { continue };
            let led = group.lead.as_ref().is_some_and(|lead| lead.ready);
            let measured = self.meter.measured.get(id).filter(|_| led);
            for OwnedShard { id: shard, bounds, epoch, .. } in reader.shards() {
                let rates = self.meter.rates.get(&shard);
                if !led && rates.is_none() {
                    continue;
                }
                let sample = rates.map_or(&[][..], |rates| &rates.sample);
                let requests = sample.len();
                // A range may begin before the shard: where it does says nothing of the keys here.
                let sample: Vec<Bytes> = sample.iter().filter(|key| bounds.contains(key)).cloned().collect();
                let (reads, writes) = rates.map_or((0, 0), |rates| (rates.reads, rates.writes));
                let stored = measured.and_then(|measured| measured.stored.get(&shard).copied());
                let stored = stored.filter(|(at, _)| *at == epoch).map(|(_, stored)| stored);
                let (middle, hottest) = (middle(&sample), hottest(&sample, requests));
                loads.insert(shard, ShardLoad { shard, epoch, reads, writes, stored, middle, hottest });
            }
        }
        loads.into_values().collect()
    }

    /// Has the shards of groups led here measured, where something was written since the last time.
    fn measure_led(&mut self, now: Time) {
        let led = |group: &super::Group<S>| group.lead.as_ref().is_some_and(|lead| lead.ready);
        let data = self.groups.iter().filter(|(id, group)| **id != SHARDMASTER_GROUP && led(group));
        let led: Vec<(GroupId, u64)> = data.map(|(id, group)| (*id, group.tally.applied_bytes)).collect();
        let ids: BTreeSet<GroupId> = led.iter().map(|(id, _)| *id).collect();
        self.meter.measured.retain(|id, _| ids.contains(id));
        for (group, applied_bytes) in led {
            let measured = self.meter.measured.entry(group).or_default();
            let fresh = measured.at.is_some_and(|at| now.since(at) < MEASURE_MICROS);
            let same = measured.at.is_some() && measured.applied_bytes == applied_bytes;
            if self.meter.measuring || fresh || same || self.scans.len() >= self.config.limits.scans_max {
                continue;
            }
            (measured.at, measured.applied_bytes) = (Some(now), applied_bytes);
            self.meter.measuring = true;
            self.next_scan += 1;
            let (number, work, expires) = (self.next_scan, ScanWork::Measure, now.plus(MEASURE_LIMIT_MICROS));
            self.out.scans.push(ScanJob { number, group, work, expires });
            self.scans.insert(number, Scan::Measure { group });
        }
    }

    /// A measurement has ended; without a result it is made anew later.
    pub(super) fn measured(&mut self, group: GroupId, result: Option<Vec<Measured>>) {
        self.meter.measuring = false;
        let Some(held) = self.meter.measured.get_mut(&group) else { return };
        let Some(measured) = result else {
            held.at = None;
            return;
        };
        let stored = |it: Measured| (it.shard, (it.epoch, Stored { bytes: it.bytes, keys: it.keys }));
        held.stored = measured.into_iter().map(stored).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::CoreConfig;
    use crate::core::testing::{owner, owner_of};
    use shardkv::ops::Range;
    use shardkv::types::{Bounds, Keys};

    fn read(key: impl Into<Bytes>) -> Op {
        Op::Range(Range::all(Keys::One(key.into())))
    }

    #[test]
    fn requests_are_counted_and_forgotten() {
        let mut meter = Meter::default();
        let shard = ShardId(1);
        for number in 0..2000 {
            meter.count([shard].into_iter(), &read(format!("k{:03}", number % 100)), number % 4 == 0);
        }
        meter.roll(Time(WINDOW_MICROS));
        let rates = &meter.rates[&shard];
        assert_eq!((rates.reads, rates.writes), (750, 250));
        let cut = middle(&rates.sample).expect("no key is hot");
        assert!(cut > "k025" && cut < "k075", "{cut:?}");
        for window in 2..20 {
            meter.roll(Time(window * WINDOW_MICROS));
        }
        assert!(meter.rates.is_empty() && meter.counters.is_empty());
    }

    #[test]
    fn a_hot_key_is_named_and_not_cut_at() {
        let mut meter = Meter::default();
        for number in 0..1000 {
            let key = if number % 10 == 0 { format!("other{number}") } else { "hot".to_owned() };
            meter.count([ShardId(1)].into_iter(), &read(key), false);
        }
        meter.roll(Time(WINDOW_MICROS));
        let rates = &meter.rates[&ShardId(1)];
        assert_eq!(middle(&rates.sample), None);
        let hottest = hottest(&rates.sample, rates.sample.len());
        assert!(hottest[0].0 == "hot" && hottest[0].1 > 700, "{hottest:?}");
    }

    #[test]
    fn two_hot_keys_are_parted() {
        let sample: Vec<Bytes> = (0..40).map(|n| if n < 20 { "a".into() } else { "b".into() }).collect();
        assert_eq!(middle(&sample), Some("b".into()));
        assert_eq!(middle(&sample[..20]), None);
        assert_eq!(middle(&sample[..4]), None, "too few");
    }

    /// Scans of everything begin where no shard but the first has a key.
    #[test]
    fn where_a_range_begins_before_the_shard_is_no_key_of_it() {
        let (id, shard) = (GroupId(2), ShardId(1));
        let bounds = Bounds { start: "m".into(), end: None };
        let (hosted, _group) = owner_of(id, shard, bounds, Epoch(1));
        let mut core = Core::new(CoreConfig::among(&[1, 2, 3]), vec![hosted], Time(0));
        core.leads(id);
        let scan = Op::Range(Range::all(Keys::From("a".into())));
        for number in 0..400 {
            core.meter.count([shard].into_iter(), &scan, false);
            core.meter.count([shard].into_iter(), &read(format!("m{:03}", number % 200)), false);
        }
        core.meter.roll(Time(WINDOW_MICROS));
        let loads = core.loads();
        assert!(loads[0].middle.as_ref().is_some_and(|key| key > "m"), "{loads:?}");
        assert!(loads[0].hottest.iter().all(|(key, share)| key > "m" && *share < 200), "{loads:?}");
    }

    /// A size that was measured before a split counts what is behind it, too.
    #[test]
    fn a_size_counts_only_for_the_epoch_that_it_was_measured_at() {
        let (id, shard) = (GroupId(2), ShardId(1));
        let (hosted, _group) = owner(id, shard, Epoch(5));
        let mut core = Core::new(CoreConfig::among(&[1, 2, 3]), vec![hosted], Time(0));
        core.leads(id);
        let stored = |core: &mut Core<_>, epoch| {
            core.meter.measured.insert(id, Held::default());
            core.measured(id, Some(vec![Measured { shard, epoch, bytes: 1000, keys: 10 }]));
            core.loads().iter().map(|load| load.stored.map(|stored| stored.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(stored(&mut core, Epoch(4)), [None]);
        assert_eq!(stored(&mut core, Epoch(5)), [Some(1000)]);
    }
}
