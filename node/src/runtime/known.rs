//! Who the other nodes are: what they say of themselves when they open a stream, what is remembered of them, and
//! where they were the last time.
//!
//! The other side of a stream checks its cluster, id and data directory, and says of which kind a refusal is: a node
//! whose directory was replaced must stop, and one that most of its peers take for a stranger, too; but a single
//! stranger at a peer's address stops nobody.

use super::lock;
use super::open::{NodeConfig, PeerAddress};
use paxos::NodeId;
use serde::{Deserialize, Serialize};
use shardkv::map::NodeInfo;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

const FILE: &str = "peers.json";
const CLUSTER: &str = "cloudpaxos-cluster";
const NODE: &str = "cloudpaxos-node";
const INCARNATION: &str = "cloudpaxos-incarnation";
/// Whom the caller means to reach.
const TO: &str = "cloudpaxos-to";
/// Says of which kind a refusal is.
const REFUSAL: &str = "cloudpaxos-refusal";
const REPLACED: &str = "replaced";
const STRANGER: &str = "stranger";
const REMOVED: &str = "removed";

/// Who a node says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The cluster's id.
    pub cluster: u64,
    /// The node.
    pub node: NodeId,
    /// The random number of its data directory.
    pub incarnation: u64,
    /// Whom it means to reach: an address may lead to another node than the caller believes, and what is meant for one
    /// must not be taken, and answered, by another.
    pub to: NodeId,
}

impl Handshake {
    pub(super) fn write(&self, metadata: &mut MetadataMap) {
        let mut put = |key: &'static str, value: u64| {
            let value: MetadataValue<Ascii> = value.into();
            metadata.insert(key, value);
        };
        put(CLUSTER, self.cluster);
        put(NODE, self.node.0);
        put(INCARNATION, self.incarnation);
        put(TO, self.to.0);
    }

    /// What the opener of a stream wrote.
    pub fn read(metadata: &MetadataMap) -> Option<Handshake> {
        let number = |key| metadata.get(key)?.to_str().ok()?.parse().ok();
        let (cluster, incarnation) = (number(CLUSTER)?, number(INCARNATION)?);
        Some(Handshake { cluster, node: NodeId(number(NODE)?), incarnation, to: NodeId(number(TO)?) })
    }
}

/// What a refusal means for the node that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may be another one's mistake, or pass.
    TryOn,
    /// It must not say another word.
    Stop,
    /// It was removed from the cluster, and holds nothing: it ends in peace.
    Leave,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct KnownFile {
    version: u32,
    incarnations: BTreeMap<u64, u64>,
    /// Where the shard map said that nodes are: a node that holds no replica of the shardmaster finds the
    /// others by it, when those of the first days are long gone.
    #[serde(default)]
    nodes: BTreeMap<u64, PeerAddress>,
    /// The data directories that it says they have.
    #[serde(default)]
    registered: BTreeMap<u64, u64>,
    /// The largest id that a node of that map ever had.
    #[serde(default)]
    last_node: u64,
}

/// Who is in the cluster, by one and the same map.
#[derive(Default)]
struct Members {
    nodes: BTreeMap<NodeId, PeerAddress>,
    /// Their data directories, where they have told the shardmaster.
    registered: BTreeMap<u64, u64>,
    /// The largest id that was ever given; 0 before any map is known.
    last: u64,
}

/// The data directories under which the other nodes were met, remembered across restarts: a node
/// that comes back with another one has lost its promises and must not vote under its old name. Also who has never met
/// a node knows its directory, by the shard map: it might else be half of a majority with one that has forgotten
/// everything.
pub struct KnownPeers {
    path: PathBuf,
    ours: Handshake,
    members: Mutex<Members>,
    /// What this start was told of where nodes are; the shard map may still have the addresses of the last.
    described: BTreeMap<NodeId, PeerAddress>,
    known: Mutex<KnownFile>,
    /// Peers that took this node for a stranger when it last dialled them.
    refused_by: Mutex<BTreeSet<NodeId>>,
}

