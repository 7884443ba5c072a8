//! Applying decided entries: one call is one batch of the store, with data, revision index, session
//! outcomes and the group's meta together.

use crate::codec;
use crate::command::{Batch, Command, Outcome};
use crate::exec::{self, ExecError, Mode, Write};
use crate::key::{GroupKeys, SpaceKeys};
use crate::ops::Op;
use crate::overlay::Overlay;
use crate::record::{self, Entry};
use crate::request::{OpError, SessionTag};
use crate::sessions::{Executed, Judgement};
use crate::state::{OwnedShard, Shard, Shared, State, Stretch, territory_of};
use crate::store::{RowRange, Store, StoreError, WriteBatch};
use crate::territory::Territory;
use crate::types::{Bounds, DIGEST_SLOTS, Digest, Epoch, MoveId, Revision, ShardId};
use bytes::Bytes;
use paxos::flaw::{self, Flaw};
use paxos::{Configuration, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Changes per row of the revision index.
pub(crate) const INDEX_ROW_ENTRIES_MAX: usize = 1024;

/// One apply call in progress.
pub(crate) struct Call<'a, S> {
    pub(crate) shared: &'a Shared<S>,
    pub(crate) keys: &'a GroupKeys,
    pub(crate) state: &'a mut State,
    pub(crate) overlay: Overlay<'a, S>,
    /// The row of this call's session outcomes: the last slot.
    pub(crate) row: Slot,
    pub(crate) executed: Vec<Executed>,
    index: BTreeMap<SpaceKeys, Vec<Entry>>,
    pub(crate) changed_shards: BTreeSet<ShardId>,
    pub(crate) changed_arrivals: BTreeSet<ShardId>,
    pub(crate) changed_gone: BTreeSet<ShardId>,
    /// Rows of shards that go; nobody reads them any more.
    pub(crate) dropped: Vec<RowRange>,
}

/// A write command's fields.
struct WriteCommand<'c> {
    revision: Revision,
    shard: ShardId,
    epoch: Epoch,
    also: &'c [(ShardId, Epoch)],
    session: SessionTag,
    op: &'c Op,
}

