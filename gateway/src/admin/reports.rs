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

/// What a node says of itself, from memory.
pub trait ReportSource: Send + Sync + 'static {
    /// The report as of now.
    fn report(&self) -> NodeReport;
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
        Ok(Response::new(self.source.report()))
    }
}

/// Asks nodes for their reports. A connection is kept per node, and made anew by itself when it
/// breaks; it is replaced when the node's address changes.
pub struct Reports {
    dialer: Arc<dyn Dialer>,
    channels: Mutex<BTreeMap<NodeId, (String, Channel)>>,
}

impl Reports {
    /// Reaches nodes by `dialer`.
    pub fn new(dialer: Arc<dyn Dialer>) -> Reports {
        Reports { dialer, channels: Mutex::default() }
    }

    /// A node's report of itself.
    pub async fn ask(&self, node: &NodeInfo) -> Result<NodeReport, AdminError> {
        let channel = self.channel(node)?;
        let report = NodeReportsClient::new(channel).report(ReportRequest {}).await;
        report.map(Response::into_inner).map_err(|status| AdminError::NoReport(status.message().to_owned()))
    }

    fn channel(&self, node: &NodeInfo) -> Result<Channel, AdminError> {
        // Only whole entries are ever put in, so a poisoned map is still a good one.
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((address, channel)) = channels.get(&node.id)
            && *address == node.peer_address
        {
            return Ok(channel.clone());
        }
        let endpoint = dial::endpoint(&node.peer_address)
            .map_err(|error| AdminError::NoReport(format!("bad address {}: {error}", node.peer_address)))?;
        let channel = dial::connect_lazy(&endpoint.connect_timeout(REPORT_TIMEOUT), self.dialer.clone());
        channels.insert(node.id, (node.peer_address.clone(), channel.clone()));
        Ok(channel)
    }
}
