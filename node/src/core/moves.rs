//! Moves of shards (design §7), as the leaders of the two groups carry them out. Nothing here must be
//! remembered: whoever leads reads from its group's state how far a move has come, and from the map what is
//! wanted, and does the next step.
//!
//! - The leader of the group that gets a shard (D) fetches it piece by piece from the leader of the group that
//!   has it (S), and logs each piece. When little is left it asks for the rest: then S freezes the shard.
//! - It tells the shardmaster when all of it has arrived, and activates it once the map says so.
//! - The leader of S drops a shard that the map gives to another group, and lets one stay whose move is over
//!   without that. Only the shardmaster's word ends a freeze: a map that has never heard of a move says nothing
//!   of it.
//!
//! A freeze holds up reads like a write to all keys (see [`super::lead::Lead::enqueue`]): a follower may have
//! applied it, and D have begun to serve, before this leader has.

use super::lead::{Lead, Waiter};
use super::progress::Pace;
use super::scans::ScanWork;
use super::{Core, Machine};
use crate::wire::{Fetch, NodeMessage};
use paxos::flaw::{self, Flaw};
use paxos::{GroupId, NodeId, Time};
use shardkv::OwnedShard;
use shardkv::command::Command;
use shardkv::map::{MoveInfo, ReshapeInfo, SHARDMASTER_GROUP, ShardInfo, ShardMap};
use shardkv::moving::{Chunk, Incoming, Position};
use shardkv::store::Store;
use shardkv::types::{Epoch, MoveId, Revision, ShardId};
use shardmaster::MasterCommand;
use std::collections::{BTreeMap, BTreeSet};

/// A fetch that nobody answered is made anew after this.
const FETCH_TIMEOUT_MICROS: u64 = 500_000;
/// A piece that waits for so long to be read is not wanted any more.
const COPY_LIMIT_MICROS: u64 = 10_000_000;
/// The shardmaster is told again after this.
const TELL_AGAIN_MICROS: u64 = 200_000;
/// So little is left that the rest may be fetched from a frozen shard.
const REST_BYTES: usize = 64 << 10;
/// For each moment that a piece takes, the copying pauses for so many.
const COPYING_SHARE: u64 = 3;
/// Every so many pieces of changes it is looked at whether less is left than before.
const PIECES_PER_LOOK: u32 = 16;
/// If it would take more than so many looks until nothing is left, the shard is written about as fast as it is copied, and
/// the copying pauses for one moment less.
const LOOKS_MAX: u64 = 32;
/// No pause is longer.
const PAUSE_MICROS_MAX: u64 = 250_000;
/// Rounds of changes after which the rest is fetched, however much: a shard may be written as fast as it is
/// copied.
const ROUNDS_MAX: u32 = 8;

/// A fetch on its way, or the next one to come.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    /// Until when an answer is waited for.
    waits_until: Option<Time>,
    /// When the piece that was logged last was asked for.
    asked_at: Option<Time>,
    /// Pieces of changes, what was left when they were last looked at, and how many moments less to pause for that.
    pieces: u32,
    left: u64,
    hurry: u64,
    /// The rate allows the next one from here on.
    not_before: Time,
    /// Chunks that had all there was.
    rounds: u32,
    /// The next one asks for the rest.
    finish: bool,
    /// How much of the keys has been copied, in thousandths.
    pub(super) copied: u32,
    /// How fast it comes.
    pub(super) pace: Pace,
}

/// Moves that the leaders on this node take part in.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// At D.
    pub(super) fetching: BTreeMap<(GroupId, MoveId), Fetching>,
    /// At S: pieces that are being read; one at a time for each move.
    copying: BTreeSet<(GroupId, MoveId)>,
    /// At S: the newest fetch of each move, who asked, and until when it is worth answering.
    asked: BTreeMap<(GroupId, MoveId), (NodeId, Fetch, Time)>,
    /// When the shardmaster was told of a change, by the group that has made it.
    told: BTreeMap<(GroupId, MoveId), Time>,
}

/// What a leader does next about a shard.
enum Step {
    Log(Command, usize),
    Fetch(MoveInfo, Incoming),
    /// The shardmaster, which waits for it.
    Tell(MoveId, NodeMessage),
}

