//! The real disk: one directory, `pwritev`, `fdatasync`, `fallocate`, a lock.

use crate::disk::{Disk, DiskFile};
use crate::error::OpenError;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock};
use rustix::io::{Errno, pwritev};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file whose `flock` keeps a second process out of the directory.
const LOCK: &str = "lock";

/// What the log holds is nobody else's business.
const MODE: u32 = 0o600;

/// A directory of a real file system. Holds its lock as long as it lives.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    directory: File,
    _lock: File,
}

impl FileDisk {
    /// Opens (and creates, if need be) the directory at `path` and locks it.
    pub fn open(path: &Path) -> Result<FileDisk, OpenError> {
        let failed = |operation, at: &Path| {
            let file = at.display().to_string();
            move |source| OpenError::Io { operation, file, source }
        };
        std::fs::create_dir_all(path).map_err(failed("create", path))?;
        // The directory's own name must survive, too.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed("sync", parent))?;
        }
        let directory = File::open(path).map_err(failed("open", path))?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(MODE)
            .open(&lock_path)
            .map_err(failed("create", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(FileDisk { path: path.to_owned(), directory, _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(OpenError::Locked { directory: path.display().to_string() }),
            Err(errno) => Err(failed("flock", &lock_path)(errno.into())),
        }
    }
}

impl Disk for FileDisk {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && name != LOCK
                && entry.file_type()?.is_file()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Box::new(RealFile(file)))
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(MODE).open(&path)?;
        let reserved = match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // A file system without fallocate: the zero-fill that follows reserves the space.
            Err(Errno::OPNOTSUPP) => file.set_len(bytes),
            Err(errno) => Err(errno.into()),
        };
        if let Err(error) = reserved {
            // The original error is what the caller must see, whatever the clean-up says.
            drop(std::fs::remove_file(&path));
            return Err(error);
        }
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        self.directory.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn bytes(&mut self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_at(&mut self, mut offset: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let mut copies: Vec<IoSlice<'_>> = slices.to_vec();
        let mut left = copies.as_mut_slice();
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match pwritev(&self.0, left, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        // EINTR is not retried: whether the pages were written is unknown then, too.
        Ok(fdatasync(&self.0)?)
    }
}
