//! Room for the store on a disk that fills up.
//!
//! RocksDB without its own log takes a failed flush for the end: what it holds in memory can be had
//! from our log only, after a restart. So no flush may be tried that has no room. The disk is watched,
//! and beside the store lies a *reserve*, a file that is given up when room runs low, so that what is
//! decided can be applied and read although others have filled the disk. Meanwhile the node's leaders
//! refuse writes (and hand over to nodes that have room). When the reserve fits on the disk again,
//! writes are taken again. A flush that fails nevertheless, because somebody took all the room within
//! a moment, ends the node, and its next start makes do with what the reserve was.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use shardkv::store::{RowRange, Store, StoreError, View, Visit, WriteBatch};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at the disk, by the thread and by a write that waits for room.
const PERIOD: Duration = Duration::from_secs(1);
/// Bytes written between two looks by a writer.
const LOOK_BYTES: usize = 1 << 20;

/// How much room is how little. Bytes.
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    /// The size of the reserve.
    pub reserve: u64,
    /// With less, new writes are refused and the reserve is given up.
    pub low: u64,
    /// With less, decided writes wait, too: a flush may need that much.
    pub least: u64,
}

impl Marks {
    /// For a store whose flushes write up to `flush` bytes at once.
    pub fn new(flush: u64) -> Marks {
        Marks { reserve: 4 * flush, low: 2 * flush, least: flush + flush / 2 }
    }
}

#[derive(Default)]
struct State {
    full: bool,
    closing: bool,
}

/// What the disk has left, and the reserve. Shared by whoever writes to the store.
pub struct Space {
    reserve: PathBuf,
    marks: Marks,
    room: Box<dyn Fn() -> io::Result<u64> + Send + Sync>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Space {
    /// Opens what `open` opens, with the help of a reserve at `reserve`: if there is no room without
    /// giving it up, it is given up.
    pub fn open<T>(
        reserve: PathBuf,
        marks: Marks,
        open: impl Fn() -> Result<T, StoreError>,
    ) -> Result<(T, Arc<Space>), StoreError> {
        let directory = reserve.parent().unwrap_or(Path::new(".")).to_owned();
        let room = move || statvfs(&directory).map(|system| system.f_bavail * system.f_frsize).map_err(Into::into);
        Space::open_on(Box::new(room), reserve, marks, open)
    }

    fn open_on<T>(
        room: Box<dyn Fn() -> io::Result<u64> + Send + Sync>,
        reserve: PathBuf,
        marks: Marks,
        open: impl Fn() -> Result<T, StoreError>,
    ) -> Result<(T, Arc<Space>), StoreError> {
        let space = Space { reserve, marks, room, state: Mutex::default(), changed: Condvar::new() };
        let opened = match open() {
            Err(StoreError::NoSpace { .. }) => {
                space.give_up();
                open()?
            }
            done => done?,
        };
        if !space.lay_by() {
            tracing::error!("the disk is full: writes are refused until {}", space.what_helps());
            space.lock().full = true;
            space.give_up();
        }
        Ok((opened, Arc::new(space)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Two flags: whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether writes should be refused.
    pub fn is_full(&self) -> bool {
        self.lock().full
    }

    fn what_helps(&self) -> String {
        let mebibytes = (self.marks.low + self.marks.reserve) >> 20;
        format!("{mebibytes} MiB are free in {}", self.reserve.parent().unwrap_or(&self.reserve).display())
    }

    /// Bytes free, beside the reserve. What cannot be told stops nobody.
    fn room(&self) -> u64 {
        (self.room)().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell the free space of the data directory's disk");
            u64::MAX
        })
    }

    /// Looks at the disk, and gives the reserve up if room runs low. Returns the bytes free.
    fn look(&self) -> u64 {
        let room = self.room();
        if room >= self.marks.low {
            return room;
        }
        let mut state = self.lock();
        if state.full {
            return room;
        }
        state.full = true;
        drop(state);
        self.changed.notify_all();
        tracing::error!("the disk is full: writes are refused until {}", self.what_helps());
        self.give_up();
        self.room()
    }

    /// Waits until a flush has room. `false` if the node ends.
    fn wait_for_flush(&self) -> bool {
        while self.look() < self.marks.least {
            let waited = self.changed.wait_timeout_while(self.lock(), PERIOD, |state| !state.closing);
            if waited.unwrap_or_else(PoisonError::into_inner).0.closing {
                return false;
            }
        }
        true
    }

    fn give_up(&self) {
        match std::fs::remove_file(&self.reserve) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(%error, reserve = %self.reserve.display(), "the reserve cannot be given up"),
        }
    }

    /// Lays the reserve by if there is room for it; whether it lies there now.
    fn lay_by(&self) -> bool {
        let there = std::fs::metadata(&self.reserve).map_or(0, |file| file.blocks() * 512);
        // An attempt that fails would take all room for a moment, and the store needs some.
        if self.room() < self.marks.low + self.marks.reserve.saturating_sub(there) {
            return false;
        }
        allocate(&self.reserve, self.marks.reserve)
            .inspect_err(|error| {
                tracing::warn!(%error, reserve = %self.reserve.display(), "the reserve cannot be laid by");
                self.give_up();
            })
            .is_ok()
    }

    /// Watches the disk until the node ends. `on_change` hears of every change of [`Space::is_full`].
    fn watch(&self, on_change: impl Fn(bool)) {
        let mut told = false;
        let mut state = self.lock();
        while !state.closing {
            if state.full != told {
                told = state.full;
                drop(state);
                on_change(told);
                state = self.lock();
                continue;
            }
            let quiet = |state: &mut State| !state.closing && state.full == told;
            let waited = self.changed.wait_timeout_while(state, PERIOD, quiet);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if !told {
                self.look();
            } else if self.lay_by() {
                tracing::info!("the disk has room again: writes are taken");
                self.lock().full = false;
            }
            state = self.lock();
        }
    }
}

fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => file.set_len(bytes),
        // A file system that cannot reserve (ZFS, NFS before 4.2): the marks alone must do.
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The thread that watches the disk; ends all waiting when dropped.
pub struct SpaceGuard {
    space: Arc<Space>,
    thread: Option<JoinHandle<()>>,
}

impl SpaceGuard {
    /// Starts the thread; `on_change` is called on it with every change of [`Space::is_full`].
    pub fn spawn(space: Arc<Space>, on_change: impl Fn(bool) + Send + 'static) -> io::Result<SpaceGuard> {
        let watched = space.clone();
        let thread = std::thread::Builder::new().name("space".into()).spawn(move || watched.watch(on_change))?;
        Ok(SpaceGuard { space, thread: Some(thread) })
    }

