//! Runs the machine inside a process: calls as futures, time from the runtime's clock.
//!
//! The machine has no task of its own. Whoever brings an input locks it, steps it, and sends what
//! it wants sent, all in the caller's task: a call to a local leader then costs no hop between
//! tasks but the one that wakes its answer. One timer task brings the ticks. The lock is held for
//! a step only, never while anything is sent: a link may deliver a reply from within `send`.

use crate::call::{Answer, Call, CallError, GatewayConfig, Input, Outputs, Status};
use crate::machine::Gateway;
use paxos::{NodeId, Time};
use shardkv::map::ShardMap;
use shardkv::request::{Reply, Request, TraceContext};
use shardkv::types::Revision;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Carries requests to nodes. `send` does not wait: what cannot be queued is refused, by delivering
/// a reply that says so.
pub trait Links: Send + Sync + 'static {
    /// Sends requests to a node, in order.
    fn send(&self, to: NodeId, requests: Vec<Request>);

    /// The gateway routes by a new shard map, which tells the nodes' addresses.
    fn on_map(&self, _map: &ShardMap) {}
}

/// Starts a gateway. Call it within a tokio runtime: the timer task runs there, until the last
/// handle is dropped. `links` gets what it needs to deliver replies.
pub fn start<L: Links>(config: GatewayConfig, links: impl FnOnce(Replies) -> L) -> Handle {
    let timer = Arc::new(Notify::new());
    let inner = Arc::new_cyclic(|weak: &Weak<Inner>| Inner {
        began: now(),
        state: Mutex::new(State {
            gateway: Gateway::new(config),
            waiting: BTreeMap::new(),
            next_token: 0,
            map_version: (0, 0),
            armed: None,
        }),
        cluster: Default::default(),
        links: Box::new(links(Replies { inner: weak.clone() })),
        timer: timer.clone(),
    });
    tokio::spawn(run_timer(Arc::downgrade(&inner), timer));
    inner.step(Input::Tick); // fetches the first map
    Handle { inner }
}

/// A gateway to call. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

/// Where links deliver to. Does not keep the gateway alive.
#[derive(Clone)]
pub struct Replies {
    inner: Weak<Inner>,
}

impl Replies {
    /// Brings a node's replies.
    pub fn deliver(&self, from: NodeId, replies: Vec<Reply>) {
        if let Some(inner) = self.inner.upgrade() {
            inner.deliver(from, replies);
        }
    }

    /// The stream to a node broke: what was sent there and not answered has an unknown outcome.
    pub fn node_down(&self, node: NodeId) {
        if let Some(inner) = self.inner.upgrade() {
            inner.step(Input::NodeDown { node });
        }
    }
}

impl Handle {
    /// Performs a call; it is answered within `budget`. Dropping the future cancels the call (what
    /// it asked for may still be carried out).
    pub async fn call(&self, call: Call, budget: Duration) -> Result<Answer, CallError> {
        self.call_traced(call, budget, None).await
    }

    /// The same, followed under a span if there is one.
    pub async fn call_traced(
        &self,
        call: Call,
        budget: Duration,
        trace: Option<TraceContext>,
    ) -> Result<Answer, CallError> {
        let (answer, receiver) = oneshot::channel();
        let (token, early) = self.inner.begin(call, budget, trace, answer);
        if let Some(result) = early {
            return result;
        }
        let guard = CancelOnDrop { inner: &self.inner, token: Some(token) };
        let result = receiver.await;
        guard.disarm();
        // The sender goes without an answer only with the machine itself.
        result.unwrap_or(Err(CallError::MAYBE_DONE))
    }

    /// Brings a node's replies.
    pub fn deliver(&self, from: NodeId, replies: Vec<Reply>) {
        self.inner.deliver(from, replies);
    }

    /// The stream to a node broke: what was sent there and not answered has an unknown outcome.
    pub fn node_down(&self, node: NodeId) {
        self.inner.step(Input::NodeDown { node });
    }

    /// What the gateway knows itself.
    pub fn status(&self) -> Status {
        self.inner.lock().gateway.status()
    }

    /// The cluster's id and incarnation, once a map is known.
    pub fn cluster(&self) -> Option<(u64, u64)> {
        let (id, incarnation) = &self.inner.cluster;
        let known = (id.load(Ordering::Relaxed), incarnation.load(Ordering::Relaxed));
        (known != (0, 0)).then_some(known)
    }

    /// The map that it routes by, if it has one yet.
    pub fn map(&self) -> Option<Arc<ShardMap>> {
        self.inner.lock().gateway.map().cloned()
    }

    /// The newest revision that the sequencer is known to have handed out.
    pub fn known(&self) -> Revision {
        self.inner.lock().gateway.known()
    }
}

