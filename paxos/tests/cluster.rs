//! Random schedules over a small cluster of replicas: loss, duplication, reordering, one-way cuts,
//! crashes that lose what was not synced. Checked throughout: agreement, durability of what was
//! decided, promises that never fall across restarts, never two holders of the lease. Members may change
//! meanwhile. In the end everything heals and must converge.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

use bytes::Bytes;
use paxos::heartbeat::{Heartbeat, Heartbeats, Timing};
use paxos::{
    Ballot, Configuration, GroupId, Input, Message, NodeId, Outputs, Record, Replica, ReplicaConfig, Slot, Time,
    recover,
};
use std::collections::BTreeMap;

const GROUP: GroupId = GroupId(7);

/// SplitMix64 (Steele, Lea, Flood 2014): enough for schedules.
struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone)]
enum Packet {
    Group(Message),
    Beat(Heartbeat),
    /// All that was applied.
    Image(Vec<Bytes>),
}

struct Node {
    replica: Replica,
    beats: Heartbeats,
    log: Vec<Record>,
    /// Records of the disk that are durable, and where the running replica's count began.
    synced: usize,
    base: usize,
    waiting: Vec<(u64, NodeId, Message)>,
    applied: Vec<Bytes>,
    /// An image through here was installed, durably.
    imaged: Slot,
    boot: u64,
    down_until: Time,
}

struct World {
    random: Random,
    now: Time,
    nodes: BTreeMap<NodeId, Node>,
    /// By arrival, then by the order of sending.
    net: BTreeMap<(Time, u64), (NodeId, NodeId, Packet)>,
    sent: u64,
    cut: Vec<(NodeId, NodeId)>,
    faults: bool,
    chosen: Vec<Bytes>,
    proposed: u64,
    promised: BTreeMap<NodeId, Ballot>,
    /// Nodes up to this one are the first members; whether others take their place, and the change wanted now.
    members: u64,
    changes: bool,
    wanted: Vec<NodeId>,
    changed: u32,
    images: u32,
    /// Who must not lead, and how often somebody was told so.
    barred: Option<NodeId>,
    bars: u32,
}

fn ids(count: u64) -> Vec<NodeId> {
    (1..=count).map(NodeId).collect()
}

impl World {
    fn new(seed: u64, (count, members): (u64, u64)) -> World {
        let mut world = World {
            random: Random(seed),
            now: Time(1_000_000),
            nodes: BTreeMap::new(),
            net: BTreeMap::new(),
            sent: 0,
            cut: Vec::new(),
            faults: true,
            chosen: Vec::new(),
            proposed: 0,
            promised: BTreeMap::new(),
            members,
            changes: count > members,
            wanted: Vec::new(),
            changed: 0,
            images: 0,
            barred: None,
            bars: 0,
        };
        for id in ids(count) {
            let node = boot(id, (count, members), 1, Vec::new(), (Vec::new(), Slot(0)), world.now);
            world.nodes.insert(id, node);
        }
        world
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let tr = std::env::var_os("PAXOS_TRACE").is_some();
        let said = if tr { format!("{input:?}").chars().take(300).collect::<String>() } else { String::new() };
        let k = |n: &Node| {
            (
                n.replica.acceptor().accepted(),
                n.replica.acceptor().promised(),
                n.replica.configuration().id,
                n.replica.acceptor().suspect(),
            )
        };
        let before = k(node);
        let out = node.replica.step(self.now, &node.beats, input);
        let after = k(node);
        if tr && before != after {
            let a = node.replica.acceptor();
            eprintln!(
                "{:?} {id} acc {} prom {} c{} log {:?} dec {} <- {said}",
                self.now.0,
                after.0,
                after.1,
                after.2.0,
                a.log().range(),
                a.decided()
            );
        }
        let leads = node.replica.leading().is_some();
        assert!(!leads || self.barred != Some(id), "{id} leads, and must not");
        self.perform(id, out);
    }

