//! The encoding of everything that leaves the process or lands in the log: one version byte, then
//! postcard (<https://postcard.jamesmunns.com/wire-format>). Decoding is total: any input gives a
//! value or an error.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// The version that is written and read. Any other is refused with its number.
pub const CODEC_VERSION: u8 = 10;

// A command in the log must not be taken for a stop-sign.
const _: () = assert!(CODEC_VERSION != paxos::configuration::STOP_SIGN);

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by another version of CloudPaxos, or by something else.
    #[error(
        "encoding version {0} is unknown here (this build reads version {CODEC_VERSION}); start the version that wrote it"
    )]
    Version(u8),
    /// Truncated or rotten.
    #[error("malformed encoding: {0}")]
    Malformed(#[from] postcard::Error),
    /// No bytes at all.
    #[error("malformed encoding: empty")]
    Empty,
}

/// Encodes a value behind the version byte.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut out = Vec::with_capacity(256);
    out.push(CODEC_VERSION);
    // Our types contain nothing that postcard cannot write (no unsized maps, no I/O).
    match postcard::to_extend(value, out) {
        Ok(out) => out.into(),
        Err(error) => panic!("a value of ours cannot be encoded: {error}"),
    }
}

/// Decodes what [`encode`] wrote.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Empty),
        Some((&CODEC_VERSION, body)) => Ok(postcard::from_bytes(body)?),
        Some((&other, _)) => Err(DecodeError::Version(other)),
    }
}
