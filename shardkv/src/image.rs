//! Images of a group: what a replica that fell behind the log receives.
//!
//! An image is logical: it holds the state at one slot, read in pieces from a store that moves on.
//! That works because versions never change: a version that is superseded meanwhile is found in
//! the history, a newer one is left out. Collection waits while an image is read.
//!
//! Installing: pieces go to spaces with new numbers, which nobody names yet. Finishing writes one
//! batch with the shards (and so the spaces), sessions, applied slot and meta, flushes it, and only
//! then deletes the old spaces. A crash before that batch is durable leaves the old state, one
//! after it the new; [`crate::DataGroup::open`] deletes the spaces that are left over.
//!
//! A piece is a CRC-32 (4 bytes, little-endian) of what follows: an encoded [`Piece`]. The header
//! comes first, the end last.

use crate::codec;
use crate::group::DataGroup;
use crate::key::{HISTORY, INDEX, LATEST};
use crate::moving::Incoming;
use crate::mvcc;
use crate::record::Head;
use crate::sessions::Executed;
use crate::state::{Meta, OwnedShard, Shared};
use crate::store::{RowRange, Store, StoreError, WriteBatch};
use crate::types::{Epoch, Revision, ShardId, SpaceId};
use bytes::Bytes;
use paxos::{Slot, SnapshotSink, SnapshotSource};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Session outcomes per piece; a row of more than that is cut.
const SESSION_OUTCOMES_PER_PIECE: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Piece {
    /// The group's meta and shards, with the sender's space numbers.
    Header { meta: Meta, shards: Vec<OwnedShard>, arrivals: Vec<Incoming>, gone: Vec<(ShardId, Epoch)> },
    /// Rows of session outcomes, by slot.
    Sessions { rows: Vec<(Slot, Vec<Executed>)> },
    /// Rows of one kind in one space: what follows the kind byte, and the value.
    Rows { space: SpaceId, kind: u8, rows: Vec<(Bytes, Bytes)> },
    /// The image is complete.
    End { rows: u64 },
}

/// Counts an image while it is read.
struct OpenImage<S: Store>(Arc<Shared<S>>);

impl<S: Store> OpenImage<S> {
    fn new(shared: &Arc<Shared<S>>) -> OpenImage<S> {
        // Under the collector's lock: no step is in progress, later ones see the count.
        let _no_step = shared.collecting();
        shared.images.fetch_add(1, Ordering::SeqCst);
        OpenImage(Arc::clone(shared))
    }
}

