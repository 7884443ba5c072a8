use super::*;
use crate::command::{Batch, Command, Outcome};
use crate::key::GroupKeys;
use crate::state::Stretch;
use crate::store::{Visit, WriteBatch};
use crate::types::Epoch;
use crate::{DataGroup, MemoryStore};
use paxos::{GroupId, StateMachine};
use std::sync::Arc;

fn version(revision: u64) -> Bytes {
    crate::record::live(Revision(revision), Revision(1), 1, 0, b"value")
}

/// What applies a piece looks nothing up for versions that come in order.
#[test]
fn versions_out_of_order_are_noticed() {
    let at = Position::Versions { key: "b".into(), below: Revision(u64::MAX) };
    let in_order = |at: &Position, versions: &[(&'static str, u64)]| {
        let versions = versions.iter().map(|(key, revision)| ((*key).into(), version(*revision))).collect();
        Piece { versions, ..Piece::default() }.versions_are_in_order(at)
    };
    assert!(in_order(&at, &[("b", 9), ("b", 3), ("b", 3), ("c", 1), ("d", 7)]));
    assert!(!in_order(&at, &[("a", 9)]), "before where it was read");
    assert!(!in_order(&at, &[("c", 1), ("b", 9)]), "keys the other way round");
    assert!(!in_order(&at, &[("b", 3), ("b", 9)]), "the oldest first");
    let changes = Position::Changes { from: Revision(1), skip: 0 };
    assert!(in_order(&changes, &[]) && !in_order(&changes, &[("b", 9)]), "versions behind changes");
}

/// A store in memory in which a key is overwritten between the scan that finds it and that of its history.
struct Busy {
    store: MemoryStore,
    /// What is written once the next scan has begun.
    next: std::sync::Mutex<Option<WriteBatch>>,
}

impl View for Busy {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key)
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        let mut found = Vec::new();
        self.store.scan(rows, &mut |key, row| {
            found.push((key.to_vec(), row.to_vec()));
            Ok(ControlFlow::Continue(()))
        })?;
        let next = self.next.lock().expect("not poisoned").take();
        next.map_or(Ok(()), |batch| self.store.write(&batch))?;
        for (key, row) in found {
            if visit(&key, &row)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[test]
fn what_is_read_while_keys_are_overwritten_is_in_order() {
    let keys = GroupKeys::new(GroupId(2)).space(SpaceId(1));
    let row = |key: &'static str, revision| (keys.latest(key.as_bytes()), version(revision));
    let old = |key: &'static str, revision| (keys.history(key.as_bytes(), Revision(revision)), version(revision));
    let batch = |rows: Vec<(Vec<u8>, Bytes)>| {
        let mut batch = WriteBatch::default();
        rows.into_iter().for_each(|(key, row)| batch.put(key, row));
        batch
    };
    let store = MemoryStore::new();
    let before = vec![row("a", 9), old("a", 4), row("b", 7), old("b", 3), row("c", 8)];
    store.write(&batch(before)).expect("a store in memory");
    // The first scan is that of the newest versions, then comes that of the history of each key.
    let overwritten = batch(vec![row("a", 20), old("a", 9), row("b", 21), old("b", 7)]);
    let store = Busy { store, next: std::sync::Mutex::new(Some(overwritten)) };
    let bounds = Bounds::default();
    let shard = OwnedShard {
        id: ShardId(1),
        bounds: bounds.clone(),
        epoch: Epoch(1),
        floor: Revision(0),
        evicted: Revision(0),
        stretches: vec![Stretch { start: bounds.start.clone(), space: SpaceId(1) }],
        since: Slot(0),
        stayed: MoveId(0),
        out: None,
    };
    let parts = vec![(bounds.clone(), keys.clone())];
    let (copied_at, floor, piece) = (Revision(10), Revision(0), Piece::default());
    let mut filling =
        Filling { store: &store, parts, shard: &shard, copied_at, floor, piece, bytes: 0, bytes_max: 1 << 20 };
    let next = filling.versions(&bounds.start, Revision(u64::MAX)).expect("a store in memory");
    assert_eq!(next, Position::Changes { from: Revision(0), skip: 0 });
    let read = |piece: &Piece| -> Vec<(Bytes, u64)> {
        let parse = |row| Head::parse(row).expect("it was written here").mod_revision.0;
        piece.versions.iter().map(|(key, row)| (key.clone(), parse(row))).collect()
    };
    let expected = [("a", 9), ("a", 9), ("a", 4), ("b", 7), ("b", 7), ("b", 3), ("c", 8)];
    assert_eq!(read(&filling.piece), expected.map(|(key, revision)| (Bytes::from_static(key.as_bytes()), revision)));
    assert!(filling.piece.is_sound(ShardId(1)) && filling.piece.versions_are_in_order(&Position::start(&bounds)));
}

/// A key is overwritten between the reading of its newest version and that of its history, which has that version by then;
/// and a piece ends among its versions.
#[test]
fn a_version_that_was_read_twice_is_there_once() {
    let store = Arc::new(MemoryStore::new());
    let mut group = DataGroup::open(store.clone(), GroupId(2), 1).expect("an empty store");
    let (shard, mv, bounds) = (ShardId(1), MoveId(1), Bounds::default());
    let mut apply = |command: Command| {
        let entry = codec::encode(&Batch { commands: vec![command] });
        let outcomes = group.apply(&[(group.applied().next(), entry)]).expect("a store in memory");
        assert_eq!(outcomes, [[Outcome::Moved]]);
    };
    apply(Command::Arrive { shard, bounds: bounds.clone(), mv });
    let middle = Position::Versions { key: "b".into(), below: Revision(3) };
    let end = Position::Changes { from: Revision(1), skip: 0 };
    let mut import = |at: &Position, next: &Position, versions: &[(&'static str, u64)]| {
        let versions = versions.iter().map(|(key, revision)| ((*key).into(), version(*revision))).collect();
        let piece = codec::encode(&Piece { versions, ..Piece::default() });
        apply(Command::Import { shard, mv, at: at.clone(), next: next.clone(), piece });
    };
    import(&Position::start(&bounds), &middle, &[("a", 9), ("a", 9), ("a", 4), ("b", 7)]);
    // Nobody sends the last two in this order; they find their places.
    import(&middle, &end, &[("b", 3), ("b", 2), ("c", 8), ("d", 1), ("d", 5)]);
    let space = group.reader().arrivals().remove(0).space;
    let keys = GroupKeys::new(GroupId(2)).space(space);
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], row: &[u8]| {
        rows.push((key.to_vec(), Head::parse(row)?.mod_revision.0));
        Ok(ControlFlow::Continue(()))
    };
    store.scan(&keys.all(), &mut visit).expect("a store in memory");
    let latest = [("a", 9), ("b", 7), ("c", 8), ("d", 5)].map(|(key, at)| (keys.latest(key.as_bytes()), at));
    let older =
        [("a", 4), ("b", 3), ("b", 2), ("d", 1)].map(|(key, at)| (keys.history(key.as_bytes(), Revision(at)), at));
    assert_eq!(rows, [older, latest].concat());
}
