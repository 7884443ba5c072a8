//! What writers saw while a cluster did one thing, and what the machine under it did meanwhile.

use crate::disk::{self, Standstill};
use crate::steal::{self, Stolen};
use std::fmt;
use std::time::{Duration, Instant};

/// One phase, as its writers saw it.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// How long it was.
    pub length: Duration,
    /// Puts answered.
    pub puts: u64,
    /// Puts that failed.
    pub failed: u64,
    /// How long puts took, sorted, of the shard that moves; counted from when they were due.
    pub latencies: Vec<Duration>,
    /// When puts to that shard were answered.
    pub(crate) answers: Vec<Instant>,
    /// When puts to another shard were.
    pub(crate) answers_elsewhere: Vec<Instant>,
    /// When it began.
    pub(crate) begun: Option<Instant>,
    /// When the disk under it stood still; `None` if nobody could see.
    pub(crate) standstills: Option<Vec<Standstill>>,
    /// When the machine's cores were taken away; `None` if nobody could see.
    pub(crate) stolen: Option<Stolen>,
}

impl Phase {
    /// Puts per second.
    pub fn rate(&self) -> f64 {
        self.puts as f64 / self.length.as_secs_f64()
    }

    /// The longest time in which no put to the shard that moves was answered.
    pub fn pause(&self) -> Duration {
        longest_gap(self.begun, &self.answers).map_or(Duration::ZERO, |(_, gap)| gap)
    }

    /// The same, less the time in which the disk had requests and finished none; and how long it was with that.
    pub fn own_pause(&self) -> (Duration, Duration) {
        let own = |(from, gap): (Instant, Duration)| {
            let still = disk::stood_still(self.standstills.as_deref().unwrap_or_default(), (from, from + gap));
            (gap.saturating_sub(still), gap)
        };
        gaps(self.begun, &self.answers).map(own).max().unwrap_or_default()
    }

    /// For how long the disk finished nothing, in all; `None` if nobody could see.
    pub fn stood_still(&self) -> Option<Duration> {
        Some(self.standstills.as_ref()?.iter().map(|(from, to)| *to - *from).sum())
    }

    /// How much of the machine's cores, all together, something below it took: in the longest pause, and in all. `None` if nobody
    /// could see.
    pub fn cores_taken(&self) -> Option<(Duration, Duration)> {
        let (stolen, begun) = (self.stolen.as_ref()?, self.begun?);
        let in_pause = longest_gap(self.begun, &self.answers)
            .map_or(Duration::ZERO, |(from, gap)| steal::taken(stolen, (from, from + gap)));
        Some((in_pause, steal::taken(stolen, (begun, begun + self.length))))
    }

    /// When the longest pause was, from the phase's beginning on.
    pub fn paused_after(&self) -> Option<Duration> {
        Some(longest_gap(self.begun, &self.answers)?.0 - self.begun?)
    }

    /// The longest time in which no put to another shard was answered: what stops both is not the freezing.
    pub fn pause_elsewhere(&self) -> Duration {
        longest_gap(self.begun, &self.answers_elsewhere).map_or(Duration::ZERO, |(_, gap)| gap)
    }

    /// How long this share of the puts took at most.
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share) as usize).copied().unwrap_or_default()
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} puts/s in {:.1?}, {} failed; of the shard's ", self.rate(), self.length, self.failed)?;
        let (p50, p99, most) = (self.quantile(0.5), self.quantile(0.99), self.quantile(1.0));
        write!(f, "p50 {p50:.1?}, p99 {p99:.1?}, the longest {most:.1?}; ")?;
        let after = self.paused_after().unwrap_or_default();
        write!(
            f,
            "the longest pause {:.1?} after {after:.1?}, of another shard {:.1?}; ",
            self.pause(),
            self.pause_elsewhere()
        )?;
        match self.stood_still() {
            Some(still) => {
                write!(f, "for {still:.0?} the disk finished nothing, without that {:.1?}; ", self.own_pause().0)?;
            }
            None => write!(f, "what its disk did is not known; ")?,
        }
        match self.cores_taken() {
            Some((paused, all)) => {
                write!(f, "of the cores {paused:.0?} were taken away in that pause, {all:.1?} in all")
            }
            None => write!(f, "whether cores were taken away is not known"),
        }
    }
}

/// From when on nothing was answered, and for how long; the first from the beginning on.
fn gaps(begun: Option<Instant>, answers: &[Instant]) -> impl Iterator<Item = (Instant, Duration)> {
    let begins = begun.into_iter().chain(answers.iter().copied());
    begins.zip(answers.iter().skip(usize::from(begun.is_none()))).map(|(from, to)| (from, *to - from))
}

fn longest_gap(begun: Option<Instant>, answers: &[Instant]) -> Option<(Instant, Duration)> {
    gaps(begun, answers).max_by_key(|(_, gap)| *gap)
}
