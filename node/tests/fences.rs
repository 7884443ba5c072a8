//! What a state machine is found to be is not forgotten, until an image has taken its place.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use node::core::{ApplyJob, SnapshotEvent, SnapshotJob};
use node::host::Machines;
use paxos::{GroupId, Slot};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::types::{DIGEST_SLOTS, Digest};
use shardkv::{MemoryStore, SessionLimits};
use std::sync::Arc;

const DATA: GroupId = GroupId(2);
const GROUPS: &[GroupId] = &[SHARDMASTER_GROUP, DATA];
const SLOT: Slot = Slot(DIGEST_SLOTS);

fn open(store: &Arc<MemoryStore>, boot: u64) -> Machines<MemoryStore> {
    Machines::open(store.clone(), GROUPS, boot, SessionLimits::default()).unwrap()
}

/// Applies entries from `first` to `last`, five together, some of them rubbish.
fn apply(machines: &mut Machines<MemoryStore>, group: GroupId, (first, last): (u64, u64)) -> Vec<Digest> {
    let slots: Vec<u64> = (first..=last).collect();
    let entry =
        |slot: &u64| (Slot(*slot), if slot.is_multiple_of(3) { Bytes::from_static(b"rubbish") } else { Bytes::new() });
    let job = |slots: &[u64]| ApplyJob { group, entries: slots.iter().map(entry).collect(), next: true, urgent: false };
    slots.chunks(5).flat_map(|slots| machines.apply(job(slots)).unwrap().unwrap().digests).collect()
}

/// Has `to` install an image of `from`'s state, and tells whether it did.
fn copy(from: &mut Machines<MemoryStore>, to: &mut Machines<MemoryStore>, group: GroupId) -> bool {
    for sequence in 0.. {
        let read = from.snapshot(SnapshotJob::Read { group, transfer: 1, sequence }).unwrap();
        let Some((SnapshotEvent::Read { piece: Some((piece, last)), .. }, _)) = read else { panic!("{group}") };
        let stored = to.snapshot(SnapshotJob::Install { group, transfer: 1, sequence, piece, last }).unwrap();
        let Some((SnapshotEvent::Stored { installed, failed, .. }, _)) = stored else { panic!("{group}") };
        if last {
            assert_eq!(installed.is_some(), !failed);
            return !failed;
        }
    }
    false
}

#[test]
fn states_are_digested_at_the_same_slots_whatever_is_applied_together() {
    for group in GROUPS {
        let (mut one, mut other) = (open(&Arc::default(), 1), open(&Arc::default(), 1));
        let digests = apply(&mut one, *group, (1, 2 * DIGEST_SLOTS));
        // The shardmaster's entries are few, and large steps.
        let step = if *group == SHARDMASTER_GROUP { 1 } else { DIGEST_SLOTS };
        let expected = (1..=2 * DIGEST_SLOTS).filter(|slot| slot.is_multiple_of(step)).map(Slot);
        assert_eq!(digests.iter().map(|it| it.slot).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        let pieces =
            [(1, 3), (4, DIGEST_SLOTS - 1), (DIGEST_SLOTS, DIGEST_SLOTS), (DIGEST_SLOTS + 1, 2 * DIGEST_SLOTS)];
        let again: Vec<Digest> = pieces.iter().flat_map(|piece| apply(&mut other, *group, *piece)).collect();
        assert_eq!(again, digests);
    }
}

#[test]
fn a_fence_outlives_a_power_cut_and_an_image_ends_it() {
    for group in GROUPS {
        let (store, mut sound) = (Arc::<MemoryStore>::default(), open(&Arc::default(), 1));
        let mut wrong = open(&store, 1);
        apply(&mut sound, *group, (1, SLOT.0 + 1));
        apply(&mut wrong, *group, (1, SLOT.0 + 1));
        wrong.fence(*group, SLOT).unwrap();
        assert!(wrong.is_fenced(*group));
        drop(wrong);
        store.crash();
        let mut wrong = open(&store, 2);
        assert!(wrong.is_fenced(*group) && wrong.applied(*group) == Slot(SLOT.0 + 1));
        let mut late = open(&Arc::default(), 1);
        apply(&mut late, *group, (1, SLOT.0));
        assert!(!copy(&mut late, &mut wrong, *group) && wrong.is_fenced(*group), "an image of an earlier slot");
        assert!(copy(&mut sound, &mut wrong, *group));
        assert!(!wrong.is_fenced(*group), "the image is of the same slot, and not of the same state");
        wrong.fence(*group, SLOT).unwrap();
        assert!(!wrong.is_fenced(*group), "what was wrong at that slot is there no more");
        drop(wrong);
        store.crash();
        assert!(!open(&store, 3).is_fenced(*group));
    }
}
