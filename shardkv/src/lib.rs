//! The state machine of a data group: a multi-version key-value store with etcd's semantics.
//!
//! A group's log holds [`command::Batch`]es; [`DataGroup`] applies them to a [`Store`], and
//! [`Reader`]s answer reads at any revision at or above the floor, from any thread.
//!
//! How it fits together, from the bottom:
//!
//! - [`store`]: the seam to storage, with [`MemoryStore`] for tests and `RocksStore` (feature
//!   `rocks`) for nodes. All groups of a node share one.
//! - `key` and `record`: the layout of rows, byte for byte.
//! - `mvcc`: the version of a key at a revision. `exec`: an operation on the state below a revision,
//!   for writes, for reads, and for answering a retry again. `range`: counting, filtering, sorting.
//! - `sessions`: exactly-once. `territory`: the keys of the shards that a command names.
//! - `apply`: one call is one batch. [`moving`]: shards on their way between groups, `apply_moves` their
//!   steps, `apply_reshapes` splits and merges. `image`: snapshots and their installation. `collect`: history
//!   below the floor goes.
//!
//! Invariants:
//! - Apply is a function of the log: it reads no clock and no randomness, iterates no hash map, and
//!   nothing that differs between replicas (space numbers, collected history, restarts) shows in
//!   outcomes or in the rolling hash.
//! - Apply is total: any bytes in the log give an outcome.
//! - Ownership is checked at apply: a command at another epoch, older or newer, does nothing.
//! - Data, revision index, session outcomes and applied slot change in one batch; a crash loses a
//!   suffix of batches, and the log replays exactly those.
//! - This crate knows no runtime, no network and no log.

mod apply;
mod apply_moves;
mod apply_reshapes;
mod cached;
mod changes;
pub mod codec;
mod collect;
pub mod command;
mod dropped;
mod exec;
mod group;
mod image;
mod key;
pub mod map;
mod measure;
mod memory;
pub mod moving;
mod mvcc;
pub mod ops;
mod overlay;
mod range;
mod reader;
mod record;
pub mod request;
#[cfg(feature = "rocks")]
mod rocks;
mod rows;
mod seed;
mod sessions;
mod state;
pub mod store;
mod territory;
pub mod types;

pub use cached::{CacheFigures, CachedStore};
pub use changes::{Changes, Event};
pub use collect::Progress;
pub use group::{DataGroup, first_space};
pub use measure::Measured;
pub use memory::MemoryStore;
pub use reader::{ReadError, Reader};
#[cfg(feature = "rocks")]
pub use rocks::{RocksFigures, RocksOptions, RocksStore};
pub use rows::{GroupMeta, delete_group};
pub use seed::{SEED_SLOT, Seed};
pub use sessions::SessionLimits;
pub use state::{OwnedShard, Stretch};
pub use store::{Store, StoreError};
