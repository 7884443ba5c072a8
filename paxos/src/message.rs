//! What replicas of a group say to each other.
//!
//! Entries travel as opaque [`Bytes`]; an empty one is a leader's no-op. Every message names the
//! ballot that it belongs to, and with it the configuration.

use crate::{Ballot, GroupId, NodeId, Slot};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The version of the wire format, first byte of every encoded message.
pub const WIRE_VERSION: u8 = 3;

/// A message with its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The group that both hold a replica of.
    pub group: GroupId,
    /// What is said.
    pub message: Message,
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Phase 1a: a candidate asks for a promise.
    Prepare {
        /// The candidate's ballot.
        ballot: Ballot,
        /// The leader at this ballot has handed over to the candidate and given up its lease, so
        /// an acceptor need not wait for its grant to end.
        handover: Option<Ballot>,
        /// The sender leads at this ballot already, and wants to bring the receiver to its log. Also one
        /// that has no vote yet: it learns.
        elected: bool,
    },
    /// Phase 1b: the acceptor promises to accept nothing of a lower ballot, and describes its log.
    Promise(Promise),
    /// The new leader asks the promiser with the best log for `start..=end` of it.
    Fetch {
        /// The new leader's ballot.
        ballot: Ballot,
        /// First slot asked for.
        start: Slot,
        /// Last slot asked for.
        end: Slot,
    },
    /// A piece of what was fetched.
    Fetched {
        /// The new leader's ballot.
        ballot: Ballot,
        /// The slot of the first entry.
        start: Slot,
        /// Consecutive entries.
        entries: Vec<Bytes>,
    },
    /// The new leader brings a promiser to its own log: keep up to `cut`, then these entries, up to
    /// `end`. Sent in pieces; takes effect as a whole when the last has arrived.
    AcceptSync {
        /// The leader's ballot.
        ballot: Ballot,
        /// The last slot that the receiver keeps.
        cut: Slot,
        /// The slot of this piece's first entry.
        start: Slot,
        /// The length of the log when all pieces are in.
        end: Slot,
        /// Consecutive entries.
        entries: Vec<Bytes>,
        /// All slots up to here are decided.
        decided: Slot,
    },
    /// The receiver of an AcceptSync has staged everything up to here.
    SyncProgress {
        /// The leader's ballot.
        ballot: Ballot,
        /// The last staged slot (or the cut).
        staged: Slot,
    },
    /// Phase 2a: accept these entries behind what was accepted in this ballot before.
    Accept {
        /// The leader's ballot.
        ballot: Ballot,
        /// The slot of the first entry.
        start: Slot,
        /// Consecutive entries.
        entries: Vec<Bytes>,
        /// All slots up to here are decided.
        decided: Slot,
    },
    /// Phase 2b: everything up to `length` is durably accepted in this ballot.
    Accepted {
        /// The leader's ballot.
        ballot: Ballot,
        /// The acceptor's durable length.
        length: Slot,
        /// What the acceptor knows to be decided.
        decided: Slot,
    },
    /// All slots up to here are decided.
    Decide {
        /// The leader's ballot.
        ballot: Ballot,
        /// The last decided slot.
        decided: Slot,
        /// Answer with an `Accepted`: the leader has nothing else to hear from.
        answer: bool,
    },
    /// Is this ballot still the highest that you promised? (A read without a lease.)
    Confirm {
        /// The leader's ballot.
        ballot: Ballot,
        /// Counts the leader's questions.
        round: u64,
    },
    /// It was, after the question was asked.
    Confirmed {
        /// The leader's ballot.
        ballot: Ballot,
        /// The question's round.
        round: u64,
    },
    /// The leader, or a candidate that lacks more than the receiver's log can give, has given up its
    /// ballot and whatever lease hangs on it, and asks the receiver to lead.
    Handover {
        /// The leader's ballot.
        ballot: Ballot,
    },
}

/// Phase 1b: what an acceptor reports about itself when it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The promised ballot.
    pub ballot: Ballot,
    /// The ballot that the acceptor's log belongs to.
    pub accepted: Ballot,
    /// The length of its log.
    pub length: Slot,
    /// What it knows to be decided.
    pub decided: Slot,
    /// The first entry that it still holds.
    pub first_kept: Slot,
    /// The acceptor cannot prove its whole log: it asks to be repaired and counts in no quorum.
    pub suspect: bool,
    /// What its state machine has is wrong: there is a log to be had from it, and no image.
    pub barred: bool,
    /// It has a vote in the ballot's configuration, and all that was decided in the one before.
    pub votes: bool,
}

impl Message {
    /// The ballot that the message belongs to.
    pub fn ballot(&self) -> Ballot {
        match self {
            Message::Promise(promise) => promise.ballot,
            Message::Prepare { ballot, .. }
            | Message::Fetch { ballot, .. }
            | Message::Fetched { ballot, .. }
            | Message::AcceptSync { ballot, .. }
            | Message::SyncProgress { ballot, .. }
            | Message::Accept { ballot, .. }
            | Message::Accepted { ballot, .. }
            | Message::Decide { ballot, .. }
            | Message::Confirm { ballot, .. }
            | Message::Confirmed { ballot, .. }
            | Message::Handover { ballot } => *ballot,
        }
    }
}
