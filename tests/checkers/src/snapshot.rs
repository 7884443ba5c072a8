//! A read at revision R shows, for every key of its range, exactly the newest write ≤ R.
//!
//! Every answer is taken apart into observations, "key K was so at revision R": one per key of a
//! range (keys that it does not show were absent), what a refused transaction shows, and what a
//! write's answer says about the moment just below its revision (a deletion's previous value, the
//! guards that held). Each is compared with the [`Timeline`]; so a multi-key read that mixes two
//! states is found like any wrong read.
//!
//! What remains are keys that vanish without a known deletion. A deletion with unknown outcome
//! leaves no value to recognise it by, so those are matched: each disappearance needs one unknown
//! deletion of that key of its own, able to have taken effect before it was noticed. One deletion
//! suffices per value, because absence lasts until the next write.

use crate::timeline::{Timeline, Versions};
use crate::{
    Answer, Event, EventIndex, History, Key, KeyState, Operation, Outcome, ReadMode, Revision, Seen, Violation,
};
use std::collections::{BTreeMap, BTreeSet};

/// What an answer says about a key.
enum Claim<'h> {
    /// It was as shown.
    Present(&'h Seen),
    /// It was last written at this revision.
    WrittenAt(Revision),
    /// It was not there.
    Absent,
}

struct Observation<'h> {
    event: EventIndex,
    at: Revision,
    claim: Claim<'h>,
}

/// Observations of each key. A key that nothing ever wrote needs no look: whatever value was seen
/// there is reported by the timeline.
type ByKey<'h> = BTreeMap<&'h Key, Vec<Observation<'h>>>;

/// Checks every observation, and that each disappearance has a deletion.
pub fn check(history: &History, timeline: &Timeline) -> Vec<Violation> {
    let mut observations = ByKey::new();
    let mut violations = Vec::new();
    for (index, event) in history.indexed() {
        observe(&mut observations, timeline, index, event);
        violations.extend(misjudged_guard(index, event));
    }
    for (key, versions) in timeline.keys() {
        let seen = observations.remove(key).unwrap_or_default();
        let mut judge = KeyJudge::new(history, timeline, key, versions);
        for observation in &seen {
            judge.judge(observation);
        }
        violations.extend(judge.finish());
    }
    violations.extend(deletions_without_a_request(history, timeline, &violations));
    violations
}

/// Deletions of which only the log or a watch tells, by revision: all of one are the work of one request, and no request
/// works at two. Each key by itself was judged before; these are the ranges that were deleted twice, or by halves.
fn deletions_without_a_request(history: &History, timeline: &Timeline, known: &[Violation]) -> Vec<Violation> {
    let mut unexplained: BTreeMap<Revision, Vec<&Key>> = BTreeMap::new();
    for (key, versions) in timeline.keys() {
        let of_unknown = versions.iter().filter(|(_, version)| version.value.is_none() && version.writer.is_none());
        of_unknown.for_each(|(revision, _)| unexplained.entry(*revision).or_default().push(key));
    }
    let unknown: Vec<(&Operation, Revision)> = history
        .events
        .iter()
        .filter(|event| event.outcome == Outcome::Unknown)
        .map(|event| (&event.operation, timeline.handed_out_before(event.invoked)))
        .collect();
    let mut taken: Vec<Option<Revision>> = vec![None; unknown.len()];
    let mut violations = Vec::new();
    for (revision, keys) in &unexplained {
        if !find_request(*revision, &unexplained, &unknown, &mut taken, &mut BTreeSet::new()) {
            let violation = Violation::UnexplainedDeletion { key: keys[0].clone(), revision: *revision };
            violations.extend(Some(violation).filter(|violation| !known.contains(violation)));
        }
    }
    violations
}

