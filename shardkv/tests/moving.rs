//! A shard moves to and fro between two groups, by random steps, while it is written, compacted, collected and
//! restarted; a third group that has the same shard and never moves it says what must be there.
#![allow(clippy::unwrap_used)]

mod replica;

use bytes::Bytes;
use paxos::{Slot, StateMachine};
use replica::{Chance, Replica};
use shardkv::command::{Command, Outcome};
use shardkv::ops::{Delete, Op, Put, Range};
use shardkv::request::SessionTag;
use shardkv::types::{Bounds, Epoch, Keys, MoveId, Revision, ShardId};
use shardkv::{MemoryStore, ReadError};

const SHARD: ShardId = ShardId(2);
/// Shares the space of the first group with the one that moves.
const NEIGHBOUR: ShardId = ShardId(1);
const ACTIVATED: u64 = 2;

fn bounds() -> Bounds {
    Bounds { start: "h".into(), end: Some("p".into()) }
}

fn epoch_of(replica: &Replica) -> Option<Epoch> {
    replica.group.shards().iter().find(|shard| shard.id == SHARD).map(|shard| shard.epoch)
}

struct World {
    chance: Chance,
    /// The two that have it in turn, and the one that always has it.
    groups: [Replica; 3],
    owner: usize,
    epoch: Epoch,
    moves: u64,
    revision: u64,
    compacted: u64,
    /// Commands that were answered, with their answers.
    answered: Vec<(SessionTag, Op, Outcome)>,
    sequences: [u64; 2],
}

impl World {
    fn new(seed: u64) -> World {
        let mut groups = [2, 3, 4].map(Replica::new);
        let activate = |revision, shard, bounds| Command::Activate {
            revision: Revision(revision),
            shard,
            bounds,
            epoch: Epoch(1),
            by: MoveId(0),
        };
        for at in [0, 2] {
            let below = Bounds { start: Bytes::new(), end: Some("h".into()) };
            groups[at].apply(vec![activate(ACTIVATED, SHARD, bounds()), activate(ACTIVATED + 1, NEIGHBOUR, below)]);
        }
        World {
            chance: Chance(seed),
            groups,
            owner: 0,
            epoch: Epoch(1),
            moves: 0,
            revision: 10,
            compacted: 0,
            answered: Vec::new(),
            sequences: [0; 2],
        }
    }

    fn stamp(&mut self) -> Revision {
        self.revision += 1 + self.chance.below(3);
        Revision(self.revision)
    }

    fn key(&mut self) -> Bytes {
        let keys = ["h", "h\0", "i", "ia", "k", "k\u{1}", "o", "oz"];
        Bytes::from_static(keys[self.chance.below(keys.len() as u64) as usize].as_bytes())
    }

    fn operation(&mut self) -> Op {
        let (key, other) = (self.key(), self.key());
        match self.chance.below(8) {
            0 => Op::Delete(Delete { keys: Keys::One(key), prev_kv: true }),
            1 => Op::Delete(Delete { keys: Keys::Range { start: key, end: other }, prev_kv: true }),
            _ => {
                let value = Bytes::from("v".repeat(self.chance.below(60) as usize));
                Op::Put(Put { key, value, lease: 0, prev_kv: true, ignore_value: false, ignore_lease: false })
            }
        }
    }

    /// A new command, or one that was answered before, of the moving shard.
    fn write(&mut self) {
        let revision = self.stamp();
        let again = self.chance.below(4) == 0 && !self.answered.is_empty();
        let at = self.chance.below(self.answered.len().max(1) as u64) as usize;
        let (session, op) = match again {
            true => (self.answered[at].0, self.answered[at].1.clone()),
            false => {
                let session = self.chance.below(2) as usize;
                self.sequences[session] += 1;
                let sequence = self.sequences[session];
                let low_water = sequence.saturating_sub(12);
                let session = SessionTag { session: session as u128, born: Revision(5), sequence, low_water };
                (session, self.operation())
            }
        };
        let command = |epoch| {
            let (also, op) = (Vec::new(), op.clone());
            Command::Write { revision, shard: SHARD, epoch, also, session, op }
        };
        let outcome = self.groups[self.owner].one(command(self.epoch));
        let expected = self.groups[2].one(command(Epoch(1)));
        assert_eq!(outcome, expected, "{session:?} {op:?}");
        if !again {
            self.answered.push((session, op, outcome));
        }
    }

