//! What nodes say to each other: Paxos and heartbeats, calls to the sequencer, the shard map, and
//! snapshots. Encoded with [`shardkv::codec`], many in one message of the peer stream.

use bytes::Bytes;
use paxos::{ConfigId, GroupId, NodeId, Slot, Wire};
use serde::{Deserialize, Serialize};
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::moving::{Chunk, Position};
use shardkv::request::TraceContext;
use shardkv::types::{Digest, Epoch, MoveId, Revision, ShardId};
use shardmaster::load::ShardLoad;

/// A call to the sequencer, named by the asking group's term as leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AskId {
    /// The asking group.
    pub group: GroupId,
    /// The asking node's count of terms; a late answer to an earlier term meets nobody.
    pub term: u64,
    /// Counts the calls of the term.
    pub number: u64,
}

/// A piece of a shard that moves is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The group that has it.
    pub group: GroupId,
    /// The shard.
    pub shard: ShardId,
    /// The move.
    pub mv: MoveId,
    /// From where on.
    pub at: Position,
    /// The rest is wanted: the shard is to be frozen first.
    pub finish: bool,
    /// The group that gets it.
    pub to: GroupId,
}

/// A message from one node to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// Consensus and heartbeats.
    Paxos(Wire),
    /// To the sequencer: `count` revisions, please.
    Take {
        /// Repeated by the answer.
        ask: AskId,
        /// How many.
        count: u64,
    },
    /// From the sequencer: `count` revisions from `first` on.
    Taken {
        /// The call's.
        ask: AskId,
        /// The first of the revisions.
        first: Revision,
    },
    /// To any node: the map, if it knows one newer than this version.
    MapRequest {
        /// The version that the asker has.
        have_version: u64,
    },
    /// The newest map that the sender knows.
    MapReply(Box<ShardMap>),
    /// To the shardmaster's leader: this is how the sender is reached; the map should say so.
    Register(Box<NodeInfo>),
    /// To the shardmaster's leader, from a group's: this configuration is in force, or is about to be.
    Configured {
        /// The group.
        group: GroupId,
        /// The configuration.
        config: ConfigId,
        /// Who votes in it.
        members: Vec<NodeId>,
        /// Whether it has begun.
        begun: bool,
    },
    /// To the leader of a group that has a shard, from the leader of the group that it moves to.
    Fetch(Box<Fetch>),
    /// The answer to a [`Fetch`].
    Fetched {
        /// The group that the shard moves to.
        group: GroupId,
        /// The shard.
        shard: ShardId,
        /// The move.
        mv: MoveId,
        /// What was read.
        chunk: Box<Chunk>,
    },
    /// To the shardmaster's leader: all of a shard has arrived by this move.
    Arrived {
        /// Which.
        mv: MoveId,
    },
    /// To the shardmaster's leader: a group has split or merged its shards as planned.
    Reshaped {
        /// By which change.
        by: MoveId,
    },
    /// To a group's leader, from the shardmaster's: where is the middle of this shard?
    Halve {
        /// The group.
        group: GroupId,
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The answer: there.
    Halved {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        epoch: Epoch,
        /// A key that has about half of its bytes before it; `None` where no key but the first could be that.
        at: Option<Bytes>,
    },
    /// To the shardmaster's leader: how busy the shards are that the sender serves, and what those hold that it leads.
    /// All of them; what was told before does not count any more.
    Loads {
        /// The groups that it leads, and can write to.
        led: Vec<GroupId>,
        /// By shard.
        loads: Vec<ShardLoad>,
    },
    /// A piece of a group's image.
    SnapshotPiece {
        /// The group.
        group: GroupId,
        /// The transfer; a new one replaces an old one.
        transfer: u64,
        /// Counts the pieces from 0.
        sequence: u64,
        /// The slot that the image is of.
        slot: Slot,
        /// The piece; empty and last behind the end.
        piece: Bytes,
        /// Whether this ends the image.
        last: bool,
    },
    /// The receiver has stored this piece and waits for the next.
    SnapshotAck {
        /// The group.
        group: GroupId,
        /// The transfer.
        transfer: u64,
        /// The piece.
        sequence: u64,
    },
    /// The receiver knows nothing (any more) of this transfer, or could not use it: it is over.
    SnapshotRefused {
        /// The group.
        group: GroupId,
        /// The transfer.
        transfer: u64,
    },
    /// The entry in this slot, proposed just before, holds writes that are followed.
    Follow {
        /// The group.
        group: GroupId,
        /// The slot.
        slot: Slot,
        /// Whose writes.
        contexts: Vec<TraceContext>,
    },
    /// To the members of a group: what the sender's state machine has come to.
    Digest {
        /// The group.
        group: GroupId,
        /// Where, and what.
        digest: Digest,
    },
}
