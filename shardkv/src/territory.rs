//! The shards that a command or a read names, as one sorted stretch of keys, each part with the
//! space that holds its rows.

use crate::key::{SpaceKeys, meet};
use crate::types::{Bounds, Keys, KeysEnd, Revision};

/// A stretch of keys in one space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) bounds: Bounds,
    pub(crate) space: SpaceKeys,
    /// History below is gone or going.
    pub(crate) floor: Revision,
    /// Nothing is written here any more, and only revisions up to this one may be read.
    pub(crate) frozen: Option<Revision>,
}

/// Parts sorted by start, without overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Territory {
    parts: Vec<Part>,
}

impl Territory {
    /// Neighbours in the same space with the same floor become one part, so that a range over them is one scan.
    pub(crate) fn new(mut parts: Vec<Part>) -> Territory {
        parts.sort_by(|a, b| a.bounds.start.cmp(&b.bounds.start));
        // A shard may be named twice.
        parts.dedup_by(|next, part| next.bounds == part.bounds);
        parts.dedup_by(|next, part| {
            let same = (&part.space, part.floor, part.frozen) == (&next.space, next.floor, next.frozen);
            let joined = same && meet(&part.bounds, &next.bounds);
            if joined {
                part.bounds.end = next.bounds.end.clone();
            }
            joined
        });
        Territory { parts }
    }

    /// The part that holds `key`.
    pub(crate) fn part_of(&self, key: &[u8]) -> Option<&Part> {
        let behind = self.parts.partition_point(|part| &part.bounds.start[..] <= key);
        self.parts.get(behind.checked_sub(1)?).filter(|part| part.bounds.contains(key))
    }

    /// Each part that `keys` touch, in key order, with the keys inside.
    pub(crate) fn clip<'a>(&'a self, keys: &'a Keys) -> impl Iterator<Item = (&'a Part, Keys)> {
        self.parts.iter().filter_map(move |part| keys.clip(&part.bounds).map(|keys| (part, keys)))
    }

    /// Whether every key of `keys` lies inside.
    pub(crate) fn covers(&self, keys: &Keys) -> bool {
        let (start, end) = keys.bounds();
        if let KeysEnd::Before(end) = end
            && end <= start
        {
            return true; // holds no key
        }
        let behind = self.parts.partition_point(|part| &part.bounds.start[..] <= start);
        let Some(mut at) = behind.checked_sub(1) else { return false };
        loop {
            let bounds = &self.parts[at].bounds;
            match (&bounds.end, end) {
                (None, _) => return true,
                (Some(ours), KeysEnd::Inclusive(key)) => return key < &ours[..],
                (Some(ours), KeysEnd::Before(key)) if key <= &ours[..] => return start < &ours[..],
                (Some(_), KeysEnd::Before(_) | KeysEnd::Unbounded) => {}
            }
            match self.parts.get(at + 1) {
                Some(next) if meet(bounds, &next.bounds) => at += 1,
                _ => return false,
            }
        }
    }

    /// The last revision that may be read here, if a part moves to another group.
    pub(crate) fn frozen(&self) -> Option<Revision> {
        self.parts.iter().filter_map(|part| part.frozen).min()
    }

    /// What can be read everywhere here: the largest floor.
    pub(crate) fn floor(&self) -> Revision {
        self.parts.iter().map(|part| part.floor).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::GroupKeys;
    use crate::types::SpaceId;
    use bytes::Bytes;
    use paxos::GroupId;

    fn part(start: &'static str, end: &'static str, space: u64) -> Part {
        let end = Some(Bytes::from(end)).filter(|end| !end.is_empty());
        let space = GroupKeys::new(GroupId(2)).space(SpaceId(space));
        Part { bounds: Bounds { start: start.into(), end }, space, floor: Revision(0), frozen: None }
    }

    fn range(start: &'static str, end: &'static str) -> Keys {
        Keys::Range { start: start.into(), end: end.into() }
    }

    #[test]
    fn covers_a_range_over_neighbours_but_not_over_a_gap() {
        let territory = Territory::new(vec![part("f", "k", 2), part("b", "f", 1), part("m", "", 1)]);
        assert!(territory.covers(&range("b", "k")));
        assert!(territory.covers(&range("c", "g")));
        assert!(territory.covers(&range("z", "a")), "an empty range holds no key");
        assert!(territory.covers(&Keys::From("n".into())));
        assert!(!territory.covers(&Keys::From("c".into())));
        assert!(!territory.covers(&range("a", "c")));
        assert!(!territory.covers(&range("c", "n")), "the gap from k to m");
        assert!(!territory.covers(&range("k", "l")));
        assert!(!territory.covers(&Keys::One("k".into())));
        assert!(territory.covers(&Keys::One("j".into())));
    }

    #[test]
    fn neighbours_in_one_space_are_one_scan() {
        let named = [("b", "f", 1), ("f", "k", 1), ("k", "m", 2), ("f", "k", 1)];
        let territory = Territory::new(named.map(|(start, end, space)| part(start, end, space)).to_vec());
        let all = Keys::From(Bytes::new());
        let clipped: Vec<Keys> = territory.clip(&all).map(|(_, keys)| keys).collect();
        assert_eq!(clipped, [range("b", "k"), range("k", "m")]);
    }
}
