//! Frames: what one sync makes durable, and the records inside.
//!
//! A frame starts on a 4 KiB boundary and verifies alone, so that recovery can step over a bad one.
//! Byte-exact, little-endian:
//!
//! ```text
//!  0  magic "CPXF"        u32     44  copies            u32
//!  4  segment             u64     48  promises          u32
//! 12  offset              u64     52  prev_promises     u32
//! 20  number              u64     56  payload_bytes     u32
//! 28  first_lsn           u64     60  durable           u64
//! 36  records             u64     68  prev_crc          u32
//!                                 72  payload_crc       u32
//!                                 76  zeros
//!                                 92  crc(salt, 0..92)  u32
//! 96  payload: per record  group u64 · lsn u64 · prev u64 · kind u8 · length u32 · bytes
//!     zeros up to the next 4 KiB boundary
//! ```
//!
//! The frame states its own segment and offset, so a misdirected write verifies nowhere. The
//! predecessor's checksum is a field and not the seed of this one: a bad frame does not make its
//! successors unreadable, but a stale frame in its place is noticed.

use crate::types::Lsn;
use bytes::Bytes;
use thiserror::Error;

/// Frames start on multiples of this.
pub const BLOCK_BYTES: usize = 4096;
/// Size of a frame's header.
pub const HEADER_BYTES: usize = 96;
/// Size of a record's header inside a frame.
pub const RECORD_HEADER_BYTES: usize = 29;
const MAGIC: u32 = u32::from_le_bytes(*b"CPXF");
const CRC_AT: usize = HEADER_BYTES - 4;

/// Why a place in a segment holds no good frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadFrame {
    /// No frame starts here.
    #[error("no frame starts here")]
    NotAFrame,
    /// The header's checksum does not match: rot, a torn write, or a frame of the segment's former life.
    #[error("header checksum mismatch")]
    HeaderChecksum,
    /// A good frame of this segment, but not of this place: a misdirected write.
    #[error("the frame belongs to another place")]
    Misplaced,
    /// The payload does not end inside the segment.
    #[error("the payload ends beyond the segment")]
    Length,
    /// The payload's checksum does not match.
    #[error("payload checksum mismatch")]
    PayloadChecksum,
    /// The payload's checksum matches, but it is not a sequence of records.
    #[error("malformed records")]
    Records,
    /// The next frame was written behind a different one: this one is stale.
    #[error("the next frame names another predecessor")]
    Superseded,
    /// The frame's number is not above its predecessor's.
    #[error("frame number out of order")]
    OutOfOrder,
    /// Both copies of the segment's header are bad, and with them every frame.
    #[error("both copies of the segment header are corrupt")]
    SegmentHeader,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The sequence number of the segment.
    pub segment: u64,
    /// The frame's offset in the segment.
    pub offset: u64,
    /// Frames are numbered through the whole log, from 1.
    pub number: u64,
    /// The LSN of the first new record, or of the next one if there is none.
    pub first_lsn: Lsn,
    /// How many new records the frame holds; their LSNs are consecutive.
    pub records: u64,
    /// How many second copies of earlier records the frame holds.
    pub copies: u32,
    /// How many of the new records are promises.
    pub promises: u32,
    /// The same number of the frame before: if that one is lost, this tells whether promises were.
    pub prev_promises: u32,
    /// The payload's size, without padding.
    pub payload_bytes: u32,
    /// Every record up to this one was durable when the frame was written.
    pub durable: Lsn,
    /// The checksum of the frame before: the last field of its header.
    pub prev_crc: u32,
    /// Checksum of salt and payload.
    pub payload_crc: u32,
}

/// How a record stands in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary record.
    Plain,
    /// The first copy of a promise.
    Promise,
    /// The second copy of a promise.
    PromiseCopy,
}

/// A record inside a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The record's group.
    pub group: u64,
    /// The record's LSN.
    pub lsn: Lsn,
    /// The LSN of the group's record before this one; 0 if the live log holds none.
    pub prev: Lsn,
    /// Ordinary, promise, or a promise's second copy.
    pub kind: Kind,
    /// The record's bytes.
    pub payload: Bytes,
}

impl FrameHeader {
    /// The LSN behind the frame's last new record.
    pub fn end_lsn(&self) -> Lsn {
        self.first_lsn.plus(self.records)
    }

