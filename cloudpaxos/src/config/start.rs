//! Settings of `cloudpaxos start`, parsed and validated.

use super::address::Address;
use super::cluster::{Descent, Genesis, Member, NodeName, Role, Roles, default_boundaries, parse_members};
use super::error::ConfigError;
use super::layers::{Layers, Raw};
use super::limits::Limits;
use super::value;
use crate::identity;
use bytes::Bytes;
use clap::ArgMatches;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The token where none is given.
const DEFAULT_TOKEN: &str = "cloudpaxos";
/// More groups than this on a handful of nodes only cost; splitting shards is the way to grow.
pub(super) const DATA_GROUPS_MAX: u64 = 512;
/// Initial shards where no boundaries are given, unless there are more groups.
const DEFAULT_SHARDS: u32 = 8;
const BOUNDARIES_MAX: usize = 4096;
/// Of a zone's name.
const ZONE_BYTES_MAX: usize = 128;

/// A configuration of one node that stands.
#[derive(Clone, Debug, PartialEq)]
pub struct StartConfig {
    /// The node's name.
    pub name: NodeName,
    /// Where it keeps everything; `None` only where it keeps nothing (a gateway alone).
    pub data_dir: Option<PathBuf>,
    /// Where it serves clients; `None` without the gateway role.
    pub listen_client: Option<Address>,
    /// What it tells clients to dial; `None` without the gateway role.
    pub advertise_client: Option<Address>,
    /// Where it serves other nodes; `None` where it keeps no replicas.
    pub listen_peer: Option<Address>,
    /// What it tells other nodes to dial; `None` where it keeps no replicas.
    pub advertise_peer: Option<Address>,
    /// Where it serves metrics and health alone.
    pub listen_metrics: Option<Address>,
    /// Encryption and access.
    pub security: Security,
    /// The cluster to form on an empty directory, and whom a gateway without replicas asks.
    pub genesis: Option<Genesis>,
    /// This node is none of those that form the cluster: it joins.
    pub join: bool,
    /// Where further nodes are.
    pub known_nodes: Vec<Address>,
    /// The token, if one was given: a directory with another one is refused.
    pub cluster_token: Option<String>,
    /// Where it stands; empty where nothing is said.
    pub zone: String,
    /// What the process does.
    pub roles: Roles,
    /// How a leader proves that it still leads.
    pub read_mode: ReadMode,
    /// Heartbeats, elections, leases.
    pub timing: Timing,
    /// Limits.
    pub limits: Limits,
    /// Logs.
    pub log: LogConfig,
    /// Traces.
    pub traces: TraceConfig,
}

/// Encryption and access, as paths; nothing is read yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Certificate, key and CA of the client port.
    pub client_tls_dir: Option<PathBuf>,
    /// Certificate, key and CA between nodes.
    pub peer_tls_dir: Option<PathBuf>,
    /// Tokens that let clients in.
    pub api_token_file: Option<PathBuf>,
    /// Plain text off loopback, without further questions.
    pub insecure_plaintext: bool,
}

impl Security {
    fn resolve(layers: &Layers) -> Result<Security, ConfigError> {
        let path = |key| layers.find(key).map(|setting| Ok(PathBuf::from(setting.text()?))).transpose();
        Ok(Security {
            client_tls_dir: path("client-tls-dir")?,
            peer_tls_dir: path("peer-tls-dir")?,
            api_token_file: path("api-token-file")?,
            insecure_plaintext: insecure_plaintext(layers)?,
        })
    }
}

/// How a leader proves that it still leads before it answers a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// By a lease, granted by a quorum for a bounded time.
    Lease,
    /// By asking a quorum for every batch.
    Quorum,
}

/// Periods of the failure detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of a pair of nodes.
    pub heartbeat: Duration,
    /// Silence after which a node stands for leader.
    pub election_timeout: Duration,
    /// How long an acknowledged heartbeat lets a leader serve.
    pub lease: Duration,
    /// A node that is silent for so long is dead, and its replicas move to others; zero for never.
    pub dead_after: Duration,
}