    fn neighbour(&mut self) {
        let (revision, value) = (self.stamp(), Bytes::from("n"));
        let session = SessionTag { session: 9, born: Revision(5), sequence: revision.0, low_water: revision.0 };
        let key = Bytes::from(format!("a{}", self.chance.below(3)));
        let op = Op::Put(Put { key, value, lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false });
        for at in [0, 2] {
            let op = op.clone();
            let epoch = Epoch(1);
            let command = Command::Write { revision, shard: NEIGHBOUR, epoch, also: Vec::new(), session, op };
            assert!(matches!(self.groups[at].one(command), Outcome::Done { .. }));
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
        let at = self.chance.below(3) as usize;
        match self.chance.below(8) {
            0 => self.groups[at].restart(),
            1 => self.groups[at].replace(),
            2 => self.compact(),
            3 | 4 => drop(self.groups[at].group.reader().collect(5).unwrap()),
            5 => self.neighbour(),
            _ => {}
        }
    }

    fn some_writes(&mut self) {
        for _ in 0..self.chance.below(6) {
            self.write();
        }
        self.shake();
    }

    fn next_chunk(&mut self, mv: MoveId) -> bool {
        let (from, to) = (self.owner, 1 - self.owner);
        let at = self.groups[to].group.reader().arrivals().remove(0).at;
        let bytes = 1 + self.chance.below(300) as usize;
        let chunk = self.groups[from].group.reader().chunk(SHARD, mv, &at, bytes).unwrap();
        let import = Command::Import { shard: SHARD, mv, at, next: chunk.next, piece: chunk.piece };
        assert_eq!(self.groups[to].one(import.clone()), Outcome::Moved);
        if self.chance.below(4) == 0 && !self.groups[to].group.reader().arrivals()[0].is_complete() {
            let stale = self.groups[to].one(import.clone());
            let repeats = matches!(&import, Command::Import { at, next, .. } if at == next);
            assert!(repeats || stale == Outcome::WrongShard, "a piece that came twice: {stale:?}");
        }
        chunk.caught_up
    }

    /// Moves the shard, or begins to and calls it off.
    fn move_shard(&mut self) {
        self.moves += 1;
        let (mv, from, to) = (MoveId(self.moves), self.owner, 1 - self.owner);
        let (shard, epoch) = (SHARD, self.epoch);
        let given_up = (self.chance.below(3) == 0).then(|| self.chance.below(12));
        assert_eq!(self.groups[to].one(Command::Arrive { shard, bounds: bounds(), mv }), Outcome::Moved);
        assert_eq!(self.groups[from].one(Command::Depart { shard, epoch, mv }), Outcome::Moved);
        let (mut steps, mut frozen) = (0, false);
        while !self.groups[to].group.reader().arrivals()[0].is_complete() {
            if given_up == Some(steps) {
                self.groups[from].one(Command::Stay { shard, mv });
                self.groups[to].one(Command::Discard { shard, mv });
                // From a leader that has not heard of it.
                assert_eq!(self.groups[from].one(Command::Depart { shard, epoch, mv }), Outcome::WrongShard);
                let revision = self.stamp();
                assert_eq!(self.groups[from].one(Command::Freeze { revision, shard, mv }), Outcome::WrongShard);
                self.some_writes();
                return self.compare();
            }
            steps += 1;
            let caught_up = self.next_chunk(mv);
            match frozen {
                false if caught_up && self.chance.below(2) == 0 => {
                    let revision = self.stamp();
                    assert_eq!(self.groups[from].one(Command::Freeze { revision, shard, mv }), Outcome::Moved);
                    frozen = true;
                }
                false => self.some_writes(),
                true => self.shake(),
            }
        }
        let refused = self.refused_write();
        assert_eq!(self.groups[from].one(refused), Outcome::WrongShard, "it is frozen");
        self.owner = to;
        self.epoch = Epoch(epoch.0 + 1);
        let (revision, epoch) = (self.stamp(), self.epoch);
        let activate = Command::Activate { revision, shard, bounds: bounds(), epoch, by: mv };
        assert_eq!(self.groups[to].one(activate), Outcome::Activated);
        self.some_writes();
        self.groups[from].one(Command::Drop { shard, epoch });
        assert_eq!(epoch_of(&self.groups[from]), None);
        self.compare();
    }

    fn refused_write(&mut self) -> Command {
        let (revision, epoch, op) = (self.stamp(), self.epoch, self.operation());
        let session = SessionTag { session: 77, born: Revision(5), sequence: 1, low_water: 1 };
        Command::Write { revision, shard: SHARD, epoch, also: Vec::new(), session, op }
    }

    /// Whoever has the shard reads, at every revision, what the group reads that always has it.
    fn compare(&self) {
        let (ours, theirs) = (self.groups[self.owner].group.reader(), self.groups[2].group.reader());
        let all = bounds().keys();
        let (named, reference) = ([(SHARD, self.epoch)], [(SHARD, Epoch(1))]);
        for revision in (0..=self.revision).map(Revision) {
            let op = Op::Range(Range::all(all.clone()));
            let (read, expected) = (ours.read(&named, &op, revision), theirs.read(&reference, &op, revision));
            assert_eq!(read, expected, "at {revision}");
        }
        let changes = |reader: &shardkv::Reader<MemoryStore>, named: &[(ShardId, Epoch)], from| {
            reader.changes(named, &all, (Revision(from), Revision(self.revision)), 10_000, true)
        };
        let from = self.compacted.max(1);
        assert_eq!(changes(&ours, &named, from), changes(&theirs, &reference, from));
        let floor = Err(ReadError::Compacted { floor: Revision(self.compacted) });
        assert!(self.compacted == 0 || changes(&ours, &named, from - 1) == floor);
    }
}

#[test]
fn a_shard_that_moves_is_the_same_shard() {
    for seed in 0..150 {
        let mut world = World::new(seed);
        for _ in 0..5 {
            for _ in 0..world.chance.below(30) {
                world.write();
            }
            world.move_shard();
        }
        world.compare();
    }
}

#[test]
fn a_shard_that_went_does_not_come_to_life_again() {
    let mut world = World::new(3);
    (0..20).for_each(|_| world.write());
    while world.owner == 0 {
        world.move_shard();
    }
    for restarts in 0..3 {
        // A leader whose map is as old as the cluster.
        let revision = world.stamp();
        let activate = Command::Activate { revision, shard: SHARD, bounds: bounds(), epoch: Epoch(1), by: MoveId(0) };
        assert_eq!(world.groups[0].one(activate), Outcome::WrongShard, "{restarts}");
        assert_eq!(epoch_of(&world.groups[0]), None);
        match restarts {
            0 => world.groups[0].restart(),
            _ => world.groups[0].replace(),
        }
    }
}

/// Apply is total: whatever a piece says, its import has an outcome.
#[test]
fn a_rotten_piece_ends_nothing() {
    let mut world = World::new(11);
    (0..12).for_each(|_| world.write());
    let (shard, mv, epoch) = (SHARD, MoveId(1), Epoch(1));
    world.groups[0].one(Command::Depart { shard, epoch, mv });
    (0..6).for_each(|_| world.write());
    let revision = world.stamp();
    world.groups[0].one(Command::Freeze { revision, shard, mv });
    let at = shardkv::moving::Position::start(&bounds());
    let chunk = world.groups[0].group.reader().chunk(shard, mv, &at, 1 << 20).unwrap();
    for place in 0..chunk.piece.len() {
        for bit in 0..8 {
            let mut piece = chunk.piece.to_vec();
            piece[place] ^= 1 << bit;
            let mut fresh = Replica::new(3);
            fresh.one(Command::Arrive { shard, bounds: bounds(), mv });
            let (at, next) = (at.clone(), chunk.next.clone());
            let outcome = fresh.one(Command::Import { shard, mv, at, next, piece: piece.into() });
            assert!(matches!(outcome, Outcome::Moved | Outcome::Failed(_)), "byte {place}: {outcome:?}");
        }
    }
}

/// A frozen shard may have newer writes elsewhere: here it can be read up to its end, and nobody can say what is newest.
#[test]
fn a_frozen_shard_is_read_up_to_its_end_and_not_as_the_newest() {
    let mut world = World::new(3);
    (0..12).for_each(|_| world.write());
    let (shard, mv, epoch) = (SHARD, MoveId(1), Epoch(1));
    world.groups[0].one(Command::Depart { shard, epoch, mv });
    let op = Op::Range(Range::all(bounds().keys()));
    let read = |world: &World, at, newest| {
        world.groups[0].group.reader().read_until(&[(shard, epoch)], &op, at, newest, &|| false)
    };
    let last = world.groups[0].group.reader().newest(&[(shard, epoch)]);
    assert!(read(&world, last, true).is_ok());
    let revision = world.stamp();
    world.groups[0].one(Command::Freeze { revision, shard, mv });
    let end = world.groups[0].group.reader().newest(&[(shard, epoch)]);
    assert!(read(&world, end, false).is_ok());
    assert_eq!(read(&world, end, true), Err(ReadError::WrongShard));
    assert_eq!(read(&world, Revision(end.0 + 1), false), Err(ReadError::WrongShard));
}

/// Pieces are imported while an image is read: rows of later pieces are in it, and come again behind it.
#[test]
fn an_image_may_have_rows_of_pieces_that_come_behind_it() {
    let mut images = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        (0..30).for_each(|_| world.write());
        let (shard, mv, epoch) = (SHARD, MoveId(1), Epoch(1));
        world.groups[1].one(Command::Arrive { shard, bounds: bounds(), mv });
        world.groups[0].one(Command::Depart { shard, epoch, mv });
        let mut skipped = world.chance.below(12);
        let (mut image, mut pieces, mut behind, mut frozen) = (None, Vec::new(), Vec::new(), false);
        while !world.groups[1].group.reader().arrivals()[0].is_complete() {
            match skipped.checked_sub(1) {
                Some(left) => skipped = left,
                None => {
                    let source = image.get_or_insert_with(|| world.groups[1].group.snapshot().unwrap());
                    let bytes = 1 + world.chance.below(100) as usize;
                    (0..world.chance.below(3)).for_each(|_| pieces.extend(source.next_piece(bytes).unwrap()));
                }
            }
            let at = world.groups[1].group.reader().arrivals().remove(0).at;
            let bytes = 1 + world.chance.below(300) as usize;
            let chunk = world.groups[0].group.reader().chunk(shard, mv, &at, bytes).unwrap();
            let import = Command::Import { shard, mv, at, next: chunk.next, piece: chunk.piece };
            assert_eq!(world.groups[1].one(import.clone()), Outcome::Moved);
            behind.extend(image.is_some().then_some(import));
            match frozen {
                false if chunk.caught_up => {
                    let revision = world.stamp();
                    world.groups[0].one(Command::Freeze { revision, shard, mv });
                    frozen = true;
                }
                false => (0..world.chance.below(3)).for_each(|_| world.write()),
                true => {}
            }
        }
        let Some(mut image) = image else { continue };
        while let Some(piece) = image.next_piece(200).unwrap() {
            pieces.push(piece);
        }
        let mut fresh = Replica::new(3);
        let mut sink = fresh.group.begin_install().unwrap();
        pieces.into_iter().for_each(|piece| sink.piece(piece).unwrap());
        fresh.group.finish_install(sink).unwrap();
        behind.into_iter().for_each(|import| assert_eq!(fresh.one(import), Outcome::Moved));
        assert_eq!(fresh.group.hash(), world.groups[1].group.hash());
        let (revision, epoch) = (world.stamp(), Epoch(2));
        let activate = Command::Activate { revision, shard, bounds: bounds(), epoch, by: mv };
        assert_eq!(fresh.one(activate), Outcome::Activated);
        (world.groups[1], world.owner, world.epoch) = (fresh, 1, epoch);
        world.compare();
        images += 1;
    }
    assert!(images > 100, "{images} images");
}

