//! The checkers accept what a correct store does, and find each kind of fault that we plant.

use crate::generate::{history, steps, watch_of};
use crate::{
    Answer, Change, ChangeLog, ClientId, Event, EventIndex, Guard, History, Key, KeyState, Operation, Outcome,
    ReadMode, Revision, Seen, Time, Value, Violation, check, wgl,
};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, prop_assume, proptest};

/// Writes histories by hand. Values name their revision: `v7` is written at 7.
#[derive(Default)]
struct Script(History);

impl Script {
    fn event(mut self, client: u64, time: (u64, u64), operation: Operation, header: u64, answer: Answer) -> Script {
        let outcome = Outcome::Answered { at: Time(time.1), header: Revision(header), answer };
        self.0.events.push(Event { client: ClientId(client), invoked: Time(time.0), operation, outcome });
        self
    }
    fn without_answer(mut self, client: u64, invoked: u64, operation: Operation, outcome: Outcome) -> Script {
        self.0.events.push(Event { client: ClientId(client), invoked: Time(invoked), operation, outcome });
        self
    }
    fn put(self, client: u64, time: (u64, u64), key: &str, revision: u64) -> Script {
        self.event(client, time, put_of(key, revision), revision, Answer::Put)
    }
    fn get(self, client: u64, time: (u64, u64), key: &str, header: u64, seen: Option<Seen>) -> Script {
        let operation = Operation::Get { key: Key::new(key), mode: ReadMode::Linearizable };
        self.event(client, time, operation, header, Answer::Read { kvs: states(&[(key, seen)]) })
    }
    fn range(self, client: u64, time: (u64, u64), header: u64, seen: &[(&str, Option<Seen>)]) -> Script {
        let operation = Operation::Range { start: Key::new("a"), end: Key::new("z"), mode: ReadMode::Linearizable };
        self.event(client, time, operation, header, Answer::Read { kvs: states(seen) })
    }
    fn violations(&self) -> Vec<Violation> {
        check(&self.0).violations.into_iter().map(|(violation, _)| violation).collect()
    }
}

fn put_of(key: &str, revision: u64) -> Operation {
    Operation::Put { key: Key::new(key), value: Value::new(format!("v{revision}")) }
}

fn delete_of(key: &str) -> Operation {
    Operation::Delete { key: Key::new(key) }
}

/// As written at `revision`, the first time.
fn seen(revision: u64) -> Option<Seen> {
    seen_as(revision, revision, 1)
}

fn seen_as(revision: u64, created: u64, version: u64) -> Option<Seen> {
    let value = Value::new(format!("v{revision}"));
    Some(Seen { value, mod_revision: Revision(revision), create_revision: Revision(created), version })
}

fn states(seen: &[(&str, Option<Seen>)]) -> Vec<KeyState> {
    let present = seen.iter().filter(|(_, seen)| seen.is_some());
    present.map(|(key, seen)| KeyState { key: Key::new(key), seen: seen.clone() }).collect()
}

macro_rules! assert_finds {
    ($script:expr, $($pattern:pat_param)|+) => {{
        let violations = $script.violations();
        assert!(violations.iter().any(|violation| matches!(violation, $($pattern)|+)), "{violations:#?}");
    }};
}

#[test]
fn an_empty_history_is_fine() {
    assert_eq!(Script::default().violations(), []);
}

#[test]
fn stale_read_across_clients() {
    let script = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "a", 3).get(2, (40, 50), "a", 2, seen(2));
    assert_finds!(script, Violation::NotSerializable { event: EventIndex(2), .. });
    assert_finds!(script, Violation::ReadBehindWrite { read: EventIndex(2), .. });
    assert_eq!(wgl::check(&script.0), wgl::Verdict::NotLinearizable(Key::new("a")));
}

