//! One suite for both stores.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use shardkv::store::{RowRange, Store, WriteBatch};
use std::ops::ControlFlow;

fn rows(store: &impl Store, start: &str, end: &str) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let range = RowRange { start: start.into(), end: end.into() };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.push((text(key), text(value)));
        Ok(if rows.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    };
    store.scan(&range, visit).unwrap();
    rows
}

fn keys(store: &impl Store, start: &str, end: &str) -> String {
    rows(store, start, end).into_iter().map(|(key, _)| key).collect()
}

fn batch(build: impl FnOnce(&mut WriteBatch)) -> WriteBatch {
    let mut batch = WriteBatch::default();
    build(&mut batch);
    batch
}

fn put(batch: &mut WriteBatch, key: &str, value: &'static str) {
    batch.put(key.into(), value.into());
}

fn store_suite(store: &impl Store) {
    let range = |start: &str, end: &str| RowRange { start: start.into(), end: end.into() };
    assert_eq!(store.get(b"a").unwrap(), None);
    store.write(&batch(|b| ["a", "b", "c", "d", "e"].iter().for_each(|key| put(b, key, "1")))).unwrap();
    assert_eq!(keys(store, "a", "z"), "abc", "a scan that breaks off");
    assert_eq!(keys(store, "b", "d"), "bc", "the end is outside");
    assert_eq!(keys(store, "d", "b") + &keys(store, "b", "b"), "", "inverted and empty ranges hold nothing");
    assert_eq!(store.first(&range("bb", "d")).unwrap(), Some((b"c".to_vec(), Bytes::from("1"))));
    assert_eq!(store.first(&range("x", "z")).unwrap(), None);
    // Changes of one batch apply in order.
    store
        .write(&batch(|b| {
            put(b, "b", "2");
            b.delete_range(range("b", "d"));
            put(b, "c", "3");
            b.delete("e".into());
            b.delete("missing".into());
        }))
        .unwrap();
    let expected = [("a", "1"), ("c", "3"), ("d", "1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(rows(store, "a", "z"), expected);
    // A scan sees the rows as they were at its start.
    let mut seen = 0;
    let visit = &mut |_: &[u8], _: &[u8]| {
        seen += 1;
        store.write(&batch(|b| b.delete_range(range("a", "z"))))?;
        Ok(ControlFlow::Continue(()))
    };
    store.scan(&range("a", "z"), visit).unwrap();
    assert_eq!((seen, keys(store, "a", "z")), (3, String::new()));
    store.write(&batch(|b| ["f", "g", "h"].iter().for_each(|key| put(b, key, "1")))).unwrap();
    store.flush().unwrap();
    store.reclaim(&range("f", "h")).unwrap();
    assert_eq!(keys(store, "a", "z"), "h");
}

#[test]
fn memory() {
    let store = shardkv::MemoryStore::new();
    store_suite(&store);
    store.write(&batch(|b| put(b, "i", "1"))).unwrap();
    store.write(&batch(|b| put(b, "j", "1"))).unwrap();
    store.crash_keeping(1);
    assert_eq!(keys(&store, "a", "z"), "hi", "a crash keeps a prefix of the batches");
}

#[cfg(feature = "rocks")]
#[test]
fn rocks() {
    let directory = tempfile::tempdir().unwrap();
    let open = || shardkv::RocksStore::open(directory.path(), shardkv::RocksOptions::default()).unwrap();
    let store = open();
    store_suite(&store);
    let again = shardkv::RocksStore::open(directory.path(), shardkv::RocksOptions::default());
    assert!(matches!(again, Err(shardkv::StoreError::Backend { .. })), "a directory is open once only");
    store.write(&batch(|b| put(b, "i", "1"))).unwrap();
    store.flush().unwrap();
    assert!(store.size_bytes().unwrap() > 0);
    drop(store);
    assert_eq!(keys(&open(), "a", "z"), "hi", "what was flushed is there after a restart");
}

#[cfg(feature = "rocks")]
#[test]
#[allow(clippy::disallowed_methods)] // It waits for threads of RocksDB.
fn what_leaves_level_0_is_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let store = shardkv::RocksStore::open(directory.path(), shardkv::RocksOptions::default()).unwrap();
    let value = Bytes::from(vec![b'v'; 4096]);
    // Small, so that level 0 is merged into the last level at once.
    for n in 0..8 * 64 {
        store.write(&batch(|b| b.put(format!("{:03}", n % 100).into(), value.clone()))).unwrap();
        if n % 64 == 63 {
            store.flush().unwrap();
        }
    }
    let (begun, patience) = (std::time::Instant::now(), std::time::Duration::from_secs(30));
    loop {
        let figures = store.figures().unwrap();
        if figures.level_0_files == 0 && figures.compactions == 0 {
            assert!(figures.files_bytes < 100 * 4096 / 4, "{figures:?}");
            return;
        }
        assert!(begun.elapsed() < patience, "nothing was compacted: {figures:?}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[cfg(feature = "rocks")]
#[test]
fn no_two_of_three_nodes_flush_alike() {
    let alike = shardkv::RocksOptions::default();
    let sizes: std::collections::BTreeSet<u64> = (1..=3).map(|node| alike.staggered(node).flush_bytes()).collect();
    assert_eq!(sizes.len(), 3);
    assert!(sizes.iter().all(|size| (alike.flush_bytes() * 3 / 4..alike.flush_bytes()).contains(size)), "{sizes:?}");
}
