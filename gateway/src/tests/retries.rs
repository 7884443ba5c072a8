//! Retries: routing errors, unknown outcomes, session tags, late and duplicate replies.

use super::*;
use shardkv::request::OpError;

fn one_group() -> World {
    World::with_map(map(1, &[("", 2)]))
}

#[test]
fn a_hint_is_followed_at_once_under_the_same_tag_and_a_new_id() {
    let mut world = one_group();
    world.op(1, put("a"));
    let (node, first) = world.take_one();
    world.reply(node, &first, ReplyBody::NotLeader { hint: Some(NodeId(3)) });
    let (node, second) = world.take_one();
    assert_eq!(node, NodeId(3));
    assert_ne!(first.id, second.id);
    assert_eq!(tag(&first), tag(&second));
    world.done(node, &second, 11, put_done());
    world.op(2, put("b"));
    assert_eq!(world.take_one().0, NodeId(3), "the leader is remembered");
}

#[test]
fn leaders_that_point_at_each_other_are_not_asked_in_a_tight_loop() {
    let mut world = one_group();
    world.op(1, put("a"));
    let mut asked = 0;
    while let Some((node, request)) = world.take_all().into_iter().find(|(_, request)| !is_refresh(request)) {
        asked += 1;
        let hint = Some(NodeId(if node == NodeId(1) { 2 } else { 1 }));
        world.reply(node, &request, ReplyBody::NotLeader { hint });
    }
    assert_eq!(asked, 4, "three retries at once, then a pause");
    let before = world.now;
    world.until_sent();
    assert!((1_000..=2_000).contains(&world.now.since(before)), "{} µs", world.now.since(before));
}

#[test]
fn a_moved_shard_is_followed_with_the_same_tag() {
    let mut world = one_group();
    world.op(1, put("a"));
    let (node, first) = world.take_one();
    world.reply(node, &first, ReplyBody::WrongShard);
    let (node, fetch) = world.take_one();
    assert_eq!(fetch.body, RequestBody::Map { have_version: 1 });
    world.reply(node, &fetch, ReplyBody::Map(Some(Box::new(map(2, &[("", 3)])))));
    world.until_sent();
    let (node, second) = world.take_one();
    assert_eq!(second.group, GroupId(3));
    let RequestBody::Write { epoch, .. } = &second.body else { panic!("{second:?}") };
    assert_eq!(*epoch, Epoch(2));
    assert_eq!(tag(&first), tag(&second), "the session's table travels with the shard");
    world.done(node, &second, 12, put_done());
    assert_eq!(world.answers(), [(1, answer(12, put_done()))]);
}

#[test]
fn a_late_done_of_an_older_attempt_is_the_answer() {
    let mut world = one_group();
    world.op(1, put("a"));
    let (old, first) = world.take_one();
    world.pass(SECOND);
    let sent = world.take_all();
    let (new, second) = sent.iter().find(|(_, request)| !is_refresh(request)).expect("it times out and is sent again");
    assert_ne!((old, first.id), (*new, second.id), "to someone else");
    assert_eq!(tag(&first), tag(second));
    world.done(old, &first, 11, put_done());
    assert_eq!(world.answers(), [(1, answer(11, put_done()))]);
    world.done(*new, second, 11, put_done());
    world.done(old, &first, 11, put_done());
    assert_eq!(world.answers(), [], "nobody waits for these");
    assert_eq!(world.gateway.status().stray_replies, 2);
    world.assert_idle();
}

#[test]
fn a_late_reply_to_an_answered_call_is_not_taken_for_a_newer_call() {
    let mut world = one_group();
    world.op(1, get("a"));
    let (old, first) = world.take_one();
    world.step(Input::Cancel { token: 1 });
    world.op(1, get("a"));
    let (_, second) = world.take_one();
    assert_ne!(first.id, second.id);
    world.done(old, &first, 11, OpResult::Range(pairs(&["stale"])));
    assert_eq!(world.answers(), []);
}

