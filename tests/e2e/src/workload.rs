//! Concurrent clients that do random operations and record what they see.
//!
//! Each client is sequential and sticks to one gateway until a request ends without a clear answer;
//! then it moves on, as a new [`ClientId`]: the promise that headers never go back is one per
//! connection. Values name their client and its counter, so they are unique.

use crate::client::{Client, since};
use checkers::{Answer, ClientId, Event, Guard, Key, KeyState, Operation, Outcome, ReadMode, Revision, Value};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// One in so many requests is the last on its connection.
const REQUESTS_PER_CONNECTION: u32 = 300;
/// The longest pause between two requests, in microseconds. It keeps histories at a few hundred
/// requests per second and client, so that long runs can be checked in memory.
const THINK_MICROS_MAX: u64 = 4000;
/// The longest pause after a request without a clear answer, in milliseconds.
const BACKOFF_MILLIS_MAX: u64 = 50;
/// How far back a read of the past goes, in revisions.
const PAST_REVISIONS_MAX: u64 = 100;

/// The keys of a run: spread evenly over the first byte, so that every shard has some.
#[derive(Clone, Copy, Debug)]
pub struct Keyspace {
    /// How many.
    pub keys: u16,
}

impl Keyspace {
    /// The key of a number.
    pub fn key(self, number: u16) -> Key {
        assert!(number < self.keys, "key {number} of {}", self.keys);
        let first = 1 + u32::from(number) * 253 / u32::from(self.keys);
        let mut bytes = vec![u8::try_from(first).unwrap_or(u8::MAX)];
        bytes.extend_from_slice(format!("/{number}").as_bytes());
        Key::new(bytes)
    }

    /// A range over all keys.
    pub fn all(self, mode: ReadMode) -> Operation {
        Operation::Range { start: Key::new([1u8]), end: Key::new([0xff_u8]), mode }
    }
}

/// What all clients share.
pub struct Shared {
    /// The moment that all times count from.
    pub epoch: Instant,
    /// Where clients connect.
    pub endpoints: Vec<String>,
    /// The keys.
    pub keyspace: Keyspace,
    answered: AtomicU64,
    clients: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    /// How many requests were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// An id that no client has had.
    pub fn new_client_id(&self) -> ClientId {
        ClientId(self.clients.fetch_add(1, Ordering::Relaxed))
    }
}

/// Running clients.
pub struct Workload {
    /// What they share.
    pub shared: Arc<Shared>,
    tasks: JoinSet<Vec<Event>>,
}

impl Workload {
    /// Starts `clients` of them; the seed fixes what they choose.
    pub fn start(endpoints: Vec<String>, keyspace: Keyspace, clients: u64, seed: u64) -> Workload {
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            endpoints,
            keyspace,
            answered: AtomicU64::new(0),
            clients: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            tasks.spawn(Runner::new(shared.clone(), number, seed).run());
        }
        Workload { shared, tasks }
    }

    /// Lets every client finish its request, and collects what all recorded.
    pub async fn stop(mut self) -> Vec<Event> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut events = Vec::new();
        while let Some(recorded) = self.tasks.join_next().await {
            events.extend(recorded.expect("a client's task does not panic"));
        }
        events.sort_by_key(|event| event.invoked);
        events
    }
}

/// One client.
struct Runner {
    shared: Arc<Shared>,
    number: u64,
    random: StdRng,
    written: u64,
    /// The newest `mod_revision` that it knows of each key, and the newest header.
    known: BTreeMap<Key, Revision>,
    newest: Revision,
    events: Vec<Event>,
}

