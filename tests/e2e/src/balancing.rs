//! A hot range of keys in one of several groups: how long the cluster takes to spread it by itself, and what its clients
//! notice.

use crate::HarnessError;
use crate::client::{channel, kv};
use crate::cluster::{Cluster, Start};
use crate::system::{Layout, System};
use bytes::Bytes;
use proto::admin::admin_client::AdminClient;
use proto::admin::{Shard, ShardsListRequest};
use proto::etcdserverpb as pb;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Keys of the hot range; all of them lie in one of the first shards.
const KEYS: u64 = 10_000;
const CLIENTS: u64 = 16;
const VALUE_BYTES: usize = 100;
const LOOK: Duration = Duration::from_secs(1);
/// The groups' requests differ by less than this part of a fair share, in this many looks in a row: it is spread.
const SPREAD: f64 = 0.25;
const LOOKS: u32 = 3;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Balanced {
    /// From the first request to the first of the looks at which the range was spread; `None` if it never was.
    pub after: Option<Duration>,
    /// (time, requests of each group since the look before, how much they differ) at each look.
    pub looks: Vec<(Duration, Vec<u64>, f64)>,
    /// Requests answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Shards at the end.
    pub shards: usize,
    /// The longest that a request took.
    pub longest: Duration,
}

#[derive(Debug)]
struct Counted {
    /// Requests answered, by key.
    keys: Vec<AtomicU64>,
    failed: AtomicU64,
    longest_micros: AtomicU64,
    stop: AtomicBool,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("hot/{number:06}"))
}

async fn client(channel: Channel, seed: u64, counted: Arc<Counted>) {
    let mut client = kv(channel);
    let mut draw = seed;
    while !counted.stop.load(Ordering::Relaxed) {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let number = (draw >> 33) % KEYS;
        let begun = Instant::now();
        let answer = match draw >> 63 {
            0 => {
                let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
                client.put(pb::PutRequest { key: key(number), value, ..Default::default() }).await.map(drop)
            }
            _ => client.range(pb::RangeRequest { key: key(number), ..Default::default() }).await.map(drop),
        };
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        counted.longest_micros.fetch_max(took, Ordering::Relaxed);
        match answer {
            Ok(()) => counted.keys[number as usize].fetch_add(1, Ordering::Relaxed),
            Err(_) => counted.failed.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// The group that has each key, by the map.
fn owners(shards: &[Shard]) -> Vec<u64> {
    let holds = |shard: &&Shard, key: &[u8]| &shard.start[..] <= key && (shard.unbounded || key < &shard.end[..]);
    let owner = |number| shards.iter().find(|shard| holds(shard, &key(number))).map_or(0, |shard| shard.group);
    (0..KEYS).map(owner).collect()
}

/// Starts a cluster with so many data groups, sends all requests to one range, and looks for `limit` at most.
pub async fn run(groups: u64, limit: Duration, directory: &Path) -> Result<Balanced, HarnessError> {
    let how = |_: &_| Start { options: vec![("--data-groups", groups.to_string().into())], ..Start::default() };
    let cluster = Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, directory, how).await?;
    let channels: Vec<Channel> = cluster.endpoints().iter().map(|endpoint| channel(endpoint)).collect();
    let counted = Arc::new(Counted {
        keys: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        failed: AtomicU64::new(0),
        longest_micros: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let channel = channels[number as usize % channels.len()].clone();
        clients.spawn(client(channel, number * 77 + 1, counted.clone()));
    }
    let mut admin = AdminClient::new(channels[0].clone());
    let (begun, mut seen, mut found) = (Instant::now(), Balanced::default(), 0);
    let mut before = vec![0; KEYS as usize];
    while begun.elapsed() < limit && found < LOOKS {
        tokio::time::sleep(LOOK).await;
        let failed = |status| HarnessError::rpc("listing the shards")(status);
        let shards = admin.shards_list(ShardsListRequest {}).await.map_err(failed)?.into_inner().shards;
        let now: Vec<u64> = counted.keys.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let mut sums: BTreeMap<u64, u64> = (2..2 + groups).map(|group| (group, 0)).collect();
        for (number, owner) in owners(&shards).into_iter().enumerate() {
            *sums.entry(owner).or_default() += now[number] - before[number];
        }
        before = now;
        let sums: Vec<u64> = sums.into_values().collect();
        let fair = sums.iter().sum::<u64>() as f64 / sums.len() as f64;
        let most = sums.iter().max().copied().unwrap_or_default();
        let spread = (most - sums.iter().min().copied().unwrap_or_default()) as f64 / fair.max(1.0);
        found = if spread < SPREAD { found + 1 } else { 0 };
        if found == 1 {
            seen.after = Some(begun.elapsed());
        }
        seen.looks.push((begun.elapsed(), sums, spread));
        seen.shards = shards.len();
    }
    seen.after = seen.after.filter(|_| found >= LOOKS);
    counted.stop.store(true, Ordering::Relaxed);
    while clients.join_next().await.is_some() {}
    seen.answered = counted.keys.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    seen.failed = counted.failed.load(Ordering::Relaxed);
    seen.longest = Duration::from_micros(counted.longest_micros.load(Ordering::Relaxed));
    Ok(seen)
}
