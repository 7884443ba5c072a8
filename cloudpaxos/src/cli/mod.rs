//! The command line: what there is to type, and what happens then.

mod backup;
mod balance;
mod certs;
pub mod client;
mod cluster;
mod groups;
mod health;
mod kv;
mod nodes;
mod output;
mod shards;
mod top;
mod txn;
mod wait;

use crate::config::{DevConfig, DevOptions, StartConfig, StartOptions, unknown_variables};
use crate::failure::Failure;
use crate::observe::Traces;
use crate::{logging, run};
use clap::{ArgMatches, Args, CommandFactory, Parser, Subcommand};
use client::Client;
use output::Format;
use std::path::PathBuf;
use std::time::Duration;

/// A sharded, strictly serializable key-value store with the etcd v3 API.
#[derive(Parser, Debug)]
#[command(
    name = "cloudpaxos",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
Examples:
  cloudpaxos dev                            three nodes in this process, to try things
  cloudpaxos kv put greeting hello          write a key
  cloudpaxos kv get greeting                read it back
  cloudpaxos status                         who is there, who leads, who lags
  cloudpaxos start --config node.toml       one node of a real cluster

Every etcd v3 client works as well: ETCDCTL_API=3 etcdctl --endpoints 127.0.0.1:2379 get greeting"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a cluster of three nodes in this process, to develop against.
    #[command(after_help = "\
The data survives restarts. Settings come from flags, then the environment, then --config.

Examples:
  cloudpaxos dev
  cloudpaxos dev --data-dir /tmp/try --listen 127.0.0.1:12379")]
    Dev(Box<DevOptions>),
    /// Run one node of a cluster.
    #[command(after_help = "\
Settings come from flags, then the environment, then the --config file (TOML, the long flags as keys),
then the defaults.

Example, a cluster of three on one machine (the same for n2 and n3 with their own directories and ports):
  cloudpaxos start --name n1 --data-dir /var/lib/cloudpaxos/n1 \\
    --listen-client 127.0.0.1:2371 --listen-peer 127.0.0.1:2381 \\
    --initial-cluster n1=127.0.0.1:2381,n2=127.0.0.1:2382,n3=127.0.0.1:2383

Example, a gateway without replicas in front of it:
  cloudpaxos start --name g1 --roles gateway --listen-client 127.0.0.1:2379 \\
    --initial-cluster n1=127.0.0.1:2381,n2=127.0.0.1:2382,n3=127.0.0.1:2383

Example of a file:
  name = \"n1\"
  data-dir = \"/var/lib/cloudpaxos\"
  initial-cluster = [\"n1=10.0.0.1:2380\", \"n2=10.0.0.2:2380\", \"n3=10.0.0.3:2380\"]
  request-bytes-max = \"1.5MiB\"")]
    Start(Box<StartOptions>),
    /// Read and write keys.
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Show nodes, groups, leaders and how far each replica is.
    #[command(after_help = "\
Examples:
  cloudpaxos status
  cloudpaxos status -o json --endpoints 10.0.0.1:2379,10.0.0.2:2379")]
    Status(ClientOptions),
    /// Show, move, split and merge shards.
    #[command(subcommand)]
    Shards(ShardsCommand),
    /// See and direct what the cluster does about the load of its shards.
    #[command(subcommand)]
    Balance(balance::BalanceCommand),
    /// Show, create and delete replica groups, and change which nodes hold them.
    #[command(subcommand)]
    Groups(groups::GroupsCommand),
    /// Show the nodes, empty one, forget one.
    #[command(subcommand)]
    Nodes(nodes::NodesCommand),
    /// Back up a cluster's keys.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Fill a new node's directory from a backup; it takes the settings of `start`.
    #[command(after_help = "\
Every node of the new cluster is filled before any is started, all from the same backup, and each is given the
same --initial-cluster and --data-groups, which need not be those of the cluster that was backed up. The new
cluster has another id, and its revisions begin above those of the old one, so nothing goes back in time.
Done again, it changes nothing; cut short, it begins anew.

