//! A naive model of a data group, and generators of operations.
//!
//! The model keeps a whole copy of the keyspace per revision and every answer it ever gave, so each
//! rule is a line that can be checked by eye.
#![allow(dead_code)] // each test binary uses its part

pub mod generate;

use bytes::Bytes;
use shardkv::command::{Command, Outcome};
use shardkv::ops::{
    Compare, Delete, KeyValue, Op, OpResult, Operand, Put, Range, RangeResult, Relation, Sort, SortTarget, Txn,
};
use shardkv::request::{OpError, SessionTag};
use shardkv::types::{Bounds, Epoch, Keys, Revision, ShardId};
use std::collections::BTreeMap;

pub type Map = BTreeMap<Bytes, KeyValue>;

/// Small limits, so that tests meet them.
pub const LIMITS: shardkv::SessionLimits = shardkv::SessionLimits { sessions_max: 2, outcomes_per_session_max: 3 };

#[derive(Clone, Default)]
struct Session {
    born: u64,
    low_water: u64,
    last_use: u64,
    answers: BTreeMap<u64, (Revision, Outcome)>,
}

#[derive(Clone, Default)]
struct Table {
    sessions: BTreeMap<u128, Session>,
    evicted: u64,
}

#[derive(Clone, Default)]
pub struct Model {
    /// The keyspace from each revision on.
    states: BTreeMap<u64, Map>,
    pub last: u64,
    pub shards: BTreeMap<ShardId, (Bounds, Epoch)>,
    pub floor: u64,
    tables: BTreeMap<ShardId, Table>,
}

/// What the model expects.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    Exactly(Outcome),
    /// A repeated answer that may rest on history below the floor.
    OrExpired(Outcome),
    /// A refusal whose words do not matter.
    Malformed,
}

impl Expect {
    pub fn check(&self, outcome: &Outcome, what: &dyn std::fmt::Debug) {
        let fits = match self {
            Expect::Exactly(expected) => outcome == expected,
            Expect::OrExpired(expected) => outcome == expected || *outcome == Outcome::Failed(OpError::SessionExpired),
            Expect::Malformed => matches!(outcome, Outcome::Failed(OpError::Malformed(_))),
        };
        assert!(fits, "{what:?}\nanswered {outcome:?}\nexpected {self:?}");
    }
}

impl Model {
    /// The keyspace at a revision.
    pub fn at(&self, revision: u64) -> Map {
        self.states.range(..=revision).next_back().map(|(_, map)| map.clone()).unwrap_or_default()
    }

    pub fn apply(&mut self, command: &Command) -> Expect {
        match command {
            Command::Depart { .. }
            | Command::Freeze { .. }
            | Command::Stay { .. }
            | Command::Drop { .. }
            | Command::Arrive { .. }
            | Command::Import { .. }
            | Command::Discard { .. }
            | Command::Reshape { .. } => panic!("the model's shards do not move: {command:?}"),
            Command::Compact { revision } => {
                self.floor = self.floor.max(revision.0);
                Expect::Exactly(Outcome::Compacted)
            }
            Command::Activate { revision, shard, bounds, epoch, .. } => {
                if !self.stamp(*revision) {
                    return Expect::Malformed;
                }
                match self.shards.get(shard) {
                    Some((_, owned)) if owned > epoch => Expect::Exactly(Outcome::WrongShard),
                    _ => {
                        self.shards.insert(*shard, (bounds.clone(), *epoch));
                        Expect::Exactly(Outcome::Activated)
                    }
                }
            }
            Command::Write { revision, shard, epoch, also, session, op } => {
                if !self.stamp(*revision) {
                    return Expect::Malformed;
                }
                let mut named = vec![(*shard, *epoch)];
                named.extend(also);
                if named.iter().any(|(id, epoch)| self.shards.get(id).is_none_or(|(_, owned)| owned != epoch)) {
                    return Expect::Exactly(Outcome::WrongShard);
                }
                let bounds: Vec<Bounds> = named.iter().map(|(id, _)| self.shards[id].0.clone()).collect();
                if strays(op, &bounds) {
                    return Expect::Malformed;
                }
                self.write(revision.0, *shard, session, op)
            }
        }
    }

    fn stamp(&mut self, revision: Revision) -> bool {
        let rises = revision.0 > self.last;
        self.last = self.last.max(revision.0);
        rises
    }

