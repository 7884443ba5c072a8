//! The layout of rows, byte for byte. Every row of the store belongs to one group.
//!
//! ```text
//! number    = n (1 byte, 0–8), then n bytes big-endian without leading zeros: ordered as numbers
//! G         = number(group)
//!
//! G 01                                    the group's meta: applied slot, last revision, hash, home space,
//!                                         configuration, compactions
//! G 02 shard(8, BE)                       a shard: bounds, epoch, stretches and their spaces, floors, its move from here
//! G 03 slot(8, BE)                        the session outcomes of the apply call that ended at slot
//! G 05 shard(8, BE)                       a shard that arrives: its move, space, and how far it has come
//! G 06 shard(8, BE)                       a shard that went to another group: the epoch there
//! G 04 name…                              rows of a group with its own state machine (shardmaster)
//! G 10 number(space) 'L' key              the newest version of a key, also if it is a tombstone
//! G 10 number(space) 'H' escaped(key) !revision(8, BE)     an older version; the newest comes first
//! G 10 number(space) 'R' last(8, BE) part(4, BE)   revision index: the changes of one apply call up
//!                                         to revision `last`, in order (more parts if there are many; in a shard that
//!                                         has come, the part is how many changes of `last` end with the row)
//!
//! escaped(key) = key with 00 written as 00 FF, then 00 01: ordered as keys, and no key is a prefix
//! ```
//!
//! Why the newest version has a row of its own: nearly all reads and every write want exactly it,
//! and a point lookup is cheaper than a seek (bloom filters answer for keys that do not exist); a
//! scan at the newest revision meets no old versions. The price is that an overwrite moves the
//! version before into the history, as the bytes that it was stored in. A read at an old revision
//! walks the newest rows, too, and looks into the history where a row is too new; a deleted key
//! keeps its tombstone there until it is collected, so that the walk meets every key.

use crate::store::{RowRange, behind_prefix};
use crate::types::{Bounds, Keys, KeysEnd, Revision, ShardId, SpaceId};
use paxos::{GroupId, Slot};

const META: u8 = 0x01;
const SHARD: u8 = 0x02;
const SESSION: u8 = 0x03;
const NAMED: u8 = 0x04;
const INCOMING: u8 = 0x05;
const GONE: u8 = 0x06;
const SPACE: u8 = 0x10;

pub(crate) const LATEST: u8 = b'L';
pub(crate) const HISTORY: u8 = b'H';
pub(crate) const INDEX: u8 = b'R';

fn push_number(out: &mut Vec<u8>, number: u64) {
    let bytes = number.to_be_bytes();
    let zeros = (number.leading_zeros() / 8) as usize;
    out.push((8 - zeros) as u8);
    out.extend_from_slice(&bytes[zeros..]);
}

fn take_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let (digits, rest) = rest.split_at_checked(usize::from(length)).filter(|_| length <= 8)?;
    Some((digits.iter().fold(0, |number, &digit| number << 8 | u64::from(digit)), rest))
}

/// The rows of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupKeys {
    prefix: Vec<u8>,
}

impl GroupKeys {
    pub(crate) fn new(group: GroupId) -> GroupKeys {
        let mut prefix = Vec::with_capacity(9);
        push_number(&mut prefix, group.0);
        GroupKeys { prefix }
    }

