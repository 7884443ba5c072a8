//! Executes an operation against the state just below its revision, with etcd's semantics. One
//! engine serves writes, reads at a revision, and the rebuilding of an answer given before.
//!
//! - All compares, nested ones included, are evaluated on the state before the operation and
//!   choose the path; a missing key compares as zeros, a missing value is false.
//! - Ranges and deletes on the path see the writes before them in the same operation, except
//!   ranges at an explicit revision.
//! - What can fail is checked along the path before anything is written; nothing is half-done.

use crate::mvcc::{self, Version, VisitVersion};
use crate::ops::{Compare, Delete, KeyValue, Op, OpResult, Operand, Put, Range, RangeResult, Relation, Txn};
use crate::range::Gather;
use crate::record::{self, Head};
use crate::request::OpError;
use crate::store::{StoreError, View};
use crate::territory::Territory;
use crate::types::{Keys, Revision};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

/// Why an execution ended without a result.
#[derive(Debug)]
pub(crate) enum ExecError {
    /// Of the operation; deterministic.
    Op(OpError),
    /// Of storage.
    Store(StoreError),
    /// Nobody wants the result any more.
    Stopped,
}

impl From<OpError> for ExecError {
    fn from(error: OpError) -> ExecError {
        ExecError::Op(error)
    }
}
impl From<StoreError> for ExecError {
    fn from(error: StoreError) -> ExecError {
        ExecError::Store(error)
    }
}

/// What one operation may gather in memory: pairs of its ranges, versions that its deletions supersede.
/// Of a write, all replicas must come to the same verdict: the number belongs to the log's format.
pub(crate) const GATHERED_BYTES_MAX: usize = 256 << 20;
/// What a pair costs beside its bytes.
const PAIR_BYTES: usize = 256;
/// Rows between two looks at whether to stop.
const ROWS_PER_LOOK: usize = 1024;

/// A key's pending version.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) version: Version,
    /// The version in the store that it supersedes; it may be a tombstone.
    pub(crate) before: Option<Version>,
    pub(crate) operation: u32,
}

/// What an execution did.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) result: OpResult,
    /// Which branch each transaction on the path took, in the order of their compares.
    pub(crate) path: Vec<bool>,
    pub(crate) writes: BTreeMap<Bytes, Write>,
}

/// How the path and the history are to be treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode<'p> {
    /// A write, for the first time. The state before it is the newest.
    Fresh,
    /// A read at the revision below, which must not lie below the floor.
    Read,
    /// An operation that was done at its revision and took this path; the state before it may have
    /// been superseded, or collected.
    Again(&'p [bool]),
}

/// Executes `op` at `revision`, on the state just below it.
pub(crate) fn execute<V: View>(
    view: &V,
    territory: &Territory,
    op: &Op,
    revision: Revision,
    mode: Mode<'_>,
) -> Result<Executed, ExecError> {
    execute_until(view, territory, op, revision, mode, &|| false)
}

/// The same, unless `stop` says now and then that nobody wants the result any more.
pub(crate) fn execute_until<V: View>(
    view: &V,
    territory: &Territory,
    op: &Op,
    revision: Revision,
    mode: Mode<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<Executed, ExecError> {
    let mut run = Run { view, territory, revision, mode, stop, writes: BTreeMap::new(), operations: 0, gathered: 0 };
    let path = match mode {
        Mode::Again(path) => path.to_vec(),
        Mode::Fresh | Mode::Read => {
            let mut path = Vec::new();
            run.choose_path(op, &mut path)?;
            path
        }
    };
    let own_revision = matches!(op, Op::Range(range) if range.revision.0 > 0);
    if mode == Mode::Read && !own_revision {
        run.check_floor(run.before())?;
    }
    run.check(op, &mut path.iter().copied())?;
    let result = run.op(op, &mut path.iter().copied())?;
    Ok(Executed { result, path, writes: run.writes })
}

struct Run<'a, V> {
    view: &'a V,
    territory: &'a Territory,
    revision: Revision,
    mode: Mode<'a>,
    stop: &'a dyn Fn() -> bool,
    writes: BTreeMap<Bytes, Write>,
    operations: u32,
    /// Bytes held; see [`GATHERED_BYTES_MAX`].
    gathered: usize,
}

type Path<'p> = &'p mut dyn Iterator<Item = bool>;

/// The branch that `path` says; a path that is too short was recorded for another operation.
fn branch<'t>(txn: &'t Txn, path: Path<'_>) -> Result<(bool, &'t [Op]), ExecError> {
    match path.next() {
        Some(true) => Ok((true, &txn.success)),
        Some(false) => Ok((false, &txn.failure)),
        None => Err(OpError::Malformed("the operation is not the one first sent under its session tag".into()).into()),
    }
}

