//! Identifiers and numbers of the protocol, as newtypes with the order that the protocol gives them.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A node: one process with one data directory. Never 0 for a real node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// A replica group: one Paxos instance with its own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u64);

/// A configuration of a group (its set of replicas); rises with every membership change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConfigId(pub u32);

/// A position in a group's log. The first entry is at 1; 0 means "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot(pub u64);

impl Slot {
    /// The slot behind this one.
    pub fn next(self) -> Slot {
        Slot(self.0 + 1)
    }
    /// The slot before this one; 0 stays 0.
    pub fn prev(self) -> Slot {
        Slot(self.0.saturating_sub(1))
    }
}

/// A ballot number ("The Part-Time Parliament", §2.2). Ordered by configuration, round, node and
/// boot; the durable boot counter makes every ballot of a node unique across its restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The configuration that the ballot belongs to.
    pub config: ConfigId,
    /// The round, raised by whoever wants to lead.
    pub round: u64,
    /// The node that leads this ballot, if it wins.
    pub node: NodeId,
    /// That node's boot counter when it chose the ballot.
    pub boot: u64,
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}b{}", self.config.0, self.round, self.node.0, self.boot)
    }
}

macro_rules! display_number {
    ($($name:ident $prefix:literal),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    )*};
}
display_number!(NodeId "n", GroupId "g", ConfigId "c", Slot "");

/// Microseconds of a monotonic clock that also runs while the machine sleeps (CLOCK_BOOTTIME).
/// The core never reads a clock: whoever calls `step` passes the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(pub u64);

impl Time {
    /// This time plus `micros` microseconds.
    pub fn plus(self, micros: u64) -> Time {
        Time(self.0.saturating_add(micros))
    }
    /// Microseconds from `earlier` to this time; 0 if it is not later.
    pub fn since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
