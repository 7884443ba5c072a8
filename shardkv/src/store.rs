//! The seam to storage: an ordered map from bytes to bytes with atomic batches.
//!
//! All groups of a node share one store. The state machines above need little of it, because MVCC
//! gives them consistency: a point lookup, a scan over a snapshot taken at its start, an atomic
//! batch, and a flush.
//!
//! Durability is by prefix: a store may make batches durable at any time, in the order in which
//! they were written and each as a whole; [`Store::flush`] returns when all of them are. A crash
//! loses a suffix of the batches since then, and the group's log, which is kept from the flushed
//! slot on, replays them.

use bytes::Bytes;
use std::ops::ControlFlow;

/// A failure of storage, or bytes in it (or in an image) that cannot be ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The backend failed; what it said. Stop the node: its disk or its files need attention.
    #[error("storage failed to {action}: {detail}; check the disk and its free space, then restart the node")]
    Backend {
        /// What was tried.
        action: &'static str,
        /// The backend's own words.
        detail: String,
    },
    /// The disk is full.
    #[error("storage failed to {action}: no room: {detail}; free space on its disk")]
    NoSpace {
        /// What was tried.
        action: &'static str,
        /// The backend's own words.
        detail: String,
    },
    /// A stored row does not decode: bit rot, or a bug. The replica needs a new image.
    #[error("stored {what} is corrupt ({detail}); rebuild this replica from its group")]
    Corrupt {
        /// Which kind of row.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A piece of an image is malformed or out of order, or the image is not complete; ask for
    /// the image again.
    #[error("malformed image of a group: {0}; fetch it again")]
    Image(String),
    /// The state that an image was being read from was replaced meanwhile; start a new one.
    #[error("the image's state was replaced by an install; start a new image")]
    Superseded,
}

/// Rows `[start, end)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRange {
    /// The first row inside.
    pub start: Vec<u8>,
    /// The first row outside.
    pub end: Vec<u8>,
}

impl RowRange {
    /// All rows that begin with `prefix`, which must contain a byte below 0xFF.
    pub fn prefix(prefix: &[u8]) -> RowRange {
        RowRange { start: prefix.to_vec(), end: behind_prefix(prefix) }
    }

    /// Whether no row can lie inside.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// The smallest key above all keys that begin with `prefix`.
pub(crate) fn behind_prefix(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|&byte| byte < 0xFF);
    let kept = kept.expect("every row prefix of ours has a byte below 0xFF");
    let mut end = prefix[..=kept].to_vec();
    end[kept] += 1;
    end
}

/// What a scan calls for each row (key, value); it may break off.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, StoreError> + 'a;

/// Reads.
pub trait View {
    /// The value of a row.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The same, of a row that will hardly be looked up again: a cache of rows does not keep it.
    fn peek(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(key)
    }

    /// Visits rows in ascending order, on a consistent snapshot taken at the start. An empty or
    /// inverted range holds no row.
    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError>;

    /// The first row of `rows`.
    fn first(&self, rows: &RowRange) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        let mut found = None;
        self.scan(rows, &mut |key, value| {
            found = Some((key.to_vec(), Bytes::copy_from_slice(value)));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

/// An ordered map from bytes to bytes. Reads through the store itself ([`View`]) see the newest
/// state.
pub trait Store: View + Send + Sync + 'static {
    /// Applies a batch atomically: a reader, and the store after a crash, see all of it or nothing.
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError>;

    /// Whether a write would have to wait now: for room, or for the store's own upkeep.
    fn would_wait(&self) -> bool {
        false
    }

    /// How many bytes these rows take, about; what was written lately may not be counted.
    fn approximate_bytes(&self, rows: &RowRange) -> u64;

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<(), StoreError>;

    /// Deletes rows that nobody will read again and gives their space back soon. Neither atomic nor
    /// ordered with the batches before it: call it only when the rows' being dead is flushed.
    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError>;
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a row.
    Put(Vec<u8>, Bytes),
    /// Deletes a row, if there is one.
    Delete(Vec<u8>),
    /// Deletes all rows of a range.
    DeleteRange(RowRange),
}

/// Changes to apply together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    changes: Vec<Change>,
}

impl WriteBatch {
    /// Writes a row.
    pub fn put(&mut self, key: Vec<u8>, value: Bytes) {
        self.changes.push(Change::Put(key, value));
    }
    /// Deletes a row, if there is one.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.changes.push(Change::Delete(key));
    }
    /// Deletes all rows of a range.
    pub fn delete_range(&mut self, rows: RowRange) {
        if !rows.is_empty() {
            self.changes.push(Change::DeleteRange(rows));
        }
    }
    /// The changes in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }
    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        let bytes = |change: &Change| match change {
            Change::Put(key, row) => key.len() + row.len(),
            Change::Delete(key) => key.len(),
            Change::DeleteRange(rows) => rows.start.len() + rows.end.len(),
        };
        self.changes.iter().map(bytes).sum()
    }
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
