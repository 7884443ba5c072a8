//! What goes into a [`Core`](super::Core) and comes out of it.

use super::members::Hosting;
use super::scans::{ScanJob, ScanResult};
use super::traces::Span;
use super::transfer::{SnapshotEvent, SnapshotJob};
use crate::wire::NodeMessage;
use bytes::Bytes;
use paxos::heartbeat::Timing;
use paxos::{Configuration, GroupId, NodeId, Record, Recovered, Slot};
use shardkv::command::Outcome;
use shardkv::map::{NodeInfo, ShardMap};
use shardkv::request::{Reply, Request};
use shardkv::store::Store;
use shardkv::types::Digest;
use shardkv::{ReadError, Reader};
use shardmaster::balance::Policy;
use shardmaster::{MasterOutcome, MasterState};
use std::sync::Arc;

/// How a leader makes sure that it still leads before it answers a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// By the lease that a quorum granted it.
    #[default]
    Lease,
    /// By asking a quorum, one batched round for all that waits.
    Quorum,
}

/// What a node's core needs to know.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub me: NodeId,
    /// The durable boot counter.
    pub boot: u64,
    /// How this node is reached; the shardmaster keeps it in the map.
    pub info: NodeInfo,
    /// All nodes that host replicas, this one included or not.
    pub nodes: Vec<NodeId>,
    /// Durations.
    pub timing: Timing,
    /// How reads are checked.
    pub read_mode: ReadMode,
    /// The map that the shardmaster's first leader proposes.
    pub genesis: ShardMap,
    /// A node that was not reached for so long is dead, and its replicas move; 0 for never.
    pub dead_after_micros: u64,
    /// What the balancer goes by where this node leads the shardmaster; `None` for no balancing.
    pub balance: Option<Policy>,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of a node's queues.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of write requests waiting in one group's leader.
    pub inbox_bytes_max: usize,
    /// Commands in one entry.
    pub batch_commands_max: usize,
    /// Payload bytes in one entry; a single larger command travels alone.
    pub batch_bytes_max: usize,
    /// Reads waiting in one group's leader.
    pub reads_max: usize,
    /// Reads of ranges under way on a node.
    pub scans_max: usize,
    /// Bytes decided but not yet applied, per group; beyond, the leader refuses writes.
    pub apply_lag_bytes_max: usize,
    /// Bytes of one piece of a shard that moves, about.
    pub move_chunk_bytes: usize,
    /// Bytes of a shard that moves, per second and move; what is written to it meanwhile goes as fast as it can.
    pub move_bytes_per_second: u64,
    /// Proposals in flight per group.
    pub proposals_max: usize,
    /// Bytes of entries in one message, record or piece of either; a single larger entry travels alone.
    pub piece_bytes_max: usize,
    /// Bytes of entries kept in memory for peers that lag, per group.
    pub kept_bytes_max: usize,
    /// The same while an image of the group is on its way: whoever gets it needs what follows it.
    pub kept_behind_image_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            inbox_bytes_max: 64 << 20,
            batch_commands_max: 1024,
            batch_bytes_max: 1 << 20,
            reads_max: 65_536,
            scans_max: 4096,
            apply_lag_bytes_max: 64 << 20,
            move_chunk_bytes: 512 << 10,
            move_bytes_per_second: 32 << 20,
            proposals_max: 8,
            piece_bytes_max: paxos::PIECE_BYTES_MAX,
            kept_bytes_max: 16 << 20,
            kept_behind_image_bytes_max: 256 << 20,
        }
    }
}

/// What an applied entry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryOutcome {
    /// Of a data group, one per command.
    Data(Vec<Outcome>),
    /// Of the shardmaster group.
    Master(MasterOutcome),
}

/// What the state machine of a group is, as far as the core reads it.
pub enum Machine<S: Store> {
    /// A data group's readable state.
    Data(Reader<S>),
    /// The shardmaster's state as of the last report.
    Master(Arc<MasterState>),
}

