//! Crashes and failures of storage at every step: what is left is the state before or after, never
//! between, and the log replays the rest.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use paxos::{GroupId, Slot, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Delete, Op, Put, Range};
use shardkv::request::SessionTag;
use shardkv::store::{RowRange, View, Visit, WriteBatch};
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, GroupMeta, MemoryStore, Progress, Store, StoreError, codec};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const GROUP: GroupId = GroupId(2);
const SHARD: ShardId = ShardId(1);
const EPOCH: Epoch = Epoch(1);

/// Fails every change from the `left`-th on.
struct Failing {
    inner: MemoryStore,
    left: AtomicUsize,
}

impl Failing {
    fn new() -> Arc<Failing> {
        Arc::new(Failing { inner: MemoryStore::new(), left: AtomicUsize::new(usize::MAX) })
    }

    fn spend(&self) -> Result<(), StoreError> {
        let spent = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        spent.map(|_| ()).map_err(|_| StoreError::Backend { action: "do anything", detail: "injected".into() })
    }
}

impl View for Failing {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.inner.get(key)
    }
    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.inner.scan(rows, visit)
    }
}

impl Store for Failing {
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.spend()?;
        self.inner.write(batch)
    }
    fn approximate_bytes(&self, rows: &RowRange) -> u64 {
        self.inner.approximate_bytes(rows)
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.spend()?;
        self.inner.flush()
    }
    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError> {
        self.spend()?;
        self.inner.reclaim(rows)
    }
}

/// Entry `n` of a log: the activation, then puts of ten keys, deletions and compactions among them.
fn entry(slot: u64) -> Bytes {
    let revision = Revision(slot * 10);
    if slot == 1 {
        let activate =
            Command::Activate { revision, shard: SHARD, bounds: Bounds::default(), epoch: EPOCH, by: MoveId(0) };
        return codec::encode(&Batch { commands: vec![activate] });
    }
    let key = |n: u64| Bytes::from(format!("key{}", n % 10));
    let write = |revision: Revision, sequence: u64, op: Op| {
        let low_water = sequence.saturating_sub(3);
        let session = SessionTag { session: u128::from(slot % 3), born: Revision(1), sequence, low_water };
        Command::Write { revision, shard: SHARD, epoch: EPOCH, also: vec![], session, op }
    };
    let value = Bytes::from(format!("value{slot}"));
    let put = Put { key: key(slot), value, lease: 0, prev_kv: true, ignore_value: false, ignore_lease: false };
    let mut commands = vec![write(revision, slot * 2, Op::Put(put))];
    if slot.is_multiple_of(4) {
        let delete = Delete { keys: Keys::One(key(slot / 2)), prev_kv: true };
        commands.push(write(Revision(revision.0 + 1), slot * 2 + 1, Op::Delete(delete)));
    }
    if slot.is_multiple_of(16) {
        commands.push(Command::Compact { revision: Revision(revision.0 - 60) });
    }
    codec::encode(&Batch { commands })
}

fn entries(from: Slot, upto: u64) -> Vec<(Slot, Bytes)> {
    (from.0 + 1..=upto).map(|slot| (Slot(slot), entry(slot))).collect()
}

fn open<S: Store>(store: &Arc<S>, boot: u64) -> DataGroup<S> {
    DataGroup::open(Arc::clone(store), GROUP, boot).unwrap()
}

/// A group that applied `upto` without incident.
fn reference(upto: u64) -> (DataGroup<MemoryStore>, Vec<Vec<Outcome>>) {
    let mut group = open(&Arc::new(MemoryStore::new()), 1);
    let outcomes = group.apply(&entries(Slot(0), upto)).unwrap();
    (group, outcomes)
}

/// Everything readable, at every revision at or above the floor.
fn contents<S: Store>(group: &DataGroup<S>) -> Vec<shardkv::ops::OpResult> {
    let floor = group.shards()[0].floor.0.max(1);
    let all = Op::Range(Range::all(Keys::From(Bytes::new())));
    let reader = group.reader();
    (floor..=group.last_revision().0).map(|at| reader.read(&[(SHARD, EPOCH)], &all, Revision(at)).unwrap()).collect()
}

fn assert_same<S: Store, T: Store>(one: &DataGroup<S>, other: &DataGroup<T>) {
    assert_eq!(
        (one.applied(), one.hash(), one.last_revision()),
        (other.applied(), other.hash(), other.last_revision())
    );
    assert_eq!(contents(one), contents(other));
}

