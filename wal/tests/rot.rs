//! Rot: below a durable mark it is reported and never cut; above every mark it passes for a torn
//! tail. And which groups and promises it makes doubtful.
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_healthy, config, expected, frame_at, open, payload, payloads, promise, record, segment};
use std::collections::BTreeSet;
use wal::testdisk::MemDisk;
use wal::{Append, BadFrame, Config, Log, Lsn, OpenError, Recovery};

/// A log with one record per frame, `groups[n]` in frame n.
fn log_of(groups: &[u64]) -> MemDisk {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    for (group, number) in groups.iter().zip(0..) {
        log.append(&[record(*group, number)]).unwrap();
    }
    disk
}

fn suspects(recovery: &Recovery) -> Vec<u64> {
    recovery.suspects.iter().copied().collect()
}

#[test]
fn any_flipped_bit_of_a_frame_is_reported_and_costs_only_that_frame() {
    let disk = log_of(&[1, 2, 1, 2, 1]);
    disk.restart();
    for byte in 0..96 + 29 + 100 {
        let disk = disk.fork();
        assert!(disk.flip_bit(&segment(1), frame_at(2) + byte, byte as u8));
        let (mut log, recovery) = open(&disk);
        // Zeros behind the header's fields are covered by its checksum, too.
        assert_eq!(recovery.corrupt_frames.len(), 1, "byte {byte}");
        let corrupt = recovery.corrupt_frames[0];
        assert_eq!((corrupt.segment, corrupt.offset), (1, frame_at(2)), "byte {byte}");
        assert_eq!((corrupt.lsns.first, corrupt.lsns.end), (Lsn(3), Lsn(4)), "byte {byte}");
        assert_eq!(payloads(&recovery, 1), expected([0, 4]), "byte {byte}");
        assert_eq!(payloads(&recovery, 2), expected([1, 3]), "byte {byte}");
        // Group 2's chain passes over the hole; group 1's is broken there.
        assert_eq!(suspects(&recovery), [1], "byte {byte}");
        assert!(recovery.is_suspect(9) && !recovery.is_suspect(2));
        assert!(!recovery.promises_lost && recovery.torn_tail.is_none());
        // Nothing was cut: the log goes on behind the last frame, and the rot is still reported.
        log.append(&[record(2, 5)]).unwrap();
        drop(log);
        let (_, again) = open(&disk);
        assert_eq!(again.corrupt_frames, recovery.corrupt_frames);
        assert_eq!(payloads(&again, 2), expected([1, 3, 5]));
    }
}

#[test]
fn a_group_without_later_records_is_suspect() {
    let disk = log_of(&[1, 2, 3, 2, 2]);
    disk.restart();
    disk.flip_bit(&segment(1), frame_at(2), 0);
    let (_, recovery) = open(&disk);
    assert_eq!(suspects(&recovery), [1]);
    assert!(recovery.is_suspect(3), "group 3's only record is the lost one");
}

#[test]
fn the_head_of_a_chain_is_missed_too() {
    let disk = log_of(&[1, 1, 1]);
    disk.restart();
    disk.flip_bit(&segment(1), frame_at(0) + 20, 0);
    let (_, recovery) = open(&disk);
    assert_eq!(payloads(&recovery, 1), expected([1, 2]));
    assert_eq!(suspects(&recovery), [1]);
}

#[test]
fn the_last_frame_is_protected_by_an_idle_mark() {
    for byte in [0, 30, 94, 96 + 40] {
        let disk = MemDisk::new();
        let (mut log, _) = open(&disk);
        log.append(&[record(1, 0)]).unwrap();
        log.append(&[record(1, 1)]).unwrap();
        assert!(log.needs_mark());
        log.mark_idle().unwrap();
        let operations = disk.operations();
        log.mark_idle().unwrap();
        assert_eq!(disk.operations(), operations, "a second mark is not needed");
        disk.restart();
        disk.flip_bit(&segment(1), frame_at(1) + byte, 3);
        let (_, recovery) = open(&disk);
        assert_eq!(recovery.corrupt_frames.len(), 1, "byte {byte}");
        assert_eq!(payloads(&recovery, 1), expected([0]));
        assert_eq!(suspects(&recovery), [1]);
    }
}

#[test]
fn the_very_last_frame_without_a_mark_passes_for_torn() {
    let disk = log_of(&[1, 1]);
    disk.restart();
    disk.flip_bit(&segment(1), frame_at(1) + 96 + 40, 3);
    let (mut log, recovery) = open(&disk);
    assert_healthy(&recovery);
    let torn = recovery.torn_tail.unwrap();
    assert_eq!((torn.offset, torn.reason), (frame_at(1), BadFrame::PayloadChecksum));
    assert_eq!(payloads(&recovery, 1), expected([0]));
    log.append(&[record(1, 5)]).unwrap();
    drop(log);
    assert_eq!(payloads(&open(&disk).1, 1), expected([0, 5]));
}

