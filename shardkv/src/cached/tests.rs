use super::*;
use crate::memory::MemoryStore;

fn put(store: &impl Store, key: &str, value: &str) {
    let mut batch = WriteBatch::default();
    batch.put(key.as_bytes().to_vec(), Bytes::copy_from_slice(value.as_bytes()));
    store.write(&batch).expect("the memory store takes it");
}

fn get(store: &impl View, key: &str) -> Option<String> {
    let value = store.get(key.as_bytes()).expect("the memory store answers");
    value.map(|value| String::from_utf8_lossy(&value).into_owned())
}

#[test]
fn a_read_after_a_write_finds_it_whatever_was_cached() {
    let store = CachedStore::new(MemoryStore::new(), 1 << 20);
    assert_eq!(get(&store, "a"), None);
    put(&store, "a", "1");
    assert_eq!(get(&store, "a").as_deref(), Some("1"));
    put(&store, "a", "2");
    assert_eq!(get(&store, "a").as_deref(), Some("2"));
    let mut batch = WriteBatch::default();
    batch.delete(b"a".to_vec());
    store.write(&batch).expect("the memory store takes it");
    assert_eq!(get(&store, "a"), None);
    put(&store, "a", "3");
    let mut batch = WriteBatch::default();
    batch.delete_range(RowRange { start: b"a".to_vec(), end: b"b".to_vec() });
    store.write(&batch).expect("the memory store takes it");
    assert_eq!(get(&store, "a"), None);
}

type Overtaking = fn(&CachedStore<Overtaken>);

/// A store whose next lookup, or write, is overtaken: somebody else writes through the cache before it returns.
#[derive(Default)]
struct Overtaken {
    store: MemoryStore,
    cache: std::sync::OnceLock<std::sync::Weak<CachedStore<Overtaken>>>,
    lookup: Mutex<Option<Overtaking>>,
    write: Mutex<Option<Overtaking>>,
}

impl Overtaken {
    fn cached() -> std::sync::Arc<CachedStore<Overtaken>> {
        let store = std::sync::Arc::new(CachedStore::new(Overtaken::default(), 1 << 20));
        store.inner().cache.set(std::sync::Arc::downgrade(&store)).expect("set once");
        store
    }

    fn overtake(&self, next: &Mutex<Option<Overtaking>>) {
        let overtaking = next.lock().expect("not poisoned").take();
        if let Some(overtaking) = overtaking {
            overtaking(&self.cache.get().and_then(std::sync::Weak::upgrade).expect("the test holds it"));
        }
    }
}

impl View for Overtaken {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let found = self.store.get(key);
        self.overtake(&self.lookup);
        found
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(rows, visit)
    }
}

impl Store for Overtaken {
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.store.write(batch)?;
        self.overtake(&self.write);
        Ok(())
    }
    fn approximate_bytes(&self, rows: &RowRange) -> u64 {
        self.store.approximate_bytes(rows)
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.store.flush()
    }
    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError> {
        self.store.reclaim(rows)
    }
}

fn delete_a(store: &CachedStore<Overtaken>) {
    let mut batch = WriteBatch::default();
    batch.delete_range(RowRange { start: b"a".to_vec(), end: b"b".to_vec() });
    store.write(&batch).expect("the memory store takes it");
}

fn reclaim_a(store: &CachedStore<Overtaken>) {
    store.reclaim(&RowRange { start: b"a".to_vec(), end: b"b".to_vec() }).expect("the memory store takes it");
}

#[test]
fn a_reader_that_was_overtaken_leaves_the_cache_alone() {
    let put_new: Overtaking = |store| put(store, "a", "new");
    for (overtaking, then) in [(put_new, Some("new")), (delete_a, None), (reclaim_a, None)] {
        let store = Overtaken::cached();
        put(&store.inner().store, "a", "old");
        *store.inner().lookup.lock().expect("not poisoned") = Some(overtaking);
        assert_eq!(get(&*store, "a").as_deref(), Some("old"), "it was read before");
        assert_eq!(get(&*store, "a").as_deref(), then, "and does not stay");
    }
}

