//! Messages, records and ballots as short text.

use bytes::Bytes;
use paxos::{Ballot, ConfigId, Configuration, Message, NodeId, Record};

/// `round.node`, and the boot where it is not the first.
pub fn ballot(ballot: Ballot) -> String {
    let config = match ballot.config {
        ConfigId(0) => String::new(),
        ConfigId(id) => format!("c{id}:"),
    };
    match (ballot.round, ballot.boot) {
        (0, _) => "none".to_owned(),
        (round, 1) => format!("{config}{round}.{}", ballot.node.0),
        (round, boot) => format!("{config}{round}.{}b{boot}", ballot.node.0),
    }
}

/// The reverse.
pub fn ballot_of(text: &str) -> Ballot {
    if text == "none" {
        return Ballot::default();
    }
    let (config, text) = text.split_once(':').unwrap_or(("c0", text));
    let config = ConfigId(number(config.trim_start_matches('c')) as u32);
    let (rest, boot) = text.split_once('b').unwrap_or((text, "1"));
    let (round, node) = rest.split_once('.').unwrap_or_else(|| panic!("{text:?} is no ballot"));
    Ballot { config, round: number(round), node: NodeId(number(node)), boot: number(boot) }
}

pub fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

pub fn nodes(nodes: &[NodeId]) -> String {
    nodes.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(",")
}

/// An entry; a leader's no-op is a dot.
pub fn text_of(entry: &Bytes) -> String {
    match Configuration::of_stop_sign(entry) {
        Some(next) => format!("stop({})", nodes(&next.members)),
        None if entry.is_empty() => "·".to_owned(),
        None => String::from_utf8_lossy(entry).into_owned(),
    }
}

fn list(entries: &[Bytes]) -> String {
    let entries: Vec<String> = entries.iter().map(text_of).collect();
    format!("[{}]", entries.join(" "))
}

pub fn message(message: &Message) -> String {
    match message {
        Message::Prepare { ballot: at, handover, elected } => {
            let handed = handover.map_or(String::new(), |old| format!(" handover={}", ballot(old)));
            format!("Prepare {}{handed}{}", ballot(*at), if *elected { " elected" } else { "" })
        }
        Message::Promise(promise) => format!(
            "Promise {} accepted={} length={} decided={} first={}{}{}{}",
            ballot(promise.ballot),
            ballot(promise.accepted),
            promise.length,
            promise.decided,
            promise.first_kept,
            if promise.suspect { " suspect" } else { "" },
            if promise.barred { " barred" } else { "" },
            if promise.votes { "" } else { " without a vote" }
        ),
        Message::Fetch { ballot: at, start, end } => format!("Fetch {} {start}..={end}", ballot(*at)),
        Message::Fetched { ballot: at, start, entries } => format!("Fetched {} {start}={}", ballot(*at), list(entries)),
        Message::AcceptSync { ballot: at, cut, start, end, entries, decided } => {
            format!("AcceptSync {} cut={cut} {start}={} end={end} decided={decided}", ballot(*at), list(entries))
        }
        Message::SyncProgress { ballot: at, staged } => format!("SyncProgress {} staged={staged}", ballot(*at)),
        Message::Accept { ballot: at, start, entries, decided } => {
            format!("Accept {} {start}={} decided={decided}", ballot(*at), list(entries))
        }
        Message::Accepted { ballot: at, length, decided } => {
            format!("Accepted {} length={length} decided={decided}", ballot(*at))
        }
        Message::Decide { ballot: at, decided, answer } => {
            format!("Decide {} decided={decided}{}", ballot(*at), if *answer { " answer" } else { "" })
        }
        Message::Confirm { ballot: at, round } => format!("Confirm {} round={round}", ballot(*at)),
        Message::Confirmed { ballot: at, round } => format!("Confirmed {} round={round}", ballot(*at)),
        Message::Handover { ballot: at } => format!("Handover {}", ballot(*at)),
    }
}

pub fn record(record: &Record) -> String {
    match record {
        Record::Promised(at) => format!("Promised {}", ballot(*at)),
        Record::Accepted { ballot: at, start, entries, .. } => {
            format!("Accepted {} {start}={}", ballot(*at), list(entries))
        }
        Record::Staged { ballot: at, start, entries } => format!("Staged {} {start}={}", ballot(*at), list(entries)),
        Record::Adopted { ballot: at, cut, start, entries, .. } => {
            format!("Adopted {} cut={cut} {start}={}", ballot(*at), list(entries))
        }
        Record::Sealed(slot) => format!("Sealed {slot}"),
        Record::Opened(at) => format!("Opened {}", ballot(*at)),
        Record::Closed(at) => format!("Closed {}", ballot(*at)),
        Record::Installed(slot) => format!("Installed {slot}"),
        Record::Suspect => "Suspect".to_owned(),
        Record::Rewritten { start, entries } => format!("Rewritten {start}={}", list(entries)),
        Record::State { promised, accepted, first_kept, length, decided, suspect } => format!(
            "State promised={} accepted={} first={first_kept} length={length} decided={decided}{}",
            ballot(*promised),
            ballot(*accepted),
            if *suspect { " suspect" } else { "" }
        ),
    }
}
