//! Which write happened at which revision.
//!
//! Acknowledged writes name their revision. A write with unknown outcome is found by its value,
//! which is unique: wherever the value was seen, its `mod_revision` is the write's revision. An
//! unknown write that nobody ever saw needs no place: no answer depends on it. (Unknown deletions
//! have no value to be recognised by; [`crate::snapshot`] reasons about those.)

use crate::report::{Source, Violation};
use crate::{Answer, EventIndex, History, Key, KeyState, Operation, Outcome, Revision, Seen, Time, Value};
use std::collections::BTreeMap;

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The value; `None` for a deletion.
    pub value: Option<Value>,
    /// The request; `None` for a deletion of which only the log or a watch told.
    pub writer: Option<EventIndex>,
}

/// All known changes of one key.
pub type Versions = BTreeMap<Revision, Version>;

/// The known changes of all keys, by revision.
#[derive(Debug, Default)]
pub struct Timeline {
    keys: BTreeMap<Key, Versions>,
    revision_of: Vec<Option<Revision>>,
    answered: Vec<(Time, Revision)>,
}

impl Timeline {
    /// Finds every write's revision, and reports writes that have none or more than one.
    pub fn build(history: &History) -> (Timeline, Vec<Violation>) {
        let mut builder = Builder::new(history);
        for (index, event) in history.indexed() {
            if let Some(revision) = event.acknowledged_write() {
                builder.place(index, revision);
            }
        }
        for (index, event) in history.indexed() {
            if let Some((_, _, answer)) = event.answered() {
                builder.learn_from_answer(index, &event.operation, answer);
            }
        }
        for (position, watch) in history.watches.iter().enumerate() {
            for change in watch.answers.iter().flat_map(|answer| &answer.changes) {
                builder.learn_change(Source::Watch(position), change);
            }
        }
        for change in history.log.iter().flat_map(|log| &log.changes) {
            builder.learn_change(Source::Log, change);
        }
        builder.timeline.answered = answered_by_time(history);
        (builder.timeline, builder.violations)
    }

    /// Every key that was ever written, with its changes.
    pub fn keys(&self) -> &BTreeMap<Key, Versions> {
        &self.keys
    }

    /// The changes of the keys in `[start, end)`.
    pub fn range(&self, start: &Key, end: &Key) -> impl Iterator<Item = (&Key, &Versions)> {
        // An empty range is the client's right, but `BTreeMap::range` panics at start > end.
        let end = end.max(start);
        self.keys.range(start.clone()..end.clone())
    }

    /// When the request's writes took effect, as far as anybody knows.
    pub fn revision_of(&self, event: EventIndex) -> Option<Revision> {
        self.revision_of[event.0]
    }

    /// The newest change of a key up to a revision.
    pub fn newest(&self, key: &Key, at: Revision) -> Option<(Revision, &Version)> {
        self.keys.get(key)?.range(..=at).next_back().map(|(revision, version)| (*revision, version))
    }

    /// The first change of a key above a revision.
    pub fn next_change(&self, key: &Key, above: Revision) -> Option<Revision> {
        let above = Revision(above.0 + 1);
        self.keys.get(key)?.range(above..).next().map(|(revision, _)| *revision)
    }

    /// The largest revision known to have been handed out before `time`: of linearizable answers
    /// that came earlier. Whatever begins at `time` takes effect above it.
    pub fn handed_out_before(&self, time: Time) -> Revision {
        let earlier = self.answered.partition_point(|(at, _)| *at < time);
        earlier.checked_sub(1).map_or(Revision(0), |last| self.answered[last].1)
    }
}

/// Answer times ascending, each with the largest header up to it.
fn answered_by_time(history: &History) -> Vec<(Time, Revision)> {
    let mut answered: Vec<(Time, Revision)> = history
        .events
        .iter()
        .filter(|event| crate::order::is_linearizable(&event.operation))
        .filter_map(|event| event.answered().map(|(at, header, _)| (at, header)))
        .collect();
    answered.sort();
    let mut largest = Revision(0);
    for (_, header) in &mut answered {
        largest = largest.max(*header);
        *header = largest;
    }
    answered
}

