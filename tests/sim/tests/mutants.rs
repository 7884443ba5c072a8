//! The checkers bite: each broken rule of the host is noticed within a bounded number of seeds, and
//! for the right reason.

use paxos::flaw::Flaw;
use sim::{Mutant, Options, run};

/// Runs the first seeds until the mutant is noticed.
fn caught(mutant: Mutant, seeds: u64, because: &[&str]) {
    let options = Options { mutant: Some(mutant), seconds: 30, ..Options::default() };
    let mut other = Vec::new();
    for seed in 0..seeds {
        let Err(failure) = run(seed, options) else { continue };
        if because.iter().any(|reason| failure.what.contains(reason)) {
            return;
        }
        other.push(failure.what.clone());
    }
    panic!("{mutant} was not noticed in {seeds} seeds as {because:?}, but: {other:?}");
}

#[test]
fn sending_before_durable_is_noticed() {
    caught(Mutant::SendBeforeDurable, 40, &["agreement", "a promise fell", "a vote was lost"]);
}

#[test]
fn counting_unsent_votes_is_noticed() {
    caught(Mutant::CountUnsentVotes, 20, &["agreement", "violations", "beyond its leader's"]);
}

#[test]
fn forgetting_the_boot_counter_is_noticed() {
    caught(Mutant::ForgetBoot, 60, &["no convergence", "agreement", "violations", "panicked"]);
}

#[test]
fn a_clock_that_stops_in_pauses_is_noticed() {
    caught(Mutant::ClockStopsInPauses, 60, &["two leaseholders"]);
}

#[test]
fn made_up_grants_are_noticed() {
    caught(Mutant::MakeUpGrants, 240, &["two leaseholders"]);
}

#[test]
fn a_move_without_its_sessions_is_noticed() {
    caught(Mutant::Flaw(Flaw::MoveWithoutSessions), 60, &["violations"]);
}

#[test]
fn a_move_without_the_last_changes_is_noticed() {
    caught(Mutant::Flaw(Flaw::MoveWithoutLastChanges), 30, &["violations"]);
}

#[test]
fn writing_to_a_frozen_shard_is_noticed() {
    caught(Mutant::Flaw(Flaw::WriteToFrozen), 30, &["violations"]);
}

#[test]
fn executing_a_retry_anew_is_noticed() {
    caught(Mutant::FreshSessionPerAttempt, 40, &["violations"]);
}

#[test]
fn reporting_a_flush_early_is_noticed() {
    caught(Mutant::ReportFlushEarly, 20, &["neither in the log nor applied"]);
}

#[test]
fn releasing_segments_early_is_noticed() {
    caught(Mutant::ReleaseEarly, 40, &["neither in the log nor applied", "a promise fell", "a vote was lost"]);
}

#[test]
fn losing_promises_is_noticed() {
    caught(Mutant::LosePromises, 40, &["a promise fell"]);
}

#[test]
fn skipping_an_entry_is_noticed() {
    caught(Mutant::SkipEntry, 20, &["states differ"]);
}

#[test]
fn a_cut_without_its_sessions_is_noticed() {
    caught(Mutant::Flaw(Flaw::CutWithoutSessions), 60, &["violations"]);
}

#[test]
fn discarding_a_shard_that_is_cut_as_it_arrives_is_noticed() {
    caught(Mutant::Flaw(Flaw::DiscardWhatIsCut), 120, &["no convergence", "violations"]);
}

#[test]
fn coming_back_empty_under_the_old_id_is_noticed() {
    caught(Mutant::RejoinUnderOldId, 60, &["a promise fell", "a vote was lost", "agreement"]);
}

#[test]
fn voting_before_learning_is_noticed() {
    caught(Mutant::Flaw(Flaw::VoteBeforeLearning), 60, &["agreement", "two leaseholders", "panicked"]);
}

#[test]
fn taking_rot_for_a_torn_tail_is_noticed() {
    caught(Mutant::CutAtRot, 60, &["a promise fell", "a vote was lost", "agreement", "neither in the log nor applied"]);
}

#[test]
fn writing_that_an_entry_is_applied_before_what_it_does_is_noticed() {
    caught(
        Mutant::Flaw(Flaw::AppliedBeforeData),
        60,
        &["states differ", "differ at the end", "violations", "panicked"],
    );
}

#[test]
fn taking_a_newer_epoch_is_noticed() {
    caught(Mutant::Flaw(Flaw::TakeNewerEpoch), 1, &["a stale owner"]);
}

/// Nobody but the stream of changes asks for the index.
#[test]
fn moving_without_the_index_is_noticed() {
    caught(Mutant::Flaw(Flaw::MoveWithoutIndex), 30, &["the log of changes lacks", "was told that all"]);
}

#[test]
fn taking_for_flushed_what_was_applied_meanwhile_is_noticed() {
    caught(Mutant::Flaw(Flaw::FlushedAsOfItsEnd), 60, &["neither in the log nor applied"]);
}
