//! Of the core as a whole.

use super::lead::Proposed;
use super::stamping::MASTER_PROPOSALS_MAX;
use super::testing::{empty_master, owner};
use super::{Core, CoreConfig, Input};
use crate::wire::NodeMessage;
use paxos::election::Status;
use paxos::{Ballot, ConfigId, Configuration, GroupId, NodeId, Slot, StateMachine, Time};
use shardkv::command::{Batch, Command};
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardInfo, ShardMap};
use shardkv::request::{OpError, ReplyBody, Request, RequestBody};
use shardkv::types::{Bounds, Epoch, MoveId, Revision, ShardId};
use shardkv::{MemoryStore, codec};
use shardmaster::MasterCommand;
use std::sync::Arc;

/// A node comes to hold a replica of the shardmaster, which is empty: it must not forget the map that it goes by.
#[test]
fn a_replica_of_the_shardmaster_that_is_opened_takes_no_map_away() {
    let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3]), Vec::new(), Time(0));
    core.map = Arc::new(ShardMap { version: 7, ..ShardMap::default() });
    core.comings.opening.insert(SHARDMASTER_GROUP);
    core.open(empty_master());
    assert_eq!(core.map.version, 7);
}

/// Nobody fills the shardmaster's log, or its leader's memory, faster than it is decided.
#[test]
fn commands_of_the_shardmaster_under_way_are_bounded() {
    let mut core = Core::new(CoreConfig::among(&[1, 2, 3]), vec![empty_master()], Time(0));
    core.leads(SHARDMASTER_GROUP);
    let lead = core.ready_lead(SHARDMASTER_GROUP).expect("it leads");
    let under_way = || Proposed { slot: Slot(1), since: Time(0), waiters: Vec::new(), traces: Vec::new() };
    lead.proposed.extend(std::iter::repeat_with(under_way).take(MASTER_PROPOSALS_MAX));
    let (id, known, body) = (7, Revision(0), RequestBody::RemoveNode { node: NodeId(9) });
    let request = Request { id, group: SHARDMASTER_GROUP, known, patience_micros: 0, trace: None, body };
    core.input(Time(1), Input::Request { token: 1, request });
    core.note_master(Time(1), &MasterCommand::Arrived { mv: MoveId(1) });
    let refused = core.out.replies.iter().map(|(_, reply)| &reply.body).collect::<Vec<_>>();
    assert_eq!(refused, [&ReplyBody::Failed(OpError::Overloaded)]);
    assert_eq!(core.ready_lead(SHARDMASTER_GROUP).map(|lead| lead.proposed.len()), Ok(MASTER_PROPOSALS_MAX));
}

/// Every node counts since when others are silent, so that the next leader of the shardmaster need not begin anew; but one
/// that is cut off counts nobody.
#[test]
fn silence_is_counted_by_those_who_are_not_cut_off() {
    let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3, 4]), Vec::new(), Time(0));
    let nodes = (1..=4).map(|id| NodeInfo { id: NodeId(id), ..NodeInfo::default() }).collect();
    core.map = Arc::new(ShardMap { version: 1, nodes, ..ShardMap::default() });
    let mut silent = |heard: &[u64], now| {
        heard.iter().for_each(|node| core.hear(now, NodeId(*node), Status::default()));
        core.place_replicas(now);
        core.comings.unreached.clone()
    };
    let (then, later, last) = (Time(1_000_000), Time(9_000_000), Time(20_000_000));
    assert_eq!(silent(&[2, 3], then), [(NodeId(4), then)].into());
    assert_eq!(silent(&[2, 3], later), [(NodeId(4), then)].into());
    assert_eq!(silent(&[2], last), [].into(), "two of four");
}

/// A configuration has begun, and its leader is lost before the map knows. A member that had followed as a learner, and
/// closed its replica because something else was wanted by then, does not know that it is needed, and looks like one that
/// follows: whoever is in it says so, whomever it believes to lead. (Seed 102839 of the simulator.)
#[test]
fn a_configuration_without_a_leader_is_told_so_that_its_members_come() {
    let (id, wanted) = (GroupId(2), vec![NodeId(1), NodeId(2), NodeId(3)]);
    let map = |version, sealed: &[NodeId]| {
        let info = GroupInfo { sealed: sealed.to_vec(), ..GroupInfo::new(id, vec![NodeId(2)]) };
        Arc::new(ShardMap { version, groups: vec![info], ..ShardMap::default() })
    };
    let (mut hosted, _group) = owner(id, ShardId(1), Epoch(1));
    hosted.configuration = Configuration::first(vec![NodeId(2)]).next(wanted.clone());
    let mut core = Core::new(CoreConfig::among(&[1, 2, 3]), vec![hosted], Time(0));
    core.map = map(1, &[]);
    let leader = Ballot { config: ConfigId(0), round: 1, node: NodeId(3), boot: 1 };
    let told = |core: &mut Core<MemoryStore>, micros: u64| {
        core.hear(Time(micros), NodeId(3), Status { leader, ..Status::default() });
        core.input(Time(micros), Input::Tick);
        let out = core.turn(Time(micros)).send.into_iter();
        out.filter(|(_, message)| matches!(message, NodeMessage::Configured { .. })).collect::<Vec<_>>()
    };
    let needed = |begun| {
        let (group, config, members) = (id, ConfigId(1), wanted.clone());
        vec![(NodeId(3), NodeMessage::Configured { group, config, members, begun })]
    };
    assert_eq!(told(&mut core, 100_000), [], "its leader may say so in a moment");
    for tick in 2..=40 {
        let said = told(&mut core, tick * 100_000);
        assert!(tick <= 11 || said == needed(false), "after {tick} ticks: {said:?}");
    }
    core.map = map(2, &wanted);
    assert_eq!(told(&mut core, 4_100_000), [], "the map knows");
    core.map = map(3, &[]);
    core.leads(id);
    core.follow_plan(Time(4_200_000), id);
    let lead = core.groups.get_mut(&id).and_then(|group| group.lead.as_mut()).expect("it leads");
    lead.ready = false;
    core.follow_plan(Time(4_200_000), id);
    let expected = [needed(true), needed(false)].concat();
    assert_eq!(core.out.send, expected, "it serves; it is elected, and no majority answers");
}

