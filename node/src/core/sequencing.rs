//! The sequencer on the shardmaster's leader, and the shardmaster's other duties there: the first
//! map, reservations, compactions.

use super::lead::Waiter;
use super::{Core, Group, Machine, ReadMode};
use crate::wire::{AskId, NodeMessage};
use paxos::election::Status;
use paxos::{GroupId, NodeId, Time};
use shardkv::map::{NodeInfo, SHARDMASTER_GROUP};
use shardkv::request::{OpError, ReplyBody};
use shardkv::store::Store;
use shardkv::types::Revision;
use shardmaster::{MasterCommand, Sequencer};
use std::collections::VecDeque;

/// Calls waiting for a reservation or the lease.
const WAITING_MAX: usize = 4096;
/// Calls that waited longer are dropped; the asker asks anew.
const PATIENCE_MICROS: u64 = 1_000_000;

#[derive(Debug)]
enum Call {
    Take { from: NodeId, ask: AskId, count: u64 },
    Current { token: u64, id: u64 },
}

/// One leader's term as sequencer.
pub(super) struct SequencerTerm {
    sequencer: Sequencer,
    waiting: VecDeque<(Time, Call)>,
    /// Numbers taken, to be told once a quorum has confirmed the round (read mode "quorum").
    confirming: VecDeque<(u64, NodeId, AskId, Revision)>,
    genesis_proposed: bool,
}

impl<S: Store> Core<S> {
    /// The newest number handed out, on the sequencer's node.
    pub(super) fn sequencer_position(&self) -> Option<Revision> {
        self.sequencer.as_ref().map(|term| term.sequencer.current())
    }

    /// Who may lead a group that this node has no replica of.
    pub(super) fn guess_leader(&self, id: GroupId) -> Option<NodeId> {
        let leader = self.statuses_of(id).map(|status| status.leader).max()?;
        (leader.node.0 != 0).then_some(leader.node)
    }

    /// What the other nodes say of a group, also of one that this node has no replica of: those that are reached, or,
    /// where none is, all. What a node said before it fell silent may name a leader that has gone since.
    fn statuses_of(&self, id: GroupId) -> impl Iterator<Item = Status> {
        let others = || self.config.nodes.iter().filter(|node| **node != self.config.me);
        let anybody = others().any(|node| self.beats.reaches(self.now, *node));
        others()
            .filter(move |node| !anybody || self.beats.reaches(self.now, **node))
            .filter_map(move |node| self.beats.status_of(*node, id))
    }

    /// Whom to send somebody to who was wrong here. Nobody, where this node has lost its leader, or that one its majority:
    /// others may have elected another one, and a request that goes to the old one waits there in vain.
    pub(super) fn hint(&self, id: GroupId) -> Option<NodeId> {
        let knows = self.is_content(id) || self.is_outdated(id);
        self.leader_of(id).filter(|node| *node != self.config.me && knows)
    }

    /// Whether a leader that reaches a majority is reached, or is this node itself. A node without a vote cannot tell.
    pub(super) fn is_content(&self, id: GroupId) -> bool {
        let member = |group: &&Group<S>| group.replica.configuration().contains(self.config.me);
        self.groups.get(&id).filter(member).is_none_or(|group| group.replica.is_content())
    }

