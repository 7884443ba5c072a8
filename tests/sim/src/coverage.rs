//! Counters of what really happened. A run in which nothing interesting happens proves nothing.

use std::collections::BTreeMap;
use std::fmt;

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

/// What a run over many seeds must have seen.
pub const REQUIRED: &[&str] = &[
    "accept_sync",
    "apply.at_once",
    "apply.entries",
    "client.acknowledged",
    "client.compacted",
    "client.refused",
    "client.unknown",
    "crash.power",
    "crash.process",
    "crash.torn",
    "disk.full",
    "disk.fsync_error",
    "election",
    "fetch",
    "gateway.crash",
    "gateway.retries",
    "group_commit.shared",
    "groups.created",
    "groups.removed",
    "handover",
    "members.changed",
    "members.closed",
    "members.opened",
    "members.wanted",
    "net.cut",
    "net.duplicate",
    "net.latency_spike",
    "net.lost",
    "net.one_way_cut",
    "nodes.joined",
    "nodes.removed",
    "nodes.wiped",
    "pause",
    "reads.at_old_revision",
    "reads.over_groups",
    "reads.scanned",
    "retire",
    "rot",
    "rot.suspect",
    "segments.released",
    "sync.in_pieces",
    "session.expired",
    "shards.merged",
    "shards.split",
    "snapshot.installed",
    "snapshot.read",
    "store.batches_lost",
    "store.flushed",
    "history.collected",
];

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

    /// What of [`REQUIRED`] did not happen.
    pub fn missing(&self) -> Vec<&'static str> {
        REQUIRED.iter().copied().filter(|name| self.get(name) == 0).collect()
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
