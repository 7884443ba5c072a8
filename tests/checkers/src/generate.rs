//! Histories for tests: of a model store that executes one request after the other, seen by
//! clients whose requests overlap, lose their answers, or are refused.

use crate::{
    Answer, Change, ClientId, Event, Guard, History, Key, KeyState, Operation, Outcome, ReadMode, Revision, Seen, Time,
    Value, WatchAnswer, WatchLog,
};
use proptest::prelude::{Strategy, any, proptest};
use std::collections::BTreeMap;

/// The number of keys that generated requests touch.
const KEYS: u8 = 4;

/// One request, in numbers that shrink well.
#[derive(Clone, Debug)]
pub struct Step {
    kind: u8,
    key: u8,
    choice: u8,
    before: u8,
    after: u8,
    gap: u8,
    fate: u8,
}

/// Between zero and `most` requests.
pub fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let numbers = (0..10u8, 0..KEYS, any::<u8>(), any::<u8>(), any::<u8>(), 0..3u8, 0..12u8);
    let step = numbers.prop_map(|(kind, key, choice, before, after, gap, fate)| Step {
        kind,
        key,
        choice,
        before,
        after,
        gap,
        fate,
    });
    proptest::collection::vec(step, 0..most)
}

/// A key by number.
pub fn key(number: u8) -> Key {
    Key::new(format!("k{number}"))
}

/// A store that keeps everything and executes at once.
#[derive(Default)]
pub struct Model {
    revision: Revision,
    keys: BTreeMap<Key, BTreeMap<Revision, Option<Seen>>>,
    pub log: Vec<Change>,
}

impl Model {
    fn at(&self, key: &Key, revision: Revision) -> Option<Seen> {
        self.keys.get(key)?.range(..=revision).next_back()?.1.clone()
    }

    fn states(&self, start: &Key, end: &Key, revision: Revision) -> Vec<KeyState> {
        let inside = self.keys.range(start.clone()..end.clone());
        let states = inside.map(|(key, _)| KeyState { key: key.clone(), seen: self.at(key, revision) });
        states.filter(|state| state.seen.is_some()).collect()
    }

    fn set(&mut self, key: &Key, value: Option<Value>) {
        let revision = self.revision;
        self.log.push(Change { revision, key: key.clone(), value: value.clone() });
        let before = self.at(key, revision);
        let (created, version) = before.map_or((revision, 1), |seen| (seen.create_revision, seen.version + 1));
        let seen = value.map(|value| Seen { value, mod_revision: revision, create_revision: created, version });
        self.keys.entry(key.clone()).or_default().insert(revision, seen);
    }

    /// Executes a request; the header and what to answer.
    pub fn execute(&mut self, operation: &Operation, gap: u8, choice: u8) -> (Revision, Answer) {
        let now = self.revision;
        let next = Revision(now.0 + 1 + u64::from(gap));
        match operation {
            Operation::Put { key, value } => {
                self.revision = next;
                self.set(key, Some(value.clone()));
                (next, Answer::Put)
            }
            Operation::Delete { key } => {
                let previous = self.at(key, now);
                self.revision = next;
                if previous.is_some() {
                    self.set(key, None);
                }
                (next, Answer::Delete { previous })
            }
            Operation::DeleteRange { start, end } => {
                let previous = self.states(start, end, now);
                self.revision = next;
                for state in &previous {
                    self.set(&state.key, None);
                }
                (next, Answer::DeletedRange { previous })
            }
            Operation::Get { key, mode } => {
                let (header, at) = self.read_revision(*mode, gap, choice);
                let state = KeyState { key: key.clone(), seen: self.at(key, at) };
                (header, Answer::Read { kvs: Some(state).filter(|s| s.seen.is_some()).into_iter().collect() })
            }
            Operation::Range { start, end, mode } => {
                let (header, at) = self.read_revision(*mode, gap, choice);
                (header, Answer::Read { kvs: self.states(start, end, at) })
            }
            Operation::Txn { guards, puts } => {
                let state = |guard: &Guard| KeyState { key: guard.key.clone(), seen: self.at(&guard.key, now) };
                let kvs: Vec<KeyState> = guards.iter().map(state).collect();
                let written = |state: &KeyState| state.seen.as_ref().map_or(Revision(0), |seen| seen.mod_revision);
                self.revision = next;
                if kvs.iter().zip(guards).any(|(state, guard)| written(state) != guard.mod_revision) {
                    return (next, Answer::TxnRefused { kvs });
                }
                for (key, value) in puts {
                    self.set(key, Some(value.clone()));
                }
                (next, Answer::TxnDone)
            }
        }
    }

