//! Ranges over several groups.

use super::*;
use shardkv::ops::{Sort, SortTarget};
use shardkv::request::{OpError, ReadMode};

fn two_groups() -> World {
    World::with_map(map(1, &[("", 2), ("g", 3), ("p", 2)]))
}

/// Answers the sequencer's question, which must be the only request.
fn take_revision(world: &mut World, revision: u64) {
    let (node, request) = world.take_one();
    assert_eq!(request.body, RequestBody::CurrentRevision);
    world.reply(node, &request, ReplyBody::Current { revision: Revision(revision) });
}

fn modes(sent: &[(NodeId, Request)]) -> Vec<(u64, usize, ReadMode)> {
    sent.iter()
        .map(|(_, request)| match &request.body {
            RequestBody::Read { shards, mode, .. } => (request.group.0, shards.len(), *mode),
            other => panic!("not a read: {other:?}"),
        })
        .collect()
}

#[test]
fn all_groups_are_read_at_one_revision_of_the_sequencer() {
    let mut world = two_groups();
    world.op(1, Op::Range(all()));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    let at = ReadMode::At(Revision(30));
    assert_eq!(modes(&sent), [(2, 2, at), (3, 1, at)], "one request per group, naming all its shards");
    world.done(sent[1].0, &sent[1].1, 30, OpResult::Range(pairs(&["h", "k"])));
    assert_eq!(world.answers(), []);
    world.done(sent[0].0, &sent[0].1, 30, OpResult::Range(pairs(&["a", "z"])));
    assert_eq!(world.answers(), [(1, answer(30, OpResult::Range(pairs(&["a", "h", "k", "z"]))))]);
    world.assert_idle();
}

#[test]
fn the_revision_is_taken_after_the_call_arrived() {
    let mut world = two_groups();
    world.op(1, Op::Range(all()));
    let (node, first) = world.take_one();
    world.op(2, Op::Range(all()));
    assert!(world.take_all().is_empty());
    world.reply(node, &first, ReplyBody::Current { revision: Revision(30) });
    let sent = world.take_all();
    let (second, reads): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(_, request)| is_refresh(request));
    assert_eq!(reads.len(), 2, "the question that was under way serves the first call only");
    world.reply(second[0].0, &second[0].1, ReplyBody::Current { revision: Revision(31) });
    assert!(modes(&world.take_all()).iter().all(|(_, _, mode)| *mode == ReadMode::At(Revision(31))));
}

#[test]
fn an_explicit_revision_is_read_and_the_header_is_current() {
    let mut world = two_groups();
    world.op(1, Op::Range(Range { revision: Revision(5), ..all() }));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    assert!(modes(&sent).iter().all(|(_, _, mode)| *mode == ReadMode::At(Revision(5))));
    for (node, request) in &sent {
        world.done(*node, request, 5, OpResult::Range(pairs(&[])));
    }
    assert_eq!(world.answers(), [(1, answer(30, OpResult::Range(pairs(&[]))))]);

    world.op(2, Op::Range(Range { revision: Revision(5), ..all() }));
    take_revision(&mut world, 31);
    let (node, request) = world.take_all().remove(0);
    let error = OpError::Compacted { floor: Revision(6) };
    world.reply(node, &request, ReplyBody::Failed(error.clone()));
    assert_eq!(world.answers(), [(2, Err(CallError::Failed(error)))]);
    world.assert_idle();
}

#[test]
fn a_group_that_fails_over_midway_is_asked_again_at_the_same_revision() {
    let mut world = two_groups();
    world.op(1, Op::Range(all()));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    world.done(sent[0].0, &sent[0].1, 30, OpResult::Range(pairs(&["a"])));
    world.step(Input::NodeDown { node: sent[1].0 });
    let (node, request) = world.take_one();
    assert_ne!(node, sent[1].0);
    assert_eq!(modes(&[(node, request.clone())]), [(3, 1, ReadMode::At(Revision(30)))]);
    world.done(node, &request, 30, OpResult::Range(pairs(&["h"])));
    assert_eq!(world.answers(), [(1, answer(30, OpResult::Range(pairs(&["a", "h"]))))]);
}

