//! Crash images: the power fails at every write, sync and change of names of a workload, with many
//! choices of what survives, and again while the log recovers from it.
//!
//! What must hold each time: everything acknowledged is there, in order; what was not acknowledged is
//! there whole or not at all; nothing is taken for corruption; the log goes on.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{assert_healthy, config, open, payload, promise, record};
use std::collections::BTreeSet;
use wal::testdisk::{MemDisk, Unsynced};
use wal::{Append, Log, LogError, Recovery};

/// What a workload knows: all payloads that it tried to append, how many of them are acknowledged,
/// and how many of those it may have released.
#[derive(Default)]
struct Ledger {
    tried: Vec<Bytes>,
    acknowledged: usize,
    released: usize,
}

impl Ledger {
    fn append(&mut self, log: &mut Log, records: &[Append]) -> Result<u64, LogError> {
        self.tried.extend(records.iter().map(|record| record.payload.clone()));
        let synced = log.append(records)?;
        self.acknowledged = self.tried.len();
        Ok(synced.first_segment)
    }

    /// Everything recovered, in log order, must be a run of what was tried.
    fn check(&self, recovery: &Recovery) {
        assert_healthy(recovery);
        let mut all: Vec<_> = recovery.groups.values().flatten().collect();
        all.sort_by_key(|record| record.lsn);
        let all: Vec<Bytes> = all.into_iter().map(|record| record.payload.clone()).collect();
        let start = match all.first() {
            Some(first) => self.tried.iter().position(|tried| tried == first).expect("a record nobody wrote"),
            None => self.acknowledged.min(self.released),
        };
        assert!(start <= self.released, "record {start} is first, only {} were released", self.released);
        let end = start + all.len();
        assert!(end >= self.acknowledged, "{end} records survive, {} were acknowledged", self.acknowledged);
        assert_eq!(all, self.tried[start..end]);
    }
}

fn workload(log: &mut Log, ledger: &mut Ledger) -> Result<(), LogError> {
    let mut number = 1000 * ledger.tried.len() as u64;
    let mut next = || {
        number += 1;
        number
    };
    for round in 0..3 {
        ledger.append(log, &[record(1, next())])?;
        ledger.append(log, &[promise(2, next()), record(1, next())])?;
        let large = Append { group: 3, payload: payload(next(), 9000), twice: false };
        ledger.append(log, &[large.clone(), record(2, next()), Append { payload: payload(next(), 9000), ..large }])?;
        log.mark_idle()?;
        if round == 1 {
            let before = ledger.acknowledged;
            let first = ledger.append(log, &[record(1, next()), record(2, next()), record(3, next())])?;
            ledger.released = before;
            log.release(first - 1)?;
        }
        log.prepare()?;
    }
    Ok(())
}

/// Which of the unsynced things survive: bits 0 to 2 choose sectors by their order modulo three, bits
/// 3 and 4 changes of names by theirs modulo two.
fn survivors(pattern: u32) -> impl FnMut(&Unsynced) -> bool {
    let (mut sectors, mut names) = (0, 0);
    move |unsynced| match unsynced {
        Unsynced::Sector { .. } => {
            sectors += 1;
            pattern >> (sectors % 3) & 1 == 1
        }
        Unsynced::Name => {
            names += 1;
            pattern >> (3 + names % 2) & 1 == 1
        }
    }
}
const PATTERNS: std::ops::Range<u32> = 0..32;

/// Runs the workload on a fresh disk until the power fails at operation `at`. `None`: it got through.
fn run_until(at: u64) -> Option<(MemDisk, Ledger)> {
    let disk = MemDisk::new();
    let mut ledger = Ledger::default();
    disk.cut_power_after(at);
    let Ok((mut log, recovery)) = Log::open(disk.handle(), config()) else { return Some((disk, ledger)) };
    ledger.check(&recovery);
    workload(&mut log, &mut ledger).is_err().then_some((disk, ledger))
}

#[test]
fn a_crash_at_any_point_loses_nothing_acknowledged() {
    let mut points = 0;
    for at in 0.. {
        let Some((disk, ledger)) = run_until(at) else { break };
        points += 1;
        for pattern in PATTERNS {
            let disk = disk.fork();
            disk.crash(survivors(pattern));
            let (mut log, recovery) = open(&disk);
            ledger.check(&recovery);
            // The log goes on, and what it adds survives the next crash together with the old.
            let mut ledger = ledger.after(&recovery);
            ledger.append(&mut log, &[record(4, 1), promise(1, 2)]).unwrap();
            drop(log);
            disk.crash(|_| false);
            let (_, recovery) = open(&disk);
            ledger.check(&recovery);
        }
    }
    assert!(points > 100, "only {points} crash points");
}

