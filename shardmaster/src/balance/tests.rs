//! The plans are carried out in a model, in which requests go to keys, until they end.

use super::*;
use crate::load::Stored;
use crate::state::{MasterCommand, MasterOutcome, MasterState};
use bytes::Bytes;
use shardkv::map::{GroupInfo, SHARDMASTER_GROUP};
use shardkv::types::MoveId;

/// A key of four digits.
fn key(number: u64) -> Bytes {
    Bytes::from(format!("{number:04}"))
}

const KEYS: u64 = 1000;

struct World {
    state: MasterState,
    /// Requests per second and bytes of each key.
    keys: Vec<(u64, u64)>,
    policy: Policy,
    moves: usize,
    /// Other than 0: middles are told only about, by chance.
    noise: u64,
}

impl World {
    /// Groups 2, 3, … and shards cut at these keys, dealt out in turn.
    fn new(groups: u64, cuts: &[u64], keys: impl Fn(u64) -> (u64, u64)) -> World {
        let ids: Vec<GroupId> = (2..2 + groups).map(GroupId).collect();
        let cuts: Vec<Bytes> = cuts.iter().map(|at| key(*at)).collect();
        let map = ShardMap {
            shards: crate::initial_shards(&cuts, &ids),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, Vec::new()),
            groups: ids.iter().map(|id| GroupInfo::new(*id, Vec::new())).collect(),
            ..ShardMap::default()
        };
        let mut state = MasterState::default();
        assert_eq!(state.apply(MasterCommand::Genesis(Box::new(map))), MasterOutcome::Applied);
        World { state, keys: (0..KEYS).map(keys).collect(), policy: Policy::default(), moves: 0, noise: 0 }
    }

    /// Where a sample of 64 keys has its median, in thousandths.
    fn middle_of(&self, shard: ShardId) -> u64 {
        let mut bits = self.noise ^ shard.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let heads: u32 = (0..4)
            .map(|_| {
                bits ^= bits << 13;
                bits ^= bits >> 7;
                bits ^= bits << 17;
                bits.count_ones()
            })
            .sum();
        // 256 coins, of which 8 are a standard deviation: of a median of 64, that is 1/16.
        if self.noise == 0 { 500 } else { (500 + u64::from(heads) * 8).saturating_sub(128 * 8) }
    }

    fn load(&self, shard: &ShardInfo) -> ShardLoad {
        let mine: Vec<u64> = (0..KEYS).filter(|number| shard.bounds.contains(&key(*number))).collect();
        let rate = |number: &u64| self.keys[*number as usize].0;
        let (all, bytes) = (mine.iter().map(rate).sum::<u64>(), mine.iter().map(|n| self.keys[*n as usize].1).sum());
        let mut before = 0;
        let half = mine.iter().find(|number| {
            before += rate(number);
            before * 1000 >= all * self.middle_of(shard.id)
        });
        let hot = half.filter(|number| rate(number) * 2 > all);
        let middle = half.filter(|_| hot.is_none() && all > 0).map(|number| key(number + 1));
        let hottest = hot.map(|number| (key(*number), 900)).into_iter().collect();
        let stored = Some(Stored { bytes, keys: mine.len() as u64 });
        ShardLoad { shard: shard.id, epoch: shard.epoch, reads: all, writes: 0, stored, middle, hottest }
    }

    fn facts(&self) -> Facts {
        let loads: BTreeMap<ShardId, ShardLoad> =
            self.state.map.shards.iter().map(|shard| (shard.id, self.load(shard))).collect();
        let cold = loads.iter().filter(|(_, load)| load.reads < 5).map(|(shard, _)| *shard).collect();
        let led = self.state.map.groups.iter().map(|group| group.id).collect();
        Facts { loads, cold, led, was_apart: true, ..Facts::default() }
    }

    fn plan(&self) -> Plan {
        plan(&self.state.map, &self.facts(), self.policy)
    }

    /// One plan, carried out; whether there was anything to do.
    fn round(&mut self) -> bool {
        let plan = self.plan();
        for step in &plan.steps {
            let change = match step {
                Step::Change(change) => change.clone(),
                Step::Halve(shard) => {
                    let info = self.state.map.shard(*shard).expect("it is there");
                    let mine: Vec<u64> = (0..KEYS).filter(|number| info.bounds.contains(&key(*number))).collect();
                    ShardChange::Split { shard: *shard, at: key(mine[mine.len() / 2]) }
                }
            };
            self.moves += usize::from(matches!(change, ShardChange::Move { .. }));
            let outcome = self.state.apply(MasterCommand::ChangeShards(change));
            let MasterOutcome::Move(id) = outcome else { panic!("{step:?}: {outcome:?}") };
            self.state.apply(MasterCommand::Arrived { mv: id });
            self.state.apply(MasterCommand::Reshaped { by: id });
        }
        !plan.steps.is_empty()
    }

    /// Rounds until nothing is to be done.
    fn settle(&mut self) -> usize {
        let rounds = (0..60).take_while(|_| self.round()).count();
        assert!(rounds < 60, "it never ends: {:?}", self.plan());
        rounds
    }

    fn carried(&self, of: impl Fn(&ShardLoad) -> u64) -> BTreeMap<GroupId, u64> {
        let mut sums: BTreeMap<GroupId, u64> = self.state.map.groups.iter().map(|group| (group.id, 0)).collect();
        for shard in &self.state.map.shards {
            *sums.entry(shard.group).or_default() += of(&self.load(shard));
        }
        sums
    }

    /// How much the groups differ, in thousandths of a fair share.
    fn spread(&self, of: impl Fn(&ShardLoad) -> u64) -> u64 {
        let sums = self.carried(of);
        let (most, least) = (sums.values().max().unwrap_or(&0), sums.values().min().unwrap_or(&0));
        (most - least) * 1000 * sums.len() as u64 / sums.values().sum::<u64>().max(1)
    }
}

