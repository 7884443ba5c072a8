//! Faults under load, again and again; then the checkers judge all that clients saw.

use crate::HarnessError;
use crate::client::{Client, since};
use crate::cluster::{Cluster, Number};
use crate::observe;
use crate::system::{Layout, Role, System};
use crate::workload::{Keyspace, Shared, Workload};
use checkers::{ChangeLog, Event, History, Operation, Outcome, ReadMode, Report, Revision, Value};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Within this time some request has to be answered, whenever a majority runs.
const PROGRESS_LIMIT: Duration = Duration::from_secs(30);
const PROGRESS_POLL: Duration = Duration::from_millis(20);
/// How many past revisions are read at the end.
const FINAL_PAST_READS: u64 = 50;
/// Connections that read acknowledged writes back.
const READ_BACK_CLIENTS: usize = 16;
/// How often the final requests are tried.
const FINAL_ATTEMPTS: usize = 20;

/// What is done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9 of a random node that holds data.
    KillNode,
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of a gateway.
    KillGateway,
    /// kill -9 of everything at once.
    KillAll,
    /// A node is frozen for a while.
    Pause,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is tested.
    pub system: System,
    /// Its processes.
    pub layout: Layout,
    /// How many faults.
    pub rounds: u32,
    /// How long each round lasts, about.
    pub round: Duration,
    /// How many clients.
    pub clients: u64,
    /// How many keys.
    pub keys: u16,
    /// How many watches over everything run along.
    pub watches: usize,
    /// Whether the store is asked for its log of changes at the end (by a watch from the past).
    pub log: bool,
    /// What all choices are drawn from.
    pub seed: u64,
    /// Where data and histories go.
    pub directory: PathBuf,
}

/// What a run did.
#[derive(Debug)]
pub struct Summary {
    /// The judgement; without violations.
    pub report: Report,
    /// How often each fault was done.
    pub faults: BTreeMap<Fault, u32>,
    /// How many changes the store's log has.
    pub changes: usize,
    /// How long it took, and how long of it was the judging.
    pub elapsed: Duration,
    /// The part that the checkers took.
    pub judging: Duration,
}

type Watches = Vec<JoinHandle<Result<checkers::WatchLog, HarnessError>>>;

/// Runs the rounds, heals, collects everything and judges it.
pub async fn run(config: &Config) -> Result<Summary, HarnessError> {
    let started = Instant::now();
    let (history, faults) = record_with_faults(config).await?;
    let judging = Instant::now();
    let report = checkers::check(&history);
    let judging = judging.elapsed();
    if !report.is_ok() {
        let path = save(&history, config)?;
        return Err(HarnessError::Violations { report: report.to_string(), history: path, command: config.command() });
    }
    let changes = history.log.map_or(0, |log| log.changes.len());
    Ok(Summary { report, faults, changes, elapsed: started.elapsed(), judging })
}

/// Like [`run`], without the judging.
pub async fn record(config: &Config) -> Result<History, HarnessError> {
    Ok(record_with_faults(config).await?.0)
}

async fn record_with_faults(config: &Config) -> Result<(History, BTreeMap<Fault, u32>), HarnessError> {
    let mut cluster = Cluster::start(config.system, config.layout, &config.directory).await?;
    let result = run_on(config, &mut cluster).await;
    if result.is_err() {
        let kept = cluster.keep();
        eprintln!("data and logs are kept in {}", kept.display());
    }
    result
}

async fn run_on(config: &Config, cluster: &mut Cluster) -> Result<(History, BTreeMap<Fault, u32>), HarnessError> {
    let keyspace = Keyspace { keys: config.keys };
    let workload = Workload::start(cluster.endpoints(), keyspace, config.clients, config.seed);
    let (name_last, last) = watch::channel(None);
    let follow = |_| tokio::spawn(observe::follow(cluster.endpoints(), Revision(1), last.clone()));
    let watched = config.system.serves_watch();
    let watches: Watches = (0..config.watches).filter(|_| watched).map(follow).collect();
    let mut random = StdRng::seed_from_u64(config.seed);
    let mut faults = BTreeMap::new();
    for round in 1..=config.rounds {
        let fault = choose_fault(config.layout, &mut random);
        *faults.entry(fault).or_insert(0) += 1;
        eprintln!("round {round}/{}: {fault:?}, {} requests answered", config.rounds, workload.shared.answered());
        run_round(config, cluster, &workload.shared, fault, &mut random).await?;
    }
    progress(&workload.shared, "after the last fault").await?;
    let shared = workload.shared.clone();
    let mut events = workload.stop().await;
    let (last, at_end) = read_everything(cluster, &shared).await?;
    if !(config.log && watched) {
        let back = read_back(cluster, &shared, &events).await?;
        events.extend(back);
    }
    events.extend(at_end);
    let _watches_gone = name_last.send(Some(last));
    let mut history = History { events, log: None, watches: Vec::new() };
    for watch in watches {
        history.watches.push(watch.await.expect("a watch's task does not panic")?);
    }
    if config.log && watched {
        history.log = Some(ChangeLog::complete(observe::log_of_changes(cluster.endpoints(), last).await?));
    }
    Ok((history, faults))
}

