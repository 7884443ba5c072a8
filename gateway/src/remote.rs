//! Links to nodes in other processes: one bidirectional stream of batches per node.
//!
//! What is queued when the stream can take more becomes one message. A link is made when it is
//! needed and backs off after a failure; meanwhile requests are refused at once with "not the
//! leader", which is exact: they were never sent. What was sent on a stream that breaks has an
//! unknown outcome, and the machine is told so.
//!
//! Requests to the own node do not travel: they are handed over as values.

use crate::driver::{Links, Replies};
use bytes::Bytes;
use futures_util::stream;
use paxos::NodeId;
use proto::dial::{self, Dialer};
use proto::internal::{RequestBatch, data_client::DataClient};
use shardkv::codec;
use shardkv::map::ShardMap;
use shardkv::request::{OpError, Reply, ReplyBody, Request};
use shardkv::types::Revision;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Takes requests to the own node; replies come back through the gateway's handle.
pub type LocalNode = Arc<dyn Fn(Vec<Request>) + Send + Sync>;

/// Limits and times of the links.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// Encoded requests queued per node; more are refused.
    pub queue_bytes_max: usize,
    /// Bytes of one message, more or less: it closes with the request that exceeds this.
    pub batch_bytes: usize,
    /// Requests of one message.
    pub batch_requests_max: usize,
    /// The largest message taken from a node.
    pub message_bytes_max: usize,
    /// A connection must be there after this long.
    pub connect_timeout: Duration,
    /// The pause after a failed connection; it doubles up to the one below.
    pub backoff_min: Duration,
    /// The longest pause after a failed connection.
    pub backoff_max: Duration,
    /// A connection without a sign of life for this long is pinged, and closed after as long again.
    pub keepalive: Duration,
    /// Flow control window of a stream, in bytes.
    pub stream_window_bytes: u32,
    /// Flow control window of a connection, in bytes.
    pub connection_window_bytes: u32,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        RemoteConfig {
            queue_bytes_max: 16 << 20,
            batch_bytes: 1 << 20,
            batch_requests_max: 1024,
            message_bytes_max: 512 << 20,
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            keepalive: Duration::from_secs(5),
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 32 << 20,
        }
    }
}

/// [`Links`] over the internal data stream.
pub struct Remote {
    config: RemoteConfig,
    dialer: Arc<dyn Dialer>,
    local: Option<(NodeId, LocalNode)>,
    replies: Replies,
    links: Mutex<BTreeMap<NodeId, (Arc<Link>, AbortHandle)>>,
    /// As configured: where a node is not at the address that the map tells, it is perhaps still here, or
    /// here again. A map that is out of date would otherwise cut the gateway off from its successor.
    seeds: BTreeMap<NodeId, String>,
    /// As the newest map tells, and which that is (incarnation, version).
    addresses: Mutex<((u64, u64), BTreeMap<NodeId, String>)>,
}

impl Remote {
    /// Links to the nodes at `addresses` (`host:port`), and where shard maps say that they are. Call it
    /// within a tokio runtime.
    pub fn new(
        config: RemoteConfig,
        dialer: Arc<dyn Dialer>,
        local: Option<(NodeId, LocalNode)>,
        addresses: BTreeMap<NodeId, String>,
        replies: Replies,
    ) -> Remote {
        Remote {
            config,
            dialer,
            local,
            replies,
            links: Mutex::default(),
            seeds: addresses,
            addresses: Mutex::default(),
        }
    }

    /// Where to look for a node, best first.
    fn addresses(&self, node: NodeId) -> Vec<String> {
        let mut known: Vec<String> = lock(&self.addresses).1.get(&node).cloned().into_iter().collect();
        known.extend(self.seeds.get(&node).filter(|seed| !known.contains(seed)).cloned());
        known
    }

    /// The link to a node; made on first use.
    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        let mut links = lock(&self.links);
        if let Some((link, _)) = links.get(&node) {
            return Some(link.clone());
        }
        let addresses = self.addresses(node);
        if addresses.is_empty() {
            return None;
        }
        let link = Arc::new(Link { node, addresses, queue: Mutex::default(), filled: Notify::new() });
        let task = tokio::spawn(run(link.clone(), self.config.clone(), self.dialer.clone(), self.replies.clone()));
        links.insert(node, (link.clone(), task.abort_handle()));
        Some(link)
    }
}

impl Links for Remote {
    fn send(&self, to: NodeId, requests: Vec<Request>) {
        if let Some((local, node)) = &self.local
            && *local == to
        {
            return node(requests);
        }
        let refused = match self.link(to) {
            Some(link) => link.push(requests, self.config.queue_bytes_max),
            None => requests.iter().map(|request| never_sent(request.id)).collect(),
        };
        if !refused.is_empty() {
            self.replies.deliver(to, refused);
        }
    }

