//! A replica whose state goes wrong, unseen by itself.
//!
//! What clients see must stay right, so that all checkers hold: only what is digested of one entry changes, and with it
//! everything that is digested later. The other replicas must find out, and do without this one.

use crate::process::Site;
use crate::random::Random;
use crate::world::{Phase, World};
use node::core::{Applied, ApplyJob};
use paxos::flaw::{self, Flaw};
use paxos::{GroupId, NodeId};
use shardkv::request::RequestBody;
use std::collections::BTreeSet;

/// Which states went wrong.
#[derive(Debug)]
pub struct Spoils {
    random: Random,
    /// The next entries of this group go wrong on this node.
    next: Option<(NodeId, GroupId)>,
    /// In these groups one went wrong; images may have carried it to others.
    groups: BTreeSet<GroupId>,
}

impl Spoils {
    /// None yet.
    pub fn new(seed: u64) -> Spoils {
        Spoils { random: Random::new(seed, 10), next: None, groups: BTreeSet::new() }
    }

    /// Whether states of a group may differ.
    pub fn concern(&self, group: GroupId) -> bool {
        self.groups.contains(&group)
    }
}

impl World {
    /// A replica is chosen whose state goes wrong with what it applies next.
    pub(crate) fn spoil(&mut self) {
        if self.phase != Phase::Faults {
            return;
        }
        let groups = self.groups();
        let Some(group) = self.spoils.random.pick(&groups).copied() else { return };
        let members = self.newest_configuration(group).members;
        let Some(node) = self.spoils.random.pick(&members).copied() else { return };
        self.trace.line(self.now, format_args!("the state of {group} goes wrong on {node}"));
        self.spoils.next = Some((node, group));
    }

    /// Applies entries, rightly or not.
    pub(crate) fn apply_job(&mut self, node: NodeId, job: ApplyJob) -> Result<Option<Applied>, String> {
        let spoils = self.spoils.next.take_if(|next| *next == (node, job.group)).is_some();
        let Some(process) = self.sites.get_mut(&node).and_then(|site| site.process.as_mut()) else { return Ok(None) };
        if spoils {
            self.spoils.groups.insert(job.group);
            flaw::put(Some(Flaw::DigestAnew));
        }
        let applied = process.machines.apply(job).map_err(|error| format!("{node} cannot apply: {error}"));
        if spoils {
            flaw::put(None);
        }
        applied
    }

    /// Nobody believes that states differ where they do not.
    pub(crate) fn fenced(&mut self, node: NodeId, group: GroupId) -> Result<(), String> {
        if !self.spoils.concern(group) {
            return Err(format!("{node} fences its replica of {group}, whose states do not differ"));
        }
        self.coverage.hit("digests.fenced");
        Ok(())
    }

    /// Where replicas have come to different states, and no majority says which are right, an operator decides: the
    /// leader's is to be the only one.
    pub(crate) fn settle_disputes(&mut self) {
        for group in self.spoils.groups.clone() {
            let leads = |(node, site): (&NodeId, &Site)| {
                let (now, process) = (site.clock.read(self.now), site.process.as_ref()?);
                let leads = process.core.replica(group)?.leading().is_some();
                (leads && process.core.is_disputed(now, group)).then_some(*node)
            };
            let Some(leader) = self.sites.iter().find_map(leads) else { continue };
            self.coverage.hit("digests.settled");
            self.trace.line(self.now, format_args!("operator wants {leader} alone in {group}"));
            self.ask_shardmaster(&RequestBody::ChangeMembers { group, members: vec![leader] });
        }
    }

    /// Whoever is fenced does not lead.
    pub(crate) fn check_fences(&self, node: NodeId) -> Result<(), String> {
        let Some(process) = self.sites.get(&node).and_then(|site| site.process.as_ref()) else { return Ok(()) };
        for group in &self.spoils.groups {
            let leads = process.core.replica(*group).is_some_and(|replica| replica.leading().is_some());
            // An image has taken its place, and the core has not heard of it, or the other way round.
            let standing = process.replaced.iter().all(|(replaced, _)| replaced != group);
            if leads && process.machines.is_fenced(*group) && standing {
                return Err(format!("{node} leads {group} with a fenced replica"));
            }
        }
        Ok(())
    }
}