#[test]
fn replay_after_a_crash_gives_the_same_answers_and_state() {
    let (expected, outcomes) = reference(64);
    for flushed in [0, 1, 17, 40] {
        for kept in [0, 1, 7] {
            let store = Arc::new(MemoryStore::new());
            let mut group = open(&store, 1);
            group.apply(&entries(Slot(0), flushed)).unwrap();
            group.flush().unwrap();
            for slot in flushed + 1..=64 {
                group.apply(&entries(Slot(slot - 1), slot)).unwrap();
                group.reader().collect(3).unwrap();
            }
            drop(group);
            store.crash_keeping(kept);
            let mut group = open(&store, 2);
            let applied = group.applied();
            assert!(applied.0 >= flushed, "the flush of {flushed} was lost: {applied}");
            assert_eq!(group.apply(&entries(applied, 64)).unwrap(), outcomes[applied.0 as usize..]);
            assert_same(&group, &expected);
        }
    }
}

#[test]
fn a_failed_batch_changes_nothing_and_can_be_tried_again() {
    let (expected, outcomes) = reference(20);
    let store = Failing::new();
    let mut group = open(&store, 1);
    group.apply(&entries(Slot(0), 10)).unwrap();
    store.left.store(0, Ordering::SeqCst);
    group.apply(&entries(Slot(10), 20)).unwrap_err();
    assert_eq!(group.reader().applied(), (Slot(10), Revision(100)));
    store.left.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(group.apply(&entries(Slot(10), 20)).unwrap(), outcomes[10..]);
    assert_same(&group, &expected);
}

/// Fails, then crashes, at every change that an install makes, keeping every possible number of
/// unflushed batches.
#[test]
fn an_install_that_is_cut_short_anywhere_leaves_the_old_state_or_the_new() {
    let (source, _) = reference(50);
    let mut pieces = Vec::new();
    let mut image = source.snapshot().unwrap();
    while let Some(piece) = image.next_piece(200).unwrap() {
        pieces.push(piece);
    }
    assert!(pieces.len() > 8, "an image of {} pieces tests little", pieces.len());
    let (old, _) = reference(20);
    let (mut saw_old, mut saw_new) = (0, 0);
    for changes in 0.. {
        let mut finished = false;
        for kept in 0..pieces.len() + 4 {
            let store = Failing::new();
            let mut group = open(&store, 1);
            group.apply(&entries(Slot(0), 20)).unwrap();
            group.flush().unwrap();
            store.left.store(changes, Ordering::SeqCst);
            let mut sink = group.begin_install().unwrap();
            let received = pieces.iter().try_for_each(|piece| sink.piece(piece.clone()));
            finished = received.and_then(|()| group.finish_install(sink)).is_ok();
            drop(group);
            store.left.store(usize::MAX, Ordering::SeqCst);
            store.inner.crash_keeping(kept);
            let mut group = open(&store, 2);
            if group.applied() == Slot(50) {
                saw_new += 1;
                assert_same(&group, &source);
            } else {
                saw_old += 1;
                assert!(!finished, "a finished install was lost");
                assert_same(&group, &old);
            }
            assert_no_leftovers(&group, &store.inner);
            group.apply(&entries(group.applied(), 60)).unwrap();
            assert_same(&group, &reference(60).0);
        }
        if finished {
            break;
        }
    }
    assert!(saw_old > 10 && saw_new > 10, "{saw_old} old, {saw_new} new");
}

