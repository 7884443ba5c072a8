//! What the tests share: small logs, recognisable payloads, and reading back.
#![allow(dead_code, clippy::unwrap_used)]

use bytes::Bytes;
use wal::testdisk::MemDisk;
use wal::{Append, Config, Disk, Log, Lsn, Recovery};

pub const NODE: u64 = 7;

pub fn config() -> Config {
    Config { segment_bytes: 8192 + 8 * 4096, frame_bytes_max: 4 * 4096, ..Config::small(NODE, 42) }
}

/// A payload that says which one it is.
pub fn payload(number: u64, bytes: usize) -> Bytes {
    let mut payload = format!("record {number} ").into_bytes();
    payload.resize(bytes.max(payload.len()), number as u8);
    payload.into()
}

pub fn record(group: u64, number: u64) -> Append {
    Append { group, payload: payload(number, 100), twice: false }
}

pub fn promise(group: u64, number: u64) -> Append {
    Append { twice: true, ..record(group, number) }
}

pub fn open(disk: &MemDisk) -> (Log, Recovery) {
    Log::open(disk.handle(), config()).unwrap()
}

pub fn open_on(disk: Box<dyn Disk>) -> (Log, Recovery) {
    Log::open(disk, config()).unwrap()
}

/// All payloads of a group, in order.
pub fn payloads(recovery: &Recovery, group: u64) -> Vec<Bytes> {
    let records = recovery.groups.get(&group).map(Vec::as_slice).unwrap_or_default();
    records.iter().map(|record| record.payload.clone()).collect()
}

/// The payloads that `record(_, number)` makes.
pub fn expected(numbers: impl IntoIterator<Item = u64>) -> Vec<Bytes> {
    numbers.into_iter().map(|number| payload(number, 100)).collect()
}

pub fn lsns(recovery: &Recovery, group: u64) -> Vec<Lsn> {
    recovery.groups[&group].iter().map(|record| record.lsn).collect()
}

/// A healthy recovery: nothing lost, nothing reported.
pub fn assert_healthy(recovery: &Recovery) {
    assert_eq!(recovery.corrupt_frames, []);
    assert_eq!(recovery.lost, []);
    assert!(recovery.suspects.is_empty(), "suspects {:?}", recovery.suspects);
    assert!(!recovery.promises_lost);
}

pub fn segment(sequence: u64) -> String {
    wal::segment::name(sequence)
}

/// The offset of the n-th frame (from 0) of a segment whose frames take one block each.
pub fn frame_at(n: u64) -> u64 {
    wal::segment::FRAMES_AT + n * 4096
}
