//! What a process shows of itself: figures for Prometheus, whether it is alive and ready, and traces of
//! some requests.
//!
//! The parts count plain numbers where things happen; here, and only here, they get names, units and
//! labels. Names follow Prometheus' conventions: base units, `_total` for what only rises. Labels have few
//! values: groups, nodes, ports, methods; never keys, clients or texts.

mod gateway;
mod node;
mod page;
mod pages;
mod process;
mod trace;

pub use pages::{Health, pages};
pub use trace::{FollowLayer, TARGET, Traces};

use crate::net::{AccessLayer, Credentials, PortFigures};
use ::gateway::driver::Handle;
use ::gateway::etcd::RpcMetrics;
use ::node::runtime::NodeHandle;
use page::Page;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// A port, as it is observed.
pub struct ObservedPort {
    /// Its name: client, peer or metrics.
    pub name: &'static str,
    /// Its connections.
    pub figures: Arc<PortFigures>,
    /// Its requests that were refused.
    pub access: AccessLayer,
    /// Its certificate.
    pub credentials: Option<Arc<Credentials>>,
}

/// Everything there is to be observed of one node or gateway.
pub struct Observed {
    /// The operator's name for it.
    pub name: String,
    /// Its replicas.
    pub node: Option<NodeHandle>,
    /// Its gateway, and the requests to it.
    pub gateway: Option<(Handle, RpcMetrics)>,
    /// Its ports.
    pub ports: Vec<ObservedPort>,
}

impl Observed {
    /// All figures, as of now, in the text format that Prometheus reads.
    pub async fn metrics(&self) -> Result<String, fmt::Error> {
        let labels = [("node".into(), self.name.clone().into())];
        let mut registry = Registry::with_prefix_and_labels("cloudpaxos", labels.into_iter());
        registry.register_collector(Box::new(Build));
        registry.register_collector(Box::new(Ports::of(&self.ports)));
        if let Some(node) = &self.node {
            match node.figures().await {
                Some(Ok(figures)) => registry.register_collector(Box::new(node::NodeCollector(figures))),
                Some(Err(error)) => tracing::warn!(%error, "the node's figures are missing from the metrics"),
                None => {}
            }
        }
        if let Some((gateway, requests)) = &self.gateway {
            requests.register(&mut registry);
            registry.register_collector(Box::new(gateway::GatewayCollector::of(gateway)));
        }
        let mut process = Registry::default();
        process.register_collector(Box::new(process::ProcessCollector));
        let mut page = String::new();
        text::encode_registry(&mut page, &registry)?;
        text::encode_registry(&mut page, &process)?;
        text::encode_eof(&mut page)?;
        Ok(page)
    }
}

#[derive(Debug)]
struct Build;

impl Collector for Build {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        Page(encoder).gauge(
            "build",
            "The version of this process, as a label",
            [(vec![("version", crate::VERSION.to_owned())], 1.0)],
        )
    }
}

/// The figures of ports, as of one moment.
#[derive(Debug)]
struct Ports(Vec<Port>);

#[derive(Debug)]
struct Port {
    name: &'static str,
    open: u64,
    accepted: u64,
    handshakes_refused: u64,
    requests_refused: u64,
    expires: Option<f64>,
}

impl Ports {
    fn of(ports: &[ObservedPort]) -> Ports {
        let expires = |credentials: &Arc<Credentials>| {
            credentials.expires().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
        };
        let port = |port: &ObservedPort| Port {
            name: port.name,
            open: port.figures.open(),
            accepted: port.figures.accepted(),
            handshakes_refused: port.figures.refused(),
            requests_refused: port.access.refused(),
            expires: port.credentials.as_ref().map(expires),
        };
        Ports(ports.iter().map(port).collect())
    }
}

impl Collector for Ports {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let label = |port: &Port| vec![("port", port.name.to_owned())];
        let each = |value: fn(&Port) -> f64| self.0.iter().map(move |port| (label(port), value(port)));
        page.gauge("connections", "Connections that are open", each(|port| port.open as f64))?;
        page.counter("connections_accepted", "Connections that came about", each(|port| port.accepted as f64))?;
        page.counter(
            "handshakes_refused",
            "TLS handshakes that failed, for a certificate or for time",
            each(|port| port.handshakes_refused as f64),
        )?;
        page.counter(
            "requests_unauthenticated",
            "Requests refused because they brought neither certificate nor token",
            each(|port| port.requests_refused as f64),
        )?;
        page.gauge(
            "certificate_expiry_timestamp_seconds",
            "When the port's certificate expires, in seconds since 1970",
            self.0.iter().filter_map(|port| Some((label(port), port.expires?))),
        )
    }
}

#[cfg(test)]
mod tests;
