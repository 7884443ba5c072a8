//! Logs go to standard error, so that standard output stays for answers. Spans of requests that are
//! followed go to the collector, by the same subscriber.

use crate::config::{LogConfig, LogFormat};
use crate::observe::TARGET;
use opentelemetry_sdk::trace::SdkTracer;
use std::io::IsTerminal;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

/// Installs the process's subscriber. The first call wins; later ones change nothing.
pub fn install(config: &LogConfig, tracer: Option<SdkTracer>) {
    // The filter was checked with the configuration.
    let filter = EnvFilter::new(&config.filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let spans = tracer.map(|tracer| {
        let only_ours = Targets::new().with_target(TARGET, tracing::Level::INFO);
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(only_ours)
    });
    if let Err(error) = registry().with(lines.with_filter(filter)).with(spans).try_init() {
        tracing::debug!(%error, "a subscriber is already installed");
    }
}
