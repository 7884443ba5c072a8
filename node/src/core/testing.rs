//! What tests of a core's parts have in common.

use super::lead::Lead;
use super::{Core, CoreConfig, Hosted, Input, Limits, Machine, ReadMode};
use crate::wire::NodeMessage;
use paxos::election::Status;
use paxos::heartbeat::{Heartbeat, Statuses, Timing};
use paxos::{Ballot, ConfigId, Configuration, GroupId, NodeId, Recovered, Slot, StateMachine, Time, Wire};
use shardkv::command::{Batch, Command};
use shardkv::map::{NodeInfo, SHARDMASTER_GROUP, ShardMap};
use shardkv::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use shardkv::{DataGroup, MemoryStore, codec};
use shardmaster::MasterState;
use std::sync::Arc;

impl CoreConfig {
    /// Of the first of these nodes, without a word of addresses.
    pub(super) fn among(nodes: &[u64]) -> CoreConfig {
        let nodes: Vec<NodeId> = nodes.iter().copied().map(NodeId).collect();
        CoreConfig {
            me: nodes[0],
            boot: 1,
            info: NodeInfo::default(),
            nodes,
            timing: Timing::default(),
            read_mode: ReadMode::Lease,
            genesis: ShardMap::default(),
            dead_after_micros: 0,
            balance: None,
            limits: Limits::default(),
        }
    }
}

impl Core<MemoryStore> {
    /// A round trip to a node, which says this of the shardmaster's group. Each says something new.
    pub(super) fn hear(&mut self, now: Time, from: NodeId, status: Status) {
        self.hear_of(now, from, SHARDMASTER_GROUP, status);
    }

    /// The same of any group.
    pub(super) fn hear_of(&mut self, now: Time, from: NodeId, group: GroupId, status: Status) {
        // The first exchange only tells boots.
        for version in [now.0.max(1), now.0 + 1] {
            let pings = self.beats.ping(now, Some(from));
            let ping = pings.into_iter().next();
            let Some((_, Heartbeat::Ping { sequence, .. })) = ping else { panic!("{from} is no peer") };
            let changed = vec![(group, status)];
            let statuses = Statuses { boot: 1, base: 0, version, changed, known: (1, 0) };
            let pong = Heartbeat::Pong { sequence, ping_boot: 1, granted_micros: 0, statuses };
            self.input(now, Input::Message { from, message: NodeMessage::Paxos(Wire::Heartbeat(pong)) });
        }
    }

    /// The node leads the group, and serves.
    pub(super) fn leads(&mut self, id: GroupId) {
        let ballot = Ballot { config: ConfigId(0), round: 1, node: self.config.me, boot: 1 };
        let group = self.groups.get_mut(&id).unwrap_or_else(|| panic!("{id} is not here"));
        let mut lead = Lead::new(ballot, 1, Slot(1), Time(0));
        lead.ready = true;
        group.lead = Some(lead);
    }
}

/// A replica of the shardmaster that knows nothing yet.
pub(super) fn empty_master() -> Hosted<MemoryStore> {
    let machine = Machine::Master(Arc::new(MasterState::default()));
    let recovered = Recovered { first_kept: Slot(1), ..Recovered::default() };
    let configuration = Configuration::default();
    Hosted { group: SHARDMASTER_GROUP, configuration, recovered, applied: Slot(0), fenced: false, machine }
}

/// A replica of a data group that owns all keys as one shard, at this epoch.
pub(super) fn owner(id: GroupId, shard: ShardId, epoch: Epoch) -> (Hosted<MemoryStore>, DataGroup<MemoryStore>) {
    owner_of(id, shard, Bounds::default(), epoch)
}

/// The same with a shard of these keys.
pub(super) fn owner_of(
    id: GroupId,
    shard: ShardId,
    bounds: Bounds,
    epoch: Epoch,
) -> (Hosted<MemoryStore>, DataGroup<MemoryStore>) {
    let mut group = DataGroup::open(Arc::new(MemoryStore::new()), id, 1).unwrap_or_else(|error| panic!("{error}"));
    let (revision, by) = (Revision(2), MoveId(0));
    let commands = vec![Command::Activate { revision, shard, bounds, epoch, by }];
    let applied = group.apply(&[(Slot(1), codec::encode(&Batch { commands }))]);
    applied.unwrap_or_else(|error| panic!("{error}"));
    let (length, decided, entries) = (Slot(1), Slot(1), vec![bytes::Bytes::new()]);
    let recovered = Recovered { first_kept: Slot(1), length, decided, entries, ..Recovered::default() };
    let (configuration, machine) = (Configuration::default(), Machine::Data(group.reader()));
    (Hosted { group: id, configuration, recovered, applied: Slot(1), fenced: false, machine }, group)
}