fn choose_fault(layout: Layout, random: &mut StdRng) -> Fault {
    let mut faults = vec![Fault::KillNode, Fault::KillLeader, Fault::KillLeader, Fault::KillAll, Fault::Pause];
    if layout == Layout::Gateways {
        faults.push(Fault::KillGateway);
    }
    faults.choose(random).copied().unwrap_or(Fault::KillNode)
}

/// Load, fault, load, healing, load.
async fn run_round(
    config: &Config,
    cluster: &mut Cluster,
    shared: &Shared,
    fault: Fault,
    random: &mut StdRng,
) -> Result<(), HarnessError> {
    let part = |random: &mut StdRng| config.round.mul_f64(random.random_range(0.1..0.4));
    let (before, during, after) = (part(random), part(random), part(random));
    tokio::time::sleep(before).await;
    cluster.check_alive()?;
    let victim = victim(cluster, fault, random).await;
    match fault {
        Fault::KillAll => cluster.kill_all()?,
        Fault::Pause => cluster.pause(victim),
        Fault::KillNode | Fault::KillLeader | Fault::KillGateway => cluster.kill(victim)?,
    }
    tokio::time::sleep(during).await;
    match fault {
        Fault::KillAll => {}
        // A majority runs, so the store has to serve while the victim is away.
        Fault::KillNode | Fault::KillLeader | Fault::KillGateway | Fault::Pause => {
            progress(shared, "while one process was away").await?;
        }
    }
    if fault == Fault::Pause {
        cluster.resume(victim);
    }
    for number in cluster.numbers() {
        if !cluster.is_running(number) {
            cluster.launch(number)?;
        }
    }
    cluster.wait_ready().await?;
    progress(shared, "after all processes were back").await?;
    tokio::time::sleep(after).await;
    Ok(())
}

async fn victim(cluster: &Cluster, fault: Fault, random: &mut StdRng) -> Number {
    let any = |random: &mut StdRng, wanted: fn(Role) -> bool| {
        let numbers: Vec<Number> = cluster.numbers().into_iter().filter(|n| wanted(cluster.member(*n).role)).collect();
        numbers.choose(random).copied().expect("every layout has such a member")
    };
    // Drawn in any case, so that the random numbers do not depend on whether a leader was found.
    let node = any(random, |role| role != Role::Gateway);
    match fault {
        Fault::KillLeader => cluster.leader().await.unwrap_or(node),
        Fault::KillGateway => any(random, |role| role == Role::Gateway),
        Fault::KillNode | Fault::KillAll | Fault::Pause => node,
    }
}

/// Waits until something more is answered.
async fn progress(shared: &Shared, when: &str) -> Result<(), HarnessError> {
    let (deadline, before) = (Instant::now() + PROGRESS_LIMIT, shared.answered());
    while shared.answered() == before {
        if Instant::now() >= deadline {
            let (what, logs) = (format!("an answer {when}"), PathBuf::from("the cluster's directory"));
            return Err(HarnessError::Timeout { what, seconds: PROGRESS_LIMIT.as_secs(), logs });
        }
        tokio::time::sleep(PROGRESS_POLL).await;
    }
    Ok(())
}

