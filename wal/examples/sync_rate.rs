//! How many syncs per second the log reaches on a disk, beside the bare `pwrite` + `fdatasync` of
//! 4 KiB that it cannot beat.
//!
//! ```text
//! cargo run --release -p wal --example sync_rate -- DIRECTORY [SECONDS]
//! ```
//!
//! The two alternate, round by round, so that the ratio is taken under equal conditions.
#![allow(clippy::disallowed_methods)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use wal::{Append, Config, FileDisk, Log, WalEvent, WalHandle, spawn};

type AnyError = Box<dyn std::error::Error>;

fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().unwrap_or_else(|| ".".to_owned());
    let seconds = arguments.next().map_or(Ok(1.0), |seconds| seconds.parse())?;
    let directory = tempfile::tempdir_in(parent)?;
    let opening = Instant::now();
    let disk = FileDisk::open(&directory.path().join("wal"))?;
    let (log, _) = Log::open(Box::new(disk), Config::new(1, 1))?;
    println!("first opening: {:?}", opening.elapsed());
    let acknowledged: Arc<(Mutex<u64>, Condvar)> = Arc::default();
    let (send, events) = channel();
    let publish = Arc::clone(&acknowledged);
    let wal = spawn(
        log,
        Box::new(move |event| {
            if let WalEvent::Durable { ticket, .. } = event {
                *publish.0.lock().expect("nobody panics with the lock") = ticket;
                publish.1.notify_all();
                send.send(ticket).expect("main receives as long as the thread runs");
            }
        }),
    );
    let duration = Duration::from_secs_f64(seconds);
    let mut ticket = 0;
    for _ in 0..5 {
        let raw = raw_rate(directory.path(), duration)?;
        let alone = lone_rate(&wal, &events, &mut ticket, duration)?;
        println!("raw 4 KiB {raw:8.0}/s    one client {alone:8.0}/s ({:3.0} %)", 100.0 * alone / raw);
    }
    for clients in [8, 64, 256] {
        while events.try_recv().is_ok() {}
        let before = wal.stats();
        let rate = many_rate(&wal, &acknowledged, &mut ticket, clients, duration);
        let drains = (wal.stats().drains - before.drains) as f64;
        println!("{clients:4} in flight {rate:8.0} records/s in {:8.0} syncs/s", drains / seconds);
    }
    Ok(())
}

fn raw_rate(directory: &Path, duration: Duration) -> Result<f64, AnyError> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("raw"))?;
    let size = 64 << 20;
    if file.metadata()?.len() < size {
        file.write_all_at(&vec![0; size as usize], 0)?;
        file.sync_all()?;
    }
    let (started, mut syncs) = (Instant::now(), 0u64);
    while started.elapsed() < duration {
        file.write_all_at(&[syncs as u8; 4096], syncs * 4096 % size)?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(syncs as f64 / started.elapsed().as_secs_f64())
}

fn append(ticket: u64) -> Vec<Append> {
    vec![Append { group: ticket % 16, payload: vec![ticket as u8; 300].into(), twice: false }]
}

fn lone_rate(wal: &WalHandle, events: &Receiver<u64>, ticket: &mut u64, duration: Duration) -> Result<f64, AnyError> {
    let (started, before) = (Instant::now(), *ticket);
    while started.elapsed() < duration {
        *ticket += 1;
        wal.append(*ticket, append(*ticket))?;
        while events.recv()? < *ticket {}
    }
    Ok((*ticket - before) as f64 / started.elapsed().as_secs_f64())
}

/// A closed loop with `clients` appends in flight.
fn many_rate(
    wal: &WalHandle,
    acknowledged: &(Mutex<u64>, Condvar),
    ticket: &mut u64,
    clients: u64,
    duration: Duration,
) -> f64 {
    let (started, before) = (Instant::now(), *ticket);
    while started.elapsed() < duration {
        let seen = acknowledged.0.lock().expect("nobody panics with the lock");
        let seen = acknowledged.1.wait_while(seen, |seen| *ticket - *seen >= clients);
        let room = clients - (*ticket - *seen.expect("nobody panics with the lock"));
        for _ in 0..room {
            *ticket += 1;
            if wal.append(*ticket, append(*ticket)).is_err() {
                *ticket -= 1;
            }
        }
    }
    (*ticket - before) as f64 / started.elapsed().as_secs_f64()
}