    fn perform(&mut self, id: NodeId, out: Outputs) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        node.beats.publish(GROUP, node.replica.status());
        node.log.extend(out.records);
        for envelope in out.send_durable {
            node.waiting.push((out.tail, envelope.to, envelope.message));
        }
        for (slot, entry) in out.decided {
            assert_eq!(slot.0 as usize, node.applied.len() + 1, "{id} skipped a slot");
            node.applied.push(entry.clone());
            self.changed += u32::from(slot.0 as usize > self.chosen.len() && entry.first() == Some(&0xff));
            let index = slot.0 as usize - 1;
            if let Some(chosen) = self.chosen.get(index) {
                assert_eq!(chosen, &entry, "{id} decides another entry at {slot}");
            } else {
                self.chosen.push(entry);
            }
        }
        for peer in out.snapshot_wanted {
            let image = self.nodes[&id].applied.clone();
            self.images += 1;
            self.send(id, peer, Packet::Image(image));
        }
        if out.untold && self.random.chance(20) {
            // The host does this when no Accept follows soon.
            self.step(id, Input::TellDecided);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let pings = if out.ping { node.beats.ping(now, None) } else { Vec::new() };
        for envelope in out.send_now {
            self.send(id, envelope.to, Packet::Group(envelope.message));
        }
        for (to, ping) in pings {
            self.send(id, to, Packet::Beat(ping));
        }
        self.flush_waiting(id);
        self.check_leases();
    }

    fn flush_waiting(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let durable = (node.synced - node.base) as u64;
        let (ready, wait): (Vec<_>, Vec<_>) = node.waiting.drain(..).partition(|(tail, ..)| *tail <= durable);
        node.waiting = wait;
        for (_, to, message) in ready {
            if let Message::Promise(promise) = &message {
                let highest = self.promised.entry(id).or_default();
                *highest = (*highest).max(promise.ballot);
            }
            self.send(id, to, Packet::Group(message));
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if self.cut.contains(&(from, to)) || (self.faults && self.random.chance(3)) {
            return;
        }
        let copies = if self.faults && self.random.chance(3) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = if self.faults && self.random.chance(5) {
                self.random.below(400_000)
            } else {
                200 + self.random.below(2_000)
            };
            self.sent += 1;
            self.net.insert((self.now.plus(delay), self.sent), (from, to, packet.clone()));
        }
    }

    fn sync(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.synced == node.log.len() {
            return;
        }
        node.synced = node.log.len();
        let record = (node.synced - node.base) as u64;
        self.flush_waiting(id);
        self.step(id, Input::Durable(record));
    }

    /// This replica must not lead from now on, and another one may again; or this one may again.
    fn bar(&mut self, id: NodeId) {
        let before = self.barred.take();
        if let Some(before) = before {
            self.step(before, Input::Bar(false));
        }
        if before != Some(id) {
            self.barred = Some(id);
            self.bars += 1;
            self.step(id, Input::Bar(true));
        }
    }

    fn crash(&mut self, id: NodeId) {
        let count = (self.nodes.len() as u64, self.members);
        let down = self.random.below(1_500_000);
        let node = self.nodes.get_mut(&id).unwrap();
        node.log.truncate(node.synced);
        // The store lost what it had not flushed; what it kept is a prefix of what was applied.
        let least = node.imaged.0;
        let kept = (least + self.random.below(node.applied.len() as u64 + 1 - least)) as usize;
        let (log, applied) = (node.log.clone(), (node.applied[..kept].to_vec(), node.imaged));
        let mut fresh = boot(id, count, node.boot + 1, log, applied, self.now.plus(down));
        fresh.down_until = self.now.plus(down);
        let promised = fresh.replica.acceptor().promised();
        assert!(promised >= self.promised.get(&id).copied().unwrap_or_default(), "{id} forgot a promise");
        self.nodes.insert(id, fresh);
        if self.barred == Some(id) {
            self.step(id, Input::Bar(true));
        }
        self.step(id, Input::Tick);
    }

    fn deliver(&mut self) {
        while let Some(first) = self.net.first_entry().filter(|first| first.key().0 <= self.now) {
            let (from, to, packet) = first.remove();
            if self.nodes[&to].down_until > self.now {
                continue;
            }
            match packet {
                Packet::Image(image) => self.install(to, image),
                Packet::Group(message) => self.step(to, Input::Message { from, message }),
                Packet::Beat(beat) => {
                    let now = self.now;
                    let pong = self.nodes.get_mut(&to).unwrap().beats.receive(now, from, beat);
                    if let Some(pong) = pong {
                        self.send(to, from, Packet::Beat(pong));
                    }
                }
            }
        }
    }

    fn install(&mut self, id: NodeId, image: Vec<Bytes>) {
        let node = self.nodes.get_mut(&id).unwrap();
        if image.len() <= node.applied.len() {
            return;
        }
        let (slot, configuration) = (Slot(image.len() as u64), newest(&image));
        (node.applied, node.imaged) = (image, slot);
        self.step(id, Input::Installed { slot, configuration });
    }

