//! The acceptor: everything that safety rests on, and nothing else. It knows no time, no timers and
//! no leader election; whatever those do wrong costs progress, never agreement.
//!
//! Invariants, asserted in release builds too:
//! - `promised` never falls, and `accepted <= promised`.
//! - The log is contiguous and belongs to one ballot, `accepted`. It grows at its end within that
//!   ballot, and changes otherwise only by adopting a leader's whole log ([`Acceptor::accept_sync`]).
//! - No slot at or below `decided` is ever cut or changed.
//!
//! The protocol is Sequence Paxos (Haridi, Kroll, Carbone: "Lecture Notes on Leader-based Sequence
//! Paxos", 2020; Ng, Haridi, Carbone: "Omni-Paxos", EuroSys 2023).

use crate::flaw::{self, Flaw};
use crate::log::Log;
use crate::message::Promise;
use crate::record::{Record, Recovered};
use crate::{Ballot, ConfigId, Slot};
use bytes::Bytes;

/// Pieces of an AcceptSync, beside the log until all are there.
#[derive(Clone, Debug)]
struct Staged {
    ballot: Ballot,
    /// The last slot kept of the present log.
    cut: Slot,
    /// Entries from `cut + 1` on.
    entries: Vec<Bytes>,
}

impl Staged {
    fn next(&self) -> Slot {
        Slot(self.cut.0 + self.entries.len() as u64 + 1)
    }
}

