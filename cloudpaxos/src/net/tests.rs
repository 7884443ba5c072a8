//! Certificates that are right, wrong, late and missing, over real sockets.

use super::*;
use futures_util::StreamExt;
use http::Request;
use proto::dial::Dialer;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration as StdDuration;
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Layer, ServiceExt};

/// A CA and its certificate.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = parameters.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(parameters, key), pem }
    }

    /// Writes a certificate for 127.0.0.1 that is valid from `from` to `to` days from now.
    fn issue(&self, directory: &Path, name: &str, from: i64, to: i64) {
        let mut parameters = CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
        parameters.distinguished_name.push(DnType::CommonName, name);
        let now = OffsetDateTime::now_utc();
        (parameters.not_before, parameters.not_after) = (now + Duration::days(from), now + Duration::days(to));
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        for (file, text) in [("tls.crt", &certificate.pem()), ("tls.key", &key.serialize_pem()), ("ca.crt", &self.pem)]
        {
            std::fs::write(directory.join(file), text).expect("a writable directory");
        }
    }

    fn directory(&self, name: &str) -> TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        self.issue(directory.path(), name, -1, 1);
        directory
    }
}

/// A port that tells everybody who they are, and ends the connection.
async fn port(credentials: Option<Arc<Credentials>>, connections_max: usize) -> (String, Arc<PortFigures>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("it is bound").to_string();
    let listener = Listener::new(listener, "test", credentials, connections_max).expect("a listener");
    let figures = listener.figures();
    tokio::spawn(async move {
        let mut connections = Box::pin(listener.connections(std::future::pending()));
        while let Some(connection) = connections.next().await {
            let mut connection = connection.expect("only good ones come out");
            tokio::spawn(async move {
                let name = connection.connect_info().certificate;
                let name = name.as_deref().unwrap_or("nobody").to_owned();
                connection.write_all(name.as_bytes()).await.expect("the client reads");
                connection.shutdown().await.expect("the client reads");
                // Until the client has gone, too.
                drop(connection.read(&mut [0]).await);
            });
        }
    });
    (address, figures)
}

/// What the port says to who dials so; or why it says nothing.
async fn said(dialer: &TlsDialer, address: &str) -> Result<String, String> {
    let because = |error: &std::io::Error| explain(error).unwrap_or_else(|| error.to_string());
    let mut stream = dialer.dial(address).await.map_err(|error| because(&error))?;
    let mut text = String::new();
    // In TLS 1.3 a server refuses a certificate behind the client's handshake.
    stream.read_to_string(&mut text).await.map_err(|error| because(&error))?;
    Ok(text)
}

fn open(directory: &TempDir, policy: ClientCertificates) -> Arc<Credentials> {
    Credentials::open(directory.path(), policy).expect("good credentials")
}

#[tokio::test]
async fn nodes_know_each_other_and_nobody_else() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (server, client, stranger) = (ours.directory("n1"), ours.directory("n2"), theirs.directory("n3"));
    let (address, figures) = port(Some(open(&server, ClientCertificates::Required)), 8).await;
    let n2 = TlsDialer::new(open(&client, ClientCertificates::Required));
    assert_eq!(said(&n2, &address).await.as_deref(), Ok("n2"));

    let n3 = TlsDialer::new(open(&stranger, ClientCertificates::Required));
    let complaint = said(&n3, &address).await.expect_err("it trusts another CA");
    assert!(complaint.contains("not signed by the CA"), "{complaint}");

    // It trusts us, but we do not trust it.
    std::fs::write(stranger.path().join("ca.crt"), &ours.pem).expect("writable");
    let n3 = TlsDialer::new(open(&stranger, ClientCertificates::Required));
    let complaint = said(&n3, &address).await.expect_err("nobody knows its CA");
    assert!(complaint.contains("does not know the CA"), "{complaint}");

    let authority = server.path().join("ca.crt");
    let nameless = TlsDialer::fixed(client_config(&authority, None).expect("a CA"));
    let complaint = said(&nameless, &address).await.expect_err("a certificate is required");
    assert!(complaint.contains("asks for a client certificate"), "{complaint}");
    // A client hears of it before it is counted.
    let deadline = std::time::Instant::now() + StdDuration::from_secs(10);
    while (figures.accepted(), figures.refused()) != (4, 3) {
        assert!(std::time::Instant::now() < deadline, "{figures:?}");
        tokio::time::sleep(StdDuration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn expired_certificates_are_refused_on_either_side() {
    let ours = Authority::new("ours");
    let (server, client) = (ours.directory("n1"), ours.directory("n2"));
    let (address, _) = port(Some(open(&server, ClientCertificates::Required)), 8).await;
    ours.issue(client.path(), "n2", -3, -1);
    let complaint = Credentials::open(client.path(), ClientCertificates::Required).map(drop).expect_err("expired");
    assert!(complaint.to_string().contains("has expired"), "{complaint}");
    // A client that does not look at its own certificate before.
    let at = |file| client.path().join(file);
    let config = client_config(&at("ca.crt"), Some((&at("tls.crt"), &at("tls.key")))).expect("it parses");
    let complaint = said(&TlsDialer::fixed(config), &address).await.expect_err("expired");
    assert!(complaint.contains("client certificate that was given has expired"), "{complaint}");
}

#[tokio::test]
async fn who_speaks_plain_text_is_told() {
    let ours = Authority::new("ours");
    let (address, _) = port(None, 8).await;
    let client = ours.directory("n2");
    let n2 = TlsDialer::new(open(&client, ClientCertificates::Required));
    let complaint = said(&n2, &address).await.expect_err("no TLS there");
    assert!(complaint.contains("does not speak TLS"), "{complaint}");
}

#[tokio::test]
async fn who_says_nothing_keeps_nobody_out_and_the_number_of_connections_is_bounded() {
    let ours = Authority::new("ours");
    let (server, client) = (ours.directory("n1"), ours.directory("n2"));
    let (address, figures) = port(Some(open(&server, ClientCertificates::Accepted)), 3).await;
    let n2 = TlsDialer::new(open(&client, ClientCertificates::Accepted));
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(tokio::net::TcpStream::connect(&address).await.expect("it listens"));
    }
    assert_eq!(said(&n2, &address).await.as_deref(), Ok("n2"));
    silent.push(tokio::net::TcpStream::connect(&address).await.expect("it listens"));
    let waited = tokio::time::timeout(StdDuration::from_millis(300), said(&n2, &address)).await;
    assert!(waited.is_err(), "three silent ones fill the port: {waited:?}");
    assert_eq!(figures.open(), 3);
    silent.pop();
    assert_eq!(said(&n2, &address).await.as_deref(), Ok("n2"));
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_behind_the_handshake_loses_the_connection() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let listener = Listener::new(listener, "test", None, 8).expect("a listener");
    let address = listener.address();
    let mut connections = Box::pin(listener.connections(std::future::pending()));
    let _silent = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let mut served = connections.next().await.expect("one came").expect("it is good");
    let error = served.read(&mut [0]).await.expect_err("it said nothing");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);

    let mut slow = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let mut served = connections.next().await.expect("one came").expect("it is good");
    slow.write_all(b"x").await.expect("it takes it");
    served.read_exact(&mut [0]).await.expect("it said something");
    let waited = tokio::time::timeout(StdDuration::from_secs(60), served.read(&mut [0])).await;
    assert!(waited.is_err(), "from then on the protocol has the say");
}

