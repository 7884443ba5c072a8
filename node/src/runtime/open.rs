//! Opening a node's directory: the store, the log, every replica's state.

use super::known::KnownPeers;
use super::space::{Marks, PatientStore, Space};
use crate::core::{Core, CoreConfig, Hosted};
use crate::host::Machines;
use paxos::{Ballot, ConfigId, Configuration, GroupId, NodeId, Record, Recovered, recover, tombstone};
use serde::{Deserialize, Serialize};
use shardkv::store::StoreError;
use shardkv::{CachedStore, RocksOptions, RocksStore, SessionLimits};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wal::{Append, Disk, FileDisk, Log};

/// The store's reserve in the data directory: room that is given up when the disk is full.
pub const RESERVE: &str = "store-reserve";

/// The store of a real node.
pub type NodeStore = CachedStore<PatientStore<RocksStore>>;

/// Where a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddress {
    /// The operator's name for it.
    pub name: String,
    /// `host:port` of its peer port.
    pub address: String,
}

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The core's part.
    pub core: CoreConfig,
    /// The groups that this node hosts a replica of, with all their replicas.
    pub groups: Vec<(GroupId, Vec<NodeId>)>,
    /// The cluster's id.
    pub cluster_id: u64,
    /// The random number of this data directory.
    pub incarnation: u64,
    /// The directory had a log before: without one the node has lost its promises.
    pub log_expected: bool,
    /// The data directory; `log` and `store` go below it.
    pub data_dir: PathBuf,
    /// All nodes that host replicas.
    pub peers: BTreeMap<NodeId, PeerAddress>,
    /// RocksDB's settings.
    pub store: RocksOptions,
    /// Bytes of rows cached in front of it.
    pub row_cache_bytes: usize,
    /// Bytes of one log segment.
    pub segment_bytes: u64,
    /// Bytes waiting for the log.
    pub log_queue_bytes_max: u64,
    /// Bytes waiting for one peer; beyond, messages are dropped and sent again later.
    pub peer_queue_bytes_max: usize,
    /// The largest entry that a leader here proposes.
    pub entry_bytes_max: u64,
    /// A fresh random number: the log's segments are salted with it.
    pub salt_seed: u64,
}

/// Why a node cannot open its directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store does not open.
    #[error("cannot open the store in {}: {source}", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The log does not open.
    #[error("cannot open the log in {}: {source}", path.display())]
    Log {
        /// Where.
        path: PathBuf,
        /// Why.
        source: wal::OpenError,
    },
    /// A promise may be lost: the node must not vote under its old id.
    #[error(
        "the log in {} has rotten where promises may have been ({frames} corrupt places); this node must not vote \
         under its old identity: remove it from the cluster, empty its data directory and add it anew",
        path.display()
    )]
    PromisesLost {
        /// Where.
        path: PathBuf,
        /// How many corrupt frames.
        frames: usize,
    },
    /// A record that is whole but not ours.
    #[error("the log in {} holds a record of {group} that does not decode: {source}", path.display())]
    Record {
        /// Where.
        path: PathBuf,
        /// Whose.
        group: GroupId,
        /// Why.
        source: paxos::DecodeError,
    },
    /// The log does not reach down to the store.
    #[error("{group} in {}: {source}", path.display())]
    Gap {
        /// Where.
        path: PathBuf,
        /// Whose.
        group: GroupId,
        /// What is missing.
        source: paxos::record::Gap,
    },
    /// The directory's log is gone.
    #[error(
        "the log in {} is gone, and with it what this node has promised: put it back (is something not mounted?), or \
         replace the node", path.display()
    )]
    LogLost {
        /// Where it was.
        path: PathBuf,
    },
    /// A thread or file could not be made.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A node that is open but does not run yet.
pub struct Opened {
    pub(super) core: Core<NodeStore>,
    pub(super) machines: Machines<NodeStore>,
    pub(super) store: Arc<NodeStore>,
    pub(super) space: Arc<Space>,
    pub(super) log: Log,
    pub(super) known: Arc<KnownPeers>,
    pub(super) config: NodeConfig,
}

