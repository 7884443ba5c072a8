//! State machines come and go while their node runs.
#![allow(clippy::unwrap_used)]

use node::core::ApplyJob;
use node::host::Machines;
use paxos::{Ballot, GroupId, NodeId, Slot};
use shardkv::command::{Batch, Command};
use shardkv::types::{Bounds, MoveId, ShardId, SpaceId};
use shardkv::{MemoryStore, SessionLimits, codec};
use std::sync::Arc;

const GROUP: GroupId = GroupId(2);

/// Opens a replica that gets a shard, and tells in which space.
fn space_of_an_arrival(machines: &mut Machines<MemoryStore>) -> SpaceId {
    let replica = machines.begin(GROUP, Ballot::default(), Some(vec![NodeId(1)])).unwrap().unwrap();
    let arrive = Command::Arrive { shard: ShardId(1), bounds: Bounds::default(), mv: MoveId(1) };
    let entries = vec![(Slot(1), codec::encode(&Batch { commands: vec![arrive] }))];
    machines.apply(ApplyJob { group: GROUP, entries, next: true, urgent: false }).unwrap().unwrap();
    let node::core::Machine::Data(reader) = replica.machine else { panic!("it is a data group") };
    reader.arrivals()[0].space
}

/// Whoever reads the closed one still must not find the new one's rows.
#[test]
fn a_replica_that_is_opened_again_uses_no_space_twice() {
    let mut machines = Machines::open(Arc::new(MemoryStore::new()), &[], 7, SessionLimits::default()).unwrap();
    let first = space_of_an_arrival(&mut machines);
    machines.close(GROUP).unwrap();
    let second = space_of_an_arrival(&mut machines);
    assert!(first.0 >> 32 == 7 && second > first, "{first:?}, {second:?}");
}