/// The header looks fresh, only the content is old.
#[test]
fn stale_content_under_a_fresh_header() {
    let script = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "a", 3).get(2, (40, 50), "a", 3, seen(2));
    assert_finds!(script, Violation::NotSerializable { .. });
    assert_finds!(script, Violation::WrongState { .. });
}

/// Each key alone is linearizable, both together are not: x is read new, then y is read old.
#[test]
fn keys_in_different_orders() {
    let script = Script::default()
        .put(1, (0, 100), "x", 3)
        .put(2, (0, 20), "y", 2)
        .put(2, (30, 100), "y", 4)
        .get(3, (35, 40), "y", 4, seen_as(4, 2, 2))
        .get(4, (45, 50), "x", 2, None);
    assert_eq!(wgl::check(&script.0), wgl::Verdict::Linearizable);
    let found = script.violations();
    assert!(
        matches!(found[..], [Violation::NotSerializable { event: EventIndex(4), after: EventIndex(3), .. }]),
        "{found:#?}"
    );
}

/// Headers may go back between clients as long as the contents have a serial order.
#[test]
fn headers_of_different_clients_are_free() {
    let script = |reader| {
        Script::default().put(1, (0, 100), "x", 5).get(2, (10, 20), "x", 5, seen(5)).get(reader, (30, 40), "y", 4, None)
    };
    assert_eq!(script(3).violations(), []);
    assert_finds!(script(2), Violation::HeaderWentBack { .. });
}

#[test]
fn revisions_against_real_time() {
    let script = Script::default().put(1, (0, 10), "a", 3).put(2, (20, 30), "b", 2);
    assert_finds!(script, Violation::WriteNotAfter { earlier: EventIndex(0), later: EventIndex(1), .. });
    let script = Script::default().get(1, (0, 10), "a", 3, None).put(2, (20, 30), "b", 3);
    assert_finds!(script, Violation::WriteNotAfter { .. });
    let concurrent = Script::default().put(1, (0, 10), "a", 3).put(2, (10, 30), "b", 2);
    assert_eq!(concurrent.violations(), []);
}

/// A write whose answer was lost, but which a read showed, has to be in order as well.
#[test]
fn seen_unknown_write_against_real_time() {
    let script =
        |revision| {
            Script::default()
                .put(1, (0, 10), "a", 5)
                .without_answer(2, 20, put_of("b", revision), Outcome::Unknown)
                .get(3, (30, 40), "b", 7, seen(revision))
        };
    assert_eq!(script(6).violations(), []);
    assert_finds!(script(4), Violation::WriteNotAfter { later: EventIndex(1), .. });
}

#[test]
fn two_writes_at_one_revision() {
    let script = Script::default().put(1, (0, 10), "a", 2).event(
        2,
        (0, 10),
        Operation::Put { key: Key::new("b"), value: Value::new("other") },
        2,
        Answer::Put,
    );
    assert_finds!(script, Violation::SharedRevision { .. });
}

#[test]
fn lost_write() {
    let script = Script::default().put(1, (0, 10), "a", 2).get(2, (20, 30), "a", 3, None);
    assert_finds!(script, Violation::WriteLost { .. });
}

/// Only as many disappearances are explained as deletions may have happened, and only in time.
#[test]
fn unknown_deletions_explain_disappearances() {
    let unknown = Outcome::Unknown;
    let one = || Script::default().put(1, (0, 10), "a", 2).without_answer(2, 20, delete_of("a"), unknown.clone());
    assert_eq!(one().get(3, (30, 40), "a", 3, None).violations(), []);
    let twice = one().get(3, (30, 40), "a", 3, None).put(1, (50, 60), "a", 4).get(3, (70, 80), "a", 5, None);
    assert_finds!(twice, Violation::WriteLost { written: Revision(4), .. });
    let other_key = Script::default().put(1, (0, 10), "a", 2).without_answer(2, 20, delete_of("b"), unknown.clone());
    assert_finds!(other_key.get(3, (30, 40), "a", 3, None), Violation::WriteLost { .. });
    let too_late = Script::default().put(1, (0, 10), "a", 2).get(3, (30, 40), "a", 3, None).without_answer(
        2,
        50,
        delete_of("a"),
        unknown.clone(),
    );
    assert_finds!(too_late, Violation::WriteLost { .. });
    let back_again = one().get(3, (30, 40), "a", 3, None).get(3, (50, 60), "a", 4, seen(2));
    assert_finds!(back_again, Violation::WriteLost { .. });
    let refused = Script::default().put(1, (0, 10), "a", 2).without_answer(2, 20, delete_of("a"), Outcome::Refused);
    assert_finds!(refused.get(3, (30, 40), "a", 3, None), Violation::WriteLost { .. });
}

