//! The changes of one apply call, laid over the store: later commands of the call see earlier ones,
//! and all of them become one batch.

use crate::store::{RowRange, StoreError, View, Visit, WriteBatch};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

/// Pending rows over a base. `None` is a deleted row.
pub(crate) struct Overlay<'a, V> {
    base: &'a V,
    rows: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl<'a, V: View> Overlay<'a, V> {
    pub(crate) fn new(base: &'a V) -> Overlay<'a, V> {
        Overlay { base, rows: BTreeMap::new() }
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: Bytes) {
        self.rows.insert(key, Some(value));
    }

    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.rows.insert(key, None);
    }

    /// Everything pending as one batch.
    pub(crate) fn into_batch(self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (key, value) in self.rows {
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        batch
    }
}

impl<V: View> View for Overlay<'_, V> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.rows.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => self.base.get(key),
        }
    }

    fn peek(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.rows.get(key) {
            Some(pending) => Ok(pending.clone()),
            None => self.base.peek(key),
        }
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let bounds = (Bound::Included(&rows.start[..]), Bound::Excluded(&rows.end[..]));
        let mut own = self.rows.range::<[u8], _>(bounds).peekable();
        let mut broken = false;
        self.base.scan(rows, &mut |key, value| {
            while let Some((own_key, own_value)) = own.next_if(|(own_key, _)| &own_key[..] <= key) {
                if let Some(own_value) = own_value
                    && visit(own_key, own_value)?.is_break()
                {
                    broken = true;
                    return Ok(ControlFlow::Break(()));
                }
                if own_key == key {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            let flow = visit(key, value)?;
            broken = flow.is_break();
            Ok(flow)
        })?;
        for (key, value) in own.take_while(|_| !broken) {
            if let Some(value) = value
                && visit(key, value)?.is_break()
            {
                break;
            }
        }
        Ok(())
    }
}
