//! Numbers and ranges of the data model.

use bytes::Bytes;
use paxos::Slot;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The cluster-wide logical time of a write. Unique, rising in real time, with gaps; the empty
/// store is at 1, and 0 means "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of an empty store.
    pub const EMPTY_STORE: Revision = Revision(1);
    /// The revision just below; 0 stays 0.
    pub fn prev(self) -> Revision {
        Revision(self.0.saturating_sub(1))
    }
}

/// A shard: a contiguous range of keys, owned by one group at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub u64);

/// Counts the owners that a shard has had; a command names the epoch that its sender believes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// Counts the moves that were ever planned, of all shards; 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MoveId(pub u64);

/// The storage prefix under which a shard's rows lie on one node. Local to the node; never used
/// twice on a disk (boot counter in the upper 32 bits, a counter in the lower).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpaceId(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}
impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m{}", self.0)
    }
}
impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// How often, in slots, a data group notes its digest; all replicas at the same slots.
pub const DIGEST_SLOTS: u64 = 64;

/// What a state machine has come to with the entry in a slot: the same in all replicas, or one of them is wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest {
    /// Where; in data groups a multiple of [`DIGEST_SLOTS`].
    pub slot: Slot,
    /// Of everything logical up to there.
    pub value: u64,
}

/// A shard's bounds: `[start, end)`; no `end` means "to the end of the keyspace".
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bounds {
    /// The first key inside.
    pub start: Bytes,
    /// The first key outside, if any.
    pub end: Option<Bytes>,
}

impl Bounds {
    /// All keys inside.
    pub fn keys(&self) -> Keys {
        match &self.end {
            Some(end) => Keys::Range { start: self.start.clone(), end: end.clone() },
            None => Keys::From(self.start.clone()),
        }
    }
    /// Whether `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
    /// Whether any key could lie in both.
    pub fn intersects(&self, keys: &Keys) -> bool {
        let (start, end) = keys.bounds();
        let starts_before_our_end = self.end.as_ref().is_none_or(|e| start < &e[..]);
        let ends_after_our_start = match end {
            KeysEnd::Inclusive(key) => key >= &self.start[..],
            KeysEnd::Before(key) => key > &self.start[..],
            KeysEnd::Unbounded => true,
        };
        starts_before_our_end && ends_after_our_start
    }
    /// Whether every key of `keys` lies inside.
    pub fn covers(&self, keys: &Keys) -> bool {
        let (start, end) = keys.bounds();
        if start < &self.start[..] {
            return false;
        }
        match (&self.end, end) {
            (None, _) => true,
            (Some(_), KeysEnd::Unbounded) => false,
            (Some(ours), KeysEnd::Inclusive(key)) => key < &ours[..],
            (Some(ours), KeysEnd::Before(key)) => key <= &ours[..],
        }
    }
}

/// The keys that an operation names. An empty range (`end <= start`) holds no key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Keys {
    /// One key.
    One(Bytes),
    /// `[start, end)`.
    Range {
        /// The first key inside.
        start: Bytes,
        /// The first key outside.
        end: Bytes,
    },
    /// Every key ≥ this one.
    From(Bytes),
}

/// Where a [`Keys`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysEnd<'a> {
    /// With this key.
    Inclusive(&'a [u8]),
    /// Before this key.
    Before(&'a [u8]),
    /// Nowhere.
    Unbounded,
}

impl Keys {
    /// The first key, and where the keys end.
    pub fn bounds(&self) -> (&[u8], KeysEnd<'_>) {
        match self {
            Keys::One(key) => (key, KeysEnd::Inclusive(key)),
            Keys::Range { start, end } => (start, KeysEnd::Before(end)),
            Keys::From(start) => (start, KeysEnd::Unbounded),
        }
    }
    /// Whether `key` is among them.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Keys::One(one) => key == &one[..],
            Keys::Range { start, end } => key >= &start[..] && key < &end[..],
            Keys::From(start) => key >= &start[..],
        }
    }
    /// The part of these keys inside `bounds`; `None` where no key could lie in both.
    pub fn clip(&self, bounds: &Bounds) -> Option<Keys> {
        if !bounds.intersects(self) {
            return None;
        }
        if let Keys::One(_) = self {
            return Some(self.clone());
        }
        let (start, end) = self.bounds();
        let start = if start < &bounds.start[..] { bounds.start.clone() } else { Bytes::copy_from_slice(start) };
        let end = match (end, &bounds.end) {
            (KeysEnd::Before(ours), Some(theirs)) => Some(Bytes::copy_from_slice(ours.min(&theirs[..]))),
            (KeysEnd::Before(ours), None) => Some(Bytes::copy_from_slice(ours)),
            (_, theirs) => theirs.clone(),
        };
        match end {
            Some(end) if end <= start => None,
            Some(end) => Some(Keys::Range { start, end }),
            None => Some(Keys::From(start)),
        }
    }
}
