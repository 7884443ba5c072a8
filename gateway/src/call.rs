//! What goes into the gateway's machine and what comes out of it.

use bytes::Bytes;
use paxos::{GroupId, NodeId, Time};
use shardkv::map::{GroupChange, ShardChange, ShardMap};
use shardkv::ops::{Op, OpResult};
use shardkv::request::{OpError, Reply, Request, RequestBody, TraceContext};
use shardkv::types::{MoveId, Revision, ShardId};
use std::sync::Arc;

/// What a client wants. Validated already: keys are not empty, operations within their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// An operation on keys.
    Op {
        /// The operation.
        op: Op,
        /// Any replica may answer, and the answer may be stale. Heeded by operations that only read.
        serializable: bool,
    },
    /// Drops history below a revision, in every group.
    Compact {
        /// The oldest revision that can still be read.
        revision: Revision,
        /// The client wants the history to be gone from storage. Space is reclaimed in the background
        /// with some lag (so that resumed watches find what they need); the answer does not wait for it.
        physical: bool,
    },
    /// The shardmaster is to see to it that a group gets these members.
    ChangeMembers {
        /// Which group.
        group: GroupId,
        /// The nodes that are to hold its replicas.
        members: Vec<NodeId>,
    },
    /// The shardmaster is to have shards moved, or cut anew.
    ChangeShards(ShardChange),
    /// The shardmaster is to create, empty or remove a group.
    ChangeGroups(GroupChange),
    /// Where is the middle of a shard?
    Middle {
        /// Which.
        shard: ShardId,
    },
    /// A new node asks the shardmaster for its id; asked again with the same incarnation, it is given the same.
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
    /// The shardmaster is to empty a node of replicas, or to use it again.
    DrainNode {
        /// Which.
        node: NodeId,
        /// Whether it is to be emptied.
        drain: bool,
    },
    /// The shardmaster is to forget a node that holds nothing.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// The newest shard map, asked of the shardmaster after the call arrived.
    Map,
    /// What the gateway knows itself; answered at once.
    Status,
}

impl Call {
    /// What it asks of the shardmaster's log alone, if that is all.
    pub(crate) fn master_request(&self) -> Option<RequestBody> {
        Some(match self.clone() {
            Call::ChangeMembers { group, members } => RequestBody::ChangeMembers { group, members },
            Call::AddNode { cluster, name, incarnation, peer_address, keeps } => {
                RequestBody::AddNode { cluster, name, incarnation, peer_address, keeps }
            }
            Call::DrainNode { node, drain } => RequestBody::DrainNode { node, drain },
            Call::ChangeShards(change) => RequestBody::ChangeShards(change),
            Call::ChangeGroups(change) => RequestBody::ChangeGroups(change),
            Call::RemoveNode { node } => RequestBody::RemoveNode { node },
            Call::Op { .. } | Call::Compact { .. } | Call::Middle { .. } | Call::Map | Call::Status => return None,
        })
    }
}

/// What a call answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// For the header: a write's own revision, or the revision at which a read is complete.
    pub revision: Revision,
    /// The rest, by the kind of call.
    pub body: AnswerBody,
}

/// The part of an answer that depends on the kind of call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// Of [`Call::Op`].
    Op(OpResult),
    /// Of [`Call::Compact`].
    Compacted,
    /// Of what is asked of the shardmaster and has no other answer: it is logged, and will be done.
    Noted,
    /// Of [`Call::AddNode`]: the node's id.
    Node(NodeId),
    /// Of [`Call::ChangeShards`]: the id of the move, split or merge.
    Move(MoveId),
    /// Of [`Call::ChangeGroups`]: the new group's id.
    Group(GroupId),
    /// Of [`Call::Middle`]: a key that has about half of the shard before it, if there is one.
    Middle(Option<Bytes>),
    /// Of [`Call::Map`].
    Map(Arc<ShardMap>),
    /// Of [`Call::Status`].
    Status(Status),
}

