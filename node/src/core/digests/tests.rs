//! Of comparing, and of what follows from it.

use super::*;
use crate::core::testing::{empty_master, owner};
use crate::core::{Applied, CoreConfig, Input, SnapshotEvent};
use paxos::Configuration;
use paxos::election::Status;
use shardkv::MemoryStore;
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::ops::{Op, Range};
use shardkv::request::{ReadMode, ReplyBody, Request, RequestBody};
use shardkv::types::{Epoch, Keys, Revision, ShardId};

const ID: GroupId = GroupId(2);
const ME: NodeId = NodeId(1);

fn digest(slot: u64, value: u64) -> Digest {
    Digest { slot: Slot(slot), value }
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// What a replica with the digest 7 thinks of what others told.
fn judged(told: &[(u64, u64)], members: &[u64]) -> (Verdict, Vec<NodeId>) {
    let mut digests = Digests::default();
    keep(&mut digests.own, digest(64, 7));
    for (node, value) in told {
        keep(digests.others.entry(NodeId(*node)).or_default(), digest(64, *value));
    }
    (digests.judge(ME, &nodes(members)), digests.differing(&nodes(members)))
}

#[test]
fn a_majority_of_the_members_is_right() {
    assert_eq!(judged(&[(2, 7), (3, 7)], &[1, 2, 3]), (Verdict::Alike, vec![]));
    assert_eq!(judged(&[(2, 7), (3, 8)], &[1, 2, 3]), (Verdict::Right, nodes(&[3])));
    assert_eq!(judged(&[(2, 8)], &[1, 2, 3]), (Verdict::Disputed, nodes(&[2])), "n3 has not said");
    assert_eq!(judged(&[(2, 8), (3, 9)], &[1, 2, 3]), (Verdict::Disputed, nodes(&[2, 3])));
    assert_eq!(judged(&[(2, 8), (3, 8)], &[1, 2, 3]), (Verdict::Odd, nodes(&[2, 3])));
    assert_eq!(judged(&[(2, 8)], &[1, 2]), (Verdict::Disputed, nodes(&[2])), "one against one");
    assert_eq!(judged(&[(2, 8)], &[2]), (Verdict::Disputed, nodes(&[2])), "one that learns, against one");
    assert_eq!(judged(&[(2, 8), (3, 8)], &[2, 3, 4]), (Verdict::Odd, nodes(&[2, 3])), "one that learns");
    assert_eq!(judged(&[(2, 8), (3, 8), (4, 7)], &[2, 3, 4]), (Verdict::Disputed, nodes(&[2, 3])), "two and two");
    assert_eq!(judged(&[(2, 8), (3, 8)], &[1, 2, 3, 4, 5]), (Verdict::Disputed, nodes(&[2, 3])));
}

#[test]
fn one_that_lags_is_compared_at_the_newest_slot_that_both_have_come_to() {
    let mut digests = Digests::default();
    for slot in 1..=KEPT as u64 + 4 {
        keep(&mut digests.own, digest(slot * 64, slot));
    }
    keep(digests.others.entry(NodeId(2)).or_default(), digest(6 * 64, 6));
    keep(digests.others.entry(NodeId(3)).or_default(), digest(6 * 64, 5));
    assert_eq!(digests.differing(&nodes(&[1, 2, 3])), nodes(&[3]));
    assert_eq!((digests.own.len(), digests.judge(ME, &nodes(&[1, 2, 3]))), (KEPT, Verdict::Right));
    digests.others.insert(NodeId(3), Kept::from([(Slot(64), 5)]));
    assert_eq!(digests.judge(ME, &nodes(&[1, 2, 3])), Verdict::Alike, "forgotten");
}

/// A core that hosts a replica of a group of three.
fn core() -> (Core<MemoryStore>, shardkv::DataGroup<MemoryStore>) {
    let (mut hosted, group) = owner(ID, ShardId(1), Epoch(1));
    hosted.configuration = Configuration::first(nodes(&[1, 2, 3]));
    (Core::new(CoreConfig::among(&[1, 2, 3]), vec![hosted], Time(0)), group)
}

fn applied(core: &mut Core<MemoryStore>, now: u64, digest: Digest) {
    let (first, digests) = (digest.slot.next(), vec![digest]);
    let applied =
        Applied { group: ID, slot: digest.slot, first, outcomes: Vec::new(), bytes: 0, master: None, digests };
    core.input(Time(now), Input::Applied(applied));
}

fn told(core: &mut Core<MemoryStore>, now: u64, from: u64, digest: Digest) {
    let message = NodeMessage::Digest { group: ID, digest };
    core.input(Time(now), Input::Message { from: NodeId(from), message });
}

fn installed(core: &mut Core<MemoryStore>, now: u64, slot: u64) {
    let installed = Some((Slot(slot), None));
    let stored = SnapshotEvent::Stored { group: ID, transfer: 1, sequence: 0, installed, failed: false };
    core.input(Time(now), Input::Snapshot(stored));
}

/// Whether this node's replica answers a read that any replica may answer.
fn answers(core: &mut Core<MemoryStore>) -> bool {
    let op = Op::Range(Range::all(Keys::One("k".into())));
    let body = RequestBody::Read { shards: vec![(ShardId(1), Epoch(1))], op, mode: ReadMode::Serializable };
    let (id, known, patience_micros, trace) = (1, Revision(0), 1_000_000, None);
    let request = Request { id, group: ID, known, patience_micros, trace, body };
    core.input(core.now, Input::Request { token: 1, request });
    let replies = core.turn(core.now).replies;
    let [(1, reply)] = &replies[..] else { panic!("{replies:?}") };
    matches!(reply.body, ReplyBody::Done { .. })
}

#[test]
fn members_are_told_and_others_are_not_listened_to() {
    let (mut core, _group) = core();
    applied(&mut core, 1, digest(64, 7));
    let message = || NodeMessage::Digest { group: ID, digest: digest(64, 7) };
    let sent = core.turn(Time(1)).send;
    let sent: Vec<_> = sent.into_iter().filter(|(_, it)| matches!(it, NodeMessage::Digest { .. })).collect();
    assert_eq!(sent, [(NodeId(2), message()), (NodeId(3), message())]);
    for stranger in 4..40 {
        told(&mut core, 1, stranger, digest(64, 8));
    }
    told(&mut core, 1, 1, digest(64, 8));
    told(&mut core, 1, 3, digest(64, 8));
    let kept = core.groups[&ID].digests.others.keys().copied().collect::<Vec<_>>();
    assert_eq!((kept, core.is_fenced(ID), core.differing(ID)), (nodes(&[3]), false, nodes(&[3])));
}

#[test]
fn the_odd_one_out_neither_reads_nor_leads_until_an_image_takes_its_place() {
    let (mut core, _group) = core();
    let hears = |core: &mut Core<MemoryStore>, micros: u64| {
        [2, 3].iter().for_each(|node| core.hear_of(Time(micros), NodeId(*node), ID, Status::default()));
        core.input(Time(micros), Input::Tick);
        core.groups[&ID].replica.status().own.round
    };
    core.leads(ID);
    assert!(answers(&mut core));
    told(&mut core, 1, 2, digest(64, 8));
    told(&mut core, 1, 3, digest(64, 8));
    assert!(core.groups[&ID].lead.is_some(), "it has not come there");
    applied(&mut core, 2, digest(64, 7));
    assert!(core.groups[&ID].lead.is_none() && core.is_fenced(ID), "it serves no more");
    assert_eq!(core.turn(Time(2)).hosting, [Hosting::Fence { group: ID, slot: Slot(64) }]);
    assert!(!answers(&mut core));
    assert!((1..=30).all(|tick| hears(&mut core, tick * 100_000) == 0), "it does not stand for election");
    assert!(core.status(Time(3)).groups[0].fenced);

    installed(&mut core, 4_000_000, 128);
    assert!(answers(&mut core) && !core.is_fenced(ID));
    told(&mut core, 4_000_000, 2, digest(64, 8));
    assert!(!core.is_fenced(ID), "what it was does not count");
    assert!((41..=60).any(|tick| hears(&mut core, tick * 100_000) > 0), "it may lead again");
    assert_eq!(core.differing(ID), []);
}

/// An image from the slot that a fence names lifts it: not from the one where the difference showed.
#[test]
fn a_fence_names_what_the_replica_has_come_to_however_old_the_difference() {
    let (mut core, _group) = core();
    [64, 128].iter().for_each(|slot| applied(&mut core, 1, digest(*slot, 7)));
    told(&mut core, 2, 2, digest(64, 8));
    told(&mut core, 2, 3, digest(64, 8));
    assert_eq!(core.turn(Time(2)).hosting, [Hosting::Fence { group: ID, slot: Slot(128) }]);
}

#[test]
fn a_fenced_replica_is_fenced_after_a_restart() {
    let (mut hosted, _group) = owner(ID, ShardId(1), Epoch(1));
    (hosted.fenced, hosted.applied) = (true, Slot(0));
    let mut core = Core::new(CoreConfig::among(&[1, 2, 3]), vec![hosted], Time(0));
    let out = core.turn(Time(0));
    assert!(out.apply.is_empty() && out.hosting.is_empty() && !answers(&mut core));
    installed(&mut core, 1, 1);
    assert_eq!(core.turn(Time(1)).apply.len(), 1, "what was decided meanwhile");
    assert!(answers(&mut core));
}

/// A copy of what is wrong would be a majority with it.
#[test]
fn what_nobody_can_say_is_right_is_copied_to_nobody() {
    let (mut core, _group) = core();
    let now = Time(1_000_000);
    core.hear_of(now, NodeId(2), ID, Status::default());
    applied(&mut core, now.0, digest(64, 7));
    told(&mut core, now.0, 2, digest(64, 8));
    core.start_transfer(now, ID, NodeId(3));
    assert!(core.is_disputed(now, ID) && core.turn(now).snapshots.is_empty());
    let later = Time(9_000_000);
    core.start_transfer(later, ID, NodeId(3));
    assert!(!core.is_disputed(later, ID), "who is not there may be gone for good");
    assert_eq!(core.turn(later).snapshots.len(), 1);
    told(&mut core, later.0, 3, digest(64, 7));
    core.hear_of(later, NodeId(2), ID, Status::default());
    assert!(!core.is_disputed(later, ID) && core.differing(ID) == nodes(&[2]), "two against one");
}

#[test]
fn a_shardmaster_that_is_wrong_forgets_the_map() {
    let mut core = Core::new(CoreConfig::among(&[1, 2, 3]), vec![empty_master()], Time(0));
    let map = |version| Arc::new(shardkv::map::ShardMap { version, ..shardkv::map::ShardMap::default() });
    core.learn_map(map(7));
    core.fence(Time(0), SHARDMASTER_GROUP);
    assert_eq!(core.map.version, 0);
    core.learn_map(map(6));
    assert_eq!(core.map.version, 6, "it cannot know better");
}
