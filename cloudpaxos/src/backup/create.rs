//! Making a backup: all keys through a gateway, at one revision, while the cluster goes on.
//!
//! The revision is that of a linearizable read, so everything that was answered before is in it. Keys are
//! then read page by page at exactly that revision, shard by shard. A compaction that overtakes it ends the
//! backup, with a clear word; nothing is ever mixed.

use super::manifest::{self, Manifest, PartInfo, sha256};
use super::{BackupError, Storage};
use crate::cli::client::{Client, ClientError, Kind};
use crate::failure::Failure;
use bytes::Bytes;
use gateway::etcd::UNCOUNTED;
use lz4_flex::frame::FrameEncoder;
use prost::Message;
use proto::admin::ShardsListRequest;
use proto::etcdserverpb::{RangeRequest, RangeResponse};
use proto::mvccpb::KeyValue;
use std::io::Write;
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::metadata::MetadataValue;

/// How long a page is asked for again, and how often.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Bytes of a part, before compression, more or less.
const PART_BYTES: usize = 32 << 20;
/// Bytes of a page, more or less, and how many keys it may have.
const PAGE_BYTES: u64 = 8 << 20;
const PAGE_KEYS_MIN: u64 = 64;
const PAGE_KEYS_MAX: u64 = 100_000;
/// The smallest key that there can be.
const SMALLEST: &[u8] = b"\0";
/// As the end of a range: there is none.
const NO_END: &[u8] = b"\0";

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Keys read.
    pub keys: u64,
    /// Of so many.
    pub keys_in_all: u64,
    /// Bytes of keys and values read.
    pub bytes: u64,
}

/// Makes a backup called `name`.
pub async fn create(
    client: &Client,
    storage: &Storage,
    name: &str,
    created: String,
    progress: impl Fn(Progress),
) -> Result<Manifest, Failure> {
    let taken = storage.list().await?;
    if taken.contains_key(name) {
        return Err(Failure::Usage(format!("{}: there is a backup called {name} already", storage.place())));
    }
    let count = RangeRequest {
        key: Bytes::from_static(SMALLEST),
        range_end: Bytes::from_static(NO_END),
        count_only: true,
        ..Default::default()
    };
    let first = range(client, count).await?;
    let headless = || Failure::Run("the answer has no header; is that a gateway of CloudPaxos?".into());
    let header = first.header.filter(|header| header.revision > 0).ok_or_else(headless)?;
    let mut making = Making {
        client,
        storage,
        name,
        manifest: Manifest {
            cluster_id: format!("{:016x}", header.cluster_id),
            incarnation: header.raft_term,
            revision: u64::try_from(header.revision).unwrap_or(0),
            ..Manifest::new(rand::random::<u64>().max(1), created)
        },
        raw: Vec::new(),
        keys: 0,
        page: PAGE_KEYS_MIN,
    };
    let keys_in_all = u64::try_from(first.count).unwrap_or(0);
    let shards = client.admin(async |admin| admin.shards_list(ShardsListRequest {}).await).await?.shards;
    // Boundaries are only a good place to cut; that they cover all keys is seen by the count.
    for shard in shards {
        let start = if shard.start.is_empty() { Bytes::from_static(SMALLEST) } else { shard.start };
        let end = if shard.unbounded { Bytes::from_static(NO_END) } else { shard.end };
        making.range(start, end, &|keys, bytes| progress(Progress { keys, keys_in_all, bytes })).await?;
    }
    making.part().await?;
    let manifest = making.manifest;
    if manifest.keys != keys_in_all {
        return Err(Failure::Run(format!(
            "{} keys were read where {keys_in_all} were counted; the shards have changed meanwhile: try again",
            manifest.keys
        )));
    }
    // Somebody may have cleaned up meanwhile.
    for part in &manifest.parts {
        if storage.length(name, &part.file).await? != Some(part.stored_bytes) {
            return Err(Failure::Run(format!("{name}/{} was deleted or changed while the backup was made", part.file)));
        }
    }
    storage.put(name, manifest::FILE, manifest.encode().into()).await?;
    Ok(manifest)
}