/// What the gateway knows itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The map it routes by; `None` until the shardmaster answered for the first time.
    pub map: Option<Arc<ShardMap>>,
    /// The shardmaster's leader, as far as known.
    pub shardmaster_leader: Option<NodeId>,
    /// Calls in flight.
    pub calls: usize,
    /// Bytes held for them.
    pub bytes: usize,
    /// Attempts beyond the first of a call, since the start.
    pub retries: u64,
    /// Replies that no call waited for, since the start (late or duplicate ones).
    pub stray_replies: u64,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// A group answered so.
    #[error(transparent)]
    Failed(#[from] OpError),
    /// The groups concerned did not answer in time.
    #[error("request timed out{}", if *.maybe_done { " (it may have been carried out)" } else { "" })]
    Unavailable {
        /// Whether it may have been carried out, or may still be. If not, nothing was done.
        maybe_done: bool,
    },
    /// A limit of this gateway is reached. Nothing was done.
    #[error("too many requests")]
    Overloaded,
    /// The answer does not fit into memory set aside for it; ask for less, with a limit.
    #[error("the answer exceeds {limit_bytes} bytes; use a limit and several requests")]
    AnswerTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// Not possible with this version; the text says what. Nothing was done.
    #[error("{0}")]
    Unimplemented(String),
}

impl CallError {
    /// Timed out with certainly nothing done.
    pub const NOTHING_DONE: CallError = CallError::Unavailable { maybe_done: false };
    /// Timed out with an unknown outcome.
    pub const MAYBE_DONE: CallError = CallError::Unavailable { maybe_done: true };
}

/// What happens to the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client calls.
    Call {
        /// Names the call in its answer; not in use by another call in flight.
        token: u64,
        /// What it wants.
        call: Call,
        /// Until when; an answer comes no later.
        deadline: Time,
        /// If it is followed.
        trace: Option<TraceContext>,
    },
    /// The client went away; no answer is wanted any more.
    Cancel {
        /// The call's.
        token: u64,
    },
    /// A node replied.
    Reply {
        /// The node.
        from: NodeId,
        /// Its reply.
        reply: Reply,
    },
    /// The stream to a node broke: what is outstanding there has an unknown outcome.
    NodeDown {
        /// The node.
        node: NodeId,
    },
    /// Time has passed, see [`Outputs::wake_at`].
    Tick,
}

/// What the machine wants done.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// Requests to send, in order.
    pub send: Vec<(NodeId, Request)>,
    /// Answers to calls, by their tokens; each call gets exactly one, unless it was canceled.
    pub answers: Vec<(u64, Result<Answer, CallError>)>,
    /// Call `step` with [`Input::Tick`] at this time, if nothing else comes before.
    pub wake_at: Option<Time>,
}

/// How the machine behaves. Times are in microseconds.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Seeds session ids and jitter. Two gateways **must not** share one: a session id names one
    /// gateway's session to the whole cluster.
    pub seed: [u64; 2],
    /// The gateway's own node, if it runs inside one: preferred for serializable reads.
    pub local: Option<NodeId>,
    /// Nodes to ask for the first shard map.
    pub nodes: Vec<NodeId>,
    /// Calls in flight; more are refused.
    pub calls_max: usize,
    /// Bytes of calls in flight and of partial answers held for them; more are refused.
    pub bytes_max: usize,
    /// Bytes of one answer that is merged from several groups.
    pub answer_bytes_max: usize,
    /// Attempts per question to a group, within the call's deadline: a bound against mistakes, which no deadline of the
    /// host should reach.
    pub attempts_max: u32,
    /// After this long without a reply another attempt is made.
    pub attempt_timeout_micros: u64,
    /// The first pause before another attempt; it doubles up to the one below, with jitter.
    pub backoff_min_micros: u64,
    /// The longest pause before another attempt.
    pub backoff_max_micros: u64,
    /// While serving, the newest revision known here is never older than this.
    pub known_refresh_micros: u64,
    /// The shard map is asked for at least this often, though no client calls.
    pub map_refresh_micros: u64,
    /// A session that was not used for this long is replaced before its next use: the shards may
    /// have evicted it.
    pub session_idle_micros: u64,
    /// A session whose oldest open sequence lags this far behind is replaced for new commands:
    /// shards keep an outcome for every sequence above it, and refuse more than some thousand.
    pub session_window: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            seed: [0, 0],
            local: None,
            nodes: Vec::new(),
            calls_max: 65_536,
            bytes_max: 512 << 20,
            answer_bytes_max: 256 << 20,
            attempts_max: 4096,
            attempt_timeout_micros: 1_000_000,
            backoff_min_micros: 2_000,
            backoff_max_micros: 100_000,
            known_refresh_micros: 100_000,
            map_refresh_micros: 10_000_000,
            session_idle_micros: 60_000_000,
            session_window: 2_048,
        }
    }
}
