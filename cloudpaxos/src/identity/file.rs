//! `identity.json` on disk: a line of JSON, and a line with the CRC-32 of the first.
//!
//! JSON because an operator will look into it, a checksum because nobody may edit it unnoticed, and
//! a version because it will change. Numbers of 64 bits are hexadecimal texts: many JSON readers
//! round numbers above 2^53.

use super::Identity;
use super::error::{IdentityError, IoContext};
use crate::config::{Address, Descent, Genesis, Member, NodeName, Roles};
use bytes::Bytes;
use paxos::NodeId;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

pub(super) const NAME: &str = "identity.json";
pub(super) const TEMPORARY: &str = "identity.json.tmp";
const VERSION: u64 = 1;

/// Reads the identity; `None` where there is none.
pub(super) fn read(directory: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = directory.join(NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            return Err(IdentityError::Damaged { path, problem: "it is not text".to_owned() });
        }
        Err(error) => return Err(IdentityError::io("read", &path, error)),
    };
    match decode(&text) {
        Ok(identity) => Ok(Some(identity)),
        Err(Undecodable::Damaged(problem)) => Err(IdentityError::Damaged { path, problem }),
        Err(Undecodable::TooNew(found)) => Err(IdentityError::TooNew { path, found, known: VERSION }),
    }
}

/// Replaces the identity, atomically and durably.
pub(super) fn write(directory: &Path, identity: &Identity) -> Result<(), IdentityError> {
    let (temporary, path) = (directory.join(TEMPORARY), directory.join(NAME));
    let mut file = File::create(&temporary).context("create", &temporary)?;
    file.write_all(encode(identity).as_bytes()).context("write", &temporary)?;
    file.sync_all().context("sync", &temporary)?;
    fs::rename(&temporary, &path).context("rename to", &path)?;
    sync_directory(directory)
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), IdentityError> {
    File::open(directory).and_then(|file| file.sync_all()).context("sync the directory", directory)
}

/// Why a text is no identity.
#[derive(Debug)]
pub(super) enum Undecodable {
    Damaged(String),
    TooNew(u64),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u64,
    cluster_id: String,
    cluster_token: String,
    node_id: u64,
    name: String,
    incarnation: String,
    boot: u64,
    #[serde(default)]
    lease_ms: u64,
    #[serde(default)]
    formed: bool,
    members: Vec<StoredMember>,
    data_groups: u32,
    /// Hexadecimal: keys are bytes.
    shard_boundaries: Vec<String>,
    /// The backup that the cluster began with, and its incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restored_from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cluster_incarnation: Option<u64>,
    /// Where its revisions began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision_floor: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredMember {
    id: u64,
    name: String,
    peer_address: String,
    roles: String,
}

pub(super) fn encode(identity: &Identity) -> String {
    let Identity { cluster_id, node_id, name, incarnation, boot, lease_ms, formed, genesis } = identity;
    let member = |member: &Member| StoredMember {
        id: member.id.0,
        name: member.name.to_string(),
        peer_address: member.peer_address.to_string(),
        roles: member.roles.to_string(),
    };
    let stored = Stored {
        version: VERSION,
        cluster_id: format!("{cluster_id:016x}"),
        cluster_token: genesis.token.clone(),
        node_id: node_id.0,
        name: name.to_string(),
        incarnation: format!("{incarnation:016x}"),
        boot: *boot,
        lease_ms: *lease_ms,
        formed: *formed,
        members: genesis.members.iter().map(member).collect(),
        data_groups: genesis.data_groups,
        shard_boundaries: genesis.boundaries.iter().map(|key| hex(key)).collect(),
        restored_from: genesis.descent.map(|descent| format!("{:016x}", descent.backup)),
        cluster_incarnation: genesis.descent.map(|descent| descent.incarnation),
        revision_floor: genesis.descent.map(|descent| descent.floor),
    };
    let json = serde_json::to_string(&stored).expect("a struct of texts and numbers is always JSON");
    format!("{json}\ncrc32 {:08x}\n", crc32fast::hash(json.as_bytes()))
}

pub(super) fn decode(text: &str) -> Result<Identity, Undecodable> {
    let damaged = |problem: &str| Undecodable::Damaged(problem.to_owned());
    let (json, rest) = text.split_once('\n').ok_or_else(|| damaged("its second line is missing"))?;
    let expected = rest.strip_prefix("crc32 ").and_then(|rest| u32::from_str_radix(rest.trim_end(), 16).ok());
    if expected != Some(crc32fast::hash(json.as_bytes())) {
        return Err(damaged("its checksum does not match"));
    }
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    // The version first: a later format may lack what this one needs.
    let Versioned { version } = serde_json::from_str(json).map_err(|error| damaged(&error.to_string()))?;
    if version > VERSION {
        return Err(Undecodable::TooNew(version));
    }
    let stored: Stored = serde_json::from_str(json).map_err(|error| damaged(&error.to_string()))?;
    restore(stored).map_err(Undecodable::Damaged)
}

fn restore(stored: Stored) -> Result<Identity, String> {
    let number = |text: &str| u64::from_str_radix(text, 16).map_err(|error| format!("`{text}`: {error}"));
    let member = |member: StoredMember| {
        Ok::<_, String>(Member {
            id: NodeId(member.id),
            name: NodeName::parse(&member.name)?,
            peer_address: Address::parse(&member.peer_address)?,
            roles: Roles::parse(&member.roles.split('+').collect::<Vec<_>>())?,
        })
    };
    let identity = Identity {
        cluster_id: number(&stored.cluster_id)?,
        node_id: NodeId(stored.node_id),
        name: NodeName::parse(&stored.name)?,
        incarnation: number(&stored.incarnation)?,
        boot: stored.boot,
        lease_ms: stored.lease_ms,
        formed: stored.formed,
        genesis: Genesis {
            token: stored.cluster_token,
            members: stored.members.into_iter().map(member).collect::<Result<_, _>>()?,
            data_groups: stored.data_groups,
            boundaries: stored.shard_boundaries.iter().map(|text| unhex(text)).collect::<Result<_, _>>()?,
            descent: match (&stored.restored_from, stored.cluster_incarnation, stored.revision_floor) {
                (Some(backup), Some(incarnation), Some(floor)) => {
                    Some(Descent { backup: number(backup)?, incarnation, floor })
                }
                (None, None, None) => None,
                _ => return Err("it says only a part of what it was restored from".to_owned()),
            },
        },
    };
    if identity.genesis.cluster_id() != identity.cluster_id {
        return Err("its cluster id is not that of the cluster it describes".to_owned());
    }
    Ok(identity)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Bytes, String> {
    let bad = || format!("`{text}` is not hexadecimal");
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(bad());
    }
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad());
    (0..text.len()).step_by(2).map(byte).collect::<Result<Vec<u8>, _>>().map(Bytes::from)
}