impl Runner {
    fn new(shared: Arc<Shared>, number: u64, seed: u64) -> Runner {
        // Distinct streams for distinct clients of one seed.
        let random = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number));
        let (known, newest) = (BTreeMap::new(), Revision(1));
        Runner { shared, number, random, written: 0, known, newest, events: Vec::new() }
    }

    async fn run(mut self) -> Vec<Event> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let endpoint = self.random.random_range(0..self.shared.endpoints.len());
            let client = Client::new(&self.shared.endpoints[endpoint]);
            self.run_connection(client).await;
        }
        self.events
    }

    async fn run_connection(&mut self, mut client: Client) {
        let id = self.shared.new_client_id();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let operation = self.choose();
            let invoked = since(self.shared.epoch);
            let outcome = client.execute(&operation, self.shared.epoch).await;
            let lost = outcome == Outcome::Unknown;
            if let Outcome::Answered { header, answer, .. } = &outcome {
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
                self.learn(&operation, *header, answer);
            }
            self.events.push(Event { client: id, invoked, operation, outcome });
            if lost {
                let backoff = Duration::from_millis(self.random.random_range(1..=BACKOFF_MILLIS_MAX));
                tokio::time::sleep(backoff).await;
                return;
            }
            let think = Duration::from_micros(self.random.random_range(0..=THINK_MICROS_MAX));
            tokio::time::sleep(think).await;
            if self.random.random_ratio(1, REQUESTS_PER_CONNECTION) {
                return;
            }
        }
    }

    fn key(&mut self) -> Key {
        let number = self.random.random_range(0..self.shared.keyspace.keys);
        self.shared.keyspace.key(number)
    }

    fn value(&mut self) -> Value {
        self.written += 1;
        Value::new(format!("c{}-{}", self.number, self.written))
    }

    fn choose(&mut self) -> Operation {
        let (key, value) = (self.key(), self.value());
        match self.random.random_range(0..100) {
            0..28 => Operation::Put { key, value },
            28..34 => Operation::Delete { key },
            34..36 => {
                let other = self.key();
                let (start, end) = if key <= other { (key, other) } else { (other, key) };
                Operation::DeleteRange { start, end }
            }
            36..55 => Operation::Get { key, mode: ReadMode::Linearizable },
            55..60 => Operation::Get { key, mode: ReadMode::Serializable },
            60..76 => {
                let mod_revision = self.known.get(&key).copied().unwrap_or_default();
                Operation::Txn { guards: vec![Guard { key: key.clone(), mod_revision }], puts: vec![(key, value)] }
            }
            76..84 => self.multi_put(),
            84..94 => self.shared.keyspace.all(ReadMode::Linearizable),
            94..97 => {
                let other = self.key();
                let (start, end) = if key <= other { (key, other) } else { (other, key) };
                Operation::Range { start, end, mode: ReadMode::Linearizable }
            }
            _ => {
                let back = self.random.random_range(0..PAST_REVISIONS_MAX).min(self.newest.0 - 1);
                self.shared.keyspace.all(ReadMode::At(Revision(self.newest.0 - back)))
            }
        }
    }

    /// A transaction over several keys, half of the time guarded by yet another one.
    fn multi_put(&mut self) -> Operation {
        let mut puts = BTreeMap::new();
        for _ in 0..self.random.random_range(2..=4) {
            let (key, value) = (self.key(), self.value());
            puts.insert(key, value);
        }
        let guard = self.key();
        let mut guards = Vec::new();
        if self.random.random_bool(0.5) {
            let mod_revision = self.known.get(&guard).copied().unwrap_or_default();
            guards.push(Guard { key: guard, mod_revision });
        }
        Operation::Txn { guards, puts: puts.into_iter().collect() }
    }

    fn learn(&mut self, operation: &Operation, header: Revision, answer: &Answer) {
        self.newest = self.newest.max(header);
        let written = |state: &KeyState| state.seen.as_ref().map_or(Revision(0), |seen| seen.mod_revision);
        match answer {
            Answer::Put | Answer::TxnDone => {
                let keys = operation.puts().into_iter().map(|(key, _)| (key.clone(), header));
                self.known.extend(keys);
            }
            Answer::Delete { .. } => {
                if let Operation::Delete { key } = operation {
                    self.known.remove(key);
                }
            }
            Answer::DeletedRange { previous } => {
                self.known.retain(|key, _| previous.iter().all(|state| state.key != *key));
            }
            Answer::Read { kvs } | Answer::TxnRefused { kvs } => {
                self.known.extend(kvs.iter().map(|state| (state.key.clone(), written(state))));
            }
        }
    }
}

/// A seed from the operating system, for runs that name none.
pub fn fresh_seed() -> u64 {
    rand::rng().next_u64() >> 32
}
