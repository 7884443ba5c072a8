//! A gateway's figures.

use super::page::Page;
use ::gateway::Status;
use ::gateway::driver::Handle;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

/// As of one moment.
#[derive(Debug)]
pub(super) struct GatewayCollector {
    status: Status,
    known_revision: u64,
}

impl GatewayCollector {
    pub(super) fn of(gateway: &Handle) -> GatewayCollector {
        GatewayCollector { status: gateway.status(), known_revision: gateway.known().0 }
    }
}

impl Collector for GatewayCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let one = |value: f64| [(Vec::new(), value)];
        let GatewayCollector { status, known_revision } = self;
        page.gauge("gateway_calls", "Calls in flight", one(status.calls as f64))?;
        page.gauge("gateway_calls_bytes", "Memory held for calls in flight", one(status.bytes as f64))?;
        page.counter("gateway_retries", "Attempts beyond the first of a call", one(status.retries as f64))?;
        page.counter(
            "gateway_stray_replies",
            "Replies of nodes that no call waited for any more",
            one(status.stray_replies as f64),
        )?;
        page.gauge("gateway_known_revision", "The largest revision known here", one(*known_revision as f64))?;
        let version = status.map.as_ref().map_or(0, |map| map.version);
        page.gauge("gateway_shard_map_version", "The shard map that requests are routed by", one(version as f64))
    }
}
