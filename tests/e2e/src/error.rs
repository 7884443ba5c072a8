//! What can go wrong with a test run, as opposed to with the system under test.

use std::io;
use std::path::PathBuf;

/// Why a run could not be done, or what it found.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// The server's binary is nowhere.
    #[error("no {name} binary at {tried:?}: build it (`cargo build -p cloudpaxos`), or set {variable} to its path")]
    NoBinary {
        /// The program.
        name: &'static str,
        /// Where it was looked for.
        tried: Vec<PathBuf>,
        /// The environment variable that names it.
        variable: &'static str,
    },
    /// The system cannot be laid out so.
    #[error("{system} has no layout {layout}; use all-roles")]
    NoSuchLayout {
        /// The system.
        system: &'static str,
        /// The layout.
        layout: &'static str,
    },
    /// A process could not be started or signalled.
    #[error("{what} failed: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A process ended by itself.
    #[error("{name} exited by itself with {status}; its last lines in {log:?}:\n{tail}")]
    Exited {
        /// The node.
        name: String,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s; logs are in {logs:?}")]
    Timeout {
        /// What.
        what: String,
        /// How long was waited.
        seconds: u64,
        /// Where to look.
        logs: PathBuf,
    },
    /// The server answered something that cannot be right.
    #[error("{what}: {detail}")]
    Wrong {
        /// The expectation.
        what: String,
        /// What came instead.
        detail: String,
    },
    /// The checkers found violations.
    #[error("{report}\nhistory: {history:?} (judge it again: e2e check {history:?})\nrepeat the run: {command}")]
    Violations {
        /// The judgement.
        report: String,
        /// The recorded history.
        history: PathBuf,
        /// The command that does the same again.
        command: String,
    },
}

impl HarnessError {
    /// For `map_err`: names what was tried.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> HarnessError {
        |source| HarnessError::Io { what: what.into(), source }
    }

    /// For `map_err` on an answer that should have been a success.
    pub fn rpc(what: impl Into<String>) -> impl FnOnce(tonic::Status) -> HarnessError {
        |status| HarnessError::Wrong { what: what.into(), detail: status.to_string() }
    }
}
