//! One heartbeat per pair of nodes, for all groups together, and the leases that hang on it.
//!
//! A node pings each peer; the peer answers with a pong. Both carry the sender's statuses (one per
//! group) that changed since the receiver last acknowledged a version of them, so an idle group costs
//! nothing. Time is the caller's.
//!
//! **Leader lease.** A pong *grants*: the ponging node will promise no other node, in any group in
//! which it has durably promised the pinger's ballot and follows it, until its grant ends. The grant
//! begins when the pong is sent; the leader counts its lease from when the *ping* was sent, which was
//! earlier, and shortens it by the drift bound. A leader holds its lease while a quorum's grants run.
//! - A pong says how long its grant lasts: nodes need not be configured alike.
//! - A pong extends the lease of those groups only whose promised ballot and followed leader at the
//!   ponging node, as of that pong, equal the leader's.
//! - A node that turns to another leader freezes its grant for that group where it stands.
//! - After a restart a node cannot know its grants: it promises nobody but whom it had promised
//!   before, for one whole lease, the longest that it may have granted.

use crate::election::Status;
use crate::flaw::{self, Flaw};
use crate::leader::quorum_of;
use crate::{Ballot, GroupId, NodeId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Durations, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two pings to a peer, and between two rounds of elections.
    pub heartbeat_micros: u64,
    /// A peer with no successful round trip for this long counts as unreachable.
    pub peer_timeout_micros: u64,
    /// How long a grant lasts at the granting node.
    pub lease_micros: u64,
    /// The longest grant that this node may have given before its start.
    pub granted_before_micros: u64,
    /// Unanswered messages are sent again after this.
    pub resend_micros: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat_micros: 100_000,
            peer_timeout_micros: 600_000,
            lease_micros: 800_000,
            granted_before_micros: 0,
            resend_micros: 150_000,
        }
    }
}

/// A lease as its holder counts it: shortened by 1 %, twenty times the drift of a bad quartz.
fn held_micros(granted_micros: u64) -> u64 {
    granted_micros - granted_micros / 100
}

/// The sender's statuses that changed between two versions of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statuses {
    /// The sender's boot counter; versions count within it.
    pub boot: u64,
    /// Entries changed after this version...
    pub base: u64,
    /// ...up to this one.
    pub version: u64,
    /// The changed entries.
    pub changed: Vec<(GroupId, Status)>,
    /// The receiver's boot and version that the sender has.
    pub known: (u64, u64),
}

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Heartbeat {
    /// Are you there?
    Ping {
        /// Counts the pings of the sender's boot.
        sequence: u64,
        /// The sender's statuses.
        statuses: Statuses,
    },
    /// Yes, and I grant you a lease from now.
    Pong {
        /// The ping's.
        sequence: u64,
        /// The pinging node's boot, as the ping said.
        ping_boot: u64,
        /// How long the sender's grant lasts.
        granted_micros: u64,
        /// The sender's statuses, as of the grant.
        statuses: Statuses,
    },
}

#[derive(Clone, Debug, Default)]
struct Peer {
    boot: u64,
    view: BTreeMap<GroupId, Status>,
    view_version: u64,
    /// The version of our statuses that the peer has.
    acked_version: u64,
    next_sequence: u64,
    /// Pings on their way: (sequence, sent at), oldest first; bounded.
    pings: Vec<(u64, Time)>,
    /// When the newest answered ping was sent.
    reached_at: Option<Time>,
    /// Until when the newest pong's grant runs, counted from its ping. Only of pongs whose statuses
    /// are exactly our view.
    leased_until: Option<Time>,
    leased_sequence: u64,
    /// Our grant to the peer ends here.
    granted_until: Time,
}

/// Pings remembered per peer; older ones are given up.
const PINGS_MAX: usize = 64;

/// The heartbeats of one node.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    me: NodeId,
    boot: u64,
    timing: Timing,
    version: u64,
    own: BTreeMap<GroupId, (Status, u64)>,
    /// Grants that ended with turning away from the ballot that is promised, until the node turns back to it.
    frozen: BTreeMap<GroupId, (Ballot, Time)>,
    peers: BTreeMap<NodeId, Peer>,
    /// Until when grants to nodes that are no peers may run: from before the start, or from when they were peers.
    granted_others: Time,
}

