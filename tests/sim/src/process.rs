//! A node's machine (disk, store, clock) and the process that runs on it. The process consists of
//! the very parts that the runtime runs: the core, the state machines, the log.

use crate::clock::Clock;
use node::collection::Standing;
use node::core::{ApplyJob, Core, Hosted, Hosting, Input, Machine, ScanJob, SnapshotJob};
use node::host::Machines;
use paxos::{Configuration, GroupId, NodeId, Slot};
use shardkv::map::ShardMap;
use shardkv::{MemoryStore, Reader};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use wal::testdisk::MemDisk;
use wal::{Append, Log};

/// A machine.
pub struct Site {
    /// The log's disk.
    pub disk: MemDisk,
    /// The store and its disk.
    pub store: Arc<MemoryStore>,
    /// The durable boot counter.
    pub boot: u64,
    /// The machine's clock.
    pub clock: Clock,
    /// Counts processes; events of an earlier one are void.
    pub life: u64,
    /// The process, if one runs.
    pub process: Option<Process>,
    /// Nothing happens here before this time.
    pub paused_until: u64,
    /// The disk is slow until then.
    pub slow_until: u64,
    /// The power goes in the middle of the next group commit, for so long.
    pub doomed: Option<u64>,
    /// A bit has flipped here.
    pub rotten: bool,
    /// Its replicas' beginnings are logged: from then on the log says which there are.
    pub formed: bool,
    /// The random number of its data directory.
    pub incarnation: u64,
    /// It never starts again: its disks are gone, or cannot prove its promises.
    pub retired: bool,
    /// The nodes of the cluster, as it has noted them down, and the largest id among all that there ever were.
    pub met: (Vec<NodeId>, NodeId),
    /// What the last process knew when it died: at least what its disks know.
    pub last_words: LastWords,
}

/// What a process knew of who counts.
#[derive(Debug, Default)]
pub struct LastWords {
    /// Its map.
    pub map: Option<ShardMap>,
    /// The configurations that its replicas were in, or would have got into by an entry of their logs.
    pub configurations: Vec<Configuration>,
}

impl LastWords {
    /// What a process knows now.
    pub fn of(process: &Process) -> LastWords {
        let mut configurations = Vec::new();
        for replica in process.machines.hosted().filter_map(|group| process.core.replica(group)) {
            let log = replica.acceptor().log();
            let (first, last) = log.range();
            let entries = (first.0..=last.0).filter_map(|slot| log.get(Slot(slot)));
            configurations.extend(entries.filter_map(|entry| Configuration::of_stop_sign(entry)));
            configurations.push(replica.configuration().clone());
        }
        LastWords { map: Some(process.core.map().clone()), configurations }
    }
}

/// Work for the state machines.
pub enum Job {
    /// Entries.
    Apply(ApplyJob),
    /// A piece of an image.
    Snapshot(SnapshotJob),
    /// A replica that comes or goes.
    Hosting(Hosting),
}

/// What waits for the log.
#[derive(Default)]
pub struct WalQueue {
    /// Batches that wait.
    pub queue: VecDeque<(u64, Vec<Append>)>,
    /// The group commit under way: its last ticket and all its records.
    pub commit: Option<(u64, Vec<Append>)>,
    /// An event for it is scheduled.
    pub scheduled: bool,
    /// Segments through this one may go.
    pub release: Option<u64>,
    /// The disk has no space.
    pub full: bool,
    /// What the core has not been told yet: space, and (ticket, segment).
    pub no_space: Option<bool>,
    /// See above.
    pub durable: Option<(u64, u64)>,
}

/// A process.
pub struct Process {
    /// The node's core.
    pub core: Core<MemoryStore>,
    /// The state machines.
    pub machines: Machines<MemoryStore>,
    /// The log.
    pub log: Log,
    /// What the core has not seen yet.
    pub mailbox: VecDeque<Input>,
    /// Machines that were replaced by an image.
    pub replaced: Vec<(GroupId, Machine<MemoryStore>)>,
    /// Replicas that were opened.
    pub opened: Vec<Hosted<MemoryStore>>,
    /// A turn is scheduled.
    pub turning: bool,
    /// The log's queue.
    pub wal: WalQueue,
    /// Work for the state machines, and whether an event for it is scheduled.
    pub jobs: VecDeque<Job>,
    /// See above.
    pub applying: bool,
    /// Reads of ranges, each by the reader of the moment in which it was asked for; each has its event.
    pub scans: Vec<(ScanJob, Reader<MemoryStore>)>,
    /// How far each group's history is collected.
    pub standings: BTreeMap<GroupId, Standing>,
    /// How much was written when the flush that runs began.
    pub flushing: u64,
    /// When the core is to be woken, by the true time.
    pub wakes_at: Option<u64>,
}

impl Process {
    /// A process around its parts.
    pub fn new(core: Core<MemoryStore>, machines: Machines<MemoryStore>, log: Log) -> Process {
        Process {
            core,
            machines,
            log,
            mailbox: VecDeque::new(),
            replaced: Vec::new(),
            opened: Vec::new(),
            turning: false,
            wal: WalQueue::default(),
            jobs: VecDeque::new(),
            applying: false,
            scans: Vec::new(),
            standings: BTreeMap::new(),
            flushing: 0,
            wakes_at: None,
        }
    }
}
