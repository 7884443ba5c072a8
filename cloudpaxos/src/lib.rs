//! The `cloudpaxos` binary, as a library: configuration, the identity of a data directory, and the
//! command line. `main.rs` only parses and dispatches.
//!
//! - [`backup`] writes a cluster's keys to a directory or bucket, and fills new nodes from there.
//! - [`config`] turns flags, environment and file into one validated [`config::StartConfig`].
//! - [`identity`] opens a data directory: who this node is, and that nobody else is using it.
//! - [`net`] accepts and opens connections, with or without TLS, and judges who may come in.
//! - [`observe`] shows figures and health.
//! - [`run`] starts nodes from a configuration.
//! - [`cli`] is everything a person or a script types: `kv`, `status`, `shards`, `version`.
//!
//! Invariant: no crate of the workspace depends on this one, and nothing here knows consensus,
//! storage or routing. What the client commands know of a cluster, they know through its gRPC API.

pub mod backup;
pub mod cli;
pub mod config;
pub mod failure;
pub mod identity;
pub mod logging;
pub mod net;
pub mod observe;
pub mod run;

/// The version that `cloudpaxos version` prints and nodes report.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
