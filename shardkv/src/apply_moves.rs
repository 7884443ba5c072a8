//! The steps of a shard's move as a log takes them; [`crate::moving`] has the whole picture. Each can come
//! twice, late, or from a leader with an old map, and then changes nothing.

use crate::apply::{Call, INDEX_ROW_ENTRIES_MAX};
use crate::codec;
use crate::command::Outcome;
use crate::key::SpaceKeys;
use crate::moving::{Incoming, Outgoing, Piece, Position};
use crate::record::{self, Entry, Head};
use crate::request::OpError;
use crate::state::{OwnedShard, Shard, Stretch};
use crate::store::{Store, StoreError, View};
use crate::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use bytes::Bytes;
use paxos::flaw::{self, Flaw};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl<S: Store> Call<'_, S> {
    pub(crate) fn depart(&mut self, id: ShardId, epoch: Epoch, mv: MoveId) -> Outcome {
        let last = self.state.meta.last_revision;
        let Some(shard) = self.state.shards.get(&id).map(|shard| &shard.info) else { return Outcome::WrongShard };
        let newest = shard.out.as_ref().map_or(shard.stayed, |out| out.mv);
        if shard.out.as_ref().is_some_and(|out| out.mv == mv) {
            return Outcome::Moved;
        }
        if shard.epoch != epoch || mv <= newest {
            return Outcome::WrongShard;
        }
        let (copied_at, kept_from) = (last.max(shard.floor), shard.floor);
        self.change_shard(id, |info| info.out = Some(Outgoing { mv, copied_at, kept_from, frozen: None }));
        self.mix(b'v', copied_at, id.0 ^ mv.0 << 32);
        Outcome::Moved
    }

    pub(crate) fn freeze(&mut self, revision: Revision, id: ShardId, mv: MoveId) -> Outcome {
        let out = self.state.shards.get(&id).and_then(|shard| shard.info.out.clone());
        let Some(out) = out.filter(|out| out.mv == mv) else { return Outcome::WrongShard };
        if out.frozen.is_none() {
            self.change_shard(id, |info| info.out = Some(Outgoing { frozen: Some(revision), ..out }));
        }
        Outcome::Moved
    }

    pub(crate) fn stay(&mut self, id: ShardId, mv: MoveId) -> Outcome {
        let out = self.state.shards.get(&id).and_then(|shard| shard.info.out.as_ref());
        if out.is_some_and(|out| out.mv == mv) {
            let compacted = self.state.meta.compacted;
            self.change_shard(id, |info| {
                (info.out, info.stayed, info.floor) = (None, mv, info.floor.max(compacted));
            });
            self.mix(b's', Revision(0), id.0 ^ mv.0 << 32);
        }
        Outcome::Moved
    }

    /// The shard belongs to another group: everything that was known of it goes, in this batch.
    pub(crate) fn drop_shard(&mut self, id: ShardId, epoch: Epoch) -> Outcome {
        let Some(shard) = self.state.shards.get(&id).map(|shard| shard.info.clone()) else { return Outcome::Moved };
        if shard.epoch >= epoch {
            return Outcome::WrongShard;
        }
        Arc::make_mut(&mut self.state.shards).remove(&id);
        Arc::make_mut(&mut self.state.gone).insert(id, epoch);
        self.changed_shards.insert(id);
        self.changed_gone.insert(id);
        self.forget_sessions(id);
        self.delete_keys(&shard);
        self.mix(b'-', Revision(0), id.0 ^ epoch.0 << 32);
        Outcome::Moved
    }

    pub(crate) fn arrive(&mut self, id: ShardId, bounds: &Bounds, mv: MoveId) -> Outcome {
        let known = self.state.arrivals.get(&id).map(|incoming| incoming.mv);
        if known == Some(mv) {
            return Outcome::Moved;
        }
        if known > Some(mv) || self.overlaps(bounds).is_some() {
            return Outcome::WrongShard;
        }
        if let Some(known) = known {
            self.discard(id, known);
        }
        let incoming = Incoming {
            id,
            bounds: bounds.clone(),
            mv,
            space: self.shared.new_space(),
            since: self.row,
            at: Position::start(bounds),
            bytes: 0,
            floor: Revision(0),
            evicted: Revision(0),
        };
        Arc::make_mut(&mut self.state.arrivals).insert(id, incoming);
        self.changed_arrivals.insert(id);
        self.mix(b'a', Revision(0), id.0 ^ mv.0 << 32);
        Outcome::Moved
    }

    pub(crate) fn discard(&mut self, id: ShardId, mv: MoveId) -> Outcome {
        if self.state.arrivals.get(&id).is_some_and(|incoming| incoming.mv == mv)
            && let Some(incoming) = Arc::make_mut(&mut self.state.arrivals).remove(&id)
        {
            self.changed_arrivals.insert(id);
            self.forget_sessions(id);
            self.dropped.push(self.keys.space(incoming.space).all());
            self.supersede_images();
            self.mix(b'x', Revision(0), id.0 ^ mv.0 << 32);
        }
        Outcome::Moved
    }

    pub(crate) fn import(
        &mut self,
        id: ShardId,
        mv: MoveId,
        (at, next): (&Position, &Position),
        piece: &Bytes,
    ) -> Result<Outcome, StoreError> {
        let due = self.state.arrivals.get(&id).filter(|incoming| incoming.mv == mv && incoming.at == *at);
        let Some(incoming) = due.cloned() else { return Ok(Outcome::WrongShard) };
        let decoded = match codec::decode::<Piece>(piece) {
            Ok(decoded) if decoded.is_sound(id) => decoded,
            Ok(_) => return Ok(Outcome::Failed(OpError::Malformed(format!("a piece is none of {id}")))),
            Err(error) => return Ok(Outcome::Failed(OpError::Malformed(format!("a piece of {id}: {error}")))),
        };
        let space = self.keys.space(incoming.space);
        let in_order = decoded.versions_are_in_order(at);
        self.import_versions(&space, at, decoded.versions, in_order)?;
        self.import_changes(&space, at, decoded.changes)?;
        for executed in decoded.sessions {
            self.state.sessions.import(&executed, self.row);
            self.executed.push(executed);
        }
        let bytes = incoming.bytes + piece.len() as u64;
        let mut incoming = Incoming { at: next.clone(), bytes, ..incoming };
        if let Some((floor, evicted)) = decoded.end {
            (incoming.floor, incoming.evicted) = (floor, evicted);
            self.state.sessions.set_evicted(id, evicted);
        }
        Arc::make_mut(&mut self.state.arrivals).insert(id, incoming);
        self.changed_arrivals.insert(id);
        self.mix(b'i', Revision(0), u64::from(crc32fast::hash(piece)));
        Ok(Outcome::Moved)
    }

    /// Versions come in order, before all changes, into a space that begins empty: nothing of theirs is there but for the
    /// key that the piece before may have begun, and nothing need be looked up. An image may have brought what later
    /// pieces brought to the replica that it was read from: then a newest row is set back here, until those pieces
    /// come again; nobody reads the shard before they have. Versions out of order, which nobody sends, find their places.
    fn import_versions(
        &mut self,
        space: &SpaceKeys,
        at: &Position,
        versions: Vec<(Bytes, Bytes)>,
        in_order: bool,
    ) -> Result<(), StoreError> {
        let begun = if let Position::Versions { key, .. } = at { Some(key) } else { None };
        let mut last: Option<(Bytes, Revision)> = None;
        for (key, row) in versions {
            let revision = Head::parse(&row)?.mod_revision;
            if begun == Some(&key) || !in_order {
                self.insert_version(space, &key, row)?;
            } else {
                match &last {
                    Some((same, newer)) if *same == key && *newer == revision => {}
                    Some((same, _)) if *same == key => self.overlay.put(space.history(&key, revision), row),
                    Some(_) | None => self.overlay.put(space.latest(&key), row),
                }
            }
            last = Some((key, revision));
        }
        Ok(())
    }

    fn import_changes(
        &mut self,
        space: &SpaceKeys,
        at: &Position,
        changes: Vec<(Entry, Option<Bytes>)>,
    ) -> Result<(), StoreError> {
        // The number of a row is how many changes of its last revision end with it: rows of a revision that is cut, here
        // or between two pieces, are in order, and none takes another one's place.
        let mut last = if let Position::Changes { from, skip } = at { (*from, *skip) } else { (Revision(0), 0) };
        let mut row = Vec::new();
        let count = changes.len();
        for (at, (entry, version)) in changes.into_iter().enumerate() {
            if let Some(version) = version {
                self.insert_version(space, &entry.key, version)?;
            }
            last = if entry.revision == last.0 { (last.0, last.1 + 1) } else { (entry.revision, 1) };
            row.push(entry);
            if row.len() == INDEX_ROW_ENTRIES_MAX || at + 1 == count {
                if !flaw::is(Flaw::MoveWithoutIndex) {
                    self.overlay.put(space.index(last.0, last.1), record::index_row(&row));
                }
                row.clear();
            }
        }
        Ok(())
    }

    /// Puts a version in its place among those that are there already, itself perhaps among them.
    fn insert_version(&mut self, space: &SpaceKeys, key: &[u8], row: Bytes) -> Result<(), StoreError> {
        let revision = Head::parse(&row)?.mod_revision;
        let latest = space.latest(key);
        let newest = match self.overlay.peek(&latest)? {
            Some(known) => Some((Head::parse(&known)?.mod_revision, known)),
            None => None,
        };
        match newest {
            Some((known, _)) if known == revision => {}
            Some((known, _)) if known > revision => self.overlay.put(space.history(key, revision), row),
            Some((known, before)) => {
                self.overlay.put(space.history(key, known), before);
                self.overlay.put(latest, row);
            }
            None => self.overlay.put(latest, row),
        }
        Ok(())
    }

    /// A shard that has arrived becomes this group's.
    pub(crate) fn activate_arrived(&mut self, id: ShardId, bounds: &Bounds, epoch: Epoch, by: MoveId) -> Outcome {
        let arrived = self.state.arrivals.get(&id);
        let arrived = arrived.filter(|it| it.mv == by && it.is_complete() && it.bounds == *bounds);
        let Some(Incoming { space, since, floor, evicted, .. }) = arrived.cloned() else { return Outcome::WrongShard };
        if let Some(other) = self.overlaps(bounds) {
            return Outcome::Failed(OpError::Malformed(format!("{id} overlaps with {other}")));
        }
        let floor = floor.max(self.state.meta.compacted);
        let (bounds, stayed) = (bounds.clone(), MoveId(0));
        let stretches = vec![Stretch { start: bounds.start.clone(), space }];
        let info = OwnedShard { id, bounds, epoch, floor, evicted, stretches, since, stayed, out: None };
        Arc::make_mut(&mut self.state.arrivals).remove(&id);
        Arc::make_mut(&mut self.state.shards).insert(id, Shard::new(info, self.keys));
        self.changed_arrivals.insert(id);
        self.changed_shards.insert(id);
        // Images being read took its rows for another group's.
        self.supersede_images();
        Outcome::Activated
    }

    /// A shard of this group that has keys of `bounds`.
    pub(crate) fn overlaps(&self, bounds: &Bounds) -> Option<ShardId> {
        let all = bounds.keys();
        self.state.shards.values().find(|other| other.info.bounds.intersects(&all)).map(|other| other.info.id)
    }

    pub(crate) fn forget_sessions(&mut self, id: ShardId) {
        self.state.sessions.forget(id);
        self.executed.retain(|executed| executed.shard != id);
    }

    /// Rows of the revision index stay, where other shards share the space: they name keys, and nobody asks for
    /// these any more.
    fn delete_keys(&mut self, shard: &OwnedShard) {
        for (bounds, id) in shard.parts() {
            let space = self.keys.space(id);
            let mut others = self.state.shards.values().flat_map(|other| other.info.spaces());
            if others.any(|other| other == id) {
                let latest = space.latest_range(&bounds.keys());
                self.dropped.extend([latest, space.history_of(&bounds)]);
            } else {
                self.dropped.push(space.all());
            }
        }
        self.supersede_images();
    }

    /// Images that are being read would miss rows, or have too many: they end, and new ones begin.
    fn supersede_images(&self) {
        self.shared.installs.fetch_add(1, Ordering::SeqCst);
    }
}
