//! What clients did and what they saw.

use crate::text;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::{self, BufRead, Write};

/// A moment, in any unit that all events of a history share (nanoseconds, simulator ticks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(pub u64);

/// A client; it has one request under way at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// The store's logical time. An empty store is at 1; 0 stands for "never written".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision just below; 0 stays 0.
    pub fn prev(self) -> Revision {
        Revision(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

macro_rules! text_bytes {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Bytes);

        impl $name {
            /// Copies the bytes of `text`.
            pub fn new(text: impl AsRef<[u8]>) -> $name {
                $name(Bytes::copy_from_slice(text.as_ref()))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&text::escape(&self.0))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&text::escape(&self.0))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&text::escape(&self.0))
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let escaped = String::deserialize(deserializer)?;
                text::unescape(&escaped)
                    .map($name)
                    .ok_or_else(|| serde::de::Error::custom(format!("{escaped:?} is no escaped text")))
            }
        }
    )*};
}

text_bytes! {
    /// A key.
    Key,
    /// A value; unique per write within a history.
    Value
}

/// What a read showed of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The value.
    pub value: Value,
    /// The revision of the write that set it.
    pub mod_revision: Revision,
    /// The revision of the write that created the key since its last deletion.
    pub create_revision: Revision,
    /// How many writes the key has had since its creation.
    pub version: u64,
}

/// A key with what was seen there; `None` where nothing was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyState {
    /// The key.
    pub key: Key,
    /// Its state.
    pub seen: Option<Seen>,
}

/// How fresh a read has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadMode {
    /// Sees every write that was answered before it began.
    Linearizable,
    /// May lag; still a state that the store was in, namely the one at its header's revision.
    Serializable,
    /// At a revision from the past.
    At(Revision),
}

/// A transaction's condition: the key was last written at this revision; 0 = it does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The key.
    pub key: Key,
    /// Its expected `mod_revision`.
    pub mod_revision: Revision,
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Sets a key.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
    },
    /// Deletes a key and asks for its previous state.
    Delete {
        /// The key.
        key: Key,
    },
    /// Deletes all keys of `[start, end)` at one revision and asks for their previous states.
    DeleteRange {
        /// The first key inside.
        start: Key,
        /// The first key outside.
        end: Key,
    },
    /// Reads one key.
    Get {
        /// The key.
        key: Key,
        /// How fresh.
        mode: ReadMode,
    },
    /// Reads all keys of `[start, end)` as one snapshot.
    Range {
        /// The first key inside.
        start: Key,
        /// The first key outside.
        end: Key,
        /// How fresh.
        mode: ReadMode,
    },
    /// If all guards hold, does all puts at one revision; otherwise reads the guards' keys. With
    /// one guard and one put of the same key this is compare-and-swap.
    Txn {
        /// The conditions.
        guards: Vec<Guard>,
        /// The writes; at least one, each key once.
        puts: Vec<(Key, Value)>,
    },
}

impl Operation {
    /// The puts that the operation would do if it succeeded.
    pub fn puts(&self) -> Vec<(&Key, &Value)> {
        match self {
            Operation::Put { key, value } => vec![(key, value)],
            Operation::Txn { puts, .. } => puts.iter().map(|(key, value)| (key, value)).collect(),
            Operation::Delete { .. }
            | Operation::DeleteRange { .. }
            | Operation::Get { .. }
            | Operation::Range { .. } => Vec::new(),
        }
    }
}

/// The body of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A put was done, at the header's revision.
    Put,
    /// A deletion was done: at the header's revision, if something was there.
    Delete {
        /// What was deleted.
        previous: Option<Seen>,
    },
    /// A deletion of a range was done: at the header's revision, if something was there.
    DeletedRange {
        /// What was deleted, ascending; `seen` is never `None`.
        previous: Vec<KeyState>,
    },
    /// A get or range: the keys that exist, ascending.
    Read {
        /// Keys and states; `seen` is never `None`.
        kvs: Vec<KeyState>,
    },
    /// The guards held and the puts were done, at the header's revision.
    TxnDone,
    /// A guard did not hold.
    TxnRefused {
        /// The guards' keys as they were at the header's revision.
        kvs: Vec<KeyState>,
    },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nobody knows: it may have taken effect, and may yet.
    Unknown,
    /// It certainly never takes effect.
    Refused,
    /// It was answered.
    Answered {
        /// When.
        at: Time,
        /// The revision in the answer's header.
        header: Revision,
        /// What it said.
        answer: Answer,
    },
}

/// One request of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Who asked.
    pub client: ClientId,
    /// When it asked.
    pub invoked: Time,
    /// What it asked for.
    pub operation: Operation,
    /// What came of it.
    pub outcome: Outcome,
}

