//! A client of the etcd v3 and admin APIs that goes on to the next endpoint where that is safe.
//!
//! A read may be asked again anywhere. A write may be sent again only if it never left: when no
//! connection came about. After that its outcome is unknown, and saying so is the honest answer.

use crate::config::Address;
use proto::admin::admin_client::AdminClient;
use proto::etcdserverpb::kv_client::KvClient;
use std::error::Error;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// One endpoint that does not answer must leave time for the others.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(2);
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
    #[error("{endpoint} refused: {} ({:?})", status.message(), status.code())]
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
    /// Time is up.
    #[error("no answer within {} ({why}); give more time with --timeout", humantime::format_duration(*timeout))]
    TimedOut {
        /// How long.
        timeout: Duration,
        /// The last trouble.
        why: String,
    },
}

/// Whether a request may be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Changes nothing.
    Read,
    /// Changes something, once.
    Write,
}

/// Endpoints, and how long to try them.
#[derive(Debug)]
pub struct Client {
    endpoints: Vec<(String, Endpoint)>,
    timeout: Duration,
}

impl Client {
    /// Checks the endpoints; connects to none yet.
    pub fn new(endpoints: &[String], timeout: Duration) -> Result<Client, ClientError> {
        let endpoints = endpoints
            .iter()
            .map(|text| {
                // etcd's clients take URLs, so people will write them.
                let address = Address::parse(text.trim().trim_start_matches("http://").trim_end_matches('/'));
                let address = address.map_err(ClientError::BadEndpoint)?.to_string();
                let endpoint = Endpoint::from_shared(format!("http://{address}"));
                let endpoint = endpoint.map_err(|error| ClientError::BadEndpoint(format!("`{text}`: {error}")))?;
                Ok((address, endpoint.connect_timeout(CONNECT_TIMEOUT_MAX.min(timeout)).tcp_nodelay(true)))
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        Ok(Client { endpoints, timeout })
    }

    /// Asks the key-value service.
    pub async fn kv<T>(
        &self,
        kind: Kind,
        call: impl AsyncFn(&mut KvClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        self.ask(kind, async |channel| {
            let mut client = KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            call(&mut client).await
        })
        .await
    }

    /// Asks the admin service.
    pub async fn admin<T>(
        &self,
        call: impl AsyncFn(&mut AdminClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        self.ask(Kind::Read, async |channel| {
            let mut client = AdminClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            call(&mut client).await
        })
        .await
    }

    async fn ask<T>(
        &self,
        kind: Kind,
        call: impl AsyncFn(Channel) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let mut troubles: Vec<String> = Vec::new();
        let mut refused = None;
        for (address, endpoint) in &self.endpoints {
            let timed_out = |why| ClientError::TimedOut { timeout: self.timeout, why };
            let channel = match timeout_at(deadline, endpoint.connect()).await {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => {
                    troubles.push(format!("{address}: {}", root_cause(&error)));
                    continue;
                }
                Err(_) => return Err(timed_out(format!("connecting to {address}"))),
            };
            let status = match timeout_at(deadline, call(channel)).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) if kind == Kind::Write => {
                    let why = format!("no answer within {}", humantime::format_duration(self.timeout));
                    return Err(ClientError::UnknownOutcome { endpoint: address.clone(), why });
                }
                Err(_) => return Err(timed_out(format!("waiting for {address}"))),
            };
            match (kind, status.code()) {
                (Kind::Read, Code::Unavailable) => {
                    troubles.push(format!("{address}: {}", status.message()));
                    refused = Some(ClientError::Refused { endpoint: address.clone(), status: Box::new(status) });
                }
                (Kind::Write, Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown) => {
                    let why = format!("{}, {:?}", status.message(), status.code());
                    return Err(ClientError::UnknownOutcome { endpoint: address.clone(), why });
                }
                _ => return Err(ClientError::Refused { endpoint: address.clone(), status: Box::new(status) }),
            }
        }
        Err(refused.unwrap_or_else(|| ClientError::Unreachable(troubles.join("; "))))
    }
}

/// tonic says "transport error"; what people need is at the bottom.
fn root_cause(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
