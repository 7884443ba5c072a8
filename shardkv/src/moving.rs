//! Shards on their way from one group to another (design §7): what a group knows of them, and the reading
//! of what is to be copied. `apply_moves` has the steps that a log takes.
//!
//! ```text
//! S (has it)                                  D (gets it)
//! Depart: history is kept from now on         Arrive: a space of its own
//!                                             Import …: versions at R, the index up to R
//!                                             Import …: changes above R, in rounds
//! Freeze at F: no write follows
//!                                             Import: changes up to F, sessions, floors; complete
//!            the shardmaster gives the shard to D at the next epoch
//! Drop                                        Activate
//! ```
//!
//! The copy goes through D's log, piece by piece, and a piece says where it was read: any replica of D can
//! go on. Versions do not change, so it does not matter either what replica of S they were read from, or which
//! history it had collected below the floor. Those up to R come once and in the order of their keys; those of
//! changes find their place among the ones that are there.
//!
//! Invariants:
//! - R is closed by S's log alone: at [`Command::Depart`](crate::command::Command::Depart) nothing at or
//!   below the last stamp or the floor can follow.
//! - While a shard is on its way S collects nothing of it above the floor that it had at the beginning.
//! - What D has is complete up to F only once the end of a frozen shard has been imported; only then can it
//!   be activated.

use crate::changes;
use crate::codec;
use crate::key::SpaceKeys;
use crate::mvcc;
use crate::reader::{ReadError, Reader};
use crate::record::{Entry, Head};
use crate::sessions::{Executed, Sessions};
use crate::state::{OwnedShard, session_rows};
use crate::store::{RowRange, Store, StoreError, View};
use crate::types::{Bounds, MoveId, Revision, ShardId, SpaceId};
use bytes::Bytes;
use paxos::Slot;
use paxos::flaw::{self, Flaw};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// Changes looked for at a time.
const CHANGES_PER_LOOK: usize = 1024;
/// What a row costs beside its bytes.
const ROW_BYTES: usize = 16;

/// How a shard leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// The move.
    pub mv: MoveId,
    /// The revision R of the copy.
    pub copied_at: Revision,
    /// The shard's floor when the move began. History is kept from here on: a floor that rose between the copying
    /// of versions and of their changes would leave versions that no change names, and that nobody collects.
    pub kept_from: Revision,
    /// The revision F behind which nothing is written any more.
    pub frozen: Option<Revision>,
}

/// How a shard comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// The shard.
    pub id: ShardId,
    /// Its keys.
    pub bounds: Bounds,
    /// The move.
    pub mv: MoveId,
    /// Where its rows lie on this node.
    pub space: SpaceId,
    /// Session outcomes in rows below this slot are not its.
    pub since: Slot,
    /// What is to be imported next.
    pub at: Position,
    /// Bytes imported.
    pub bytes: u64,
    /// Of the shard where it came from, once it is complete.
    pub floor: Revision,
    /// See above.
    pub evicted: Revision,
}

impl Incoming {
    /// Whether all of it is here.
    pub fn is_complete(&self) -> bool {
        self.at == Position::End
    }
}

/// How far a copy has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// Versions of this key at or below a revision, then those of the keys behind it.
    Versions {
        /// The key.
        key: Bytes,
        /// The revision.
        below: Revision,
    },
    /// Changes from this revision on, but for so many of that revision.
    Changes {
        /// The revision.
        from: Revision,
        /// How many of its changes came before.
        skip: u32,
    },
    /// Session outcomes above this revision, of a frozen shard.
    Sessions {
        /// The revision.
        after: Revision,
    },
    /// Complete.
    End,
}

impl Position {
    /// The beginning of a shard.
    pub fn start(bounds: &Bounds) -> Position {
        Position::Versions { key: bounds.start.clone(), below: Revision(u64::MAX) }
    }
}

/// A part of a shard, as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Where it was read.
    pub at: Position,
    /// Where to go on.
    pub next: Position,
    /// Encoded.
    pub piece: Bytes,
    /// Everything written so far is in it, or came before: what is left is small.
    pub caught_up: bool,
    /// How many revisions were applied, and not yet looked at for changes.
    pub behind: u64,
    /// How much of the keys has been copied now, about, in thousandths.
    pub copied: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Stored versions with their keys.
    pub(crate) versions: Vec<(Bytes, Bytes)>,
    /// Changes in order; with the version that each made, if it lies above R.
    pub(crate) changes: Vec<(Entry, Option<Bytes>)>,
    /// In the order of revisions.
    pub(crate) sessions: Vec<Executed>,
    /// Floor and eviction floor, at the end of a frozen shard.
    pub(crate) end: Option<(Revision, Revision)>,
}