struct Builder<'h> {
    history: &'h History,
    writers: BTreeMap<(&'h Key, &'h Value), EventIndex>,
    by_revision: BTreeMap<Revision, EventIndex>,
    timeline: Timeline,
    violations: Vec<Violation>,
}

impl<'h> Builder<'h> {
    fn new(history: &'h History) -> Builder<'h> {
        let mut by_value: BTreeMap<&Value, EventIndex> = BTreeMap::new();
        let mut writers = BTreeMap::new();
        for (index, event) in history.indexed() {
            for (key, value) in event.operation.puts() {
                let earlier = by_value.insert(value, index);
                // Not a fault of the store: the recorder broke the contract that all checks need.
                assert!(earlier.is_none(), "events {earlier:?} and {index:?} both write the value {value}");
                writers.insert((key, value), index);
            }
        }
        let timeline = Timeline { revision_of: vec![None; history.events.len()], ..Timeline::default() };
        Builder { history, writers, by_revision: BTreeMap::new(), timeline, violations: Vec::new() }
    }

    /// Enters all changes of a request at a revision.
    fn place(&mut self, index: EventIndex, revision: Revision) {
        if let Some(first) = self.by_revision.insert(revision, index) {
            self.violations.push(Violation::SharedRevision { revision, first, second: index });
        }
        self.timeline.revision_of[index.0] = Some(revision);
        let history: &'h History = self.history;
        let event = history.event(index);
        let puts: BTreeMap<&Key, &Value> = event.operation.puts().into_iter().collect();
        for key in event.written_keys() {
            let value = puts.get(key).copied().cloned();
            self.enter(key, revision, Version { value, writer: Some(index) });
        }
    }

    fn enter(&mut self, key: &Key, revision: Revision, version: Version) {
        self.timeline.keys.entry(key.clone()).or_default().insert(revision, version);
    }

    fn learn_from_answer(&mut self, index: EventIndex, operation: &Operation, answer: &Answer) {
        let place = Source::Event(index);
        match answer {
            Answer::Put | Answer::TxnDone => {}
            Answer::Delete { previous } => {
                if let (Some(seen), Operation::Delete { key }) = (previous, operation) {
                    self.learn_seen(place, key, seen);
                }
            }
            Answer::Read { kvs } | Answer::TxnRefused { kvs } | Answer::DeletedRange { previous: kvs } => {
                for KeyState { key, seen } in kvs {
                    if let Some(seen) = seen {
                        self.learn_seen(place, key, seen);
                    }
                }
            }
        }
    }

    fn learn_change(&mut self, place: Source, change: &crate::Change) {
        match &change.value {
            Some(value) => self.learn(place, &change.key, value, change.revision),
            None => {
                let versions = self.timeline.keys.entry(change.key.clone()).or_default();
                versions.entry(change.revision).or_insert(Version { value: None, writer: None });
            }
        }
    }

    fn learn_seen(&mut self, place: Source, key: &Key, seen: &Seen) {
        self.learn(place, key, &seen.value, seen.mod_revision);
    }

    /// Takes note that `value` was written at `revision`.
    fn learn(&mut self, place: Source, key: &Key, value: &Value, revision: Revision) {
        let Some(writer) = self.writers.get(&(key, value)).copied() else {
            let (key, value) = (key.clone(), value.clone());
            self.violations.push(Violation::ValueFromNowhere { place, key, value, revision });
            return;
        };
        match self.timeline.revision_of(writer) {
            Some(first) if first == revision => {}
            Some(first) => self.violations.push(Violation::WrittenTwice { writer, first, second: revision, place }),
            None => match &self.history.event(writer).outcome {
                Outcome::Unknown => self.place(writer, revision),
                Outcome::Refused | Outcome::Answered { .. } => {
                    self.violations.push(Violation::RefusedWriteVisible { writer, revision, place });
                }
            },
        }
    }
}
