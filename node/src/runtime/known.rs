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

#[derive(Default, Serialize, Deserialize)]
struct KnownFile {
    version: u32,
    incarnations: BTreeMap<u64, u64>,
    /// Where the shard map said that nodes are: a node that holds no replica of the shardmaster finds the
    /// others by it, when those of the first days are long gone.
    #[serde(default)]
    nodes: BTreeMap<u64, PeerAddress>,
    /// The largest id that a node of that map ever had.
    #[serde(default)]
    last_node: u64,
}

/// Who is in the cluster, by one and the same map.
#[derive(Default)]
struct Members {
    nodes: BTreeMap<NodeId, PeerAddress>,
    /// The largest id that was ever given; 0 before any map is known.
    last: u64,
}

/// The data directories under which the other nodes were met, remembered across restarts: a node
/// that comes back with another one has lost its promises and must not vote under its old name.
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
            members: Mutex::new(Members { nodes: names, last: known.last_node }),
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

    /// Whether a node is one of the cluster, as far as is known here.
    pub(super) fn is_member(&self, node: NodeId) -> bool {
        lock(&self.members).nodes.contains_key(&node)
    }

    /// The shard map says which nodes there are, and which id was given last. What cannot be written down is known until
    /// the next start.
    pub fn meet(&self, nodes: &BTreeMap<NodeId, PeerAddress>, last_node: NodeId) {
        let told =
            |(node, address): (&NodeId, &PeerAddress)| (*node, self.described.get(node).unwrap_or(address).clone());
        {
            let mut members = lock(&self.members);
            // After a crash a node may begin with a map that is older than what it has noted.
            if last_node.0 < members.last {
                return;
            }
            *members = Members { nodes: nodes.iter().map(told).collect(), last: last_node.0 };
        }
        let mut known = lock(&self.known);
        let stored: BTreeMap<u64, PeerAddress> = nodes.iter().map(|(node, it)| (node.0, it.clone())).collect();
        if known.nodes == stored && known.last_node == last_node.0 {
            return;
        }
        // The next data directory under a number that is gone would be another node's.
        let mut incarnations = known.incarnations.clone();
        incarnations.retain(|node, _| stored.contains_key(node));
        let next = KnownFile { nodes: stored, last_node: last_node.0, incarnations, version: known.version };
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
    pub fn admit(&self, theirs: Option<Handshake>) -> Result<NodeId, Status> {
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
        let (name, last) = {
            let members = lock(&self.members);
            (members.nodes.get(&theirs.node).map(|known| known.name.clone()), members.last)
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
        match known.incarnations.get(&theirs.node.0) {
            Some(incarnation) if *incarnation == theirs.incarnation => Ok(theirs.node),
            Some(_) => Err(self.refusal(REPLACED, format!(
                "node {} is known here with another data directory, and its promises were in that one: start it with its \
                 old directory, or remove the node from the cluster and add it under a new name",
                name
            ))),
            None => {
                let mut incarnations = known.incarnations.clone();
                incarnations.insert(theirs.node.0, theirs.incarnation);
                let next = KnownFile { incarnations, nodes: known.nodes.clone(), ..*known };
                save(&self.path, &next).map_err(|error| {
                    Status::unavailable(format!("cannot remember the peer in {}: {error}", self.path.display()))
                })?;
                *known = next;
                Ok(theirs.node)
            }
        }
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
pub fn note_nodes(data_dir: &Path, nodes: &BTreeMap<NodeId, PeerAddress>) -> std::io::Result<()> {
    let path = data_dir.join(FILE);
    let known = read(&path)?;
    save(&path, &KnownFile { nodes: nodes.iter().map(|(node, it)| (node.0, it.clone())).collect(), ..known })
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
mod tests {
    use super::*;

    fn known(me: u64, cluster: u64, directory: &Path) -> KnownPeers {
        let address = |id: u64| PeerAddress { name: format!("n{id}"), address: format!("127.0.0.1:{id}") };
        KnownPeers {
            path: directory.join("peers.json"),
            ours: Handshake { cluster, node: NodeId(me), incarnation: 10 * me, to: NodeId(me) },
            members: Mutex::new(Members { nodes: (1..=3).map(|id| (NodeId(id), address(id))).collect(), last: 0 }),
            described: BTreeMap::new(),
            known: Mutex::default(),
            refused_by: Mutex::default(),
        }
    }

    #[test]
    fn one_stranger_stops_nobody_but_a_stranger_among_peers_stops() {
        let directory = tempfile::tempdir().expect("a directory");
        let (n1, n2) = (known(1, 7, directory.path()), known(2, 7, directory.path()));
        let stranger = known(3, 8, directory.path());
        let refusal = stranger.admit(Some(n1.ours(NodeId(3)))).expect_err("of another cluster");
        assert_eq!(n1.refused(NodeId(3), &refusal), Verdict::TryOn, "n2 may take n1 for what it is");
        assert_eq!(n1.refused(NodeId(3), &refusal), Verdict::TryOn, "said again");
        let refusal = |by: &KnownPeers| by.admit(Some(stranger.ours(by.ours.node))).expect_err("of another cluster");
        assert_eq!(stranger.refused(NodeId(1), &refusal(&n1)), Verdict::TryOn);
        assert_eq!(stranger.refused(NodeId(2), &refusal(&n2)), Verdict::Stop, "all of them say so");
        n1.accepted(NodeId(3));
        assert_eq!(n1.refused(NodeId(2), &refusal(&n2)), Verdict::TryOn, "n3 has changed its mind");
    }

    #[test]
    fn a_node_with_another_directory_stops_at_the_first_refusal() {
        let directory = tempfile::tempdir().expect("a directory");
        let n1 = known(1, 7, directory.path());
        let mut n2 = known(2, 7, directory.path());
        assert_eq!(n1.admit(Some(n2.ours(NodeId(1)))).expect("welcome"), NodeId(2));
        n2.ours.incarnation += 1;
        let refusal = n1.admit(Some(n2.ours(NodeId(1)))).expect_err("its promises are gone");
        assert_eq!(n2.refused(NodeId(1), &refusal), Verdict::Stop, "{refusal}");
        // The same words from another cluster's node prove nothing.
        let foreign = known(1, 8, directory.path());
        let refusal = foreign.refusal(REPLACED, "no".into());
        assert_eq!(n2.refused(NodeId(3), &refusal), Verdict::TryOn);
    }

    #[test]
    fn a_peer_is_admitted_only_when_it_is_remembered() {
        let n1 = known(1, 7, Path::new("/nowhere/at/all"));
        let n2 = known(2, 7, Path::new("/nowhere"));
        for _ in 0..2 {
            let refusal = n1.admit(Some(n2.ours(NodeId(1)))).expect_err("it cannot be remembered");
            assert_eq!(refusal.code(), Code::Unavailable);
        }
    }

    #[test]
    fn who_was_removed_is_told_for_good_and_who_is_new_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let (n1, n3) = (known(1, 7, directory.path()), known(3, 7, directory.path()));
        let address = |id: u64| PeerAddress { name: format!("n{id}"), address: format!("127.0.0.1:{id}") };
        n1.meet(&[1, 2, 4].map(|id| (NodeId(id), address(id))).into(), NodeId(4));
        let refusal = n1.admit(Some(n3.ours(NodeId(1)))).expect_err("it was removed");
        assert_eq!(n3.refused(NodeId(1), &refusal), Verdict::Leave, "{refusal}");
        assert!(!n1.is_member(NodeId(3)));
        let n5 = known(5, 7, directory.path());
        let refusal = n1.admit(Some(n5.ours(NodeId(1)))).expect_err("the map here is older");
        assert_eq!(n5.refused(NodeId(1), &refusal), Verdict::TryOn, "{refusal}");
        n1.meet(&[1, 2, 3].map(|id| (NodeId(id), address(id))).into(), NodeId(3));
        assert!(n1.is_member(NodeId(4)) && !n1.is_member(NodeId(3)), "that map is older");
    }

    #[test]
    fn what_is_meant_for_another_node_is_not_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let (n1, n2) = (known(1, 7, directory.path()), known(2, 7, directory.path()));
        let refusal = n1.admit(Some(n2.ours(NodeId(3)))).expect_err("n3's address leads here");
        assert!(refusal.message().contains("this is n1, not n3"), "{refusal}");
        assert_eq!(n2.refused(NodeId(3), &refusal), Verdict::TryOn);
    }
}