    /// The bytes that the frame takes in its segment.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(u64::from(self.payload_bytes))
    }

    /// The header's bytes, and its checksum, which is their end.
    pub fn encode(&self, salt: u64) -> ([u8; HEADER_BYTES], u32) {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&self.segment.to_le_bytes());
        put(&self.offset.to_le_bytes());
        put(&self.number.to_le_bytes());
        put(&self.first_lsn.0.to_le_bytes());
        put(&self.records.to_le_bytes());
        put(&self.copies.to_le_bytes());
        put(&self.promises.to_le_bytes());
        put(&self.prev_promises.to_le_bytes());
        put(&self.payload_bytes.to_le_bytes());
        put(&self.durable.0.to_le_bytes());
        put(&self.prev_crc.to_le_bytes());
        put(&self.payload_crc.to_le_bytes());
        let crc = salted_crc(salt, &[&bytes[..CRC_AT]]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Reads the header of a frame that starts at `offset` of `segment`, and its checksum.
    pub fn decode(bytes: &[u8], salt: u64, segment: u64, offset: u64) -> Result<(FrameHeader, u32), BadFrame> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(BadFrame::NotAFrame)?;
        let mut fields = Fields(bytes);
        if fields.u32() != Some(MAGIC) {
            return Err(BadFrame::NotAFrame);
        }
        let crc = Fields(&bytes[CRC_AT..]).u32().ok_or(BadFrame::NotAFrame)?;
        if crc != salted_crc(salt, &[&bytes[..CRC_AT]]) {
            return Err(BadFrame::HeaderChecksum);
        }
        let header = Self::fields(&mut fields).ok_or(BadFrame::NotAFrame)?;
        if (header.segment, header.offset) != (segment, offset) {
            return Err(BadFrame::Misplaced);
        }
        Ok((header, crc))
    }

    fn fields(fields: &mut Fields<'_>) -> Option<FrameHeader> {
        Some(FrameHeader {
            segment: fields.u64()?,
            offset: fields.u64()?,
            number: fields.u64()?,
            first_lsn: Lsn(fields.u64()?),
            records: fields.u64()?,
            copies: fields.u32()?,
            promises: fields.u32()?,
            prev_promises: fields.u32()?,
            payload_bytes: fields.u32()?,
            durable: Lsn(fields.u64()?),
            prev_crc: fields.u32()?,
            payload_crc: fields.u32()?,
        })
    }
}

/// The bytes that a frame with this payload takes in its segment, padding included.
pub fn frame_bytes(payload_bytes: u64) -> u64 {
    (HEADER_BYTES as u64 + payload_bytes).next_multiple_of(BLOCK_BYTES as u64)
}

/// Checksum of a salt and some slices.
pub fn salted_crc(salt: u64, slices: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    for slice in slices {
        hasher.update(slice);
    }
    hasher.finalize()
}

/// Appends a record to a payload.
pub fn encode_record(record: &Record, payload: &mut Vec<u8>) {
    let kind = match record.kind {
        Kind::Plain => 0u8,
        Kind::Promise => 1,
        Kind::PromiseCopy => 2,
    };
    let length = u32::try_from(record.payload.len()).expect("a record fits in a frame, whose size is a u32");
    payload.extend_from_slice(&record.group.to_le_bytes());
    payload.extend_from_slice(&record.lsn.0.to_le_bytes());
    payload.extend_from_slice(&record.prev.0.to_le_bytes());
    payload.push(kind);
    payload.extend_from_slice(&length.to_le_bytes());
    payload.extend_from_slice(&record.payload);
}

/// Cuts records into frames, as full as they get.
pub(crate) fn split(records: &[Record], payload_bytes_max: usize) -> Vec<&[Record]> {
    let mut frames = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, record) in records.iter().enumerate() {
        let more = RECORD_HEADER_BYTES + record.payload.len();
        if at > start && bytes + more > payload_bytes_max {
            frames.push(&records[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += more;
    }
    if start < records.len() {
        frames.push(&records[start..]);
    }
    frames
}

pub(crate) fn payload_bytes(records: &[Record]) -> usize {
    records.iter().map(|record| RECORD_HEADER_BYTES + record.payload.len()).sum()
}

/// Reads all records of a frame whose header is good. `frame` starts at the header and reaches at
/// least to the payload's end; payloads are copied out, so that they do not pin it.
pub fn decode_records(header: &FrameHeader, frame: &[u8], salt: u64) -> Result<Vec<Record>, BadFrame> {
    let end = HEADER_BYTES.checked_add(header.payload_bytes as usize).ok_or(BadFrame::Length)?;
    let payload = frame.get(HEADER_BYTES..end).ok_or(BadFrame::Length)?;
    if salted_crc(salt, &[payload]) != header.payload_crc {
        return Err(BadFrame::PayloadChecksum);
    }
    let mut records = Vec::new();
    let mut fields = Fields(payload);
    while !fields.0.is_empty() {
        records.push(record(&mut fields).ok_or(BadFrame::Records)?);
    }
    let mut lsn = header.first_lsn;
    for new in records.iter().filter(|record| record.kind != Kind::PromiseCopy) {
        if new.lsn != lsn {
            return Err(BadFrame::Records);
        }
        lsn = lsn.plus(1);
    }
    if lsn != header.end_lsn() {
        return Err(BadFrame::Records);
    }
    Ok(records)
}

fn record(fields: &mut Fields<'_>) -> Option<Record> {
    let (group, lsn, prev) = (fields.u64()?, Lsn(fields.u64()?), Lsn(fields.u64()?));
    let kind = match fields.take::<1>()?[0] {
        0 => Kind::Plain,
        1 => Kind::Promise,
        2 => Kind::PromiseCopy,
        _ => return None,
    };
    let length = fields.u32()? as usize;
    let payload = Bytes::copy_from_slice(fields.0.get(..length)?);
    fields.0 = &fields.0[length..];
    Some(Record { group, lsn, prev, kind, payload })
}

/// Takes little-endian fields from the front of a slice; `None` where it is too short.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}