impl Heartbeats {
    /// A node that starts now; its grants from before the start are assumed to run in full.
    pub fn new(me: NodeId, boot: u64, timing: Timing, peers: &[NodeId], now: Time) -> Heartbeats {
        let longest = timing.lease_micros.max(timing.granted_before_micros);
        let granted_others = now.plus(longest);
        let fresh = Peer { granted_until: granted_others, ..Peer::default() };
        let peers = peers.iter().filter(|peer| **peer != me).map(|peer| (*peer, fresh.clone())).collect();
        Heartbeats {
            me,
            boot,
            timing,
            version: 0,
            own: BTreeMap::new(),
            frozen: BTreeMap::new(),
            peers,
            granted_others,
        }
    }

    /// The durations in force.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Sets what this node publishes about a group.
    pub fn publish(&mut self, group: GroupId, status: Status) {
        let before = self.own.get(&group).map(|(before, _)| *before);
        if before == Some(status) {
            return;
        }
        // Which pongs granted anything: those that showed us following the ballot that we promised.
        if status.leader == status.promised {
            // It may have looked up to a candidate that never came: whoever it follows again is granted anew.
            self.frozen.remove(&group);
        } else if let Some(before) = before {
            let until = self.peers.get(&before.promised.node).map_or(Time(0), |peer| peer.granted_until);
            if before.promised != status.promised {
                self.frozen.insert(group, (status.promised, Time(0)));
            } else if before.leader == before.promised {
                self.frozen.insert(group, (before.promised, until));
            }
        }
        self.version += 1;
        self.own.insert(group, (status, self.version));
    }

    /// Another node is there: it is pinged from now on. It may have a grant of ours from before.
    pub fn add_peer(&mut self, node: NodeId) {
        if node != self.me {
            let granted_until = self.granted_others;
            self.peers.entry(node).or_insert_with(|| Peer { granted_until, ..Peer::default() });
        }
    }

    /// A node has left the cluster; no group has it among its members. What was granted to it is kept to.
    pub fn remove_peer(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.remove(&node) {
            self.granted_others = self.granted_others.max(peer.granted_until);
        }
    }

    /// This node has no replica of a group any more: it follows nobody, and others must not take it for content.
    pub fn forget(&mut self, group: GroupId) {
        self.version += 1;
        self.own.insert(group, (Status::default(), self.version));
        self.frozen.remove(&group);
    }

    /// When this node may promise another node's ballot in a group whose durable promise is
    /// `promised`; a time in the past means now.
    pub fn grant_ends(&self, group: GroupId, promised: Ballot) -> Time {
        let until = match self.peers.get(&promised.node) {
            // A later boot of that node: the leader to whom we granted is gone, and its lease with it.
            Some(peer) if peer.boot > promised.boot => Time(0),
            Some(peer) => peer.granted_until,
            // Nobody was promised, or this node itself.
            None if [NodeId(0), self.me].contains(&promised.node) => Time(0),
            None => self.granted_others,
        };
        match self.frozen.get(&group) {
            Some((ballot, frozen)) if *ballot == promised => until.min(*frozen),
            _ => until,
        }
    }

    /// Pings for all peers (or for one).
    pub fn ping(&mut self, now: Time, only: Option<NodeId>) -> Vec<(NodeId, Heartbeat)> {
        let nodes: Vec<NodeId> =
            self.peers.keys().copied().filter(|node| only.is_none_or(|one| one == *node)).collect();
        let mut out = Vec::with_capacity(nodes.len());
        for node in nodes {
            let statuses = self.statuses_for(node);
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            peer.next_sequence += 1;
            if peer.pings.len() >= PINGS_MAX {
                peer.pings.remove(0);
            }
            peer.pings.push((peer.next_sequence, now));
            out.push((node, Heartbeat::Ping { sequence: peer.next_sequence, statuses }));
        }
        out
    }

    fn statuses_for(&self, node: NodeId) -> Statuses {
        let (base, known) = match self.peers.get(&node) {
            Some(peer) => (peer.acked_version, (peer.boot, peer.view_version)),
            None => (0, (0, 0)),
        };
        let changed = self
            .own
            .iter()
            .filter(|(_, (_, version))| *version > base)
            .map(|(group, (status, _))| (*group, *status))
            .collect();
        Statuses { boot: self.boot, base, version: self.version, changed, known }
    }

