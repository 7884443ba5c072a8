//! When the machine below this one took its cores away: a virtual machine's threads do not run then, although they could.

use crate::watch::Watch;
use std::time::{Duration, Instant};

/// The kernel counts in hundredths of a second of one core; oftener than that there is nothing new.
const LOOK: Duration = Duration::from_millis(10);
/// What `/proc/stat` counts in, on every Linux there is (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// By when how much of the cores' time had been taken since the machine started, whenever it had become more.
pub(crate) type Stolen = Vec<(Instant, Duration)>;

/// Watches this machine's cores. `None` where nobody counts that.
pub(crate) fn watch() -> Option<Watch<Stolen>> {
    stolen(&std::fs::read_to_string("/proc/stat").ok()?)?;
    Watch::start(LOOK, Stolen::new(), |seen: &mut Stolen| {
        let now = std::fs::read_to_string("/proc/stat").ok().and_then(|text| stolen(&text));
        if let Some(now) = now.filter(|now| seen.last().is_none_or(|(_, last)| last < now)) {
            seen.push((Instant::now(), now));
        }
    })
}

/// The eighth figure of the line of all cores together, as proc_stat(5) says.
fn stolen(text: &str) -> Option<Duration> {
    let ticks: u32 = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(7)?.parse().ok()?;
    Some(TICK * ticks)
}

/// How much of the cores' time was taken between two moments, of all of them together. It is counted where it was noticed, a
/// look later at most.
pub(crate) fn taken(seen: &Stolen, (from, to): (Instant, Instant)) -> Duration {
    let by = |moment| seen.iter().take_while(|(at, _)| *at <= moment).last().or(seen.first()).map(|(_, all)| *all);
    match (by(from), by(to + LOOK)) {
        (Some(before), Some(after)) => after - before,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_read_and_counted_between_two_moments() {
        let text = "cpu  5352802 205174 830029 2344396 96310 0 121747 14487 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(stolen(text), Some(Duration::from_millis(144_870)));
        assert_eq!(stolen("cpu  1 2 3\n"), None);
        assert_eq!(stolen("intr 1 2 3 4 5 6 7 8 9\n"), None);
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let seen: Stolen = [(0, 100), (50, 120), (90, 130), (300, 200)]
            .into_iter()
            .map(|(millis, all)| (at(millis), Duration::from_millis(all)))
            .collect();
        assert_eq!(taken(&seen, (at(10), at(95))), Duration::from_millis(30));
        assert_eq!(taken(&seen, (at(60), at(295))), Duration::from_millis(80), "noticed a look later");
        assert_eq!(taken(&seen, (at(100), at(200))), Duration::ZERO);
        assert_eq!(taken(&Stolen::new(), (at(100), at(200))), Duration::ZERO);
    }
}
