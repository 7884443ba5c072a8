//! The end of a run: everything heals, everybody gets answers, all replicas become equal; then the
//! history is judged.

use crate::world::{self, Phase, World};
use bytes::Bytes;
use node::core::Machine;
use paxos::{GroupId, NodeId, Slot};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::{Op, OpResult, Range, RangeResult};
use shardkv::types::{Epoch, Keys, Revision, ShardId};
use shardkv::{Event, MemoryStore, ReadError, Reader};
use shardmaster::MasterState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Clients go on for so long after everything was mended.
const HEALED_MICROS: u64 = 3_000_000;
/// Between two looks at whether all is quiet.
const LOOK_MICROS: u64 = 250_000;
/// A healed cluster must converge within this.
const CONVERGE_MICROS_MAX: u64 = 60_000_000;

impl World {
    /// A phase is over, or it is time to look whether it is.
    pub(crate) fn phase_ends(&mut self) -> Result<(), String> {
        match self.phase {
            Phase::Faults => {
                self.heal();
                self.enter(Phase::Healed, HEALED_MICROS);
            }
            Phase::Healed => self.enter(Phase::Quiet, LOOK_MICROS),
            Phase::Quiet => {
                if self.clients.iter().all(|client| client.pending.is_none()) && self.gateways_run() {
                    self.read_again();
                    self.enter(Phase::FinalReads, 0);
                } else {
                    self.look_again("calls are still unanswered")?;
                }
            }
            Phase::FinalReads => {
                let unequal = self.unequal();
                if !self.unread.is_empty() {
                    if self.clients.iter().all(|client| client.pending.is_none()) {
                        self.unread.clone().into_iter().for_each(|gateway| self.final_read(gateway));
                    }
                    self.look_again("a final read is still unanswered")?;
                } else if let Some(unequal) = unequal {
                    self.converged = false;
                    self.look_again(&unequal)?;
                } else if !self.converged {
                    // What the last moves, images and new members have made of the data is read, too.
                    self.converged = true;
                    self.read_again();
                    self.look_again("a read after everything has become equal is still unanswered")?;
                } else {
                    self.enter(Phase::Over, 0);
                }
            }
            Phase::Over => {}
        }
        Ok(())
    }

    /// Every gateway is to read everything.
    fn read_again(&mut self) {
        let reads = 0..self.gateways.len();
        self.unread = reads.filter(|index| !self.is_retired(self.gateways[*index].local)).collect();
    }

    fn enter(&mut self, phase: Phase, length: u64) {
        self.trace.line(self.now, format_args!("phase {phase:?}"));
        (self.phase, self.phase_since) = (phase, self.now);
        self.schedule(length, world::Event::Phase);
    }

    fn look_again(&mut self, why: &str) -> Result<(), String> {
        if self.now - self.phase_since > CONVERGE_MICROS_MAX {
            let groups: Vec<String> = self.groups().into_iter().map(|id| self.describe(id)).collect();
            let seconds = CONVERGE_MICROS_MAX / 1_000_000;
            return Err(format!("no convergence {seconds} s after everything was mended: {why}{}", groups.concat()));
        }
        self.settle_disputes();
        self.schedule(LOOK_MICROS, world::Event::Phase);
        Ok(())
    }

    fn heal(&mut self) {
        self.network.heal();
        for node in self.plan.nodes.clone() {
            self.set_budget(node, None);
            let Some(site) = self.sites.get_mut(&node) else { continue };
            (site.slow_until, site.doomed) = (0, None);
            site.disk.fail_syncs(0);
            site.paused_until = site.paused_until.min(self.now + 1);
            let delay = self.random.below(100_000);
            self.schedule(delay, world::Event::Restart(node));
        }
        for gateway in 0..self.gateways.len() {
            if self.knows_nobody(gateway) {
                self.stop_gateway(gateway);
            }
            self.schedule(200_000, world::Event::GatewayStart(gateway));
        }
    }

    /// Whether all nodes that a gateway knows, from a map or its start, were replaced meanwhile: nodes are lost within seconds here.
    /// Its operator starts it anew, and names nodes that are there (`--known-nodes`).
    fn knows_nobody(&self, gateway: usize) -> bool {
        let present = self.present_nodes();
        let gateway = &self.gateways[gateway];
        let Some(machine) = gateway.machine.as_ref().filter(|_| gateway.local.is_none()) else { return false };
        let known: Vec<NodeId> = match machine.map() {
            Some(map) => map.nodes.iter().map(|node| node.id).collect(),
            None => gateway.named.clone(),
        };
        !known.iter().any(|node| present.contains(node))
    }

