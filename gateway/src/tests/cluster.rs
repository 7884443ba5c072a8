//! A random fake cluster: replies are lost, late and duplicated, nodes fail, leaders change, shards
//! move and sessions are evicted. Whatever happens, no command is carried out twice, an answer
//! `Ok` means once, and a definite failure means never.

use super::*;
use proptest::prelude::*;
use shardkv::request::OpError;
use std::collections::{BTreeMap, BTreeSet};

/// What the groups of the fake cluster have in common: sessions travel with their shards, so one
/// table serves for all.
#[derive(Default)]
struct Store {
    revision: u64,
    /// Outcomes by (session, sequence).
    outcomes: BTreeMap<(u128, u64), u64>,
    sessions: BTreeSet<u128>,
    evicted: u64,
    low_water: BTreeMap<u128, u64>,
    /// How often each value was put.
    executed: BTreeMap<Bytes, u32>,
}

impl Store {
    fn write(&mut self, session: &SessionTag, op: &Op) -> ReplyBody {
        self.revision += 1;
        let mark = self.low_water.entry(session.session).or_default();
        *mark = (*mark).max(session.low_water);
        let is_unknown = !self.sessions.contains(&session.session);
        if session.sequence < *mark || (is_unknown && session.born.0 <= self.evicted) {
            return ReplyBody::Failed(OpError::SessionExpired);
        }
        let key = (session.session, session.sequence);
        let revision = match self.outcomes.get(&key) {
            Some(revision) => *revision,
            None => {
                let Op::Put(put) = op else { panic!("only puts are sent: {op:?}") };
                *self.executed.entry(put.value.clone()).or_default() += 1;
                self.sessions.insert(session.session);
                self.outcomes.insert(key, self.revision);
                self.revision
            }
        };
        ReplyBody::Done { revision: Revision(revision), result: put_done() }
    }

    fn evict_all(&mut self) {
        self.evicted = self.revision;
        self.sessions.clear();
        self.outcomes.clear();
        self.low_water.clear();
    }
}

/// Draws from the bytes that proptest shrinks.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0.next().unwrap_or(0) % sides
    }
}

struct Cluster {
    world: World,
    store: Store,
    dice: Dice,
    map: ShardMap,
    leaders: BTreeMap<GroupId, NodeId>,
    /// Requests on their way, and replies on their way back.
    requests: Vec<(NodeId, Request)>,
    replies: Vec<(NodeId, Reply)>,
    results: BTreeMap<u64, Result<Answer, CallError>>,
    calls: u64,
}

impl Cluster {
    fn new(dice: Vec<u8>) -> Cluster {
        let map = map(1, &[("", 2), ("g", 3)]);
        let leaders = [1, 2, 3].map(|group| (GroupId(group), NodeId(group))).into();
        let config = GatewayConfig { session_window: 4, ..GatewayConfig::default() };
        Cluster {
            world: World::fresh(config),
            store: Store { revision: 1, ..Store::default() },
            dice: Dice(dice.into_iter()),
            map,
            leaders,
            requests: Vec::new(),
            replies: Vec::new(),
            results: BTreeMap::new(),
            calls: 0,
        }
    }

    fn run(&mut self) {
        while self.dice.0.len() > 0 {
            self.turn();
            self.collect();
        }
        // All is well from here on: every call must end, by its deadline at the latest.
        for _ in 0..10_000 {
            if self.results.len() as u64 == self.calls {
                return;
            }
            self.world.pass(1_000);
            self.collect();
            while !self.requests.is_empty() {
                self.serve(0);
            }
            while !self.replies.is_empty() {
                self.deliver(0, false);
            }
            self.collect();
        }
        panic!("{} of {} calls are not answered", self.calls - self.results.len() as u64, self.calls);
    }

