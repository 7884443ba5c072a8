//! CPU time of processes, from `/proc/PID/stat` (proc(5)).

use crate::error::BenchError;
use std::fs;
use std::io;
use std::time::Duration;

/// The unit of times in `/proc`. It is an ABI constant of Linux, not the kernel's tick.
const USER_HZ: u64 = 100;
/// Positions of `utime` and `stime` behind the command's name.
const UTIME: usize = 11;
const STIME: usize = 12;

/// User and system time of all threads of the processes so far.
pub fn of_processes(pids: &[u32]) -> Result<Duration, BenchError> {
    let mut ticks = 0;
    for &pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"));
        let own = text.and_then(|text| ticks_in(&text).ok_or(io::ErrorKind::InvalidData.into()));
        ticks += own.map_err(|source| BenchError::Process { pid, source })?;
    }
    Ok(Duration::from_millis(ticks * 1000 / USER_HZ))
}

/// The ticks in one line. The name in parentheses may itself hold spaces and parentheses, so the
/// fields are counted from the last one.
fn ticks_in(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = behind_name.split(' ').collect();
    let field = |position: usize| fields.get(position)?.parse::<u64>().ok();
    Some(field(UTIME)? + field(STIME)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 1234 56 0 0 20 0 9 0 100 1000 10";
        assert_eq!(ticks_in(stat), Some(1290));
        assert_eq!(ticks_in("7 (cut) S 1"), None);
    }

    #[test]
    fn our_own_time_rises() {
        let own = [std::process::id()];
        let before = of_processes(&own).expect("our own process");
        let mut work = 1u64;
        // Some ticks of work, whatever the machine: the loop ends by what it measures.
        while of_processes(&own).expect("our own process") < before + Duration::from_millis(20) {
            work = (0..100_000u64).fold(work, |sum, n| sum.wrapping_mul(n | 1));
        }
        assert!(of_processes(&own).expect("our own process") > before, "{work}");
    }
}
