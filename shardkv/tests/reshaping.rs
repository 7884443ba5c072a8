//! Shards are split, merged and moved between two groups, at random, while they are written, compacted, collected
//! and restarted; a third group that has the same keys in one shard for ever says what must be there.
#![allow(clippy::unwrap_used)]

mod replica;

use bytes::Bytes;
use paxos::{GroupId, StateMachine};
use replica::{Chance, Replica};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::ops::{Delete, Op, Put, Range};
use shardkv::request::{OpError, SessionTag};
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, ReadError, Reader, SessionLimits, codec, first_space};
use std::sync::Arc;

const WHOLE: ShardId = ShardId(1);
const KEYS: [&str; 10] = ["a", "c", "c\0", "g", "h", "k", "kk", "p", "t", "zz"];

fn everything() -> Bounds {
    Bounds::default()
}

fn activate(revision: Revision, (id, bounds, epoch): Piece, by: MoveId) -> Command {
    Command::Activate { revision, shard: id, bounds, epoch, by }
}

type Piece = (ShardId, Bounds, Epoch);

struct World {
    chance: Chance,
    /// Two that share the pieces, and the reference.
    groups: [Replica; 3],
    /// In key order, with the group that has each.
    pieces: Vec<(Piece, usize)>,
    last_shard: u64,
    changes: u64,
    revision: u64,
    compacted: u64,
    answered: Vec<(SessionTag, Op)>,
    sequences: [u64; 3],
}

impl World {
    fn new(seed: u64) -> World {
        let mut groups = [2, 3, 4].map(Replica::new);
        let first = (WHOLE, everything(), Epoch(1));
        for at in [0, 2] {
            groups[at].one(activate(Revision(2), first.clone(), MoveId(0)));
        }
        World {
            chance: Chance(seed),
            groups,
            pieces: vec![(first, 0)],
            last_shard: 1,
            changes: 0,
            revision: 10,
            compacted: 0,
            answered: Vec::new(),
            sequences: [0; 3],
        }
    }

    fn pick(&mut self, n: usize) -> usize {
        self.chance.below(n as u64) as usize
    }

    fn stamp(&mut self) -> Revision {
        self.revision += 1 + self.chance.below(3);
        Revision(self.revision)
    }

    fn key(&mut self) -> Bytes {
        Bytes::from_static(KEYS[self.pick(KEYS.len())].as_bytes())
    }

    fn operation(&mut self) -> Op {
        let (key, other) = (self.key(), self.key());
        match self.chance.below(8) {
            0 => Op::Delete(Delete { keys: Keys::One(key), prev_kv: true }),
            1 => Op::Delete(Delete { keys: Keys::Range { start: key, end: other }, prev_kv: true }),
            _ => {
                let value = Bytes::from("v".repeat(self.pick(60)));
                Op::Put(Put { key, value, lease: 0, prev_kv: true, ignore_value: false, ignore_lease: false })
            }
        }
    }

    /// The pieces that an operation touches, if one group has all of them.
    fn route(&self, op: &Op) -> Option<(usize, Vec<(ShardId, Epoch)>)> {
        let mut touched = Vec::new();
        op.for_each_keys(&mut |keys, _| touched.push(keys.clone()));
        op.for_each_put(&mut |put| touched.push(Keys::One(put.key.clone())));
        let (start, _) = touched[0].bounds();
        let home = self.pieces.iter().find(|((_, bounds, _), _)| bounds.contains(start))?;
        let also = self.pieces.iter().filter(|((_, bounds, _), _)| bounds.intersects(&touched[0]));
        let all: Vec<_> = std::iter::once(home).chain(also).collect();
        all.iter()
            .all(|(_, group)| *group == home.1)
            .then(|| (home.1, all.iter().map(|((id, _, epoch), _)| (*id, *epoch)).collect()))
    }

    /// A new command, or one that was answered before: it goes where its keys are by now.
    fn write(&mut self) {
        let again = self.chance.below(3) == 0 && !self.answered.is_empty();
        let (session, op) = match again {
            true => {
                let at = self.pick(self.answered.len());
                self.answered[at].clone()
            }
            false => {
                let session = self.pick(3);
                self.sequences[session] += 1;
                let sequence = self.sequences[session];
                let low_water = sequence.saturating_sub(15).max(1);
                let session = SessionTag { session: session as u128, born: Revision(5), sequence, low_water };
                (session, self.operation())
            }
        };
        let Some((group, named)) = self.route(&op) else { return };
        let revision = self.stamp();
        let command = |named: &[(ShardId, Epoch)]| {
            let ((shard, epoch), also, op) = (named[0], named[1..].to_vec(), op.clone());
            Command::Write { revision, shard, epoch, also, session, op }
        };
        let outcome = self.groups[group].one(command(&named));
        let expected = self.groups[2].one(command(&[(WHOLE, Epoch(1))]));
        // The reference has heard more of the session's marks: it has executed what went elsewhere, too.
        let expired = expected == Outcome::Failed(OpError::SessionExpired);
        assert!(outcome == expected || (again && expired), "{session:?} {op:?}: {outcome:?}, not {expected:?}");
        if !again {
            self.answered.push((session, op));
        }
    }

