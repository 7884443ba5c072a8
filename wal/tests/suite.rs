//! One suite for every `Disk`: what the log promises when nothing goes wrong.
#![allow(clippy::unwrap_used)]

mod common;

use common::{NODE, assert_healthy, config, expected, lsns, open_on, payload, payloads, promise, record, segment};
use std::io::{ErrorKind, IoSlice};
use wal::testdisk::MemDisk;
use wal::{Append, Config, Disk, FileDisk, Log, LogError, Lsn, OpenError};

/// Opens the same directory again and again, as restarts do.
type Opener<'a> = &'a dyn Fn() -> Box<dyn Disk>;

fn on_both(test: impl Fn(Opener<'_>)) {
    let memory = MemDisk::new();
    test(&|| memory.handle());
    let directory = tempfile::tempdir().unwrap();
    test(&|| Box::new(FileDisk::open(directory.path()).unwrap()));
}

#[test]
fn a_disk_keeps_what_it_is_given() {
    on_both(|disk| {
        let mut disk = disk();
        let mut file = disk.create("a", 8192).unwrap();
        assert_eq!(file.bytes().unwrap(), 8192);
        file.write_at(5, &[IoSlice::new(b"one"), IoSlice::new(b""), IoSlice::new(b"two")]).unwrap();
        file.sync().unwrap();
        disk.rename("a", "b").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["b"]);
        assert_eq!(disk.open("a").err().unwrap().kind(), ErrorKind::NotFound);
        let mut read = [9; 8];
        disk.open("b").unwrap().read_at(4, &mut read).unwrap();
        assert_eq!(&read, b"\0onetwo\0");
        let beyond = disk.open("b").unwrap().read_at(8190, &mut read).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::UnexpectedEof);
        disk.create("b", 4096).unwrap();
        assert_eq!(disk.open("b").unwrap().bytes().unwrap(), 4096);
        disk.remove("b").unwrap();
        assert!(disk.list().unwrap().is_empty());
    });
}

#[test]
fn a_new_log_is_empty_and_stays_empty() {
    on_both(|disk| {
        for _ in 0..3 {
            let (log, recovery) = open_on(disk());
            assert_healthy(&recovery);
            assert!(recovery.groups.is_empty());
            assert_eq!((log.durable(), log.live_segments()), (Lsn(0), 1..=1));
        }
    });
}

#[test]
fn records_come_back_per_group_in_order() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        let synced = log.append(&[record(1, 10), record(2, 20), record(1, 11)]).unwrap();
        assert_eq!((synced.durable, synced.first_segment, synced.segment), (Lsn(3), 1, 1));
        assert_eq!(log.append(&[record(2, 21)]).unwrap().durable, Lsn(4));
        assert_eq!(log.append(&[]).unwrap().durable, Lsn(4));
        drop(log);
        for _ in 0..2 {
            let (_, recovery) = open_on(disk());
            assert_healthy(&recovery);
            assert_eq!(payloads(&recovery, 1), expected([10, 11]));
            assert_eq!(lsns(&recovery, 1), [Lsn(1), Lsn(3)]);
            assert_eq!(payloads(&recovery, 2), expected([20, 21]));
        }
    });
}

#[test]
fn a_log_goes_on_through_restarts_and_segments() {
    on_both(|disk| {
        for round in 0..10 {
            let (mut log, recovery) = open_on(disk());
            assert_healthy(&recovery);
            assert_eq!(payloads(&recovery, 1), expected(0..round * 3));
            for number in 0..3 {
                log.append(&[record(1, round * 3 + number)]).unwrap();
            }
            log.mark_idle().unwrap();
            assert!(!log.needs_mark());
        }
        let (log, _) = open_on(disk());
        // 40 frames of one block, marks included, 8 to a segment.
        assert_eq!(log.live_segments(), 1..=5);
        assert_eq!(log.live_bytes(), 5 * config().segment_bytes);
    });
}

#[test]
fn a_large_append_becomes_several_frames_and_segments() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        let records: Vec<Append> =
            (0..20).map(|number| Append { group: 1, payload: payload(number, 5000), twice: false }).collect();
        let synced = log.append(&records).unwrap();
        assert_eq!((synced.durable, synced.first_segment), (Lsn(20), 1));
        assert!(synced.segment > 1, "{synced:?}");
        drop(log);
        let (_, recovery) = open_on(disk());
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 1), records.iter().map(|record| record.payload.clone()).collect::<Vec<_>>());
    });
}