/// What can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message from another node.
    Message {
        /// The sender.
        from: NodeId,
        /// What it says.
        message: NodeMessage,
    },
    /// A request from a gateway; the reply goes out under the same token.
    Request {
        /// Chosen by the host.
        token: u64,
        /// The request.
        request: Request,
    },
    /// Everything logged up to this ticket is durable; the newest lies in this log segment.
    Durable {
        /// The last durable ticket.
        ticket: u64,
        /// The sequence number of the segment that is being written.
        segment: u64,
    },
    /// Entries were applied.
    Applied(Applied),
    /// A [`ScanJob`] has ended; `None` if it came too late.
    Scanned {
        /// The job's.
        number: u64,
        /// What was read.
        result: Option<Result<ScanResult, ReadError>>,
    },
    /// Time has passed.
    Tick,
    /// The store made durable what [`Outputs::flush`] asked for.
    Flushed(u64),
    /// What a [`SnapshotJob`] led to.
    Snapshot(SnapshotEvent),
    /// A closed replica's state was deleted, see [`Outputs::hosting`].
    Closed(GroupId),
    /// The log has no room (or has again).
    NoSpace(bool),
    /// The node is about to stop: leaderships are handed over.
    Retire,
}

/// A report of the state machines' host.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The group.
    pub group: GroupId,
    /// The last slot applied.
    pub slot: Slot,
    /// What the entries up to `slot` answered, the first being of this slot.
    pub first: Slot,
    /// One per entry.
    pub outcomes: Vec<EntryOutcome>,
    /// Payload bytes of the entries.
    pub bytes: usize,
    /// The shardmaster's state behind them, if it is that group.
    pub master: Option<Arc<MasterState>>,
    /// What the state machine had come to on the way, to be compared with the other replicas.
    pub digests: Vec<Digest>,
}

/// Entries to apply.
#[derive(Clone, Debug)]
pub struct ApplyJob {
    /// The group.
    pub group: GroupId,
    /// Consecutive entries.
    pub entries: Vec<(Slot, Bytes)>,
    /// Every entry before them is applied, and the core has heard of it: they, too, may be reported at
    /// once. Reports must come in the order of the log.
    pub next: bool,
    /// Somebody waits for the outcomes (this node leads); else they may wait for others, for a few
    /// milliseconds, and the report for the next turn.
    pub urgent: bool,
}

/// What a turn wants done.
#[derive(Debug, Default)]
pub struct Outputs {
    /// For the log, in order.
    pub log: Vec<(GroupId, Record)>,
    /// The number under which to append them; reported back by [`Input::Durable`].
    pub ticket: u64,
    /// The log's part is what a reclaim rewrites: on a full disk it may use the reserve.
    pub reclaim: bool,
    /// To other nodes, in order.
    pub send: Vec<(NodeId, NodeMessage)>,
    /// For the state machines, in order.
    pub apply: Vec<ApplyJob>,
    /// Reads to execute beside the turns, in any order.
    pub scans: Vec<ScanJob>,
    /// Answers.
    pub replies: Vec<(u64, Reply)>,
    /// Images to read or to install.
    pub snapshots: Vec<SnapshotJob>,
    /// Replicas to open, and to delete, in order.
    pub hosting: Vec<Hosting>,
    /// Flush the store, then report [`Input::Flushed`] with this number.
    pub flush: Option<u64>,
    /// Log segments up to this one are no longer needed.
    pub release: Option<u64>,
    /// Stages of requests that are followed.
    pub spans: Vec<Span>,
}

impl Outputs {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
            && self.send.is_empty()
            && self.apply.is_empty()
            && self.scans.is_empty()
            && self.replies.is_empty()
            && self.snapshots.is_empty()
            && self.hosting.is_empty()
            && self.flush.is_none()
            && self.release.is_none()
            && self.spans.is_empty()
    }
}

/// A replica to host, as recovered.
pub struct Hosted<S: Store> {
    /// The group.
    pub group: GroupId,
    /// The configuration in force at the slot that its state machine has applied.
    pub configuration: Configuration,
    /// Its acceptor's state.
    pub recovered: Recovered,
    /// Its state machine's slot.
    pub applied: Slot,
    /// Whether its state was found to be another one than the other replicas'.
    pub fenced: bool,
    /// Its readable state.
    pub machine: Machine<S>,
}
