//! A disk in memory that does what real disks do to databases.
//!
//! Deterministic and without a seed: every fault is asked for by the caller. A [`MemDisk`] is a
//! shared handle: the simulator keeps one and gives the log another ([`MemDisk::handle`]).
//!
//! The model: a file has a *durable* image and, sector by sector (512 bytes), unsynced contents over
//! it. Reads see the newest contents. [`DiskFile::sync`] moves all of a file's unsynced sectors into
//! the durable image; [`MemDisk::crash`] keeps those that the caller chooses. A sync that was told to
//! fail marks the sectors clean, as Linux does: reads still see them, later syncs succeed, but they
//! are gone with the next crash. Changes of names are kept back until
//! [`Disk::sync_dir`]; a crash keeps any of them, in whatever order the file system chose.

mod model;

use crate::disk::{Disk, DiskFile};
use model::{Inode, NameChange, State};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The unit that is written atomically.
pub const SECTOR_BYTES: usize = 512;

/// Something that a crash may keep or lose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// An unsynced sector of a file (named as the file was before the crash).
    Sector {
        /// The file.
        file: String,
        /// The sector's number in the file.
        sector: u64,
    },
    /// An unsynced change of names (a file created, renamed or removed).
    Name,
}

/// A handle on the disk. Handles share it; the log's handle dies with [`MemDisk::crash`] or
/// [`MemDisk::restart`], as its process would.
#[derive(Clone, Debug)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

impl Default for MemDisk {
    fn default() -> MemDisk {
        MemDisk::new()
    }
}

impl MemDisk {
    /// An empty disk without faults and without limit.
    pub fn new() -> MemDisk {
        MemDisk { state: Arc::default(), life: 0 }
    }

    /// A handle for a log. It works until the next crash or restart.
    pub fn handle(&self) -> Box<dyn Disk> {
        let life = self.lock().life;
        Box::new(MemDisk { state: Arc::clone(&self.state), life })
    }

    /// Another disk with the same contents, durable and not, and no faults pending.
    pub fn fork(&self) -> MemDisk {
        let state = self.lock();
        let fork = State {
            inodes: state.inodes.clone(),
            next_inode: state.next_inode,
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            changes: state.changes.clone(),
            life: state.life,
            budget_bytes: state.budget_bytes,
            ..State::default()
        };
        MemDisk { state: Arc::new(Mutex::new(fork)), life: 0 }
    }

    /// The power fails: of what is not synced, exactly that survives which `keep` says. Asks for each
    /// change of names in order, then for each sector, ordered by file and number.
    /// Clears a pending power cut and all pending faults but the byte budget.
    pub fn crash(&self, mut keep: impl FnMut(&Unsynced) -> bool) {
        let mut state = self.lock();
        let mut names = state.durable_names.clone();
        for change in std::mem::take(&mut state.changes) {
            if keep(&Unsynced::Name) {
                change.apply(&mut names);
            }
        }
        for (file, inode) in state.names.clone() {
            let Some(inode) = state.inodes.get_mut(&inode) else { continue };
            for (sector, contents) in std::mem::take(&mut inode.unsynced) {
                if keep(&Unsynced::Sector { file: file.clone(), sector }) {
                    inode.settle(sector, &contents);
                }
            }
        }
        for inode in state.inodes.values_mut() {
            inode.unsynced.clear();
            inode.ghosts.clear();
            inode.bytes = inode.durable.len();
        }
        state.names = names.clone();
        state.durable_names = names;
        state.collect();
        state.new_life();
    }

    /// The process dies, the machine lives: all that was written stays readable, synced or not.
    pub fn restart(&self) {
        self.lock().new_life();
    }

    /// From the `operations`-th write, sync or change of names on (0 is the next one) everything
    /// fails, until [`MemDisk::crash`]. The operation at which the power goes leaves its data
    /// unsynced.
    pub fn cut_power_after(&self, operations: u64) {
        let mut state = self.lock();
        state.power_off_after = Some(state.operations + operations);
    }

    /// How many writes, syncs and changes of names there have been.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The next `count` syncs of files fail with EIO, and mark what they did not write as clean.
    pub fn fail_syncs(&self, count: u64) {
        self.lock().failing_syncs = count;
    }

    /// Reads of this sector fail with EIO.
    pub fn fail_reads(&self, file: &str, sector: u64) {
        let mut state = self.lock();
        if let Some(inode) = state.names.get(file).copied() {
            state.failing_reads.insert((inode, sector));
        }
    }

    /// The next `count` writes are acknowledged and never happen.
    pub fn lose_writes(&self, count: u64) {
        self.lock().lost_writes = count;
    }

    /// The next write goes to `offset` of `file` instead of where it should.
    pub fn misdirect_next_write(&self, file: &str, offset: u64) {
        self.lock().misdirected = Some((file.to_owned(), offset));
    }

    /// How many bytes all files together may have; `None` for no limit. Creating a file beyond it
    /// fails with `StorageFull`.
    pub fn set_budget_bytes(&self, bytes: Option<u64>) {
        self.lock().budget_bytes = bytes;
    }