    fn row(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + 1 + rest.len());
        key.extend_from_slice(&self.prefix);
        key.push(kind);
        key.extend_from_slice(rest);
        key
    }

    pub(crate) fn all(&self) -> RowRange {
        RowRange::prefix(&self.prefix)
    }
    pub(crate) fn meta(&self) -> Vec<u8> {
        self.row(META, &[])
    }
    pub(crate) fn shard(&self, shard: ShardId) -> Vec<u8> {
        self.row(SHARD, &shard.0.to_be_bytes())
    }
    pub(crate) fn shards(&self) -> RowRange {
        RowRange::prefix(&self.row(SHARD, &[]))
    }
    pub(crate) fn incoming(&self, shard: ShardId) -> Vec<u8> {
        self.row(INCOMING, &shard.0.to_be_bytes())
    }
    pub(crate) fn all_incoming(&self) -> RowRange {
        RowRange::prefix(&self.row(INCOMING, &[]))
    }
    pub(crate) fn gone(&self, shard: ShardId) -> Vec<u8> {
        self.row(GONE, &shard.0.to_be_bytes())
    }
    pub(crate) fn all_gone(&self) -> RowRange {
        RowRange::prefix(&self.row(GONE, &[]))
    }
    pub(crate) fn session_row(&self, slot: Slot) -> Vec<u8> {
        self.row(SESSION, &slot.0.to_be_bytes())
    }
    pub(crate) fn session_rows(&self) -> RowRange {
        RowRange::prefix(&self.row(SESSION, &[]))
    }
    /// The slot of a session row.
    pub(crate) fn session_slot(&self, key: &[u8]) -> Option<Slot> {
        let digits = key.get(self.prefix.len() + 1..)?.try_into().ok()?;
        Some(Slot(u64::from_be_bytes(digits)))
    }
    pub(crate) fn named(&self, name: &[u8]) -> Vec<u8> {
        self.row(NAMED, name)
    }
    pub(crate) fn spaces(&self) -> RowRange {
        RowRange::prefix(&self.row(SPACE, &[]))
    }
    pub(crate) fn space(&self, space: SpaceId) -> SpaceKeys {
        let mut prefix = self.row(SPACE, &[]);
        push_number(&mut prefix, space.0);
        SpaceKeys { prefix }
    }
    /// The space that a row below [`Self::spaces`] belongs to.
    pub(crate) fn space_of(&self, key: &[u8]) -> Option<SpaceId> {
        let (number, _) = take_number(key.get(self.prefix.len() + 1..)?)?;
        Some(SpaceId(number))
    }
}

/// The rows of one space.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SpaceKeys {
    prefix: Vec<u8>,
}

impl SpaceKeys {
    fn row(&self, kind: u8, room: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + 1 + room);
        key.extend_from_slice(&self.prefix);
        key.push(kind);
        key
    }

    pub(crate) fn all(&self) -> RowRange {
        RowRange::prefix(&self.prefix)
    }

    /// All rows of one kind.
    pub(crate) fn kind(&self, kind: u8) -> RowRange {
        RowRange::prefix(&self.row(kind, 0))
    }

    /// A row by its kind and what follows the kind byte.
    pub(crate) fn raw(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut key = self.row(kind, rest.len());
        key.extend_from_slice(rest);
        key
    }

    /// What follows the kind byte.
    pub(crate) fn rest<'k>(&self, key: &'k [u8]) -> &'k [u8] {
        &key[self.prefix.len() + 1..]
    }

    pub(crate) fn latest(&self, key: &[u8]) -> Vec<u8> {
        self.raw(LATEST, key)
    }

    /// The newest versions of `keys`, as rows.
    pub(crate) fn latest_range(&self, keys: &Keys) -> RowRange {
        let (start, end) = keys.bounds();
        let end = match end {
            KeysEnd::Before(end) => self.latest(end),
            KeysEnd::Unbounded => behind_prefix(&self.row(LATEST, 0)),
            KeysEnd::Inclusive(key) => {
                let mut end = self.latest(key);
                end.push(0);
                end
            }
        };
        RowRange { start: self.latest(start), end }
    }

    pub(crate) fn history(&self, key: &[u8], revision: Revision) -> Vec<u8> {
        let mut row = self.row(HISTORY, key.len() + 12);
        push_escaped(&mut row, key);
        row.extend_from_slice(&(!revision.0).to_be_bytes());
        row
    }

    /// The versions of `key` at or below `at`, newest first.
    pub(crate) fn history_range(&self, key: &[u8], at: Revision) -> RowRange {
        let mut end = self.history(key, Revision(0));
        end.push(0);
        RowRange { start: self.history(key, at), end }
    }

    /// The older versions of all keys of a shard.
    pub(crate) fn history_of(&self, bounds: &Bounds) -> RowRange {
        let row = |key: &[u8]| {
            let mut row = self.row(HISTORY, key.len() + 4);
            push_escaped(&mut row, key);
            row
        };
        let end = bounds.end.as_ref().map_or_else(|| self.kind(HISTORY).end, |end| row(end));
        RowRange { start: row(&bounds.start), end }
    }

    /// The revision of a history row.
    pub(crate) fn history_revision(&self, key: &[u8]) -> Option<Revision> {
        Some(Revision(!u64::from_be_bytes(*key.last_chunk()?)))
    }

    pub(crate) fn index(&self, last: Revision, part: u32) -> Vec<u8> {
        let mut row = self.row(INDEX, 12);
        row.extend_from_slice(&last.0.to_be_bytes());
        row.extend_from_slice(&part.to_be_bytes());
        row
    }

    /// Index rows that end at or behind `from`.
    pub(crate) fn index_from(&self, from: Revision) -> RowRange {
        RowRange { start: self.index(from, 0), end: self.kind(INDEX).end }
    }

    /// Index rows that end below `end`.
    pub(crate) fn index_below(&self, end: Revision) -> RowRange {
        RowRange { start: self.index(Revision(0), 0), end: self.index(end, 0) }
    }

    /// The last revision of an index row.
    pub(crate) fn index_last(&self, key: &[u8]) -> Option<Revision> {
        Some(Revision(u64::from_be_bytes(*self.rest(key).first_chunk()?)))
    }
}