    fn write(&mut self, revision: u64, shard: ShardId, tag: &SessionTag, op: &Op) -> Expect {
        let expired = Expect::Exactly(Outcome::Failed(OpError::SessionExpired));
        if tag.born.0 > revision {
            return Expect::Malformed;
        }
        if tag.sequence < tag.low_water {
            return expired;
        }
        let table = self.tables.entry(shard).or_default();
        match table.sessions.get(&tag.session) {
            None if tag.born.0 <= table.evicted => return expired,
            None => {}
            Some(session) if tag.sequence < session.low_water => return expired,
            Some(session) => {
                if let Some((first, answer)) = session.answers.get(&tag.sequence) {
                    return match first.0 > self.floor && !reads_below(op, self.floor) {
                        true => Expect::Exactly(answer.clone()),
                        false => Expect::OrExpired(answer.clone()),
                    };
                }
                let kept = session.answers.keys().filter(|sequence| **sequence >= tag.low_water).count();
                if kept >= LIMITS.outcomes_per_session_max {
                    return Expect::Exactly(Outcome::Failed(OpError::Overloaded));
                }
            }
        }
        let mut map = self.at(revision - 1);
        let result = match self.evaluate(op, revision, &mut map) {
            Ok(result) => result,
            Err(error) => return Expect::Exactly(Outcome::Failed(error)),
        };
        self.states.insert(revision, map);
        let outcome = Outcome::Done { revision: Revision(revision), result };
        let table = self.tables.entry(shard).or_default();
        let session = table.sessions.entry(tag.session).or_insert(Session { born: tag.born.0, ..Session::default() });
        session.last_use = revision;
        session.low_water = session.low_water.max(tag.low_water);
        session.answers.insert(tag.sequence, (Revision(revision), outcome.clone()));
        let low_water = session.low_water;
        session.answers.retain(|sequence, _| *sequence >= low_water);
        if table.sessions.len() > LIMITS.sessions_max {
            let (id, oldest) = table.sessions.iter().min_by_key(|(_, session)| session.last_use).unwrap();
            (table.evicted, _) = (oldest.last_use, oldest.born);
            let id = *id;
            table.sessions.remove(&id);
        }
        Expect::Exactly(outcome)
    }

    /// Evaluates on `map`, the state below `revision`, and changes it.
    pub fn evaluate(&self, op: &Op, revision: u64, map: &mut Map) -> Result<OpResult, OpError> {
        let before = map.clone();
        self.check(op, Some(revision), &before)?;
        self.run(op, revision, map, &before)
    }

    /// What a read at `at` answers over the keys in `inside`.
    pub fn read(&self, op: &Op, at: u64, inside: &[Bounds]) -> Result<OpResult, OpError> {
        let clipped = Model {
            states: self.states.iter().map(|(revision, map)| (*revision, clip(map.clone(), inside))).collect(),
            floor: self.floor,
            ..Model::default()
        };
        let own_revision = matches!(op, Op::Range(range) if range.revision.0 > 0);
        if at < self.floor && !own_revision {
            return Err(OpError::Compacted { floor: Revision(self.floor) });
        }
        let before = clipped.at(at);
        clipped.check(op, None, &before)?;
        clipped.run(op, at + 1, &mut before.clone(), &before)
    }

    /// Errors on the path that the state before chooses.
    fn check(&self, op: &Op, write: Option<u64>, before: &Map) -> Result<(), OpError> {
        match op {
            Op::Range(range) if write.is_some_and(|revision| range.revision.0 >= revision) => {
                Err(OpError::FutureRevision { current: Revision(write.unwrap() - 1) })
            }
            Op::Range(range) if range.revision.0 > 0 && range.revision.0 < self.floor => {
                Err(OpError::Compacted { floor: Revision(self.floor) })
            }
            Op::Put(put) if (put.ignore_value || put.ignore_lease) && !before.contains_key(&put.key) => {
                Err(OpError::KeyNotFound)
            }
            Op::Range(_) | Op::Put(_) | Op::Delete(_) => Ok(()),
            Op::Txn(txn) => branch(txn, before).1.iter().try_for_each(|op| self.check(op, write, before)),
        }
    }

    fn run(&self, op: &Op, revision: u64, map: &mut Map, before: &Map) -> Result<OpResult, OpError> {
        Ok(match op {
            Op::Range(range) if range.revision.0 > 0 => OpResult::Range(ranged(range, &self.at(range.revision.0))),
            Op::Range(range) => OpResult::Range(ranged(range, map)),
            Op::Put(put) if (put.ignore_value || put.ignore_lease) && !map.contains_key(&put.key) => {
                return Err(OpError::KeyNotFound);
            }
            Op::Put(put) => OpResult::Put { prev_kv: do_put(put, revision, map) },
            Op::Delete(delete) => do_delete(delete, map),
            Op::Txn(txn) => {
                let (succeeded, ops) = branch(txn, before);
                let results = ops.iter().map(|op| self.run(op, revision, map, before)).collect::<Result<_, _>>()?;
                OpResult::Txn { succeeded, results }
            }
        })
    }
}

fn clip(mut map: Map, inside: &[Bounds]) -> Map {
    map.retain(|key, _| inside.iter().any(|bounds| bounds.contains(key)));
    map
}

fn reads_below(op: &Op, floor: u64) -> bool {
    match op {
        Op::Range(range) => range.revision.0 > 0 && range.revision.0 < floor,
        Op::Put(_) | Op::Delete(_) => false,
        Op::Txn(txn) => txn.success.iter().chain(&txn.failure).any(|op| reads_below(op, floor)),
    }
}