#[test]
fn a_hot_range_on_one_of_four_groups_is_spread() {
    let mut world = World::new(4, &[250, 500, 750], |number| if number < 250 { (40, 100) } else { (0, 100) });
    assert_eq!(world.spread(|load| load.reads), 4000);
    let rounds = world.settle();
    assert!(rounds < 15, "{rounds} rounds");
    assert!(world.spread(|load| load.reads) < 250, "{:?}", world.carried(|load| load.reads));
    assert!(!world.round(), "and it stays");
}

#[test]
fn what_is_balanced_is_left_alone() {
    let mut world = World::new(4, &[125, 250, 375, 500, 625, 750, 875], |_| (10, 1 << 20));
    assert_eq!(world.plan().steps, []);
    // A little more here and there is no reason, either.
    world.keys.iter_mut().take(250).for_each(|(rate, _)| *rate = 11);
    assert_eq!(world.plan().steps, []);
}

#[test]
fn one_hot_key_is_named_and_not_split_for_ever() {
    let mut world = World::new(2, &[500], |number| if number == 7 { (9000, 1) } else { (1, 1) });
    world.settle();
    assert!(world.state.map.shards.len() < 8, "{:?}", world.state.map.shards);
    let why = world.plan().why;
    assert!(why.iter().any(|line| line.contains("for the one key 0007")), "{why:?}");
}

#[test]
fn a_large_shard_is_split_and_bytes_are_spread() {
    let mut world = World::new(2, &[], |_| (0, 4 << 20));
    world.settle();
    assert!(
        world.state.map.shards.iter().all(|shard| world.load(shard).stored.expect("it is known").bytes <= 512 << 20)
    );
    assert!(world.spread(|load| load.stored.map_or(0, |stored| stored.bytes)) < 600);
    let moves = world.moves;
    assert!(!world.round() && moves <= 4, "{moves} moves");
}

#[test]
fn small_cold_neighbours_are_merged_but_a_few_are_left() {
    let cuts: Vec<u64> = (1..20).map(|at| at * 50).collect();
    let mut world = World::new(1, &cuts, |_| (0, 10));
    world.settle();
    assert_eq!(world.state.map.shards.len(), SHARDS_PER_GROUP);
}

#[test]
fn pinned_keys_lie_where_they_are_pinned_whatever_the_load() {
    let mut world = World::new(3, &[500], |number| if number < 100 { (50, 10) } else { (1, 10) });
    let pin = Pin { prefix: "00".into(), group: GroupId(4) };
    world.state.apply(MasterCommand::ChangeShards(ShardChange::Pin(pin.clone())));
    world.settle();
    for shard in world.state.map.shards.iter().filter(|shard| shard.bounds.intersects(&pin.bounds().keys())) {
        assert_eq!(shard.group, GroupId(4), "{shard:?}");
        assert!(pin.bounds().covers(&shard.bounds.keys()), "{shard:?} has other keys, too");
    }
}

