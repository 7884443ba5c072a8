//! Exactly-once for the gateway's retries. Each shard remembers, for every session, the revision
//! and the path taken of every sequence at or above the session's low-water mark; the answer itself
//! is rebuilt from MVCC.
//!
//! Invariants, which make the table the same on every replica whatever its restarts:
//! - Only executed commands touch the table: refusals and repeated answers do not.
//! - The last executed command of a session, and the one that set its low-water mark, are at or
//!   above the mark; so the outcomes still kept tell the mark and the last use.
//! - Eviction takes the session with the oldest last use and raises the shard's eviction floor to
//!   it; every session left was used later. So a reload drops exactly the evicted sessions: those
//!   whose last use is not above the floor.
//! - A command's session was born at or below the command's revision. So an evicted session is
//!   known by its birth being at or below the floor, and is refused for ever. Where tables become one, a
//!   session that one of them may have evicted is in none of the next.
//!
//! Stored is one row per apply call with the outcomes of that call; a row goes when none of its
//! outcomes is kept any more.

use crate::request::{OpError, SessionTag};
use crate::types::{Revision, ShardId};
use paxos::Slot;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Limits of the session tables. They take part in apply: all replicas of a group use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Sessions per shard; one more evicts the one unused for longest.
    pub sessions_max: usize,
    /// Outcomes per session at or above its low-water mark; more are refused as overload.
    pub outcomes_per_session_max: usize,
}

impl Default for SessionLimits {
    fn default() -> SessionLimits {
        SessionLimits { sessions_max: 4096, outcomes_per_session_max: 4096 }
    }
}

/// One executed command, as the rows keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Executed {
    pub(crate) shard: ShardId,
    pub(crate) tag: SessionTag,
    pub(crate) revision: Revision,
    pub(crate) path: Vec<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Recorded {
    revision: Revision,
    path: Vec<bool>,
    /// The row that holds it.
    row: Slot,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    born: Revision,
    low_water: u64,
    last_use: Revision,
    outcomes: BTreeMap<u64, Recorded>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    sessions: BTreeMap<u128, Session>,
    /// Last uses are revisions of commands, so they are unique.
    by_use: BTreeMap<Revision, u128>,
    evicted: Revision,
}

/// What a tag means to the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Never seen: execute and record.
    New,
    /// Executed at this revision on this path.
    Done(Revision, Vec<bool>),
    /// Refused.
    Refused(OpError),
}

/// The session tables of a group's shards, and which rows they need.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    limits: SessionLimits,
    tables: BTreeMap<ShardId, Table>,
    /// Kept outcomes per row.
    rows: BTreeMap<Slot, usize>,
    /// Rows without any, to be deleted with the next batch.
    dead_rows: BTreeSet<Slot>,
}

impl Sessions {
    pub(crate) fn new(limits: SessionLimits) -> Sessions {
        Sessions { limits, ..Sessions::default() }
    }

    /// What to do with a command stamped `revision`.
    pub(crate) fn judge(&self, shard: ShardId, tag: &SessionTag, revision: Revision) -> Judgement {
        if tag.born > revision {
            return Judgement::Refused(OpError::Malformed(format!(
                "a session born at {} sends a command stamped {revision}",
                tag.born
            )));
        }
        if tag.sequence < tag.low_water {
            return Judgement::Refused(OpError::SessionExpired);
        }
        let Some(table) = self.tables.get(&shard) else { return Judgement::New };
        let Some(session) = table.sessions.get(&tag.session) else {
            return if self.may_have_evicted(shard, tag) {
                Judgement::Refused(OpError::SessionExpired)
            } else {
                Judgement::New
            };
        };
        if tag.sequence < session.low_water {
            return Judgement::Refused(OpError::SessionExpired);
        }
        if let Some(done) = session.outcomes.get(&tag.sequence) {
            return Judgement::Done(done.revision, done.path.clone());
        }
        let max = self.limits.outcomes_per_session_max;
        if session.outcomes.len() >= max && session.outcomes.range(tag.low_water..).count() >= max {
            return Judgement::Refused(OpError::Overloaded);
        }
        Judgement::New
    }