impl Event {
    /// When, at which header and with what the event was answered, if it was.
    pub fn answered(&self) -> Option<(Time, Revision, &Answer)> {
        match &self.outcome {
            Outcome::Answered { at, header, answer } => Some((*at, *header, answer)),
            Outcome::Unknown | Outcome::Refused => None,
        }
    }

    /// The revision at which the event's writes took effect, if its answer says that they did.
    pub fn acknowledged_write(&self) -> Option<Revision> {
        let (_, header, answer) = self.answered()?;
        match answer {
            Answer::Put | Answer::TxnDone | Answer::Delete { previous: Some(_) } => Some(header),
            Answer::DeletedRange { previous } => (!previous.is_empty()).then_some(header),
            Answer::Delete { previous: None } | Answer::Read { .. } | Answer::TxnRefused { .. } => None,
        }
    }

    /// The keys that the event's writes changed, as far as its answer tells.
    pub fn written_keys(&self) -> Vec<&Key> {
        match (&self.operation, self.answered()) {
            (Operation::Delete { key }, _) => vec![key],
            (Operation::DeleteRange { .. }, Some((_, _, Answer::DeletedRange { previous }))) => {
                previous.iter().map(|state| &state.key).collect()
            }
            (operation, _) => operation.puts().into_iter().map(|(key, _)| key).collect(),
        }
    }
}

/// The position of an event in its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventIndex(pub usize);

/// One change of one key, as the store itself tells it afterwards (a watch from the first
/// revision, or a replica's revision index).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When it took effect.
    pub revision: Revision,
    /// The key.
    pub key: Key,
    /// Its new value; `None` for a deletion.
    pub value: Option<Value>,
}

/// The changes of all keys, in order, as the store tells them at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeLog {
    /// From this revision on it is complete; what lay below may have been compacted.
    pub from: Revision,
    /// The changes, by revision.
    pub changes: Vec<Change>,
}

impl ChangeLog {
    /// A log from the first revision on.
    pub fn complete(changes: Vec<Change>) -> ChangeLog {
        ChangeLog { from: Revision(0), changes }
    }
}

/// What one watch delivered, in the order of delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchLog {
    /// The first key inside.
    pub start: Key,
    /// The first key outside.
    pub end: Key,
    /// The first revision that it was to deliver.
    pub from: Revision,
    /// The answers.
    pub answers: Vec<WatchAnswer>,
}

/// One answer of a watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchAnswer {
    /// The header's revision.
    pub header: Revision,
    /// The changes; none makes it a progress mark ("all up to the header was delivered").
    pub changes: Vec<Change>,
}

/// Everything that was recorded in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// The requests, in any order.
    pub events: Vec<Event>,
    /// The changes that the store applied, if it was asked for them at the end.
    pub log: Option<ChangeLog>,
    /// What watches delivered meanwhile.
    pub watches: Vec<WatchLog>,
}

/// One line of a history's file.
#[derive(Serialize, Deserialize)]
enum Line {
    Event(Event),
    Log(ChangeLog),
    Watch(WatchLog),
}

/// Why a history's file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file could not be read.
    #[error("reading the history failed at line {line}: {source}")]
    Io {
        /// Counted from 1.
        line: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A line is not one that [`History::write_jsonl`] writes.
    #[error("line {line} of the history is malformed: {source}")]
    Malformed {
        /// Counted from 1.
        line: usize,
        /// What the decoder said.
        source: serde_json::Error,
    },
}

impl History {
    /// The event at a position that a checker named.
    pub fn event(&self, index: EventIndex) -> &Event {
        assert!(index.0 < self.events.len(), "event {} of {}", index.0, self.events.len());
        &self.events[index.0]
    }

    /// All events with their positions.
    pub fn indexed(&self) -> impl Iterator<Item = (EventIndex, &Event)> {
        self.events.iter().enumerate().map(|(position, event)| (EventIndex(position), event))
    }

    /// Writes one JSON object per line.
    pub fn write_jsonl(&self, mut out: impl Write) -> io::Result<()> {
        let mut line = |line: Line| -> io::Result<()> {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")
        };
        for event in &self.events {
            line(Line::Event(event.clone()))?;
        }
        for watch in &self.watches {
            line(Line::Watch(watch.clone()))?;
        }
        match &self.log {
            Some(log) => line(Line::Log(log.clone())),
            None => Ok(()),
        }
    }

    /// Reads what [`History::write_jsonl`] wrote.
    pub fn read_jsonl(input: impl BufRead) -> Result<History, HistoryError> {
        let mut history = History::default();
        for (position, text) in input.lines().enumerate() {
            let line = position + 1;
            let text = text.map_err(|source| HistoryError::Io { line, source })?;
            match serde_json::from_str(&text).map_err(|source| HistoryError::Malformed { line, source })? {
                Line::Event(event) => history.events.push(event),
                Line::Log(log) => history.log = Some(log),
                Line::Watch(watch) => history.watches.push(watch),
            }
        }
        Ok(history)
    }
}