/// Gives a revision an unknown deletion of its own that covers all its keys, and others another one where need be: an
/// augmenting path in the graph of both (Kuhn, "The Hungarian method for the assignment problem", 1955).
fn find_request(
    revision: Revision,
    unexplained: &BTreeMap<Revision, Vec<&Key>>,
    unknown: &[(&Operation, Revision)],
    taken: &mut Vec<Option<Revision>>,
    tried: &mut BTreeSet<usize>,
) -> bool {
    for (request, (operation, earliest)) in unknown.iter().enumerate() {
        let covers = *earliest < revision && unexplained[&revision].iter().all(|key| deletes(operation, key));
        if !covers || !tried.insert(request) {
            continue;
        }
        let free = taken[request].is_none_or(|other| find_request(other, unexplained, unknown, taken, tried));
        if free {
            taken[request] = Some(revision);
            return true;
        }
    }
    false
}

fn observe<'h>(all: &mut ByKey<'h>, timeline: &'h Timeline, event: EventIndex, recorded: &'h Event) {
    let mut add = |key: &'h Key, at: Revision, claim: Claim<'h>| {
        all.entry(key).or_default().push(Observation { event, at, claim });
    };
    if let (Operation::Txn { guards, .. }, Some(written)) = (&recorded.operation, timeline.revision_of(event)) {
        for guard in guards {
            add(&guard.key, written.prev(), written_at(guard.mod_revision));
        }
    }
    let Some((_, header, answer)) = recorded.answered() else { return };
    match (&recorded.operation, answer) {
        (Operation::Delete { key }, Answer::Delete { previous: Some(seen) }) => {
            add(key, header.prev(), Claim::Present(seen));
        }
        (Operation::Delete { key }, Answer::Delete { previous: None }) => add(key, header, Claim::Absent),
        (Operation::DeleteRange { start, end }, Answer::DeletedRange { previous }) => {
            let at = if previous.is_empty() { header } else { header.prev() };
            let shown: BTreeMap<&Key, &KeyState> = previous.iter().map(|state| (&state.key, state)).collect();
            for (key, _) in timeline.range(start, end) {
                add(key, at, claim(shown.get(key).copied()));
            }
        }
        (Operation::Get { key, mode }, Answer::Read { kvs }) => {
            let shown = kvs.iter().find(|state| state.key == *key);
            add(key, read_at(*mode, header), claim(shown));
        }
        (Operation::Range { start, end, mode }, Answer::Read { kvs }) => {
            let shown: BTreeMap<&Key, &KeyState> = kvs.iter().map(|state| (&state.key, state)).collect();
            for (key, _) in timeline.range(start, end) {
                add(key, read_at(*mode, header), claim(shown.get(key).copied()));
            }
        }
        (Operation::Txn { .. }, Answer::TxnRefused { kvs }) => {
            for state in kvs {
                add(&state.key, header, claim(Some(state)));
            }
        }
        (Operation::Put { .. }, Answer::Put) | (Operation::Txn { .. }, Answer::TxnDone) => {}
        (operation, answer) => panic!("event {} asked {operation:?} and recorded the answer {answer:?}", event.0),
    }
}

fn read_at(mode: ReadMode, header: Revision) -> Revision {
    match mode {
        ReadMode::Linearizable | ReadMode::Serializable => header,
        ReadMode::At(revision) => revision,
    }
}

fn claim(shown: Option<&KeyState>) -> Claim<'_> {
    shown.and_then(|state| state.seen.as_ref()).map_or(Claim::Absent, Claim::Present)
}

fn written_at<'h>(revision: Revision) -> Claim<'h> {
    if revision == Revision(0) { Claim::Absent } else { Claim::WrittenAt(revision) }
}

/// A refused transaction's answer shows its guards' keys; one of them has to fail.
fn misjudged_guard(event: EventIndex, recorded: &Event) -> Option<Violation> {
    let (_, _, Answer::TxnRefused { kvs }) = recorded.answered()? else { return None };
    let Operation::Txn { guards, .. } = &recorded.operation else { return None };
    let holds = |guard: &crate::Guard| {
        let state = kvs.iter().find(|state| state.key == guard.key);
        let written = state.and_then(|state| state.seen.as_ref()).map_or(Revision(0), |seen| seen.mod_revision);
        written == guard.mod_revision
    };
    guards.iter().all(holds).then_some(Violation::GuardMisjudged { event })
}