    /// Records what was executed, to be stored in the row of `row`. Evicts where the table is full;
    /// answers whether the shard's eviction floor rose.
    pub(crate) fn record(&mut self, executed: &mut Executed, row: Slot) -> bool {
        // A session keeps its first birth: what is stored must not depend on what later commands say.
        let known = self.tables.get(&executed.shard).and_then(|table| table.sessions.get(&executed.tag.session));
        if let Some(session) = known {
            executed.tag.born = session.born;
        }
        self.insert(executed, row);
        let Some(table) = self.tables.get_mut(&executed.shard) else { return false };
        let mut dropped = Vec::new();
        let evict = table.sessions.len() > self.limits.sessions_max;
        if evict && let Some((last_use, oldest)) = table.by_use.pop_first() {
            assert!(last_use > table.evicted, "evicting {last_use} not above the floor {}", table.evicted);
            table.evicted = last_use;
            dropped
                .extend(table.sessions.remove(&oldest).into_iter().flat_map(|session| session.outcomes.into_values()));
        }
        dropped.into_iter().for_each(|recorded| self.release(recorded.row));
        evict
    }

    fn insert(&mut self, executed: &Executed, row: Slot) {
        let Executed { shard, tag, revision, path } = executed;
        let table = self.tables.entry(*shard).or_default();
        let session =
            table.sessions.entry(tag.session).or_insert_with(|| Session { born: tag.born, ..Session::default() });
        table.by_use.remove(&session.last_use);
        session.last_use = *revision;
        table.by_use.insert(*revision, tag.session);
        session.low_water = session.low_water.max(tag.low_water);
        session.outcomes.insert(tag.sequence, Recorded { revision: *revision, path: path.clone(), row });
        *self.rows.entry(row).or_default() += 1;
        let mut dropped = Vec::new();
        while let Some(oldest) = session.outcomes.first_entry().filter(|oldest| *oldest.key() < session.low_water) {
            dropped.push(oldest.remove().row);
        }
        dropped.into_iter().for_each(|row| self.release(row));
    }

    fn release(&mut self, row: Slot) {
        let Some(kept) = self.rows.get_mut(&row) else { panic!("row {row} of a kept outcome is not counted") };
        *kept -= 1;
        if *kept == 0 {
            self.rows.remove(&row);
            self.dead_rows.insert(row);
        }
    }

    /// Whether any outcome of this row is kept.
    pub(crate) fn needs_row(&self, row: Slot) -> bool {
        self.rows.contains_key(&row)
    }

    /// Rows that the next batch deletes.
    pub(crate) fn take_dead_rows(&mut self) -> BTreeSet<Slot> {
        std::mem::take(&mut self.dead_rows)
    }

    /// The shard's eviction floor.
    pub(crate) fn evicted(&self, shard: ShardId) -> Revision {
        self.tables.get(&shard).map_or(Revision(0), |table| table.evicted)
    }

    /// Whether the session may have been evicted from this shard's table: it is not there, and could have been.
    pub(crate) fn may_have_evicted(&self, shard: ShardId, tag: &SessionTag) -> bool {
        let table = self.tables.get(&shard);
        table.is_some_and(|table| !table.sessions.contains_key(&tag.session) && tag.born <= table.evicted)
    }

    /// Takes over what another group has recorded of a shard that arrives, in the order of revisions.
    pub(crate) fn import(&mut self, executed: &Executed, row: Slot) {
        self.insert(executed, row);
    }

    /// Sets the eviction floor of a shard that arrives.
    pub(crate) fn set_evicted(&mut self, shard: ShardId, evicted: Revision) {
        self.tables.entry(shard).or_default().evicted = evicted;
    }

    /// Fills the empty table of a shard with what other shards' sessions have done, in the order of revisions, and
    /// stored in the row of `row`. Keeps the stricter marks, and evicts where there are too many. The eviction floor,
    /// and what is to be stored.
    pub(crate) fn adopt(
        &mut self,
        shard: ShardId,
        outcomes: Vec<Executed>,
        evicted: Revision,
        row: Slot,
    ) -> (Revision, Vec<Executed>) {
        // What lies below the stricter mark goes first: it must not tell a session's last use here, where a replica that
        // got an image has never seen it.
        let mut marks: BTreeMap<u128, u64> = BTreeMap::new();
        for tag in outcomes.iter().map(|executed| executed.tag) {
            let mark = marks.entry(tag.session).or_default();
            *mark = tag.low_water.max(*mark);
        }
        let mut outcomes = outcomes;
        outcomes.retain(|executed| executed.tag.sequence >= marks[&executed.tag.session]);
        // As in a reload (see `restore`): the newest outcome tells a session's birth and its last use.
        let newest: BTreeMap<u128, (Revision, Revision)> =
            outcomes.iter().map(|it| (it.tag.session, (it.revision, it.tag.born))).collect();
        let mut uses: Vec<Revision> = newest.values().map(|(last_use, _)| *last_use).collect();
        uses.sort_unstable();
        let surplus = uses.len().saturating_sub(self.limits.sessions_max);
        let evicted = surplus.checked_sub(1).map_or(evicted, |last| evicted.max(uses[last]));
        let mut known = BTreeSet::new();
        let mut kept = Vec::new();
        for executed in outcomes {
            let (last_use, born) = newest[&executed.tag.session];
            let first = known.insert((executed.tag.session, executed.tag.sequence));
            if first && last_use > evicted && executed.revision >= born {
                let executed = Executed { shard, ..executed };
                self.insert(&executed, row);
                kept.push(executed);
            }
        }
        self.set_evicted(shard, evicted);
        (evicted, kept)
    }

