//! One write's trace, as a collector gets it: from the caller's span through the gateway, the leader and
//! the other replicas.

use bytes::Bytes;
use e2e::client::{channel, kv, wait_ready};
use e2e::cluster::{Cluster, Start};
use e2e::system::{Layout, System};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use proto::etcdserverpb as pb;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Spans travel in batches, every five seconds.
const LIMIT: Duration = Duration::from_secs(15);
/// A replica that is still being brought up to its leader's ballot gets entries without their traces: the first
/// rounds after a start may lack its spans.
const ROUNDS: [&str; 3] =
    ["4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f3577b34da6a3ce929d0e0e4737", "4bf92f3577b34da6a3ce929d0e0e4738"];
const CALLER: &str = "00f067aa0ba902b7";

/// Everything that was told, with the node that told it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut told = self.0.lock().expect("no test panics with the lock");
        for of_node in request.into_inner().resource_spans {
            let attributes = of_node.resource.map(|resource| resource.attributes).unwrap_or_default();
            let node = attributes.into_iter().find(|attribute| attribute.key == "service.instance.id");
            let node = match node.and_then(|attribute| attribute.value?.value) {
                Some(Value::StringValue(node)) => node,
                other => panic!("a node says who it is: {other:?}"),
            };
            let spans = of_node.scope_spans.into_iter().flat_map(|scope| scope.spans);
            told.extend(spans.map(|span| (node.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn names(&self) -> Vec<String> {
        let told = self.0.lock().expect("no test panics with the lock");
        told.iter().map(|(node, span)| format!("{node}:{} {}", span.name, hex(&span.trace_id))).collect()
    }
}

/// A write that nobody follows and one that is, from every node.
async fn put_from_each(cluster: &Cluster, trace: &str) {
    let put = || Request::new(pb::PutRequest { key: Bytes::from_static(b"traced"), ..Default::default() });
    for endpoint in cluster.endpoints() {
        let mut client = kv(channel(&endpoint));
        client.put(put()).await.expect("an answer");
        let mut followed = put();
        let traceparent = format!("00-{trace}-{CALLER}-01").parse().expect("a header's value");
        followed.metadata_mut().insert("traceparent", traceparent);
        client.put(followed).await.expect("an answer");
    }
}

/// The spans of a trace, once there are as many as three requests make, each logged by three nodes; spans of
/// one request travel in several batches. `None` if they do not become so many in time.
async fn all_spans(collector: &Collector, trace: &str) -> Option<Vec<(String, Span)>> {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let mut told = collector.0.lock().expect("no test panics with the lock").clone();
        told.retain(|(_, span)| hex(&span.trace_id) == trace);
        let count = |name: &str| told.iter().filter(|(_, span)| span.name == name).count();
        if count("log.sync") >= 9 && ["etcdserverpb.KV/Put", "queue", "stamp", "quorum", "apply"].map(count) == [3; 5] {
            return Some(told);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_write_is_one_trace_over_all_nodes() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let serving = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    let parent = tempfile::tempdir().expect("a directory");
    let start = |_: &e2e::system::Member| Start {
        wrapper: Vec::new(),
        options: vec![
            ("--otlp-endpoint", OsString::from(format!("http://{address}"))),
            // Only what a caller asks for.
            ("--trace-sample-ratio", OsString::from("0")),
        ],
    };
    let cluster =
        Cluster::start_as(System::Cloudpaxos, Layout::AllRoles, parent.path(), start).await.expect("a cluster");
    for endpoint in cluster.endpoints() {
        // Who has no stream from the leader yet hears of no trace.
        let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        wait_ready(port).await;
    }
    let mut whole = None;
    for trace in ROUNDS {
        put_from_each(&cluster, trace).await;
        whole = all_spans(&collector, trace).await;
        if whole.is_some() {
            break;
        }
    }
    let told = whole.unwrap_or_else(|| panic!("no trace is whole: {:?}", collector.names()));
    assert!(
        collector.0.lock().expect("no panic").iter().all(|(_, span)| ROUNDS.contains(&hex(&span.trace_id).as_str())),
        "nothing else is followed"
    );
    let roots: Vec<_> = told.iter().filter(|(_, span)| span.name == "etcdserverpb.KV/Put").collect();
    let gateways: BTreeSet<_> = roots.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!(gateways, BTreeSet::from(["n1", "n2", "n3"]));
    for (gateway, root) in &roots {
        assert_eq!(hex(&root.parent_span_id), CALLER, "the caller's span is the parent");
        let below: Vec<_> = told.iter().filter(|(_, span)| span.parent_span_id == root.span_id).collect();
        let on = |name: &str| {
            let named = below.iter().filter(|(_, span)| span.name == name);
            named.map(|(node, _)| node.as_str()).collect::<Vec<_>>()
        };
        for stage in ["queue", "stamp", "quorum", "apply"] {
            assert_eq!(on(stage).len(), 1, "{gateway}: {stage} of {below:#?}");
        }
        assert_eq!(BTreeSet::from_iter(on("log.sync")), BTreeSet::from(["n1", "n2", "n3"]), "{gateway}");
        for (node, span) in &below {
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{node}: {span:?}");
            // All on one machine, whose clocks are read one after the other.
            let slack = 5_000_000;
            assert!(span.start_time_unix_nano + slack >= root.start_time_unix_nano, "{node}: {span:?} of {root:?}");
        }
    }
}
