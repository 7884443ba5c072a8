//! Limits: everything that could grow without bound, and where it stops.

use super::error::ConfigError;
use super::layers::Layers;
use super::value;
use std::ops::RangeInclusive;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Limits of a node, units last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A client's request, at most this long.
    pub request_bytes_max: u64,
    /// Operations of a transaction, nested ones included.
    pub txn_operations_max: u64,
    /// Entries that one stage takes from its queue at once.
    pub batch_entries_max: u64,
    /// Bytes that one stage takes from its queue at once.
    pub batch_bytes_max: u64,
    /// Slots of a group that are proposed and not yet decided.
    pub group_slots_max: u64,
    /// Proposals of all groups of a node that are not yet answered.
    pub proposal_bytes_max: u64,
    /// Connections open at one port.
    pub connections_max: u64,
    /// Queued for one peer.
    pub peer_queue_bytes_max: u64,
    /// Queued for the log's thread.
    pub wal_queue_bytes_max: u64,
    /// Decided and not yet applied.
    pub apply_lag_bytes_max: u64,
    /// A segment of the log.
    pub wal_segment_bytes: u64,
    /// A shard that takes more in storage is split.
    pub shard_bytes_max: u64,
    /// Of a shard that moves, per second.
    pub move_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request_bytes_max: 1536 * KIB,
            txn_operations_max: 128,
            batch_entries_max: 1024,
            batch_bytes_max: MIB,
            group_slots_max: 8,
            proposal_bytes_max: 64 * MIB,
            connections_max: 8192,
            peer_queue_bytes_max: 16 * MIB,
            wal_queue_bytes_max: 8 * MIB,
            apply_lag_bytes_max: 64 * MIB,
            wal_segment_bytes: 64 * MIB,
            shard_bytes_max: 512 * MIB,
            move_bytes_per_second: 32 * MIB,
        }
    }
}

impl Limits {
    /// Reads and checks all limits.
    pub(super) fn resolve(layers: &Layers) -> Result<Limits, ConfigError> {
        let default = Limits::default();
        let count = |key, default, bounds| read(layers, key, default, bounds, value::number);
        let bytes = |key, default, bounds| read(layers, key, default, bounds, value::bytes);
        let limits = Limits {
            request_bytes_max: bytes("request-bytes-max", default.request_bytes_max, KIB..=16 * MIB)?,
            txn_operations_max: count("txn-operations-max", default.txn_operations_max, 1..=65_536)?,
            batch_entries_max: count("batch-entries-max", default.batch_entries_max, 1..=65_536)?,
            batch_bytes_max: bytes("batch-bytes-max", default.batch_bytes_max, KIB..=64 * MIB)?,
            group_slots_max: count("group-slots-max", default.group_slots_max, 1..=256)?,
            proposal_bytes_max: bytes("proposal-bytes-max", default.proposal_bytes_max, KIB..=16 * GIB)?,
            connections_max: count("connections-max", default.connections_max, 8..=1_000_000)?,
            peer_queue_bytes_max: bytes("peer-queue-bytes-max", default.peer_queue_bytes_max, KIB..=16 * GIB)?,
            wal_queue_bytes_max: bytes("wal-queue-bytes-max", default.wal_queue_bytes_max, KIB..=16 * GIB)?,
            apply_lag_bytes_max: bytes("apply-lag-bytes-max", default.apply_lag_bytes_max, KIB..=16 * GIB)?,
            wal_segment_bytes: bytes("wal-segment-bytes", default.wal_segment_bytes, 32 * MIB..=GIB)?,
            shard_bytes_max: bytes("shard-bytes-max", default.shard_bytes_max, MIB..=1024 * GIB)?,
            move_bytes_per_second: bytes("move-bytes-per-second", default.move_bytes_per_second, KIB..=16 * GIB)?,
        };
        limits.check_order(layers)?;
        Ok(limits)
    }

    /// What passes an early stage must fit into every later one, or it waits there for ever.
    fn check_order(&self, layers: &Layers) -> Result<(), ConfigError> {
        let stages = [
            ("proposal-bytes-max", self.proposal_bytes_max),
            ("peer-queue-bytes-max", self.peer_queue_bytes_max),
            ("wal-queue-bytes-max", self.wal_queue_bytes_max),
            ("apply-lag-bytes-max", self.apply_lag_bytes_max),
            ("wal-segment-bytes", self.wal_segment_bytes),
        ];
        // Twice: a batch holds one request beside its headers.
        let needed = 2 * self.request_bytes_max;
        // A frame of the log holds an entry twice as large as ours, and a segment two frames: other nodes'
        // limits may differ.
        let entry = self.batch_bytes_max.max(needed);
        if self.wal_segment_bytes < 4 * entry {
            return Err(layers.get("wal-segment-bytes", "").bad(format!(
                "{} bytes cannot hold the largest entries: write at least {} (four times batch-bytes-max, and eight \
                 times request-bytes-max), or lower those",
                self.wal_segment_bytes,
                4 * entry
            )));
        }
        match stages.iter().find(|(_, size)| *size < needed) {
            None => Ok(()),
            Some((key, size)) => Err(layers.get(key, "").bad(format!(
                "{size} bytes cannot hold the largest request: write at least {needed} (twice request-bytes-max), or \
                 lower request-bytes-max"
            ))),
        }
    }
}

fn read(
    layers: &Layers,
    key: &str,
    default: u64,
    bounds: RangeInclusive<u64>,
    parse: fn(&str, RangeInclusive<u64>) -> Result<u64, String>,
) -> Result<u64, ConfigError> {
    let setting = layers.get(key, &default.to_string());
    parse(setting.text()?, bounds).map_err(|problem| setting.bad(problem))
}
