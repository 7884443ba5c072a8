//! A replica's log in memory: a contiguous run of entries, whose lower part may be gone.

use crate::Slot;
use bytes::Bytes;
use std::collections::VecDeque;

/// Entries `first_kept ..= length`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    first_kept: Slot,
    entries: VecDeque<Bytes>,
    bytes: usize,
}

impl Log {
    /// A log whose first held entry is at `first_kept`.
    pub fn new(first_kept: Slot, entries: Vec<Bytes>) -> Log {
        let bytes = entries.iter().map(Bytes::len).sum();
        Log { first_kept: Slot(first_kept.0.max(1)), entries: entries.into(), bytes }
    }

    /// The first slot that is held (`length + 1` if none is).
    pub fn first_kept(&self) -> Slot {
        self.first_kept
    }

    /// The last slot of the log.
    pub fn length(&self) -> Slot {
        Slot(self.first_kept.0 + self.entries.len() as u64 - 1)
    }

    /// The first held and the last slot.
    pub fn range(&self) -> (Slot, Slot) {
        (self.first_kept, self.length())
    }

    /// Payload bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entry at `slot`, if held.
    pub fn get(&self, slot: Slot) -> Option<&Bytes> {
        let index = slot.0.checked_sub(self.first_kept.0)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Appends behind the end.
    pub fn extend(&mut self, entries: impl IntoIterator<Item = Bytes>) {
        for entry in entries {
            self.bytes += entry.len();
            self.entries.push_back(entry);
        }
    }

    /// Drops every entry above `length`.
    pub fn cut(&mut self, length: Slot) {
        assert!(length.next() >= self.first_kept, "cut to {length} below the first kept slot {}", self.first_kept);
        while self.length() > length {
            let dropped = self.entries.pop_back();
            self.bytes -= dropped.map_or(0, |entry| entry.len());
        }
    }

    /// Drops every entry below `first_kept`.
    pub fn trim(&mut self, first_kept: Slot) {
        assert!(first_kept <= self.length().next(), "trim to {first_kept} above the end {}", self.length());
        while self.first_kept < first_kept {
            let dropped = self.entries.pop_front();
            self.bytes -= dropped.map_or(0, |entry| entry.len());
            self.first_kept = self.first_kept.next();
        }
    }

    /// A snapshot through `slot` stands for everything up to it; entries above stay.
    pub fn install(&mut self, slot: Slot) {
        if self.length() <= slot {
            *self = Log::new(slot.next(), Vec::new());
        } else if self.first_kept <= slot {
            self.trim(slot.next());
        }
    }

    /// Held entries from `start`, up to and including `end`, of at most `bytes_max` bytes in all
    /// but at least one if there is one.
    pub fn piece(&self, start: Slot, end: Slot, bytes_max: usize) -> Vec<Bytes> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut slot = start;
        while slot <= end {
            let Some(entry) = self.get(slot) else { break };
            bytes += entry.len();
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
            slot = slot.next();
        }
        out
    }
}
