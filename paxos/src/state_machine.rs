//! The state machine that a group's log drives. `shardkv` and `shardmaster` implement it; hosts
//! (the node's apply thread, the simulator) call it with decided entries.

use crate::{Configuration, Slot};
use bytes::Bytes;

/// A deterministic state machine that persists itself together with the slot it has applied.
pub trait StateMachine {
    /// What one entry answers.
    type Outcome;
    /// A failure of storage: the host stops the node, or, where nothing was written, retries.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The last slot whose effects are in the store.
    fn applied(&self) -> Slot;

    /// The slot of the image that was installed last; 0 if the state was applied entry by entry. As
    /// durable as the image: what the log holds up to there may be of a ballot that lost.
    fn imaged(&self) -> Slot;

    /// The configuration that the last stop-sign among the applied entries began; `None` before the first.
    fn configuration(&self) -> Option<Configuration>;

    /// Applies consecutive entries, the first at `applied() + 1`, as one atomic write together with
    /// the new applied slot. Deterministic and total: a malformed entry yields an outcome, never a
    /// panic. An empty entry (a leader's no-op) changes nothing but the slot, a stop-sign
    /// ([`Configuration::of_stop_sign`]) nothing else but [`StateMachine::configuration`]. Returns one outcome
    /// per entry.
    fn apply(&mut self, entries: &[(Slot, Bytes)]) -> Result<Vec<Self::Outcome>, Self::Error>;

    /// A consistent image of the state as of `applied()`, readable while applying goes on.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource<Error = Self::Error> + Send>, Self::Error>;

    /// Starts installing an image beside the present state. Pieces go to the returned sink; nothing
    /// changes until [`StateMachine::finish_install`].
    fn begin_install(&mut self) -> Result<Box<dyn SnapshotSink<Error = Self::Error> + Send>, Self::Error>;

    /// Makes a completely received image the state, atomically and durably; afterwards `applied()`
    /// is the image's slot. The old state is deleted only after that.
    fn finish_install(&mut self, sink: Box<dyn SnapshotSink<Error = Self::Error> + Send>) -> Result<(), Self::Error>;

    /// Makes everything applied so far durable (the log below may then be dropped).
    fn flush(&self) -> Result<(), Self::Error>;
}

/// Yields an image in pieces.
pub trait SnapshotSource {
    /// A failure of storage.
    type Error;
    /// The slot that the image is of.
    fn slot(&self) -> Slot;
    /// The next piece of about `bytes_max` bytes; `None` behind the last.
    fn next_piece(&mut self, bytes_max: usize) -> Result<Option<Bytes>, Self::Error>;
}

/// Takes an image in pieces, in order.
pub trait SnapshotSink: std::any::Any {
    /// A failure of storage, or a malformed piece.
    type Error;
    /// Takes the next piece.
    fn piece(&mut self, piece: Bytes) -> Result<(), Self::Error>;
    /// For the implementor's downcast in `finish_install`.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send>;
}