#[test]
fn write_applied_twice() {
    let reappears = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "a", 3).get(
        2,
        (40, 50),
        "a",
        4,
        Some(Seen { mod_revision: Revision(4), ..seen_as(2, 2, 3).expect("seen") }),
    );
    assert_finds!(reappears, Violation::WrittenTwice { writer: EventIndex(0), .. });
    let counted = Script::default().put(1, (0, 10), "a", 2).get(2, (20, 30), "a", 3, seen_as(2, 2, 2));
    assert_finds!(counted, Violation::WrongVersion { version: 2, most: 1, .. });
}

#[test]
fn refused_write_takes_effect() {
    let script = Script::default().without_answer(1, 0, put_of("a", 2), Outcome::Refused);
    assert_finds!(script.get(2, (20, 30), "a", 2, seen(2)), Violation::RefusedWriteVisible { .. });
}

#[test]
fn value_from_nowhere() {
    let nowhere = Script::default().get(1, (0, 10), "a", 2, seen(2));
    assert_finds!(nowhere, Violation::ValueFromNowhere { .. });
    let other_key = Script::default().put(1, (0, 10), "a", 2).get(2, (20, 30), "b", 2, seen(2));
    assert_finds!(other_key, Violation::ValueFromNowhere { .. });
}

#[test]
fn creation_contradicts_history() {
    let script = Script::default()
        .put(1, (0, 10), "a", 2)
        .event(1, (20, 30), delete_of("a"), 3, Answer::Delete { previous: seen(2) })
        .put(1, (40, 50), "a", 4);
    let read = |created, version| seen_as(4, created, version);
    let with = |seen| Script(script.0.clone()).get(2, (60, 70), "a", 4, seen);
    assert_eq!(with(read(4, 1)).violations(), []);
    assert_finds!(with(read(2, 2)), Violation::WrongCreation { contradicts: Revision(3), .. });
}

/// A range shows one key's new value and misses another's older one.
#[test]
fn torn_snapshot() {
    let script = |a, b| {
        Script::default().put(1, (0, 100), "a", 2).put(2, (0, 100), "b", 3).range(3, (50, 60), 3, &[("a", a), ("b", b)])
    };
    assert_eq!(script(seen(2), seen(3)).violations(), []);
    assert_finds!(script(None, seen(3)), Violation::WriteLost { .. });
    let overwritten = Script::default()
        .put(1, (0, 10), "a", 2)
        .put(1, (20, 100), "a", 3)
        .put(2, (20, 100), "b", 4)
        .range(3, (50, 60), 4, &[("a", seen(2)), ("b", seen(4))]);
    assert_finds!(overwritten, Violation::WrongState { .. });
}

#[test]
fn transaction_is_all_or_nothing() {
    let both = Operation::Txn {
        guards: Vec::new(),
        puts: vec![(Key::new("a"), Value::new("v2")), (Key::new("b"), Value::new("w2"))],
    };
    let script =
        Script::default().without_answer(1, 0, both, Outcome::Unknown).range(3, (50, 60), 3, &[("a", seen(2))]);
    assert_finds!(script, Violation::WriteLost { .. });
}