    /// What it watches over.
    pub fn space(&self) -> &Space {
        &self.space
    }
}

impl Drop for SpaceGuard {
    fn drop(&mut self) {
        self.space.lock().closing = true;
        self.space.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread itself.
            drop(thread.join());
        }
    }
}

/// A store that is written to only while a flush has room.
pub struct PatientStore<S> {
    store: S,
    space: Arc<Space>,
    /// Written since the last look at the disk.
    bytes: AtomicUsize,
}

impl<S: Store> PatientStore<S> {
    /// Puts patience in front of `store`.
    pub fn new(store: S, space: Arc<Space>) -> PatientStore<S> {
        PatientStore { store, space, bytes: AtomicUsize::new(LOOK_BYTES) }
    }

    /// The store behind.
    pub fn inner(&self) -> &S {
        &self.store
    }

    fn wait_for_room(&self, action: &'static str) -> Result<(), StoreError> {
        match self.space.wait_for_flush() {
            true => Ok(()),
            false => Err(StoreError::NoSpace { action, detail: "the node ends while it waits for room".into() }),
        }
    }
}

impl<S: Store> View for PatientStore<S> {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.store.get(key)
    }

    fn peek(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.store.peek(key)
    }

    fn scan(&self, rows: &RowRange, visit: &mut Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(rows, visit)
    }

    fn first(&self, rows: &RowRange) -> Result<Option<(Vec<u8>, bytes::Bytes)>, StoreError> {
        self.store.first(rows)
    }
}

impl<S: Store> Store for PatientStore<S> {
    fn write(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        // Two writers at the same moment look both or, rarely, one look later: the marks allow for it.
        let bytes = self.bytes.fetch_add(batch.bytes(), Ordering::Relaxed);
        if bytes >= LOOK_BYTES || self.space.is_full() {
            self.bytes.store(0, Ordering::Relaxed);
            self.wait_for_room("write a batch")?;
        }
        self.store.write(batch)
    }

    fn would_wait(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= LOOK_BYTES || self.space.is_full() || self.store.would_wait()
    }

    fn approximate_bytes(&self, rows: &RowRange) -> u64 {
        self.store.approximate_bytes(rows)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.wait_for_room("flush")?;
        self.store.flush()
    }

