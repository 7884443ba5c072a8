//! Replicas compare what their state machines have come to (design §6).
//!
//! Every [`shardkv::types::DIGEST_SLOTS`] slots (the shardmaster at each) a replica tells the group's members the digest of its
//! state. The log is the same everywhere, and applying it is a function: where digests of a slot differ, a state is wrong, by a
//! bug, or because something changed what was stored. Whoever differs from a majority of the members is *fenced*, also after
//! a restart: its log is sound, so it votes; but it does not lead, reads nothing for anybody, sends no images, and applies
//! nothing, until the leader's image has taken the place of its state. Where there is no majority, nobody is fenced, it is
//! said, and no images are sent: a copy of what is wrong would count like any other.
//!
//! A digest is told once. If it gets lost the next one shows the same, for it is of everything before.

#[cfg(test)]
mod tests;

use super::{ApplyJob, Core, Hosting};
use crate::wire::NodeMessage;
use paxos::{GroupId, NodeId, Slot, Time, quorum_of};
use shardkv::store::Store;
use shardkv::types::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Digests kept of each replica: one that lags by more slots than these span is compared when it has caught up.
const KEPT: usize = 16;

/// A replica that is fenced, and did not get an image, or was fenced again, gets the next one after this.
const MEND_MICROS: u64 = 10_000_000;
/// And after this, if it refused the image.
const MEND_AGAIN_MICROS: u64 = 1_000_000;

/// Of one replica, by slot.
type Kept = BTreeMap<Slot, u64>;

/// The newest digests of one group's replicas.
#[derive(Debug, Default)]
pub(super) struct Digests {
    own: Kept,
    others: BTreeMap<NodeId, Kept>,
    /// Who was said to differ last.
    said: Vec<NodeId>,
}

/// What a replica makes of the digests that the members told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing differs, as far as is known.
    Alike,
    /// Some differ, and a majority agrees with this replica.
    Right,
    /// Some differ, and no majority says which are right.
    Disputed,
    /// A majority agrees with one another, and differs from this replica.
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

    /// Compares this replica with the `members`, itself among them or not, each pair at the newest slot that both have come
    /// to: who agrees there has agreed before.
    fn judge(&self, me: NodeId, members: &[NodeId]) -> Verdict {
        let others = || members.iter().filter_map(|node| self.others.get(node));
        let alike = others().filter(|other| agree(&self.own, other) == Some(true)).count();
        let against = || others().filter(|other| agree(&self.own, other) == Some(false));
        let votes = against().map(|one| against().filter(|other| agree(one, other) == Some(true)).count()).max();
        let majority = quorum_of(members.len());
        match votes {
            None => Verdict::Alike,
            // One that learns is one against one where there is one member: nobody can say which is right.
            Some(votes) if votes >= majority && votes > alike + 1 => Verdict::Odd,
            Some(_) if alike + usize::from(members.contains(&me)) >= majority => Verdict::Right,
            Some(_) => Verdict::Disputed,
        }
    }

    /// The members whose state differs from this replica's.
    fn differing(&self, members: &[NodeId]) -> Vec<NodeId> {
        let differs = |node: &&NodeId| self.others.get(node).is_some_and(|it| agree(&self.own, it) == Some(false));
        members.iter().filter(differs).copied().collect()
    }
}

/// Whether two replicas agree at the newest slot that both have come to; unknown if there is none.
fn agree(one: &Kept, other: &Kept) -> Option<bool> {
    one.iter().rev().find_map(|(slot, value)| Some(value == other.get(slot)?))
}

impl<S: Store> Core<S> {
    /// This node's replica of a group has come to these.
    pub(super) fn digested(&mut self, now: Time, id: GroupId, digests: Vec<Digest>) {
        let me = self.config.me;
        // One that catches up comes to many at once, which the others do not keep.
        for digest in digests.into_iter().rev().take(KEPT).rev() {
            let Some(group) = self.groups.get_mut(&id) else { return };
            keep(&mut group.digests.own, digest);
            let others = group.replica.voters().iter().filter(|node| **node != me);
            self.out.send.extend(others.map(|node| (*node, NodeMessage::Digest { group: id, digest })));
            self.compare(now, id);
        }
    }