    fn check_leases(&self) {
        let holders: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.down_until <= self.now)
            .filter(|(_, node)| {
                node.replica.leading().is_some_and(|ballot| {
                    node.beats
                        .lease_until(self.now, GROUP, ballot, node.replica.replicas())
                        .is_some_and(|until| self.now < until)
                })
            })
            .map(|(id, _)| *id)
            .collect();
        assert!(holders.len() <= 1, "two leaseholders {holders:?} at {:?}", self.now);
    }

    fn run(&mut self, micros: u64) {
        let end = self.now.plus(micros);
        let mut next_tick = self.now;
        while self.now < end {
            self.now = self.now.plus(500);
            self.deliver();
            let live: Vec<NodeId> =
                self.nodes.iter().filter(|(_, node)| node.down_until <= self.now).map(|(id, _)| *id).collect();
            for id in &live {
                if self.random.chance(if self.faults { 40 } else { 100 }) {
                    self.sync(*id);
                }
                if self.nodes[id].replica.leading().is_some() && self.random.chance(20) {
                    self.proposed += 1;
                    let entry = Bytes::from(format!("{}", self.proposed));
                    self.step(*id, Input::Propose(entry));
                }
                if self.changes && self.nodes[id].replica.leading().is_some() {
                    self.change_members(*id);
                }
                if self.faults && self.random.below(10_000) < 4 {
                    self.crash(*id);
                } else if self.faults && self.random.below(10_000) < 3 {
                    let to = NodeId(1 + self.random.below(self.nodes.len() as u64));
                    if to != *id {
                        self.step(*id, Input::HandOver(to));
                    }
                } else if self.faults && self.members > 1 && self.random.below(10_000) < 3 {
                    self.bar(*id);
                }
            }
            if self.faults && self.random.below(1_000) < 2 {
                self.cut.clear();
                for from in ids(self.nodes.len() as u64) {
                    for to in ids(self.nodes.len() as u64) {
                        if from != to && self.random.chance(25) {
                            self.cut.push((from, to));
                        }
                    }
                }
            }
            if self.now >= next_tick {
                next_tick = self.now.plus(100_000);
                for id in live {
                    let now = self.now;
                    for (to, ping) in self.nodes.get_mut(&id).unwrap().beats.ping(now, None) {
                        self.send(id, to, Packet::Beat(ping));
                    }
                    self.step(id, Input::Tick);
                }
            }
        }
    }

    /// The leader's host: chooses learners, and proposes the stop-sign when they have caught up; now and then
    /// it does not wait.
    fn change_members(&mut self, leader: NodeId) {
        let present = self.nodes[&leader].replica.configuration().clone();
        let wants = self.faults && self.random.below(1_000) < 3;
        if wants && (self.wanted.is_empty() || self.wanted == present.members) {
            let size = [1, 3, 3, 3, 5][self.random.below(5) as usize];
            let mut nodes = ids(self.nodes.len() as u64);
            while nodes.len() > size {
                let out = self.random.below(nodes.len() as u64) as usize;
                nodes.remove(out);
            }
            self.wanted = nodes;
        }
        if self.wanted.is_empty() || self.wanted == present.members {
            return;
        }
        self.step(leader, Input::Learners(self.wanted.clone()));
        let replica = &self.nodes[&leader].replica;
        let (matched, length) = (replica.matched(), replica.next_slot().prev());
        let close = |node: &NodeId| matched.get(node).copied().flatten().is_some_and(|slot| slot.0 + 20 > length.0);
        let ready = self.wanted.iter().all(|node| *node == leader || close(node));
        if ready || (self.faults && self.random.below(10_000) < 3) {
            self.step(leader, Input::Seal(present.next(self.wanted.clone())));
        }
    }

    fn heal(&mut self) {
        self.faults = false;
        self.cut.clear();
        if let Some(barred) = self.barred.filter(|_| self.changes) {
            // It may be the only member by now. Elsewhere the others must do without.
            self.bar(barred);
        }
        let before = self.chosen.len();
        self.run(6_000_000);
        assert!(self.chosen.len() > before, "no progress after everything healed: {:#?}", self.standing());
        let now = self.now;
        // Proposals stop; everybody learns everything.
        self.nodes.values_mut().for_each(|node| node.down_until = now);
        self.settle(2_000_000);
        let newest = self.nodes.values().map(|node| node.replica.configuration().clone()).max_by_key(|it| it.id);
        let newest = newest.unwrap();
        for (id, node) in self.nodes.iter().filter(|(id, _)| newest.contains(**id)) {
            let acceptor = node.replica.acceptor();
            let (range, decided) = (acceptor.log().range(), acceptor.decided());
            let leader = node.replica.leader();
            assert_eq!(
                node.applied.len(),
                self.chosen.len(),
                "{id} did not catch up: log {range:?} accepted {} promised {} decided {decided}, follows {leader}; leader {:?}",
                acceptor.accepted(),
                acceptor.promised(),
                self.nodes[&leader.node].replica.matched()
            );
        }
    }

    /// For whoever reads why it failed.
    fn standing(&self) -> Vec<String> {
        let one = |(id, node): (&NodeId, &Node)| {
            let (acceptor, status) = (node.replica.acceptor(), node.replica.status());
            format!(
                "{id} in {:?}: promised {} accepted {} log {:?} decided {}; follows {} own {} happy {}; leads {:?}; {:?}",
                node.replica.configuration(),
                acceptor.promised(),
                acceptor.accepted(),
                acceptor.log().range(),
                acceptor.decided(),
                status.leader,
                status.own,
                status.happy,
                node.replica.leading(),
                node.replica.matched()
            )
        };
        self.nodes.iter().map(one).collect()
    }

    fn settle(&mut self, micros: u64) {
        let end = self.now.plus(micros);
        while self.now < end {
            self.now = self.now.plus(1_000);
            self.deliver();
            for id in ids(self.nodes.len() as u64) {
                self.sync(id);
                if self.now.0 % 100_000 < 1_000 {
                    let now = self.now;
                    for (to, ping) in self.nodes.get_mut(&id).unwrap().beats.ping(now, None) {
                        self.send(id, to, Packet::Beat(ping));
                    }
                    self.step(id, Input::Tick);
                }
            }
        }
    }
}

