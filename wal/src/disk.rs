//! The seam to the disk: a flat namespace of files in one directory.
//!
//! Two implementations: [`crate::FileDisk`] for real directories and [`crate::testdisk::MemDisk`],
//! which loses, tears and rots. One suite of tests runs on both.

use std::io::{self, IoSlice};

/// A directory with files in it. A name appears, vanishes or changes durably only with
/// [`Disk::sync_dir`].
pub trait Disk: Send {
    /// The names of all files, in no particular order.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&mut self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a file of `bytes` bytes that reads as zeros, with its space reserved; replaces one of
    /// the same name. Fails with [`io::ErrorKind::StorageFull`], leaving no file, if the space is not
    /// there.
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file, atomically replacing one that has the new name.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes all changes of names durable.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send {
    /// The file's size.
    fn bytes(&mut self) -> io::Result<u64>;
    /// Fills `into` from `offset`; a file that ends before is an error.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all slices, one behind the other, from `offset`. Durable only with
    /// [`DiskFile::sync`]; a crash before it leaves any subset of the sectors.
    fn write_at(&mut self, offset: u64, slices: &[IoSlice<'_>]) -> io::Result<()>;
    /// Makes the file's contents (and size) durable. After an error nothing is known about what is
    /// durable, and a second call proves nothing.
    fn sync(&mut self) -> io::Result<()>;
}