    /// Forgets a shard.
    pub(crate) fn forget(&mut self, shard: ShardId) {
        let table = self.tables.remove(&shard).unwrap_or_default();
        let rows = table.sessions.into_values().flat_map(|session| session.outcomes.into_values());
        let rows: Vec<Slot> = rows.map(|recorded| recorded.row).collect();
        rows.into_iter().for_each(|row| self.release(row));
    }

    /// What is recorded of a shard above `after`, in the order of revisions.
    pub(crate) fn export_shard(&self, shard: ShardId, after: Revision) -> Vec<Executed> {
        let table = self.tables.get(&shard).into_iter().flat_map(|table| exported(shard, table));
        let mut found: Vec<Executed> = table.map(|(_, it)| it).filter(|it| it.revision > after).collect();
        found.sort_by_key(|executed| executed.revision);
        found
    }

    /// Rebuilds the tables from the rows, oldest first, and the shards' eviction floors. Of each shard only what
    /// lies in rows from its slot on counts, and other shards not at all.
    pub(crate) fn restore(
        limits: SessionLimits,
        known: &[(ShardId, Revision, Slot)],
        mut rows: Vec<(Slot, Vec<Executed>)>,
    ) -> Sessions {
        // Rows hold what shards have left behind that went, and may have come again.
        let since: BTreeMap<ShardId, Slot> = known.iter().map(|(shard, _, since)| (*shard, *since)).collect();
        for (slot, row) in &mut rows {
            row.retain(|executed| since.get(&executed.shard).is_some_and(|since| since <= slot));
        }
        // The newest outcome tells a session's birth; older ones than that were of an evicted
        // session that had the same number.
        let mut newest: BTreeMap<(ShardId, u128), (Revision, Revision)> = BTreeMap::new();
        for executed in rows.iter().flat_map(|(_, row)| row) {
            newest.insert((executed.shard, executed.tag.session), (executed.revision, executed.tag.born));
        }
        let mut sessions = Sessions::new(limits);
        for (shard, floor, _) in known {
            sessions.tables.entry(*shard).or_default().evicted = *floor;
        }
        for (slot, row) in rows {
            sessions.dead_rows.insert(slot);
            for executed in row {
                let (last_use, born) = newest[&(executed.shard, executed.tag.session)];
                if last_use > sessions.evicted(executed.shard) && executed.revision >= born {
                    sessions.insert(&executed, slot);
                }
            }
        }
        sessions.dead_rows.retain(|slot| !sessions.rows.contains_key(slot));
        sessions
    }

    /// Everything kept, by the slot of its row, for an image.
    pub(crate) fn export(&self) -> Vec<(Slot, Vec<Executed>)> {
        let mut rows: BTreeMap<Slot, Vec<Executed>> = BTreeMap::new();
        for (row, executed) in self.tables.iter().flat_map(|(shard, table)| exported(*shard, table)) {
            rows.entry(row).or_default().push(executed);
        }
        // Within a row in the order of execution, as apply wrote them.
        rows.values_mut().for_each(|row| row.sort_by_key(|executed| executed.revision));
        rows.into_iter().collect()
    }
}

