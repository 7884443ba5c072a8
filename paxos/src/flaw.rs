//! Deliberate bugs, to prove that the simulator's checkers see them: each breaks one rule that the design
//! relies on. There are none but in builds with the feature `mutants`, and there none unless a test puts one
//! in, for its own thread.

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flaw {
    /// A newcomer takes the configuration that it was opened for as its own before it has what was decided in the
    /// ones before: it votes there, and stands for election.
    VoteBeforeLearning,
    /// A leader appends and serves behind a stop-sign.
    AppendBehindStopSign,
    /// Whoever knows that a configuration is sealed forgets it in a crash.
    ForgetSeal,
    /// Pieces of an AcceptSync move the log's ballot one by one, not together.
    AdoptPieceByPiece,
    /// A pong counts for the lease whichever ballot its sender has promised.
    LeaseOfAnyBallot,
    /// A leader answers reads without a lease.
    ReadWithoutLease,
    /// Whether a lease holds is found out when the node pings, not when it is asked: what has queued behind a pause is
    /// answered under a lease that ended meanwhile.
    LeaseAsOfThePing,
    /// A read does not wait for the writes on its range that came before it.
    ReadBeforeWrites,
    /// A replica that was closed forgets what it had promised.
    ForgetTombstone,
    /// A shard moves without what its sessions have done.
    MoveWithoutSessions,
    /// A shard moves without what was written between the last round of changes and the freeze.
    MoveWithoutLastChanges,
    /// A frozen shard takes writes.
    WriteToFrozen,
    /// The leader of a frozen shard tells what is the newest there.
    ReadFrozen,
    /// What a shard's sessions have done stays behind when it is split, or merged into another one.
    CutWithoutSessions,
    /// That an entry is applied is written before what it does.
    AppliedBeforeData,
    /// A group takes commands for a shard at a newer epoch than the one that it owns it at.
    TakeNewerEpoch,
    /// A shard moves with its keys and their history, but without the index by revision.
    MoveWithoutIndex,
    /// When the store is flushed, what was applied meanwhile is taken for flushed, too.
    FlushedAsOfItsEnd,
    /// What is done is digested as something else. No rule of ours: how a state that goes wrong looks, to see what the
    /// others make of it.
    DigestAnew,
    /// A shard that has arrived, and is to be cut before it was activated, is taken for one whose move was called off.
    DiscardWhatIsCut,
}

#[cfg(feature = "mutants")]
thread_local! {
    static PRESENT: std::cell::Cell<Option<Flaw>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug in, on this thread, or takes it out.
#[cfg(feature = "mutants")]
pub fn put(flaw: Option<Flaw>) {
    PRESENT.set(flaw);
}

/// Whether a bug is in.
#[cfg(feature = "mutants")]
pub fn is(flaw: Flaw) -> bool {
    PRESENT.get() == Some(flaw)
}

/// No bug is in.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub fn is(_: Flaw) -> bool {
    false
}
