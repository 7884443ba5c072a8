//! How processes start and die, and what their disks keep.

use crate::clock::Clock;
use crate::mutant::Mutant;
use crate::plan::Fault;
use crate::process::{LastWords, Process, Site};
use crate::random::Random;
use crate::world::{Event, NodeEvent, World};
use node::core::{Core, CoreConfig, Hosted};
use node::host::Machines;
use paxos::heartbeat::Timing;
use paxos::{ConfigId, Configuration, GroupId, NodeId, Record, Recovered, Slot, Time, recover};
use shardkv::MemoryStore;
use shardkv::map::{GroupInfo, NodeInfo, SHARDMASTER_GROUP, ShardMap};
use shardkv::types::{MoveId, Revision, ShardId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use wal::testdisk::MemDisk;
use wal::{Append, Log, Recovery};

/// The largest frame; an AcceptSync's piece fits.
const FRAME_BYTES_MAX: u64 = 320 << 10;

impl Site {
    /// A machine with empty disks, and a data directory of this number.
    pub fn new(random: &mut Random, incarnation: u64) -> Site {
        Site {
            disk: MemDisk::new(),
            store: Arc::new(MemoryStore::new()),
            boot: 0,
            clock: Clock::new(random),
            life: 0,
            process: None,
            paused_until: 0,
            slow_until: 0,
            doomed: None,
            rotten: false,
            formed: false,
            incarnation,
            retired: false,
            met: Default::default(),
            last_words: LastWords::default(),
        }
    }
}

impl World {
    fn node_info(id: NodeId) -> NodeInfo {
        NodeInfo { id, name: id.to_string(), keeps_metadata: true, keeps_data: true, ..NodeInfo::default() }
    }

    pub(crate) fn genesis(&self) -> ShardMap {
        let data = self.plan.groups.iter().skip(1);
        let groups: Vec<GroupInfo> = data.map(|(id, replicas)| GroupInfo::new(*id, replicas.clone())).collect();
        let ids: Vec<GroupId> = groups.iter().map(|group| group.id).collect();
        ShardMap {
            version: 1,
            cluster_id: self.plan.seed,
            incarnation: 1,
            compacted: Revision(0),
            shards: shardmaster::initial_shards(&self.plan.boundaries, &ids),
            moves: Vec::new(),
            last_move: MoveId(0),
            reshapes: Vec::new(),
            balance: Default::default(),
            last_shard: ShardId(0),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, self.plan.groups[0].1.clone()),
            last_group: GroupId(0),
            last_node: NodeId(0),
            groups,
            nodes: self.plan.founders.iter().copied().map(World::node_info).collect(),
        }
    }

    fn core_config(&self, me: NodeId, boot: u64) -> CoreConfig {
        let (met, incarnation) =
            self.sites.get(&me).map(|site| (site.met.0.clone(), site.incarnation)).unwrap_or_default();
        let nodes: BTreeSet<NodeId> = self.plan.founders.iter().copied().chain(met).collect();
        CoreConfig {
            me,
            boot,
            info: NodeInfo { incarnation, ..World::node_info(me) },
            nodes: nodes.into_iter().collect(),
            timing: Timing::default(),
            read_mode: self.plan.read_mode,
            genesis: self.genesis(),
            dead_after_micros: self.plan.dead_after_micros,
            balance: self.plan.balance,
            limits: self.plan.limits,
        }
    }

    /// Starts a node's process: reads its log back and recovers every replica.
    pub(crate) fn start_process(&mut self, node: NodeId) -> Result<(), String> {
        let mutant = self.plan.options.mutant;
        let Some(site) = self.sites.get_mut(&node).filter(|site| site.process.is_none() && !site.retired) else {
            return Ok(());
        };
        site.boot = if mutant == Some(Mutant::ForgetBoot) { 1 } else { site.boot + 1 };
        let boot = site.boot;
        let wal = wal::Config {
            segment_bytes: self.plan.segment_bytes,
            frame_bytes_max: FRAME_BYTES_MAX,
            spares_max: self.plan.spares_max,
            ..wal::Config::new(node.0, self.plan.seed ^ (site.life << 32))
        };
        let opened = Log::open(site.disk.handle(), wal);
        let (log, mut recovery) = match opened {
            Ok(opened) => opened,
            Err(wal::OpenError::Io { operation, file, source }) => {
                self.trace.line(self.now, format_args!("{node} cannot open its log: {operation} of {file}: {source}"));
                site.disk.restart();
                self.coverage.hit(if wal::error::is_full(&source) {
                    "disk.full_at_open"
                } else {
                    "disk.error_at_open"
                });
                self.schedule(500_000, Event::Restart(node));
                return Ok(());
            }
            Err(error) => return Err(format!("{node} cannot open its log: {error}")),
        };
        let lost = !recovery.corrupt_frames.is_empty() || !recovery.suspects.is_empty() || !recovery.lost.is_empty();
        if (lost || recovery.promises_lost) && !site.rotten {
            return Err(format!("{node} takes a sound log for rotten: {recovery:?}"));
        }
        if mutant == Some(Mutant::CutAtRot) {
            cut_at_rot(&mut recovery);
        }
        if recovery.promises_lost {
            self.coverage.hit("rot.promises_lost");
            self.trace.line(self.now, format_args!("{node} may have lost a promise and stays down"));
            self.give_up(node);
            return Ok(());
        }
        if recovery.torn_tail.is_some() {
            self.coverage.hit("crash.torn");
        }
        self.open_process(node, boot, log, &recovery)
    }

    fn open_process(&mut self, node: NodeId, boot: u64, mut log: Log, recovery: &Recovery) -> Result<(), String> {
        let config = self.core_config(node, boot);
        let first: Vec<GroupId> = self.plan.hosted(node).map(|(group, _)| *group).collect();
        let Some(site) = self.sites.get_mut(&node) else { return Ok(()) };
        let found = match site.formed {
            true => found_groups(recovery)?,
            false => Some(first).filter(|first| begin_groups(&mut log, first)).map(|first| (first, BTreeMap::new())),
        };
        let Some((ids, ended)) = found else {
            self.trace.line(self.now, format_args!("{node} has no room to begin its groups"));
            self.coverage.hit("disk.full_at_open");
            self.schedule(500_000, Event::Restart(node));
            return Ok(());
        };
        site.formed = true;
        let mut machines = Machines::open(site.store.clone(), &ids, boot, self.plan.sessions)
            .map_err(|error| format!("{node}: {error}"))?;
        for group in ended.keys() {
            machines.close(*group).map_err(|error| format!("{node}: {error}"))?;
        }
        let mut now = site.clock.read(self.now);
        if self.plan.options.mutant == Some(Mutant::ForgetGrants) {
            now = Time(now.0 - Timing::default().lease_micros);
        }
        let mut replicas = Vec::new();
        let mut said = String::new();
        for group in ids.iter().copied() {
            let recovered = match recover_group(&mut log, recovery, group, &machines)? {
                Some(Ok(recovered)) => recovered,
                Some(Err(gap)) => return Err(format!("{node}, {group}: {gap}")),
                None => {
                    self.trace.line(self.now, format_args!("{node} has no room to mark {group} suspect"));
                    self.coverage.hit("disk.full_at_open");
                    self.schedule(500_000, Event::Restart(node));
                    return Ok(());
                }
            };
            if recovered.suspect {
                self.coverage.hit("rot.suspect");
            }
            // What a replica keeps as decided it may send to others.
            for (slot, entry) in (recovered.first_kept.0..=recovered.decided.0).zip(&recovered.entries) {
                self.invariants.decided(node, group, Slot(slot), entry)?;
            }
            let applied = machines.applied(group);
            said.push_str(&format!(
                " {group}: promised {} accepted {} length {} applied {applied} suspect {};",
                recovered.promised, recovered.accepted, recovered.length, recovered.suspect
            ));
            let Some(machine) = machines.machine(group) else { continue };
            // One that was opened later learns who votes.
            let genesis = self.plan.hosted(node).find(|(id, _)| *id == group && recovered.promised.config.0 == 0);
            let genesis = genesis.map(|(_, members)| Configuration::first(members.clone()));
            let configuration = machines.configuration(group).or(genesis).unwrap_or_default();
            let fenced = machines.is_fenced(group);
            replicas.push(Hosted { group, configuration, recovered, applied, fenced, machine });
        }
        site.life += 1;
        let life = site.life;
        let mut core = Core::new(config, replicas, now);
        for (group, promised) in &ended {
            self.invariants.closed(node, *group, *promised)?;
        }
        core.remember(ended);
        for group in &ids {
            if let Some(replica) = core.replica(*group) {
                self.invariants.restarted(node, *group, replica.acceptor())?;
            }
        }
        site.process = Some(Process::new(core, machines, log));
        self.trace.line(self.now, format_args!("{node}/{life} starts, boot {boot};{said}"));
        let at = self.random.below(Timing::default().heartbeat_micros);
        self.later(node, at, NodeEvent::Tick);
        self.later(node, at + 1_000_000, NodeEvent::Collect);
        self.start_local_gateways(node);
        Ok(())
    }

    /// The process dies, the machine lives on: what was written to files stays.
    pub(crate) fn kill_process(&mut self, node: NodeId, down_micros: u64) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        let Some(mut process) = site.process.take() else { return };
        site.last_words = LastWords::of(&process);
        if let Some((_, records)) = process.wal.commit.take().filter(|_| self.random.chance(500)) {
            // It was written, and nobody was told.
            drop(process.log.append(&records));
        }
        drop(process);
        site.disk.restart();
        self.coverage.hit("crash.process");
        self.after_death(node, down_micros, "process");
    }

    /// The machine loses power: any subset of what was not synced is lost.
    pub(crate) fn cut_power(&mut self, node: NodeId, down_micros: u64) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        let process = site.process.take();
        if let Some(mut process) = process {
            site.last_words = LastWords::of(&process);
            let written = process.wal.commit.take().filter(|_| self.random.chance(800));
            if let Some((_, records)) = written {
                site.disk.cut_power_after(self.random.below(4));
                drop(process.log.append(&records));
            }
        }
        let kept = self.random.below(1001);
        let random = &mut self.random;
        site.disk.crash(|_| random.chance(kept));
        site.clock = Clock::new(random);
        self.coverage.hit("crash.power");
        self.after_death(node, down_micros, "power");
    }

    fn after_death(&mut self, node: NodeId, down_micros: u64, why: &str) {
        let Some(site) = self.sites.get_mut(&node) else { return };
        site.life += 1;
        site.doomed = None;
        site.paused_until = 0;
        let unflushed = site.store.unflushed();
        let kept = usize::try_from(self.random.below(unflushed as u64 + 1)).unwrap_or_default();
        site.store.crash_keeping(kept);
        self.coverage.add("store.batches_lost", (unflushed - kept) as u64);
        self.trace.line(
            self.now,
            format_args!(
                "{node} dies ({why}) for {down_micros} µs; {} of {unflushed} unflushed batches are lost",
                unflushed - kept
            ),
        );
        self.stop_local_gateways(node);
        for index in 0..self.gateways.len() {
            if self.random.chance(600) {
                let life = self.gateways[index].life;
                let delay = self.random.between(50, 20_000);
                self.schedule(delay, Event::NodeDown(index, life, node));
            }
        }
        self.schedule(down_micros, Event::Restart(node));
    }

    /// Flips a bit in a part of the log that lies below a durable mark: a segment that is full.
    /// (The last frame of a log is above every mark until the next one is written; if that rots,
    /// nobody can tell it from a torn one. The log's documentation says so.)
    pub(crate) fn rot(&mut self, node: NodeId, live: std::ops::RangeInclusive<u64>) {
        let full: Vec<u64> = (*live.start()..*live.end()).collect();
        let Some(sequence) = self.random.pick(&full).copied() else { return };
        let Some(site) = self.sites.get_mut(&node) else { return };
        let file = wal::segment::name(sequence);
        let (offset, bit) = (self.random.below(self.plan.segment_bytes), self.random.below(8) as u8);
        if site.disk.flip_bit(&file, offset, bit) {
            site.rotten = true;
            self.coverage.hit("rot");
            self.trace.line(self.now, format_args!("{node} bit {bit} of byte {offset} in {file} flips"));
        }
    }

    /// Bounds a disk, or frees it.
    pub(crate) fn set_budget(&mut self, node: NodeId, bytes: Option<u64>) {
        if let Some(site) = self.sites.get(&node) {
            site.disk.set_budget_bytes(bytes);
            self.trace.line(self.now, format_args!("{node} disk bounded to {bytes:?}"));
        }
    }

    /// Whether a node may rot: a minority may, and a node that rotted before must be whole again.
    pub(crate) fn may_rot(&self, node: NodeId) -> bool {
        self.may(Fault::Rot) && self.plan.rotting == node
    }
}

