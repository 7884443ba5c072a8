//! A durable, segmented write-ahead log, shared by all replica groups of a node.
//!
//! One log holds the records of every group, because one `fdatasync` that carries sixty-four groups'
//! records costs as much as one that carries a single record. The log stores opaque bytes per group
//! number and knows nothing of what they mean.
//!
//! Invariant: `wal` depends on no workspace crate and on no async runtime. The core ([`Log`]) reads
//! no clock and no OS randomness (the salt's seed is a value of [`Config`]), so the simulator runs it
//! as it is, on [`testdisk::MemDisk`]. Only [`thread`] knows about time.
//!
//! # On disk
//!
//! A directory holds a flat set of files; numbers are little-endian.
//!
//! | file | what it is |
//! |---|---|
//! | `segment-N` | part N of the log: two copies of a header block, then frames |
//! | `control` | the first live segment, the last one, and a durable mark; replaced atomically |
//! | `control.next` | the next `control`, allocated ahead so that replacing it needs no space |
//! | `reserve` | one segment's worth of disk, kept for recovery and reclaim on a full disk |
//! | `spare-N`, `filling` | recycled or zero-filled segments to be, and one that is being filled |
//! | `lock` | held with `flock` by the process that uses the directory |
//!
//! * A **record** is a group's bytes with its LSN (a counter of records, from 1) and the LSN of the
//!   group's previous record: the group's *chain* ([`mod@frame`]).
//! * A **frame** is what one sync makes durable. It starts on a 4 KiB boundary and verifies alone:
//!   its checksum covers the segment's random salt, its header and its payload. It carries its
//!   number, its own position, the predecessor's checksum and promise count, and the LSN that was
//!   durable when it was written.
//! * A **segment** is a file of fixed size, zero-filled once and then recycled under a new salt: a
//!   sync that only overwrites allocated blocks costs half of one that extends a file.
//!
//! # Invariants
//!
//! 1. Frame k+1 is written only after frame k was synced. So a valid header of frame k+1 proves
//!    that frame k was durable: it is k's *durable mark*. A segment's header and the control file are
//!    marks, too.
//! 2. A bad frame **below** a mark is corruption: reported and left where it is, never cut. A bad
//!    frame **above** every mark was never acknowledged or is torn: cut. What this cannot decide: a
//!    frame that was synced, acknowledged, and rotted before anything else was written stays above
//!    every mark. To keep that window small an idle log writes a small frame that is only a mark
//!    ([`Log::mark_idle`]), and promises, which nobody else can repair, are written twice in two
//!    frames and two syncs before they count.
//! 3. A failed sync ends the log's life: the kernel has marked the pages clean, so a second sync
//!    would succeed without writing ("Can Applications Recover from fsync Failures?", ATC'20). For
//!    the same reason opening a log writes the last frame again and syncs it before it tells anyone
//!    what it found: those pages may be in the cache only.
//! 4. A segment is recycled only after the control file says durably that it is not live.
//! 5. A directory is synced where files appear, vanish or are renamed, before anything relies on it.
//!
//! The torn-or-rotten distinction is from "Protocol-Aware Recovery for Consensus-Based Storage"
//! (FAST'18); LSN and log recovery vocabulary from ARIES.

pub mod control;
pub mod disk;
pub mod error;
mod file_disk;
pub mod frame;
mod log;
mod open;
mod reclaim;
pub mod recovery;
pub mod segment;
mod space;
pub mod testdisk;
pub mod thread;
mod types;
mod verdict;
mod worker;

pub use disk::{Disk, DiskFile};
pub use error::{LogError, OpenError};
pub use file_disk::FileDisk;
pub use frame::BadFrame;
pub use log::Log;
pub use recovery::{CorruptFrame, LostLsns, Recovered, Recovery, TornTail};
pub use thread::{Full, WalEvent, WalHandle, WalStats, spawn};
pub use types::{Append, Config, Lsn, Synced};
