//! Streams to the other nodes: each node opens one to each other node and sends its messages there, batched. The
//! opener names itself in the metadata; [`super::known`] says who is let in.

use super::known::{KnownPeers, Verdict};
use super::lock;
use super::mailbox::Mailbox;
use super::open::PeerAddress;
use crate::core::Input;
use crate::wire::NodeMessage;
use bytes::Bytes;
use futures_util::StreamExt;
use paxos::{NodeId, Wire};
use proto::dial::{self, Dialer};
use proto::internal::PeerBatch;
use proto::internal::peer_client::PeerClient;
use shardkv::codec;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tonic::{Code, Request, Status};

/// Bytes of one message of the stream.
const BATCH_BYTES: usize = 1 << 20;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
const WINDOW_BYTES: u32 = 8 << 20;

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
                if bytes.len() > self.queue_bytes_max {
                    let (message, most) = (bytes.len(), self.queue_bytes_max);
                    tracing::error!(node = %self.node, message, most, "a message is larger than the queue to a peer, \
                         and never gets there: raise --peer-queue-bytes-max");
                }
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

/// Keeps the stream to a peer up. Returns only with the reason why this node must stop, or leave.
pub(super) async fn run(peer: Arc<Peer>, known: Arc<KnownPeers>, dialer: Arc<dyn Dialer>) -> (Verdict, String) {
    let mut backoff = BACKOFF_MIN;
    // What was said last: a peer that is down is worth one line, not two a second.
    let mut said = String::new();
    loop {
        let ended = connect(&peer, &known, &dialer).await;
        let verdict = ended.as_ref().err().map_or(Verdict::TryOn, |status| known.refused(peer.node, status));
        match ended {
            Ok(()) => {
                said.clear();
                tracing::info!(node = %peer.node, address = peer.address.address, "the stream to a peer has ended");
                backoff = BACKOFF_MIN;
            }
            Err(status) if verdict != Verdict::TryOn => {
                let (name, address, why) = (&peer.address.name, &peer.address.address, status.message());
                return (verdict, format!("{name} ({address}) refuses this node: {why}"));
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
    known.ours(peer.node).write(request.metadata_mut());
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