impl<V: View> Run<'_, V> {
    /// The state before: everything below our revision.
    fn before(&self) -> Revision {
        self.revision.prev()
    }

    fn choose_path(&self, op: &Op, path: &mut Vec<bool>) -> Result<(), ExecError> {
        let Op::Txn(txn) = op else { return Ok(()) };
        let mut holds = true;
        for compare in &txn.compare {
            holds = holds && self.holds(compare)?;
        }
        path.push(holds);
        let ops = if holds { &txn.success } else { &txn.failure };
        ops.iter().try_for_each(|op| self.choose_path(op, path))
    }

    fn holds(&self, compare: &Compare) -> Result<bool, ExecError> {
        let (mut any, mut all) = (false, true);
        self.stored(&compare.keys, self.before(), &mut |_, head, row| {
            if !head.tombstone {
                any = true;
                all = all && compares(compare, head, Some(head.value(row)));
            }
            Ok(if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        let missing = Head::parse(&record::tombstone(Revision(0)))?;
        Ok(if any { all } else { compares(compare, &missing, None) })
    }

    /// Everything on the path that can fail for a reason of its own.
    fn check(&self, op: &Op, path: Path<'_>) -> Result<(), ExecError> {
        match op {
            Op::Range(range) if range.revision.0 > 0 => {
                // A read at an explicit revision was found complete by the caller; a write can
                // name only what was there before it.
                if range.revision >= self.revision && self.mode != Mode::Read {
                    return Err(OpError::FutureRevision { current: self.before() }.into());
                }
                self.check_floor(range.revision)
            }
            Op::Put(put) if (put.ignore_value || put.ignore_lease) && self.mode == Mode::Fresh => {
                let present = self.lookup(&put.key)?.is_some_and(|version| !version.head.tombstone);
                if present { Ok(()) } else { Err(OpError::KeyNotFound.into()) }
            }
            Op::Range(_) | Op::Put(_) | Op::Delete(_) => Ok(()),
            Op::Txn(txn) => {
                let (_, ops) = branch(txn, path)?;
                ops.iter().try_for_each(|op| self.check(op, path))
            }
        }
    }

    fn op(&mut self, op: &Op, path: Path<'_>) -> Result<OpResult, ExecError> {
        match op {
            Op::Range(range) => self.range(range).map(OpResult::Range),
            Op::Put(put) => self.put(put),
            Op::Delete(delete) => self.delete(delete),
            Op::Txn(txn) => {
                let (succeeded, ops) = branch(txn, path)?;
                let mut results = Vec::with_capacity(ops.len());
                for op in ops {
                    results.push(self.op(op, path)?);
                }
                Ok(OpResult::Txn { succeeded, results })
            }
        }
    }

    fn range(&mut self, range: &Range) -> Result<RangeResult, ExecError> {
        let left = GATHERED_BYTES_MAX - self.gathered;
        let mut gather = Gather::new(range);
        let mut visit = |key: &[u8], head: &Head, row: &[u8]| {
            if !head.tombstone {
                gather.take(key, head, row);
            }
            let ends = gather.bytes() > left || gather.is_full();
            Ok(if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        if range.revision.0 > 0 {
            self.stored(&range.keys, range.revision, &mut visit)?;
        } else {
            self.current(&range.keys, &mut visit)?;
        }
        if gather.bytes() > left {
            return Err(OpError::TooLarge.into());
        }
        self.gathered += gather.bytes();
        Ok(gather.finish())
    }

    fn put(&mut self, put: &Put) -> Result<OpResult, ExecError> {
        let known = match self.lookup(&put.key) {
            // An answer given before needs the version below only for what it shows of it.
            Err(ExecError::Op(OpError::Compacted { .. })) if matches!(self.mode, Mode::Again(_)) && !put.prev_kv => {
                return Ok(OpResult::Put { prev_kv: None });
            }
            known => known?,
        };
        let live = known.as_ref().filter(|version| !version.head.tombstone);
        if live.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(OpError::KeyNotFound.into());
        }
        let (create, version) = match live {
            Some(live) => (live.head.create_revision, live.head.version + 1),
            None => (self.revision, 1),
        };
        let value = match live {
            Some(live) if put.ignore_value => live.head.value(&live.row),
            _ => &put.value,
        };
        let lease = match live {
            Some(live) if put.ignore_lease => live.head.lease,
            _ => put.lease,
        };
        let row = record::live(self.revision, create, version, lease, value);
        let prev_kv = live.filter(|_| put.prev_kv).map(|live| live.head.pair(put.key.clone(), &live.row));
        self.write(put.key.clone(), row, known)?;
        Ok(OpResult::Put { prev_kv })
    }

    fn delete(&mut self, delete: &Delete) -> Result<OpResult, ExecError> {
        let mut found: Vec<(Bytes, Version)> = Vec::new();
        let mut gathered = self.gathered;
        self.current(&delete.keys, &mut |key, head, row| {
            if !head.tombstone {
                let version = Version { head: *head, row: Bytes::copy_from_slice(row) };
                gathered += pair_bytes(key, row);
                found.push((Bytes::copy_from_slice(key), version));
            }
            Ok(if gathered > GATHERED_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if gathered > GATHERED_BYTES_MAX {
            return Err(OpError::TooLarge.into());
        }
        self.gathered = gathered;
        let deleted = found.len() as u64;
        let mut prev_kvs: Vec<KeyValue> = Vec::new();
        for (key, version) in found {
            if delete.prev_kv {
                prev_kvs.push(version.head.pair(key.clone(), &version.row));
            }
            self.write(key, record::tombstone(self.revision), Some(version))?;
        }
        Ok(OpResult::Delete { deleted, prev_kvs })
    }

    fn write(&mut self, key: Bytes, row: Bytes, known: Option<Version>) -> Result<(), ExecError> {
        let version = Version::parse(row)?;
        let operation = self.operations;
        self.operations += 1;
        match self.writes.get_mut(&key) {
            // A second write to a key in one operation replaces the first: one version per revision.
            Some(write) => {
                write.version = version;
                write.operation = operation;
            }
            None => {
                self.writes.insert(key, Write { version, before: known, operation });
            }
        }
        Ok(())
    }

    fn check_floor(&self, at: Revision) -> Result<(), ExecError> {
        let floor = self.territory.floor();
        if at < floor { Err(OpError::Compacted { floor }.into()) } else { Ok(()) }
    }

    /// The version of a key now: pending, or the state before.
    fn lookup(&self, key: &Bytes) -> Result<Option<Version>, ExecError> {
        if let Some(write) = self.writes.get(key) {
            return Ok(Some(write.version.clone()));
        }
        if self.mode != Mode::Fresh {
            self.check_floor(self.before())?;
        }
        let Some(part) = self.territory.part_of(key) else { return Ok(None) };
        Ok(mvcc::lookup(self.view, &part.space, key, self.before())?)
    }

    /// Visits the keys as they are in the store at `at`, tombstones included.
    fn stored(&self, keys: &Keys, at: Revision, visit: &mut VisitVersion<'_>) -> Result<(), ExecError> {
        if self.mode != Mode::Fresh {
            self.check_floor(at)?;
        }
        if let Keys::One(key) = keys {
            let Some(part) = self.territory.part_of(key) else { return Ok(()) };
            if let Some(version) = mvcc::lookup(self.view, &part.space, key, at)? {
                // One key: whether to go on is no question.
                let _ = visit(key, &version.head, &version.row)?;
            }
            return Ok(());
        }
        let (mut rows, mut stopped, mut broken) = (0, false, false);
        for (part, keys) in self.territory.clip(keys) {
            mvcc::scan(self.view, &part.space, &keys, at, &mut |key, head, row| {
                rows += 1;
                stopped = rows % ROWS_PER_LOOK == 0 && (self.stop)();
                broken = stopped || visit(key, head, row)?.is_break();
                Ok(if broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if broken {
                break;
            }
        }
        if stopped { Err(ExecError::Stopped) } else { Ok(()) }
    }

    /// Visits the keys as they are now, the pending writes over the state before.
    fn current(&self, keys: &Keys, visit: &mut VisitVersion<'_>) -> Result<(), ExecError> {
        if self.writes.is_empty() {
            return self.stored(keys, self.before(), visit);
        }
        let (start, _) = keys.bounds();
        let from = (Bound::Included(start), Bound::Unbounded);
        let mut pending = self.writes.range::<[u8], _>(from).take_while(|(key, _)| keys.contains(key)).peekable();
        let mut broken = false;
        self.stored(keys, self.before(), &mut |key, head, row| {
            while let Some((own, write)) = pending.next_if(|(own, _)| &own[..] <= key) {
                let flow = visit(own, &write.version.head, &write.version.row)?;
                broken = flow.is_break();
                if broken || own == key {
                    return Ok(flow);
                }
            }
            let flow = visit(key, head, row)?;
            broken = flow.is_break();
            Ok(flow)
        })?;
        for (own, write) in pending.take_while(|_| !broken) {
            if visit(own, &write.version.head, &write.version.row)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// What a pair costs while it is held.
pub(crate) fn pair_bytes(key: &[u8], row: &[u8]) -> usize {
    key.len() + row.len() + PAIR_BYTES
}

fn compares(compare: &Compare, head: &Head, value: Option<&[u8]>) -> bool {
    let ordering = match &compare.operand {
        Operand::Version(operand) => number(head.version).cmp(operand),
        Operand::Create(operand) => number(head.create_revision.0).cmp(operand),
        Operand::Mod(operand) => number(head.mod_revision.0).cmp(operand),
        Operand::Lease(operand) => head.lease.cmp(operand),
        Operand::Value(operand) => match value {
            Some(value) => value.cmp(&operand[..]),
            None => return false,
        },
    };
    match compare.relation {
        Relation::Equal => ordering.is_eq(),
        Relation::NotEqual => ordering.is_ne(),
        Relation::Greater => ordering.is_gt(),
        Relation::Less => ordering.is_lt(),
    }
}

/// Operands are signed; our numbers never reach the sign.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
