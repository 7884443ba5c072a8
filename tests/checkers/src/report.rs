//! What the checkers found, in words.

use crate::{Event, EventIndex, History, Key, Outcome, Revision, Value};
use std::fmt;

/// Where something was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// In an event's answer.
    Event(EventIndex),
    /// In the store's own log of changes.
    Log,
    /// In the deliveries of the watch at this position of the history.
    Watch(usize),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Event(index) => write!(f, "event {}", index.0),
            Source::Log => f.write_str("the log of changes"),
            Source::Watch(index) => write!(f, "watch {index}"),
        }
    }
}

/// A promise that the store broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two requests wrote at one revision.
    #[error("events {} and {} both wrote at {revision}", .first.0, .second.0)]
    SharedRevision {
        /// The revision.
        revision: Revision,
        /// One writer.
        first: EventIndex,
        /// The other.
        second: EventIndex,
    },
    /// A value appeared that nobody wrote to that key.
    #[error("{place} shows {key}={value} at {revision}, which no request ever wrote there")]
    ValueFromNowhere {
        /// Where it was seen.
        place: Source,
        /// The key.
        key: Key,
        /// The value.
        value: Value,
        /// Its `mod_revision`.
        revision: Revision,
    },
    /// A write took effect although its client was told that it does not.
    #[error("{place} shows at {revision} the write of event {}, which was refused", .writer.0)]
    RefusedWriteVisible {
        /// The write.
        writer: EventIndex,
        /// When it took effect.
        revision: Revision,
        /// Where it was seen.
        place: Source,
    },
    /// One write took effect at two revisions, or at another than its client was told.
    #[error("the write of event {} is at {first} and, in {place}, at {second}", .writer.0)]
    WrittenTwice {
        /// The write.
        writer: EventIndex,
        /// One revision.
        first: Revision,
        /// The other.
        second: Revision,
        /// Where the second was seen.
        place: Source,
    },
    /// Something was acknowledged or seen that the store's own log of changes lacks.
    #[error("the log of changes lacks {key} at {revision} (event {})", .writer.map_or(-1, |w| w.0 as i64))]
    NotInLog {
        /// The key.
        key: Key,
        /// The revision.
        revision: Revision,
        /// The write, if one is known.
        writer: Option<EventIndex>,
    },
    /// The log of changes repeats itself or goes back.
    #[error("the log of changes has {key} at {revision} behind {before}")]
    LogOutOfOrder {
        /// The key.
        key: Key,
        /// The revision.
        revision: Revision,
        /// The revision before it in the log.
        before: Revision,
    },
    /// A read did not show the newest write up to its revision.
    #[error(
        "event {} read {key} at {at}: it saw {}, but the newest write up to there is {}",
        .event.0, describe(*.seen), describe(*.expected)
    )]
    WrongState {
        /// The read.
        event: EventIndex,
        /// The key.
        key: Key,
        /// The revision of the read.
        at: Revision,
        /// The newest known write, if it leaves a value.
        expected: Option<Revision>,
        /// The `mod_revision` shown, if any.
        seen: Option<Revision>,
    },
    /// A value disappeared although nobody can have deleted it.
    #[error(
        "{key}, written at {written}, was there until {present_until} and is gone at {absent_from} (event {}), \
         and no deletion explains it", .event.0
    )]
    WriteLost {
        /// The key.
        key: Key,
        /// The revision of the write.
        written: Revision,
        /// The last revision at which it was seen.
        present_until: Revision,
        /// The first revision at which it was not.
        absent_from: Revision,
        /// The read that missed it.
        event: EventIndex,
    },
    /// A deletion in the log of changes or in a watch that nobody asked for.
    #[error("{key} was deleted at {revision}, and no request explains it")]
    UnexplainedDeletion {
        /// The key.
        key: Key,
        /// The revision.
        revision: Revision,
    },
    /// `create_revision` contradicts the key's history.
    #[error("event {} saw {key} created at {created}, which contradicts the write or deletion at {contradicts}", .event.0)]
    WrongCreation {
        /// The read.
        event: EventIndex,
        /// The key.
        key: Key,
        /// The `create_revision` shown.
        created: Revision,
        /// The known change that cannot be.
        contradicts: Revision,
    },
    /// `version` does not count the writes since creation.
    #[error("event {} saw {key} at version {version}; it has had {least} to {most} writes", .event.0)]
    WrongVersion {
        /// The read.
        event: EventIndex,
        /// The key.
        key: Key,
        /// The version shown.
        version: u64,
        /// The known writes since creation.
        least: u64,
        /// Those and all whose outcome is unknown.
        most: u64,
    },
    /// A transaction was refused although all its guards hold by its own answer.
    #[error("event {} was refused although its guards hold", .event.0)]
    GuardMisjudged {
        /// The transaction.
        event: EventIndex,
    },
    /// A write got a revision that is not above one that was answered before it began.
    #[error("event {} was answered at {earlier_header} before event {} began, which wrote at {later_header}", .earlier.0, .later.0)]
    WriteNotAfter {
        /// The event answered first.
        earlier: EventIndex,
        /// Its header.
        earlier_header: Revision,
        /// The write.
        later: EventIndex,
        /// Its revision.
        later_header: Revision,
    },
    /// A linearizable read's header is below a write that was answered before it began.
    #[error("event {} wrote at {written} before event {} began, which was answered at {header}", .write.0, .read.0)]
    ReadBehindWrite {
        /// The write.
        write: EventIndex,
        /// Its revision.
        written: Revision,
        /// The read.
        read: EventIndex,
        /// Its header.
        header: Revision,
    },
    /// A client saw headers go back.
    #[error("one client saw header {earlier_header} (event {}), then {later_header} (event {})", .earlier.0, .later.0)]
    HeaderWentBack {
        /// The event answered first.
        earlier: EventIndex,
        /// Its header.
        earlier_header: Revision,
        /// The event after it.
        later: EventIndex,
        /// Its header.
        later_header: Revision,
    },
    /// An answer fits no place in the serial order that agrees with real time.
    #[error(
        "event {} shows the state before {overwritten_at}, but it began after event {} was answered, \
         which cannot be earlier than {not_before} in the serial order", .event.0, .after.0
    )]
    NotSerializable {
        /// The stale answer.
        event: EventIndex,
        /// The revision of the first write that it does not show.
        overwritten_at: Revision,
        /// What was answered before it began.
        after: EventIndex,
        /// The earliest place of that in the serial order.
        not_before: Revision,
    },
    /// A watch did not deliver a change.
    #[error("watch {watch} was told that all up to {up_to} was sent, but {key} at {revision} was not")]
    WatchMissed {
        /// The watch's position.
        watch: usize,
        /// The key.
        key: Key,
        /// The revision of the change.
        revision: Revision,
        /// What the watch's deliveries claim to be complete to.
        up_to: Revision,
    },
    /// A watch delivered a change at a wrong place: again, too late, torn apart, outside its range
    /// or above its header.
    #[error("watch {watch} delivered {key} at {revision} out of order; it had already reached {reached}")]
    WatchOutOfOrder {
        /// The watch's position.
        watch: usize,
        /// The key.
        key: Key,
        /// The revision of the change.
        revision: Revision,
        /// How far the watch had come.
        reached: Revision,
    },
}