impl<'a, S: Store> Call<'a, S> {
    pub(crate) fn new(shared: &'a Shared<S>, state: &'a mut State, row: Slot) -> Call<'a, S> {
        let overlay = Overlay::new(&*shared.store);
        Call {
            shared,
            keys: &shared.keys,
            state,
            overlay,
            row,
            executed: Vec::new(),
            index: BTreeMap::new(),
            changed_shards: BTreeSet::new(),
            changed_arrivals: BTreeSet::new(),
            changed_gone: BTreeSet::new(),
            dropped: Vec::new(),
        }
    }

    /// Applies the entries and answers the outcomes and the batch to be written.
    #[allow(clippy::type_complexity)] // outcomes, batch, and whether it deletes rows that may be being read
    pub(crate) fn run(
        mut self,
        entries: &[(Slot, Bytes)],
    ) -> Result<(Vec<Vec<Outcome>>, WriteBatch, bool), StoreError> {
        let mut outcomes = Vec::with_capacity(entries.len());
        for (slot, entry) in entries {
            if let Some(configuration) = Configuration::of_stop_sign(entry) {
                self.state.meta.configuration = Some(configuration);
                outcomes.push(Vec::new());
            } else {
                outcomes.push(match decode_entry(entry) {
                    Ok(batch) => {
                        batch.commands.iter().map(|command| self.command(command)).collect::<Result<_, _>>()?
                    }
                    Err(malformed) => {
                        self.mix(b'!', Revision(0), 0);
                        vec![malformed]
                    }
                });
            }
            if slot.0 % DIGEST_SLOTS == 0 {
                self.state.digests.push(Digest { slot: *slot, value: self.state.meta.hash });
            }
        }
        self.state.meta.applied = self.row;
        let drops = !self.dropped.is_empty();
        Ok((outcomes, self.finish(), drops))
    }

    fn command(&mut self, command: &Command) -> Result<Outcome, StoreError> {
        match command {
            Command::Write { revision, shard, epoch, also, session, op } => {
                let (revision, shard, epoch, session) = (*revision, *shard, *epoch, *session);
                self.stamped(revision, |call| call.write(WriteCommand { revision, shard, epoch, also, session, op }))
            }
            Command::Activate { revision, shard, bounds, epoch, by } => {
                self.stamped(*revision, |call| Ok(call.activate(*revision, *shard, bounds, *epoch, *by)))
            }
            Command::Compact { revision } => Ok(self.compact(*revision)),
            Command::Depart { shard, epoch, mv } => Ok(self.depart(*shard, *epoch, *mv)),
            Command::Freeze { revision, shard, mv } => {
                self.stamped(*revision, |call| Ok(call.freeze(*revision, *shard, *mv)))
            }
            Command::Stay { shard, mv } => Ok(self.stay(*shard, *mv)),
            Command::Drop { shard, epoch } => Ok(self.drop_shard(*shard, *epoch)),
            Command::Arrive { shard, bounds, mv } => Ok(self.arrive(*shard, bounds, *mv)),
            Command::Import { shard, mv, at, next, piece } => self.import(*shard, *mv, (at, next), piece),
            Command::Discard { shard, mv } => Ok(self.discard(*shard, *mv)),
            Command::Reshape { by, from, to } => Ok(self.reshape(*by, from, to)),
        }
    }

    /// Stamped commands rise: "nothing ≤ r follows" holds from the log alone.
    fn stamped(
        &mut self,
        revision: Revision,
        then: impl FnOnce(&mut Self) -> Result<Outcome, StoreError>,
    ) -> Result<Outcome, StoreError> {
        let last = self.state.meta.last_revision;
        if revision <= last || revision.0 == u64::MAX {
            self.mix(b'<', revision, 0);
            let why = format!("a command stamped {revision} follows {last} in the log");
            return Ok(Outcome::Failed(OpError::Malformed(why)));
        }
        self.state.meta.last_revision = revision;
        let outcome = then(self)?;
        let kind = match &outcome {
            Outcome::Done { .. } => b'D',
            Outcome::WrongShard => b'W',
            Outcome::Failed(_) => b'F',
            Outcome::Activated => b'A',
            Outcome::Moved => b'V',
            Outcome::Compacted => b'C',
            Outcome::Malformed(_) => b'M',
        };
        self.mix(kind, revision, 0);
        Ok(outcome)
    }

    fn write(&mut self, write: WriteCommand<'_>) -> Result<Outcome, StoreError> {
        let WriteCommand { revision, shard, epoch, also, session, op } = write;
        let named = std::iter::once((shard, epoch)).chain(also.iter().copied());
        let Some(territory) = territory_of(&self.state.shards, self.keys, named) else {
            return Ok(Outcome::WrongShard);
        };
        if territory.frozen().is_some() && !flaw::is(Flaw::WriteToFrozen) {
            return Ok(Outcome::WrongShard);
        }
        if let Some(stray) = stray_key(op, &territory) {
            return Ok(Outcome::Failed(OpError::Malformed(stray)));
        }
        match self.state.sessions.judge(shard, &session, revision) {
            Judgement::Refused(error) => Ok(Outcome::Failed(error)),
            Judgement::Done(first, path) => self.answer_again(&territory, op, first, &path),
            Judgement::New => match exec::execute(&self.overlay, &territory, op, revision, Mode::Fresh) {
                Ok(done) => {
                    self.commit(&territory, revision, done.writes);
                    self.remember(Executed { shard, tag: session, revision, path: done.path });
                    Ok(Outcome::Done { revision, result: done.result })
                }
                Err(ExecError::Op(error)) => Ok(Outcome::Failed(error)),
                Err(ExecError::Store(error)) => Err(error),
                Err(ExecError::Stopped) => unreachable!("nobody stops an apply"),
            },
        }
    }

    /// The answer that the command got when it was executed, from the versions below its revision.
    fn answer_again(
        &self,
        territory: &Territory,
        op: &Op,
        first: Revision,
        path: &[bool],
    ) -> Result<Outcome, StoreError> {
        match exec::execute(&self.overlay, territory, op, first, Mode::Again(path)) {
            Ok(done) => Ok(Outcome::Done { revision: first, result: done.result }),
            // It was done, but what it answered is history below the floor.
            Err(ExecError::Op(OpError::Compacted { .. })) => Ok(Outcome::Failed(OpError::SessionExpired)),
            Err(ExecError::Op(error)) => Ok(Outcome::Failed(error)),
            Err(ExecError::Store(error)) => Err(error),
            Err(ExecError::Stopped) => unreachable!("nobody stops an apply"),
        }
    }

    fn commit(&mut self, territory: &Territory, revision: Revision, writes: BTreeMap<Bytes, Write>) {
        let mut writes: Vec<(Bytes, Write)> = writes.into_iter().collect();
        writes.sort_by_key(|(_, write)| write.operation);
        for (key, write) in writes {
            let Some(part) = territory.part_of(&key) else { panic!("a write outside of the checked shards: {key:?}") };
            self.mix(write_kind(&write), revision, digest(&key, &write));
            let before = write.before.as_ref().map(|before| before.head.mod_revision);
            if let Some(before) = write.before {
                let superseded = before.head.mod_revision;
                assert!(superseded < revision, "version {superseded} superseded by the older {revision}");
                self.overlay.put(part.space.history(&key, superseded), before.row);
            }
            self.overlay.put(part.space.latest(&key), write.version.row);
            let delete = write.version.head.tombstone;
            let entry = Entry { revision, operation: write.operation, delete, before, key };
            match self.index.get_mut(&part.space) {
                Some(entries) => entries.push(entry),
                None => {
                    self.index.insert(part.space.clone(), vec![entry]);
                }
            }
        }
    }

    fn remember(&mut self, mut executed: Executed) {
        if self.state.sessions.record(&mut executed, self.row) {
            let evicted = self.state.sessions.evicted(executed.shard);
            self.change_shard(executed.shard, |info| info.evicted = evicted);
        }
        self.executed.push(executed);
    }

    pub(crate) fn change_shard(&mut self, id: ShardId, change: impl FnOnce(&mut OwnedShard)) {
        let shards = Arc::make_mut(&mut self.state.shards);
        if let Some(shard) = shards.get_mut(&id) {
            let mut info = shard.info.clone();
            change(&mut info);
            *shard = Shard::new(info, self.keys);
            self.changed_shards.insert(id);
        }
    }

    fn activate(&mut self, revision: Revision, id: ShardId, bounds: &Bounds, epoch: Epoch, by: MoveId) -> Outcome {
        if let Some(shard) = self.state.shards.get(&id) {
            if shard.info.epoch == epoch && shard.info.bounds == *bounds {
                return Outcome::Activated;
            }
            if shard.info.epoch >= epoch {
                return Outcome::WrongShard;
            }
            if shard.info.bounds != *bounds {
                return Outcome::Failed(OpError::Malformed(format!("{id} was activated with other bounds")));
            }
            if by > MoveId(0) {
                return Outcome::WrongShard; // what is here was never dropped: the copy that came counts
            }
            self.change_shard(id, |info| info.epoch = epoch);
            return Outcome::Activated;
        }
        if self.state.gone.get(&id).is_some_and(|gone| epoch <= *gone) {
            return Outcome::WrongShard; // the map of who wants this is old
        }
        if by > MoveId(0) {
            return self.activate_arrived(id, bounds, epoch, by);
        }
        if let Some(other) = self.overlaps(bounds) {
            return Outcome::Failed(OpError::Malformed(format!("{id} overlaps with {other}")));
        }
        let space = *self.state.meta.home.get_or_insert_with(|| self.shared.new_space());
        let zero = Revision(0);
        let info = OwnedShard {
            id,
            bounds: bounds.clone(),
            epoch,
            floor: zero,
            evicted: zero,
            stretches: vec![Stretch { start: bounds.start.clone(), space }],
            since: Slot(0),
            stayed: by,
            out: None,
        };
        Arc::make_mut(&mut self.state.shards).insert(id, Shard::new(info, self.keys));
        self.changed_shards.insert(id);
        self.mix(b'+', revision, u64::from(crc32fast::hash(&codec::encode(&(id, bounds, epoch)))));
        Outcome::Activated
    }

    fn compact(&mut self, revision: Revision) -> Outcome {
        self.state.meta.compacted = self.state.meta.compacted.max(revision);
        // A frozen shard can be read up to its end; whoever has it in the end makes up for this.
        let is_frozen = |info: &OwnedShard| info.out.as_ref().is_some_and(|out| out.frozen.is_some());
        let lower = self.state.shards.values().map(|shard| &shard.info);
        let lower = lower.filter(|info| info.floor < revision && !is_frozen(info)).map(|info| info.id);
        for id in lower.collect::<Vec<_>>() {
            self.change_shard(id, |info| info.floor = revision);
        }
        self.mix(b'C', revision, 0);
        Outcome::Compacted
    }

    /// Folds one logical effect into the group's hash. What is stored differs between replicas
    /// (spaces, collected history), what was done must not.
    pub(crate) fn mix(&mut self, kind: u8, revision: Revision, effect: u64) {
        // The multiplier and the finish of splitmix64.
        let mut hash = self.state.meta.hash ^ effect.rotate_left(8) ^ u64::from(kind);
        hash = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ revision.0;
        hash = (hash ^ hash >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        self.state.meta.hash = hash ^ hash >> if flaw::is(Flaw::DigestAnew) { 26 } else { 27 };
    }

    fn finish(mut self) -> WriteBatch {
        for (space, entries) in &self.index {
            for (part, chunk) in entries.chunks(INDEX_ROW_ENTRIES_MAX).enumerate() {
                let last = chunk.last().map_or(Revision(0), |entry| entry.revision);
                self.overlay.put(space.index(last, part as u32), record::index_row(chunk));
            }
        }
        for slot in self.state.sessions.take_dead_rows() {
            self.overlay.delete(self.keys.session_row(slot));
        }
        // A row that died in the call that made it was just deleted: write it only if it lives.
        if self.state.sessions.needs_row(self.row) {
            self.overlay.put(self.keys.session_row(self.row), codec::encode(&self.executed));
        }
        for id in &self.changed_shards {
            match self.state.shards.get(id) {
                Some(shard) => self.overlay.put(self.keys.shard(*id), codec::encode(&shard.info)),
                None => self.overlay.delete(self.keys.shard(*id)),
            }
        }
        for id in &self.changed_gone {
            if let Some(epoch) = self.state.gone.get(id) {
                self.overlay.put(self.keys.gone(*id), codec::encode(&(*id, *epoch)));
            }
        }
        for id in &self.changed_arrivals {
            match self.state.arrivals.get(id) {
                Some(incoming) => self.overlay.put(self.keys.incoming(*id), codec::encode(incoming)),
                None => self.overlay.delete(self.keys.incoming(*id)),
            }
        }
        self.overlay.put(self.keys.meta(), codec::encode(&self.state.meta));
        let mut batch = self.overlay.into_batch();
        // Behind what this call has written there before they went.
        self.dropped.into_iter().for_each(|rows| batch.delete_range(rows));
        batch
    }
}

