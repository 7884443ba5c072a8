//! One node's (or gateway's) runtime, from its parts to its end.

use super::admin::{NodeReporter, Source};
use super::security::Secured;
use super::{clients, failed, map};
use crate::config::{Address, Genesis, Limits, ReadMode, Roles, Timing};
use crate::failure::Failure;
use crate::identity::{self, Identity};
use crate::net::{AccessLayer, Listener};
use crate::observe::{FollowLayer, Health, Observed, ObservedPort, pages};
use gateway::admin::{ReportService, Reports};
use gateway::etcd::RpcMetrics;
use node::core::{CoreConfig, Limits as CoreLimits, ReadMode as CoreReadMode};
use node::runtime::{self, Node, NodeConfig, NodeHandle, PeerAddress, SpanSink, Stop};
use paxos::NodeId;
use paxos::heartbeat::Timing as CoreTiming;
use shardkv::RocksOptions;
use shardkv::map::NodeInfo;
use shardmaster::balance::Policy;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;

/// Rows cached in front of the store: enough for the busy part of a control plane's keys.
const ROW_CACHE_BYTES: usize = 128 << 20;

/// What one node or gateway is.
pub(super) struct Site {
    pub(super) name: String,
    /// Where it stands; empty where nothing is said.
    pub(super) zone: String,
    /// Where it keeps its replicas and who it is there; `None` for a gateway alone.
    pub(super) identity: Option<(PathBuf, Identity)>,
    pub(super) genesis: Genesis,
    pub(super) peer_addresses: BTreeMap<NodeId, String>,
    /// Where further nodes are, of whom no more is known.
    pub(super) known_nodes: Vec<Address>,
    pub(super) roles: Roles,
    pub(super) client_address: String,
    /// Where the others reach it, if it is none of those that formed the cluster.
    pub(super) peer_address: String,
    pub(super) read_mode: ReadMode,
    pub(super) timing: Timing,
    pub(super) limits: Limits,
    pub(super) secured: Secured,
    /// Whether it hands over what it leads before it stops: not where all nodes stop together.
    pub(super) hands_over: bool,
    /// Chooses the requests to be followed, and hears of their stages.
    pub(super) follow: FollowLayer,
    /// See above.
    pub(super) spans: SpanSink,
}

/// Where it listens.
pub(super) struct Ports {
    pub(super) client: Option<TcpListener>,
    pub(super) peer: Option<TcpListener>,
    /// For figures and health alone.
    pub(super) metrics: Option<TcpListener>,
}

impl Site {
    fn node_config(&self, path: PathBuf, identity: &Identity) -> NodeConfig {
        let me = identity.node_id;
        let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let infos = map::node_infos(&self.genesis, &self.peer_addresses);
        let peers = infos
            .iter()
            .map(|info| (info.id, PeerAddress { name: info.name.clone(), address: info.peer_address.clone() }));
        let all = std::iter::once(map::shardmaster(&self.genesis)).chain(map::data_groups(&self.genesis));
        let hosted = all.filter(|group| group.replicas.contains(&me)).map(|group| (group.id, group.replicas));
        let info = infos.iter().find(|info| info.id == me).cloned();
        let info = NodeInfo {
            client_address: self.client_address.clone(),
            zone: self.zone.clone(),
            incarnation: identity.incarnation,
            ..info.unwrap_or(NodeInfo {
                id: me,
                name: self.name.clone(),
                peer_address: self.peer_address.clone(),
                ..NodeInfo::default()
            })
        };
        NodeConfig {
            core: CoreConfig {
                me,
                boot: identity.boot,
                info,
                nodes: infos.iter().map(|info| info.id).collect(),
                timing: CoreTiming {
                    heartbeat_micros: micros(self.timing.heartbeat),
                    peer_timeout_micros: micros(self.timing.election_timeout),
                    lease_micros: micros(self.timing.lease),
                    granted_before_micros: identity.lease_ms.saturating_mul(1000),
                    ..CoreTiming::default()
                },
                read_mode: match self.read_mode {
                    ReadMode::Lease => CoreReadMode::Lease,
                    ReadMode::Quorum => CoreReadMode::Quorum,
                },
                dead_after_micros: micros(self.timing.dead_after),
                balance: Some(Policy { split_bytes: self.limits.shard_bytes_max, ..Policy::default() }),
                genesis: map::first_map(&self.genesis, &self.peer_addresses),
                limits: CoreLimits {
                    inbox_bytes_max: size(self.limits.proposal_bytes_max),
                    apply_lag_bytes_max: size(self.limits.apply_lag_bytes_max),
                    batch_commands_max: size(self.limits.batch_entries_max),
                    batch_bytes_max: size(self.limits.batch_bytes_max),
                    proposals_max: size(self.limits.group_slots_max),
                    move_bytes_per_second: self.limits.move_bytes_per_second,
                    ..CoreLimits::default()
                },
            },
            groups: hosted.collect(),
            cluster_id: identity.cluster_id,
            incarnation: identity.incarnation,
            log_expected: identity.formed,
            data_dir: path,
            peers: peers.collect(),
            store: RocksOptions::default(),
            row_cache_bytes: ROW_CACHE_BYTES,
            segment_bytes: self.limits.wal_segment_bytes,
            log_queue_bytes_max: self.limits.wal_queue_bytes_max,
            peer_queue_bytes_max: size(self.limits.peer_queue_bytes_max),
            entry_bytes_max: self.limits.batch_bytes_max.max(2 * self.limits.request_bytes_max),
            salt_seed: rand::random(),
        }
    }
}

