//! The cluster as its first start describes it: names, addresses, roles, groups, boundaries.

use super::address::Address;
use bytes::Bytes;
use paxos::NodeId;
use std::collections::BTreeSet;
use std::fmt;

/// An operator's name for a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName(String);

impl NodeName {
    /// Letters, digits, dot, dash and underscore; 1 to 63 of them, as in a DNS label. It begins with a letter or a digit
    /// and is no number: commands take a node's number, too, and options begin with a dash.
    pub fn parse(text: &str) -> Result<NodeName, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let number = text.bytes().all(|byte| byte.is_ascii_digit());
        if !begins || number || text.len() > 63 || !text.bytes().all(allowed) {
            return Err(format!(
                "`{text}` is no node name; write 1 to 63 letters, digits, dots, dashes or underscores, a letter or a \
                 digit first, and no mere number"
            ));
        }
        Ok(NodeName(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A part that a process plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Holds a replica of the metadata group.
    Shardmaster,
    /// Holds replicas of data groups.
    Shardkv,
    /// Serves clients.
    Gateway,
}

impl Role {
    /// The words of `--roles`.
    pub const WORDS: [(&str, Role); 3] =
        [("shardmaster", Role::Shardmaster), ("shardkv", Role::Shardkv), ("gateway", Role::Gateway)];

    /// The role's word.
    pub fn word(self) -> &'static str {
        match self {
            Role::Shardmaster => "shardmaster",
            Role::Shardkv => "shardkv",
            Role::Gateway => "gateway",
        }
    }
}

/// The parts that a process plays; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// Every role.
    pub fn all() -> Roles {
        Roles(Role::WORDS.iter().map(|(_, role)| *role).collect())
    }

    /// From words.
    pub fn parse(words: &[&str]) -> Result<Roles, String> {
        let roles = words.iter().map(|word| super::value::one_of(word, &Role::WORDS)).collect::<Result<_, _>>()?;
        let roles = Roles(roles);
        if roles.0.is_empty() {
            return Err("names no role; some of: shardmaster, shardkv, gateway".to_owned());
        }
        Ok(roles)
    }

    /// Whether the process plays this part.
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Whether the process keeps replicas, and so needs a data directory and a peer port.
    pub fn hosts_replicas(&self) -> bool {
        self.has(Role::Shardmaster) || self.has(Role::Shardkv)
    }

    /// The parts, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = Role> {
        self.0.iter().copied()
    }

    /// Without the gateway role: what the rest of the cluster must agree on.
    pub(super) fn replicas_only(&self) -> Roles {
        Roles(self.iter().filter(|role| *role != Role::Gateway).collect())
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Role::word).collect::<Vec<_>>().join("+"))
    }
}

/// A node of the initial cluster: one that keeps replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its place in the list sorted by name, from 1: small, stable, and the same on every node.
    pub id: NodeId,
    /// The operator's name for it.
    pub name: NodeName,
    /// Where the others reach its peer port.
    pub peer_address: Address,
    /// Which replicas it keeps; never the gateway role.
    pub roles: Roles,
}

/// What every node of a cluster must have been told alike at its first start. The cluster's id is a
/// hash of all of it, so nodes that were told different things refuse each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Tells clusters apart that are described alike.
    pub token: String,
    /// Sorted by name; ids count from 1 in this order.
    pub members: Vec<Member>,
    /// How many data groups.
    pub data_groups: u32,
    /// Where one initial shard ends and the next begins; strictly ascending, none empty.
    pub boundaries: Vec<Bytes>,
    /// The backup that it began with, if it did.
    pub descent: Option<Descent>,
}

/// A backup, as what a cluster began with: a cluster that was restored is another one than that which was
/// backed up, and than one that was formed empty by the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descent {
    /// The backup's id.
    pub backup: u64,
    /// The cluster's incarnation: one more than that of the cluster that was backed up.
    pub incarnation: u64,
    /// Its revisions begin above this; replicas that began at different ones would never agree.
    pub floor: u64,
}

impl Descent {
    /// Parses what [`Descent`] shows.
    pub(super) fn parse(text: &str) -> Result<Descent, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let parsed = match parts[..] {
            [backup, incarnation, floor] => u64::from_str_radix(backup, 16)
                .ok()
                .zip(incarnation.parse().ok())
                .zip(floor.parse().ok())
                .map(|((backup, incarnation), floor)| Descent { backup, incarnation, floor }),
            _ => None,
        };
        let what = "is no BACKUP:INCARNATION:REVISION, as `cloudpaxos restore` says it, and as `restored_from`, \
                    `cluster_incarnation` and `revision_floor` stand in a node's identity.json";
        parsed.ok_or_else(|| format!("`{text}` {what}"))
    }
}

impl fmt::Display for Descent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}:{}", self.backup, self.incarnation, self.floor)
    }
}

