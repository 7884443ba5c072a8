//! The metadata and its commands. Everything here is a pure function of the log.

use serde::{Deserialize, Serialize};
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::request::OpError;
use shardkv::types::Revision;

/// One entry of the shardmaster's log, encoded with [`shardkv::codec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterCommand {
    /// The first shard map. Only the first one that is applied counts.
    Genesis(Box<ShardMap>),
    /// How a node of the map is reached now.
    Register(Box<NodeInfo>),
    /// The sequencer may hand out numbers up to this one.
    Reserve {
        /// The new bound; a lower one than before changes nothing.
        up_to: Revision,
    },
    /// History below this revision is to be dropped, in all groups. The leader has checked that the
    /// sequencer had handed it out.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
    },
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterOutcome {
    /// It was applied (or had been before).
    Applied,
    /// Refused with nothing done.
    Failed(OpError),
    /// A leader's no-op.
    Nothing,
    /// The entry does not decode. Nothing was done.
    Malformed(String),
}

/// The metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterState {
    /// Shards, groups, nodes; without a shard until genesis.
    pub map: ShardMap,
    /// Numbers up to here may have been handed out; a new leader starts above.
    pub reserved_up_to: Revision,
}

impl MasterState {
    /// Whether genesis was applied.
    pub fn is_initialised(&self) -> bool {
        !self.map.shards.is_empty()
    }

    /// Applies one command.
    pub fn apply(&mut self, command: MasterCommand) -> MasterOutcome {
        match command {
            MasterCommand::Genesis(map) => {
                if self.is_initialised() {
                    return MasterOutcome::Applied;
                }
                if let Err(problem) = map.check() {
                    return MasterOutcome::Failed(OpError::Malformed(problem));
                }
                self.map = *map;
                self.map.version = self.map.version.max(1);
                MasterOutcome::Applied
            }
            MasterCommand::Register(info) => match self.map.nodes.iter_mut().find(|node| node.id == info.id) {
                Some(node) if *node == *info => MasterOutcome::Applied,
                Some(node) => {
                    *node = *info;
                    self.map.version += 1;
                    MasterOutcome::Applied
                }
                None => MasterOutcome::Failed(OpError::Malformed(format!("{} is no node of the map", info.id))),
            },
            MasterCommand::Reserve { up_to } => {
                self.reserved_up_to = self.reserved_up_to.max(up_to);
                MasterOutcome::Applied
            }
            MasterCommand::Compact { revision } => {
                if revision <= self.map.compacted {
                    return MasterOutcome::Failed(OpError::Compacted { floor: self.map.compacted });
                }
                self.map.compacted = revision;
                self.map.version += 1;
                MasterOutcome::Applied
            }
        }
    }
}
