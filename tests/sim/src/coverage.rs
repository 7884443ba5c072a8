//! Counters of what really happened. A run in which nothing interesting happens proves nothing.

use std::collections::BTreeMap;
use std::fmt;

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

/// What a run over many seeds must have seen, and how often for each thirty of them; with 1 once at all, and with 0 once in
/// [`SEEDS_FOR_RARE`]: thirty may be without by chance.
pub const REQUIRED: &[(&str, u64)] = &[
    ("accept_sync", 300),
    ("apply.at_once", 300),
    ("apply.entries", 3_000),
    ("client.acknowledged", 3_000),
    ("client.compacted", 20),
    ("client.deleted_range", 20),
    ("client.refused", 20),
    ("client.unknown", 20),
    ("crash.long", 5),
    ("crash.power", 50),
    ("crash.process", 20),
    ("crash.torn", 0),
    ("digests.fenced", 0),
    ("digests.spoiled", 10),
    ("disk.full", 0),
    ("disk.fsync_error", 5),
    ("disk.slow", 5),
    ("election", 300),
    ("fetch", 20),
    ("gateway.crash", 20),
    ("gateway.retries", 300),
    ("group_commit.shared", 50),
    ("groups.created", 5),
    ("groups.removed", 2),
    ("handover", 20),
    ("history.collected", 20),
    ("members.changed", 50),
    ("members.closed", 20),
    ("members.opened", 20),
    ("members.wanted", 50),
    ("moves.wanted", 300),
    ("net.cut", 10),
    ("net.duplicate", 100),
    ("net.latency_spike", 100),
    ("net.lost", 100),
    ("net.one_way_cut", 5),
    ("net.stranger", 1),
    ("nodes.joined", 2),
    ("nodes.removed", 2),
    ("nodes.wiped", 2),
    ("nodes.wiped_beside_another", 1),
    ("pause", 10),
    ("reads.at_old_revision", 100),
    ("reads.over_groups", 300),
    ("reads.scanned", 300),
    ("retire", 2),
    ("rot", 2),
    ("rot.suspect", 0),
    ("segments.released", 50),
    ("session.expired", 1),
    ("shards.changed", 50),
    ("shards.merged", 5),
    ("shards.split", 10),
    ("snapshot.installed", 20),
    ("snapshot.read", 50),
    ("store.batches_lost", 50),
    ("store.flushed", 50),
    ("stream.changes", 300),
    ("sync.in_pieces", 50),
];

/// What is rare happens in so many seeds.
const SEEDS_FOR_RARE: u64 = 1_000;

impl Coverage {
    /// Counts one.
    pub fn hit(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts several.
    pub fn add(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// A counter.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Adds another run's counters.
    pub fn merge(&mut self, other: &Coverage) {
        for (name, count) in &other.0 {
            self.add(name, *count);
        }
    }

    /// What of [`REQUIRED`] happened too seldom in so many seeds, and how often.
    pub fn missing(&self, seeds: u64) -> Vec<(&'static str, u64)> {
        // Not a thousand times as often in a thousand times as many: the rare ones need luck.
        let times = (seeds / 30).clamp(1, 10);
        let least = |least: u64| match least {
            0 => u64::from(seeds >= SEEDS_FOR_RARE),
            1 => 1,
            more => more * times,
        };
        let seen = REQUIRED.iter().map(|(name, count)| (*name, self.get(name), least(*count)));
        seen.filter(|(_, count, least)| count < least).map(|(name, count, _)| (name, count)).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.0 {
            writeln!(f, "  {name:<28} {count}")?;
        }
        Ok(())
    }
}
