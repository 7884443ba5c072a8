//! What gateways ask groups' leaders, and what those answer. In one process these are passed as
//! values; between processes they travel, batched, on one stream (see [`crate::codec`]).

use crate::map::{GroupChange, ShardChange, ShardMap};
use crate::ops::{Op, OpResult};
use crate::types::{Epoch, MoveId, Revision, ShardId};
use bytes::Bytes;
use paxos::{GroupId, NodeId};
use serde::{Deserialize, Serialize};

/// Makes a gateway's retries exactly-once: a shard remembers (sequence → outcome) of each session
/// for every sequence at or above the low-water mark that commands carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionTag {
    /// A random number chosen when the session was opened.
    pub session: u128,
    /// A sequencer number known when the session was opened. A shard that evicted sessions refuses
    /// unknown ones born at or below the newest evicted use: they may have been among them.
    pub born: Revision,
    /// Counts the session's commands from 1.
    pub sequence: u64,
    /// Every sequence below this was answered or given up and will not be sent again.
    pub low_water: u64,
}

/// A request that is followed on its way: its trace, and the span below which its stages belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace's id.
    pub trace: u128,
    /// The asking span's id.
    pub span: u64,
}

/// A question to the leader of a group (or, for serializable reads, to any replica).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the asker; the reply repeats it.
    pub id: u64,
    /// To which group.
    pub group: GroupId,
    /// The largest sequencer number that the asker knows.
    pub known: Revision,
    /// How long the asker will wait from now, in microseconds; after that the leader may drop it.
    pub patience_micros: u64,
    /// Few requests are followed; `None` for the others.
    pub trace: Option<TraceContext>,
    /// What is asked.
    pub body: RequestBody,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Logs and applies an operation on one shard's keys. All keys lie in that shard, or in shards
    /// of the same group that `also` names.
    Write {
        /// The shard of the first key; its session table remembers the outcome.
        shard: ShardId,
        /// The epoch that the gateway believes in.
        epoch: Epoch,
        /// Other shards of this group that the operation touches.
        also: Vec<(ShardId, Epoch)>,
        /// For exactly-once.
        session: SessionTag,
        /// What to do.
        op: Op,
    },
    /// Reads (a range, or a transaction that only reads).
    Read {
        /// The shards of this group that are touched. A range is clipped to them by the leader, so
        /// a group answers for its own part of a range only.
        shards: Vec<(ShardId, Epoch)>,
        /// A range or a read-only transaction.
        op: Op,
        /// The freshness asked for.
        mode: ReadMode,
    },
    /// Applies a compaction that the shardmaster has logged; answered when applied.
    Compact {
        /// History below is dropped.
        revision: Revision,
    },
    /// To the shardmaster group: the newest number handed out ([`ReplyBody::Current`]).
    CurrentRevision,
    /// To the shardmaster group: the shard map, if newer than `have_version`.
    Map {
        /// The version that the asker has; 0 for none.
        have_version: u64,
    },
    /// To the shardmaster group: log a compaction ([`ReplyBody::Logged`]).
    LogCompaction {
        /// History below is dropped.
        revision: Revision,
    },
    /// To the shardmaster group: log that a group is to have these members ([`ReplyBody::Logged`]).
    ChangeMembers {
        /// Which.
        group: GroupId,
        /// The nodes that are to vote in it; its present ones call a change off.
        members: Vec<NodeId>,
    },
    /// To the shardmaster group: log that shards are to move, or to be cut anew ([`ReplyBody::Move`], but
    /// [`ReplyBody::Logged`] where a move is called off).
    ChangeShards(ShardChange),
    /// To the shardmaster group: log that there are to be more or fewer groups ([`ReplyBody::Group`] where one is
    /// created, else [`ReplyBody::Logged`]).
    ChangeGroups(GroupChange),
    /// To the leader of a shard's group: where is its middle ([`ReplyBody::Middle`])?
    Middle {
        /// The shard.
        shard: ShardId,
        /// The epoch that the asker believes in.
        epoch: Epoch,
    },
    /// To the shardmaster group: a new node asks for its id ([`ReplyBody::Node`]). Asked again with the same
    /// incarnation, it is given the same.
    AddNode {
        /// The id of the cluster that it wants to join.
        cluster: u64,
        /// The operator's name for it.
        name: String,
        /// The random number of its data directory.
        incarnation: u64,
        /// `host:port` of its peer port.
        peer_address: String,
        /// Whether it may hold replicas of the shardmaster's group, and of data groups.
        keeps: (bool, bool),
    },
    /// To the shardmaster group: a node is to hold no replicas any more, or may again ([`ReplyBody::Logged`]).
    DrainNode {
        /// Which.
        node: NodeId,
        /// Whether it is to be emptied.
        drain: bool,
    },
    /// To the shardmaster group: a node that holds nothing is to be forgotten ([`ReplyBody::Logged`]).
    RemoveNode {
        /// Which.
        node: NodeId,
    },
}

