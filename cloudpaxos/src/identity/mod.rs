//! Who a node is. Its data directory says so, in `identity.json`, from its first start on.
//!
//! Paxos rests on promises that outlive the process. A directory that belongs to another node or
//! another cluster, or two processes on one directory, would break promises without a trace. So
//! [`open`] is the first thing that a node does, and refuses what it cannot prove to be its own:
//!
//! - A lock on `LOCK` is held as long as [`DataDir`] lives: one process per directory.
//! - An empty directory becomes a node of the described cluster. Its id is its place in the list of
//!   members, its cluster's id a hash of the description ([`Genesis::cluster_id`]), its incarnation
//!   a random number that peers remember: an emptied directory under a known name shows itself.
//! - Later starts believe the directory, not the flags. Another name or token is refused, a changed
//!   description is noted and otherwise ignored.
//! - The boot counter rises durably before `open` returns, so no ballot of an earlier boot can ever
//!   be used again.
//!
//! Invariant: `identity.json` is complete or absent. It is written beside, synced, renamed, and the
//! directory synced; a crash at any step leaves the old file or the new one.

mod error;
mod file;

pub use error::IdentityError;

use crate::config::{Genesis, NodeName};
use error::IoContext;
use node::runtime::RESERVE;
use paxos::NodeId;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

const LOCK: &str = "LOCK";
/// What an otherwise empty directory may hold: our own files from a start that was cut short, and
/// what a freshly made file system brings along.
const NOT_FOREIGN: [&str; 3] = [LOCK, file::TEMPORARY, "lost+found"];
/// Is there from the beginning of a restore to its end.
const RESTORING: &str = "RESTORING";
/// What a restore fills, and fills anew when it was cut short.
const STORE: &str = "store";

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id, equal on all nodes.
    pub cluster_id: u64,
    /// The node's id in it.
    pub node_id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Random, from the directory's birth: tells this directory from any other under the same name.
    pub incarnation: u64,
    /// How often the directory was started, this time included.
    pub boot: u64,
    /// The longest lease, in milliseconds, that the node may ever have granted: after a start it keeps
    /// its word for so long.
    pub lease_ms: u64,
    /// The directory's log was made; from then on a missing one is a lost one.
    pub formed: bool,
    /// The cluster as it was described at the first start.
    pub genesis: Genesis,
}

/// What the flags of this start say about who the node should be.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The node's name.
    pub name: &'a NodeName,
    /// The token, if one was given.
    pub token: Option<&'a str>,
    /// The described cluster, if one was given.
    pub genesis: Option<&'a Genesis>,
    /// The leases, in milliseconds, that the node will grant.
    pub lease_ms: u64,
    /// It may be none of those that form the cluster: its id is given to it by [`assign`].
    pub joins: bool,
}

/// A directory that is this node's and nobody else's while the value lives.
#[derive(Debug)]
pub struct DataDir {
    /// The directory.
    pub path: PathBuf,
    /// Who lives there.
    pub identity: Identity,
    /// Whether this start made it.
    pub created: bool,
    /// What the flags said and the directory overruled; to be logged.
    pub notes: Vec<String>,
    /// Released when the process ends, however it ends.
    _lock: File,
}

/// Whether a directory is a node's already.
pub fn is_there(path: &Path) -> bool {
    path.join(file::NAME).exists()
}

