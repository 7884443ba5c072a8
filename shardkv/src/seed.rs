//! The image of a group that begins its life with keys: what a restored cluster starts from.
//!
//! A seed is an image like those that a replica sends to another one, of slot 1. All replicas of a group
//! **must** be seeded with the same shards, keys and floor, for they will take it for the outcome of the
//! same log. Keys keep their revisions, versions and leases; history below the floor there is none.

use crate::image::{Piece, seal};
use crate::key::LATEST;
use crate::map::ShardInfo;
use crate::ops::KeyValue;
use crate::record;
use crate::state::{Meta, OwnedShard, Stretch};
use crate::types::{MoveId, Revision, SpaceId};
use bytes::Bytes;
use paxos::Slot;

/// The slot that a seed stands for.
pub const SEED_SLOT: Slot = Slot(1);
/// Each replica puts its own number in its place.
const SPACE: SpaceId = SpaceId(1);

/// Makes the pieces of a seed, in order: [`Seed::begin`], [`Seed::rows`] as often as needed,
/// [`Seed::end`].
#[derive(Debug)]
pub struct Seed {
    rows: u64,
}

impl Seed {
    /// The first piece: the group's shards, and the oldest revision that can be read. Every revision of a
    /// key, and every one that the sequencer handed out before, is at or below `floor`.
    pub fn begin(shards: &[ShardInfo], floor: Revision) -> (Seed, Bytes) {
        let owned = |shard: &ShardInfo| OwnedShard {
            id: shard.id,
            bounds: shard.bounds.clone(),
            epoch: shard.epoch,
            floor,
            // Sessions of the cluster that was backed up, all of them born earlier, must not find an empty table
            // and execute anew; those of this cluster are born at the floor.
            evicted: Revision(floor.0.saturating_sub(1)),
            stretches: vec![Stretch { start: shard.bounds.start.clone(), space: SPACE }],
            since: Slot(0),
            stayed: MoveId(0),
            out: None,
        };
        let meta =
            Meta { applied: SEED_SLOT, last_revision: floor, home: Some(SPACE), imaged: SEED_SLOT, ..Meta::default() };
        let header =
            Piece::Header { meta, shards: shards.iter().map(owned).collect(), arrivals: Vec::new(), gone: Vec::new() };
        (Seed { rows: 0 }, seal(&header))
    }

    /// A piece with these keys, none of which came before.
    pub fn rows(&mut self, pairs: impl IntoIterator<Item = KeyValue>) -> Bytes {
        let row = |pair: KeyValue| {
            let KeyValue { key, value, create_revision, mod_revision, version, lease } = pair;
            (key, record::live(mod_revision, create_revision, version, lease, &value))
        };
        let rows: Vec<(Bytes, Bytes)> = pairs.into_iter().map(row).collect();
        self.rows += rows.len() as u64;
        seal(&Piece::Rows { space: SPACE, kind: LATEST, rows })
    }

    /// The last piece.
    pub fn end(self) -> Bytes {
        seal(&Piece::End { rows: self.rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use crate::ops::{Op, OpResult, Range};
    use crate::types::{Bounds, Epoch, Keys, ShardId};
    use crate::{DataGroup, ReadError};
    use paxos::{GroupId, StateMachine};
    use std::sync::Arc;

    #[test]
    fn a_seeded_group_has_the_keys_as_they_were_and_no_history() {
        let shard = |id: u64, start: &'static str, end: Option<&'static str>| ShardInfo {
            id: ShardId(id),
            bounds: Bounds { start: Bytes::from(start), end: end.map(Bytes::from) },
            group: GroupId(2),
            epoch: Epoch(1),
            by: MoveId(0),
        };
        let shards = [shard(1, "", Some("m")), shard(2, "m", None)];
        let pair = |key: &'static str, revision: u64| KeyValue {
            key: Bytes::from(key),
            value: Bytes::from(format!("{key} at {revision}")),
            create_revision: Revision(revision - 1),
            mod_revision: Revision(revision),
            version: 2,
            lease: 7,
        };
        let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).expect("an empty group");
        let mut sink = group.begin_install().expect("a sink");
        let (mut seed, header) = Seed::begin(&shards, Revision(1000));
        sink.piece(header).expect("taken");
        sink.piece(seed.rows([pair("a", 5)])).expect("taken");
        sink.piece(seed.rows([pair("b", 900), pair("x", 7)])).expect("taken");
        sink.piece(seed.end()).expect("taken");
        group.finish_install(sink).expect("installed");
        assert_eq!((group.applied(), group.imaged(), group.last_revision()), (SEED_SLOT, SEED_SLOT, Revision(1000)));

        let read = |revision: u64| {
            let op = Op::Range(Range { revision: Revision(revision), ..Range::all(Keys::From(Bytes::new())) });
            let named = [(ShardId(1), Epoch(1)), (ShardId(2), Epoch(1))];
            group.reader().read(&named, &op, Revision(1000))
        };
        let Ok(OpResult::Range(all)) = read(0) else { panic!("it can be read") };
        assert_eq!(all.kvs, [pair("a", 5), pair("b", 900), pair("x", 7)]);
        assert_eq!(read(999), Err(ReadError::Compacted { floor: Revision(1000) }));
    }

    #[test]
    fn a_seed_with_a_row_missing_is_refused() {
        let mut group = DataGroup::open(Arc::new(MemoryStore::new()), GroupId(2), 1).expect("an empty group");
        let mut sink = group.begin_install().expect("a sink");
        let (mut seed, header) = Seed::begin(&[], Revision(9));
        drop(seed.rows([KeyValue::default()]));
        sink.piece(header).expect("taken");
        assert!(sink.piece(seed.end()).is_err());
    }
}