impl KnownPeers {
    /// Reads what is remembered in the data directory.
    pub fn open(config: &NodeConfig) -> std::io::Result<KnownPeers> {
        let path = config.data_dir.join(FILE);
        let known = read(&path)?;
        // The newest list counts: who is not in it any more was removed.
        let mut names = if known.last_node == 0 { config.peers.clone() } else { BTreeMap::new() };
        for (node, address) in &known.nodes {
            let described = config.peers.get(&NodeId(*node)).unwrap_or(address);
            names.entry(NodeId(*node)).or_insert_with(|| described.clone());
        }
        let (cluster, node, incarnation) = (config.cluster_id, config.core.me, config.incarnation);
        let ours = Handshake { cluster, node, incarnation, to: node };
        Ok(KnownPeers {
            path,
            ours,
            members: Mutex::new(Members { nodes: names, registered: known.registered.clone(), last: known.last_node }),
            described: config.peers.clone(),
            known: Mutex::new(known),
            refused_by: Mutex::default(),
        })
    }

    /// The other nodes, and where they are, as far as that is known.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerAddress> {
        let mut names = lock(&self.members).nodes.clone();
        names.retain(|node, known| *node != self.ours.node && !known.address.is_empty());
        names
    }

    /// Whether a node that was admitted may still be heard: it is one of the cluster, and what the map says of its data
    /// directory is what it said itself.
    pub(super) fn is_welcome(&self, admitted: &Handshake) -> bool {
        let members = lock(&self.members);
        let registered = members.registered.get(&admitted.node.0);
        members.nodes.contains_key(&admitted.node) && registered.is_none_or(|it| *it == admitted.incarnation)
    }

    /// The shard map says which nodes there are, and which id was given last. What cannot be written down is known until
    /// the next start.
    pub fn meet(&self, nodes: &[NodeInfo], last_node: NodeId) {
        let (stored, mut registered) = (addresses(nodes), directories(nodes));
        {
            let mut members = lock(&self.members);
            // After a crash a node may begin with a map that is older than what it has noted.
            if last_node.0 < members.last {
                return;
            }
            // That map may be from before a node had told of its directory, too.
            let noted = members.registered.iter().filter(|(node, _)| stored.contains_key(*node));
            for (node, it) in noted {
                registered.entry(*node).or_insert(*it);
            }
            let described = |node: &NodeInfo| self.described.get(&node.id).cloned().unwrap_or_else(|| address(node));
            let nodes = nodes.iter().map(|node| (node.id, described(node))).collect();
            *members = Members { nodes, registered: registered.clone(), last: last_node.0 };
        }
        let mut known = lock(&self.known);
        if known.nodes == stored && known.registered == registered && known.last_node == last_node.0 {
            return;
        }
        // The next data directory under a number that is gone would be another node's.
        let mut incarnations = known.incarnations.clone();
        incarnations.retain(|node, _| stored.contains_key(node));
        let version = known.version;
        let next = KnownFile { nodes: stored, registered, last_node: last_node.0, incarnations, version };
        match save(&self.path, &next) {
            Ok(()) => *known = next,
            Err(error) => tracing::warn!(%error, "the nodes of the cluster cannot be noted in {}", self.path.display()),
        }
    }

    /// This node, to another one.
    pub fn ours(&self, to: NodeId) -> Handshake {
        Handshake { to, ..self.ours }
    }

    /// Checks who opens a stream, and remembers its data directory.
    pub fn admit(&self, theirs: Option<Handshake>) -> Result<Handshake, Status> {
        let Some(theirs) = theirs else {
            return Err(Status::unauthenticated(
                "the peer port is for nodes of this cluster; clients use the client port",
            ));
        };
        if theirs.cluster != self.ours.cluster {
            return Err(self.refusal(
                STRANGER,
                format!(
                    "this node belongs to cluster {:016x}, the caller to {:016x}: check --initial-cluster, \
                 --cluster-token, --data-groups and --shard-boundaries",
                    self.ours.cluster, theirs.cluster
                ),
            ));
        }
        if theirs.to != self.ours.node {
            let text = format!("this is {}, not {}: correct the address of one of them", self.ours.node, theirs.to);
            return Err(Status::unavailable(text));
        }
        let (name, registered, last) = {
            let members = lock(&self.members);
            let name = members.nodes.get(&theirs.node).map(|known| known.name.clone());
            (name, members.registered.get(&theirs.node.0).copied(), members.last)
        };
        let Some(name) = name else {
            if theirs.node.0 <= last {
                return Err(self.refusal(
                    REMOVED,
                    format!(
                        "{} was removed from this cluster, for good: a new node starts with an empty directory, --join and \
                         a name that --initial-cluster does not have",
                        theirs.node
                    ),
                ));
            }
            // It may have joined a moment ago: it may ask again, and need not stop.
            let text = format!("{} is no node of this cluster, as far as is known here", theirs.node);
            return Err(Status::unavailable(text));
        };
        let mut known = lock(&self.known);
        let met = known.incarnations.get(&theirs.node.0).copied();
        if [registered, met].into_iter().flatten().any(|it| it != theirs.incarnation) {
            return Err(self.refusal(
                REPLACED,
                format!(
                    "node {name} is known here with another data directory, and its promises were in that one: start it with \
                     its old directory, or remove the node from the cluster and add it under a new name"
                ),
            ));
        }
        if met.is_none() {
            self.remember(&mut known, theirs)?;
        }
        Ok(theirs)
    }

    fn remember(&self, known: &mut KnownFile, theirs: Handshake) -> Result<(), Status> {
        let mut next = known.clone();
        next.incarnations.insert(theirs.node.0, theirs.incarnation);
        save(&self.path, &next).map_err(|error| {
            Status::unavailable(format!("cannot remember the peer in {}: {error}", self.path.display()))
        })?;
        *known = next;
        Ok(())
    }

    fn refusal(&self, kind: &'static str, text: String) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert(REFUSAL, MetadataValue::from_static(kind));
        metadata.insert(CLUSTER, self.ours.cluster.into());
        Status::with_metadata(Code::FailedPrecondition, text, metadata)
    }

    /// A peer refuses this node. What follows from it.
    pub(super) fn refused(&self, by: NodeId, status: &Status) -> Verdict {
        let said = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        let ours = said(CLUSTER).and_then(|id| id.parse().ok()) == Some(self.ours.cluster);
        match said(REFUSAL) {
            Some(REPLACED) if ours => Verdict::Stop,
            Some(REMOVED) if ours => Verdict::Leave,
            Some(_) => {
                let mut refused_by = lock(&self.refused_by);
                refused_by.insert(by);
                let most = 2 * refused_by.len() > lock(&self.members).nodes.len().saturating_sub(1);
                if most { Verdict::Stop } else { Verdict::TryOn }
            }
            None => Verdict::TryOn,
        }
    }

    pub(super) fn accepted(&self, by: NodeId) {
        lock(&self.refused_by).remove(&by);
    }
}

