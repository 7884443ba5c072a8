//! Closed and open loops.
//!
//! In a closed loop each client begins its next operation when it has the answer to the last: it
//! finds the saturation throughput, but a slow server slows its own load, so its latencies flatter.
//! In an open loop operations begin by the clock; a latency counts from the *intended* start, so the
//! time that an operation waited for a free client counts, too ("coordinated omission").

use crate::cpu;
use crate::error::BenchError;
use crate::operation::{FILL_KEYS_PER_TXN, Keyspace, Kv, Operation, execute, put_op};
use bytes::Bytes;
use hdrhistogram::Histogram;
use proto::etcdserverpb as pb;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Latencies up to this are told apart, to three digits, in microseconds.
const LATENCY_MICROS_MAX: u64 = 60_000_000;
/// The open loop begins operations at ticks of this length; the intended start is the tick.
const PACE_TICK: Duration = Duration::from_micros(250);
/// Transactions under way at once while filling.
const FILL_CONCURRENCY: u64 = 16;
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// A flow-control window that never is the bottleneck.
const WINDOW_BYTES: u32 = 16 << 20;

/// When operations begin.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// When the last one is answered.
    Closed,
    /// By the clock, so many per second.
    Open(u64),
}

/// One measurement's parameters.
#[derive(Clone, Debug)]
pub struct Load {
    /// The servers; connections go to them in turn.
    pub endpoints: Vec<String>,
    /// The keys.
    pub keyspace: Keyspace,
    /// The work.
    pub operation: Operation,
    /// Requests under way at once.
    pub clients: usize,
    /// Connections that the clients share.
    pub connections: usize,
    /// When operations begin.
    pub pace: Pace,
    /// The time before the window.
    pub warmup: Duration,
    /// The time that is measured.
    pub window: Duration,
    /// The servers' processes.
    pub pids: Vec<u32>,
    /// For the random keys.
    pub seed: u64,
}

/// What came out.
#[derive(Debug)]
pub struct Measured {
    /// Latencies in microseconds of the operations that ended within the window.
    pub latencies: Histogram<u64>,
    /// Operations that failed in it.
    pub errors: u64,
    /// The last failure.
    pub last_error: String,
    /// Operations that the pace asked for and that never began.
    pub not_begun: usize,
    /// The window as it really was.
    pub elapsed: Duration,
    /// CPU time of the servers in the window.
    pub server_cpu: Duration,
    /// CPU time of the load generator in the window.
    pub client_cpu: Duration,
}

struct Tally {
    latencies: Histogram<u64>,
    errors: u64,
    last_error: String,
}

impl Tally {
    fn new() -> Tally {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("constant bounds are valid");
        Tally { latencies, errors: 0, last_error: String::new() }
    }

    fn count(&mut self, begun: Instant, result: Result<(), tonic::Status>) {
        match result {
            Ok(()) => {
                let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(LATENCY_MICROS_MAX);
                self.latencies.saturating_record(micros.max(1));
            }
            Err(status) => {
                self.errors += 1;
                self.last_error = status.to_string();
            }
        }
    }
}

/// Where clients get their starts from.
type Starts = Rc<Mutex<mpsc::Receiver<Instant>>>;