    /// Another member's has.
    pub(super) fn digest_told(&mut self, now: Time, from: NodeId, id: GroupId, digest: Digest) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (members, digests) = (group.replica.voters(), &mut group.digests);
        digests.others.retain(|node, _| members.contains(node));
        if from != self.config.me && members.contains(&from) && !self.beats.is_barred(from, id) {
            keep(digests.others.entry(from).or_default(), digest);
            self.compare(now, id);
        }
    }

    fn compare(&mut self, now: Time, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id).filter(|group| !group.fenced) else { return };
        let Some((slot, own)) = group.digests.own.last_key_value().map(|(slot, own)| (*slot, *own)) else { return };
        let members = group.replica.voters();
        let (verdict, differing) = (group.digests.judge(self.config.me, members), group.digests.differing(members));
        let news = group.digests.said != differing;
        match verdict {
            Verdict::Alike => {}
            Verdict::Right if news => {
                tracing::error!(group = %id, %slot, ?differing, "their state of this group is not what a majority has");
            }
            Verdict::Disputed if news => tracing::error!(
                group = %id, %slot, own, others = ?group.digests.others,
                "the states of this group's replicas differ, and no majority says which are right"
            ),
            Verdict::Right | Verdict::Disputed => {}
            Verdict::Odd => {
                tracing::error!(
                    group = %id, %slot, own, others = ?group.digests.others,
                    "the state of this node's replica is not what a majority has: it serves no more until the \
                     leader's image has taken its place; check this machine's memory and disk"
                );
                group.tally.fences += 1;
                self.out.hosting.push(Hosting::Fence { group: id, slot });
                return self.fence(now, id);
            }
        }
        group.digests.said = differing;
    }

    /// A replica's state is wrong.
    pub(super) fn fence(&mut self, now: Time, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.fenced = true;
        self.end_sending(id);
        if self.is_master(id) {
            // This node goes by what others know.
            self.map = Arc::default();
        }
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
        let barred = |node: &NodeId| beats.is_barred(*node, id);
        group.digests.others.retain(|node, _| !barred(node));
        group.mended.retain(|_, begun| now.since(*begun) < MEND_MICROS);
        let mended = |node: &NodeId| group.mended.contains_key(node);
        let wait = group.replica.matched().into_keys().filter(|node| barred(node) && beats.reaches(now, *node));
        let wait: Vec<NodeId> = wait.filter(|node| !mended(node)).collect();
        group.mended.extend(wait.iter().map(|node| (*node, now)));
        wait.into_iter().for_each(|node| self.start_transfer(now, id, node));
    }

    /// An image was refused. Perhaps it was of an earlier slot than the replica has come to.
    pub(super) fn mend_again(&mut self, now: Time, id: GroupId, node: NodeId) {
        let begun = self.groups.get_mut(&id).and_then(|group| group.mended.get_mut(&node));
        if let Some(begun) = begun {
            *begun = Time((now.0 + MEND_AGAIN_MICROS).saturating_sub(MEND_MICROS));
        }
    }

    /// Whether nobody can say that this node's replica of a group is right: others, which are there, differ, and no majority
    /// agrees.
    pub fn is_disputed(&self, now: Time, id: GroupId) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        let (digests, members) = (&group.digests, group.replica.voters());
        let there = |node: &NodeId| self.beats.reaches(now, *node);
        digests.differing(members).iter().any(there) && digests.judge(self.config.me, members) == Verdict::Disputed
    }

    /// Whether a replica must not be read.
    pub fn is_fenced(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|group| group.fenced)
    }

    /// The members of a group that are known to differ from this node's replica.
    pub(super) fn differing(&self, id: GroupId) -> Vec<NodeId> {
        self.groups.get(&id).map_or_else(Vec::new, |group| group.digests.differing(group.replica.voters()))
    }
}
