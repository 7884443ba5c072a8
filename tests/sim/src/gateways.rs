//! Gateways: the gateway's own machine, fed with calls, replies and time.

use crate::clock::Clock;
use crate::mutant::Mutant;
use crate::network::Endpoint;
use crate::random::Random;
use crate::world::{Event, World};
use bytes::Bytes;
use gateway::{Gateway, GatewayConfig, Input, Outputs};
use paxos::{NodeId, Time};
use shardkv::ops::OpResult;
use shardkv::request::{OpError, Reply, ReplyBody, Request, RequestBody};
use std::collections::BTreeMap;

/// A gateway.
pub struct SimGateway {
    /// The node that it runs inside, if any.
    pub local: Option<NodeId>,
    /// The nodes that it was started with.
    pub named: Vec<NodeId>,
    /// Counts its starts.
    pub life: u64,
    /// The machine, while it runs.
    pub machine: Option<Gateway>,
    /// Its clock (its node's, if it has one).
    pub clock: Clock,
    /// When it wants to be woken, by the true time.
    pub wakes_at: Option<u64>,
    /// Which client waits under which token.
    pub calls: BTreeMap<u64, usize>,
    /// Retries counted so far, of earlier lives.
    pub retries: u64,
}

impl SimGateway {
    /// A gateway that does not run yet.
    pub fn new(local: Option<NodeId>, random: &mut Random) -> SimGateway {
        let clock = Clock::new(random);
        let (named, calls) = (Vec::new(), BTreeMap::new());
        SimGateway { local, named, life: 0, machine: None, clock, wakes_at: None, calls, retries: 0 }
    }
}

impl World {
    /// A gateway starts, unless it runs or its node does not.
    pub(crate) fn gateway_starts(&mut self, index: usize) {
        let local = self.gateways[index].local;
        let node_runs = |node: NodeId| self.sites.get(&node).is_some_and(|site| site.process.is_some());
        if self.gateways[index].machine.is_some() || local.is_some_and(|node| !node_runs(node)) {
            return;
        }
        let config = GatewayConfig {
            seed: [self.random.bits(), self.random.bits()],
            local,
            nodes: self.present_nodes(),
            session_window: GatewayConfig::default()
                .session_window
                .min(self.plan.sessions.outcomes_per_session_max as u64 / 2),
            ..GatewayConfig::default()
        };
        let gateway = &mut self.gateways[index];
        gateway.named.clone_from(&config.nodes);
        gateway.life += 1;
        gateway.machine = Some(Gateway::new(config));
        gateway.wakes_at = None;
        self.trace.line(self.now, format_args!("gateway {index}/{} starts", self.gateways[index].life));
        self.gateway_step(index, Input::Tick);
    }

    /// A gateway dies; its clients never hear of their calls.
    pub(crate) fn stop_gateway(&mut self, index: usize) {
        let gateway = &mut self.gateways[index];
        let Some(machine) = gateway.machine.take() else { return };
        gateway.retries += machine.status().retries;
        let calls = std::mem::take(&mut gateway.calls);
        self.coverage.hit("gateway.crash");
        self.trace.line(self.now, format_args!("gateway {index} dies with {} calls", calls.len()));
        let asking: Vec<usize> = calls.into_values().collect();
        for client in 0..self.clients.len() {
            if asking.contains(&client) {
                self.call_lost(client);
            } else if self.clients[client].gateway == index {
                // Its connection ends, too, and with it what holds within one.
                self.clients[client].id = self.new_client_id();
            }
        }
    }

    /// A node's process starts, and what runs inside it.
    pub(crate) fn start_local_gateways(&mut self, node: NodeId) {
        for index in 0..self.gateways.len() {
            if self.gateways[index].local == Some(node) {
                self.gateway_starts(index);
            }
        }
    }

    /// A node's process has died, and what ran inside it.
    pub(crate) fn stop_local_gateways(&mut self, node: NodeId) {
        for index in 0..self.gateways.len() {
            if self.gateways[index].local == Some(node) {
                self.stop_gateway(index);
            }
        }
    }

    /// A gateway's machine takes an input, and what it wants is done.
    pub(crate) fn gateway_step(&mut self, index: usize, input: Input) {
        let gateway = &mut self.gateways[index];
        let now = gateway.clock.read(self.now);
        let Some(machine) = gateway.machine.as_mut() else { return };
        let Outputs { send, answers, wake_at } = machine.step(now, input);
        for (to, request) in send {
            self.ask(index, to, request);
        }
        for (token, result) in answers {
            if let Some(client) = self.gateways[index].calls.remove(&token) {
                self.answered(client, result);
            }
        }
        self.arm(index, wake_at);
    }

    fn arm(&mut self, index: usize, wake_at: Option<Time>) {
        let Some(wake_at) = wake_at else { return };
        let gateway = &mut self.gateways[index];
        let at = gateway.clock.when(wake_at).max(self.now + 1);
        if gateway.wakes_at.is_none_or(|armed| at < armed) {
            gateway.wakes_at = Some(at);
            let (life, delay) = (gateway.life, at - self.now);
            self.schedule(delay, Event::GatewayWake(index, life));
        }
    }

