//! The state machines of a node and what is done to them: applying and images.
//! The runtime calls this on its apply thread, the simulator inline.

use crate::core::{Applied, ApplyJob, EntryOutcome, Hosted as Replica, Machine, SnapshotJob};
use crate::core::{SnapshotEvent, TRANSFER_PIECE_BYTES};
use bytes::Bytes;
use paxos::{Ballot, Configuration, GroupId, NodeId, Recovered, Slot, SnapshotSink, SnapshotSource, StateMachine};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::store::{Store, StoreError};
use shardkv::types::{Digest, SpaceId};
use shardkv::{DataGroup, SessionLimits};
use shardmaster::MasterGroup;
use std::collections::BTreeMap;
use std::sync::Arc;

enum Hosted<S: Store> {
    Data(Box<DataGroup<S>>),
    Master(MasterGroup<S>),
}

impl<S: Store> Hosted<S> {
    fn applied(&self) -> Slot {
        match self {
            Hosted::Data(group) => group.applied(),
            Hosted::Master(group) => group.applied(),
        }
    }

    fn imaged(&self) -> Slot {
        match self {
            Hosted::Data(group) => group.imaged(),
            Hosted::Master(group) => group.imaged(),
        }
    }

    fn configuration(&self) -> Option<Configuration> {
        match self {
            Hosted::Data(group) => group.configuration(),
            Hosted::Master(group) => group.configuration(),
        }
    }

    fn take_digests(&mut self) -> Vec<Digest> {
        match self {
            Hosted::Data(group) => group.take_digests(),
            Hosted::Master(group) => group.take_digests(),
        }
    }

    fn is_fenced(&self) -> bool {
        match self {
            Hosted::Data(group) => group.is_fenced(),
            Hosted::Master(group) => group.is_fenced(),
        }
    }

    fn apply(&mut self, entries: &[(Slot, Bytes)]) -> Result<Vec<EntryOutcome>, StoreError> {
        Ok(match self {
            Hosted::Data(group) => group.apply(entries)?.into_iter().map(EntryOutcome::Data).collect(),
            Hosted::Master(group) => group.apply(entries)?.into_iter().map(EntryOutcome::Master).collect(),
        })
    }
}

type Source = Box<dyn SnapshotSource<Error = StoreError> + Send>;
type Sink = Box<dyn SnapshotSink<Error = StoreError> + Send>;

/// What an image's piece led to, and, behind the last one, what the core reads of the group now.
pub type SnapshotOutcome<S> = (SnapshotEvent, Option<(GroupId, Machine<S>)>);

/// All state machines of a node over its one store.
pub struct Machines<S: Store> {
    store: Arc<S>,
    /// Numbers for spaces of groups that are opened begin here: those of groups that were closed lie below.
    first_space: SpaceId,
    sessions: SessionLimits,
    groups: BTreeMap<GroupId, Hosted<S>>,
    sources: BTreeMap<u64, Source>,
    sinks: BTreeMap<GroupId, (u64, Sink)>,
}

fn open_one<S: Store>(
    store: &Arc<S>,
    group: GroupId,
    first: SpaceId,
    sessions: SessionLimits,
) -> Result<Hosted<S>, StoreError> {
    Ok(match group {
        SHARDMASTER_GROUP => Hosted::Master(MasterGroup::open(store.clone())?),
        _ => Hosted::Data(Box::new(DataGroup::open_with(store.clone(), group, first, sessions)?)),
    })
}

impl<S: Store> Machines<S> {
    /// Opens the state machines of `groups`. `boot` is the node's durable boot counter; `sessions` are the
    /// limits that all replicas of all data groups share for ever.
    pub fn open(
        store: Arc<S>,
        groups: &[GroupId],
        boot: u64,
        sessions: SessionLimits,
    ) -> Result<Machines<S>, StoreError> {
        let (mut hosted, first_space) = (BTreeMap::new(), shardkv::first_space(boot));
        for id in groups {
            hosted.insert(*id, open_one(&store, *id, first_space, sessions)?);
        }
        let (sources, sinks) = (BTreeMap::new(), BTreeMap::new());
        Ok(Machines { store, first_space, sessions, groups: hosted, sources, sinks })
    }

