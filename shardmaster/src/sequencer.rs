//! The sequencer: hands out revisions from the memory of the shardmaster's leader.
//!
//! Numbers below the replicated `reserved_up_to` may be handed out without logging anything; the next
//! window is reserved through the log ahead of need. A new leader starts above the reservation that it
//! finds, so no number is ever handed out twice; what the old one had not used is a gap.
//!
//! Whoever calls [`Sequencer::take`] **must** check the leader's lease *after* taking and before
//! anyone learns the numbers.

use shardkv::types::Revision;

/// Numbers reserved at a time; what is left of a window is lost when the leader changes.
pub const WINDOW: u64 = 200_000;

/// One leader's term as sequencer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequencer {
    /// The last number handed out, or the bound below which an earlier leader may have done so.
    last: Revision,
    /// Numbers up to here are ours.
    reserved: Revision,
    /// A reservation up to here is in the log.
    asked: Revision,
}

impl Sequencer {
    /// A new term, above everything reserved before. The empty store is at revision 1.
    pub fn new(reserved_up_to: Revision) -> Sequencer {
        let floor = reserved_up_to.max(Revision::EMPTY_STORE);
        Sequencer { last: floor, reserved: floor, asked: floor }
    }

    /// The newest number handed out: every write answered so far is at or below it.
    pub fn current(&self) -> Revision {
        self.last
    }

    /// Takes `count` consecutive numbers and returns the first; `None` until a reservation that is
    /// on its way arrives.
    pub fn take(&mut self, count: u64) -> Option<Revision> {
        let last = Revision(self.last.0.checked_add(count)?);
        if last > self.reserved {
            return None;
        }
        let first = Revision(self.last.0 + 1);
        self.last = last;
        Some(first)
    }

    /// What to reserve through the log now, if anything: when half of the window is used, or when
    /// `wanted` more numbers do not fit.
    pub fn reservation(&mut self, wanted: u64) -> Option<Revision> {
        let needed = self.last.0.saturating_add(wanted.max(WINDOW / 2));
        if needed <= self.asked.0 {
            return None;
        }
        self.asked = Revision(self.last.0.saturating_add(wanted).saturating_add(WINDOW));
        Some(self.asked)
    }

    /// A reservation was applied.
    pub fn reserved(&mut self, up_to: Revision) {
        self.reserved = self.reserved.max(up_to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wait_for_their_reservation_and_never_repeat() {
        let mut first = Sequencer::new(Revision(0));
        assert_eq!(first.take(1), None, "nothing is reserved yet");
        let window = first.reservation(1).expect("a first window");
        assert_eq!(first.reservation(1), None, "one reservation at a time");
        first.reserved(window);
        assert_eq!(first.take(3), Some(Revision(2)));
        assert_eq!(first.take(1), Some(Revision(5)));
        assert_eq!(first.current(), Revision(5));
        let second = Sequencer::new(window);
        assert!(second.current() >= first.current());
    }

    #[test]
    fn the_next_window_is_asked_for_ahead_of_need() {
        let mut sequencer = Sequencer::new(Revision(0));
        let window = sequencer.reservation(0).expect("a first window");
        sequencer.reserved(window);
        assert_eq!(sequencer.take(WINDOW / 2 + 1), Some(Revision(2)));
        assert!(sequencer.reservation(0).is_some(), "half is used");
        assert!(sequencer.take(WINDOW).is_none(), "more than what is left");
        assert!(sequencer.take(WINDOW / 4).is_some(), "what is left goes on serving");
    }
}
