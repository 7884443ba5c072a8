//! How long writes are impossible after a kill -9 of the leader.

use crate::HarnessError;
use crate::client::{channel, kv};
use crate::cluster::{Cluster, Number};
use crate::system::{Layout, System};
use bytes::Bytes;
use proto::etcdserverpb as pb;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::transport::Channel;

/// A put is begun this often.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);
/// So many may wait for an answer at once.
const PROBES_MAX: usize = 1000;
/// After this long the cluster counts as dead.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two kills, so that the restarted node is no longer catching up.
const SETTLE: Duration = Duration::from_secs(1);

/// The times of one run, ascending.
#[derive(Clone, Debug)]
pub struct Outages(pub Vec<Duration>);

impl Outages {
    /// The median.
    pub fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

/// Kills the leader `kills` times. Each outage lasts from the kill to the first answer to a put that
/// was begun after it, at any surviving node.
pub async fn run(system: System, kills: u32, directory: PathBuf) -> Result<Outages, HarnessError> {
    let mut cluster = Cluster::start(system, Layout::AllRoles, &directory).await?;
    let mut outages = Vec::new();
    for _ in 0..kills {
        let leader = wait_for_leader(&cluster).await?;
        let survivors = connect(&cluster, leader).await?;
        let killed = Instant::now();
        cluster.kill(leader)?;
        outages.push(first_answer(&survivors, killed).await?);
        cluster.launch(leader)?;
        cluster.wait_ready().await?;
        tokio::time::sleep(SETTLE).await;
    }
    outages.sort();
    Ok(Outages(outages))
}

async fn wait_for_leader(cluster: &Cluster) -> Result<Number, HarnessError> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(leader) = cluster.leader().await {
            return Ok(leader);
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    let what = "the election of a leader that Status shows".to_owned();
    Err(HarnessError::Timeout { what, seconds: LIMIT.as_secs(), logs: PathBuf::new() })
}

/// Warm connections to all nodes but the victim.
async fn connect(cluster: &Cluster, victim: Number) -> Result<Vec<Channel>, HarnessError> {
    let mut channels = Vec::new();
    for number in cluster.numbers().into_iter().filter(|number| *number != victim) {
        if let Some(endpoint) = cluster.endpoint(number) {
            let channel = channel(&endpoint);
            kv(channel.clone()).put(probe()).await.map_err(HarnessError::rpc("a put before the kill"))?;
            channels.push(channel);
        }
    }
    Ok(channels)
}

fn probe() -> pb::PutRequest {
    pb::PutRequest { key: Bytes::from_static(b"failover"), value: Bytes::from_static(b"probe"), ..Default::default() }
}

async fn first_answer(survivors: &[Channel], killed: Instant) -> Result<Duration, HarnessError> {
    let mut probes = JoinSet::new();
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut next = survivors.iter().cycle();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if let Some(channel) = next.next().filter(|_| probes.len() < PROBES_MAX) {
                    let mut client = kv(channel.clone());
                    probes.spawn(async move { client.put(probe()).await.is_ok().then(Instant::now) });
                }
            }
            Some(Ok(Some(answered))) = probes.join_next() => return Ok(answered - killed),
        }
        if killed.elapsed() > LIMIT {
            let what = "a put after the kill of the leader".to_owned();
            return Err(HarnessError::Timeout { what, seconds: LIMIT.as_secs(), logs: PathBuf::new() });
        }
    }
}
