//! Filling a new node's directory from a backup.

use super::{BackupError, Reading, Storage};
use crate::config::{Descent, StartConfig};
use crate::failure::Failure;
use crate::identity::{self, Claim, Found, Identity};
use crate::run::{described_addresses, first_map};
use node::runtime::Seeding;
use paxos::GroupId;
use proto::mvccpb::KeyValue;
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::KeyValue as Pair;
use shardkv::types::Revision;

/// The highest revision that a cluster may begin with.
const FLOOR_MAX: u64 = i64::MAX as u64 / 2;

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// Whose directory it is now.
    pub identity: Identity,
    /// The cluster's revisions begin above this.
    pub floor: u64,
    /// Keys of groups that the node has replicas of.
    pub keys: u64,
    /// It had been done before, and nothing was changed.
    pub already: bool,
}

/// Fills the configured node's directory; the revisions of its cluster begin `bump` above the backup's.
/// Telling `progress` of the keys of each part.
pub async fn restore(
    config: &StartConfig,
    storage: &Storage,
    name: &str,
    bump: u64,
    progress: impl Fn(u64),
) -> Result<Restored, Failure> {
    let mut reading = Reading::open(storage, name).await?;
    let manifest = reading.manifest().clone();
    let missing = |option: &str| Failure::Usage(format!("{option} is missing: a restore forms a new cluster"));
    let path = config.data_dir.as_deref().ok_or_else(|| missing("--data-dir"))?;
    let mut genesis = config.genesis.clone().ok_or_else(|| missing("--initial-cluster"))?;
    // etcd's API has revisions of 63 bits; half of them must be left.
    let floor = manifest.revision.checked_add(bump).filter(|floor| *floor <= FLOOR_MAX);
    let too_high = || Failure::Usage(format!("--revision-bump: {bump} above {} is too high", manifest.revision));
    let floor = floor.ok_or_else(too_high)?;
    let descent = Descent { backup: manifest.number()?, incarnation: manifest.incarnation.saturating_add(1), floor };
    genesis.descent = Some(descent);
    let restoring = match identity::begin_restore(path, &config.name, &genesis)? {
        Found::Restored(identity) => {
            return Ok(Restored { identity: *identity, floor, keys: 0, already: true });
        }
        Found::Empty(restoring) => restoring,
    };
    let member = genesis.member(&config.name).cloned();
    let member = member.ok_or_else(|| Failure::Usage(format!("--initial-cluster does not name {}", config.name)))?;
    let map = first_map(&genesis, &described_addresses(&genesis));
    let data = map.groups.iter().filter(|group| group.replicas.contains(&member.id)).map(|group| group.id);
    let master = member.roles.has(crate::config::Role::Shardmaster).then_some(SHARDMASTER_GROUP);
    let hosted: Vec<GroupId> = master.into_iter().chain(data).collect();
    let store = path.join("store");
    let failed = |error: shardkv::store::StoreError| Failure::Run(format!("{}: {error}", store.display()));
    let mut seeding = Seeding::begin(&store, &map, &hosted, Revision(floor)).map_err(failed)?;
    let mut keys = 0;
    while let Some(pairs) = reading.part().await? {
        progress(pairs.len() as u64);
        for pair in pairs {
            keys += u64::from(seeding.put(as_stored(name, pair)?).map_err(failed)?);
        }
    }
    seeding.finish().map_err(failed)?;
    let claim = Claim {
        name: &config.name,
        token: config.cluster_token.as_deref(),
        genesis: Some(&genesis),
        lease_ms: config.timing.lease_ms(),
        joins: false,
    };
    let identity = restoring.finish(claim)?;
    Ok(Restored { identity, floor, keys, already: false })
}

fn as_stored(name: &str, pair: KeyValue) -> Result<Pair, BackupError> {
    let KeyValue { key, value, create_revision, mod_revision, version, lease } = pair;
    let number = |number: i64| {
        u64::try_from(number).map_err(|_| BackupError::Damaged {
            file: name.to_owned(),
            problem: format!("a key has the revision or version {number}"),
        })
    };
    Ok(Pair {
        // A slice would hold on to its whole part.
        key: key.to_vec().into(),
        value: value.to_vec().into(),
        create_revision: Revision(number(create_revision)?),
        mod_revision: Revision(number(mod_revision)?),
        version: number(version)?,
        lease,
    })
}
