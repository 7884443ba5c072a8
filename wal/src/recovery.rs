//! Recovery: what a log tells when it is opened, and reading it.

use crate::control::{self, Control};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::frame::{BLOCK_BYTES, BadFrame};
use crate::segment::{self, BadBlock, Found, SegmentHeader};
use crate::types::{Config, Lsn};
use crate::verdict::{Event, Verdict, judge};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// A record read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The record's LSN.
    pub lsn: Lsn,
    /// The segment that it lies in.
    pub segment: u64,
    /// The record's bytes.
    pub payload: Bytes,
}

/// The LSNs from `first` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostLsns {
    /// The first.
    pub first: Lsn,
    /// Behind the last.
    pub end: Lsn,
}

/// A place below a durable mark where no good frame is. It is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptFrame {
    /// The segment.
    pub segment: u64,
    /// The offset in the segment; 0 for the segment's header.
    pub offset: u64,
    /// What is wrong there.
    pub reason: BadFrame,
    /// The LSNs that were there, as far as they are known. Second copies may have survived elsewhere.
    pub lsns: LostLsns,
}

/// A frame that was being written when the log ended, and that nobody was told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u64,
    /// The offset in the segment.
    pub offset: u64,
    /// What is wrong there.
    pub reason: BadFrame,
}

/// What the log holds, and what it knows to be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Every group's records, in log order.
    pub groups: BTreeMap<u64, Vec<Recovered>>,
    /// The groups in [`Recovery::groups`] that cannot prove that nothing of theirs is lost. See
    /// [`Recovery::is_suspect`] for groups of which not one record was found.
    pub suspects: BTreeSet<u64>,
    /// Corrupt places, to be reported. They stay on disk until their segment is released.
    pub corrupt_frames: Vec<CorruptFrame>,
    /// Runs of LSNs from which records are missing.
    pub lost: Vec<LostLsns>,
    /// It cannot be proved that no promise was in a lost frame: this node must not vote under its id.
    pub promises_lost: bool,
    /// A torn frame that was cut.
    pub torn_tail: Option<TornTail>,
}

impl Recovery {
    /// Whether records of this group may be lost. A group without any record is suspect as soon as
    /// anything is.
    pub fn is_suspect(&self, group: u64) -> bool {
        self.suspects.contains(&group) || (!self.lost.is_empty() && !self.groups.contains_key(&group))
    }
}

/// A live segment's file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) bytes: u64,
    pub(crate) base_lsn: Lsn,
    pub(crate) base_frame: u64,
}

/// Everything that opening a log learns from the disk, before it changes anything but a new log's
/// first control file.
pub(crate) struct Reading {
    pub(crate) control: Control,
    pub(crate) names: Vec<String>,
    pub(crate) live: BTreeMap<u64, Live>,
    /// The last segment's salt, if its header is good.
    pub(crate) salt: u64,
    pub(crate) verdict: Verdict,
}

pub(crate) fn read_log(disk: &mut dyn Disk, config: &Config) -> Result<Reading, OpenError> {
    let listed = disk.list();
    let names = listed.map_err(|source| OpenError::Io { operation: "list", file: ".".to_owned(), source })?;
    let control = find_control(disk, &names, config)?;
    let present: BTreeSet<u64> = names.iter().filter_map(|name| segment::sequence_of(name)).collect();
    let newest = present.last().copied().unwrap_or(0).max(control.last_segment);
    let mut events = Vec::new();
    let mut live = BTreeMap::new();
    let mut salt = 0;
    // The log's end as far as headers tell, for segments whose own header is bad.
    let mut base = (control.first_lsn, control.first_frame);
    for sequence in control.first_segment..=newest {
        if !present.contains(&sequence) {
            return Err(OpenError::SegmentMissing { sequence });
        }
        let bytes = read_segment(disk, sequence)?;
        match good_header(&bytes, sequence, config)? {
            Some(header) => {
                base = (header.base_lsn, header.base_frame);
                salt = header.salt;
                events.push(Event::Segment(header));
                for found in segment::scan(&header, &bytes) {
                    if let Found::Frame(frame) = &found {
                        base = (frame.header.end_lsn(), frame.header.number + 1);
                    }
                    events.push(Event::Found(sequence, found));
                }
            }
            None => events.push(Event::BadSegment(sequence)),
        }
        let (base_lsn, base_frame) = match events.iter().rev().find(|event| !matches!(event, Event::Found(..))) {
            Some(Event::Segment(header)) => (header.base_lsn, header.base_frame),
            _ => base,
        };
        live.insert(sequence, Live { bytes: bytes.len() as u64, base_lsn, base_frame });
    }
    let verdict = judge(&control, events);
    Ok(Reading { control, names, live, salt, verdict })
}

fn find_control(disk: &mut dyn Disk, names: &[String], config: &Config) -> Result<Control, OpenError> {
    if names.iter().any(|name| name == control::NAME) {
        let control = control::load(disk)?;
        if control.node != config.node {
            return Err(OpenError::ForeignNode { found: control.node, expected: config.node });
        }
        return Ok(control);
    }
    if names.iter().any(|name| segment::sequence_of(name).is_some()) {
        return Err(OpenError::ControlMissing);
    }
    // A new log. The control file comes first, so that segments without one are never innocent.
    let control = Control::new(config.node);
    control::store(disk, &control).map_err(|source| OpenError::Io {
        operation: "create",
        file: control::NAME.to_owned(),
        source,
    })?;
    Ok(control)
}

/// Reads a whole segment. A read error ends the opening: it is not the end of the log.
fn read_segment(disk: &mut dyn Disk, sequence: u64) -> Result<Vec<u8>, OpenError> {
    let name = segment::name(sequence);
    let mut read = || {
        let mut file = disk.open(&name)?;
        let length = usize::try_from(file.bytes()?).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| OpenError::Io { operation: "read", file: name.clone(), source })
}

/// One of the two header copies that is good and belongs to this segment.
fn good_header(bytes: &[u8], sequence: u64, config: &Config) -> Result<Option<SegmentHeader>, OpenError> {
    for block in bytes.chunks(BLOCK_BYTES).take(2) {
        match SegmentHeader::decode(block) {
            Ok(header) if header.sequence != sequence => {}
            Ok(header) if header.node != config.node => {
                return Err(OpenError::ForeignNode { found: header.node, expected: config.node });
            }
            Ok(header) => return Ok(Some(header)),
            Err(BadBlock::NewerVersion(found)) => {
                let supported = segment::VERSION;
                return Err(OpenError::NewerVersion { file: segment::name(sequence), found, supported });
            }
            Err(BadBlock::Corrupt) => {}
        }
    }
    Ok(None)
}