/// A replica ends by a map that knows its configuration: one that knows less is old, and opens none.
#[test]
fn an_old_map_opens_no_replica_that_has_ended() {
    let id = GroupId(2);
    let map = |config, replicas: &[u64], next: &[u64]| {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<Vec<_>>();
        let info = GroupInfo { config: ConfigId(config), next: ids(next), ..GroupInfo::new(id, ids(replicas)) };
        Arc::new(ShardMap { version: 1, groups: vec![info], ..ShardMap::default() })
    };
    let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3]), Vec::new(), Time(0));
    let ended = Ballot { config: ConfigId(5), round: 3, node: NodeId(2), boot: 1 };
    core.remember([(id, ended)].into());
    let mut opens = |map| {
        core.map = map;
        core.follow_placement();
        std::mem::take(&mut core.out.hosting).len() + usize::from(core.comings.opening.remove(&id)) > 0
    };
    assert!(!opens(map(4, &[2, 3], &[1, 2, 3])), "an old one");
    assert!(!opens(map(5, &[1, 2, 3], &[])), "it had a vote there, and has nothing any more");
    assert!(opens(map(5, &[2, 3], &[1, 2, 3])), "it had none, and is to get one");
    assert!(opens(map(6, &[1, 2, 3], &[])), "it is a member, and learns");
}

/// A move may be called off before its departure or its freeze is in the log of the group that has the shard, and both may
/// come afterwards, from a leader with an old map: whoever leads next undoes them, for as long as the move is over.
#[test]
fn a_move_that_was_called_off_holds_no_shard_however_late_it_comes() {
    let (id, shard, mv, epoch) = (GroupId(2), ShardId(1), MoveId(5), Epoch(1));
    let (hosted, mut group) = owner(id, shard, epoch);
    let mut core = Core::new(CoreConfig::among(&[1]), vec![hosted], Time(0));
    core.leads(id);
    let owned = ShardInfo { id: shard, bounds: Bounds::default(), group: id, epoch, by: MoveId(0) };
    core.map = Arc::new(ShardMap { version: 1, last_move: mv, shards: vec![owned], ..ShardMap::default() });
    let mut undone = |core: &mut Core<MemoryStore>, slot: u64, late: Vec<Command>| {
        let applied = group.apply(&[(Slot(slot), codec::encode(&Batch { commands: late }))]).expect("a sound batch");
        let lead = core.ready_lead(id).expect("it leads");
        lead.done = lead.arrived;
        core.carry_moves(Time(slot), id);
        let queued = core.ready_lead(id).expect("it leads").inbox.drain(..).map(|it| it.command);
        (applied.len(), queued.collect::<Vec<_>>())
    };
    assert_eq!(undone(&mut core, 2, Vec::new()).1, []);
    let depart = Command::Depart { shard, epoch, mv };
    let stay = vec![Command::Stay { shard, mv }];
    assert_eq!(undone(&mut core, 3, vec![depart.clone()]).1, stay, "it departs for nothing");
    let freeze = Command::Freeze { revision: Revision(9), shard, mv };
    assert_eq!(undone(&mut core, 4, vec![freeze]).1, stay, "and is frozen");
    assert_eq!(undone(&mut core, 5, stay).1, []);
    assert_eq!(undone(&mut core, 6, vec![depart]).1, [], "refused: it has stayed");
}

/// After a crash the map is as of the last flush, or one that another node has had for long: who joined since is no node
/// that left.
#[test]
fn a_map_from_before_a_node_joined_does_not_take_it_for_removed() {
    let mut core: Core<MemoryStore> = Core::new(CoreConfig::among(&[1, 2, 3, 5]), Vec::new(), Time(0));
    let map = |version, nodes: &[u64], last_node| {
        let nodes = nodes.iter().map(|id| NodeInfo { id: NodeId(*id), ..NodeInfo::default() }).collect();
        Arc::new(ShardMap { version, nodes, last_node: NodeId(last_node), ..ShardMap::default() })
    };
    let known = |core: &Core<MemoryStore>| core.config.nodes.iter().map(|node| node.0).collect::<Vec<_>>();
    core.learn_map(map(4, &[1, 2, 4], 4));
    assert_eq!(known(&core), [1, 2, 4, 5], "n3 was removed; n5 joins later");
    core.learn_map(map(5, &[1, 2, 4, 5], 5));
    core.learn_map(map(6, &[1, 2, 4], 5));
    assert_eq!(known(&core), [1, 2, 4]);
}
