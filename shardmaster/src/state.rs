//! The metadata and its commands. Everything here is a pure function of the log.

use paxos::{ConfigId, GroupId, NodeId};
use serde::{Deserialize, Serialize};
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::request::OpError;
use shardkv::types::Revision;

/// Replicas of one group at most: more would make every write wait for more, and survive little more.
const MEMBERS_MAX: usize = 7;

/// One entry of the shardmaster's log, encoded with [`shardkv::codec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MasterCommand {
    /// The first shard map. Only the first one that is applied counts.
    Genesis(Box<ShardMap>),
    /// How a node of the map is reached now.
    Register(Box<NodeInfo>),
    /// A group is to have other members.
    ChangeMembers {
        /// Which.
        group: GroupId,
        /// Whom; its present ones call off a change that is under way.
        members: Vec<NodeId>,
    },
    /// A group is in this configuration now: its leader there has said so.
    Configured {
        /// Which.
        group: GroupId,
        /// The configuration.
        config: ConfigId,
        /// Who votes there.
        members: Vec<NodeId>,
    },
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
            MasterCommand::ChangeMembers { group, members } => self.change_members(group, members),
            MasterCommand::Configured { group, config, members } => self.configured(group, config, members),
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

    fn change_members(&mut self, id: GroupId, mut members: Vec<NodeId>) -> MasterOutcome {
        members.sort_unstable();
        members.dedup();
        if members.is_empty() || members.len() > MEMBERS_MAX {
            return refused(format!("a group has 1 to {MEMBERS_MAX} replicas, not {}", members.len()));
        }
        if let Some(stranger) = members.iter().find(|node| !self.map.nodes.iter().any(|known| known.id == **node)) {
            return refused(format!("{stranger} is no node of the map"));
        }
        let Some(group) = self.map.group_mut(id) else { return refused(format!("{id} is no group of the map")) };
        let next = if group.replicas == members { Vec::new() } else { members };
        if group.next != next {
            group.next = next;
            self.map.version += 1;
        }
        MasterOutcome::Applied
    }

    fn configured(&mut self, id: GroupId, config: ConfigId, members: Vec<NodeId>) -> MasterOutcome {
        let Some(group) = self.map.group_mut(id) else { return refused(format!("{id} is no group of the map")) };
        if config > group.config {
            if group.next == members {
                group.next.clear();
            }
            (group.config, group.replicas) = (config, members);
            self.map.version += 1;
        }
        MasterOutcome::Applied
    }
}

fn refused(why: String) -> MasterOutcome {
    MasterOutcome::Failed(OpError::Malformed(why))
}
