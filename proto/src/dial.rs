//! How a connection to another process comes about.
//!
//! Who calls knows whom and with which windows; whether the bytes are encrypted, and who is trusted, is
//! the host's decision. So whoever opens channels is handed a [`Dialer`].

use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// Bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A connection that comes about.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// Opens connections.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `host:port`. An error says who was not trusted, and why.
    fn dial(&self, address: &str) -> Dialling;
}

/// Connections that anybody between can read and change.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainText;

impl PlainText {
    /// As a dialer that can be shared.
    pub fn shared() -> Arc<dyn Dialer> {
        Arc::new(PlainText)
    }
}

impl Dialer for PlainText {
    fn dial(&self, address: &str) -> Dialling {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }
}

/// The endpoint of an address, to be given its windows and times, and then to be connected.
pub fn endpoint(address: &str) -> Result<Endpoint, Error> {
    // The scheme says nothing here: the dialer knows.
    Endpoint::from_shared(format!("http://{address}"))
}

/// What a channel connects by.
fn connector(
    dialer: Arc<dyn Dialer>,
) -> impl tower::Service<Uri, Response = TokioIo<Box<dyn ByteStream>>, Error = io::Error, Future: Send> + Clone + Send {
    tower::service_fn(move |uri: Uri| {
        let dialling = match uri.authority() {
            Some(authority) => Ok(dialer.dial(authority.as_str())),
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} names no host"))),
        };
        async move { Ok(TokioIo::new(dialling?.await?)) }
    })
}

/// Connects now.
pub async fn connect(endpoint: &Endpoint, dialer: Arc<dyn Dialer>) -> Result<Channel, Error> {
    endpoint.connect_with_connector(connector(dialer)).await
}

/// Connects when the channel is used, and again when it has broken.
pub fn connect_lazy(endpoint: &Endpoint, dialer: Arc<dyn Dialer>) -> Channel {
    endpoint.connect_with_connector_lazy(connector(dialer))
}

/// What is at the bottom of an error: the upper layers say little more than "transport error".
pub fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
