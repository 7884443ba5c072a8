//! Replicas compare what their state machines have come to (design §6).
//!
//! Every [`shardkv::types::DIGEST_SLOTS`] slots each replica tells the group's members the digest of its
//! state. The log is the same everywhere, and applying it is a function: where digests of a slot differ, a
//! state is wrong, by a bug, or because something changed what was stored. Whoever differs from a majority
//! of the members is *fenced*, also after a restart: its log is sound, so it votes; but it does not lead,
//! reads nothing for anybody, sends no images, and applies nothing, until the leader's image has taken the
//! place of its state. Where there is no majority against anybody, it is only said.
//!
//! A digest is told once. If it gets lost the next one shows the same, for it is of everything before.

use super::{ApplyJob, Core, Hosting};
use crate::wire::NodeMessage;
use paxos::{GroupId, NodeId, Slot, Time, quorum_of};
use shardkv::store::Store;
use shardkv::types::Digest;
use std::collections::BTreeMap;

/// Digests kept of each replica: one that lags by more slots than these span is compared when it has caught up.
const KEPT: usize = 16;

/// A replica that is fenced, and did not get an image, or was fenced again, gets the next one after this.
const MEND_MICROS: u64 = 10_000_000;

/// Of one replica, by slot.
type Kept = BTreeMap<Slot, u64>;

/// The newest digests of one group's replicas.
#[derive(Debug, Default)]
pub(super) struct Digests {
    own: Kept,
    others: BTreeMap<NodeId, Kept>,
}

/// How the digests of one slot compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing differs, as far as is known.
    Alike,
    /// Some differ, and no majority says which are right.
    Differ,
    /// A majority differs from this replica's.
    Odd,
}

fn keep(kept: &mut Kept, digest: Digest) {
    kept.insert(digest.slot, digest.value);
    if kept.len() > KEPT {
        kept.pop_first();
    }
}

impl Digests {
    /// This replica's state was replaced: what it had come to before says nothing of it.
    fn begin_anew(&mut self) {
        self.own.clear();
    }

    /// Compares this replica with the `members`, itself among them or not.
    fn judge(&self, slot: Slot, members: &[NodeId]) -> Verdict {
        let Some(own) = self.own.get(&slot) else { return Verdict::Alike };
        let told = members.iter().filter_map(|node| self.others.get(node)?.get(&slot));
        let mut against: BTreeMap<u64, usize> = BTreeMap::new();
        told.filter(|value| *value != own).for_each(|value| *against.entry(*value).or_default() += 1);
        match against.into_values().max() {
            None => Verdict::Alike,
            Some(votes) if votes >= quorum_of(members.len()) => Verdict::Odd,
            Some(_) => Verdict::Differ,
        }
    }

    /// The members whose state differs from this replica's at the newest slot for which both are known.
    fn differing(&self, members: &[NodeId]) -> Vec<NodeId> {
        let differs = |node: &&NodeId| {
            let theirs = self.others.get(node);
            let both = self.own.iter().rev().find_map(|(slot, own)| Some((own, theirs?.get(slot)?)));
            both.is_some_and(|(own, theirs)| own != theirs)
        };
        members.iter().filter(differs).copied().collect()
    }
}

impl<S: Store> Core<S> {
    /// This node's replica of a group has come to these.
    pub(super) fn digested(&mut self, now: Time, id: GroupId, digests: Vec<Digest>) {
        let me = self.config.me;
        for digest in digests {
            let Some(group) = self.groups.get_mut(&id) else { return };
            keep(&mut group.digests.own, digest);
            let others = group.replica.replicas().iter().filter(|node| **node != me);
            self.out.send.extend(others.map(|node| (*node, NodeMessage::Digest { group: id, digest })));
            self.compare(now, id, digest.slot);
        }
    }

