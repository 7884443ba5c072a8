//! How many requests there were, how they ended and how long they took.

use http::{Request, Response};
use pin_project_lite::pin_project;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};

/// Upper bounds in seconds: from a read out of memory to a deadline.
const BOUNDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0];

/// What a request was, and how it ended. Both have few values: a method that does not exist is "other".
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    code: &'static str,
}

/// Figures of all requests of a port.
#[derive(Clone)]
pub struct RpcMetrics {
    duration: Family<Labels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
}

impl Default for RpcMetrics {
    fn default() -> RpcMetrics {
        let histogram: fn() -> Histogram = || Histogram::new(BOUNDS);
        RpcMetrics { duration: Family::new_with_constructor(histogram), in_flight: Gauge::default() }
    }
}

impl RpcMetrics {
    /// Adds the figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "rpc_duration",
            "Time from a request's headers to its answer's, by method and gRPC code",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register("rpc_in_flight", "Requests being answered", self.in_flight.clone());
    }

    fn ended(&self, method: &'static str, began: Instant, code: Code) {
        let labels = Labels { method, code: code_name(code) };
        self.duration.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
    }
}

/// The name of the method at a path, out of those that exist.
fn method(path: &str) -> &'static str {
    match proto::METHODS.binary_search(&path) {
        Ok(index) => proto::METHODS[index].trim_start_matches('/'),
        Err(_) => "other",
    }
}

/// As gRPC writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl<S> Layer<S> for RpcMetrics {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, metrics: self.clone() }
    }
}

/// A service whose requests are counted.
#[derive(Clone)]
pub struct Measured<S> {
    inner: S,
    metrics: RpcMetrics,
}

impl<S: Service<Request<Body>, Response = Response<Body>>> Service<Request<Body>> for Measured<S> {
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Measuring<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Measuring<S::Future> {
        let running = Running::new(self.metrics.clone(), method(request.uri().path()));
        Measuring { future: self.inner.call(request), running }
    }
}

/// Counts a request, whatever becomes of it.
struct Running {
    metrics: RpcMetrics,
    method: &'static str,
    began: Instant,
    ended: bool,
}

impl Running {
    fn new(metrics: RpcMetrics, method: &'static str) -> Running {
        metrics.in_flight.inc();
        #[expect(clippy::disallowed_methods, reason = "the server, unlike the machine, may measure itself")]
        let began = Instant::now();
        Running { metrics, method, began, ended: false }
    }

    fn end(&mut self, code: Code) {
        self.ended = true;
        self.metrics.ended(self.method, self.began, code);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        if !self.ended {
            // The client went away, or its connection.
            self.metrics.ended(self.method, self.began, Code::Cancelled);
        }
    }
}

pin_project! {
    /// A request on its way.
    pub struct Measuring<F> {
        #[pin]
        future: F,
        running: Running,
    }
}

impl<F: Future<Output = Result<Response<Body>, E>>, E> Future for Measuring<F> {
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = std::task::ready!(this.future.poll(cx));
        // An error's answer is nothing but headers; a good one says so only behind its body, which the
        // services here write when they know that it is good.
        let status = answer.as_ref().ok().and_then(|answer| answer.headers().get("grpc-status"));
        this.running.end(status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes())));
        Poll::Ready(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    /// Everything that is registered, as text.
    fn page(metrics: &RpcMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("texts can be written");
        page
    }

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn requests_are_counted_by_method_and_code_and_strangers_under_one_name() {
        let metrics = RpcMetrics::default();
        let answer = |request: Request<Body>| async move {
            Ok::<_, std::convert::Infallible>(match request.uri().path().contains("Put") {
                true => tonic::Status::resource_exhausted("no").into_http::<Body>(),
                false => Response::new(Body::empty()),
            })
        };
        for path in ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/Put", "/x/1", "/x/2"] {
            let service = metrics.layer(tower::service_fn(answer));
            service.oneshot(request(path)).await.expect("infallible");
        }
        let abandoned = metrics.layer(tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        }));
        drop(tokio::time::timeout(std::time::Duration::from_millis(1), abandoned.oneshot(request("/x/3"))).await);
        let page = page(&metrics);
        for line in [
            r#"rpc_duration_seconds_count{method="etcdserverpb.KV/Range",code="OK"} 1"#,
            r#"rpc_duration_seconds_count{method="etcdserverpb.KV/Put",code="RESOURCE_EXHAUSTED"} 1"#,
            r#"rpc_duration_seconds_count{method="other",code="OK"} 2"#,
            r#"rpc_duration_seconds_count{method="other",code="CANCELLED"} 1"#,
            "rpc_in_flight 0",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }
}
