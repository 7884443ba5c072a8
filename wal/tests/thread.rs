//! The log's thread: group commit, order, bounds, and how it fails.
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_healthy, config, expected, open, payloads, promise, record};
use std::io::{self, IoSlice};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use wal::testdisk::MemDisk;
use wal::{Append, Config, Disk, DiskFile, Full, Log, LogError, Lsn, Synced, WalEvent, WalHandle, spawn};

/// Holds every sync of a file up until the test lets it through, and tells that it has begun.
#[derive(Default)]
struct Gate {
    passes: Mutex<Option<u64>>,
    changed: Condvar,
    begun: Mutex<Option<Sender<()>>>,
}

impl Gate {
    fn pass(&self) {
        if let Some(begun) = self.begun.lock().unwrap().as_ref() {
            begun.send(()).unwrap();
        }
        let mut passes = self.changed.wait_while(self.passes.lock().unwrap(), |passes| *passes == Some(0)).unwrap();
        *passes = passes.map(|passes| passes - 1);
    }
    /// From now on syncs wait. Returns where each announces itself.
    fn close(&self) -> Receiver<()> {
        let (send, receive) = channel();
        *self.passes.lock().unwrap() = Some(0);
        *self.begun.lock().unwrap() = Some(send);
        receive
    }
    fn let_through(&self, syncs: u64) {
        let mut passes = self.passes.lock().unwrap();
        *passes = passes.map(|passes| passes + syncs);
        self.changed.notify_all();
    }
    fn open(&self) {
        *self.begun.lock().unwrap() = None;
        *self.passes.lock().unwrap() = None;
        self.changed.notify_all();
    }
}

struct GatedDisk(Box<dyn Disk>, Arc<Gate>);
struct GatedFile(Box<dyn DiskFile>, Arc<Gate>);

impl Disk for GatedDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn open(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(GatedFile(self.0.open(name)?, Arc::clone(&self.1))))
    }
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(GatedFile(self.0.create(name, bytes)?, Arc::clone(&self.1))))
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&mut self) -> io::Result<()> {
        self.0.sync_dir()
    }
}