/// Opens a node's directory, or makes an empty one the node's, and counts this start.
pub fn open(path: &Path, claim: Claim<'_>) -> Result<DataDir, IdentityError> {
    if path.join(RESTORING).exists() && !path.join(file::NAME).exists() {
        return Err(IdentityError::RestoreCutShort { path: path.to_owned() });
    }
    refuse_foreign(path, &[])?;
    make_directory(path)?;
    let lock = lock(path)?;
    // Again under the lock: another process may have been making it ours, or its own, meanwhile.
    refuse_foreign(path, &[])?;
    let (identity, created, notes) = match file::read(path)? {
        // It has asked to join, and was not given an id: it may ask as another one, or elsewhere.
        Some(identity) if identity.node_id == UNASSIGNED && !asks_again(&identity, claim) => {
            (bootstrap(path, claim)?, true, Vec::new())
        }
        Some(mut identity) => {
            let notes = check(path, &identity, claim)?;
            identity.boot += 1;
            identity.lease_ms = identity.lease_ms.max(claim.lease_ms);
            (identity, false, notes)
        }
        None => (bootstrap(path, claim)?, true, Vec::new()),
    };
    write(path, &identity)?;
    Ok(DataDir { path: path.to_owned(), identity, created, notes, _lock: lock })
}

/// A directory that is being filled from a backup; whoever starts a node on it meanwhile is refused.
#[derive(Debug)]
pub struct Restoring {
    path: PathBuf,
    _lock: File,
}

/// What a restore finds.
#[derive(Debug)]
pub enum Found {
    /// Nothing, or what an earlier attempt left, which is gone now.
    Empty(Restoring),
    /// The node whom this same backup was restored to: there is nothing to do.
    Restored(Box<Identity>),
}

/// Makes a directory ready to be filled as this node of this restored cluster.
pub fn begin_restore(path: &Path, name: &NodeName, genesis: &Genesis) -> Result<Found, IdentityError> {
    let marker = path.join(RESTORING);
    let inhabited = |identity: Identity| match identity.genesis == *genesis && identity.name == *name {
        true => Ok(Found::Restored(Box::new(identity))),
        false => Err(IdentityError::NotEmpty { path: path.to_owned(), name: identity.name.to_string() }),
    };
    if let Some(identity) = file::read(path)? {
        return inhabited(identity);
    }
    let begun: &[&str] = if marker.exists() { &[RESTORING, STORE] } else { &[] };
    refuse_foreign(path, begun)?;
    make_directory(path)?;
    let lock = lock(path)?;
    // Again under the lock: another restore may have come to its end meanwhile.
    if let Some(identity) = file::read(path)? {
        return inhabited(identity);
    }
    let begun: &[&str] = if marker.exists() { &[RESTORING, STORE] } else { &[] };
    refuse_foreign(path, begun)?;
    File::create(&marker).and_then(|file| file.sync_all()).context("write", &marker)?;
    file::sync_directory(path)?;
    let store = path.join(STORE);
    match fs::remove_dir_all(&store) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(IdentityError::io("remove", &store, error));
        }
        _ => {}
    }
    Ok(Found::Empty(Restoring { path: path.to_owned(), _lock: lock }))
}

impl Restoring {
    /// The store is complete and durable: from now on the directory is the claimed node's.
    pub fn finish(self, claim: Claim<'_>) -> Result<Identity, IdentityError> {
        let identity = bootstrap(&self.path, claim)?;
        write(&self.path, &identity)?;
        let marker = self.path.join(RESTORING);
        fs::remove_file(&marker).context("remove", &marker)?;
        file::sync_directory(&self.path)?;
        Ok(identity)
    }
}

/// Writes the identity. A start must not need room that a full disk lacks: the store's reserve is given up
/// for it, as the store itself would.
fn write(path: &Path, identity: &Identity) -> Result<(), IdentityError> {
    match file::write(path, identity) {
        Err(error) if error.is_full() && fs::remove_file(path.join(RESERVE)).is_ok() => file::write(path, identity),
        written => written,
    }
}

/// The id of a node that joins, until it has one.
pub const UNASSIGNED: NodeId = NodeId(0);

/// The cluster has given the node its id: from now on it is this one, for life.
pub fn assign(path: &Path, identity: &mut Identity, node_id: NodeId) -> Result<(), IdentityError> {
    identity.node_id = node_id;
    write(path, identity)
}

