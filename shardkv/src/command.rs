//! What the log of a data group holds, and what applying it answers.

use crate::ops::{Op, OpResult};
use crate::request::{OpError, SessionTag};
use crate::types::{Bounds, Epoch, Revision, ShardId};
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
    /// Of [`Command::Compact`].
    Compacted,
    /// The only outcome of an entry that does not decode. Nothing was done.
    Malformed(String),
}