    /// Takes a heartbeat in; a ping is answered by a pong (and grants).
    pub fn receive(&mut self, now: Time, from: NodeId, heartbeat: Heartbeat) -> Option<Heartbeat> {
        let exact = match &heartbeat {
            Heartbeat::Ping { statuses, .. } | Heartbeat::Pong { statuses, .. } => {
                self.take_statuses(from, statuses)?
            }
        };
        match heartbeat {
            Heartbeat::Ping { sequence, statuses } => {
                let peer = self.peers.get_mut(&from)?;
                peer.granted_until = peer.granted_until.max(now.plus(self.timing.lease_micros));
                let ours = self.statuses_for(from);
                let granted_micros = self.timing.lease_micros;
                Some(Heartbeat::Pong { sequence, ping_boot: statuses.boot, granted_micros, statuses: ours })
            }
            Heartbeat::Pong { sequence, ping_boot, granted_micros, .. } => {
                if ping_boot != self.boot {
                    return None;
                }
                let peer = self.peers.get_mut(&from)?;
                let position = peer.pings.iter().position(|(number, _)| *number == sequence)?;
                let sent_at = peer.pings[position].1;
                peer.reached_at = peer.reached_at.max(Some(sent_at));
                if exact && sequence > peer.leased_sequence {
                    peer.leased_sequence = sequence;
                    peer.leased_until = Some(sent_at.plus(held_micros(granted_micros)));
                }
                peer.pings.retain(|(number, _)| *number > sequence);
                None
            }
        }
    }

    /// Merges a peer's statuses into our view. `None`: not a peer, or an earlier boot of it.
    /// Otherwise whether the view is now exactly what the message describes.
    fn take_statuses(&mut self, from: NodeId, statuses: &Statuses) -> Option<bool> {
        let (boot, version) = (self.boot, self.version);
        let peer = self.peers.get_mut(&from)?;
        if statuses.boot < peer.boot {
            return None;
        }
        if statuses.boot > peer.boot {
            let granted_until = peer.granted_until;
            *peer = Peer { boot: statuses.boot, granted_until, next_sequence: peer.next_sequence, ..Peer::default() };
        }
        if statuses.base <= peer.view_version && statuses.version > peer.view_version {
            peer.view.extend(statuses.changed.iter().copied());
            peer.view_version = statuses.version;
        }
        // What the peer has of ours; another boot of ours, or a peer that lost it, starts over.
        let (known_boot, known_version) = statuses.known;
        peer.acked_version = if known_boot == boot { known_version.min(version) } else { 0 };
        Some(peer.view_version == statuses.version)
    }

    /// Whether a round trip with the peer succeeded lately.
    pub fn reaches(&self, now: Time, node: NodeId) -> bool {
        self.peers
            .get(&node)
            .and_then(|peer| peer.reached_at)
            .is_some_and(|at| now.since(at) < self.timing.peer_timeout_micros)
    }

    /// What a peer published about a group, reachable or not.
    pub fn status_of(&self, node: NodeId, group: GroupId) -> Option<Status> {
        self.peers.get(&node)?.view.get(&group).copied()
    }

    /// Whether a peer said last that it must not lead a group.
    pub fn is_barred(&self, node: NodeId, group: GroupId) -> bool {
        self.status_of(node, group).is_some_and(|status| status.barred)
    }

    /// Whether a peer is there, and said nothing against leading a group.
    pub fn may_lead(&self, now: Time, node: NodeId, group: GroupId) -> bool {
        self.reaches(now, node) && !self.is_barred(node, group)
    }

    /// The statuses of the other replicas that are reachable.
    pub fn reached(&self, now: Time, group: GroupId, replicas: &[NodeId]) -> Vec<Status> {
        replicas
            .iter()
            .filter(|node| **node != self.me && self.reaches(now, **node))
            .filter_map(|node| self.status_of(*node, group))
            .collect()
    }

    /// Until when the leader at `ballot` holds the lease of a group; `None` while too few grant it.
    pub fn lease_until(&self, now: Time, group: GroupId, ballot: Ballot, replicas: &[NodeId]) -> Option<Time> {
        let needed = quorum_of(replicas.len()) - 1;
        if needed == 0 {
            return Some(now.plus(held_micros(self.timing.lease_micros)));
        }
        let mut until: Vec<Time> = replicas
            .iter()
            .filter(|node| **node != self.me)
            .filter_map(|node| self.peers.get(node))
            .filter(|peer| {
                let follows = |status: &Status| status.promised == ballot && status.leader == ballot;
                peer.view.get(&group).is_some_and(follows) || flaw::is(Flaw::LeaseOfAnyBallot)
            })
            .filter_map(|peer| peer.leased_until)
            .collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        let until = until.get(needed - 1).copied()?;
        if flaw::is(Flaw::LeaseAsOfThePing) {
            return Some(until.plus(now.since(self.pinged_at().unwrap_or(now))));
        }
        Some(until)
    }

    /// When the last ping was sent.
    fn pinged_at(&self) -> Option<Time> {
        self.peers.values().filter_map(|peer| peer.pings.last().map(|(_, at)| *at).max(peer.reached_at)).max()
    }
}
