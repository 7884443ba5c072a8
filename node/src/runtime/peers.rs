//! Streams to the other nodes, and who they are.
//!
//! Each node opens one stream to each other node and sends its messages there, batched. The opener
//! names itself in the metadata; both sides check the other's cluster, id and data directory.

use super::mailbox::Mailbox;
use super::open::{NodeConfig, PeerAddress};
use crate::core::Input;
use crate::wire::NodeMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use paxos::NodeId;
use proto::internal::PeerBatch;
use proto::internal::peer_client::PeerClient;
use serde::{Deserialize, Serialize};
use shardkv::codec;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

/// Bytes of one message of the stream.
const BATCH_BYTES: usize = 1 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const WINDOW_BYTES: u32 = 8 << 20;

const CLUSTER: &str = "cloudpaxos-cluster";
const NODE: &str = "cloudpaxos-node";
const INCARNATION: &str = "cloudpaxos-incarnation";

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The cluster's id.
    pub cluster: u64,
    /// The node.
    pub node: NodeId,
    /// The random number of its data directory.
    pub incarnation: u64,
}

impl Handshake {
    fn write(&self, metadata: &mut MetadataMap) {
        let mut put = |key: &'static str, value: u64| {
            let value: MetadataValue<Ascii> = value.into();
            metadata.insert(key, value);
        };
        put(CLUSTER, self.cluster);
        put(NODE, self.node.0);
        put(INCARNATION, self.incarnation);
    }

    /// What the opener of a stream wrote.
    pub fn read(metadata: &MetadataMap) -> Option<Handshake> {
        let number = |key| metadata.get(key)?.to_str().ok()?.parse().ok();
        Some(Handshake { cluster: number(CLUSTER)?, node: NodeId(number(NODE)?), incarnation: number(INCARNATION)? })
    }
}

#[derive(Default, Serialize, Deserialize)]
struct KnownFile {
    version: u32,
    incarnations: BTreeMap<u64, u64>,
}

/// The data directories under which the other nodes were met, remembered across restarts: a node
/// that comes back with another one has lost its promises and must not vote under its old name.
pub struct KnownPeers {
    path: PathBuf,
    ours: Handshake,
    names: BTreeMap<NodeId, PeerAddress>,
    known: Mutex<KnownFile>,
}

impl KnownPeers {
    /// Reads what is remembered in the data directory.
    pub fn open(config: &NodeConfig) -> std::io::Result<KnownPeers> {
        let path = config.data_dir.join("peers.json");
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                KnownFile { version: 1, ..KnownFile::default() }
            }
            Err(error) => return Err(error),
        };
        let ours = Handshake { cluster: config.cluster_id, node: config.core.me, incarnation: config.incarnation };
        Ok(KnownPeers { path, ours, names: config.peers.clone(), known: Mutex::new(known) })
    }

    /// This node.
    pub fn ours(&self) -> Handshake {
        self.ours
    }

    /// Checks who opens a stream, and remembers its data directory.
    pub fn admit(&self, theirs: Option<Handshake>) -> Result<NodeId, Status> {
        let Some(theirs) = theirs else {
            return Err(Status::unauthenticated(
                "the peer port is for nodes of this cluster; clients use the client port",
            ));
        };
        if theirs.cluster != self.ours.cluster {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {:016x}, the caller to {:016x}: check --initial-cluster and --cluster-token",
                self.ours.cluster, theirs.cluster
            )));
        }
        let Some(name) = self.names.get(&theirs.node) else {
            return Err(Status::failed_precondition(format!("{} is no node of this cluster", theirs.node)));
        };
        let mut known = lock(&self.known);
        match known.incarnations.get(&theirs.node.0) {
            Some(incarnation) if *incarnation == theirs.incarnation => Ok(theirs.node),
            Some(_) => Err(Status::failed_precondition(format!(
                "node {} is known here with another data directory, and its promises were in that one: start it with its \
                 old directory, or remove the node from the cluster and add it under a new name",
                name.name
            ))),
            None => {
                known.incarnations.insert(theirs.node.0, theirs.incarnation);
                save(&self.path, &known).map_err(|error| {
                    Status::unavailable(format!("cannot remember the peer in {}: {error}", self.path.display()))
                })?;
                Ok(theirs.node)
            }
        }
    }
}

/// Replaces the file durably.
fn save(path: &Path, known: &KnownFile) -> std::io::Result<()> {
    use std::io::Write;
    let next = path.with_extension("json.next");
    let mut file = std::fs::File::create(&next)?;
    file.write_all(&serde_json::to_vec_pretty(known)?)?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Bytes>,
    bytes: usize,
    /// Counts streams; what an old one has not taken yet belongs to the new one.
    stream: u64,
    connected: bool,
}

