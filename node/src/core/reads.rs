//! Reads at a leader (design §1, "Reads and headers") and at any replica.
//!
//! A linearizable read waits for every write on its range that arrived before it, then reads at
//! exactly h = max(last applied, C), where C is the largest sequencer number known here or carried
//! by the request; then the leader's right to answer is checked. A read that did not wait could see
//! x=new, y=old while a snapshot over both sees x=old, y=new.

use super::lead::Waiter;
use super::scans::reads_ranges;
use super::{Core, Machine, ReadMode};
use paxos::flaw::{self, Flaw};
use paxos::{GroupId, Time};
use shardkv::ReadError;
use shardkv::command::Command;
use shardkv::map::{GroupChange, SHARDMASTER_GROUP};
use shardkv::ops::Op;
use shardkv::request::{OpError, ReadMode as Freshness, Reply, ReplyBody, Request, RequestBody};
use shardkv::store::Store;
use shardkv::types::Revision;
use shardmaster::MasterCommand;

/// A read (or a compaction) in line at the leader.
#[derive(Clone, Debug)]
pub(super) struct WaitingRead {
    pub(super) token: u64,
    pub(super) request: Request,
    pub(super) expires: Time,
    /// C, fixed on arrival.
    known: Revision,
}

/// The largest revision that a range in `op` asks for by itself; 0 if none does.
pub(super) fn explicit_revision(op: &Op) -> Revision {
    match op {
        Op::Range(range) => range.revision,
        Op::Put(_) | Op::Delete(_) => Revision(0),
        Op::Txn(txn) => txn.success.iter().chain(&txn.failure).map(explicit_revision).max().unwrap_or_default(),
    }
}

impl<S: Store> Core<S> {
    /// A request from a gateway.
    pub(super) fn request(&mut self, now: Time, token: u64, request: Request) {
        self.known = self.known.max(request.known);
        let waiter = Waiter::Gateway(token, request.id);
        match &request.body {
            RequestBody::Write { .. } => self.write(now, token, request),
            RequestBody::Read { mode: Freshness::Serializable, .. } => self.serializable(now, token, request),
            RequestBody::Read { .. } | RequestBody::Compact { .. } => self.wait_for_writes(now, token, request),
            RequestBody::CurrentRevision => self.current_asked(now, token, request.id),
            RequestBody::Map { have_version } => {
                let have_version = *have_version;
                self.map_asked(now, waiter, have_version);
            }
            RequestBody::LogCompaction { revision } => {
                let revision = *revision;
                self.log_compaction(now, waiter, revision);
            }
            RequestBody::ChangeMembers { group, members } => {
                let command = MasterCommand::ChangeMembers { group: *group, members: members.clone() };
                self.ask_master(now, waiter, &command);
            }
            RequestBody::ChangeShards(change) => {
                let command = MasterCommand::ChangeShards(change.clone());
                self.ask_master(now, waiter, &command);
            }
            RequestBody::ChangeGroups(change) => {
                let mut change = change.clone();
                if let GroupChange::Create { members, .. } = &mut change
                    && members.is_empty()
                {
                    // The log knows nothing of who is silent.
                    let silent = self
                        .config
                        .nodes
                        .iter()
                        .copied()
                        .filter(|node| *node != self.config.me && !self.beats.reaches(now, *node));
                    *members = shardmaster::spread(&self.map, shardmaster::REPLICAS, &silent.collect());
                }
                let command = MasterCommand::ChangeGroups(change);
                self.ask_master(now, waiter, &command);
            }
            RequestBody::Middle { shard, epoch } => {
                let (shard, epoch) = (*shard, *epoch);
                self.middle_asked(now, waiter, &request, shard, epoch);
            }
            RequestBody::AddNode { cluster, name, incarnation, peer_address, keeps } => {
                let (cluster, incarnation, keeps) = (*cluster, *incarnation, *keeps);
                let (name, peer_address) = (name.clone(), peer_address.clone());
                let command = MasterCommand::AddNode { cluster, name, incarnation, peer_address, keeps };
                self.ask_master(now, waiter, &command);
            }
            RequestBody::DrainNode { node, drain } => {
                let command = MasterCommand::DrainNode { node: *node, drain: *drain };
                self.ask_master(now, waiter, &command);
            }
            RequestBody::RemoveNode { node } => {
                let command = MasterCommand::RemoveNode { node: *node };
                self.ask_master(now, waiter, &command);
            }
        }
    }