impl Timing {
    /// The lease in milliseconds.
    pub fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Duration::from_millis(100),
            election_timeout: Duration::from_millis(600),
            lease: Duration::from_millis(800),
            dead_after: Duration::from_secs(600),
        }
    }
}

/// Which requests are followed, and who is told.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// An OTLP collector; without one nothing is followed.
    pub otlp_endpoint: Option<String>,
    /// Of the requests whose callers do not decide, this part is followed.
    pub sample_ratio: f64,
}

impl TraceConfig {
    fn resolve(layers: &Layers) -> Result<TraceConfig, ConfigError> {
        let endpoint = layers.find("otlp-endpoint").map(|setting| match setting.text()? {
            text if text.starts_with("http://") || text.starts_with("https://") => Ok(text.to_owned()),
            text => Err(setting.bad(format!("`{text}` is no URL; write for instance http://127.0.0.1:4317"))),
        });
        let ratio = layers.get("trace-sample-ratio", "0.01");
        let sample_ratio = ratio.text()?.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        let problem = || ratio.bad("write a number between 0 (none) and 1 (all requests)");
        Ok(TraceConfig { otlp_endpoint: endpoint.transpose()?, sample_ratio: sample_ratio.ok_or_else(problem)? })
    }
}

/// What to log, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Directives of tracing's `EnvFilter`.
    pub filter: String,
    /// The format.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl StartConfig {
    /// Resolves flags, environment and file of a parsed `start`.
    pub fn resolve(command: &clap::Command, matches: &ArgMatches) -> Result<StartConfig, ConfigError> {
        Self::from_layers(&Layers::collect(command, matches)?)
    }

    fn from_layers(layers: &Layers) -> Result<StartConfig, ConfigError> {
        let name = name(layers)?;
        let setting = layers.get("roles", "shardmaster,shardkv,gateway");
        let roles = Roles::parse(&setting.list()).map_err(|problem| setting.bad(problem))?;
        let genesis = genesis(layers)?;
        let join = layers.get("join", "false");
        let join = value::switch(join.text()?).map_err(|problem| join.bad(problem))?;
        check_membership(layers, &name, &roles, genesis.as_ref(), join)?;
        let member = genesis.as_ref().and_then(|genesis| genesis.member(&name));
        let (listen_client, advertise_client) = if roles.has(Role::Gateway) {
            let (listen, advertise) = addresses(layers, Port::Client, None)?;
            (Some(listen), Some(advertise))
        } else {
            (None, None)
        };
        let (listen_peer, advertise_peer) = if roles.hosts_replicas() {
            let (listen, advertise) = addresses(layers, Port::Peer, member)?;
            (Some(listen), Some(advertise))
        } else {
            (None, None)
        };
        if let (Some(client), Some(peer)) = (&listen_client, &listen_peer)
            && client == peer
        {
            return Err(ConfigError::Conflict(format!(
                "--listen-client and --listen-peer are both {client}; give them different ports"
            )));
        }
        check_peers_encrypted(layers, genesis.as_ref())?;
        Ok(StartConfig {
            data_dir: data_dir(layers, &roles)?,
            cluster_token: token(layers)?,
            zone: zone(layers)?,
            read_mode: word(layers, "read-mode", "lease", &[("lease", ReadMode::Lease), ("quorum", ReadMode::Quorum)])?,
            timing: timing(layers)?,
            limits: Limits::resolve(layers)?,
            log: log(layers)?,
            traces: TraceConfig::resolve(layers)?,
            name,
            listen_client,
            advertise_client,
            listen_peer,
            advertise_peer,
            listen_metrics: metrics_address(layers)?,
            security: Security::resolve(layers)?,
            genesis,
            join,
            known_nodes: known_nodes(layers)?,
            roles,
        })
    }
}

