//! Configuration: what an operator wrote, turned into a struct that stands.
//!
//! Every setting has one name, its long flag. The same name is its key in the `--config` file
//! (TOML), and in capitals behind `CLOUDPAXOS_` its environment variable. Flags win over the
//! environment, the environment over the file, the file over the defaults.
//!
//! The way: [`options`] lists the settings, [`layers`] collects what was written together with
//! *where*, and [`start`] and [`dev`] parse and validate in one place. So every complaint can name
//! the flag, the variable, or the file and line, and says what to write instead.
//!
//! Invariant: nothing outside this module parses a setting, and nothing here opens a data directory
//! or a socket.

mod address;
mod cluster;
mod dev;
mod error;
mod file;
mod layers;
mod limits;
mod options;
mod start;
mod value;

pub use address::Address;
pub use cluster::{Descent, Genesis, Member, NodeName, Role, Roles};
pub use dev::DevConfig;
pub use error::ConfigError;
pub use layers::{Origin, unknown_variables};
pub use limits::Limits;
pub use options::{DevOptions, StartOptions};
pub use start::{LogConfig, LogFormat, ReadMode, Security, StartConfig, Timing, TraceConfig};
pub(crate) use value::key;

#[cfg(test)]
mod tests;