impl Piece {
    /// Whether it could be a part of shard `id`: what applies it must not fail, nor touch anything else.
    pub(crate) fn is_sound(&self, id: ShardId) -> bool {
        let rows =
            self.versions.iter().map(|(_, row)| row).chain(self.changes.iter().filter_map(|(_, row)| row.as_ref()));
        let revisions: Vec<Revision> = self.changes.iter().map(|(entry, _)| entry.revision).collect();
        rows.into_iter().all(|row| Head::parse(row).is_ok())
            && revisions.is_sorted()
            && self.sessions.iter().all(|executed| executed.shard == id)
    }

    /// Whether its versions come key by key from where they were read, the newest first, as they should. One may come twice: it
    /// was the newest when it was read, and lay in the history by the time that that was.
    pub(crate) fn versions_are_in_order(&self, at: &Position) -> bool {
        let first = match (at, self.versions.first()) {
            (_, None) => true,
            (Position::Versions { key, .. }, Some((first, _))) => key <= first,
            (_, Some(_)) => false,
        };
        let revision = |row: &Bytes| Head::parse(row).map_or(Revision(0), |head| head.mod_revision);
        let follows = |pair: &[(Bytes, Bytes)]| {
            let [(key, row), (next, below)] = pair else { return true };
            key < next || key == next && revision(row) >= revision(below)
        };
        first && self.versions.windows(2).all(follows)
    }
}

/// A chunk that is being read.
struct Filling<'a, V> {
    store: &'a V,
    /// Where its rows lie, in key order.
    parts: Vec<(Bounds, SpaceKeys)>,
    shard: &'a OwnedShard,
    copied_at: Revision,
    /// What lies below is not worth copying.
    floor: Revision,
    piece: Piece,
    bytes: usize,
    bytes_max: usize,
}

impl<S: Store> Reader<S> {
    /// Reads about `bytes_max` bytes of a shard that is on its way by this move, from `at` on.
    pub fn chunk(&self, id: ShardId, mv: MoveId, at: &Position, bytes_max: usize) -> Result<Chunk, ReadError> {
        let shared = &*self.shared;
        // First: all that is applied up to here can be read.
        let (_, applied) = shared.applied();
        let owned = shared.shards();
        let shard = owned.get(&id).map(|shard| &shard.info);
        let moving = shard.and_then(|shard| Some((shard, shard.out.as_ref().filter(|out| out.mv == mv)?)));
        let Some((shard, out)) = moving else { return Err(ReadError::WrongShard) };
        let upto = out.frozen.unwrap_or(applied);
        let parts = shard.parts().map(|(bounds, space)| (bounds, shared.keys.space(space))).collect();
        let piece = Piece::default();
        let (copied_at, floor) = (out.copied_at, out.kept_from);
        let mut filling = Filling { store: &*shared.store, parts, shard, copied_at, floor, piece, bytes: 0, bytes_max };
        let (mut next, mut caught_up) = (at.clone(), false);
        while filling.bytes < bytes_max {
            next = match next {
                Position::Versions { key, below } => filling.versions(&key, below)?,
                Position::Changes { from, .. }
                    if out.frozen.is_some() && (from > upto || flaw::is(Flaw::MoveWithoutLastChanges)) =>
                {
                    Position::Sessions { after: Revision(0) }
                }
                Position::Changes { from, .. } if from > upto => {
                    caught_up = true;
                    break;
                }
                Position::Changes { from, skip } => filling.changes(from, skip, upto)?,
                Position::Sessions { after } => {
                    let known = [(id, shard.evicted, shard.since)];
                    let rows = session_rows(&*shared.store, &shared.keys)?;
                    filling.sessions(&Sessions::restore(shared.limits, &known, rows), after)
                }
                Position::End => break,
            };
        }
        let piece = codec::encode(&filling.piece);
        // Rows of a shard that has gone meanwhile may be gone, too.
        match shared.shards().get(&id).is_some_and(|now| now.info.out.as_ref().is_some_and(|out| out.mv == mv)) {
            true => {
                let copied = self.copied(shard, &next);
                let behind = match &next {
                    Position::Changes { from, .. } => (upto.0 + 1).saturating_sub(from.0),
                    _ => 0,
                };
                Ok(Chunk { at: at.clone(), next, piece, caught_up, behind, copied })
            }
            false => Err(ReadError::WrongShard),
        }
    }
}

impl<S: Store> Reader<S> {
    /// How much of a shard's keys lies before a position, in thousandths.
    fn copied(&self, shard: &OwnedShard, next: &Position) -> u32 {
        let Position::Versions { key, .. } = next else { return 1000 };
        let before = self.latest_bytes(shard, &Bounds { start: shard.bounds.start.clone(), end: Some(key.clone()) });
        let all = self.latest_bytes(shard, &shard.bounds);
        before.saturating_mul(1000).checked_div(all).map_or(0, |share| share.min(1000) as u32)
    }
}

