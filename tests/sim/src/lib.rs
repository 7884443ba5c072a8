//! The deterministic simulator: a whole cluster on one thread, from one seed.
//!
//! The nodes' cores, state machines and logs, and the gateways' machines are the very code that runs
//! in production; what is simulated is the world around them: time, the network, disks, crashes.
//! `docs/simulation.md` tells what is modelled and what is checked.
//!
//! Invariants: no clock, no randomness but from the seed, no hash map, one thread per run. Two runs
//! of one seed give the same trace, and a run without faults worth the name is a failure of its own.

mod clients;
mod clock;
mod converge;
pub mod coverage;
mod faults;
mod gateways;
mod host;
mod invariants;
mod lifecycle;
mod losses;
pub mod mutant;
mod network;
mod operator;
pub mod plan;
mod process;
mod random;
pub mod regressions;
pub mod run;
mod scripts;
mod spoil;
mod stream;
mod trace;
mod world;

pub use coverage::Coverage;
pub use mutant::Mutant;
pub use plan::Options;
pub use regressions::Regression;
pub use run::{Failure, Summary, run};