/// How long a value is known to have stayed.
struct Stay {
    present_until: Revision,
    absent_from: Option<(Revision, EventIndex)>,
}

/// A deletion that must have happened above `after` and at or below `until`.
struct Need {
    after: Revision,
    until: Revision,
    otherwise: Violation,
}

struct KeyJudge<'a> {
    history: &'a History,
    timeline: &'a Timeline,
    key: &'a Key,
    versions: &'a Versions,
    /// Revisions of the known puts and deletions, ascending.
    puts: Vec<Revision>,
    deletions: Vec<Revision>,
    /// Puts of this key that may or may not have happened.
    unknown_puts: u64,
    stays: BTreeMap<Revision, Stay>,
    violations: Vec<Violation>,
}

impl<'a> KeyJudge<'a> {
    fn new(history: &'a History, timeline: &'a Timeline, key: &'a Key, versions: &'a Versions) -> KeyJudge<'a> {
        let of_kind = |put: bool| {
            let wanted = versions.iter().filter(|(_, version)| version.value.is_some() == put);
            wanted.map(|(revision, _)| *revision).collect()
        };
        KeyJudge {
            history,
            timeline,
            key,
            versions,
            puts: of_kind(true),
            deletions: of_kind(false),
            unknown_puts: unknown_puts(history, timeline, key),
            stays: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    fn judge(&mut self, observation: &Observation<'_>) {
        let Observation { event, at, claim } = observation;
        match claim {
            Claim::Absent => self.absent(*event, *at),
            Claim::WrittenAt(revision) if self.may_be_unseen_put(*at, *revision) => {}
            Claim::WrittenAt(revision) => self.present(*event, *at, *revision),
            Claim::Present(seen) => {
                self.present(*event, *at, seen.mod_revision);
                self.check_creation(*event, seen);
            }
        }
    }

    /// The newest known write up to `at`, if it leaves a value.
    fn expected(&self, at: Revision) -> Option<Revision> {
        let (revision, version) = self.versions.range(..=at).next_back()?;
        version.value.is_some().then_some(*revision)
    }

    /// How many puts of unknown outcome may have happened at `from` or later, unseen: the log knows all that did.
    fn unseen_puts(&self, from: Revision) -> u64 {
        let logged = self.history.log.as_ref().is_some_and(|log| log.from <= from);
        if logged { 0 } else { self.unknown_puts }
    }

    /// Whether a guard that held can have meant a put of unknown outcome whose value nobody saw.
    fn may_be_unseen_put(&self, at: Revision, written: Revision) -> bool {
        let newest = self.versions.range(..=at).next_back().map(|(revision, _)| *revision);
        self.unseen_puts(written) > 0 && newest.is_none_or(|newest| newest < written)
    }

    fn stay(&mut self, written: Revision) -> &mut Stay {
        self.stays.entry(written).or_insert(Stay { present_until: written, absent_from: None })
    }

    fn present(&mut self, event: EventIndex, at: Revision, seen: Revision) {
        let expected = self.expected(at);
        if expected == Some(seen) {
            let stay = self.stay(seen);
            stay.present_until = stay.present_until.max(at);
        } else {
            let key = self.key.clone();
            self.violations.push(Violation::WrongState { event, key, at, expected, seen: Some(seen) });
        }
    }

    fn absent(&mut self, event: EventIndex, at: Revision) {
        if let Some(written) = self.expected(at) {
            let stay = self.stay(written);
            if stay.absent_from.is_none_or(|(earliest, _)| at < earliest) {
                stay.absent_from = Some((at, event));
            }
        }
    }

    /// Holds `create_revision` and `version` against the known writes.
    fn check_creation(&mut self, event: EventIndex, seen: &Seen) {
        let (created, key) = (seen.create_revision, self.key.clone());
        let count = |revisions: &[Revision], from: Revision| {
            let upto = |bound: Revision| revisions.partition_point(|revision| *revision <= bound);
            upto(seen.mod_revision) - upto(from.prev())
        };
        // A deletion inside, or exactly there, or a creation behind the last change: impossible.
        let inside = self.deletions.partition_point(|revision| *revision < created);
        if let Some(contradicts) = self.deletions.get(inside).copied().filter(|r| *r <= seen.mod_revision) {
            self.violations.push(Violation::WrongCreation { event, key, created, contradicts });
            return;
        }
        if created > seen.mod_revision {
            let contradicts = seen.mod_revision;
            self.violations.push(Violation::WrongCreation { event, key, created, contradicts });
            return;
        }
        let least = count(&self.puts, created) as u64;
        let most = least + self.unseen_puts(created);
        if seen.version < least || seen.version > most {
            let version = seen.version;
            self.violations.push(Violation::WrongVersion { event, key, version, least, most });
        }
        self.absent(event, created.prev());
    }

    fn finish(mut self) -> Vec<Violation> {
        let mut needs = Vec::new();
        for (revision, version) in self.versions {
            if version.value.is_none() && version.writer.is_none() {
                let otherwise = Violation::UnexplainedDeletion { key: self.key.clone(), revision: *revision };
                needs.push(Need { after: revision.prev(), until: *revision, otherwise });
            }
        }
        for (written, stay) in &self.stays {
            let (written, present_until) = (*written, stay.present_until);
            let Some((absent_from, event)) = stay.absent_from else { continue };
            let otherwise = Violation::WriteLost { key: self.key.clone(), written, present_until, absent_from, event };
            let logged = self.history.log.as_ref().is_some_and(|log| present_until.0 + 1 >= log.from.0);
            // What was deleted later would be in the log.
            let before_log = self.history.log.as_ref().map_or(absent_from, |log| log.from.prev());
            if absent_from <= present_until || logged {
                // It came back, or the log knows all deletions and this is none of them.
                self.violations.push(otherwise);
            } else {
                needs.push(Need { after: present_until, until: absent_from.min(before_log), otherwise });
            }
        }
        self.match_deletions(needs);
        self.violations
    }

    /// Gives each need an unknown deletion of its own. A deletion that is early enough for one need
    /// is so for all later ones, so going by deadline and taking any that fits is optimal.
    fn match_deletions(&mut self, mut needs: Vec<Need>) {
        let mut earliest: Vec<Revision> = self
            .history
            .events
            .iter()
            .filter(|event| deletes(&event.operation, self.key))
            .filter(|event| event.outcome == Outcome::Unknown)
            .map(|event| self.timeline.handed_out_before(event.invoked))
            .collect();
        earliest.sort();
        let mut earliest = earliest.into_iter().peekable();
        needs.sort_by_key(|need| need.until);
        for need in needs {
            assert!(need.after < need.until, "a deletion above {} and at most {}", need.after, need.until);
            if earliest.next_if(|earliest| *earliest < need.until).is_none() {
                self.violations.push(need.otherwise);
            }
        }
    }
}

/// Whether the operation deletes the key, if it is done.
fn deletes(operation: &Operation, key: &Key) -> bool {
    match operation {
        Operation::Delete { key: deleted } => deleted == key,
        Operation::DeleteRange { start, end } => start <= key && key < end,
        Operation::Put { .. } | Operation::Get { .. } | Operation::Range { .. } | Operation::Txn { .. } => false,
    }
}

fn unknown_puts(history: &History, timeline: &Timeline, key: &Key) -> u64 {
    let possible = history.indexed().filter(|(index, event)| {
        event.outcome == Outcome::Unknown
            && timeline.revision_of(*index).is_none()
            && event.operation.puts().iter().any(|(written, _)| *written == key)
    });
    possible.count() as u64
}