impl<V: View> Filling<'_, V> {
    /// Versions at R and what is older, key by key, the newest first, down to the newest at or below the floor.
    fn versions(&mut self, start: &Bytes, below: Revision) -> Result<Position, StoreError> {
        let rest = Bounds { start: start.clone(), end: self.shard.bounds.end.clone() }.keys();
        let mut next = None;
        let store = self.store;
        for (bounds, space) in self.parts.clone() {
            let Some(keys) = rest.clip(&bounds).filter(|_| next.is_none()) else { continue };
            store.scan(&space.latest_range(&keys), &mut |row_key, row| {
                let key = Bytes::copy_from_slice(space.rest(row_key));
                let limit = if key == *start { self.copied_at.min(below) } else { self.copied_at };
                if let Some(below) = self.versions_of(&space, &key, row, limit)? {
                    next = Some(Position::Versions { key, below });
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(next.unwrap_or(Position::Changes { from: self.floor, skip: 0 }))
    }

    /// Versions of one key up to `limit`; the revision of the first one that had no room.
    fn versions_of(
        &mut self,
        space: &SpaceKeys,
        key: &Bytes,
        newest: &[u8],
        limit: Revision,
    ) -> Result<Option<Revision>, StoreError> {
        let mut found = Vec::new();
        let mut rest: Option<RowRange> = None;
        let head = Head::parse(newest)?;
        if head.mod_revision <= limit {
            found.push((head, Bytes::copy_from_slice(newest)));
        }
        if head.mod_revision > self.floor {
            rest = Some(space.history_range(key, limit));
        }
        if let Some(rows) = rest {
            let floor = self.floor;
            self.store.scan(&rows, &mut |_, row| {
                let head = Head::parse(row)?;
                found.push((head, Bytes::copy_from_slice(row)));
                Ok(if head.mod_revision <= floor { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        for (head, row) in found {
            if self.bytes >= self.bytes_max {
                return Ok(Some(head.mod_revision));
            }
            // A deletion at or below the floor says no more than a missing key.
            if !(head.tombstone && head.mod_revision <= self.floor) {
                self.bytes += key.len() + row.len() + ROW_BYTES;
                self.piece.versions.push((key.clone(), row));
            }
            if head.mod_revision <= self.floor {
                break;
            }
        }
        Ok(None)
    }

    /// Changes up to `upto`, with the versions that lie above R.
    fn changes(&mut self, from: Revision, skip: u32, upto: Revision) -> Result<Position, StoreError> {
        let parts = self.parts.clone();
        let parts = parts.iter().map(|(bounds, space)| (space, bounds.keys()));
        let (entries, reached) = changes::entries_of(self.store, parts, (from, upto), CHANGES_PER_LOOK)?;
        let (mut revision, mut taken) = (from, skip);
        for (space, entry) in entries.into_iter().skip(skip as usize) {
            if entry.revision != revision {
                (revision, taken) = (entry.revision, 0);
            }
            if self.bytes >= self.bytes_max {
                return Ok(Position::Changes { from: revision, skip: taken });
            }
            let row = match entry.revision > self.copied_at {
                true => Some(self.version_of(space, &entry)?),
                false => None,
            };
            taken += 1;
            self.bytes += entry.key.len() + row.as_ref().map_or(0, Bytes::len) + ROW_BYTES;
            self.piece.changes.push((entry, row));
        }
        Ok(Position::Changes { from: reached, skip: 0 })
    }

    /// The version that a change above R has made; it is kept as long as the shard moves.
    fn version_of(&self, space: &SpaceKeys, entry: &Entry) -> Result<Bytes, StoreError> {
        let found = mvcc::lookup(self.store, space, &entry.key, entry.revision)?;
        let found = found.filter(|version| version.head.mod_revision == entry.revision).map(|version| version.row);
        found.ok_or_else(|| StoreError::Corrupt {
            what: "version of a change",
            detail: format!("{} of {:?} is missing", entry.revision, entry.key),
        })
    }

    fn sessions(&mut self, table: &Sessions, after: Revision) -> Position {
        for executed in table.export_shard(self.shard.id, after) {
            if flaw::is(Flaw::MoveWithoutSessions) {
                break;
            }
            if self.bytes >= self.bytes_max {
                return Position::Sessions { after: self.piece.sessions.last().map_or(after, |last| last.revision) };
            }
            self.bytes += executed.path.len() + 64;
            self.piece.sessions.push(executed);
        }
        self.piece.end = Some((self.shard.floor, self.shard.evicted));
        Position::End
    }
}

#[cfg(test)]
mod tests;
