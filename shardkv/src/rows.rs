//! Named rows of a group: storage for a state machine that is not a data group (the shardmaster's),
//! in the same store under its own group number.

use crate::key::GroupKeys;
use crate::store::{RowRange, Store, StoreError, WriteBatch};
use bytes::Bytes;
use paxos::GroupId;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Small rows by name. Whatever must change together goes into one [`GroupMeta::commit`], the
/// applied slot among it.
pub struct GroupMeta<S> {
    store: Arc<S>,
    keys: GroupKeys,
}

impl<S: Store> GroupMeta<S> {
    /// The rows of `group`.
    pub fn open(store: Arc<S>, group: GroupId) -> GroupMeta<S> {
        GroupMeta { store, keys: GroupKeys::new(group) }
    }

    /// The value of a row.
    pub fn get(&self, name: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(&self.keys.named(name))
    }

    /// All rows whose names begin with `prefix`, by name.
    pub fn list(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        let skip = self.keys.named(&[]).len();
        self.store.scan(&RowRange::prefix(&self.keys.named(prefix)), &mut |key, value| {
            rows.push((key[skip..].to_vec(), Bytes::copy_from_slice(value)));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    /// Writes (`Some`) and deletes (`None`) rows as one atomic batch.
    pub fn commit(&self, changes: Vec<(Vec<u8>, Option<Bytes>)>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (name, value) in changes {
            let key = self.keys.named(&name);
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.store.write(&batch)
    }

    /// Replaces all rows by `rows`, atomically and durably (for installing a snapshot).
    pub fn replace(&self, rows: Vec<(Vec<u8>, Bytes)>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(RowRange::prefix(&self.keys.named(&[])));
        for (name, value) in rows {
            batch.put(self.keys.named(&name), value);
        }
        self.store.write(&batch)?;
        self.store.flush()
    }

    /// Makes everything committed durable.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.store.flush()
    }
}

/// Deletes everything that `group` has in the store, whatever its state machine, durably. Log the
/// removal before, and call it again at start until it has succeeded.
pub fn delete_group<S: Store>(store: &S, group: GroupId) -> Result<(), StoreError> {
    let rows = GroupKeys::new(group).all();
    let mut batch = WriteBatch::default();
    batch.delete_range(rows.clone());
    store.write(&batch)?;
    store.flush()?;
    store.reclaim(&rows)
}
