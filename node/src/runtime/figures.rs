//! What the threads and queues around the core tell about themselves, for whoever shows it to operators.

use super::handle::NodeHandle;
use super::mailbox::Mailbox;
use super::open::NodeStore;
use super::peers::{PeerFigures, Peers};
use crate::core::CoreStatus;
use crate::tally::Distribution;
use shardkv::store::StoreError;
use shardkv::{CacheFigures, RocksFigures};
use std::sync::{Arc, Mutex, PoisonError};
use wal::{WalHandle, WalStats};

/// Group commits of the log's thread.
#[derive(Clone, Debug, Default)]
pub struct SyncFigures {
    /// How long one took, in microseconds.
    pub micros: Distribution,
    /// How many records one made durable.
    pub records: Distribution,
}

/// A node's figures, as of one moment.
#[derive(Clone, Debug)]
pub struct NodeFigures {
    /// The core's.
    pub core: CoreStatus,
    /// The log's.
    pub wal: WalStats,
    /// See [`SyncFigures`].
    pub syncs: SyncFigures,
    /// The streams to the other nodes.
    pub peers: Vec<PeerFigures>,
    /// Requests and messages waiting for the next turn, and how many were refused since the start.
    pub mailbox: MailboxFigures,
    /// RocksDB's.
    pub store: RocksFigures,
    /// Those of the rows cached in front of it.
    pub cache: CacheFigures,
}

/// What waits for the next turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MailboxFigures {
    /// Requests of gateways.
    pub requests: usize,
    /// Messages of peers.
    pub messages: usize,
    /// Of both kinds, refused since the start because too many waited.
    pub refused: u64,
}

/// Where the figures are found.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) wal: WalHandle,
    pub(super) syncs: Arc<Mutex<SyncFigures>>,
    pub(super) peers: Peers,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) store: Arc<NodeStore>,
}

impl NodeHandle {
    /// The node's figures; `None` when it has stopped.
    pub async fn figures(&self) -> Option<Result<NodeFigures, StoreError>> {
        let core = self.status().await?;
        let Sources { wal, syncs, peers, mailbox, store } = &self.sources;
        let of_store = store.clone();
        // Asking RocksDB takes its locks, perhaps behind a compaction: not on the thread of the turns.
        let rocks = tokio::task::spawn_blocking(move || of_store.inner().inner().figures()).await.ok()?;
        Some(rocks.map(|rocks| NodeFigures {
            core,
            wal: wal.stats(),
            syncs: syncs.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            peers:
                peers.lock().unwrap_or_else(PoisonError::into_inner).values().map(|(peer, _)| peer.figures()).collect(),
            mailbox: mailbox.figures(),
            store: rocks,
            cache: store.figures(),
        }))
    }
}