/// Remembers that the node's log is there. Before the node says a word: a promise that only a lost log
/// held must not be forgotten.
pub fn mark_formed(path: &Path, identity: &Identity) -> Result<(), IdentityError> {
    match identity.formed {
        true => Ok(()),
        false => write(path, &Identity { formed: true, ..identity.clone() }),
    }
}

/// The first identity of an empty directory.
fn bootstrap(path: &Path, claim: Claim<'_>) -> Result<Identity, IdentityError> {
    let Some(genesis) = claim.genesis else { return Err(IdentityError::NothingToForm { path: path.to_owned() }) };
    let node_id = match genesis.member(claim.name) {
        Some(member) => member.id,
        None if claim.joins => UNASSIGNED,
        None => return Err(IdentityError::NotAMember { name: claim.name.to_string() }),
    };
    Ok(Identity {
        cluster_id: genesis.cluster_id(),
        node_id,
        name: claim.name.clone(),
        incarnation: rand::random::<u64>().max(1),
        boot: 1,
        lease_ms: claim.lease_ms,
        formed: false,
        genesis: genesis.clone(),
    })
}

/// Whether a node that asked to join asks the same again: it may have been given an id that it does not know.
fn asks_again(identity: &Identity, claim: Claim<'_>) -> bool {
    identity.name == *claim.name && claim.genesis.is_none_or(|genesis| *genesis == identity.genesis)
}

/// Whether the directory is the claimed node's; what differs without harm is returned as notes.
fn check(path: &Path, identity: &Identity, claim: Claim<'_>) -> Result<Vec<String>, IdentityError> {
    if identity.name != *claim.name {
        return Err(IdentityError::OtherNode {
            path: path.to_owned(),
            owner: identity.name.to_string(),
            claimed: claim.name.to_string(),
        });
    }
    if let Some(token) = claim.token.filter(|token| *token != identity.genesis.token) {
        return Err(IdentityError::OtherCluster {
            path: path.to_owned(),
            cluster_id: identity.cluster_id,
            token: identity.genesis.token.clone(),
            claimed: token.to_owned(),
        });
    }
    let mut notes = Vec::new();
    if let Some(genesis) = claim.genesis {
        let changed = [
            ("--initial-cluster", genesis.members != identity.genesis.members),
            ("--data-groups", genesis.data_groups != identity.genesis.data_groups),
            ("--shard-boundaries", genesis.boundaries != identity.genesis.boundaries),
        ];
        for (flag, _) in changed.iter().filter(|(_, changed)| *changed) {
            notes.push(format!(
                "{flag} differs from what {} was formed with and is ignored: it only describes a new cluster",
                path.display()
            ));
        }
    }
    Ok(notes)
}

/// Refuses a directory that holds anything but no identity of ours.
fn refuse_foreign(path: &Path, more: &[&str]) -> Result<(), IdentityError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(IdentityError::io("read", path, error)),
    };
    let mut foreign = None;
    for entry in entries {
        let name = entry.context("read", path)?.file_name();
        if name == file::NAME {
            return Ok(());
        }
        if !NOT_FOREIGN.iter().chain(more).any(|ours| name == *ours) {
            foreign.get_or_insert(name);
        }
    }
    match foreign {
        None => Ok(()),
        Some(name) => {
            Err(IdentityError::Foreign { path: path.to_owned(), example: name.to_string_lossy().into_owned() })
        }
    }
}

/// Makes the directory with its parents, and its name in each parent durable.
fn make_directory(path: &Path) -> Result<(), IdentityError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        make_directory(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(IdentityError::io("make the directory", path, error));
        }
        _ => {}
    }
    file::sync_directory(parent)
}

fn lock(path: &Path) -> Result<File, IdentityError> {
    let name = path.join(LOCK);
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&name).context("open", &name)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(IdentityError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(IdentityError::io("lock", &name, error)),
    }
}

#[cfg(test)]
mod tests;