impl<S: Store> Core<S> {
    /// Takes the next steps of the moves that a group led here takes part in.
    pub(super) fn carry_moves(&mut self, now: Time, id: GroupId) {
        let map = self.map.clone();
        let Some(group) = self.groups.get(&id) else { return };
        let (Machine::Data(reader), Some(lead)) = (&group.machine, group.lead.as_ref()) else { return };
        if !lead.ready || lead.is_draining() {
            return;
        }
        let moves = map.moves.iter().any(|planned| [planned.from, planned.to].contains(&id));
        if !moves && !reader.is_moving() && !map.reshapes.iter().any(|planned| planned.group == id) {
            return;
        }
        let (owned, arrivals) = (reader.shards(), reader.arrivals());
        let busy = |shard: ShardId| lead.steps.get(&shard).is_some_and(|last| lead.done < *last);
        let uncut: BTreeSet<(GroupId, ShardId, Epoch)> =
            map.uncut().map(|shard| (shard.group, shard.id, shard.epoch)).collect();
        let stays = |shard: &OwnedShard| uncut.contains(&(id, shard.id, shard.epoch));
        let free = owned.iter().filter(|shard| !busy(shard.id));
        let leaving = free.filter_map(|shard| leave(&map, id, shard, stays(shard)));
        let coming = map.moves.iter().filter(|planned| planned.to == id && !busy(planned.shard));
        let coming = coming.filter_map(|planned| come(&map, planned, &owned, &arrivals));
        let over = arrivals.iter().filter(|it| !busy(it.id) && is_off(&map, id, it));
        let over = over.map(|it| (it.id, Step::Log(Command::Discard { shard: it.id, mv: it.mv }, 64)));
        let cut = map.reshapes.iter().filter(|it| it.group == id && !it.from.iter().any(|shard| busy(shard.id)));
        let cut = cut.filter_map(|planned| cut_anew(planned, &owned));
        let steps: Vec<(ShardId, Step)> = leaving.chain(over).chain(coming).chain(cut).collect();
        for (shard, step) in steps {
            match step {
                Step::Log(command, bytes) => self.log_step(id, shard, command, bytes),
                Step::Fetch(planned, incoming) => self.fetch(now, &planned, &incoming),
                Step::Tell(change, message) => self.tell_change(now, id, change, message),
            }
        }
        self.serve_fetches(now, id);
    }

    fn log_step(&mut self, id: GroupId, shard: ShardId, command: Command, bytes: usize) {
        if let Some(lead) = self.groups.get_mut(&id).and_then(|group| group.lead.as_mut()) {
            lead.enqueue(Waiter::Nobody, command, bytes);
            lead.steps.retain(|_, last| *last > lead.done);
            lead.steps.insert(shard, lead.arrived);
            self.busy.insert(id);
        }
    }

    /// At D: asks S's leader for the next piece, as far as the rate allows.
    fn fetch(&mut self, now: Time, planned: &MoveInfo, incoming: &Incoming) {
        self.give_way(now, planned, incoming);
        let crowded = self.no_space || self.overloaded(planned.to, self.config.limits.move_chunk_bytes);
        let leader = self.leader_of(planned.from);
        let fetching = self.moving.fetching.entry((planned.to, planned.id)).or_default();
        fetching.pace.begin(now);
        let waits = fetching.waits_until.is_some_and(|until| now < until) || now < fetching.not_before;
        let Some(leader) = leader.filter(|_| !waits && !crowded) else { return };
        if fetching.waits_until.is_some() {
            let (group, shard) = (planned.to, planned.shard);
            tracing::debug!(%group, %shard, finish = fetching.finish, "a piece has not come, and is asked for again");
        }
        fetching.waits_until = Some(now.plus(FETCH_TIMEOUT_MICROS));
        fetching.asked_at = Some(now);
        let (at, finish) = (incoming.at.clone(), fetching.finish);
        let fetch = Fetch { group: planned.from, shard: planned.shard, mv: planned.id, at, finish, to: planned.to };
        match leader == self.config.me {
            true => self.fetch_asked(now, leader, fetch),
            false => self.out.send.push((leader, NodeMessage::Fetch(Box::new(fetch)))),
        }
    }