Example, for the first of three nodes:
  cloudpaxos restore --from s3://bucket/cloudpaxos --name n1 --data-dir /var/lib/cloudpaxos \\
    --initial-cluster n1=10.0.0.1:2380,n2=10.0.0.2:2380,n3=10.0.0.3:2380 --peer-tls-dir certs/n1/peer")]
    Restore(Box<backup::RestoreOptions>),
    /// Ask a node or gateway whether it is alive or ready.
    #[command(after_help = "\
Exits with 0 if it is, with 1 if not, and says why.

Examples:
  cloudpaxos health
  cloudpaxos health --url https://127.0.0.1:2378/livez --cacert certs/ca/clients.crt")]
    Health(health::HealthOptions),
    /// Make certificates for nodes and clients.
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Print the version of this binary.
    Version(OutputOptions),
}

/// The commands about shards.
#[derive(Subcommand, Debug)]
pub enum ShardsCommand {
    /// List the shards, with their ranges and owners.
    #[command(after_help = "\
Examples:
  cloudpaxos shards list
  cloudpaxos shards list -o json")]
    List(ClientOptions),
    /// Show how busy and how large the shards are.
    ///
    /// Requests are those of the last seconds; bytes, with history, and keys are estimates. HOTTEST is the key with the most
    /// requests, by samples, and its share of the shard's; -o json has up to three.
    #[command(after_help = "\
Examples:
  cloudpaxos shards top
  cloudpaxos shards top --sort bytes --limit 0 -o json")]
    Top(top::TopOptions),
    /// Move a shard to another group, while it serves.
    #[command(after_help = "\
Clients notice a short pause, and no error. A move goes on whatever restarts, until it is done or cancelled.

Example, shard 2 to group 3:
  cloudpaxos shards move 2 3")]
    Move(shards::MoveOptions),
    /// Show the moves under way.
    #[command(after_help = "\
A move copies the shard, then what was written meanwhile, freezes the shard for what is left, and hands it over. STILL FOR
says for how long nothing has come, LEFT how long the copy will take at this rate.

Examples:
  cloudpaxos shards moves
  cloudpaxos shards moves -o json")]
    Moves(ClientOptions),
    /// Call off a move that is not done: the shard stays where it is.
    #[command(after_help = "\
Example, with the number that `cloudpaxos shards moves` shows:
  cloudpaxos shards cancel 7")]
    Cancel(shards::CancelOptions),
    /// Cut a shard into two, in the same group; no data is copied.
    ///
    /// Clients notice a moment at most: what they ask meanwhile is asked again by the gateways.
    #[command(after_help = "\
Examples, at a key, and in the middle:
  cloudpaxos shards split 2 --at /users/m
  cloudpaxos shards split 2")]
    Split(shards::SplitOptions),
    /// Make one shard of two neighbours in the same group; no data is copied.
    #[command(after_help = "\
Example:
  cloudpaxos shards merge 2 5")]
    Merge(shards::MergeOptions),
}

/// How to show an answer.
#[derive(Args, Clone, Debug, Default)]
pub struct OutputOptions {
    /// Tables for people, JSON for programs.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    output: Format,
}

/// How to reach the cluster, and how to show its answer.
#[derive(Args, Clone, Debug)]
pub struct ClientOptions {
    /// Gateways to ask, in this order, until one answers.
    #[arg(long, value_name = "HOST:PORT,…", env = "CLOUDPAXOS_ENDPOINTS", value_delimiter = ',')]
    #[arg(default_value = "127.0.0.1:2379", hide_env_values = true)]
    endpoints: Vec<String>,
    /// Give up after this long, over all endpoints.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = wait::duration)]
    timeout: Duration,
    #[command(flatten)]
    access: AccessOptions,
    #[command(flatten)]
    output: OutputOptions,
}

