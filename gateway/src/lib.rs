//! The stateless gateway: the etcd v3 API in front of the replica groups.
//!
//! The heart is a machine without I/O, clock or runtime: [`Gateway::step`] takes a call, a reply
//! or the passing of time, and says what to send and what to answer. The simulator runs it as it
//! is; the feature `server` adds the gRPC services around it, which only move bytes.
//!
//! - `routing`: the shard map and guesses about leaders. Wrong guesses cost time, never safety.
//! - `session`: tags that make retries exactly-once.
//! - `core`: attempts, timers, and the newest revision known.
//! - `pending`: one call from its arrival to its answer.
//! - `merge`: one answer out of the answers of several groups.
//!
//! Invariants:
//! - Every call is answered exactly once, by its deadline, unless it was canceled.
//! - A command whose outcome is unknown is retried under its own session tag, or reported as of
//!   unknown outcome; never executed under a second tag.
//! - The ids of attempts are never used twice, so no reply is taken for another attempt's.
//! - The newest known revision never falls, and every request carries it: headers of sequential
//!   linearizable calls never go back.
//! - Everything held is bounded: calls, bytes, attempts per call.

mod call;
mod core;
mod machine;
mod merge;
mod pending;
mod rng;
mod routing;
mod session;
#[cfg(test)]
mod tests;

#[cfg(feature = "server")]
pub mod admin;
#[cfg(feature = "server")]
pub mod driver;
#[cfg(feature = "server")]
pub mod etcd;
#[cfg(feature = "server")]
pub mod remote;

pub use call::{Answer, AnswerBody, Call, CallError, GatewayConfig, Input, Outputs, Status};
pub use machine::Gateway;
