//! Who votes: a group's replicas change from one configuration to the next by a *stop-sign*.
//!
//! A stop-sign is an entry like any other, and the last of its configuration: when it is decided, the
//! configuration is sealed, and the slots behind it belong to the next one, whose members it names. All
//! else follows from the order of ballots: those of a later configuration are higher. So the log goes on
//! through the change, and whoever has it knows who votes where.
//!
//! The rules, and where they are kept:
//! - A leader whose log ends in a stop-sign appends nothing and serves nothing (`Replica::leading`).
//! - A replica votes in a configuration's phase 1 only when it durably holds everything decided in the one
//!   before (`Replica::votes_in`), or once it has adopted the log of a leader that was elected by such.
//! - Entries of an earlier configuration behind its stop-sign are void: an image from behind it cuts them
//!   off (`Acceptor::installed`, `recover`).

use crate::{Ballot, ConfigId, NodeId, codec};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The first byte of a stop-sign. Hosts' commands must begin with another one.
pub const STOP_SIGN: u8 = 0xff;

/// Who votes in a group's log behind the stop-sign that says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Counts a group's configurations from 0.
    pub id: ConfigId,
    /// The nodes whose replicas vote, ascending. Empty only where nothing is known yet.
    pub members: Vec<NodeId>,
    /// Those who voted in the configuration before. They can finish it, where its leader is lost just when
    /// it is sealed.
    pub before: Vec<NodeId>,
}

fn ascending(mut nodes: Vec<NodeId>) -> Vec<NodeId> {
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

impl Configuration {
    /// A group's first.
    pub fn first(members: Vec<NodeId>) -> Configuration {
        Configuration { id: ConfigId(0), members: ascending(members), before: Vec::new() }
    }

    /// The ballot below which a replica that is born when this is the newest configuration promises nothing.
    pub fn floor(id: ConfigId) -> Ballot {
        Ballot { config: id, ..Ballot::default() }
    }

    /// The one behind this one, with these members.
    pub fn next(&self, members: Vec<NodeId>) -> Configuration {
        Configuration { id: ConfigId(self.id.0 + 1), members: ascending(members), before: self.members.clone() }
    }

    /// Whether a node votes in it.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members.contains(&node)
    }

    /// How many members decide.
    pub fn quorum(&self) -> usize {
        crate::quorum_of(self.members.len())
    }

    /// Who votes in this configuration, or in the one before; unknown of any other.
    pub fn voters_of(&self, id: ConfigId) -> Option<&[NodeId]> {
        if id == self.id {
            return Some(&self.members);
        }
        (id.0 + 1 == self.id.0).then_some(&self.before)
    }

    /// The entry that seals the configuration before this one.
    pub fn stop_sign(&self) -> Bytes {
        codec::encode(STOP_SIGN, self)
    }

    /// The configuration that an entry begins, if it is a stop-sign.
    pub fn of_stop_sign(entry: &[u8]) -> Option<Configuration> {
        match entry.first() {
            Some(&STOP_SIGN) => codec::decode(STOP_SIGN, entry).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_sign_says_who_votes_next_and_nothing_else_is_one() {
        let first = Configuration::first(vec![NodeId(3), NodeId(1), NodeId(3)]);
        assert_eq!(first.members, [NodeId(1), NodeId(3)]);
        let next = first.next(vec![NodeId(4), NodeId(1)]);
        assert_eq!(Configuration::of_stop_sign(&next.stop_sign()), Some(next.clone()));
        for entry in [&b""[..], b"\x04command", &[STOP_SIGN], &[STOP_SIGN, 0x80]] {
            assert_eq!(Configuration::of_stop_sign(entry), None, "{entry:?}");
        }
        let voters = |id| next.voters_of(ConfigId(id)).map(<[NodeId]>::to_vec);
        assert_eq!(voters(1), Some(vec![NodeId(1), NodeId(4)]));
        assert_eq!(voters(0), Some(vec![NodeId(1), NodeId(3)]));
        assert_eq!(voters(2), None);
        let nobody = Configuration::default();
        assert_eq!(nobody.voters_of(ConfigId(0)), Some(&[][..]), "as far as is known");
    }
}
