//! Who may make requests at a port: one place for every service and page.
//!
//! A request is let in if the port asks for nothing, if its connection showed a certificate of our CA, or
//! if it carries a token. Questions whether the process is alive and ready are free, because whoever asks
//! them (a kubelet, a load balancer) has neither.

use super::incoming::PeerIdentity;
use super::tokens::Tokens;
use http::{HeaderMap, Request, Response, StatusCode, header};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Free for all. Not the health service's Watch: a stream that stays costs memory.
const FREE: [&str; 4] = ["/livez", "/readyz", "/health", "/grpc.health.v1.Health/Check"];
/// etcd's clients send their token in this one.
const ETCD_TOKEN: &str = "token";

/// What a port asks of requests.
#[derive(Clone, Default)]
pub struct AccessLayer {
    required: bool,
    tokens: Option<Arc<Tokens>>,
    refused: Arc<AtomicU64>,
}

impl AccessLayer {
    /// Lets everybody in.
    pub fn open() -> AccessLayer {
        AccessLayer::default()
    }

    /// Asks for a client certificate or one of these tokens.
    pub fn required(tokens: Option<Arc<Tokens>>) -> AccessLayer {
        AccessLayer { required: true, tokens, refused: Arc::default() }
    }

    /// The same for another port, whose refusals are counted for themselves.
    pub fn of_another_port(&self) -> AccessLayer {
        AccessLayer { refused: Arc::default(), ..self.clone() }
    }

    /// Whether it asks for anything.
    pub fn asks(&self) -> bool {
        self.required
    }

    /// Requests that were refused, since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn judge(&self, path: &str, headers: &HeaderMap, peer: Option<&PeerIdentity>) -> Result<(), &'static str> {
        if !self.required || FREE.contains(&path) || peer.is_some_and(|peer| peer.certificate.is_some()) {
            return Ok(());
        }
        match (bearer(headers), &self.tokens) {
            (Some(token), Some(tokens)) if tokens.admit(token) => Ok(()),
            (Some(_), Some(_)) => Err("the API token is not valid here"),
            (_, None) => Err("a client certificate is needed here"),
            (None, Some(_)) => Err(
                "an API token is needed here (metadata `authorization: Bearer TOKEN`, or `token: TOKEN`), or a client \
                 certificate",
            ),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    let authorization = text(header::AUTHORIZATION.as_str()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    authorization.or_else(|| text(ETCD_TOKEN))
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Access<S> {
        Access { inner, layer: self.clone() }
    }
}

/// A service behind an [`AccessLayer`].
#[derive(Clone)]
pub struct Access<S> {
    inner: S,
    layer: AccessLayer,
}

impl<S: Service<Request<Body>, Response = Response<Body>>> Service<Request<Body>> for Access<S> {
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer<S::Future> {
        let peer = request.extensions().get::<PeerIdentity>();
        match self.layer.judge(request.uri().path(), request.headers(), peer) {
            Ok(()) => Answer::Inner { future: self.inner.call(request) },
            Err(reason) => {
                self.layer.refused.fetch_add(1, Ordering::Relaxed);
                Answer::Refused { response: Some(refusal(&request, reason)) }
            }
        }
    }
}

/// gRPC's clients get a status, others a page.
fn refusal(request: &Request<Body>, reason: &str) -> Response<Body> {
    let content = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if content.is_some_and(|content| content.starts_with("application/grpc")) {
        return Status::unauthenticated(reason).into_http();
    }
    let mut page = Response::new(Body::new(format!("{reason}\n")));
    *page.status_mut() = StatusCode::UNAUTHORIZED;
    page.headers_mut().insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    page
}

pin_project! {
    /// What becomes of a request.
    #[project = AnswerProjection]
    pub enum Answer<F> {
        /// It is let in.
        Inner {
            #[pin]
            future: F,
        },
        /// It is not.
        Refused {
            response: Option<Response<Body>>,
        },
    }
}

impl<F: Future<Output = Result<Response<Body>, E>>, E> Future for Answer<F> {
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            AnswerProjection::Inner { future } => future.poll(cx),
            // Taken once: a future is not polled behind its end.
            AnswerProjection::Refused { response } => Poll::Ready(Ok(response.take().unwrap_or_default())),
        }
    }
}
