//! What a seed stands for: the cluster's shape, its settings, its clients and the faults that it
//! will meet. Everything follows from the seed and the options, so a seed is a whole test case.

use crate::mutant::Mutant;
use crate::network::Quality;
use crate::random::Random;
use bytes::Bytes;
use node::core::{Limits, ReadMode};
use paxos::{GroupId, NodeId};
use shardkv::SessionLimits;
use shardkv::map::SHARDMASTER_GROUP;
use shardmaster::balance::Policy;
use std::collections::BTreeSet;

/// What the caller chooses beside the seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Simulated seconds with faults; healing and converging come on top.
    pub seconds: u64,
    /// Print every line of the trace.
    pub trace: bool,
    /// A fault of the host itself, to prove that the checkers see it.
    pub mutant: Option<Mutant>,
    /// Rot may happen.
    pub rot: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { seconds: 40, trace: false, mutant: None, rot: true }
    }
}

/// A fault that strikes now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Links between two sets of nodes are cut in both directions.
    Partition,
    /// One node no longer hears another.
    OneWayCut,
    /// A node stands still, and goes on later as if nothing had happened.
    Pause,
    /// A process dies; what it wrote to files stays.
    ProcessCrash,
    /// A machine loses power: any unsynced sector may be lost.
    PowerCut,
    /// All machines lose power at once.
    PowerCutEverywhere,
    /// A node is down for so long that the others forget what it lacks.
    LongOutage,
    /// A gateway dies and starts anew.
    GatewayCrash,
    /// A disk has no space for a while.
    DiskFull,
    /// A sync fails; the node must stop.
    SyncError,
    /// The disk becomes slow for a while.
    SlowDisk,
    /// A bit of a synced part of the log flips while the node is down; on one node only.
    Rot,
}

const FAULTS: &[Fault] = &[
    Fault::Partition,
    Fault::OneWayCut,
    Fault::Pause,
    Fault::ProcessCrash,
    Fault::PowerCut,
    Fault::PowerCutEverywhere,
    Fault::LongOutage,
    Fault::GatewayCrash,
    Fault::DiskFull,
    Fault::SyncError,
    Fault::SlowDisk,
    Fault::Rot,
];

/// What a seed stands for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The caller's part.
    pub options: Options,
    /// The nodes that the cluster was formed with.
    pub founders: Vec<NodeId>,
    /// All nodes that there ever were; those that join come behind the founders.
    pub nodes: Vec<NodeId>,
    /// All groups with their replicas, the shardmaster's first.
    pub groups: Vec<(GroupId, Vec<NodeId>)>,
    /// Where shards end.
    pub boundaries: Vec<Bytes>,
    /// The keys that clients use.
    pub keys: Vec<Bytes>,
    /// How reads are checked.
    pub read_mode: ReadMode,
    /// For each gateway the node that it runs inside, if any.
    pub gateways: Vec<Option<NodeId>>,
    /// How many clients.
    pub clients: u64,
    /// A client's longest pause between two requests.
    pub think_micros_max: u64,
    /// Whether clients compact, and how long collection lags behind.
    pub compaction: Option<u64>,
    /// Bounds of the nodes' queues.
    pub limits: Limits,
    /// Bounds of the shards' session tables.
    pub sessions: SessionLimits,
    /// The log's segments.
    pub segment_bytes: u64,
    /// How many recycled segments are kept.
    pub spares_max: usize,
    /// A sync usually takes up to this.
    pub sync_micros_max: u64,
    /// Applying usually takes up to this.
    pub apply_micros_max: u64,
    /// So does reading a range, but where ranges are large and take up to this.
    pub scan_micros_max: Option<u64>,
    /// The network's quality and latency.
    pub quality: Quality,
    /// See above.
    pub latency_micros: u64,
    /// The faults that may strike.
    pub faults: Vec<Fault>,
    /// The longest pause between two of them.
    pub calm_micros_max: u64,
    /// The node whose disk may rot.
    pub rotting: NodeId,
    /// Whether members change, and the longest pause between two wishes.
    pub changes_micros_max: Option<u64>,
    /// What the balancer goes by, in some runs; with thresholds that small runs meet.
    pub balance: Option<Policy>,
    /// Whether shards move and are cut anew, and the longest pause between two wishes.
    pub moves_micros_max: Option<u64>,
    /// Whether nodes lose their disks for good, and the longest pause between two such losses.
    pub losses_micros_max: Option<u64>,
    /// A node that is silent for so long is replaced by itself; 0 for never.
    pub dead_after_micros: u64,
    /// When a replica's state goes wrong, in some runs.
    pub spoils_at_micros: Option<u64>,
}

fn shape(random: &mut Random) -> (Vec<NodeId>, Vec<(GroupId, Vec<NodeId>)>) {
    let count = match random.below(100) {
        0..74 => 3,
        74..92 => 5,
        _ => 1,
    };
    let nodes: Vec<NodeId> = (1..=count).map(NodeId).collect();
    let mut groups = Vec::new();
    let data_groups = random.between(1, 3);
    for id in SHARDMASTER_GROUP.0..=SHARDMASTER_GROUP.0 + data_groups {
        let some = count == 5 && random.chance(600);
        let mut replicas: BTreeSet<NodeId> = nodes.iter().copied().collect();
        while some && replicas.len() > 3 {
            replicas.remove(&NodeId(random.between(1, count)));
        }
        groups.push((GroupId(id), replicas.into_iter().collect()));
    }
    (nodes, groups)
}