/// The freshness of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadMode {
    /// By the leader, at a revision that includes everything answered before the read began.
    Linearizable,
    /// By the leader, as part of a consistent read over groups at this revision, which the
    /// sequencer has handed out.
    At(Revision),
    /// By any replica from what it has applied; may be stale.
    Serializable,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's.
    pub id: u64,
    /// The largest sequencer number that the answering node knows.
    pub known: Revision,
    /// The version of the newest shard map that the answering node knows; 0 for none. Whoever asks learns of changes by
    /// this, and asks for the map when there is a newer one.
    pub map_version: u64,
    /// The answer.
    pub body: ReplyBody,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplyBody {
    /// It was done.
    Done {
        /// For the header: a write's own revision; of a write that wrote nothing, and of a read,
        /// the revision at which it was evaluated.
        revision: Revision,
        /// What it answers.
        result: OpResult,
    },
    /// Ask someone else. Nothing was or will be done.
    NotLeader {
        /// The leader, if known.
        hint: Option<NodeId>,
    },
    /// A shard is not (or no longer, or not yet) owned here at that epoch. Nothing was done.
    WrongShard,
    /// The outcome is unknown: leadership was lost with the command in flight. Ask again with the
    /// same session tag.
    Lost,
    /// A definite failure; asking again with the same tag answers the same.
    Failed(OpError),
    /// It was logged and applied: of [`RequestBody::Compact`], and of what is asked of the shardmaster.
    Logged,
    /// Of [`RequestBody::AddNode`]: the node's id.
    Node(NodeId),
    /// Of [`RequestBody::ChangeShards`]: the id of the move, split or merge.
    Move(MoveId),
    /// Of [`RequestBody::ChangeGroups`]: the new group's id.
    Group(GroupId),
    /// Of [`RequestBody::Middle`]: the key that has about half of the shard's bytes before it; `None` where no key but
    /// the first could be that.
    Middle(Option<Bytes>),
    /// Of [`RequestBody::CurrentRevision`].
    Current {
        /// The newest number handed out.
        revision: Revision,
    },
    /// Of [`RequestBody::Map`]; `None` if the asker's is the newest.
    Map(Option<Box<ShardMap>>),
    /// Of [`RequestBody::Map`], by a node that does not lead the shardmaster and knows a newer map than the
    /// asker: perhaps the only way to learn where the leader is.
    KnownMap {
        /// What is known here; not necessarily the newest.
        map: Box<ShardMap>,
        /// The leader, if known.
        hint: Option<NodeId>,
    },
}

/// Why an operation failed, with nothing done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum OpError {
    /// The revision's history is gone.
    #[error("required revision has been compacted (floor {floor})")]
    Compacted {
        /// The oldest revision that can still be read.
        floor: Revision,
    },
    /// The revision was not handed out yet.
    #[error("required revision is a future revision (now {current})")]
    FutureRevision {
        /// The newest.
        current: Revision,
    },
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("key not found")]
    KeyNotFound,
    /// The lease does not exist.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// It touches or answers more than one operation may hold in memory; do it in parts.
    #[error("the operation touches too many keys or bytes; do it in parts")]
    TooLarge,
    /// A limit of the leader is reached; try again later.
    #[error("too many requests")]
    Overloaded,
    /// The command's session was evicted, or its sequence lies below its own low-water mark;
    /// whether it was done before is not known here.
    #[error("session expired")]
    SessionExpired,
    /// The node refuses writes, its disk is full.
    #[error("database space exceeded")]
    NoSpace,
    /// The operation does not fit the request (a gateway's mistake).
    #[error("malformed request: {0}")]
    Malformed(String),
}
