//! A node: replicas of groups over one log and one store.
//!
//! [`core`] is the whole node as one synchronous machine without I/O; the simulator runs it as it
//! is. [`runtime`] (feature `runtime`) gives it threads, sockets, a log on disk and RocksDB.

pub mod collection;
pub mod core;
pub mod host;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod tally;
pub mod wire;
