//! What the log of a data group holds, and what applying it answers.

use crate::moving::Position;
use crate::ops::{Op, OpResult};
use crate::request::{OpError, SessionTag};
use crate::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One entry of the log, encoded with [`crate::codec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Applied in order.
    pub commands: Vec<Command>,
}

/// One command. Stamped commands rise by revision in log order; apply refuses one that does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Executes an operation that may write.
    Write {
        /// Stamped by the leader; a command that writes nothing leaves a gap.
        revision: Revision,
        /// The shard whose session table remembers the outcome.
        shard: ShardId,
        /// The epoch that it must be owned at.
        epoch: Epoch,
        /// Other shards that the operation touches, and their epochs.
        also: Vec<(ShardId, Epoch)>,
        /// For exactly-once.
        session: SessionTag,
        /// What to do; every key lies in the named shards.
        op: Op,
    },
    /// The group takes over a shard. Idempotent for the same shard and epoch.
    Activate {
        /// Stamped by the leader.
        revision: Revision,
        /// The shard.
        shard: ShardId,
        /// Its keys.
        bounds: Bounds,
        /// The epoch from which the group owns it.
        epoch: Epoch,
        /// The move that brought it here, which must be complete; 0 for a shard that begins its life here.
        by: MoveId,
    },
    /// A shard is about to be copied to another group: its history is kept from now on.
    Depart {
        /// The shard.
        shard: ShardId,
        /// The epoch that it must be owned at.
        epoch: Epoch,
        /// The move.
        mv: MoveId,
    },
    /// No write follows in a shard that moves; only the shardmaster's decision ends that.
    Freeze {
        /// Stamped by the leader: the last revision of the shard at this epoch is below.
        revision: Revision,
        /// The shard.
        shard: ShardId,
        /// The move.
        mv: MoveId,
    },
    /// The shardmaster has called a move off: the shard stays.
    Stay {
        /// The shard.
        shard: ShardId,
        /// The move.
        mv: MoveId,
    },
    /// The shardmaster has given a shard to another group: the copy here goes.
    Drop {
        /// The shard.
        shard: ShardId,
        /// The epoch at which another group owns it.
        epoch: Epoch,
    },
    /// A shard will be copied to this group.
    Arrive {
        /// The shard.
        shard: ShardId,
        /// Its keys.
        bounds: Bounds,
        /// The move; one with a higher number takes the place of an earlier one.
        mv: MoveId,
    },
    /// A part of a shard that arrives. Done only if it is the next one.
    Import {
        /// The shard.
        shard: ShardId,
        /// The move.
        mv: MoveId,
        /// Where it was read, and where to go on.
        at: Position,
        /// See above.
        next: Position,
        /// What [`crate::Reader::chunk`] has read.
        piece: Bytes,
    },
    /// The shardmaster has called a move off: what has arrived of it goes.
    Discard {
        /// The shard.
        shard: ShardId,
        /// The move.
        mv: MoveId,
    },
    /// Shards are cut anew (a split or a merge): what some held, others hold from now on, here in this group. No row is
    /// touched. Done only if all of `from` are owned at exactly these epochs and none of them is on its way.
    Reshape {
        /// The number of the change, among moves.
        by: MoveId,
        /// Neighbours, in key order.
        from: Vec<(ShardId, Epoch)>,
        /// Neighbours, in key order, that cover the same keys.
        to: Vec<(ShardId, Bounds, Epoch)>,
    },
    /// History below the revision may be collected: the floor of every shard here becomes at least
    /// this. Logged once the revision is closed.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
    },
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, now or when it was first sent.
    Done {
        /// The revision at which it was done, also if it wrote nothing.
        revision: Revision,
        /// What it answers.
        result: OpResult,
    },
    /// A shard is not owned here at that epoch. Nothing was done, and the session's table does not
    /// know of it.
    WrongShard,
    /// Refused with nothing done; the session's table does not know of it.
    Failed(OpError),
    /// Of [`Command::Activate`].
    Activated,
    /// A step of a move was taken, or shards were cut anew; or that had been done before.
    Moved,
    /// Of [`Command::Compact`].
    Compacted,
    /// The only outcome of an entry that does not decode. Nothing was done.
    Malformed(String),
}