    /// How many bytes all files together have.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Flips a bit, durably. Returns whether there is such a byte.
    pub fn flip_bit(&self, file: &str, offset: u64, bit: u8) -> bool {
        self.change_byte(file, offset, |byte| byte ^ (1 << (bit % 8)))
    }

    /// Sets a byte, durably. Returns whether there is such a byte.
    pub fn set_byte(&self, file: &str, offset: u64, value: u8) -> bool {
        self.change_byte(file, offset, |_| value)
    }

    /// The names of all files, in order.
    pub fn files(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// What a read of the whole file would see.
    pub fn contents(&self, file: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        let inode = state.inodes.get(state.names.get(file)?)?;
        let mut bytes = vec![0; inode.bytes];
        inode.read(0, &mut bytes);
        Some(bytes)
    }

    /// Removes a file, durably, as a mistaken operator would.
    pub fn lose_file(&self, file: &str) {
        let mut state = self.lock();
        state.names.remove(file);
        state.durable_names.remove(file);
        state.collect();
    }

    fn change_byte(&self, file: &str, offset: u64, change: impl Fn(u8) -> u8) -> bool {
        let mut state = self.lock();
        let Some(inode) = state.names.get(file).copied() else { return false };
        let Some(inode) = state.inodes.get_mut(&inode) else { return false };
        let at = offset as usize;
        let (sector, within) = (offset / SECTOR_BYTES as u64, at % SECTOR_BYTES);
        for overlay in [&mut inode.unsynced, &mut inode.ghosts] {
            if let Some(contents) = overlay.get_mut(&sector) {
                contents[within] = change(contents[within]);
            }
        }
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte = change(*byte);
        }
        at < inode.bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking test thread must not hide its message behind a poisoned lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.life == self.life { Ok(state) } else { Err(io::Error::other("the process is dead")) }
    }
}

struct MemFile {
    disk: MemDisk,
    inode: u64,
}

impl Disk for MemDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.live()?.names.keys().cloned().collect())
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let inode = self.live()?.inode(name)?;
        Ok(Box::new(MemFile { disk: self.clone(), inode }))
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.live()?;
        let replaced = state.names.get(name).and_then(|inode| state.inodes.get(inode)).map_or(0, |old| old.bytes);
        let used = state.used_bytes() - replaced as u64 + bytes;
        if state.budget_bytes.is_some_and(|budget| used > budget) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode { bytes: bytes as usize, ..Inode::default() });
        let created = state.change(NameChange::Set(name.to_owned(), inode));
        drop(state);
        created.map(|()| Box::new(MemFile { disk: self.clone(), inode }) as Box<dyn DiskFile>)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.live()?;
        let inode = state.inode(from)?;
        state.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.live()?;
        state.inode(name)?;
        state.change(NameChange::Remove(name.to_owned()))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.live()?;
        if state.operate()? {
            return Err(io::Error::other("the power fails"));
        }
        state.changes.clear();
        state.durable_names = state.names.clone();
        state.collect();
        Ok(())
    }
}

impl MemFile {
    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        act(&mut *self.disk.live()?, self.inode)
    }
}

fn file(state: &mut State, inode: u64) -> io::Result<&mut Inode> {
    state.inodes.get_mut(&inode).ok_or_else(|| io::Error::other("the file was removed"))
}

impl DiskFile for MemFile {
    fn bytes(&mut self) -> io::Result<u64> {
        self.with(|state, inode| Ok(file(state, inode)?.bytes as u64))
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.with(|state, inode| {
            let sectors = offset / SECTOR_BYTES as u64..(offset + into.len() as u64).div_ceil(SECTOR_BYTES as u64);
            if sectors.into_iter().any(|sector| state.failing_reads.contains(&(inode, sector))) {
                return Err(io::Error::other("EIO: unreadable sector"));
            }
            let file = file(state, inode)?;
            if offset as usize + into.len() > file.bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            file.read(offset as usize, into);
            Ok(())
        })
    }

    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        self.with(|state, inode| {
            let last = state.operate()?;
            let bytes: Vec<u8> = slices.iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
            if state.lost_writes > 0 {
                state.lost_writes -= 1;
            } else if let Some((name, elsewhere)) = state.misdirected.take() {
                let other = state.inode(&name)?;
                file(state, other)?.write(elsewhere as usize, &bytes);
            } else {
                file(state, inode)?.write(offset as usize, &bytes);
            }
            if last { Err(io::Error::other("the power fails")) } else { Ok(()) }
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.with(|state, inode| {
            if state.operate()? {
                return Err(io::Error::other("the power fails"));
            }
            let fails = state.failing_syncs > 0;
            state.failing_syncs -= u64::from(fails);
            let file = file(state, inode)?;
            if fails {
                let clean = std::mem::take(&mut file.unsynced);
                file.ghosts.extend(clean);
                return Err(io::Error::other("EIO on fsync"));
            }
            file.sync();
            Ok(())
        })
    }
}