#[tokio::test]
async fn new_files_are_taken_together_or_not_at_all() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let (server, client) = (old.directory("n1"), old.directory("n2"));
    let (at, mine) = (open(&server, ClientCertificates::Required), open(&client, ClientCertificates::Required));
    let (address, _) = port(Some(at.clone()), 8).await;
    let n2 = TlsDialer::new(mine.clone());
    assert_eq!(said(&n2, &address).await.as_deref(), Ok("n2"));

    // A certificate without its key: the old ones stay.
    let before = at.server();
    let key = std::fs::read(server.path().join("tls.key")).expect("readable");
    new.issue(server.path(), "n1", -1, 2);
    let new_key = std::fs::read(server.path().join("tls.key")).expect("readable");
    std::fs::write(server.path().join("tls.key"), &key).expect("writable");
    let looks = at.looks();
    let deadline = std::time::Instant::now() + StdDuration::from_secs(10);
    // One may have begun before the files changed.
    while at.looks() < looks + 2 {
        assert!(std::time::Instant::now() < deadline, "nobody looks");
        tokio::time::sleep(StdDuration::from_millis(50)).await;
    }
    assert!(Arc::ptr_eq(&before, &at.server()), "half a change was taken");
    assert_eq!(said(&n2, &address).await.as_deref(), Ok("n2"));

    std::fs::write(server.path().join("tls.key"), new_key).expect("writable");
    new.issue(client.path(), "n2 of the new CA", -1, 2);
    let expired = mine.expires();
    let deadline = std::time::Instant::now() + StdDuration::from_secs(10);
    while Arc::ptr_eq(&before, &at.server()) || mine.expires() == expired {
        assert!(std::time::Instant::now() < deadline, "the change is not seen");
        tokio::time::sleep(StdDuration::from_millis(50)).await;
    }
    assert_eq!(said(&n2, &address).await.as_deref(), Ok("n2 of the new CA"));
}

#[test]
fn what_is_wrong_with_a_directory_is_said() {
    let ours = Authority::new("ours");
    let directory = ours.directory("n1");
    let complaint = |file: &str, text: Option<&str>| {
        let path = directory.path().join(file);
        let before = std::fs::read(&path).expect("it is there");
        match text {
            Some(text) => std::fs::write(&path, text).expect("writable"),
            None => std::fs::remove_file(&path).expect("writable"),
        }
        let opened = Credentials::open(directory.path(), ClientCertificates::Required);
        std::fs::write(&path, before).expect("writable");
        opened.map(drop).expect_err("it is broken").to_string()
    };
    let other = ours.directory("n2");
    let others_key = std::fs::read_to_string(other.path().join("tls.key")).expect("readable");
    for (file, text, expected) in [
        ("tls.crt", None, "cannot read"),
        ("tls.crt", Some("nonsense"), "holds no certificate"),
        ("tls.key", Some("nonsense"), "holds no private key"),
        ("tls.key", Some(others_key.as_str()), "is not the key of"),
        ("ca.crt", None, "cannot read"),
        ("ca.crt", Some(""), "holds no certificate"),
    ] {
        let complaint = complaint(file, text);
        assert!(
            complaint.contains(expected) && complaint.contains(file.split('.').next().unwrap_or(file)),
            "{complaint}"
        );
    }
}

