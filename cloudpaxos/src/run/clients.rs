//! The gateway role: the client port with the etcd API and the admin API.

use super::admin::Source;
use super::host::Site;
use super::map::addresses_to_ask;
use crate::net::{AccessLayer, Listener};
use crate::observe::Health;
use gateway::GatewayConfig;
use gateway::admin::AdminService;
use gateway::driver::{self, Handle};
use gateway::etcd::{self, Info, Limits, NodeStatus, Readiness, RpcMetrics, Tls};
use gateway::remote::{LocalNode, Remote, RemoteConfig};
use node::core::CoreStatus;
use node::runtime::NodeHandle;
use paxos::NodeId;
use proto::dial::Dialer;
use shardkv::map::SHARDMASTER_GROUP;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::service::Routes;
use tower::layer::util::Stack;

/// How old what `Maintenance.Status` says may be.
const STATUS_PERIOD: Duration = Duration::from_millis(500);

/// Starts the gateway's machine; requests to the own node do not travel.
pub(super) fn start_gateway(site: &Site, node: Option<&NodeHandle>, dialer: Arc<dyn Dialer>) -> Handle {
    let mut addresses = addresses_to_ask(&site.genesis, &site.known_nodes);
    addresses.extend(site.peer_addresses.clone());
    let config = GatewayConfig {
        seed: [rand::random(), rand::random()],
        local: node.map(NodeHandle::node),
        nodes: addresses.keys().copied().collect(),
        ..GatewayConfig::default()
    };
    driver::start(config, |replies| {
        let local = node.map(|node| {
            let (me, replies) = (node.node(), replies.clone());
            let take: LocalNode = node.gateway(Arc::new(move |answers| replies.deliver(me, answers)));
            (me, take)
        });
        Remote::new(RemoteConfig::default(), dialer, local, addresses, replies)
    })
}

/// Everything that clients find at their port.
pub(super) fn services(
    site: &Site,
    gateway: Handle,
    node: Option<NodeHandle>,
    source: Arc<Source>,
    health: Arc<Health>,
    pages: axum::Router,
) -> Routes {
    let routes = gateway.clone();
    let info = Info {
        cluster_id: site.genesis.cluster_id(),
        member_id: node.as_ref().map_or(0, |node| node.node().0),
        raft_term: site.genesis.incarnation(),
        limits: limits(site),
        tls: Tls { clients: site.secured.client.is_some(), peers: site.secured.peer.is_some() },
        node: watch_status(node),
        readiness: Arc::new(move || match routes.map() {
            _ if health.is_draining() => Readiness::Stopping,
            Some(_) => Readiness::Ready,
            None => Readiness::Unready,
        }),
    };
    let routes = etcd::routes(gateway, info);
    let routes = routes.add_service(AdminService::new(source, crate::VERSION).into_server());
    Routes::from(routes.prepare().into_axum_router().merge(pages))
}

fn limits(site: &Site) -> Limits {
    Limits {
        txn_ops_max: usize::try_from(site.limits.txn_operations_max).unwrap_or(usize::MAX),
        request_bytes_max: usize::try_from(site.limits.request_bytes_max).unwrap_or(usize::MAX),
        ..Limits::default()
    }
}

/// Serves a port until `stop` is done: counts its requests, and asks who they are from.
pub(super) fn serve(
    site: &Site,
    (listener, access): (Listener, AccessLayer),
    services: Routes,
    requests: RpcMetrics,
    stop: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + 'static {
    let limits = limits(site);
    // From the inside: what is refused is counted, and not followed.
    let layers = Stack::new(site.follow, Stack::new(access, requests));
    async move { etcd::serve(listener.connections(stop), services, layers, &limits).await }
}

/// Keeps what `Maintenance.Status` says about this node fresh, without a hop on the way of a request.
fn watch_status(node: Option<NodeHandle>) -> Arc<dyn Fn() -> NodeStatus + Send + Sync> {
    let latest = Arc::new(Mutex::new(NodeStatus::default()));
    let writer = latest.clone();
    if let Some(node) = node {
        tokio::spawn(async move {
            let mut period = tokio::time::interval(STATUS_PERIOD);
            loop {
                period.tick().await;
                let Some(status) = node.status().await else { return };
                let fresh = node_status(&status, node.store_bytes());
                *writer.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
        });
    }
    Arc::new(move || latest.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

fn node_status(status: &CoreStatus, store_bytes: u64) -> NodeStatus {
    let master = status.groups.iter().find(|group| group.group == SHARDMASTER_GROUP);
    let unreachable = status.reaches.iter().filter(|(_, reached)| !reached);
    let mut errors: Vec<String> =
        unreachable.map(|(node, _): &(NodeId, bool)| format!("{node} is unreachable")).collect();
    if status.no_space {
        errors.push("writes are refused: free space on the data directory's disk".into());
    }
    let fenced = status.groups.iter().filter(|group| group.fenced);
    errors.extend(fenced.map(|group| format!("the state of its replica of {} is wrong", group.group)));
    NodeStatus {
        db_size_bytes: store_bytes,
        db_size_in_use_bytes: store_bytes,
        leader: master.map_or(0, |group| group.leader.node.0),
        decided_slot: master.map_or(0, |group| group.decided.0),
        applied_slot: master.map_or(0, |group| group.applied.0),
        errors,
    }
}
