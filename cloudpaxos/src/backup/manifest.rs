//! What a backup says of itself.

use super::BackupError;
use serde::{Deserialize, Serialize};

/// The name of the file.
pub(super) const FILE: &str = "manifest.json";
const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the format; another one is refused.
    pub format: u32,
    /// Random; a cluster that is restored from it takes its own id from this.
    pub id: String,
    /// When it was begun, RFC 3339.
    pub created: String,
    /// The version of the program that made it.
    pub made_by: String,
    /// The cluster that was backed up.
    pub cluster_id: String,
    /// Its incarnation; a restored cluster's is one more.
    pub incarnation: u64,
    /// All keys are as of this revision.
    pub revision: u64,
    /// How many.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// In the order of their keys.
    pub parts: Vec<PartInfo>,
}

/// A part of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartInfo {
    /// Its name below the backup's.
    pub file: String,
    /// How many keys.
    pub keys: u64,
    /// Bytes before compression.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// Of the stored bytes, hexadecimal.
    pub sha256: String,
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Manifest {
    /// A manifest of this format.
    pub(super) fn new(id: u64, created: String) -> Manifest {
        Manifest {
            format: FORMAT,
            id: format!("{id:016x}"),
            created,
            made_by: crate::VERSION.to_owned(),
            cluster_id: String::new(),
            incarnation: 0,
            revision: 0,
            keys: 0,
            bytes: 0,
            parts: Vec::new(),
        }
    }

    /// The id as a number.
    pub fn number(&self) -> Result<u64, BackupError> {
        u64::from_str_radix(&self.id, 16)
            .ok()
            .filter(|id| *id != 0)
            .ok_or_else(|| BackupError::Damaged { file: FILE.into(), problem: format!("`{}` is no id", self.id) })
    }

    /// Bytes as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.stored_bytes))
    }

    /// The file: JSON, and behind it a line with its checksum.
    pub(super) fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_string_pretty(self).expect("a struct of texts and numbers is always JSON");
        format!("{json}\nsha256 {}\n", sha256(json.as_bytes())).into_bytes()
    }

    /// Reads a file that [`Manifest::encode`] wrote.
    pub(super) fn decode(file: &str, bytes: &[u8]) -> Result<Manifest, BackupError> {
        let damaged = |problem: String| BackupError::Damaged { file: file.to_owned(), problem };
        let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        let (json, sum) = text.rsplit_once("\nsha256 ").ok_or_else(|| damaged("its checksum is missing".into()))?;
        if sum.trim_end() != sha256(json.as_bytes()) {
            return Err(damaged("its checksum does not match".into()));
        }
        #[derive(Deserialize)]
        struct Formatted {
            format: u32,
        }
        // The format first: a later one may lack what this one needs.
        let Formatted { format } = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
        if format != FORMAT {
            return Err(damaged(format!("it is of format {format}, this program reads format {FORMAT}")));
        }
        let manifest: Manifest = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
        manifest.number()?;
        // etcd's API has 63 bits for either.
        match manifest.revision <= i64::MAX as u64 && manifest.incarnation < i64::MAX as u64 {
            true => Ok(manifest),
            false => Err(damaged("its revision or incarnation is impossible".into())),
        }
    }
}
