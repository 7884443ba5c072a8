//! Linearizability of each key by exhaustive search, without trusting any revision's order.
//!
//! The search of Wing and Gong ("Testing and Verifying Concurrent Objects", 1993) with Lowe's
//! memory of configurations already seen ("Testing for linearizability", 2017): pick any operation
//! that nothing unplaced precedes in real time, apply it to the register, go on; a set of placed
//! operations with a register state is never tried twice. Exponential in the worst case, so it
//! refuses long histories; it exists to check the fast checkers by an argument that shares nothing
//! with theirs. Revisions only serve to translate a guard's `mod_revision` into the value that it
//! stands for.

use crate::order::is_linearizable;
use crate::{Answer, Event, History, Key, KeyState, Operation, Outcome, Revision, Seen, Time, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The most operations per key that a search takes on (one bit each).
pub const OPERATIONS_MAX: usize = 128;
/// The most configurations that a search visits.
pub const CONFIGURATIONS_MAX: usize = 200_000;

/// The result for one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every key has a linearization.
    Linearizable,
    /// This key has none.
    NotLinearizable(Key),
    /// This key has too many operations, or too many orders to try.
    TooLong(Key),
}

/// The register: which value it holds.
type State<'h> = Option<&'h Value>;

/// What an operation does to one key's register.
enum Effect<'h> {
    /// Sets it, whatever it was.
    Set(State<'h>),
    /// Leaves it, and showed this.
    Shows(State<'h>),
    /// Showed the first and sets the second.
    Swaps(State<'h>, State<'h>),
    /// Unknown outcome: sets the second if it finds the first.
    MaySwap(State<'h>, State<'h>),
}

impl<'h> Effect<'h> {
    /// The state after, or `None` where the operation's answer contradicts `state`.
    fn apply(&self, state: State<'h>) -> Option<State<'h>> {
        match self {
            Effect::Set(new) => Some(*new),
            Effect::Shows(seen) => (*seen == state).then_some(state),
            Effect::Swaps(seen, new) => (*seen == state).then_some(*new),
            Effect::MaySwap(expected, new) => Some(if *expected == state { *new } else { state }),
        }
    }
}

struct Step<'h> {
    invoked: Time,
    /// `None` for an unknown outcome: may take effect at any time, or never.
    answered: Option<Time>,
    effect: Effect<'h>,
}

/// Searches every key of the history; stops at the first that fails.
pub fn check(history: &History) -> Verdict {
    let values = values_by_revision(history);
    let keys: BTreeSet<&Key> = history.events.iter().flat_map(|event| keys_of(&event.operation)).collect();
    for key in keys {
        let mut steps: Vec<Step> = history.events.iter().filter_map(|event| project(event, key, &values)).collect();
        steps.sort_by_key(|step| step.invoked);
        match search(&steps) {
            Some(true) => {}
            Some(false) => return Verdict::NotLinearizable(key.clone()),
            None => return Verdict::TooLong(key.clone()),
        }
    }
    Verdict::Linearizable
}

fn keys_of(operation: &Operation) -> Vec<&Key> {
    match operation {
        Operation::Put { key, .. } | Operation::Delete { key } | Operation::Get { key, .. } => vec![key],
        // Keys that only ranges name were never written.
        Operation::Range { .. } | Operation::DeleteRange { .. } => Vec::new(),
        Operation::Txn { guards, puts } => {
            puts.iter().map(|(key, _)| key).chain(guards.iter().map(|guard| &guard.key)).collect()
        }
    }
}

type Values<'h> = BTreeMap<(&'h Key, Revision), &'h Value>;

fn values_by_revision(history: &History) -> Values<'_> {
    let mut values = Values::new();
    for event in &history.events {
        if let Some(revision) = event.acknowledged_write() {
            values.extend(event.operation.puts().into_iter().map(|(key, value)| ((key, revision), value)));
        }
        if let Some((
            _,
            _,
            Answer::Read { kvs } | Answer::TxnRefused { kvs } | Answer::DeletedRange { previous: kvs },
        )) = event.answered()
        {
            let seen = kvs.iter().filter_map(|state| Some((&state.key, state.seen.as_ref()?)));
            values.extend(seen.map(|(key, seen)| ((key, seen.mod_revision), &seen.value)));
        }
    }
    values
}

/// What `event` does to `key`, if anything.
fn project<'h>(event: &'h Event, key: &Key, values: &Values<'h>) -> Option<Step<'h>> {
    if event.outcome == Outcome::Refused || !is_linearizable(&event.operation) {
        return None;
    }
    let answer = event.answered();
    let effect = match answer {
        Some((_, _, answer)) => known_effect(&event.operation, answer, key, values)?,
        None => unknown_effect(&event.operation, key, values)?,
    };
    Some(Step { invoked: event.invoked, answered: answer.map(|(at, _, _)| at), effect })
}

