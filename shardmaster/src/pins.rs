//! Keys that operators pin to groups; the balancer sees to it ([`crate::balance`]).

use crate::state::{MasterOutcome, MasterState, refused};
use shardkv::map::{Pin, SHARDMASTER_GROUP};

/// Pins of a cluster: they are in the map, which every gateway and node has.
const PINS_MAX: usize = 1000;
/// Of a pinned prefix.
const PREFIX_BYTES_MAX: usize = 1024;

impl MasterState {
    pub(crate) fn pin(&mut self, pin: Pin) -> MasterOutcome {
        let pins = &mut self.map.balance.pins;
        if pin.prefix.is_empty() || pin.prefix.len() > PREFIX_BYTES_MAX {
            return refused(format!("a pinned prefix has 1 to {PREFIX_BYTES_MAX} bytes, not {}", pin.prefix.len()));
        }
        if pin.group == SHARDMASTER_GROUP || !self.map.groups.iter().any(|group| group.id == pin.group) {
            return refused(format!("{} is no group that holds shards", pin.group));
        }
        if self.map.groups.iter().any(|group| group.id == pin.group && group.emptying) {
            return refused(format!("{} is to be emptied: choose another group, or let it keep its shards", pin.group));
        }
        let overlaps = |other: &&Pin| {
            other.prefix != pin.prefix
                && (other.prefix.starts_with(&pin.prefix) || pin.prefix.starts_with(&other.prefix))
        };
        if let Some(other) = pins.iter().find(overlaps) {
            return refused(format!("{} and {} overlap: unpin the other one first", pin.shown(), other.shown()));
        }
        if pins.contains(&pin) {
            return MasterOutcome::Applied;
        }
        let known = pins.iter().position(|known| known.prefix == pin.prefix);
        if known.is_none() && pins.len() >= PINS_MAX {
            return refused(format!("there are {PINS_MAX} pins: unpin some first"));
        }
        match known {
            Some(at) => pins[at] = pin,
            None => pins.push(pin),
        }
        pins.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        self.map.version += 1;
        MasterOutcome::Applied
    }

    pub(crate) fn unpin(&mut self, prefix: &[u8]) -> MasterOutcome {
        let pins = &mut self.map.balance.pins;
        let before = pins.len();
        pins.retain(|pin| pin.prefix != prefix);
        if pins.len() == before {
            return refused(format!("{}* is not pinned", prefix.escape_ascii()));
        }
        self.map.version += 1;
        MasterOutcome::Applied
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::MasterCommand;
    use paxos::GroupId;
    use shardkv::map::{GroupInfo, ShardChange, ShardMap};

    #[test]
    fn pins_do_not_overlap_and_go_to_groups_that_hold_shards() {
        let group = GroupId(2);
        let map = ShardMap {
            shards: crate::initial_shards(&[], &[group]),
            shardmaster: GroupInfo::new(SHARDMASTER_GROUP, Vec::new()),
            groups: vec![GroupInfo::new(group, Vec::new())],
            ..ShardMap::default()
        };
        let mut state = MasterState::default();
        state.apply(MasterCommand::Genesis(Box::new(map)));
        let mut change = |change| state.apply(MasterCommand::ChangeShards(change));
        let pin = |prefix: &'static str, group| ShardChange::Pin(Pin { prefix: prefix.into(), group: GroupId(group) });
        assert_eq!(change(pin("/jobs/", 2)), MasterOutcome::Applied);
        assert_eq!(change(pin("/jobs/", 2)), MasterOutcome::Applied, "asked again");
        for refused in [pin("", 2), pin("/jobs/a", 2), pin("/", 2), pin("/x", 1), pin("/x", 9)] {
            assert!(matches!(change(refused.clone()), MasterOutcome::Failed(_)), "{refused:?}");
        }
        assert_eq!(change(ShardChange::Unpin { prefix: "/jobs/".into() }), MasterOutcome::Applied);
        assert!(matches!(change(ShardChange::Unpin { prefix: "/jobs/".into() }), MasterOutcome::Failed(_)));
        assert_eq!(change(pin("/", 2)), MasterOutcome::Applied);
    }
}
