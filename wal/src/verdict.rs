//! The verdict over what a scan found: what is recovered, what is lost, what was merely torn.
//!
//! Pure: from the control file and the events of a scan to a [`Verdict`]. The rules:
//!
//! * A bad frame is *corrupt* if its number is at or below a durable mark, else *torn*. Marks are the
//!   control file, every good frame header (its predecessor was synced before it) and every segment
//!   header (a segment is started only when all frames before are synced).
//! * Lost records are holes in the sequence of LSNs. Second copies fill holes.
//! * A group is *suspect* if its chain is broken, or if a lost LSN lies above its last recovered
//!   record: only a later record whose predecessor is known proves that the hole was not the group's.
//! * Promises are *lost* unless, for every lost frame, its own header or its successor says how many
//!   it held, and as many second copies were found.

use crate::control::Control;
use crate::frame::{BadFrame, Kind, Record};
use crate::recovery::{CorruptFrame, LostLsns, Recovered, Recovery, TornTail};
use crate::segment::{FRAMES_AT, Found, FoundFrame, SegmentHeader};
use crate::types::Lsn;
use std::collections::{BTreeMap, BTreeSet};

/// A lost tail of unknown length gets this many LSNs and frame numbers: more than any segment holds.
const UNKNOWN_EXTENT: u64 = 1 << 32;

/// What a scan of the live segments yields, in log order.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A segment with a good header begins.
    Segment(SegmentHeader),
    /// A segment without a good header: nothing in it can be verified.
    BadSegment(u64),
    /// Something in the segment of this number.
    Found(u64, Found),
}

/// Where the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The offset of the next frame in the last segment; `None`: only a new segment will do.
    pub(crate) offset: Option<u64>,
    /// Offset and size of the last segment's last frame.
    pub(crate) last_frame: Option<(u64, u64)>,
    pub(crate) next_lsn: Lsn,
    pub(crate) next_frame: u64,
    pub(crate) prev_crc: u32,
    pub(crate) prev_promises: u32,
}

pub(crate) struct Verdict {
    pub(crate) recovery: Recovery,
    pub(crate) tail: Tail,
}

/// A run of lost LSNs and how many promises were among them, if anyone knows.
struct Loss {
    lsns: LostLsns,
    promises: Option<u32>,
}

struct Walk {
    tail: Tail,
    gap: Option<CorruptFrame>,
    records: Vec<(Record, u64)>,
    losses: Vec<Loss>,
    corrupt: Vec<CorruptFrame>,
}

pub(crate) fn judge(control: &Control, mut events: Vec<Event>) -> Verdict {
    condemn_superseded(&mut events);
    let torn_tail = cut_torn_tail(control, &mut events);
    let mut walk = Walk {
        tail: Tail {
            offset: None,
            last_frame: None,
            next_lsn: control.first_lsn,
            next_frame: control.first_frame,
            prev_crc: 0,
            prev_promises: 0,
        },
        gap: None,
        records: Vec::new(),
        losses: Vec::new(),
        corrupt: Vec::new(),
    };
    for event in events {
        walk.event(event);
    }
    walk.end(control);
    let mut recovery = assemble(control, walk.records, &walk.losses);
    recovery.corrupt_frames = walk.corrupt;
    recovery.torn_tail = torn_tail;
    Verdict { recovery, tail: walk.tail }
}

/// A frame whose successor names another predecessor is stale: its own write was lost, and what lies
/// there is what lay there before.
fn condemn_superseded(events: &mut [Event]) {
    let mut last: Option<(usize, u64, u32)> = None;
    for at in 0..events.len() {
        let (number, prev_crc, own_crc) = match &events[at] {
            Event::Segment(header) => (header.base_frame, header.prev_crc, None),
            Event::Found(_, Found::Frame(frame)) => (frame.header.number, frame.header.prev_crc, Some(frame.crc)),
            Event::BadSegment(_) | Event::Found(_, Found::Gap { .. }) => continue,
        };
        if let Some((before, before_number, crc)) = last
            && before_number + 1 == number
            && crc != prev_crc
            && let Event::Found(_, Found::Frame(frame)) = &mut events[before]
        {
            frame.records = Err(BadFrame::Superseded);
        }
        if let Some(crc) = own_crc {
            last = Some((at, number, crc));
        }
    }
}

/// Cuts the last frame if it is bad and above every mark. Since frame k+1 is written only after k was
/// synced, no other frame can be torn.
fn cut_torn_tail(control: &Control, events: &mut Vec<Event>) -> Option<TornTail> {
    let last = events.iter().rposition(|event| !matches!(event, Event::Found(_, Found::Gap { .. })))?;
    let Event::Found(segment, Found::Frame(frame)) = &events[last] else { return None };
    let reason = *frame.records.as_ref().err()?;
    if frame.header.number <= control.durable_frame {
        return None;
    }
    let torn = TornTail { segment: *segment, offset: frame.header.offset, reason };
    events.truncate(last);
    Some(torn)
}

impl Walk {
    fn event(&mut self, event: Event) {
        match event {
            Event::Segment(header) => {
                self.witness(header.base_frame, header.base_lsn, header.prev_promises);
                self.tail.offset = Some(FRAMES_AT);
                self.tail.last_frame = None;
                self.tail.prev_crc = header.prev_crc;
                self.tail.prev_promises = header.prev_promises;
            }
            Event::BadSegment(segment) => {
                let lsns = LostLsns { first: self.tail.next_lsn, end: self.tail.next_lsn };
                self.gap = Some(CorruptFrame { segment, offset: 0, reason: BadFrame::SegmentHeader, lsns });
                self.tail.offset = None;
                self.tail.last_frame = None;
            }
            Event::Found(segment, Found::Gap { offset, reason }) => {
                let lsns = LostLsns { first: self.tail.next_lsn, end: self.tail.next_lsn };
                self.gap.get_or_insert(CorruptFrame { segment, offset, reason, lsns });
            }
            Event::Found(segment, Found::Frame(frame)) => self.frame(segment, frame),
        }
    }