#[test]
fn guard_misjudged() {
    let cas = |guard| Operation::Txn {
        guards: vec![Guard { key: Key::new("a"), mod_revision: Revision(guard) }],
        puts: vec![(Key::new("a"), Value::new("v4"))],
    };
    let start = || Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "a", 3);
    assert_eq!(start().event(2, (40, 50), cas(3), 4, Answer::TxnDone).violations(), []);
    let lost_update = start().event(2, (40, 50), cas(2), 4, Answer::TxnDone);
    assert_finds!(lost_update, Violation::WrongState { .. });
    let refused = |seen| Answer::TxnRefused { kvs: states(&[("a", seen)]) };
    assert_eq!(start().event(2, (40, 50), cas(2), 4, refused(seen_as(3, 2, 2))).violations(), []);
    let wrongly = start().event(2, (40, 50), cas(3), 4, refused(seen_as(3, 2, 2)));
    assert_finds!(wrongly, Violation::GuardMisjudged { .. });
}

#[test]
fn serializable_reads_may_lag_but_not_lie() {
    let read = |header, seen| {
        let operation = Operation::Get { key: Key::new("a"), mode: ReadMode::Serializable };
        let answer = Answer::Read { kvs: states(&[("a", seen)]) };
        let script = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "a", 3);
        script.event(2, (40, 50), operation, header, answer)
    };
    assert_eq!(read(2, seen(2)).violations(), []);
    assert_finds!(read(3, seen(2)), Violation::WrongState { .. });
}

#[test]
fn log_of_changes_lacks_repeats_or_adds() {
    let change = |revision, value: Option<&str>| Change {
        revision: Revision(revision),
        key: Key::new("a"),
        value: value.map(Value::new),
    };
    let with_log = |log: Vec<Change>| {
        let mut script = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "a", 3);
        script.0.log = Some(ChangeLog::complete(log));
        script
    };
    let (first, second) = (change(2, Some("v2")), change(3, Some("v3")));
    assert_eq!(with_log(vec![first.clone(), second.clone()]).violations(), []);
    assert_finds!(with_log(vec![second.clone()]), Violation::NotInLog { revision: Revision(2), .. });
    assert_finds!(with_log(vec![second.clone(), first.clone()]), Violation::LogOutOfOrder { .. });
    let again = change(4, Some("v2"));
    assert_finds!(with_log(vec![first.clone(), second.clone(), again]), Violation::WrittenTwice { .. });
    let deleted = change(4, None);
    assert_finds!(with_log(vec![first.clone(), second.clone(), deleted]), Violation::UnexplainedDeletion { .. });
    let mut late = with_log(vec![second.clone()]);
    late.0.log.as_mut().expect("just set").from = Revision(3);
    assert_eq!(late.violations(), [], "what lies below its beginning it need not have");
    let instead = change(3, None);
    assert_finds!(with_log(vec![first, instead]), Violation::NotInLog { revision: Revision(3), .. });
}

#[test]
fn a_range_is_deleted_as_a_whole() {
    let seen = |revision: u64| Seen {
        value: Value::new(format!("v{revision}")),
        mod_revision: Revision(revision),
        create_revision: Revision(revision),
        version: 1,
    };
    let deleted = |keys: &[(&str, u64)]| {
        let state = |(key, revision): &(&str, u64)| KeyState { key: Key::new(key), seen: Some(seen(*revision)) };
        let operation = Operation::DeleteRange { start: Key::new("a"), end: Key::new("c") };
        let script = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "b", 3).put(1, (40, 50), "c", 4);
        let answer = Answer::DeletedRange { previous: keys.iter().map(state).collect() };
        script.event(2, (60, 70), operation, 5, answer)
    };
    let read = |script: Script, kvs: Vec<KeyState>| {
        let operation = Operation::Range { start: Key::new("a"), end: Key::new("d"), mode: ReadMode::Linearizable };
        script.event(3, (80, 90), operation, 6, Answer::Read { kvs })
    };
    let state = |key: &str, revision| KeyState { key: Key::new(key), seen: Some(seen(revision)) };
    let all = || deleted(&[("a", 2), ("b", 3)]);
    assert_eq!(read(all(), vec![state("c", 4)]).violations(), []);
    assert_finds!(read(all(), vec![state("b", 3), state("c", 4)]), Violation::WrongState { .. });
    assert_finds!(read(all(), Vec::new()), Violation::WriteLost { .. });
    assert_finds!(deleted(&[("b", 3)]), Violation::WriteLost { .. });
    assert_finds!(deleted(&[("a", 2), ("b", 2)]), Violation::ValueFromNowhere { .. });
}