#[test]
fn a_group_that_is_to_go_is_emptied() {
    let mut world = World::new(3, &[200, 400, 600, 800], |_| (10, 1 << 10));
    world.state.map.groups[1].emptying = true;
    world.settle();
    assert_eq!(world.state.map.shards.iter().filter(|shard| shard.group == GroupId(3)).count(), 0);
    world.state.map.groups.iter_mut().for_each(|group| group.emptying = true);
    assert_eq!(world.plan().steps, [], "there is nowhere to go to");
}

#[test]
fn a_new_group_gets_its_share() {
    let mut world = World::new(2, &[125, 250, 375, 500, 625, 750, 875], |_| (0, 10));
    world.state.map.groups.push(GroupInfo::new(GroupId(4), Vec::new()));
    world.settle();
    let counts = world.carried(|_| 1);
    assert!(counts[&GroupId(4)] >= 2, "{counts:?}");
}

#[test]
fn pausing_explains_and_does_nothing() {
    let mut world = World::new(4, &[250, 500, 750], |number| if number < 250 { (40, 100) } else { (0, 100) });
    world.state.apply(MasterCommand::ChangeShards(ShardChange::Pause { paused: true }));
    let plan = world.plan();
    assert!(plan.steps.is_empty() && plan.why.iter().any(|line| line.contains("paused")), "{plan:?}");
    assert!(plan.why.iter().any(|line| line.contains("is split")), "{plan:?}");
}

#[test]
fn what_changes_already_or_rests_is_left_alone() {
    let mut world = World::new(2, &[250, 500, 750], |number| if number < 250 { (40, 100) } else { (0, 100) });
    let hot = world.state.map.shards[0].id;
    let mut facts = world.facts();
    facts.resting.insert(hot);
    assert_eq!(plan(&world.state.map, &facts, world.policy).steps, []);
    let moved = world.state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard: hot, to: GroupId(3) }));
    assert_eq!(moved, MasterOutcome::Move(MoveId(1)));
    let steps = world.plan().steps;
    assert!(
        !steps.iter().any(|step| matches!(step, Step::Change(ShardChange::Split { shard, .. }) if *shard == hot)),
        "{steps:?}"
    );
}

#[test]
fn a_group_without_a_leader_is_left_alone() {
    let mut world =
        World::new(3, &[125, 250, 375, 500, 625, 750, 875], |number| if number < 125 { (40, 10) } else { (1, 10) });
    world.state.map.groups.push(GroupInfo::new(GroupId(5), Vec::new()));
    let mut facts = world.facts();
    facts.led.retain(|group| *group <= GroupId(3));
    let named = |plan: &Plan| format!("{:?}", plan.steps);
    let steps = plan(&world.state.map, &facts, world.policy);
    assert!(
        !steps.steps.is_empty() && !named(&steps).contains("GroupId(4)") && !named(&steps).contains("GroupId(5)"),
        "{steps:?}"
    );
    // Where it is quiet, too.
    world.keys.iter_mut().for_each(|(rate, _)| *rate = 0);
    let mut quiet = Facts { led: facts.led.clone(), ..world.facts() };
    assert_eq!(plan(&world.state.map, &quiet, world.policy).steps, []);
    quiet.led.clear();
    assert_eq!(plan(&world.state.map, &quiet, world.policy).steps, []);
}

/// One shard has nearly everything: wherever it is, its group has too much.
#[test]
fn a_shard_that_has_most_of_the_load_does_not_go_to_and_fro() {
    let mut world = World::new(2, &[500], |number| if number == 7 { (5000, 400 << 20) } else { (0, 10) });
    world.keys[900] = (10, 10);
    world.settle();
    let moves = world.moves;
    for noise in [0, 20, 5, 40, 0] {
        world.keys[900] = (noise, 10);
        world.keys[450] = (40 - noise, 10 + noise);
        world.settle();
    }
    assert_eq!(world.moves, moves, "{:?}", world.plan());
}

#[test]
fn what_has_not_been_measured_is_not_taken_for_empty() {
    let world = World::new(2, &[250, 500, 750], |_| (0, 1 << 20));
    let mut facts = world.facts();
    for shard in world.state.map.shards.iter().filter(|shard| shard.group == GroupId(3)) {
        facts.loads.entry(shard.id).or_default().stored = None;
    }
    assert_eq!(plan(&world.state.map, &facts, world.policy).steps, []);
}