fn push_escaped(out: &mut Vec<u8>, key: &[u8]) {
    let mut pieces = key.split(|&byte| byte == 0);
    out.extend_from_slice(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.extend_from_slice(&[0x00, 0xFF]);
        out.extend_from_slice(piece);
    }
    out.extend_from_slice(&[0x00, 0x01]);
}

/// Whether `bounds` and `next` meet without a gap.
pub(crate) fn meet(bounds: &Bounds, next: &Bounds) -> bool {
    bounds.end.as_ref() == Some(&next.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_keep_their_order(a: u64, b in prop_oneof![any::<u64>(), 0u64..300]) {
            let (mut x, mut y) = (Vec::new(), Vec::new());
            push_number(&mut x, a);
            push_number(&mut y, b);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(take_number(&x), Some((a, &[][..])));
        }

        /// Keys full of the bytes that escaping is about, and revisions below them.
        #[test]
        fn history_is_ordered_by_key_then_newest_first(
            a in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFF), any::<u8>()], 0..6),
            b in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xFF), any::<u8>()], 0..6),
            r: u64, s: u64,
        ) {
            let space = GroupKeys::new(GroupId(7)).space(SpaceId(9));
            let (x, y) = (space.history(&a, Revision(r)), space.history(&b, Revision(s)));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b).then(s.cmp(&r)));
            prop_assert_eq!(space.history_revision(&x), Some(Revision(r)));
            let range = space.history_range(&a, Revision(s));
            let inside = range.start <= x && x < range.end;
            prop_assert_eq!(inside, r <= s);
        }
    }

    #[test]
    fn groups_and_spaces_do_not_overlap() {
        let ids = [0, 1, 2, 255, 256, 257, 65_535, 65_536, u64::MAX - 1, u64::MAX];
        for pair in ids.windows(2) {
            let (low, high) = (GroupKeys::new(GroupId(pair[0])), GroupKeys::new(GroupId(pair[1])));
            assert!(low.all().end <= high.all().start, "groups {pair:?}");
            let (low, high) = (low.space(SpaceId(pair[0])), low.space(SpaceId(pair[1])));
            assert!(low.all().end <= high.all().start, "spaces {pair:?}");
        }
    }
}