fn newest(applied: &[Bytes]) -> Option<Configuration> {
    applied.iter().rev().find_map(|entry| Configuration::of_stop_sign(entry))
}

fn boot(
    id: NodeId,
    (count, members): (u64, u64),
    boot: u64,
    log: Vec<Record>,
    (applied, imaged): (Vec<Bytes>, Slot),
    now: Time,
) -> Node {
    let slot = Slot(applied.len() as u64);
    let configuration = newest(&applied).unwrap_or_else(|| Configuration::first(ids(members)));
    let recovered = recover(log.iter(), slot, imaged, configuration.id).unwrap();
    let config = ReplicaConfig { me: id, group: GROUP, configuration, boot, piece_bytes_max: paxos::PIECE_BYTES_MAX };
    let replica = Replica::new(config, recovered, slot);
    let beats = Heartbeats::new(id, boot, Timing::default(), &ids(count), now);
    let synced = log.len();
    let mut node = Node {
        replica,
        beats,
        base: synced,
        synced,
        log,
        waiting: Vec::new(),
        applied,
        imaged,
        boot,
        down_until: Time(0),
    };
    node.beats.publish(GROUP, node.replica.status());
    node
}

fn play(seed: u64, count: u64, seconds: u64) -> (usize, u64) {
    let mut world = World::new(seed, (count, count));
    world.run(seconds * 1_000_000);
    world.heal();
    assert!(count == 1 || world.bars > 0 || seconds < 20, "nobody was barred");
    (world.chosen.len(), world.random.0)
}

/// The seeds to play, or those of `PAXOS_SEED`: one, or `FIRST..BEHIND`.
fn seeds(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("PAXOS_SEED") else { return range };
    let (first, behind) = text.split_once("..").unwrap_or((&text, ""));
    let first = first.parse().unwrap();
    first..behind.parse().unwrap_or(first + 1)
}

fn replayable<T>(seed: u64, play: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    std::panic::catch_unwind(play).unwrap_or_else(|panic| {
        eprintln!("replay with PAXOS_SEED={seed}");
        std::panic::resume_unwind(panic)
    })
}

#[test]
fn members_change_under_faults() {
    let (mut changed, mut images) = (0, 0);
    for seed in seeds(200..260) {
        let (more, sent) = replayable(seed, || {
            let mut world = World::new(seed, (5, 3));
            world.run(20_000_000);
            world.heal();
            (world.changed, world.images)
        });
        (changed, images) = (changed + more, images + sent);
    }
    eprintln!("{changed} changes, {images} images");
    assert!(changed > 100 && images > 0, "only {changed} changes and {images} images");
}

#[test]
fn three_replicas_agree_under_faults() {
    for seed in seeds(1..41) {
        let (chosen, _) = replayable(seed, || play(seed, 3, 20));
        assert!(chosen > 100, "seed {seed}: only {chosen} entries decided");
    }
}

#[test]
fn five_replicas_agree_under_faults() {
    for seed in 100..115 {
        play(seed, 5, 20);
    }
}

#[test]
fn one_replica_decides_alone() {
    assert!(play(1, 1, 5).0 > 100);
}

#[test]
fn a_seed_gives_one_schedule() {
    assert_eq!(play(5, 3, 5), play(5, 3, 5));
}
