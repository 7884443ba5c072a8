//! Clients: each does one random operation at a time through one gateway, and records what it saw.

use crate::world::{Event, Phase, World};
use checkers::{Answer, ClientId, Guard, Key, KeyState, Operation, Outcome, ReadMode, Revision, Seen, Time, Value};
use gateway::{AnswerBody, Call, CallError, Input};
use shardkv::ops::{Compare, Delete, KeyValue, Op, OpResult, Operand, Put, Range, Relation, Txn};
use shardkv::request::{OpError, TraceContext};
use shardkv::types::Keys;
use std::collections::BTreeMap;

/// A call is answered within this.
const DEADLINE_MICROS: u64 = 5_000_000;
/// Most reads of the past go back by up to this many revisions, some as far as they can.
const PAST_REVISIONS_MAX: u64 = 60;

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its id; a new one after its gateway died.
    pub id: ClientId,
    /// Its gateway.
    pub gateway: usize,
    /// What it waits for: when it asked, and what (nothing if it is not recorded).
    pub pending: Option<(u64, Option<Operation>)>,
    /// The newest `mod_revision` that it knows of each key.
    known: BTreeMap<Key, Revision>,
    newest: Revision,
    written: u64,
}

impl Client {
    /// A client of a gateway.
    pub fn new(id: ClientId, gateway: usize) -> Client {
        Client { id, gateway, pending: None, known: BTreeMap::new(), newest: Revision(1), written: 0 }
    }

    fn learn(&mut self, operation: &Operation, header: Revision, answer: &Answer) {
        self.newest = self.newest.max(header);
        match answer {
            Answer::Put | Answer::TxnDone => {
                let keys: Vec<Key> = operation.puts().into_iter().map(|(key, _)| key.clone()).collect();
                self.known.extend(keys.into_iter().map(|key| (key, header)));
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
                let written = |state: &KeyState| state.seen.as_ref().map_or(Revision(0), |seen| seen.mod_revision);
                self.known.extend(kvs.iter().map(|state| (state.key.clone(), written(state))));
            }
        }
    }
}

impl World {
    /// A client begins its next operation.
    pub(crate) fn client_next(&mut self, index: usize) {
        if self.phase >= Phase::Quiet || self.clients[index].pending.is_some() {
            return;
        }
        if self.choices.chance(5) {
            let gateway = usize::try_from(self.choices.below(self.gateways.len() as u64)).unwrap_or_default();
            self.clients[index].gateway = gateway;
            self.clients[index].id = self.new_client_id();
        }
        if self.gateways[self.clients[index].gateway].machine.is_none() {
            self.schedule(50_000, Event::ClientNext(index));
            return;
        }
        if self.plan.compaction.is_some() && self.choices.chance(10) {
            let back = self.choices.below(PAST_REVISIONS_MAX);
            let revision = shardkv::types::Revision(self.clients[index].newest.0.saturating_sub(back).max(1));
            self.begin_call(index, None, Call::Compact { revision, physical: false });
            return;
        }
        let operation = self.choose(index);
        let call = call_of(&operation);
        self.begin_call(index, Some(operation), call);
    }

    fn begin_call(&mut self, index: usize, operation: Option<Operation>, call: Call) {
        let (client, gateway) = (self.clients[index].id, self.clients[index].gateway);
        self.trace.line(
            self.now,
            format_args!("client {} begins {}", client.0, operation.as_ref().map_or("compaction".to_owned(), brief)),
        );
        self.clients[index].pending = Some((self.now, operation));
        let token = self.events << 8 | (index as u64 & 0xff);
        let site = &mut self.gateways[gateway];
        site.calls.insert(token, index);
        let deadline = site.clock.read(self.now).plus(DEADLINE_MICROS);
        // Few are followed, and nothing may hang on it.
        let trace = (index == 0).then_some(TraceContext { trace: u128::from(token), span: token });
        self.gateway_step(gateway, Input::Call { token, call, deadline, trace });
    }