/// Runs a load and measures its window. Needs a `LocalSet` on a single-threaded runtime.
pub async fn run(load: &Load) -> Result<Measured, BenchError> {
    let connections = connect(&load.endpoints, load.connections)?;
    let tally = Rc::new(RefCell::new(Tally::new()));
    let starts = match load.pace {
        Pace::Closed => None,
        Pace::Open(rate) => Some(Rc::new(Mutex::new(pace(rate, load.warmup + load.window)))),
    };
    let mut clients = JoinSet::new();
    for number in 0..load.clients {
        let mine = share(number, load.clients, &connections);
        // Distinct streams of keys for distinct clients of one seed.
        let random = StdRng::seed_from_u64(load.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let (operation, keyspace) = (load.operation, load.keyspace);
        clients.spawn_local(client(operation, keyspace, mine, random, tally.clone(), starts.clone()));
    }
    tokio::time::sleep(load.warmup).await;
    let own = [std::process::id()];
    *tally.borrow_mut() = Tally::new();
    let (begun, servers, ours) = (Instant::now(), cpu::of_processes(&load.pids)?, cpu::of_processes(&own)?);
    tokio::time::sleep(load.window).await;
    let elapsed = begun.elapsed();
    let tally = tally.replace(Tally::new());
    let server_cpu = cpu::of_processes(&load.pids)?.saturating_sub(servers);
    let client_cpu = cpu::of_processes(&own)?.saturating_sub(ours);
    clients.abort_all();
    while clients.join_next().await.is_some() {}
    let not_begun = match starts {
        None => 0,
        Some(starts) => starts.lock().await.len(),
    };
    let Tally { latencies, errors, last_error } = tally;
    if latencies.is_empty() {
        return Err(BenchError::NothingDone { errors, last: last_error });
    }
    Ok(Measured { latencies, errors, last_error, not_begun, elapsed, server_cpu, client_cpu })
}

async fn client(
    operation: Operation,
    keyspace: Keyspace,
    mut connections: Vec<Kv>,
    mut random: StdRng,
    tally: Rc<RefCell<Tally>>,
    starts: Option<Starts>,
) {
    for turn in (0..connections.len()).cycle() {
        let begun = match &starts {
            None => Instant::now(),
            Some(starts) => match starts.lock().await.recv().await {
                Some(intended) => intended,
                None => return,
            },
        };
        let result = execute(operation, &keyspace, &mut connections[turn], &mut random).await;
        tally.borrow_mut().count(begun, result);
    }
}

/// The connections that a client uses in turn: one, or, where there are fewer clients than connections,
/// its share of all. So a lone client asks every server equally often, and what it measures does not hang
/// on whether the first one leads.
fn share(number: usize, clients: usize, connections: &[Channel]) -> Vec<Kv> {
    let first = number % connections.len();
    connections[first..].iter().step_by(clients).cloned().map(kv).collect()
}

/// Intended starts at `rate` per second, from a thread of its own: the runtime's timer is too coarse
/// (1 ms). The channel holds all starts of the run, so the pace never waits for anybody.
fn pace(rate: u64, duration: Duration) -> mpsc::Receiver<Instant> {
    let total = usize::try_from(rate.saturating_mul(duration.as_millis() as u64) / 1000).unwrap_or(usize::MAX).max(1);
    let (sender, receiver) = mpsc::channel(total);
    std::thread::spawn(move || {
        let begun = Instant::now();
        let mut sent = 0;
        let mut tick = begun;
        while sent < total {
            tick += PACE_TICK;
            std::thread::sleep(tick.saturating_duration_since(Instant::now()));
            let due = ((tick - begun).as_secs_f64() * rate as f64) as usize;
            while sent < due.min(total) {
                if sender.try_send(tick).is_err() {
                    // The measurement is over.
                    return;
                }
                sent += 1;
            }
        }
    });
    receiver
}

/// A client of the key-value service, without a limit on the size of answers.
fn kv(channel: Channel) -> Kv {
    Kv::new(channel).max_decoding_message_size(usize::MAX)
}

fn connect(endpoints: &[String], connections: usize) -> Result<Vec<Channel>, BenchError> {
    let one = |endpoint: &String| {
        let parsed = Endpoint::from_shared(endpoint.clone());
        let parsed = parsed.map_err(|source| BenchError::Endpoint { endpoint: endpoint.clone(), source })?;
        let windows = parsed.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        Ok(windows.tcp_nodelay(true).connect_lazy())
    };
    endpoints.iter().cycle().take(connections).map(one).collect()
}

/// Waits until each endpoint answers a linearizable read.
pub async fn wait(endpoints: &[String], deadline: Instant) -> Result<(), BenchError> {
    for endpoint in endpoints {
        let channels = connect(std::slice::from_ref(endpoint), 1)?;
        for channel in channels {
            let mut kv = kv(channel);
            let probe = pb::RangeRequest { key: Bytes::from_static(b"bench"), ..Default::default() };
            while let Err(status) = kv.range(probe.clone()).await {
                if Instant::now() >= deadline {
                    return Err(BenchError::NotReady { endpoint: endpoint.clone(), last: status.to_string() });
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
    }
    Ok(())
}

/// Writes every key once.
pub async fn fill(endpoints: &[String], keyspace: &Keyspace) -> Result<(), BenchError> {
    let connections = connect(endpoints, endpoints.len())?;
    let mut tasks = JoinSet::new();
    for number in 0..FILL_CONCURRENCY {
        let mut kv = kv(connections[number as usize % connections.len()].clone());
        let keyspace = *keyspace;
        tasks.spawn_local(async move {
            let mut random = StdRng::seed_from_u64(number);
            let mut first = number * FILL_KEYS_PER_TXN;
            while first < keyspace.keys {
                let put = |number| {
                    let (key, value) = (keyspace.key(number), keyspace.value(&mut random));
                    put_op(pb::PutRequest { key, value, ..Default::default() })
                };
                let success = (first..(first + FILL_KEYS_PER_TXN).min(keyspace.keys)).map(put).collect();
                kv.txn(pb::TxnRequest { success, ..Default::default() }).await?;
                first += FILL_CONCURRENCY * FILL_KEYS_PER_TXN;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a task of the filling does not panic").map_err(BenchError::Fill)?;
    }
    Ok(())
}
