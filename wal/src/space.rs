//! Where segments come from: recycled ones, zero-filled ones, and the reserve.
//!
//! A segment is filled with zeros before its first use, because a sync that only overwrites allocated
//! blocks writes no metadata. Filling 64 MiB at once would stall the log, so it is done in small steps
//! alongside appends ([`Space::step`]).
//!
//! The reserve is a whole segment that is never used by ordinary appends. It lets recovery start a
//! new segment, and reclaim rewrite what must be kept, on a disk that is full.

use crate::disk::{Disk, DiskFile};
use crate::error::is_full;
use std::io::{self, IoSlice};

pub(crate) const RESERVE: &str = "reserve";
const FILLING: &str = "filling";
const SPARE_PREFIX: &str = "spare-";
const STEP_BYTES: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Which space an append may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// An ordinary append: it fails when the disk is full.
    Ordinary,
    /// Recovery or reclaim: it may use the reserve.
    Reserve,
}

struct Filling {
    file: Box<dyn DiskFile>,
    filled: u64,
}

/// The segments that are not part of the log (yet, or any more).
pub(crate) struct Space {
    segment_bytes: u64,
    spares_max: usize,
    spares: Vec<String>,
    next_spare: u64,
    filling: Option<Filling>,
    has_reserve: bool,
}

impl Space {
    /// Takes stock at start. Files of another size (the setting changed, or a crash cut them) go.
    pub(crate) fn open(disk: &mut dyn Disk, names: &[String], bytes: u64, spares_max: usize) -> io::Result<Space> {
        let mut space = Space {
            segment_bytes: bytes,
            spares_max,
            spares: Vec::new(),
            next_spare: 1,
            filling: None,
            has_reserve: false,
        };
        for name in names {
            let number = name.strip_prefix(SPARE_PREFIX).and_then(|digits| u64::from_str_radix(digits, 16).ok());
            if name == FILLING {
                disk.remove(name)?;
            } else if name == RESERVE || number.is_some() {
                if disk.open(name)?.bytes()? != bytes {
                    disk.remove(name)?;
                } else if let Some(number) = number {
                    space.spares.push(name.clone());
                    space.next_spare = space.next_spare.max(number + 1);
                } else {
                    space.has_reserve = true;
                }
            }
        }
        Ok(space)
    }

    /// Makes sure that `count` segments can be taken without asking the disk for space.
    pub(crate) fn ensure(&mut self, disk: &mut dyn Disk, count: usize, need: Need) -> io::Result<()> {
        while self.spares.len() < count {
            match self.fill(disk, self.segment_bytes) {
                Ok(()) => {}
                Err(error) if is_full(&error) && need == Need::Reserve && self.has_reserve => {
                    return if self.spares.len() + 1 >= count { Ok(()) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The name of a segment to be; [`Space::ensure`] has made sure that there is one.
    pub(crate) fn take(&mut self) -> Option<String> {
        self.spares.pop().or_else(|| std::mem::take(&mut self.has_reserve).then(|| RESERVE.to_owned()))
    }

    /// A bounded piece of work towards the next spare, and then towards the reserve. Returns whether
    /// there is more to do. A full disk is no error here: it matters only when space is needed.
    pub(crate) fn step(&mut self, disk: &mut dyn Disk) -> io::Result<bool> {
        if !self.has_reserve {
            match self.make_reserve(disk) {
                Ok(()) => return Ok(true),
                Err(error) if is_full(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if !self.spares.is_empty() {
            return Ok(false);
        }
        match self.fill(disk, STEP_BYTES) {
            Ok(()) => Ok(self.spares.is_empty()),
            Err(error) if is_full(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the reserve up, so that a few kilobytes are free for the control file.
    pub(crate) fn sacrifice_reserve(&mut self, disk: &mut dyn Disk) -> io::Result<bool> {
        if !std::mem::take(&mut self.has_reserve) {
            return Ok(false);
        }
        disk.remove(RESERVE)?;
        disk.sync_dir()?;
        Ok(true)
    }

    /// Takes a file that is no longer a live segment: as reserve, as spare, or off the disk. The
    /// caller syncs the directory.
    pub(crate) fn recycle(&mut self, disk: &mut dyn Disk, name: &str, bytes: u64) -> io::Result<()> {
        if bytes != self.segment_bytes {
            return disk.remove(name);
        }
        if !self.has_reserve {
            disk.rename(name, RESERVE)?;
            self.has_reserve = true;
        } else if self.spares.len() < self.spares_max {
            let spare = self.spare_name();
            disk.rename(name, &spare)?;
            self.spares.push(spare);
        } else {
            disk.remove(name)?;
        }
        Ok(())
    }

    /// The reserve is only allocated, not filled: it is for emergencies, where speed matters less
    /// than the time that filling it would cost at every first start.
    fn make_reserve(&mut self, disk: &mut dyn Disk) -> io::Result<()> {
        disk.create(RESERVE, self.segment_bytes)?.sync()?;
        disk.sync_dir()?;
        self.has_reserve = true;
        Ok(())
    }

    /// Fills the next spare by `bytes` bytes, with one sync; a full one becomes a spare.
    fn fill(&mut self, disk: &mut dyn Disk, bytes: u64) -> io::Result<()> {
        if self.filling.is_none() {
            self.filling = Some(Filling { file: disk.create(FILLING, self.segment_bytes)?, filled: 0 });
        }
        let Some(filling) = self.filling.as_mut() else { return Ok(()) };
        let until = self.segment_bytes.min(filling.filled.saturating_add(bytes));
        let written = zero(filling.file.as_mut(), filling.filled, until).and_then(|()| filling.file.sync());
        if let Err(error) = written {
            // A file system that promised space and has none: give back what it took.
            self.filling = None;
            if is_full(&error) {
                disk.remove(FILLING)?;
            }
            return Err(error);
        }
        filling.filled = until;
        if until == self.segment_bytes {
            self.filling = None;
            let spare = self.spare_name();
            disk.rename(FILLING, &spare)?;
            self.spares.push(spare);
        }
        Ok(())
    }

    fn spare_name(&mut self) -> String {
        let name = format!("{SPARE_PREFIX}{:016x}", self.next_spare);
        self.next_spare += 1;
        name
    }
}

fn zero(file: &mut dyn DiskFile, mut at: u64, until: u64) -> io::Result<()> {
    while at < until {
        let step = (until - at).min(ZEROS.len() as u64);
        file.write_at(at, &[IoSlice::new(&ZEROS[..step as usize])])?;
        at += step;
    }
    Ok(())
}
