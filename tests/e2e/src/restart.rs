//! How long a loaded cluster takes to start again.

use crate::HarnessError;
use crate::client::{channel, kv};
use crate::cluster::Cluster;
use crate::system::{Layout, System};
use bytes::Bytes;
use proto::etcdserverpb as pb;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Puts under way at once while loading.
const LOADERS: usize = 64;
/// How often one put is tried: a busy server refuses at times.
const ATTEMPTS_MAX: u32 = 50;
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Restart {
    /// How many keys were loaded.
    pub keys: u64,
    /// How long that took.
    pub load: Duration,
    /// From SIGTERM to the exit of the last process, or the kill.
    pub stop: Duration,
    /// From the start of the processes to an answer from each node.
    pub ready: Duration,
}

/// Loads `bytes` in values of `value_bytes`, ends the cluster (by kill -9 if `kill`), starts it
/// again, and counts the keys.
pub async fn run(
    system: System,
    bytes: u64,
    value_bytes: u32,
    kill: bool,
    directory: PathBuf,
) -> Result<Restart, HarnessError> {
    let mut cluster = Cluster::start(system, Layout::AllRoles, &directory).await?;
    let keys = bytes.div_ceil(u64::from(value_bytes));
    let begun = Instant::now();
    load(&cluster, keys, value_bytes).await?;
    let load = begun.elapsed();
    let begun = Instant::now();
    if kill {
        cluster.kill_all()?;
    } else {
        cluster.stop_all()?;
    }
    let stop = begun.elapsed();
    let begun = Instant::now();
    for number in cluster.numbers() {
        cluster.launch(number)?;
    }
    cluster.wait_ready().await?;
    let ready = begun.elapsed();
    let found = count(&cluster).await?;
    if found != keys {
        let detail = format!("{found} of {keys} keys");
        return Err(HarnessError::Wrong { what: "the keys after the restart".to_owned(), detail });
    }
    Ok(Restart { keys, load, stop, ready })
}

/// Puts `keys` values of `value_bytes` bytes under `load/`.
pub(crate) async fn load(cluster: &Cluster, keys: u64, value_bytes: u32) -> Result<(), HarnessError> {
    let next = Arc::new(AtomicU64::new(0));
    let channels: Vec<_> = cluster.endpoints().iter().map(|endpoint| channel(endpoint)).collect();
    let mut loaders = JoinSet::new();
    for number in 0..LOADERS {
        let mut client = kv(channels[number % channels.len()].clone());
        let next = next.clone();
        loaders.spawn(async move {
            loop {
                let key = next.fetch_add(1, Ordering::Relaxed);
                if key >= keys {
                    return Ok(());
                }
                put_patiently(&mut client, key, value_bytes).await?;
            }
        });
    }
    while let Some(loader) = loaders.join_next().await {
        loader.expect("a loader's task does not panic")?;
    }
    Ok(())
}

async fn put_patiently(
    client: &mut pb::kv_client::KvClient<tonic::transport::Channel>,
    number: u64,
    value_bytes: u32,
) -> Result<(), HarnessError> {
    let key = Bytes::from(format!("load/{number:012}"));
    // Different everywhere, so that no storage compresses it away.
    let mut state = number.wrapping_add(1);
    let value: Vec<u8> = (0..value_bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .collect();
    let request = pb::PutRequest { key, value: Bytes::from(value), ..Default::default() };
    let mut attempts = 0;
    loop {
        match client.put(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) if attempts >= ATTEMPTS_MAX => return Err(HarnessError::rpc("loading")(status)),
            Err(_) => attempts += 1,
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn count(cluster: &Cluster) -> Result<u64, HarnessError> {
    let endpoint = cluster.endpoints().into_iter().next().unwrap_or_default();
    let request = pb::RangeRequest {
        key: Bytes::from_static(b"load/"),
        range_end: Bytes::from_static(b"load0"),
        count_only: true,
        ..Default::default()
    };
    let answer = kv(channel(&endpoint)).range(request).await.map_err(HarnessError::rpc("counting the keys"))?;
    Ok(u64::try_from(answer.into_inner().count).unwrap_or_default())
}
