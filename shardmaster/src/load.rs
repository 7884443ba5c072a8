//! What nodes say of the load of shards.

use bytes::Bytes;
use paxos::NodeId;
use serde::{Deserialize, Serialize};
use shardkv::types::{Epoch, ShardId};
use std::collections::BTreeMap;

/// Hottest keys that are named.
pub const HOTTEST_MAX: usize = 3;

/// What one node serves of a shard, lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLoad {
    /// The shard.
    pub shard: ShardId,
    /// Its epoch there.
    pub epoch: Epoch,
    /// Reads per second.
    pub reads: u64,
    /// Writes per second.
    pub writes: u64,
    /// What it holds, about; only the leader of its group says so.
    pub stored: Option<Stored>,
    /// The key that has about half of the requests before it; `None` where one key has most of them, or too few
    /// were seen.
    pub middle: Option<Bytes>,
    /// The keys asked for most often, with their shares of the requests in thousandths, by sampling.
    pub hottest: Vec<(Bytes, u32)>,
}

/// What a shard holds, about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Bytes in storage, with history.
    pub bytes: u64,
    /// Keys.
    pub keys: u64,
}

/// What all nodes say, put together by shard: requests add up, and the rest is what the busiest says.
pub fn sum<'a>(loads: impl Iterator<Item = (NodeId, &'a ShardLoad)>) -> BTreeMap<ShardId, ShardLoad> {
    let mut all: BTreeMap<ShardId, ShardLoad> = BTreeMap::new();
    for (_, load) in loads {
        let Some(known) = all.get_mut(&load.shard) else {
            all.insert(load.shard, load.clone());
            continue;
        };
        if load.reads + load.writes > known.reads + known.writes {
            (known.middle, known.hottest) = (load.middle.clone(), load.hottest.clone());
        }
        known.reads += load.reads;
        known.writes += load.writes;
        known.epoch = known.epoch.max(load.epoch);
        known.stored = known.stored.or(load.stored);
    }
    all
}
