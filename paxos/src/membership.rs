//! A replica's part in changes of membership: who votes where, and how one configuration passes into the
//! next. The rules stand in [`crate::configuration`].
//!
//! The leader of a sealed configuration goes on until enough members of the next one know that it is: it
//! brings them the stop-sign, the learners among them, and asks. Then it takes the lead of the next one, or
//! passes it to a member.

use crate::configuration::Configuration;
use crate::flaw::{self, Flaw};
use crate::heartbeat::Heartbeats;
use crate::interface::Outputs;
use crate::leader::{Leading, Peer, PeerPhase};
use crate::message::Message;
use crate::replica::{Replica, Role};
use crate::{ConfigId, NodeId, Slot, Time};

/// Rounds of elections for which the members of a new configuration leave it to the old one's leader to find
/// theirs.
pub(crate) const PATIENCE_ROUNDS: u32 = 5;

impl Replica {
    /// Whether this replica votes in a configuration's phase 1: it knows the configuration, so it holds
    /// everything that was decided before.
    pub(crate) fn votes_in(&self, config: ConfigId) -> bool {
        self.configuration.voters_of(config).is_some_and(|voters| voters.contains(&self.config.me))
    }

    /// Whether it does, and a candidate may ask for its vote.
    pub(crate) fn votes_for(&self, candidate: NodeId, config: ConfigId) -> bool {
        let voters = self.configuration.voters_of(config).unwrap_or_default();
        voters.contains(&self.config.me) && voters.contains(&candidate)
    }

    /// A stop-sign is decided: this replica is in the configuration that it begins.
    pub(crate) fn enter(&mut self, next: Configuration) {
        if next.id > self.configuration.id {
            self.configuration = next;
            self.patience = PATIENCE_ROUNDS;
        }
    }

    /// What seals the configuration that the log belongs to: the stop-sign at its end, or an image from
    /// behind the stop-sign.
    pub(crate) fn seal(&self) -> Option<(Slot, Configuration)> {
        let (log, accepted) = (self.acceptor.log(), self.acceptor.accepted());
        let last = log.length();
        let next = match log.get(last) {
            Some(entry) => Configuration::of_stop_sign(entry)?,
            None => self.configuration.clone(),
        };
        (next.id > accepted.config && !flaw::is(Flaw::AppendBehindStopSign)).then_some((last, next))
    }

    /// What follows the configuration that this replica leads, where that is sealed for good: the members of
    /// the next one are waited for.
    pub fn sealed_into(&self) -> Option<Configuration> {
        let leads = matches!(self.role, Role::Leading(_));
        let (_, next) = self.seal().filter(|(slot, _)| leads && self.acceptor.decided() >= *slot)?;
        Some(next)
    }

    /// In which configuration this replica takes part in elections, and who votes there. Usually the one
    /// that it is in; where too few of that one's members know of it, the one before, to tell them.
    pub(crate) fn scope(&self, now: Time, heartbeats: &Heartbeats) -> (ConfigId, Vec<NodeId>) {
        let (me, group, current) = (self.config.me, self.config.group, &self.configuration);
        let knows = |node: &&NodeId| {
            let status = heartbeats.status_of(**node, group);
            let there = heartbeats.reaches(now, **node) && status.is_some_and(|it| it.config >= current.id);
            **node == me || there
        };
        let may_lead = |node: &NodeId| match *node == me {
            true => !self.election.is_barred(),
            false => !heartbeats.is_barred(*node, group),
        };
        let leader = self.election.leader();
        let is_led = leader.config >= current.id && may_lead(&leader.node);
        let unled = self.acceptor.promised().config < current.id && !is_led;
        let may_finish = unled && current.before.contains(&me);
        let knowing: Vec<NodeId> = current.members.iter().filter(knows).copied().collect();
        if may_finish && (knowing.len() < current.quorum() || !knowing.iter().any(may_lead)) {
            return (ConfigId(current.id.0 - 1), current.before.clone());
        }
        (current.id, current.members.clone())
    }

    /// Chooses who follows the log while this replica leads.
    pub(crate) fn set_learners(&mut self, nodes: Vec<NodeId>) {
        self.learners = nodes;
        self.choose_peers(Time(0));
    }

    /// The other voters, those whom a stop-sign names, and the learners; new ones are probed in time.
    pub(crate) fn choose_peers(&mut self, now: Time) {
        let (me, sealed) = (self.config.me, self.seal());
        let Role::Leading(Leading { voters, peers, .. }) = &mut self.role else { return };
        let next = sealed.map(|(_, next)| next.members).unwrap_or_default();
        let wanted =
            |node: &NodeId| *node != me && [&*voters, &next, &self.learners].iter().any(|it| it.contains(node));
        peers.retain(|node, _| wanted(node));
        for node in voters.iter().chain(&next).chain(&self.learners).copied().filter(|node| *node != me) {
            peers.entry(node).or_insert_with(|| Peer::new(now));
        }
    }

    /// Proposes the stop-sign.
    pub(crate) fn seal_with(&mut self, now: Time, next: &Configuration, out: &mut Outputs) {
        let follows = next.id.0 == self.configuration.id.0 + 1 && next.before == self.configuration.members;
        if self.leading().is_some() && follows && !next.members.is_empty() {
            self.propose(now, next.stop_sign(), out);
            self.choose_peers(now);
        }
    }

    /// The stop-sign is decided: asks who knows, and where enough members of the next configuration do,
    /// begins it.
    pub(crate) fn begin_next(&mut self, now: Time, heartbeats: &Heartbeats, out: &mut Outputs) {
        let Role::Leading(leading) = &self.role else { return };
        let Some((slot, next)) = self.seal().filter(|(slot, _)| self.acceptor.decided() >= *slot) else { return };
        if self.configuration.id != next.id {
            // What was applied lags behind what is decided.
            return;
        }
        let me = self.config.me;
        let knows = |node: &NodeId| *node == me || leading.peers.get(node).is_some_and(|peer| peer.decided >= slot);
        let (knowing, ballot, decided) =
            (next.members.iter().filter(|node| knows(node)).count(), leading.ballot, leading.decided);
        if knowing < next.quorum() {
            return self.ask_who_knows(now, slot, out);
        }
        if next.contains(me) && !self.election.is_barred() {
            self.take_over(now, next.id, None);
            self.begin_phase_1(now, heartbeats, out);
            return;
        }
        let may_lead = |node: &NodeId| knows(node) && heartbeats.may_lead(now, *node, self.config.group);
        let Some(to) = next.members.iter().copied().find(may_lead) else { return };
        self.send_now(out, to, Message::Decide { ballot, decided, answer: false });
        self.abdicate(now, ballot, to, out);
    }

    fn ask_who_knows(&mut self, now: Time, slot: Slot, out: &mut Outputs) {
        let Role::Leading(leading) = &mut self.role else { return };
        if std::mem::replace(&mut leading.asked, true) {
            return;
        }
        let (ballot, decided) = (leading.ballot, leading.decided);
        let mut asked = Vec::new();
        for (node, peer) in &mut leading.peers {
            if matches!(peer.phase, PeerPhase::Replicating { .. }) && peer.decided < slot {
                (peer.decided_sent, peer.moved_at) = (decided, now);
                asked.push(*node);
            }
        }
        for node in asked {
            self.send_now(out, node, Message::Decide { ballot, decided, answer: true });
        }
    }
}