/// Other nodes are not dialled in plain text off loopback, either.
fn check_peers_encrypted(layers: &Layers, genesis: Option<&Genesis>) -> Result<(), ConfigError> {
    let (tls, list) = ("peer-tls-dir", layers.get("initial-cluster", ""));
    let mut members = genesis.into_iter().flat_map(|genesis| &genesis.members);
    match members.find(|member| !member.peer_address.is_loopback()) {
        Some(member) if layers.find(tls).is_none() && !insecure_plaintext(layers)? => {
            let address = member.peer_address.to_string();
            Err(ConfigError::PlaintextOffLoopback { origin: list.origin, address, tls: Some(tls) })
        }
        Some(_) | None => Ok(()),
    }
}

fn metrics_address(layers: &Layers) -> Result<Option<Address>, ConfigError> {
    let key = "listen-metrics";
    layers.find(key).map(|_| listen_address(layers, key, "", false, Some("client-tls-dir"))).transpose()
}

fn name(layers: &Layers) -> Result<NodeName, ConfigError> {
    let why = "every node needs a name of its own, which it keeps for life";
    let setting = layers.find("name").ok_or(ConfigError::Missing { key: "name", why })?;
    NodeName::parse(setting.text()?).map_err(|problem| setting.bad(problem))
}

fn data_dir(layers: &Layers, roles: &Roles) -> Result<Option<PathBuf>, ConfigError> {
    match layers.find("data-dir") {
        Some(setting) => Ok(Some(PathBuf::from(setting.text()?))),
        None if !roles.hosts_replicas() => Ok(None),
        None => Err(ConfigError::Missing { key: "data-dir", why: "a node with replicas keeps them in a directory" }),
    }
}

fn token(layers: &Layers) -> Result<Option<String>, ConfigError> {
    layers.find("cluster-token").map(|setting| Ok(setting.text()?.to_owned())).transpose()
}

fn genesis(layers: &Layers) -> Result<Option<Genesis>, ConfigError> {
    let Some(setting) = layers.find("initial-cluster") else { return Ok(None) };
    let members = parse_members(&setting.list()).map_err(|problem| setting.bad(problem))?;
    let data_groups = data_groups(layers)?;
    let token = token(layers)?.unwrap_or_else(|| DEFAULT_TOKEN.to_owned());
    let descent =
        layers.find("descent").map(|setting| Descent::parse(setting.text()?).map_err(|problem| setting.bad(problem)));
    let (boundaries, descent) = (boundaries(layers, data_groups)?, descent.transpose()?);
    Ok(Some(Genesis { token, members, data_groups, boundaries, descent }))
}

pub(super) fn data_groups(layers: &Layers) -> Result<u32, ConfigError> {
    let setting = layers.get("data-groups", "2");
    let groups = value::number(setting.text()?, 1..=DATA_GROUPS_MAX).map_err(|problem| setting.bad(problem))?;
    Ok(groups as u32)
}

pub(super) fn boundaries(layers: &Layers, data_groups: u32) -> Result<Vec<Bytes>, ConfigError> {
    let Some(setting) = layers.find("shard-boundaries") else {
        return Ok(default_boundaries(DEFAULT_SHARDS.max(data_groups)));
    };
    let texts = match &setting.raw {
        Raw::One(text) => value::split_keys(text),
        Raw::Many(texts) => texts.clone(),
    };
    if texts.len() > BOUNDARIES_MAX {
        return Err(setting.bad(format!("{} boundaries; at most {BOUNDARIES_MAX}", texts.len())));
    }
    let keys = texts.iter().map(|text| value::key(text).map(Bytes::from)).collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|problem| setting.bad(problem))?;
    if keys.first().is_none_or(|first| first.is_empty()) {
        return Err(setting.bad("holds an empty boundary; the first shard begins at the lowest key by itself"));
    }
    if let Some(at) = keys.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(setting.bad(format!("`{}` is not above `{}`; write the keys ascending", texts[at + 1], texts[at])));
    }
    Ok(keys)
}

fn known_nodes(layers: &Layers) -> Result<Vec<Address>, ConfigError> {
    let Some(setting) = layers.find("known-nodes") else { return Ok(Vec::new()) };
    setting.list().iter().map(|item| Address::parse(item).map_err(|problem| setting.bad(problem))).collect()
}