    fn compact(&mut self) {
        let revision = self.revision - self.chance.below(20).min(self.revision - self.compacted);
        self.compacted = revision;
        let revision = Revision(revision);
        self.groups.iter_mut().for_each(|group| drop(group.one(Command::Compact { revision })));
    }

    /// Things that change nothing for anybody.
    fn shake(&mut self) {
        let at = self.pick(3);
        match self.chance.below(6) {
            0 => self.groups[at].restart(),
            1 => self.groups[at].replace(),
            2 => self.compact(),
            3 => drop(self.groups[at].group.reader().collect(5).unwrap()),
            _ => {}
        }
    }

    fn next_change(&mut self) -> MoveId {
        self.changes += 1;
        MoveId(self.changes)
    }

    /// As a leader does: perhaps twice, and refused where the shards have gone on since.
    fn reshape(&mut self, group: usize, from: Vec<(ShardId, Epoch)>, to: Vec<Piece>) {
        let by = self.next_change();
        let command = Command::Reshape { by, from, to };
        assert_eq!(self.groups[group].one(command.clone()), Outcome::Moved);
        if self.chance.below(3) == 0 {
            self.shake();
            assert_eq!(self.groups[group].one(command), Outcome::Moved, "said twice");
        }
    }

    fn split(&mut self) {
        let (at, key) = (self.pick(self.pieces.len()), self.key());
        let ((id, bounds, epoch), group) = self.pieces[at].clone();
        if key <= bounds.start || !bounds.contains(&key) {
            return;
        }
        self.last_shard += 1;
        let left = Bounds { start: bounds.start, end: Some(key.clone()) };
        let right = Bounds { start: key, end: bounds.end };
        let to = vec![(id, left, Epoch(epoch.0 + 1)), (ShardId(self.last_shard), right, Epoch(1))];
        self.reshape(group, vec![(id, epoch)], to.clone());
        self.pieces.splice(at..=at, to.into_iter().map(|piece| (piece, group)));
    }

    fn merge(&mut self) {
        if self.pieces.len() < 2 {
            return;
        }
        let at = self.pick(self.pieces.len() - 1);
        let [((left, bounds, epoch), group), ((right, behind, other), next)] = &self.pieces[at..at + 2] else { return };
        if group != next {
            return;
        }
        let (left, right, group) = ((*left, *epoch), (*right, *other), *group);
        let whole = Bounds { start: bounds.start.clone(), end: behind.end.clone() };
        // Either of them may be the one that stays.
        let id = if self.chance.below(2) == 0 { left.0 } else { right.0 };
        let merged = (id, whole, Epoch(left.1.0.max(right.1.0) + 1));
        self.reshape(group, vec![left, right], vec![merged.clone()]);
        self.pieces.splice(at..at + 2, [(merged, group)]);
    }

    fn move_piece(&mut self) {
        let at = self.pick(self.pieces.len());
        let ((shard, bounds, epoch), from) = self.pieces[at].clone();
        let (mv, to) = (self.next_change(), 1 - from);
        assert_eq!(self.groups[to].one(Command::Arrive { shard, bounds: bounds.clone(), mv }), Outcome::Moved);
        assert_eq!(self.groups[from].one(Command::Depart { shard, epoch, mv }), Outcome::Moved);
        let late =
            Command::Reshape { by: mv, from: vec![(shard, epoch)], to: vec![(shard, bounds.clone(), Epoch(99))] };
        assert_eq!(self.groups[from].one(late), Outcome::WrongShard, "it is on its way");
        let mut frozen = false;
        while !self.groups[to].group.reader().arrivals()[0].is_complete() {
            let position = self.groups[to].group.reader().arrivals().remove(0).at;
            let bytes = 1 + self.pick(400);
            let chunk = self.groups[from].group.reader().chunk(shard, mv, &position, bytes).unwrap();
            let import = Command::Import { shard, mv, at: position, next: chunk.next, piece: chunk.piece };
            assert_eq!(self.groups[to].one(import), Outcome::Moved);
            if !frozen && chunk.caught_up {
                let revision = self.stamp();
                self.groups[from].one(Command::Freeze { revision, shard, mv });
                frozen = true;
            } else if !frozen {
                self.write();
                self.shake();
            }
        }
        let moved = (shard, bounds, Epoch(epoch.0 + 1));
        let revision = self.stamp();
        assert_eq!(self.groups[to].one(activate(revision, moved.clone(), mv)), Outcome::Activated);
        self.groups[from].one(Command::Drop { shard, epoch: moved.2 });
        self.pieces[at] = (moved, to);
    }

