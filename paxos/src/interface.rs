//! What a host tells a replica, and what a replica wants its host to do.

use crate::message::{Envelope, Message};
use crate::record::Record;
use crate::{Configuration, GroupId, NodeId, Slot};
use bytes::Bytes;

/// What [`ReplicaConfig::piece_bytes_max`] should be.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

/// What can happen to a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed: election round, resends. About once per heartbeat interval.
    Tick,
    /// A message from another replica of the group.
    Message {
        /// The sender.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// The leader's host proposes an entry; it gets [`Replica::next_slot`](crate::Replica::next_slot).
    Propose(Bytes),
    /// Everything logged up to this record number ([`Outputs::tail`]) is durable.
    Durable(u64),
    /// The state machine has installed a snapshot, durably.
    Installed {
        /// Through this slot.
        slot: Slot,
        /// The configuration that is in force there, if it is not the group's first.
        configuration: Option<Configuration>,
    },
    /// Everything up to `slot` is applied and flushed; forget it, but for the newest `keep_bytes`,
    /// which peers that lag a little may still ask for.
    Trim {
        /// The last slot that may go.
        slot: Slot,
        /// How much to keep all the same, in bytes.
        keep_bytes: usize,
    },
    /// Tell the peers what is decided; see [`Outputs::untold`].
    TellDecided,
    /// Ask a quorum whether this leader is still the highest; see [`Replica::confirm_round`](crate::Replica::confirm_round).
    Confirm,
    /// Hand leadership over to another replica.
    HandOver(NodeId),
    /// These nodes, besides those that vote, are to follow the log while this replica leads.
    Learners(Vec<NodeId>),
    /// The leader's host proposes the stop-sign that begins this configuration, the next one. It has drained:
    /// from here on the leader appends and serves nothing.
    Seal(Configuration),
    /// Write the whole state (and entries above this flushed slot) to the log again.
    Checkpoint(Slot),
    /// The state machine is not what the log makes of it (or is again). The log is sound, so the replica votes; but it
    /// must not lead.
    Bar(bool),
}

/// What a step wants done. In this order: log, send, apply.
#[derive(Clone, Debug, Default)]
pub struct Outputs {
    /// For the log, in order.
    pub records: Vec<Record>,
    /// How many records this replica has emitted so far, these included.
    pub tail: u64,
    /// May leave at once.
    pub send_now: Vec<Envelope>,
    /// May leave when everything up to `tail` is durable.
    pub send_durable: Vec<Envelope>,
    /// Newly decided entries, consecutive, each exactly once.
    pub decided: Vec<(Slot, Bytes)>,
    /// These peers lack more than the log holds: send them a snapshot of the state machine.
    pub snapshot_wanted: Vec<NodeId>,
    /// The host should ping at once: a new leader waits for its lease.
    pub ping: bool,
    /// Some peer has not heard how far the log is decided. The next Accept tells it; if none comes
    /// soon, [`Input::TellDecided`] does.
    pub untold: bool,
}

/// Who and where a replica is.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// Its node.
    pub me: NodeId,
    /// Its group.
    pub group: GroupId,
    /// The configuration in force at the slot that the state machine has applied.
    pub configuration: Configuration,
    /// The node's durable boot counter.
    pub boot: u64,
    /// Entries' bytes in one message, record or piece; a single larger entry travels alone.
    pub piece_bytes_max: usize,
}
