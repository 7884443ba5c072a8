//! Giving log segments back (design §5, Reclaim): when the log has moved on to another segment, the
//! store is flushed up to what was applied by then; after that every group's state, and its entries
//! above the flushed slot, are written to the head of the log again; when those records are durable,
//! everything before their segment may go.

use super::Core;
use paxos::flaw::{self, Flaw};
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
        let Some(mut flushed) = self.reclaim.flushing.take() else { return };
        if flaw::is(Flaw::FlushedAsOfItsEnd) {
            flushed = self.groups.iter().map(|(id, group)| (*id, group.applied)).collect();
        }
        let limits = self.config.limits;
        // A replica that was opened meanwhile has its first records where segments are about to go; of its state nothing
        // counts as flushed.
        let replicas: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in replicas {
            let slot = flushed.get(&id).copied().unwrap_or(Slot(0));
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

    /// A replica has been opened: what is being flushed is that of an earlier one of this group, if anything.
    pub(super) fn forget_flushing(&mut self, id: GroupId) {
        if let Some(flushing) = &mut self.reclaim.flushing {
            flushing.remove(&id);
        }
    }

    pub(super) fn release_segments(&mut self, durable_ticket: u64) {
        if let Some((_, through)) = self.reclaim.rewritten.take_if(|(ticket, _)| *ticket <= durable_ticket) {
            self.out.release = Some(through);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::testing::empty_master;
    use crate::core::{CoreConfig, Hosted, Input, Machine};
    use paxos::{ConfigId, Configuration, Recovered};
    use shardkv::{DataGroup, MemoryStore};
    use std::sync::Arc;

    /// They may fill one: whoever wrote them again for that would never be done.
    #[test]
    fn states_that_filled_a_segment_are_not_written_again_for_it() {
        let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3]), vec![empty_master()], Time(0));
        let durable = |core: &mut Core<MemoryStore>, ticket, segment| {
            core.input(Time(1), Input::Durable { ticket, segment });
            core.turn(Time(1))
        };
        durable(&mut core, 0, 1);
        assert_eq!(durable(&mut core, 0, 2).flush, Some(1));
        core.input(Time(1), Input::Flushed(1));
        let states = core.turn(Time(1)).ticket;
        let out = durable(&mut core, states, 3);
        assert_eq!((out.release, out.flush), (Some(1), None));
        assert_eq!(durable(&mut core, states + 1, 4).flush, Some(2), "others did");
    }

    /// Between the capture of what is applied and the end of the flush a replica is opened. Its first records lie in
    /// segments that are about to go: a promise must not go with them.
    #[test]
    fn a_replica_that_is_opened_during_a_flush_is_written_again_with_the_others() {
        let id = GroupId(2);
        let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3]), Vec::new(), Time(0));
        core.segment_reached(1);
        core.segment_reached(2);
        let floor = Configuration::floor(ConfigId(7));
        core.comings.opening.insert(id);
        let group = DataGroup::open(Arc::new(MemoryStore::new()), id, 1).expect("an empty store");
        let recovered = Recovered { promised: floor, first_kept: Slot(1), ..Recovered::default() };
        let (configuration, machine) = (Configuration::default(), Machine::Data(group.reader()));
        core.open(Hosted { group: id, configuration, recovered, applied: Slot(0), fenced: false, machine });
        core.flushed(Time(1), 1);
        let again = core.out.log.iter().filter(|(group, _)| *group == id);
        let again: Vec<&Record> = again.map(|(_, record)| record).collect();
        assert!(
            matches!(again[..], [Record::Opened(_), Record::State { promised, .. }] if *promised == floor),
            "{again:?}"
        );
    }
}
