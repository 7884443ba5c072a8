//! The clock of the core: CLOCK_BOOTTIME, which also runs while the machine sleeps, so that a lease
//! cannot outlive a suspended leader.

use paxos::Time;
use rustix::time::{ClockId, clock_gettime};

/// The present time.
pub fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    // Both parts are non-negative for this clock.
    Time(time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000)
}