struct Inner {
    began: Instant,
    state: Mutex<State>,
    links: Box<dyn Links>,
    /// Of the newest map: the cluster's id and incarnation.
    cluster: (AtomicU64, AtomicU64),
    timer: Arc<Notify>,
}

struct State {
    gateway: Gateway,
    waiting: BTreeMap<u64, oneshot::Sender<Result<Answer, CallError>>>,
    next_token: u64,
    /// The map that the links were told of.
    map_version: (u64, u64),
    /// When the timer task wakes.
    armed: Option<Time>,
}

#[allow(clippy::disallowed_methods, reason = "the machine's clock is read here, and only here")]
fn now() -> Instant {
    Instant::now()
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside a step is a bug of ours; what follows must not hide it behind another.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn time(&self) -> Time {
        Time(u64::try_from((now() - self.began).as_micros()).unwrap_or(u64::MAX))
    }

    /// Begins a call. Where its answer is there at once, it is returned.
    fn begin(
        &self,
        call: Call,
        budget: Duration,
        trace: Option<TraceContext>,
        answer: oneshot::Sender<Result<Answer, CallError>>,
    ) -> (u64, Option<Result<Answer, CallError>>) {
        let time = self.time();
        let deadline = time.plus(u64::try_from(budget.as_micros()).unwrap_or(u64::MAX));
        let mut state = self.lock();
        let token = state.next_token;
        state.next_token += 1;
        let mut out = Outputs::default();
        state.gateway.step_into(time, Input::Call { token, call, deadline, trace }, &mut out);
        if let Some(index) = out.answers.iter().position(|(answered, _)| *answered == token) {
            let (_, result) = out.answers.swap_remove(index);
            self.perform(state, out);
            return (token, Some(result));
        }
        state.waiting.insert(token, answer);
        self.perform(state, out);
        (token, None)
    }

    fn step(&self, input: Input) {
        let time = self.time();
        let mut state = self.lock();
        let out = state.gateway.step(time, input);
        self.perform(state, out);
    }

    fn deliver(&self, from: NodeId, replies: Vec<Reply>) {
        let time = self.time();
        let mut state = self.lock();
        let mut out = Outputs::default();
        for reply in replies {
            state.gateway.step_into(time, Input::Reply { from, reply }, &mut out);
        }
        self.perform(state, out);
    }

    /// Answers, arms the timer, and, without the lock, sends.
    fn perform(&self, mut state: MutexGuard<'_, State>, out: Outputs) {
        for (token, result) in out.answers {
            if let Some(answer) = state.waiting.remove(&token) {
                // The caller may have gone just now; then nobody wants the answer.
                let _ = answer.send(result);
            }
        }
        if let Some(wake_at) = out.wake_at
            && state.armed.is_none_or(|armed| wake_at < armed)
        {
            state.armed = Some(wake_at);
            self.timer.notify_one();
        }
        let map = state.gateway.map().filter(|map| (map.incarnation, map.version) != state.map_version).cloned();
        if let Some(map) = &map {
            state.map_version = (map.incarnation, map.version);
            self.cluster.0.store(map.cluster_id, Ordering::Relaxed);
            self.cluster.1.store(map.incarnation, Ordering::Relaxed);
        }
        drop(state);
        if let Some(map) = map {
            self.links.on_map(&map);
        }
        let mut sends = out.send.into_iter().peekable();
        while let Some((to, first)) = sends.next() {
            let mut requests = vec![first];
            while let Some((_, request)) = sends.next_if(|(next, _)| *next == to) {
                requests.push(request);
            }
            self.links.send(to, requests);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.timer.notify_one(); // ends the timer task
    }
}

struct CancelOnDrop<'a> {
    inner: &'a Inner,
    token: Option<u64>,
}

impl CancelOnDrop<'_> {
    fn disarm(mut self) {
        self.token = None;
    }
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.inner.lock().waiting.remove(&token);
            self.inner.step(Input::Cancel { token });
        }
    }
}

/// Ticks the machine when it wants to be. A timer that moves to a later time is left as it is: an
/// early tick does nothing but arm the next.
async fn run_timer(inner: Weak<Inner>, timer: Arc<Notify>) {
    loop {
        let Some(armed) = inner.upgrade().map(|inner| {
            let armed = inner.lock().armed;
            armed.map(|time| inner.began + Duration::from_micros(time.0))
        }) else {
            return;
        };
        match armed {
            None => timer.notified().await,
            Some(at) => {
                if tokio::time::timeout_at(at, timer.notified()).await.is_ok() {
                    continue; // an earlier time was armed
                }
                let Some(inner) = inner.upgrade() else { return };
                inner.lock().armed = None;
                inner.step(Input::Tick);
            }
        }
    }
}
