//! What a group knows beside its keys, the rows that hold it, and what its threads share.

use crate::codec;
use crate::key::GroupKeys;
use crate::moving::{Incoming, Outgoing};
use crate::sessions::{Executed, SessionLimits, Sessions};
use crate::store::{Store, StoreError, View};
use crate::territory::{Part, Territory};
use crate::types::{Bounds, Digest, Epoch, MoveId, Revision, ShardId, SpaceId};
use bytes::Bytes;
use paxos::flaw::{self, Flaw};
use paxos::{Configuration, Slot};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// From its start to the start of the next one, or to the end of the shard, a shard's rows lie in one space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// The first key.
    pub start: Bytes,
    /// The space, on this node.
    pub space: SpaceId,
}

/// A shard as its group holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedShard {
    /// The shard.
    pub id: ShardId,
    /// Its keys.
    pub bounds: Bounds,
    /// The epoch at which the group owns it.
    pub epoch: Epoch,
    /// The oldest revision that can be read.
    pub floor: Revision,
    /// Sessions last used at or below this were evicted.
    pub evicted: Revision,
    /// Where its rows lie on this node, by key; more than one stretch only where shards were merged.
    pub stretches: Vec<Stretch>,
    /// Session outcomes in rows below this slot are not of this time here.
    pub since: Slot,
    /// The last move that has ended with the shard staying here.
    pub stayed: MoveId,
    /// The move to another group that is under way.
    pub out: Option<Outgoing>,
}

impl OwnedShard {
    /// Each stretch with the keys in it.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Bounds, SpaceId)> {
        let ends = self.stretches.iter().skip(1).map(|next| Some(next.start.clone()));
        let ends = ends.chain(std::iter::once(self.bounds.end.clone()));
        self.stretches.iter().zip(ends).map(|(it, end)| (Bounds { start: it.start.clone(), end }, it.space))
    }

    /// The spaces that hold its rows.
    pub(crate) fn spaces(&self) -> impl Iterator<Item = SpaceId> {
        self.stretches.iter().map(|stretch| stretch.space)
    }

    /// History from here on must not be collected.
    pub fn kept_from(&self) -> Revision {
        self.out.as_ref().map_or(self.floor, |out| out.kept_from)
    }
}

/// The group's meta row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) applied: Slot,
    pub(crate) last_revision: Revision,
    pub(crate) hash: u64,
    /// The space that shards activated without history share.
    pub(crate) home: Option<SpaceId>,
    /// The slot of the image that was installed last.
    pub(crate) imaged: Slot,
    /// Of the last stop-sign applied.
    pub(crate) configuration: Option<Configuration>,
    /// The largest revision of a compaction; a shard that arrives, or stays after all, heeds it, too.
    pub(crate) compacted: Revision,
    /// The other replicas agree on another state: this one must not be read.
    pub(crate) fenced: bool,
}

/// A shard with its keys ready for use.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) info: OwnedShard,
    pub(crate) territory: Arc<Territory>,
}

impl Shard {
    pub(crate) fn new(info: OwnedShard, keys: &GroupKeys) -> Shard {
        let territory = Arc::new(Territory::new(parts(&info, keys).collect()));
        Shard { info, territory }
    }
}

fn parts<'a>(info: &'a OwnedShard, keys: &'a GroupKeys) -> impl Iterator<Item = Part> {
    let frozen = info.out.as_ref().and_then(|out| out.frozen);
    info.parts().map(move |(bounds, space)| Part { bounds, space: keys.space(space), floor: info.floor, frozen })
}

pub(crate) type Shards = BTreeMap<ShardId, Shard>;
pub(crate) type Arrivals = BTreeMap<ShardId, Incoming>;
/// Shards that went to other groups, and the epochs at which those have got them: a leader with an old map must not
/// bring them to life again.
pub(crate) type Gone = BTreeMap<ShardId, Epoch>;

/// The stretch of the named shards, if each is owned at exactly its epoch.
pub(crate) fn territory_of(
    shards: &Shards,
    keys: &GroupKeys,
    named: impl Iterator<Item = (ShardId, Epoch)>,
) -> Option<Arc<Territory>> {
    let mut owned = Vec::new();
    for (id, epoch) in named {
        let here =
            |shard: &&Shard| shard.info.epoch == epoch || (shard.info.epoch < epoch && flaw::is(Flaw::TakeNewerEpoch));
        owned.push(shards.get(&id).filter(here)?);
    }
    match owned[..] {
        [only] => Some(Arc::clone(&only.territory)),
        _ => {
            let parts = owned.iter().flat_map(|shard| parts(&shard.info, keys));
            Some(Arc::new(Territory::new(parts.collect())))
        }
    }
}

/// The group's state in memory; all of it is in the store, too.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) meta: Meta,
    pub(crate) shards: Arc<Shards>,
    pub(crate) arrivals: Arc<Arrivals>,
    pub(crate) gone: Arc<Gone>,
    pub(crate) sessions: Sessions,
    /// Noted since they were last taken; not stored.
    pub(crate) digests: Vec<Digest>,
}