fn describe(revision: Option<Revision>) -> String {
    revision.map_or_else(|| "nothing".to_owned(), |revision| format!("the write at {revision}"))
}

impl Violation {
    /// The events that a reader wants to look at.
    pub fn events(&self) -> Vec<EventIndex> {
        let of = |source: &Source| match source {
            Source::Event(event) => Some(*event),
            Source::Log | Source::Watch(_) => None,
        };
        match self {
            Violation::SharedRevision { first, second, .. } => vec![*first, *second],
            Violation::ValueFromNowhere { place, .. } => of(place).into_iter().collect(),
            Violation::RefusedWriteVisible { writer, place, .. } | Violation::WrittenTwice { writer, place, .. } => {
                [Some(*writer), of(place)].into_iter().flatten().collect()
            }
            Violation::NotInLog { writer, .. } => writer.iter().copied().collect(),
            Violation::WrongState { event, .. }
            | Violation::WriteLost { event, .. }
            | Violation::WrongCreation { event, .. }
            | Violation::WrongVersion { event, .. }
            | Violation::GuardMisjudged { event } => vec![*event],
            Violation::WriteNotAfter { earlier, later, .. } | Violation::HeaderWentBack { earlier, later, .. } => {
                vec![*earlier, *later]
            }
            Violation::ReadBehindWrite { write, read, .. } => vec![*write, *read],
            Violation::NotSerializable { event, after, .. } => vec![*after, *event],
            Violation::LogOutOfOrder { .. }
            | Violation::UnexplainedDeletion { .. }
            | Violation::WatchMissed { .. }
            | Violation::WatchOutOfOrder { .. } => Vec::new(),
        }
    }
}

/// The judgement on one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many requests were judged.
    pub events: usize,
    /// How many of them were answered.
    pub answered: usize,
    /// How many ended without a clear answer.
    pub unknown: usize,
    /// What is wrong, with the events concerned.
    pub violations: Vec<(Violation, Vec<(EventIndex, Event)>)>,
}

/// How many violations a report prints; one fault often breaks many reads.
const PRINTED_VIOLATIONS_MAX: usize = 20;

impl Report {
    /// Counts the events, and attaches to each violation the events that it names.
    pub fn new(history: &History, violations: Vec<Violation>) -> Report {
        let attach = |violation: Violation| {
            let events = violation.events().into_iter().map(|index| (index, history.event(index).clone())).collect();
            (violation, events)
        };
        let count = |wanted: fn(&Outcome) -> bool| history.events.iter().filter(|e| wanted(&e.outcome)).count();
        Report {
            events: history.events.len(),
            answered: count(|outcome| matches!(outcome, Outcome::Answered { .. })),
            unknown: count(|outcome| matches!(outcome, Outcome::Unknown)),
            violations: violations.into_iter().map(attach).collect(),
        }
    }

    /// Whether every promise was kept.
    pub fn is_ok(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { events, answered, unknown, violations } = self;
        write!(f, "{events} requests, {answered} answered, {unknown} unknown, {} violations", violations.len())?;
        for (violation, events) in violations.iter().take(PRINTED_VIOLATIONS_MAX) {
            write!(f, "\n- {violation}")?;
            for (index, event) in events {
                write!(f, "\n    event {}: {event:?}", index.0)?;
            }
        }
        if violations.len() > PRINTED_VIOLATIONS_MAX {
            write!(f, "\n- … and {} more", violations.len() - PRINTED_VIOLATIONS_MAX)?;
        }
        Ok(())
    }
}
