//! Deliberate faults of the host, and bugs in the code that it hosts ([`paxos::flaw`]): each breaks one rule
//! that the design relies on, and the checkers must notice. What a checker does not notice in a mutant it would
//! not notice in a bug.

use paxos::flaw::Flaw;
use std::fmt;
use std::str::FromStr;

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// Messages that wait for durability leave before it.
    SendBeforeDurable,
    /// The leader counts an acceptor's vote when it has sent the entries, not when it was answered.
    CountUnsentVotes,
    /// The boot counter is not durable: every start is the first.
    ForgetBoot,
    /// A starting node does not honour the grants that it gave before.
    ForgetGrants,
    /// A node's clock stands still while the node does, so an old lease looks fresh.
    ClockStopsInPauses,
    /// Every attempt of a write gets a session of its own, so retries are new commands.
    FreshSessionPerAttempt,
    /// A flush of the store is reported before it happened.
    ReportFlushEarly,
    /// Log segments are released as soon as the store is flushed, before the state is written again.
    ReleaseEarly,
    /// Promises are not written to the log.
    LosePromises,
    /// One node skips an entry now and then.
    SkipEntry,
    /// A leader makes up its peers' grants, so its lease never ends.
    MakeUpGrants,
    /// A node that has lost its disks comes back, empty, under its old id.
    RejoinUnderOldId,
    /// What is corrupt in the middle of a log is taken for its torn tail: everything from there on is cut.
    CutAtRot,
    /// A bug in the code itself.
    Flaw(Flaw),
}

/// All of them.
pub const ALL: &[Mutant] = &[
    Mutant::SendBeforeDurable,
    Mutant::CountUnsentVotes,
    Mutant::ForgetBoot,
    Mutant::ForgetGrants,
    Mutant::ClockStopsInPauses,
    Mutant::FreshSessionPerAttempt,
    Mutant::ReportFlushEarly,
    Mutant::ReleaseEarly,
    Mutant::LosePromises,
    Mutant::SkipEntry,
    Mutant::MakeUpGrants,
    Mutant::RejoinUnderOldId,
    Mutant::CutAtRot,
    Mutant::Flaw(Flaw::VoteBeforeLearning),
    Mutant::Flaw(Flaw::AppendBehindStopSign),
    Mutant::Flaw(Flaw::ForgetSeal),
    Mutant::Flaw(Flaw::AdoptPieceByPiece),
    Mutant::Flaw(Flaw::LeaseOfAnyBallot),
    Mutant::Flaw(Flaw::ReadWithoutLease),
    Mutant::Flaw(Flaw::LeaseAsOfThePing),
    Mutant::Flaw(Flaw::ReadBeforeWrites),
    Mutant::Flaw(Flaw::ForgetTombstone),
    Mutant::Flaw(Flaw::MoveWithoutSessions),
    Mutant::Flaw(Flaw::MoveWithoutLastChanges),
    Mutant::Flaw(Flaw::WriteToFrozen),
    Mutant::Flaw(Flaw::ReadFrozen),
    Mutant::Flaw(Flaw::CutWithoutSessions),
    Mutant::Flaw(Flaw::DiscardWhatIsCut),
    Mutant::Flaw(Flaw::AppliedBeforeData),
    Mutant::Flaw(Flaw::TakeNewerEpoch),
    Mutant::Flaw(Flaw::MoveWithoutIndex),
    Mutant::Flaw(Flaw::FlushedAsOfItsEnd),
];

