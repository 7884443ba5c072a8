//! What the shardmaster's leader knows of the load of all shards.

use super::Core;
use paxos::{NodeId, Time};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::store::Store;
use shardmaster::load::ShardLoad;
use std::collections::BTreeMap;

/// What a node has said counts for so long.
const LOADS_LAST_MICROS: u64 = 30_000_000;

/// Kept in memory by whoever leads the shardmaster, and told anew to the next one.
#[derive(Debug, Default)]
pub(super) struct Balancing {
    loads: BTreeMap<NodeId, (Time, Vec<ShardLoad>)>,
}

impl<S: Store> Core<S> {
    /// A node says how busy its shards are.
    pub(super) fn loads_told(&mut self, now: Time, from: NodeId, loads: Vec<ShardLoad>) {
        if self.ready_lead(SHARDMASTER_GROUP).is_ok() {
            self.balancing.loads.insert(from, (now, loads));
            self.balancing.loads.retain(|_, (at, _)| now.since(*at) < LOADS_LAST_MICROS);
        }
    }
}