/// What a table keeps, each with its row.
fn exported(shard: ShardId, table: &Table) -> impl Iterator<Item = (Slot, Executed)> {
    table.sessions.iter().flat_map(move |(session, state)| {
        state.outcomes.iter().map(move |(sequence, recorded)| {
            let low_water = state.low_water.min(*sequence);
            let tag = SessionTag { session: *session, born: state.born, sequence: *sequence, low_water };
            let Recorded { revision, path, row } = recorded.clone();
            (row, Executed { shard, tag, revision, path })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: SessionLimits = SessionLimits { sessions_max: 3, outcomes_per_session_max: 4 };

    /// What the tables will decide by; the rows that outcomes lie in do not matter.
    #[derive(Debug, PartialEq)]
    struct Essence {
        floors: Vec<(ShardId, Revision)>,
        sessions: Vec<(ShardId, u128, Revision, u64, Revision)>,
        outcomes: Vec<(u128, u64, Revision, Vec<bool>)>,
    }

    fn essence(sessions: &Sessions) -> Essence {
        let floors = sessions.tables.iter().map(|(id, table)| (*id, table.evicted)).collect();
        let (mut all, mut outcomes) = (Vec::new(), Vec::new());
        for (shard, table) in &sessions.tables {
            for (id, session) in &table.sessions {
                all.push((*shard, *id, session.born, session.low_water, session.last_use));
                let kept = session.outcomes.iter();
                outcomes.extend(kept.map(|(sequence, r)| (*id, *sequence, r.revision, r.path.clone())));
            }
        }
        Essence { floors, sessions: all, outcomes }
    }

    /// One of two tables has heard a higher mark, the other has done something newer below it.
    #[test]
    fn a_merged_table_is_the_same_from_rows_and_from_an_image() {
        let executed = |shard, sequence, low_water, revision| {
            let tag = SessionTag { session: 7, born: Revision(1), sequence, low_water };
            Executed { shard: ShardId(shard), tag, revision: Revision(revision), path: Vec::new() }
        };
        let mut live = Sessions::new(LIMITS);
        live.record(&mut executed(1, 10, 10, 90), Slot(1));
        live.record(&mut executed(2, 7, 5, 100), Slot(2));
        let mut outcomes: Vec<Executed> =
            [1, 2].iter().flat_map(|shard| live.export_shard(ShardId(*shard), Revision(0))).collect();
        outcomes.sort_by_key(|executed| executed.revision);
        [1, 2].iter().for_each(|shard| live.forget(ShardId(*shard)));
        let (evicted, kept) = live.adopt(ShardId(1), outcomes, Revision(0), Slot(3));
        let known = [(ShardId(1), evicted, Slot(3))];
        let from_rows = Sessions::restore(LIMITS, &known, vec![(Slot(3), kept)]);
        assert_eq!(essence(&from_rows), essence(&Sessions::restore(LIMITS, &known, live.export())));
        assert_eq!(essence(&from_rows).sessions, [(ShardId(1), 7, Revision(1), 10, Revision(90))]);
    }

    proptest! {
        /// Numbers of evicted sessions are taken again by later ones, too.
        #[test]
        fn a_restart_and_an_image_give_the_same_tables(
            uses in prop::collection::vec((0u64..2, 0u128..6, 0u64..6, 0u64..4, 0u64..20), 1..80),
            per_row in 1usize..5,
        ) {
            let mut live = Sessions::new(LIMITS);
            let mut rows: BTreeMap<Slot, Vec<Executed>> = BTreeMap::new();
            let mut revision = Revision(20);
            for (n, chunk) in uses.chunks(per_row).enumerate() {
                let slot = Slot(n as u64 + 1);
                let mut row = Vec::new();
                for (shard, session, sequence, lag, age) in chunk {
                    revision = Revision(revision.0 + 1);
                    let (shard, born) = (ShardId(*shard), Revision(revision.0 - age));
                    let low_water = sequence.saturating_sub(*lag);
                    let tag = SessionTag { session: *session, born, sequence: *sequence, low_water };
                    if live.judge(shard, &tag, revision) == Judgement::New {
                        let path = vec![revision.0.is_multiple_of(2)];
                        let mut executed = Executed { shard, tag, revision, path };
                        live.record(&mut executed, slot);
                        row.push(executed);
                    }
                }
                live.take_dead_rows().into_iter().for_each(|dead| { rows.remove(&dead); });
                if live.needs_row(slot) {
                    rows.insert(slot, row);
                }
                let floors: Vec<_> = live.tables.iter().map(|(id, table)| (*id, table.evicted, Slot(0))).collect();
                let stored = rows.clone().into_iter().collect();
                prop_assert_eq!(essence(&Sessions::restore(LIMITS, &floors, stored)), essence(&live));
                prop_assert_eq!(essence(&Sessions::restore(LIMITS, &floors, live.export())), essence(&live));
                prop_assert_eq!(live.rows.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
            }
            let most = 2 * LIMITS.sessions_max * LIMITS.outcomes_per_session_max;
            prop_assert!(rows.len() <= most, "{} rows are kept for {most} outcomes", rows.len());
        }
    }
}