    /// At D: copying takes a share of the time, not all of it, so that clients get theirs. The more there is to do for
    /// them, the longer a piece takes, and the pause behind it.
    fn give_way(&mut self, now: Time, planned: &MoveInfo, incoming: &Incoming) {
        let Some(fetching) = self.moving.fetching.get_mut(&(planned.to, planned.id)) else { return };
        if fetching.waits_until.is_some() {
            return;
        }
        let Some(asked_at) = fetching.asked_at.take() else { return };
        let share = match incoming.at {
            _ if fetching.finish => 0,
            Position::Versions { .. } => COPYING_SHARE,
            Position::Changes { .. } => COPYING_SHARE.saturating_sub(fetching.hurry),
            Position::Sessions { .. } | Position::End => 0,
        };
        let pause = (now.since(asked_at) * share).min(PAUSE_MICROS_MAX);
        fetching.not_before = fetching.not_before.max(now.plus(pause));
    }

    /// At S: D's leader wants a piece.
    pub(super) fn fetch_asked(&mut self, now: Time, from: NodeId, fetch: Fetch) {
        let id = fetch.group;
        if self.ready_lead(id).is_ok() && self.map.move_of(fetch.mv).is_some_and(|planned| planned.from == id) {
            self.moving.asked.insert((id, fetch.mv), (from, fetch, now.plus(FETCH_TIMEOUT_MICROS)));
            self.busy.insert(id);
        }
    }

    /// At S: reads what was asked for, once the shard is where it must be for that.
    fn serve_fetches(&mut self, now: Time, id: GroupId) {
        let mine = |key: &&(GroupId, MoveId)| key.0 == id;
        let asked: Vec<(GroupId, MoveId)> = self.moving.asked.keys().filter(mine).copied().collect();
        for key in asked {
            let Some((from, fetch, until)) = self.moving.asked.get(&key).cloned() else { continue };
            let Some(Machine::Data(reader)) = self.groups.get(&id).map(|group| &group.machine) else { return };
            let out = reader.shards().into_iter().find(|shard| shard.id == fetch.shard).and_then(|shard| shard.out);
            let out = out.filter(|out| out.mv == fetch.mv);
            if now >= until || self.map.move_of(fetch.mv).is_none() {
                self.moving.asked.remove(&key);
                continue;
            }
            match out {
                // It is about to be.
                None => {}
                Some(out) if fetch.finish && out.frozen.is_none() => {
                    let lead = self.groups.get(&id).and_then(|group| group.lead.as_ref());
                    let busy = |lead: &Lead| lead.steps.get(&fetch.shard).is_some_and(|last| lead.done < *last);
                    if lead.is_some_and(|lead| !busy(lead)) {
                        tracing::info!(group = %id, shard = %fetch.shard, "a shard that moves is frozen until the rest is over");
                        let freeze = Command::Freeze { revision: Revision(0), shard: fetch.shard, mv: fetch.mv };
                        self.log_step(id, fetch.shard, freeze, 64);
                    }
                }
                Some(_) if self.moving.copying.contains(&key) => {}
                Some(_) => {
                    self.moving.asked.remove(&key);
                    self.moving.copying.insert(key);
                    let until = now.plus(COPY_LIMIT_MICROS);
                    let bytes_max = self.config.limits.move_chunk_bytes;
                    let work = ScanWork::Copy { shard: fetch.shard, mv: fetch.mv, at: fetch.at.clone(), bytes_max };
                    self.begin_copy(id, from, fetch.to, work, until);
                }
            }
        }
    }

    /// At S: a piece was read, or could not be.
    pub(super) fn copy_ended(&mut self, id: GroupId, mv: MoveId) {
        self.moving.copying.remove(&(id, mv));
        self.busy.insert(id);
    }

    /// At S: a piece was read.
    pub(super) fn copied(&mut self, now: Time, to: NodeId, group: GroupId, shard: ShardId, mv: MoveId, chunk: Chunk) {
        match to == self.config.me {
            true => self.fetched(now, group, shard, mv, chunk),
            false => self.out.send.push((to, NodeMessage::Fetched { group, shard, mv, chunk: Box::new(chunk) })),
        }
    }

