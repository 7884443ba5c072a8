//! What all calls in flight share: attempts and their ids, timers, the newest known revision, and
//! the two questions to the shardmaster that many calls wait for together.

use crate::call::{GatewayConfig, Outputs};
use crate::rng::Rng;
use crate::routing::{GroupShare, Router};
use crate::session::Sessions;
use paxos::{GroupId, NodeId, Time};
use shardkv::map::{SHARDMASTER_GROUP, ShardMap};
use shardkv::request::{Request, RequestBody, TraceContext};
use shardkv::types::Revision;
use std::collections::{BTreeMap, BTreeSet};

/// Retries in a row without a pause: enough to follow a hint or to go round the replicas once.
const HOPS_MAX: u32 = 3;
/// After every so many pauses of a question the shard map is fetched anew: its group may be gone.
const PAUSES_PER_MAP: u32 = 4;
/// A newer map that was heard of is asked for no more often.
const MAP_AGAIN_MICROS: u64 = 500_000;
/// The timeout of an attempt grows up to this many times the configured one, so that a slow answer
/// to a big question arrives in the end.
const TIMEOUT_GROWTH_MAX: u64 = 8;
/// The same for the first map: a gateway that has none knows few nodes, and must not wait long for each that is gone.
const FIRST_MAP_GROWTH_MAX: u64 = 2;
/// "No timer".
pub(crate) const NEVER: Time = Time(u64::MAX);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// The shared question for the newest revision.
    Sequencer,
    /// The shared question for the shard map.
    Map,
    /// A client's call, by its token.
    Call(u64),
}

/// A request on its way. Its id is never used again, so a late or duplicate reply is never taken
/// for the reply to a newer attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) owner: Owner,
    /// Which part of the owner's question.
    pub(crate) part: usize,
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
}

/// A question to one group, asked until it is answered.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) share: GroupShare,
    /// The newest attempt, while its reply is awaited.
    pub(crate) current: Option<u64>,
    /// When the newest attempt times out, or the pause before the next one ends.
    pub(crate) wake: Time,
    /// Attempts so far.
    pub(crate) attempts: u32,
    /// Those that nobody answered in time.
    pub(crate) timeouts: u32,
    pauses: u32,
    hops: u32,
}

impl Part {
    pub(crate) fn new(share: GroupShare) -> Part {
        Part { share, current: None, wake: NEVER, attempts: 0, timeouts: 0, pauses: 0, hops: 0 }
    }

    /// Not asked, and nobody means to ask.
    pub(crate) fn is_idle(&self) -> bool {
        self.current.is_none() && self.wake == NEVER
    }

    /// Answered, or given up.
    pub(crate) fn rest(&mut self) {
        (self.current, self.wake) = (None, NEVER);
    }
}

/// Which replica can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Leader,
    AnyReplica,
}

/// Who asks what part of a question, of whom, and how long it will wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) owner: Owner,
    pub(crate) part: usize,
    pub(crate) route: Route,
    pub(crate) patience_micros: u64,
    pub(crate) trace: Option<TraceContext>,
}

/// A question to the shardmaster that many calls wait for together. A caller is served only by an
/// attempt that began after the caller arrived: an older answer may be older than what the caller
/// has seen elsewhere.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) part: Part,
    /// Served by the attempt under way.
    waiting: BTreeSet<u64>,
    /// Served by the next one.
    next: BTreeSet<u64>,
}

impl Shared {
    fn new() -> Shared {
        let share = GroupShare { group: SHARDMASTER_GROUP, shards: Vec::new() };
        Shared { part: Part::new(share), waiting: BTreeSet::new(), next: BTreeSet::new() }
    }

    /// The calls that the present answer serves.
    pub(crate) fn take_waiting(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether a call still waits.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.waiting.is_empty() || !self.next.is_empty()
    }

    pub(crate) fn forget(&mut self, token: u64) {
        self.waiting.remove(&token);
        self.next.remove(&token);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: GatewayConfig,
    pub(crate) router: Router,
    pub(crate) sessions: Sessions,
    pub(crate) rng: Rng,
    /// The newest number that the sequencer is known to have handed out; 0 before the first answer.
    pub(crate) known: Revision,
    known_at: Time,
    next_id: u64,
    pub(crate) attempts: BTreeMap<u64, Attempt>,
    pub(crate) timers: BTreeSet<(Time, Owner)>,
    /// Bytes of calls and partial answers.
    pub(crate) bytes: usize,
    pub(crate) retries: u64,
    pub(crate) strays: u64,
    pub(crate) sequencer: Shared,
    pub(crate) maps: Shared,
    /// The newest version of the map that a node has spoken of, and when it was asked for.
    rumour: (u64, Time),
    /// When the shardmaster is asked for a newer map though nobody wants one: the nodes that are known here may all be
    /// replaced while no client calls.
    map_due: Time,
}

impl Core {
    pub(crate) fn new(config: GatewayConfig) -> Core {
        let mut rng = Rng::new(config.seed);
        // Replies of a former incarnation of this gateway must not meet ids of this one.
        let next_id = rng.next() >> 1;
        Core {
            router: Router::new(config.nodes.clone(), config.local),
            sessions: Sessions::new(config.session_idle_micros, config.session_window),
            rng,
            known: Revision(0),
            known_at: Time(0),
            next_id,
            attempts: BTreeMap::new(),
            timers: BTreeSet::new(),
            bytes: 0,
            retries: 0,
            strays: 0,
            sequencer: Shared::new(),
            maps: Shared::new(),
            rumour: (0, Time(0)),
            map_due: Time(0),
            config,
        }
    }