    /// A good header says which frame comes here; what is missing before it is lost.
    fn witness(&mut self, number: u64, first_lsn: Lsn, prev_promises: u32) {
        let missing = number.saturating_sub(self.tail.next_frame);
        let gap = self.gap.take();
        if missing == 0 && gap.is_none_or(|gap| gap.reason != BadFrame::SegmentHeader) {
            return;
        }
        let lsns = LostLsns { first: self.tail.next_lsn, end: first_lsn.max(self.tail.next_lsn) };
        if let Some(gap) = gap {
            self.corrupt.push(CorruptFrame { lsns, ..gap });
        }
        self.losses.push(Loss { lsns, promises: (missing == 1).then_some(prev_promises) });
        self.tail.next_frame = self.tail.next_frame.max(number);
        self.tail.next_lsn = lsns.end;
    }

    fn frame(&mut self, segment: u64, frame: FoundFrame) {
        let FoundFrame { header, crc, records } = frame;
        if header.number < self.tail.next_frame || header.first_lsn < self.tail.next_lsn {
            let lsns = LostLsns { first: self.tail.next_lsn, end: self.tail.next_lsn };
            let (offset, reason) = (header.offset, BadFrame::OutOfOrder);
            self.corrupt.push(CorruptFrame { segment, offset, reason, lsns });
            self.tail.offset = Some(header.offset + header.frame_bytes());
            return;
        }
        self.witness(header.number, header.first_lsn, header.prev_promises);
        self.tail = Tail {
            offset: Some(header.offset + header.frame_bytes()),
            last_frame: Some((header.offset, header.frame_bytes())),
            next_lsn: header.end_lsn(),
            next_frame: header.number + 1,
            prev_crc: crc,
            prev_promises: header.promises,
        };
        match records {
            Ok(records) => self.records.extend(records.into_iter().map(|record| (record, segment))),
            Err(reason) => {
                let lsns = LostLsns { first: header.first_lsn, end: header.end_lsn() };
                self.corrupt.push(CorruptFrame { segment, offset: header.offset, reason, lsns });
                self.losses.push(Loss { lsns, promises: Some(header.promises) });
                // It must stay as it is, for whoever examines it.
                self.tail.last_frame = None;
            }
        }
    }

    /// The end of the log: is anything missing that a mark vouches for?
    fn end(&mut self, control: &Control) {
        let bad_segment = self.gap.is_some_and(|gap| gap.reason == BadFrame::SegmentHeader);
        let missing = control.durable_frame >= self.tail.next_frame;
        if !bad_segment && !missing {
            return;
        }
        // The evidence is not overwritten: the log goes on in a new segment.
        self.tail.offset = None;
        self.tail.last_frame = None;
        let first = self.tail.next_lsn;
        let mut lsns = LostLsns { first, end: first.max(control.durable.plus(1)) };
        self.tail.next_frame = self.tail.next_frame.max(control.durable_frame + 1);
        if bad_segment || lsns.first < lsns.end {
            lsns.end = lsns.end.plus(UNKNOWN_EXTENT);
            self.tail.next_frame += UNKNOWN_EXTENT;
        }
        self.tail.next_lsn = lsns.end;
        self.corrupt.extend(self.gap.take().map(|gap| CorruptFrame { lsns, ..gap }));
        self.losses.push(Loss { lsns, promises: None });
    }
}

fn assemble(control: &Control, mut records: Vec<(Record, u64)>, losses: &[Loss]) -> Recovery {
    // A second copy whose original lies in a released segment is released with it.
    records.retain(|(record, _)| record.lsn >= control.first_lsn);
    records.sort_by_key(|(record, _)| (record.lsn, record.kind == Kind::PromiseCopy));
    records.dedup_by_key(|(record, _)| record.lsn);
    let recovered: BTreeSet<Lsn> = match losses {
        [] => BTreeSet::new(),
        _ => records.iter().map(|(record, _)| record.lsn).collect(),
    };
    let copies: Vec<Lsn> =
        records.iter().filter(|(record, _)| record.kind == Kind::PromiseCopy).map(|(record, _)| record.lsn).collect();
    let mut recovery = Recovery::default();
    let mut last_lost = None;
    for Loss { lsns, promises } in losses.iter().filter(|loss| loss.lsns.first < loss.lsns.end) {
        let found = copies.iter().filter(|lsn| (lsns.first..lsns.end).contains(lsn)).count();
        recovery.promises_lost |= promises.is_none_or(|promises| found < promises as usize);
        let mut last = lsns.end.prev();
        while last >= lsns.first && recovered.contains(&last) {
            last = last.prev();
        }
        if last >= lsns.first {
            last_lost = last_lost.max(Some(last));
            recovery.lost.push(*lsns);
        }
    }
    let mut last_of: BTreeMap<u64, Lsn> = BTreeMap::new();
    for (record, segment) in records {
        let before = last_of.insert(record.group, record.lsn);
        let linked = before.map_or(record.prev < control.first_lsn, |before| record.prev == before);
        if !linked {
            recovery.suspects.insert(record.group);
        }
        let Record { group, lsn, prev: _, kind: _, payload } = record;
        recovery.groups.entry(group).or_default().push(Recovered { lsn, segment, payload });
    }
    if let Some(lost) = last_lost {
        recovery.suspects.extend(last_of.iter().filter(|(_, last)| **last < lost).map(|(group, _)| *group));
    }
    recovery
}