    fn reclaim(&self, rows: &RowRange) -> Result<(), StoreError> {
        self.store.reclaim(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardkv::MemoryStore;
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc::{Receiver, channel};

    const MARKS: Marks = Marks { reserve: 1 << 20, low: 200, least: 100 };
    const LIMIT: Duration = Duration::from_secs(10);

    struct Scene {
        free: Arc<AtomicU64>,
        reserve: PathBuf,
        space: Arc<Space>,
        store: PatientStore<MemoryStore>,
        guard: SpaceGuard,
        changes: Receiver<bool>,
        _directory: tempfile::TempDir,
    }

    /// A store on a disk that has as much room as the test says.
    fn scene() -> Scene {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let reserve = directory.path().join("reserve");
        let free = Arc::new(AtomicU64::new(1 << 30));
        let told = free.clone();
        let room = Box::new(move || Ok(told.load(Ordering::SeqCst)));
        let (_, space) = Space::open_on(room, reserve.clone(), MARKS, || Ok(())).expect("there is room");
        let (sender, changes) = channel();
        let guard = SpaceGuard::spawn(space.clone(), move |full| _ = sender.send(full)).expect("a thread starts");
        let store = PatientStore::new(MemoryStore::new(), space.clone());
        Scene { free, reserve, space, store, guard, changes, _directory: directory }
    }

    fn batch() -> WriteBatch {
        let mut batch = WriteBatch::default();
        batch.put(b"a".to_vec(), bytes::Bytes::from_static(b"1"));
        batch
    }

    #[test]
    fn low_room_gives_the_reserve_up_and_room_brings_it_back() {
        let scene = scene();
        assert_eq!(scene.reserve.metadata().expect("the reserve is there").len(), MARKS.reserve);
        scene.free.store(MARKS.low - 1, Ordering::SeqCst);
        scene.store.write(&batch()).expect("there is enough for what is decided");
        assert_eq!(scene.changes.recv_timeout(LIMIT), Ok(true));
        assert!(scene.space.is_full());
        assert!(!scene.reserve.exists());
        scene.free.store(1 << 30, Ordering::SeqCst);
        assert_eq!(scene.changes.recv_timeout(LIMIT), Ok(false));
        assert!(!scene.guard.space().is_full());
        assert_eq!(scene.reserve.metadata().expect("the reserve is back").len(), MARKS.reserve);
    }

    #[test]
    fn the_disk_is_watched_without_writes_too() {
        let scene = scene();
        scene.free.store(MARKS.low - 1, Ordering::SeqCst);
        assert_eq!(scene.changes.recv_timeout(LIMIT), Ok(true));
    }

    #[test]
    fn a_write_waits_while_a_flush_has_no_room() {
        let scene = scene();
        scene.free.store(MARKS.least - 1, Ordering::SeqCst);
        let (store, free) = (scene.store, scene.free);
        let writer = std::thread::spawn(move || {
            store.write(&batch()).expect("it waits until there is room");
            store.get(b"a").expect("memory answers")
        });
        assert_eq!(scene.changes.recv_timeout(LIMIT), Ok(true));
        assert!(!writer.is_finished());
        free.store(1 << 30, Ordering::SeqCst);
        assert_eq!(writer.join().expect("no panic").as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_write_that_waits_ends_with_the_node() {
        let scene = scene();
        scene.free.store(0, Ordering::SeqCst);
        let store = scene.store;
        let writer = std::thread::spawn(move || store.write(&batch()));
        assert_eq!(scene.changes.recv_timeout(LIMIT), Ok(true));
        drop(scene.guard);
        let outcome = writer.join().expect("no panic");
        assert!(matches!(outcome, Err(StoreError::NoSpace { .. })), "{outcome:?}");
    }

    #[test]
    fn a_start_on_a_full_disk_gives_up_the_reserve_of_an_earlier_start() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let reserve = directory.path().join("reserve");
        allocate(&reserve, MARKS.reserve).expect("an earlier start had room");
        let seen = reserve.clone();
        // What a file system tells that has nothing left beside the reserve.
        let room = Box::new(move || Ok(if seen.exists() { 0 } else { MARKS.reserve }));
        let (_, space) = Space::open_on(room, reserve, MARKS, || Ok(())).expect("it opens");
        assert!(space.is_full());
        assert!(space.wait_for_flush(), "the reserve's room is for what is decided");
    }

    #[test]
    fn a_store_that_opens_only_without_the_reserve_opens_and_is_full() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let reserve = directory.path().join("reserve");
        std::fs::write(&reserve, "of an earlier start").expect("a file");
        let open = || match reserve.exists() {
            true => Err(StoreError::NoSpace { action: "open", detail: "it is a test".into() }),
            false => Ok(()),
        };
        let room = Box::new(|| Ok(MARKS.low));
        let (_, space) = Space::open_on(room, reserve.clone(), MARKS, open).expect("it opens");
        assert!(space.is_full());
    }
}