/// Opens store and log, and recovers every replica.
pub fn open(mut config: NodeConfig) -> Result<Opened, OpenError> {
    let read = |source| OpenError::Io { what: "read peers.json in the data directory".to_owned(), source };
    let known = Arc::new(KnownPeers::open(&config).map_err(read)?);
    // Those that formed the cluster may all be gone: whoever was met since can tell the map.
    let met = known.peers().into_keys().filter(|node| !config.core.nodes.contains(node)).collect::<Vec<_>>();
    config.core.nodes.extend(met);
    let store_path = config.data_dir.join("store");
    let store_failed = |source| OpenError::Store { path: store_path.clone(), source };
    // The marks are of memtables that are not staggered: they are the same on every node, and enough.
    let open_rocks = || RocksStore::open(&store_path, config.store.staggered(config.core.me.0));
    let reserve = config.data_dir.join(RESERVE);
    let (rocks, space) =
        Space::open(reserve, Marks::new(config.store.flush_bytes()), open_rocks).map_err(store_failed)?;
    let store = Arc::new(CachedStore::new(PatientStore::new(rocks, space.clone()), config.row_cache_bytes));
    let path = config.data_dir.join("log");
    let log_failed = |source| OpenError::Log { path: path.clone(), source };
    std::fs::create_dir_all(&path)
        .map_err(|source| OpenError::Io { what: format!("create {}", path.display()), source })?;
    let mut disk = FileDisk::open(&path).map_err(log_failed)?;
    let files = disk.list().map_err(|source| OpenError::Io { what: format!("list {}", path.display()), source })?;
    if config.log_expected && files.is_empty() {
        return Err(OpenError::LogLost { path });
    }
    let wal_config = wal::Config {
        segment_bytes: config.segment_bytes,
        queue_bytes_max: config.log_queue_bytes_max,
        // A record holds an entry, or a piece of several; other nodes may propose somewhat larger ones.
        frame_bytes_max: (2 * config.entry_bytes_max).max(8 << 20).next_multiple_of(4096).min(config.segment_bytes / 2),
        ..wal::Config::new(config.core.me.0, config.salt_seed)
    };
    let (mut log, recovery) = Log::open(Box::new(disk), wal_config).map_err(log_failed)?;
    for corrupt in &recovery.corrupt_frames {
        tracing::error!(
            segment = corrupt.segment,
            offset = corrupt.offset,
            "the log is corrupt here; what was lost is repaired from the other replicas"
        );
    }
    if recovery.promises_lost {
        return Err(OpenError::PromisesLost { path, frames: recovery.corrupt_frames.len() });
    }
    let (groups, ended) = match config.log_expected {
        true => found_groups(&recovery, &path)?,
        false => (begin_groups(&mut log, &config, &path)?, BTreeMap::new()),
    };
    let sessions = SessionLimits::default();
    let mut machines = Machines::open(store.clone(), &groups, config.core.boot, sessions).map_err(store_failed)?;
    for group in ended.keys() {
        machines.close(*group).map_err(store_failed)?;
    }
    let mut hosted = Vec::new();
    for group in groups {
        let recovered = recover_group(&mut log, &recovery, group, &machines, &path)?;
        let applied = machines.applied(group);
        let Some(machine) = machines.machine(group) else { continue };
        // A replica that was opened later learns who votes.
        let first = config.groups.iter().find(|(id, _)| *id == group && recovered.promised.config == ConfigId(0));
        let first = first.map(|(_, replicas)| Configuration::first(replicas.clone()));
        let configuration = machines.configuration(group).or(first).unwrap_or_default();
        let fenced = machines.is_fenced(group);
        hosted.push(Hosted { group, configuration, recovered, applied, fenced, machine });
    }
    let mut core = Core::new(config.core.clone(), hosted, super::now());
    core.remember(ended);
    Ok(Opened { core, machines, store, space, log, known, config })
}

/// Logs the beginnings of a new node's first replicas: from then on the log says which there are.
fn begin_groups(log: &mut Log, config: &NodeConfig, path: &Path) -> Result<Vec<GroupId>, OpenError> {
    let record = Record::Opened(Configuration::floor(ConfigId(0)));
    let append = |(group, _): &(GroupId, Vec<NodeId>)| Append { group: group.0, payload: record.encode(), twice: true };
    let appends: Vec<Append> = config.groups.iter().map(append).collect();
    log.append(&appends).map_err(|error| OpenError::Io {
        what: format!("write to the log in {}", path.display()),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(config.groups.iter().map(|(group, _)| *group).collect())
}

/// Groups of a node's replicas, and what replicas that have ended had promised.
type Found = (Vec<GroupId>, BTreeMap<GroupId, Ballot>);

/// Which replicas a log is of.
fn found_groups(recovery: &wal::Recovery, path: &Path) -> Result<Found, OpenError> {
    let (mut groups, mut ended) = (Vec::new(), BTreeMap::new());
    for (group, found) in &recovery.groups {
        let group = GroupId(*group);
        let decoded = found.iter().map(|record| Record::decode(&record.payload)).collect::<Result<Vec<_>, _>>();
        let records = decoded.map_err(|source| OpenError::Record { path: path.into(), group, source })?;
        match tombstone(records.iter()) {
            Some(promised) => drop(ended.insert(group, promised)),
            None => groups.push(group),
        }
    }
    Ok((groups, ended))
}

fn recover_group(
    log: &mut Log,
    recovery: &wal::Recovery,
    group: GroupId,
    machines: &Machines<NodeStore>,
    path: &Path,
) -> Result<Recovered, OpenError> {
    let found = recovery.groups.get(&group.0).map(Vec::as_slice).unwrap_or_default();
    let decoded = found.iter().map(|record| Record::decode(&record.payload)).collect::<Result<Vec<_>, _>>();
    let mut records = decoded.map_err(|source| OpenError::Record { path: path.into(), group, source })?;
    // Damage that an earlier start has marked stays on disk until its segment goes; what was logged
    // behind the mark counts.
    let pairs = found.iter().zip(&records).rev();
    let marked = pairs.filter(|(_, record)| matches!(record, Record::Suspect)).map(|(at, _)| at.lsn).next();
    let fresh = recovery.lost.iter().any(|lost| marked.is_none_or(|mark| lost.end > mark));
    if recovery.is_suspect(group.0) && fresh {
        // The mark is durable before the replica may say a word, also on a full disk.
        let mark = Append { group: group.0, payload: Record::Suspect.encode(), twice: true };
        log.append_reclaim(&[mark]).map_err(|error| OpenError::Io {
            what: format!("write to the log in {}", path.display()),
            source: std::io::Error::other(error.to_string()),
        })?;
        tracing::error!(%group, "a part of this replica's log is lost; it votes again when it has been repaired");
        records.push(Record::Suspect);
    }
    let (applied, imaged) = (machines.applied(group), machines.imaged(group));
    let config = machines.configuration(group).map_or(ConfigId(0), |configuration| configuration.id);
    recover(records.iter(), applied, imaged, config).map_err(|source| OpenError::Gap {
        path: path.into(),
        group,
        source,
    })
}
