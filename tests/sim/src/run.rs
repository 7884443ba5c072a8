//! Runs one seed, and catches what goes wrong with the trace that led there.

use crate::coverage::Coverage;
use crate::mutant::Mutant;
use crate::plan::{Options, Plan};
use crate::scripts;
use crate::world::World;
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Trace lines in a failure's report.
const TAIL_LINES: usize = 120;

/// What a seed came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Simulated microseconds.
    pub micros: u64,
    /// Events.
    pub events: u64,
    /// Requests recorded.
    pub requests: usize,
    /// The hash of the whole trace.
    pub hash: u64,
    /// What happened.
    pub coverage: Coverage,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { seed, micros, events, requests, hash, coverage } = self;
        let crashes = coverage.get("crash.power") + coverage.get("crash.process");
        write!(
            f,
            "seed {seed}: {}.{:03} s simulated, {events} events, {requests} requests, {} prepares, {crashes} crashes, \
             {} snapshots installed, trace {hash:016x}",
            micros / 1_000_000,
            micros / 1000 % 1000,
            coverage.get("election"),
            coverage.get("snapshot.installed")
        )
    }
}

/// A promise was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Which.
    pub what: String,
    /// The last lines of the trace.
    pub trace: String,
    /// The arguments that replay it.
    pub replay: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, what, trace, replay } = self;
        write!(
            f,
            "{trace}\nseed {seed} failed at commit {}: {what}\nreplay: ci/sim {replay} (with --trace for every line)",
            commit()
        )
    }
}

/// The commit that the working tree is at, as far as git tells, and whether it was changed since.
fn commit() -> String {
    let output = std::process::Command::new("git").args(["describe", "--always", "--abbrev=12", "--dirty"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics inside a run are violations like any other: kept for the report instead of printed.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let running = PANIC.with_borrow_mut(|panic| match panic {
                Some(text) => {
                    *text = info.to_string();
                    true
                }
                None => false,
            });
            if !running {
                usual(info);
            }
        }));
    });
}

/// Runs one seed.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    catch_panics();
    paxos::flaw::put(match options.mutant {
        Some(Mutant::Flaw(flaw)) => Some(flaw),
        Some(_) | None => None,
    });
    let mut world = World::new(Plan::new(seed, options));
    PANIC.set(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(|| scripts::play().and_then(|()| world.run())));
    let panic = PANIC.take();
    let what = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(what),
        Err(_) => Some(panic.unwrap_or_default()),
    };
    match what {
        None => Ok(Summary {
            seed,
            micros: world.now,
            events: world.events,
            requests: world.history.events.len(),
            hash: world.trace.hash(),
            coverage: world.coverage.clone(),
        }),
        Some(what) => {
            let (trace, replay) = (world.trace.tail(TAIL_LINES), replay(seed, options));
            Err(Box::new(Failure { seed, what, trace, replay }))
        }
    }
}

/// The arguments that run a seed like this again.
pub fn replay(seed: u64, options: Options) -> String {
    let mut arguments = seed.to_string();
    if options.seconds != Options::default().seconds {
        arguments.push_str(&format!(" --seconds {}", options.seconds));
    }
    if !options.rot {
        arguments.push_str(" --no-rot");
    }
    if let Some(mutant) = options.mutant {
        arguments.push_str(&format!(" --mutant {mutant}"));
    }
    arguments
}
