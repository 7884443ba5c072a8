//! Reclaim: letting go of segments.
//!
//! The order is the point, because each step must be durable before the next: the caller rewrites to
//! the head everything it still needs from the old segments ([`Log::append_reclaim`] syncs); the
//! control file says durably that they are not live; only then are the files recycled. A crash in
//! between leaves segments that nobody reads, which the next opening recycles.

use crate::control::{self, Control};
use crate::error::{LogError, is_full};
use crate::log::Log;
use crate::segment;

impl Log {
    /// Drops all segments through `through`. The caller has appended again whatever it needs from
    /// them (see [`crate::Synced::first_segment`]). Segments already dropped are no error.
    /// After [`LogError::Full`] nothing has changed.
    pub fn release(&mut self, through: u64) -> Result<(), LogError> {
        self.check_running()?;
        let head = self.head.sequence;
        if through >= head {
            return Err(LogError::ReleaseBeyondHead { through, head });
        }
        if through < self.control.first_segment {
            return Ok(());
        }
        let first_segment = through + 1;
        let first = self.live.get(&first_segment).copied();
        let first = first.expect("live segments are consecutive up to the head, which stays");
        assert!(
            self.control.first_lsn <= first.base_lsn && first.base_lsn <= self.next_lsn,
            "the floor fell from {} to {}, or passed {}",
            self.control.first_lsn,
            first.base_lsn,
            self.next_lsn
        );
        self.store_floor(Control {
            generation: self.control.generation + 1,
            first_segment,
            first_lsn: first.base_lsn,
            first_frame: first.base_frame,
            last_segment: head,
            ..self.control
        })?;
        self.recycle_below(first_segment)?;
        // A group whose last record is gone starts a new chain, like a group never seen.
        self.last_of.retain(|_, last| *last >= first.base_lsn);
        Ok(())
    }

    fn store_floor(&mut self, control: Control) -> Result<(), LogError> {
        let mut stored = control::store(self.disk.as_mut(), &control);
        if stored.as_ref().is_err_and(is_full) {
            // The released segments give the reserve back.
            match self.space.sacrifice_reserve(self.disk.as_mut()) {
                Ok(true) => stored = control::store(self.disk.as_mut(), &control),
                Ok(false) => {}
                Err(error) => return Err(self.stop("remove", crate::space::RESERVE, error)),
            }
        }
        match stored {
            Ok(()) => {
                self.control = control;
                Ok(())
            }
            Err(error) if is_full(&error) => Err(LogError::Full { operation: "replace the control file" }),
            Err(error) => Err(self.stop("replace", control::NAME, error)),
        }
    }

    fn recycle_below(&mut self, first_segment: u64) -> Result<(), LogError> {
        let kept = self.live.split_off(&first_segment);
        let dropped = std::mem::replace(&mut self.live, kept);
        for (sequence, live) in dropped {
            let name = segment::name(sequence);
            if let Err(error) = self.space.recycle(self.disk.as_mut(), &name, live.bytes) {
                return Err(self.stop("recycle", &name, error));
            }
        }
        self.disk.sync_dir().map_err(|error| self.stop("sync", ".", error))
    }
}
