//! The checkers bite: each broken rule is noticed within a bounded number of seeds, and for the right reason
//! ([`Mutant::shows_as`]). Those that take more seeds than a test of the first tier may are in `ci/mutants` only:
//! forget-grants, forget-seal and read-frozen.

use paxos::flaw::Flaw;
use sim::{Mutant, Options, run};

/// Runs seeds until the mutant is noticed.
fn caught(mutant: Mutant, seeds: std::ops::Range<u64>) {
    let options = Options { mutant: Some(mutant), seconds: 30, ..Options::default() };
    let mut other = Vec::new();
    for seed in seeds.clone() {
        let Err(failure) = run(seed, options) else { continue };
        if mutant.shows_as().iter().any(|reason| failure.what.contains(reason)) {
            return;
        }
        other.push(failure.what.clone());
    }
    panic!("{mutant} was not noticed by the seeds {seeds:?} as {:?}, but: {other:?}", mutant.shows_as());
}

macro_rules! caught {
    ($($name:ident: $mutant:expr, $seeds:expr;)*) => {$(
        #[test]
        fn $name() {
            caught($mutant, $seeds);
        }
    )*};
}

caught! {
    sending_before_durable: Mutant::SendBeforeDurable, 0..40;
    counting_unsent_votes: Mutant::CountUnsentVotes, 0..20;
    forgetting_the_boot_counter: Mutant::ForgetBoot, 0..60;
    a_clock_that_stops_in_pauses: Mutant::ClockStopsInPauses, 0..60;
    made_up_grants: Mutant::MakeUpGrants, 0..240;
    a_move_without_its_sessions: Mutant::Flaw(Flaw::MoveWithoutSessions), 0..60;
    a_move_without_the_last_changes: Mutant::Flaw(Flaw::MoveWithoutLastChanges), 0..30;
    a_move_without_the_index: Mutant::Flaw(Flaw::MoveWithoutIndex), 0..30;
    writing_to_a_frozen_shard: Mutant::Flaw(Flaw::WriteToFrozen), 0..30;
    executing_a_retry_anew: Mutant::FreshSessionPerAttempt, 0..40;
    reporting_a_flush_early: Mutant::ReportFlushEarly, 0..20;
    taking_for_flushed_what_was_applied_meanwhile: Mutant::Flaw(Flaw::FlushedAsOfItsEnd), 0..60;
    releasing_segments_early: Mutant::ReleaseEarly, 0..40;
    losing_promises: Mutant::LosePromises, 0..40;
    skipping_an_entry: Mutant::SkipEntry, 0..20;
    a_cut_without_its_sessions: Mutant::Flaw(Flaw::CutWithoutSessions), 0..60;
    discarding_a_shard_that_is_cut_as_it_arrives: Mutant::Flaw(Flaw::DiscardWhatIsCut), 0..120;
    coming_back_empty_under_the_old_id: Mutant::RejoinUnderOldId, 0..60;
    voting_before_learning: Mutant::Flaw(Flaw::VoteBeforeLearning), 0..60;
    appending_behind_a_stop_sign: Mutant::Flaw(Flaw::AppendBehindStopSign), 0..60;
    forgetting_what_a_closed_replica_had_promised: Mutant::Flaw(Flaw::ForgetTombstone), 0..20;
    // It may take hundreds of seeds; from here on it takes fewer, and the test less time.
    adopting_a_log_piece_by_piece: Mutant::Flaw(Flaw::AdoptPieceByPiece), 200..400;
    a_lease_of_any_ballot: Mutant::Flaw(Flaw::LeaseOfAnyBallot), 0..240;
    reading_without_a_lease: Mutant::Flaw(Flaw::ReadWithoutLease), 0..60;
    judging_a_lease_as_of_the_last_ping: Mutant::Flaw(Flaw::LeaseAsOfThePing), 0..60;
    reading_before_earlier_writes: Mutant::Flaw(Flaw::ReadBeforeWrites), 0..20;
    taking_rot_for_a_torn_tail: Mutant::CutAtRot, 0..240;
    writing_that_an_entry_is_applied_before_what_it_does: Mutant::Flaw(Flaw::AppliedBeforeData), 0..60;
    taking_a_newer_epoch: Mutant::Flaw(Flaw::TakeNewerEpoch), 0..1;
}