/// A node that joins notes down which nodes the cluster has, before its first start: those that formed it may be gone.
pub fn note_nodes(data_dir: &Path, nodes: &[NodeInfo]) -> std::io::Result<()> {
    let path = data_dir.join(FILE);
    let known = read(&path)?;
    save(&path, &KnownFile { nodes: addresses(nodes), registered: directories(nodes), ..known })
}

fn address(node: &NodeInfo) -> PeerAddress {
    PeerAddress { name: node.name.clone(), address: node.peer_address.clone() }
}

fn addresses(nodes: &[NodeInfo]) -> BTreeMap<u64, PeerAddress> {
    nodes.iter().map(|node| (node.id.0, address(node))).collect()
}

fn directories(nodes: &[NodeInfo]) -> BTreeMap<u64, u64> {
    nodes.iter().filter(|node| node.incarnation != 0).map(|node| (node.id.0, node.incarnation)).collect()
}

fn read(path: &Path) -> std::io::Result<KnownFile> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(KnownFile { version: 1, ..KnownFile::default() })
        }
        Err(error) => Err(error),
    }
}

/// Replaces the file durably.
fn save(path: &Path, known: &KnownFile) -> std::io::Result<()> {
    use std::io::Write;
    let next = path.with_extension("json.next");
    let mut file = std::fs::File::create(&next)?;
    file.write_all(&serde_json::to_vec_pretty(known)?)?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
