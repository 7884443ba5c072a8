//! Ballot leader election by quorum connectivity (Ng, Haridi, Carbone: "Omni-Paxos", EuroSys 2023,
//! §5.2). It may be wrong and only costs time: safety is the acceptors'.
//!
//! Every replica publishes the highest leader ballot that it knows, its own ballot and whether it is
//! *happy*: connected to a leader that itself reaches a quorum. A replica takes over only when it is
//! unhappy, all whom it reaches are unhappy too, and it reaches a quorum. So a replica behind a
//! broken link (the chain A–B–C with leader C) does not disturb a leader that the others still
//! follow, and a leader without a quorum is replaced even though some still hear it.

use crate::leader::quorum_of;
use crate::{Ballot, ConfigId, NodeId};
use serde::{Deserialize, Serialize};

/// What a replica publishes about one group to the other nodes, in heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The highest ballot durably promised.
    pub promised: Ballot,
    /// The replica's own ballot in elections.
    pub own: Ballot,
    /// The leader that it follows.
    pub leader: Ballot,
    /// Whether it is content with that.
    pub happy: bool,
    /// Whether its node had better not lead: its disk is full, or it is about to stop. Elections do not look at
    /// it, so that there is a leader to read from when all disks are full.
    pub reluctant: bool,
    /// Whether it must not lead: what its state machine has is wrong. It votes.
    pub barred: bool,
    /// The configuration that it is in: it knows that the one before is sealed.
    pub config: ConfigId,
}

/// One replica's view of who leads.
#[derive(Clone, Debug)]
pub struct Election {
    me: NodeId,
    own: Ballot,
    leader: Ballot,
    happy: bool,
    /// It must not lead, whatever comes of it.
    barred: bool,
}

impl Election {
    /// Follows whatever was promised before. The own ballot starts below every real one.
    pub fn new(me: NodeId, promised: Ballot) -> Election {
        Election {
            me,
            own: Ballot { config: promised.config, round: 0, node: me, boot: 0 },
            leader: promised,
            happy: false,
            barred: false,
        }
    }

    /// The leader that this replica follows; the zero ballot before the first.
    pub fn leader(&self) -> Ballot {
        self.leader
    }
    /// This replica's own ballot.
    pub fn own(&self) -> Ballot {
        self.own
    }
    /// Whether this replica is content.
    pub fn happy(&self) -> bool {
        self.happy
    }

    /// Whether this replica must not lead.
    pub fn is_barred(&self) -> bool {
        self.barred
    }

    /// It must not lead, or may again. As a leader it is content no longer, so that others take over.
    pub fn bar(&mut self, barred: bool) {
        self.barred = barred;
        self.happy &= !barred || self.leader != self.own;
    }

    /// A higher ballot was seen, in a message or in one's own promise.
    pub fn saw(&mut self, ballot: Ballot) {
        if ballot > self.leader {
            self.leader = ballot;
            self.happy = ballot == self.own;
        }
    }

    /// One round among the `replicas` of a configuration: `reached` are the statuses of the others with whom
    /// a round trip succeeded lately, `promised` is the highest ballot promised here. Returns whether this replica
    /// wants to take over.
    pub fn round(&mut self, config: ConfigId, replicas: usize, reached: &[Status], promised: Ballot) -> bool {
        // Who leads a later configuration brings us there, while it lives. One that is gone may have been the only one
        // to know that it had begun: where nobody else does, those of this one go on.
        let (own, nobody_knows) = (self.own, reached.iter().all(|status| status.config <= config));
        let me = self.me;
        let lives = |leader: &Ballot| {
            // This node, before it was restarted, brings nobody anywhere.
            let there = leader.config <= config || (!nobody_knows && leader.node != me);
            // Nor does one that must not lead.
            let barred = reached.iter().any(|status| status.own.node == leader.node && status.barred);
            let there = there || *leader == own || reached.iter().any(|status| status.own == *leader);
            there && (leader.config <= config || !barred)
        };
        if !lives(&self.leader) {
            (self.leader, self.happy) = (promised, false);
        }
        if let Some(highest) = reached.iter().map(|status| status.leader).filter(lives).max() {
            self.saw(highest);
        }
        let reaches_quorum = reached.len() + 1 >= quorum_of(replicas);
        self.happy = if self.leader.config < config {
            // The leader of a sealed configuration is none.
            false
        } else if self.leader == self.own {
            let followers = reached.iter().filter(|status| status.leader <= self.own).count();
            (followers + 1 >= quorum_of(replicas) && !self.barred)
                || reached.iter().any(|status| status.leader > self.own && status.happy)
        } else {
            reached.iter().any(|status| status.own == self.leader && status.happy)
        };
        // A later configuration has begun: its leader will bring us there.
        let outdated = self.leader.config > config;
        // Nor does it count what makes a straggler happy there.
        let somebody_leads = reached.iter().any(|status| status.happy && status.leader.config >= config);
        !self.happy && !outdated && reaches_quorum && !somebody_leads && !self.barred
    }

