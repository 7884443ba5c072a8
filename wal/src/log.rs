//! The log's synchronous core: frames in, one sync each.
//!
//! Used by the log's thread and, unchanged, by the simulator.

use crate::control::{self, Control};
use crate::disk::{Disk, DiskFile};
use crate::error::{LogError, OpenError, is_full};
use crate::frame::{
    BLOCK_BYTES, FrameHeader, HEADER_BYTES, Kind, Record, encode_record, frame_bytes, payload_bytes, salted_crc, split,
};
use crate::recovery::{Live, Recovery};
use crate::segment::{self, FRAMES_AT, SegmentHeader, salt};
use crate::space::{Need, Space};
use crate::types::{Append, Config, Lsn, Synced};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::RangeInclusive;

static PADDING: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// The segment that is being written.
pub(crate) struct Head {
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) sequence: u64,
    pub(crate) salt: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// An open log.
pub struct Log {
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) config: Config,
    pub(crate) control: Control,
    pub(crate) space: Space,
    pub(crate) live: BTreeMap<u64, Live>,
    pub(crate) head: Head,
    pub(crate) next_lsn: Lsn,
    pub(crate) next_frame: u64,
    pub(crate) prev_crc: u32,
    pub(crate) prev_promises: u32,
    /// The last record of each group: the next one's predecessor.
    pub(crate) last_of: BTreeMap<u64, Lsn>,
    /// The last frame is above every mark.
    pub(crate) unmarked: bool,
    pub(crate) stopped: bool,
    pub(crate) payload: Vec<u8>,
}

impl Log {
    /// Opens the log in `disk`, or creates it, and reads back what it holds. Everything in the
    /// returned [`Recovery`] is durable.
    pub fn open(disk: Box<dyn Disk>, config: Config) -> Result<(Log, Recovery), OpenError> {
        crate::open::open(disk, config)
    }

    /// Appends all records in order and makes them durable: one frame and one sync, a few if they
    /// exceed `frame_bytes_max`, and one more with the second copies if any is to be written twice.
    /// After [`LogError::Full`] nothing was written, and the log can be used further.
    pub fn append(&mut self, records: &[Append]) -> Result<Synced, LogError> {
        self.append_needing(records, Need::Ordinary)
    }

    /// Like [`Log::append`], for the state that a reclaim rewrites: on a full disk it may use the
    /// reserve, which the segments released afterwards replace.
    pub fn append_reclaim(&mut self, records: &[Append]) -> Result<Synced, LogError> {
        self.append_needing(records, Need::Reserve)
    }

    /// Writes the small frame that makes the last frame provably durable, unless it is already. To
    /// be called when there is nothing else to write, outside of anyone's latency.
    pub fn mark_idle(&mut self) -> Result<(), LogError> {
        self.check_running()?;
        if !self.unmarked {
            return Ok(());
        }
        if self.head.offset + frame_bytes(0) <= self.head.bytes {
            match self.write_frame(&[], true) {
                // A file system that copies on write has no space for it: the next frame is a mark, too.
                Err(LogError::Full { .. }) => Ok(()),
                written => written,
            }
        } else {
            self.store_control()
        }
    }

    /// Whether [`Log::mark_idle`] would write.
    pub fn needs_mark(&self) -> bool {
        self.unmarked && !self.stopped
    }

    /// A bounded piece of work (a mebibyte at most) towards the next segment, so that rotating does
    /// not have to wait for a whole one. Returns whether there is more to do.
    pub fn prepare(&mut self) -> Result<bool, LogError> {
        self.check_running()?;
        let step = self.space.step(self.disk.as_mut());
        step.map_err(|source| self.stop("prepare", "spare segment", source))
    }

    /// The sequence numbers of the segments that the log consists of.
    pub fn live_segments(&self) -> RangeInclusive<u64> {
        self.control.first_segment..=self.head.sequence
    }

