//! Connections that come in at a port.
//!
//! Handshakes run beside one another and for a bounded time: whoever opens a connection and says nothing
//! keeps nobody out. The number of connections is bounded; one more waits in the kernel's queue.

use super::credentials::Credentials;
use super::dialer::explain;
use futures_util::{FutureExt, Stream};
use rustls::pki_types::CertificateDer;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// A handshake takes two round trips; whoever needs longer is not one of ours.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients speak first, at once: HTTP/2 has its preface, HTTP/1.1 its request.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and how much, a client that was refused may go on talking.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
const FAREWELL_READS_MAX: usize = 16;
/// Connections whose handshake is done and that wait to be served.
const READY_MAX: usize = 64;
/// After an accept that failed, which is for want of file descriptors: some must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// From where.
    pub address: SocketAddr,
    /// The common name of a certificate that our CA has signed.
    pub certificate: Option<Arc<str>>,
}

/// Counts of a port, since the start but for `open`.
#[derive(Debug, Default)]
pub struct PortFigures {
    accepted: AtomicU64,
    refused: AtomicU64,
    open: AtomicU64,
}

impl PortFigures {
    /// Connections that came about.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Handshakes that failed.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

/// A port.
pub struct Listener {
    listener: TcpListener,
    name: &'static str,
    tls: Option<Arc<Credentials>>,
    slots: Arc<Semaphore>,
    figures: Arc<PortFigures>,
}

impl Listener {
    /// A port called `name` in logs, with TLS if there are credentials, and for at most `connections_max`
    /// connections at a time.
    pub fn new(
        listener: std::net::TcpListener,
        name: &'static str,
        tls: Option<Arc<Credentials>>,
        connections_max: usize,
    ) -> io::Result<Listener> {
        let listener = TcpListener::from_std(listener)?;
        let slots = Arc::new(Semaphore::new(connections_max));
        Ok(Listener { listener, name, tls, slots, figures: Arc::default() })
    }

    /// Where it listens; unspecified if the system does not tell.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// What the port counts.
    pub fn figures(&self) -> Arc<PortFigures> {
        self.figures.clone()
    }

    /// The connections, as they become ready, until `stop` is done. What had connected by then still comes;
    /// behind the last one the stream ends.
    pub fn connections(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
        let (ready, connections) = mpsc::channel(READY_MAX);
        tokio::spawn(async move {
            tokio::select! {
                () = self.accept(&ready) => {}
                () = ready.closed() => {}
                // Closing the socket resets what waits in the kernel's queue: take that first.
                () = stop => while let Some(Ok((stream, address))) = self.listener.accept().now_or_never() {
                    match self.slots.clone().try_acquire_owned() {
                        Ok(slot) => self.take(stream, address, slot, &ready).await,
                        Err(_) => break,
                    }
                },
            }
            // Handshakes under way hold the channel open until they have ended.
        });
        ReceiverStream::new(connections)
    }

    async fn accept(&self, ready: &mpsc::Sender<io::Result<Connection>>) {
        loop {
            let Ok(slot) = self.slots.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, address)) => self.take(stream, address, slot, ready).await,
                Err(error) => {
                    tracing::warn!(port = self.name, %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Hands a connection on, after its handshake if there is one.
    async fn take(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        slot: OwnedSemaphorePermit,
        ready: &mpsc::Sender<io::Result<Connection>>,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(port = self.name, %address, %error, "the connection is gone already");
            return;
        }
        let open = Open::new(slot, self.figures.clone());
        let Some(tls) = self.tls.clone() else {
            let identity = PeerIdentity { address, certificate: None };
            let connection = Connection::new(Transport::Plain(stream), identity, open);
            // Where nobody takes it any more, the port is closed. Beside the accepting, because that may be
            // broken off, and the connection with it; there are never more of these than connections.
            if let Err(TrySendError::Full(connection)) = ready.try_send(Ok(connection)) {
                let ready = ready.clone();
                tokio::spawn(async move { drop(ready.send(connection).await) });
            }
            return;
        };
        let (ready, name) = (ready.clone(), self.name);
        tokio::spawn(async move {
            match handshake(stream, address, &tls, open).await {
                Ok(connection) => drop(ready.send(Ok(connection)).await),
                Err(error) => {
                    let error = explain(&error).unwrap_or_else(|| error.to_string());
                    tracing::info!(port = name, %address, "refused a connection: {error}");
                }
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    address: SocketAddr,
    credentials: &Credentials,
    open: Open,
) -> io::Result<Connection> {
    let accepting = TlsAcceptor::from(credentials.server()).accept(stream).into_fallible();
    let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await.map_err(|_| {
        open.figures.refused.fetch_add(1, Ordering::Relaxed);
        io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time")
    })?;
    let stream = match accepted {
        Ok(stream) => stream,
        Err((error, stream)) => {
            open.figures.refused.fetch_add(1, Ordering::Relaxed);
            farewell(stream).await;
            return Err(error);
        }
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first).map(common_name);
    let identity = PeerIdentity { address, certificate };
    Ok(Connection::new(Transport::Tls(Box::new(stream)), identity, open))
}

/// Lets a client that was refused read why: closing a socket with something unread in it resets the
/// connection, and the alert would be lost.
async fn farewell(mut stream: TcpStream) {
    let reading = async {
        stream.shutdown().await?;
        let mut unread = [0; 4096];
        for _ in 0..FAREWELL_READS_MAX {
            if stream.read(&mut unread).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    // Whether it wanted to know is its own affair.
    drop(tokio::time::timeout(FAREWELL_TIMEOUT, reading).await);
}

/// The name that a certificate was issued to; it was verified before.
fn common_name(certificate: &CertificateDer<'_>) -> Arc<str> {
    let parsed = x509_parser::parse_x509_certificate(certificate).ok();
    let name = parsed.and_then(|(_, parsed)| {
        let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
        Some(Arc::from(name))
    });
    name.unwrap_or_else(|| Arc::from("(no name)"))
}

/// Counts a connection for as long as it is open.
struct Open {
    _slot: OwnedSemaphorePermit,
    figures: Arc<PortFigures>,
}

impl Open {
    fn new(slot: OwnedSemaphorePermit, figures: Arc<PortFigures>) -> Open {
        figures.accepted.fetch_add(1, Ordering::Relaxed);
        figures.open.fetch_add(1, Ordering::Relaxed);
        Open { _slot: slot, figures }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.figures.open.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection, plain or by TLS.
pub struct Connection {
    stream: Transport,
    /// Until the first byte: whoever says nothing must not keep a slot.
    silence: Option<Pin<Box<Sleep>>>,
    identity: PeerIdentity,
    _open: Open,
}

impl Connection {
    fn new(stream: Transport, identity: PeerIdentity, open: Open) -> Connection {
        let silence = Some(Box::pin(tokio::time::sleep(SILENCE_TIMEOUT)));
        Connection { stream, silence, identity, _open: open }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.identity.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            self.silence = None;
        }
        if read.is_pending()
            && let Some(silence) = &mut self.silence
            && silence.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was said")));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
