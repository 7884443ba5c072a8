//! Reading backups, and believing nothing of them.

use super::manifest::{Manifest, PartInfo, sha256};
use super::{BackupError, Storage};
use bytes::Bytes;
use lz4_flex::frame::FrameDecoder;
use prost::Message;
use proto::mvccpb::KeyValue;
use std::io::Read;

/// A part is never larger; more would be somebody's attempt to fill our memory.
const PART_BYTES_MAX: u64 = 1 << 30;

/// Reads a backup part by part.
pub struct Reading<'s> {
    storage: &'s Storage,
    name: String,
    manifest: Manifest,
    next: usize,
    last_key: Option<Bytes>,
    keys: u64,
}

impl<'s> Reading<'s> {
    /// Begins a backup.
    pub async fn open(storage: &'s Storage, name: &str) -> Result<Reading<'s>, BackupError> {
        let manifest = storage.manifest(name).await?;
        Ok(Reading { storage, name: name.to_owned(), manifest, next: 0, last_key: None, keys: 0 })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The keys of the next part; `None` behind the last, when everything was as the manifest says.
    pub async fn part(&mut self) -> Result<Option<Vec<KeyValue>>, BackupError> {
        let Some(info) = self.manifest.parts.get(self.next).cloned() else {
            let (found, said) = (self.keys, self.manifest.keys);
            return match found == said {
                true => Ok(None),
                false => Err(self.damaged("manifest.json", format!("it says {said} keys, and there are {found}"))),
            };
        };
        self.next += 1;
        let stored = self.storage.get(&self.name, &info.file).await?;
        let stored = stored.ok_or_else(|| self.damaged(&info.file, "it is missing".into()))?;
        let pairs = decode(&stored, &info).map_err(|problem| self.damaged(&info.file, problem))?;
        for pair in &pairs {
            let ascends = self.last_key.as_ref().is_none_or(|last| *last < pair.key);
            let revision = u64::try_from(pair.mod_revision).unwrap_or(u64::MAX);
            let lived = pair.create_revision >= 1 && pair.create_revision <= pair.mod_revision && pair.version >= 1;
            if !ascends || pair.key.is_empty() || revision > self.manifest.revision || !lived {
                let key = String::from_utf8_lossy(&pair.key).into_owned();
                return Err(self.damaged(&info.file, format!("the key `{key}` has no place there")));
            }
            self.last_key = Some(pair.key.clone());
        }
        self.keys += info.keys;
        Ok(Some(pairs))
    }

    fn damaged(&self, file: &str, problem: String) -> BackupError {
        BackupError::Damaged { file: format!("{}/{file}", self.name), problem }
    }
}

fn decode(stored: &[u8], info: &PartInfo) -> Result<Vec<KeyValue>, String> {
    if stored.len() as u64 != info.stored_bytes {
        return Err(format!("it has {} bytes, not {}", stored.len(), info.stored_bytes));
    }
    if sha256(stored) != info.sha256 {
        return Err("its checksum does not match".into());
    }
    if info.raw_bytes > PART_BYTES_MAX {
        return Err(format!("it would unpack to {} bytes", info.raw_bytes));
    }
    let mut raw = Vec::new();
    // One byte more shows whether there is more.
    let unpacked = FrameDecoder::new(stored).take(info.raw_bytes + 1).read_to_end(&mut raw);
    unpacked.map_err(|error| format!("it does not unpack: {error}"))?;
    if raw.len() as u64 != info.raw_bytes {
        return Err(format!("it unpacks to other than {} bytes", info.raw_bytes));
    }
    let mut rest = Bytes::from(raw);
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        pairs.push(KeyValue::decode_length_delimited(&mut rest).map_err(|error| error.to_string())?);
    }
    match pairs.len() as u64 == info.keys {
        true => Ok(pairs),
        false => Err(format!("it holds {} keys, not {}", pairs.len(), info.keys)),
    }
}

/// Reads all of a backup, telling `progress` of the keys of each part.
pub async fn verify(storage: &Storage, name: &str, progress: impl Fn(u64)) -> Result<Manifest, BackupError> {
    let mut reading = Reading::open(storage, name).await?;
    while let Some(pairs) = reading.part().await? {
        progress(pairs.len() as u64);
    }
    Ok(reading.manifest)
}