    /// Whether others know a leader of a group in a later configuration than this node's replica has heard of: that
    /// may have no member left who could tell it.
    pub(super) fn is_outdated(&self, id: GroupId) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        let config = group.replica.configuration().id.max(group.replica.leader().config);
        self.statuses_of(id).any(|status| status.leader.config > config)
    }

    /// Begins the term, reserves ahead, serves what waits.
    pub(super) fn sequence(&mut self, now: Time) {
        self.begin_sequencing();
        self.upkeep_master(now);
        let mut waiting = match &mut self.sequencer {
            Some(term) => std::mem::take(&mut term.waiting),
            None => return,
        };
        while let Some((since, call)) = waiting.pop_front() {
            if now.since(since) < PATIENCE_MICROS {
                self.serve(now, since, call);
            }
        }
        self.confirmed_numbers(now);
    }

    fn begin_sequencing(&mut self) {
        let Some(group) = self.groups.get(&SHARDMASTER_GROUP) else { return };
        let ready = group.lead.as_ref().is_some_and(|lead| lead.ready && !lead.is_draining());
        if !ready {
            self.sequencer = None;
            return;
        }
        if let (None, Machine::Master(state)) = (&self.sequencer, &group.machine) {
            let sequencer = Sequencer::new(state.reserved_up_to);
            self.known = self.known.max(sequencer.current());
            let (waiting, confirming) = (VecDeque::new(), VecDeque::new());
            self.sequencer = Some(SequencerTerm { sequencer, waiting, confirming, genesis_proposed: false });
        }
    }

    fn upkeep_master(&mut self, now: Time) {
        let Some(term) = &mut self.sequencer else { return };
        let wanted =
            term.waiting.iter().map(|(_, call)| if let Call::Take { count, .. } = call { *count } else { 0 }).sum();
        let reservation = term.sequencer.reservation(wanted);
        let Some(group) = self.groups.get(&SHARDMASTER_GROUP) else { return };
        let Machine::Master(state) = &group.machine else { return };
        let genesis = !state.is_initialised() && !term.genesis_proposed;
        term.genesis_proposed |= genesis;
        if genesis {
            let map = Box::new(self.config.genesis.clone());
            self.propose_master(now, Waiter::Nobody, &MasterCommand::Genesis(map));
        }
        if let Some(up_to) = reservation {
            self.propose_master(now, Waiter::Nobody, &MasterCommand::Reserve { up_to });
        }
    }

    /// The shardmaster's state was applied anew.
    pub(super) fn reservation_applied(&mut self, now: Time) {
        let Some(Machine::Master(state)) = self.groups.get(&SHARDMASTER_GROUP).map(|group| &group.machine) else {
            return;
        };
        let up_to = state.reserved_up_to;
        if let Some(term) = &mut self.sequencer {
            term.sequencer.reserved(up_to);
        }
        self.sequence(now);
        self.busy.extend(self.groups.keys().copied());
    }

    /// Takes numbers for a leader on this same node, if that needs no waiting at all.
    pub(super) fn take_here(&mut self, now: Time, count: u64) -> Option<Revision> {
        if self.config.read_mode != ReadMode::Lease {
            return None;
        }
        let term = self.sequencer.as_mut()?;
        if !term.waiting.is_empty() {
            return None;
        }
        let first = term.sequencer.take(count)?;
        // After taking, before anyone learns them: is this node still the sequencer?
        if !self.has_lease(now, SHARDMASTER_GROUP) {
            return None;
        }
        self.known = self.known.max(Revision(first.0 + count - 1));
        self.busy.insert(SHARDMASTER_GROUP);
        Some(first)
    }

    /// A leader (here or elsewhere) asks for numbers. Silence where this is not the sequencer: the
    /// asker asks anew, and by then knows better.
    pub(super) fn take_asked(&mut self, now: Time, from: NodeId, ask: AskId, count: u64) {
        self.serve(now, now, Call::Take { from, ask, count });
        self.busy.insert(SHARDMASTER_GROUP);
    }

    /// A gateway asks for the newest number handed out.
    pub(super) fn current_asked(&mut self, now: Time, token: u64, id: u64) {
        if self.sequencer.is_none() || !self.is_content(SHARDMASTER_GROUP) {
            let hint = self.hint(SHARDMASTER_GROUP);
            return self.answer(Waiter::Gateway(token, id), ReplyBody::NotLeader { hint });
        }
        self.serve(now, now, Call::Current { token, id });
        self.busy.insert(SHARDMASTER_GROUP);
    }

    fn serve(&mut self, now: Time, since: Time, call: Call) {
        let Some(term) = &mut self.sequencer else { return };
        let number = match &call {
            Call::Take { count, .. } => term.sequencer.take(*count),
            Call::Current { .. } => Some(term.sequencer.current()),
        };
        let quorum = self.config.read_mode == ReadMode::Quorum;
        let (Some(number), true) = (number, quorum || self.has_lease(now, SHARDMASTER_GROUP)) else {
            if let Some(term) = self.sequencer.as_mut().filter(|term| term.waiting.len() < WAITING_MAX) {
                term.waiting.push_back((since, call));
            }
            return;
        };
        self.known = self.known.max(number);
        match call {
            Call::Take { from, ask, .. } if quorum => self.confirm_numbers(now, from, ask, number),
            Call::Take { from, ask, .. } => self.tell(now, from, ask, number),
            Call::Current { token, id } => {
                let reply = self.reply(id, ReplyBody::Current { revision: number });
                if quorum {
                    self.confirm_then(now, SHARDMASTER_GROUP, token, reply);
                } else {
                    self.out.replies.push((token, reply));
                }
            }
        }
    }

    fn tell(&mut self, now: Time, to: NodeId, ask: AskId, first: Revision) {
        if to == self.config.me {
            self.taken(now, ask, first);
        } else {
            self.out.send.push((to, NodeMessage::Taken { ask, first }));
        }
    }

    fn confirm_numbers(&mut self, now: Time, to: NodeId, ask: AskId, first: Revision) {
        let Some(group) = self.groups.get(&SHARDMASTER_GROUP) else { return };
        let round = group.replica.confirm_round();
        // Beyond the bound nobody is answered; whoever asked asks anew.
        if let Some(term) = self.sequencer.as_mut().filter(|term| term.confirming.len() < WAITING_MAX) {
            term.confirming.push_back((round, to, ask, first));
        }
        self.step(now, SHARDMASTER_GROUP, paxos::Input::Confirm);
    }

    /// Numbers whose confirmation round a quorum has answered are told.
    pub(super) fn confirmed_numbers(&mut self, now: Time) {
        let Some(group) = self.groups.get(&SHARDMASTER_GROUP) else { return };
        let confirmed = group.replica.confirmed();
        let mut told = Vec::new();
        if let Some(term) = &mut self.sequencer {
            while let Some(next) = term.confirming.pop_front_if(|(round, ..)| *round <= confirmed) {
                told.push(next);
            }
        }
        for (_, to, ask, first) in told {
            self.tell(now, to, ask, first);
        }
    }

    /// A node says how it is reached, and which data directory it has.
    pub(super) fn register(&mut self, now: Time, info: NodeInfo) {
        if self.map.nodes.iter().any(|node| node.may_be(&info) && !node.says_the_same(&info)) {
            self.note_master(now, &MasterCommand::Register(Box::new(info)));
        }
    }

    /// Logs a compaction, if its revision was handed out.
    pub(super) fn log_compaction(&mut self, now: Time, waiter: Waiter, revision: Revision) {
        if let Err(refusal) = self.ready_lead(SHARDMASTER_GROUP) {
            return self.answer(waiter, refusal);
        }
        match self.sequencer_position() {
            Some(current) if revision > current => {
                self.answer(waiter, ReplyBody::Failed(OpError::FutureRevision { current }));
            }
            Some(_) => self.ask_master(now, waiter, &MasterCommand::Compact { revision }),
            None => self.answer(waiter, ReplyBody::NotLeader { hint: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{CoreConfig, Hosted};
    use paxos::heartbeat::{Heartbeat, Statuses};
    use paxos::{Ballot, ConfigId, Configuration, Recovered, Slot, Wire};
    use shardkv::MemoryStore;
    use shardmaster::MasterState;
    use std::sync::Arc;

    fn ballot(config: u32, round: u64, node: u64) -> Ballot {
        Ballot { config: ConfigId(config), round, node: NodeId(node), boot: 1 }
    }

    /// A node has missed that its configuration of the shardmaster's group was sealed, and that the one it follows has
    /// gone. Others follow a leader of a later one: it asks that one, and for the map.
    #[test]
    fn a_leader_of_a_later_configuration_is_believed() {
        let led = ballot(8, 29, 3);
        let members = [1, 2, 3].map(NodeId).to_vec();
        let configuration = Configuration { id: ConfigId(8), members, before: Vec::new() };
        let recovered = Recovered { promised: led, accepted: led, first_kept: Slot(1), ..Recovered::default() };
        let machine = Machine::<MemoryStore>::Master(Arc::new(MasterState::default()));
        let hosted =
            Hosted { group: SHARDMASTER_GROUP, configuration, recovered, applied: Slot(0), fenced: false, machine };
        let mut core = Core::new(CoreConfig::among(&[1, 2, 3, 4]), vec![hosted], Time(0));
        assert_eq!(core.leader_of(SHARDMASTER_GROUP), Some(NodeId(3)));
        assert_eq!(core.hint(SHARDMASTER_GROUP), None, "it is not reached: callers would wait there in vain");
        let leader = ballot(10, 32, 4);
        let status =
            Status { promised: leader, own: leader, leader, happy: true, config: ConfigId(10), ..Status::default() };
        let statuses =
            Statuses { boot: 1, base: 0, version: 1, changed: vec![(SHARDMASTER_GROUP, status)], known: (1, 0) };
        let ping = Heartbeat::Ping { sequence: 1, statuses };
        core.message(Time(1), NodeId(4), NodeMessage::Paxos(Wire::Heartbeat(ping)));
        assert_eq!(core.leader_of(SHARDMASTER_GROUP), Some(NodeId(4)));
        assert_eq!(core.hint(SHARDMASTER_GROUP), Some(NodeId(4)));
        core.tick(Time(200_000));
        let out = core.turn(Time(200_000));
        assert!(out.send.iter().any(|(_, message)| matches!(message, NodeMessage::MapRequest { .. })));
    }

    /// n3 led, said so, and fell silent; n2 leads now, at a lower ballot, which n3 never heard of.
    #[test]
    fn a_leader_that_is_gone_is_not_believed_for_ever() {
        let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[4, 1, 2, 3]), Vec::new(), Time(0));
        let own = |ballot| Status { promised: ballot, own: ballot, leader: ballot, happy: true, ..Status::default() };
        core.hear(Time(1), NodeId(3), own(ballot(0, 9, 3)));
        assert_eq!(core.leader_of(SHARDMASTER_GROUP), Some(NodeId(3)));
        let later = Time(10_000_000);
        core.hear(later, NodeId(2), own(ballot(0, 9, 2)));
        assert_eq!(core.leader_of(SHARDMASTER_GROUP), Some(NodeId(2)));
    }
}
