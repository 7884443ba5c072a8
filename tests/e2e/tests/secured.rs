//! Three nodes that speak TLS with clients and with each other: who is let in at which port, who is not
//! and is told why, and certificates that change under load.

use bytes::Bytes;
use cloudpaxos::net::{TlsDialer, client_config};
use e2e::cluster::free_ports;
use e2e::process::Process;
use e2e::system::System;
use proto::dial::{self, Dialer};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::kv_client::KvClient;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(30);
const TOKEN: &str = "a-token-of-more-than-16-characters";
/// Reissued that often under load.
const ROTATIONS: usize = 3;

struct Secured {
    directory: tempfile::TempDir,
    nodes: Vec<Process>,
    /// How they were started.
    words: Vec<Vec<OsString>>,
    /// Of client, peer and metrics ports.
    ports: Vec<[u16; 3]>,
}

fn binary() -> PathBuf {
    System::Cloudpaxos.binary().expect("the binary is built")
}

/// Runs the binary to its end.
fn run(words: &[&str]) -> Output {
    Command::new(binary()).args(words).output().expect("it runs")
}

fn run_well(words: &[&str]) -> String {
    let output = run(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What it complains of.
fn run_badly(words: &[&str]) -> String {
    let output = run(words);
    assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("UTF-8")
}

impl Secured {
    async fn start() -> Secured {
        let directory = tempfile::tempdir().expect("a directory");
        let ports = free_ports(9).expect("nine free ports");
        let ports: Vec<[u16; 3]> = ports.chunks(3).map(|ports| [ports[0], ports[1], ports[2]]).collect();
        let mut secured = Secured { directory, nodes: Vec::new(), words: Vec::new(), ports };
        let certs = secured.path("certs");
        run_well(&["certs", "init", "--dir", &certs]);
        run_well(&["certs", "client", "ada", "--dir", &certs]);
        std::fs::write(secured.path("tokens"), format!("# one\n{TOKEN}\n")).expect("writable");
        secured.issue();
        let list: Vec<String> =
            secured.ports.iter().zip(1..).map(|([_, peer, _], n)| format!("n{n}=127.0.0.1:{peer}")).collect();
        for (index, [client, peer, metrics]) in secured.ports.clone().into_iter().enumerate() {
            let name = format!("n{}", index + 1);
            let certs = |part: &str| secured.path(&format!("certs/{name}/{part}"));
            let words = [
                ("--name", name.clone()),
                ("--data-dir", secured.path(&name)),
                ("--initial-cluster", list.join(",")),
                ("--listen-client", format!("127.0.0.1:{client}")),
                ("--listen-peer", format!("127.0.0.1:{peer}")),
                ("--listen-metrics", format!("127.0.0.1:{metrics}")),
                ("--client-tls-dir", certs("client")),
                ("--peer-tls-dir", certs("peer")),
                ("--api-token-file", secured.path("tokens")),
            ];
            let words = words.into_iter().flat_map(|(option, value)| [option.into(), value.into()]);
            let words: Vec<OsString> = ["start".into()].into_iter().chain(words).collect();
            secured.words.push(words);
            secured.nodes.push(secured.process(index));
        }
        for index in 0..3 {
            secured.await_ready(index).await;
        }
        secured
    }

    fn process(&self, index: usize) -> Process {
        let name = format!("n{}", index + 1);
        let log = self.directory.path().join(format!("{name}.log"));
        Process::start(&name, &binary(), &self.words[index], &log).expect("it starts")
    }

    async fn await_ready(&mut self, index: usize) {
        let deadline = Instant::now() + LIMIT;
        while !self.page(index, "/readyz", None).await.starts_with("HTTP/1.1 200") {
            self.nodes[index].check_alive().expect("it runs");
            assert!(Instant::now() < deadline, "n{} is not ready", index + 1);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn path(&self, below: &str) -> String {
        self.directory.path().join(below).to_str().expect("UTF-8").to_owned()
    }

    /// New certificates for all nodes.
    fn issue(&self) {
        for name in ["n1", "n2", "n3"] {
            run_well(&["certs", "node", name, "--dir", &self.path("certs")]);
        }
    }

    fn client_endpoint(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index][0])
    }

    fn authority(&self) -> String {
        self.path("certs/ca/clients.crt")
    }

    /// A page of a node's metrics port, with its head.
    async fn page(&self, index: usize, path: &str, token: Option<&str>) -> String {
        let config = client_config(Path::new(&self.authority()), None).expect("a CA");
        let mut config = rustls::ClientConfig::clone(&config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let dialer = TlsDialer::fixed(Arc::new(config));
        let Ok(mut stream) = dialer.dial(&format!("127.0.0.1:{}", self.ports[index][2])).await else {
            return String::new();
        };
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_let_in_and_who_is_told_why_not() {
    let secured = Secured::start().await;
    let (endpoint, authority) = (secured.client_endpoint(0), secured.authority());
    let ada = |file: &str| secured.path(&format!("certs/ada/{file}"));
    let (tokens, wrong) = (secured.path("tokens"), secured.path("wrong-token"));
    std::fs::write(&wrong, "another-token-of-some-length").expect("writable");
    let (ca, cert, key) = (ada("ca.crt"), ada("tls.crt"), ada("tls.key"));
    let by_certificate = ["--cacert", &ca, "--cert", &cert, "--key", &key, "--endpoints", &endpoint];
    run_well(&[&["kv", "put", "a", "1"][..], &by_certificate].concat());
    let by_token = ["--cacert", &authority, "--token-file", &tokens, "--endpoints", &endpoint];
    assert_eq!(run_well(&[&["kv", "get", "a"][..], &by_token].concat()).lines().last(), Some("1"));
    // The other nodes are asked for their reports: TLS between nodes works in both directions.
    let status = run_well(&[&["status", "-o", "json"][..], &by_token].concat());
    assert!(status.contains("\"alive\": true") && !status.contains("\"alive\": false"), "{status}");

    let get =
        |words: &[&str]| run_badly(&[&["kv", "get", "a", "--timeout", "3s", "--endpoints", &endpoint], words].concat());
    let told = get(&["--cacert", &authority]);
    assert!(told.contains("an API token is needed") && told.contains("client certificate"), "{told}");
    let told = get(&["--cacert", &authority, "--token-file", &wrong]);
    assert!(told.contains("token is not valid"), "{told}");
    let told = get(&["--cacert", &secured.path("certs/ca/nodes.crt"), "--token-file", &tokens]);
    assert!(told.contains("not signed by the CA"), "{told}");
    // A certificate of the other CA, which is good between nodes only.
    let node = |file: &str| secured.path(&format!("certs/n1/peer/{file}"));
    let told = get(&["--cacert", &authority, "--cert", &node("tls.crt"), "--key", &node("tls.key")]);
    assert!(told.contains("does not know the CA"), "{told}");
    let told = get(&[]);
    assert!(told.contains("if it speaks TLS, give its CA by --cacert"), "plain text: {told}");

    // The nodes' port is for nodes.
    let peer = format!("127.0.0.1:{}", secured.ports[0][1]);
    let at_peer =
        |words: &[&str]| run_badly(&[&["kv", "get", "a", "--timeout", "3s", "--endpoints", &peer], words].concat());
    let nodes = secured.path("certs/ca/nodes.crt");
    let told = at_peer(&["--cacert", &nodes, "--token-file", &tokens]);
    assert!(told.contains("asks for a client certificate"), "{told}");
    let told = at_peer(&["--cacert", &nodes, "--cert", &cert, "--key", &key]);
    assert!(told.contains("does not know the CA"), "{told}");

    assert!(secured.page(0, "/livez", None).await.starts_with("HTTP/1.1 200"));
    assert!(secured.page(0, "/metrics", None).await.starts_with("HTTP/1.1 401"));
    assert!(secured.page(0, "/metrics", Some("another-token-of-some-length")).await.starts_with("HTTP/1.1 401"));
    let metrics = secured.page(0, "/metrics", Some(TOKEN)).await;
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("cloudpaxos_group_leads"), "{metrics}");
    let refused = r#"cloudpaxos_handshakes_refused_total{node="n1",port="peer"} "#;
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused)).expect("it is counted");
    assert!(refused.parse::<f64>().is_ok_and(|count| count >= 2.0), "{refused}");
}

/// Writes without a pause: half of the connections live on, half are made anew for each request.
async fn write(endpoint: String, dialer: Arc<dyn Dialer>, fresh: bool, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    let connect = async || {
        let endpoint = dial::endpoint(&endpoint).expect("an address").connect_timeout(Duration::from_secs(5));
        KvClient::new(dial::connect(&endpoint, dialer.clone()).await.expect("a connection comes about"))
    };
    let mut client = connect().await;
    while !stop.load(Ordering::Relaxed) {
        if fresh {
            client = connect().await;
        }
        let key = Bytes::from_static(b"rotating");
        client.put(pb::PutRequest { key, ..Default::default() }).await.expect("no request fails");
        done.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_load_and_no_request_fails() {
    let mut secured = Secured::start().await;
    let file = |name: &str| PathBuf::from(secured.path(&format!("certs/ada/{name}")));
    let config = client_config(&file("ca.crt"), Some((&file("tls.crt"), &file("tls.key")))).expect("good files");
    let dialer: Arc<dyn Dialer> = Arc::new(TlsDialer::fixed(config));
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..6)
        .map(|number| {
            let endpoint = secured.client_endpoint(number % 3);
            tokio::spawn(write(endpoint, dialer.clone(), number % 2 == 0, stop.clone(), done.clone()))
        })
        .collect();
    let mut expiries = vec![expiry(&secured).await];
    for _ in 0..ROTATIONS {
        // A certificate's times have seconds: in the same one it would have the same.
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let issued = now();
        while now() == issued {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        secured.issue();
        let deadline = Instant::now() + LIMIT;
        while expiry(&secured).await == *expiries.last().expect("not empty") {
            assert!(Instant::now() < deadline, "the new certificate is not taken");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        expiries.push(expiry(&secured).await);
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 100 {
            assert!(Instant::now() < deadline, "writes do not go on");
            assert!(writers.iter().all(|writer| !writer.is_finished()), "a writer failed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("no request failed");
    }
    // Streams between nodes live on when certificates change: a node that comes back must make new ones.
    let before = streams(&secured).await;
    secured.nodes.remove(2).stop(LIMIT).expect("it stops");
    secured.nodes.push(secured.process(2));
    secured.await_ready(2).await;
    let deadline = Instant::now() + LIMIT;
    while streams(&secured).await <= before {
        assert!(Instant::now() < deadline, "n1 has no new stream to n3, whose certificate is new");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many streams to other nodes n1 has made.
async fn streams(secured: &Secured) -> f64 {
    let metrics = secured.page(0, "/metrics", Some(TOKEN)).await;
    let streams = metrics.lines().filter(|line| line.starts_with("cloudpaxos_peer_streams_total{"));
    streams.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// When n1's certificate expires, as its metrics tell.
async fn expiry(secured: &Secured) -> String {
    let metrics = secured.page(0, "/metrics", Some(TOKEN)).await;
    let name = r#"cloudpaxos_certificate_expiry_timestamp_seconds{node="n1",port="client"} "#;
    metrics.lines().find_map(|line| line.strip_prefix(name)).expect("it is told").to_owned()
}
