//! The control file: which segments are live, and a durable mark that outlives them.
//!
//! It is replaced atomically: the new contents are written to `control.next`, synced, renamed over
//! `control`, and the directory is synced. `control.next` is allocated ahead of need, so replacing
//! the file takes no space (a log on a full disk must still open). Both blocks of the file hold the
//! same bytes: one rotten sector must not cost the node its log.

use crate::disk::Disk;
use crate::error::OpenError;
use crate::frame::{BLOCK_BYTES, Fields};
use crate::segment::{BadBlock, decode_block, encode_block};
use crate::types::Lsn;
use std::io::{self, IoSlice};

/// The newest control format that this release reads and the one that it writes.
pub const VERSION: u32 = 1;
pub(crate) const NAME: &str = "control";
pub(crate) const NEXT: &str = "control.next";
const FILE_BYTES: usize = 2 * BLOCK_BYTES;
const MAGIC: u64 = u64::from_le_bytes(*b"CPXCNTRL");

/// The control file's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The node that owns the log.
    pub node: u64,
    /// Rises with every replacement.
    pub generation: u64,
    /// The first live segment; older ones are being recycled.
    pub first_segment: u64,
    /// The LSN of the first record that the first live segment may hold.
    pub first_lsn: Lsn,
    /// The number of the first live segment's first frame.
    pub first_frame: u64,
    /// The newest segment that certainly exists; 0 before the first.
    pub last_segment: u64,
    /// Every record up to this one is durable.
    pub durable: Lsn,
    /// Every frame up to this one is durable.
    pub durable_frame: u64,
}

impl Control {
    /// The control file of a new log.
    pub fn new(node: u64) -> Control {
        Control {
            node,
            generation: 0,
            first_segment: 1,
            first_lsn: Lsn(1),
            first_frame: 1,
            last_segment: 0,
            durable: Lsn(0),
            durable_frame: 0,
        }
    }

    /// The block that is in the file twice.
    pub fn encode(&self) -> Vec<u8> {
        let fields: Vec<u8> = [
            self.node,
            self.generation,
            self.first_segment,
            self.first_lsn.0,
            self.first_frame,
            self.last_segment,
            self.durable.0,
            self.durable_frame,
        ]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
        encode_block(MAGIC, VERSION, &fields)
    }

    /// Reads one block.
    pub fn decode(block: &[u8]) -> Result<Control, BadBlock> {
        let mut fields = decode_block(MAGIC, VERSION, block)?;
        Self::fields(&mut fields).ok_or(BadBlock::Corrupt)
    }

    fn fields(fields: &mut Fields<'_>) -> Option<Control> {
        Some(Control {
            node: fields.u64()?,
            generation: fields.u64()?,
            first_segment: fields.u64()?,
            first_lsn: Lsn(fields.u64()?),
            first_frame: fields.u64()?,
            last_segment: fields.u64()?,
            durable: Lsn(fields.u64()?),
            durable_frame: fields.u64()?,
        })
    }
}

/// Reads the control file.
pub(crate) fn load(disk: &mut dyn Disk) -> Result<Control, OpenError> {
    let failed = |source| OpenError::Io { operation: "read", file: NAME.to_owned(), source };
    let mut file = disk.open(NAME).map_err(failed)?;
    let length = usize::try_from(file.bytes().map_err(failed)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(FILE_BYTES)];
    file.read_at(0, &mut bytes).map_err(failed)?;
    let copies = bytes.chunks(BLOCK_BYTES).map(Control::decode);
    let mut newer = None;
    for copy in copies {
        match copy {
            Ok(control) => return Ok(control),
            Err(BadBlock::NewerVersion(found)) => newer = Some(found),
            Err(BadBlock::Corrupt) => {}
        }
    }
    match newer {
        Some(found) => Err(OpenError::NewerVersion { file: NAME.to_owned(), found, supported: VERSION }),
        None => Err(OpenError::ControlCorrupt),
    }
}

/// Replaces the control file. With an error of kind `StorageFull` nothing has changed; with any other
/// nothing is known.
pub(crate) fn store(disk: &mut dyn Disk, control: &Control) -> io::Result<()> {
    let mut file = allocate_next(disk)?;
    let block = control.encode();
    file.write_at(0, &[IoSlice::new(&block), IoSlice::new(&block)])?;
    file.sync()?;
    drop(file);
    disk.rename(NEXT, NAME)?;
    disk.sync_dir()?;
    // Ahead of need, from the space of the file just replaced. If another process was faster with
    // that space, the next replacement tries again.
    match allocate_next(disk) {
        Ok(_) => Ok(()),
        Err(error) if crate::error::is_full(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn allocate_next(disk: &mut dyn Disk) -> io::Result<Box<dyn crate::disk::DiskFile>> {
    match disk.open(NEXT) {
        Ok(mut file) => {
            if file.bytes()? == FILE_BYTES as u64 {
                return Ok(file);
            }
            // Cut short by a crash: made anew.
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    disk.create(NEXT, FILE_BYTES as u64)
}