/// Consecutive entries, cut into pieces of about so many bytes, of one entry at least.
fn pieces(entries: &[Bytes], bytes_max: usize) -> impl Iterator<Item = &[Bytes]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |entry: &&Bytes| {
            bytes += entry.len();
            bytes <= bytes_max
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (piece, behind) = rest.split_at(count);
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What became of an AcceptSync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synced {
    /// Not for this acceptor's present promise.
    Ignored,
    /// Waits for more pieces; everything up to here is staged.
    Staged(Slot),
    /// The log is the leader's, up to its `end` at least.
    Adopted,
}

/// An acceptor's state as of the last step (what is durable may lag behind; see `replica`).
#[derive(Clone, Debug)]
pub struct Acceptor {
    promised: Ballot,
    accepted: Ballot,
    log: Log,
    decided: Slot,
    /// The highest decided slot announced by a leader that our log follows; `decided` follows it as
    /// our own copies become durable.
    announced: Slot,
    durable_length: Slot,
    /// The ballot that the durable log belongs to.
    durable_accepted: Ballot,
    staged: Option<Staged>,
    suspect: bool,
}

impl Acceptor {
    /// From what was read back.
    pub fn new(recovered: Recovered) -> Acceptor {
        let log = Log::new(recovered.first_kept, recovered.entries);
        assert_eq!(log.length(), recovered.length, "recovered entries do not end at the recovered length");
        Acceptor {
            promised: recovered.promised.max(recovered.accepted),
            accepted: recovered.accepted,
            durable_length: log.length(),
            durable_accepted: recovered.accepted,
            log,
            decided: recovered.decided,
            announced: recovered.decided,
            staged: None,
            suspect: recovered.suspect,
        }
    }

    /// The highest ballot promised.
    pub fn promised(&self) -> Ballot {
        self.promised
    }
    /// The ballot that the log belongs to.
    pub fn accepted(&self) -> Ballot {
        self.accepted
    }
    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }
    /// All slots up to here are decided, and held (or covered by a snapshot) durably here.
    pub fn decided(&self) -> Slot {
        self.decided
    }
    /// Whether the log is unproven.
    pub fn suspect(&self) -> bool {
        self.suspect
    }

    /// Phase 1b ("Paxos Made Simple", §2.2). The promise may leave when the log tail as of this
    /// step is durable, even where no record is emitted: an earlier one may still be on its way.
    pub fn prepare(&mut self, ballot: Ballot, votes: bool, records: &mut Vec<Record>) -> Option<Promise> {
        if ballot < self.promised {
            return None;
        }
        if ballot > self.promised {
            self.promised = ballot;
            self.staged = None;
            records.push(Record::Promised(ballot));
        }
        Some(self.promise(votes))
    }

    /// What a promise reports now. `votes`: see [`Promise::votes`].
    pub fn promise(&self, votes: bool) -> Promise {
        Promise {
            ballot: self.promised,
            accepted: self.accepted,
            length: self.log.length(),
            decided: self.decided,
            first_kept: self.log.first_kept(),
            suspect: self.suspect,
            barred: false,
            votes,
        }
    }

    /// A piece of the leader's log: keep up to `cut`, then entries up to `end`.
    pub fn accept_sync(
        &mut self,
        ballot: Ballot,
        cut: Slot,
        start: Slot,
        end: Slot,
        entries: Vec<Bytes>,
        records: &mut Vec<Record>,
    ) -> Synced {
        if ballot != self.promised || cut >= start || end < cut {
            return Synced::Ignored;
        }
        if self.accepted == ballot && !self.suspect {
            // Already the leader's log: it only extends.
            self.append(ballot, start, entries, records);
            return if self.log.length() >= end { Synced::Adopted } else { Synced::Staged(self.log.length()) };
        }
        // The cut was chosen by an older report; meanwhile more may be decided, and is equal there.
        let kept = cut.max(self.decided);
        if self.staged.as_ref().is_none_or(|staged| staged.ballot != ballot || staged.cut != kept) {
            if self.log.length() < kept {
                return Synced::Ignored;
            }
            self.staged = Some(Staged { ballot, cut: kept, entries: Vec::new() });
        }
        let Some(staged) = &mut self.staged else { return Synced::Ignored };
        let next = staged.next();
        let behind = Slot(start.0 + entries.len() as u64);
        if start > next || (behind <= next && end >= next) {
            return Synced::Staged(next.prev());
        }
        for (offset, entry) in entries.iter().enumerate() {
            let slot = Slot(start.0 + offset as u64);
            let same = slot > self.decided || self.log.get(slot).is_none_or(|ours| ours == entry);
            assert!(same, "leader {ballot} brings another entry for slot {slot}, decided here up to {}", self.decided);
        }
        let fresh: Vec<Bytes> = entries.into_iter().skip((next.0 - start.0) as usize).collect();
        let reached = Slot(next.0 + fresh.len() as u64).prev();
        if reached < end && flaw::is(Flaw::AdoptPieceByPiece) {
            self.adopt(ballot, next, fresh, records);
            return Synced::Staged(reached);
        }
        if reached < end {
            staged.entries.extend(fresh.iter().cloned());
            records.push(Record::Staged { ballot, start: next, entries: fresh });
            return Synced::Staged(reached);
        }
        self.adopt(ballot, next, fresh, records);
        Synced::Adopted
    }

    /// All pieces are here: cut, staged entries, the last piece and the ballot take effect at once.
    fn adopt(&mut self, ballot: Ballot, start: Slot, last: Vec<Bytes>, records: &mut Vec<Record>) {
        assert!(ballot == self.promised && ballot >= self.accepted, "adopting {ballot}, promised {}", self.promised);
        let Some(staged) = self.staged.take() else { return };
        assert!(staged.cut >= self.decided, "cut {} below decided {}", staged.cut, self.decided);
        self.log.cut(staged.cut);
        self.durable_length = self.durable_length.min(staged.cut);
        self.log.extend(staged.entries);
        self.log.extend(last.iter().cloned());
        self.accepted = ballot;
        self.suspect = false;
        let decided = self.decided;
        records.push(Record::Adopted { ballot, cut: staged.cut, start, entries: last, decided });
    }

    /// The leader's own adoption of the log that phase 1 found: its part above `cut` is `entries`.
    /// Recorded in pieces, like a follower's: a record has a bound.
    pub fn adopt_as_leader(
        &mut self,
        ballot: Ballot,
        cut: Slot,
        entries: Vec<Bytes>,
        piece_bytes_max: usize,
        records: &mut Vec<Record>,
    ) {
        assert!(ballot == self.promised, "leading at {ballot}, promised {}", self.promised);
        // What a snapshot has brought since the fetch began is decided, and equal to what was fetched.
        let kept = cut.max(self.decided);
        let mut staged = Staged { ballot, cut: kept, entries: Vec::new() };
        let (mut piece, mut bytes) = (Vec::new(), 0);
        for entry in entries.into_iter().skip((kept.0 - cut.0) as usize) {
            bytes += entry.len();
            if bytes > piece_bytes_max && !piece.is_empty() {
                let start = staged.next();
                staged.entries.extend(piece.iter().cloned());
                records.push(Record::Staged { ballot, start, entries: std::mem::take(&mut piece) });
                bytes = entry.len();
            }
            piece.push(entry);
        }
        let start = staged.next();
        self.staged = Some(staged);
        self.adopt(ballot, start, piece, records);
    }

    /// Phase 2b: entries behind what this ballot accepted. Returns whether they could be placed.
    pub fn accept(&mut self, ballot: Ballot, start: Slot, entries: Vec<Bytes>, records: &mut Vec<Record>) -> bool {
        if self.promised != ballot || self.accepted != ballot || self.suspect || start > self.log.length().next() {
            return false;
        }
        self.append(ballot, start, entries, records);
        true
    }

    fn append(&mut self, ballot: Ballot, start: Slot, entries: Vec<Bytes>, records: &mut Vec<Record>) {
        let next = self.log.length().next();
        if start > next || start.0 + (entries.len() as u64) <= next.0 {
            return;
        }
        let fresh: Vec<Bytes> = entries.into_iter().skip((next.0 - start.0) as usize).collect();
        self.log.extend(fresh.iter().cloned());
        records.push(Record::Accepted { ballot, start: next, entries: fresh, decided: self.decided });
    }

    /// A leader at `ballot` says that everything up to `decided` is decided. Only a log that
    /// follows that ballot, or a later one, is known to agree.
    pub fn announce(&mut self, ballot: Ballot, decided: Slot) {
        if self.accepted >= ballot && !self.suspect {
            self.announced = self.announced.max(decided);
            self.follow();
        }
    }

    /// The log up to `length` is durable, as part of the log of `accepted`.
    pub fn persisted(&mut self, accepted: Ballot, length: Slot) {
        self.durable_accepted = accepted;
        if accepted == self.accepted {
            self.durable_length = self.durable_length.max(length.min(self.log.length()));
            self.follow();
        }
    }

    /// This acceptor's own vote at `ballot`: how far its durable log of that ballot reaches.
    pub fn vote(&self, ballot: Ballot) -> Option<Slot> {
        (self.durable_accepted == ballot && self.accepted == ballot && !self.suspect).then_some(self.durable_length)
    }

    fn follow(&mut self) {
        self.decided = self.decided.max(self.announced.min(self.durable_length));
        assert!(self.decided <= self.log.length(), "decided {} beyond the log {}", self.decided, self.log.length());
    }

    /// The state machine now holds everything up to `slot` by a snapshot, `config` being in force there.
    /// Accepted entries above it stay, and so does the accepted ballot; but where that is of an earlier
    /// configuration they lie behind its stop-sign, and are void.
    pub fn installed(&mut self, slot: Slot, config: ConfigId, records: &mut Vec<Record>) {
        if slot <= self.decided && self.log.first_kept() <= slot.next() {
            return;
        }
        self.log.install(slot);
        if self.accepted.config < config {
            self.log.cut(slot.max(self.decided));
            self.durable_length = self.durable_length.min(self.log.length());
        }
        self.staged = None;
        self.decided = self.decided.max(slot);
        self.announced = self.announced.max(slot);
        self.durable_length = self.durable_length.max(slot);
        records.push(Record::Installed(slot));
    }

    /// Entries up to `slot` are applied and flushed; they are dropped until only `keep_bytes` of
    /// entries are held.
    pub fn trim(&mut self, slot: Slot, keep_bytes: usize) {
        assert!(slot <= self.decided, "trim to {slot} beyond decided {}", self.decided);
        while self.log.first_kept() <= slot && self.log.bytes() > keep_bytes {
            self.log.trim(self.log.first_kept().next());
        }
    }

    /// The whole state, with all entries above `flushed` written again in pieces, and what is staged: a
    /// synchronisation that takes longer than it is from one checkpoint to the next would otherwise never end.
    pub fn checkpoint(&mut self, flushed: Slot, piece_bytes_max: usize, records: &mut Vec<Record>) {
        let length = self.log.length();
        let first_kept = flushed.next().max(self.log.first_kept());
        let mut start = first_kept;
        while start <= length {
            let entries = self.log.piece(start, length, piece_bytes_max);
            let next = Slot(start.0 + entries.len() as u64);
            records.push(Record::Rewritten { start, entries });
            start = next;
        }
        let (promised, accepted, decided, suspect) = (self.promised, self.accepted, self.decided, self.suspect);
        records.push(Record::State { promised, accepted, first_kept, length, decided, suspect });
        let Some(Staged { ballot, cut, entries }) = &self.staged else { return };
        let mut start = cut.next();
        for piece in pieces(entries, piece_bytes_max) {
            records.push(Record::Staged { ballot: *ballot, start, entries: piece.to_vec() });
            start = Slot(start.0 + piece.len() as u64);
        }
    }
}
