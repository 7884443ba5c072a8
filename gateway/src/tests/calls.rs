//! Starting up, limits, and the simple path of each kind of call.

use super::*;
use shardkv::request::{OpError, ReadMode};

#[test]
fn the_first_call_waits_for_the_map_and_for_a_number_to_be_born_at() {
    let mut world = World::fresh(GatewayConfig::default());
    world.op(1, put("a"));
    let mut sent = world.take_all();
    assert_eq!(sent.len(), 2, "the map and the sequencer's number are asked for at once: {sent:?}");
    let (node, current) = sent.remove(0);
    assert_eq!(current.body, RequestBody::CurrentRevision);
    world.reply(node, &sent[0].1.clone(), ReplyBody::Map(Some(Box::new(map(1, &[("", 2)])))));
    world.reply(node, &current, ReplyBody::Current { revision: Revision(9) });
    // The number arrived after the call: the next question is its own.
    let (node, request) = match world.take_one() {
        (node, request) if is_refresh(&request) => {
            world.reply(node, &request, ReplyBody::Current { revision: Revision(9) });
            world.take_one()
        }
        sent => sent,
    };
    assert_eq!(tag(&request).born, Revision(9));
    world.done(node, &request, 10, put_done());
    assert_eq!(world.answers(), [(1, answer(10, put_done()))]);
    world.assert_idle();
}

#[test]
fn every_request_carries_the_newest_number_and_it_is_refreshed_while_serving() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.op(1, put("a"));
    let (node, request) = world.take_one();
    assert_eq!(request.known, Revision(10));
    assert_eq!(request.patience_micros, 5 * SECOND);
    world.done(node, &request, 15, put_done());
    world.op(2, get("a"));
    assert_eq!(world.take_one().1.known, Revision(15), "a write's own number is one");

    world.pass(100_000);
    world.op(3, get("a"));
    let sent = world.take_all();
    assert_eq!(sent[0].1.body, RequestBody::CurrentRevision, "100 ms old");
    world.reply(sent[0].0, &sent[0].1, ReplyBody::Current { revision: Revision(20) });
    world.op(4, get("a"));
    assert_eq!(world.take_one().1.known, Revision(20));
}

#[test]
fn a_newer_map_is_asked_for_as_soon_as_a_node_speaks_of_it() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    let answer_speaking_of = |world: &mut World, token, map_version| {
        world.op(token, put("a"));
        let (from, request) =
            world.take_all().into_iter().find(|(_, request)| !is_refresh(request)).expect("it is asked");
        let body = ReplyBody::Done { revision: Revision(10 + token), result: put_done() };
        let reply = Reply { id: request.id, known: Revision(0), map_version, body };
        world.step(Input::Reply { from, reply });
        let asked = |(_, request): &(NodeId, Request)| matches!(request.body, RequestBody::Map { .. });
        world.take_all().into_iter().find(asked)
    };
    assert!(answer_speaking_of(&mut world, 1, 1).is_none(), "it has this one");
    let (node, request) = answer_speaking_of(&mut world, 2, 3).expect("version 3 is newer");
    world.reply(node, &request, ReplyBody::Map(None));
    assert!(answer_speaking_of(&mut world, 3, 3).is_none(), "it was asked for just now");
    world.pass(500_000);
    let (node, request) = answer_speaking_of(&mut world, 4, 3).expect("it still has not come");
    world.reply(node, &request, ReplyBody::Map(Some(Box::new(map(3, &[("", 3)])))));
    assert!(answer_speaking_of(&mut world, 5, 3).is_none());
    world.assert_idle();
}

#[test]
fn an_idle_gateway_sets_no_timer_but_that_for_a_newer_map() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.op(1, put("a"));
    let (node, request) = world.take_one();
    world.done(node, &request, 11, put_done());
    let wake_at = world.wake_at.expect("the map grows old");
    assert!(wake_at.since(world.now) >= 5 * SECOND, "{wake_at:?}");
}

