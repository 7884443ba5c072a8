//! How a command ends when it cannot do what was asked: one line that says what, where, and what to
//! do, and an exit code that a script can tell apart.

use crate::cli::client::ClientError;
use crate::config::ConfigError;
use crate::identity::IdentityError;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration does not stand.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory is not this node's, or not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster did not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The words of the command do not fit together.
    #[error("{0}")]
    Usage(String),
    /// Everything that stops a running node.
    #[error("{0}")]
    Run(String),
    /// Nothing was found where something was asked for.
    #[error("{0}")]
    NotFound(String),
    /// Our own input or output failed.
    #[error("cannot {action}: {error}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        error: std::io::Error,
    },
}

impl Failure {
    /// 2 where the command must be written differently, 1 where the world must change.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Config(error) if !error.is_environmental() => 2,
            Failure::Client(error) if error.is_usage() => 2,
            Failure::Usage(_) => 2,
            Failure::Config(_)
            | Failure::Identity(_)
            | Failure::Client(_)
            | Failure::Run(_)
            | Failure::NotFound(_)
            | Failure::Io { .. } => 1,
        }
    }
}
