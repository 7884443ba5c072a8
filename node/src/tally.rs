//! What happens, counted: plain numbers beside the machine, for whoever shows them to operators.
//!
//! They are as deterministic as the machine itself, and nothing in it reads them.

/// Powers of two that are told apart; the last one takes everything above, too.
const POWERS: usize = 32;

/// How often values fell between two powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    counts: [u64; POWERS],
    sum: u64,
}

impl Distribution {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        let power = value.checked_sub(1).map_or(0, |below| (u64::BITS - below.leading_zeros()) as usize);
        self.counts[power.min(POWERS - 1)] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many were at most 2^`power`. Above the largest power that is told apart: all.
    pub fn at_most(&self, power: usize) -> u64 {
        match power < POWERS - 1 {
            true => self.counts[..=power].iter().sum(),
            false => self.count(),
        }
    }
}

/// What a replica has seen since its node started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTally {
    /// Times that the leader, as this replica knows it, became another one.
    pub leader_changes: u64,
    /// Times that this replica's state was found to be another one than a majority's.
    pub fences: u64,
    /// Terms that this replica began to lead.
    pub terms_led: u64,
    /// Commands per proposed batch.
    pub batch_commands: Distribution,
    /// Bytes per proposed batch.
    pub batch_bytes: Distribution,
    /// From a batch's proposal to its application here, in microseconds.
    pub commit_micros: Distribution,
    /// From a batch's request for revisions to their arrival, in microseconds; 0 where the sequencer is here.
    pub stamp_micros: Distribution,
    /// Requests refused because a limit of the leader was reached.
    pub refused: u64,
    /// Entries applied, and their bytes.
    pub applied_entries: u64,
    /// See above.
    pub applied_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_below_the_next_power_of_two() {
        let mut seen = Distribution::default();
        [0, 1, 2, 3, 4, 5, 1024, 1025].into_iter().for_each(|value| seen.record(value));
        assert_eq!((seen.count(), seen.sum()), (8, 2064));
        let at_most: Vec<u64> = [0, 1, 2, 3, 9, 10, 11].into_iter().map(|power| seen.at_most(power)).collect();
        assert_eq!(at_most, [2, 3, 5, 6, 6, 7, 8]);
    }

    #[test]
    fn no_value_is_too_large() {
        let mut seen = Distribution::default();
        [u64::MAX, u64::MAX, 1 << 40].into_iter().for_each(|value| seen.record(value));
        assert_eq!((seen.count(), seen.sum()), (3, u64::MAX));
        assert_eq!((seen.at_most(30), seen.at_most(31), seen.at_most(99)), (0, 3, 3));
    }
}