    fn any_key(&mut self) -> Key {
        Key(self.choices.pick(&self.plan.keys).cloned().unwrap_or_default())
    }

    fn new_value(&mut self, index: usize) -> Value {
        self.clients[index].written += 1;
        let number = self.clients[index].written;
        // Some are long, so that batches and frames differ in size.
        let long = if self.choices.chance(300) { self.choices.between(200, 3_000) } else { 0 };
        let padding = usize::try_from(long).unwrap_or_default();
        Value::new(format!("c{index}-{number}{}", ".".repeat(padding)))
    }

    fn all_keys(&self, mode: ReadMode) -> Operation {
        Operation::Range { start: Key::new("a"), end: Key::new("{"), mode }
    }

    fn choose(&mut self, index: usize) -> Operation {
        let (key, value) = (self.any_key(), self.new_value(index));
        let newest = self.clients[index].newest;
        match self.choices.below(100) {
            0..28 => Operation::Put { key, value },
            28..34 => Operation::Delete { key },
            34..36 => {
                let other = self.any_key();
                let (start, end) = if key <= other { (key, other) } else { (other, key) };
                Operation::DeleteRange { start, end }
            }
            36..54 => Operation::Get { key, mode: ReadMode::Linearizable },
            54..59 => Operation::Get { key, mode: ReadMode::Serializable },
            59..73 => {
                let mod_revision = self.clients[index].known.get(&key).copied().unwrap_or_default();
                Operation::Txn { guards: vec![Guard { key: key.clone(), mod_revision }], puts: vec![(key, value)] }
            }
            73..82 => self.multi_put(index, key, value),
            82..92 => self.all_keys(ReadMode::Linearizable),
            92..96 => {
                let other = self.any_key();
                let (start, end) = if key <= other { (key, other) } else { (other, key) };
                Operation::Range { start, end, mode: ReadMode::Linearizable }
            }
            _ => {
                let most = if self.choices.chance(300) { newest.0 } else { PAST_REVISIONS_MAX };
                let back = self.choices.below(most).min(newest.0 - 1);
                self.all_keys(ReadMode::At(Revision(newest.0 - back)))
            }
        }
    }

    fn multi_put(&mut self, index: usize, key: Key, value: Value) -> Operation {
        let mut puts = BTreeMap::from([(key, value)]);
        let (other, value) = (self.any_key(), self.new_value(index));
        puts.insert(other, value);
        let mut guards = Vec::new();
        if self.choices.chance(500) {
            let key = self.any_key();
            let mod_revision = self.clients[index].known.get(&key).copied().unwrap_or_default();
            guards.push(Guard { key, mod_revision });
        }
        Operation::Txn { guards, puts: puts.into_iter().collect() }
    }

    /// A gateway answers a client.
    pub(crate) fn answered(&mut self, index: usize, result: Result<gateway::Answer, CallError>) {
        let Some((invoked, operation)) = self.clients[index].pending.take() else { return };
        let think = self.choices.skewed(0, self.plan.think_micros_max);
        self.schedule(think, Event::ClientNext(index));
        let Some(operation) = operation else {
            let done = matches!(&result, Ok(answer) if answer.body == AnswerBody::Compacted);
            self.coverage.hit(if done { "client.compacted" } else { "client.compaction_failed" });
            self.trace.line(self.now, format_args!("client {} compacted: {result:?}", self.clients[index].id.0));
            return;
        };
        let outcome = self.outcome(&operation, result);
        if self.phase == Phase::FinalReads && matches!(outcome, Outcome::Answered { .. }) {
            self.unread.remove(&self.clients[index].gateway);
        }
        if let Outcome::Answered { header, answer, .. } = &outcome {
            self.clients[index].learn(&operation, *header, answer);
        }
        self.record(index, invoked, operation, outcome);
    }