/// This node's entry in the list must say what `--roles` says.
fn check_membership(
    layers: &Layers,
    name: &NodeName,
    roles: &Roles,
    genesis: Option<&Genesis>,
    join: bool,
) -> Result<(), ConfigError> {
    let Some(genesis) = genesis else {
        let why = "a gateway without replicas must be told where the nodes are";
        let needed = !roles.hosts_replicas();
        return if needed { Err(ConfigError::Missing { key: "initial-cluster", why }) } else { Ok(()) };
    };
    let list = layers.get("initial-cluster", "");
    let knows_itself =
        layers.find("data-dir").is_some_and(|path| path.text().is_ok_and(|path| identity::is_there(Path::new(path))));
    if genesis.descent.is_some() && roles.hosts_replicas() && !join && !knows_itself {
        let why = "is for a node that joins a cluster that was restored: without --join this one would form an empty \
                   cluster under the same id";
        return Err(layers.get("descent", "").bad(why));
    }
    match (genesis.member(name), roles.hosts_replicas()) {
        (None, false) => Ok(()),
        // It joins, or has joined once, and is still to be told where it is reached.
        (None, true) if join || knows_itself => match layers.find("advertise-peer") {
            Some(_) => Ok(()),
            None => Err(ConfigError::Missing {
                key: "advertise-peer",
                why: "the other nodes must be told where a node that joins is reached",
            }),
        },
        (Some(_), true) if join => Err(list.bad(format!(
            "names {name}, which is to --join: a node that joins is none of those that form the cluster; correct --name"
        ))),
        (None, true) => Err(list.bad(format!(
            "does not name this node, {name}; add {name}=HOST:PORT on every node of a new cluster, --join one that \
             exists, or correct --name"
        ))),
        (Some(_), false) => Err(list.bad(format!(
            "names {name}, which keeps no replicas with --roles {roles}; take it out of the list on every node"
        ))),
        (Some(member), true) if member.roles == roles.replicas_only() => Ok(()),
        (Some(member), true) => Err(list.bad(format!(
            "gives {name} the roles {}, but --roles says {roles}; write {name}={}/{} on every node, or change --roles",
            member.roles,
            member.peer_address,
            roles.replicas_only()
        ))),
    }
}

/// The two ports of a node.
#[derive(Clone, Copy)]
enum Port {
    Client,
    Peer,
}

fn addresses(layers: &Layers, port: Port, member: Option<&Member>) -> Result<(Address, Address), ConfigError> {
    let (listen_key, advertise_key, default, tls) = match port {
        Port::Client => ("listen-client", "advertise-client", "127.0.0.1:2379", "client-tls-dir"),
        Port::Peer => ("listen-peer", "advertise-peer", "127.0.0.1:2380", "peer-tls-dir"),
    };
    let listen = listen_address(layers, listen_key, default, false, Some(tls))?;
    let advertised = match layers.find(advertise_key) {
        Some(setting) => {
            let address = Address::parse(setting.text()?).map_err(|problem| setting.bad(problem))?;
            if address.is_unspecified() || address.port() == 0 {
                return Err(setting.bad(format!("nobody can dial {address}; write the address of this machine")));
            }
            if let Some(member) = member.filter(|member| member.peer_address != address) {
                let theirs = &member.peer_address;
                return Err(setting.bad(format!(
                    "{address} is not what --initial-cluster says of {}: {theirs}; make them equal",
                    member.name
                )));
            }
            address
        }
        None => member.map_or_else(|| listen.clone(), |member| member.peer_address.clone()),
    };
    if advertised.is_unspecified() {
        return Err(ConfigError::Conflict(format!(
            "--{listen_key} is {listen}, which nobody can dial; say with --{advertise_key} how this node is reached"
        )));
    }
    Ok((listen, advertised))
}