impl<S: Store> Drop for OpenImage<S> {
    fn drop(&mut self) {
        self.0.images.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What is still to be sent, front first.
enum Todo {
    Header(Box<Piece>),
    Sessions(Vec<(Slot, Vec<Executed>)>),
    Rows { space: SpaceId, kind: u8, rest: RowRange },
    End,
}

/// Reads an image.
pub(crate) struct Source<S: Store> {
    image: OpenImage<S>,
    slot: Slot,
    revision: Revision,
    install: u64,
    /// Spaces of shards that arrive. Their revisions are another group's: what is imported while they are read
    /// is in the image, and imported again from the log, which comes to the same in the end.
    arriving: BTreeSet<SpaceId>,
    todo: VecDeque<Todo>,
    rows: u64,
}

impl<S: Store> Source<S> {
    pub(crate) fn new(group: &DataGroup<S>) -> Source<S> {
        let image = OpenImage::new(&group.shared);
        let meta = group.state.meta.clone();
        let (slot, revision) = (meta.applied, meta.last_revision);
        let shards = group.shards();
        let arrivals: Vec<Incoming> = group.state.arrivals.values().cloned().collect();
        let gone: Vec<(ShardId, Epoch)> = group.state.gone.iter().map(|(id, epoch)| (*id, *epoch)).collect();
        let arriving: BTreeSet<SpaceId> = arrivals.iter().map(|it| it.space).collect();
        let owned = shards.iter().flat_map(OwnedShard::spaces);
        let spaces: BTreeSet<SpaceId> = owned.chain(arriving.iter().copied()).collect();
        let mut todo = VecDeque::from([Todo::Header(Box::new(Piece::Header { meta, shards, arrivals, gone }))]);
        let (mut rows, mut count): (Vec<(Slot, Vec<Executed>)>, usize) = (Vec::new(), 0);
        for (slot, mut row) in group.state.sessions.export() {
            while !row.is_empty() {
                let rest = row.split_off(row.len().min(SESSION_OUTCOMES_PER_PIECE - count));
                count += row.len();
                rows.push((slot, std::mem::replace(&mut row, rest)));
                if count >= SESSION_OUTCOMES_PER_PIECE {
                    todo.push_back(Todo::Sessions(std::mem::take(&mut rows)));
                    count = 0;
                }
            }
        }
        todo.extend((!rows.is_empty()).then_some(Todo::Sessions(rows)));
        for space in spaces {
            for kind in [LATEST, HISTORY, INDEX] {
                let rest = group.shared.keys.space(space).kind(kind);
                todo.push_back(Todo::Rows { space, kind, rest });
            }
        }
        todo.push_back(Todo::End);
        let install = group.shared.installs.load(Ordering::SeqCst);
        Source { image, slot, revision, install, arriving, todo, rows: 0 }
    }

    /// Rows of `rest` as of the image, about `bytes_max` of them, and where to go on.
    #[allow(clippy::type_complexity)] // a list of rows and a row
    fn rows(
        &self,
        space: SpaceId,
        kind: u8,
        rest: &RowRange,
        bytes_max: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, Option<Vec<u8>>), StoreError> {
        let shared = &self.image.0;
        let revision = if self.arriving.contains(&space) { Revision(u64::MAX) } else { self.revision };
        let space = shared.keys.space(space);
        let (mut rows, mut bytes, mut next) = (Vec::new(), 0, None);
        shared.store.scan(rest, &mut |row_key, row| {
            if bytes >= bytes_max {
                next = Some(row_key.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            let key = space.rest(row_key);
            let row = match kind {
                LATEST if Head::parse(row)?.mod_revision > revision => {
                    mvcc::lookup(&*shared.store, &space, key, revision)?.map(|version| version.row)
                }
                HISTORY if space.history_revision(row_key) > Some(revision) => None,
                INDEX if space.index_last(row_key) > Some(revision) => return Ok(ControlFlow::Break(())),
                _ => Some(Bytes::copy_from_slice(row)),
            };
            if let Some(row) = row {
                bytes += key.len() + row.len();
                rows.push((Bytes::copy_from_slice(key), row));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if shared.installs.load(Ordering::SeqCst) != self.install {
            return Err(StoreError::Superseded);
        }
        Ok((rows, next))
    }
}

impl<S: Store> SnapshotSource for Source<S> {
    type Error = StoreError;

    fn slot(&self) -> Slot {
        self.slot
    }

    fn next_piece(&mut self, bytes_max: usize) -> Result<Option<Bytes>, StoreError> {
        loop {
            let piece = match self.todo.pop_front() {
                None => return Ok(None),
                Some(Todo::Header(header)) => *header,
                Some(Todo::Sessions(rows)) => Piece::Sessions { rows },
                Some(Todo::End) => Piece::End { rows: self.rows },
                Some(Todo::Rows { space, kind, rest }) => {
                    let (rows, next) = self.rows(space, kind, &rest, bytes_max)?;
                    if let Some(start) = next {
                        self.todo.push_front(Todo::Rows { space, kind, rest: RowRange { start, end: rest.end } });
                    }
                    if rows.is_empty() {
                        continue;
                    }
                    self.rows += rows.len() as u64;
                    Piece::Rows { space, kind, rows }
                }
            };
            return Ok(Some(seal(&piece)));
        }
    }
}

pub(crate) fn seal(piece: &Piece) -> Bytes {
    let body = codec::encode(piece);
    let mut sealed = Vec::with_capacity(4 + body.len());
    sealed.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    sealed.extend_from_slice(&body);
    sealed.into()
}

fn unseal(sealed: &[u8]) -> Result<Piece, StoreError> {
    let Some((crc, body)) = sealed.split_first_chunk() else {
        return Err(StoreError::Image(format!("a piece of {} bytes", sealed.len())));
    };
    let (expected, found) = (u32::from_le_bytes(*crc), crc32fast::hash(body));
    if expected != found {
        return Err(StoreError::Image(format!("a piece's checksum is {found:08x}, not {expected:08x}")));
    }
    codec::decode(body).map_err(|error| StoreError::Image(error.to_string()))
}

struct Header {
    meta: Meta,
    shards: Vec<OwnedShard>,
    arrivals: Vec<Incoming>,
    gone: Vec<(ShardId, Epoch)>,
}

/// Receives an image.
pub(crate) struct Sink<S: Store> {
    shared: Arc<Shared<S>>,
    header: Option<Header>,
    /// The sender's space numbers and ours.
    spaces: BTreeMap<SpaceId, SpaceId>,
    sessions: Vec<(Slot, Vec<Executed>)>,
    rows: u64,
    complete: bool,
}

impl<S: Store> Sink<S> {
    pub(crate) fn new(group: &DataGroup<S>) -> Sink<S> {
        let shared = Arc::clone(&group.shared);
        Sink { shared, header: None, spaces: BTreeMap::new(), sessions: Vec::new(), rows: 0, complete: false }
    }

    fn write_rows(&mut self, space: SpaceId, kind: u8, rows: Vec<(Bytes, Bytes)>) -> Result<(), StoreError> {
        let Some(ours) = self.spaces.get(&space) else {
            return Err(StoreError::Image(format!("rows of {space:?}, which its header does not name")));
        };
        let ours = self.shared.keys.space(*ours);
        if ![LATEST, HISTORY, INDEX].contains(&kind) {
            return Err(StoreError::Image(format!("rows of the unknown kind {kind}")));
        }
        self.rows += rows.len() as u64;
        let mut batch = WriteBatch::default();
        for (rest, row) in rows {
            batch.put(ours.raw(kind, &rest), row);
        }
        self.shared.store.write(&batch)
    }
}

impl<S: Store> SnapshotSink for Sink<S> {
    type Error = StoreError;

    fn piece(&mut self, piece: Bytes) -> Result<(), StoreError> {
        let piece = unseal(&piece)?;
        if self.complete {
            return Err(StoreError::Image("a piece behind the end".into()));
        }
        match (piece, &self.header) {
            (Piece::Header { meta, shards, arrivals, gone }, None) => {
                let owned = shards.iter().flat_map(OwnedShard::spaces).chain(meta.home);
                for space in owned.chain(arrivals.iter().map(|it| it.space)) {
                    self.spaces.entry(space).or_insert_with(|| self.shared.new_space());
                }
                self.header = Some(Header { meta, shards, arrivals, gone });
                Ok(())
            }
            (Piece::Header { .. }, Some(_)) => Err(StoreError::Image("a second header".into())),
            (_, None) => Err(StoreError::Image("a piece before the header".into())),
            (Piece::Sessions { rows }, Some(_)) => {
                for (slot, row) in rows {
                    match self.sessions.last_mut().filter(|(last, _)| *last == slot) {
                        Some((_, begun)) => begun.extend(row),
                        None => self.sessions.push((slot, row)),
                    }
                }
                Ok(())
            }
            (Piece::Rows { space, kind, rows }, Some(_)) => self.write_rows(space, kind, rows),
            (Piece::End { rows }, Some(_)) if rows == self.rows => {
                self.complete = true;
                Ok(())
            }
            (Piece::End { rows }, Some(_)) => {
                Err(StoreError::Image(format!("{} rows came where {rows} were sent", self.rows)))
            }
        }
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// Makes a received image the state of `group`.
pub(crate) fn finish<S: Store>(
    group: &mut DataGroup<S>,
    sink: Box<dyn SnapshotSink<Error = StoreError> + Send>,
) -> Result<(), StoreError> {
    let Ok(sink) = sink.into_any().downcast::<Sink<S>>() else {
        panic!("finish_install was given a sink that begin_install did not return");
    };
    assert!(Arc::ptr_eq(&sink.shared, &group.shared), "the sink belongs to another group");
    let Sink { shared, header, spaces, sessions, complete, .. } = *sink;
    let Some(Header { meta, shards, arrivals, gone }) = header.filter(|_| complete) else {
        return Err(StoreError::Image("it is not complete".into()));
    };
    let applied = group.state.meta.applied;
    if meta.applied < applied {
        return Err(StoreError::Image(format!("it is of slot {}, {applied} is applied", meta.applied)));
    }
    let keys = &shared.keys;
    let mut batch = WriteBatch::default();
    batch.delete_range(keys.session_rows());
    batch.delete_range(keys.shards());
    batch.delete_range(keys.all_incoming());
    batch.delete_range(keys.all_gone());
    for (id, epoch) in gone {
        batch.put(keys.gone(id), codec::encode(&(id, epoch)));
    }
    for (slot, row) in &sessions {
        batch.put(keys.session_row(*slot), codec::encode(row));
    }
    for mut shard in shards {
        shard.stretches.iter_mut().for_each(|stretch| stretch.space = spaces[&stretch.space]);
        batch.put(keys.shard(shard.id), codec::encode(&shard));
    }
    for mut incoming in arrivals {
        incoming.space = spaces[&incoming.space];
        batch.put(keys.incoming(incoming.id), codec::encode(&incoming));
    }
    let meta = Meta { home: meta.home.map(|home| spaces[&home]), imaged: meta.applied, fenced: false, ..meta };
    batch.put(keys.meta(), codec::encode(&meta));
    {
        let _writing = shared.writing();
        group.stale = true;
        shared.store.write(&batch)?;
        shared.store.flush()?;
    }
    group.reload()?;
    // Readers and images of the old spaces see that they are; then the rows may go.
    shared.installs.fetch_add(1, Ordering::SeqCst);
    group.delete_unnamed_spaces()
}
