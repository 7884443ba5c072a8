//! Why a measurement failed.

use crate::operation::Operation;
use std::io;
use std::path::{Path, PathBuf};

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The machine refuses a runtime, a thread or a socket.
    #[error("the machine refuses what the load generator needs: {0}")]
    Runtime(io::Error),
    /// A file could not be read or written.
    #[error("{path:?}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of results is not what `run` writes.
    #[error("line {line} of the results: {source}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Results are missing.
    #[error("there are no closed-loop results of {0:?}: run them first")]
    NoResults(Operation),
    /// An endpoint is no URL.
    #[error("{endpoint:?} is no URL such as http://127.0.0.1:2379: {source}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// A server did not become ready.
    #[error("{endpoint} does not answer: {last}")]
    NotReady {
        /// Which.
        endpoint: String,
        /// What came last.
        last: String,
    },
    /// A request of the preparation failed.
    #[error("loading the keys failed: {0}")]
    Fill(tonic::Status),
    /// A server's process is gone.
    #[error("process {pid} cannot be measured: {source}; the server may have crashed, see its log")]
    Process {
        /// Which.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// Nothing at all was answered in the window.
    #[error("no operation succeeded; {errors} failed, the last with: {last}")]
    NothingDone {
        /// How many failed.
        errors: u64,
        /// How.
        last: String,
    },
}

impl BenchError {
    /// For `map_err`: names the file.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
        |source| BenchError::File { path: path.to_owned(), source }
    }
}
