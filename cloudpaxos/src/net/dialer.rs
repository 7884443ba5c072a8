//! Connections to other processes, by TLS.

use super::credentials::{self, CredentialError, Credentials};
use proto::dial::{ByteStream, Dialer, Dialling};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A handshake takes two round trips.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What connections are opened with.
#[derive(Clone)]
enum Source {
    /// The newest credentials of a directory.
    Directory(Arc<Credentials>),
    /// The same for as long as the process lives.
    Fixed(Arc<ClientConfig>),
}

/// Opens connections to servers whose certificate the CA has signed for the name that was dialled.
#[derive(Clone)]
pub struct TlsDialer(Source);

impl TlsDialer {
    /// With the newest credentials of a directory.
    pub fn new(credentials: Arc<Credentials>) -> TlsDialer {
        TlsDialer(Source::Directory(credentials))
    }

    /// With a configuration that stays.
    pub fn fixed(config: Arc<ClientConfig>) -> TlsDialer {
        TlsDialer(Source::Fixed(config))
    }
}

impl Dialer for TlsDialer {
    fn dial(&self, address: &str) -> Dialling {
        let config = match &self.0 {
            Source::Directory(credentials) => credentials.client(),
            Source::Fixed(config) => config.clone(),
        };
        let address = address.to_owned();
        Box::pin(async move {
            let host = address.rsplit_once(':').map_or(&*address, |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: {error}")))?;
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let handshake = TlsConnector::from(config).connect(name, stream);
            let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"))?
                .map_err(explained)?;
            Ok(Box::new(Explaining(stream)) as Box<dyn ByteStream>)
        })
    }
}

/// An error in words, because those who pass it on keep its text only.
fn explained(error: io::Error) -> io::Error {
    match explain(&error) {
        Some(text) => io::Error::new(io::ErrorKind::PermissionDenied, text),
        // The library's words are about truncation attacks; what is cut here is told by gRPC's framing.
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was cut")
        }
        None => error,
    }
}

/// In TLS 1.3 a server refuses a client's certificate behind the client's handshake: what is read then is
/// an error.
struct Explaining(TlsStream<TcpStream>);

impl AsyncRead for Explaining {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf).map_err(explained)
    }
}

impl AsyncWrite for Explaining {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A client's configuration from single files: the CA, and perhaps a certificate with its key.
pub fn client_config(authority: &Path, own: Option<(&Path, &Path)>) -> Result<Arc<ClientConfig>, CredentialError> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|error| CredentialError::Unreadable { path: path.to_owned(), error });
    let malformed = |path: &Path, problem: String| CredentialError::Malformed { path: path.to_owned(), problem };
    let roots = credentials::roots(authority, &read(authority)?)?;
    let config = ClientConfig::builder_with_provider(credentials::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| malformed(authority, error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match own {
        Some((certificate, key)) => {
            let chain = credentials::certificates(certificate, &read(certificate)?)?;
            let der = PrivateKeyDer::from_pem_slice(&read(key)?)
                .map_err(|error| malformed(key, format!("holds no private key in PEM ({error})")))?;
            config.with_client_auth_cert(chain, der).map_err(|error| malformed(certificate, error.to_string()))?
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What a failed handshake, or the first read behind one, means to a person; `None` if it is not about
/// trust.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(reason) = inner.or_else(|| error.downcast_ref::<rustls::Error>()).and_then(reason) {
            return Some(reason);
        }
        // An I/O error shows what it wraps only by `get_ref`.
        let wrapped = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        next = wrapped.map(|wrapped| wrapped as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn reason(error: &rustls::Error) -> Option<String> {
    Some(match error {
        rustls::Error::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer => "its certificate is not signed by the CA that was given".to_owned(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name ({problem})")
            }
            CertificateError::Revoked => "its certificate was revoked".to_owned(),
            problem => format!("its certificate is not good ({problem})"),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => "it asks for a client certificate, and none was given".to_owned(),
            AlertDescription::UnknownCA => {
                "it does not know the CA of the client certificate that was given".to_owned()
            }
            AlertDescription::CertificateExpired => "the client certificate that was given has expired".to_owned(),
            AlertDescription::CertificateRevoked => "the client certificate that was given was revoked".to_owned(),
            AlertDescription::BadCertificate | AlertDescription::DecryptError => {
                "it does not accept the client certificate that was given".to_owned()
            }
            alert => format!("it ended the TLS handshake ({alert:?})"),
        },
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        _ => return None,
    })
}
