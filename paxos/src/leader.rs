//! What a leader keeps: the promises of phase 1, then how far each peer has come in phase 2.

use crate::message::Promise;
use crate::{Ballot, NodeId, Slot, Time};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Phase 1, and the fetching of the log that it found.
#[derive(Clone, Debug)]
pub(crate) struct Preparing {
    pub(crate) ballot: Ballot,
    /// Who votes, this replica included.
    pub(crate) voters: Vec<NodeId>,
    /// Durable promises; the own one counts when its record is durable.
    pub(crate) promises: BTreeMap<NodeId, Promise>,
    pub(crate) fetch: Option<Fetch>,
    pub(crate) handover: Option<Ballot>,
    pub(crate) since: Time,
    pub(crate) sent_at: Time,
}

/// The best promiser's log, on its way to us.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    /// Whose log it is.
    pub(crate) best: NodeId,
    /// Who is asked now; see [`source`].
    pub(crate) from: NodeId,
    /// The last slot kept of our own log.
    pub(crate) cut: Slot,
    /// The last slot to fetch.
    pub(crate) end: Slot,
    /// Entries from `cut + 1` on, as they arrive.
    pub(crate) entries: Vec<Bytes>,
}

impl Fetch {
    pub(crate) fn next(&self) -> Slot {
        Slot(self.cut.0 + self.entries.len() as u64 + 1)
    }
}

/// Phase 2.
#[derive(Clone, Debug)]
pub(crate) struct Leading {
    pub(crate) ballot: Ballot,
    /// The ballot of the log that phase 1 adopted, and its length then.
    pub(crate) adopted: (Ballot, Slot),
    /// Who votes, this replica included.
    pub(crate) voters: Vec<NodeId>,
    /// The other voters, and those who learn: what the stop-sign names, what the host names.
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    /// Everything up to here is decided (a quorum accepted it durably).
    pub(crate) decided: Slot,
    /// The peers were asked whether they know that the stop-sign is decided.
    pub(crate) asked: bool,
    /// Confirmation rounds (reads without a lease).
    pub(crate) confirm: Confirm,
}

/// How far a peer has come.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) phase: PeerPhase,
    /// Durably accepted in our ballot up to here; only with this it counts in quorums.
    pub(crate) matched: Option<Slot>,
    /// What the peer knows to be decided, and what we last told it.
    pub(crate) decided: Slot,
    pub(crate) decided_sent: Slot,
    /// Of the last send or progress; resends happen a while after it.
    pub(crate) moved_at: Time,
}

/// What the leader does with a peer next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerPhase {
    /// Its promise of our ballot is missing, or it lacks more than we keep: ask again.
    Probing,
    /// It is being brought to our log: entries `cut + 1 ..= end`, the next to send is `next`.
    Syncing { cut: Slot, end: Slot, next: Slot },
    /// It accepts as we propose; the next to send is `next`.
    Replicating { next: Slot },
}

impl Peer {
    /// Whether it follows, and no message has told it that everything up to `decided` is decided.
    pub(crate) fn is_untold(&self, decided: Slot) -> bool {
        matches!(self.phase, PeerPhase::Replicating { .. }) && self.decided_sent < decided
    }

    pub(crate) fn new(now: Time) -> Peer {
        Peer { phase: PeerPhase::Probing, matched: None, decided: Slot(0), decided_sent: Slot(0), moved_at: now }
    }
}

/// Rounds in which a quorum confirms that it has promised no higher ballot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Confirm {
    /// The last round begun.
    pub(crate) begun: u64,
    /// The last round that a quorum has confirmed.
    pub(crate) confirmed: u64,
    /// Who has confirmed the last round.
    pub(crate) acks: BTreeSet<NodeId>,
    /// Someone asked after the last round had begun.
    pub(crate) again: bool,
    pub(crate) sent_at: Time,
}

/// Whether a promise counts in phase 1.
fn counts(promise: &Promise) -> bool {
    promise.votes && !promise.suspect
}

/// The promise whose log the leader adopts: the longest of the highest accepted ballot. Suspects, and those
/// without a vote, never count.
pub(crate) fn best_promise(promises: &BTreeMap<NodeId, Promise>) -> Option<(NodeId, Promise)> {
    promises
        .iter()
        .filter(|(_, promise)| counts(promise))
        .max_by_key(|(node, promise)| (promise.accepted, promise.length, !promise.barred, **node))
        .map(|(node, promise)| (*node, *promise))
}

/// Who can perhaps lead at once, where the candidate lacks what `best`, the best log, still holds: its promiser, or, if that
/// one must not lead, another one that lacks nothing before.
pub(crate) fn successor(promises: &BTreeMap<NodeId, Promise>, best: (NodeId, Promise)) -> Option<NodeId> {
    let (best, log) = best;
    if !log.barred {
        return Some(best);
    }
    let may = |promise: &Promise| counts(promise) && !promise.barred && promise.decided.next() >= log.first_kept;
    let others = promises.iter().filter(|(_, promise)| may(promise));
    others.max_by_key(|(node, promise)| (promise.decided, **node)).map(|(node, _)| *node)
}

/// Whom to ask for the entries of `best`'s log from `start` to `end`, and up to where. That is `best` itself,
/// but where it holds them no more and has no image to give: what is decided others can bring, too.
pub(crate) fn source(promises: &BTreeMap<NodeId, Promise>, best: NodeId, (start, end): (Slot, Slot)) -> (NodeId, Slot) {
    let lacks = promises.get(&best).is_some_and(|promise| promise.barred && start < promise.first_kept);
    let brings = |promise: &Promise| counts(promise) && !promise.barred && promise.decided >= start;
    let others = promises.iter().filter(|(node, promise)| **node != best && brings(promise));
    match others.max_by_key(|(node, promise)| (promise.decided, **node)).filter(|_| lacks) {
        Some((node, promise)) => (*node, end.min(promise.decided)),
        None => (best, end),
    }
}

/// How many promises count.
pub(crate) fn countable(promises: &BTreeMap<NodeId, Promise>) -> usize {
    promises.values().filter(|promise| counts(promise)).count()
}

/// The last slot that a promiser may keep: its whole log if that belongs to the adopted ballot (logs
/// of one ballot are prefixes of one another), else what it knows to be decided.
pub(crate) fn sync_point(promise: &Promise, adopted: Ballot, adopted_length: Slot) -> Slot {
    if promise.accepted == adopted && !promise.suspect {
        promise.length.min(adopted_length).max(promise.decided)
    } else {
        promise.decided
    }
}

/// The highest slot that `quorum` of the watermarks reach.
pub(crate) fn quorum_watermark(mut watermarks: Vec<Slot>, quorum: usize) -> Slot {
    watermarks.sort_unstable_by(|a, b| b.cmp(a));
    watermarks.get(quorum - 1).copied().unwrap_or(Slot(0))
}

/// The smallest number of replicas of which any two sets meet.
pub fn quorum_of(replicas: usize) -> usize {
    replicas / 2 + 1
}
