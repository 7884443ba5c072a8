//! The log's public values: what is appended, how it is configured, what a sync answers.

use bytes::Bytes;
use std::fmt;

/// A log sequence number: the position of a record in the node's log, counted in records from 1.
/// `Lsn(0)` means "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN `records` behind this one.
    pub fn plus(self, records: u64) -> Lsn {
        Lsn(self.0.saturating_add(records))
    }
    /// The LSN before this one; 0 stays 0.
    pub fn prev(self) -> Lsn {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The group that the record belongs to.
    pub group: u64,
    /// The record's bytes; the log never looks into them.
    pub payload: Bytes,
    /// A promise: nobody else can repair it, so it is written a second time in a later frame, and
    /// counts as durable only when both copies are.
    pub twice: bool,
}

/// Where the log stands after a successful append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Every record up to and including this one is durable.
    pub durable: Lsn,
    /// The sequence number of the segment in which this append's first record lies. A reclaim that
    /// rewrote its state with this append may release segments strictly below it.
    pub first_segment: u64,
    /// The sequence number of the segment in which this append's last record lies.
    pub segment: u64,
}

/// The log's settings. [`Config::new`] gives the values meant for production.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node that owns the directory; a log of another node refuses to open.
    pub node: u64,
    /// Seed of the segments' salts. In production a fresh random number per start; in the simulator
    /// part of the seed. It makes sure that no bytes stored by a client can pass for a frame.
    pub salt_seed: u64,
    /// Size of a segment file. A multiple of 4 KiB that holds at least one frame of the largest size.
    pub segment_bytes: u64,
    /// The largest frame; larger appends become several frames with a sync each.
    pub frame_bytes_max: u64,
    /// Bound of the thread's queue; an append beyond it is refused at once.
    pub queue_bytes_max: u64,
    /// The most that the thread takes from its queue for one group commit.
    pub batch_bytes_max: u64,
    /// The most records that the thread takes from its queue for one group commit.
    pub batch_records_max: usize,
    /// How many recycled segments are kept for reuse; more are deleted.
    pub spares_max: usize,
    /// How long the queue stays empty before the thread writes a frame that is only a durable mark.
    pub idle_mark_millis: u64,
    /// How often the thread looks whether a full disk has space again.
    pub full_retry_millis: u64,
}

impl Config {
    /// The settings meant for production.
    pub fn new(node: u64, salt_seed: u64) -> Config {
        Config {
            node,
            salt_seed,
            segment_bytes: 64 << 20,
            frame_bytes_max: 4 << 20,
            queue_bytes_max: 8 << 20,
            batch_bytes_max: 1 << 20,
            batch_records_max: 1024,
            spares_max: 2,
            idle_mark_millis: 10,
            full_retry_millis: 200,
        }
    }

    /// Small segments and frames, for tests and the simulator.
    pub fn small(node: u64, salt_seed: u64) -> Config {
        Config { segment_bytes: 64 << 10, frame_bytes_max: 16 << 10, ..Config::new(node, salt_seed) }
    }

    /// The largest payload that one record may have.
    pub fn record_bytes_max(&self) -> usize {
        let overhead = crate::frame::HEADER_BYTES + crate::frame::RECORD_HEADER_BYTES;
        usize::try_from(self.frame_bytes_max).unwrap_or(usize::MAX).saturating_sub(overhead)
    }
}
