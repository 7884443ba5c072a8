//! Judges what clients saw: a [`History`] of operations against the promises of the store.
//!
//! The simulator and the end-to-end tests record the same kind of history and hand it to
//! [`check`]. Everything here is deterministic and reads no clock; a history can be written to a
//! file ([`History::write_jsonl`]) and judged again later with the same result.
//!
//! # Why this is fast and exact
//!
//! Judging linearizability is NP-complete in general (Gibbons and Korach, "Testing Shared
//! Memories", 1997), because the order of concurrent writes has to be guessed. CloudPaxos gives it
//! away: every write has a unique revision that orders all writes, and every read names the
//! revision that it was answered at. With values that are unique per write, each value that a read
//! shows names its writer. So the checkers only verify an order, in O(n log n):
//!
//! | module | property |
//! |---|---|
//! | [`timeline`] | which write happened at which revision; nothing from nowhere, nothing twice |
//! | [`durability`] | every acknowledged write is in the log of changes, and nothing unexplained is |
//! | [`snapshot`] | a read at revision R shows, for every key, exactly the newest write ≤ R |
//! | [`order`] | revisions and headers rise in real time over all keys |
//! | [`serializability`] | a serial order exists that agrees with real time, whatever the headers say |
//! | [`wgl`] | each key is linearizable, by exhaustive search without revisions: slow, but independent |
//! | [`watch`] | a watch shows every change of its range, once, in order |
//!
//! Strict serializability over all keys contains linearizability of each; so there is no separate
//! check per key, except `wgl`.
//!
//! # What a caller must keep to
//!
//! Values are unique per write over the whole history, a client does one thing at a time, and a
//! request without a clear answer is recorded as [`Outcome::Unknown`], never left out: it may have
//! taken effect, then or later.

pub mod durability;
pub mod history;
pub mod order;
pub mod report;
pub mod serializability;
pub mod snapshot;
mod text;
pub mod timeline;
pub mod watch;
pub mod wgl;

pub use history::{
    Answer, Change, ChangeLog, ClientId, Event, EventIndex, Guard, History, HistoryError, Key, KeyState, Operation,
    Outcome, ReadMode, Revision, Seen, Time, Value, WatchAnswer, WatchLog,
};
pub use report::{Report, Violation};

/// Runs every checker except [`wgl`] (whose time is exponential) and collects what they found.
pub fn check(history: &History) -> Report {
    let (timeline, mut violations) = timeline::Timeline::build(history);
    violations.extend(durability::check(history, &timeline));
    violations.extend(snapshot::check(history, &timeline));
    violations.extend(order::check(history, &timeline));
    violations.extend(serializability::check(history, &timeline));
    violations.extend(watch::check(history, &timeline));
    Report::new(history, violations)
}

#[cfg(test)]
mod generate;
#[cfg(test)]
mod tests;