#[test]
fn a_read_of_one_group_takes_its_header_from_the_reply() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 3), ("p", 2)]));
    world.op(1, Op::Range(Range::all(Keys::Range { start: bytes("a"), end: bytes("f") })));
    let (node, request) = world.take_one();
    let RequestBody::Read { shards, mode, .. } = &request.body else { panic!("{request:?}") };
    assert_eq!((shards.len(), *mode), (1, ReadMode::Linearizable));
    world.done(node, &request, 12, OpResult::Range(pairs(&["b"])));
    assert_eq!(world.answers(), [(1, answer(12, OpResult::Range(pairs(&["b"]))))]);
}

#[test]
fn writes_over_shards_of_one_group_name_the_others() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 2), ("p", 2)]));
    let keys = Keys::Range { start: bytes("h"), end: bytes("z") };
    world.op(1, Op::Delete(shardkv::ops::Delete { keys, prev_kv: false }));
    let RequestBody::Write { shard, also, .. } = world.take_one().1.body else { panic!("not a write") };
    assert_eq!((shard, also), (ShardId(2), vec![(ShardId(3), Epoch(1))]));
}

#[test]
fn writes_over_groups_are_refused_with_the_groups_named() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 3)]));
    world.op(1, Op::Delete(shardkv::ops::Delete { keys: Keys::From(bytes("a")), prev_kv: false }));
    let answers = world.answers();
    let [(1, Err(CallError::Unimplemented(text)))] = &answers[..] else { panic!("{answers:?}") };
    assert!(text.contains("(g2, g3)"), "{text}");
    assert!(world.take_all().is_empty());
    world.assert_idle();
}

#[test]
fn a_future_revision_is_refused_only_if_the_sequencer_says_so() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    let at = |revision| Op::Range(Range { revision: Revision(revision), ..Range::all(Keys::One(bytes("a"))) });
    world.op(1, at(10));
    let (_, request) = world.take_one();
    assert!(matches!(request.body, RequestBody::Read { mode: ReadMode::Linearizable, .. }), "10 is known");

    world.op(2, at(30));
    let (node, request) = world.take_one();
    assert_eq!(request.body, RequestBody::CurrentRevision);
    world.reply(node, &request, ReplyBody::Current { revision: Revision(29) });
    let expected = CallError::Failed(OpError::FutureRevision { current: Revision(29) });
    assert_eq!(world.answers(), [(2, Err(expected))]);

    world.op(3, at(30));
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::Current { revision: Revision(30) });
    assert_eq!(world.take_one().1.known, Revision(30), "the leader learns that it is no invention");
}

#[test]
fn a_serializable_read_of_a_future_revision_is_refused_like_any_other() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 3)]));
    let op = Op::Range(Range { revision: Revision(30), ..all() });
    world.call(1, Call::Op { op: op.clone(), serializable: true });
    let (node, request) = world.take_one();
    assert_eq!(request.body, RequestBody::CurrentRevision);
    world.reply(node, &request, ReplyBody::Current { revision: Revision(29) });
    let expected = CallError::Failed(OpError::FutureRevision { current: Revision(29) });
    assert_eq!(world.answers(), [(1, Err(expected))]);

    world.call(2, Call::Op { op, serializable: true });
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::Current { revision: Revision(30) });
    let modes: Vec<_> = world.take_all().into_iter().map(|(_, request)| request.body).collect();
    assert_eq!(modes.len(), 2);
    let serializable = |body: &RequestBody| matches!(body, RequestBody::Read { mode: ReadMode::Serializable, .. });
    assert!(modes.iter().all(serializable), "{modes:?}");
}

