//! Collection of history below the floor.
//!
//! Driven by the revision index: each of its rows names what its changes superseded. A change below
//! the floor makes the version before it unreadable, so that goes; a tombstone below the floor
//! says no more than a missing row, so it goes, too, wherever it lies; then the index row itself.
//! What is read at the floor or above stays exact, and events at the floor itself stay in the index
//! (a watch may begin there, also at a deletion).
//!
//! Every step is one atomic batch and can be repeated, so a crash between steps loses nothing.

use crate::key::SpaceKeys;
use crate::reader::Reader;
use crate::record::Head;
use crate::record::{self, Entry};
use crate::state::Cursors;
use crate::store::{Store, StoreError, WriteBatch};
use crate::types::{Revision, SpaceId};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

/// How far a collection step got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The budget is used up, there is more; the changes looked at.
    More(usize),
    /// Nothing below the floors is left; the changes looked at.
    Done(usize),
    /// An image is being read; try again when it is closed.
    Paused,
}

impl<S: Store> Reader<S> {
    /// Collects history below the floors: looks at about `budget` changes (at least one row of
    /// the index, whose size is bounded). To be called from a background thread; safe beside apply
    /// and reads. The caller chooses how long collection lags the floor.
    pub fn collect(&self, budget: usize) -> Result<Progress, StoreError> {
        self.collect_below(budget, Revision(u64::MAX))
    }

    /// The same, of what lies below `limit`, too: a floor that has risen only now waits for its turn.
    pub fn collect_below(&self, budget: usize, limit: Revision) -> Result<Progress, StoreError> {
        let shared = &*self.shared;
        let mut cursors = shared.collecting();
        if shared.images.load(Ordering::SeqCst) > 0 {
            return Ok(Progress::Paused);
        }
        let mut floors: BTreeMap<SpaceId, Revision> = BTreeMap::new();
        for shard in shared.shards().values() {
            for space in shard.info.spaces() {
                let floor = floors.entry(space).or_insert(limit);
                *floor = shard.info.kept_from().min(*floor).min(limit);
            }
        }
        cursors.retain(|space, _| floors.contains_key(space));
        let mut looked_at = 0;
        for (space, floor) in floors {
            looked_at += self.collect_space(space, floor, budget - looked_at, &mut cursors)?;
            if looked_at >= budget {
                return Ok(Progress::More(looked_at));
            }
        }
        Ok(Progress::Done(looked_at))
    }

    fn collect_space(
        &self,
        id: SpaceId,
        floor: Revision,
        budget: usize,
        cursors: &mut Cursors,
    ) -> Result<usize, StoreError> {
        let space = self.shared.keys.space(id);
        let mut rows = space.index_below(floor);
        if let Some(cursor) = cursors.get(&id) {
            rows.start.clone_from(cursor);
        }
        let mut batch = WriteBatch::default();
        let mut tombstones: Vec<Entry> = Vec::new();
        let mut looked_at = 0;
        let mut cursor = None;
        self.shared.store.scan(&rows, &mut |key, row| {
            if looked_at >= budget {
                return Ok(ControlFlow::Break(()));
            }
            for entry in record::parse_index_row(row)? {
                looked_at += 1;
                if let Some(before) = entry.before {
                    batch.delete(space.history(&entry.key, before));
                }
                if entry.delete {
                    batch.delete(space.history(&entry.key, entry.revision));
                    tombstones.push(entry);
                }
            }
            batch.delete(key.to_vec());
            cursor = Some([key, &[0]].concat());
            Ok(ControlFlow::Continue(()))
        })?;
        let Some(cursor) = cursor else { return Ok(0) };
        self.write_step(&space, batch, &tombstones)?;
        cursors.insert(id, cursor);
        Ok(looked_at)
    }

    fn write_step(&self, space: &SpaceKeys, mut batch: WriteBatch, tombstones: &[Entry]) -> Result<(), StoreError> {
        // A newest row may be superseded by apply at any time: look and delete under its lock.
        let _writing = (!tombstones.is_empty()).then(|| self.shared.writing());
        for entry in tombstones {
            let key = space.latest(&entry.key);
            let Some(row) = self.shared.store.get(&key)? else { continue };
            let head = Head::parse(&row)?;
            if head.tombstone && head.mod_revision == entry.revision {
                batch.delete(key);
            }
        }
        self.shared.store.write(&batch)
    }
}
