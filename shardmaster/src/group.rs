//! The shardmaster's state machine over a node's store: the pure [`MasterState`], kept in memory and
//! written, small as it is, as one row together with the applied slot.

use crate::state::{MasterCommand, MasterOutcome, MasterState};
use bytes::Bytes;
use paxos::{Configuration, Slot, SnapshotSink, SnapshotSource, StateMachine};
use serde::{Deserialize, Serialize};
use shardkv::map::SHARDMASTER_GROUP;
use shardkv::store::{Store, StoreError};
use shardkv::{GroupMeta, SEED_SLOT, codec};
use std::any::Any;
use std::sync::Arc;

const ROW: &[u8] = b"state";

#[derive(Serialize, Deserialize)]
struct Row {
    applied: Slot,
    imaged: Slot,
    configuration: Option<Configuration>,
    state: MasterState,
}

/// The shardmaster group's state machine.
pub struct MasterGroup<S> {
    rows: GroupMeta<S>,
    applied: Slot,
    imaged: Slot,
    configuration: Option<Configuration>,
    state: Arc<MasterState>,
}

impl<S: Store> MasterGroup<S> {
    /// Reads what the store holds; a fresh state where it holds nothing.
    pub fn open(store: Arc<S>) -> Result<MasterGroup<S>, StoreError> {
        let rows = GroupMeta::open(store, SHARDMASTER_GROUP);
        let row = match rows.get(ROW)? {
            Some(bytes) => decode_row(&bytes)?,
            None => Row { applied: Slot(0), imaged: Slot(0), configuration: None, state: MasterState::default() },
        };
        let Row { applied, imaged, configuration, state } = row;
        Ok(MasterGroup { rows, applied, imaged, configuration, state: Arc::new(state) })
    }

    /// The state as of the last applied slot.
    pub fn state(&self) -> Arc<MasterState> {
        self.state.clone()
    }

    /// The image of a group that begins its life with a state: what a restored cluster starts from. All
    /// replicas must be given the same.
    pub fn seed(state: MasterState) -> Bytes {
        codec::encode(&Row { applied: SEED_SLOT, imaged: SEED_SLOT, configuration: None, state })
    }

    fn encode_row(&self) -> Bytes {
        let (applied, imaged, configuration) = (self.applied, self.imaged, self.configuration.clone());
        codec::encode(&Row { applied, imaged, configuration, state: (*self.state).clone() })
    }
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
        let (mut applied, mut configuration) = (self.applied, self.configuration.clone());
        for (slot, entry) in entries {
            assert_eq!(*slot, applied.next(), "shardmaster entries must be consecutive");
            applied = *slot;
            if let Some(next) = Configuration::of_stop_sign(entry) {
                configuration = Some(next);
                outcomes.push(MasterOutcome::Nothing);
                continue;
            }
            outcomes.push(match entry.is_empty() {
                true => MasterOutcome::Nothing,
                false => match codec::decode::<MasterCommand>(entry) {
                    Ok(command) => state.apply(command),
                    Err(error) => MasterOutcome::Malformed(error.to_string()),
                },
            });
        }
        let row = Row { applied, imaged: self.imaged, configuration: configuration.clone(), state: state.clone() };
        self.rows.commit(vec![(ROW.to_vec(), Some(codec::encode(&row)))])?;
        (self.applied, self.configuration) = (applied, configuration);
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
        if row.applied <= self.applied {
            return Ok(());
        }
        let row = Row { imaged: row.applied, ..row };
        self.rows.replace(vec![(ROW.to_vec(), codec::encode(&row))])?;
        (self.applied, self.imaged, self.configuration) = (row.applied, row.imaged, row.configuration);
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