    /// A client's gateway died.
    pub(crate) fn call_lost(&mut self, index: usize) {
        let Some((invoked, operation)) = self.clients[index].pending.take() else { return };
        if let Some(operation) = operation {
            self.record(index, invoked, operation, Outcome::Unknown);
        }
        self.clients[index].id = self.new_client_id();
        self.schedule(100_000, Event::ClientNext(index));
    }

    fn record(&mut self, index: usize, invoked: u64, operation: Operation, outcome: Outcome) {
        let client = self.clients[index].id;
        self.trace.line(self.now, format_args!("client {} {}", client.0, brief_outcome(&outcome)));
        self.coverage.hit(match (&outcome, &operation) {
            (Outcome::Unknown, _) => "client.unknown",
            (Outcome::Refused, _) => "client.refused",
            (_, Operation::Get { mode: ReadMode::At(_), .. } | Operation::Range { mode: ReadMode::At(_), .. }) => {
                "reads.at_old_revision"
            }
            (_, Operation::Range { .. }) => "reads.over_groups",
            (_, Operation::Get { .. }) => "reads.of_a_key",
            (_, Operation::DeleteRange { .. }) => "client.deleted_range",
            _ => "client.acknowledged",
        });
        self.history.events.push(checkers::Event { client, invoked: Time(invoked), operation, outcome });
    }

    fn outcome(&self, operation: &Operation, result: Result<gateway::Answer, CallError>) -> Outcome {
        let answer = match result {
            Ok(answer) => answer,
            Err(CallError::Unavailable { maybe_done: true } | CallError::Failed(OpError::SessionExpired)) => {
                return Outcome::Unknown;
            }
            Err(_) => return Outcome::Refused,
        };
        let AnswerBody::Op(result) = answer.body else { return Outcome::Unknown };
        let answered = translate(operation, result);
        Outcome::Answered { at: Time(self.now), header: Revision(answer.revision.0), answer: answered }
    }

    /// Every gateway reads everything; the answers close the history.
    pub(crate) fn final_read(&mut self, gateway: usize) {
        let mut client = Client::new(self.new_client_id(), gateway);
        client.pending = None;
        self.clients.push(client);
        let operation = self.all_keys(ReadMode::Linearizable);
        let call = call_of(&operation);
        self.begin_call(self.clients.len() - 1, Some(operation), call);
    }
}

fn seen(kv: KeyValue) -> Seen {
    Seen {
        value: Value(kv.value),
        mod_revision: Revision(kv.mod_revision.0),
        create_revision: Revision(kv.create_revision.0),
        version: kv.version,
    }
}

fn states(kvs: Vec<KeyValue>) -> Vec<KeyState> {
    kvs.into_iter().map(|kv| KeyState { key: Key(kv.key.clone()), seen: Some(seen(kv)) }).collect()
}

fn translate(operation: &Operation, result: OpResult) -> Answer {
    match (operation, result) {
        (Operation::Put { .. }, OpResult::Put { .. }) => Answer::Put,
        (Operation::Delete { .. }, OpResult::Delete { mut prev_kvs, .. }) => {
            Answer::Delete { previous: prev_kvs.pop().map(seen) }
        }
        (Operation::DeleteRange { .. }, OpResult::Delete { prev_kvs, .. }) => {
            Answer::DeletedRange { previous: states(prev_kvs) }
        }
        (Operation::Get { .. } | Operation::Range { .. }, OpResult::Range(range)) => {
            Answer::Read { kvs: states(range.kvs) }
        }
        (Operation::Txn { .. }, OpResult::Txn { succeeded: true, .. }) => Answer::TxnDone,
        (Operation::Txn { guards, .. }, OpResult::Txn { succeeded: false, results }) => {
            let state = |(guard, result): (&Guard, OpResult)| match result {
                OpResult::Range(mut range) => KeyState { key: guard.key.clone(), seen: range.kvs.pop().map(seen) },
                other => panic!("a guard's range is answered by {other:?}"),
            };
            Answer::TxnRefused { kvs: guards.iter().zip(results).map(state).collect() }
        }
        (operation, result) => panic!("{operation:?} is answered by {result:?}"),
    }
}

