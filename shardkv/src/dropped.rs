//! Ranges of rows that were deleted as a whole. A cache that went through its rows then, or forgot all of them,
//! would hold up what is applied behind it: it asks here instead, when a row is looked up.

use crate::store::RowRange;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// So many ranges are remembered one by one. Behind more, every row cached before the forgotten ones counts as deleted.
const RANGES_MAX: usize = 64;

/// The ranges deleted lately, numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct DroppedRanges {
    /// The last one's number.
    last: AtomicU64,
    kept: RwLock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// In the order of their numbers.
    ranges: VecDeque<(u64, RowRange)>,
    /// The number of the last one that is not among them any more.
    forgotten: u64,
}

impl DroppedRanges {
    /// How many ranges have been deleted: what is read from the store now may miss later ones only.
    pub(crate) fn count(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// These rows are deleted in the store.
    pub(crate) fn add(&self, rows: &RowRange) {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let number = self.last.load(Ordering::Relaxed) + 1;
        kept.ranges.push_back((number, rows.clone()));
        if kept.ranges.len() > RANGES_MAX
            && let Some((oldest, _)) = kept.ranges.pop_front()
        {
            kept.forgotten = oldest;
        }
        self.last.store(number, Ordering::Release);
    }

    /// Whether a row that was read when [`Self::count`] was `at` has (or may have) been deleted since.
    pub(crate) fn covers(&self, key: &[u8], at: u64) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let later = kept.ranges.iter().rev().take_while(|(number, _)| *number > at);
        at < kept.forgotten || later.into_iter().any(|(_, rows)| &rows.start[..] <= key && key < &rows.end[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(start: &str, end: &str) -> RowRange {
        RowRange { start: start.into(), end: end.into() }
    }

    #[test]
    fn a_range_covers_what_was_read_before_it_and_nothing_else() {
        let dropped = DroppedRanges::default();
        dropped.add(&rows("b", "d"));
        assert_eq!(dropped.count(), 1);
        let covered = |key: &str, at| dropped.covers(key.as_bytes(), at);
        assert!(covered("b", 0) && covered("c", 0));
        assert!(!covered("a", 0) && !covered("d", 0));
        assert!(!covered("c", 1), "it was read afterwards");
    }

    #[test]
    fn behind_a_forgotten_range_everything_counts_as_deleted() {
        let dropped = DroppedRanges::default();
        (0..RANGES_MAX).for_each(|_| dropped.add(&rows("b", "d")));
        assert!(!dropped.covers(b"x", 0));
        dropped.add(&rows("b", "d"));
        assert!(dropped.covers(b"x", 0) && dropped.covers(b"c", 0));
        assert!(!dropped.covers(b"x", 1) && dropped.covers(b"c", 1));
    }
}
