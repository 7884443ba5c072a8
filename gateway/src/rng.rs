//! A small seeded generator for session ids and jitter, SplitMix64 ("Fast splittable pseudorandom
//! number generators", Steele et al., 2014). Deterministic on purpose; whoever starts a gateway
//! draws the seed from the operating system.

/// The generator.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: u64,
    stream: u64,
}

impl Rng {
    pub(crate) fn new(seed: [u64; 2]) -> Rng {
        // The increment must be odd for the full period; the second half of the seed picks it.
        Rng { state: seed[0], stream: seed[1].wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(self.stream);
        let mut z = self.state ^ 0x9e37_79b9_7f4a_7c15;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 128 random bits.
    pub(crate) fn id(&mut self) -> u128 {
        (u128::from(self.next()) << 64) | u128::from(self.next())
    }

    /// Between half of `micros` and all of it.
    pub(crate) fn jitter(&mut self, micros: u64) -> u64 {
        let half = micros / 2;
        half + self.next() % (half + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_give_different_streams_and_jitter_stays_in_bounds() {
        let ids: std::collections::BTreeSet<u128> =
            (0..100).map(|seed| Rng::new([seed / 10, seed % 10]).id()).collect();
        assert_eq!(ids.len(), 100);
        let mut rng = Rng::new([1, 2]);
        assert!((0..1000).map(|_| rng.jitter(100)).all(|micros| (50..=100).contains(&micros)));
        assert_eq!(rng.jitter(0), 0);
    }
}
