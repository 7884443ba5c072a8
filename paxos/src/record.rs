//! What a replica writes to the log of its node, and how its state is read back from there.
//!
//! Records are deltas; the newest [`Record::State`] stands for all that was written before it in
//! segments that have been dropped since. A fold may therefore start in the middle of history: slots
//! below the state's `first_kept` are then missing, everything above is whole.

use crate::{Ballot, ConfigId, Configuration, Slot};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the record format, first byte of every encoded record.
pub const RECORD_VERSION: u8 = 2;

/// One record of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A promise. The only record that is written twice.
    Promised(Ballot),
    /// Entries accepted behind the log in its present ballot.
    Accepted {
        /// The log's ballot.
        ballot: Ballot,
        /// The slot of the first entry.
        start: Slot,
        /// Consecutive entries.
        entries: Vec<Bytes>,
        /// What was known to be decided.
        decided: Slot,
    },
    /// A piece of an AcceptSync, beside the log.
    Staged {
        /// The synchronising leader's ballot.
        ballot: Ballot,
        /// The slot of the first entry.
        start: Slot,
        /// Consecutive entries.
        entries: Vec<Bytes>,
    },
    /// Cut, staged pieces, these last entries and the ballot take effect together. Also clears the
    /// suspect mark.
    Adopted {
        /// The log's new ballot.
        ballot: Ballot,
        /// The last slot kept of the old log.
        cut: Slot,
        /// The slot of the first entry below.
        start: Slot,
        /// The last piece.
        entries: Vec<Bytes>,
        /// What was known to be decided.
        decided: Slot,
    },
    /// A stop-sign in this slot is decided. Before the first vote in the configuration that it begins: who
    /// has promised there can never again vote in the one before, and must not forget that it may here.
    Sealed(Slot),
    /// A replica begins its life on this node, and promises nothing below this ballot: what a replica of the
    /// group promised here before, it promised in configurations that are sealed.
    Opened(Ballot),
    /// The replica's life on this node has ended; its state may go. What it had promised stays: a tombstone.
    Closed(Ballot),
    /// A snapshot through this slot is the state.
    Installed(Slot),
    /// The log cannot be proven whole; everything above the state machine's slot is void.
    Suspect,
    /// Entries of the log as it stands, written again because the segments that hold them are about
    /// to be dropped.
    Rewritten {
        /// The slot of the first entry.
        start: Slot,
        /// Consecutive entries.
        entries: Vec<Bytes>,
    },
    /// The whole state but the log's entries.
    State {
        /// The highest promise.
        promised: Ballot,
        /// The log's ballot.
        accepted: Ballot,
        /// Entries below are not kept.
        first_kept: Slot,
        /// The log's length.
        length: Slot,
        /// What was known to be decided.
        decided: Slot,
        /// Whether the log is unproven.
        suspect: bool,
    },
}

impl Record {
    /// Whether the record must be written twice before what waits for it may leave: it holds a
    /// promise, which nobody else could repair.
    pub fn is_promise(&self) -> bool {
        matches!(self, Record::Promised(_) | Record::Opened(_) | Record::Closed(_) | Record::State { .. })
    }

    /// The last slot whose entry is in this record, if it has entries.
    pub fn last_slot(&self) -> Option<Slot> {
        match self {
            Record::Accepted { start, entries, .. }
            | Record::Staged { start, entries, .. }
            | Record::Adopted { start, entries, .. }
            | Record::Rewritten { start, entries } => {
                (!entries.is_empty()).then(|| Slot(start.0 + entries.len() as u64 - 1))
            }
            Record::Promised(_)
            | Record::Opened(_)
            | Record::Closed(_)
            | Record::Sealed(_)
            | Record::Installed(_)
            | Record::Suspect
            | Record::State { .. } => None,
        }
    }

    /// The record's bytes for the log.
    pub fn encode(&self) -> Bytes {
        crate::codec::encode(RECORD_VERSION, self)
    }

    /// Reads back what [`Record::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Record, crate::DecodeError> {
        crate::codec::decode(RECORD_VERSION, bytes)
    }
}

/// An acceptor's durable state, read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The highest promise.
    pub promised: Ballot,
    /// The log's ballot.
    pub accepted: Ballot,
    /// The first entry held; `length + 1` if none is.
    pub first_kept: Slot,
    /// The last slot of the log.
    pub length: Slot,
    /// What was known to be decided.
    pub decided: Slot,
    /// Entries `first_kept..=length`.
    pub entries: Vec<Bytes>,
    /// Whether the log is unproven.
    pub suspect: bool,
    /// There is no replica here any more.
    pub closed: bool,
}

/// What the replica had promised, if the last that a group's records say is that its life on this node has
/// ended.
pub fn tombstone<'a>(records: impl Iterator<Item = &'a Record>) -> Option<Ballot> {
    let mut fold = Fold::default();
    records.for_each(|record| fold.record(record));
    fold.state.closed.then_some(fold.state.promised)
}

/// The log does not reach down to what the state machine has applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "entries {missing} to {upto} are neither in the log nor applied to the store; \
     the data directory is incomplete: replace this node"
)]
pub struct Gap {
    /// The first slot that is nowhere.
    pub missing: Slot,
    /// The slot before the first that the log holds.
    pub upto: Slot,
}