#[test]
fn a_large_shard_without_a_middle_is_named_and_may_move() {
    let mut world = World::new(2, &[500], |number| if number == 7 { (300, 600 << 20) } else { (1, 1) });
    world.keys[400] = (200, 1);
    let mut facts = world.facts();
    let large = world.state.map.shards[0].id;
    facts.whole.insert(large);
    let plan = plan(&world.state.map, &facts, world.policy);
    assert!(!plan.steps.contains(&Step::Halve(large)), "{plan:?}");
    assert!(plan.why.iter().any(|line| line.contains("one key has most of it")), "{plan:?}");
}

#[test]
fn an_odd_gap_is_a_gap() {
    let mut world = World::new(2, &[100, 200, 301], |number| if number < 301 { (3, 1) } else { (0, 1) });
    world.policy.requests_min = 1;
    world.settle();
    assert!(world.spread(|load| load.reads) < 350, "{:?}", world.carried(|load| load.reads));
}

/// Moves from or to a group that has lost its leader never end while it has none: others go on meanwhile.
#[test]
fn moves_that_wait_for_a_leader_do_not_keep_others_waiting() {
    let mut world = World::new(4, &[100, 200, 300, 400, 500, 600, 700, 800], |_| (1, 1));
    world.policy.moves_max = 2;
    let (silent, last) = (GroupId(2), GroupId(5));
    let stuck: Vec<ShardId> =
        world.state.map.shards.iter().filter(|shard| shard.group == silent).map(|shard| shard.id).collect();
    assert!(stuck.len() >= 2);
    for shard in stuck {
        world.state.apply(MasterCommand::ChangeShards(ShardChange::Move { shard, to: GroupId(3) }));
    }
    let empty = shardkv::map::GroupChange::Empty { group: last, emptying: true };
    world.state.apply(MasterCommand::ChangeGroups(empty));
    let mut facts = world.facts();
    facts.led.remove(&silent);
    let plan = plan(&world.state.map, &facts, world.policy);
    let from = |step: &Step| match step {
        Step::Change(ShardChange::Move { shard, .. }) => world.state.map.shard(*shard).map(|shard| shard.group),
        _ => None,
    };
    assert!(plan.steps.iter().any(|step| from(step) == Some(last)), "{plan:?}");
    assert!(plan.why.iter().any(|why| why.contains("waits for a leader of g2")), "{plan:?}");
}

/// What is moved is to be as safe as it was before.
#[test]
fn groups_with_fewer_replicas_get_nothing_by_themselves() {
    let mut world = World::new(3, &[100, 200, 300, 400, 500, 600, 700, 800], |n| (if n < 400 { 100 } else { 0 }, 1));
    let nodes = |count: u64| (1..=count).map(paxos::NodeId).collect::<Vec<_>>();
    for (group, count) in world.state.map.groups.iter_mut().zip([3, 1, 5]) {
        group.replicas = nodes(count);
    }
    let before = world.state.map.shards.iter().filter(|shard| shard.group == GroupId(3)).count();
    world.settle();
    let after = world.state.map.shards.iter().filter(|shard| shard.group == GroupId(3)).count();
    assert!(after <= before, "{:?}", world.state.map.shards);
    let why = world.plan().why;
    let small = why.iter().find(|why| why.starts_with("g3:") && why.contains("fewer replicas")).expect("it is named");
    let carries = world.carried(|load| load.reads)[&GroupId(3)];
    assert!(carries > 0 && small.contains(&format!(" {carries} requests/s")), "{carries}: {small}");
}

/// Keys 0 to 99 lie in ten shards of g2, the others in nine of g3; g4 has just come.
fn two_groups_and_a_new_one(keys: impl Fn(u64) -> (u64, u64)) -> World {
    let cuts: Vec<u64> = (1..10).map(|at| at * 10).chain((1..10).map(|at| at * 100)).collect();
    let mut world = World::new(3, &cuts, keys);
    world
        .state
        .map
        .shards
        .iter_mut()
        .enumerate()
        .for_each(|(at, shard)| shard.group = GroupId(2 + u64::from(at >= 10)));
    world
}

#[test]
fn a_group_with_one_hot_key_does_not_keep_others_from_giving() {
    let mut world = two_groups_and_a_new_one(|number| match number {
        7 => (5000, 1),
        number if number >= 100 => (5, 1),
        _ => (0, 1),
    });
    world.settle();
    let carried = world.carried(|load| load.reads);
    assert!(carried[&GroupId(3)] < 3000 && carried[&GroupId(4)] > 1500, "{carried:?}");
    let why = world.plan().why;
    assert!(why.iter().any(|line| line.contains("no shard that may move would help")), "{why:?}");
}

