//! `cloudpaxos health`: asks a process whether it is alive or ready; for images that hold no other client.

use super::OutputOptions;
use super::output::{self, Format};
use crate::config::Address;
use crate::failure::Failure;
use crate::net::{TlsDialer, client_config, explain};
use axum::http::{Request, StatusCode, Uri, header};
use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proto::dial::{self, Dialer, PlainText};
use rustls::ClientConfig;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A page of reasons is short.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// What to ask, and how.
#[derive(Args, Clone, Debug)]
pub struct HealthOptions {
    /// The page: `/readyz` (requests are well sent there), `/livez` (it works), at the metrics port or the
    /// client port. None needs a token.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:2379/readyz")]
    url: String,
    /// The CA that has signed the server's certificate; needed for https.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_CACERT", hide_env_values = true)]
    cacert: Option<PathBuf>,
    /// Give up after this long.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = super::wait::duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputOptions,
}

/// Asks; fails where the answer is anything but yes.
pub(super) async fn run(options: HealthOptions) -> Result<(), Failure> {
    let asking = ask(&options);
    let (status, page) = match tokio::time::timeout(options.timeout, asking).await {
        Ok(answer) => answer?,
        Err(_) => {
            let limit = humantime::format_duration(options.timeout);
            return Err(Failure::Run(format!("{}: no answer within {limit}", options.url)));
        }
    };
    let reasons = page.trim();
    if status != StatusCode::OK {
        return Err(Failure::Run(format!("{}: {status}: {reasons}", options.url)));
    }
    match options.output.output {
        Format::Json => output::json(&json!({ "url": options.url, "status": status.as_u16(), "answer": reasons })),
        Format::Table => output::line(reasons),
    }
}

async fn ask(options: &HealthOptions) -> Result<(StatusCode, String), Failure> {
    let usage = |problem: String| Failure::Usage(format!("--url: {problem}"));
    let uri: Uri = options.url.parse().map_err(|error| usage(format!("`{}`: {error}", options.url)))?;
    let authority = uri.authority().ok_or_else(|| usage(format!("`{uri}` names no host")))?;
    let address = Address::parse(authority.as_str()).map_err(usage)?.to_string();
    let dialer: Arc<dyn Dialer> = match (uri.scheme_str(), &options.cacert) {
        (Some("https"), Some(authority)) => {
            let config = client_config(authority, None).map_err(|error| Failure::Usage(error.to_string()))?;
            let mut config = ClientConfig::clone(&config);
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(TlsDialer::fixed(Arc::new(config)))
        }
        (Some("https"), None) => return Err(usage("https needs --cacert".into())),
        (Some("http"), _) => PlainText::shared(),
        _ => return Err(usage(format!("`{uri}` is neither http nor https"))),
    };
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::Run(format!("{uri}: {}", explain(error).unwrap_or_else(|| dial::cause(error))))
    };
    let stream = dialer.dial(&address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    tokio::spawn(connection);
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| usage(error.to_string()))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let status = answer.status();
    let page = Limited::new(answer.into_body(), PAGE_BYTES_MAX).collect().await;
    let page = page.map_err(|error| Failure::Run(format!("{uri}: {error}")))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&page).into_owned()))
}
