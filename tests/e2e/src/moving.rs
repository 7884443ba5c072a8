//! What clients notice while a large shard moves under load.

use crate::HarnessError;
use crate::bars;
use crate::client::{channel, kv};
use crate::cluster::Cluster;
use crate::disk::{self, Standstills};
use crate::phase::Phase;
use crate::restart::load;
use crate::steal::{self, Stolen};
use crate::system::{Layout, System};
use crate::watch::Watch;
use bytes::Bytes;
use proto::admin::admin_client::AdminClient;
use proto::admin::{MoveShardRequest, MovesListRequest, PauseBalanceRequest, ShardsListRequest};
use proto::etcdserverpb as pb;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Writers at a time; every second one writes to the shard that moves.
const WRITERS: u64 = 32;
const VALUE_BYTES: u32 = 1024;
/// How long it is looked at how many puts go. In the first seconds more do: nothing has to be compacted yet.
const SATURATION: Duration = Duration::from_secs(30);
/// How long half of them are looked at.
const PHASE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);
/// A move that takes longer has failed.
const MOVE_LIMIT: Duration = Duration::from_secs(300);
/// Where [`load`] puts its keys.
const LOADED: &[u8] = b"load/";

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Moving {
    /// As many puts as go, before any move.
    pub saturated: Phase,
    /// Half as many, before any move.
    pub half: Phase,
    /// Half as many, during each move.
    pub moves: Vec<Phase>,
    /// As many as go, during a move.
    pub saturated_move: Phase,
}

struct Writers {
    stop: Arc<AtomicBool>,
    begun: Instant,
    disk: Option<Watch<Standstills>>,
    cores: Option<Watch<Stolen>>,
    tasks: JoinSet<Phase>,
}

impl Writers {
    /// Starts writers that together put `rate` times a second, or as often as they can.
    fn start(cluster: &Cluster, keys: u64, rate: Option<f64>) -> Writers {
        let channels: Vec<Channel> = cluster.endpoints().iter().map(|endpoint| channel(endpoint)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let numbers = Arc::new(AtomicU64::new(0));
        let pace = rate.map(|rate| Duration::from_secs_f64(WRITERS as f64 / rate));
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let channel = channels[writer as usize % channels.len()].clone();
            tasks.spawn(write(channel, writer, keys, pace, stop.clone(), numbers.clone()));
        }
        let (disk, cores) = (disk::watch(cluster.directory()), steal::watch());
        Writers { stop, begun: Instant::now(), disk, cores, tasks }
    }

    async fn end(mut self) -> Phase {
        self.stop.store(true, Ordering::Relaxed);
        let (length, begun) = (self.begun.elapsed(), Some(self.begun));
        let mut phase = Phase { length, begun, ..Phase::default() };
        while let Some(one) = self.tasks.join_next().await {
            let one = one.expect("a writer's task does not panic");
            phase.puts += one.puts;
            phase.failed += one.failed;
            phase.latencies.extend(one.latencies);
            phase.answers.extend(one.answers);
            phase.answers_elsewhere.extend(one.answers_elsewhere);
        }
        // The last answers may have waited, too.
        phase.standstills = self.disk.take().and_then(Watch::end).map(Standstills::end);
        phase.stolen = self.cores.take().and_then(Watch::end);
        phase.latencies.sort_unstable();
        phase.answers.sort_unstable();
        phase.answers_elsewhere.sort_unstable();
        phase
    }
}

async fn write(
    channel: Channel,
    writer: u64,
    keys: u64,
    pace: Option<Duration>,
    stop: Arc<AtomicBool>,
    numbers: Arc<AtomicU64>,
) -> Phase {
    let mut client = kv(channel);
    let moving = writer.is_multiple_of(2);
    let value = Bytes::from(vec![b'v'; VALUE_BYTES as usize]);
    let mut phase = Phase::default();
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let number = numbers.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15) % keys;
        let key = match moving {
            true => format!("load/{number:012}"),
            false => format!("a/{number:012}"),
        };
        if let Some(pace) = pace {
            due += pace;
            tokio::time::sleep_until(due.into()).await;
        } else {
            due = Instant::now();
        }
        let put = pb::PutRequest { key: key.into(), value: value.clone(), ..Default::default() };
        let answered = client.put(put).await.is_ok();
        let now = Instant::now();
        match answered {
            true => phase.puts += 1,
            false => phase.failed += 1,
        }
        match moving {
            true => {
                phase.latencies.push(now - due);
                phase.answers.extend(answered.then_some(now));
            }
            false => phase.answers_elsewhere.extend(answered.then_some(now)),
        }
    }
    phase
}

