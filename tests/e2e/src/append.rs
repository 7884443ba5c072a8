//! Clients that append to keys of their own, for tests in which nothing may go wrong.

use crate::client::{channel, kv};
use bytes::Bytes;
use proto::etcdserverpb as pb;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Appends to a key of its own and reads it back, without a pause, until it is told to stop: no request fails,
/// none is lost or done twice, and no read is stale. It goes round the endpoints, and reads at another one than it has
/// written at, so what one gateway has not heard of yet is asked there at once. How long one of these pairs took at most.
///
/// # Panics
/// If anything of that is not so: it runs in a test's own task. Also without an endpoint.
pub async fn append(endpoints: Vec<String>, number: u64, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Duration {
    let mut clients: Vec<_> = endpoints.iter().map(|endpoint| kv(channel(endpoint))).collect();
    let mut at = number as usize % clients.len();
    let key = Bytes::from(format!("{}/own", char::from(b'a' + (number * 3) as u8)));
    let (mut longest, mut version) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        version += 1;
        let value = Bytes::from(version.to_string());
        let put = pb::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
        clients[at].put(put).await.unwrap_or_else(|error| panic!("{number}: put {version}: {error}"));
        at = (at + 1) % clients.len();
        let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let read = clients[at].range(range).await.unwrap_or_else(|error| panic!("{number}: get {version}: {error}"));
        let pair = &read.get_ref().kvs[0];
        assert_eq!((&pair.value, pair.version), (&value, version), "{number}");
        longest = longest.max(begun.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
    }
    longest
}

/// Several such clients.
pub struct Appenders {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Duration>>,
}

impl Appenders {
    /// So many, at all of these endpoints by turns.
    pub fn start(endpoints: &[String], count: u64) -> Appenders {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |number| tokio::spawn(append(endpoints.to_vec(), number, stop.clone(), done.clone()));
        let clients = (0..count).map(client).collect();
        Appenders { stop, done, clients }
    }

    /// How often they have appended and read so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends them. How often they did it, and how long one of these pairs took at most.
    ///
    /// # Panics
    /// If a request failed, or an answer was wrong.
    pub async fn finish(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for client in self.clients {
            longest = longest.max(client.await.unwrap_or_else(|error| panic!("a client: {error}")));
        }
        (self.done.load(Ordering::Relaxed), longest)
    }
}
