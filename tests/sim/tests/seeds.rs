//! A bounded slice of what the simulator can do: seeds that found bugs, a few fresh ones, equal
//! traces for equal seeds, and faults that really happened.

use sim::{Coverage, Options, Regression, run};

fn all_pass(seeds: impl Iterator<Item = u64>, options: Options) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in seeds {
        match run(seed, options) {
            Ok(summary) => coverage.merge(&summary.coverage),
            Err(failure) => panic!("{failure}"),
        }
    }
    coverage
}

#[test]
fn seeds_that_once_failed_pass() {
    let regressions = sim::regressions::parse(include_str!("../regressions.txt")).expect("a file of seeds");
    for Regression { seed, seconds } in regressions {
        let options = Options::default();
        all_pass([seed].into_iter(), Options { seconds: seconds.unwrap_or(options.seconds), ..options });
    }
}

#[test]
fn a_slice_of_seeds_passes_and_meets_every_fault() {
    let coverage = all_pass(1000..1060, Options::default());
    let missing = coverage.missing(60);
    assert!(missing.is_empty(), "saw {missing:?} too seldom in\n{coverage}");
}

#[test]
fn equal_seeds_give_equal_traces() {
    let options = Options { seconds: 15, ..Options::default() };
    for seed in 2000..2006 {
        let [first, second] = [(); 2].map(|()| run(seed, options).unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
    let one = run(2000, options).map(|summary| summary.hash).ok();
    assert_ne!(one, run(2001, options).map(|summary| summary.hash).ok(), "two seeds, one trace");
}
