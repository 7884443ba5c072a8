//! What must hold at every moment: agreement, promises and votes that survive restarts, one lease
//! holder, equal states at equal slots. What clients saw is judged at the end by the crate
//! `checkers`.

use bytes::Bytes;
use paxos::acceptor::Acceptor;
use paxos::{Ballot, GroupId, Message, NodeId, Slot};
use shardkv::OwnedShard;
use shardkv::types::{Bounds, Epoch, ShardId};
use std::collections::BTreeMap;

/// What has been observed so far.
#[derive(Debug, Default)]
pub struct Invariants {
    decided: BTreeMap<(GroupId, Slot), (NodeId, Bytes)>,
    states: BTreeMap<(GroupId, Slot), (NodeId, u64)>,
    promises: BTreeMap<(NodeId, GroupId), Ballot>,
    votes: BTreeMap<(NodeId, GroupId), (Ballot, Slot)>,
    owners: BTreeMap<(ShardId, Epoch), (GroupId, Bounds)>,
}

impl Invariants {
    /// Agreement: a slot has one entry, whoever learns it.
    pub fn decided(&mut self, node: NodeId, group: GroupId, slot: Slot, entry: &Bytes) -> Result<(), String> {
        let (first, known) = self.decided.entry((group, slot)).or_insert_with(|| (node, entry.clone()));
        if known == entry {
            return Ok(());
        }
        Err(format!(
            "agreement: {group} slot {slot} is {} bytes {} on {first} and {} bytes {} on {node}",
            known.len(),
            known.escape_ascii(),
            entry.len(),
            entry.escape_ascii()
        ))
    }

    /// Equal logs give equal states.
    pub fn state(&mut self, node: NodeId, group: GroupId, slot: Slot, hash: u64) -> Result<(), String> {
        let (first, known) = *self.states.entry((group, slot)).or_insert((node, hash));
        if known == hash {
            return Ok(());
        }
        Err(format!("states differ: {group} at slot {slot} has hash {known:016x} on {first} and {hash:016x} on {node}"))
    }

    /// A shard has one owner, and the same keys, per epoch. Whether this is the first that is heard of it, behind a
    /// change.
    pub fn owned(&mut self, group: GroupId, shard: &OwnedShard) -> Result<bool, String> {
        let OwnedShard { id, epoch, bounds, .. } = shard;
        let mut first = false;
        let (owner, keys) = self.owners.entry((*id, *epoch)).or_insert_with(|| {
            first = true;
            (group, bounds.clone())
        });
        if *owner != group {
            return Err(format!("two owners: {id} at epoch {} belongs to {owner} and to {group}", epoch.0));
        }
        match keys == bounds {
            true => Ok(first && *epoch > Epoch(1)),
            false => Err(format!("two shards: {id} at epoch {} is {keys:?} and {bounds:?}", epoch.0)),
        }
    }

    /// A node says something that binds it.
    pub fn said(&mut self, node: NodeId, group: GroupId, message: &Message) {
        match message {
            Message::Promise(promise) => self.promised(node, group, promise.ballot),
            // Whoever asks has promised it himself.
            Message::Prepare { ballot, .. } if ballot.node == node => self.promised(node, group, *ballot),
            Message::Accepted { ballot, length, .. } => {
                let vote = self.votes.entry((node, group)).or_default();
                *vote = (*ballot, *length).max(*vote);
            }
            _ => {}
        }
    }

    fn promised(&mut self, node: NodeId, group: GroupId, ballot: Ballot) {
        let promised = self.promises.entry((node, group)).or_default();
        *promised = ballot.max(*promised);
    }

    /// A node has opened a replica anew, which promises nothing below `floor`: what an earlier one has accepted there
    /// belongs to configurations that are sealed, but it must still know what that one has promised.
    pub fn opened(&mut self, node: NodeId, group: GroupId, floor: Ballot) -> Result<(), String> {
        self.votes.remove(&(node, group));
        self.still_promised(node, group, floor, "opened anew")
    }

    /// A node has read its log after a restart, in which a replica is closed.
    pub fn closed(&self, node: NodeId, group: GroupId, promised: Ballot) -> Result<(), String> {
        self.still_promised(node, group, promised, "closed, after a restart")
    }

    fn still_promised(&self, node: NodeId, group: GroupId, now: Ballot, when: &str) -> Result<(), String> {
        let promised = self.promises.get(&(node, group)).copied().unwrap_or_default();
        match now < promised {
            true => Err(format!("a promise fell: {node} promised {promised} in {group}, and {when} {now}")),
            false => Ok(()),
        }
    }

    /// A node has read its log after a restart: it must remember what it said.
    pub fn restarted(&self, node: NodeId, group: GroupId, acceptor: &Acceptor) -> Result<(), String> {
        self.still_promised(node, group, acceptor.promised(), "after a restart")?;
        let (ballot, length) = self.votes.get(&(node, group)).copied().unwrap_or_default();
        let (accepted, now) = (acceptor.accepted(), acceptor.log().length());
        let kept = accepted > ballot || (accepted == ballot && now >= length);
        if !kept && !acceptor.suspect() {
            return Err(format!(
                "a vote was lost: {node} accepted {group} up to {length} in {ballot}, \
                 and after a restart has {now} in {accepted}"
            ));
        }
        Ok(())
    }

    /// At most one node holds the lease of a group.
    pub fn lease(group: GroupId, holders: &[NodeId]) -> Result<(), String> {
        if holders.len() < 2 {
            return Ok(());
        }
        Err(format!("two leaseholders of {group}: {holders:?}"))
    }

    /// The highest slot of a group that anybody knows to be decided.
    pub fn last_decided(&self, group: GroupId) -> Slot {
        let last = self.decided.range((group, Slot(0))..=(group, Slot(u64::MAX))).next_back();
        last.map_or(Slot(0), |((_, slot), _)| *slot)
    }
}