    /// Learns that the sequencer has handed out `revision`.
    pub(crate) fn learn(&mut self, revision: Revision, now: Time) {
        if revision > self.known {
            (self.known, self.known_at) = (revision, now);
        }
    }

    /// Sends the next attempt of `part`, or begins a pause if nobody can be asked. Returns whether
    /// it was sent. `body` is built only then.
    pub(crate) fn send(
        &mut self,
        ask: Ask,
        part: &mut Part,
        now: Time,
        out: &mut Outputs,
        body: impl FnOnce(&mut Core, &GroupShare) -> RequestBody,
    ) -> bool {
        let group = part.share.group;
        let node = match ask.route {
            Route::Leader => self.router.leader(group),
            Route::AnyReplica => self.router.any_replica(group, part.attempts),
        };
        let Some(node) = node else {
            self.pause(part, now, out);
            return false;
        };
        let id = self.next_id;
        self.next_id += 1;
        self.attempts.insert(id, Attempt { owner: ask.owner, part: ask.part, group, node });
        // Silence makes the next attempt longer, for it may have been too much for the time; a refusal is an answer.
        let is_first_map = ask.owner == Owner::Map && self.router.map().is_none();
        let growth_max = if is_first_map { FIRST_MAP_GROWTH_MAX } else { TIMEOUT_GROWTH_MAX };
        let growth = (1u64 << part.timeouts.min(8)).min(growth_max);
        part.current = Some(id);
        part.wake = now.plus(self.config.attempt_timeout_micros.saturating_mul(growth));
        self.retries += u64::from(part.attempts > 0);
        part.attempts += 1;
        let body = body(self, &part.share);
        let Ask { patience_micros, trace, .. } = ask;
        out.send.push((node, Request { id, group, known: self.known, patience_micros, trace, body }));
        true
    }

    /// Decides when to ask again: at once for the first few times (someone else may know), then
    /// after a growing pause. Returns whether at once.
    pub(crate) fn again(&mut self, part: &mut Part, now: Time, out: &mut Outputs) -> bool {
        part.current = None;
        if part.hops < HOPS_MAX {
            part.hops += 1;
            part.wake = now;
            return true;
        }
        self.pause(part, now, out);
        false
    }

    /// Lets a growing, jittered pause pass before the next attempt.
    pub(crate) fn pause(&mut self, part: &mut Part, now: Time, out: &mut Outputs) {
        let longest = self.config.backoff_max_micros;
        let pause = self.config.backoff_min_micros.saturating_mul(1 << part.pauses.min(16)).min(longest);
        part.hops = 0;
        part.pauses += 1;
        part.current = None;
        part.wake = now.plus(self.rng.jitter(pause).max(1));
        if part.pauses.is_multiple_of(PAUSES_PER_MAP) && part.share.group != SHARDMASTER_GROUP {
            self.ask_map(None, now, out);
        }
    }

    /// Asks the sequencer for its newest number, for the call `token`, or only to refresh ours.
    pub(crate) fn ask_sequencer(&mut self, token: Option<u64>, now: Time, out: &mut Outputs) {
        self.sequencer.next.extend(token);
        if self.sequencer.part.is_idle() {
            self.send_shared(Owner::Sequencer, now, out);
        }
    }

    /// Asks the shardmaster for the shard map, for the call `token`, or only to refresh ours.
    pub(crate) fn ask_map(&mut self, token: Option<u64>, now: Time, out: &mut Outputs) {
        self.maps.next.extend(token);
        if self.maps.part.is_idle() {
            self.send_shared(Owner::Map, now, out);
        }
    }

    /// A node speaks of a version of the map: a newer one than ours is asked for, once, and again if that led to nothing.
    pub(crate) fn heard_of_map(&mut self, version: u64, now: Time, out: &mut Outputs) {
        let (heard, asked_at) = self.rumour;
        let is_new = version > self.router.map_version();
        if is_new && (version > heard || now.since(asked_at) >= MAP_AGAIN_MICROS) {
            self.rumour = (version.max(heard), now);
            self.ask_map(None, now, out);
        }
    }

