//! Nodes' reports of themselves, over the peer port.

use super::{AdminError, REPORT_TIMEOUT};
use paxos::NodeId;
use proto::admin::node_reports_client::NodeReportsClient;
use proto::admin::node_reports_server::{NodeReports, NodeReportsServer};
use proto::admin::{NodeReport, ReportRequest};
use proto::dial::{self, Dialer};
use shardkv::map::NodeInfo;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// What a node says of itself.
#[tonic::async_trait]
pub trait ReportSource: Send + Sync + 'static {
    /// The report as of now, or why there is none. Answers within [`REPORT_TIMEOUT`].
    async fn report(&self) -> Result<NodeReport, AdminError>;
}

/// Serves a node's report.
#[derive(Clone)]
pub struct ReportService {
    source: Arc<dyn ReportSource>,
}

impl ReportService {
    /// A service of this node.
    pub fn new(source: Arc<dyn ReportSource>) -> ReportService {
        ReportService { source }
    }

    /// Ready to be added to a server.
    pub fn into_server(self) -> NodeReportsServer<ReportService> {
        NodeReportsServer::new(self)
    }
}

#[tonic::async_trait]
impl NodeReports for ReportService {
    async fn report(&self, _: Request<ReportRequest>) -> Result<Response<NodeReport>, Status> {
        Ok(Response::new(self.source.report().await?))
    }
}

/// Asks nodes for their reports. A connection is kept per address, and made anew by itself when it
/// breaks.
pub struct Reports {
    dialer: Arc<dyn Dialer>,
    /// As configured: where a node is not at the address that the map tells, it is perhaps still here, or
    /// already.
    seeds: BTreeMap<NodeId, String>,
    channels: Mutex<BTreeMap<(NodeId, String), Channel>>,
}

impl Reports {
    /// Reaches nodes by `dialer`, where the map says that they are, or else at `seeds` (`host:port`).
    pub fn new(dialer: Arc<dyn Dialer>, seeds: BTreeMap<NodeId, String>) -> Reports {
        Reports { dialer, seeds, channels: Mutex::default() }
    }

    /// A node's report of itself.
    pub async fn ask(&self, node: &NodeInfo) -> Result<NodeReport, AdminError> {
        let first = self.ask_at(node.id, &node.peer_address).await;
        let seed = self.seeds.get(&node.id).filter(|seed| **seed != node.peer_address);
        match (&first, seed) {
            (Ok(report), _) if report.node == node.id.0 => first,
            (_, Some(seed)) => self.ask_at(node.id, seed).await.or(first),
            (_, None) => first,
        }
    }

    async fn ask_at(&self, node: NodeId, address: &str) -> Result<NodeReport, AdminError> {
        let channel = self.channel(node, address)?;
        let report = NodeReportsClient::new(channel).report(ReportRequest {}).await;
        report.map(Response::into_inner).map_err(|status| AdminError::NoReport(status.message().to_owned()))
    }

    fn channel(&self, node: NodeId, address: &str) -> Result<Channel, AdminError> {
        // Only whole entries are ever put in, so a poisoned map is still a good one.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (node, address.to_owned());
        if let Some(channel) = channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint =
            dial::endpoint(address).map_err(|error| AdminError::NoReport(format!("bad address {address}: {error}")))?;
        let channel = dial::connect_lazy(&endpoint.connect_timeout(REPORT_TIMEOUT), self.dialer.clone());
        // A node that has moved leaves nothing behind.
        channels.retain(|(known, known_at), _| *known != node || self.seeds.get(known) == Some(known_at));
        channels.insert(key, channel.clone());
        Ok(channel)
    }
}