/// A deletion of more keys than a row of the index holds is cut between pieces, wherever that may be.
#[test]
fn changes_of_one_revision_keep_their_order_however_they_are_cut() {
    let mut world = World::new(1);
    let (shard, mv, epoch) = (SHARD, MoveId(1), Epoch(1));
    let write = |world: &mut World, op: Op| {
        let revision = world.stamp();
        let session = SessionTag { session: 5, born: Revision(5), sequence: revision.0, low_water: revision.0 };
        for at in [0, 2] {
            let (also, op) = (Vec::new(), op.clone());
            world.groups[at].one(Command::Write { revision, shard, epoch, also, session, op });
        }
    };
    world.groups[0].one(Command::Depart { shard, epoch, mv });
    for number in 0..2600 {
        let (key, value) = (Bytes::from(format!("i{number:05}")), Bytes::from("v"));
        let put = Put { key, value, lease: 0, prev_kv: false, ignore_value: false, ignore_lease: false };
        write(&mut world, Op::Put(put));
    }
    write(&mut world, Op::Delete(Delete { keys: bounds().keys(), prev_kv: false }));
    let revision = world.stamp();
    world.groups[0].one(Command::Freeze { revision, shard, mv });
    let activated = world.stamp();
    let changes = |group: &Replica, epoch| {
        let range = (Revision(1), Revision(world.revision));
        group.group.reader().changes(&[(shard, epoch)], &bounds().keys(), range, 100_000, false).unwrap()
    };
    let expected = changes(&world.groups[2], Epoch(1));
    // A put takes 22 bytes and a version of a few: among these are pieces with all puts and very few deletions.
    for bytes in (2600 * 29..2600 * 31).step_by(23) {
        let mut fresh = Replica::new(3);
        fresh.one(Command::Arrive { shard, bounds: bounds(), mv });
        while !fresh.group.reader().arrivals()[0].is_complete() {
            let at = fresh.group.reader().arrivals().remove(0).at;
            let chunk = world.groups[0].group.reader().chunk(shard, mv, &at, bytes).unwrap();
            fresh.one(Command::Import { shard, mv, at, next: chunk.next, piece: chunk.piece });
        }
        let (bounds, epoch) = (bounds(), Epoch(2));
        fresh.one(Command::Activate { revision: activated, shard, bounds, epoch, by: mv });
        assert!(changes(&fresh, Epoch(2)) == expected, "pieces of {bytes} bytes");
    }
}

#[test]
fn nothing_of_a_shard_stays_behind() {
    let mut world = World::new(7);
    let slot = |replica: &Replica| replica.group.applied();
    (0..40).for_each(|_| world.write());
    while world.owner == 0 {
        world.move_shard();
    }
    assert!(slot(&world.groups[0]) > Slot(0));
    let stored = |world: &World, key: &str| {
        let op = Op::Range(Range::all(Keys::One(Bytes::copy_from_slice(key.as_bytes()))));
        world.groups[0].group.reader().read(&[(SHARD, Epoch(1))], &op, Revision(world.revision))
    };
    assert_eq!(stored(&world, "i"), Err(ReadError::WrongShard));
    world.groups[0].restart();
    assert_eq!(stored(&world, "i"), Err(ReadError::WrongShard));
}