impl DiskFile for GatedFile {
    fn bytes(&mut self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write_at(offset, slices)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
}

/// Idle marks would add syncs that these tests do not count on.
fn patient() -> Config {
    Config { idle_mark_millis: 3_600_000, full_retry_millis: 3_600_000, queue_bytes_max: 2000, ..config() }
}

fn start(disk: &MemDisk, config: Config) -> (WalHandle, Receiver<WalEvent>, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let gated = GatedDisk(disk.handle(), Arc::clone(&gate));
    let (log, _) = Log::open(Box::new(gated), config).unwrap();
    let (send, events) = channel();
    // A test that has seen enough hangs up.
    (spawn(log, Box::new(move |event| drop(send.send(event)))), events, gate)
}

fn next(events: &Receiver<WalEvent>) -> WalEvent {
    events.recv_timeout(Duration::from_secs(20)).expect("an event")
}

fn durable(events: &Receiver<WalEvent>) -> (u64, Synced) {
    match next(events) {
        WalEvent::Durable { ticket, synced, .. } => (ticket, synced),
        other => panic!("{other:?} instead of Durable"),
    }
}

#[test]
fn what_arrives_during_a_sync_is_the_next_group_commit() {
    let disk = MemDisk::new();
    let (wal, events, gate) = start(&disk, patient());
    let begun = gate.close();
    wal.append(1, vec![record(1, 1)]).unwrap();
    begun.recv().unwrap();
    for ticket in 2..=5 {
        wal.append(ticket, vec![record(1, ticket)]).unwrap();
    }
    gate.let_through(1);
    assert_eq!(durable(&events), (1, Synced { durable: Lsn(1), first_segment: 1, segment: 1 }));
    begun.recv().unwrap();
    gate.let_through(1);
    // Four appends, one sync, one event.
    assert_eq!(durable(&events), (5, Synced { durable: Lsn(5), first_segment: 1, segment: 1 }));
    assert_eq!(wal.stats().drains, 2);
    assert_eq!(wal.stats().records, 5);
    gate.open();
    wal.close();
    assert!(wal.is_stopped());
    assert_eq!(wal.append(6, vec![record(1, 6)]), Err(Full));
    disk.crash(|_| false);
    assert_eq!(payloads(&open(&disk).1, 1), expected(1..=5));
}

#[test]
fn a_promise_is_published_only_after_its_second_sync() {
    let disk = MemDisk::new();
    let (wal, events, gate) = start(&disk, patient());
    let begun = gate.close();
    wal.append(1, vec![promise(1, 1)]).unwrap();
    begun.recv().unwrap();
    gate.let_through(1);
    begun.recv().unwrap();
    assert!(events.try_recv().is_err(), "published after the first copy");
    gate.let_through(1);
    assert_eq!(durable(&events).0, 1);
    gate.open();
}

#[test]
fn the_queue_is_bounded_and_recovers() {
    let disk = MemDisk::new();
    let (wal, events, gate) = start(&disk, patient());
    let begun = gate.close();
    wal.append(0, vec![record(1, 0)]).unwrap();
    begun.recv().unwrap();
    let taken = (1..100).find(|ticket| wal.append(*ticket, vec![record(1, *ticket)]) == Err(Full)).unwrap();
    assert!((5..20).contains(&taken), "{taken} appends of 100 bytes in a queue of 2000");
    assert!(wal.stats().queued_bytes <= 2000);
    gate.open();
    while durable(&events).0 < taken - 1 {}
    wal.append(taken, vec![record(1, taken)]).unwrap();
    assert_eq!(durable(&events).0, taken);
    drop(wal);
    disk.crash(|_| false);
    assert_eq!(payloads(&open(&disk).1, 1), expected(0..=taken));
}

#[test]
fn a_failed_sync_is_reported_once_and_ends_it() {
    let disk = MemDisk::new();
    let (wal, events, _) = start(&disk, patient());
    wal.append(1, vec![record(1, 1)]).unwrap();
    assert_eq!(durable(&events).0, 1);
    disk.fail_syncs(1);
    wal.append(2, vec![record(1, 2)]).unwrap();
    let event = next(&events);
    assert!(matches!(event, WalEvent::Failed(LogError::Io { operation: "sync", .. })), "{event:?}");
    assert_eq!(wal.append(3, vec![record(1, 3)]), Err(Full));
    drop(wal);
    assert!(events.recv().is_err(), "nothing follows a failure");
}

#[test]
fn a_full_disk_holds_the_batch_back_until_a_reclaim_frees_segments() {
    let disk = MemDisk::new();
    let (wal, events, _) = start(&disk, patient());
    wal.append(0, vec![record(1, 0)]).unwrap();
    durable(&events);
    disk.set_budget_bytes(Some(disk.used_bytes()));
    let mut ticket = 0;
    let full = loop {
        ticket += 1;
        wal.append(ticket, vec![record(1, ticket)]).unwrap();
        match next(&events) {
            WalEvent::Durable { ticket: reported, .. } => assert_eq!(reported, ticket),
            other => break other,
        }
    };
    assert!(matches!(full, WalEvent::Full), "{full:?}");
    assert!(wal.stats().full);
    // Queued behind the batch that waits, the reclaim lets both through by way of the reserve.
    wal.append_reclaim(ticket + 1, vec![record(2, 1)]).unwrap();
    assert!(matches!(next(&events), WalEvent::SpaceBack));
    assert_eq!(durable(&events).0, ticket);
    let (reclaimed, synced) = durable(&events);
    assert_eq!(reclaimed, ticket + 1);
    wal.release(synced.first_segment - 1);
    for more in 2..5 {
        wal.append(ticket + more, vec![record(1, ticket + more)]).unwrap();
        assert_eq!(durable(&events).0, ticket + more);
    }
    assert!(!wal.stats().full);
    assert_eq!(wal.stats().first_segment, synced.first_segment);
    drop(wal);
    disk.crash(|_| false);
    assert_healthy(&open(&disk).1);
}

#[test]
fn what_is_closed_on_a_full_disk_has_no_hole() {
    let disk = MemDisk::new();
    let (wal, events, _) = start(&disk, patient());
    // Three blocks each: a segment's rest is too small for one, and large enough for a small record.
    let large = |number: u64| Append { payload: vec![number as u8; 9_000].into(), ..record(1, number) };
    disk.set_budget_bytes(Some(disk.used_bytes()));
    let mut ticket = 0;
    while !wal.stats().full {
        ticket += 1;
        wal.append(ticket, vec![large(ticket)]).unwrap();
        if !matches!(next(&events), WalEvent::Durable { .. }) {
            break;
        }
    }
    wal.append(ticket + 1, vec![record(1, ticket + 1)]).unwrap();
    wal.close();
    assert!(events.try_recv().is_err(), "what lies behind the batch that waits was written");
    disk.set_budget_bytes(None);
    let written = payloads(&open(&disk).1, 1);
    assert_eq!(written.len() as u64, ticket - 1, "exactly what was durable");
}

#[test]
fn service_resumes_by_itself_when_space_returns() {
    let disk = MemDisk::new();
    let (wal, events, _) = start(&disk, Config { full_retry_millis: 1, ..patient() });
    disk.set_budget_bytes(Some(disk.used_bytes()));
    let mut ticket = 0;
    while !wal.stats().full {
        ticket += 1;
        wal.append(ticket, vec![record(1, ticket)]).unwrap();
        if !matches!(next(&events), WalEvent::Durable { .. }) {
            break;
        }
    }
    disk.set_budget_bytes(None);
    assert!(matches!(next(&events), WalEvent::SpaceBack));
    assert_eq!(durable(&events).0, ticket);
    drop(wal);
    disk.crash(|_| false);
    assert_eq!(payloads(&open(&disk).1, 1), expected(1..=ticket));
}

#[test]
fn an_idle_thread_marks_its_last_frame() {
    let disk = MemDisk::new();
    let (wal, events, gate) = start(&disk, Config { idle_mark_millis: 1, ..patient() });
    let begun = gate.close();
    wal.append(1, vec![record(1, 1)]).unwrap();
    begun.recv().unwrap();
    gate.let_through(1);
    assert_eq!(durable(&events).0, 1);
    // Nobody appends, and yet there is one more sync of the segment.
    begun.recv_timeout(Duration::from_secs(20)).unwrap();
    gate.open();
    wal.close();
    disk.restart();
    disk.flip_bit(&common::segment(1), common::frame_at(0) + 130, 0);
    assert_eq!(open(&disk).1.corrupt_frames.len(), 1);
}

#[test]
fn the_last_handle_may_be_dropped_in_an_event() {
    let disk = MemDisk::new();
    let (log, _) = Log::open(disk.handle(), patient()).unwrap();
    let slot: Arc<Mutex<Option<WalHandle>>> = Arc::default();
    let (send, dropped) = channel();
    let inside = Arc::clone(&slot);
    let wal = spawn(
        log,
        Box::new(move |_| {
            drop(inside.lock().unwrap().take());
            send.send(()).unwrap();
        }),
    );
    *slot.lock().unwrap() = Some(wal.clone());
    let last = wal.clone();
    drop(wal);
    last.append(1, vec![record(1, 1)]).unwrap();
    drop(last);
    dropped.recv_timeout(Duration::from_secs(20)).unwrap();
}