    /// At D: a piece has come. If it is the next one, it is logged.
    pub(super) fn fetched(&mut self, now: Time, id: GroupId, shard: ShardId, mv: MoveId, chunk: Chunk) {
        if self.ready_lead(id).is_err() {
            return;
        }
        let Some(group) = self.groups.get(&id) else { return };
        let (Machine::Data(reader), Some(lead)) = (&group.machine, group.lead.as_ref()) else { return };
        let due = reader.arrivals().iter().any(|it| it.id == shard && it.mv == mv && it.at == chunk.at);
        let busy = lead.steps.get(&shard).is_some_and(|last| lead.done < *last);
        let Some(fetching) = self.moving.fetching.get_mut(&(id, mv)).filter(|_| due && !busy) else { return };
        fetching.waits_until = None;
        let bytes = chunk.piece.len();
        let rate = self.config.limits.move_bytes_per_second.max(1);
        fetching.copied = chunk.copied;
        fetching.pace.came(now, bytes);
        fetching.rounds += u32::from(chunk.caught_up);
        fetching.finish |= chunk.caught_up && (bytes <= REST_BYTES || fetching.rounds >= ROUNDS_MAX);
        if matches!(chunk.at, Position::Changes { .. }) {
            if fetching.pieces.is_multiple_of(PIECES_PER_LOOK) {
                let shrinks = fetching.pieces == 0 || chunk.behind < fetching.left - fetching.left / LOOKS_MAX;
                fetching.hurry += u64::from(!shrinks);
                fetching.left = chunk.behind;
            }
            fetching.pieces += 1;
        }
        // Changes are not held up for long: they must come faster than new ones are made.
        fetching.not_before = match chunk.next {
            Position::Versions { .. } => now.plus(bytes as u64 * 1_000_000 / rate),
            _ => now,
        };
        let Chunk { at, next, piece, .. } = chunk;
        if at != next {
            self.log_step(id, shard, Command::Import { shard, mv, at, next, piece }, bytes + 64);
        }
        self.busy.insert(id);
    }

    /// All of a shard is here, or shards were cut anew: the shardmaster is told until its map says that it knows.
    fn tell_change(&mut self, now: Time, id: GroupId, change: MoveId, message: NodeMessage) {
        let told = self.moving.told.get(&(id, change));
        if told.is_some_and(|at| now.since(*at) < TELL_AGAIN_MICROS) {
            return;
        }
        let is_new = told.is_none();
        let Some(leader) = self.leader_of(SHARDMASTER_GROUP) else { return };
        if is_new {
            tracing::info!(group = %id, ?message, "the shardmaster is told");
        }
        self.moving.told.insert((id, change), now);
        match message {
            NodeMessage::Arrived { mv } if leader == self.config.me => self.shard_arrived(now, mv),
            NodeMessage::Reshaped { by } if leader == self.config.me => self.shards_reshaped(now, by),
            message => self.out.send.push((leader, message)),
        }
    }

    /// At the shardmaster: a group has all of a shard.
    pub(super) fn shard_arrived(&mut self, now: Time, mv: MoveId) {
        if self.map.move_of(mv).is_some() {
            self.note_master(now, &MasterCommand::Arrived { mv });
        }
    }

    /// At the shardmaster: a group has split or merged its shards.
    pub(super) fn shards_reshaped(&mut self, now: Time, by: MoveId) {
        if self.map.reshapes.iter().any(|planned| planned.id == by) {
            self.note_master(now, &MasterCommand::Reshaped { by });
        }
    }

    /// When the rate allows the next piece.
    pub(super) fn next_fetch(&self) -> Option<Time> {
        let waiting = self.moving.fetching.values().filter(|it| it.waits_until.is_none() && it.not_before.0 > 0);
        waiting.map(|it| it.not_before).min()
    }

    /// Wakes the groups whose next piece may be fetched, and forgets moves that are over.
    pub(super) fn wake_fetches(&mut self, now: Time) {
        let map = self.map.clone();
        self.moving.fetching.retain(|(_, mv), _| !map.is_over(*mv));
        self.moving.asked.retain(|(_, mv), _| !map.is_over(*mv));
        let waits = |by| !map.is_over(by) || map.reshapes.iter().any(|planned| planned.id == by);
        self.moving.told.retain(|(_, change), _| waits(*change));
        for ((id, _), fetching) in &mut self.moving.fetching {
            if fetching.waits_until.is_none() && fetching.not_before.0 > 0 && fetching.not_before <= now {
                fetching.not_before = Time(0);
                self.busy.insert(*id);
            }
        }
    }
}