/// The stream to one other node.
pub(super) struct Peer {
    node: NodeId,
    address: PeerAddress,
    queue_bytes_max: usize,
    queue: Mutex<Queue>,
    filled: Notify,
}

impl Peer {
    pub(super) fn new(node: NodeId, address: PeerAddress, queue_bytes_max: usize) -> Arc<Peer> {
        Arc::new(Peer { node, address, queue_bytes_max, queue: Mutex::default(), filled: Notify::new() })
    }

    /// Queues messages; what does not fit, or has no stream, is dropped.
    pub(super) fn send(&self, messages: impl Iterator<Item = NodeMessage>) {
        let mut queue = lock(&self.queue);
        if !queue.connected {
            return;
        }
        for message in messages {
            let bytes = codec::encode(&message);
            if queue.bytes + bytes.len() > self.queue_bytes_max {
                tracing::debug!(node = %self.node, "the queue to a peer is full");
                break;
            }
            queue.bytes += bytes.len();
            queue.messages.push_back(bytes);
        }
        drop(queue);
        self.filled.notify_one();
    }

    async fn next_batch(&self, stream: u64) -> Option<PeerBatch> {
        loop {
            {
                let mut queue = lock(&self.queue);
                if queue.stream != stream {
                    self.filled.notify_one();
                    return None;
                }
                let (mut messages, mut bytes) = (Vec::new(), 0);
                while bytes < BATCH_BYTES
                    && let Some(message) = queue.messages.pop_front()
                {
                    bytes += message.len();
                    messages.push(message);
                }
                queue.bytes -= bytes;
                if !messages.is_empty() {
                    return Some(PeerBatch { messages });
                }
            }
            self.filled.notified().await;
        }
    }

    fn begin(&self) -> u64 {
        let mut queue = lock(&self.queue);
        *queue = Queue { stream: queue.stream + 1, connected: true, ..Queue::default() };
        queue.stream
    }

    fn end(&self) {
        let mut queue = lock(&self.queue);
        *queue = Queue { stream: queue.stream + 1, ..Queue::default() };
    }
}

/// Keeps the stream to a peer up. Returns only with the reason why this node must stop.
pub(super) async fn run(peer: Arc<Peer>, known: Arc<KnownPeers>) -> String {
    let mut backoff = BACKOFF_MIN;
    loop {
        match connect(&peer, &known).await {
            Ok(()) => backoff = BACKOFF_MIN,
            Err(status) if status.code() == Code::FailedPrecondition => {
                return format!(
                    "{} ({}) refuses this node: {}",
                    peer.address.name,
                    peer.address.address,
                    status.message()
                );
            }
            Err(status) => tracing::debug!(node = %peer.node, %status, "no stream to a peer"),
        }
        peer.end();
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn connect(peer: &Arc<Peer>, known: &KnownPeers) -> Result<(), Status> {
    let unavailable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
    let endpoint = Endpoint::from_shared(format!("http://{}", peer.address.address)).map_err(unavailable)?;
    let channel = endpoint
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true)
        .connect()
        .await
        .map_err(unavailable)?;
    let stream = peer.begin();
    let source = peer.clone();
    let batches = futures_util::stream::unfold(source, move |source| async move {
        source.next_batch(stream).await.map(|batch| (batch, source))
    });
    let mut request = Request::new(batches);
    known.ours.write(request.metadata_mut());
    let mut client = PeerClient::new(channel).max_encoding_message_size(64 << 20).max_decoding_message_size(64 << 20);
    let response = client.exchange(request).await?;
    tracing::info!(node = %peer.node, address = peer.address.address, "connected to a peer");
    let mut nothing = response.into_inner();
    // The other side sends nothing on this stream; it ends when the connection does.
    while let Some(batch) = nothing.next().await {
        batch?;
    }
    Ok(())
}

/// Takes a batch from a peer in.
pub(super) fn receive(mailbox: &Mailbox, from: NodeId, batch: PeerBatch) -> Result<(), Status> {
    let mut inputs = Vec::with_capacity(batch.messages.len());
    for bytes in batch.messages {
        let message = codec::decode(&bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
        inputs.push(Input::Message { from, message });
    }
    // Beyond the bound messages are dropped; whoever sent them says it again.
    drop(mailbox.push_outside(inputs));
    Ok(())
}
