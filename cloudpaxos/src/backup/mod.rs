//! Backups: every key of a cluster as it was at one revision, in a directory or an S3 bucket.
//!
//! A backup is a name; below it lie parts and, written last, `manifest.json`. What has no manifest was cut
//! short and is no backup; what has one is complete, and each part's length and SHA-256 stand in it. A part
//! is an LZ4 frame of keys in ascending order, each a length (varint) and etcd's `KeyValue`.
//!
//! - [`create()`] reads the keys through a gateway, all at one revision, while the cluster goes on.
//! - [`Reading`] reads them back, and believes nothing that it has not checked.
//! - [`restore()`] fills a new node's directory. The restored cluster is another one: it has another id, and
//!   its revisions begin far above those of the backup, so that nobody who knew the old one sees revisions
//!   go back. Keys keep their revisions and versions; history there is none.

mod create;
mod manifest;
mod read;
mod restore;
mod storage;

pub use create::{Progress, create};
pub use manifest::{Manifest, PartInfo};
pub use read::{Reading, verify};
pub use restore::{Restored, restore};
pub use storage::Storage;

use crate::failure::Failure;

/// Why a backup cannot be made, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Where backups lie cannot be used.
    #[error("{place}: {problem}")]
    Place {
        /// As it was written.
        place: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A file is not what the manifest says, or no backup's.
    #[error("{file}: {problem}")]
    Damaged {
        /// Which.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// It did not come to its end.
    #[error("{name} has no manifest.json: it was cut short, or is still being made")]
    Incomplete {
        /// The backup.
        name: String,
    },
}

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        Failure::Run(error.to_string())
    }
}

#[cfg(test)]
mod tests;