#[test]
fn the_control_file_vouches_for_the_tail_of_the_log_before() {
    for byte in [0, 96 + 40] {
        let disk = log_of(&[1, 2, 1]);
        disk.restart();
        drop(open(&disk));
        disk.flip_bit(&segment(1), frame_at(2) + byte, 3);
        let damaged = disk.contents(&segment(1)).unwrap();
        let (mut log, recovery) = open(&disk);
        assert_eq!(recovery.corrupt_frames.len(), 1);
        assert_eq!(recovery.corrupt_frames[0].offset, frame_at(2));
        assert!(recovery.torn_tail.is_none());
        assert_eq!(suspects(&recovery), [1, 2]);
        log.append(&[record(1, 7)]).unwrap();
        drop(log);
        // The damaged frame was not overwritten, and no LSN is used twice.
        let block = frame_at(2) as usize..frame_at(3) as usize;
        assert_eq!(disk.contents(&segment(1)).unwrap()[block.clone()], damaged[block]);
        let (_, again) = open(&disk);
        assert_eq!(again.corrupt_frames.len(), 1);
        assert_eq!(payloads(&again, 1), expected([0, 7]));
        assert!(common::lsns(&again, 1)[1] > Lsn(3));
        assert_eq!(suspects(&again), [2]);
    }
}

#[test]
fn a_promise_survives_in_either_copy_but_not_without_both() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    log.append(&[record(1, 0)]).unwrap();
    log.append(&[promise(1, 1), promise(2, 2)]).unwrap();
    log.append(&[record(1, 3), record(2, 4)]).unwrap();
    log.append(&[record(1, 5)]).unwrap();
    drop(log);
    let (first, second) = (frame_at(1), frame_at(2));
    for byte in [0, 96 + 40] {
        for at in [first, second] {
            let disk = disk.fork();
            disk.flip_bit(&segment(1), at + byte, 1);
            let (_, recovery) = open(&disk);
            assert_eq!(recovery.corrupt_frames.len(), 1);
            assert!(!recovery.promises_lost && recovery.suspects.is_empty());
            assert_eq!(payloads(&recovery, 1), expected([0, 1, 3, 5]));
            assert_eq!(payloads(&recovery, 2), expected([2, 4]));
        }
        let disk = disk.fork();
        disk.flip_bit(&segment(1), first + byte, 1);
        disk.flip_bit(&segment(1), second + byte, 1);
        let (_, recovery) = open(&disk);
        assert!(recovery.promises_lost);
        assert_eq!(suspects(&recovery), [1, 2]);
    }
}

#[test]
fn a_lost_frame_of_plain_records_casts_no_doubt_on_promises() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    log.append(&[promise(1, 1)]).unwrap();
    log.append(&[record(1, 2)]).unwrap();
    log.append(&[record(1, 3)]).unwrap();
    disk.restart();
    disk.flip_bit(&segment(1), frame_at(2), 1);
    let (_, recovery) = open(&disk);
    assert!(!recovery.promises_lost && recovery.is_suspect(1));
    // With its successor gone, too, nobody can tell what it held.
    disk.restart();
    drop(open(&disk));
    disk.flip_bit(&segment(1), frame_at(3), 1);
    assert!(open(&disk).1.promises_lost);
}

#[test]
fn one_rotten_copy_of_a_header_or_of_the_control_file_costs_nothing() {
    let disk = log_of(&[1, 2, 1]);
    disk.restart();
    for (file, copy) in [(segment(1), 0), (segment(1), 4096), ("control".to_owned(), 0), ("control".to_owned(), 4096)] {
        let disk = disk.fork();
        disk.flip_bit(&file, copy + 30, 5);
        let (_, recovery) = open(&disk);
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 1), expected([0, 2]));
    }
}

#[test]
fn a_segment_without_a_header_is_lost_as_a_whole() {
    let disk = log_of(&[1; 20]);
    disk.restart();
    for (sequence, survivors) in [(1, 8..20), (2, 0..8)] {
        let disk = disk.fork();
        disk.flip_bit(&segment(sequence), 30, 5);
        disk.flip_bit(&segment(sequence), 4096 + 30, 5);
        if sequence == 2 {
            disk.flip_bit(&segment(3), 30, 5);
            disk.flip_bit(&segment(3), 4096 + 30, 5);
        }
        let (mut log, recovery) = open(&disk);
        assert_eq!(recovery.corrupt_frames[0].reason, BadFrame::SegmentHeader);
        assert_eq!(payloads(&recovery, 1), expected(survivors.clone()));
        assert!(recovery.is_suspect(1) && recovery.promises_lost);
        log.append(&[record(1, 50)]).unwrap();
        drop(log);
        assert_eq!(payloads(&open(&disk).1, 1), expected(survivors.chain([50])));
    }
}

