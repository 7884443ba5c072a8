//! Giving log segments back (design §5, Reclaim): when the log has moved on to another segment, the
//! store is flushed up to what was applied by then; after that every group's state, and its entries
//! above the flushed slot, are written to the head of the log again; when those records are durable,
//! everything before their segment may go.

use super::Core;
use paxos::{GroupId, Record, Slot, Time};
use shardkv::store::Store;
use std::collections::BTreeMap;

/// Where the reclaim stands; one at a time.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    /// The segment being written.
    segment: u64,
    /// Counts the flushes asked for.
    flushes: u64,
    /// What was applied when the flush was asked for.
    flushing: Option<BTreeMap<GroupId, Slot>>,
    /// The ticket of the rewritten states, and the segment that was being written before it.
    rewritten: Option<(u64, u64)>,
}

impl<S: Store> Core<S> {
    /// The log writes to this segment now.
    pub(super) fn segment_reached(&mut self, segment: u64) {
        let reclaim = &mut self.reclaim;
        let first = reclaim.segment == 0;
        let moved = segment > reclaim.segment;
        reclaim.segment = reclaim.segment.max(segment);
        if !first && moved {
            self.begin_reclaim();
        }
    }

    /// Also when the log has no room: segments that are still full of applied entries make some.
    pub(super) fn begin_reclaim(&mut self) {
        let reclaim = &mut self.reclaim;
        if reclaim.flushing.is_some() || reclaim.rewritten.is_some() {
            return;
        }
        reclaim.flushes += 1;
        reclaim.flushing = Some(self.groups.iter().map(|(id, group)| (*id, group.applied)).collect());
        self.out.flush = Some(reclaim.flushes);
    }

    pub(super) fn flushed(&mut self, now: Time, number: u64) {
        if number != self.reclaim.flushes {
            return;
        }
        let Some(flushed) = self.reclaim.flushing.take() else { return };
        let limits = self.config.limits;
        for (id, slot) in flushed {
            self.step(now, id, paxos::Input::Checkpoint(slot));
            let wanted = self.transfers.oldest_image(now, id).map_or(slot, |image| slot.min(image));
            self.step(now, id, paxos::Input::Trim { slot: wanted, keep_bytes: limits.kept_bytes_max });
            self.step(now, id, paxos::Input::Trim { slot, keep_bytes: limits.kept_behind_image_bytes_max });
        }
        let tombstones = self.comings.ended.iter().map(|(id, promised)| (*id, Record::Closed(*promised)));
        self.out.log.extend(tombstones);
        self.out.reclaim = true;
        // The states go into this segment or a later one.
        self.reclaim.rewritten = Some((self.next_ticket, self.reclaim.segment.saturating_sub(1)));
    }

    pub(super) fn release_segments(&mut self, durable_ticket: u64) {
        if let Some((_, through)) = self.reclaim.rewritten.take_if(|(ticket, _)| *ticket <= durable_ticket) {
            self.out.release = Some(through);
        }
    }
}
