//! What can be wrong with a configuration.

use super::layers::Origin;
use std::path::PathBuf;

/// A configuration that does not stand: one line that says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {error}; give --config a readable TOML file", path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {message}", path.display())]
    FileSyntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// The file names a setting that does not exist.
    #[error("{}:{line}: unknown key `{key}`; {}", path.display(), hint(nearest))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key as written.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value cannot be what the setting needs.
    #[error("{origin}: {problem}")]
    BadValue {
        /// Where it was written.
        origin: Origin,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// A setting without a default is missing.
    #[error("--{key} is missing: {why}; give it as a flag, as {}, or as `{key}` in the --config file", variable(key))]
    Missing {
        /// The setting.
        key: &'static str,
        /// What it is needed for.
        why: &'static str,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// Plain text would leave the machine.
    #[error(
        "{origin}: {address} is not a loopback address, where nothing is said in plain text; {}, or say \
         --insecure-plaintext if the network between the machines is trusted", encrypt(*tls)
    )]
    PlaintextOffLoopback {
        /// Which setting.
        origin: Origin,
        /// Its value.
        address: String,
        /// The setting that encrypts it, if there is one.
        tls: Option<&'static str>,
    },
}

fn encrypt(tls: Option<&str>) -> String {
    match tls {
        Some(option) => format!("give --{option} with a certificate, its key and a CA (see `cloudpaxos certs`)"),
        None => "stay on 127.0.0.1".to_owned(),
    }
}

impl ConfigError {
    /// Whether the configuration may be right and the machine is not.
    pub fn is_environmental(&self) -> bool {
        matches!(self, ConfigError::FileUnreadable { .. })
    }
}

fn hint(nearest: &Option<String>) -> String {
    match nearest {
        Some(key) => format!("did you mean `{key}`?"),
        None => "`cloudpaxos start --help` lists the settings".to_owned(),
    }
}

/// The environment variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("CLOUDPAXOS_{}", key.replace('-', "_").to_uppercase())
}
