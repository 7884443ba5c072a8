//! What a node tells about itself.

use super::progress::MoveStatus;
use super::{Core, Machine};
use crate::tally::GroupTally;
use paxos::{Ballot, GroupId, NodeId, Slot, Time};
use shardkv::map::{SHARDMASTER_GROUP, ShardMap};
use shardkv::store::Store;
use shardkv::types::Revision;
use shardmaster::load::ShardLoad;
use std::sync::Arc;

/// One replica, as its node sees it.
#[derive(Clone, Debug)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Its replicas.
    pub replicas: Vec<NodeId>,
    /// The ballot that this replica follows; its node is the leader.
    pub leader: Ballot,
    /// The ballot that it has promised, and the one that its log belongs to.
    pub promised: Ballot,
    /// See above.
    pub accepted: Ballot,
    /// The first slot that it still holds in memory.
    pub first_kept: Slot,
    /// It cannot prove its log and waits for repair.
    pub suspect: bool,
    /// Its state is another one than a majority's: it neither leads nor reads.
    pub fenced: bool,
    /// The members whose state differs from its own.
    pub differing: Vec<NodeId>,
    /// Whether this node leads and serves.
    pub serves: bool,
    /// Whether it holds the lease.
    pub leased: bool,
    /// The last slot of the log, the last decided one, the last applied one.
    pub length: Slot,
    /// See above.
    pub decided: Slot,
    /// See above.
    pub applied: Slot,
    /// The largest applied revision.
    pub revision: Revision,
    /// How far the other replicas have accepted, on a leader.
    pub matched: Vec<(NodeId, Option<Slot>)>,
    /// Write requests waiting for a revision on a leader, and their bytes.
    pub waiting: (usize, usize),
    /// Reads waiting on a leader.
    pub reads_waiting: usize,
    /// Bytes decided and not yet applied.
    pub applying_bytes: usize,
    /// What it has counted.
    pub tally: GroupTally,
}

/// A node.
#[derive(Clone, Debug)]
pub struct CoreStatus {
    /// The node.
    pub node: NodeId,
    /// Its replicas.
    pub groups: Vec<GroupStatus>,
    /// The newest revision handed out, on the sequencer's node.
    pub sequencer: Option<Revision>,
    /// Revisions up to here are reserved, as far as this node's replica of the shardmaster knows.
    pub reserved_up_to: Revision,
    /// The largest revision known here.
    pub known: Revision,
    /// The newest map known here.
    pub map: Arc<ShardMap>,
    /// The other nodes, and whether a round trip succeeded lately.
    pub reaches: Vec<(NodeId, bool)>,
    /// The nodes that this one does not reach, and for how many microseconds.
    pub silent: Vec<(NodeId, u64)>,
    /// The disk has no room, for the log or for the store: writes are refused.
    pub no_space: bool,
    /// Reads of ranges under way.
    pub scans: usize,
    /// Shards that move to groups that are led here.
    pub moves: Vec<MoveStatus>,
    /// How busy the shards are that are served here.
    pub loads: Vec<ShardLoad>,
    /// Why the balancer does what it does, line by line, where this node leads the shardmaster.
    pub balance: Vec<String>,
}

impl<S: Store> Core<S> {
    /// What the node tells about itself.
    pub fn status(&self, now: Time) -> CoreStatus {
        let groups = self.groups.iter().map(|(id, group)| {
            let acceptor = group.replica.acceptor();
            GroupStatus {
                group: *id,
                replicas: group.replica.replicas().to_vec(),
                leader: group.replica.leader(),
                promised: acceptor.promised(),
                accepted: acceptor.accepted(),
                first_kept: acceptor.log().first_kept(),
                suspect: acceptor.suspect(),
                fenced: group.fenced,
                differing: self.differing(*id),
                serves: group.lead.as_ref().is_some_and(|lead| lead.ready),
                leased: self.has_lease(now, *id),
                length: acceptor.log().length(),
                decided: acceptor.decided(),
                applied: group.applied,
                revision: match &group.machine {
                    Machine::Data(reader) => reader.applied().1,
                    Machine::Master(state) => state.reserved_up_to,
                },
                waiting: group.lead.as_ref().map_or((0, 0), |lead| (lead.inbox.len(), lead.inbox_bytes)),
                reads_waiting: group.lead.as_ref().map_or(0, |lead| lead.reads_waiting),
                applying_bytes: group.applying_bytes,
                tally: group.tally.clone(),
                matched: group.replica.matched().into_iter().collect(),
            }
        });
        let others = self.config.nodes.iter().filter(|node| **node != self.config.me);
        CoreStatus {
            node: self.config.me,
            groups: groups.collect(),
            sequencer: self.sequencer_position(),
            reserved_up_to: match self.groups.get(&SHARDMASTER_GROUP).map(|group| &group.machine) {
                Some(Machine::Master(state)) => state.reserved_up_to,
                Some(Machine::Data(_)) | None => Revision(0),
            },
            known: self.known,
            map: self.map.clone(),
            reaches: others.map(|node| (*node, self.beats.reaches(now, *node))).collect(),
            silent: self.comings.unreached.iter().map(|(node, since)| (*node, now.since(*since))).collect(),
            no_space: self.no_space,
            scans: self.scans.len(),
            moves: self.moves_here(now),
            loads: self.loads(),
            balance: self.balance_why(),
        }
    }

    /// The replica of a group, for the simulator's checkers.
    pub fn replica(&self, group: GroupId) -> Option<&paxos::Replica> {
        self.groups.get(&group).map(|group| &group.replica)
    }

    /// The newest shard map known here.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// Whether this node holds the lease of a group, for the simulator's checkers.
    pub fn holds_lease(&self, now: Time, group: GroupId) -> bool {
        self.has_lease(now, group)
    }
}
