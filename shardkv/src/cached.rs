//! A bounded cache of point lookups in front of a store.
//!
//! Nearly every lookup is for the newest version of a key, by a write that needs what it supersedes
//! or by a read. RocksDB answers one in 3–6 µs even from its block cache; here it costs a hash and a
//! lock. Rows that do not exist are remembered, too: a new key is looked up before it is written.
//!
//! **Coherence.** A batch is written to the store first and to the cache second, both before `write`
//! returns, so whoever reads after a write finds it. Between the two a reader may find the old row,
//! which is right for any revision that it may read at by then. A reader that missed puts in what it
//! found only if no write has touched that part of the cache since it looked; otherwise it might
//! bring back a row that was overwritten meanwhile.
//!
//! **Ranges** that are deleted as a whole are only noted ([`crate::dropped`]): rows that lie in one are found out
//! when they are looked up, or leave with the oldest. To forget every row instead took its time on the
//! thread that applies, and then every lookup of the shards that stayed missed.

use crate::dropped::DroppedRanges;
use crate::store::{Change, RowRange, Store, StoreError, View, Visit, WriteBatch};
use bytes::Bytes;
#[allow(clippy::disallowed_types, reason = "looked up only, never iterated")]
use std::collections::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasher;
#[allow(clippy::disallowed_types, reason = "clients choose keys: nobody should know how they hash")]
use std::hash::RandomState;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Parts of the cache, each with its own lock.
const PARTS: usize = 16;
/// What an entry takes beside its bytes, about.
const ENTRY_BYTES: usize = 128;

/// A store with a cache of its rows in front.
#[allow(clippy::disallowed_types, reason = "looked up only, never iterated")]
pub struct CachedStore<S> {
    store: S,
    parts: Vec<Mutex<Part>>,
    dropped: DroppedRanges,
    hasher: RandomState,
}

#[derive(Default)]
#[allow(clippy::disallowed_types, reason = "looked up only, never iterated")]
struct Part {
    rows: HashMap<Vec<u8>, Row>,
    /// Keys in the order in which they came; a key that was used since gets a second chance (the
    /// CLOCK approximation of "least recently used").
    clock: VecDeque<Vec<u8>>,
    bytes: usize,
    bytes_max: usize,
    /// Counts the changes that writes made here.
    writes: u64,
    hits: u64,
    misses: u64,
}

/// How the cache of rows does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Lookups answered, since the start.
    pub hits: u64,
    /// Lookups that had to ask the store, since the start.
    pub misses: u64,
    /// Bytes held.
    pub bytes: usize,
    /// Rows held.
    pub rows: usize,
}

struct Row {
    value: Option<Bytes>,
    /// How many ranges had been deleted when it was last known to be in none.
    at: u64,
    used: bool,
}

impl Part {
    /// The row, if it lies in no range that was deleted since it came.
    fn find(&mut self, key: &[u8], dropped: &DroppedRanges) -> Option<&mut Row> {
        let row = self.rows.get_mut(key)?;
        let now = dropped.count();
        if row.at != now {
            if dropped.covers(key, row.at) {
                return None;
            }
            row.at = now;
        }
        Some(row)
    }

    fn put(&mut self, key: &[u8], value: Option<Bytes>, at: u64) {
        let size = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        if let Some(row) = self.rows.get_mut(key) {
            self.bytes = self.bytes + size(&value) - size(&row.value);
            (row.value, row.at, row.used) = (value, at, true);
        } else {
            self.bytes += 2 * key.len() + size(&value) + ENTRY_BYTES;
            self.clock.push_back(key.to_vec());
            self.rows.insert(key.to_vec(), Row { value, at, used: false });
        }
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.clock.pop_front() else { break };
            match self.rows.get_mut(&oldest) {
                Some(row) if row.used => {
                    row.used = false;
                    self.clock.push_back(oldest);
                }
                Some(row) => {
                    self.bytes -= 2 * oldest.len() + size(&row.value) + ENTRY_BYTES;
                    self.rows.remove(&oldest);
                }
                None => {}
            }
        }
    }
}

#[allow(clippy::disallowed_types, reason = "looked up only, never iterated")]
impl<S> CachedStore<S> {
    /// Caches up to about `bytes_max` bytes of rows of `store`.
    pub fn new(store: S, bytes_max: usize) -> CachedStore<S> {
        let part = || Mutex::new(Part { bytes_max: bytes_max / PARTS, ..Part::default() });
        let parts = (0..PARTS).map(|_| part()).collect();
        CachedStore { store, parts, dropped: DroppedRanges::default(), hasher: RandomState::new() }
    }

    /// The store behind the cache.
    pub fn inner(&self) -> &S {
        &self.store
    }

    fn part(&self, key: &[u8]) -> MutexGuard<'_, Part> {
        let index = self.hasher.hash_one(key) as usize % PARTS;
        // A part is consistent between any two of its statements' ends; a panic there is a bug of ours.
        self.parts[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the cache does.
    pub fn figures(&self) -> CacheFigures {
        let mut sum = CacheFigures::default();
        for part in &self.parts {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            sum.hits += part.hits;
            sum.misses += part.misses;
            sum.bytes += part.bytes;
            sum.rows += part.rows.len();
        }
        sum
    }
}

impl<S: View> View for CachedStore<S> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let (writes, at) = {
            let mut part = self.part(key);
            if let Some(row) = part.find(key, &self.dropped) {
                row.used = true;
                let value = row.value.clone();
                part.hits += 1;
                return Ok(value);
            }
            part.misses += 1;
            (part.writes, self.dropped.count())
        };
        let value = self.store.get(key)?;
        let mut part = self.part(key);
        if part.writes == writes {
            part.put(key, value.clone(), at);
        }
        Ok(value)
    }

    fn peek(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if let Some(row) = self.part(key).find(key, &self.dropped) {
            return Ok(row.value.clone());
        }
        self.store.peek(key)
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(rows, visit)
    }

    fn first(&self, rows: &RowRange) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        self.store.first(rows)
    }
}

impl<S: Store> Store for CachedStore<S> {
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        // Before the rows are written: of a range that somebody else deletes meanwhile it is not known which came first.
        let at = self.dropped.count();
        self.store.write(batch)?;
        for change in batch.changes() {
            match change {
                Change::Put(key, value) => {
                    let mut part = self.part(key);
                    part.writes += 1;
                    // Most rows of a batch are never looked up again (history, index, outcomes); only
                    // those that somebody has looked up before stay.
                    if part.rows.contains_key(key) {
                        part.put(key, Some(value.clone()), at);
                    }
                }
                Change::Delete(key) => {
                    let mut part = self.part(key);
                    part.writes += 1;
                    if part.rows.contains_key(key) {
                        part.put(key, None, at);
                    }
                }
                Change::DeleteRange(rows) => self.dropped.add(rows),
            }
        }
        Ok(())
    }

    fn would_wait(&self) -> bool {
        self.store.would_wait()
    }

    fn approximate_bytes(&self, rows: &RowRange) -> u64 {
        self.store.approximate_bytes(rows)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.store.flush()
    }

    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError> {
        let reclaimed = self.store.reclaim(rows);
        // Even where that failed: some of them may be gone.
        self.dropped.add(rows);
        reclaimed
    }
}

#[cfg(test)]
mod tests;
