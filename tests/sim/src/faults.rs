//! What strikes: one fault after another, each with its own duration.

use crate::mutant::Mutant;
use crate::network::Endpoint;
use crate::plan::Fault;
use crate::world::{Event, NodeEvent, Phase, World};
use node::core::Input;
use paxos::NodeId;

impl World {
    /// The next fault, and when the one after it comes.
    pub(crate) fn strike(&mut self) {
        if self.phase != Phase::Faults {
            return;
        }
        if let Some(fault) = self.random.pick(&self.plan.faults).copied() {
            self.fault(fault);
        }
        let next = self.random.skewed(50_000, self.plan.calm_micros_max);
        self.schedule(next, Event::Strike);
    }

    fn any_node(&mut self) -> NodeId {
        // The leader of something is the more interesting victim.
        let leads = |node: &NodeId| {
            let process = self.sites.get(node).and_then(|site| site.process.as_ref());
            process.is_some_and(|process| {
                self.plan
                    .groups
                    .iter()
                    .any(|(group, _)| process.core.replica(*group).is_some_and(|r| r.leading().is_some()))
            })
        };
        let leaders: Vec<NodeId> = self.plan.nodes.iter().copied().filter(leads).collect();
        let leader = if self.random.chance(500) { self.random.pick(&leaders).copied() } else { None };
        leader.or_else(|| self.random.pick(&self.plan.nodes).copied()).unwrap_or_default()
    }

    fn fault(&mut self, fault: Fault) {
        let node = self.any_node();
        self.trace.line(self.now, format_args!("fault {fault:?} {node}"));
        let short = self.random.skewed(5_000, 4_000_000);
        match fault {
            Fault::Partition => self.partition(short),
            Fault::OneWayCut => self.one_way_cut(node, short),
            Fault::Pause => self.pause(node, short),
            // Now and then it is told before, as by an operator's SIGTERM.
            Fault::ProcessCrash if short.is_multiple_of(4) => self.retire(node, short),
            Fault::ProcessCrash => self.kill_process(node, short),
            Fault::PowerCut => match self.sites.get_mut(&node).filter(|site| site.process.is_some()) {
                // The worst moment is the middle of a group commit.
                Some(site) if self.random.chance(500) => site.doomed = Some(short),
                _ => self.cut_power(node, short),
            },
            Fault::PowerCutEverywhere => {
                for node in self.plan.nodes.clone() {
                    let down = short + self.random.below(1_000_000);
                    self.cut_power(node, down);
                }
            }
            Fault::LongOutage => {
                let down = self.random.between(5_000_000, 15_000_000);
                self.coverage.hit("crash.long");
                self.cut_power(node, down);
            }
            Fault::GatewayCrash => {
                let gateway = usize::try_from(self.random.below(self.gateways.len() as u64)).unwrap_or_default();
                if self.gateways[gateway].local.is_none() {
                    self.stop_gateway(gateway);
                    self.schedule(short / 4, Event::GatewayStart(gateway));
                }
            }
            Fault::DiskFull => {
                let Some(site) = self.sites.get(&node) else { return };
                let room = if self.random.chance(500) { 0 } else { self.random.below(2 * self.plan.segment_bytes) };
                self.set_budget(node, Some(site.disk.used_bytes() + room));
                let full = self.random.between(1_000_000, 8_000_000);
                self.schedule(full, Event::SpaceBack(node));
            }
            Fault::SyncError => {
                if let Some(site) = self.sites.get(&node) {
                    site.disk.fail_syncs(1);
                }
            }
            Fault::SlowDisk => {
                let until = self.now + short;
                if let Some(site) = self.sites.get_mut(&node) {
                    site.slow_until = until;
                    self.coverage.hit("disk.slow");
                }
            }
            Fault::Rot => self.crash_and_rot(short),
        }
    }

    /// A process hands over what it leads, and ends whether or not it could.
    fn retire(&mut self, node: NodeId, micros: u64) {
        if self.sites.get(&node).is_some_and(|site| site.process.is_some()) {
            self.coverage.hit("retire");
            self.deliver(node, Input::Retire);
            self.later(node, micros.min(1_000_000), NodeEvent::Stop(micros));
        }
    }

    fn partition(&mut self, micros: u64) {
        let mut sides = Vec::new();
        for node in self.plan.nodes.clone() {
            sides.push((Endpoint::Node(node), self.random.chance(500)));
        }
        for (index, gateway) in self.gateways.iter().enumerate() {
            // A gateway inside a node is on its side.
            let side = gateway.local.and_then(|node| sides.iter().find(|(end, _)| *end == Endpoint::Node(node)));
            let side = side.map(|(_, side)| *side).unwrap_or(index % 2 == 0);
            sides.push((Endpoint::Gateway(index), side));
        }
        let mut links = Vec::new();
        for (from, one) in &sides {
            for (to, other) in &sides {
                if one != other {
                    links.push((*from, *to));
                }
            }
        }
        if !links.is_empty() {
            self.coverage.hit("net.cut");
            self.cut(links, micros);
        }
    }

    fn one_way_cut(&mut self, node: NodeId, micros: u64) {
        let from = Endpoint::Node(node);
        let both = self.random.chance(300);
        let mut links = Vec::new();
        for other in self.plan.nodes.clone() {
            if other == node || self.random.chance(500) {
                continue;
            }
            links.push((from, Endpoint::Node(other)));
            if both {
                links.push((Endpoint::Node(other), from));
            }
        }
        if !links.is_empty() {
            self.coverage.hit(if both { "net.cut" } else { "net.one_way_cut" });
            self.cut(links, micros);
        }
    }

    fn cut(&mut self, links: Vec<(Endpoint, Endpoint)>, micros: u64) {
        self.trace.line(self.now, format_args!("cut {links:?} for {micros} µs"));
        links.iter().for_each(|(from, to)| self.network.cut(*from, *to));
        self.schedule(micros, Event::Mend(links));
    }

    fn pause(&mut self, node: NodeId, micros: u64) {
        let until = self.now + micros;
        let stops = self.plan.options.mutant == Some(Mutant::ClockStopsInPauses);
        let Some(site) = self.sites.get_mut(&node).filter(|site| site.paused_until <= self.now) else { return };
        site.paused_until = until;
        if stops {
            site.clock.stop_for(micros);
        }
        self.coverage.hit("pause");
    }

    fn crash_and_rot(&mut self, down: u64) {
        let node = self.plan.rotting;
        if !self.may_rot(node) {
            return;
        }
        let live = self.sites.get(&node).and_then(|site| Some(site.process.as_ref()?.log.live_segments()));
        let Some(live) = live else { return };
        self.cut_power(node, down);
        for _ in 0..self.random.between(1, 3) {
            self.rot(node, live.clone());
        }
    }
}
