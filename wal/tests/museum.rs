//! Real bugs of other systems' logs, by their number in the bug museum. Each test fails if the bug is
//! put in.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{assert_healthy, config, expected, frame_at, open, payload, payloads, promise, record, segment};
use std::sync::mpsc;
use wal::testdisk::MemDisk;
use wal::{Append, Log, LogError, OpenError, Recovery, WalEvent};

/// 13: a corrupt entry in the middle is taken for a torn tail and committed data is cut (FAST'18).
#[test]
fn museum_13_rot_in_the_middle_is_not_a_torn_tail() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    (0..20).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    drop(log);
    for sequence in 1..=2 {
        for frame in 0..8 {
            let disk = disk.fork();
            disk.flip_bit(&segment(sequence), frame_at(frame) + 100, 6);
            let (_, recovery) = open(&disk);
            assert!(recovery.torn_tail.is_none());
            assert_eq!(recovery.corrupt_frames.len(), 1);
            let lost = (sequence - 1) * 8 + frame;
            assert_eq!(payloads(&recovery, 1), expected((0..20).filter(|number| *number != lost)));
            assert!(recovery.is_suspect(1));
        }
    }
}

/// 14: fsync returns EIO, the retry "succeeds" because the pages were marked clean (ATC'20).
#[test]
fn museum_14_a_failed_sync_is_final_and_its_pages_are_not_trusted() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    log.append(&[record(1, 0)]).unwrap();
    disk.fail_syncs(1);
    let failed = log.append(&[record(1, 1)]).unwrap_err();
    assert!(matches!(failed, LogError::Io { operation: "sync", .. }), "{failed}");
    let before = disk.operations();
    assert!(matches!(log.append(&[record(1, 2)]), Err(LogError::Stopped)));
    assert!(matches!(log.mark_idle(), Err(LogError::Stopped)));
    assert!(matches!(log.release(0), Err(LogError::Stopped)));
    assert!(matches!(log.prepare(), Err(LogError::Stopped)));
    assert_eq!(disk.operations(), before, "a stopped log touches nothing");
    drop(log);
    // The process restarts and finds the record in the page cache, where it is marked clean.
    disk.restart();
    let (log, found) = open(&disk);
    assert_eq!(payloads(&found, 1), expected([0, 1]));
    drop(log);
    // Whatever the restart reported must survive a power failure.
    disk.crash(|_| false);
    let (_, after) = open(&disk);
    assert_eq!(after.groups, found.groups);
}

/// 14, in recovery itself: a failing sync while opening is an error, not a warning.
#[test]
fn museum_14_a_failed_sync_while_opening_fails_the_opening() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    log.append(&[record(1, 0)]).unwrap();
    disk.restart();
    disk.fail_syncs(1);
    let failed = Log::open(disk.handle(), config()).err().unwrap();
    assert!(matches!(failed, OpenError::Io { .. }), "{failed}");
    // The next attempt writes those pages again instead of trusting them.
    disk.restart();
    drop(open(&disk));
    disk.crash(|_| false);
    assert_eq!(payloads(&open(&disk).1, 1), expected([0]));
}

/// 15, 18: acknowledged before fsync, or before the log is saved at all (NATS 2.12.1, etcd #14370).
#[test]
fn museum_15_and_18_what_is_acknowledged_survives_a_power_cut_at_that_instant() {
    let disk = MemDisk::new();
    let (log, _) = open(&disk);
    let (report, reports) = mpsc::channel();
    let witness = disk.clone();
    let wal = wal::spawn(
        log,
        Box::new(move |event| {
            let WalEvent::Durable { ticket, .. } = event else { panic!("{event:?}") };
            let image = witness.fork();
            image.crash(|_| false);
            report.send((ticket, open(&image).1)).unwrap();
        }),
    );
    for ticket in 0..20 {
        let append = if ticket % 3 == 0 { promise(1, ticket) } else { record(1, ticket) };
        wal.append(ticket, vec![append]).unwrap();
    }
    wal.close();
    let mut last = None;
    for (ticket, recovery) in reports {
        assert_healthy(&recovery);
        let survived = payloads(&recovery, 1);
        assert!(survived.starts_with(&expected(0..=ticket)), "ticket {ticket}: {} records", survived.len());
        last = Some(ticket);
    }
    assert_eq!(last, Some(19));
}