fn strays(op: &Op, shards: &[Bounds]) -> bool {
    // Our test keyspaces have few boundaries: a range strays if it holds a probe outside.
    let inside = |keys: &Keys| {
        let (start, end) = keys.bounds();
        if let shardkv::types::KeysEnd::Before(end) = end
            && end <= start
        {
            return true;
        }
        let mut probes: Vec<Bytes> = vec![Bytes::copy_from_slice(start)];
        probes.extend(generate::boundaries().into_iter().filter(|key| keys.contains(key)));
        probes.iter().all(|key| shards.iter().any(|bounds| bounds.contains(key)))
    };
    let mut stray = false;
    op.for_each_keys(&mut |keys, _| stray |= !inside(keys));
    op.for_each_put(&mut |put| stray |= !shards.iter().any(|bounds| bounds.contains(&put.key)));
    stray
}

fn branch<'t>(txn: &'t Txn, before: &Map) -> (bool, &'t [Op]) {
    let holds = txn.compare.iter().all(|compare| holds(compare, before));
    (holds, if holds { &txn.success } else { &txn.failure })
}

fn holds(compare: &Compare, map: &Map) -> bool {
    let found: Vec<&KeyValue> = map.values().filter(|pair| compare.keys.contains(&pair.key)).collect();
    let zero = KeyValue::default();
    let missing = found.is_empty();
    if missing && matches!(compare.operand, Operand::Value(_)) {
        return false;
    }
    let found = if missing { vec![&zero] } else { found };
    found.iter().all(|pair| {
        let ordering = match &compare.operand {
            Operand::Version(v) => (pair.version as i64).cmp(v),
            Operand::Create(v) => (pair.create_revision.0 as i64).cmp(v),
            Operand::Mod(v) => (pair.mod_revision.0 as i64).cmp(v),
            Operand::Lease(v) => pair.lease.cmp(v),
            Operand::Value(v) => pair.value.cmp(v),
        };
        match compare.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
            Relation::NotEqual => ordering.is_ne(),
        }
    })
}

/// A range over a map, as the API's description says it.
pub fn ranged(range: &Range, map: &Map) -> RangeResult {
    let all: Vec<&KeyValue> = map.values().filter(|pair| range.keys.contains(&pair.key)).collect();
    let count = all.len() as u64;
    if range.count_only {
        return RangeResult { kvs: vec![], more: false, count };
    }
    let min = |revision: Revision, bound: Revision| bound.0 == 0 || revision >= bound;
    let max = |revision: Revision, bound: Revision| bound.0 == 0 || revision <= bound;
    let mut kvs: Vec<KeyValue> = all.into_iter().cloned().collect();
    kvs.retain(|pair| {
        min(pair.mod_revision, range.mod_revision_min)
            && max(pair.mod_revision, range.mod_revision_max)
            && min(pair.create_revision, range.create_revision_min)
            && max(pair.create_revision, range.create_revision_max)
    });
    let Sort { target, descending } = range.sort;
    let mut order = |f: &dyn Fn(&KeyValue, &KeyValue) -> std::cmp::Ordering| {
        kvs.sort_by(|a, b| if descending { f(b, a) } else { f(a, b) });
    };
    match target {
        SortTarget::Key => order(&|a, b| a.key.cmp(&b.key)),
        SortTarget::Version => order(&|a, b| a.version.cmp(&b.version)),
        SortTarget::Create => order(&|a, b| a.create_revision.cmp(&b.create_revision)),
        SortTarget::Mod => order(&|a, b| a.mod_revision.cmp(&b.mod_revision)),
        SortTarget::Value => order(&|a, b| a.value.cmp(&b.value)),
    }
    let more = range.limit > 0 && kvs.len() as u64 > range.limit;
    if more {
        kvs.truncate(range.limit as usize);
    }
    if range.keys_only {
        kvs.iter_mut().for_each(|pair| pair.value = Bytes::new());
    }
    RangeResult { kvs, more, count }
}

fn do_put(put: &Put, revision: u64, map: &mut Map) -> Option<KeyValue> {
    let old = map.get(&put.key).cloned();
    let fresh = KeyValue { create_revision: Revision(revision), ..KeyValue::default() };
    let base = old.clone().unwrap_or(fresh);
    let pair = KeyValue {
        key: put.key.clone(),
        value: if put.ignore_value { base.value } else { put.value.clone() },
        lease: if put.ignore_lease { base.lease } else { put.lease },
        create_revision: base.create_revision,
        mod_revision: Revision(revision),
        version: base.version + 1,
    };
    map.insert(put.key.clone(), pair);
    old.filter(|_| put.prev_kv)
}

fn do_delete(delete: &Delete, map: &mut Map) -> OpResult {
    let gone: Vec<KeyValue> = map.values().filter(|pair| delete.keys.contains(&pair.key)).cloned().collect();
    gone.iter().for_each(|pair| {
        map.remove(&pair.key);
    });
    OpResult::Delete { deleted: gone.len() as u64, prev_kvs: if delete.prev_kv { gone } else { vec![] } }
}
