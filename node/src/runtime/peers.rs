//! Streams to the other nodes, and who they are.
//!
//! Each node opens one stream to each other node and sends its messages there, batched. The opener
//! names itself in the metadata; the other side checks its cluster, id and data directory, and says of
//! which kind a refusal is: a node whose directory was replaced must stop, and one that most of its
//! peers take for a stranger, too; but a single stranger at a peer's address stops nobody.

use super::mailbox::Mailbox;
use super::open::{NodeConfig, PeerAddress};
use crate::core::Input;
use crate::wire::NodeMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use paxos::{NodeId, Wire};
use proto::dial::{self, Dialer};
use proto::internal::PeerBatch;
use proto::internal::peer_client::PeerClient;
use serde::{Deserialize, Serialize};
use shardkv::codec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};

/// Bytes of one message of the stream.
const BATCH_BYTES: usize = 1 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const WINDOW_BYTES: u32 = 8 << 20;

const CLUSTER: &str = "cloudpaxos-cluster";
const NODE: &str = "cloudpaxos-node";
const INCARNATION: &str = "cloudpaxos-incarnation";
/// Says of which kind a refusal is.
const REFUSAL: &str = "cloudpaxos-refusal";
const REPLACED: &str = "replaced";
const STRANGER: &str = "stranger";

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
    /// Where the shard map said that nodes are: a node that holds no replica of the shardmaster finds the
    /// others by it, when those of the first days are long gone.
    #[serde(default)]
    nodes: BTreeMap<u64, PeerAddress>,
}

