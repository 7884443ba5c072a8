//! No bytes from a disk make a decoder panic, and every format survives its round trip.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{NODE, config, open, record, segment};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use wal::control::Control;
use wal::frame::{self, FrameHeader, HEADER_BYTES, Kind, Record, decode_records, encode_record, salted_crc};
use wal::segment::{Found, SegmentHeader, scan};
use wal::testdisk::MemDisk;
use wal::{Log, Lsn};

fn a_record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![Just(Kind::Plain), Just(Kind::Promise)];
    (any::<u64>(), any::<u64>(), kind, vec(any::<u8>(), 0..300)).prop_map(|(group, prev, kind, payload)| Record {
        group,
        lsn: Lsn(0),
        prev: Lsn(prev),
        kind,
        payload: Bytes::from(payload),
    })
}

/// A frame of these records at `offset`, followed by zeros.
fn frame_of(records: &[Record], salt: u64, offset: u64) -> (FrameHeader, Vec<u8>) {
    let mut payload = Vec::new();
    records.iter().for_each(|record| encode_record(record, &mut payload));
    let header = FrameHeader {
        segment: 3,
        offset,
        number: 9,
        first_lsn: Lsn(100),
        records: records.len() as u64,
        copies: 0,
        promises: 0,
        prev_promises: 0,
        payload_bytes: payload.len() as u32,
        durable: Lsn(99),
        prev_crc: 5,
        payload_crc: salted_crc(salt, &[&payload]),
    };
    let mut bytes = header.encode(salt).0.to_vec();
    bytes.extend(payload);
    bytes.resize(header.frame_bytes() as usize, 0);
    (header, bytes)
}

fn numbered(mut records: Vec<Record>) -> Vec<Record> {
    records.iter_mut().zip(100..).for_each(|(record, lsn)| record.lsn = Lsn(lsn));
    records
}

fn segment_header(salt: u64) -> SegmentHeader {
    SegmentHeader { node: NODE, sequence: 3, salt, base_lsn: Lsn(100), base_frame: 9, prev_crc: 5, prev_promises: 0 }
}