/// For a mutant: the log ends where the first of it is missing.
fn cut_at_rot(recovery: &mut Recovery) {
    let Some(end) = recovery.lost.iter().map(|lost| lost.first).min() else { return };
    recovery.groups.values_mut().for_each(|records| records.retain(|record| record.lsn < end));
    recovery.groups.retain(|_, records| !records.is_empty());
    recovery.lost.clear();
    recovery.suspects.clear();
    recovery.promises_lost = false;
}

/// Logs the beginnings of a node's first replicas. `false` where the disk has no room.
fn begin_groups(log: &mut Log, groups: &[GroupId]) -> bool {
    let record = Record::Opened(Configuration::floor(ConfigId(0)));
    let append = |group: &GroupId| Append { group: group.0, payload: record.encode(), twice: record.is_promise() };
    let appends: Vec<Append> = groups.iter().map(append).collect();
    log.append(&appends).is_ok()
}

/// Groups of a node's replicas, and tombstones.
type Found = (Vec<GroupId>, BTreeMap<GroupId, paxos::Ballot>);

/// Which replicas a log is of, and what those that have ended had promised.
fn found_groups(recovery: &Recovery) -> Result<Option<Found>, String> {
    let (mut ids, mut ended) = (Vec::new(), BTreeMap::new());
    for (group, found) in &recovery.groups {
        let decoded = found.iter().map(|record| Record::decode(&record.payload)).collect::<Result<Vec<_>, _>>();
        let records = decoded.map_err(|error| format!("a record of g{group} does not decode: {error}"))?;
        match paxos::tombstone(records.iter()) {
            Some(promised) => drop(ended.insert(GroupId(*group), promised)),
            None => ids.push(GroupId(*group)),
        }
    }
    Ok(Some((ids, ended)))
}

