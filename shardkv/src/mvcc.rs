//! Lookups of versions at a revision, over the rows that [`crate::key`] lays out.
//!
//! Invariant: the newest row of a key, if its revision is ≤ `at`, is the answer; otherwise the first
//! history row at or below `at` is. Versions never change, so no snapshot of the store is needed
//! for a read at a fixed revision: a version that is superseded between the two lookups was moved
//! to the history by the same batch. Only collection and the replacement of a space take rows
//! away; readers check for both afterwards ([`crate::Reader`]).

use crate::key::SpaceKeys;
use crate::record::Head;
use crate::store::{StoreError, View};
use crate::types::{Keys, Revision};
use bytes::Bytes;
use std::ops::ControlFlow;

/// A stored version with its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) head: Head,
    pub(crate) row: Bytes,
}

impl Version {
    pub(crate) fn parse(row: Bytes) -> Result<Version, StoreError> {
        Ok(Version { head: Head::parse(&row)?, row })
    }
}

/// What a scan calls for each version (its key, its head, its row); it may break off.
pub(crate) type VisitVersion<'a> = dyn FnMut(&[u8], &Head, &[u8]) -> Result<ControlFlow<()>, StoreError> + 'a;

/// The version of `key` at `at`, which may be a tombstone.
pub(crate) fn lookup<V: View>(
    view: &V,
    space: &SpaceKeys,
    key: &[u8],
    at: Revision,
) -> Result<Option<Version>, StoreError> {
    let Some(row) = view.get(&space.latest(key))? else { return Ok(None) };
    let newest = Version::parse(row)?;
    if newest.head.mod_revision <= at {
        return Ok(Some(newest));
    }
    older(view, space, key, at)
}

fn older<V: View>(view: &V, space: &SpaceKeys, key: &[u8], at: Revision) -> Result<Option<Version>, StoreError> {
    let found = view.first(&space.history_range(key, at))?;
    found.map(|(_, row)| Version::parse(row)).transpose()
}

/// Visits every key of `keys` that has a version at `at`, in key order, tombstones included.
pub(crate) fn scan<V: View>(
    view: &V,
    space: &SpaceKeys,
    keys: &Keys,
    at: Revision,
    visit: &mut VisitVersion<'_>,
) -> Result<(), StoreError> {
    view.scan(&space.latest_range(keys), &mut |row_key, row| {
        let key = space.rest(row_key);
        let head = Head::parse(row)?;
        if head.mod_revision <= at {
            visit(key, &head, row)
        } else if let Some(version) = older(view, space, key, at)? {
            visit(key, &version.head, &version.row)
        } else {
            Ok(ControlFlow::Continue(()))
        }
    })
}