proptest! {
    #[test]
    fn random_bytes_decode_to_nothing(bytes in vec(any::<u8>(), 0..10_000), salt: u64) {
        assert!(FrameHeader::decode(&bytes, salt, 1, 8192).is_err());
        assert!(SegmentHeader::decode(&bytes).is_err());
        assert!(Control::decode(&bytes).is_err());
        let found = scan(&segment_header(salt), &bytes);
        assert!(found.iter().all(|found| matches!(found, Found::Gap { .. })));
    }

    /// Behind good checksums, any payload is either records or refused.
    #[test]
    fn random_payloads_behind_good_checksums_never_panic(payload in vec(any::<u8>(), 0..500), records: u64, first: u64) {
        let (header, _) = frame_of(&[], 1, 8192);
        let header = FrameHeader {
            records,
            first_lsn: Lsn(first),
            payload_bytes: payload.len() as u32,
            payload_crc: salted_crc(1, &[&payload]),
            ..header
        };
        let mut bytes = header.encode(1).0.to_vec();
        bytes.extend(&payload);
        let (decoded, _) = FrameHeader::decode(&bytes, 1, 3, 8192).unwrap();
        assert_eq!(decoded, header);
        if let Ok(found) = decode_records(&decoded, &bytes, 1) {
            let new = found.iter().filter(|record| record.kind != Kind::PromiseCopy).count();
            assert_eq!(new as u64, records);
        }
    }

    /// A header with good checksums but senseless numbers.
    #[test]
    fn senseless_headers_never_panic(payload_bytes: u32, records: u64, number: u64, first: u64) {
        let (header, bytes) = frame_of(&[], 1, 8192);
        let header = FrameHeader { payload_bytes, records, number, first_lsn: Lsn(first), ..header };
        let mut image = vec![0; 8192];
        image.extend(header.encode(1).0);
        image.extend(&bytes[HEADER_BYTES..]);
        scan(&segment_header(1), &image);
    }

    #[test]
    fn records_survive_the_round_trip(records in vec(a_record(), 0..10), salt: u64) {
        let records = numbered(records);
        let (header, bytes) = frame_of(&records, salt, 8192);
        let (decoded, _) = FrameHeader::decode(&bytes, salt, 3, 8192).unwrap();
        assert_eq!(decoded, header);
        assert_eq!(decode_records(&decoded, &bytes, salt).unwrap(), records);
        // Not under another salt, not at another place.
        assert!(FrameHeader::decode(&bytes, salt ^ 1, 3, 8192).is_err());
        assert!(FrameHeader::decode(&bytes, salt, 4, 8192).is_err());
        assert!(FrameHeader::decode(&bytes, salt, 3, 4096).is_err());
    }

    #[test]
    fn one_changed_byte_never_yields_other_records(records in vec(a_record(), 1..5), at: u16, change in 1u8..) {
        let records = numbered(records);
        let (header, mut bytes) = frame_of(&records, 7, 8192);
        let at = at as usize % bytes.len();
        bytes[at] ^= change;
        let padding = at >= HEADER_BYTES + header.payload_bytes as usize;
        let found = FrameHeader::decode(&bytes, 7, 3, 8192)
            .and_then(|(header, _)| decode_records(&header, &bytes, 7));
        assert_eq!(found.is_ok(), padding);
    }

    #[test]
    fn headers_and_control_files_survive_the_round_trip(numbers: [u64; 8], crc: u32, promises: u32) {
        let header = SegmentHeader {
            node: numbers[0], sequence: numbers[1], salt: numbers[2], base_lsn: Lsn(numbers[3]),
            base_frame: numbers[4], prev_crc: crc, prev_promises: promises,
        };
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        let control = Control {
            node: numbers[0], generation: numbers[1], first_segment: numbers[2], first_lsn: Lsn(numbers[3]),
            first_frame: numbers[4], last_segment: numbers[5], durable: Lsn(numbers[6]), durable_frame: numbers[7],
        };
        assert_eq!(Control::decode(&control.encode()), Ok(control));
    }

    /// A whole log with random damage opens or says why not, and what it yields was written.
    #[test]
    fn a_damaged_log_never_panics_and_never_invents(damage in vec((0usize..6, any::<u32>(), any::<u8>()), 0..40)) {
        let disk = MemDisk::new();
        let (mut log, _) = open(&disk);
        for number in 0..20 {
            log.append(&[record(number % 3, number), common::promise(number % 3, number)]).unwrap();
        }
        disk.restart();
        let files: Vec<String> = (1..=6).map(segment).chain(["control".to_owned()]).collect();
        for (file, offset, bits) in damage {
            let name = &files[file];
            let bytes = disk.contents(name).map_or(1, |contents| contents.len() as u32);
            disk.flip_bit(name, u64::from(offset % bytes), bits);
        }
        let Ok((_, recovery)) = Log::open(disk.handle(), config()) else { return Ok(()) };
        for (group, records) in &recovery.groups {
            assert!(records.is_sorted_by(|a, b| a.lsn < b.lsn));
            for recovered in records {
                let number = (recovered.lsn.0 - 1) / 2;
                assert_eq!((*group, &recovered.payload), (number % 3, &record(*group, number).payload));
            }
        }
        let count: usize = recovery.groups.values().map(Vec::len).sum();
        // The very last frame may pass for torn; everything else that is missing is reported.
        assert!(count >= 38 || !recovery.corrupt_frames.is_empty(), "{count} records and nothing reported");
    }
}

#[test]
fn a_frame_of_a_small_append_is_one_block() {
    assert_eq!(frame::frame_bytes(0), 4096);
    assert_eq!(frame::frame_bytes(12 * (29 + 300)), 4096);
    assert_eq!(frame::frame_bytes(4000), 4096);
    assert_eq!(frame::frame_bytes(4001), 8192);
}
