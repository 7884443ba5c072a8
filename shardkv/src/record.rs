//! What version rows and index rows hold.
//!
//! ```text
//! version   = flags(1) mod(varint) [create(varint) version(varint) lease(varint) value…]
//!             flags: bit 0 = tombstone (nothing follows mod); the other bits are 0
//! index row = first revision(varint), then per change:
//!             revision − the one before(varint) operation(varint) flags(1, bit 0 = delete)
//!             revision of the version before, or 0(varint) key length(varint) key
//! ```
//!
//! Varints are LEB128. A version's bytes are written once and moved as they are.

use crate::ops::KeyValue;
use crate::store::StoreError;
use crate::types::Revision;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

const TOMBSTONE: u8 = 1;

/// A version without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) tombstone: bool,
    pub(crate) mod_revision: Revision,
    pub(crate) create_revision: Revision,
    pub(crate) version: u64,
    pub(crate) lease: i64,
    /// Where the value begins.
    value_at: usize,
}

impl Head {
    pub(crate) fn parse(row: &[u8]) -> Result<Head, StoreError> {
        Head::parse_inner(row).ok_or_else(|| StoreError::Corrupt {
            what: "version of a key",
            detail: format!("{} bytes beginning with {:02x?}", row.len(), &row[..row.len().min(16)]),
        })
    }

    fn parse_inner(row: &[u8]) -> Option<Head> {
        let (&flags, mut rest) = row.split_first()?;
        let mod_revision = Revision(take_varint(&mut rest)?);
        let tombstone = match flags {
            0 => false,
            TOMBSTONE => true,
            _ => return None,
        };
        if tombstone {
            let create_revision = Revision(0);
            return Some(Head { tombstone, mod_revision, create_revision, version: 0, lease: 0, value_at: row.len() });
        }
        let create_revision = Revision(take_varint(&mut rest)?);
        let version = take_varint(&mut rest)?;
        let lease = take_varint(&mut rest)?.cast_signed();
        Some(Head { tombstone, mod_revision, create_revision, version, lease, value_at: row.len() - rest.len() })
    }

    pub(crate) fn value<'r>(&self, row: &'r [u8]) -> &'r [u8] {
        &row[self.value_at..]
    }

    /// The pair as clients see it, its value sharing the row's memory.
    pub(crate) fn pair(&self, key: Bytes, row: &Bytes) -> KeyValue {
        self.pair_with(key, row.slice(self.value_at..))
    }

    pub(crate) fn pair_with(&self, key: Bytes, value: Bytes) -> KeyValue {
        let Head { mod_revision, create_revision, version, lease, .. } = *self;
        KeyValue { key, value, create_revision, mod_revision, version, lease }
    }
}

/// Encodes a live version.
pub(crate) fn live(revision: Revision, create: Revision, version: u64, lease: i64, value: &[u8]) -> Bytes {
    let mut row = Vec::with_capacity(value.len() + 24);
    row.push(0);
    push_varint(&mut row, revision.0);
    push_varint(&mut row, create.0);
    push_varint(&mut row, version);
    push_varint(&mut row, lease.cast_unsigned());
    row.extend_from_slice(value);
    row.into()
}

/// Encodes a tombstone.
pub(crate) fn tombstone(revision: Revision) -> Bytes {
    let mut row = Vec::with_capacity(11);
    row.push(TOMBSTONE);
    push_varint(&mut row, revision.0);
    row.into()
}

/// One change, as the revision index keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) revision: Revision,
    pub(crate) operation: u32,
    pub(crate) delete: bool,
    /// The version that this one superseded (it may be a tombstone).
    pub(crate) before: Option<Revision>,
    pub(crate) key: Bytes,
}

/// Encodes one index row.
pub(crate) fn index_row(entries: &[Entry]) -> Bytes {
    let mut row = Vec::with_capacity(entries.len() * 40);
    let mut last = entries.first().map_or(0, |entry| entry.revision.0);
    push_varint(&mut row, last);
    for entry in entries {
        push_varint(&mut row, entry.revision.0 - last);
        last = entry.revision.0;
        push_varint(&mut row, u64::from(entry.operation));
        row.push(u8::from(entry.delete));
        push_varint(&mut row, entry.before.map_or(0, |revision| revision.0));
        push_varint(&mut row, entry.key.len() as u64);
        row.extend_from_slice(&entry.key);
    }
    row.into()
}

/// Decodes what [`index_row`] wrote.
pub(crate) fn parse_index_row(row: &[u8]) -> Result<Vec<Entry>, StoreError> {
    let corrupt = || StoreError::Corrupt { what: "row of the revision index", detail: format!("{} bytes", row.len()) };
    parse_index(row).ok_or_else(corrupt)
}

fn parse_index(mut rest: &[u8]) -> Option<Vec<Entry>> {
    let mut revision = take_varint(&mut rest)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        revision = revision.checked_add(take_varint(&mut rest)?)?;
        let operation = take_varint(&mut rest)?.try_into().ok()?;
        let (&flags, tail) = rest.split_first()?;
        rest = tail;
        let before = Some(take_varint(&mut rest)?).filter(|&before| before > 0).map(Revision);
        let length = usize::try_from(take_varint(&mut rest)?).ok()?;
        let (key, tail) = rest.split_at_checked(length)?;
        rest = tail;
        let key = Bytes::copy_from_slice(key);
        entries.push(Entry { revision: Revision(revision), operation, delete: flags == 1, before, key });
    }
    Some(entries)
}

pub(crate) fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let digit = u64::from(byte & 0x7F);
        if shift == 63 && digit > 1 {
            return None;
        }
        number |= digit << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_round_trip(m: u64, c: u64, version: u64, lease: i64, value: Vec<u8>) {
            let row = live(Revision(m), Revision(c), version, lease, &value);
            let pair = Head::parse(&row).unwrap().pair(Bytes::new(), &row);
            prop_assert_eq!(&pair.value[..], &value[..]);
            let found = (pair.mod_revision.0, pair.create_revision.0, pair.version, pair.lease);
            prop_assert_eq!(found, (m, c, version, lease));
            let head = Head::parse(&tombstone(Revision(m))).unwrap();
            prop_assert!(head.tombstone && head.mod_revision == Revision(m));
        }

        #[test]
        fn parsing_is_total(bytes: Vec<u8>) {
            let _ = Head::parse(&bytes);
            let _ = parse_index_row(&bytes);
        }

        #[test]
        fn index_rows_round_trip(raw in prop::collection::vec((0u64..1000, any::<u32>(), any::<bool>(), 0u64..9, any::<Vec<u8>>()), 0..9)) {
            let mut revision = 0;
            let entries: Vec<Entry> = raw.into_iter().map(|(step, operation, delete, before, key)| {
                revision += step;
                let before = Some(Revision(before)).filter(|before| before.0 > 0);
                Entry { revision: Revision(revision), operation, delete, before, key: key.into() }
            }).collect();
            prop_assert_eq!(parse_index_row(&index_row(&entries)).unwrap(), entries);
        }
    }
}