fn value_of(seen: &Option<Seen>) -> State<'_> {
    seen.as_ref().map(|seen| &seen.value)
}

fn shown<'h>(kvs: &'h [KeyState], key: &Key) -> State<'h> {
    kvs.iter().find(|state| state.key == *key).and_then(|state| value_of(&state.seen))
}

/// The value that the operation would put to `key`.
fn put_to<'h>(operation: &'h Operation, key: &Key) -> Option<&'h Value> {
    operation.puts().into_iter().find(|(written, _)| *written == key).map(|(_, value)| value)
}

/// The register state that the operation's guard on `key` stands for; `None` without a guard, or
/// with one whose revision nobody ever saw.
fn guarded<'h>(operation: &Operation, key: &Key, values: &Values<'h>) -> Option<State<'h>> {
    let Operation::Txn { guards, .. } = operation else { return None };
    let guard = guards.iter().find(|guard| guard.key == *key)?;
    if guard.mod_revision == Revision(0) {
        return Some(None);
    }
    values.get(&(key, guard.mod_revision)).map(|value| Some(*value))
}

fn known_effect<'h>(
    operation: &'h Operation,
    answer: &'h Answer,
    key: &Key,
    values: &Values<'h>,
) -> Option<Effect<'h>> {
    match (operation, answer) {
        (Operation::Delete { key: deleted }, Answer::Delete { previous }) => {
            (deleted == key).then(|| Effect::Swaps(value_of(previous), None))
        }
        (Operation::DeleteRange { start, end }, Answer::DeletedRange { previous }) => {
            (key >= start && key < end).then(|| Effect::Swaps(shown(previous, key), None))
        }
        (Operation::Get { key: read, .. }, Answer::Read { kvs }) => {
            (read == key).then(|| Effect::Shows(shown(kvs, key)))
        }
        (Operation::Range { start, end, .. }, Answer::Read { kvs }) => {
            (key >= start && key < end).then(|| Effect::Shows(shown(kvs, key)))
        }
        (_, Answer::TxnRefused { kvs }) => {
            let state = kvs.iter().find(|state| state.key == *key)?;
            Some(Effect::Shows(value_of(&state.seen)))
        }
        (
            _,
            Answer::Put | Answer::TxnDone | Answer::Read { .. } | Answer::Delete { .. } | Answer::DeletedRange { .. },
        ) => match (guarded(operation, key, values), put_to(operation, key)) {
            (Some(before), Some(value)) => Some(Effect::Swaps(before, Some(value))),
            (Some(before), None) => Some(Effect::Shows(before)),
            (None, Some(value)) => Some(Effect::Set(Some(value))),
            (None, None) => None,
        },
    }
}

fn unknown_effect<'h>(operation: &'h Operation, key: &Key, values: &Values<'h>) -> Option<Effect<'h>> {
    match operation {
        Operation::Delete { key: deleted } => return (deleted == key).then_some(Effect::Set(None)),
        Operation::DeleteRange { start, end } => {
            return (key >= start && key < end).then_some(Effect::Set(None));
        }
        Operation::Put { .. } | Operation::Get { .. } | Operation::Range { .. } | Operation::Txn { .. } => {}
    }
    let value = Some(put_to(operation, key)?);
    Some(match guarded(operation, key, values) {
        Some(before) => Effect::MaySwap(before, value),
        None => Effect::Set(value),
    })
}

/// Whether the steps have a linearization; `None` if that takes too long to find out.
fn search(steps: &[Step<'_>]) -> Option<bool> {
    if steps.len() > OPERATIONS_MAX {
        return None;
    }
    let bit = |position: usize| 1u128 << position;
    let required: u128 = steps.iter().enumerate().filter(|(_, s)| s.answered.is_some()).map(|(p, _)| bit(p)).sum();
    let mut visited: BTreeSet<(u128, State)> = BTreeSet::new();
    let mut open: Vec<(u128, State)> = vec![(0, None)];
    while let Some((placed, state)) = open.pop() {
        if placed & required == required {
            return Some(true);
        }
        if !visited.insert((placed, state)) {
            continue;
        }
        if visited.len() > CONFIGURATIONS_MAX {
            return None;
        }
        let unplaced = || steps.iter().enumerate().filter(|(position, _)| placed & bit(*position) == 0);
        let first_answer = unplaced().filter_map(|(_, step)| step.answered).min();
        for (position, step) in unplaced() {
            if first_answer.is_some_and(|first| first < step.invoked) {
                break;
            }
            if let Some(next) = step.effect.apply(state) {
                open.push((placed | bit(position), next));
            }
        }
    }
    Some(false)
}