#[test]
fn a_move_midway_starts_the_whole_read_over() {
    let mut world = two_groups();
    world.op(1, Op::Range(all()));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    world.done(sent[0].0, &sent[0].1, 30, OpResult::Range(pairs(&["a"])));
    world.reply(sent[1].0, &sent[1].1, ReplyBody::WrongShard);
    let (node, fetch) = world.take_one();
    // Now both groups own what the other did: keeping the first answer would count keys twice.
    world.reply(node, &fetch, ReplyBody::Map(Some(Box::new(map(2, &[("", 3), ("g", 2)])))));
    world.until_sent();
    take_revision(&mut world, 33);
    let sent = world.take_all();
    let at = ReadMode::At(Revision(33));
    assert_eq!(modes(&sent), [(3, 1, at), (2, 1, at)]);
    world.done(sent[0].0, &sent[0].1, 33, OpResult::Range(pairs(&["a"])));
    world.done(sent[1].0, &sent[1].1, 33, OpResult::Range(pairs(&["h"])));
    assert_eq!(world.answers(), [(1, answer(33, OpResult::Range(pairs(&["a", "h"]))))]);
    world.assert_idle();
}

#[test]
fn a_revision_that_we_chose_and_that_was_collected_is_chosen_anew() {
    let mut world = two_groups();
    world.op(1, Op::Range(all()));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    world.reply(sent[0].0, &sent[0].1, ReplyBody::Failed(OpError::Compacted { floor: Revision(40) }));
    assert_eq!(world.answers(), []);
    take_revision(&mut world, 45);
    assert!(modes(&world.take_all()).iter().all(|(_, _, mode)| *mode == ReadMode::At(Revision(45))));
}

#[test]
fn limits_and_counts_hold_over_groups() {
    let mut world = two_groups();
    world.op(1, Op::Range(Range { limit: 2, ..all() }));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    let part = |keys: &[&str], count, more| OpResult::Range(RangeResult { count, more, ..pairs(keys) });
    world.done(sent[0].0, &sent[0].1, 30, part(&["a", "q"], 5, true));
    world.done(sent[1].0, &sent[1].1, 30, part(&["h"], 1, false));
    assert_eq!(world.answers(), [(1, answer(30, part(&["a", "h"], 6, true)))]);
}

#[test]
fn sorting_by_value_over_groups_needs_the_values_even_of_a_keys_only_range() {
    let mut world = two_groups();
    let sort = Sort { target: SortTarget::Value, descending: false };
    world.op(1, Op::Range(Range { sort, keys_only: true, ..all() }));
    take_revision(&mut world, 30);
    let sent = world.take_all();
    let valued = |key: &str, value: &str| {
        let pair = KeyValue { key: bytes(key), value: bytes(value), ..KeyValue::default() };
        OpResult::Range(RangeResult { kvs: vec![pair], more: false, count: 1 })
    };
    for ((node, request), (key, value)) in sent.iter().zip([("a", "2"), ("h", "1")]) {
        let RequestBody::Read { op: Op::Range(range), .. } = &request.body else { panic!("{request:?}") };
        assert!(!range.keys_only);
        world.done(*node, request, 30, valued(key, value));
    }
    assert_eq!(world.answers(), [(1, answer(30, OpResult::Range(pairs(&["h", "a"]))))]);
}

#[test]
fn serializable_ranges_need_no_sequencer_and_answer_the_smallest_revision() {
    let mut world = two_groups();
    world.call(1, Call::Op { op: Op::Range(all()), serializable: true });
    let sent = world.take_all();
    assert!(modes(&sent).iter().all(|(_, _, mode)| *mode == ReadMode::Serializable));
    world.done(sent[0].0, &sent[0].1, 9, OpResult::Range(pairs(&["a"])));
    world.done(sent[1].0, &sent[1].1, 6, OpResult::Range(pairs(&["h"])));
    assert_eq!(world.answers(), [(1, answer(6, OpResult::Range(pairs(&["a", "h"]))))]);
}

#[test]
fn an_answer_beyond_its_memory_is_refused() {
    let config = GatewayConfig { answer_bytes_max: 100, ..GatewayConfig::default() };
    let mut world = World::with_config(map(1, &[("", 2), ("g", 3)]), config);
    world.op(1, Op::Range(all()));
    take_revision(&mut world, 30);
    let (node, request) = world.take_all().remove(0);
    world.done(node, &request, 30, OpResult::Range(pairs(&["a", "b"])));
    assert_eq!(world.answers(), [(1, Err(CallError::AnswerTooLarge { limit_bytes: 100 }))]);
    world.assert_idle();
}