fn decode_entry(entry: &Bytes) -> Result<Batch, Outcome> {
    if entry.is_empty() {
        return Ok(Batch::default()); // a leader's no-op
    }
    codec::decode(entry).map_err(|error| Outcome::Malformed(error.to_string()))
}

/// A key of `op` that lies outside of the shards that the command names, in words.
fn stray_key(op: &Op, territory: &Territory) -> Option<String> {
    let mut stray = None;
    op.for_each_keys(&mut |keys, _| {
        if !territory.covers(keys) {
            stray = Some(format!("{keys:?} lies outside of the named shards"));
        }
    });
    op.for_each_put(&mut |put| {
        if territory.part_of(&put.key).is_none() {
            stray = Some(format!("key {:?} lies outside of the named shards", put.key));
        }
    });
    stray
}

fn write_kind(write: &Write) -> u8 {
    if write.version.head.tombstone { b'd' } else { b'p' }
}

/// A digest of the version that a write made, of its meaning rather than its encoding.
fn digest(key: &[u8], write: &Write) -> u64 {
    let (head, row) = (&write.version.head, &write.version.row);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    for number in [head.create_revision.0, head.version, head.lease.cast_unsigned(), u64::from(write.operation)] {
        crc.update(&number.to_le_bytes());
    }
    let value = head.value(row);
    crc.update(value);
    u64::from(crc.finalize()) << 32 | value.len() as u64 & 0xFFFF_FFFF
}