/// 18, for promises: durable only when both copies are. One power cut and one rotten frame later the
/// promise is still there.
#[test]
fn museum_18_a_promise_is_acknowledged_when_both_copies_are_durable() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    let before = disk.operations();
    log.append(&[record(1, 0)]).unwrap();
    assert_eq!(disk.operations() - before, 2, "a write and a sync");
    let before = disk.operations();
    log.append(&[promise(1, 1)]).unwrap();
    assert_eq!(disk.operations() - before, 4, "two writes and two syncs");
    disk.crash(|_| false);
    for copy in [1, 2] {
        let disk = disk.fork();
        disk.flip_bit(&segment(1), frame_at(copy) + 120, 0);
        let (_, recovery) = open(&disk);
        assert_eq!(payloads(&recovery, 1), expected([0, 1]));
        assert!(!recovery.promises_lost);
    }
}

/// 19: no directory fsync after a rename: the log vanishes (etcd #6368).
#[test]
fn museum_19_names_survive_a_power_cut_after_every_rotation_and_release() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    let check = |disk: &MemDisk, numbers: std::ops::Range<u64>| {
        let image = disk.fork();
        image.crash(|_| false);
        let (_, recovery) = open(&image);
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 1), expected(numbers));
    };
    check(&disk, 0..0);
    for number in 0..30 {
        log.append(&[record(1, number)]).unwrap();
        check(&disk, 0..number + 1);
    }
    log.release(2).unwrap();
    check(&disk, 16..30);
    (30..50).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    check(&disk, 16..50);
}

/// 19, when the control file finds no space: the new segment's name must not depend on it.
#[test]
fn museum_19_a_new_segments_name_is_durable_before_its_frames() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    while log.prepare().unwrap() {}
    disk.lose_file("control.next");
    disk.set_budget_bytes(Some(disk.used_bytes()));
    (0..10).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    assert_eq!(log.live_segments(), 1..=2);
    disk.crash(|_| false);
    let (_, recovery) = open(&disk);
    assert_healthy(&recovery);
    assert_eq!(payloads(&recovery, 1), expected(0..10));
}

/// One reclaim: the state of group 1 (a number) is rewritten to the head, then the old segments go.
fn reclaim(log: &mut Log, state: &Bytes) -> Result<(), LogError> {
    let append = Append { group: 1, payload: state.clone(), twice: false };
    let synced = log.append_reclaim(&[append])?;
    log.release(synced.first_segment - 1)
}

fn last_state(recovery: &Recovery) -> Option<Bytes> {
    payloads(recovery, 1).last().cloned()
}

/// 20: a crash during the rewrite of a rewrite drops the log's head (raft-engine #288).
#[test]
fn museum_20_a_crash_during_the_rewrite_of_a_rewrite_keeps_the_state() {
    let fill = |log: &mut Log| (0..10).try_for_each(|number| log.append(&[record(2, number)]).map(drop));
    let start = MemDisk::new();
    let (mut log, _) = open(&start);
    let state = payload(4711, 100);
    log.append(&[Append { group: 1, payload: state.clone(), twice: false }]).unwrap();
    fill(&mut log).unwrap();
    drop(log);
    let cut_reclaim = |disk: &MemDisk, at: u64| {
        disk.cut_power_after(at);
        let opened = Log::open(disk.handle(), config());
        let done = opened.is_ok_and(|(mut log, recovery)| {
            assert_eq!(last_state(&recovery), Some(state.clone()));
            reclaim(&mut log, &state).and_then(|()| fill(&mut log)).and_then(|()| reclaim(&mut log, &state)).is_ok()
        });
        disk.crash(|_| false);
        done
    };
    for first in 0.. {
        let once = start.fork();
        let first_done = cut_reclaim(&once, first);
        for second in (0..).step_by(2) {
            let twice = once.fork();
            let second_done = cut_reclaim(&twice, second);
            let (_, recovery) = open(&twice);
            assert_healthy(&recovery);
            assert_eq!(last_state(&recovery), Some(state.clone()), "cut at {first}, then at {second}");
            if second_done {
                break;
            }
        }
        if first_done {
            break;
        }
    }
}

/// 21: a read error is taken for the end of the log (RocksDB #6288).
#[test]
fn museum_21_a_read_error_is_not_the_end_of_the_log() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    (0..12).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    disk.restart();
    for (file, offset) in [(segment(1), frame_at(3)), (segment(2), frame_at(3)), ("control".to_owned(), 0)] {
        let disk = disk.fork();
        disk.fail_reads(&file, offset / 512);
        let failed = Log::open(disk.handle(), config()).err().unwrap();
        assert!(matches!(&failed, OpenError::Io { operation: "read", file: at, .. } if *at == file), "{failed}");
        disk.restart();
        assert_eq!(payloads(&open(&disk).1, 1), expected(0..12));
    }
}

