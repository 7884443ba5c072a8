//! End-to-end tests: real processes, real disks, real sockets, and kill -9.
//!
//! A [`cluster::Cluster`] runs three nodes of CloudPaxos, or of etcd: both speak the etcd v3 API, so
//! everything here runs against either. etcd is the control: the harness and the checkers have to
//! pass it, otherwise they are wrong. Clients ([`workload`]) record what they do as a
//! [`checkers::History`] while faults ([`crash`]) come and go, and the checkers judge it.
//!
//! Every process is in a process group of its own and is killed when its handle is dropped, a panic
//! included; every run has a seed that fixes the choices (not the timing) and is printed.

pub mod append;
pub mod balancing;
pub mod bars;
pub mod client;
pub mod cluster;
pub mod crash;
pub mod disk;
pub mod error;
pub mod failover;
pub mod hosts;
pub mod idle;
pub mod mover;
pub mod moving;
pub mod observe;
pub mod operator;
pub mod partition;
pub mod phase;
pub mod process;
pub mod restart;
pub mod smoke;
mod steal;
pub mod system;
mod watch;
pub mod workload;

pub use error::HarnessError;
