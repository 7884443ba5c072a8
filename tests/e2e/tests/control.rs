//! The control: etcd has to pass, and a store that breaks its promises has to fail.
//!
//! The broken store is etcd's recorded history with one fault put in afterwards: the clients of
//! the run could not tell the difference. These need an etcd binary, so they run on request:
//! `ETCD_BIN=… cargo nextest run -p e2e --run-ignored only`.

use checkers::{Answer, Event, History, Operation, Outcome, ReadMode, Revision, Violation};
use e2e::crash::{self, Config};
use e2e::smoke;
use e2e::system::{Layout, System};
use std::time::Duration;

fn config(rounds: u32, directory: &tempfile::TempDir) -> Config {
    Config {
        system: System::Etcd,
        layout: Layout::AllRoles,
        rounds,
        round: Duration::from_secs(3),
        clients: 8,
        keys: 24,
        watches: 2,
        log: true,
        seed: 3,
        directory: directory.path().to_owned(),
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

#[tokio::test]
#[ignore = "needs ETCD_BIN"]
async fn etcd_passes() {
    let directory = directory();
    smoke::run(System::Etcd, Layout::AllRoles, directory.path().to_owned()).await.expect("the basics");
    let summary = crash::run(&config(5, &directory)).await.expect("no violation");
    assert!(summary.report.answered > 500, "too little happened: {}", summary.report);
}

/// A fault: changes one answer of a valid history; whether it found a place to.
type Mutant = fn(&mut History) -> bool;

const MUTANTS: [(&str, Mutant); 6] = [
    ("a write is forgotten", forget_write),
    ("a read is stale", stale_read),
    ("a write is applied twice", write_twice),
    ("a range mixes two states", torn_range),
    ("a revision goes back", revision_back),
    ("a watch skips a change", skip_change),
];

#[tokio::test]
#[ignore = "needs ETCD_BIN"]
async fn broken_stores_fail() {
    let directory = directory();
    let recorded = crash::record(&config(2, &directory)).await.expect("a recorded history");
    assert!(checkers::check(&recorded).is_ok());
    for (name, mutant) in MUTANTS {
        let mut broken = recorded.clone();
        assert!(mutant(&mut broken), "{name}: the history has no place for it");
        let found = checkers::check(&broken).violations;
        assert!(!found.is_empty(), "{name}: not found");
        let first: &Violation = &found[0].0;
        println!("{name}: {} violations, the first: {first}", found.len());
    }
}

fn acknowledged(history: &History) -> Vec<Revision> {
    history.events.iter().filter_map(Event::acknowledged_write).collect()
}

fn forget_write(history: &mut History) -> bool {
    let writes = acknowledged(history);
    let Some(victim) = writes.get(writes.len() / 2) else { return false };
    history.log.iter_mut().for_each(|log| log.changes.retain(|change| change.revision != *victim));
    true
}

/// A linearizable get shows what an earlier get of the key showed, before other writes.
fn stale_read(history: &mut History) -> bool {
    let mut earlier: Vec<(checkers::Key, Answer)> = Vec::new();
    for event in &mut history.events {
        let Operation::Get { key, mode: ReadMode::Linearizable } = &event.operation else { continue };
        let Outcome::Answered { answer, .. } = &mut event.outcome else { continue };
        match earlier.iter().find(|(read, _)| read == key) {
            Some((_, old)) if old != answer => {
                *answer = old.clone();
                return true;
            }
            Some(_) => {}
            None => earlier.push((key.clone(), answer.clone())),
        }
    }
    false
}

fn write_twice(history: &mut History) -> bool {
    let Some(log) = &mut history.log else { return false };
    let Some(mut again) = log.changes.iter().find(|change| change.value.is_some()).cloned() else { return false };
    again.revision = Revision(log.changes.last().map_or(0, |last| last.revision.0) + 1);
    log.changes.push(again);
    true
}

/// One key of a range is replaced by its state in an earlier range.
fn torn_range(history: &mut History) -> bool {
    let mut first = None;
    for event in &mut history.events {
        let Operation::Range { mode: ReadMode::Linearizable, .. } = event.operation else { continue };
        let Outcome::Answered { answer: Answer::Read { kvs }, .. } = &mut event.outcome else { continue };
        let Some(state) = kvs.first_mut() else { continue };
        match &first {
            None => first = Some(state.clone()),
            Some(old) if old.key == state.key && old != state => {
                *state = old.clone();
                return true;
            }
            Some(_) => {}
        }
    }
    false
}

/// Two puts that followed each other exchange their revisions.
fn revision_back(history: &mut History) -> bool {
    let is_put = |event: &Event| matches!(event.operation, Operation::Put { .. }) && event.answered().is_some();
    let puts: Vec<usize> = (0..history.events.len()).filter(|position| is_put(&history.events[*position])).collect();
    let (Some(first), Some(last)) = (puts.first().copied(), puts.last().copied()) else { return false };
    let headers = [first, last].map(|position| history.events[position].answered().map(|(_, header, _)| header));
    for (position, new) in [(first, headers[1]), (last, headers[0])] {
        if let (Outcome::Answered { header, .. }, Some(new)) = (&mut history.events[position].outcome, new) {
            *header = new;
        }
    }
    first != last
}

fn skip_change(history: &mut History) -> bool {
    let Some(watch) = history.watches.first_mut() else { return false };
    let middle = watch.answers.len() / 2;
    if watch.answers.is_empty() {
        return false;
    }
    watch.answers.remove(middle);
    true
}
