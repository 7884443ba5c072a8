//! Threads, sockets, the log on disk and RocksDB around the
//! [`Core`](crate::core::Core).
//!
//! ```text
//! one thread    tokio current_thread runtime: gRPC, the turn loop with the core, gateway
//! wal           group commit (crate wal)
//! apply         state machines: one batch per drain; reads and installs images
//! scan          two of them: reads of ranges
//! flush         now and then: RocksDB memtables to disk, so that log segments can go
//! collect       old history, at low priority
//! space         watches how much room the disk has
//! ```
//!
//! Whatever concerns the core goes through one [`Mailbox`]; the turn loop drains it, steps the core
//! with everything that was there, and performs what the turn wants done.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod apply;
mod clock;
mod collect;
mod figures;
mod handle;
mod known;
mod mailbox;
mod open;
mod peers;
mod replies;
mod scan;
mod seed;
mod service;
mod space;
mod turn_loop;

pub use clock::now;
pub use figures::{MailboxFigures, NodeFigures, SyncFigures};
pub use handle::NodeHandle;
pub use known::{Handshake, KnownPeers, note_nodes};
pub use mailbox::Mailbox;
pub use open::{NodeConfig, OpenError, PeerAddress, RESERVE, open};
pub use peers::PeerFigures;
pub use replies::ReplySink;
pub use seed::Seeding;
pub use service::serve;
pub use turn_loop::{Node, SpanSink, Stop};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