#[test]
fn the_largest_record_fits_and_a_larger_one_is_refused() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        let bytes_max = config().record_bytes_max();
        let largest = Append { group: 1, payload: vec![1; bytes_max].into(), twice: true };
        log.append(std::slice::from_ref(&largest)).unwrap();
        let larger = Append { payload: vec![1; bytes_max + 1].into(), ..largest.clone() };
        let refused = log.append(&[record(1, 1), larger]).unwrap_err();
        assert!(matches!(refused, LogError::RecordTooLarge { bytes, .. } if bytes == bytes_max + 1), "{refused}");
        assert_eq!(log.append(&[record(1, 2)]).unwrap().durable, Lsn(2));
        drop(log);
        let (_, recovery) = open_on(disk());
        assert_eq!(payloads(&recovery, 1), [largest.payload.clone(), payload(2, 100)]);
    });
}

#[test]
fn promises_written_twice_come_back_once() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        for number in 0..6 {
            log.append(&[record(2, number), promise(1, number)]).unwrap();
        }
        drop(log);
        let (_, recovery) = open_on(disk());
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 1), expected(0..6));
        assert_eq!(payloads(&recovery, 2), expected(0..6));
    });
}

#[test]
fn released_segments_are_gone_and_chains_may_start_behind_them() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        for number in 0..30 {
            log.append(&[record(number % 3, number)]).unwrap();
        }
        assert_eq!(log.live_segments(), 1..=4);
        let rewritten = log.append_reclaim(&[record(0, 100), record(1, 101)]).unwrap();
        log.release(rewritten.first_segment - 1).unwrap();
        assert_eq!(log.live_segments(), 4..=4);
        log.release(1).unwrap();
        let beyond = log.release(4).unwrap_err();
        assert!(matches!(beyond, LogError::ReleaseBeyondHead { through: 4, head: 4 }), "{beyond}");
        log.append(&[record(2, 102)]).unwrap();
        drop(log);
        let (_, recovery) = open_on(disk());
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 0), expected([24, 27, 100]));
        assert_eq!(payloads(&recovery, 1), expected([25, 28, 101]));
        assert_eq!(payloads(&recovery, 2), expected([26, 29, 102]));
    });
}

#[test]
fn a_promise_is_released_with_its_original_even_if_its_copy_lies_in_a_later_segment() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        (0..7).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
        let synced = log.append(&[promise(2, 7)]).unwrap();
        assert_eq!((synced.first_segment, synced.segment), (1, 2));
        log.append_reclaim(&[promise(2, 8)]).unwrap();
        log.release(1).unwrap();
        drop(log);
        let (_, recovery) = open_on(disk());
        assert_healthy(&recovery);
        assert_eq!(payloads(&recovery, 2), expected([8]));
    });
}

#[test]
fn disk_use_stays_bounded_while_segments_are_released() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        for number in 0..200 {
            let synced = log.append(&[record(1, number)]).unwrap();
            log.release(synced.first_segment - 1).unwrap();
        }
        drop(log);
        let mut directory = disk();
        let files = directory.list().unwrap();
        assert!(files.len() <= 7, "{files:?}");
    });
}

#[test]
fn another_nodes_log_does_not_open() {
    on_both(|disk| {
        drop(open_on(disk()));
        let foreign = Log::open(disk(), Config { node: 8, ..config() }).err().unwrap();
        assert!(matches!(foreign, OpenError::ForeignNode { found: NODE, expected: 8 }), "{foreign}");
    });
}

#[test]
fn a_missing_segment_or_control_file_is_named() {
    on_both(|disk| {
        let (mut log, _) = open_on(disk());
        (0..30).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
        drop(log);
        for missing in [2, 4] {
            let mut directory = disk();
            directory.rename(&segment(missing), "aside").unwrap();
            drop(directory);
            let hole = Log::open(disk(), config()).err().unwrap();
            assert!(matches!(hole, OpenError::SegmentMissing { sequence } if sequence == missing), "{hole}");
            disk().rename("aside", &segment(missing)).unwrap();
        }
        disk().remove("control").unwrap();
        let headless = Log::open(disk(), config()).err().unwrap();
        assert!(matches!(headless, OpenError::ControlMissing), "{headless}");
    });
}

#[test]
fn contradictory_settings_are_refused() {
    for config in [
        Config { segment_bytes: 16 << 10, frame_bytes_max: 16 << 10, ..config() },
        Config { frame_bytes_max: 5000, ..config() },
        Config { segment_bytes: 8 << 30, ..config() },
    ] {
        let refused = Log::open(MemDisk::new().handle(), config).err().unwrap();
        assert!(matches!(refused, OpenError::Config(_)), "{refused}");
    }
}

#[test]
fn a_directory_serves_one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let first = FileDisk::open(directory.path()).unwrap();
    let second = FileDisk::open(directory.path()).unwrap_err();
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
    drop(first);
    FileDisk::open(directory.path()).unwrap();
}
