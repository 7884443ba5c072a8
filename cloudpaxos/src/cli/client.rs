//! A client of the etcd v3 and admin APIs that goes on to the next endpoint where that is safe.
//!
//! A read may be asked again anywhere. A write may be sent again only if it never left: when no
//! connection came about. After that its outcome is unknown, and saying so is the honest answer. An operator's
//! change may be asked for again, for it says what is wanted; but whether it is logged may be unknown, too.

use super::AccessOptions;
use crate::config::Address;
use crate::failure::Failure;
use crate::net::{TlsDialer, client_config, explain};
use proto::admin::admin_client::AdminClient;
use proto::dial::{self, Dialer, PlainText};
use proto::etcdserverpb::kv_client::KvClient;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// One endpoint that does not answer must leave time for the others.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// What a server is told above what is left.
const PATIENCE_MARGIN: Duration = Duration::from_secs(1);
/// Longest answer taken: more than any page that we ask for.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why the cluster did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An endpoint is no address.
    #[error("--endpoints: {0}")]
    BadEndpoint(String),
    /// No endpoint took a connection.
    #[error("no endpoint can be reached ({0}); is the cluster running, and are --endpoints right?")]
    Unreachable(String),
    /// The cluster answered no.
    #[error("{endpoint} refused: {} ({:?})", message(status), status.code())]
    Refused {
        /// Who.
        endpoint: String,
        /// Why.
        status: Box<Status>,
    },
    /// A write was sent, and nobody can say whether it happened.
    #[error(
        "{endpoint} did not confirm the write ({why}): it may or may not have happened; read the key before trying again"
    )]
    UnknownOutcome {
        /// Who was asked.
        endpoint: String,
        /// What came instead of an answer.
        why: String,
    },
    /// A change was asked for, and nobody can say whether it is logged.
    #[error(
        "nobody who leads the shardmaster answered in time: the change may or may not be carried out; see `cloudpaxos \
         status` ({endpoint}: {why})"
    )]
    UnknownChange {
        /// Who was asked.
        endpoint: String,
        /// What came instead of an answer.
        why: String,
    },
    /// Time is up.
    #[error("no answer within {} ({why}); give more time with --timeout", humantime::format_duration(*timeout))]
    TimedOut {
        /// How long.
        timeout: Duration,
        /// The last trouble.
        why: String,
    },
}

impl ClientError {
    /// Whether the command must be written differently; otherwise the world must change.
    pub fn is_usage(&self) -> bool {
        match self {
            ClientError::BadEndpoint(_) => true,
            ClientError::Refused { status, .. } => status.code() == Code::InvalidArgument,
            ClientError::Unreachable(_)
            | ClientError::UnknownOutcome { .. }
            | ClientError::UnknownChange { .. }
            | ClientError::TimedOut { .. } => false,
        }
    }
}

/// Whether a request may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing.
    Read,
    /// Changes something, once.
    Write,
    /// Says what an operator wants; said twice, it is the same.
    Change,
}

/// A connection whose requests carry the token, if there is one.
pub type Access = InterceptedService<Channel, Bearer>;

/// Adds a token to requests, and how long they may take.
#[derive(Clone, Debug, Default)]
pub struct Bearer {
    token: Option<MetadataValue<Ascii>>,
    patience: Option<MetadataValue<Ascii>>,
}

impl Bearer {
    /// The first token in a file.
    fn read(path: &Path) -> Result<Bearer, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Io { action: format!("read {}", path.display()), error })?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let token = lines.next().and_then(|token| format!("Bearer {token}").parse().ok());
        match token {
            Some(value) => Ok(Bearer { token: Some(value), patience: None }),
            None => Err(Failure::Usage(format!("--token-file: {} holds no token", path.display()))),
        }
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.token {
            request.metadata_mut().insert("authorization", value.clone());
        }
        if let Some(value) = &self.patience {
            request.metadata_mut().insert("grpc-timeout", value.clone());
        }
        Ok(request)
    }
}

