//! Random histories against the naive model: two replicas, which restart, crash, fall behind and
//! install images, answer every command as the model does, and agree on everything.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::generate::{self, EPOCH};
use common::{Expect, LIMITS, Model};
use paxos::{GroupId, Slot, StateMachine};
use proptest::prelude::*;
use shardkv::command::{Batch, Command};
use shardkv::ops::Op;
use shardkv::request::{OpError, SessionTag};
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, Progress, ReadError, Store, codec};
use std::sync::Arc;

const GROUP: GroupId = GroupId(2);

#[derive(Clone, Debug)]
enum Step {
    Write {
        shard: usize,
        also: u8,
        stale: bool,
        session: usize,
        skip: u64,
        lag: u64,
        gap: u64,
        op: Op,
    },
    /// Sends an earlier write again, newly stamped.
    Again {
        back: usize,
        gap: u64,
    },
    /// A command whose revision does not rise.
    Late {
        back: u64,
    },
    /// The gateway opens a new session.
    Reopen {
        session: usize,
    },
    Compact {
        back: u64,
    },
    Collect {
        budget: usize,
    },
    EndEntry,
    Apply,
    ApplyOther,
    Flush,
    Restart,
    Crash {
        kept: usize,
    },
    /// The other replica installs an image; if asked, writes go on while it is read.
    Install {
        crash: Option<usize>,
    },
    Read {
        shards: u8,
        back: u64,
        op: Op,
    },
    Changes {
        back: u64,
        budget: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0usize..3, 0u8..8, prop::bool::weighted(0.03), 0usize..4, 0u64..2, 0u64..3, 1u64..4, generate::op());
    prop_oneof![
        20 => write.prop_map(|(shard, also, stale, session, skip, lag, gap, op)| {
            Step::Write { shard, also, stale, session, skip, lag, gap, op }
        }),
        5 => (1usize..8, 1u64..3).prop_map(|(back, gap)| Step::Again { back, gap }),
        1 => (0u64..5).prop_map(|back| Step::Late { back }),
        1 => (0usize..4).prop_map(|session| Step::Reopen { session }),
        1 => (0u64..30).prop_map(|back| Step::Compact { back }),
        3 => (1usize..20).prop_map(|budget| Step::Collect { budget }),
        6 => Just(Step::EndEntry),
        5 => Just(Step::Apply),
        3 => Just(Step::ApplyOther),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => (0usize..4).prop_map(|kept| Step::Crash { kept }),
        1 => prop::option::of(0usize..4).prop_map(|crash| Step::Install { crash }),
        6 => (1u8..8, 0u64..40, generate::read()).prop_map(|(shards, back, op)| Step::Read { shards, back, op }),
        2 => (0u64..60, 1usize..6).prop_map(|(back, budget)| Step::Changes { back, budget }),
    ]
}

/// A replica and what a restart of it needs.
struct Replica<S: Store> {
    store: Arc<S>,
    group: DataGroup<S>,
    boot: u64,
}

impl<S: Store> Replica<S> {
    fn new(store: S) -> Replica<S> {
        let store = Arc::new(store);
        let group = DataGroup::open_with(Arc::clone(&store), GROUP, shardkv::first_space(1), LIMITS).unwrap();
        Replica { store, group, boot: 1 }
    }

    fn reopen(&mut self) {
        self.boot += 1;
        self.group =
            DataGroup::open_with(Arc::clone(&self.store), GROUP, shardkv::first_space(self.boot), LIMITS).unwrap();
    }
}

/// Crashing, where the store can: the batches since the last flush that it keeps.
type Crash<S> = fn(&S, usize);

struct World<S: Store> {
    model: Model,
    log: Vec<(Bytes, Vec<(Command, Expect)>)>,
    entry: Vec<(Command, Expect)>,
    one: Replica<S>,
    other: Replica<S>,
    crash: Option<Crash<S>>,
    /// Number, birth, next sequence.
    sessions: [(u128, u64, u64); 4],
    sent: Vec<Command>,
}