/// The data directories under which the other nodes were met, remembered across restarts: a node
/// that comes back with another one has lost its promises and must not vote under its old name.
pub struct KnownPeers {
    path: PathBuf,
    ours: Handshake,
    names: Mutex<BTreeMap<NodeId, PeerAddress>>,
    /// What this start was told of where nodes are; the shard map may still have the addresses of the last.
    described: BTreeMap<NodeId, PeerAddress>,
    known: Mutex<KnownFile>,
    /// Peers that took this node for a stranger when it last dialled them.
    refused_by: Mutex<BTreeSet<NodeId>>,
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
        let mut names = config.peers.clone();
        for (node, address) in &known.nodes {
            names.entry(NodeId(*node)).or_insert_with(|| address.clone());
        }
        let ours = Handshake { cluster: config.cluster_id, node: config.core.me, incarnation: config.incarnation };
        Ok(KnownPeers {
            path,
            ours,
            names: Mutex::new(names),
            described: config.peers.clone(),
            known: Mutex::new(known),
            refused_by: Mutex::default(),
        })
    }

    /// The other nodes, and where they are.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerAddress> {
        let mut names = lock(&self.names).clone();
        names.remove(&self.ours.node);
        names
    }

    /// The shard map says which nodes there are. What cannot be written down is known until the next start.
    pub fn meet(&self, nodes: &BTreeMap<NodeId, PeerAddress>) {
        let told =
            |(node, address): (&NodeId, &PeerAddress)| (*node, self.described.get(node).unwrap_or(address).clone());
        *lock(&self.names) = nodes.iter().map(told).collect();
        let mut known = lock(&self.known);
        let stored: BTreeMap<u64, PeerAddress> = nodes.iter().map(|(node, it)| (node.0, it.clone())).collect();
        if known.nodes == stored {
            return;
        }
        let next = KnownFile { nodes: stored, incarnations: known.incarnations.clone(), version: known.version };
        match save(&self.path, &next) {
            Ok(()) => *known = next,
            Err(error) => tracing::warn!(%error, "the nodes of the cluster cannot be noted in {}", self.path.display()),
        }
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
            return Err(self.refusal(
                STRANGER,
                format!(
                    "this node belongs to cluster {:016x}, the caller to {:016x}: check --initial-cluster, \
                 --cluster-token, --data-groups and --shard-boundaries",
                    self.ours.cluster, theirs.cluster
                ),
            ));
        }
        let Some(name) = lock(&self.names).get(&theirs.node).map(|known| known.name.clone()) else {
            // It may have joined a moment ago, or been removed: it may ask again, and need not stop.
            let text = format!("{} is no node of this cluster, as far as is known here", theirs.node);
            return Err(Status::unavailable(text));
        };
        let mut known = lock(&self.known);
        match known.incarnations.get(&theirs.node.0) {
            Some(incarnation) if *incarnation == theirs.incarnation => Ok(theirs.node),
            Some(_) => Err(self.refusal(REPLACED, format!(
                "node {} is known here with another data directory, and its promises were in that one: start it with its \
                 old directory, or remove the node from the cluster and add it under a new name",
                name
            ))),
            None => {
                let mut incarnations = known.incarnations.clone();
                incarnations.insert(theirs.node.0, theirs.incarnation);
                let next = KnownFile { version: known.version, incarnations, nodes: known.nodes.clone() };
                save(&self.path, &next).map_err(|error| {
                    Status::unavailable(format!("cannot remember the peer in {}: {error}", self.path.display()))
                })?;
                *known = next;
                Ok(theirs.node)
            }
        }
    }

    fn refusal(&self, kind: &'static str, text: String) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(REFUSAL, MetadataValue::from_static(kind));
        metadata.insert(CLUSTER, self.ours.cluster.into());
        Status::with_metadata(Code::FailedPrecondition, text, metadata)
    }

    /// A peer refuses this node. Whether it must stop.
    fn refused(&self, by: NodeId, status: &Status) -> bool {
        let said = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        let ours = said(CLUSTER).and_then(|id| id.parse().ok()) == Some(self.ours.cluster);
        match said(REFUSAL) {
            Some(REPLACED) if ours => true,
            Some(_) => {
                let mut refused_by = lock(&self.refused_by);
                refused_by.insert(by);
                2 * refused_by.len() > lock(&self.names).len().saturating_sub(1)
            }
            None => false,
        }
    }

    fn accepted(&self, by: NodeId) {
        lock(&self.refused_by).remove(&by);
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

/// Heartbeats that wait for a stream at most; a newer one says all that an older one does.
const HEARTBEATS_MAX: usize = 64;

#[derive(Default)]
struct Queue {
    /// They overtake everything else: a lease must not hang on how much is to be sent.
    heartbeats: VecDeque<Bytes>,
    messages: VecDeque<Bytes>,
    /// Of `messages`.
    bytes: usize,
    /// Counts streams; what an old one has not taken yet belongs to the new one.
    stream: u64,
    connected: bool,
    /// The other side has let us in.
    accepted: bool,
    /// Since the start: messages that did not fit, and streams that came about.
    dropped: u64,
    streams: u64,
}

/// The streams to the other nodes, with what ends each.
pub type Peers = Arc<Mutex<BTreeMap<NodeId, (Arc<Peer>, tokio::task::AbortHandle)>>>;

/// The stream to one other node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFigures {
    /// The node.
    pub node: NodeId,
    /// Whether the stream is up.
    pub connected: bool,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
    /// Messages that the queue had no room for, since the start.
    pub dropped: u64,
    /// Streams that came about, since the start.
    pub streams: u64,
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

    /// Whether it is dialled there.
    pub(super) fn is_at(&self, address: &PeerAddress) -> bool {
        self.address == *address
    }

    /// Queues messages; what does not fit, or has no stream, is dropped.
    pub(super) fn send(&self, messages: impl Iterator<Item = NodeMessage>) {
        let mut queue = lock(&self.queue);
        if !queue.connected {
            return;
        }
        let mut full = false;
        for message in messages {
            let bytes = codec::encode(&message);
            if matches!(message, NodeMessage::Paxos(Wire::Heartbeat(_))) {
                queue.heartbeats.push_back(bytes);
                if queue.heartbeats.len() > HEARTBEATS_MAX {
                    queue.heartbeats.pop_front();
                }
                continue;
            }
            // What follows a dropped message is dropped, too: the order stays.
            if full || queue.bytes + bytes.len() > self.queue_bytes_max {
                tracing::debug!(node = %self.node, "the queue to a peer is full");
                full = true;
                queue.dropped += 1;
                continue;
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
                let (mut messages, mut bytes) = (Vec::from(std::mem::take(&mut queue.heartbeats)), 0);
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
        let (streams, dropped) = (queue.streams, queue.dropped);
        *queue = Queue { stream: queue.stream + 1, connected: true, streams, dropped, ..Queue::default() };
        queue.stream
    }

    fn accepted(&self) {
        let mut queue = lock(&self.queue);
        queue.accepted = true;
        queue.streams += 1;
    }

    fn end(&self) {
        let mut queue = lock(&self.queue);
        let (streams, dropped) = (queue.streams, queue.dropped);
        *queue = Queue { stream: queue.stream + 1, streams, dropped, ..Queue::default() };
    }

    pub(super) fn figures(&self) -> PeerFigures {
        let queue = lock(&self.queue);
        PeerFigures {
            node: self.node,
            connected: queue.accepted,
            queued_bytes: queue.bytes,
            dropped: queue.dropped,
            streams: queue.streams,
        }
    }
}

/// Keeps the stream to a peer up. Returns only with the reason why this node must stop.
pub(super) async fn run(peer: Arc<Peer>, known: Arc<KnownPeers>, dialer: Arc<dyn Dialer>) -> String {
    let mut backoff = BACKOFF_MIN;
    // What was said last: a peer that is down is worth one line, not two a second.
    let mut said = String::new();
    loop {
        match connect(&peer, &known, &dialer).await {
            Ok(()) => {
                said.clear();
                tracing::info!(node = %peer.node, address = peer.address.address, "the stream to a peer has ended");
                backoff = BACKOFF_MIN;
            }
            Err(status) if known.refused(peer.node, &status) => {
                return format!(
                    "{} ({}) refuses this node: {}",
                    peer.address.name,
                    peer.address.address,
                    status.message()
                );
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                tracing::error!(
                    node = peer.address.name,
                    address = peer.address.address,
                    "whoever is there refuses this node: {}",
                    status.message()
                );
                backoff = BACKOFF_MAX * 10;
            }
            Err(status) => {
                let (name, address, why) = (&peer.address.name, &peer.address.address, status.message());
                match why == said {
                    true => tracing::debug!(node = name, address, "still no stream to a peer: {why}"),
                    false => tracing::warn!(node = name, address, "no stream to a peer, it is tried again: {why}"),
                }
                why.clone_into(&mut said);
            }
        }
        peer.end();
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
    }
}

async fn connect(peer: &Arc<Peer>, known: &KnownPeers, dialer: &Arc<dyn Dialer>) -> Result<(), Status> {
    let unavailable = |error: tonic::transport::Error| Status::unavailable(dial::cause(&error));
    let endpoint = dial::endpoint(&peer.address.address)
        .map_err(unavailable)?
        .connect_timeout(Duration::from_secs(1))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true);
    let channel = dial::connect(&endpoint, dialer.clone()).await.map_err(unavailable)?;
    let stream = peer.begin();
    let source = peer.clone();
    let batches = futures_util::stream::unfold(source, move |source| async move {
        source.next_batch(stream).await.map(|batch| (batch, source))
    });
    let mut request = Request::new(batches);
    known.ours.write(request.metadata_mut());
    let mut client = PeerClient::new(channel).max_encoding_message_size(64 << 20).max_decoding_message_size(64 << 20);
    let response = client.exchange(request).await?;
    known.accepted(peer.node);
    peer.accepted();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn known(me: u64, cluster: u64, directory: &Path) -> KnownPeers {
        let address = |id: u64| PeerAddress { name: format!("n{id}"), address: format!("127.0.0.1:{id}") };
        KnownPeers {
            path: directory.join("peers.json"),
            ours: Handshake { cluster, node: NodeId(me), incarnation: 10 * me },
            names: Mutex::new((1..=3).map(|id| (NodeId(id), address(id))).collect()),
            described: BTreeMap::new(),
            known: Mutex::default(),
            refused_by: Mutex::default(),
        }
    }

    #[test]
    fn one_stranger_stops_nobody_but_a_stranger_among_peers_stops() {
        let directory = tempfile::tempdir().expect("a directory");
        let (n1, n2) = (known(1, 7, directory.path()), known(2, 7, directory.path()));
        let stranger = known(3, 8, directory.path());
        let refusal = stranger.admit(Some(n1.ours())).expect_err("of another cluster");
        assert!(!n1.refused(NodeId(3), &refusal), "n2 may take n1 for what it is");
        assert!(!n1.refused(NodeId(3), &refusal), "said again");
        let refusal = |by: &KnownPeers| by.admit(Some(stranger.ours())).expect_err("of another cluster");
        assert!(!stranger.refused(NodeId(1), &refusal(&n1)));
        assert!(stranger.refused(NodeId(2), &refusal(&n2)), "all of them say so");
        n1.accepted(NodeId(3));
        assert!(!n1.refused(NodeId(2), &refusal(&n2)), "n3 has changed its mind");
    }

    #[test]
    fn a_node_with_another_directory_stops_at_the_first_refusal() {
        let directory = tempfile::tempdir().expect("a directory");
        let n1 = known(1, 7, directory.path());
        let mut n2 = known(2, 7, directory.path());
        assert_eq!(n1.admit(Some(n2.ours())).expect("welcome"), NodeId(2));
        n2.ours.incarnation += 1;
        let refusal = n1.admit(Some(n2.ours())).expect_err("its promises are gone");
        assert!(n2.refused(NodeId(1), &refusal), "{refusal}");
        // The same words from another cluster's node prove nothing.
        let foreign = known(1, 8, directory.path());
        let refusal = foreign.refusal(REPLACED, "no".into());
        assert!(!n2.refused(NodeId(3), &refusal));
    }

    #[test]
    fn a_peer_is_admitted_only_when_it_is_remembered() {
        let n1 = known(1, 7, Path::new("/nowhere/at/all"));
        let n2 = known(2, 7, Path::new("/nowhere"));
        for _ in 0..2 {
            let refusal = n1.admit(Some(n2.ours())).expect_err("it cannot be remembered");
            assert_eq!(refusal.code(), Code::Unavailable);
        }
    }

    #[tokio::test]
    async fn heartbeats_overtake_what_waits_and_fit_into_a_full_queue() {
        let beat = |sequence| {
            let statuses =
                paxos::heartbeat::Statuses { boot: 1, base: 0, version: 0, changed: Vec::new(), known: (0, 0) };
            NodeMessage::Paxos(Wire::Heartbeat(paxos::heartbeat::Heartbeat::Ping { sequence, statuses }))
        };
        let bulk = |version| NodeMessage::MapRequest { have_version: version };
        let address = PeerAddress { name: "n2".into(), address: "127.0.0.1:2".into() };
        let bytes = codec::encode(&bulk(1)).len();
        let peer = Peer::new(NodeId(2), address, 2 * bytes);
        let stream = peer.begin();
        peer.send([bulk(1), bulk(2), bulk(3), beat(1), bulk(4)].into_iter());
        let batch = peer.next_batch(stream).await.expect("a batch");
        let expected = [beat(1), bulk(1), bulk(2)].map(|message| codec::encode(&message));
        assert_eq!(batch.messages, expected);
        peer.send((0..1000).map(beat));
        assert_eq!(peer.next_batch(stream).await.expect("a batch").messages.len(), HEARTBEATS_MAX);
    }
}