/// Asks again for a while: a gateway that restarts must not cost what was read so far.
async fn range(client: &Client, request: RangeRequest) -> Result<RangeResponse, ClientError> {
    let began = Instant::now();
    loop {
        let error = match client
            .kv(Kind::Read, async |kv| {
                let mut request = tonic::Request::new(request.clone());
                // Only `more` tells whether there is another page.
                if request.get_ref().limit > 0 {
                    request.metadata_mut().insert(UNCOUNTED, MetadataValue::from_static("1"));
                }
                kv.range(request).await
            })
            .await
        {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let passes = match &error {
            ClientError::Unreachable(_) | ClientError::TimedOut { .. } => true,
            ClientError::Refused { status, .. } => {
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
            }
            ClientError::BadEndpoint(_) | ClientError::UnknownOutcome { .. } | ClientError::UnknownChange { .. } => {
                false
            }
        };
        if !passes || began.elapsed() > PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

struct Making<'a> {
    client: &'a Client,
    storage: &'a Storage,
    name: &'a str,
    manifest: Manifest,
    /// Keys that are in no part yet.
    raw: Vec<u8>,
    keys: u64,
    /// Keys of the next page.
    page: u64,
}

impl Making<'_> {
    /// Adds the keys of a range.
    async fn range(&mut self, start: Bytes, end: Bytes, progress: &impl Fn(u64, u64)) -> Result<(), Failure> {
        let mut key = start;
        loop {
            let request = RangeRequest {
                key,
                range_end: end.clone(),
                revision: i64::try_from(self.manifest.revision).unwrap_or(i64::MAX),
                limit: i64::try_from(self.page).unwrap_or(i64::MAX),
                ..Default::default()
            };
            let answer = match range(self.client, request.clone()).await {
                // Values have become larger: a smaller page, down to one key.
                Err(ClientError::Refused { status, .. })
                    if status.code() == Code::ResourceExhausted && self.page > 1 =>
                {
                    self.page = (self.page / 4).max(1);
                    key = request.key;
                    continue;
                }
                answer => answer?,
            };
            let Some(last) = answer.kvs.last().map(|pair| pair.key.clone()) else { return Ok(()) };
            let (keys, bytes) = (answer.kvs.len() as u64, self.add(&answer.kvs));
            // What comes may be larger than what came: a page has at most twice the keys of the last one.
            let fitting = (keys * PAGE_BYTES / bytes.max(1)).clamp(PAGE_KEYS_MIN, PAGE_KEYS_MAX);
            self.page = fitting.min(2 * self.page);
            progress(self.manifest.keys + self.keys, self.manifest.bytes);
            if self.raw.len() >= PART_BYTES {
                self.part().await?;
            }
            if !answer.more {
                return Ok(());
            }
            key = [&last[..], SMALLEST].concat().into();
        }
    }

    fn add(&mut self, pairs: &[KeyValue]) -> u64 {
        let mut bytes = 0;
        for pair in pairs {
            bytes += (pair.key.len() + pair.value.len()) as u64;
            pair.encode_length_delimited(&mut self.raw).expect("a vector grows");
        }
        self.keys += pairs.len() as u64;
        self.manifest.bytes += bytes;
        bytes
    }

    /// Writes what has gathered as a part.
    async fn part(&mut self) -> Result<(), BackupError> {
        if self.keys == 0 {
            return Ok(());
        }
        let file = format!("part-{:06}.lz4", self.manifest.parts.len() + 1);
        let failed = |error: &dyn std::fmt::Display| BackupError::Damaged {
            file: file.clone(),
            problem: format!("it could not be packed: {error}"),
        };
        let mut packed = FrameEncoder::new(Vec::new());
        packed.write_all(&self.raw).map_err(|error| failed(&error))?;
        let stored = packed.finish().map_err(|error| failed(&error))?;
        let info = PartInfo {
            keys: self.keys,
            raw_bytes: self.raw.len() as u64,
            stored_bytes: stored.len() as u64,
            sha256: sha256(&stored),
            file: file.clone(),
        };
        self.storage.put(self.name, &file, stored.into()).await?;
        self.manifest.keys += self.keys;
        self.manifest.parts.push(info);
        self.raw.clear();
        self.keys = 0;
        Ok(())
    }
}
