//! The stream of changes, as a later watch will read it: followers that go on from where they were on whichever replica
//! they find, and at the end the whole log. The checkers hold both against what clients know.

use crate::world::{Event, Phase, World};
use checkers::{Change, ChangeLog, Key, Revision, Value, WatchAnswer, WatchLog};
use node::core::Machine;
use paxos::{GroupId, NodeId};
use shardkv::types::Keys;
use shardkv::{MemoryStore, OwnedShard, ReadError, Reader};
use std::collections::BTreeMap;

/// The longest pause between two looks.
const PAUSE_MICROS_MAX: u64 = 400_000;
/// Changes that one look asks for at most; few, so that streams are cut everywhere.
const BUDGET_MAX: u64 = 6;

/// Who follows each key.
#[derive(Debug, Default)]
pub struct Followers {
    /// What each key's follower has got so far.
    present: BTreeMap<Key, WatchLog>,
    /// Followers that ended because what they lacked was compacted.
    ended: Vec<WatchLog>,
}

impl Followers {
    /// All logs, for the checkers.
    pub(crate) fn take(&mut self) -> Vec<WatchLog> {
        let mut logs = std::mem::take(&mut self.ended);
        logs.extend(std::mem::take(&mut self.present).into_values());
        logs
    }

    /// The key's follower; a new one begins with the first revision that there is still.
    fn of(&mut self, key: &Key, floor: Revision) -> &mut WatchLog {
        let log = self.present.entry(key.clone()).or_insert_with(|| begin(key, floor));
        if next(log) < floor {
            self.ended.push(std::mem::replace(log, begin(key, floor)));
        }
        log
    }
}

fn begin(key: &Key, from: Revision) -> WatchLog {
    let end = Key::new([&key.0[..], &[0]].concat());
    WatchLog { start: key.clone(), end, from, answers: Vec::new() }
}

/// The first revision that a follower has not got.
fn next(log: &WatchLog) -> Revision {
    log.answers.last().map_or(log.from, |answer| Revision(answer.header.0 + 1))
}

fn inner(revision: Revision) -> shardkv::types::Revision {
    shardkv::types::Revision(revision.0)
}

fn change(event: shardkv::Event) -> Change {
    let value = event.kv.map(|kv| Value(kv.value));
    Change { revision: Revision(event.revision.0), key: Key(event.key), value }
}

impl World {
    /// Followers look at some replica of some group, a leader's or not, behind the others or not.
    pub(crate) fn follow(&mut self) -> Result<(), String> {
        if self.phase == Phase::Over {
            return Ok(());
        }
        let pause = self.random.skewed(1_000, PAUSE_MICROS_MAX);
        self.schedule(pause, Event::Follow);
        let hosted: Vec<(NodeId, GroupId, Reader<MemoryStore>)> = self.data_replicas();
        let Some((node, group, reader)) = self.random.pick(&hosted).cloned() else { return Ok(()) };
        for shard in reader.shards() {
            self.follow_shard(&reader, &shard)
                .map_err(|error| format!("{node} cannot tell changes of {group}: {error}"))?;
        }
        Ok(())
    }

    fn data_replicas(&self) -> Vec<(NodeId, GroupId, Reader<MemoryStore>)> {
        let mut found = Vec::new();
        for (node, site) in &self.sites {
            let Some(process) = site.process.as_ref().filter(|_| site.paused_until <= self.now) else { continue };
            let machines =
                process.machines.hosted().filter_map(|group| Some((group, process.machines.machine(group)?)));
            found.extend(machines.filter_map(|(group, machine)| match machine {
                Machine::Data(reader) => Some((*node, group, reader)),
                Machine::Master(_) => None,
            }));
        }
        found
    }

    /// Whether there was anything to get.
    fn follow_shard(&mut self, reader: &Reader<MemoryStore>, shard: &OwnedShard) -> Result<bool, ReadError> {
        let mut news = false;
        let named = [(shard.id, shard.epoch)];
        // What is applied is decided: nothing comes below it any more.
        let (upto, floor) = (reader.newest(&named), Revision(reader.floor(&named).0));
        let keys: Vec<Key> = self.plan.keys.iter().filter(|key| shard.bounds.contains(key)).cloned().map(Key).collect();
        for key in keys {
            let log = self.followers.of(&key, floor);
            let from = inner(next(log));
            if from > upto {
                continue;
            }
            let budget = usize::try_from(self.random.between(1, BUDGET_MAX)).unwrap_or(1);
            let found = reader.changes(&named, &Keys::One(key.0.clone()), (from, upto), budget, false)?;
            let changes: Vec<Change> = found.events.into_iter().map(change).collect();
            self.coverage.add("stream.changes", changes.len() as u64);
            // All of a revision is told at once, and nothing below `next` is missing.
            log.answers.extend(
                changes
                    .chunk_by(|a, b| a.revision == b.revision)
                    .map(|changes| WatchAnswer { header: changes[0].revision, changes: changes.to_vec() }),
            );
            let header = Revision(found.next.0 - 1);
            log.answers.push(WatchAnswer { header, changes: Vec::new() });
            news = true;
        }
        Ok(news)
    }

    /// One member's reader for each group. A learner may lag behind, the members do not any more.
    fn readers_of_members(&self) -> BTreeMap<GroupId, Reader<MemoryStore>> {
        let groups = self.groups();
        let mut replicas = self.data_replicas();
        replicas.retain(|(node, group, _)| {
            groups.contains(group) && self.newest_configuration(*group).members.contains(node)
        });
        replicas.into_iter().map(|(_, group, reader)| (group, reader)).collect()
    }

    /// Every follower gets what it has not got yet.
    pub(crate) fn follow_to_the_end(&mut self) -> Result<(), String> {
        for (group, reader) in self.readers_of_members() {
            for shard in reader.shards() {
                while self.follow_shard(&reader, &shard).map_err(|error| format!("{group}, at the end: {error}"))? {}
            }
        }
        Ok(())
    }

    /// All changes that history still has, by the revision index of one replica of each group.
    pub(crate) fn change_log(&self) -> Result<ChangeLog, String> {
        let readers = self.readers_of_members();
        let owned: Vec<(&GroupId, &Reader<MemoryStore>, OwnedShard)> = readers
            .iter()
            .flat_map(|(group, it)| it.shards().into_iter().map(move |shard| (group, it, shard)))
            .collect();
        let from = owned.iter().map(|(_, _, shard)| shard.floor).max().unwrap_or_default();
        let mut log = ChangeLog { from: Revision(from.0), changes: Vec::new() };
        for (group, reader, shard) in &owned {
            let named = [(shard.id, shard.epoch)];
            let upto = reader.newest(&named);
            let found =
                reader.changes(&named, &Keys::From(bytes::Bytes::new()), (from, upto), usize::MAX / 1024, false);
            let found =
                found.map_err(|error| format!("the changes of {} in {group} cannot be read: {error}", shard.id))?;
            log.changes.extend(found.events.into_iter().map(change));
        }
        log.changes.sort_by(|a, b| (a.revision, &a.key).cmp(&(b.revision, &b.key)));
        Ok(log)
    }
}