/// 23: a recycled segment's old frames are replayed as new ones.
#[test]
fn museum_23_old_frames_of_a_recycled_segment_stay_dead() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    let mut number = 0;
    let mut recycled = false;
    for _ in 0..100 {
        let synced = log.append(&[record(1, number)]).unwrap();
        number += 1;
        // A reclaim that has rewritten nothing: every group's state is its last record.
        log.release(synced.first_segment - 1).unwrap();
        let contents = disk.contents(&segment(synced.segment)).unwrap();
        let stale = contents
            .windows(8)
            .filter(|window| *window == b" record ".as_slice() || window.starts_with(b"record "))
            .count();
        let (image, live) = (disk.fork(), (number - 1) % 8 + 1);
        recycled |= stale as u64 > live;
        image.crash(|_| false);
        let (_, recovery) = open(&image);
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 1), expected(number - live..number));
    }
    assert!(recycled, "no segment was ever recycled with old frames in it");
}

/// 24: recovery needs free space on a full disk (raft-engine #344).
#[test]
fn museum_24_recovery_needs_no_space() {
    let start = MemDisk::new();
    let (mut log, _) = open(&start);
    (0..12).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    drop(log);
    // As it is; without the control file's successor; and with rot at the end, which takes a new
    // segment for the log to go on in.
    for (lose_next, rot) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = start.fork();
        disk.crash(|_| true);
        if lose_next {
            disk.lose_file("control.next");
        }
        if rot {
            disk.restart();
            drop(open(&disk));
            disk.flip_bit(&segment(2), frame_at(3), 0);
            disk.crash(|_| false);
        }
        disk.set_budget_bytes(Some(disk.used_bytes()));
        for _ in 0..3 {
            let (mut log, recovery) = open(&disk);
            assert_eq!(payloads(&recovery, 1), expected(0..if rot { 11 } else { 12 }));
            assert_eq!(recovery.corrupt_frames.len(), usize::from(rot));
            // What a recovering node must write (its suspect marks) finds room, too.
            log.append_reclaim(&[record(2, 1)]).unwrap();
            disk.crash(|_| false);
        }
    }
}

/// 24, while running: a full disk refuses appends as a whole, reclaim still gets through, and its
/// released segments bring the service back.
#[test]
fn museum_24_a_log_that_filled_the_disk_itself_reclaims_its_way_out() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    disk.set_budget_bytes(Some(5 * config().segment_bytes + 100_000));
    let mut number = 0;
    let refused = loop {
        match log.append(&[record(1, number), promise(2, number)]) {
            Ok(_) => number += 1,
            Err(error) => break error,
        }
        assert!(number < 1000);
    };
    assert!(matches!(refused, LogError::Full { .. }), "{refused}");
    let image = disk.fork();
    image.crash(|_| true);
    assert_eq!(payloads(&open(&image).1, 2), expected(0..number));
    // Refused again without harm, then reclaimed.
    assert!(matches!(log.append(&[record(1, 999), promise(2, 999)]), Err(LogError::Full { .. })));
    for _ in 0..20 {
        let synced = log.append_reclaim(&[record(1, number), promise(2, number)]).unwrap();
        log.release(synced.first_segment - 1).unwrap();
        number += 1;
    }
    for _ in 0..20 {
        let synced = log.append(&[record(1, number), promise(2, number)]).unwrap();
        log.release(synced.first_segment - 1).unwrap();
        number += 1;
    }
    disk.crash(|_| false);
    let (_, recovery) = open(&disk);
    assert_healthy(&recovery);
    assert_eq!(payloads(&recovery, 2).last(), expected([number - 1]).last());
}

/// 24, for reclaim: letting go of segments on a full disk needs no space, even without the control
/// file's successor. The reserve makes room for it and comes back with the released segments.
#[test]
fn museum_24_a_release_needs_no_space() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    (0..20).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    disk.lose_file("control.next");
    disk.set_budget_bytes(Some(disk.used_bytes()));
    log.release(2).unwrap();
    assert!(disk.files().contains(&"reserve".to_owned()), "{:?}", disk.files());
    disk.crash(|_| false);
    let (_, recovery) = open(&disk);
    assert_healthy(&recovery);
    assert_eq!(payloads(&recovery, 1), expected(16..20));
}
