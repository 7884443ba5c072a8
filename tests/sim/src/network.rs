//! The network: messages are delayed, overtaken, duplicated and lost; links are cut in one direction
//! or in both.

use crate::coverage::Coverage;
use crate::random::Random;
use paxos::NodeId;
use std::collections::BTreeSet;

/// Whoever sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// A node.
    Node(NodeId),
    /// A gateway, by its position.
    Gateway(usize),
}

/// How bad the network is, in thousandths of all messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quality {
    /// Lost.
    pub lost: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Delayed so much that others overtake it.
    pub delayed: u64,
    /// The longest such delay.
    pub delay_micros_max: u64,
}

/// The state of the network.
#[derive(Debug)]
pub struct Network {
    quality: Quality,
    latency_micros: u64,
    cuts: BTreeSet<(Endpoint, Endpoint)>,
}

impl Network {
    /// A network without cuts; messages take about `latency_micros`.
    pub fn new(quality: Quality, latency_micros: u64) -> Network {
        Network { quality, latency_micros, cuts: BTreeSet::new() }
    }

    /// Cuts one direction of a link.
    pub fn cut(&mut self, from: Endpoint, to: Endpoint) {
        self.cuts.insert((from, to));
    }

    /// Mends one direction of a link.
    pub fn mend(&mut self, from: Endpoint, to: Endpoint) {
        self.cuts.remove(&(from, to));
    }

    /// From now on nothing goes wrong.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.quality = Quality::default();
    }

    /// After which delays a message arrives; none if it never does.
    pub fn route(&self, from: Endpoint, to: Endpoint, random: &mut Random, coverage: &mut Coverage) -> Vec<u64> {
        if self.cuts.contains(&(from, to)) {
            coverage.hit("net.blocked");
            return Vec::new();
        }
        if random.chance(self.quality.lost) {
            coverage.hit("net.lost");
            return Vec::new();
        }
        let mut copies = vec![self.delay(random, coverage)];
        // A gateway's requests go by a stream, which may break but repeats nothing. (The copy of a request that was done,
        // and whose session was evicted at once, would be refused; and a gateway that hears only that would try anew.)
        let repeats = matches!(from, Endpoint::Node(_));
        if repeats && random.chance(self.quality.duplicated) {
            coverage.hit("net.duplicate");
            copies.push(self.delay(random, coverage));
        }
        copies
    }

    fn delay(&self, random: &mut Random, coverage: &mut Coverage) -> u64 {
        let usual = self.latency_micros / 2 + random.below(self.latency_micros);
        if !random.chance(self.quality.delayed) {
            return usual;
        }
        coverage.hit("net.latency_spike");
        usual + random.skewed(1, self.quality.delay_micros_max)
    }
}
