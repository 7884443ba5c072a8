//! Sessions: how retries become exactly-once.
//!
//! Every command carries a tag (session, sequence, low-water mark); a shard remembers the outcome
//! of every sequence at or above the mark and answers a retry from memory. A retry of a command
//! whose outcome is unknown **must** reuse its tag; a fresh tag is allowed only where no attempt
//! can have been carried out. Keeping that rule is the machine's task, the numbers are kept here.
//!
//! There is one current session per group, so that a group without a quorum holds back the marks
//! of its own commands only. A tag outlives its group: when a shard moves, its session table moves
//! with it, and a retry goes to the new owner under the old tag.

use crate::rng::Rng;
use paxos::{GroupId, Time};
use shardkv::request::SessionTag;
use shardkv::types::Revision;
use std::collections::{BTreeMap, BTreeSet};

/// The lasting part of a tag; the low-water mark is added whenever it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    session: u128,
    sequence: u64,
}

#[derive(Debug)]
struct Session {
    group: GroupId,
    born: Revision,
    next_sequence: u64,
    /// Sequences neither answered nor given up.
    open: BTreeSet<u64>,
    used_at: Time,
}

/// All sessions of a gateway.
#[derive(Debug)]
pub(crate) struct Sessions {
    idle_micros: u64,
    window: u64,
    sessions: BTreeMap<u128, Session>,
    /// The session that a group's next command gets.
    current: BTreeMap<GroupId, u128>,
}

impl Sessions {
    pub(crate) fn new(idle_micros: u64, window: u64) -> Sessions {
        Sessions { idle_micros, window, sessions: BTreeMap::new(), current: BTreeMap::new() }
    }

    /// A fresh tag. `known` is a number that the sequencer has handed out; a session that is opened
    /// now is born at it.
    pub(crate) fn open(&mut self, group: GroupId, now: Time, known: Revision, rng: &mut Rng) -> Tag {
        assert!(known > Revision(0), "a session is born at a sequencer number, none is known");
        if let Some(id) = self.current.get(&group)
            && self.is_worn(*id, now)
        {
            self.retire(*id);
        }
        let id = *self.current.entry(group).or_insert_with(|| rng.id());
        let session = self.sessions.entry(id).or_insert_with(|| Session {
            group,
            born: known,
            next_sequence: 1,
            open: BTreeSet::new(),
            used_at: now,
        });
        let sequence = session.next_sequence;
        session.next_sequence += 1;
        session.open.insert(sequence);
        session.used_at = now;
        Tag { session: id, sequence }
    }

    /// The tag as it is sent now.
    pub(crate) fn stamp(&self, tag: Tag) -> SessionTag {
        let session = &self.sessions[&tag.session];
        let low_water = session.open.first().copied().unwrap_or(session.next_sequence);
        assert!(low_water <= tag.sequence, "mark {low_water} is above the open sequence {}", tag.sequence);
        SessionTag { session: tag.session, born: session.born, sequence: tag.sequence, low_water }
    }

    /// The command was answered or given up, and will not be sent again.
    pub(crate) fn close(&mut self, tag: Tag) {
        let Some(session) = self.sessions.get_mut(&tag.session) else { return };
        session.open.remove(&tag.sequence);
        let is_current = self.current.get(&session.group) == Some(&tag.session);
        if session.open.is_empty() && !is_current {
            self.sessions.remove(&tag.session);
        }
    }

    /// A shard has evicted the tag's session: the next command opens another one.
    pub(crate) fn expire(&mut self, tag: Tag) {
        self.retire(tag.session);
    }

    /// New commands get another session; open ones keep this.
    fn retire(&mut self, id: u128) {
        let Some(session) = self.sessions.get(&id) else { return };
        if self.current.get(&session.group) == Some(&id) {
            self.current.remove(&session.group);
        }
        if session.open.is_empty() {
            self.sessions.remove(&id);
        }
    }

    fn is_worn(&self, id: u128, now: Time) -> bool {
        self.sessions.get(&id).is_some_and(|session| match session.open.first() {
            None => now.since(session.used_at) > self.idle_micros,
            Some(oldest) => session.next_sequence - oldest > self.window,
        })
    }

    /// Sessions held, for tests of the bounds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(2);

    fn sessions() -> (Sessions, Rng) {
        (Sessions::new(1_000, 4), Rng::new([7, 7]))
    }

    #[test]
    fn the_low_water_mark_is_the_oldest_open_sequence() {
        let (mut sessions, mut rng) = sessions();
        let mut open = |sessions: &mut Sessions| sessions.open(GROUP, Time(0), Revision(5), &mut rng);
        let (a, b, c) = (open(&mut sessions), open(&mut sessions), open(&mut sessions));
        assert_eq!(sessions.stamp(c), SessionTag { session: c.session, born: Revision(5), sequence: 3, low_water: 1 });
        sessions.close(b);
        assert_eq!(sessions.stamp(c).low_water, 1, "the first is still open");
        sessions.close(a);
        assert_eq!(sessions.stamp(c).low_water, 3, "it passes over the closed second");
    }

    #[test]
    fn idle_and_lagging_sessions_are_replaced_and_open_tags_stay_valid() {
        let (mut sessions, mut rng) = sessions();
        let a = sessions.open(GROUP, Time(0), Revision(5), &mut rng);
        sessions.close(a);
        let b = sessions.open(GROUP, Time(1_000), Revision(6), &mut rng);
        assert_eq!(a.session, b.session, "idle for exactly the limit");
        sessions.close(b);
        let c = sessions.open(GROUP, Time(2_001), Revision(9), &mut rng);
        assert_ne!(b.session, c.session);
        assert_eq!((sessions.stamp(c).born, sessions.stamp(c).sequence), (Revision(9), 1));

        let tags: Vec<Tag> = (0..4).map(|_| sessions.open(GROUP, Time(2_001), Revision(9), &mut rng)).collect();
        assert!(tags[..3].iter().all(|tag| tag.session == c.session), "within the window");
        let d = sessions.open(GROUP, Time(2_001), Revision(9), &mut rng);
        assert_ne!(d.session, c.session, "the open first one lags behind the window");
        assert_eq!(sessions.stamp(c).low_water, 1, "which still can be retried under its own tag");
        assert_eq!(sessions.len(), 2);
        sessions.close(c);
        tags.into_iter().for_each(|tag| sessions.close(tag));
        assert_eq!(sessions.len(), 1, "the old session went with its last open tag");
    }

    #[test]
    fn an_expired_session_is_not_used_again() {
        let (mut sessions, mut rng) = sessions();
        let a = sessions.open(GROUP, Time(0), Revision(5), &mut rng);
        sessions.expire(a);
        let b = sessions.open(GROUP, Time(0), Revision(5), &mut rng);
        assert_ne!(a.session, b.session);
        sessions.expire(a);
        assert_eq!(sessions.open(GROUP, Time(0), Revision(5), &mut rng).session, b.session, "expired twice");
    }
}