fn keyspace(random: &mut Random) -> (Vec<Bytes>, Vec<Bytes>) {
    let letter = |number: u64| Bytes::from(vec![b'a' + u8::try_from(number).unwrap_or(25)]);
    let boundaries: BTreeSet<Bytes> = (0..random.between(1, 5)).map(|_| letter(random.between(1, 25))).collect();
    let keys: BTreeSet<Bytes> = (0..random.between(4, 24))
        .map(|_| Bytes::from([letter(random.below(26)).as_ref(), b"/", &[b'0' + (random.below(4) as u8)]].concat()))
        .collect();
    (boundaries.into_iter().collect(), keys.into_iter().collect())
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, options: Options) -> Plan {
        let random = &mut Random::new(seed, 1);
        let (nodes, groups) = shape(random);
        let (boundaries, keys) = keyspace(random);
        let gateways = (0..random.between(1, 3))
            .map(|_| if random.chance(500) { random.pick(&nodes).copied() } else { None })
            .collect();
        let calm = random.chance(50);
        let likelihood = random.between(300, 900);
        let enabled = |fault: &Fault, random: &mut Random| {
            let possible = match fault {
                Fault::Rot => options.rot && nodes.len() > 1,
                Fault::Partition | Fault::OneWayCut | Fault::LongOutage => nodes.len() > 1,
                _ => true,
            };
            random.chance(likelihood) && possible && !calm
        };
        let faults: Vec<Fault> = FAULTS.iter().copied().filter(|fault| enabled(fault, random)).collect();
        let bad = |random: &mut Random, most: u64| if !calm && random.chance(600) { random.skewed(0, most) } else { 0 };
        let quality = Quality {
            lost: bad(random, 80),
            duplicated: bad(random, 80),
            delayed: bad(random, 80),
            delay_micros_max: random.skewed(1_000, 1_500_000),
        };
        let rotting = random.pick(&nodes).copied().unwrap_or_default();
        // A chance of its own: what other parts of the plan draw stays as it was.
        let changing = &mut Random::new(seed, 4);
        let changes = nodes.len() > 1 && changing.chance(500);
        let moving = &mut Random::new(seed, 5);
        let moves = moving.chance(700);
        let balancing = &mut Random::new(seed, 6);
        let balance = balancing.chance(400).then(|| Policy {
            split_bytes: balancing.skewed(2_000, 200_000),
            requests_min: balancing.skewed(1, 50),
            bytes_min: balancing.skewed(500, 50_000),
            moves_max: usize::try_from(balancing.between(1, 4)).unwrap_or(1),
        });
        let losing = &mut Random::new(seed, 7);
        let losses = nodes.len() > 1 && !calm && losing.chance(400);
        let reading = &mut Random::new(seed, 8);
        let large = reading.chance(300);
        let dead_after_micros = if losing.chance(500) { losing.between(1_500_000, 10_000_000) } else { 0 };
        let spoiling = &mut Random::new(seed, 9);
        let spoils = !calm && options.mutant.is_none() && spoiling.chance(200);
        Plan {
            seed,
            options,
            spoils_at_micros: spoils.then(|| spoiling.skewed(1_000_000, options.seconds * 1_000_000)),
            losses_micros_max: losses.then(|| losing.skewed(4_000_000, 30_000_000)),
            dead_after_micros,
            founders: nodes.clone(),
            boundaries,
            keys,
            read_mode: if random.chance(700) { ReadMode::Lease } else { ReadMode::Quorum },
            gateways,
            clients: random.between(2, 10),
            think_micros_max: random.skewed(5_000, 200_000),
            compaction: random.chance(500).then(|| random.skewed(0, 5_000_000)),
            limits: Limits {
                proposals_max: usize::try_from(random.between(1, 8)).unwrap_or(8),
                piece_bytes_max: 1 << random.between(6, 16),
                // Several pieces in one entry would not fit into the small segments here.
                batch_bytes_max: 128 << 10,
                move_chunk_bytes: 1 << moving.between(13, 17),
                // The largest shards, of some 10 MiB, have arrived long before the patience at the end is over.
                move_bytes_per_second: 1 << moving.between(19, 25),
                kept_bytes_max: 1 << random.between(8, 15),
                kept_behind_image_bytes_max: 1 << random.between(10, 18),
                apply_lag_bytes_max: match spoils {
                    true => usize::try_from(spoiling.skewed(1 << 12, 64 << 20)).unwrap_or(64 << 20),
                    false => Limits::default().apply_lag_bytes_max,
                },
                ..Limits::default()
            },
            sessions: match random.chance(400) {
                true => SessionLimits {
                    sessions_max: usize::try_from(random.between(1, 6)).unwrap_or(1),
                    outcomes_per_session_max: usize::try_from(random.between(4, 40)).unwrap_or(4),
                },
                false => SessionLimits::default(),
            },
            spares_max: usize::try_from(random.below(3)).unwrap_or_default(),
            segment_bytes: (384 << 10) << random.below(3),
            sync_micros_max: random.skewed(200, 20_000),
            apply_micros_max: random.skewed(100, 20_000),
            scan_micros_max: large.then(|| reading.between(200_000, 3_000_000)),
            quality,
            latency_micros: random.skewed(50, 10_000),
            faults,
            calm_micros_max: random.skewed(1_000_000, 15_000_000),
            rotting,
            balance,
            moves_micros_max: moves.then(|| moving.skewed(20_000, 4_000_000)),
            changes_micros_max: changes.then(|| changing.skewed(300_000, 8_000_000)),
            nodes,
            groups,
        }
    }

    /// The groups of which a node hosts a replica.
    pub fn hosted(&self, node: NodeId) -> impl Iterator<Item = &(GroupId, Vec<NodeId>)> {
        self.groups.iter().filter(move |(_, replicas)| replicas.contains(&node))
    }
}