fn put(key: &Key, value: &Value) -> Op {
    let (key, value) = (key.0.clone(), value.0.clone());
    Op::Put(Put { key, value, lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false })
}

fn range(keys: Keys, mode: ReadMode) -> Op {
    let revision = match mode {
        ReadMode::At(revision) => shardkv::types::Revision(revision.0),
        ReadMode::Linearizable | ReadMode::Serializable => shardkv::types::Revision(0),
    };
    Op::Range(Range { revision, ..Range::all(keys) })
}

fn one(key: &Key) -> Keys {
    Keys::One(key.0.clone())
}

fn call_of(operation: &Operation) -> Call {
    let mut serializable = false;
    let op = match operation {
        Operation::Put { key, value } => put(key, value),
        Operation::Delete { key } => Op::Delete(Delete { keys: one(key), prev_kv: true }),
        Operation::DeleteRange { start, end } => {
            let keys = Keys::Range { start: start.0.clone(), end: end.0.clone() };
            Op::Delete(Delete { keys, prev_kv: true })
        }
        Operation::Get { key, mode } => {
            serializable = *mode == ReadMode::Serializable;
            range(one(key), *mode)
        }
        Operation::Range { start, end, mode } => {
            serializable = *mode == ReadMode::Serializable;
            range(Keys::Range { start: start.0.clone(), end: end.0.clone() }, *mode)
        }
        Operation::Txn { guards, puts } => {
            let compare = |guard: &Guard| Compare {
                keys: one(&guard.key),
                relation: Relation::Equal,
                operand: Operand::Mod(i64::try_from(guard.mod_revision.0).unwrap_or(i64::MAX)),
            };
            Op::Txn(Txn {
                compare: guards.iter().map(compare).collect(),
                success: puts.iter().map(|(key, value)| put(key, value)).collect(),
                failure: guards.iter().map(|guard| range(one(&guard.key), ReadMode::Linearizable)).collect(),
            })
        }
    };
    Call::Op { op, serializable }
}

/// An operation without its values.
fn brief(operation: &Operation) -> String {
    match operation {
        Operation::Put { key, value } => format!("put {key} of {} bytes", value.0.len()),
        Operation::Txn { guards, puts } => {
            let keys: Vec<&Key> = puts.iter().map(|(key, _)| key).collect();
            format!("txn if {guards:?} put {keys:?}")
        }
        Operation::Delete { .. } | Operation::DeleteRange { .. } | Operation::Get { .. } | Operation::Range { .. } => {
            format!("{operation:?}")
        }
    }
}

/// What came of it: of a read the revisions that it saw.
fn brief_outcome(outcome: &Outcome) -> String {
    let Outcome::Answered { header, answer, .. } = outcome else { return format!("{outcome:?}") };
    match answer {
        Answer::Read { kvs } | Answer::TxnRefused { kvs } => {
            let revision = |state: &KeyState| state.seen.as_ref().map_or(0, |seen| seen.mod_revision.0);
            let seen: Vec<String> = kvs.iter().map(|state| format!("{}@{}", state.key, revision(state))).collect();
            format!("answered at {header}: {}", seen.join(" "))
        }
        Answer::DeletedRange { previous } => {
            let deleted: Vec<&Key> = previous.iter().map(|state| &state.key).collect();
            format!("answered at {header}: deleted {deleted:?}")
        }
        Answer::Delete { previous } => {
            format!("answered at {header}: deleted {:?}", previous.as_ref().map(|seen| seen.mod_revision))
        }
        Answer::Put | Answer::TxnDone => format!("answered at {header}: {answer:?}"),
    }
}