    fn turn(&mut self) {
        match self.dice.roll(16) {
            0..=3 => self.call(),
            4..=6 if !self.requests.is_empty() => {
                let index = usize::from(self.dice.roll(255)) % self.requests.len();
                self.serve(index);
            }
            7..=9 if !self.replies.is_empty() => {
                let index = usize::from(self.dice.roll(255)) % self.replies.len();
                let twice = self.dice.roll(4) == 0;
                self.deliver(index, twice);
            }
            10 if !self.replies.is_empty() => {
                self.replies.remove(0);
            }
            11 => {
                let micros = [500, 5_000, 200_000, 1_000_000][usize::from(self.dice.roll(4))];
                self.world.pass(micros);
            }
            12 => {
                let node = NodeId(u64::from(self.dice.roll(3)) + 1);
                self.world.step(Input::NodeDown { node });
            }
            13 => {
                let group = GroupId(u64::from(self.dice.roll(3)) + 1);
                self.leaders.insert(group, NodeId(u64::from(self.dice.roll(3)) + 1));
            }
            14 => {
                let group = |roll: u8| u64::from(roll) + 2;
                let (a, b) = (group(self.dice.roll(2)), group(self.dice.roll(2)));
                let mut next = map(self.map.version + 1, &[("", a), ("g", b)]);
                next.groups = map(1, &[("", 2), ("g", 3)]).groups;
                self.map = next;
            }
            15 if self.dice.roll(4) == 0 => self.store.evict_all(),
            _ => {}
        }
    }

    fn call(&mut self) {
        self.calls += 1;
        let key = if self.dice.roll(2) == 0 { "a" } else { "h" };
        let Op::Put(mut op) = put(key) else { panic!("a put is a put") };
        op.value = Bytes::copy_from_slice(&self.calls.to_be_bytes());
        self.world.op(self.calls, Op::Put(op));
    }

    fn collect(&mut self) {
        self.requests.append(&mut self.world.sent);
        for (token, result) in self.world.answers() {
            assert!(self.results.insert(token, result).is_none(), "call {token} was answered twice");
        }
    }

    fn serve(&mut self, index: usize) {
        let (node, request) = self.requests.remove(index);
        let leader = self.leaders[&request.group];
        let body = if node != leader {
            ReplyBody::NotLeader { hint: (self.dice.roll(2) == 0).then_some(leader) }
        } else {
            match &request.body {
                RequestBody::CurrentRevision => ReplyBody::Current { revision: Revision(self.store.revision) },
                RequestBody::Map { have_version } => {
                    let is_newer = self.map.version > *have_version;
                    ReplyBody::Map(is_newer.then(|| Box::new(self.map.clone())))
                }
                RequestBody::Write { shard, epoch, session, op, .. } => {
                    let owned = self
                        .map
                        .shards
                        .iter()
                        .any(|info| (info.id, info.group, info.epoch) == (*shard, request.group, *epoch));
                    match (owned, self.dice.roll(8)) {
                        (false, _) => ReplyBody::WrongShard,
                        // Carried out, but leadership went before the answer.
                        (true, 1) => {
                            self.store.write(session, op);
                            ReplyBody::Lost
                        }
                        (true, 2) => ReplyBody::Lost,
                        (true, 3) => ReplyBody::Failed(OpError::Overloaded),
                        (true, _) => self.store.write(session, op),
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        };
        self.replies.push((node, Reply { id: request.id, known: Revision(self.store.revision), map_version: 0, body }));
    }

    fn deliver(&mut self, index: usize, twice: bool) {
        let (from, reply) = self.replies.remove(index);
        if twice {
            self.replies.push((from, reply.clone()));
        }
        self.world.step(Input::Reply { from, reply });
        self.collect();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn commands_are_carried_out_exactly_once_or_reported_honestly(dice in prop::collection::vec(any::<u8>(), 0..1500)) {
        let mut cluster = Cluster::new(dice);
        cluster.run();
        for (token, result) in &cluster.results {
            let value = Bytes::copy_from_slice(&token.to_be_bytes());
            let executed = cluster.store.executed.get(&value).copied().unwrap_or(0);
            match result {
                Ok(_) => prop_assert_eq!(executed, 1, "call {} was answered as done", token),
                Err(CallError::Unavailable { maybe_done: true }) => prop_assert!(executed <= 1, "call {} ran {} times", token, executed),
                Err(error) => prop_assert_eq!(executed, 0, "call {} failed with {}", token, error),
            }
        }
        cluster.world.assert_idle();
    }
}
