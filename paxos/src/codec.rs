//! A version byte, then postcard. Decoding is total.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Why bytes are not a message or record of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a build with another format.
    #[error("format version {found} is unknown here (this build reads {expected}); upgrade this node")]
    Version {
        /// What the bytes say.
        found: u8,
        /// What this build reads.
        expected: u8,
    },
    /// Truncated or rotten.
    #[error("malformed encoding: {0}")]
    Malformed(#[from] postcard::Error),
    /// No bytes at all.
    #[error("malformed encoding: empty")]
    Empty,
}

/// Encodes a value behind its version.
pub(crate) fn encode<T: Serialize>(version: u8, value: &T) -> Bytes {
    let mut out = Vec::with_capacity(512);
    out.push(version);
    match postcard::to_extend(value, out) {
        Ok(out) => out.into(),
        // Our types hold nothing that postcard cannot write, and a Vec takes any length.
        Err(error) => panic!("a message of ours cannot be encoded: {error}"),
    }
}

/// Decodes what [`encode`] wrote with the same version.
pub(crate) fn decode<T: DeserializeOwned>(expected: u8, bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&found, body)) if found == expected => Ok(postcard::from_bytes(body)?),
        Some((&found, _)) => Err(DecodeError::Version { found, expected }),
    }
}