    fn on_map(&self, map: &ShardMap) {
        let mut moved = Vec::new();
        {
            let (newest, addresses) = &mut *lock(&self.addresses);
            // Maps may come here out of their order.
            if map.nodes.is_empty() || (map.incarnation, map.version) < *newest {
                return;
            }
            *newest = (map.incarnation, map.version);
            let is_there = |id: &NodeId| map.nodes.iter().any(|node| node.id == *id);
            moved.extend(addresses.keys().filter(|node| !is_there(node)).copied());
            addresses.retain(|node, _| is_there(node));
            for node in map.nodes.iter().filter(|node| !node.peer_address.is_empty()) {
                let before = addresses.insert(node.id, node.peer_address.clone());
                let before = before.as_ref().or(self.seeds.get(&node.id));
                if before.is_some_and(|before| *before != node.peer_address) {
                    moved.push(node.id);
                }
            }
        }
        for node in moved {
            let link = lock(&self.links).remove(&node);
            if let Some((link, task)) = link {
                task.abort();
                link.fail(&self.replies);
            }
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        lock(&self.links).values().for_each(|(_, task)| task.abort());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Exact for a request that never left: nothing was or will be done.
fn never_sent(id: u64) -> Reply {
    Reply { id, known: Revision(0), map_version: 0, body: ReplyBody::NotLeader { hint: None } }
}

struct Link {
    node: NodeId,
    /// Tried in turn.
    addresses: Vec<String>,
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    /// Ids and encodings.
    requests: VecDeque<(u64, Bytes)>,
    bytes: usize,
    /// A connection failed lately: requests are refused until the pause is over.
    is_down: bool,
    /// Counts the connections. A broken one may linger in the transport for a moment and must not
    /// take what is meant for its successor.
    connection: u64,
}

impl Link {
    /// Queues requests; returns the replies to those that it refuses.
    fn push(&self, requests: Vec<Request>, bytes_max: usize) -> Vec<Reply> {
        let mut queue = lock(&self.queue);
        if queue.is_down {
            return requests.iter().map(|request| never_sent(request.id)).collect();
        }
        let mut refused = Vec::new();
        for request in requests {
            if queue.bytes >= bytes_max {
                let body = ReplyBody::Failed(OpError::Overloaded);
                refused.push(Reply { id: request.id, known: Revision(0), map_version: 0, body });
                continue;
            }
            let encoded = codec::encode(&request);
            queue.bytes += encoded.len();
            queue.requests.push_back((request.id, encoded));
        }
        drop(queue);
        self.filled.notify_one();
        refused
    }

    /// Takes what is queued, as one message; waits for the first. `None` once `connection` is over.
    async fn next_batch(&self, connection: u64, config: &RemoteConfig) -> Option<RequestBatch> {
        loop {
            {
                let mut queue = lock(&self.queue);
                if queue.connection != connection {
                    self.filled.notify_one(); // that was for the successor
                    return None;
                }
                let (mut requests, mut bytes) = (Vec::new(), 0);
                while bytes < config.batch_bytes
                    && requests.len() < config.batch_requests_max
                    && let Some((_, encoded)) = queue.requests.pop_front()
                {
                    bytes += encoded.len();
                    requests.push(encoded);
                }
                queue.bytes -= bytes;
                if !requests.is_empty() {
                    return Some(RequestBatch { requests });
                }
            }
            self.filled.notified().await;
        }
    }

    /// The stream is gone: refuses what is still queued, and reports the rest as unknown.
    fn fail(&self, replies: &Replies) {
        let unsent: Vec<Reply> = {
            let mut queue = lock(&self.queue);
            queue.is_down = true;
            queue.connection += 1;
            queue.bytes = 0;
            queue.requests.drain(..).map(|(id, _)| never_sent(id)).collect()
        };
        replies.deliver(self.node, unsent);
        replies.node_down(self.node);
    }
}

/// Keeps the link alive: connects when something is queued, and again after a failure.
async fn run(link: Arc<Link>, config: RemoteConfig, dialer: Arc<dyn Dialer>, replies: Replies) {
    let mut backoff = config.backoff_min;
    let mut addresses = link.addresses.iter().cycle();
    let Some(mut address) = addresses.next() else { return };
    loop {
        while lock(&link.queue).requests.is_empty() {
            link.filled.notified().await;
        }
        let error = match exchange(&link, address, &config, &dialer, &replies).await {
            Ok(()) => {
                backoff = config.backoff_min;
                "the node closed the stream".to_string()
            }
            Err(error) => error,
        };
        tracing::debug!(node = %link.node, address, error, "data stream ended");
        link.fail(&replies);
        tokio::time::sleep(backoff).await;
        if let Some(next) = addresses.next() {
            address = next;
        }
        backoff = (backoff * 2).min(config.backoff_max);
        lock(&link.queue).is_down = false;
    }
}

/// One connection, from its start to its end. `Ok` if it was established.
async fn exchange(
    link: &Arc<Link>,
    address: &str,
    config: &RemoteConfig,
    dialer: &Arc<dyn Dialer>,
    replies: &Replies,
) -> Result<(), String> {
    let endpoint = dial::endpoint(address)
        .map_err(|error| format!("the address {address} is malformed: {error}"))?
        .connect_timeout(config.connect_timeout)
        .http2_adaptive_window(false)
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .http2_keep_alive_interval(config.keepalive)
        .keep_alive_timeout(config.keepalive)
        .keep_alive_while_idle(true);
    let channel = dial::connect(&endpoint, dialer.clone()).await.map_err(|error| dial::cause(&error))?;
    let mut client = DataClient::new(channel)
        .max_decoding_message_size(config.message_bytes_max)
        .max_encoding_message_size(config.message_bytes_max);
    let connection = lock(&link.queue).connection;
    let batches = stream::unfold((link.clone(), config.clone()), move |(link, config)| async move {
        let batch = link.next_batch(connection, &config).await?;
        Some((batch, (link, config)))
    });
    let mut answers = client.exchange(batches).await.map_err(|status| status.to_string())?.into_inner();
    loop {
        match answers.message().await {
            Ok(Some(batch)) => {
                let decoded = batch.replies.iter().filter_map(|encoded| decode(link.node, encoded)).collect();
                replies.deliver(link.node, decoded);
            }
            Ok(None) => return Ok(()),
            Err(status) => {
                tracing::debug!(node = %link.node, %status, "data stream broke");
                return Ok(());
            }
        }
    }
}

/// A reply that cannot be read is dropped: its request then times out as of unknown outcome.
fn decode(node: NodeId, encoded: &[u8]) -> Option<Reply> {
    codec::decode(encoded).inspect_err(|error| tracing::warn!(%node, %error, "dropped a reply")).ok()
}
