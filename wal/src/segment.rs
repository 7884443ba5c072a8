//! Segments: the files that the log consists of.
//!
//! A segment starts with its header, twice, one 4 KiB block each: without the salt not one of its
//! frames can be verified, so a single rotten sector must not take the header away. Frames follow,
//! one behind the other, each on a block boundary.

use crate::frame::{BLOCK_BYTES, BadFrame, Fields, FrameHeader, Record, decode_records};
use crate::types::{Config, Lsn};

/// The newest segment format that this release reads and the one that it writes.
pub const VERSION: u32 = 1;
/// Where the first frame of a segment starts.
pub const FRAMES_AT: u64 = 2 * BLOCK_BYTES as u64;
const MAGIC: u64 = u64::from_le_bytes(*b"CPXSEGMT");

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The node that owns the log.
    pub node: u64,
    /// The segment's sequence number; consecutive from 1.
    pub sequence: u64,
    /// Part of every checksum in the segment. New in every life of the file, so that frames of its
    /// former life never verify.
    pub salt: u64,
    /// The LSN of the first record that the segment may hold.
    pub base_lsn: Lsn,
    /// The number of the segment's first frame.
    pub base_frame: u64,
    /// The checksum of the frame before.
    pub prev_crc: u32,
    /// How many promises the frame before holds.
    pub prev_promises: u32,
}

/// A checked block could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBlock {
    /// The checksum or the magic number does not match.
    Corrupt,
    /// A newer release wrote it.
    NewerVersion(u32),
}

impl SegmentHeader {
    /// The header's block.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::with_capacity(BLOCK_BYTES);
        for field in [self.node, self.sequence, self.salt, self.base_lsn.0, self.base_frame] {
            fields.extend_from_slice(&field.to_le_bytes());
        }
        fields.extend_from_slice(&self.prev_crc.to_le_bytes());
        fields.extend_from_slice(&self.prev_promises.to_le_bytes());
        encode_block(MAGIC, VERSION, &fields)
    }

    /// Reads one header block.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, BadBlock> {
        let mut fields = decode_block(MAGIC, VERSION, block)?;
        let mut read = || {
            Some(SegmentHeader {
                node: fields.u64()?,
                sequence: fields.u64()?,
                salt: fields.u64()?,
                base_lsn: Lsn(fields.u64()?),
                base_frame: fields.u64()?,
                prev_crc: fields.u32()?,
                prev_promises: fields.u32()?,
            })
        };
        read().ok_or(BadBlock::Corrupt)
    }
}

/// A segment's salt: unpredictable for clients (the seed is), different in every life of a file (the
/// sequence number is). The mixing is SplitMix64's.
pub(crate) fn salt(config: &Config, sequence: u64) -> u64 {
    let mut salt = config.salt_seed;
    for part in [config.node, sequence] {
        salt = salt.wrapping_add(part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        salt = (salt ^ (salt >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        salt = (salt ^ (salt >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        salt ^= salt >> 31;
    }
    salt
}

/// A block with a magic number, a version, fields, zeros, and a checksum over all of it at the end
/// (so that any release can tell a newer format from rot).
pub(crate) fn encode_block(magic: u64, version: u32, fields: &[u8]) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    block.extend_from_slice(&magic.to_le_bytes());
    block.extend_from_slice(&version.to_le_bytes());
    block.extend_from_slice(fields);
    assert!(block.len() <= BLOCK_BYTES - 4, "fields of {} bytes exceed a block", fields.len());
    block.resize(BLOCK_BYTES - 4, 0);
    let crc = crc32fast::hash(&block);
    block.extend_from_slice(&crc.to_le_bytes());
    block
}

pub(crate) fn decode_block(magic: u64, version: u32, block: &[u8]) -> Result<Fields<'_>, BadBlock> {
    let block = block.get(..BLOCK_BYTES).ok_or(BadBlock::Corrupt)?;
    let (body, crc) = block.split_at(BLOCK_BYTES - 4);
    if Fields(crc).u32() != Some(crc32fast::hash(body)) {
        return Err(BadBlock::Corrupt);
    }
    let mut fields = Fields(body);
    if fields.u64() != Some(magic) {
        return Err(BadBlock::Corrupt);
    }
    match fields.u32() {
        Some(found) if found <= version => Ok(fields),
        Some(found) => Err(BadBlock::NewerVersion(found)),
        None => Err(BadBlock::Corrupt),
    }
}

/// The file name of a segment.
pub fn name(sequence: u64) -> String {
    format!("segment-{sequence:016x}")
}

/// The sequence number in a segment's file name.
pub fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    u64::from_str_radix(digits, 16).ok().filter(|sequence| self::name(*sequence) == name)
}

/// A frame whose header is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundFrame {
    /// The header.
    pub header: FrameHeader,
    /// The header's checksum.
    pub crc: u32,
    /// The records, or why they are lost.
    pub records: Result<Vec<Record>, BadFrame>,
}

/// What lies in a segment, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A frame whose header is good.
    Frame(FoundFrame),
    /// A run of blocks where no frame header verifies: the end of the log, or lost frames.
    Gap {
        /// Where it starts.
        offset: u64,
        /// Why there is no frame.
        reason: BadFrame,
    },
}

/// Finds all frames in the bytes of a segment. A bad block does not end the search: the scan goes on
/// at the next block, because a frame starts on a block boundary and verifies alone.
pub fn scan(header: &SegmentHeader, bytes: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut at = FRAMES_AT as usize;
    let mut in_gap = false;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= BLOCK_BYTES) {
        let decoded = FrameHeader::decode(rest, header.salt, header.sequence, at as u64);
        match decoded.and_then(|(frame, crc)| fits(frame, crc, rest)) {
            Ok((frame, crc)) => {
                let records = decode_records(&frame, rest, header.salt);
                at += frame.frame_bytes() as usize;
                in_gap = false;
                found.push(Found::Frame(FoundFrame { header: frame, crc, records }));
            }
            Err(reason) => {
                if !in_gap {
                    found.push(Found::Gap { offset: at as u64, reason });
                }
                in_gap = true;
                at += BLOCK_BYTES;
            }
        }
    }
    found
}

fn fits(frame: FrameHeader, crc: u32, rest: &[u8]) -> Result<(FrameHeader, u32), BadFrame> {
    if frame.frame_bytes() <= rest.len() as u64 { Ok((frame, crc)) } else { Err(BadFrame::Length) }
}