    fn is_retired(&self, node: Option<NodeId>) -> bool {
        node.and_then(|node| self.sites.get(&node)).is_some_and(|site| site.retired)
    }

    fn gateways_run(&self) -> bool {
        self.gateways.iter().all(|gateway| gateway.machine.is_some() || self.is_retired(gateway.local))
    }

    /// What is not equal yet.
    fn unequal(&self) -> Option<String> {
        for group in &self.groups() {
            let decided = self.invariants.last_decided(*group);
            for node in &self.newest_configuration(*group).members {
                let Some(site) = self.sites.get(node) else { continue };
                if site.retired {
                    return Some(format!("{node} is lost, and still a member of {group}"));
                }
                let Some(process) = &site.process else { return Some(format!("{node} is down")) };
                let applied = process.machines.applied(*group);
                if applied < decided {
                    return Some(format!("{node} has applied {group} to {applied} of {decided}"));
                }
                if process.core.replica(*group).is_some_and(|replica| replica.acceptor().suspect()) {
                    return Some(format!("{node} still waits for the repair of {group}"));
                }
                // The state machine and the core must be of one mind, too.
                if process.machines.is_fenced(*group) || process.core.is_fenced(*group) {
                    return Some(format!("{node} still waits for another state of {group}"));
                }
            }
        }
        self.unreplaced().or_else(|| self.unmoved())
    }

    /// A shard that is not yet where the map says, or a copy that nobody needs.
    fn unmoved(&self) -> Option<String> {
        let Some(map) = self.newest_map() else { return Some("nobody knows a map".to_owned()) };
        if let Some(planned) = map.moves.first() {
            return Some(format!("{planned:?} is not over"));
        }
        if let Some(planned) = map.reshapes.first() {
            return Some(format!("{planned:?} is not done"));
        }
        for group in map.groups.iter().map(|group| &group.id) {
            for node in &self.newest_configuration(*group).members {
                let process = self.sites.get(node).filter(|site| !site.retired).and_then(|site| site.process.as_ref());
                let Some(Machine::Data(reader)) = process.and_then(|it| it.machines.machine(*group)) else { continue };
                let has: BTreeSet<(ShardId, Epoch)> = reader.shards().iter().map(|it| (it.id, it.epoch)).collect();
                let shards = map.shards.iter().filter(|shard| shard.group == *group);
                let wanted: BTreeSet<(ShardId, Epoch)> = shards.map(|shard| (shard.id, shard.epoch)).collect();
                if reader.is_moving() || has != wanted {
                    let arrivals = reader.arrivals();
                    return Some(format!("{node} has {has:?} of {group}, not {wanted:?}; {arrivals:?} arrive"));
                }
            }
        }
        None
    }

    fn describe(&self, group: GroupId) -> String {
        let mut text = String::new();
        for (node, site) in &self.sites {
            let Some(process) = &site.process else { continue };
            let Some(replica) = process.core.replica(group) else { continue };
            let acceptor = replica.acceptor();
            let (kept, length) = acceptor.log().range();
            let status = process.core.status(site.clock.read(self.now));
            let status = status.groups.into_iter().find(|status| status.group == group);
            let (serves, leased) = status.map_or((false, false), |status| (status.serves, status.leased));
            text.push_str(&format!(
                "\n  {group} {node} in {:?}: leader {}, leading {:?}, serves {serves}, leased {leased}, promised {}, accepted {}, kept {kept} to {length}, decided {}, matched {:?}",
                replica.configuration(),
                replica.leader(),
                replica.leading().map(|ballot| ballot.to_string()),
                acceptor.promised(),
                acceptor.accepted(),
                acceptor.decided(),
                replica.matched()
            ));
        }
        text
    }

