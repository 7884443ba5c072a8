//! Links to nodes in other processes, over real sockets.

mod support;

use futures_util::StreamExt;
use gateway::driver::{Handle, start};
use gateway::remote::{Remote, RemoteConfig};
use gateway::{AnswerBody, Call, CallError, GatewayConfig};
use proto::dial::PlainText;
use proto::internal::data_server::{Data, DataServer};
use proto::internal::{ReplyBatch, RequestBatch};
use shardkv::codec;
use shardkv::ops::{Op, OpResult, Put, Range};
use shardkv::types::Keys;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{FakeCluster, NODE};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

const BUDGET: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Node(Arc<Mutex<FakeCluster>>);

#[tonic::async_trait]
impl Data for Node {
    type ExchangeStream = futures_util::stream::BoxStream<'static, Result<ReplyBatch, Status>>;

    async fn exchange(
        &self,
        requests: Request<Streaming<RequestBatch>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let cluster = self.0.clone();
        let answer = move |batch: Result<RequestBatch, Status>| {
            let mut cluster = cluster.lock().expect("no test panics with the lock");
            let requests = batch?.requests;
            let replies = requests.iter().map(|encoded| {
                let request = codec::decode(encoded).expect("the gateway encodes well");
                codec::encode(&cluster.serve(request))
            });
            Ok(ReplyBatch { replies: replies.collect() })
        };
        Ok(Response::new(requests.into_inner().map(answer).boxed()))
    }
}

/// A node's process: a runtime of its own, so that its connections die with it.
struct Process {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Process {
    async fn start(node: Node, address: SocketAddr) -> Process {
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let socket = TcpSocket::new_v4().expect("a socket");
                socket.set_reuseaddr(true).expect("a socket option");
                socket.bind(address).expect("a free loopback port");
                let listener = socket.listen(16).expect("a bound socket");
                ready.send(listener.local_addr().expect("a bound listener has one")).expect("somebody waits");
                let incoming = TcpIncoming::from(listener);
                let serving = Server::builder().add_service(DataServer::new(node)).serve_with_incoming(incoming);
                tokio::select! {
                    ended = serving => ended.expect("it serves"),
                    _ = stopped => {}
                }
            });
        });
        Process { address: is_ready.await.expect("it starts"), stop, thread }
    }

    fn kill(self) {
        drop(self.stop);
        self.thread.join().expect("the node ends");
    }
}

fn gateway(address: SocketAddr) -> Handle {
    let config = GatewayConfig { seed: [3, 4], nodes: vec![NODE], ..GatewayConfig::default() };
    let addresses = BTreeMap::from([(NODE, address.to_string())]);
    start(config, |replies| Remote::new(RemoteConfig::default(), PlainText::shared(), None, addresses, replies))
}

fn put(key: &str) -> Call {
    let key = key.as_bytes().to_vec().into();
    let put =
        Put { key, value: vec![7; 300].into(), lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false };
    Call::Op { op: Op::Put(put), serializable: false }
}

async fn count(handle: &Handle) -> u64 {
    let range = Range { count_only: true, ..Range::all(Keys::From(Default::default())) };
    let answer = handle.call(Call::Op { op: Op::Range(range), serializable: false }, BUDGET).await;
    match answer.expect("the node is up").body {
        AnswerBody::Op(OpResult::Range(result)) => result.count,
        other => panic!("a range answers {other:?}"),
    }
}

#[tokio::test]
async fn many_calls_at_once_travel_and_come_back() {
    let node = Node(Arc::new(Mutex::new(FakeCluster::new(&[("", 2), ("m", 3)]))));
    let process = Process::start(node, ([127, 0, 0, 1], 0).into()).await;
    let handle = gateway(process.address);
    let calls = (0..500).map(|i| {
        let handle = handle.clone();
        async move { handle.call(put(&format!("{}{i}", if i % 2 == 0 { "a" } else { "z" })), BUDGET).await }
    });
    for answer in futures_util::future::join_all(calls).await {
        assert!(answer.is_ok(), "{answer:?}");
    }
    assert_eq!(count(&handle).await, 500);
    assert_eq!(handle.status().calls, 0);
    process.kill();
}

#[tokio::test]
async fn a_node_that_is_gone_costs_no_call_its_deadline_and_one_that_returns_is_found() {
    let node = Node(Arc::new(Mutex::new(FakeCluster::new(&[("", 2)]))));
    let process = Process::start(node.clone(), ([127, 0, 0, 1], 0).into()).await;
    let address = process.address;
    let handle = gateway(address);
    handle.call(put("a"), BUDGET).await.expect("the node is up");

    process.kill();
    let answer = handle.call(put("b"), Duration::from_millis(300)).await;
    assert!(matches!(answer, Err(CallError::Unavailable { .. })), "{answer:?}");

    // A call that is under way when the node returns is carried out.
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.call(put("c"), BUDGET).await }
    });
    let process = Process::start(node, address).await;
    waiting.await.expect("it does not panic").expect("the node is back");
    let found = count(&handle).await;
    assert!((2..=3).contains(&found), "a, c and perhaps b: {found}");
    process.kill();
}

#[tokio::test]
async fn a_dropped_call_is_canceled() {
    // Nobody listens there.
    let unbound = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port");
    let handle = gateway(unbound);
    let call = handle.call(put("a"), BUDGET);
    assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
    assert_eq!(handle.status().calls, 0);
}
