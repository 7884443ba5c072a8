//! The turn loop: drains the mailbox, steps the core, performs what it wants done.

use super::apply::{ApplyThread, Job, Report};
use super::collect::{self, Collector, Readers};
use super::figures::{Sources, SyncFigures};
use super::handle::NodeHandle;
use super::known::{KnownPeers, Verdict};
use super::mailbox::Mailbox;
use super::open::{NodeStore, OpenError, Opened, PeerAddress};
use super::peers::{self, Peer, Peers};
use super::replies::Sinks;
use super::scan::ScanThreads;
use super::space::SpaceGuard;
use crate::core::{ApplyJob, Core, CoreStatus, Hosted, Hosting, Input, Machine, Outputs, Span};
use paxos::{GroupId, NodeId, Time};
use proto::dial::{Dialer, PlainText};
use shardkv::store::Store;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use wal::{Append, WalEvent, WalHandle};

/// Inputs from outside that may wait for a turn.
const OUTSIDE_MAX: usize = 65_536;

/// Hears of stages of requests that are followed. Called within turns: it must not block.
pub type SpanSink = Arc<dyn Fn(Vec<Span>) + Send + Sync>;

/// Why a node stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to.
    Asked,
    /// It must not go on; what happened and what to do.
    Failed(String),
}

/// Stops that may be queued: where the queue is full, the node stops anyway.
const STOPS_MAX: usize = 4;
/// Questions for the status that may be queued; more wait.
const QUESTIONS_MAX: usize = 64;

/// Progress of the log's thread since the last turn.
#[derive(Default)]
struct WalProgress {
    durable: Option<(u64, u64)>,
    no_space: Option<bool>,
}

/// A running node; drive it with [`Node::run`].
pub struct Node {
    core: Core<NodeStore>,
    mailbox: Arc<Mailbox>,
    sinks: Arc<Sinks>,
    wal: WalHandle,
    wal_progress: Arc<Mutex<WalProgress>>,
    /// Appends that the log's queue had no room for; bounded by the replicas' windows.
    wal_backlog: VecDeque<(u64, bool, Vec<Append>)>,
    /// The log has no room.
    log_full: bool,
    /// What the core was told: neither has the log, or the store.
    full: bool,
    /// Before the threads that may wait for room: they end because this has ended.
    space: SpaceGuard,
    apply: ApplyThread<NodeStore>,
    scans: ScanThreads<NodeStore>,
    flushing: Option<JoinHandle<()>>,
    /// States that images have replaced since the last turn: at most one per group.
    machines: Arc<Mutex<BTreeMap<GroupId, Machine<NodeStore>>>>,
    /// Replicas that were opened since the last turn.
    opened: Arc<Mutex<Vec<Hosted<NodeStore>>>>,
    /// What the collector reads.
    readers: Readers<NodeStore>,
    peers: Peers,
    peer_queue_bytes_max: usize,
    /// The version of the shard map whose nodes are met, and how they are reached.
    met: u64,
    dialer: Arc<dyn Dialer>,
    known: Arc<KnownPeers>,
    store: Arc<NodeStore>,
    questions: mpsc::Receiver<oneshot::Sender<CoreStatus>>,
    stops: mpsc::Receiver<Stop>,
    stop: mpsc::Sender<Stop>,
    /// Why, once the cluster has removed this node.
    removed: watch::Sender<Option<String>>,
    tick: Duration,
    spans: SpanSink,
    _collector: Collector,
}

