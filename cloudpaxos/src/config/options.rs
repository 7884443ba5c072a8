//! The settings, as clap sees them: names, variables and help. Values stay texts here, because a
//! value from the file must be parsed by the same code with the same complaints.

use clap::Args;
use std::path::PathBuf;

/// Settings of `cloudpaxos start`.
#[derive(Args, Clone, Debug, Default)]
pub struct StartOptions {
    /// A TOML file with settings; its keys are the long flags below.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// This node's name, unique in the cluster.
    #[arg(long, value_name = "NAME", env = "CLOUDPAXOS_NAME", hide_env_values = true)]
    pub name: Option<String>,
    /// Where this node keeps everything; not needed with --roles gateway.
    #[arg(long, value_name = "DIR", env = "CLOUDPAXOS_DATA_DIR", hide_env_values = true)]
    pub data_dir: Option<String>,
    /// Where to serve clients [default: 127.0.0.1:2379].
    #[arg(long, value_name = "HOST:PORT", env = "CLOUDPAXOS_LISTEN_CLIENT", hide_env_values = true)]
    pub listen_client: Option<String>,
    /// Where to serve the other nodes [default: 127.0.0.1:2380].
    #[arg(long, value_name = "HOST:PORT", env = "CLOUDPAXOS_LISTEN_PEER", hide_env_values = true)]
    pub listen_peer: Option<String>,
    /// How clients reach --listen-client [default: the same].
    #[arg(long, value_name = "HOST:PORT", env = "CLOUDPAXOS_ADVERTISE_CLIENT", hide_env_values = true)]
    pub advertise_client: Option<String>,
    /// How the other nodes reach --listen-peer [default: this node's entry in --initial-cluster].
    #[arg(long, value_name = "HOST:PORT", env = "CLOUDPAXOS_ADVERTISE_PEER", hide_env_values = true)]
    pub advertise_peer: Option<String>,
    /// All nodes that keep replicas, with their peer addresses; the same list on every node. Forms the
    /// cluster on an empty data directory, ignored later. `/shardmaster` or `/shardkv` behind an
    /// address: that node keeps only this kind of replica.
    #[arg(long, value_name = "NAME=HOST:PORT,…", env = "CLOUDPAXOS_INITIAL_CLUSTER", hide_env_values = true)]
    pub initial_cluster: Option<String>,
    /// Join the cluster that --initial-cluster describes, without being in that list: the node is given an id,
    /// and replicas as the operator or the balancer wishes. Needs --advertise-peer, at later starts, too, which ignore
    /// --join itself.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(env = "CLOUDPAXOS_JOIN", hide_env_values = true)]
    pub join: Option<String>,
    /// For a node that joins a cluster which was restored from a backup: what `cloudpaxos restore` said of it.
    #[arg(long, value_name = "BACKUP:INCARNATION:REVISION", env = "CLOUDPAXOS_DESCENT", hide_env_values = true)]
    pub descent: Option<String>,
    /// Peer addresses of further nodes of this cluster. A gateway, or a node that joins, asks them, too, where it finds
    /// its way: needed where those of --initial-cluster have been replaced.
    #[arg(long, value_name = "HOST:PORT,…", env = "CLOUDPAXOS_KNOWN_NODES", hide_env_values = true)]
    pub known_nodes: Option<String>,
    /// Tells clusters apart; nodes with another token are refused [default: cloudpaxos].
    #[arg(long, value_name = "TEXT", env = "CLOUDPAXOS_CLUSTER_TOKEN", hide_env_values = true)]
    pub cluster_token: Option<String>,
    /// Where this node stands, a rack or a zone of a cloud; replicas of a group are spread over zones [default: nothing
    /// is said].
    #[arg(long, value_name = "TEXT", env = "CLOUDPAXOS_ZONE", hide_env_values = true)]
    pub zone: Option<String>,
    /// What this process does: some of shardmaster, shardkv, gateway [default: all].
    #[arg(long, value_name = "ROLE,…", env = "CLOUDPAXOS_ROLES", hide_env_values = true)]
    pub roles: Option<String>,
    /// Data groups of a new cluster; the same on every node [default: 2].
    #[arg(long, value_name = "N", env = "CLOUDPAXOS_DATA_GROUPS", hide_env_values = true)]
    pub data_groups: Option<String>,
    /// Keys at which the initial shards of a new cluster begin, ascending, `\xHH` for a byte; the same
    /// on every node [default: 8 shards over the printable characters].
    #[arg(long, value_name = "KEY,…", env = "CLOUDPAXOS_SHARD_BOUNDARIES", hide_env_values = true)]
    pub shard_boundaries: Option<String>,
    /// How a leader proves that it still leads: `lease` trusts clocks to drift little, `quorum` asks a
    /// majority for every batch of reads [default: lease].
    #[arg(long, value_name = "MODE", env = "CLOUDPAXOS_READ_MODE", hide_env_values = true)]
    pub read_mode: Option<String>,
    /// Time between two heartbeats of a pair of nodes, milliseconds [default: 100].
    #[arg(long, value_name = "MS", env = "CLOUDPAXOS_HEARTBEAT_MS", hide_env_values = true)]
    pub heartbeat_ms: Option<String>,
    /// Silence after which a node stands for leader, milliseconds [default: 600].
    #[arg(long, value_name = "MS", env = "CLOUDPAXOS_ELECTION_TIMEOUT_MS", hide_env_values = true)]
    pub election_timeout_ms: Option<String>,
    /// How long an acknowledged heartbeat lets a leader serve reads, milliseconds [default: 800].
    #[arg(long, value_name = "MS", env = "CLOUDPAXOS_LEASE_MS", hide_env_values = true)]
    pub lease_ms: Option<String>,
    /// A node that is silent for so long, in seconds, is dead: its replicas move to other nodes where there are
    /// any; 0 for never [default: 600].
    #[arg(long, value_name = "SECONDS", env = "CLOUDPAXOS_DEAD_AFTER_SECONDS", hide_env_values = true)]
    pub dead_after_seconds: Option<String>,
    /// Where to serve /metrics, /livez and /readyz alone; the client port has them, too [default: nowhere].
    #[arg(long, value_name = "HOST:PORT", env = "CLOUDPAXOS_LISTEN_METRICS", hide_env_values = true)]
    pub listen_metrics: Option<String>,
    /// Tell an OTLP collector (gRPC) of some requests: how long each stage took, on every node
    /// [default: none].
    #[arg(long, value_name = "URL", env = "CLOUDPAXOS_OTLP_ENDPOINT", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
    /// Which part of the requests, from 0 to 1; a caller that sends `traceparent` decides for itself
    /// [default: 0.01].
    #[arg(long, value_name = "RATIO", env = "CLOUDPAXOS_TRACE_SAMPLE_RATIO", hide_env_values = true)]
    pub trace_sample_ratio: Option<String>,
    /// Encryption and access.
    #[command(flatten)]
    pub security: SecurityOptions,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitOptions,
    /// What every process has.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Settings of `cloudpaxos dev`.
#[derive(Args, Clone, Debug, Default)]
pub struct DevOptions {
    /// A TOML file with settings; its keys are the long flags below.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Where the three nodes keep everything [default: ./cloudpaxos-data].
    #[arg(long, value_name = "DIR", env = "CLOUDPAXOS_DATA_DIR", hide_env_values = true)]
    pub data_dir: Option<String>,
    /// Where to serve clients; port 0 takes a free one [default: 127.0.0.1:2379].
    #[arg(long, value_name = "HOST:PORT", env = "CLOUDPAXOS_LISTEN", hide_env_values = true)]
    pub listen: Option<String>,
    /// Data groups of a new cluster [default: 2].
    #[arg(long, value_name = "N", env = "CLOUDPAXOS_DATA_GROUPS", hide_env_values = true)]
    pub data_groups: Option<String>,
    /// What every process has.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Encryption and access; `cloudpaxos start` has them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Security")]
pub struct SecurityOptions {
    /// Serve clients, and metrics, by TLS with `tls.crt` and `tls.key` from this directory. Certificates of
    /// clients that `ca.crt` there has signed are accepted in place of a token; `ca.crl` revokes some. Files
    /// that change are taken without a restart.
    #[arg(long, value_name = "DIR", env = "CLOUDPAXOS_CLIENT_TLS_DIR", hide_env_values = true)]
    pub client_tls_dir: Option<String>,
    /// Speak TLS with the other nodes, with `tls.crt`, `tls.key` and `ca.crt` from this directory; only who
    /// has a certificate of that CA gets in. Give nodes a CA of their own, which signs for nobody else.
    #[arg(long, value_name = "DIR", env = "CLOUDPAXOS_PEER_TLS_DIR", hide_env_values = true)]
    pub peer_tls_dir: Option<String>,
    /// A file with API tokens, one a line: requests of clients must carry one, as `authorization: Bearer
    /// TOKEN`, unless they come with a client certificate. Taken anew when it changes.
    #[arg(long, value_name = "FILE", env = "CLOUDPAXOS_API_TOKEN_FILE", hide_env_values = true)]
    pub api_token_file: Option<String>,
}

/// Limits; `cloudpaxos start` has them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits (bytes: a number, or one with KiB, MiB, GiB)")]
pub struct LimitOptions {
    /// A client's request [default: 1.5MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_REQUEST_BYTES_MAX", hide_env_values = true)]
    pub request_bytes_max: Option<String>,
    /// Operations of a transaction, nested ones included [default: 128].
    #[arg(long, value_name = "N", env = "CLOUDPAXOS_TXN_OPERATIONS_MAX", hide_env_values = true)]
    pub txn_operations_max: Option<String>,
    /// Commands that share a log entry [default: 1024].
    #[arg(long, value_name = "N", env = "CLOUDPAXOS_BATCH_ENTRIES_MAX", hide_env_values = true)]
    pub batch_entries_max: Option<String>,
    /// Bytes of commands that share a log entry [default: 1MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_BATCH_BYTES_MAX", hide_env_values = true)]
    pub batch_bytes_max: Option<String>,
    /// Batches of a group proposed and not yet applied; fewer make larger batches [default: 8].
    #[arg(long, value_name = "N", env = "CLOUDPAXOS_GROUP_SLOTS_MAX", hide_env_values = true)]
    pub group_slots_max: Option<String>,
    /// Connections open at one port; more wait to be accepted [default: 8192].
    #[arg(long, value_name = "N", env = "CLOUDPAXOS_CONNECTIONS_MAX", hide_env_values = true)]
    pub connections_max: Option<String>,
    /// Write requests waiting in one group's leader; more are refused [default: 64MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_PROPOSAL_BYTES_MAX", hide_env_values = true)]
    pub proposal_bytes_max: Option<String>,
    /// Messages queued for one peer [default: 16MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_PEER_QUEUE_BYTES_MAX", hide_env_values = true)]
    pub peer_queue_bytes_max: Option<String>,
    /// Records queued for the log [default: 8MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_WAL_QUEUE_BYTES_MAX", hide_env_values = true)]
    pub wal_queue_bytes_max: Option<String>,
    /// Entries decided and not yet applied [default: 64MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_APPLY_LAG_BYTES_MAX", hide_env_values = true)]
    pub apply_lag_bytes_max: Option<String>,
    /// Size of a segment of the log [default: 64MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_WAL_SEGMENT_BYTES", hide_env_values = true)]
    pub wal_segment_bytes: Option<String>,
    /// A shard that takes more in storage is split by the balancer; the same on every node [default: 512MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_SHARD_BYTES_MAX", hide_env_values = true)]
    pub shard_bytes_max: Option<String>,
    /// Bytes per second of a shard that moves, at most [default: 32MiB].
    #[arg(long, value_name = "BYTES", env = "CLOUDPAXOS_MOVE_BYTES_PER_SECOND", hide_env_values = true)]
    pub move_bytes_per_second: Option<String>,
}

/// What `start` and `dev` share.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Common")]
pub struct CommonOptions {
    /// Allow plain text off loopback, readable and writable by everybody on the network between.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(env = "CLOUDPAXOS_INSECURE_PLAINTEXT", hide_env_values = true)]
    pub insecure_plaintext: Option<String>,
    /// What to log: error, warn, info, debug or trace, also by module (`info,paxos=debug`) [default: info].
    #[arg(long, value_name = "FILTER", env = "CLOUDPAXOS_LOG_LEVEL", hide_env_values = true)]
    pub log_level: Option<String>,
    /// How to log: `text` or `json` [default: text].
    #[arg(long, value_name = "FORMAT", env = "CLOUDPAXOS_LOG_FORMAT", hide_env_values = true)]
    pub log_format: Option<String>,
}