#[test]
fn a_reply_from_another_node_than_asked_is_no_answer() {
    let mut world = one_group();
    world.op(1, get("a"));
    let (_, request) = world.take_one();
    world.done(NodeId(9), &request, 11, OpResult::Range(pairs(&["a"])));
    assert_eq!(world.answers(), []);
}

#[test]
fn an_answer_of_another_kind_is_an_unknown_outcome() {
    let mut world = one_group();
    world.op(1, put("a"));
    let (node, request) = world.take_one();
    world.done(node, &request, 11, OpResult::Range(pairs(&[])));
    assert_eq!(world.answers(), []);
    assert_eq!(tag(&world.take_one().1), tag(&request));
}

#[test]
fn a_failure_is_final_only_if_no_other_attempt_can_be_carried_out() {
    let fails = |world: &mut World, error: OpError| {
        let (node, request) = world.take_one();
        world.reply(node, &request, ReplyBody::Failed(error));
    };
    let mut world = one_group();
    world.op(1, put("a"));
    fails(&mut world, OpError::KeyNotFound);
    assert_eq!(world.answers(), [(1, Err(CallError::Failed(OpError::KeyNotFound)))]);

    // The first attempt may have found the key, and put it.
    world.op(2, put("a"));
    let (node, first) = world.take_one();
    world.reply(node, &first, ReplyBody::Lost);
    fails(&mut world, OpError::KeyNotFound);
    assert_eq!(world.answers(), [(2, Err(CallError::MAYBE_DONE))]);

    // A late failure of the first attempt says nothing about the second.
    world.op(3, put("a"));
    let (node, first) = world.take_one();
    world.step(Input::NodeDown { node });
    let (second_node, second) = world.take_one();
    world.reply(node, &first, ReplyBody::Failed(OpError::KeyNotFound));
    assert_eq!(world.answers(), []);
    // But now the second is the only one, and its failure is final.
    world.reply(second_node, &second, ReplyBody::Failed(OpError::KeyNotFound));
    assert_eq!(world.answers(), [(3, Err(CallError::Failed(OpError::KeyNotFound)))]);
    world.assert_idle();
}

#[test]
fn an_overloaded_leader_is_reported_at_once_unless_the_outcome_is_open() {
    let mut world = one_group();
    world.op(1, put("a"));
    let (node, request) = world.take_one();
    world.reply(node, &request, ReplyBody::Failed(OpError::Overloaded));
    assert_eq!(world.answers(), [(1, Err(CallError::Failed(OpError::Overloaded)))]);

    world.op(2, put("a"));
    let (node, first) = world.take_one();
    world.reply(node, &first, ReplyBody::Lost);
    let (node, second) = world.take_one();
    world.reply(node, &second, ReplyBody::Failed(OpError::Overloaded));
    assert_eq!(world.answers(), [], "whether the first was carried out is still open");
    world.until_sent();
    let (node, third) = world.take_one();
    assert_eq!(tag(&third), tag(&first));
    world.done(node, &third, 12, put_done());
    assert_eq!(world.answers(), [(2, answer(12, put_done()))]);
}

#[test]
fn an_expired_session_is_renewed_only_if_nothing_was_carried_out() {
    let mut world = one_group();
    world.op(1, put("a"));
    let (node, first) = world.take_one();
    world.reply(node, &first, ReplyBody::Failed(OpError::SessionExpired));
    let (sequencer, current) = world.take_one();
    assert_eq!(current.body, RequestBody::CurrentRevision, "the new session is born now");
    world.reply(sequencer, &current, ReplyBody::Current { revision: Revision(50) });
    let (node, second) = world.take_one();
    assert_ne!(tag(&first).session, tag(&second).session);
    assert_eq!((tag(&second).born, tag(&second).sequence), (Revision(50), 1));

    world.reply(node, &second, ReplyBody::Lost);
    let (node, third) = world.take_one();
    assert_eq!(tag(&third), tag(&second));
    world.reply(node, &third, ReplyBody::Failed(OpError::SessionExpired));
    assert_eq!(world.answers(), [(1, Err(CallError::MAYBE_DONE))], "never a silent second execution");
    world.assert_idle();
}

