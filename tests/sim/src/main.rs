//! The simulator's command line.

use clap::Parser;
use sim::{Coverage, Failure, Mutant, Options, Regression, Summary, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Below this many seeds nothing is said about coverage.
const SEEDS_FOR_COVERAGE: u64 = 30;

/// Simulates a CloudPaxos cluster with faults, deterministically from a seed, and judges what its
/// clients saw.
#[derive(Parser)]
#[command(name = "sim")]
struct Arguments {
    /// One seed
    #[arg(value_name = "SEED")]
    seed: Option<u64>,
    /// The same, by name
    #[arg(long = "seed", value_name = "SEED", conflicts_with = "seed")]
    named_seed: Option<u64>,
    /// Seeds A..B (B excluded), or the first N
    #[arg(long, value_name = "A..B")]
    seeds: Option<String>,
    /// Fresh seeds for this many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// The seeds of a file, one a line, or a seed and its seconds; text behind # is a comment
    #[arg(long, value_name = "FILE")]
    regressions: Option<PathBuf>,
    /// Simulated seconds with faults per seed
    #[arg(long, default_value_t = Options::default().seconds)]
    seconds: u64,
    /// Seeds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Run every seed twice and compare the traces
    #[arg(long)]
    twice: bool,
    /// Print every line of the trace
    #[arg(long)]
    trace: bool,
    /// No bit flips on disks
    #[arg(long)]
    no_rot: bool,
    /// Break a rule on purpose, to see a checker bite
    #[arg(long)]
    mutant: Option<Mutant>,
    /// Go on behind the first failure
    #[arg(long)]
    keep_going: bool,
    /// Break every rule in turn, and print what noticed each after how many seeds, of at most so many
    #[arg(long, value_name = "N")]
    mutants: Option<u64>,
}

/// Which seeds, and until when.
struct Seeds {
    list: Vec<Regression>,
    fresh_from: Option<u64>,
    until: Option<Instant>,
}

impl Seeds {
    fn get(&self, index: u64) -> Option<Regression> {
        if let Some(seed) = usize::try_from(index).ok().and_then(|index| self.list.get(index)) {
            return Some(*seed);
        }
        let first = self.fresh_from?;
        (Instant::now() < self.until?).then(|| plain(first + index))
    }
}

fn parse_range(text: &str) -> Result<Vec<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?} is no seed: {error}"));
    match text.split_once("..") {
        Some((first, end)) => Ok((number(first)?..number(end)?).collect()),
        None => Ok((0..number(text)?).collect()),
    }
}

/// A seed with as many seconds as the command line says.
fn plain(seed: u64) -> Regression {
    Regression { seed, seconds: None }
}

fn seeds(arguments: &Arguments) -> Result<Seeds, String> {
    let mut list: Vec<Regression> = arguments.seed.or(arguments.named_seed).into_iter().map(plain).collect();
    if let Some(range) = &arguments.seeds {
        list.extend(parse_range(range)?.into_iter().map(plain));
    }
    if let Some(file) = &arguments.regressions {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        list.extend(sim::regressions::parse(&text)?);
    }
    let until = arguments.minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let fresh_from = until.map(|_| since_1970.as_secs() * 1_000_000);
    if list.is_empty() && until.is_none() {
        return Err("which seed? give SEED, --seeds A..B, --minutes M or --regressions FILE".to_owned());
    }
    Ok(Seeds { list, fresh_from, until })
}

fn once_or_twice(seed: u64, options: Options, twice: bool) -> Result<Summary, Box<Failure>> {
    let first = run(seed, options)?;
    if twice {
        let second = run(seed, options)?;
        if (first.hash, first.events) != (second.hash, second.events) {
            let what = format!("two runs differ: {first} and {second}");
            let replay = format!("{} --twice", sim::run::replay(seed, options));
            return Err(Box::new(Failure { seed, what, trace: String::new(), replay }));
        }
    }
    Ok(first)
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    micros: u64,
    events: u64,
    requests: u64,
    failed: Vec<u64>,
    coverage: Coverage,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(most) = arguments.mutants {
        return break_every_rule(most, arguments.jobs);
    }
    let seeds = match seeds(&arguments) {
        Ok(seeds) => seeds,
        Err(problem) => {
            eprintln!("sim: {problem}");
            return ExitCode::from(2);
        }
    };
    let options = Options {
        seconds: arguments.seconds,
        trace: arguments.trace,
        mutant: arguments.mutant,
        rot: !arguments.no_rot,
    };
    let began = Instant::now();
    let totals = Mutex::new(Totals::default());
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some(Regression { seed, seconds }) = seeds.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let options = Options { seconds: seconds.unwrap_or(options.seconds), ..options };
                    let result = once_or_twice(seed, options, arguments.twice);
                    let mut totals = totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    totals.seeds += 1;
                    match result {
                        Ok(summary) => {
                            println!("{summary}");
                            totals.micros += summary.micros;
                            totals.events += summary.events;
                            totals.requests += summary.requests as u64;
                            totals.coverage.merge(&summary.coverage);
                        }
                        Err(failure) => {
                            eprintln!("{failure}");
                            totals.failed.push(seed);
                            stop.store(!arguments.keep_going, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    // What once failed was not chosen for what happens in it.
    let judged = if arguments.regressions.is_some() { u64::MAX } else { SEEDS_FOR_COVERAGE };
    report(&totals.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner), began.elapsed(), judged)
}

/// Prints what came of all seeds; from `judged` seeds on it matters how much happened in them.
fn report(totals: &Totals, took: Duration, judged: u64) -> ExitCode {
    let Totals { seeds, micros, events, requests, failed, coverage } = totals;
    let hours = *micros as f64 / 3.6e9;
    let minutes = took.as_secs_f64() / 60.0;
    println!("{coverage}");
    println!(
        "{seeds} seeds, {hours:.3} simulated hours in {minutes:.2} minutes ({:.2} hours a minute), {events} events, {requests} requests",
        hours / minutes.max(1e-9)
    );
    if !failed.is_empty() {
        eprintln!("failed seeds: {failed:?}");
        return ExitCode::FAILURE;
    }
    let missing = coverage.missing(*seeds);
    if *seeds >= judged && !missing.is_empty() {
        let seen: Vec<String> = missing.iter().map(|(name, count)| format!("{name} {count} times")).collect();
        eprintln!("too little happened: saw {}", seen.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Simulated seconds with faults per seed, where a rule is broken.
const MUTANT_SECONDS: u64 = 30;

/// Runs seeds with each mutant until something notices it.
fn break_every_rule(most: u64, jobs: usize) -> ExitCode {
    let (next, survived) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(mutant) = sim::mutant::ALL.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let options = Options { mutant: Some(*mutant), seconds: MUTANT_SECONDS, ..Options::default() };
                    let because = mutant.shows_as();
                    let caught = (0..most).find_map(|seed| {
                        let what = run(seed, options).err()?.what;
                        because.iter().any(|reason| what.contains(reason)).then_some((seed, what))
                    });
                    match caught {
                        Some((seed, what)) => {
                            let first: String = what.lines().next().unwrap_or_default().chars().take(150).collect();
                            println!("{mutant:<26} {:>4} seeds  {first}", seed + 1);
                        }
                        None => {
                            survived.fetch_add(1, Ordering::Relaxed);
                            println!("{mutant:<26} SURVIVED {most} seeds");
                        }
                    }
                }
            });
        }
    });
    match survived.into_inner() {
        0 => ExitCode::SUCCESS,
        count => {
            eprintln!("{count} mutants survived");
            ExitCode::FAILURE
        }
    }
}
