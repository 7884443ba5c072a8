//! The shard map of a gateway that nobody uses.

use super::*;

/// The map of [`map`], kept by other nodes.
fn on_nodes(version: u64, nodes: [u64; 3]) -> ShardMap {
    let mut map = map(version, &[("", 2)]);
    let ids = nodes.map(NodeId).to_vec();
    map.nodes.iter_mut().zip(&ids).for_each(|(node, id)| node.id = *id);
    map.shardmaster = GroupInfo::new(SHARDMASTER_GROUP, ids.clone());
    map.groups.iter_mut().for_each(|group| group.replicas.clone_from(&ids));
    assert_eq!(map.check(), Ok(()));
    map
}

#[test]
fn an_idle_gateway_asks_for_newer_maps_now_and_then() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    for version in 1..4 {
        let before = world.now;
        world.until_sent();
        let waited = world.now.since(before);
        assert!((5 * SECOND..=10 * SECOND).contains(&waited), "{waited} µs");
        let (node, fetch) = world.take_one();
        assert_eq!(fetch.body, RequestBody::Map { have_version: version });
        let newer = map(version + 1, &[("", 2)]);
        world.reply(node, &fetch, ReplyBody::Map(Some(Box::new(newer))));
    }
    world.assert_idle();
}

#[test]
fn an_idle_gateway_asks_for_a_map_until_somebody_answers() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.until_sent();
    let (first, _) = world.take_one();
    world.step(Input::NodeDown { node: first });
    let (second, fetch) = world.take_one();
    assert_ne!(first, second);
    world.reply(second, &fetch, ReplyBody::NotLeader { hint: None });
    let (third, fetch) = world.take_one();
    world.reply(third, &fetch, ReplyBody::Map(None));
    assert_eq!(world.take_all(), [], "the map is the newest");
}

/// Whoever was asked last says nothing: who that was, and after how many microseconds somebody is asked again.
fn silence(world: &mut World) -> (NodeId, u64) {
    let (asked, _) = world.take_one();
    let before = world.now;
    world.until_sent();
    (asked, world.now.since(before))
}

#[test]
fn a_gateway_without_a_map_never_waits_long_for_silent_nodes() {
    let mut world = World::fresh(GatewayConfig::default());
    world.step(Input::Tick);
    for _ in 0..9 {
        let (_, waited) = silence(&mut world);
        assert!(waited <= 2 * SECOND + SECOND / 5, "{waited} µs");
    }
}

#[test]
fn whoever_was_silent_before_the_first_map_says_nothing_of_the_leader_that_it_names() {
    let mut world = World::fresh(GatewayConfig::default());
    world.step(Input::Tick);
    for _ in 0..3 {
        silence(&mut world);
    }
    let (node, fetch) = world.take_one();
    let known = Box::new(on_nodes(1, [1, 2, 3]));
    world.reply(node, &fetch, ReplyBody::KnownMap { map: known, hint: Some(NodeId(3)) });
    world.until_sent();
    let (leader, waited) = silence(&mut world);
    assert_eq!(leader, NodeId(3));
    assert!(waited <= SECOND + SECOND / 5, "{waited} µs");
}

#[test]
fn a_gateway_that_was_idle_finds_nodes_that_were_all_replaced_meanwhile() {
    let mut world = World::with_map(on_nodes(1, [1, 2, 3]));
    for (version, nodes) in [(2, [2, 3, 4]), (3, [3, 4, 5]), (4, [4, 5, 6])] {
        world.until_sent();
        let (node, fetch) = world.take_one();
        world.reply(node, &fetch, ReplyBody::Map(Some(Box::new(on_nodes(version, nodes)))));
    }
    world.op(1, put("a"));
    let asked = world.take_all();
    assert!(asked.iter().all(|(node, _)| (4..=6).contains(&node.0)), "{asked:?}");
    assert!(asked.iter().any(|(_, request)| matches!(request.body, RequestBody::Write { .. })));
}