/// Pins keys 0 to 99 to g2.
fn pin(world: &mut World) -> Pin {
    let pin = Pin { prefix: "00".into(), group: GroupId(2) };
    let pinned = world.state.apply(MasterCommand::ChangeShards(ShardChange::Pin(pin.clone())));
    assert_eq!(pinned, MasterOutcome::Applied);
    pin
}

#[test]
fn a_group_of_pinned_shards_does_not_keep_others_from_giving() {
    for bytes in [1, 1 << 20] {
        let mut world = two_groups_and_a_new_one(|number| (0, if number < 100 { 20 * bytes } else { bytes }));
        pin(&mut world);
        world.settle();
        let counts = world.carried(|_| 1);
        assert!(counts[&GroupId(4)] >= 3, "{bytes}: {counts:?}");
    }
}

#[test]
fn what_is_pinned_is_not_split_for_its_load_and_its_pieces_are_merged() {
    let mut world = two_groups_and_a_new_one(|number| (if number < 100 { 100 } else { 1 }, 1));
    let pin = pin(&mut world);
    world.settle();
    let pinned = |world: &World| {
        let shards = world.state.map.shards.iter().filter(|shard| pin.bounds().intersects(&shard.bounds.keys()));
        assert!(shards.clone().all(|shard| pin.bounds().covers(&shard.bounds.keys())));
        shards.count()
    };
    assert_eq!(pinned(&world), 10);
    world.keys.iter_mut().for_each(|(rate, _)| *rate = 0);
    world.settle();
    assert!(pinned(&world) < 4, "{:?}", world.state.map.shards);
}

#[test]
fn large_shards_that_cannot_be_split_do_not_keep_others_from_it() {
    let cuts: Vec<u64> = (1..10).map(|at| at * 100).collect();
    let world = World::new(1, &cuts, |_| (0, 10 << 20));
    let whole = world.state.map.shards.iter().map(|shard| shard.id).take(9).collect();
    let plan = plan(&world.state.map, &Facts { whole, ..world.facts() }, world.policy);
    assert_eq!(plan.steps, [Step::Halve(ShardId(10))], "{:?}", plan.why);
}

/// A sample tells the middle of a shard's requests only about.
#[test]
fn however_samples_fall_the_groups_end_near_each_other() {
    for seed in 1..80 {
        let mut world = World::new(4, &[250, 500, 750], |number| if number < 250 { (40, 100) } else { (0, 100) });
        world.noise = seed * 7919;
        world.settle();
        let spread = world.spread(|load| load.reads);
        assert!(spread < 220, "{seed}: {spread}, {:?}", world.carried(|load| load.reads));
    }
}

/// A second of few requests says little.
#[test]
fn wavering_is_no_reason() {
    let mut world = World::new(4, &[125, 250, 375, 500, 625, 750, 875], |_| (1, 1 << 10));
    world.keys.iter_mut().enumerate().for_each(|(at, (rate, _))| *rate = u64::from(at >= 50));
    assert!(world.spread(|load| load.reads) > 180, "{:?}", world.carried(|load| load.reads));
    assert_eq!(world.plan().steps, []);
    world.keys.iter_mut().for_each(|(rate, _)| *rate *= 10);
    assert_ne!(world.plan().steps, [], "of many requests it would be one");
}

/// A group that falters for a moment, or whose new leader has counted for half a window only, is not idle.
#[test]
fn what_differs_for_one_round_only_is_no_reason() {
    let mut world = World::new(4, &[125, 250, 375, 500, 625, 750, 875], |_| (40, 1 << 10));
    world.keys.iter_mut().take(125).for_each(|(rate, _)| *rate = 0);
    let first = Facts { was_apart: false, ..world.facts() };
    let plan = plan(&world.state.map, &first, world.policy);
    assert!(plan.apart && plan.steps.is_empty(), "{plan:?}");
    assert_ne!(world.plan().steps, [], "where it lasts it is one");
}

/// Two large shards in one group of two, with 14 % of a fair share of the requests each: one moves for its bytes only if it
/// does not come back for its requests.
#[test]
fn bytes_and_requests_do_not_undo_each_other() {
    let cuts: Vec<u64> = (1..50).map(|at| at * 20).collect();
    let mut world = World::new(2, &cuts, |number| match number / 20 {
        0 | 2 => (70, 10 << 20),
        shard if shard % 2 == 0 => (16, 0),
        _ => (20, 0),
    });
    world.settle();
    assert_eq!(world.moves, 0, "{:?}", world.plan());
}
