//! What can go wrong, per operation, and what to do about it.

use std::io;
use thiserror::Error;

/// Why an operation on an open log failed.
#[derive(Debug, Error)]
pub enum LogError {
    /// The disk has no space for another segment. Nothing was written; the same call may succeed
    /// once space is freed or segments are released.
    #[error("the disk is full ({operation}); nothing was written: free space or wait for reclaim")]
    Full {
        /// What needed the space.
        operation: &'static str,
    },
    /// A write or a sync failed. What the disk holds is unknown, so the log refuses everything from
    /// now on and the node must stop; opening the log again finds out what is durable.
    #[error("{operation} of {file} failed, stop this node and check its disk: {source}")]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The file it failed on.
        file: String,
        /// The system's error.
        source: io::Error,
    },
    /// An earlier write or sync failed; see [`LogError::Io`].
    #[error("the log has stopped after a failed write or sync: restart the node")]
    Stopped,
    /// A record does not fit in the largest frame. Nothing was written.
    #[error("a record of {bytes} bytes exceeds the largest, {bytes_max}: raise frame_bytes_max or split it")]
    RecordTooLarge {
        /// The record's size.
        bytes: usize,
        /// The largest allowed.
        bytes_max: usize,
    },
    /// The segment that is being written cannot be released. Nothing was changed.
    #[error("cannot release segments through {through}: segment {head} is still being written")]
    ReleaseBeyondHead {
        /// The segment named by the caller.
        through: u64,
        /// The segment being written.
        head: u64,
    },
}

/// Why a log could not be opened. Each leaves the directory as it was, except that an interrupted
/// opening may have finished harmless clean-up.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Reading or writing failed. A read error is never taken for the end of the log.
    #[error("{operation} of {file} failed while opening the log; check the disk and start again: {source}")]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The file it failed on.
        file: String,
        /// The system's error.
        source: io::Error,
    },
    /// Another process uses this directory.
    #[error("another process holds the lock on {directory}: stop it, or use another data directory")]
    Locked {
        /// The directory.
        directory: String,
    },
    /// The directory belongs to another node.
    #[error("this log belongs to node {found}, not to node {expected}: point the node at its own data directory")]
    ForeignNode {
        /// The node that wrote it.
        found: u64,
        /// The node that tried to open it.
        expected: u64,
    },
    /// A newer release wrote this log.
    #[error("{file} has format version {found}, this release reads up to {supported}: start the newer release")]
    NewerVersion {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
        /// The newest version that this release reads.
        supported: u32,
    },
    /// A live segment is missing.
    #[error("{} is missing from the log: restore it, or replace this node (it must not rejoin under its id)", crate::segment::name(*sequence))]
    SegmentMissing {
        /// The missing segment's sequence number.
        sequence: u64,
    },
    /// There are segments but no control file.
    #[error(
        "the control file is missing although segments exist: restore it, or replace this node (it must not rejoin under its id)"
    )]
    ControlMissing,
    /// Both copies inside the control file are bad.
    #[error(
        "both copies in the control file are corrupt: restore it, or replace this node (it must not rejoin under its id)"
    )]
    ControlCorrupt,
    /// The settings contradict each other.
    #[error("invalid log settings: {0}")]
    Config(&'static str),
}

/// Whether the error says that the disk has no space left.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