impl State {
    pub(crate) fn load(store: &impl View, keys: &GroupKeys, limits: SessionLimits) -> Result<State, StoreError> {
        let meta = match store.get(&keys.meta())? {
            Some(row) => decode_row("meta of a group", &row)?,
            None => Meta::default(),
        };
        let mut shards = Shards::new();
        store.scan(&keys.shards(), &mut |_, row| {
            let info: OwnedShard = decode_row("shard", row)?;
            shards.insert(info.id, Shard::new(info, keys));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut arrivals = Arrivals::new();
        store.scan(&keys.all_incoming(), &mut |_, row| {
            let incoming: Incoming = decode_row("shard that arrives", row)?;
            arrivals.insert(incoming.id, incoming);
            Ok(ControlFlow::Continue(()))
        })?;
        let mut gone = Gone::new();
        store.scan(&keys.all_gone(), &mut |_, row| {
            let (id, epoch): (ShardId, Epoch) = decode_row("shard that went", row)?;
            gone.insert(id, epoch);
            Ok(ControlFlow::Continue(()))
        })?;
        let owned = shards.values().map(|shard| (shard.info.id, shard.info.evicted, shard.info.since));
        let known: Vec<_> = owned.chain(arrivals.values().map(|it| (it.id, it.evicted, it.since))).collect();
        let sessions = Sessions::restore(limits, &known, session_rows(store, keys)?);
        let (shards, arrivals, gone) = (Arc::new(shards), Arc::new(arrivals), Arc::new(gone));
        Ok(State { meta, shards, arrivals, gone, sessions, digests: Vec::new() })
    }
}

/// All stored session outcomes, by the slots of their rows.
pub(crate) fn session_rows(store: &impl View, keys: &GroupKeys) -> Result<Vec<(Slot, Vec<Executed>)>, StoreError> {
    let mut rows = Vec::new();
    store.scan(&keys.session_rows(), &mut |key, row| {
        let Some(slot) = keys.session_slot(key) else {
            return Err(StoreError::Corrupt { what: "key of a session row", detail: format!("{key:02x?}") });
        };
        rows.push((slot, decode_row("session row", row)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rows)
}

pub(crate) fn decode_row<T: DeserializeOwned>(what: &'static str, row: &[u8]) -> Result<T, StoreError> {
    codec::decode(row).map_err(|error| StoreError::Corrupt { what, detail: error.to_string() })
}

/// What the apply thread, readers and the collector share.
pub(crate) struct Shared<S> {
    pub(crate) store: Arc<S>,
    pub(crate) keys: GroupKeys,
    /// Published after the batch that made it is written.
    published: RwLock<Arc<Shards>>,
    arrivals: RwLock<Arc<Arrivals>>,
    gone: RwLock<Arc<Gone>>,
    pub(crate) limits: SessionLimits,
    applied: AtomicU64,
    revision: AtomicU64,
    /// Held while newest rows are replaced (apply) or deleted (collection).
    writing: Mutex<()>,
    /// Held by the one collector at work: how far it got in each space.
    collecting: Mutex<Cursors>,
    /// Images being read; collection waits for them.
    pub(crate) images: AtomicUsize,
    /// Counts installs, for images of the state that one replaced.
    pub(crate) installs: AtomicU64,
    next_space: AtomicU64,
}

/// The index row at which collection goes on, by space.
pub(crate) type Cursors = BTreeMap<SpaceId, Vec<u8>>;

impl<S: Store> Shared<S> {
    pub(crate) fn new(
        store: Arc<S>,
        keys: GroupKeys,
        state: &State,
        limits: SessionLimits,
        next_space: u64,
    ) -> Shared<S> {
        Shared {
            store,
            keys,
            published: RwLock::new(Arc::clone(&state.shards)),
            arrivals: RwLock::new(Arc::clone(&state.arrivals)),
            gone: RwLock::new(Arc::clone(&state.gone)),
            limits,
            applied: AtomicU64::new(state.meta.applied.0),
            revision: AtomicU64::new(state.meta.last_revision.0),
            writing: Mutex::new(()),
            collecting: Mutex::new(Cursors::new()),
            images: AtomicUsize::new(0),
            installs: AtomicU64::new(0),
            next_space: AtomicU64::new(next_space),
        }
    }

    /// Shows readers the state that was just written.
    pub(crate) fn publish(&self, state: &State) {
        let stale = !Arc::ptr_eq(&self.shards(), &state.shards);
        if stale {
            *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&state.shards);
        }
        if !Arc::ptr_eq(&self.arrivals(), &state.arrivals) {
            *self.arrivals.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&state.arrivals);
        }
        if !Arc::ptr_eq(&self.gone(), &state.gone) {
            *self.gone.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&state.gone);
        }
        // The slot last: who sees it sees at least its revision.
        self.revision.store(state.meta.last_revision.0, Ordering::Release);
        self.applied.store(state.meta.applied.0, Ordering::Release);
    }

    /// Shows readers that there is nothing to be read here any more.
    pub(crate) fn publish_none(&self) {
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        *self.arrivals.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    pub(crate) fn shards(&self) -> Arc<Shards> {
        Arc::clone(&self.published.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn arrivals(&self) -> Arc<Arrivals> {
        Arc::clone(&self.arrivals.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn gone(&self) -> Arc<Gone> {
        Arc::clone(&self.gone.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Before rows of shards that go are deleted: whoever is reading them finds, when it has read, that they are gone.
    pub(crate) fn unpublish_dropped(&self, state: &State) {
        let mut shards = Shards::clone(&self.shards());
        let same = |now: &OwnedShard, then: &OwnedShard| {
            (now.epoch, &now.bounds, &now.stretches) == (then.epoch, &then.bounds, &then.stretches)
        };
        shards.retain(|id, shard| state.shards.get(id).is_some_and(|now| same(&now.info, &shard.info)));
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shards);
    }

    pub(crate) fn applied(&self) -> (Slot, Revision) {
        let slot = Slot(self.applied.load(Ordering::Acquire));
        (slot, Revision(self.revision.load(Ordering::Acquire)))
    }

    pub(crate) fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no space on this disk ever had.
    pub(crate) fn new_space(&self) -> SpaceId {
        SpaceId(self.next_space.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn collecting(&self) -> MutexGuard<'_, Cursors> {
        self.collecting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