/// One last write, then reads of everything: now at every gateway, and at revisions of the past.
/// Answers the revision of the last write.
async fn read_everything(cluster: &Cluster, shared: &Shared) -> Result<(Revision, Vec<Event>), HarnessError> {
    let mut events = Vec::new();
    let keyspace = shared.keyspace;
    let mut last = None;
    for attempt in 0..FINAL_ATTEMPTS {
        let value = Value::new(format!("last-{attempt}"));
        let put = Operation::Put { key: keyspace.key(0), value };
        let endpoint = &shared.endpoints[attempt % shared.endpoints.len()];
        events.push(ask(shared, endpoint, put).await);
        last = events.last().and_then(Event::acknowledged_write);
        if last.is_some() {
            break;
        }
    }
    let last = last.ok_or_else(|| HarnessError::Wrong {
        what: "a put to the healed cluster".to_owned(),
        detail: format!("no success in {FINAL_ATTEMPTS} attempts"),
    })?;
    for endpoint in cluster.endpoints() {
        events.push(ask(shared, &endpoint, keyspace.all(ReadMode::Linearizable)).await);
        for number in 0..keyspace.keys {
            let get = Operation::Get { key: keyspace.key(number), mode: ReadMode::Serializable };
            events.push(ask(shared, &endpoint, get).await);
        }
        for part in 1..=FINAL_PAST_READS {
            let past = Revision(1 + (last.0 - 1) * part / FINAL_PAST_READS);
            events.push(ask(shared, &endpoint, keyspace.all(ReadMode::At(past))).await);
        }
    }
    match events.iter().filter(|event| event.operation.puts().is_empty()).find(|event| event.answered().is_none()) {
        None => Ok((last, events)),
        Some(event) => {
            let what = "a read of the healed cluster".to_owned();
            Err(HarnessError::Wrong { what, detail: format!("no answer: {event:?}") })
        }
    }
}

/// Reads every acknowledged write at the revision that was answered for it: what the store's log of
/// changes would tell in one go.
async fn read_back(cluster: &Cluster, shared: &Shared, events: &[Event]) -> Result<Vec<Event>, HarnessError> {
    let mut wanted = Vec::new();
    for event in events {
        let Some(revision) = event.acknowledged_write() else { continue };
        let Some(key) = event.written_keys().first().copied().cloned() else { continue };
        wanted.push(Operation::Get { key, mode: ReadMode::At(revision) });
    }
    let endpoints = cluster.endpoints();
    let parts = wanted.chunks(wanted.len().div_ceil(READ_BACK_CLIENTS).max(1)).zip(endpoints.iter().cycle());
    let parts = parts.map(|(part, endpoint)| async move {
        let client = shared.new_client_id();
        let mut connection = Client::new(endpoint);
        let mut events = Vec::with_capacity(part.len());
        for operation in part {
            let invoked = since(shared.epoch);
            let outcome: Outcome = connection.execute(operation, shared.epoch).await;
            events.push(Event { client, invoked, operation: operation.clone(), outcome });
        }
        events
    });
    let events: Vec<Event> = futures_util::future::join_all(parts).await.into_iter().flatten().collect();
    match events.iter().find(|event| event.answered().is_none()) {
        None => Ok(events),
        Some(event) => Err(HarnessError::Wrong {
            what: "an acknowledged write, read at its revision".to_owned(),
            detail: format!("no answer: {event:?}"),
        }),
    }
}

async fn ask(shared: &Shared, endpoint: &str, operation: Operation) -> Event {
    let client = shared.new_client_id();
    let invoked = since(shared.epoch);
    let outcome: Outcome = Client::new(endpoint).execute(&operation, shared.epoch).await;
    Event { client, invoked, operation, outcome }
}

impl Config {
    /// The command line that repeats the run.
    pub fn command(&self) -> String {
        let Config { system, rounds, clients, keys, watches, seed, .. } = self;
        let layout = match self.layout {
            Layout::AllRoles => "all-roles",
            Layout::Gateways => "gateways",
        };
        format!(
            "e2e crash --system {} --layout {layout} --rounds {rounds} --seconds {} --clients {clients} --keys {keys} \
             --watches {watches} --seed {seed}{}",
            system.name(),
            self.round.as_secs_f64(),
            if self.log { "" } else { " --no-log" },
        )
    }
}

fn save(history: &History, config: &Config) -> Result<PathBuf, HarnessError> {
    let path: &Path = &config.directory;
    let path = path.join(format!("history-{}-{}.jsonl", config.system.name(), config.seed));
    let what = || format!("writing {}", path.display());
    let mut file = BufWriter::new(File::create(&path).map_err(HarnessError::io(what()))?);
    history.write_jsonl(&mut file).and_then(|()| file.flush()).map_err(HarnessError::io(what()))?;
    Ok(path)
}
