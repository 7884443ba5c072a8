//! How much a shard holds, and where its middle is: estimates, for those who decide about splits and moves.

use crate::key::SpaceKeys;
use crate::reader::{ReadError, Reader};
use crate::record::Head;
use crate::state::OwnedShard;
use crate::store::{RowRange, Store};
use crate::types::{Bounds, Epoch, Keys, ShardId};
use bytes::Bytes;
use std::ops::ControlFlow;

/// A shard that holds less is walked through where its middle is looked for; storage cannot tell so precisely.
const WALKED_BYTES_MAX: u64 = 4 << 20;
/// Rows looked at on such a walk.
const WALKED_ROWS_MAX: usize = 200_000;
/// Rows looked at to tell how large a key is.
const COUNTED_ROWS: u64 = 1000;
/// Halvings of the range in which the middle lies: as many as two keys may have bits in common, and some.
const HALVINGS_MAX: usize = 512;

/// What a shard holds, about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The shard.
    pub shard: ShardId,
    /// The epoch at which it was measured.
    pub epoch: Epoch,
    /// Bytes in storage, history included.
    pub bytes: u64,
    /// Keys.
    pub keys: u64,
}

impl<S: Store> Reader<S> {
    /// About how many bytes a shard's rows take in storage, history and revision index included; what was written
    /// last may be missing. 0 for a shard that is not here.
    pub fn stored_bytes(&self, id: ShardId) -> u64 {
        let shards = self.shared.shards();
        let Some(shard) = shards.get(&id).map(|shard| &shard.info) else { return 0 };
        self.bytes_in(shard, &shard.bounds)
    }

    /// About how many bytes each shard takes in storage, and how many keys it holds, unless `stop`, asked between
    /// shards, says that nobody wants to know any more.
    pub fn measure(&self, stop: &dyn Fn() -> bool) -> Result<Vec<Measured>, ReadError> {
        let shards = self.shared.shards();
        let measured = shards.values().map(|shard| {
            let info = &shard.info;
            if stop() {
                return Err(ReadError::Stopped);
            }
            let (keys, seen_bytes) = self.keys_in(info)?;
            // Storage does not count what it has not written to files yet.
            let bytes = self.bytes_in(info, &info.bounds).max(seen_bytes);
            Ok(Measured { shard: info.id, epoch: info.epoch, bytes, keys })
        });
        measured.collect()
    }

    /// About how many keys a shard holds: the first ones are counted, and the others taken for as large. And how many bytes
    /// the counted ones take.
    fn keys_in(&self, shard: &OwnedShard) -> Result<(u64, u64), ReadError> {
        // Rows are looked at, not live keys: a queue may begin with any number of deletions.
        let (mut counted, mut looked_at, mut seen_bytes, mut last) = (0, 0, 0, None);
        for (part, space) in shard.parts() {
            let space = self.shared.keys.space(space);
            self.shared.store.scan(&space.latest_range(&part.keys()), &mut |row_key, row| {
                if looked_at >= COUNTED_ROWS {
                    last = Some(Bytes::copy_from_slice(space.rest(row_key)));
                    return Ok(ControlFlow::Break(()));
                }
                looked_at += 1;
                seen_bytes += (row_key.len() + row.len()) as u64;
                counted += u64::from(!Head::parse(row)?.tombstone);
                Ok(ControlFlow::Continue(()))
            })?;
            if last.is_some() {
                break;
            }
        }
        let Some(last) = last else { return Ok((counted, seen_bytes)) };
        let before = self.latest_bytes(shard, &Bounds { start: shard.bounds.start.clone(), end: Some(last) });
        let all = self.latest_bytes(shard, &shard.bounds);
        Ok((counted.saturating_mul(all.max(1)) / before.max(1).min(all.max(1)), seen_bytes))
    }

    /// The key that has about half of a shard's bytes before it; `None` where no key but the first could be that.
    pub fn middle(&self, id: ShardId, epoch: Epoch) -> Result<Option<Bytes>, ReadError> {
        let shards = self.shared.shards();
        let shard = shards.get(&id).map(|shard| &shard.info).filter(|shard| shard.epoch == epoch);
        let Some(shard) = shard else { return Err(ReadError::WrongShard) };
        let all = self.bytes_in(shard, &shard.bounds);
        let middle = match all < WALKED_BYTES_MAX {
            true => self.walk_to_middle(shard)?,
            false => self.halve_to_middle(shard, all)?,
        };
        Ok(middle.filter(|key| *key > shard.bounds.start))
    }

    /// Stored bytes of the newest versions of a shard's keys in `bounds`.
    pub(crate) fn latest_bytes(&self, shard: &OwnedShard, bounds: &Bounds) -> u64 {
        self.sum(shard, bounds, |space, keys| vec![space.latest_range(keys)])
    }

    fn bytes_in(&self, shard: &OwnedShard, bounds: &Bounds) -> u64 {
        let history = |space: &SpaceKeys, keys: &Keys| {
            let (start, end) = keys.bounds();
            let end = match end {
                crate::types::KeysEnd::Before(end) => Some(Bytes::copy_from_slice(end)),
                crate::types::KeysEnd::Inclusive(_) | crate::types::KeysEnd::Unbounded => None,
            };
            space.history_of(&Bounds { start: Bytes::copy_from_slice(start), end })
        };
        self.sum(shard, bounds, |space, keys| vec![space.latest_range(keys), history(space, keys)])
    }

