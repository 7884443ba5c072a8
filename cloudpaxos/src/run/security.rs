//! Encryption and access as configured, read from their files.

use crate::config::{Address, Security};
use crate::failure::Failure;
use crate::net::{AccessLayer, ClientCertificates, Credentials, TlsDialer, Tokens};
use proto::dial::{Dialer, PlainText};
use std::sync::Arc;

/// What connections are made and judged with.
#[derive(Clone)]
pub(super) struct Secured {
    /// Of the client port and the metrics port.
    pub(super) client: Option<Arc<Credentials>>,
    /// Between nodes.
    pub(super) peer: Option<Arc<Credentials>>,
    /// Who may make requests at the client port and the metrics port.
    pub(super) access: AccessLayer,
}

impl Secured {
    /// Plain text for everybody: what never leaves the machine.
    pub(super) fn open() -> Secured {
        Secured { client: None, peer: None, access: AccessLayer::open() }
    }

    /// Reads what the configuration names. `listens` are the addresses of client and metrics ports.
    pub(super) fn read<'a>(
        security: &Security,
        listens: impl IntoIterator<Item = &'a Address>,
    ) -> Result<Secured, Failure> {
        let credentials = |path: &Option<std::path::PathBuf>, policy, option: &str| {
            let opened = path.as_ref().map(|path| Credentials::open(path, policy)).transpose();
            opened.map_err(|error| Failure::Run(format!("{option}: {error}")))
        };
        let client = credentials(&security.client_tls_dir, ClientCertificates::Accepted, "--client-tls-dir")?;
        let peer = credentials(&security.peer_tls_dir, ClientCertificates::Required, "--peer-tls-dir")?;
        let tokens = security.api_token_file.as_ref().map(|path| Tokens::open(path)).transpose();
        let tokens = tokens.map_err(|error| Failure::Run(format!("--api-token-file: {error}")))?;
        let trusts = client.as_ref().is_some_and(|client| client.has_authority());
        let access = match trusts || tokens.is_some() {
            true => AccessLayer::required(tokens),
            false => AccessLayer::open(),
        };
        let exposed = listens.into_iter().find(|address| !address.is_loopback());
        if let Some(address) = exposed
            && !access.asks()
            && !security.insecure_plaintext
        {
            return Err(Failure::Usage(format!(
                "everybody who reaches {address} could read and write: put a ca.crt for client certificates into \
                 --client-tls-dir, or give --api-token-file"
            )));
        }
        if exposed.is_some() && security.insecure_plaintext && client.is_none() {
            tracing::warn!("clients are served in plain text off loopback, as --insecure-plaintext allows");
        }
        Ok(Secured { client, peer, access })
    }

    /// How other nodes are reached.
    pub(super) fn dialer(&self) -> Arc<dyn Dialer> {
        match &self.peer {
            Some(credentials) => Arc::new(TlsDialer::new(credentials.clone())),
            None => PlainText::shared(),
        }
    }
}
