//! The etcd v3 API over gRPC: validation, translation to our own operations, etcd's error texts.
//!
//! Nothing is decided here that the machine or the groups decide; these modules only check what
//! etcd checks before a request enters its log, and translate.

mod check;
mod cluster;
mod errors;
mod health;
mod kv;
mod maintenance;
mod measure;
mod translate;
mod unserved;

pub use measure::RpcMetrics;

use crate::driver::Handle;
use futures_util::Stream;
use proto::dial::ByteStream;
use proto::etcdserverpb as pb;
use shardkv::request::TraceContext;
use shardkv::types::Revision;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tonic::Request;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tower::{Layer, Service};

/// The version of the API that we serve. Kubernetes asks for 3.5.13 or newer before it relies on
/// progress requests.
pub const API_VERSION: &str = "3.5.13";

/// What the services say about the node that they run in.
#[derive(Clone)]
pub struct Info {
    /// The cluster's id as configured; the shard map's counts once it is there.
    pub cluster_id: u64,
    /// The node's id.
    pub member_id: u64,
    /// The cluster's incarnation: 1, raised by a restore only. Some clients take answers with a
    /// lower one for stale. The shard map's counts once it is there.
    pub raft_term: u64,
    /// Limits on requests.
    pub limits: Limits,
    /// Where TLS is spoken.
    pub tls: Tls,
    /// What only the node knows.
    pub node: Arc<dyn Fn() -> NodeStatus + Send + Sync>,
    /// Whether requests are well sent here.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// Where TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// With clients.
    pub clients: bool,
    /// Between nodes.
    pub peers: bool,
}

/// What a node tells about itself for `Status`.
#[derive(Clone, Debug, Default)]
pub struct NodeStatus {
    /// Bytes of storage taken.
    pub db_size_bytes: u64,
    /// Bytes of storage in use.
    pub db_size_in_use_bytes: u64,
    /// The last decided slot, of the shardmaster's log where there are many.
    pub decided_slot: u64,
    /// The node that leads the shardmaster's group, as this node's replica knows; 0 if it has none.
    pub leader: u64,
    /// The last applied slot of that log.
    pub applied_slot: u64,
    /// What is wrong, for an operator's eyes.
    pub errors: Vec<String>,
}

/// Whether requests are well sent here, as gRPC's health service tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// They are.
    Ready,
    /// Not yet, or not now.
    Unready,
    /// Never again: the process is about to stop.
    Stopping,
}

/// Limits on requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Operations in one transaction.
    pub txn_ops_max: usize,
    /// Bytes of one writing request.
    pub request_bytes_max: usize,
    /// Time for a request whose client sets no deadline.
    pub budget: Duration,
    /// The most time that a client's deadline can give a request.
    pub budget_max: Duration,
    /// Streams that one connection may have open.
    pub streams_max: u32,
    /// Flow control window of a stream, in bytes.
    pub stream_window_bytes: u32,
    /// Flow control window of a connection, in bytes.
    pub connection_window_bytes: u32,
    /// A connection without a sign of life for this long is pinged, and closed after as long again.
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            txn_ops_max: 128,
            request_bytes_max: 1536 << 10,
            budget: Duration::from_secs(5),
            budget_max: Duration::from_secs(30),
            streams_max: 65_536,
            stream_window_bytes: 2 << 20,
            connection_window_bytes: 16 << 20,
            keepalive: Duration::from_secs(10),
        }
    }
}

/// A request's frame may exceed the request by this much before the transport refuses it; up to
/// there the client gets etcd's own error.
const FRAME_OVERHEAD_BYTES: usize = 512 << 10;

/// What a request comes with beside its content.
#[derive(Clone, Copy)]
struct Terms {
    /// How long it may take.
    budget: Duration,
    /// If it is followed: whoever serves the port put it into the request's extensions.
    trace: Option<TraceContext>,
    /// See [`UNCOUNTED`].
    uncounted: bool,
}

/// Metadata of a range request whose client does not look at `count`: etcd counts all keys of the range
/// whatever the limit, which makes paging through a large one quadratic.
pub const UNCOUNTED: &str = "cloudpaxos-uncounted";