/// One space is left, the one that the shard names.
fn assert_no_leftovers<S: Store>(group: &DataGroup<S>, store: &MemoryStore) {
    let named: Vec<u64> =
        group.shards().iter().flat_map(|shard| &shard.stretches).map(|stretch| stretch.space.0).collect();
    let mut found = std::collections::BTreeSet::new();
    // The layout's prefix of a space's rows: group 2, kind 0x10, then the space's number.
    let rows = RowRange::prefix(&[1, 2, 0x10]);
    store
        .scan(&rows, &mut |key, _| {
            let digits = &key[4..4 + usize::from(key[3])];
            found.insert(digits.iter().fold(0, |number, digit| number << 8 | u64::from(*digit)));
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
    assert!(found.iter().all(|space| named.contains(space)), "spaces {found:?}, named {named:?}");
}

#[test]
fn a_damaged_image_is_refused_and_changes_nothing() {
    let (source, _) = reference(50);
    let mut pieces = Vec::new();
    let mut image = source.snapshot().unwrap();
    while let Some(piece) = image.next_piece(500).unwrap() {
        pieces.push(piece);
    }
    let (expected, _) = reference(20);
    let store = Arc::new(MemoryStore::new());
    let mut group = open(&store, 1);
    group.apply(&entries(Slot(0), 20)).unwrap();
    let last = pieces.len() - 1;
    let damages: Vec<(&str, Vec<Bytes>)> = vec![
        ("the end is missing", pieces[..last].to_vec()),
        ("a middle piece is missing", [&pieces[..2], &pieces[3..]].concat()),
        ("the header is missing", pieces[1..].to_vec()),
        ("two headers", [&pieces[..1], &pieces[..]].concat()),
        ("a piece behind the end", [&pieces[..], &pieces[last..]].concat()),
        ("a flipped bit", {
            let mut rotten = pieces[2].to_vec();
            rotten[20] ^= 4;
            [&pieces[..2], &[rotten.into()], &pieces[3..]].concat()
        }),
        ("an empty piece", vec![Bytes::new()]),
    ];
    for (damage, pieces) in damages {
        let mut sink = group.begin_install().unwrap();
        let received = pieces.iter().try_for_each(|piece| sink.piece(piece.clone()));
        let installed = received.and_then(|()| group.finish_install(sink));
        assert!(matches!(installed, Err(StoreError::Image(_))), "{damage}: {installed:?}");
        assert_same(&group, &expected);
    }
    // What the failed attempts left behind goes with the next start.
    group.flush().unwrap();
    drop(group);
    let group = open(&store, 2);
    assert_no_leftovers(&group, &store);
    assert_same(&group, &expected);
}

#[test]
fn collection_keeps_exactly_what_the_floor_needs() {
    let (mut group, _) = reference(64);
    let before = contents(&group);
    let reader = group.reader();
    while reader.collect(1).unwrap() != Progress::Done(0) {}
    assert_eq!(contents(&group), before, "nothing at or above the floor changes");
    // Delete everything, compact behind it: only the meta, the shard and the sessions' rows stay.
    let last = group.last_revision().0;
    let delete = Op::Delete(Delete { keys: Keys::From(Bytes::new()), prev_kv: false });
    let session = SessionTag { session: 9, born: Revision(2), sequence: 1, low_water: 0 };
    let commands = vec![
        Command::Write { revision: Revision(last + 1), shard: SHARD, epoch: EPOCH, also: vec![], session, op: delete },
        Command::Compact { revision: Revision(last + 1) },
    ];
    group.apply(&[(Slot(65), codec::encode(&Batch { commands }))]).unwrap();
    while reader.collect(1).unwrap() != Progress::Done(0) {}
    let named = [(SHARD, EPOCH)];
    let at_floor =
        reader.changes(&named, &Keys::From(Bytes::new()), (Revision(last + 1), Revision(last + 1)), 100, false);
    let at_floor = at_floor.unwrap().events;
    assert!(!at_floor.is_empty(), "a watch from the floor sees the deletions at the floor");
    group
        .apply(&[(
            Slot(66),
            codec::encode(&Batch { commands: vec![Command::Compact { revision: Revision(last + 2) }] }),
        )])
        .unwrap();
    while reader.collect(1).unwrap() != Progress::Done(0) {}
    let all = Op::Range(Range::all(Keys::From(Bytes::new())));
    let (_, found) = reader.serializable(&named, &all).unwrap();
    assert_eq!(found, shardkv::ops::OpResult::Range(Default::default()));
    let image = |group: &DataGroup<MemoryStore>| {
        let mut source = group.snapshot().unwrap();
        std::iter::from_fn(|| source.next_piece(1 << 20).unwrap()).map(|piece| piece.len()).sum::<usize>()
    };
    assert!(image(&group) < 1000, "deleted and compacted, yet an image has {} bytes", image(&group));
}

#[test]
fn groups_and_named_rows_share_a_store() {
    let store = Arc::new(MemoryStore::new());
    let mut data = open(&store, 1);
    data.apply(&entries(Slot(0), 9)).unwrap();
    let meta = GroupMeta::open(Arc::clone(&store), GroupId(1));
    let neighbour = GroupMeta::open(Arc::clone(&store), GROUP);
    meta.commit(vec![(b"a".to_vec(), Some("1".into())), (b"b".to_vec(), Some("2".into()))]).unwrap();
    neighbour.commit(vec![(b"a".to_vec(), Some("n".into()))]).unwrap();
    meta.commit(vec![(b"a".to_vec(), None), (b"c".to_vec(), Some("3".into()))]).unwrap();
    assert_eq!(meta.get(b"b").unwrap(), Some("2".into()));
    assert_eq!(meta.list(b"").unwrap(), [(b"b".to_vec(), "2".into()), (b"c".to_vec(), "3".into())]);
    meta.replace(vec![(b"z".to_vec(), "9".into())]).unwrap();
    store.crash();
    assert_eq!(meta.list(b"").unwrap(), [(b"z".to_vec(), Bytes::from("9"))], "a replacement is durable");
    assert_eq!(neighbour.get(b"a").unwrap(), Some("n".into()));
    assert_same(&open(&store, 2), &reference(9).0);
    shardkv::delete_group(&*store, GROUP).unwrap();
    assert_eq!(open(&store, 3).applied(), Slot(0));
    assert_eq!(meta.list(b"").unwrap().len(), 1);
}