#[test]
fn keys_that_parted_after_an_unknown_outcome_leave_it_unknown() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 2)]));
    world.op(1, Op::Delete(shardkv::ops::Delete { keys: Keys::From(bytes("a")), prev_kv: false }));
    let (node, first) = world.take_one();
    world.reply(node, &first, ReplyBody::Lost);
    let (node, second) = world.take_one();
    world.reply(node, &second, ReplyBody::WrongShard);
    let (node, fetch) = world.take_one();
    world.reply(node, &fetch, ReplyBody::Map(Some(Box::new(map(2, &[("", 2), ("g", 3)])))));
    world.pass(10_000);
    assert_eq!(world.answers(), [(1, Err(CallError::MAYBE_DONE))], "not 'unimplemented', it may be done");
}

#[test]
fn a_stuck_call_does_not_hold_back_the_marks_of_other_groups() {
    let mut world = World::with_map(map(1, &[("", 2), ("g", 3)]));
    world.op(1, put("z"));
    let stuck = world.take_one().1;
    for token in 2..5 {
        world.op(token, put("a"));
        let (node, request) = world.take_one();
        assert_ne!(tag(&request).session, tag(&stuck).session);
        assert_eq!(tag(&request).low_water, token - 1);
        world.done(node, &request, 10 + token, put_done());
    }
}

#[test]
fn a_canceled_call_gives_its_sequence_up() {
    let mut world = one_group();
    world.op(1, put("a"));
    world.op(2, put("b"));
    world.take_all();
    world.step(Input::Cancel { token: 1 });
    world.op(3, put("c"));
    assert_eq!(tag(&world.take_one().1).low_water, 2);
    assert_eq!(world.answers(), []);
}

#[test]
fn the_budget_of_attempts_ends_a_call_that_nobody_wants() {
    let config = GatewayConfig { attempts_max: 5, ..GatewayConfig::default() };
    let mut world = World::with_config(map(1, &[("", 2)]), config);
    world.op(1, put("a"));
    let mut asked = 0;
    while world.gateway.status().calls > 0 {
        world.until_sent();
        for (node, request) in world.take_all().into_iter().filter(|(_, request)| !is_refresh(request)) {
            asked += 1;
            world.reply(node, &request, ReplyBody::NotLeader { hint: None });
            if world.gateway.status().calls == 0 {
                break;
            }
        }
        if world.sent.is_empty() && world.gateway.status().calls > 0 {
            let wake = world.wake_at.expect("it pauses");
            world.now = world.now.max(wake);
            world.step(Input::Tick);
        }
    }
    assert_eq!(asked, 5);
    assert_eq!(world.answers(), [(1, Err(CallError::NOTHING_DONE))]);
}

/// Whoever leads by now is asked for no longer because others, who do not, said so.
#[test]
fn only_silence_lengthens_the_patience_for_an_answer() {
    let mut world = one_group();
    world.op(1, put("a"));
    let write = |world: &mut World| {
        world.take_all().into_iter().find(|(_, request)| matches!(request.body, RequestBody::Write { .. }))
    };
    for _ in 0..3 {
        let (node, request) = write(&mut world).expect("the next one is asked at once");
        world.reply(node, &request, ReplyBody::NotLeader { hint: None });
    }
    assert!(write(&mut world).is_some());
    let mut silent = |micros: u64| {
        world.pass(micros);
        write(&mut world).is_some()
    };
    assert!(!silent(SECOND - 100_000) && silent(200_000), "the second time is as long as the first");
    assert!(!silent(2 * SECOND - 400_000) && silent(400_000), "it may have been too much for one second");
}