/// An address to listen on: a literal one, off loopback only with the directory that `tls` names, or with
/// consent.
pub(super) fn listen_address(
    layers: &Layers,
    key: &str,
    default: &str,
    port_zero_allowed: bool,
    tls: Option<&'static str>,
) -> Result<Address, ConfigError> {
    let setting = layers.get(key, default);
    let address = Address::parse(setting.text()?).map_err(|problem| setting.bad(problem))?;
    if address.host() != "localhost" && address.host().parse::<std::net::IpAddr>().is_err() {
        let problem = format!("`{}` is a name; write the IP address to listen on (0.0.0.0 for all)", address.host());
        return Err(setting.bad(problem));
    }
    if address.port() == 0 && !port_zero_allowed {
        return Err(setting.bad("port 0 would be another one at every start; write a fixed port"));
    }
    let insecure_plaintext = insecure_plaintext(layers)?;
    let encrypted = tls.is_some_and(|key| layers.find(key).is_some());
    if !address.is_loopback() && !encrypted && !insecure_plaintext {
        return Err(ConfigError::PlaintextOffLoopback { origin: setting.origin, address: address.to_string(), tls });
    }
    Ok(address)
}

fn zone(layers: &Layers) -> Result<String, ConfigError> {
    let Some(setting) = layers.find("zone") else { return Ok(String::new()) };
    // On Kubernetes a pod without the label has an empty variable.
    let zone = setting.text_or_nothing()?;
    let plain = |c: char| c.is_ascii_graphic();
    match zone.len() <= ZONE_BYTES_MAX && zone.chars().all(plain) {
        true => Ok(zone.to_owned()),
        false => Err(setting.bad(format!("a zone has at most {ZONE_BYTES_MAX} letters, digits and signs, no spaces"))),
    }
}

fn insecure_plaintext(layers: &Layers) -> Result<bool, ConfigError> {
    let setting = layers.get("insecure-plaintext", "false");
    value::switch(setting.text()?).map_err(|problem| setting.bad(problem))
}

fn timing(layers: &Layers) -> Result<Timing, ConfigError> {
    let period = |key, default| {
        let setting = layers.get(key, default);
        value::milliseconds(setting.text()?, 1..=600_000).map_err(|problem| setting.bad(problem))
    };
    let heartbeat = period("heartbeat-ms", "100")?;
    let election_timeout = period("election-timeout-ms", "600")?;
    let lease = period("lease-ms", "800")?;
    // One lost heartbeat must neither start an election nor end a lease.
    for (key, value) in [("election-timeout-ms", election_timeout), ("lease-ms", lease)] {
        if value < 3 * heartbeat {
            let (value, heartbeat) = (value.as_millis(), heartbeat.as_millis());
            let problem =
                format!("{value} ms is less than three heartbeats of {heartbeat} ms; raise it, or lower heartbeat-ms");
            return Err(layers.get(key, "").bad(problem));
        }
    }
    let setting = layers.get("dead-after-seconds", "600");
    let seconds = value::number(setting.text()?, 0..=31_536_000).map_err(|problem| setting.bad(problem))?;
    let dead_after = Duration::from_secs(seconds);
    if seconds > 0 && dead_after < 10 * election_timeout {
        return Err(setting.bad(format!(
            "{seconds} s is less than ten election timeouts; replicas would move at every restart: raise it, or write 0 \
             for never"
        )));
    }
    Ok(Timing { heartbeat, election_timeout, lease, dead_after })
}

pub(super) fn log(layers: &Layers) -> Result<LogConfig, ConfigError> {
    let setting = layers.get("log-level", "info");
    let filter = setting.text()?.to_owned();
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&filter) {
        return Err(setting.bad(format!("`{filter}` is no filter ({error}); write for instance info,paxos=debug")));
    }
    let format = word(layers, "log-format", "text", &[("text", LogFormat::Text), ("json", LogFormat::Json)])?;
    Ok(LogConfig { filter, format })
}

fn word<T: Copy>(layers: &Layers, key: &str, default: &str, words: &[(&str, T)]) -> Result<T, ConfigError> {
    let setting = layers.get(key, default);
    value::one_of(setting.text()?, words).map_err(|problem| setting.bad(problem))
}