/// One request that nobody heard of again, and deletions in the log that it may have done.
#[test]
fn an_unknown_deletion_of_a_range_happens_once() {
    let change = |revision, key: &str, value: Option<&str>| Change {
        revision: Revision(revision),
        key: Key::new(key),
        value: value.map(Value::new),
    };
    let deleted = |deletions: &[(u64, &str)]| {
        let mut script = Script::default().put(1, (0, 10), "a", 2).put(1, (20, 30), "b", 3);
        let operation = Operation::DeleteRange { start: Key::new("a"), end: Key::new("c") };
        let (client, invoked, outcome) = (ClientId(2), Time(40), Outcome::Unknown);
        script.0.events.push(Event { client, invoked, operation, outcome });
        let puts = [change(2, "a", Some("v2")), change(3, "b", Some("v3"))];
        let deletions = deletions.iter().map(|(revision, key)| change(*revision, key, None));
        script.0.log = Some(ChangeLog::complete(puts.into_iter().chain(deletions).collect()));
        script
    };
    assert_eq!(deleted(&[(5, "a"), (5, "b")]).violations(), []);
    assert_finds!(deleted(&[(5, "a"), (6, "b")]), Violation::UnexplainedDeletion { revision: Revision(6), .. });
    assert_finds!(deleted(&[(3, "a"), (5, "b")]), Violation::UnexplainedDeletion { revision: Revision(3), .. });
}

/// A key vanished before the log begins; what could have deleted it came later.
#[test]
fn a_deletion_below_the_log_came_before_it() {
    let mut script = Script::default().put(1, (0, 10), "a", 5).put(1, (20, 30), "b", 15);
    let (client, invoked, outcome) = (ClientId(2), Time(40), Outcome::Unknown);
    script.0.events.push(Event { client, invoked, operation: delete_of("a"), outcome });
    let operation = Operation::Get { key: Key::new("a"), mode: ReadMode::Linearizable };
    let mut script = script.event(3, (50, 60), operation, 20, Answer::Read { kvs: Vec::new() });
    let changes = vec![Change { revision: Revision(15), key: Key::new("b"), value: Some(Value::new("v15")) }];
    assert_eq!(script.violations(), [], "without a log it may have been deleted after 15");
    script.0.log = Some(ChangeLog { from: Revision(10), changes });
    assert_finds!(script, Violation::WriteLost { .. });
}

