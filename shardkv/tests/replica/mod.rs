//! A replica without a log, for tests that compare groups.
#![allow(dead_code, clippy::unwrap_used)] // each test binary uses its part

use paxos::{GroupId, StateMachine};
use shardkv::command::{Batch, Command, Outcome};
use shardkv::{DataGroup, MemoryStore, codec};
use std::sync::Arc;

/// Numbers that look random; the same for the same seed.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed ^ mixed >> 27) % n
    }
}

/// A replica and its log.
pub struct Replica {
    pub id: GroupId,
    store: Arc<MemoryStore>,
    pub group: DataGroup<MemoryStore>,
    boot: u64,
}

impl Replica {
    pub fn new(id: u64) -> Replica {
        let (id, store) = (GroupId(id), Arc::new(MemoryStore::new()));
        let group = DataGroup::open(store.clone(), id, 1).unwrap();
        Replica { id, store, group, boot: 1 }
    }

    pub fn apply(&mut self, commands: Vec<Command>) -> Vec<Outcome> {
        let slot = self.group.applied().next();
        self.group.apply(&[(slot, codec::encode(&Batch { commands }))]).unwrap().remove(0)
    }

    pub fn one(&mut self, command: Command) -> Outcome {
        self.apply(vec![command]).remove(0)
    }

    pub fn restart(&mut self) {
        self.boot += 1;
        self.group = DataGroup::open(self.store.clone(), self.id, self.boot).unwrap();
    }

    /// Another replica of the group, by an image, takes this one's place. Whether the image could be read.
    pub fn replace(&mut self) {
        let (hash, fresh) = (self.group.hash(), Replica::new(self.id.0));
        let mut fresh = Replica { boot: self.boot, ..fresh };
        let mut source = self.group.snapshot().unwrap();
        let mut sink = fresh.group.begin_install().unwrap();
        while let Some(piece) = source.next_piece(200).unwrap() {
            sink.piece(piece).unwrap();
        }
        fresh.group.finish_install(sink).unwrap();
        assert_eq!(fresh.group.hash(), hash);
        *self = fresh;
    }
}