    /// A node that does not lead the shardmaster has shown the map that it knows. If that is the first one, whoever was silent
    /// before was asked at random, which says nothing of how long the leader that is known now needs.
    pub(crate) fn adopt_known(&mut self, map: ShardMap) {
        if self.router.map().is_none() {
            self.maps.part.timeouts = 0;
        }
        self.router.adopt(map);
    }

    /// The shardmaster's leader has said what the newest map is.
    pub(crate) fn map_confirmed(&mut self, now: Time) {
        self.map_due = now.plus(self.rng.jitter(self.config.map_refresh_micros).max(1));
    }

    /// When to ask for a map of its own accord; [`NEVER`] while it is being asked for.
    pub(crate) fn asks_map_at(&self) -> Time {
        if self.maps.part.is_idle() { self.map_due } else { NEVER }
    }

    /// Keeps the newest known revision fresh while calls come in.
    pub(crate) fn refresh(&mut self, now: Time, out: &mut Outputs) {
        if now.since(self.known_at) >= self.config.known_refresh_micros || self.known == Revision(0) {
            self.ask_sequencer(None, now, out);
        }
    }

    /// The sequencer answered: what we know is fresh even where it is the same number.
    pub(crate) fn refreshed(&mut self, now: Time) {
        self.known_at = now;
    }

    fn shared(&mut self, owner: Owner) -> &mut Shared {
        match owner {
            Owner::Sequencer => &mut self.sequencer,
            Owner::Map => &mut self.maps,
            Owner::Call(token) => unreachable!("call {token} is not a shared question"),
        }
    }

    /// Sends the next attempt of a shared question. It begins now, so it serves all who wait.
    pub(crate) fn send_shared(&mut self, owner: Owner, now: Time, out: &mut Outputs) {
        let have_version = self.router.map_version();
        let shared = self.shared(owner);
        let mut next = std::mem::take(&mut shared.next);
        shared.waiting.append(&mut next);
        let idle = Part::new(shared.part.share.clone());
        let mut part = std::mem::replace(&mut shared.part, idle);
        let before = part.wake;
        let patience_micros = self.config.attempt_timeout_micros;
        let ask = Ask { owner, part: 0, route: Route::Leader, patience_micros, trace: None };
        self.send(ask, &mut part, now, out, |_, _| match owner {
            Owner::Map => RequestBody::Map { have_version },
            Owner::Sequencer | Owner::Call(_) => RequestBody::CurrentRevision,
        });
        self.put_back(owner, part, before);
    }

    /// A shared question's attempt failed. It goes on while somebody waits (they have deadlines), or the map is due.
    pub(crate) fn shared_failed(&mut self, owner: Owner, now: Time, out: &mut Outputs) {
        let is_due = owner == Owner::Map && now >= self.map_due;
        let shared = self.shared(owner);
        let wanted = shared.is_wanted() || is_due;
        let idle = Part::new(shared.part.share.clone());
        let mut part = std::mem::replace(&mut shared.part, idle);
        let before = part.wake;
        if wanted {
            // "At once" means a timer that is due, which fires within this very step.
            self.again(&mut part, now, out);
        } else {
            // The next question is another one.
            part = Part::new(part.share);
        }
        self.put_back(owner, part, before);
    }

    /// The newest attempt of a shared question took too long.
    pub(crate) fn shared_timed_out(&mut self, owner: Owner, now: Time, out: &mut Outputs) {
        self.shared(owner).part.timeouts += 1;
        self.shared_failed(owner, now, out);
    }

    /// A shared question was answered; those who came meanwhile are asked for anew.
    pub(crate) fn shared_done(&mut self, owner: Owner, now: Time, out: &mut Outputs) {
        let shared = self.shared(owner);
        let again = !shared.next.is_empty();
        let fresh = Part::new(shared.part.share.clone());
        let before = std::mem::replace(&mut shared.part, fresh).wake;
        self.rearm(owner, before, NEVER);
        if again {
            self.send_shared(owner, now, out);
        }
    }

    fn put_back(&mut self, owner: Owner, part: Part, timer_before: Time) {
        self.rearm(owner, timer_before, part.wake);
        self.shared(owner).part = part;
    }

    /// Moves the owner's timer.
    pub(crate) fn rearm(&mut self, owner: Owner, before: Time, after: Time) {
        if before == after {
            return;
        }
        if before != NEVER {
            self.timers.remove(&(before, owner));
        }
        if after != NEVER {
            self.timers.insert((after, owner));
        }
    }
}
