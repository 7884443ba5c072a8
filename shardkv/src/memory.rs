//! A store in memory, for tests and the simulator. It can crash: what was written since the last
//! flush is lost, all of it or a suffix of the batches.

use crate::store::{Change, RowRange, Store, StoreError, View, Visit, WriteBatch};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

type Rows = BTreeMap<Vec<u8>, Bytes>;

/// An ordered map in memory.
#[derive(Default)]
pub struct MemoryStore {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// What readers see. Scans hold the map itself; a write during one copies it first.
    now: Arc<Rows>,
    /// What a crash leaves for sure.
    durable: Rows,
    /// Written since the last flush, in order.
    unflushed: Vec<WriteBatch>,
    /// All batches that were ever written.
    written: u64,
}

impl State {
    fn flush_first(&mut self, batches: usize) {
        for batch in self.unflushed.drain(..batches) {
            apply(&mut self.durable, &batch);
        }
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// Loses what was not flushed, as a crash does.
    pub fn crash(&self) {
        self.crash_keeping(0);
    }

    /// Crashes, but the first `kept` batches since the last flush had become durable by themselves.
    pub fn crash_keeping(&self, kept: usize) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let unflushed = std::mem::take(&mut state.unflushed);
        for batch in unflushed.into_iter().take(kept) {
            apply(&mut state.durable, &batch);
        }
        state.now = Arc::new(state.durable.clone());
    }

    /// How many batches a crash could lose.
    pub fn unflushed(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).unflushed.len()
    }

    /// How many batches were ever written: a flush that begins now makes these durable, and none that comes while it runs.
    pub fn written(&self) -> u64 {
        self.state.read().unwrap_or_else(PoisonError::into_inner).written
    }

    /// Makes the first `written` batches durable (see [`MemoryStore::written`]).
    pub fn flush_written(&self, written: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let behind = usize::try_from(state.written.saturating_sub(written)).unwrap_or(usize::MAX);
        let batches = state.unflushed.len().saturating_sub(behind);
        state.flush_first(batches);
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.snapshot().len()
    }

    fn snapshot(&self) -> Arc<Rows> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner).now)
    }
}

fn apply(rows: &mut Rows, batch: &WriteBatch) {
    for change in batch.changes() {
        match change {
            Change::Put(key, value) => {
                rows.insert(key.clone(), value.clone());
            }
            Change::Delete(key) => {
                rows.remove(key);
            }
            Change::DeleteRange(range) => {
                if !range.is_empty() {
                    let inside = range.start.clone()..range.end.clone();
                    rows.extract_if(inside, |_, _| true).for_each(drop);
                }
            }
        }
    }
}

impl View for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state.read().unwrap_or_else(PoisonError::into_inner).now.get(key).cloned())
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let snapshot = self.snapshot();
        let bounds = (Bound::Included(&rows.start[..]), Bound::Excluded(&rows.end[..]));
        for (key, value) in snapshot.range::<[u8], _>(bounds) {
            if visit(key, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        apply(Arc::make_mut(&mut state.now), batch);
        state.unflushed.push(batch.clone());
        state.written += 1;
        Ok(())
    }

    fn approximate_bytes(&self, rows: &RowRange) -> u64 {
        if rows.is_empty() {
            return 0;
        }
        let bounds = (Bound::Included(&rows.start[..]), Bound::Excluded(&rows.end[..]));
        self.snapshot().range::<[u8], _>(bounds).map(|(key, row)| (key.len() + row.len()) as u64).sum()
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let batches = state.unflushed.len();
        state.flush_first(batches);
        Ok(())
    }

    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError> {
        // Durable at once, as the deletion of whole files is: a caller that reclaims before the
        // flush loses data here, too.
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut batch = WriteBatch::default();
        batch.delete_range(rows.clone());
        apply(Arc::make_mut(&mut state.now), &batch);
        apply(&mut state.durable, &batch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_makes_durable_what_was_written_when_it_began() {
        let store = MemoryStore::new();
        let put = |key: &str| {
            let mut batch = WriteBatch::default();
            batch.put(key.into(), "".into());
            store.write(&batch).unwrap_or_else(|error| panic!("{error}"));
        };
        put("before");
        let begun = store.written();
        put("meanwhile");
        store.flush_written(begun);
        assert_eq!(store.unflushed(), 1);
        store.crash();
        assert_eq!(store.rows(), 1);
        put("after");
        store.flush_written(begun);
        assert_eq!(store.unflushed(), 1, "an old flush says nothing of what came later");
    }
}