    /// The size of the live segments' files.
    pub fn live_bytes(&self) -> u64 {
        self.live.values().map(|live| live.bytes).sum()
    }

    /// The last durable LSN.
    pub fn durable(&self) -> Lsn {
        self.next_lsn.prev()
    }

    /// The log's settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn check_running(&self) -> Result<(), LogError> {
        if self.stopped { Err(LogError::Stopped) } else { Ok(()) }
    }

    /// After a failed write or sync nobody knows what the disk holds: this log is over.
    pub(crate) fn stop(&mut self, operation: &'static str, file: &str, source: io::Error) -> LogError {
        self.stopped = true;
        LogError::Io { operation, file: file.to_owned(), source }
    }

    fn append_needing(&mut self, appends: &[Append], need: Need) -> Result<Synced, LogError> {
        self.check_running()?;
        let bytes_max = self.config.record_bytes_max();
        if let Some(large) = appends.iter().find(|append| append.payload.len() > bytes_max) {
            return Err(LogError::RecordTooLarge { bytes: large.payload.len(), bytes_max });
        }
        let records = self.number(appends);
        let copies: Vec<Record> = records
            .iter()
            .filter(|record| record.kind == Kind::Promise)
            .map(|record| Record { kind: Kind::PromiseCopy, ..record.clone() })
            .collect();
        let payload_max = self.config.frame_bytes_max as usize - HEADER_BYTES;
        let frames: Vec<&[Record]> =
            split(&records, payload_max).into_iter().chain(split(&copies, payload_max)).collect();
        // All space first: an append is refused as a whole or not at all.
        let segments = self.segments_needed(&frames);
        match self.space.ensure(self.disk.as_mut(), segments, need) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Err(LogError::Full { operation: "allocate a segment" }),
            Err(error) => return Err(self.stop("create", "spare segment", error)),
        }
        let mut first_segment = None;
        for frame in frames {
            self.write_frame(frame, first_segment.is_none())?;
            first_segment.get_or_insert(self.head.sequence);
        }
        self.last_of.extend(records.iter().map(|record| (record.group, record.lsn)));
        let segment = self.head.sequence;
        Ok(Synced { durable: self.durable(), first_segment: first_segment.unwrap_or(segment), segment })
    }

    /// Gives the records their LSNs and their places in their groups' chains.
    fn number(&self, appends: &[Append]) -> Vec<Record> {
        let mut heads: BTreeMap<u64, Lsn> = BTreeMap::new();
        let numbered = appends.iter().zip(self.next_lsn.0..).map(|(append, lsn)| {
            let before = heads.insert(append.group, Lsn(lsn));
            let prev = before.or_else(|| self.last_of.get(&append.group).copied()).unwrap_or_default();
            let kind = if append.twice { Kind::Promise } else { Kind::Plain };
            Record { group: append.group, lsn: Lsn(lsn), prev, kind, payload: append.payload.clone() }
        });
        numbered.collect()
    }

    fn segments_needed(&self, frames: &[&[Record]]) -> usize {
        let mut left = self.head.bytes - self.head.offset;
        let mut segments = 0;
        for frame in frames {
            let bytes = frame_bytes(payload_bytes(frame) as u64);
            if bytes > left {
                segments += 1;
                left = self.config.segment_bytes - FRAMES_AT;
            }
            left -= bytes;
        }
        segments
    }

    /// Writes one frame and syncs it. `refusable`: nothing of the append is on disk yet, so a file
    /// system that finds itself full now (one that copies on write) refuses the append.
    fn write_frame(&mut self, records: &[Record], refusable: bool) -> Result<(), LogError> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        records.iter().for_each(|record| encode_record(record, &mut payload));
        let written = self.write_payload(records, &payload, refusable);
        self.payload = payload;
        written
    }

    fn write_payload(&mut self, records: &[Record], payload: &[u8], refusable: bool) -> Result<(), LogError> {
        let bytes = frame_bytes(payload.len() as u64);
        if self.head.offset + bytes > self.head.bytes {
            self.rotate()?;
        }
        let copies = records.iter().filter(|record| record.kind == Kind::PromiseCopy).count();
        let promises = records.iter().filter(|record| record.kind == Kind::Promise).count() as u32;
        let header = FrameHeader {
            segment: self.head.sequence,
            offset: self.head.offset,
            number: self.next_frame,
            first_lsn: self.next_lsn,
            records: (records.len() - copies) as u64,
            copies: copies as u32,
            promises,
            prev_promises: self.prev_promises,
            payload_bytes: payload.len() as u32,
            durable: self.durable(),
            prev_crc: self.prev_crc,
            payload_crc: salted_crc(self.head.salt, &[payload]),
        };
        let (encoded, crc) = header.encode(self.head.salt);
        let padding = &PADDING[..bytes as usize - HEADER_BYTES - payload.len()];
        let slices = [IoSlice::new(&encoded), IoSlice::new(payload), IoSlice::new(padding)];
        if let Err(error) = self.head.file.write_at(self.head.offset, &slices) {
            if is_full(&error) && refusable {
                return Err(LogError::Full { operation: "write a frame" });
            }
            return Err(self.stop("write", &segment::name(header.segment), error));
        }
        if let Err(error) = self.head.file.sync() {
            return Err(self.stop("sync", &segment::name(header.segment), error));
        }
        self.head.offset += bytes;
        self.next_lsn = header.end_lsn();
        self.next_frame += 1;
        self.prev_crc = crc;
        self.prev_promises = promises;
        self.unmarked = !records.is_empty();
        Ok(())
    }

    /// Starts the next segment. Its header is durable before its name is, and its name before its
    /// first frame.
    fn rotate(&mut self) -> Result<(), LogError> {
        let sequence = self.head.sequence + 1;
        let header = SegmentHeader {
            node: self.config.node,
            sequence,
            salt: salt(&self.config, sequence),
            base_lsn: self.next_lsn,
            base_frame: self.next_frame,
            prev_crc: self.prev_crc,
            prev_promises: self.prev_promises,
        };
        match start_segment(self.disk.as_mut(), &mut self.space, &header) {
            Ok((head, live)) => {
                self.head = head;
                self.live.insert(header.sequence, live);
            }
            Err(error) => return Err(self.stop("start", &segment::name(header.sequence), error)),
        }
        self.store_control()
    }

    /// Stores the control file with the newest marks. That it finds no space is no failure: it only
    /// keeps older marks then.
    fn store_control(&mut self) -> Result<(), LogError> {
        let control = Control {
            generation: self.control.generation + 1,
            last_segment: self.head.sequence,
            durable: self.durable(),
            durable_frame: self.next_frame - 1,
            ..self.control
        };
        match control::store(self.disk.as_mut(), &control) {
            Ok(()) => {
                self.control = control;
                self.unmarked = false;
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.unmarked = false;
                Ok(())
            }
            Err(error) => Err(self.stop("replace", control::NAME, error)),
        }
    }
}

/// Makes a spare file the segment that `header` describes.
pub(crate) fn start_segment(
    disk: &mut dyn Disk,
    space: &mut Space,
    header: &SegmentHeader,
) -> io::Result<(Head, Live)> {
    let spare = space.take().ok_or(io::ErrorKind::StorageFull)?;
    let mut file = disk.open(&spare)?;
    let block = header.encode();
    file.write_at(0, &[IoSlice::new(&block), IoSlice::new(&block)])?;
    file.sync()?;
    disk.rename(&spare, &segment::name(header.sequence))?;
    disk.sync_dir()?;
    let bytes = file.bytes()?;
    let live = Live { bytes, base_lsn: header.base_lsn, base_frame: header.base_frame };
    Ok((Head { file, sequence: header.sequence, salt: header.salt, offset: FRAMES_AT, bytes }, live))
}
