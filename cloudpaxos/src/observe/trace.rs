//! Traces: requests that are followed from the gateway through the groups, told to an OTLP collector.
//!
//! Whether a request is followed is decided once, where it enters: by its caller, who says so in
//! `traceparent`, or else by chance. What is followed gets a span here; the core below notes when each
//! stage began and ended, and those become spans below it, on whichever node they happened.

use crate::config::TraceConfig;
use crate::failure::Failure;
use ::node::core::Span;
use ::node::runtime::{SpanSink, now};
use http::{HeaderMap, Request, Response};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use shardkv::request::TraceContext;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, SystemTime};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of the spans that become OTLP spans; no other span of this process does.
pub const TARGET: &str = "cloudpaxos::rpc";
const TRACEPARENT: &str = "traceparent";
/// The collector may be slow; what does not fit into the queue meanwhile is dropped.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to the collector. When it is dropped, what is queued is sent.
pub struct Traces {
    provider: SdkTracerProvider,
    sample_ratio: f64,
    /// Carries the exporter's connection.
    _runtime: tokio::runtime::Runtime,
}

impl Traces {
    /// Prepares the way to a collector, if one is configured; it need not be there yet.
    pub fn start(config: &TraceConfig, node: &str) -> Result<Option<Traces>, Failure> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()
            .map_err(|error| Failure::Io { action: "start a runtime".to_owned(), error })?;
        let exporter = {
            let _within = runtime.enter();
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_TIMEOUT).build()
        };
        let exporter = exporter.map_err(|error| Failure::Usage(format!("--otlp-endpoint: `{endpoint}`: {error}")))?;
        let resource = Resource::builder()
            .with_service_name("cloudpaxos")
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
            .with_attribute(KeyValue::new("service.version", crate::VERSION))
            .build();
        let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        Ok(Some(Traces { provider, sample_ratio: config.sample_ratio, _runtime: runtime }))
    }

    /// What makes spans.
    pub fn tracer(&self) -> SdkTracer {
        self.provider.tracer("cloudpaxos")
    }

    /// Chooses the requests to be followed.
    pub fn layer(&self) -> FollowLayer {
        FollowLayer { sample_ratio: Some(self.sample_ratio) }
    }

    /// Takes stages from a node.
    pub fn sink(&self) -> SpanSink {
        let tracer = self.tracer();
        Arc::new(move |spans| {
            let (core, wall) = (now(), SystemTime::now());
            let at = |time: paxos::Time| wall - Duration::from_micros(core.since(time));
            for span in spans {
                let Span { context, stage, group, slot, begin, end } = span;
                let parent = Context::new().with_remote_span_context(remote(context));
                let mut attributes =
                    vec![KeyValue::new("cloudpaxos.group", i64::try_from(group.0).unwrap_or(i64::MAX))];
                attributes.extend(
                    slot.map(|slot| KeyValue::new("cloudpaxos.slot", i64::try_from(slot.0).unwrap_or(i64::MAX))),
                );
                let builder = tracer.span_builder(stage.name()).with_kind(SpanKind::Internal);
                let builder = builder.with_start_time(at(begin)).with_attributes(attributes);
                tracer.build_with_context(builder, &parent).end_with_timestamp(at(end));
            }
        })
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "some spans were not sent");
        }
    }
}

fn remote(context: TraceContext) -> SpanContext {
    let (trace, span) = (TraceId::from(context.trace), SpanId::from(context.span));
    SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::default())
}

/// What a caller says of its own span (W3C Trace Context, level 1): its ids, and whether it is followed.
fn caller(headers: &HeaderMap) -> Option<(TraceContext, bool)> {
    let mut fields = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (version, trace, span, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let wide = [(version, 2), (trace, 32), (span, 16), (flags, 2)];
    // Later versions may append fields; ff is none.
    let rest = fields.next();
    if version == "ff" || (version == "00" && rest.is_some()) || wide.iter().any(|(text, width)| !hex(text, *width)) {
        return None;
    }
    let context =
        TraceContext { trace: u128::from_str_radix(trace, 16).ok()?, span: u64::from_str_radix(span, 16).ok()? };
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (context.trace != 0 && context.span != 0).then_some((context, flags & 1 == 1))
}

/// Whether a text is lower-case hexadecimal of this width.
fn hex(text: &str, width: usize) -> bool {
    text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Chooses the requests to be followed; without a collector none are.
#[derive(Clone, Copy, Debug, Default)]
pub struct FollowLayer {
    sample_ratio: Option<f64>,
}

impl FollowLayer {
    /// The span of a request that is followed.
    fn span(&self, path: &str, headers: &HeaderMap) -> Option<tracing::Span> {
        let ratio = self.sample_ratio?;
        let index = proto::METHODS.binary_search(&path).ok()?;
        let method = proto::METHODS[index].trim_start_matches('/');
        let caller = caller(headers);
        let chosen = caller.map_or_else(|| rand::random::<f64>() < ratio, |(_, followed)| followed);
        if !chosen {
            return None;
        }
        let span = tracing::info_span!(target: TARGET, "rpc", otel.name = method, otel.kind = "server",
            rpc.system = "grpc", rpc.method = method);
        if let Some((context, _)) = caller {
            // It fails only where the span is not one of ours, and then nothing is told of it.
            drop(span.set_parent(Context::new().with_remote_span_context(remote(context))));
        }
        Some(span)
    }
}

impl<S> Layer<S> for FollowLayer {
    type Service = Follow<S>;

    fn layer(&self, inner: S) -> Follow<S> {
        Follow { inner, layer: *self }
    }
}

/// A service some of whose requests are followed.
#[derive(Clone)]
pub struct Follow<S> {
    inner: S,
    layer: FollowLayer,
}

/// An answer that is followed, or not.
pub type Answering<F, O> = futures_util::future::Either<F, Pin<Box<dyn Future<Output = O> + Send>>>;

impl<S> Service<Request<Body>> for Follow<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Future, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(span) = self.layer.span(request.uri().path(), request.headers()) else {
            return Answering::Left(self.inner.call(request));
        };
        let context = span.context().span().span_context().clone();
        if context.is_valid() {
            let trace = u128::from_be_bytes(context.trace_id().to_bytes());
            let span = u64::from_be_bytes(context.span_id().to_bytes());
            request.extensions_mut().insert(TraceContext { trace, span });
        }
        let answering = self.inner.call(request).instrument(span.clone());
        Answering::Right(Box::pin(async move {
            let answer = answering.await;
            if let Ok(answer) = &answer {
                let status = answer.headers().get("grpc-status").and_then(|status| status.to_str().ok());
                span.set_attribute("rpc.grpc.status_code", status.unwrap_or("0").to_owned());
            }
            answer
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_believed_only_what_is_well_formed() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, text.parse().expect("a header's value"));
            caller(&headers)
        };
        let context = TraceContext { trace: 0x4bf92f3577b34da6a3ce929d0e0e4736, span: 0x00f067aa0ba902b7 };
        let well = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(read(well), Some((context, true)));
        assert_eq!(read(&well.replace("-01", "-00")), Some((context, false)));
        assert_eq!(read(&format!("cc{}-of-later-versions", &well[2..])), Some((context, true)));
        for wrong in [
            "".to_owned(),
            well.replace("00-4b", "ff-4b"),
            well.replace("4bf9", "4BF9"),
            well.replace("-01", "-1"),
            format!("{well}-more"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned(),
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
