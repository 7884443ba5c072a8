//! Reads from other threads, while applying goes on.
//!
//! No lock is held and no snapshot taken: a read at a fixed revision finds the same versions
//! whatever is applied meanwhile (see [`crate::mvcc`]). Two things can take rows away under it:
//! collection, once the floor has passed its revision, and the deletion of a space that an
//! installed image replaced. Both publish first and delete later, so a reader that finds the shards
//! as they were, after it has read, has read right; otherwise it decides anew.

use crate::exec::{self, ExecError, Mode};
use crate::moving::Incoming;
use crate::ops::{Op, OpResult};
use crate::request::OpError;
use crate::state::{OwnedShard, Shared, territory_of};
use crate::store::{Store, StoreError};
use crate::types::{Epoch, Revision, ShardId};
use paxos::Slot;
use paxos::flaw::{self, Flaw};
use std::sync::Arc;

/// Why a read was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A named shard is not owned here at that epoch; ask the map again.
    #[error("a named shard is not owned here at that epoch")]
    WrongShard,
    /// The revision's history is gone.
    #[error("required revision has been compacted (floor {floor})")]
    Compacted {
        /// The oldest revision that can still be read.
        floor: Revision,
    },
    /// The operation cannot be read like this (it writes; a gateway's mistake).
    #[error("malformed read: {0}")]
    Malformed(String),
    /// The answer does not fit into memory set aside for it.
    #[error("the answer is too large")]
    TooLarge,
    /// Nobody wanted the answer any more.
    #[error("the read was stopped")]
    Stopped,
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ExecError> for ReadError {
    fn from(error: ExecError) -> ReadError {
        match error {
            ExecError::Store(error) => ReadError::Store(error),
            ExecError::Stopped => ReadError::Stopped,
            ExecError::Op(OpError::Compacted { floor }) => ReadError::Compacted { floor },
            ExecError::Op(OpError::TooLarge) => ReadError::TooLarge,
            ExecError::Op(error) => ReadError::Malformed(error.to_string()),
        }
    }
}

/// Reads a group's keys from any thread.
pub struct Reader<S> {
    pub(crate) shared: Arc<Shared<S>>,
}

impl<S> Clone for Reader<S> {
    fn clone(&self) -> Reader<S> {
        Reader { shared: Arc::clone(&self.shared) }
    }
}

impl<S: Store> Reader<S> {
    /// The applied slot and the largest applied revision (of that slot or a later one). Cheap.
    pub fn applied(&self) -> (Slot, Revision) {
        self.shared.applied()
    }

    /// The shards that the group holds, by id.
    pub fn shards(&self) -> Vec<OwnedShard> {
        self.shared.shards().values().map(|shard| shard.info.clone()).collect()
    }

    /// The shards that the group holds and their epochs, by id. Cheaper than [`Reader::shards`].
    pub fn epochs(&self) -> Vec<(ShardId, Epoch)> {
        self.shared.shards().values().map(|shard| (shard.info.id, shard.info.epoch)).collect()
    }

    /// The lowest floor of the shards that compactions reach. Not of those that are frozen: whoever has such a shard in
    /// the end makes up for it.
    pub fn lowest_floor(&self) -> Option<Revision> {
        let shards = self.shared.shards();
        let thawed = shards.values().map(|shard| &shard.info);
        let thawed = thawed.filter(|shard| shard.out.as_ref().is_none_or(|out| out.frozen.is_none()));
        thawed.map(|shard| shard.floor).min()
    }

    /// Reads a range or a transaction that only reads, exactly at `at`, over the named shards; keys
    /// outside of them are left out. A range with a revision of its own reads at that one. The
    /// caller has checked that the revisions are complete here, and that it may serve the read.
    pub fn read(&self, shards: &[(ShardId, Epoch)], op: &Op, at: Revision) -> Result<OpResult, ReadError> {
        self.read_until(shards, op, at, false, &|| false)
    }

    /// The same, unless `stop`, asked now and then, says that nobody wants the answer any more. A shard that is
    /// frozen can be read up to its end, but nobody here can say any more what is the newest (`newest`).
    pub fn read_until(
        &self,
        shards: &[(ShardId, Epoch)],
        op: &Op,
        at: Revision,
        newest: bool,
        stop: &dyn Fn() -> bool,
    ) -> Result<OpResult, ReadError> {
        if !op.is_read_only() {
            return Err(ReadError::Malformed("the operation writes".into()));
        }
        let behind = Revision(at.0.saturating_add(1));
        let named = || {
            let owned = self.shared.shards();
            let territory = territory_of(&owned, &self.shared.keys, shards.iter().copied());
            let readable = territory.filter(|territory| {
                territory.frozen().is_none_or(|end| (!newest && at <= end) || flaw::is(Flaw::ReadFrozen))
            });
            readable.ok_or(ReadError::WrongShard)
        };
        let mut territory = named()?;
        loop {
            let read = exec::execute_until(&*self.shared.store, &territory, op, behind, Mode::Read, stop);
            let now = named()?;
            if Arc::ptr_eq(&territory, &now) || *territory == *now {
                return Ok(read?.result);
            }
            // They changed while we read: seldom (a compaction, a move, an install), so decide anew.
            territory = now;
        }
    }

    /// The newest revision that can be read here: what is applied, and no floor of the named shards lies
    /// above it. A compaction above the last applied revision was logged when that was closed, so
    /// nothing lies between them. Of a frozen shard it is the end.
    pub fn newest(&self, shards: &[(ShardId, Epoch)]) -> Revision {
        let (_, last) = self.applied();
        let newest = self.floor(shards).max(last);
        self.frozen(shards).map_or(newest, |frozen| newest.min(frozen))
    }

    /// The last revision that can be read of the named shards, if one of them is frozen.
    pub fn frozen(&self, shards: &[(ShardId, Epoch)]) -> Option<Revision> {
        let owned = self.shared.shards();
        shards.iter().filter_map(|(id, _)| owned.get(id)?.info.out.as_ref()?.frozen).min()
    }

    /// The largest floor of the named shards.
    pub fn floor(&self, shards: &[(ShardId, Epoch)]) -> Revision {
        let owned = self.shared.shards();
        shards.iter().filter_map(|(id, _)| owned.get(id)).map(|shard| shard.info.floor).max().unwrap_or_default()
    }

    /// Whether a shard went to another group, at this epoch or a later one.
    pub fn has_gone(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.shared.gone().get(&shard).is_some_and(|gone| epoch <= *gone)
    }

    /// Whether any shard is on its way, from here or to here. Cheap.
    pub fn is_moving(&self) -> bool {
        let leaves = self.shared.shards().values().any(|shard| shard.info.out.is_some());
        leaves || !self.shared.arrivals().is_empty()
    }

    /// The shards that arrive here, by id.
    pub fn arrivals(&self) -> Vec<Incoming> {
        self.shared.arrivals().values().cloned().collect()
    }

    /// Reads at what is applied here; may be stale.
    pub fn serializable(&self, shards: &[(ShardId, Epoch)], op: &Op) -> Result<(Revision, OpResult), ReadError> {
        let at = self.newest(shards);
        Ok((at, self.read(shards, op, at)?))
    }
}
