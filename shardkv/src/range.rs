//! Gathers a range's answer as etcd does: count over everything, filters, sort, limit.

use crate::exec::pair_bytes;
use crate::ops::{KeyValue, Range, RangeResult, Sort, SortTarget};
use crate::record::Head;
use crate::types::Revision;
use bytes::Bytes;
use std::cmp::Ordering;

/// Takes versions in key order and keeps no more of them than the answer may need.
pub(crate) struct Gather<'r> {
    range: &'r Range,
    kvs: Vec<KeyValue>,
    count: u64,
    matched: u64,
    /// Of the pairs held.
    bytes: usize,
}

impl<'r> Gather<'r> {
    pub(crate) fn new(range: &'r Range) -> Gather<'r> {
        Gather { range, kvs: Vec::new(), count: 0, matched: 0, bytes: 0 }
    }

    pub(crate) fn take(&mut self, key: &[u8], head: &Head, row: &[u8]) {
        self.count += 1;
        if self.range.count_only || !passes(self.range, head) {
            return;
        }
        self.matched += 1;
        let limit = self.range.limit;
        let in_key_order = self.range.sort == Sort::default();
        if in_key_order && limit > 0 && self.matched > limit {
            return;
        }
        let needs_value = !self.range.keys_only || self.range.sort.target == SortTarget::Value;
        let value = if needs_value { Bytes::copy_from_slice(head.value(row)) } else { Bytes::new() };
        self.bytes += pair_bytes(key, &value);
        self.kvs.push(head.pair_with(Bytes::copy_from_slice(key), value));
        // Sorting now and then keeps memory near twice the limit, whatever the range's size.
        let room = usize::try_from(limit.saturating_mul(2).saturating_add(1024)).unwrap_or(usize::MAX);
        if limit > 0 && self.kvs.len() >= room {
            self.sort_and_cut();
        }
    }

    /// Whether nothing that still comes can change the answer.
    pub(crate) fn is_full(&self) -> bool {
        let Range { limit, uncounted, sort, .. } = *self.range;
        uncounted && limit > 0 && self.matched > limit && sort == Sort::default()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn sort_and_cut(&mut self) {
        let sort = self.range.sort;
        if sort != Sort::default() {
            self.kvs.sort_unstable_by(|a, b| order(sort, a, b));
        }
        if self.range.limit > 0 {
            self.kvs.truncate(usize::try_from(self.range.limit).unwrap_or(usize::MAX));
            self.bytes = self.kvs.iter().map(|pair| pair_bytes(&pair.key, &pair.value)).sum();
        }
    }

    pub(crate) fn finish(mut self) -> RangeResult {
        self.sort_and_cut();
        if self.range.keys_only {
            self.kvs.iter_mut().for_each(|pair| pair.value = Bytes::new());
        }
        let more = self.range.limit > 0 && self.matched > self.range.limit;
        RangeResult { kvs: self.kvs, more, count: self.count }
    }
}

fn passes(range: &Range, head: &Head) -> bool {
    let within = |revision: Revision, min: Revision, max: Revision| {
        (min.0 == 0 || revision >= min) && (max.0 == 0 || revision <= max)
    };
    within(head.mod_revision, range.mod_revision_min, range.mod_revision_max)
        && within(head.create_revision, range.create_revision_min, range.create_revision_max)
}

fn order(sort: Sort, a: &KeyValue, b: &KeyValue) -> Ordering {
    let by_target = match sort.target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    let by_target = if sort.descending { by_target.reverse() } else { by_target };
    by_target.then_with(|| a.key.cmp(&b.key))
}