    /// Opens an empty state machine for a replica that promises nothing below `floor`; rows that an earlier
    /// one has left are deleted first. In a group that begins here and now its members are `founders`, and the state
    /// machine remembers them, durably; otherwise the replica learns who votes.
    pub fn begin(
        &mut self,
        group: GroupId,
        floor: Ballot,
        founders: Option<Vec<NodeId>>,
    ) -> Result<Option<Replica<S>>, StoreError> {
        self.delete_rows(group)?;
        let mut machine = open_one(&self.store, group, self.first_space, self.sessions)?;
        let configuration = founders.map(Configuration::first);
        if let (Hosted::Data(machine), Some(configuration)) = (&mut machine, &configuration) {
            machine.found(configuration.clone())?;
        }
        self.groups.insert(group, machine);
        let recovered = Recovered { promised: floor, first_kept: Slot(1), ..Recovered::default() };
        let (configuration, applied) = (configuration.unwrap_or_default(), Slot(0));
        let fenced = false;
        Ok(self.machine(group).map(|machine| Replica { group, configuration, recovered, applied, fenced, machine }))
    }

    /// Ends a state machine and deletes its rows. Whoever reads them still is told that they are gone.
    pub fn close(&mut self, group: GroupId) -> Result<(), StoreError> {
        if let Some(Hosted::Data(group)) = self.groups.remove(&group) {
            self.first_space = self.first_space.max(group.end());
        }
        self.sinks.remove(&group);
        self.delete_rows(group)
    }

    /// Durably: what comes to light again after a crash would be taken for the next replica's state.
    fn delete_rows(&self, group: GroupId) -> Result<(), StoreError> {
        shardkv::delete_group(&*self.store, group)?;
        self.store.flush()
    }

    /// The last slot that a group's state machine has applied.
    pub fn applied(&self, group: GroupId) -> Slot {
        self.groups.get(&group).map_or(Slot(0), Hosted::applied)
    }

    /// The slot of the image that a group's state machine has installed last.
    pub fn imaged(&self, group: GroupId) -> Slot {
        self.groups.get(&group).map_or(Slot(0), Hosted::imaged)
    }

    /// The configuration of the last stop-sign that a group's state machine has applied.
    pub fn configuration(&self, group: GroupId) -> Option<Configuration> {
        self.groups.get(&group)?.configuration()
    }

    /// Whether a group's state here was found to be another one than the other replicas'.
    pub fn is_fenced(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(Hosted::is_fenced)
    }

    /// At `slot` it was: remembered durably, but where an image from there or later has taken its place meanwhile.
    pub fn fence(&mut self, group: GroupId, slot: Slot) -> Result<(), StoreError> {
        match self.groups.get_mut(&group).filter(|hosted| hosted.imaged() < slot) {
            Some(Hosted::Data(group)) => group.fence(),
            Some(Hosted::Master(group)) => group.fence(),
            None => Ok(()),
        }
    }

