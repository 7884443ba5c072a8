//! Revisions and headers agree with real time.
//!
//! - A write takes a revision above every header of a linearizable request that was answered
//!   before it began, whatever the keys.
//! - A linearizable read's header is at or above every write on its keys that was answered before it
//!   began. (A write on other keys, through another gateway, may lie in another group, whose number the
//!   reading gateway need not have heard of.)
//! - Within one client, headers of linearizable requests never go back. (Between clients they may:
//!   a read can show a write that is not answered yet, and a later read of other keys through
//!   another gateway need not know its revision. What it *shows* is judged by
//!   [`crate::serializability`].)

use crate::timeline::Timeline;
use crate::{ClientId, Event, EventIndex, History, Key, Operation, ReadMode, Revision, Time, Violation};
use std::collections::BTreeMap;

/// What counts of an event here.
struct Point {
    index: EventIndex,
    client: ClientId,
    invoked: Time,
    /// `None` for a write whose answer was lost, but which somebody saw.
    answered: Option<Time>,
    header: Revision,
    writes: bool,
}

/// Whether an answer has to be fresh: everything but serializable reads and those of the past.
pub(crate) fn is_linearizable(operation: &Operation) -> bool {
    match operation {
        Operation::Get { mode, .. } | Operation::Range { mode, .. } => *mode == ReadMode::Linearizable,
        Operation::Put { .. } | Operation::Delete { .. } | Operation::DeleteRange { .. } | Operation::Txn { .. } => {
            true
        }
    }
}

fn point(index: EventIndex, event: &Event, timeline: &Timeline) -> Option<Point> {
    let (client, invoked) = (event.client, event.invoked);
    match event.answered() {
        Some((at, header, _)) if is_linearizable(&event.operation) => {
            assert!(at >= invoked, "event {} was answered at {at:?}, before it began at {invoked:?}", index.0);
            let writes = event.acknowledged_write().is_some();
            Some(Point { index, client, invoked, answered: Some(at), header, writes })
        }
        Some(_) => None,
        None => {
            let header = timeline.revision_of(index)?;
            Some(Point { index, client, invoked, answered: None, header, writes: true })
        }
    }
}

/// Sweeps once over time, with the largest header and write answered so far.
pub fn check(history: &History, timeline: &Timeline) -> Vec<Violation> {
    let points: Vec<Point> = history.indexed().filter_map(|(index, event)| point(index, event, timeline)).collect();
    let mut by_start: Vec<&Point> = points.iter().collect();
    by_start.sort_by_key(|p| (p.invoked, p.index));
    let mut by_end: Vec<(Time, &Point)> = points.iter().filter_map(|p| Some((p.answered?, p))).collect();
    by_end.sort_by_key(|(at, p)| (*at, p.index));

    let mut violations = Vec::new();
    let mut answered = by_end.into_iter().peekable();
    let mut largest: Option<&Point> = None;
    let mut written: BTreeMap<&Key, &Point> = BTreeMap::new();
    let mut clients: BTreeMap<ClientId, &Point> = BTreeMap::new();
    for later in by_start {
        // Strictly earlier: what happens in one moment counts as concurrent.
        while let Some((_, p)) = answered.next_if(|(at, _)| *at < later.invoked) {
            let raise = |slot: &mut Option<&_>| slot.is_none_or(|max: &Point| p.header > max.header);
            if raise(&mut largest) {
                largest = Some(p);
            }
            for key in if p.writes { history.event(p.index).written_keys() } else { Vec::new() } {
                let newest = written.entry(key).or_insert(p);
                if p.header > newest.header {
                    *newest = p;
                }
            }
            let of_client = clients.entry(p.client).or_insert(p);
            if p.header > of_client.header {
                *of_client = p;
            }
        }
        let on_its_keys = newest_write(&written, &history.event(later.index).operation);
        violations.extend(judge(later, largest, on_its_keys, clients.get(&later.client).copied()));
    }
    violations
}

/// The newest of the answered writes on the keys that an operation reads.
fn newest_write<'a>(written: &BTreeMap<&Key, &'a Point>, operation: &Operation) -> Option<&'a Point> {
    let of = |key: &Key| written.get(key).copied();
    match operation {
        Operation::Put { key, .. } | Operation::Delete { key } | Operation::Get { key, .. } => of(key),
        Operation::Range { start, end, .. } | Operation::DeleteRange { start, end } if start >= end => None,
        Operation::Range { start, end, .. } | Operation::DeleteRange { start, end } => {
            written.range::<&Key, _>(start..end).map(|(_, point)| *point).max_by_key(|point| point.header)
        }
        Operation::Txn { guards, .. } => {
            guards.iter().filter_map(|guard| of(&guard.key)).max_by_key(|point| point.header)
        }
    }
}

fn judge(later: &Point, largest: Option<&Point>, write: Option<&Point>, own: Option<&Point>) -> Option<Violation> {
    if later.writes {
        let earlier = largest.filter(|earlier| earlier.header >= later.header)?;
        return Some(Violation::WriteNotAfter {
            earlier: earlier.index,
            earlier_header: earlier.header,
            later: later.index,
            later_header: later.header,
        });
    }
    if let Some(write) = write.filter(|write| write.header > later.header) {
        return Some(Violation::ReadBehindWrite {
            write: write.index,
            written: write.header,
            read: later.index,
            header: later.header,
        });
    }
    let earlier = own.filter(|earlier| earlier.header > later.header)?;
    Some(Violation::HeaderWentBack {
        earlier: earlier.index,
        earlier_header: earlier.header,
        later: later.index,
        later_header: later.header,
    })
}
