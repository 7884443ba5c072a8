//! Multi-Paxos without I/O, without a clock and without randomness: a group of replicas agrees on a
//! sequence of entries.
//!
//! # The protocol in prose
//!
//! A **ballot** is one leader's term. Who leads is decided by elections ([`election`]) that look only
//! at who reaches whom; they may be wrong, and two replicas may believe themselves leaders. That only
//! one of them can decide anything is the **acceptors'** doing ([`acceptor`]).
//!
//! *Phase 1*, once per ballot. The candidate sends `Prepare`; an acceptor that has promised nothing
//! higher promises, durably, to accept nothing lower, and reports its log: the ballot it belongs to
//! (`accepted`), its length, what is decided, the first entry still held. With a quorum of promises
//! the candidate adopts the **longest log of the highest accepted ballot** among them. Whatever a
//! quorum accepted in any earlier ballot is in that log, so nothing decided is lost.
//!
//! *Synchronisation.* The leader then cuts every promiser's log to a point up to which both are known
//! to be equal (the promiser's whole log if it belongs to the adopted ballot, else its decided part)
//! and extends it to its own (`AcceptSync`). Only after that does the acceptor's log belong to the
//! leader's ballot, and only what it accepts from then on are votes.
//!
//! *Phase 2*, pipelined. The leader appends entries and sends them (`Accept`); acceptors append,
//! sync, and answer with the length of their log (`Accepted`). What a quorum holds is decided.
//!
//! An acceptor's log has no holes, so one number says all that was accepted; and since a whole log
//! belongs to one ballot, an entry of an old leader cannot surface after a newer one went on without
//! it.
//!
//! *Leases.* Heartbeats run between nodes, not groups ([`heartbeat`]); with them acceptors grant
//! leaders a lease, during which they promise nobody else, so a leader may read its own state.
//!
//! *Membership.* The last entry of a configuration, a stop-sign, seals it and names the members of the
//! next ([`configuration`]); new members follow the log as learners, without a vote, before.
//!
//! # Invariants
//! - This crate depends on no workspace crate, reads no clock, does no I/O, iterates no hash map.
//! - A message of `send_durable` reports state that must survive a crash; it waits for the log's tail
//!   as of the step, not for "its own" records.
//! - No ballot of a node from before its restart is reused: ballots carry the boot counter.

pub mod acceptor;
mod codec;
pub mod configuration;
pub mod election;
pub mod flaw;
pub mod heartbeat;
mod interface;
mod leader;
pub mod log;
mod membership;
pub mod message;
mod proposer;
pub mod record;
mod replica;
mod state_machine;
mod types;
mod view;

pub use codec::DecodeError;
pub use configuration::Configuration;
pub use interface::{Input, Outputs, PIECE_BYTES_MAX, ReplicaConfig};
pub use leader::quorum_of;
pub use message::{Envelope, Message};
pub use record::{Record, Recovered, recover, tombstone};
pub use replica::Replica;
pub use state_machine::{SnapshotSink, SnapshotSource, StateMachine};
pub use types::{Ballot, ConfigId, GroupId, NodeId, Slot, Time};

use bytes::Bytes;

/// What travels between two nodes of one cluster.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Wire {
    /// Between replicas of a group.
    Group(GroupId, Message),
    /// Between nodes.
    Heartbeat(heartbeat::Heartbeat),
}

impl Wire {
    /// The bytes for the wire.
    pub fn encode(&self) -> Bytes {
        codec::encode(message::WIRE_VERSION, self)
    }
    /// Reads back what [`Wire::encode`] wrote; any input gives a value or an error.
    pub fn decode(bytes: &[u8]) -> Result<Wire, DecodeError> {
        codec::decode(message::WIRE_VERSION, bytes)
    }
}