/// Moves the shard with the loaded keys to the other data group.
async fn move_over(admin: &mut AdminClient<Channel>) -> Result<(), HarnessError> {
    let failed = |status| HarnessError::rpc("moving a shard")(status);
    let listed = admin.shards_list(ShardsListRequest {}).await.map_err(failed)?.into_inner();
    let holds =
        |shard: &&proto::admin::Shard| &shard.start[..] <= LOADED && (shard.unbounded || LOADED < &shard.end[..]);
    let shard = listed.shards.iter().find(holds);
    let wrong = |detail: &str| HarnessError::Wrong { what: "the move".to_owned(), detail: detail.to_owned() };
    let shard = shard.ok_or_else(|| wrong("no shard has the keys"))?;
    let wish = MoveShardRequest { shard: shard.id, group: if shard.group == 2 { 3 } else { 2 } };
    let id = admin.move_shard(wish).await.map_err(failed)?.into_inner().id;
    let begun = Instant::now();
    while begun.elapsed() < MOVE_LIMIT {
        let moves = admin.moves_list(MovesListRequest {}).await.map_err(failed)?.into_inner();
        if moves.last >= id && moves.moves.iter().all(|one| one.id != id) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(wrong("it does not end"))
}

/// Compacts the history that was written up to now, as operators do every few minutes: it would move with the shard, and each
/// move would take longer than the one before.
async fn compact(endpoint: &str) -> Result<(), HarnessError> {
    let failed = |status| HarnessError::rpc("compacting the history")(status);
    let mut client = kv(channel(endpoint));
    let key = Bytes::from_static(LOADED);
    let asked = pb::RangeRequest { key, count_only: true, ..Default::default() };
    let header = client.range(asked).await.map_err(failed)?.into_inner().header;
    let revision = header.unwrap_or_default().revision;
    client.compact(pb::CompactionRequest { revision, physical: false }).await.map_err(failed)?;
    Ok(())
}

/// Loads `bytes`, measures what writers get, and what they get while the shard moves, `moves` times.
pub async fn run(bytes: u64, moves: u32, directory: PathBuf) -> Result<Moving, HarnessError> {
    let mut cluster = Cluster::start(System::Cloudpaxos, Layout::AllRoles, &directory).await?;
    let measured = measure(&cluster, bytes, moves).await;
    if !measured.as_ref().is_ok_and(|measured| bars::moves(measured).is_empty()) {
        eprintln!("data and logs are kept in {}", cluster.keep().display());
    }
    measured
}

async fn measure(cluster: &Cluster, bytes: u64, moves: u32) -> Result<Moving, HarnessError> {
    let keys = bytes.div_ceil(u64::from(VALUE_BYTES)).max(1);
    let endpoint = cluster.endpoints().into_iter().next().unwrap_or_default();
    let mut admin = AdminClient::new(channel(&endpoint));
    // Nothing else is to move meanwhile, and what is loaded is to stay in one shard.
    let paused = PauseBalanceRequest { paused: true };
    admin.pause_balance(paused).await.map_err(|status| HarnessError::rpc("pausing the balancer")(status))?;
    load(cluster, keys, VALUE_BYTES).await?;
    let mut measured = Moving::default();
    let writers = Writers::start(cluster, keys, None);
    tokio::time::sleep(SATURATION).await;
    measured.saturated = writers.end().await;
    let half = measured.saturated.rate() / 2.0;
    let writers = Writers::start(cluster, keys, Some(half));
    tokio::time::sleep(PHASE).await;
    measured.half = writers.end().await;
    for _ in 0..moves {
        compact(&endpoint).await?;
        let writers = Writers::start(cluster, keys, Some(half));
        move_over(&mut admin).await?;
        measured.moves.push(writers.end().await);
    }
    compact(&endpoint).await?;
    let writers = Writers::start(cluster, keys, None);
    move_over(&mut admin).await?;
    measured.saturated_move = writers.end().await;
    Ok(measured)
}