#[test]
fn serializable_reads_prefer_the_own_node_and_go_round_the_replicas() {
    let config = GatewayConfig { local: Some(NodeId(3)), ..GatewayConfig::default() };
    let mut world = World::with_config(map(1, &[("", 2)]), config);
    world.call(1, Call::Op { op: get("a"), serializable: true });
    let (node, request) = world.take_one();
    assert_eq!(node, NodeId(3));
    assert!(matches!(request.body, RequestBody::Read { mode: ReadMode::Serializable, .. }));
    world.step(Input::NodeDown { node });
    let (node, _) = world.take_one();
    assert_eq!(node, NodeId(1));
    world.step(Input::NodeDown { node });
    let (node, request) = world.take_one();
    assert_eq!(node, NodeId(2));
    world.done(node, &request, 4, OpResult::Range(pairs(&["a"])));
    assert_eq!(world.answers(), [(1, answer(4, OpResult::Range(pairs(&["a"]))))]);
}

#[test]
fn calls_and_bytes_in_flight_are_bounded() {
    let config = GatewayConfig { calls_max: 2, ..GatewayConfig::default() };
    let mut world = World::with_config(map(1, &[("", 2)]), config);
    (1..=3).for_each(|token| world.op(token, put("a")));
    assert_eq!(world.answers(), [(3, Err(CallError::Overloaded))]);
    world.step(Input::Cancel { token: 1 });
    world.op(4, put("a"));
    assert_eq!(world.answers(), [], "there is room again");

    let config = GatewayConfig { bytes_max: 4096, ..GatewayConfig::default() };
    let mut world = World::with_config(map(1, &[("", 2)]), config);
    let mut big = put("a");
    if let Op::Put(put) = &mut big {
        put.value = vec![0; 4096].into();
    }
    world.op(1, big);
    world.op(2, put("a"));
    assert_eq!(world.answers(), [(1, Err(CallError::Overloaded))]);
}

#[test]
fn compaction_is_logged_then_carried_out_by_every_group() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 3)]));
    let compact = || Call::Compact { revision: Revision(8), physical: true };
    world.call(1, compact());
    let (node, request) = world.take_one();
    assert_eq!(
        (request.group, &request.body),
        (SHARDMASTER_GROUP, &RequestBody::LogCompaction { revision: Revision(8) })
    );
    world.reply(node, &request, ReplyBody::Logged);
    let sent = world.take_all();
    assert_eq!(sent.iter().map(|(_, r)| r.group.0).collect::<Vec<_>>(), [2, 3]);
    world.reply(sent[0].0, &sent[0].1, ReplyBody::Logged);
    assert_eq!(world.answers(), []);
    world.reply(sent[1].0, &sent[1].1, ReplyBody::Logged);
    let expected = Answer { revision: Revision(10), body: AnswerBody::Compacted };
    assert_eq!(world.answers(), [(1, Ok(expected))]);
    world.assert_idle();

    world.call(2, compact());
    let (node, request) = world.take_one();
    let error = OpError::Compacted { floor: Revision(8) };
    world.reply(node, &request, ReplyBody::Failed(error.clone()));
    assert_eq!(world.answers(), [(2, Err(CallError::Failed(error)))]);
}

#[test]
fn a_compaction_retried_after_an_unknown_outcome_takes_its_own_mark_for_success() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.call(1, Call::Compact { revision: Revision(8), physical: false });
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::Lost);
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::Failed(OpError::Compacted { floor: Revision(8) }));
    assert!(matches!(world.take_one().1.body, RequestBody::Compact { .. }));
}

#[test]
fn a_map_call_is_served_by_a_question_that_began_after_it() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.call(1, Call::Map);
    let (node, first) = world.take_one();
    world.call(2, Call::Map);
    assert!(world.take_all().is_empty(), "one question at a time");
    world.reply(node, &first, ReplyBody::Map(Some(Box::new(map(2, &[("", 2)])))));
    let answers = world.answers();
    let [(1, Ok(Answer { body: AnswerBody::Map(map), .. }))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(map.version, 2);
    let (node, second) = world.take_one();
    assert_eq!(second.body, RequestBody::Map { have_version: 2 });
    world.reply(node, &second, ReplyBody::Map(None));
    assert_eq!(world.answers().len(), 1);
    world.assert_idle();
}