    fn step(&mut self) {
        match self.chance.below(12) {
            0 | 1 => self.split(),
            2 => self.merge(),
            3 => self.move_piece(),
            4 => self.shake(),
            _ => self.write(),
        }
    }

    /// The pieces together read, at every revision, what the whole shard reads.
    fn compare(&self) {
        let reference = self.groups[2].group.reader();
        let mut events = Vec::new();
        let from = Revision(self.compacted.max(1));
        let range = (from, Revision(self.revision));
        for ((id, bounds, epoch), group) in &self.pieces {
            let reader = self.groups[*group].group.reader();
            let keys = bounds.keys();
            let op = Op::Range(Range::all(keys.clone()));
            for revision in (0..=self.revision).map(Revision) {
                let expected = reference.read(&[(WHOLE, Epoch(1))], &op, revision);
                assert_eq!(reader.read(&[(*id, *epoch)], &op, revision), expected, "{id} at {revision}");
            }
            let changes = |reader: &Reader<_>, named: (ShardId, Epoch), range| {
                reader.changes(&[named], &keys, range, 10_000, true)
            };
            events.extend(changes(&reader, (*id, *epoch), range).unwrap().events);
            let floor = Err(ReadError::Compacted { floor: Revision(self.compacted) });
            let below = (from.prev(), range.1);
            assert!(self.compacted == 0 || changes(&reader, (*id, *epoch), below) == floor);
        }
        events.sort_by_key(|event| (event.revision, event.operation));
        let all = reference.changes(&[(WHOLE, Epoch(1))], &everything().keys(), range, 10_000, true);
        assert_eq!(events, all.unwrap().events);
    }
}

#[test]
fn shards_that_are_cut_anew_hold_what_they_held() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..12 {
            (0..15).for_each(|_| world.step());
            world.compare();
        }
    }
}

/// Two replicas of one group, one of which is restarted and replaced at every turn, agree.
#[test]
fn replicas_agree_whatever_they_go_through() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..150 {
            world.step();
        }
        for at in 0..2 {
            let (before, hash) = (world.groups[at].group.shards(), world.groups[at].group.hash());
            world.groups[at].restart();
            assert_eq!(world.groups[at].group.shards(), before);
            assert_eq!(world.groups[at].group.hash(), hash);
        }
        // What the session tables say must be the same, too: retries tell.
        (0..80).for_each(|_| world.write());
    }
}

/// A session was evicted where a command of its was executed, and lives where another was: of shards that become one
/// none knows the first any more, and its retry must not pass for new because of the second.
#[test]
fn what_one_shard_has_forgotten_is_not_executed_again_when_it_is_merged() {
    let store = Arc::new(MemoryStore::new());
    let limits = SessionLimits { sessions_max: 1, outcomes_per_session_max: 9 };
    let open = |boot| DataGroup::open_with(store.clone(), GroupId(2), first_space(boot), limits).unwrap();
    let mut group = open(1);
    let one = |group: &mut DataGroup<MemoryStore>, command: Command| {
        let entry = codec::encode(&Batch { commands: vec![command] });
        group.apply(&[(group.applied().next(), entry)]).unwrap().remove(0).remove(0)
    };
    let part =
        |start: &'static str, end: Option<&'static str>| Bounds { start: start.into(), end: end.map(Into::into) };
    let (left, right) = (ShardId(1), ShardId(2));
    for (at, shard, bounds) in [(2, left, part("", Some("m"))), (3, right, part("m", None))] {
        assert_eq!(one(&mut group, activate(Revision(at), (shard, bounds, Epoch(1)), MoveId(0))), Outcome::Activated);
    }
    let put = |revision, shard, epoch, key: &'static str, (session, sequence)| {
        let session = SessionTag { session, born: Revision(5), sequence, low_water: 1 };
        let (value, also) = (Bytes::from_static(b"v"), Vec::new());
        let op = Put { key: key.into(), value, lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false };
        Command::Write { revision: Revision(revision), shard, epoch: Epoch(epoch), also, session, op: Op::Put(op) }
    };
    let done = |outcome| assert!(matches!(outcome, Outcome::Done { .. }), "{outcome:?}");
    done(one(&mut group, put(10, right, 1, "x", (7, 1))));
    done(one(&mut group, put(11, right, 1, "y", (8, 1))));
    done(one(&mut group, put(12, left, 1, "a", (7, 2))));
    let expired = Outcome::Failed(OpError::SessionExpired);
    assert_eq!(one(&mut group, put(13, right, 1, "x", (7, 1))), expired, "it was evicted");
    let (from, to) = (vec![(left, Epoch(1)), (right, Epoch(1))], vec![(left, part("", None), Epoch(2))]);
    assert_eq!(one(&mut group, Command::Reshape { by: MoveId(1), from, to }), Outcome::Moved);
    assert_eq!(one(&mut group, put(14, left, 2, "x", (7, 1))), expired);
    let mut group = open(2);
    assert_eq!(one(&mut group, put(15, left, 2, "x", (7, 1))), expired, "neither after a restart");
    assert_eq!(one(&mut group, put(16, left, 2, "a", (7, 3))), expired, "nor anything else of this session");
    done(one(&mut group, put(17, left, 2, "y", (8, 2))));
}

