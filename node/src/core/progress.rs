//! How far moves to groups that are led here have come, for those who wait for them.

use super::{Core, Machine};
use paxos::Time;
use shardkv::moving::{Incoming, Position};
use shardkv::store::Store;
use shardkv::types::MoveId;

/// How far a move to a group that is led here has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveStatus {
    /// The move.
    pub mv: MoveId,
    /// What is to be imported next.
    pub at: Position,
    /// Bytes imported.
    pub bytes: u64,
    /// How much of the keys has been copied, in thousandths; 0 after a change of the leader, until it goes on.
    pub copied: u32,
    /// Bytes that came per second since this leader has had to do with it.
    pub bytes_per_second: u64,
    /// Microseconds since something came.
    pub still_micros: u64,
}

/// What came of a shard, since a leader has had to do with its move.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Since when, and when something came last.
    times: Option<(Time, Time)>,
    bytes: u64,
}

impl Pace {
    /// The move is in hand.
    pub(super) fn begin(&mut self, now: Time) {
        self.times.get_or_insert((now, now));
    }

    /// A piece of so many bytes has come.
    pub(super) fn came(&mut self, now: Time, bytes: usize) {
        let (since, _) = self.times.unwrap_or((now, now));
        self.times = Some((since, now));
        self.bytes += bytes as u64;
    }

    /// Bytes per second, and microseconds since something came.
    fn read(&self, now: Time) -> (u64, u64) {
        let Some((since, last)) = self.times else { return (0, 0) };
        let micros = u128::from(now.since(since)).max(1);
        let rate = u128::from(self.bytes) * 1_000_000 / micros;
        (u64::try_from(rate).unwrap_or(u64::MAX), now.since(last))
    }
}

impl<S: Store> Core<S> {
    /// Moves to groups that are led here.
    pub(super) fn moves_here(&self, now: Time) -> Vec<MoveStatus> {
        let led = self.groups.iter().filter(|(_, group)| group.lead.as_ref().is_some_and(|lead| lead.ready));
        let arrivals = led.flat_map(|(id, group)| match &group.machine {
            Machine::Data(reader) => reader.arrivals().into_iter().map(|it| (*id, it)).collect::<Vec<_>>(),
            Machine::Master(_) => Vec::new(),
        });
        let status = arrivals.map(|(id, Incoming { mv, at, bytes, .. })| {
            let fetching = self.moving.fetching.get(&(id, mv));
            let copied = fetching.map_or(0, |fetching| fetching.copied);
            let (bytes_per_second, still_micros) = fetching.map_or((0, 0), |fetching| fetching.pace.read(now));
            MoveStatus { mv, at, bytes, copied, bytes_per_second, still_micros }
        });
        status.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_what_came_by_now_and_how_long_ago() {
        let mut pace = Pace::default();
        assert_eq!(pace.read(Time(7)), (0, 0));
        pace.begin(Time(1_000_000));
        pace.begin(Time(2_000_000));
        assert_eq!(pace.read(Time(3_000_000)), (0, 2_000_000));
        pace.came(Time(3_000_000), 4_000);
        pace.came(Time(5_000_000), 4_000);
        assert_eq!(pace.read(Time(5_000_000)), (2_000, 0));
        assert_eq!(pace.read(Time(9_000_000)), (1_000, 4_000_000));
    }
}