/// What every service holds.
#[derive(Clone)]
struct Context {
    handle: Handle,
    info: Arc<Info>,
}

impl Context {
    fn header(&self, revision: Revision) -> pb::ResponseHeader {
        // A gateway without replicas knows by flags only what the cluster was described as.
        let (cluster_id, raft_term) = self.handle.cluster().unwrap_or((self.info.cluster_id, self.info.raft_term));
        let member_id = self.info.member_id;
        pb::ResponseHeader { cluster_id, member_id, revision: translate::to_i64(revision.0), raft_term }
    }

    /// The header of an answer about the cluster itself: etcd leaves its revision out.
    fn header_without_revision(&self) -> pb::ResponseHeader {
        self.header(Revision(0))
    }

    /// The header of an answer that touches no key.
    fn header_now(&self) -> pb::ResponseHeader {
        self.header(self.handle.known())
    }

    /// How a request is to be carried out.
    fn terms<T>(&self, request: &Request<T>) -> Terms {
        let trace = request.extensions().get::<TraceContext>().copied();
        let uncounted = request.metadata().contains_key(UNCOUNTED);
        Terms { budget: self.budget(request.metadata()), trace, uncounted }
    }

    /// How long a request may take.
    fn budget(&self, metadata: &MetadataMap) -> Duration {
        let limits = &self.info.limits;
        metadata
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse_timeout)
            .map_or(limits.budget, |timeout| timeout.min(limits.budget_max))
    }
}

/// A timeout as gRPC writes it: at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// All services of the etcd API, and gRPC's health service.
pub fn routes(handle: Handle, info: Info) -> Routes {
    let in_bytes = info.limits.request_bytes_max + FRAME_OVERHEAD_BYTES;
    let out_bytes = usize::MAX; // what a client asked for is bounded by the machine
    let context = Context { handle, info: Arc::new(info) };
    let kv = pb::kv_server::KvServer::new(kv::Kv(context.clone()))
        .max_decoding_message_size(in_bytes)
        .max_encoding_message_size(out_bytes);
    let cluster = pb::cluster_server::ClusterServer::new(cluster::Cluster(context.clone()));
    let maintenance = pb::maintenance_server::MaintenanceServer::new(maintenance::Maintenance(context.clone()));
    let watch = pb::watch_server::WatchServer::new(unserved::Watch).max_decoding_message_size(in_bytes);
    let lease = pb::lease_server::LeaseServer::new(unserved::Lease).max_decoding_message_size(in_bytes);
    let auth = pb::auth_server::AuthServer::new(unserved::Auth(context.clone())).max_decoding_message_size(in_bytes);
    let health = proto::health::health_server::HealthServer::new(health::Health::new(context));
    Routes::new(kv)
        .add_service(cluster)
        .add_service(maintenance)
        .add_service(watch)
        .add_service(lease)
        .add_service(auth)
        .add_service(health)
}

/// Serves `routes` behind `layer` on connections until there are no more; the clients are then told to go
/// elsewhere, and requests under way finish.
pub async fn serve<C, L, S>(
    connections: impl Stream<Item = std::io::Result<C>>,
    routes: Routes,
    layer: L,
    limits: &Limits,
) -> Result<(), tonic::transport::Error>
where
    C: ByteStream + Connected + 'static,
    L: Layer<Routes, Service = S> + Clone,
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    Server::builder()
        // For pages beside the API: metrics and health.
        .accept_http1(true)
        .initial_stream_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .http2_adaptive_window(Some(false))
        .max_concurrent_streams(limits.streams_max)
        .http2_keepalive_interval(Some(limits.keepalive))
        .http2_keepalive_timeout(Some(limits.keepalive))
        .layer(layer)
        .add_routes(routes)
        // With a signal, even one that never comes, the end is graceful.
        .serve_with_incoming_shutdown(connections, std::future::pending())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        for malformed in ["", "S", "5", "5x", "123456789S", "-1S", "5\u{e9}"] {
            assert_eq!(parse_timeout(malformed), None, "{malformed}");
        }
    }
}