#[derive(Default)]
struct Fold {
    state: Recovered,
    entries: BTreeMap<Slot, Bytes>,
    staged: BTreeMap<Slot, Bytes>,
    staged_ballot: Ballot,
}

impl Fold {
    fn put(map: &mut BTreeMap<Slot, Bytes>, start: Slot, entries: &[Bytes]) -> Slot {
        for (offset, entry) in entries.iter().enumerate() {
            map.insert(Slot(start.0 + offset as u64), entry.clone());
        }
        Slot((start.0 + entries.len() as u64).saturating_sub(1))
    }

    fn record(&mut self, record: &Record) {
        let state = &mut self.state;
        match record {
            Record::Promised(ballot) => state.promised = state.promised.max(*ballot),
            Record::Accepted { ballot, start, entries, decided } => {
                state.accepted = *ballot;
                state.decided = state.decided.max(*decided);
                state.length = state.length.max(Self::put(&mut self.entries, *start, entries));
            }
            Record::Staged { ballot, start, entries } => {
                if self.staged_ballot != *ballot {
                    self.staged.clear();
                    self.staged_ballot = *ballot;
                }
                Self::put(&mut self.staged, *start, entries);
            }
            Record::Adopted { ballot, cut, start, entries, decided } => {
                self.entries.split_off(&cut.next());
                if self.staged_ballot == *ballot {
                    let staged = std::mem::take(&mut self.staged);
                    self.entries.extend(staged.into_iter().filter(|(slot, _)| slot > cut && slot < start));
                }
                self.staged.clear();
                state.length = Self::put(&mut self.entries, *start, entries).max(*cut);
                state.accepted = *ballot;
                state.promised = state.promised.max(*ballot);
                state.decided = state.decided.max(*decided);
                state.suspect = false;
            }
            Record::Opened(floor) => {
                state.promised = state.promised.max(*floor);
                state.closed = false;
            }
            Record::Closed(promised) => {
                let promised = state.promised.max(*promised);
                *state = Recovered { promised, closed: true, ..Recovered::default() };
                self.entries.clear();
                self.staged.clear();
            }
            Record::Sealed(slot) => state.decided = state.decided.max(*slot),
            Record::Installed(slot) => {
                state.decided = state.decided.max(*slot);
                state.length = state.length.max(*slot);
                // What lay below was perhaps of a ballot that lost: only the image stands for it.
                self.entries = self.entries.split_off(&slot.next());
                self.staged.clear();
            }
            Record::Suspect => {
                state.suspect = true;
                self.entries.clear();
                self.staged.clear();
            }
            Record::Rewritten { start, entries } => {
                Self::put(&mut self.entries, *start, entries);
            }
            Record::State { promised, accepted, first_kept, length, decided, suspect } => {
                state.promised = state.promised.max(*promised);
                state.accepted = *accepted;
                state.decided = state.decided.max(*decided);
                state.length = *length;
                state.suspect = *suspect;
                self.staged.clear();
                self.entries.split_off(&length.next());
                self.entries = self.entries.split_off(first_kept);
            }
        }
    }
}

/// Folds a group's records, in log order, into its state. `applied` is what the state machine has
/// durably applied: it counts as decided, and the log may begin anywhere at or below its successor.
/// `imaged` is the slot of the last image that was installed in it (0 if none was): entries up to there
/// are unproven, also if the crash came before the image's record, and are dropped.
/// `config` is the configuration in force there: entries above it that were accepted in an earlier one lie
/// behind that one's stop-sign, and are void.
pub fn recover<'a>(
    records: impl Iterator<Item = &'a Record>,
    applied: Slot,
    imaged: Slot,
    config: ConfigId,
) -> Result<Recovered, Gap> {
    assert!(imaged <= applied, "an image of {imaged} is installed, but only {applied} applied");
    let mut fold = Fold::default();
    records.for_each(|record| fold.record(record));
    let Fold { mut state, mut entries, .. } = fold;
    entries = entries.split_off(&imaged.next());
    state.decided = state.decided.max(applied);
    if state.suspect {
        // Nothing above the state machine is proven; it will be adopted anew.
        state.length = applied;
        state.decided = applied;
        entries.clear();
    }
    if state.length < applied {
        // A snapshot was installed, and its record is missing.
        state.length = applied;
        entries.clear();
    }
    if state.accepted.config < config {
        state.length = applied;
        entries.split_off(&applied.next());
    }
    let mut first = state.length.next();
    while first.0 > 1 && entries.contains_key(&first.prev()) {
        first = first.prev();
    }
    if first > applied.next() {
        return Err(Gap { missing: applied.next(), upto: first.prev() });
    }
    state.first_kept = first;
    // Whoever leads in a configuration has everything that was decided before, and whoever follows it, too.
    let began = |entry: &Bytes| Configuration::of_stop_sign(entry).is_some_and(|it| it.id <= state.accepted.config);
    let sealed = entries.iter().filter(|(_, entry)| began(entry)).map(|(slot, _)| *slot).next_back();
    state.decided = state.decided.max(sealed.unwrap_or_default()).min(state.length);
    state.entries = entries.split_off(&first).into_values().collect();
    Ok(state)
}
