//! What a host may ask a replica; none of it changes anything.

use crate::acceptor::Acceptor;
use crate::election::Status;
use crate::replica::{Replica, Role};
use crate::{Ballot, Configuration, NodeId, Slot};
use std::collections::BTreeMap;

impl Replica {
    /// What this replica publishes in heartbeats.
    pub fn status(&self) -> Status {
        self.election.status(self.durable_promised, self.configuration.id)
    }
    /// The acceptor, for inspection.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }
    /// The ballot whose leader this replica follows.
    pub fn leader(&self) -> Ballot {
        self.election.leader()
    }
    /// Whether this replica is content with whom it follows: it reaches a leader that reaches a majority, or is one.
    pub fn is_content(&self) -> bool {
        self.election.happy()
    }
    /// The ballot at which this replica leads and may propose, if it does. Not where its log ends in a
    /// stop-sign: what it leads is sealed, or about to be.
    pub fn leading(&self) -> Option<Ballot> {
        match &self.role {
            Role::Leading(leading) if self.acceptor.promised() == leading.ballot && self.seal().is_none() => {
                Some(leading.ballot)
            }
            Role::Leading(_) | Role::Follower | Role::Preparing(_) => None,
        }
    }
    /// The slot that the next proposal gets.
    pub fn next_slot(&self) -> Slot {
        self.acceptor.log().length().next()
    }
    /// The configuration that this replica is in.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }
    /// Who follows the log without a vote while this replica leads, as the host has said.
    pub fn learners(&self) -> &[NodeId] {
        &self.learners
    }
    /// The nodes whose replicas vote in it.
    pub fn replicas(&self) -> &[NodeId] {
        &self.configuration.members
    }
    /// The nodes that vote on the log as this replica has it: those of the configuration before, while the one that it is
    /// in has not begun for it. None where it does not know.
    pub fn voters(&self) -> &[NodeId] {
        self.configuration.voters_of(self.acceptor.accepted().config).unwrap_or_default()
    }
    /// The confirmation round that the next [`Input::Confirm`](crate::Input::Confirm) is answered by: reads that wait for
    /// it to be [`Replica::confirmed`] began before it.
    pub fn confirm_round(&self) -> u64 {
        match &self.role {
            Role::Leading(leading) => leading.confirm.begun + 1,
            Role::Follower | Role::Preparing(_) => u64::MAX,
        }
    }
    /// The last confirmation round that a quorum has answered; 0 before the first.
    pub fn confirmed(&self) -> u64 {
        match &self.role {
            Role::Leading(leading) => leading.confirm.confirmed,
            Role::Follower | Role::Preparing(_) => 0,
        }
    }
    /// How far each peer has durably accepted, on a leader.
    pub fn matched(&self) -> BTreeMap<NodeId, Option<Slot>> {
        match &self.role {
            Role::Leading(leading) => leading.peers.iter().map(|(node, peer)| (*node, peer.matched)).collect(),
            Role::Follower | Role::Preparing(_) => BTreeMap::new(),
        }
    }
}