#[test]
fn without_a_quorum_every_call_fails_by_its_deadline() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 3)]));
    world.op(1, get("a"));
    world.op(2, Op::Range(all()));
    world.op(3, put("a"));
    world.call(4, Call::Compact { revision: Revision(5), physical: false });
    world.call(5, Call::Map);
    world.call(6, Call::Op { op: get("a"), serializable: true });
    world.pass(5 * SECOND - 1);
    assert_eq!(world.answers(), []);
    world.pass(1);
    let answers: Vec<_> = world.answers().into_iter().map(|(token, result)| (token, result.err())).collect();
    let (no, maybe) = (Some(CallError::NOTHING_DONE), Some(CallError::MAYBE_DONE));
    assert_eq!(answers, [(1, no.clone()), (2, no.clone()), (3, maybe.clone()), (4, maybe), (5, no.clone()), (6, no)]);
    world.assert_idle();
}

#[test]
fn what_is_asked_of_the_shardmaster_alone_is_asked_until_it_answers() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.call(1, Call::ChangeMembers { group: GroupId(2), members: vec![NodeId(4)] });
    let (node, first) = world.take_one();
    assert_eq!((node, first.group), (NodeId(1), SHARDMASTER_GROUP));
    world.reply(node, &first, ReplyBody::NotLeader { hint: Some(NodeId(3)) });
    let (node, second) = world.take_one();
    assert_eq!((node, &second.body), (NodeId(3), &first.body));
    world.reply(node, &second, ReplyBody::Logged);
    let noted = Answer { revision: Revision(10), body: AnswerBody::Noted };
    assert_eq!(world.answers(), [(1, Ok(noted))]);

    let (name, peer_address) = ("n4".to_owned(), "127.0.0.1:4".to_owned());
    world.call(2, Call::AddNode { cluster: 7, name, incarnation: 9, peer_address, keeps: (true, true) });
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::Node(NodeId(4)));
    let joined = Answer { revision: Revision(10), body: AnswerBody::Node(NodeId(4)) };
    assert_eq!(world.answers(), [(2, Ok(joined))]);
    world.call(3, Call::RemoveNode { node: NodeId(4) });
    let (node, request) = world.take_one();
    let error = OpError::Malformed("n4 holds a replica".into());
    world.reply(node, &request, ReplyBody::Failed(error.clone()));
    assert_eq!(world.answers(), [(3, Err(CallError::Failed(error)))]);
    world.assert_idle();
}

#[test]
fn a_leader_on_an_unknown_node_is_found_by_the_map_of_one_who_does_not_lead() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.call(1, Call::Map);
    let (node, first) = world.take_one();
    let mut known = map(2, &[("", 2)]);
    known.nodes.push(NodeInfo { id: NodeId(4), name: "n4".into(), ..NodeInfo::default() });
    world.reply(node, &first, ReplyBody::KnownMap { map: Box::new(known.clone()), hint: Some(NodeId(4)) });
    let (node, second) = world.take_one();
    assert_eq!((node, &second.body), (NodeId(4), &RequestBody::Map { have_version: 2 }));
    assert_eq!(world.answers(), [], "who does not lead may not know the newest");
    world.reply(node, &second, ReplyBody::Map(None));
    let answers = world.answers();
    let [(1, Ok(Answer { body: AnswerBody::Map(map), .. }))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(**map, known);
}

#[test]
fn a_group_that_nobody_leads_here_any_more_is_looked_for_in_a_newer_map() {
    let mut world = World::with_map(map(1, &[("", 2)]));
    world.op(1, get("a"));
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::NotLeader { hint: None });
    let asks_for_map = |(_, request): &(NodeId, Request)| matches!(request.body, RequestBody::Map { .. });
    assert!(world.take_all().iter().any(asks_for_map), "its members may have changed");
}
