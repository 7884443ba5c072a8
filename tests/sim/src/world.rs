//! The world: all machines, gateways and clients, the true time, and the queue of what is to come.
//! Events are ordered by time and, within one moment, by when they were scheduled.

use crate::clients::Client;
use crate::coverage::Coverage;
use crate::gateways::SimGateway;
use crate::invariants::Invariants;
use crate::losses::Losses;
use crate::network::{Endpoint, Network};
use crate::plan::{Fault, Plan};
use crate::process::Site;
use crate::random::Random;
use crate::spoil::Spoils;
use crate::stream::Followers;
use crate::trace::Trace;
use node::core::Input;
use node::wire::NodeMessage;
use paxos::{GroupId, NodeId};
use shardkv::request::{Reply, Request};
use std::collections::{BTreeMap, BTreeSet};

/// Nothing is simulated beyond this many events; a livelock would otherwise never end.
const EVENTS_MAX: u64 = 60_000_000;

/// Something that will happen on a node, within one life of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// The core takes its inputs and a turn.
    Turn,
    /// The heartbeat's interval has passed.
    Tick,
    /// The core wanted to be woken.
    Wake,
    /// The log's group commit ends (or is tried again on a full disk).
    WalCommit,
    /// Nothing was appended for a while.
    WalIdle,
    /// The state machines take what is queued.
    Apply,
    /// A read of ranges is executed: the one that waits at this place, or the last.
    Scan(usize),
    /// The store's flush with this number ends.
    Flushed(u64),
    /// The collector looks at the floors.
    Collect,
    /// The process ends, as it was told to, and starts again so much later.
    Stop(u64),
}

/// Something that will happen.
pub enum Event {
    /// On a node, in this life of its process.
    Node(NodeId, u64, NodeEvent),
    /// A message arrives.
    Message {
        /// From this node.
        from: NodeId,
        /// At this one.
        to: NodeId,
        /// With this content.
        message: NodeMessage,
    },
    /// A gateway's request arrives at a node.
    Request {
        /// The gateway and its life.
        gateway: (usize, u64),
        /// The node.
        to: NodeId,
        /// The request.
        request: Request,
    },
    /// A node's reply arrives at a gateway.
    Reply {
        /// The gateway and the life that asked.
        gateway: (usize, u64),
        /// The node.
        from: NodeId,
        /// The reply.
        reply: Reply,
    },
    /// A gateway notices that its stream to a node broke.
    NodeDown(usize, u64, NodeId),
    /// A gateway wanted to be woken.
    GatewayWake(usize, u64),
    /// A gateway starts.
    GatewayStart(usize),
    /// A client does the next thing.
    ClientNext(usize),
    /// A process starts.
    Restart(NodeId),
    /// A fault strikes.
    Strike,
    /// The operator does something.
    Operator,
    /// The operator does something about shards.
    Mover,
    /// A node loses its disks.
    Loss,
    /// Whoever replaces lost nodes does the next thing.
    Replace,
    /// A cut ends.
    Mend(Vec<(Endpoint, Endpoint)>),
    /// A replica's state goes wrong.
    Spoil,
    /// Followers look for changes.
    Follow,
    /// A disk has space again.
    SpaceBack(NodeId),
    /// The end of a phase.
    Phase,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Faults strike.
    Faults,
    /// Everything is mended; clients go on.
    Healed,
    /// Clients begin nothing new.
    Quiet,
    /// Every gateway reads everything once more.
    FinalReads,
    /// All is done.
    Over,
}

/// The world.
pub struct World {
    /// What the seed stands for.
    pub plan: Plan,
    /// Chance, for everything but the clients' choices.
    pub random: Random,
    /// The clients' choices.
    pub choices: Random,
    /// The true time, in microseconds.
    pub now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    /// How many events have happened.
    pub events: u64,
    /// The machines.
    pub sites: BTreeMap<NodeId, Site>,
    /// The gateways.
    pub gateways: Vec<SimGateway>,
    /// The clients.
    pub clients: Vec<Client>,
    /// Ids given to clients so far.
    pub client_ids: u64,
    /// The network.
    pub network: Network,
    /// What must always hold.
    pub invariants: Invariants,
    /// What happened.
    pub trace: Trace,
    /// What happened, counted.
    pub coverage: Coverage,
    /// What clients saw.
    pub history: checkers::History,
    /// How far the run has come.
    pub phase: Phase,
    /// When the present phase began.
    pub phase_since: u64,
    /// Gateways whose final read is still missing.
    pub unread: BTreeSet<usize>,
    /// Everything was equal when it was last looked at, at the end.
    pub converged: bool,
    /// Every group of which there ever was a replica.
    pub hosted: BTreeSet<GroupId>,
    /// Nodes that will never start again.
    pub losses: Losses,
    /// Who follows the changes.
    pub followers: Followers,
    /// Whose state went wrong.
    pub spoils: Spoils,
}