#[test]
fn tokens_are_one_a_line_and_long() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokens");
    let read = |text: &str| {
        std::fs::write(&path, text).expect("writable");
        Tokens::open(&path).map_err(|error| error.to_string())
    };
    let tokens = read("# of the build farm\n0123456789abcdef\n\n  fedcba9876543210  \n").expect("two good tokens");
    assert!(tokens.admit("0123456789abcdef") && tokens.admit("fedcba9876543210"));
    for wrong in ["", "0123456789abcde", "0123456789abcdef0", "# of the build farm"] {
        assert!(!tokens.admit(wrong), "{wrong}");
    }
    assert!(read("0123456789abcdef\nshort\n").map(drop).expect_err("short").contains(":2:"));
    assert!(read("# none\n").map(drop).expect_err("none").contains("holds no token"));
}

/// What a port with this access answers.
async fn answered(access: &AccessLayer, request: Request<Body>) -> (u16, Option<String>) {
    let let_in = tower::service_fn(|_: Request<Body>| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
    });
    let answer = access.layer(let_in).oneshot(request).await.expect("infallible");
    let status = answer.headers().get("grpc-status").map(|value| value.to_str().expect("a number").to_owned());
    (answer.status().as_u16(), status)
}

#[tokio::test]
async fn requests_need_a_certificate_or_a_token_and_health_needs_neither() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tokens");
    std::fs::write(&path, "0123456789abcdef\n").expect("writable");
    let access = AccessLayer::required(Some(Tokens::open(&path).expect("a token")));
    let request = |path: &str| Request::builder().uri(path).header("content-type", "application/grpc");
    let range = || request("/etcdserverpb.KV/Range");
    let with = |name: &str, value: &str| range().header(name, value).body(Body::empty()).expect("a request");
    let refused = (200, Some("16".to_owned()));

    assert_eq!(answered(&access, range().body(Body::empty()).expect("a request")).await, refused);
    assert_eq!(answered(&access, with("authorization", "Bearer 0123456789abcdeX")).await, refused);
    assert_eq!(answered(&access, with("authorization", "Basic 0123456789abcdef")).await, refused);
    assert_eq!(answered(&access, with("authorization", "Bearer 0123456789abcdef")).await, (200, None));
    assert_eq!(answered(&access, with("token", "0123456789abcdef")).await, (200, None));

    let from = |certificate: Option<&str>| {
        let address = "127.0.0.1:1".parse().expect("an address");
        let mut request = range().body(Body::empty()).expect("a request");
        request.extensions_mut().insert(PeerIdentity { address, certificate: certificate.map(Arc::from) });
        request
    };
    assert_eq!(answered(&access, from(Some("ada"))).await, (200, None));
    assert_eq!(answered(&access, from(None)).await, refused);
    for (path, expected) in [("/livez", 200), ("/readyz", 200), ("/metrics", 401), ("/livez/..", 401)] {
        let page = Request::builder().uri(path).body(Body::empty()).expect("a request");
        assert_eq!(answered(&access, page).await.0, expected, "{path}");
    }
    assert_eq!(access.refused(), 6);
}

#[tokio::test]
async fn who_is_in_the_middle_of_a_handshake_when_the_port_closes_is_still_served() {
    let ours = Authority::new("ours");
    let (server, client) = (ours.directory("n1"), ours.directory("n2"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let credentials = Some(open(&server, ClientCertificates::Accepted));
    let listener = Listener::new(listener, "test", credentials, 8).expect("a listener");
    let (address, figures) = (listener.address(), listener.figures());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut connections = Box::pin(listener.connections(async { drop(stopped.await) }));

    // One has begun before the end, one is still in the kernel's queue.
    let begun = tokio::net::TcpStream::connect(address).await.expect("it listens");
    while figures.open() == 0 {
        tokio::task::yield_now().await;
    }
    let queued = tokio::net::TcpStream::connect(address).await.expect("it listens");
    drop(stop);
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(StdDuration::from_millis(5)).await;
    }
    let config = open(&client, ClientCertificates::Accepted).client();
    for stream in [begun, queued] {
        let name = "127.0.0.1".try_into().expect("an address");
        let connecting = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream);
        let (connected, served) = tokio::join!(connecting, connections.next());
        connected.expect("the handshake goes on");
        let served = served.expect("it is served").expect("it is good");
        assert_eq!(served.connect_info().certificate.as_deref(), Some("n2"));
    }
    // Those that only probed whether it still listens said nothing, and are given up after a while.
    let rest = tokio::time::timeout(StdDuration::from_secs(20), connections.next()).await;
    assert!(matches!(rest, Ok(None)), "the stream ends");
}
