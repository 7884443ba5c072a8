//! The shardmaster's state machine over a node's store: the pure [`MasterState`], kept in memory and
//! written, small as it is, as one row together with the applied slot.

use crate::state::{MasterCommand, MasterOutcome, MasterState};
use bytes::Bytes;
use paxos::flaw::{self, Flaw};
use paxos::{Configuration, Slot, SnapshotSink, SnapshotSource, StateMachine};
use serde::{Deserialize, Serialize};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::store::{Store, StoreError};
use shardkv::types::Digest;
use shardkv::{GroupMeta, SEED_SLOT, codec};
use std::any::Any;
use std::sync::Arc;

const ROW: &[u8] = b"state";

#[derive(Serialize, Deserialize)]
struct Row {
    applied: Slot,
    imaged: Slot,
    configuration: Option<Configuration>,
    /// The other replicas agree on another state: this one must not be read.
    fenced: bool,
    state: MasterState,
}

impl Row {
    fn new(slot: Slot, state: MasterState) -> Row {
        Row { applied: slot, imaged: slot, configuration: None, fenced: false, state }
    }
}

/// The shardmaster group's state machine.
pub struct MasterGroup<S> {
    rows: GroupMeta<S>,
    applied: Slot,
    imaged: Slot,
    configuration: Option<Configuration>,
    fenced: bool,
    state: Arc<MasterState>,
    /// Noted since they were last taken; not stored.
    digests: Vec<Digest>,
}

impl<S: Store> MasterGroup<S> {
    /// Reads what the store holds; a fresh state where it holds nothing.
    pub fn open(store: Arc<S>) -> Result<MasterGroup<S>, StoreError> {
        let rows = GroupMeta::open(store, SHARDMASTER_GROUP);
        let row = match rows.get(ROW)? {
            Some(bytes) => decode_row(&bytes)?,
            None => Row::new(Slot(0), MasterState::default()),
        };
        let Row { applied, imaged, configuration, fenced, state } = row;
        let (state, digests) = (Arc::new(state), Vec::new());
        Ok(MasterGroup { rows, applied, imaged, configuration, fenced, state, digests })
    }

    /// The state as of the last applied slot.
    pub fn state(&self) -> Arc<MasterState> {
        self.state.clone()
    }

    /// The image of a group that begins its life with a state: what a restored cluster starts from. All
    /// replicas must be given the same.
    pub fn seed(state: MasterState) -> Bytes {
        codec::encode(&Row::new(SEED_SLOT, state))
    }

    fn encode_row(&self) -> Bytes {
        let (applied, imaged, fenced) = (self.applied, self.imaged, self.fenced);
        let (configuration, state) = (self.configuration.clone(), (*self.state).clone());
        codec::encode(&Row { applied, imaged, configuration, fenced, state })
    }

    /// The digests noted since the last call, oldest first.
    pub fn take_digests(&mut self) -> Vec<Digest> {
        std::mem::take(&mut self.digests)
    }

    /// Whether this state was found to be another one than the other replicas'.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// It was: remembered, durably, until an image takes its place.
    pub fn fence(&mut self) -> Result<(), StoreError> {
        self.fenced = true;
        self.rows.commit(vec![(ROW.to_vec(), Some(self.encode_row()))])?;
        self.rows.flush()
    }
}

/// All of the state: it is small, and has nothing that replicas may store differently.
fn digest(slot: Slot, state: &MasterState) -> Digest {
    let value = u64::from(crc32fast::hash(&codec::encode(state)));
    Digest { slot, value: value ^ u64::from(flaw::is(Flaw::DigestAnew)) }
}

fn decode_row(bytes: &[u8]) -> Result<Row, StoreError> {
    codec::decode(bytes).map_err(|error| StoreError::Corrupt { what: "shardmaster state", detail: error.to_string() })
}

impl<S: Store> StateMachine for MasterGroup<S> {
    type Outcome = MasterOutcome;
    type Error = StoreError;

    fn applied(&self) -> Slot {
        self.applied
    }

    fn imaged(&self) -> Slot {
        self.imaged
    }

    fn configuration(&self) -> Option<Configuration> {
        self.configuration.clone()
    }

    fn apply(&mut self, entries: &[(Slot, Bytes)]) -> Result<Vec<MasterOutcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut state = (*self.state).clone();
        let (mut applied, mut configuration, mut digests) = (self.applied, self.configuration.clone(), Vec::new());
        for (slot, entry) in entries {
            assert_eq!(*slot, applied.next(), "shardmaster entries must be consecutive");
            applied = *slot;
            outcomes.push(match Configuration::of_stop_sign(entry) {
                Some(next) => {
                    configuration = Some(next);
                    MasterOutcome::Nothing
                }
                None if entry.is_empty() => MasterOutcome::Nothing,
                None => match codec::decode::<MasterCommand>(entry) {
                    Ok(command) => state.apply(command),
                    Err(error) => MasterOutcome::Malformed(error.to_string()),
                },
            });
            // Entries are few here, and large steps.
            digests.push(digest(*slot, &state));
        }
        let (imaged, fenced) = (self.imaged, self.fenced);
        let row = Row { applied, imaged, configuration: configuration.clone(), fenced, state: state.clone() };
        self.rows.commit(vec![(ROW.to_vec(), Some(codec::encode(&row)))])?;
        (self.applied, self.configuration) = (applied, configuration);
        self.digests.extend(digests);
        self.state = Arc::new(state);
        Ok(outcomes)
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource<Error = StoreError> + Send>, StoreError> {
        Ok(Box::new(Image { slot: self.applied, row: Some(self.encode_row()) }))
    }

    fn begin_install(&mut self) -> Result<Box<dyn SnapshotSink<Error = StoreError> + Send>, StoreError> {
        Ok(Box::new(Install { bytes: Vec::new() }))
    }

    fn finish_install(&mut self, sink: Box<dyn SnapshotSink<Error = StoreError> + Send>) -> Result<(), StoreError> {
        let install = sink.into_any().downcast::<Install>();
        let install = install.map_err(|_| StoreError::Image("a sink of another state machine".into()))?;
        let row = decode_row(&install.bytes).map_err(|error| StoreError::Image(error.to_string()))?;
        if row.applied < self.applied {
            let why = format!("it is of slot {}, {} is applied", row.applied, self.applied);
            return Err(StoreError::Image(why));
        }
        let row = Row { imaged: row.applied, fenced: false, ..row };
        self.rows.replace(vec![(ROW.to_vec(), codec::encode(&row))])?;
        (self.applied, self.imaged, self.configuration) = (row.applied, row.imaged, row.configuration);
        self.fenced = false;
        self.state = Arc::new(row.state);
        Ok(())
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.rows.flush()
    }
}

struct Image {
    slot: Slot,
    row: Option<Bytes>,
}

impl SnapshotSource for Image {
    type Error = StoreError;
    fn slot(&self) -> Slot {
        self.slot
    }
    fn next_piece(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StoreError> {
        let Some(mut rest) = self.row.take() else { return Ok(None) };
        let piece = rest.split_to(rest.len().min(bytes_max.max(1)));
        self.row = (!rest.is_empty()).then_some(rest);
        Ok(Some(piece))
    }
}

struct Install {
    bytes: Vec<u8>,
}

impl SnapshotSink for Install {
    type Error = StoreError;
    fn piece(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.bytes.extend_from_slice(&piece);
        Ok(())
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}