    /// Takes over with a ballot above everything seen in the configuration.
    pub fn take_over(&mut self, config: ConfigId, boot: u64) -> Ballot {
        let round = self.leader.round.max(self.own.round) + 1;
        self.own = Ballot { config, round, node: self.me, boot };
        self.leader = self.own;
        self.happy = true;
        self.own
    }

    /// What this replica publishes.
    pub fn status(&self, durably_promised: Ballot, config: ConfigId) -> Status {
        let Election { own, leader, happy, barred, .. } = *self;
        Status { promised: durably_promised, own, leader, happy, reluctant: false, barred, config }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(config: u32, round: u64, node: u64, boot: u64) -> Ballot {
        Ballot { config: ConfigId(config), round, node: NodeId(node), boot }
    }

    /// A member that knows only the configuration before stands for election there, again and again, and is happy with
    /// itself each time: it must not keep those who know more from electing anybody, who could tell it. (Seed 401303 of the
    /// simulator, 20 s.)
    #[test]
    fn who_is_happy_in_an_earlier_configuration_keeps_nobody_waiting() {
        let promised = ballot(6, 11, 4, 5);
        let mut election = Election::new(NodeId(4), promised);
        let (config, straggler) = (ConfigId(6), ballot(5, 704, 5, 4));
        let reached = [
            Status { own: ballot(6, 9, 2, 2), leader: promised, config, ..Status::default() },
            Status { own: straggler, leader: straggler, happy: true, config: ConfigId(5), ..Status::default() },
        ];
        assert!(election.round(config, 3, &reached, promised), "{election:?}");
        let leads = Status { leader: ballot(6, 12, 5, 4), own: ballot(6, 12, 5, 4), ..reached[1] };
        assert!(!election.round(config, 3, &[reached[0], leads], promised), "somebody leads");
    }

    /// The leader took over in the next configuration, whose only member it is, and was found to be wrong at that moment:
    /// those of the one before elect somebody, who gives it a state. (Seed 555884 of the simulator, 20 s.)
    #[test]
    fn who_must_not_lead_a_later_configuration_is_not_waited_for() {
        let (promised, later) = (ballot(0, 4, 3, 1), ballot(1, 5, 3, 1));
        let mut election = Election::new(NodeId(1), promised);
        election.saw(later);
        let config = ConfigId(0);
        let mut wrong = Status { promised: later, own: later, leader: later, config: ConfigId(1), ..Status::default() };
        let other = Status { promised, leader: later, config, ..Status::default() };
        assert!(!election.round(config, 3, &[wrong, other], promised), "it will come");
        wrong.barred = true;
        assert!(election.round(config, 3, &[wrong, other], promised), "{election:?}");
        // Also when it was restarted since.
        wrong.own = ballot(1, 0, 3, 0);
        election.saw(later);
        assert!(election.round(config, 3, &[wrong, other], promised), "{election:?}");
    }

    /// The only member of a new configuration has led it, and is restarted before it has written down that it has
    /// begun. The others know; nobody but itself can tell it, as the leader of the configuration before.
    #[test]
    fn a_node_does_not_wait_for_its_former_self() {
        let (before, led) = (ballot(6, 17, 3, 5), ballot(7, 18, 3, 5));
        let mut election = Election::new(NodeId(3), before);
        let config = ConfigId(7);
        let other =
            |node| Status { promised: before, own: ballot(6, 0, node, 0), leader: led, config, ..Status::default() };
        let reached = [other(1), other(2)];
        assert!(election.round(ConfigId(6), 3, &reached, before), "it takes over: {election:?}");
        assert_eq!(election.take_over(ConfigId(6), 7), ballot(6, 18, 3, 7));
        // Another node's that led it would bring us there.
        let led = ballot(7, 18, 1, 5);
        let reached = reached.map(|status| Status { leader: led, ..status });
        assert!(!election.round(ConfigId(6), 3, &reached, before) && election.leader() == led);
    }
}
