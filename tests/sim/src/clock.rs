//! Local clocks: each runs a little wrong, and none knows the true time.

use crate::random::Random;
use paxos::Time;

/// Clocks drift by up to this much, so that two of them differ by 1 % at most: the bound that leases
/// assume.
const DRIFT_PPM_MAX: u64 = 5_000;

/// The clock of one machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: u64,
    /// Microseconds per simulated second that it is ahead; 5000 means correct.
    rate: u64,
    stopped: u64,
}

impl Clock {
    /// A clock that was started at some time.
    pub fn new(random: &mut Random) -> Clock {
        Clock {
            offset: random.between(1_000_000, 1_000_000_000),
            rate: random.below(2 * DRIFT_PPM_MAX + 1),
            stopped: 0,
        }
    }

    fn million(self) -> u128 {
        u128::from(1_000_000 - DRIFT_PPM_MAX + self.rate)
    }

    /// What it shows at the true time `now`.
    pub fn read(self, now: u64) -> Time {
        let run = u128::from(now.saturating_sub(self.stopped)) * self.million() / 1_000_000;
        Time(self.offset + u64::try_from(run).unwrap_or(u64::MAX))
    }

    /// The true time at which it will show `time`, at the earliest.
    pub fn when(self, time: Time) -> u64 {
        let run = u128::from(time.0.saturating_sub(self.offset)) * 1_000_000;
        u64::try_from(run.div_ceil(self.million())).unwrap_or(u64::MAX).saturating_add(self.stopped)
    }

    /// A wrong clock: one that did not run for a while.
    pub fn stop_for(&mut self, micros: u64) {
        self.stopped += micros;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_first_moment_that_shows_the_time() {
        let mut random = Random::new(7, 0);
        for _ in 0..1000 {
            let clock = Clock::new(&mut random);
            let now = random.below(100_000_000);
            let shown = clock.read(now);
            let when = clock.when(shown);
            assert!(when <= now && clock.read(when) >= shown, "{clock:?} at {now}: {shown:?} at {when}");
        }
    }
}