    /// The hash tells what was done; this is what is stored: every key, and every change that history still has. Images,
    /// moves and collection must leave the same behind everywhere.
    fn compare_contents(&self, group: GroupId, states: &[(NodeId, Slot, u64)]) -> Result<(), String> {
        let mut first: BTreeMap<Slot, (NodeId, Contents)> = BTreeMap::new();
        for (node, slot, _) in states {
            let process = self.sites.get(node).and_then(|site| site.process.as_ref());
            let Some(Machine::Data(reader)) = process.and_then(|it| it.machines.machine(group)) else { continue };
            let contents = contents(&reader).map_err(|error| format!("{node} cannot read {group}: {error}"))?;
            let (other, known) = first.entry(*slot).or_insert_with(|| (*node, contents.clone()));
            if *known != contents {
                return Err(format!(
                    "{group} holds {known:?} on {other}, and {contents:?} on {node}, both at slot {slot}"
                ));
            }
        }
        Ok(())
    }

    /// Replicas of the shardmaster know the same.
    fn compare_masters(&self) -> Result<(), String> {
        let mut first: BTreeMap<Slot, (NodeId, Arc<MasterState>)> = BTreeMap::new();
        for (node, site) in &self.sites {
            let Some(process) = &site.process else { continue };
            let Some(Machine::Master(state)) = process.machines.machine(SHARDMASTER_GROUP) else { continue };
            let slot = process.machines.applied(SHARDMASTER_GROUP);
            let (other, known) = first.entry(slot).or_insert_with(|| (*node, state.clone()));
            if *known != state {
                return Err(format!(
                    "the shardmaster is {known:?} on {other}, and {state:?} on {node}, both at slot {slot}"
                ));
            }
        }
        Ok(())
    }

    /// All data replicas at the same slot have the same state; every client's view is explained.
    pub(crate) fn judge(&mut self) -> Result<(), String> {
        for group in self.groups().iter().skip(1) {
            let mut states: Vec<(NodeId, Slot, u64)> = Vec::new();
            for node in &self.plan.nodes {
                let process = self.sites.get(node).and_then(|site| site.process.as_ref());
                if let Some((slot, hash)) = process.and_then(|process| process.machines.hash(*group)) {
                    states.push((*node, slot, hash));
                }
            }
            let differ = |a: &(NodeId, Slot, u64), b: &(NodeId, Slot, u64)| a.1 == b.1 && a.2 != b.2;
            let may_differ = self.spoils.concern(*group);
            if !may_differ && states.iter().any(|a| states.iter().any(|b| differ(a, b))) {
                return Err(format!("replicas of {group} differ at the end: {states:?}"));
            }
            self.compare_contents(*group, &states)?;
        }
        self.compare_masters()?;
        self.follow_to_the_end()?;
        self.history.log = Some(self.change_log()?);
        self.history.watches = self.followers.take();
        for gateway in &self.gateways {
            let retries = gateway.machine.as_ref().map_or(0, |machine| machine.status().retries);
            self.coverage.add("gateway.retries", gateway.retries + retries);
        }
        if let Some(map) = self.newest_map() {
            let (first, last, now) = (self.plan.boundaries.len() as u64 + 1, map.last_shard.0, map.shards.len() as u64);
            self.coverage.add("groups.created", map.last_group.0.saturating_sub(self.plan.groups.len() as u64));
            self.coverage.add("groups.removed", map.last_group.0.saturating_sub(map.groups.len() as u64 + 1));
            self.coverage.add("shards.split", last.saturating_sub(first));
            self.coverage.add("shards.merged", last.saturating_sub(now));
        }
        let report = checkers::check(&self.history);
        if report.is_ok() { Ok(()) } else { Err(report.to_string()) }
    }
}

/// What a replica stores: everything at its newest revision, and what has changed since its floor.
type Contents = (Revision, OpResult, Vec<Event>);

fn contents(reader: &Reader<MemoryStore>) -> Result<Contents, ReadError> {
    let owned = reader.shards();
    let shards: Vec<(ShardId, Epoch)> = owned.iter().map(|shard| (shard.id, shard.epoch)).collect();
    if shards.is_empty() {
        return Ok((Revision(0), OpResult::Range(RangeResult::default()), Vec::new()));
    }
    let (newest, all) = reader.serializable(&shards, &Op::Range(Range::all(Keys::From(Bytes::new()))))?;
    let floor = owned.iter().map(|shard| shard.floor).max().unwrap_or_default();
    let changes = reader.changes(&shards, &Keys::From(Bytes::new()), (floor, newest), usize::MAX / 1024, false)?;
    Ok((newest, all, changes.events))
}