impl Mutant {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mutant::SendBeforeDurable => "send-before-durable",
            Mutant::CountUnsentVotes => "count-unsent-votes",
            Mutant::ForgetBoot => "forget-boot",
            Mutant::ForgetGrants => "forget-grants",
            Mutant::ClockStopsInPauses => "clock-stops-in-pauses",
            Mutant::FreshSessionPerAttempt => "fresh-session-per-attempt",
            Mutant::ReportFlushEarly => "report-flush-early",
            Mutant::ReleaseEarly => "release-early",
            Mutant::LosePromises => "lose-promises",
            Mutant::SkipEntry => "skip-entry",
            Mutant::MakeUpGrants => "make-up-grants",
            Mutant::RejoinUnderOldId => "rejoin-under-old-id",
            Mutant::CutAtRot => "cut-at-rot",
            Mutant::Flaw(Flaw::VoteBeforeLearning) => "vote-before-learning",
            Mutant::Flaw(Flaw::AppendBehindStopSign) => "append-behind-stop-sign",
            Mutant::Flaw(Flaw::ForgetSeal) => "forget-seal",
            Mutant::Flaw(Flaw::AdoptPieceByPiece) => "adopt-piece-by-piece",
            Mutant::Flaw(Flaw::LeaseOfAnyBallot) => "lease-of-any-ballot",
            Mutant::Flaw(Flaw::ReadWithoutLease) => "read-without-lease",
            Mutant::Flaw(Flaw::LeaseAsOfThePing) => "lease-as-of-the-ping",
            Mutant::Flaw(Flaw::ReadBeforeWrites) => "read-before-writes",
            Mutant::Flaw(Flaw::ForgetTombstone) => "forget-tombstone",
            Mutant::Flaw(Flaw::MoveWithoutSessions) => "move-without-sessions",
            Mutant::Flaw(Flaw::MoveWithoutLastChanges) => "move-without-last-changes",
            Mutant::Flaw(Flaw::WriteToFrozen) => "write-to-frozen",
            Mutant::Flaw(Flaw::ReadFrozen) => "read-frozen",
            Mutant::Flaw(Flaw::CutWithoutSessions) => "cut-without-sessions",
            Mutant::Flaw(Flaw::DiscardWhatIsCut) => "discard-what-is-cut",
            Mutant::Flaw(Flaw::AppliedBeforeData) => "applied-before-data",
            Mutant::Flaw(Flaw::TakeNewerEpoch) => "take-newer-epoch",
            Mutant::Flaw(Flaw::MoveWithoutIndex) => "move-without-index",
            Mutant::Flaw(Flaw::DigestAnew) => "digest-anew",
            Mutant::Flaw(Flaw::FlushedAsOfItsEnd) => "flushed-as-of-its-end",
        }
    }

    /// What a failure says that it leads to: any of these. Another failure is another bug.
    pub fn shows_as(self) -> &'static [&'static str] {
        match self {
            Mutant::SendBeforeDurable | Mutant::RejoinUnderOldId => &["agreement", "a promise fell", "a vote was lost"],
            Mutant::CountUnsentVotes => &["agreement", "violations", "beyond its leader's"],
            Mutant::ForgetBoot => &["no convergence", "agreement", "violations", "panicked"],
            Mutant::ForgetGrants | Mutant::ClockStopsInPauses | Mutant::MakeUpGrants => &["two leaseholders"],
            Mutant::FreshSessionPerAttempt => &["violations"],
            Mutant::ReportFlushEarly => &["neither in the log nor applied"],
            Mutant::ReleaseEarly => &["neither in the log nor applied", "a promise fell", "a vote was lost"],
            Mutant::LosePromises => &["a promise fell"],
            Mutant::SkipEntry => &["states differ"],
            Mutant::CutAtRot => &["a promise fell", "a vote was lost", "agreement", "neither in the log nor applied"],
            Mutant::Flaw(flaw) => shown_by(flaw),
        }
    }
}

fn shown_by(flaw: Flaw) -> &'static [&'static str] {
    match flaw {
        Flaw::VoteBeforeLearning => &["agreement", "two leaseholders", "panicked"],
        Flaw::AppendBehindStopSign => &["behind its stop-sign", "agreement", "violations"],
        Flaw::ForgetSeal => &["no convergence", "violations", "agreement"],
        Flaw::AdoptPieceByPiece => &["agreement", "another entry for slot", "states differ", "violations"],
        Flaw::LeaseOfAnyBallot | Flaw::ReadWithoutLease | Flaw::LeaseAsOfThePing => &["two leaseholders", "violations"],
        Flaw::ReadBeforeWrites
        | Flaw::MoveWithoutSessions
        | Flaw::MoveWithoutLastChanges
        | Flaw::WriteToFrozen
        | Flaw::ReadFrozen
        | Flaw::CutWithoutSessions => &["violations"],
        Flaw::ForgetTombstone => &["a promise fell", "agreement"],
        Flaw::AppliedBeforeData => &["states differ", "differ at the end", "violations", "panicked"],
        Flaw::TakeNewerEpoch => &["a stale owner"],
        Flaw::MoveWithoutIndex => &["the log of changes lacks", "was told that all"],
        Flaw::DigestAnew => &["states differ"],
        Flaw::FlushedAsOfItsEnd => &["neither in the log nor applied"],
        Flaw::DiscardWhatIsCut => &["no convergence", "violations"],
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Mutant {
    type Err = String;

    fn from_str(name: &str) -> Result<Mutant, String> {
        let found = ALL.iter().find(|mutant| mutant.name() == name).copied();
        found.ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|mutant| mutant.name()).collect();
            format!("unknown mutant {name:?}; there are: {}", names.join(", "))
        })
    }
}
