//! Settings of `cloudpaxos dev`: an embedded cluster that needs no decision.

use super::address::Address;
use super::cluster::{Genesis, parse_members};
use super::error::ConfigError;
use super::layers::Layers;
use super::start::{LogConfig, boundaries, data_groups, listen_address, log};
use clap::ArgMatches;
use std::path::PathBuf;

/// A configuration of the embedded cluster that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevConfig {
    /// Each node has a directory of its own below.
    pub data_dir: PathBuf,
    /// Where the cluster serves clients; port 0 takes a free one.
    pub listen: Address,
    /// Data groups of a new cluster.
    pub data_groups: u32,
    /// Logs.
    pub log: LogConfig,
    /// Nodes `n1`, `n2` and `n3`. Their peer addresses are placeholders that stay the same whatever
    /// ports this start uses, because the cluster's id depends on them: nobody dials them.
    pub genesis: Genesis,
}

impl DevConfig {
    /// Resolves flags, environment and file of a parsed `dev`.
    pub fn resolve(command: &clap::Command, matches: &ArgMatches) -> Result<DevConfig, ConfigError> {
        Self::from_layers(&Layers::collect(command, matches)?)
    }

    fn from_layers(layers: &Layers) -> Result<DevConfig, ConfigError> {
        let data_dir = PathBuf::from(layers.get("data-dir", "cloudpaxos-data").text()?);
        let listen = listen_address(layers, "listen", "127.0.0.1:2379", true, None)?;
        let data_groups = data_groups(layers)?;
        let members = ["n1=n1.embedded:1", "n2=n2.embedded:1", "n3=n3.embedded:1"];
        let members = parse_members(&members).map_err(ConfigError::Conflict)?;
        let boundaries = boundaries(layers, data_groups)?;
        let genesis = Genesis { token: "dev".to_owned(), members, data_groups, boundaries, descent: None };
        Ok(DevConfig { data_dir, listen, data_groups, log: log(layers)?, genesis })
    }
}