impl Node {
    /// Starts the threads of an opened node. Call [`Node::run`] next, on a current-thread runtime.
    pub fn start(opened: Opened) -> Result<(Node, NodeHandle), OpenError> {
        let Opened { core, machines, store, space, log, known, config } = opened;
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| OpenError::Io { what, source }
        };
        let mailbox = Arc::new(Mailbox::new(OUTSIDE_MAX));
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let (stop, stops) = mpsc::channel(STOPS_MAX);
        let removed = watch::Sender::new(None);
        let wal_progress = Arc::new(Mutex::new(WalProgress::default()));
        let syncs: Arc<Mutex<SyncFigures>> = Arc::default();
        let wal = wal::spawn(log, wal_events(wal_progress.clone(), syncs.clone(), mailbox.clone(), stop.clone()));
        let readers = machines.hosted().filter_map(|group| match machines.machine(group) {
            Some(Machine::Data(reader)) => Some((group, reader)),
            Some(Machine::Master(_)) | None => None,
        });
        let readers: Readers<NodeStore> = Arc::new(Mutex::new(readers.collect()));
        let collector = collect::spawn(readers.clone()).map_err(io("start the collector's thread"))?;
        let (woken, pausing) = (mailbox.clone(), store.clone());
        let on_full = move |full| {
            woken.wake();
            if let Err(error) = pausing.inner().inner().pause_compactions(full) {
                tracing::warn!(%error, "compactions go on as before");
            }
        };
        let space = SpaceGuard::spawn(space, on_full).map_err(io("start the thread that watches the disk"))?;
        let replaced: Arc<Mutex<BTreeMap<GroupId, Machine<NodeStore>>>> = Arc::default();
        let opened: Arc<Mutex<Vec<Hosted<NodeStore>>>> = Arc::default();
        let (replacing, opening) = (replaced.clone(), opened.clone());
        let failed = stop.clone();
        let report = move |report: Report<NodeStore>| match report {
            Report::Machine(group, machine) => {
                replacing.lock().unwrap_or_else(PoisonError::into_inner).insert(group, machine);
            }
            Report::Opened(hosted) => opening.lock().unwrap_or_else(PoisonError::into_inner).push(hosted),
            Report::Failed(error) => drop(failed.try_send(Stop::Failed(error.to_string()))),
        };
        let apply = ApplyThread::spawn(machines, mailbox.clone(), report).map_err(io("start the apply thread"))?;
        let scans = ScanThreads::spawn(&mailbox).map_err(io("start a thread for reads"))?;
        let me = config.core.me;
        let peers = Peers::default();
        let sources =
            Sources { wal: wal.clone(), syncs, peers: peers.clone(), mailbox: mailbox.clone(), store: store.clone() };
        let sinks = Arc::new(Sinks::default());
        let handle = NodeHandle {
            node: me,
            mailbox: mailbox.clone(),
            sinks: sinks.clone(),
            questions: ask,
            stop: stop.clone(),
            known: known.clone(),
            store: store.clone(),
            removed: removed.clone(),
            sources,
        };
        let node = Node {
            core,
            mailbox,
            sinks,
            wal,
            wal_progress,
            wal_backlog: VecDeque::new(),
            log_full: false,
            full: false,
            space,
            apply,
            scans,
            flushing: None,
            machines: replaced,
            opened,
            readers,
            peers,
            peer_queue_bytes_max: config.peer_queue_bytes_max,
            met: 0,
            dialer: PlainText::shared(),
            known,
            store,
            questions,
            stops,
            stop,
            removed,
            tick: Duration::from_micros(config.core.timing.heartbeat_micros),
            spans: Arc::new(|_| {}),
            _collector: collector,
        };
        Ok((node, handle))
    }

    /// Runs the node until it stops. It reaches the other nodes by `dialer`, and tells `spans` of stages of
    /// requests that are followed.
    pub async fn run(mut self, dialer: Arc<dyn Dialer>, spans: SpanSink) -> Stop {
        (self.spans, self.dialer) = (spans, dialer);
        self.reach(self.known.peers());
        self.meet();
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake_at = self.core.wake_at();
            tokio::select! {
                () = self.mailbox.filled() => {}
                () = sleep_until(wake_at), if wake_at.is_some() => {}
                _ = ticks.tick() => self.mailbox.push(Input::Tick),
                stop = self.stops.recv() => return self.close(stop.unwrap_or(Stop::Asked)),
                Some(answer) = self.questions.recv() => {
                    // Whoever asked may have gone.
                    drop(answer.send(self.core.status(super::now())));
                    continue;
                }
            }
            self.turn();
        }
    }

    /// Has a stream to each of these nodes, and to no other.
    fn reach(&self, nodes: BTreeMap<NodeId, PeerAddress>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|node, (peer, task)| {
            let stays = nodes.get(node).is_some_and(|address| peer.is_at(address));
            if !stays {
                task.abort();
            }
            stays
        });
        for (node, address) in nodes {
            peers.entry(node).or_insert_with(|| {
                let peer = Peer::new(node, address, self.peer_queue_bytes_max);
                let (known, stop, dialer) = (self.known.clone(), self.stop.clone(), self.dialer.clone());
                let (running, removed) = (peer.clone(), self.removed.clone());
                let task = tokio::spawn(async move {
                    match peers::run(running, known, dialer).await {
                        (Verdict::Leave, reason) => drop(removed.send_replace(Some(reason))),
                        (_, reason) => drop(stop.send(Stop::Failed(reason)).await),
                    }
                });
                (peer, task.abort_handle())
            });
        }
    }

    /// Looks whether the shard map names other nodes than before.
    fn meet(&mut self) {
        let map = self.core.map();
        if map.version == self.met || map.nodes.is_empty() {
            return;
        }
        self.met = map.version;
        self.known.meet(&map.nodes, map.newest_node());
        self.reach(self.known.peers());
    }

    /// Ends the node's threads: when the process ends, none may be inside RocksDB any more.
    fn close(self, stop: Stop) -> Stop {
        self.wal.close();
        drop(self.space);
        if let Some(flushing) = self.flushing {
            // A panic there was printed by the thread itself.
            drop(flushing.join());
        }
        stop
    }

    fn turn(&mut self) {
        let now = super::now();
        let progress = std::mem::take(&mut *self.wal_progress.lock().unwrap_or_else(PoisonError::into_inner));
        self.log_full = progress.no_space.unwrap_or(self.log_full);
        let full = self.log_full || self.space.space().is_full();
        if full != self.full {
            self.full = full;
            self.core.input(now, Input::NoSpace(full));
        }
        if let Some((ticket, segment)) = progress.durable {
            self.core.input(now, Input::Durable { ticket, segment });
        }
        let replaced = std::mem::take(&mut *self.machines.lock().unwrap_or_else(PoisonError::into_inner));
        for (group, machine) in replaced {
            self.core.replace_machine(group, machine);
        }
        for hosted in std::mem::take(&mut *self.opened.lock().unwrap_or_else(PoisonError::into_inner)) {
            if let Machine::Data(reader) = &hosted.machine {
                self.readers.lock().unwrap_or_else(PoisonError::into_inner).insert(hosted.group, reader.clone());
            }
            self.core.open(hosted);
        }
        for input in self.mailbox.drain() {
            self.core.input(now, input);
        }
        loop {
            let out = self.core.turn(now);
            if out.is_empty() {
                break;
            }
            self.perform(now, out);
        }
        self.feed_wal();
        self.meet();
    }

    fn apply(&mut self, now: Time, job: ApplyJob) {
        match self.apply.try_now(job) {
            Ok(Ok(Some(applied))) => self.core.input(now, Input::Applied(applied)),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => drop(self.stop.try_send(Stop::Failed(error.to_string()))),
            Err(job) => self.apply.push([Job::Apply(job)]),
        }
    }

    fn perform(&mut self, now: Time, out: Outputs) {
        if !out.log.is_empty() {
            let append = |(group, record): (GroupId, paxos::Record)| Append {
                group: group.0,
                payload: record.encode(),
                twice: record.is_promise(),
            };
            self.wal_backlog.push_back((out.ticket, out.reclaim, out.log.into_iter().map(append).collect()));
            self.feed_wal();
        }
        let mut by_peer: BTreeMap<NodeId, Vec<crate::wire::NodeMessage>> = BTreeMap::new();
        for (to, message) in out.send {
            by_peer.entry(to).or_default().push(message);
        }
        if !by_peer.is_empty() {
            let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            for (to, messages) in by_peer {
                if let Some((peer, _)) = peers.get(&to) {
                    peer.send(messages.into_iter());
                }
            }
        }
        for job in out.apply {
            self.apply(now, job);
        }
        self.apply.push(out.snapshots.into_iter().map(Job::Snapshot));
        for hosting in out.hosting {
            if let Hosting::Close { group } = hosting {
                self.readers.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
            }
            self.apply.push([Job::Hosting(hosting)]);
        }
        for job in out.scans {
            match self.core.reader(job.group) {
                Some(reader) => self.scans.push(job, reader),
                None => self.mailbox.push(Input::Scanned { number: job.number, result: None }),
            }
        }
        if !out.replies.is_empty() {
            self.sinks.deliver(out.replies);
        }
        if !out.spans.is_empty() {
            (self.spans)(out.spans);
        }
        if let Some(number) = out.flush {
            self.flush(number);
        }
        if let Some(through) = out.release {
            self.wal.release(through);
        }
    }

    fn feed_wal(&mut self) {
        while let Some((ticket, reclaim, records)) = self.wal_backlog.front() {
            let queued = match reclaim {
                true => self.wal.append_reclaim(*ticket, records.clone()),
                false => self.wal.append(*ticket, records.clone()),
            };
            if queued.is_err() {
                return; // the next durable ticket makes room
            }
            self.wal_backlog.pop_front();
        }
    }

    /// Flushes the store on a thread of its own: it may take seconds, and nothing waits for it.
    fn flush(&mut self, number: u64) {
        let (store, mailbox, stop) = (self.store.clone(), self.mailbox.clone(), self.stop.clone());
        let spawned = std::thread::Builder::new().name("flush".into()).spawn(move || match store.flush() {
            Ok(()) => mailbox.push(Input::Flushed(number)),
            Err(error) => drop(stop.try_send(Stop::Failed(error.to_string()))),
        });
        match spawned {
            // The core asks for one at a time, so an earlier one has ended.
            Ok(thread) => self.flushing = Some(thread),
            Err(error) => {
                let stop = Stop::Failed(format!("cannot start a thread: {error}"));
                drop(self.stop.try_send(stop));
            }
        }
    }
}

/// Sleeps until a time of the core's clock.
async fn sleep_until(time: Option<Time>) {
    let micros = time.map_or(0, |time| time.since(super::now()));
    tokio::time::sleep(Duration::from_micros(micros)).await;
}

/// What the log's thread calls.
fn wal_events(
    progress: Arc<Mutex<WalProgress>>,
    syncs: Arc<Mutex<SyncFigures>>,
    mailbox: Arc<Mailbox>,
    stop: mpsc::Sender<Stop>,
) -> Box<dyn Fn(WalEvent) + Send> {
    Box::new(move |event| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            WalEvent::Durable { ticket, synced, records, took } => {
                progress.durable = Some((ticket, synced.segment));
                let mut syncs = syncs.lock().unwrap_or_else(PoisonError::into_inner);
                syncs.micros.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                syncs.records.record(records);
            }
            WalEvent::Full => progress.no_space = Some(true),
            WalEvent::SpaceBack => progress.no_space = Some(false),
            WalEvent::Failed(error) => {
                let reason = format!("the log failed, and nothing more can be made durable: {error}");
                drop(stop.try_send(Stop::Failed(reason)));
            }
        }
        drop(progress);
        mailbox.wake();
    })
}
