//! Strict serializability by content: an order of all answers exists that agrees with real time.
//!
//! The order of the writes is given by their revisions; what is left is a place for each read. By
//! what it showed, a read lies behind the newest write that it saw (`not_before`) and ahead of the
//! first one that it did not (`overwritten_at`). It also lies at or behind everything that was
//! answered before it began. Giving each read the earliest place that satisfies both, in the order
//! in which the reads began, finds an order whenever there is one: an earlier place never hurts
//! anybody else. For a single key this is linearizability of a register with a known write order.
//!
//! Headers are used only where a read shows nothing (to tell which gap between two writes of a key
//! it saw); so this check still bites when headers look right and contents are stale. That the
//! writes' own order agrees with real time is [`crate::order`]'s part.

use crate::order::is_linearizable;
use crate::timeline::Timeline;
use crate::{Answer, Event, EventIndex, History, Key, KeyState, Operation, Revision, Time, Violation};

struct Place {
    index: EventIndex,
    invoked: Time,
    answered: Time,
    not_before: Revision,
    overwritten_at: Option<Revision>,
}

/// Sweeps once over time, giving every answer its earliest place.
pub fn check(history: &History, timeline: &Timeline) -> Vec<Violation> {
    let mut places: Vec<Place> = history.indexed().filter_map(|(index, event)| place(index, event, timeline)).collect();
    places.sort_by_key(|place| (place.invoked, place.index));
    let mut by_end: Vec<usize> = (0..places.len()).collect();
    by_end.sort_by_key(|position| (places[*position].answered, places[*position].index));

    let mut violations = Vec::new();
    let mut answered = by_end.into_iter().peekable();
    let mut latest: Option<(Revision, EventIndex)> = None;
    for position in 0..places.len() {
        let invoked = places[position].invoked;
        while let Some(done) = answered.next_if(|done| places[*done].answered < invoked) {
            let Place { not_before, index, .. } = places[done];
            if latest.is_none_or(|(max, _)| not_before > max) {
                latest = Some((not_before, index));
            }
        }
        let place = &mut places[position];
        let own = (place.not_before, place.index);
        let (not_before, after) = latest.filter(|(max, _)| *max > own.0).unwrap_or(own);
        match place.overwritten_at {
            Some(overwritten_at) if overwritten_at <= not_before => {
                violations.push(Violation::NotSerializable { event: place.index, overwritten_at, after, not_before });
                // Left at its own place, so that one stale read is not blamed on its successors.
            }
            Some(_) => place.not_before = not_before,
            // A write stays at its revision.
            None => {}
        }
    }
    violations
}

fn place(index: EventIndex, event: &Event, timeline: &Timeline) -> Option<Place> {
    let (answered, header, answer) = event.answered()?;
    if !is_linearizable(&event.operation) {
        return None;
    }
    let at = |not_before, overwritten_at| {
        Some(Place { index, invoked: event.invoked, answered, not_before, overwritten_at })
    };
    let never = Revision(u64::MAX);
    match (&event.operation, answer) {
        _ if event.acknowledged_write().is_some() => at(header, None),
        (Operation::Delete { key } | Operation::Get { key, .. }, _) => {
            let shown = match answer {
                Answer::Read { kvs } => kvs.iter().find(|state| state.key == *key),
                Answer::Put
                | Answer::TxnDone
                | Answer::Delete { .. }
                | Answer::DeletedRange { .. }
                | Answer::TxnRefused { .. } => None,
            };
            let (from, until) = bounds(timeline, key, shown, header);
            at(from, Some(until.unwrap_or(never)))
        }
        (Operation::Range { start, end, .. }, Answer::Read { kvs })
        | (Operation::DeleteRange { start, end }, Answer::DeletedRange { previous: kvs }) => {
            let keys = timeline.range(start, end).map(|(key, _)| key);
            let (from, until) = bounds_of_all(timeline, keys, kvs, header);
            at(from, Some(until.unwrap_or(never)))
        }
        (_, Answer::Read { kvs } | Answer::TxnRefused { kvs }) => {
            let (from, until) = bounds_of_all(timeline, kvs.iter().map(|state| &state.key), kvs, header);
            at(from, Some(until.unwrap_or(never)))
        }
        (_, Answer::Put | Answer::TxnDone | Answer::Delete { .. } | Answer::DeletedRange { .. }) => None,
    }
}

/// The newest write of `key` that the answer shows, and the first that it does not.
fn bounds(timeline: &Timeline, key: &Key, shown: Option<&KeyState>, header: Revision) -> (Revision, Option<Revision>) {
    match shown.and_then(|state| state.seen.as_ref()) {
        Some(seen) => (seen.mod_revision, timeline.next_change(key, seen.mod_revision)),
        None => {
            let newest = timeline.newest(key, header).map_or(Revision(0), |(revision, _)| revision);
            (newest, timeline.next_change(key, header))
        }
    }
}

fn bounds_of_all<'a>(
    timeline: &Timeline,
    keys: impl Iterator<Item = &'a Key>,
    kvs: &[KeyState],
    header: Revision,
) -> (Revision, Option<Revision>) {
    keys.map(|key| {
        // Answers are in key order, as ranges are.
        let shown = kvs.binary_search_by(|state| state.key.cmp(key)).ok().map(|position| &kvs[position]);
        bounds(timeline, key, shown, header)
    })
    .fold((Revision(0), None), |(from, until), (next_from, next_until)| {
        let until = match (until, next_until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        (from.max(next_from), until)
    })
}