#[test]
fn a_writer_that_was_overtaken_by_a_deletion_leaves_nothing_in_the_cache() {
    for overtaking in [delete_a as Overtaking, reclaim_a] {
        let store = Overtaken::cached();
        assert_eq!(get(&*store, "a"), None, "what was looked up stays when it is written");
        *store.inner().write.lock().expect("not poisoned") = Some(overtaking);
        put(&*store, "a", "1");
        assert_eq!(store.inner().get(b"a"), Ok(None));
        assert_eq!(get(&*store, "a"), None);
    }
}

#[test]
fn rows_outside_of_a_deleted_range_stay() {
    let store = CachedStore::new(MemoryStore::new(), 1 << 20);
    for key in ["a", "b", "c"] {
        put(&store, key, key);
        assert_eq!(get(&store, key).as_deref(), Some(key));
    }
    let mut batch = WriteBatch::default();
    batch.delete_range(RowRange { start: b"b".to_vec(), end: b"c".to_vec() });
    store.write(&batch).expect("the memory store takes it");
    let misses = store.figures().misses;
    assert_eq!((get(&store, "a").as_deref(), get(&store, "c").as_deref()), (Some("a"), Some("c")));
    assert_eq!(store.figures().misses, misses, "they are still there");
    assert_eq!(get(&store, "b"), None);
    put(&store, "b", "new");
    assert_eq!(get(&store, "b").as_deref(), Some("new"));
    assert_eq!(store.figures().misses, misses + 1, "it was looked up again once");
}

#[test]
fn what_is_only_peeked_at_is_not_kept() {
    let store = CachedStore::new(MemoryStore::new(), 1 << 20);
    put(&store, "a", "1");
    let peek = |key: &str| store.peek(key.as_bytes()).expect("the memory store answers");
    assert_eq!(peek("a"), Some(Bytes::from_static(b"1")));
    assert_eq!(store.figures().rows, 0);
    assert_eq!(get(&store, "a").as_deref(), Some("1"));
    put(&store, "a", "2");
    assert_eq!(peek("a"), Some(Bytes::from_static(b"2")), "what others keep is found");
}

proptest::proptest! {
    /// Whatever is done in whatever order, the cache says what the store says.
    #[test]
    fn the_cache_says_what_the_store_says(
        steps in proptest::collection::vec((0u8..6, 0u8..8, 0u8..8, proptest::prelude::any::<u8>()), 1..300),
    ) {
        let store = CachedStore::new(MemoryStore::new(), 1 << 12);
        let key = |number: u8| vec![b'a' + number];
        for (step, one, other, value) in steps {
            let mut batch = WriteBatch::default();
            let rows = RowRange { start: key(one.min(other)), end: key(one.max(other)) };
            match step {
                0 | 1 => batch.put(key(one), Bytes::from(vec![value; 100])),
                2 => batch.delete(key(one)),
                3 => batch.delete_range(rows),
                4 => {
                    batch.delete_range(rows);
                    batch.put(key(one), Bytes::from(vec![value; 100]));
                }
                _ => store.reclaim(&rows).expect("the memory store takes it"),
            }
            store.write(&batch).expect("the memory store takes it");
            for number in [one, other] {
                let known = store.inner().get(&key(number));
                proptest::prop_assert_eq!(store.peek(&key(number)), known.clone());
                proptest::prop_assert_eq!(store.get(&key(number)), known);
            }
        }
    }
}

#[test]
fn the_cache_keeps_to_its_bound() {
    let store = CachedStore::new(MemoryStore::new(), 64 << 10);
    for number in 0..10_000 {
        put(&store, &format!("key-{number}"), &"x".repeat(100));
        assert_eq!(get(&store, &format!("key-{number}")), Some("x".repeat(100)));
    }
    let bytes: usize = store.parts.iter().map(|part| part.lock().expect("not poisoned").bytes).sum();
    assert!(bytes <= 64 << 10, "{bytes} bytes");
    assert!(bytes > 32 << 10, "{bytes} bytes: the cache is hardly used");
    for number in 0..10_000 {
        assert_eq!(get(&store, &format!("key-{number}")), Some("x".repeat(100)));
    }
}