/// Endpoints, how to reach them, and how long to try.
pub struct Client {
    endpoints: Vec<(String, Endpoint)>,
    timeout: Duration,
    dialer: Arc<dyn Dialer>,
    bearer: Bearer,
}

impl Client {
    /// Checks the endpoints; connects to none yet.
    pub fn new(endpoints: &[String], timeout: Duration, access: &AccessOptions) -> Result<Client, Failure> {
        let encrypted = access.cacert.is_some();
        let endpoints = endpoints
            .iter()
            .map(|text| {
                let address = address(text, encrypted)?.to_string();
                let endpoint = dial::endpoint(&address);
                let endpoint = endpoint.map_err(|error| ClientError::BadEndpoint(format!("`{text}`: {error}")))?;
                Ok((address, endpoint.connect_timeout(CONNECT_TIMEOUT_MAX.min(timeout))))
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        let dialer: Arc<dyn Dialer> = match &access.cacert {
            Some(authority) => {
                let own = access.cert.as_deref().zip(access.cert_key.as_deref());
                let config = client_config(authority, own).map_err(|error| Failure::Usage(error.to_string()))?;
                Arc::new(TlsDialer::fixed(config))
            }
            None => PlainText::shared(),
        };
        let bearer = access.token_file.as_deref().map(Bearer::read).transpose()?.unwrap_or_default();
        Ok(Client { endpoints, timeout, dialer, bearer })
    }

    /// Asks the key-value service.
    pub async fn kv<T>(
        &self,
        kind: Kind,
        call: impl AsyncFn(&mut KvClient<Access>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        self.ask(kind, async |channel| {
            let mut client = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            call(&mut client).await
        })
        .await
    }

    /// Asks the admin service for what is.
    pub async fn admin<T>(
        &self,
        call: impl AsyncFn(&mut AdminClient<Access>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        self.admin_as(Kind::Read, call).await
    }

    /// Asks the admin service for a change.
    pub async fn change<T>(
        &self,
        call: impl AsyncFn(&mut AdminClient<Access>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        self.admin_as(Kind::Change, call).await
    }

    async fn admin_as<T>(
        &self,
        kind: Kind,
        call: impl AsyncFn(&mut AdminClient<Access>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        self.ask(kind, async |channel| {
            let mut client = AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            call(&mut client).await
        })
        .await
    }

    async fn ask<T>(
        &self,
        kind: Kind,
        call: impl AsyncFn(Access) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let mut troubles: Vec<String> = Vec::new();
        let mut refused = None;
        for (address, endpoint) in &self.endpoints {
            let timed_out = |why| ClientError::TimedOut { timeout: self.timeout, why };
            let channel = match timeout_at(deadline, dial::connect(endpoint, self.dialer.clone())).await {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => {
                    troubles.push(format!("{address}: {}", explain(&error).unwrap_or_else(|| dial::cause(&error))));
                    continue;
                }
                Err(_) => return Err(refused.unwrap_or_else(|| timed_out(format!("connecting to {address}")))),
            };
            // So that the server does not give up earlier. A little more than we wait, for the library applies it,
            // too, and its words say less than ours.
            let left = deadline.saturating_duration_since(Instant::now()) + PATIENCE_MARGIN;
            let left = left.as_millis().min(99_999_999);
            let bearer = Bearer { patience: format!("{left}m").parse().ok(), ..self.bearer.clone() };
            let status = match timeout_at(deadline, call(InterceptedService::new(channel, bearer))).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) if kind == Kind::Write => {
                    let why = format!("no answer within {}", humantime::format_duration(self.timeout));
                    return Err(ClientError::UnknownOutcome { endpoint: address.clone(), why });
                }
                Err(_) if kind == Kind::Change => {
                    let why = format!("no answer within {}", humantime::format_duration(self.timeout));
                    return Err(ClientError::UnknownChange { endpoint: address.clone(), why });
                }
                Err(_) => return Err(timed_out(format!("waiting for {address}"))),
            };
            if never_heard(&status) {
                troubles.push(format!("{address}: {}", message(&status)));
                continue;
            }
            match (kind, status.code()) {
                // A connection that broke in the middle shows as one of the others.
                (Kind::Read | Kind::Change, Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal) => {
                    troubles.push(format!("{address}: {}", message(&status)));
                    refused = Some(refusal(kind, address, status));
                }
                (Kind::Write, Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown) => {
                    let why = format!("{}, {:?}", message(&status), status.code());
                    return Err(ClientError::UnknownOutcome { endpoint: address.clone(), why });
                }
                _ => return Err(refusal(kind, address, status)),
            }
        }
        Err(refused.unwrap_or_else(|| ClientError::Unreachable(troubles.join("; "))))
    }
}

/// What an answer means that is none. A change for which the shardmaster has nobody to answer may be logged later.
fn refusal(kind: Kind, endpoint: &str, status: Status) -> ClientError {
    let endpoint = endpoint.to_owned();
    match (kind, status.code()) {
        (Kind::Change, Code::Unavailable | Code::DeadlineExceeded) => {
            ClientError::UnknownChange { endpoint, why: format!("{}, {:?}", message(&status), status.code()) }
        }
        _ => ClientError::Refused { endpoint, status: Box::new(status) },
    }
}

/// An endpoint as people write them: etcd's clients take URLs.
fn address(text: &str, encrypted: bool) -> Result<Address, ClientError> {
    let text = text.trim().trim_end_matches('/');
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    match scheme {
        "https" if !encrypted => {
            return Err(ClientError::BadEndpoint(format!("`{text}` speaks TLS: give its CA by --cacert")));
        }
        "http" if encrypted => {
            return Err(ClientError::BadEndpoint(format!("`{text}` speaks plain text, but --cacert is given")));
        }
        "http" | "https" | "" => {}
        scheme => return Err(ClientError::BadEndpoint(format!("`{text}`: `{scheme}` is neither http nor https"))),
    }
    Address::parse(rest).map_err(ClientError::BadEndpoint)
}

/// Whether the connection was refused before the request was read: for reasons of trust, which in TLS 1.3
/// shows only behind the client's handshake, or because the server speaks TLS and we do not.
fn never_heard(status: &Status) -> bool {
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if kind == Some(std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        next = error.source();
    }
    is_tls_alert(&told(status))
}

/// What a TLS alert looks like to who expects HTTP/2.
fn is_tls_alert(text: &str) -> bool {
    text.contains("frame with invalid size")
}

/// What the server says, or else what happened to the connection.
fn told(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), dial::cause)
}

/// Why a request got no good answer.
fn message(status: &Status) -> String {
    let text = told(status);
    match is_tls_alert(&text) {
        true => "it does not speak plain text; if it speaks TLS, give its CA by --cacert".to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_nobody_confirms_may_be_logged() {
        let late = refusal(Kind::Change, "a:1", Status::unavailable("request timed out"));
        let text = late.to_string();
        assert!(
            text.contains("may or may not be carried out") && text.contains("(a:1: request timed out, Unavailable)")
        );
        assert!(!late.is_usage());
        let read = refusal(Kind::Read, "a:1", Status::unavailable("request timed out"));
        assert_eq!(read.to_string(), "a:1 refused: request timed out (Unavailable)");
    }

    #[test]
    fn what_the_server_calls_an_invalid_argument_must_be_written_differently() {
        let refused = |status| refusal(Kind::Change, "a:1", status).is_usage();
        assert!(refused(Status::invalid_argument("s9 is no shard of the map")));
        assert!(!refused(Status::failed_precondition("s9 holds too few keys to be split")));
        assert!(ClientError::BadEndpoint("`x` has no port".to_owned()).is_usage());
    }
}
