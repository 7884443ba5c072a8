//! The only source of chance: a seeded generator with the few draws that the simulator needs.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// A stream of its own for each purpose, so that more draws for one do not move another's.
    pub fn new(seed: u64, stream: u64) -> Random {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Random(generator)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`, which is not 0. (The bias of the remainder does not matter here.)
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw out of nothing");
        self.bits() % bound
    }

    /// A number from `first` to `last`, both included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        assert!(first <= last, "a draw from {first} to {last}");
        first + self.below(last - first + 1)
    }

    /// Mostly near `first`, rarely near `last`: durations whose tail is long.
    pub fn skewed(&mut self, first: u64, last: u64) -> u64 {
        let scale = 1u64 << self.below(5);
        self.between(first, first + (last - first) / scale)
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        if choices.is_empty() {
            return None;
        }
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap_or_default();
        choices.get(index)
    }
}
