//! Reads what changed between two revisions, in order: for watches from the past, moves and feeds.

use crate::key::SpaceKeys;
use crate::mvcc::{self, Version};
use crate::ops::KeyValue;
use crate::reader::{ReadError, Reader};
use crate::record::{self, Entry};
use crate::state::territory_of;
use crate::store::{Store, StoreError, View};
use crate::territory::Territory;
use crate::types::{Epoch, Keys, Revision, ShardId};
use bytes::Bytes;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Changes looked at for each that may be answered.
const LOOKED_AT_PER_BUDGET: usize = 64;

/// A key was written or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When; all events of one command share it.
    pub revision: Revision,
    /// Orders the events of one revision.
    pub operation: u32,
    /// The key.
    pub key: Bytes,
    /// The pair, or `None` if it was deleted.
    pub kv: Option<KeyValue>,
    /// The pair before, if asked for, there was one, and its revision is not below the floor.
    pub prev_kv: Option<KeyValue>,
}

/// Events in the order of revision and operation, and how far they reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Every event of the range asked for below `next`, whole revisions only.
    pub events: Vec<Event>,
    /// Where to go on: behind the range asked for if all of it was read.
    pub next: Revision,
}

impl<S: Store> Reader<S> {
    /// Every change to `keys` at revisions `from..=upto` in the named shards, or the first of them
    /// if there are more than about `budget`. The caller has checked that `upto` is closed.
    pub fn changes(
        &self,
        shards: &[(ShardId, Epoch)],
        keys: &Keys,
        (from, upto): (Revision, Revision),
        budget: usize,
        prev_kv: bool,
    ) -> Result<Changes, ReadError> {
        loop {
            let owned = self.shared.shards();
            let territory = territory_of(&owned, &self.shared.keys, shards.iter().copied());
            let territory = territory.ok_or(ReadError::WrongShard)?;
            let floor = territory.floor();
            if from < floor {
                return Err(ReadError::Compacted { floor });
            }
            let changes = self.read_changes(&territory, keys, (from, upto), budget, prev_kv.then_some(floor));
            if Arc::ptr_eq(&owned, &self.shared.shards()) {
                return Ok(changes?);
            }
        }
    }

    fn read_changes(
        &self,
        territory: &Territory,
        keys: &Keys,
        (from, upto): (Revision, Revision),
        budget: usize,
        prev_floor: Option<Revision>,
    ) -> Result<Changes, StoreError> {
        let store = &*self.shared.store;
        let clipped = territory.clip(keys).map(|(part, keys)| (&part.space, keys));
        let (found, next) = entries_of(store, clipped, (from, upto), budget)?;
        let events = found.into_iter().map(|(space, entry)| event(store, space, entry, prev_floor));
        Ok(Changes { events: events.collect::<Result<_, _>>()?, next })
    }
}

/// The entries of several spaces' indexes in the order of revision and operation, and the revision up to which
/// (exclusive) they are all.
#[allow(clippy::type_complexity)] // entries with their spaces, and a revision
pub(crate) fn entries_of<'a>(
    store: &impl View,
    parts: impl Iterator<Item = (&'a SpaceKeys, Keys)>,
    (from, upto): (Revision, Revision),
    budget: usize,
) -> Result<(Vec<(&'a SpaceKeys, Entry)>, Revision), StoreError> {
    let mut next = Revision(upto.0.saturating_add(1));
    let mut found: Vec<(&SpaceKeys, Entry)> = Vec::new();
    for (space, keys) in parts {
        let (entries, reached) = entries(store, space, &keys, (from, upto), budget)?;
        next = next.min(reached);
        found.extend(entries.into_iter().map(|entry| (space, entry)));
    }
    found.retain(|(_, entry)| entry.revision < next);
    found.sort_by_key(|(_, entry)| (entry.revision, entry.operation));
    Ok((found, next))
}

/// The index's entries for `keys`, about `budget` of them, and the revision up to which (exclusive)
/// they are all.
fn entries(
    store: &impl View,
    space: &SpaceKeys,
    keys: &Keys,
    (from, upto): (Revision, Revision),
    budget: usize,
) -> Result<(Vec<Entry>, Revision), StoreError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut next = Revision(upto.0.saturating_add(1));
    // Few of many changes may be ours: looking at them is bounded, too.
    let mut patience = budget.max(1).saturating_mul(LOOKED_AT_PER_BUDGET);
    let mut seen = Revision(0);
    store.scan(&space.index_from(from), &mut |_, row| {
        for entry in record::parse_index_row(row)? {
            if entry.revision > upto {
                return Ok(ControlFlow::Break(()));
            }
            // The budget ends between two revisions, never inside one.
            if seen < entry.revision && (entries.len() >= budget.max(1) || patience == 0) {
                next = entry.revision;
                return Ok(ControlFlow::Break(()));
            }
            if entry.revision >= from {
                seen = entry.revision;
                patience = patience.saturating_sub(1);
            }
            if entry.revision >= from && keys.contains(&entry.key) {
                entries.push(entry);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((entries, next))
}

fn event(
    store: &impl View,
    space: &SpaceKeys,
    entry: Entry,
    prev_floor: Option<Revision>,
) -> Result<Event, StoreError> {
    let Entry { revision, operation, delete, before, key } = entry;
    let live = |version: Version| (!version.head.tombstone).then(|| version.head.pair(key.clone(), &version.row));
    let kv = match delete {
        true => None,
        // Collected while we read: the caller sees the floor and discards this.
        false => mvcc::lookup(store, space, &key, revision)?.and_then(live),
    };
    let shown = before.is_some() && prev_floor.is_some_and(|floor| revision.prev() >= floor);
    let prev_kv = match shown {
        true => mvcc::lookup(store, space, &key, revision.prev())?.and_then(live),
        false => None,
    };
    Ok(Event { revision, operation, key, kv, prev_kv })
}