impl<S: Store> World<S> {
    fn new(stores: [S; 2], crash: Option<Crash<S>>) -> World<S> {
        let [one, other] = stores.map(Replica::new);
        let sessions = [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1)];
        let (log, entry, sent) = (vec![], vec![], vec![]);
        let mut world = World { model: Model::default(), log, entry, one, other, crash, sessions, sent };
        for (shard, bounds) in generate::shards() {
            let revision = Revision(world.model.last.max(1) + 1);
            world.push(Command::Activate { revision, shard, bounds, epoch: EPOCH, by: MoveId(0) });
        }
        world
    }

    fn push(&mut self, command: Command) {
        let expected = self.model.apply(&command);
        self.entry.push((command, expected));
    }

    fn end_entry(&mut self) {
        let entry = std::mem::take(&mut self.entry);
        let commands: Vec<Command> = entry.iter().map(|(command, _)| command.clone()).collect();
        // Now and then this is an empty batch, and a no-op where there is none.
        let bytes = if commands.is_empty() { Bytes::new() } else { codec::encode(&Batch { commands }) };
        self.log.push((bytes, entry));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { shard, also, stale, session, skip, lag, gap, op } => {
                let shards = generate::shards();
                let also = (0..3).filter(|id| also & 1 << id != 0).map(|id| (shards[id].0, EPOCH)).collect();
                let epoch = if stale { Epoch(EPOCH.0 + 1) } else { EPOCH };
                let (number, born, next) = self.sessions[session];
                let sequence = next + skip;
                self.sessions[session].2 = sequence + 1;
                let low_water = sequence.saturating_sub(lag + 1);
                let session = SessionTag { session: number, born: Revision(born), sequence, low_water };
                let revision = Revision(self.model.last + gap);
                let command = Command::Write { revision, shard: shards[shard].0, epoch, also, session, op };
                self.sent.push(command.clone());
                self.push(command);
            }
            Step::Again { back, gap } => {
                let Some(mut command) = self.sent.len().checked_sub(back).map(|at| self.sent[at].clone()) else {
                    return;
                };
                if let Command::Write { revision, .. } = &mut command {
                    *revision = Revision(self.model.last + gap);
                }
                self.push(command);
            }
            Step::Late { back } => {
                let Some(mut command) = self.sent.last().cloned() else { return };
                if let Command::Write { revision, session, .. } = &mut command {
                    *revision = Revision(self.model.last.saturating_sub(back));
                    session.sequence += 100;
                }
                self.push(command);
            }
            Step::Reopen { session } => {
                let (number, ..) = self.sessions[session];
                self.sessions[session] = (number + 10, self.model.last, 1);
            }
            Step::Compact { back } => {
                let revision = Revision(self.model.last.saturating_sub(back));
                self.push(Command::Compact { revision });
            }
            Step::Collect { budget } => {
                let progress = self.one.group.reader().collect(budget).unwrap();
                assert_ne!(progress, Progress::Paused, "no image is open");
            }
            Step::EndEntry => self.end_entry(),
            Step::Apply => self.apply(),
            Step::ApplyOther => {
                if (self.other.group.applied().0 as usize) < self.log.len() {
                    catch_up(&mut self.other.group, &self.log, 1);
                }
            }
            Step::Flush => self.one.group.flush().unwrap(),
            Step::Restart => self.one.reopen(),
            Step::Crash { kept } => {
                let Some(crash) = self.crash else { return };
                crash(&self.one.store, kept);
                self.one.reopen();
                catch_up(&mut self.one.group, &self.log, usize::MAX);
            }
            Step::Install { crash } => self.install(crash),
            Step::Read { shards, back, op } => self.read(shards, back, &op),
            Step::Changes { back, budget } => self.changes(back, budget),
        }
    }

    fn apply(&mut self) {
        self.end_entry();
        catch_up(&mut self.one.group, &self.log, usize::MAX);
    }

    /// The other replica installs an image of the first, which goes on applying meanwhile.
    fn install(&mut self, crash: Option<usize>) {
        let mut source = self.one.group.snapshot().unwrap();
        let mut sink = self.other.group.begin_install().unwrap();
        sink.piece(source.next_piece(64).unwrap().unwrap()).unwrap();
        assert_eq!(self.one.group.reader().collect(9).unwrap(), Progress::Paused);
        self.apply();
        while let Some(piece) = source.next_piece(64).unwrap() {
            sink.piece(piece).unwrap();
        }
        if source.slot() < self.other.group.applied() {
            self.other.group.finish_install(sink).unwrap_err();
            return;
        }
        self.other.group.finish_install(sink).unwrap();
        assert_eq!(self.other.group.applied(), source.slot());
        if let (Some(kept), Some(crash)) = (crash, self.crash) {
            crash(&self.other.store, kept);
            self.other.reopen();
            assert!(self.other.group.applied() >= source.slot(), "an installed image is durable");
        }
    }

    fn read(&mut self, named: u8, back: u64, op: &Op) {
        self.apply();
        let shards: Vec<(ShardId, Bounds)> =
            generate::shards().into_iter().enumerate().filter(|(at, _)| named & 1 << at != 0).map(|(_, s)| s).collect();
        let inside: Vec<Bounds> = shards.iter().map(|(_, bounds)| bounds.clone()).collect();
        let at = self.model.last.saturating_sub(back);
        let named: Vec<(ShardId, Epoch)> = shards.iter().map(|(id, _)| (*id, EPOCH)).collect();
        let found = self.one.group.reader().read(&named, op, Revision(at));
        let expected = self.model.read(op, at, &inside).map_err(|error| match error {
            OpError::Compacted { floor } => ReadError::Compacted { floor },
            other => panic!("a read cannot fail with {other:?}"),
        });
        assert_eq!(found, expected, "{op:?} at {at}");
    }

    /// The events behind a revision are the differences between the model's states.
    fn changes(&mut self, back: u64, budget: usize) {
        self.apply();
        let from = self.model.last.saturating_sub(back).max(self.model.floor);
        let named = generate::shards().map(|(id, _)| (id, EPOCH));
        let (mut next, upto) = (Revision(from), Revision(self.model.last));
        let mut found = Vec::new();
        while next <= upto {
            let changes =
                self.one.group.reader().changes(&named, &Keys::From(Bytes::new()), (next, upto), budget, true);
            let changes = changes.unwrap();
            assert!(changes.next > next, "no progress at {next}");
            next = changes.next;
            found.extend(changes.events);
        }
        assert!(found.is_sorted_by_key(|event| (event.revision, event.operation)));
        // A key that a transaction creates and deletes leaves a deletion of nothing.
        found.retain(|event| event.kv.is_some() || self.model.at(event.revision.0 - 1).contains_key(&event.key));
        let mut found: Vec<_> =
            found.into_iter().map(|event| (event.revision.0, event.key, event.kv, event.prev_kv)).collect();
        found.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut expected = Vec::new();
        for revision in from.max(1)..=self.model.last {
            let (before, after) = (self.model.at(revision - 1), self.model.at(revision));
            let keys: std::collections::BTreeSet<&Bytes> = before.keys().chain(after.keys()).collect();
            for key in keys.into_iter().filter(|key| before.get(*key) != after.get(*key)) {
                let prev = before.get(key).filter(|_| revision > self.model.floor).cloned();
                expected.push((revision, key.clone(), after.get(key).cloned(), prev));
            }
        }
        assert_eq!(found, expected, "from {from}, floor {}", self.model.floor);
    }

    fn finish(mut self) {
        self.apply();
        catch_up(&mut self.other.group, &self.log, 1);
        let same = |one: &DataGroup<S>, other: &DataGroup<S>| {
            assert_eq!(
                (one.applied(), one.last_revision(), one.hash()),
                (other.applied(), other.last_revision(), other.hash())
            );
        };
        same(&self.one.group, &self.other.group);
        while let Progress::More(_) = self.other.group.reader().collect(5).unwrap() {}
        let named = generate::shards().map(|(id, _)| (id, EPOCH));
        let all = Op::Range(shardkv::ops::Range::all(Keys::From(Bytes::new())));
        for at in self.model.floor..=self.model.last {
            let at = Revision(at);
            let (one, other) =
                (self.one.group.reader().read(&named, &all, at), self.other.group.reader().read(&named, &all, at));
            assert_eq!(one, other, "at {at}");
        }
        // Retries of everything, evicted and expired sessions among them: the tables agree.
        for mut command in std::mem::take(&mut self.sent) {
            if let Command::Write { revision, .. } = &mut command {
                *revision = Revision(self.model.last + 1);
            }
            self.push(command);
        }
        self.one.reopen();
        self.end_entry();
        catch_up(&mut self.one.group, &self.log, usize::MAX);
        catch_up(&mut self.other.group, &self.log, 1);
        same(&self.one.group, &self.other.group);
    }
}