/// Why a node ended in peace.
pub(super) enum Ended {
    /// It was told to stop.
    Asked,
    /// The cluster has removed it; who says so.
    Removed(String),
}

/// Runs until `stopped` is raised or the node must not go on.
pub(super) fn run(site: Site, ports: Ports, stopped: watch::Receiver<bool>) -> Result<Ended, Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("start a runtime"))?;
    let outcome = runtime.block_on(run_here(site, ports, stopped));
    // Streams of other nodes may still be open; nothing in them is worth waiting for.
    runtime.shutdown_background();
    outcome
}

async fn run_here(site: Site, ports: Ports, stopped: watch::Receiver<bool>) -> Result<Ended, Failure> {
    let opened = match &site.identity {
        Some((path, identity)) => {
            let opened = runtime::open(site.node_config(path.clone(), identity));
            let opened = opened.map_err(|error| Failure::Run(error.to_string()))?;
            identity::mark_formed(path, identity)?;
            Some(Node::start(opened).map_err(|error| Failure::Run(error.to_string()))?)
        }
        None => None,
    };
    let (node, handle) = opened.unzip();
    let began = std::time::Instant::now();
    let reporter = handle
        .clone()
        .zip(site.identity.as_ref())
        .map(|(handle, (_, identity))| Arc::new(NodeReporter::new(handle, identity, site.roles.clone(), began)));
    let dialer = site.secured.dialer();
    let gateway = ports.client.is_some().then(|| clients::start_gateway(&site, handle.as_ref(), dialer.clone()));
    let (close, closing) = watch::channel(false);
    let (mut tasks, mut peer_tasks) = (JoinSet::new(), JoinSet::new());
    let mut listening = Listening::new(&site);
    let peer = listening.listen(ports.peer, PEER)?;
    let (client, metrics) = (listening.listen(ports.client, CLIENT)?, listening.listen(ports.metrics, METRICS)?);
    let requests = RpcMetrics::default();
    let observed = Arc::new(Observed {
        name: site.name.clone(),
        node: handle.clone(),
        gateway: gateway.clone().map(|gateway| (gateway, requests.clone())),
        ports: listening.observed,
    });
    let health = Health::new(observed.clone());
    let pages = pages(observed, health.clone());
    if let (Some((listener, _)), Some(handle), Some(reporter)) = (peer, &handle, &reporter) {
        let more = Routes::new(ReportService::new(reporter.clone()).into_server());
        let serving = runtime::serve(listener.connections(raised(closing.clone())), handle.peer_port(), more);
        peer_tasks.spawn(async move {
            serving.await.map_err(|error| Failure::Run(format!("the peer port failed: {error}")))
        });
    }
    if let (Some(port), Some(gateway)) = (client, gateway) {
        let reports = Reports::new(dialer.clone(), site.peer_addresses.clone());
        let source = Source::new(gateway.clone(), reporter.clone(), reports);
        let services =
            clients::services(&site, gateway, handle.clone(), Arc::new(source), health.clone(), pages.clone());
        let serving = clients::serve(&site, port, services, requests, raised(closing.clone()));
        tasks.spawn(
            async move { serving.await.map_err(|error| Failure::Run(format!("the client port failed: {error}"))) },
        );
    }
    if let Some(port) = metrics {
        let unmeasured = RpcMetrics::default();
        let serving = clients::serve(&site, port, Routes::from(pages), unmeasured, raised(closing.clone()));
        tasks.spawn(
            async move { serving.await.map_err(|error| Failure::Run(format!("the metrics port failed: {error}"))) },
        );
    }
    let spans = site.spans.clone();
    let ended = async {
        match node {
            Some(node) => node.run(dialer, spans).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ended);
    tokio::select! {
        stop = &mut ended => outcome(&site, stop),
        Some(Ok(Err(failure))) = tasks.join_next() => Err(failure),
        Some(Ok(Err(failure))) = peer_tasks.join_next() => Err(failure),
        removed = stop_asked_or_removed(stopped, handle.as_ref()) => {
            let stopping = async {
                drain(&site, &health, handle.as_ref(), &close, &mut tasks).await;
                if let Some(handle) = &handle {
                    handle.stop().await;
                }
            };
            if handle.is_none() {
                stopping.await;
                return Ok(Ended::Asked);
            }
            // The node's turns go on meanwhile; at the end it writes what is queued.
            let ((), stop) = tokio::join!(stopping, &mut ended);
            let ended = outcome(&site, stop)?;
            Ok(removed.map_or(ended, |why| Ended::Removed(format!("{}: {why}", site.name))))
        }
    }
}

/// Returns when the process is told to stop, or, with the reason, when the cluster has removed its node.
async fn stop_asked_or_removed(mut stopped: watch::Receiver<bool>, node: Option<&NodeHandle>) -> Option<String> {
    let removed = async {
        match node {
            Some(node) => node.removed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        why = removed => Some(why),
        _ = stopped.wait_for(|stopped| *stopped) => None,
    }
}

fn outcome(site: &Site, stop: Stop) -> Result<Ended, Failure> {
    match stop {
        Stop::Asked => Ok(Ended::Asked),
        Stop::Failed(reason) => Err(Failure::Run(format!("{}: {reason}", site.name))),
    }
}

/// Stops serving in such a way that nobody notices: others learn that requests had better go elsewhere,
/// leaderships are handed over, requests under way get their answers.
async fn drain(
    site: &Site,
    health: &Health,
    node: Option<&NodeHandle>,
    close: &watch::Sender<bool>,
    tasks: &mut JoinSet<Result<(), Failure>>,
) {
    health.drain();
    if let Some(node) = node.filter(|_| site.hands_over)
        && !node.retire(HAND_OVER_TIMEOUT).await
    {
        tracing::warn!("not every leadership could be handed over; the others will elect new leaders");
    }
    close.send_replace(true);
    let ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(ANSWER_TIMEOUT, ended).await.is_err() {
        tracing::warn!("connections were still open {} s after the end was announced", ANSWER_TIMEOUT.as_secs());
    }
}

/// How long a node that stops tries to hand over what it leads.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long requests under way may take when the process stops.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const CLIENT: &str = "client";
const PEER: &str = "peer";
const METRICS: &str = "metrics";

/// The ports as they are opened.
struct Listening {
    secured: Secured,
    connections_max: usize,
    observed: Vec<ObservedPort>,
}

impl Listening {
    fn new(site: &Site) -> Listening {
        let connections_max = usize::try_from(site.limits.connections_max).unwrap_or(usize::MAX);
        Listening { secured: site.secured.clone(), connections_max, observed: Vec::new() }
    }

    fn listen(
        &mut self,
        listener: Option<TcpListener>,
        name: &'static str,
    ) -> Result<Option<(Listener, AccessLayer)>, Failure> {
        let Some(listener) = listener else { return Ok(None) };
        let (credentials, access) = match name {
            PEER => (self.secured.peer.clone(), AccessLayer::open()),
            _ => (self.secured.client.clone(), self.secured.access.of_another_port()),
        };
        let listener = Listener::new(listener, name, credentials.clone(), self.connections_max);
        let listener = listener.map_err(failed(format!("listen on the {name} port")))?;
        let encrypted = credentials.is_some();
        tracing::info!(port = name, address = %listener.address(), tls = encrypted, "listens");
        let figures = listener.figures();
        self.observed.push(ObservedPort { name, figures, access: access.clone(), credentials });
        Ok(Some((listener, access)))
    }
}

async fn raised(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means the same.
    drop(stopped.wait_for(|stopped| *stopped).await);
}