impl World {
    /// The world of a plan, in which everything is about to start.
    pub fn new(plan: Plan) -> World {
        let mut random = Random::new(plan.seed, 2);
        let choices = Random::new(plan.seed, 3);
        let sites = plan.nodes.iter().map(|node| (*node, Site::new(&mut random, node.0))).collect();
        let mut world = World {
            network: Network::new(plan.quality, plan.latency_micros),
            trace: Trace::new(plan.options.trace),
            random,
            choices,
            now: 0,
            queue: BTreeMap::new(),
            scheduled: 0,
            events: 0,
            sites,
            gateways: Vec::new(),
            clients: Vec::new(),
            client_ids: 0,
            invariants: Invariants::default(),
            coverage: Coverage::default(),
            history: checkers::History::default(),
            phase: Phase::Faults,
            phase_since: 0,
            unread: BTreeSet::new(),
            converged: false,
            hosted: plan.groups.iter().map(|(group, _)| *group).collect(),
            losses: Losses::default(),
            followers: Followers::default(),
            spoils: Spoils::new(plan.seed),
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let plan = self.plan.clone();
        self.trace.line(0, format_args!("{plan:?}"));
        for node in &plan.nodes {
            let at = self.random.below(200_000);
            self.schedule(at, Event::Restart(*node));
        }
        for local in &plan.gateways {
            let gateway = SimGateway::new(*local, &mut self.random);
            self.gateways.push(gateway);
            let at = self.random.below(300_000);
            self.schedule(at, Event::GatewayStart(self.gateways.len() - 1));
        }
        for index in 0..usize::try_from(plan.clients).unwrap_or_default() {
            let client = Client::new(self.new_client_id(), index % self.gateways.len());
            self.clients.push(client);
            let at = self.random.below(1_000_000);
            self.schedule(at, Event::ClientNext(index));
        }
        if !plan.faults.is_empty() {
            let at = self.random.between(1_000_000, 3_000_000);
            self.schedule(at, Event::Strike);
        }
        if plan.changes_micros_max.is_some() {
            self.schedule(2_000_000, Event::Operator);
        }
        if plan.moves_micros_max.is_some() {
            self.schedule(1_500_000, Event::Mover);
        }
        if plan.losses_micros_max.is_some() {
            self.schedule(4_000_000, Event::Loss);
        }
        if let Some(at) = plan.spoils_at_micros {
            self.schedule(at, Event::Spoil);
        }
        self.schedule(1_000_000, Event::Follow);
        self.schedule(plan.options.seconds * 1_000_000, Event::Phase);
    }

    /// An id that no client has had.
    pub fn new_client_id(&mut self) -> checkers::ClientId {
        self.client_ids += 1;
        checkers::ClientId(self.client_ids)
    }

    /// Has something happen after `delay` microseconds.
    pub fn schedule(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.queue.insert((self.now + delay, self.scheduled), event);
    }

    /// Runs to the end. An error says which promise was broken.
    pub fn run(&mut self) -> Result<(), String> {
        while self.phase != Phase::Over {
            let Some(((time, _), event)) = self.queue.pop_first() else {
                return Err("nothing is left to happen".to_owned());
            };
            assert!(time >= self.now, "time fell from {} to {time}", self.now);
            self.now = time;
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err(format!("no end after {EVENTS_MAX} events"));
            }
            self.happen(event)?;
        }
        self.judge()
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Node(node, life, what) => {
                let Some(site) = self.sites.get(&node).filter(|site| site.life == life) else { return Ok(()) };
                if let Some(wait) = site.paused_until.checked_sub(self.now).filter(|wait| *wait > 0) {
                    self.schedule(wait, Event::Node(node, life, what));
                    return Ok(());
                }
                self.node_event(node, what)
            }
            Event::Message { from, to, message } => {
                self.message_arrives(from, to, message);
                Ok(())
            }
            Event::Request { gateway, to, request } => {
                self.request_arrives(gateway, to, request);
                Ok(())
            }
            Event::Reply { gateway, from, reply } => {
                self.reply_arrives(gateway, from, reply);
                Ok(())
            }
            Event::NodeDown(gateway, life, node) => {
                self.stream_broke(gateway, life, node);
                Ok(())
            }
            Event::GatewayWake(gateway, life) => {
                self.gateway_wakes(gateway, life);
                Ok(())
            }
            Event::GatewayStart(gateway) => {
                self.gateway_starts(gateway);
                Ok(())
            }
            Event::ClientNext(client) => {
                self.client_next(client);
                Ok(())
            }
            Event::Restart(node) => self.start_process(node),
            Event::Strike => {
                self.strike();
                Ok(())
            }
            Event::Operator => {
                self.operator_acts();
                Ok(())
            }
            Event::Mover => {
                self.mover_acts();
                Ok(())
            }
            Event::Loss => {
                self.next_loss();
                Ok(())
            }
            Event::Replace => {
                self.replace_lost();
                Ok(())
            }
            Event::Follow => self.follow(),
            Event::Spoil => {
                self.spoil();
                Ok(())
            }
            Event::Mend(links) => {
                links.into_iter().for_each(|(from, to)| self.network.mend(from, to));
                Ok(())
            }
            Event::SpaceBack(node) => {
                self.set_budget(node, None);
                Ok(())
            }
            Event::Phase => self.phase_ends(),
        }
    }

    /// Puts an input into a node's mailbox, if a process runs there.
    pub fn deliver(&mut self, node: NodeId, input: Input) {
        let Some(process) = self.sites.get_mut(&node).and_then(|site| site.process.as_mut()) else { return };
        process.mailbox.push_back(input);
        self.wake(node);
    }

    /// Has a node take a turn soon.
    pub fn wake(&mut self, node: NodeId) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        let Some(process) = site.process.as_mut().filter(|process| !process.turning) else { return };
        process.turning = true;
        let life = site.life;
        let delay = self.random.between(2, 60);
        self.schedule(delay, Event::Node(node, life, NodeEvent::Turn));
    }

    /// Whether a fault belongs to the plan.
    pub fn may(&self, fault: Fault) -> bool {
        self.plan.faults.contains(&fault)
    }
}