impl Genesis {
    /// The cluster's id: FNV-1a (64 bits) over all fields, each with its length in front. Never 0.
    pub fn cluster_id(&self) -> u64 {
        let mut hash = Fnv::default();
        hash.field(b"cloudpaxos cluster 1");
        hash.field(self.token.as_bytes());
        hash.number(self.members.len() as u64);
        for member in &self.members {
            hash.field(member.name.as_str().as_bytes());
            hash.field(member.peer_address.to_string().as_bytes());
            hash.field(member.roles.to_string().as_bytes());
        }
        hash.number(u64::from(self.data_groups));
        hash.number(self.boundaries.len() as u64);
        self.boundaries.iter().for_each(|boundary| hash.field(boundary));
        if let Some(descent) = &self.descent {
            hash.number(descent.backup);
            hash.number(descent.incarnation);
            hash.number(descent.floor);
        }
        hash.0.max(1)
    }

    /// The cluster's incarnation: 1, and one more with each restore.
    pub fn incarnation(&self) -> u64 {
        self.descent.map_or(1, |descent| descent.incarnation)
    }

    /// The member of this name.
    pub fn member(&self, name: &NodeName) -> Option<&Member> {
        self.members.iter().find(|member| member.name == *name)
    }
}

/// Parses `n1=127.0.0.1:2381,n2=…`. An entry may end in `/shardmaster` or `/shardkv` where a node
/// keeps only one kind of replica; every node must be given the same list.
pub(super) fn parse_members(entries: &[&str]) -> Result<Vec<Member>, String> {
    let mut members = entries.iter().map(|entry| parse_member(entry)).collect::<Result<Vec<_>, _>>()?;
    members.sort_by(|a, b| a.name.cmp(&b.name));
    for (index, member) in members.iter_mut().enumerate() {
        member.id = NodeId(index as u64 + 1);
    }
    if let Some(twice) = members.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(format!("names {} twice; give every node its own name", twice[0].name));
    }
    let mut addresses = BTreeSet::new();
    if let Some(twice) = members.iter().find(|member| !addresses.insert(&member.peer_address)) {
        return Err(format!("names the address {} twice; every node has its own", twice.peer_address));
    }
    for (role, word) in [(Role::Shardmaster, "shardmaster"), (Role::Shardkv, "shardkv")] {
        match members.iter().filter(|member| member.roles.has(role)).count() {
            0 => return Err(format!("gives no node the role {word}")),
            2 => return Err(format!("gives 2 nodes the role {word}, which survives no failure; give it to 1, 3 or 5")),
            _ => {}
        }
    }
    Ok(members)
}

fn parse_member(entry: &str) -> Result<Member, String> {
    let Some((name, address)) = entry.split_once('=') else {
        return Err(format!("`{entry}` is no name=host:port; write for instance n1=10.0.0.1:2380,n2=10.0.0.2:2380"));
    };
    let (address, roles) = match address.split_once('/') {
        Some((address, roles)) => (address, Roles::parse(&roles.split('+').collect::<Vec<_>>())?.replicas_only()),
        None => (address, Roles::all().replicas_only()),
    };
    if !roles.hosts_replicas() {
        return Err(format!("`{entry}`: only nodes with the role shardmaster or shardkv belong into the list"));
    }
    let address = Address::parse(address)?;
    if address.is_unspecified() || address.port() == 0 {
        return Err(format!("`{entry}`: the other nodes cannot dial {address}; write the node's own address"));
    }
    Ok(Member { id: NodeId(0), name: NodeName::parse(name)?, peer_address: address, roles })
}

/// Boundaries that spread the printable characters evenly over `shards` shards: one character each where that is
/// enough, else two.
pub(super) fn default_boundaries(shards: u32) -> Vec<Bytes> {
    const FIRST: u32 = 0x20;
    const COUNT: u32 = 95;
    let character = |index: u32| (FIRST + index) as u8;
    let boundary = |shard: u32| match shards {
        0..=COUNT => vec![character(shard * COUNT / shards)],
        _ => {
            let index = u64::from(shard) * u64::from(COUNT * COUNT) / u64::from(shards);
            vec![character(index as u32 / COUNT), character(index as u32 % COUNT)]
        }
    };
    (1..shards).map(|shard| Bytes::from(boundary(shard))).collect()
}

/// FNV-1a, 64 bits: a published hash with published constants, so that the id is the same in every
/// version of the binary. It need not resist attacks: the id tells clusters apart, it guards nothing.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        bytes.iter().for_each(|byte| self.byte(*byte));
    }

    fn number(&mut self, number: u64) {
        number.to_le_bytes().into_iter().for_each(|byte| self.byte(byte));
    }

    fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_ascend_for_as_many_groups_as_there_may_be() {
        for shards in [1, 2, 95, 96, 200, super::super::start::DATA_GROUPS_MAX as u32] {
            let boundaries = default_boundaries(shards);
            assert_eq!(boundaries.len() as u32, shards - 1);
            assert!(boundaries.windows(2).all(|two| two[0] < two[1]), "{shards}: {boundaries:?}");
        }
    }
}