    /// The header of a read, and the revision that it reads at.
    fn read_revision(&mut self, mode: ReadMode, gap: u8, choice: u8) -> (Revision, Revision) {
        match mode {
            ReadMode::Linearizable => {
                // Numbers that went to somebody else may be in between.
                self.revision.0 += u64::from(gap);
                (self.revision, self.revision)
            }
            ReadMode::Serializable => {
                let lag = Revision(self.revision.0.saturating_sub(u64::from(choice % 8)));
                (lag, lag)
            }
            ReadMode::At(revision) => (self.revision, revision),
        }
    }
}

fn operation(step: &Step, position: usize, model: &Model) -> Operation {
    let value = |part: usize| Value::new(format!("v{position}.{part}"));
    let key = key(step.key);
    let (start, end) = (Key::new("k"), Key::new("l"));
    let past = Revision(model.revision.0.saturating_sub(u64::from(step.choice % 8)));
    match step.kind {
        0..=2 => Operation::Put { key, value: value(0) },
        3 if step.choice.is_multiple_of(8) => Operation::DeleteRange { start: key, end: self::key(step.key + 2) },
        3 if step.choice.is_multiple_of(4) => Operation::DeleteRange { start: key, end },
        3 => Operation::Delete { key },
        4 | 5 => Operation::Get { key, mode: ReadMode::Linearizable },
        6 if step.choice.is_multiple_of(2) => Operation::Get { key, mode: ReadMode::Serializable },
        6 => Operation::Range { start, end, mode: ReadMode::At(past) },
        7 => Operation::Range { start, end, mode: ReadMode::Linearizable },
        8 => {
            let written = model.at(&key, past).map_or(Revision(0), |seen| seen.mod_revision);
            let guard = Guard { key: key.clone(), mod_revision: written };
            Operation::Txn { guards: vec![guard], puts: vec![(key, value(0))] }
        }
        _ => {
            let other = self::key((step.key + 1) % KEYS);
            Operation::Txn { guards: Vec::new(), puts: vec![(key, value(0)), (other, value(1))] }
        }
    }
}

/// Executes the steps on a fresh model and records what clients see, with a read of everything at
/// the end. Valid by construction: each request takes effect inside its interval.
pub fn history(steps: &[Step]) -> (History, Model) {
    let mut model = Model { revision: Revision(1), ..Model::default() };
    let mut free_at: Vec<Time> = Vec::new();
    let mut history = History::default();
    for (position, step) in steps.iter().enumerate() {
        let moment = 1000 + position as u64 * 100;
        let invoked = Time(moment - 2 * u64::from(step.before));
        let at = Time(moment + 2 * u64::from(step.after));
        let client = free_at.iter().position(|free| *free < invoked).unwrap_or_else(|| {
            free_at.push(Time(0));
            free_at.len() - 1
        });
        free_at[client] = at;
        let operation = operation(step, position, &model);
        let outcome = match step.fate {
            0 => Outcome::Unknown,
            1 => Outcome::Refused,
            2 => {
                model.execute(&operation, step.gap, step.choice);
                Outcome::Unknown
            }
            _ => {
                let (header, answer) = model.execute(&operation, step.gap, step.choice);
                Outcome::Answered { at, header, answer }
            }
        };
        history.events.push(Event { client: ClientId(client as u64), invoked, operation, outcome });
    }
    let operation = Operation::Range { start: Key::new("k"), end: Key::new("l"), mode: ReadMode::Linearizable };
    let (header, answer) = model.execute(&operation, 0, 0);
    let invoked = Time(10_000 + steps.len() as u64 * 100);
    let outcome = Outcome::Answered { at: Time(invoked.0 + 1), header, answer };
    history.events.push(Event { client: ClientId(u64::MAX), invoked, operation, outcome });
    (history, model)
}

/// A watch over everything that saw all of `log`, with a progress mark behind it.
pub fn watch_of(log: &[Change]) -> WatchLog {
    let mut answers: Vec<WatchAnswer> = Vec::new();
    for change in log {
        match answers.last_mut().filter(|answer| answer.header == change.revision) {
            Some(answer) => answer.changes.push(change.clone()),
            None => answers.push(WatchAnswer { header: change.revision, changes: vec![change.clone()] }),
        }
    }
    let last = answers.last().map_or(Revision(1), |answer| answer.header);
    answers.push(WatchAnswer { header: last, changes: Vec::new() });
    WatchLog { start: Key::new("k"), end: Key::new("l"), from: Revision(2), answers }
}

proptest! {
    /// The generator keeps to the contract that it states: one request at a time per client.
    #[test]
    fn clients_are_sequential(steps in steps(60)) {
        let (history, _) = history(&steps);
        let mut busy: BTreeMap<ClientId, Time> = BTreeMap::new();
        for event in &history.events {
            if let Some((at, _, _)) = event.answered()
                && let Some(before) = busy.insert(event.client, at)
            {
                assert!(before < event.invoked, "{before:?} {event:?}");
            }
        }
    }
}