    /// Puts a read behind the writes that it must see.
    fn wait_for_writes(&mut self, now: Time, token: u64, request: Request) {
        let id = request.group;
        let (known, reads_max) = (self.known, self.config.limits.reads_max);
        let lead = match self.ready_lead(id) {
            Ok(lead) => lead,
            Err(refusal) => return self.answer(Waiter::Gateway(token, request.id), refusal),
        };
        if lead.reads_waiting + lead.unleased.len() + lead.confirming.len() >= reads_max {
            return self.answer(Waiter::Gateway(token, request.id), ReplyBody::Failed(OpError::Overloaded));
        }
        let behind = match &request.body {
            RequestBody::Read { op, mode: Freshness::Linearizable, .. } if explicit_revision(op).0 == 0 => {
                lead.last_write_on(op)
            }
            _ => lead.last_write(),
        };
        let behind = if flaw::is(Flaw::ReadBeforeWrites) { 0 } else { behind };
        let expires = now.plus(request.patience_micros);
        let read = WaitingRead { token, request, expires, known };
        if behind <= lead.done {
            self.execute(now, id, read);
        } else {
            lead.reads_waiting += 1;
            lead.reads.entry(behind).or_default().push(read);
        }
    }

    /// Executes what no longer waits for writes.
    pub(super) fn release_reads(&mut self, now: Time, id: GroupId) {
        while let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) {
            let done = lead.done;
            let Some(entry) = lead.reads.first_entry().filter(|entry| *entry.key() <= done) else { break };
            let reads = entry.remove();
            lead.reads_waiting -= reads.len();
            for read in reads {
                self.execute(now, id, read);
            }
        }
    }

    fn execute(&mut self, now: Time, id: GroupId, read: WaitingRead) {
        let waiter = Waiter::Gateway(read.token, read.request.id);
        match &read.request.body {
            RequestBody::Compact { revision } => {
                let revision = *revision;
                self.compact(id, waiter, revision);
            }
            RequestBody::Read { .. } => self.read_or_scan(now, id, read),
            _ => {}
        }
    }

    /// Executes a read whose writes are all applied: fixes its revision, and reads at that one, here if
    /// it names each key, else beside the turns.
    pub(super) fn read_or_scan(&mut self, now: Time, id: GroupId, read: WaitingRead) {
        let waiter = Waiter::Gateway(read.token, read.request.id);
        let RequestBody::Read { shards, op, mode } = &read.request.body else {
            return self.answer(waiter, ReplyBody::Failed(OpError::Malformed("not a read".into())));
        };
        if self.is_fenced(id) {
            let hint = self.hint(id);
            return self.answer(waiter, ReplyBody::NotLeader { hint });
        }
        let serializable = *mode == Freshness::Serializable;
        let reader = match self.groups.get(&id).map(|group| &group.machine) {
            Some(Machine::Data(reader)) => reader.clone(),
            Some(Machine::Master(_)) => {
                let error = OpError::Malformed(format!("{id} holds no keys"));
                return self.answer(waiter, ReplyBody::Failed(error));
            }
            None => return self.answer(waiter, ReplyBody::NotLeader { hint: None }),
        };
        let newest = reader.newest(shards).max(read.known);
        let (at, header) = match mode {
            Freshness::At(revision) => (*revision, *revision),
            Freshness::Linearizable | Freshness::Serializable => (newest, newest),
        };
        if explicit_revision(op) > newest.max(at) {
            return match serializable {
                true => {
                    let hint = self.hint(id);
                    self.answer(waiter, ReplyBody::NotLeader { hint })
                }
                false => {
                    let error = OpError::FutureRevision { current: newest.max(at) };
                    self.release(now, id, read, ReplyBody::Failed(error))
                }
            };
        }
        self.count_read(&read.request.body);
        self.close_at(id, at);
        let (at, header) = match (op, reader.frozen(shards).filter(|_| serializable)) {
            (Op::Range(range), _) if range.revision > Revision(0) => (range.revision, header),
            // Another shard's compaction has passed the end of this one: nothing can be read of both here.
            (_, Some(end)) if reader.floor(shards) > end => return self.answer(waiter, ReplyBody::WrongShard),
            // What this node knows of others' writes says nothing of a shard that has ended here.
            (_, Some(end)) => (at.min(end), header.min(end)),
            (_, None) => (at, header),
        };
        if reads_ranges(op) {
            return self.begin_scan(id, read, at, header);
        }
        let body = match reader.read_until(shards, op, at, read.needs_owner(), &|| false) {
            Ok(result) => ReplyBody::Done { revision: header, result },
            Err(error) => read_failure(error),
        };
        match serializable {
            true => self.answer(waiter, body),
            false => self.release(now, id, read, body),
        }
    }

    fn count_read(&mut self, body: &RequestBody) {
        if let RequestBody::Read { shards, op, .. } = body {
            self.meter.count(shards.iter().map(|(shard, _)| *shard), op, false);
        }
    }

    /// Nothing at or below a revision that is read will be stamped: everything that arrived before is
    /// applied, and what comes later is stamped above a number that the sequencer has handed out.
    fn close_at(&mut self, id: GroupId, at: Revision) {
        let lead = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut());
        if let Some(lead) = lead.filter(|lead| lead.in_flight() == 0) {
            lead.closed = lead.closed.max(at);
        }
    }

    /// Answers a read, if this node still leads.
    pub(super) fn release(&mut self, now: Time, id: GroupId, read: WaitingRead, body: ReplyBody) {
        match self.config.read_mode {
            ReadMode::Lease if self.has_lease(now, id) => {
                self.trace_read(now, id, &read);
                self.answer(Waiter::Gateway(read.token, read.request.id), body)
            }
            ReadMode::Lease => {
                if let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) {
                    lead.unleased.push(read);
                }
            }
            ReadMode::Quorum => {
                self.trace_read(now, id, &read);
                let reply = self.reply(read.request.id, body);
                self.confirm_then(now, id, read.token, reply);
            }
        }
    }

    /// Sends a reply once a quorum has confirmed, in a round begun from now on, that this node leads.
    pub(super) fn confirm_then(&mut self, now: Time, id: GroupId, token: u64, reply: Reply) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let (round, reads_max) = (group.replica.confirm_round(), self.config.limits.reads_max);
        let Some(lead) = group.lead.as_mut() else {
            return self.answer(Waiter::Gateway(token, reply.id), ReplyBody::NotLeader { hint: None });
        };
        if lead.confirming.len() >= reads_max {
            // A leader without a quorum, which the askers will give up.
            return self.answer(Waiter::Gateway(token, reply.id), ReplyBody::Failed(OpError::Overloaded));
        }
        lead.confirming.push_back((round, token, reply));
        self.step(now, id, paxos::Input::Confirm);
        self.confirmed(id);
    }

    /// Lets go what a confirmation round has covered.
    pub(super) fn confirmed(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let confirmed = group.replica.confirmed();
        let Some(lead) = group.lead.as_mut() else { return };
        while let Some((_, token, reply)) = lead.confirming.pop_front_if(|(round, ..)| *round <= confirmed) {
            self.out.replies.push((token, reply));
        }
    }

    /// A pong came: whatever waits for a lease tries again.
    pub(super) fn lease_may_be_back(&mut self, now: Time) {
        let waiting: Vec<GroupId> = self
            .groups
            .iter()
            .filter(|(_, group)| group.lead.as_ref().is_some_and(|lead| !lead.unleased.is_empty()))
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            if !self.has_lease(now, id) {
                continue;
            }
            let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) else { continue };
            for read in std::mem::take(&mut lead.unleased) {
                self.execute(now, id, read);
            }
        }
        self.sequence(now);
    }

    /// Reads that nobody waits for any more.
    pub(super) fn drop_expired(&mut self, now: Time, id: GroupId) {
        let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) else { return };
        lead.unleased.retain(|read| read.expires > now);
        for reads in lead.reads.values_mut() {
            let before = reads.len();
            reads.retain(|read| read.expires > now);
            lead.reads_waiting -= before - reads.len();
        }
        lead.reads.retain(|_, reads| !reads.is_empty());
    }

    /// Reads what is applied here, whoever leads. Where this node does, and nothing is in flight, that is
    /// complete up to whatever the sequencer is known to have handed out: a read at a revision that an
    /// idle group has not reached itself is answered by its leader.
    fn serializable(&mut self, now: Time, token: u64, request: Request) {
        let id = request.group;
        let expires = now.plus(request.patience_micros);
        match self.groups.get(&id).map(|group| &group.machine) {
            Some(Machine::Data(_)) => {
                let lead = self.groups.get(&id).and_then(|group| group.lead.as_ref());
                let idle = lead.is_some_and(|lead| lead.ready && lead.in_flight() == 0);
                let complete = idle && self.config.read_mode == ReadMode::Lease && self.has_lease(now, id);
                let known = if complete { self.known } else { Revision(0) };
                self.read_or_scan(now, id, WaitingRead { token, request, expires, known });
            }
            Some(Machine::Master(_)) | None => {
                let hint = self.hint(id);
                self.answer(Waiter::Gateway(token, request.id), ReplyBody::NotLeader { hint });
            }
        }
    }

    /// Logs a compaction in a data group, behind everything that arrived before.
    fn compact(&mut self, id: GroupId, waiter: Waiter, revision: Revision) {
        match self.ready_lead(id) {
            Ok(lead) => {
                lead.compacting = lead.compacting.max(revision);
                lead.closed = lead.closed.max(revision);
                lead.enqueue(waiter, Command::Compact { revision }, 64);
                self.busy.insert(id);
            }
            Err(refusal) => self.answer(waiter, refusal),
        }
    }

    fn map_asked(&mut self, now: Time, waiter: Waiter, have_version: u64) {
        // Only the leader knows the newest map; it answers under its lease like a read.
        if let Err(refusal) = self.ready_lead(SHARDMASTER_GROUP) {
            let body = match refusal {
                ReplyBody::NotLeader { hint } if self.map.version > have_version => {
                    ReplyBody::KnownMap { map: Box::new((*self.map).clone()), hint }
                }
                refusal => refusal,
            };
            return self.answer(waiter, body);
        }
        if self.config.read_mode == ReadMode::Lease && !self.has_lease(now, SHARDMASTER_GROUP) {
            return self.answer(waiter, ReplyBody::NotLeader { hint: None });
        }
        let body = match self.map.version {
            0 => ReplyBody::NotLeader { hint: None },
            // A higher one than ours is of the cluster that this one was restored from.
            version if version != have_version => ReplyBody::Map(Some(Box::new((*self.map).clone()))),
            _ => ReplyBody::Map(None),
        };
        match (self.config.read_mode, waiter) {
            (ReadMode::Quorum, Waiter::Gateway(token, id)) => {
                let reply = self.reply(id, body);
                self.confirm_then(now, SHARDMASTER_GROUP, token, reply);
            }
            _ => self.answer(waiter, body),
        }
    }
}

pub(super) fn read_failure(error: ReadError) -> ReplyBody {
    match error {
        ReadError::WrongShard => ReplyBody::WrongShard,
        ReadError::Compacted { floor } => ReplyBody::Failed(OpError::Compacted { floor }),
        ReadError::TooLarge => ReplyBody::Failed(OpError::TooLarge),
        ReadError::Stopped => ReplyBody::NotLeader { hint: None },
        ReadError::Malformed(what) => ReplyBody::Failed(OpError::Malformed(what)),
        // The host learns of a broken store from its own next write; the reader only refuses.
        ReadError::Store(error) => {
            tracing::error!(%error, "a read failed");
            ReplyBody::NotLeader { hint: None }
        }
    }
}