/// What S does next about a shard that it has; `stays` if the map, too, says that it has it, at this epoch.
fn leave(map: &ShardMap, id: GroupId, shard: &OwnedShard, stays: bool) -> Option<(ShardId, Step)> {
    let log = |command| Some((shard.id, Step::Log(command, 64)));
    if !stays {
        return match map.shard(shard.id) {
            Some(known) if known.epoch > shard.epoch && known.group != id => {
                log(Command::Drop { shard: shard.id, epoch: known.epoch })
            }
            // It went to another group and was merged there. (One that the map has not heard of may be new.)
            None if shard.id <= map.last_shard => log(Command::Drop { shard: shard.id, epoch: Epoch(u64::MAX) }),
            Some(_) | None => None,
        };
    }
    let out = shard.out.as_ref().map(|out| out.mv);
    if let Some(mv) = out.filter(|mv| map.is_over(*mv)) {
        return log(Command::Stay { shard: shard.id, mv });
    }
    let planned = map.moves.iter().find(|planned| planned.shard == shard.id && planned.from == id)?;
    match out.is_none_or(|mv| mv < planned.id) && planned.id > shard.stayed {
        true => log(Command::Depart { shard: shard.id, epoch: planned.epoch, mv: planned.id }),
        false => None,
    }
}

/// What D does next about a shard that it is to get.
fn come(map: &ShardMap, planned: &MoveInfo, owned: &[OwnedShard], arrivals: &[Incoming]) -> Option<(ShardId, Step)> {
    let shard = planned.shard;
    if owned.iter().any(|owned| owned.id == shard) {
        return None; // of an earlier time; it will be dropped
    }
    let step = match arrivals.iter().find(|it| it.id == shard) {
        Some(it) if it.mv > planned.id => return None,
        Some(it) if it.mv == planned.id && it.is_complete() => {
            Step::Tell(planned.id, NodeMessage::Arrived { mv: planned.id })
        }
        Some(it) if it.mv == planned.id => Step::Fetch(planned.clone(), it.clone()),
        Some(_) | None => {
            let bounds = map.shard(shard)?.bounds.clone();
            Step::Log(Command::Arrive { shard, bounds, mv: planned.id }, 256)
        }
    };
    Some((shard, step))
}

/// Whether a move to D was called off.
fn is_off(map: &ShardMap, id: GroupId, incoming: &Incoming) -> bool {
    let ours = |shard: &ShardInfo| shard.id == incoming.id && shard.group == id && shard.by == incoming.mv;
    if flaw::is(Flaw::DiscardWhatIsCut) {
        return map.is_over(incoming.mv) && !map.shards.iter().any(ours);
    }
    map.is_over(incoming.mv) && !map.uncut().any(ours)
}

/// What the owner of shards does next that are to be cut anew.
fn cut_anew(planned: &ReshapeInfo, owned: &[OwnedShard]) -> Option<(ShardId, Step)> {
    let ReshapeInfo { id, from, to, .. } = planned;
    let has = |shard: &ShardInfo| owned.iter().any(|it| (it.id, it.epoch) == (shard.id, shard.epoch));
    let first = from.first()?.id;
    if to.iter().all(has) {
        return Some((first, Step::Tell(*id, NodeMessage::Reshaped { by: *id })));
    }
    // Not before they are all here, and stay.
    let ready =
        |shard: &ShardInfo| owned.iter().any(|it| (it.id, it.epoch) == (shard.id, shard.epoch) && it.out.is_none());
    from.iter().all(ready).then(|| {
        let bytes = to.iter().map(|shard| shard.bounds.start.len() + 128).sum();
        let from = from.iter().map(|shard| (shard.id, shard.epoch)).collect();
        let to = to.iter().map(|shard| (shard.id, shard.bounds.clone(), shard.epoch)).collect();
        (first, Step::Log(Command::Reshape { by: *id, from, to }, bytes))
    })
}