/// How to trust the cluster, and to be trusted by it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Security")]
pub struct AccessOptions {
    /// Speak TLS, with servers that this CA has signed for.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_CACERT", hide_env_values = true)]
    cacert: Option<PathBuf>,
    /// Show this client certificate.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_CERT", hide_env_values = true)]
    #[arg(requires = "cert_key", requires = "cacert")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(id = "cert_key", long = "key", value_name = "FILE", env = "CLOUDPAXOS_KEY", hide_env_values = true)]
    #[arg(requires = "cert")]
    cert_key: Option<PathBuf>,
    /// Send the first API token in this file.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<PathBuf>,
}

impl ClientOptions {
    fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.endpoints, self.timeout, &self.access)
    }

    fn format(&self) -> Format {
        self.output.output
    }
}

/// Does what was typed. `matches` are the same words, for the origins of settings.
pub fn dispatch(cli: Cli, matches: &ArgMatches) -> Result<(), Failure> {
    match cli.command {
        Command::Dev(_) => {
            let (command, matches) = typed("dev", matches)?;
            let config = DevConfig::resolve(&command, matches)?;
            logging::install(&config.log, None);
            warn_of_unknown_variables(&command);
            run::dev(config)
        }
        Command::Start(_) => {
            let (command, matches) = typed("start", matches)?;
            let config = StartConfig::resolve(&command, matches)?;
            let traces = Traces::start(&config.traces, config.name.as_str())?;
            logging::install(&config.log, traces.as_ref().map(Traces::tracer));
            warn_of_unknown_variables(&command);
            run::start(config, traces.as_ref())
        }
        Command::Kv(command) => block_on(kv::run(command)),
        Command::Status(options) => block_on(cluster::status(options)),
        Command::Balance(command) => block_on(balance::run(command)),
        Command::Shards(ShardsCommand::List(options)) => block_on(cluster::shards(options)),
        Command::Shards(ShardsCommand::Top(options)) => block_on(top::top(options)),
        Command::Shards(ShardsCommand::Move(options)) => block_on(shards::start_move(options)),
        Command::Shards(ShardsCommand::Moves(options)) => block_on(shards::moves(options)),
        Command::Shards(ShardsCommand::Cancel(options)) => block_on(shards::cancel(options)),
        Command::Shards(ShardsCommand::Split(options)) => block_on(shards::split(options)),
        Command::Shards(ShardsCommand::Merge(options)) => block_on(shards::merge(options)),
        Command::Groups(command) => block_on(groups::run(command)),
        Command::Nodes(command) => block_on(nodes::run(command)),
        Command::Backup(command) => block_on(backup::run(command)),
        Command::Restore(options) => {
            let (command, matches) = typed("restore", matches)?;
            let config = StartConfig::resolve(&command, matches)?;
            logging::install(&config.log, None);
            block_on(backup::restore(*options, config))
        }
        Command::Health(options) => block_on(health::run(options)),
        Command::Certs(command) => certs::run(command),
        Command::Version(options) => output::version(options.output),
    }
}

/// The definition and the words of a subcommand.
fn typed<'m>(name: &str, matches: &'m ArgMatches) -> Result<(clap::Command, &'m ArgMatches), Failure> {
    let matches = matches.subcommand_matches(name);
    let command = Cli::command().find_subcommand(name).cloned();
    command.zip(matches).ok_or_else(|| Failure::Usage(format!("`{name}` was not what was typed")))
}

fn warn_of_unknown_variables(command: &clap::Command) {
    let names: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for (name, nearest) in unknown_variables(names.iter().map(String::as_str), command) {
        tracing::warn!("the environment variable {name} is no setting and is ignored; did you mean {nearest}?");
    }
}

/// Client commands wait on one connection at a time: one thread is enough.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Io { action: "start the runtime".to_owned(), error })?;
    runtime.block_on(work)
}
