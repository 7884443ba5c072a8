//! The data group: a state machine over a store.

use crate::apply::Call;
use crate::codec;
use crate::command::Outcome;
use crate::key::GroupKeys;
use crate::reader::Reader;
use crate::sessions::SessionLimits;
use crate::state::{OwnedShard, Shared, State};
use crate::store::{Store, StoreError, View, WriteBatch};
use crate::types::{Digest, Revision, SpaceId};
use bytes::Bytes;
use paxos::flaw::{self, Flaw};
use paxos::{Configuration, GroupId, Slot, SnapshotSink, SnapshotSource, StateMachine};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One replica's state of a data group. The apply thread owns it; everyone else reads through
/// [`DataGroup::reader`].
pub struct DataGroup<S> {
    pub(crate) shared: Arc<Shared<S>>,
    pub(crate) state: State,
    limits: SessionLimits,
    /// A batch failed to be written: memory may be ahead of the store and must be loaded anew.
    pub(crate) stale: bool,
}

/// The first number for spaces that nobody used before this boot of a node, by its durable counter.
pub fn first_space(boot: u64) -> SpaceId {
    SpaceId(boot << 32 | 1)
}

impl<S: Store> DataGroup<S> {
    /// Loads the group from the store; an empty group if nothing is stored. `boot` is the node's
    /// durable boot counter. Spaces that nobody names, left behind by a crash during an install,
    /// are deleted.
    pub fn open(store: Arc<S>, group: GroupId, boot: u64) -> Result<DataGroup<S>, StoreError> {
        DataGroup::open_with(store, group, first_space(boot), SessionLimits::default())
    }

    /// Likewise with other limits for the session tables, which all replicas of a group, for all time, must share.
    /// New spaces get numbers from `first` on: see [`first_space`] and [`DataGroup::end`].
    pub fn open_with(
        store: Arc<S>,
        group: GroupId,
        first: SpaceId,
        limits: SessionLimits,
    ) -> Result<DataGroup<S>, StoreError> {
        let keys = GroupKeys::new(group);
        let state = State::load(&*store, &keys, limits)?;
        let mut next = first.0;
        for space in stored_spaces(&*store, &keys)? {
            next = next.max(space.0 + 1);
        }
        let shared = Arc::new(Shared::new(store, keys, &state, limits, next));
        let group = DataGroup { shared, state, limits, stale: false };
        group.delete_unnamed_spaces()?;
        Ok(group)
    }

    /// The group begins, empty, with this configuration: remembered durably, as nothing in the log will say it.
    pub fn found(&mut self, configuration: Configuration) -> Result<(), StoreError> {
        self.state.meta.configuration = Some(configuration);
        let mut batch = WriteBatch::default();
        batch.put(self.shared.keys.meta(), codec::encode(&self.state.meta));
        self.shared.store.write(&batch)?;
        self.shared.store.flush()
    }

    /// The digests noted since the last call, oldest first.
    pub fn take_digests(&mut self) -> Vec<Digest> {
        std::mem::take(&mut self.state.digests)
    }

    /// Whether this state was found to be another one than the other replicas'.
    pub fn is_fenced(&self) -> bool {
        self.state.meta.fenced
    }

    /// It was: remembered, durably, until an image takes its place.
    pub fn fence(&mut self) -> Result<(), StoreError> {
        if self.stale {
            self.reload()?;
        }
        self.state.meta.fenced = true;
        let mut batch = WriteBatch::default();
        batch.put(self.shared.keys.meta(), codec::encode(&self.state.meta));
        self.shared.store.write(&batch)?;
        self.shared.store.flush()
    }

    /// The group's rows are about to be deleted: readers find no shards any more, and the collector, which is
    /// waited for, nothing to do. The first number for spaces of another replica of the group that this one has not used:
    /// whoever still reads must not take that one's rows for this one's.
    pub fn end(self) -> SpaceId {
        let _no_step = self.shared.collecting();
        self.shared.publish_none();
        self.shared.new_space()
    }

    /// A handle for reads from other threads.
    pub fn reader(&self) -> Reader<S> {
        Reader { shared: Arc::clone(&self.shared) }
    }