impl Ledger {
    /// After a crash: what was recovered counts as acknowledged, what was not never happened.
    fn after(&self, recovery: &Recovery) -> Ledger {
        let mut all: Vec<_> = recovery.groups.values().flatten().collect();
        all.sort_by_key(|record| record.lsn);
        let tried: Vec<Bytes> = all.into_iter().map(|record| record.payload.clone()).collect();
        Ledger { acknowledged: tried.len(), released: 0, tried }
    }
}

#[test]
fn a_second_crash_during_recovery_changes_nothing() {
    for at in (0..).step_by(3) {
        let Some((disk, ledger)) = run_until(at) else { break };
        for pattern in [0, 5, 18, 31] {
            let first = disk.fork();
            first.crash(survivors(pattern));
            for again in 0.. {
                let second = first.fork();
                second.cut_power_after(again);
                let through = Log::open(second.handle(), config()).is_ok();
                second.crash(survivors(pattern ^ 7));
                let (_, recovery) = open(&second);
                ledger.check(&recovery);
                if through {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_process_crash_keeps_even_what_was_not_synced() {
    for at in 0.. {
        let Some((disk, ledger)) = run_until(at) else { break };
        disk.restart();
        let (log, recovery) = open(&disk);
        ledger.check(&recovery);
        drop(log);
        // What the restart found it has made durable: a power failure now takes nothing back.
        disk.crash(|_| false);
        let (_, after) = open(&disk);
        assert_eq!(after.groups, recovery.groups);
    }
}

/// The order of a reclaim: rewritten state, then control file, then recycling, each durable before
/// the next. Whatever the disk does with the names, no state in between is a log with a hole.
#[test]
fn a_crash_inside_a_release_leaves_the_old_log_or_the_new_one() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    let mut ledger = Ledger::default();
    (0..30).for_each(|number| assert!(ledger.append(&mut log, &[record(1, number)]).is_ok()));
    drop(log);
    let mut images = BTreeSet::new();
    for at in 0.. {
        let image = disk.fork();
        let (mut log, _) = open(&image);
        image.cut_power_after(at);
        let done = log.release(3).is_ok();
        for pattern in PATTERNS {
            let image = image.fork();
            image.crash(survivors(pattern));
            let (log, recovery) = open(&image);
            assert_healthy(&recovery);
            let first = recovery.groups[&1][0].lsn.0 - 1;
            images.insert((*log.live_segments().start(), first));
            let payloads: Vec<Bytes> = recovery.groups[&1].iter().map(|record| record.payload.clone()).collect();
            assert_eq!(payloads, ledger.tried[first as usize..]);
        }
        if done {
            break;
        }
    }
    assert_eq!(images, BTreeSet::from([(1, 0), (4, 24)]));
}

/// The process dies inside a release, the disk is full, and the power fails while the next process
/// opens the log: it must not act on a control file whose name is not durable yet.
#[test]
fn a_restart_inside_a_release_on_a_full_disk_is_safe() {
    let disk = MemDisk::new();
    let (mut log, _) = open(&disk);
    (0..30).for_each(|number| assert!(log.append(&[record(1, number)]).is_ok()));
    drop(log);
    for at in 0.. {
        let dying = disk.fork();
        let (mut log, _) = open(&dying);
        dying.cut_power_after(at);
        let done = log.release(3).is_ok();
        dying.restart();
        dying.set_budget_bytes(Some(dying.used_bytes()));
        for again in 0.. {
            let opening = dying.fork();
            opening.cut_power_after(again);
            let through = Log::open(opening.handle(), config()).is_ok();
            for pattern in PATTERNS.step_by(8) {
                let image = opening.fork();
                image.crash(survivors(pattern));
                let (log, recovery) = open(&image);
                assert_healthy(&recovery);
                let first = (*log.live_segments().start() - 1) * 8;
                assert_eq!(recovery.groups[&1].len() as u64, 30 - first, "cut at {at}, then at {again}");
            }
            if through {
                break;
            }
        }
        if done {
            break;
        }
    }
}
