//! Static API tokens, from a file.

use super::reload::{self, Reload};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// A shorter one could be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;

/// Why a file of tokens is not usable.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A line is no token.
    #[error(
        "{}:{line}: a token is {TOKEN_CHARACTERS_MIN} or more visible ASCII characters; make one with \
         `openssl rand -hex 32`", path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// Nobody could come in.
    #[error("{} holds no token; write one a line", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The tokens in a file: one a line; empty lines and those that begin with `#` do not count. Taken anew
/// when the file changes.
pub struct Tokens {
    path: PathBuf,
    current: RwLock<Vec<String>>,
    /// What was read last: a file is taken when it has stayed the same for a while, not in the middle of being
    /// written.
    seen: RwLock<Vec<String>>,
    /// What was complained of last, so that it is logged once.
    complaint: RwLock<Option<String>>,
}

impl Tokens {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<Arc<Tokens>, TokenError> {
        let tokens = Arc::new(Tokens {
            path: path.to_owned(),
            current: RwLock::new(read(path)?),
            seen: RwLock::default(),
            complaint: RwLock::default(),
        });
        reload::watch(&tokens).map_err(|error| TokenError::Unreadable { path: path.to_owned(), error })?;
        Ok(tokens)
    }

    /// Whether a token is among them. How long that takes does not tell how much of it is right.
    pub fn admit(&self, token: &str) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let matches = |known: &String| known.as_bytes().ct_eq(token.as_bytes()).unwrap_u8();
        current.iter().map(matches).fold(0, |any, one| any | one) == 1
    }
}

impl Reload for Tokens {
    fn reload(&self) {
        let read = read(&self.path);
        let complaint = read.as_ref().err().map(ToString::to_string);
        let mut last = self.complaint.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(complaint) = complaint.as_ref().filter(|complaint| last.as_ref() != Some(complaint)) {
            tracing::error!("the API tokens stay as they were: {complaint}");
        }
        *last = complaint;
        if let Ok(fresh) = read {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
            let settled = *seen == fresh;
            seen.clone_from(&fresh);
            if settled && *current != fresh {
                *current = fresh;
                tracing::info!(file = %self.path.display(), "new API tokens are in use");
            }
        }
    }
}

fn read(path: &Path) -> Result<Vec<String>, TokenError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| TokenError::Unreadable { path: path.to_owned(), error })?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.len() < TOKEN_CHARACTERS_MIN || !line.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Malformed { path: path.to_owned(), line: number + 1 });
        }
        tokens.push(line.to_owned());
    }
    if tokens.is_empty() {
        return Err(TokenError::Empty { path: path.to_owned() });
    }
    Ok(tokens)
}
