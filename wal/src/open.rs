//! Opening a log: read, make durable what was read, and only then tell.
//!
//! The order matters. What was read may be in the page cache only, because the process (not the
//! machine) died before its sync, or because that sync failed. So the last frame, the only one that
//! can be in this state, is written again and synced before anything is built on it.

use crate::control::{self, Control};
use crate::disk::Disk;
use crate::error::{OpenError, is_full};
use crate::frame::BLOCK_BYTES;
use crate::log::{Head, Log, start_segment};
use crate::recovery::{Live, Reading, Recovery, read_log};
use crate::segment::{self, FRAMES_AT, SegmentHeader, salt};
use crate::space::{Need, Space};
use crate::types::{Config, Lsn};
use crate::verdict::Tail;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use tracing::{info, warn};

pub(crate) fn open(mut disk: Box<dyn Disk>, config: Config) -> Result<(Log, Recovery), OpenError> {
    check(&config)?;
    let Reading { control, names, mut live, salt, verdict } = read_log(disk.as_mut(), &config)?;
    let Tail { next_lsn, next_frame, prev_crc, prev_promises, .. } = verdict.tail;
    let mut space = failing("look at", "spare segments", || {
        Space::open(disk.as_mut(), &names, config.segment_bytes, config.spares_max)
    })?;
    // Names that an interrupted predecessor left unsynced.
    failing("sync", ".", || disk.sync_dir())?;
    let head = match (verdict.tail.offset, live.last_key_value()) {
        (Some(offset), Some((sequence, at))) => {
            let place =
                Head { file: open_file(disk.as_mut(), *sequence)?, sequence: *sequence, salt, offset, bytes: at.bytes };
            harden(place, verdict.tail.last_frame)?
        }
        _ => next_segment(disk.as_mut(), &mut space, &mut live, &verdict.tail, &config)?,
    };
    let stored = store_marks(disk.as_mut(), control, head.sequence, next_lsn, next_frame)?;
    failing("recycle", "released segments", || {
        drop_released(disk.as_mut(), &mut space, &names, control.first_segment)
    })?;
    failing("allocate", "the reserve", || space.step(disk.as_mut()))?;
    let recovery = verdict.recovery;
    report(&recovery, &stored);
    let last_of = recovery.groups.iter().filter_map(|(group, records)| Some((*group, records.last()?.lsn))).collect();
    let log = Log {
        disk,
        config,
        control: stored,
        space,
        live,
        head,
        next_lsn,
        next_frame,
        prev_crc,
        prev_promises,
        last_of,
        unmarked: false,
        stopped: false,
        payload: Vec::new(),
    };
    Ok((log, recovery))
}

fn check(config: &Config) -> Result<(), OpenError> {
    let block = BLOCK_BYTES as u64;
    if !config.frame_bytes_max.is_multiple_of(block) || !(block..=1 << 30).contains(&config.frame_bytes_max) {
        return Err(OpenError::Config("frame_bytes_max must be a multiple of 4 KiB, from 4 KiB to 1 GiB"));
    }
    if !config.segment_bytes.is_multiple_of(block) || config.segment_bytes < FRAMES_AT + config.frame_bytes_max {
        return Err(OpenError::Config("segment_bytes must be a multiple of 4 KiB, at least frame_bytes_max + 8 KiB"));
    }
    if config.segment_bytes > u64::from(u32::MAX) {
        return Err(OpenError::Config("segment_bytes must be below 4 GiB"));
    }
    Ok(())
}

fn failing<T>(operation: &'static str, file: &str, act: impl FnOnce() -> io::Result<T>) -> Result<T, OpenError> {
    act().map_err(|source| OpenError::Io { operation, file: file.to_owned(), source })
}

fn open_file(disk: &mut dyn Disk, sequence: u64) -> Result<Box<dyn crate::disk::DiskFile>, OpenError> {
    failing("open", &segment::name(sequence), || disk.open(&segment::name(sequence)))
}

/// Writes the last frame again and syncs: its pages may be in the cache only, marked clean.
fn harden(mut head: Head, last_frame: Option<(u64, u64)>) -> Result<Head, OpenError> {
    let name = segment::name(head.sequence);
    failing("write the last frame again to", &name, || {
        if let Some((offset, bytes)) = last_frame {
            let mut frame = vec![0; bytes as usize];
            head.file.read_at(offset, &mut frame)?;
            head.file.write_at(offset, &[IoSlice::new(&frame)])?;
        }
        head.file.sync()
    })?;
    Ok(head)
}

/// Starts a segment: the first of a new log, or the one behind evidence that must be kept.
fn next_segment(
    disk: &mut dyn Disk,
    space: &mut Space,
    live: &mut BTreeMap<u64, Live>,
    tail: &Tail,
    config: &Config,
) -> Result<Head, OpenError> {
    let sequence = live.last_key_value().map_or(1, |(last, _)| last + 1);
    let header = SegmentHeader {
        node: config.node,
        sequence,
        salt: salt(config, sequence),
        base_lsn: tail.next_lsn,
        base_frame: tail.next_frame,
        prev_crc: tail.prev_crc,
        prev_promises: tail.prev_promises,
    };
    let (head, started) = failing("start", &segment::name(sequence), || {
        space.ensure(disk, 1, Need::Reserve)?;
        start_segment(disk, space, &header)
    })?;
    live.insert(sequence, started);
    Ok(head)
}

/// The control file vouches for all that was found. Without space it keeps its older marks.
fn store_marks(
    disk: &mut dyn Disk,
    control: Control,
    last_segment: u64,
    next_lsn: Lsn,
    next_frame: u64,
) -> Result<Control, OpenError> {
    let newer = Control {
        generation: control.generation + 1,
        last_segment,
        durable: next_lsn.prev(),
        durable_frame: next_frame - 1,
        ..control
    };
    match control::store(disk, &newer) {
        Ok(()) => Ok(newer),
        Err(error) if is_full(&error) => {
            warn!("no space to renew the control file; the log opens with its older marks");
            Ok(control)
        }
        Err(source) => Err(OpenError::Io { operation: "replace", file: control::NAME.to_owned(), source }),
    }
}

/// Finishes a release that a crash interrupted behind the control file.
fn drop_released(disk: &mut dyn Disk, space: &mut Space, names: &[String], first_segment: u64) -> io::Result<()> {
    for name in names {
        if segment::sequence_of(name).is_some_and(|sequence| sequence < first_segment) {
            let bytes = disk.open(name)?.bytes()?;
            space.recycle(disk, name, bytes)?;
        }
    }
    disk.sync_dir()
}

fn report(recovery: &Recovery, control: &Control) {
    for corrupt in &recovery.corrupt_frames {
        warn!(
            segment = corrupt.segment,
            offset = corrupt.offset,
            first_lsn = corrupt.lsns.first.0,
            end_lsn = corrupt.lsns.end.0,
            "corrupt frame in the log: {}",
            corrupt.reason
        );
    }
    if let Some(torn) = &recovery.torn_tail {
        info!(segment = torn.segment, offset = torn.offset, "cut a torn frame at the end of the log: {}", torn.reason);
    }
    info!(
        first_segment = control.first_segment,
        last_segment = control.last_segment,
        durable = control.durable.0,
        groups = recovery.groups.len(),
        "opened the log"
    );
}