#[test]
fn histories_survive_their_file() {
    let mut history = Script::default().put(1, (0, 10), "a\n\u{e9}", 2).0;
    history.log = Some(ChangeLog::complete(vec![Change { revision: Revision(2), key: Key::new("a"), value: None }]));
    history.watches.push(watch_of(&[]));
    let mut file = Vec::new();
    history.write_jsonl(&mut file).expect("write to memory");
    assert_eq!(History::read_jsonl(&file[..]).expect("read back"), history);
    let error = History::read_jsonl(&b"{}\n"[..]).expect_err("no such line");
    assert!(error.to_string().contains("line 1"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn valid_histories_pass(steps in steps(80), with_log in any::<bool>(), with_watch in any::<bool>()) {
        let (mut history, model) = history(&steps);
        if with_watch {
            history.watches.push(watch_of(&model.log));
        }
        history.log = with_log.then(|| ChangeLog::complete(model.log));
        let report = check(&history);
        prop_assert!(report.is_ok(), "{report}");
    }

    /// Two arguments that share nothing agree: what the fast checkers accept has a linearization.
    #[test]
    fn search_agrees(steps in steps(40)) {
        let (history, _) = history(&steps);
        prop_assert!(check(&history).is_ok());
        let verdict = wgl::check(&history);
        prop_assert!(!matches!(verdict, wgl::Verdict::NotLinearizable(_)), "{verdict:?}");
    }

    /// Whatever two answers are exchanged: if the search finds no order, neither do the checkers.
    #[test]
    fn search_finds_nothing_that_the_checkers_miss(steps in steps(30), one in any::<usize>(), other in any::<usize>()) {
        let (mut history, _) = history(&steps);
        let gets: Vec<usize> = history.events.iter().enumerate()
            .filter(|(_, e)| matches!(e.operation, Operation::Get { .. }) && e.answered().is_some())
            .map(|(position, _)| position).collect();
        prop_assume!(gets.len() >= 2);
        let (one, other) = (gets[one % gets.len()], gets[other % gets.len()]);
        let contents = |event: &Event| event.answered().map(|(_, _, answer)| answer.clone());
        let (first, second) = (contents(&history.events[one]), contents(&history.events[other]));
        for (position, new) in [(one, second), (other, first)] {
            if let (Outcome::Answered { answer, .. }, Some(new)) = (&mut history.events[position].outcome, new) {
                *answer = new;
            }
        }
        if matches!(wgl::check(&history), wgl::Verdict::NotLinearizable(_)) {
            prop_assert!(!check(&history).is_ok());
        }
    }

    /// An acknowledged write that the store forgot is missed by its log, whatever happened since.
    #[test]
    fn forgotten_writes_are_found(steps in steps(60), victim in any::<usize>()) {
        let (mut history, model) = history(&steps);
        let acknowledged: Vec<Revision> = history.events.iter().filter_map(Event::acknowledged_write).collect();
        prop_assume!(!acknowledged.is_empty());
        let victim = acknowledged[victim % acknowledged.len()];
        let kept = model.log.into_iter().filter(|change| change.revision != victim).collect();
        history.log = Some(ChangeLog::complete(kept));
        prop_assert!(!check(&history).is_ok());
    }

    /// A watch that skips, repeats or delays one answer is found.
    #[test]
    fn broken_watches_are_found(steps in steps(60), victim in any::<usize>(), fault in 0..3u8) {
        let (mut history, model) = history(&steps);
        prop_assume!(!model.log.is_empty());
        let mut watch = watch_of(&model.log);
        let marks = 1;
        let victim = victim % (watch.answers.len() - marks);
        match fault {
            0 => drop(watch.answers.remove(victim)),
            1 => watch.answers.insert(victim, watch.answers[victim].clone()),
            _ => {
                let late = watch.answers.remove(victim);
                watch.answers.push(late);
            }
        }
        history.log = Some(ChangeLog::complete(model.log));
        history.watches.push(watch);
        prop_assert!(!check(&history).is_ok());
    }

    /// Judging twice, or after a trip through a file, gives the same report.
    #[test]
    fn reports_are_deterministic(steps in steps(40), shift in 0..5u64) {
        let (mut history, _) = history(&steps);
        for event in &mut history.events {
            if let Outcome::Answered { header, .. } = &mut event.outcome {
                header.0 += shift % 2;
            }
        }
        let mut file = Vec::new();
        history.write_jsonl(&mut file).expect("write to memory");
        let again = History::read_jsonl(&file[..]).expect("read back");
        prop_assert_eq!(check(&history), check(&again));
    }
}