/// Apply is total, and what would leave a gap, an overlap or a ghost is refused.
#[test]
fn cuts_that_make_no_sense_are_refused() {
    let mut world = World::new(1);
    let bounds = |start: &'static str, end: Option<&'static str>| Bounds {
        start: Bytes::from_static(start.as_bytes()),
        end: end.map(|end| Bytes::from_static(end.as_bytes())),
    };
    let by = MoveId(1);
    let from = vec![(WHOLE, Epoch(1))];
    let piece = |id, start, end, epoch| (ShardId(id), bounds(start, end), Epoch(epoch));
    let senseless: [Vec<Piece>; 8] = [
        vec![],
        vec![piece(1, "", Some("m"), 2)],
        vec![piece(1, "", Some("m"), 2), piece(2, "n", None, 1)],
        vec![piece(1, "", Some("m"), 2), piece(2, "k", None, 1)],
        vec![piece(1, "", Some("m"), 1), piece(2, "m", None, 1)],
        vec![piece(1, "", Some("m"), 2), piece(1, "m", None, 2)],
        vec![piece(1, "", Some(""), 2), piece(2, "", None, 1)],
        vec![piece(1, "", Some("m"), 2), piece(2, "m", Some("m"), 1), piece(3, "m", None, 1)],
    ];
    for to in senseless {
        let outcome = world.groups[0].one(Command::Reshape { by, from: from.clone(), to: to.clone() });
        assert!(matches!(outcome, Outcome::Failed(OpError::Malformed(_))), "{to:?}: {outcome:?}");
    }
    let to = vec![piece(1, "", Some("m"), 2), piece(2, "m", None, 1)];
    let split = Command::Reshape { by, from: from.clone(), to };
    assert_eq!(
        world.groups[0].one(Command::Reshape { by, from: vec![], to: vec![] }),
        Outcome::Failed(OpError::Malformed("it has no shards".into()))
    );
    assert_eq!(world.groups[0].one(split.clone()), Outcome::Moved);
    let merge = Command::Reshape {
        by: MoveId(2),
        from: vec![(WHOLE, Epoch(2)), (ShardId(2), Epoch(1))],
        to: vec![piece(1, "", None, 3)],
    };
    assert_eq!(world.groups[0].one(merge), Outcome::Moved);
    assert_eq!(world.groups[0].one(split), Outcome::WrongShard, "from an old map");
    let ghost = activate(Revision(50), (ShardId(2), bounds("m", None), Epoch(1)), MoveId(0));
    assert_eq!(world.groups[0].one(ghost), Outcome::WrongShard);
}

/// Little is walked through, much is measured by storage.
#[test]
fn the_middle_has_half_of_the_bytes_before_it() {
    for size in [100, 60_000] {
        let mut world = World::new(1);
        for number in 0..100u64 {
            let (key, value) = (Bytes::from(format!("key{number:03}")), Bytes::from(vec![b'v'; size]));
            let op = Op::Put(Put { key, value, lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false });
            let session = SessionTag { session: 1, born: Revision(5), sequence: number + 1, low_water: number + 1 };
            let (revision, also) = (world.stamp(), Vec::new());
            world.groups[0].one(Command::Write { revision, shard: WHOLE, epoch: Epoch(1), also, session, op });
        }
        let reader = world.groups[0].group.reader();
        let middle = reader.middle(WHOLE, Epoch(1)).unwrap().unwrap();
        assert!(middle > "key047" && middle < "key053", "{middle:?} with values of {size} bytes");
        assert_eq!(reader.middle(WHOLE, Epoch(2)), Err(ReadError::WrongShard));
        let stored = reader.stored_bytes(WHOLE);
        assert!(stored > 100 * size as u64 && stored < 110 * (size as u64 + 100), "{stored} bytes");
    }
    assert_eq!(World::new(1).groups[0].group.reader().middle(WHOLE, Epoch(1)), Ok(None), "there is nothing");
}