    fn sum(&self, shard: &OwnedShard, bounds: &Bounds, rows: impl Fn(&SpaceKeys, &Keys) -> Vec<RowRange>) -> u64 {
        let shared = &*self.shared;
        let asked = bounds.keys();
        let ranges = shard.parts().filter_map(|(part, space)| Some((shared.keys.space(space), asked.clip(&part)?)));
        ranges.flat_map(|(space, keys)| rows(&space, &keys)).map(|range| shared.store.approximate_bytes(&range)).sum()
    }

    /// The first key that has half of the newest versions before it.
    fn walk_to_middle(&self, shard: &OwnedShard) -> Result<Option<Bytes>, ReadError> {
        let mut keys: Vec<(Bytes, usize)> = Vec::new();
        for (part, space) in shard.parts() {
            let space = self.shared.keys.space(space);
            self.shared.store.scan(&space.latest_range(&part.keys()), &mut |row_key, row| {
                keys.push((Bytes::copy_from_slice(space.rest(row_key)), row_key.len() + row.len()));
                let full = keys.len() >= WALKED_ROWS_MAX;
                Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        let half = keys.iter().map(|(_, bytes)| bytes).sum::<usize>() / 2;
        let mut before = 0;
        for (key, bytes) in keys {
            if before >= half && key > shard.bounds.start {
                return Ok(Some(key));
            }
            before += bytes;
        }
        Ok(None)
    }

    fn halve_to_middle(&self, shard: &OwnedShard, all: u64) -> Result<Option<Bytes>, ReadError> {
        let (mut low, mut high) = (shard.bounds.start.clone(), shard.bounds.end.clone());
        for _ in 0..HALVINGS_MAX {
            let Some(between) = halfway(&low, high.as_deref()) else { break };
            let before =
                self.bytes_in(shard, &Bounds { start: shard.bounds.start.clone(), end: Some(between.clone()) });
            if before.abs_diff(all / 2) <= all / 64 {
                return self.first_key(shard, between);
            }
            if before < all / 2 { low = between } else { high = Some(between) }
        }
        // One key, or a block of storage that tells no more, holds so much: the cut comes before or behind it.
        self.first_key(shard, low)
    }

    /// The first key at or above `from`.
    fn first_key(&self, shard: &OwnedShard, from: Bytes) -> Result<Option<Bytes>, ReadError> {
        let rest = Bounds { start: from, end: shard.bounds.end.clone() }.keys();
        for (part, space) in shard.parts() {
            let Some(keys) = rest.clip(&part) else { continue };
            let space = self.shared.keys.space(space);
            if let Some((row_key, _)) = self.shared.store.first(&space.latest_range(&keys))? {
                return Ok(Some(Bytes::copy_from_slice(space.rest(&row_key))));
            }
        }
        Ok(None)
    }
}

/// A key strictly between two others, about in the middle of them as fractions; `None` where there is none to be found.
fn halfway(low: &[u8], high: Option<&[u8]>) -> Option<Bytes> {
    let length = low.len().max(high.map_or(0, <[u8]>::len)) + 1;
    let digit = |key: &[u8], at: usize| u16::from(key.get(at).copied().unwrap_or(0));
    // The sum of both, with one digit before the first byte; without an end, that is 1.000…
    let mut sum = vec![0u16; length + 1];
    let mut carry = 0;
    for at in (0..length).rev() {
        let digits = digit(low, at) + high.map_or(0, |high| digit(high, at)) + carry;
        (sum[at + 1], carry) = (digits & 0xFF, digits >> 8);
    }
    sum[0] = carry + u16::from(high.is_none());
    let half: Vec<u8> = sum.windows(2).map(|pair| ((pair[0] & 1) << 7 | pair[1] >> 1) as u8).collect();
    let kept = half.iter().rposition(|&byte| byte > 0).map_or(0, |last| last + 1);
    let half = Bytes::copy_from_slice(&half[..kept]);
    (&half[..] > low && high.is_none_or(|high| &half[..] < high)).then_some(half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halfway_is_in_the_middle() {
        assert_eq!(halfway(b"", None), Some(Bytes::from_static(&[0x80])));
        assert_eq!(halfway(b"a", Some(b"c")), Some("b".into()));
        assert_eq!(halfway(b"a", Some(b"b")), Some(Bytes::from_static(&[b'a', 0x80])));
        assert_eq!(halfway(b"\xFF\xFF", None), Some(Bytes::from_static(&[0xFF, 0xFF, 0x80])));
        assert_eq!(halfway(b"a", Some(b"a\0")), None, "nothing lies between them");
    }

    proptest! {
        #[test]
        fn halving_ends_and_stays_inside(low: Vec<u8>, high: Option<Vec<u8>>) {
            let (mut low, mut count) = (Bytes::from(low), 0);
            while let Some(between) = halfway(&low, high.as_deref()) {
                prop_assert!(between > low && high.as_ref().is_none_or(|high| between[..] < high[..]));
                (low, count) = (between, count + 1);
                if count > 64 {
                    break;
                }
            }
        }
    }
}