    /// The groups whose state machines there are.
    pub fn hosted(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    /// What the core reads of a group.
    pub fn machine(&self, group: GroupId) -> Option<Machine<S>> {
        Some(match self.groups.get(&group)? {
            Hosted::Data(group) => Machine::Data(group.reader()),
            Hosted::Master(group) => Machine::Master(group.state()),
        })
    }

    /// The rolling hash of a data group's effects, for comparing replicas.
    pub fn hash(&self, group: GroupId) -> Option<(Slot, u64)> {
        match self.groups.get(&group)? {
            Hosted::Data(group) => Some((group.applied(), group.hash())),
            Hosted::Master(_) => None,
        }
    }

    /// Whether applying would have to wait for the store now.
    pub fn would_wait(&self) -> bool {
        self.store.would_wait()
    }

    /// Applies entries. Those that an installed image already covers are skipped.
    pub fn apply(&mut self, job: ApplyJob) -> Result<Option<Applied>, StoreError> {
        let Some(hosted) = self.groups.get_mut(&job.group) else { return Ok(None) };
        let bytes = job.entries.iter().map(|(_, entry)| entry.len()).sum();
        let applied = hosted.applied();
        let fresh: Vec<(Slot, Bytes)> = job.entries.into_iter().filter(|(slot, _)| *slot > applied).collect();
        let first = fresh.first().map_or(applied.next(), |(slot, _)| *slot);
        let outcomes = if fresh.is_empty() { Vec::new() } else { hosted.apply(&fresh)? };
        let master = match hosted {
            Hosted::Master(group) => Some(group.state()),
            Hosted::Data(_) => None,
        };
        let (slot, digests) = (hosted.applied(), hosted.take_digests());
        Ok(Some(Applied { group: job.group, slot, first, outcomes, bytes, master, digests }))
    }

    /// Reads or installs a piece of an image. With an installed image comes what the core reads now.
    pub fn snapshot(&mut self, job: SnapshotJob) -> Result<Option<SnapshotOutcome<S>>, StoreError> {
        match job {
            SnapshotJob::Read { group, transfer, sequence } => {
                if sequence == 0 {
                    let source = match self.groups.get(&group) {
                        Some(Hosted::Data(group)) => group.snapshot()?,
                        Some(Hosted::Master(group)) => group.snapshot()?,
                        None => return Ok(None),
                    };
                    self.sources.insert(transfer, source);
                }
                Ok(Some((self.read_piece(transfer, sequence)?, None)))
            }
            SnapshotJob::Close { transfer } => {
                self.sources.remove(&transfer);
                Ok(None)
            }
            SnapshotJob::Install { group, transfer, sequence, piece, last } => {
                let installed = self.install_piece(group, transfer, sequence, piece, last);
                let (installed, failed) = match installed {
                    Ok(installed) => (installed, false),
                    Err(error @ (StoreError::Image(_) | StoreError::Superseded)) => {
                        tracing::warn!(%group, %error, "an image could not be installed; it will be sent again");
                        self.sinks.remove(&group);
                        (None, true)
                    }
                    Err(error) => return Err(error),
                };
                let machine = if installed.is_some() { self.machine(group) } else { None };
                let machine = machine.map(|machine| (group, machine));
                Ok(Some((SnapshotEvent::Stored { group, transfer, sequence, installed, failed }, machine)))
            }
        }
    }

    fn read_piece(&mut self, transfer: u64, sequence: u64) -> Result<SnapshotEvent, StoreError> {
        let Some(source) = self.sources.get_mut(&transfer) else {
            return Ok(SnapshotEvent::Read { transfer, sequence, slot: Slot(0), piece: None });
        };
        let slot = source.slot();
        let piece = match source.next_piece(TRANSFER_PIECE_BYTES) {
            Ok(Some(piece)) => Some((piece, false)),
            Ok(None) => Some((Bytes::new(), true)),
            Err(StoreError::Superseded) => None,
            Err(error) => return Err(error),
        };
        Ok(SnapshotEvent::Read { transfer, sequence, slot, piece })
    }

    fn install_piece(
        &mut self,
        id: GroupId,
        transfer: u64,
        sequence: u64,
        piece: Bytes,
        last: bool,
    ) -> Result<Option<(Slot, Option<Configuration>)>, StoreError> {
        let Some(hosted) = self.groups.get_mut(&id) else { return Ok(None) };
        if sequence == 0 {
            let sink = match hosted {
                Hosted::Data(group) => group.begin_install()?,
                Hosted::Master(group) => group.begin_install()?,
            };
            self.sinks.insert(id, (transfer, sink));
        }
        let sink = self.sinks.get_mut(&id).filter(|(current, _)| *current == transfer);
        let Some((_, sink)) = sink else { return Err(StoreError::Superseded) };
        if !piece.is_empty() {
            sink.piece(piece)?;
        }
        if !last {
            return Ok(None);
        }
        let Some((_, sink)) = self.sinks.remove(&id) else { return Ok(None) };
        match hosted {
            Hosted::Data(group) => group.finish_install(sink)?,
            Hosted::Master(group) => group.finish_install(sink)?,
        }
        Ok(Some((hosted.applied(), hosted.configuration())))
    }
}