    /// The rolling hash of all logical effects in log order. Replicas that applied the same slot
    /// have the same.
    pub fn hash(&self) -> u64 {
        self.state.meta.hash
    }

    /// The shards that the group holds, by id.
    pub fn shards(&self) -> Vec<OwnedShard> {
        self.state.shards.values().map(|shard| shard.info.clone()).collect()
    }

    /// The revision of the last stamped command.
    pub fn last_revision(&self) -> Revision {
        self.state.meta.last_revision
    }

    /// The spaces that the present state names.
    fn named_spaces(&self) -> BTreeSet<SpaceId> {
        let shards = self.state.shards.values().flat_map(|shard| shard.info.spaces());
        shards.chain(self.state.arrivals.values().map(|it| it.space)).chain(self.state.meta.home).collect()
    }

    /// Deletes all spaces but those that the state names. The state must be flushed.
    pub(crate) fn delete_unnamed_spaces(&self) -> Result<(), StoreError> {
        let named = self.named_spaces();
        for space in stored_spaces(&*self.shared.store, &self.shared.keys)? {
            if !named.contains(&space) {
                self.shared.store.reclaim(&self.shared.keys.space(space).all())?;
            }
        }
        Ok(())
    }

    pub(crate) fn reload(&mut self) -> Result<(), StoreError> {
        self.state = State::load(&*self.shared.store, &self.shared.keys, self.limits)?;
        self.stale = false;
        self.shared.publish(&self.state);
        Ok(())
    }
}

/// The spaces that have rows.
fn stored_spaces(store: &impl View, keys: &GroupKeys) -> Result<Vec<SpaceId>, StoreError> {
    let mut spaces = Vec::new();
    let mut rest = keys.spaces();
    while let Some((key, _)) = store.first(&rest)? {
        let Some(space) = keys.space_of(&key) else {
            return Err(StoreError::Corrupt { what: "key of a space", detail: format!("{key:02x?}") });
        };
        spaces.push(space);
        rest.start = keys.space(space).all().end;
    }
    Ok(spaces)
}

impl<S: Store> StateMachine for DataGroup<S> {
    type Outcome = Vec<Outcome>;
    type Error = StoreError;

    fn applied(&self) -> Slot {
        self.state.meta.applied
    }

    fn imaged(&self) -> Slot {
        self.state.meta.imaged
    }

    fn configuration(&self) -> Option<Configuration> {
        self.state.meta.configuration.clone()
    }

    fn apply(&mut self, entries: &[(Slot, Bytes)]) -> Result<Vec<Vec<Outcome>>, StoreError> {
        if self.stale {
            self.reload()?;
        }
        let mut next = self.state.meta.applied;
        for (slot, _) in entries {
            next = next.next();
            assert!(*slot == next, "applying slot {slot} where {next} is due");
        }
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let writing = self.shared.writing();
        self.stale = true;
        let call = Call::new(&self.shared, &mut self.state, next);
        let (outcomes, batch, drops) = call.run(entries)?;
        if drops {
            self.shared.unpublish_dropped(&self.state);
        }
        if flaw::is(Flaw::AppliedBeforeData) {
            let mut applied = WriteBatch::default();
            applied.put(self.shared.keys.meta(), codec::encode(&self.state.meta));
            self.shared.store.write(&applied)?;
        }
        self.shared.store.write(&batch)?;
        self.stale = false;
        self.shared.publish(&self.state);
        drop(writing);
        Ok(outcomes)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource<Error = StoreError> + Send>, StoreError> {
        Ok(Box::new(crate::image::Source::new(self)))
    }

    fn begin_install(&mut self) -> Result<Box<dyn SnapshotSink<Error = StoreError> + Send>, StoreError> {
        Ok(Box::new(crate::image::Sink::new(self)))
    }

    fn finish_install(&mut self, sink: Box<dyn SnapshotSink<Error = StoreError> + Send>) -> Result<(), StoreError> {
        crate::image::finish(self, sink)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.shared.store.flush()
    }
}
