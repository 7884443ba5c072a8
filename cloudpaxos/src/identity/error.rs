//! Why a data directory is refused, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// A data directory that this node cannot start on.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Empty, and nobody said which cluster to form.
    #[error(
        "the data directory {} is empty: give --initial-cluster to form a new cluster, or correct --data-dir if this \
         node has run before", path.display()
    )]
    NothingToForm {
        /// The directory.
        path: PathBuf,
    },
    /// A restore did not come to its end.
    #[error(
        "in {} a restore was cut short: run `cloudpaxos restore` again, which begins anew, before the node is started",
        path.display()
    )]
    RestoreCutShort {
        /// The directory.
        path: PathBuf,
    },
    /// A restore would overwrite a node.
    #[error(
        "{} is the directory of {name} already, of another cluster or one that was restored with other settings; restore \
         into an empty one", path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// Who lives there.
        name: String,
    },
    /// The described cluster has no node of this name.
    #[error("--initial-cluster does not name this node, {name}: add it on every node, or correct --name")]
    NotAMember {
        /// The claimed name.
        name: String,
    },
    /// Something else lives there.
    #[error(
        "the data directory {} is not empty and not CloudPaxos's (it holds `{example}`, and no identity.json): give an \
         empty or a new one with --data-dir", path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One thing in it.
        example: String,
    },
    /// Another node's.
    #[error(
        "the data directory {} belongs to the node {owner}, not to {claimed}: correct --name or --data-dir; a node \
         keeps its name for life", path.display()
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who asked.
        claimed: String,
    },
    /// Another cluster's.
    #[error(
        "the data directory {} belongs to the cluster {cluster_id:016x} with the token `{token}`, not `{claimed}`: \
         correct --cluster-token or --data-dir", path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        cluster_id: u64,
        /// Its token.
        token: String,
        /// The token asked for.
        claimed: String,
    },
    /// Another process runs on it.
    #[error(
        "the data directory {} is in use by another process: stop that one, or give this node its own --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is there and cannot be believed.
    #[error(
        "{} is damaged ({problem}): the node cannot prove who it is; restore the file from a copy, or empty the \
         directory and replace the node", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A later version wrote it.
    #[error(
        "{} has the format {found}, this binary knows up to {known}: start the version that wrote it, or a later one",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// Our newest.
        known: u64,
    },
    /// The system refused.
    #[error("cannot {action} {}: {error}; check that the disk is there and this user may write to it", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The peers know this name with another directory. (Found in the peer handshake.)
    #[error(
        "node {name} is known to {peer} with another data directory (incarnation {known:016x}, here {here:016x}): if \
         the old directory still exists, start with it; if it is lost, do not reuse its name, because the promises \
         made under it are lost too: take the node out of the cluster and add a new one under a new name"
    )]
    KnownWithOtherDirectory {
        /// Our name.
        name: String,
        /// Who says so.
        peer: String,
        /// What it remembers.
        known: u64,
        /// What we have.
        here: u64,
    },
    /// A peer belongs to another cluster. (Found in the peer handshake.)
    #[error(
        "the node at {peer} belongs to the cluster {theirs:016x}, this one to {ours:016x}: --initial-cluster, \
         --cluster-token, --data-groups and --shard-boundaries must be the same on every node of a new cluster"
    )]
    PeerOfOtherCluster {
        /// Its address.
        peer: String,
        /// Its cluster.
        theirs: u64,
        /// Our cluster.
        ours: u64,
    },
}

impl IdentityError {
    pub(super) fn io(action: &'static str, path: &Path, error: io::Error) -> IdentityError {
        IdentityError::Io { action, path: path.to_owned(), error }
    }

    /// Whether the disk had no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, IdentityError::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    }
}

/// Adds to a failure of the system what was tried, and on what.
pub(super) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, IdentityError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, IdentityError> {
        self.map_err(|error| IdentityError::io(action, path, error))
    }
}