/// Applies what is left of the log, `at_once` entries per call, and checks the answers.
fn catch_up<S: Store>(group: &mut DataGroup<S>, log: &[(Bytes, Vec<(Command, Expect)>)], at_once: usize) {
    let from = group.applied().0 as usize;
    for chunk in (from..log.len()).collect::<Vec<_>>().chunks(at_once.min(log.len().max(1))) {
        let entries: Vec<(Slot, Bytes)> = chunk.iter().map(|at| (Slot(*at as u64 + 1), log[*at].0.clone())).collect();
        let outcomes = group.apply(&entries).unwrap();
        assert_eq!(outcomes.len(), entries.len());
        for (at, outcomes) in chunk.iter().zip(outcomes) {
            assert_eq!(outcomes.len(), log[*at].1.len());
            for ((command, expected), outcome) in log[*at].1.iter().zip(&outcomes) {
                expected.check(outcome, command);
            }
        }
    }
}

/// `PROPTEST_CASES` for long runs.
fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(64), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn memory_store_replicas_follow_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new([MemoryStore::new(), MemoryStore::new()], Some(MemoryStore::crash_keeping));
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}

#[cfg(feature = "rocks")]
proptest! {
    #![proptest_config(ProptestConfig { cases: cases(12), max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn rocks_store_replicas_follow_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |at: usize| shardkv::RocksStore::open(directories[at].path(), shardkv::RocksOptions::default()).unwrap();
        let mut world = World::new([open(0), open(1)], None);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}
