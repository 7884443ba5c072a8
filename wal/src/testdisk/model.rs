//! The state behind a [`super::MemDisk`]: files with durable and unsynced contents, names with
//! unsynced changes, and the faults that are pending.

use super::SECTOR_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

pub(super) type Sector = [u8; SECTOR_BYTES];

#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) bytes: usize,
    pub(super) durable: Vec<u8>,
    pub(super) unsynced: BTreeMap<u64, Sector>,
    /// Written, then marked clean by a failed sync: readable, but never durable.
    pub(super) ghosts: BTreeMap<u64, Sector>,
}

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Set(String, u64),
    /// Old name, new name, and whose they are: so that it can survive without an earlier change.
    Rename(String, String, u64),
    Remove(String),
}

pub(super) type Names = BTreeMap<String, u64>;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) next_inode: u64,
    pub(super) names: Names,
    pub(super) durable_names: Names,
    pub(super) changes: Vec<NameChange>,
    /// Handles of an older life are dead.
    pub(super) life: u64,
    pub(super) operations: u64,
    pub(super) power_off_after: Option<u64>,
    pub(super) failing_syncs: u64,
    pub(super) failing_reads: BTreeSet<(u64, u64)>,
    pub(super) lost_writes: u64,
    pub(super) misdirected: Option<(String, u64)>,
    pub(super) budget_bytes: Option<u64>,
}

impl Inode {
    pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
        let durable = self.durable.get(offset..).unwrap_or_default();
        let known = durable.len().min(into.len());
        into[..known].copy_from_slice(&durable[..known]);
        into[known..].fill(0);
        let end = offset + into.len();
        let sectors = (offset / SECTOR_BYTES) as u64..end.div_ceil(SECTOR_BYTES) as u64;
        for overlay in [&self.ghosts, &self.unsynced] {
            for (sector, contents) in overlay.range(sectors.clone()) {
                let start = *sector as usize * SECTOR_BYTES;
                let (from, to) = (start.max(offset), (start + SECTOR_BYTES).min(end));
                into[from - offset..to - offset].copy_from_slice(&contents[from - start..to - start]);
            }
        }
    }

    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        while at < offset + bytes.len() {
            let sector = at / SECTOR_BYTES;
            let mut contents = [0; SECTOR_BYTES];
            let end = (offset + bytes.len()).min((sector + 1) * SECTOR_BYTES);
            if end - at < SECTOR_BYTES {
                self.read(sector * SECTOR_BYTES, &mut contents);
            }
            contents[at % SECTOR_BYTES..][..end - at].copy_from_slice(&bytes[at - offset..end - offset]);
            self.ghosts.remove(&(sector as u64));
            self.unsynced.insert(sector as u64, contents);
            at = end;
        }
        self.bytes = self.bytes.max(offset + bytes.len());
    }

    pub(super) fn settle(&mut self, sector: u64, contents: &Sector) {
        let start = sector as usize * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.bytes);
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&contents[..end - start]);
    }

    pub(super) fn sync(&mut self) {
        for (sector, contents) in std::mem::take(&mut self.unsynced) {
            self.settle(sector, &contents);
        }
        self.durable.resize(self.bytes, 0);
    }
}

impl NameChange {
    pub(super) fn apply(self, names: &mut Names) {
        match self {
            NameChange::Set(name, inode) => {
                names.insert(name, inode);
            }
            NameChange::Rename(from, to, inode) => {
                if names.get(&from) == Some(&inode) {
                    names.remove(&from);
                }
                names.insert(to, inode);
            }
            NameChange::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl State {
    pub(super) fn new_life(&mut self) {
        self.life += 1;
        self.power_off_after = None;
        self.failing_syncs = 0;
        self.failing_reads.clear();
        self.lost_writes = 0;
        self.misdirected = None;
    }

    /// Counts an operation. `Err` when the power is off; `Ok(true)` when it goes off with this one.
    pub(super) fn operate(&mut self) -> io::Result<bool> {
        let now = self.operations;
        self.operations += 1;
        match self.power_off_after {
            Some(at) if now > at => Err(io::Error::other("the power is off")),
            Some(at) => Ok(now == at),
            None => Ok(false),
        }
    }

    pub(super) fn change(&mut self, change: NameChange) -> io::Result<()> {
        let last = self.operate()?;
        change.clone().apply(&mut self.names);
        self.changes.push(change);
        self.collect();
        if last { Err(io::Error::other("the power fails")) } else { Ok(()) }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        named.iter().filter_map(|inode| self.inodes.get(inode)).map(|inode| inode.bytes as u64).sum()
    }

    /// Forgets files that no name, old or new, leads to.
    pub(super) fn collect(&mut self) {
        let mut named: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        named.extend(self.changes.iter().filter_map(|change| match change {
            NameChange::Set(_, inode) | NameChange::Rename(_, _, inode) => Some(*inode),
            NameChange::Remove(_) => None,
        }));
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    pub(super) fn inode(&mut self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