#[test]
fn a_rotten_control_file_is_an_error_that_says_what_to_do() {
    let disk = log_of(&[1]);
    disk.restart();
    disk.flip_bit("control", 30, 5);
    disk.flip_bit("control", 4096 + 30, 5);
    let error = Log::open(disk.handle(), config()).err().unwrap();
    assert!(matches!(error, OpenError::ControlCorrupt), "{error}");
    assert!(error.to_string().contains("replace this node"));
}

#[test]
fn a_newer_format_is_told_from_rot() {
    let disk = log_of(&[1]);
    disk.restart();
    for file in [segment(1), "control".to_owned()] {
        let disk = disk.fork();
        for copy in [0, 4096] {
            let mut block = disk.contents(&file).unwrap()[copy..copy + 4096].to_vec();
            block[8] = 2;
            let crc = crc32fast::hash(&block[..4092]);
            block[4092..].copy_from_slice(&crc.to_le_bytes());
            for (at, byte) in block.iter().enumerate() {
                disk.set_byte(&file, (copy + at) as u64, *byte);
            }
        }
        let error = Log::open(disk.handle(), config()).err().unwrap();
        assert!(matches!(error, OpenError::NewerVersion { found: 2, supported: 1, .. }), "{error}");
    }
}

#[test]
fn a_misdirected_write_is_noticed_at_both_places() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    log.append(&[record(1, 0)]).unwrap();
    log.append(&[record(2, 1)]).unwrap();
    disk.misdirect_next_write(&segment(1), frame_at(0));
    log.append(&[record(3, 2)]).unwrap();
    // The sectors reach the disk with the next sync of the file.
    log.append(&[record(2, 3)]).unwrap();
    disk.restart();
    let (_, recovery) = open(&disk);
    let places: Vec<_> = recovery.corrupt_frames.iter().map(|corrupt| (corrupt.offset, corrupt.reason)).collect();
    assert_eq!(places, [(frame_at(0), BadFrame::Misplaced), (frame_at(2), BadFrame::NotAFrame)]);
    assert_eq!(payloads(&recovery, 2), expected([1, 3]));
    assert!(recovery.is_suspect(1) && recovery.is_suspect(3) && !recovery.is_suspect(2));
}

#[test]
fn a_write_that_never_happened_leaves_a_stale_frame_which_its_successor_denounces() {
    // Two futures of one log differ in frame 1. Its older version lies where the newer should.
    let disk = log_of(&[1]);
    disk.restart();
    let other = disk.fork();
    let (mut log, _) = open(&disk);
    log.append(&[record(1, 1)]).unwrap();
    log.append(&[record(1, 2)]).unwrap();
    let (mut log, _) = open(&other);
    log.append(&[record(1, 77)]).unwrap();
    let stale = other.contents(&segment(1)).unwrap();
    for at in frame_at(1)..frame_at(2) {
        disk.set_byte(&segment(1), at, stale[at as usize]);
    }
    disk.restart();
    let (_, recovery) = open(&disk);
    assert_eq!(recovery.corrupt_frames[0].reason, BadFrame::Superseded);
    assert_eq!(payloads(&recovery, 1), expected([0, 2]));
    assert_eq!(suspects(&recovery), [1]);
}

#[test]
fn bytes_of_a_client_never_pass_for_a_frame() {
    // The payload starts behind two headers, and carries the image of another log's frames so that
    // each lies where it says that it lies. Only the salt tells them from frames of this log.
    let image = log_of(&[1, 2, 3, 4]).contents(&segment(1)).unwrap();
    let frames = image[frame_at(0) as usize + 96 + 29..frame_at(4) as usize].to_vec();
    let disk = MemDisk::new();
    let config = Config { salt_seed: 43, ..config() };
    let (mut log, _) = Log::open(disk.handle(), config.clone()).unwrap();
    let append = Append { group: 1, payload: frames.into(), twice: false };
    log.append(std::slice::from_ref(&append)).unwrap();
    log.append(&[record(1, 9)]).unwrap();
    disk.restart();
    disk.flip_bit(&segment(1), frame_at(0), 0);
    let (_, recovery) = Log::open(disk.handle(), config).unwrap();
    assert_eq!(payloads(&recovery, 1), [payload(9, 100)]);
    assert_eq!(recovery.groups.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1]));
}