    /// A gateway's timer fires.
    pub(crate) fn gateway_wakes(&mut self, index: usize, life: u64) {
        let gateway = &mut self.gateways[index];
        if gateway.life != life || gateway.wakes_at.is_none_or(|at| at > self.now) {
            return;
        }
        if let Some(wait) = self.stands_still(index) {
            self.gateways[index].wakes_at = Some(self.now + wait);
            self.schedule(wait, Event::GatewayWake(index, life));
            return;
        }
        self.gateways[index].wakes_at = None;
        self.gateway_step(index, Input::Tick);
    }

    /// How long a gateway inside a node still stands still with it.
    fn stands_still(&self, index: usize) -> Option<u64> {
        let site = self.sites.get(&self.gateways[index].local?)?;
        site.paused_until.checked_sub(self.now).filter(|wait| *wait > 0)
    }

    fn ask(&mut self, index: usize, to: NodeId, mut request: Request) {
        self.trace.line(self.now, format_args!("gateway {index} → {to} request {:x} {}", request.id, brief(&request)));
        if self.plan.options.mutant == Some(Mutant::FreshSessionPerAttempt)
            && let RequestBody::Write { session, .. } = &mut request.body
        {
            session.session = u128::from(request.id);
            (session.sequence, session.low_water) = (1, 1);
        }
        let gateway = (index, self.gateways[index].life);
        for delay in self.delays(index, to, true) {
            self.schedule(delay, Event::Request { gateway, to, request: request.clone() });
        }
    }

    fn delays(&mut self, index: usize, node: NodeId, towards_node: bool) -> Vec<u64> {
        if self.gateways[index].local == Some(node) {
            return vec![self.random.between(1, 20)];
        }
        let (gateway, node) = (Endpoint::Gateway(index), Endpoint::Node(node));
        let (from, to) = if towards_node { (gateway, node) } else { (node, gateway) };
        self.network.route(from, to, &mut self.random, &mut self.coverage)
    }

    /// A request reaches a node.
    pub(crate) fn request_arrives(&mut self, gateway: (usize, u64), to: NodeId, request: Request) {
        // The host's token leads back to the gateway and its life.
        let token = (gateway.0 as u64) << 32 | gateway.1;
        self.deliver(to, node::core::Input::Request { token, request });
    }

    /// A node answers.
    pub(crate) fn reply(&mut self, from: NodeId, token: u64, reply: Reply) {
        if token == crate::operator::TOKEN {
            return;
        }
        let gateway = (usize::try_from(token >> 32).unwrap_or_default(), token & u64::from(u32::MAX));
        self.trace.line(
            self.now,
            format_args!("{from} → gateway {} reply {:x} {}", gateway.0, reply.id, brief_reply(&reply.body)),
        );
        if matches!(reply.body, ReplyBody::Failed(OpError::SessionExpired)) {
            self.coverage.hit("session.expired");
        }
        for delay in self.delays(gateway.0, from, false) {
            self.schedule(delay, Event::Reply { gateway, from, reply: reply.clone() });
        }
    }

    /// A reply reaches a gateway.
    pub(crate) fn reply_arrives(&mut self, gateway: (usize, u64), from: NodeId, reply: Reply) {
        let (index, life) = gateway;
        if self.gateways[index].life != life || self.gateways[index].machine.is_none() {
            return;
        }
        if let Some(wait) = self.stands_still(index) {
            self.schedule(wait, Event::Reply { gateway, from, reply });
            return;
        }
        self.gateway_step(index, Input::Reply { from, reply });
    }

    /// A gateway's stream to a node broke.
    pub(crate) fn stream_broke(&mut self, index: usize, life: u64, node: NodeId) {
        if self.gateways[index].life == life {
            self.gateway_step(index, Input::NodeDown { node });
        }
    }
}

fn brief(request: &Request) -> String {
    let group = request.group;
    match &request.body {
        RequestBody::Write { session, op, .. } => {
            format!(
                "{group} write {:x}/{} puts {:?}, names {:?}",
                session.session >> 96,
                session.sequence,
                puts_of(op),
                keys_of(op)
            )
        }
        RequestBody::Read { op, mode, .. } => format!("{group} read {mode:?} {:?}", keys_of(op)),
        other => format!("{group} {other:?}"),
    }
}

fn brief_reply(body: &ReplyBody) -> String {
    match body {
        ReplyBody::Done { revision, result: OpResult::Range(range) } => {
            format!("{revision}: {} pairs", range.kvs.len())
        }
        ReplyBody::Map(Some(map)) => format!("map version {}", map.version),
        ReplyBody::KnownMap { map, hint } => format!("known map version {}, ask {hint:?}", map.version),
        ReplyBody::Done { revision, .. } => format!("done at {revision}"),
        other => format!("{other:?}"),
    }
}

fn puts_of(op: &shardkv::ops::Op) -> Vec<&Bytes> {
    let mut keys = Vec::new();
    op.for_each_put(&mut |put| keys.push(&put.key));
    keys
}

fn keys_of(op: &shardkv::ops::Op) -> Vec<&shardkv::types::Keys> {
    let mut keys = Vec::new();
    op.for_each_keys(&mut |named, _| keys.push(named));
    keys
}