    /// Another member's has.
    pub(super) fn digest_told(&mut self, now: Time, from: NodeId, id: GroupId, digest: Digest) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (members, digests) = (group.replica.replicas(), &mut group.digests);
        digests.others.retain(|node, _| members.contains(node));
        let barred = self.beats.status_of(from, id).is_some_and(|status| status.barred);
        if from != self.config.me && members.contains(&from) && !barred {
            keep(digests.others.entry(from).or_default(), digest);
            self.compare(now, id, digest.slot);
        }
    }

    fn compare(&mut self, now: Time, id: GroupId, slot: Slot) {
        let Some(group) = self.groups.get(&id).filter(|group| !group.fenced) else { return };
        let (members, own) = (group.replica.replicas(), group.digests.own.get(&slot));
        match group.digests.judge(slot, members) {
            Verdict::Alike => {}
            Verdict::Differ => tracing::error!(
                group = %id, %slot, ?own, others = ?group.digests.others,
                "the states of this group's replicas differ, and no majority says which are right"
            ),
            Verdict::Odd => {
                tracing::error!(
                    group = %id, %slot, ?own, others = ?group.digests.others,
                    "the state of this node's replica is not what a majority has: it serves no more until the \
                     leader's image has taken its place; check this machine's memory and disk"
                );
                self.out.hosting.push(Hosting::Fence { group: id, slot });
                self.fence(now, id);
            }
        }
    }

    /// A replica's state is wrong.
    pub(super) fn fence(&mut self, now: Time, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.fenced = true;
        group.tally.fences += 1;
        self.end_sending(id);
        self.step(now, id, paxos::Input::Bar(true));
    }

    /// An image has taken the place of a replica's state.
    pub(super) fn state_replaced(&mut self, now: Time, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.digests.begin_anew();
        if std::mem::take(&mut group.fenced) {
            tracing::info!(group = %id, "an image has taken the place of the fenced state: this replica serves again");
            let held = std::mem::take(&mut group.held).into_iter();
            self.out.apply.extend(held.map(|job| ApplyJob { next: false, urgent: false, ..job }));
            self.step(now, id, paxos::Input::Bar(false));
        }
    }

    /// What those had come to that are fenced counts no more; and the leader gives them its own state.
    pub(super) fn mend(&mut self, now: Time, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let beats = &self.beats;
        let barred = |node: &NodeId| beats.status_of(*node, id).is_some_and(|status| status.barred);
        group.digests.others.retain(|node, _| !barred(node));
        group.mended.retain(|_, begun| now.since(*begun) < MEND_MICROS);
        let mended = |node: &NodeId| group.mended.contains_key(node);
        let wait = group.replica.matched().into_keys().filter(|node| barred(node) && beats.reaches(now, *node));
        let wait: Vec<NodeId> = wait.filter(|node| !mended(node)).collect();
        group.mended.extend(wait.iter().map(|node| (*node, now)));
        wait.into_iter().for_each(|node| self.start_transfer(now, id, node));
    }

    /// Whether a replica must not be read.
    pub(super) fn is_fenced(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|group| group.fenced)
    }

    /// The members of a group that are known to differ from this node's replica.
    pub(super) fn differing(&self, id: GroupId) -> Vec<NodeId> {
        self.groups.get(&id).map_or_else(Vec::new, |group| group.digests.differing(group.replica.replicas()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::owner;
    use super::super::{Applied, Input, SnapshotEvent};
    use super::*;
    use crate::core::CoreConfig;
    use paxos::Configuration;
    use paxos::election::Status;
    use shardkv::MemoryStore;
    use shardkv::ops::{Op, Range};
    use shardkv::request::{ReadMode, ReplyBody, Request, RequestBody};
    use shardkv::types::{Epoch, Keys, Revision, ShardId};

    const ID: GroupId = GroupId(2);

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
        (digests.judge(Slot(64), &nodes(members)), digests.differing(&nodes(members)))
    }

    #[test]
    fn a_majority_of_the_members_is_right() {
        assert_eq!(judged(&[(2, 7), (3, 7)], &[1, 2, 3]), (Verdict::Alike, vec![]));
        assert_eq!(judged(&[(2, 7), (3, 8)], &[1, 2, 3]), (Verdict::Differ, nodes(&[3])));
        assert_eq!(judged(&[(2, 8)], &[1, 2, 3]), (Verdict::Differ, nodes(&[2])), "n3 has not said");
        assert_eq!(judged(&[(2, 8), (3, 9)], &[1, 2, 3]), (Verdict::Differ, nodes(&[2, 3])));
        assert_eq!(judged(&[(2, 8), (3, 8)], &[1, 2, 3]), (Verdict::Odd, nodes(&[2, 3])));
        assert_eq!(judged(&[(2, 8)], &[1, 2]), (Verdict::Differ, nodes(&[2])), "one against one");
        assert_eq!(judged(&[(2, 8)], &[2]), (Verdict::Odd, nodes(&[2])), "one that learns");
        assert_eq!(judged(&[(2, 8), (3, 8)], &[1, 2, 3, 4, 5]), (Verdict::Differ, nodes(&[2, 3])));
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
        assert_eq!(
            (digests.own.len(), digests.judge(Slot(64), &nodes(&[1, 2, 3]))),
            (KEPT, Verdict::Alike),
            "forgotten"
        );
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
}
