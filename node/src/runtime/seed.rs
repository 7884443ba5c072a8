//! Filling a node's store before its first start: what a restored cluster begins with.
//!
//! Every replica of a group is filled with the same keys and takes them for an image of its log's first
//! slot. The node's log stays empty; what follows is logged behind that slot.

use paxos::{GroupId, SnapshotSink, StateMachine};
use shardkv::map::{SHARDMASTER_GROUP, ShardInfo, ShardMap};
use shardkv::ops::KeyValue;
use shardkv::store::StoreError;
use shardkv::types::Revision;
use shardkv::{DataGroup, RocksOptions, RocksStore, Seed};
use shardmaster::{MasterGroup, MasterState};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Bytes of keys and values written at once.
const PIECE_BYTES: usize = 1 << 20;
/// The first start counts on from here.
const BOOT: u64 = 1;

struct Filling {
    group: DataGroup<RocksStore>,
    sink: Box<dyn SnapshotSink<Error = StoreError> + Send>,
    seed: Seed,
    waiting: Vec<KeyValue>,
    bytes: usize,
}

impl Filling {
    fn begin(
        store: &Arc<RocksStore>,
        id: GroupId,
        shards: &[ShardInfo],
        floor: Revision,
    ) -> Result<Filling, StoreError> {
        let mut group = DataGroup::open(store.clone(), id, BOOT)?;
        let mut sink = group.begin_install()?;
        let (seed, header) = Seed::begin(shards, floor);
        sink.piece(header)?;
        Ok(Filling { group, sink, seed, waiting: Vec::new(), bytes: 0 })
    }

    fn put(&mut self, pair: KeyValue) -> Result<(), StoreError> {
        self.bytes += pair.key.len() + pair.value.len();
        self.waiting.push(pair);
        if self.bytes >= PIECE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        let piece = self.seed.rows(self.waiting.drain(..));
        self.sink.piece(piece)
    }

    fn finish(mut self) -> Result<(), StoreError> {
        self.write()?;
        let Filling { mut group, mut sink, seed, .. } = self;
        sink.piece(seed.end())?;
        group.finish_install(sink)
    }
}

/// A store that is being filled.
pub struct Seeding {
    store: Arc<RocksStore>,
    shards: Vec<ShardInfo>,
    groups: BTreeMap<GroupId, Filling>,
    /// If the node hosts a replica of the shardmaster's group.
    master: Option<MasterState>,
}

impl Seeding {
    /// Begins in a new directory. `hosted` are the groups that the node has replicas of. No key has a
    /// revision above `floor`, and the cluster's own revisions will begin above it.
    pub fn begin(path: &Path, map: &ShardMap, hosted: &[GroupId], floor: Revision) -> Result<Seeding, StoreError> {
        let store = Arc::new(RocksStore::open(path, RocksOptions::default())?);
        let mut groups = BTreeMap::new();
        for id in hosted.iter().filter(|id| **id != SHARDMASTER_GROUP) {
            let shards: Vec<ShardInfo> = map.shards.iter().filter(|shard| shard.group == *id).cloned().collect();
            groups.insert(*id, Filling::begin(&store, *id, &shards, floor)?);
        }
        let state = || MasterState { map: ShardMap { compacted: floor, ..map.clone() }, reserved_up_to: floor };
        let master = hosted.contains(&SHARDMASTER_GROUP).then(state);
        Ok(Seeding { store, shards: map.shards.clone(), groups, master })
    }

    /// Adds a key; keys come in ascending order. Whether it belongs to a group that is hosted here.
    pub fn put(&mut self, pair: KeyValue) -> Result<bool, StoreError> {
        let at = self.shards.partition_point(|shard| shard.bounds.start <= pair.key).checked_sub(1);
        let shard = at.and_then(|at| self.shards.get(at));
        match shard.and_then(|shard| self.groups.get_mut(&shard.group)) {
            Some(filling) => filling.put(pair).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes all of it durable and current.
    pub fn finish(self) -> Result<(), StoreError> {
        for filling in self.groups.into_values() {
            filling.finish()?;
        }
        if let Some(state) = self.master {
            let mut group = MasterGroup::open(self.store.clone())?;
            let mut sink = group.begin_install()?;
            sink.piece(MasterGroup::<RocksStore>::seed(state))?;
            group.finish_install(sink)?;
        }
        shardkv::store::Store::flush(&*self.store)
    }
}