/// The acceptor's state of one group, as the runtime recovers it; `None` where the disk has no room for it.
fn recover_group(
    log: &mut Log,
    recovery: &Recovery,
    group: GroupId,
    machines: &Machines<MemoryStore>,
) -> Result<Option<Result<Recovered, paxos::record::Gap>>, String> {
    let found = recovery.groups.get(&group.0).map(Vec::as_slice).unwrap_or_default();
    let decoded = found.iter().map(|record| Record::decode(&record.payload)).collect::<Result<Vec<_>, _>>();
    let mut records = decoded.map_err(|error| format!("a record of {group} does not decode: {error}"))?;
    let pairs = found.iter().zip(&records).rev();
    let marked = pairs.filter(|(_, record)| matches!(record, Record::Suspect)).map(|(at, _)| at.lsn).next();
    let fresh = recovery.lost.iter().any(|lost| marked.is_none_or(|mark| lost.end > mark));
    if recovery.is_suspect(group.0) && fresh {
        let mark = Append { group: group.0, payload: Record::Suspect.encode(), twice: true };
        match log.append_reclaim(&[mark]) {
            Ok(_) => {}
            Err(wal::LogError::Full { .. }) => return Ok(None),
            Err(error) => return Err(format!("marking {group} suspect: {error}")),
        }
        records.push(Record::Suspect);
    }
    let config = machines.configuration(group).map_or(ConfigId(0), |configuration| configuration.id);
    Ok(Some(recover(records.iter(), machines.applied(group), machines.imaged(group), config)))
}
