//! The command line of the end-to-end tests.

use checkers::History;
use clap::{Parser, Subcommand};
use e2e::phase::Phase;
use e2e::system::{Layout, System};
use e2e::{HarnessError, balancing, bars, crash, failover, idle, moving, partition, restart, smoke, workload};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// End-to-end tests on real processes, against CloudPaxos or, as a control, etcd.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Where data directories, logs and histories go.
    #[arg(long, global = true, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Kills, pauses and restarts under load, then checks all that clients saw.
    Crash {
        #[arg(long, value_enum, default_value = "cloudpaxos")]
        system: System,
        #[arg(long, value_enum, default_value = "all-roles")]
        layout: Layout,
        /// How many faults.
        #[arg(long, default_value_t = 10)]
        rounds: u32,
        /// How long each round lasts, about.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Concurrent sequential clients.
        #[arg(long, default_value_t = 8)]
        clients: u64,
        /// Keys that they share.
        #[arg(long, default_value_t = 24)]
        keys: u16,
        /// Watches over everything that run along.
        #[arg(long, default_value_t = 2)]
        watches: usize,
        /// Do not ask for the log of changes at the end; judge by what clients saw alone.
        #[arg(long)]
        no_log: bool,
        /// What all choices are drawn from; random if not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// How long writes are impossible after kill -9 of the leader.
    Failover {
        #[arg(long, value_enum, default_value = "cloudpaxos")]
        system: System,
        /// How many kills.
        #[arg(long, default_value_t = 20)]
        kills: u32,
        /// Fail where the bar is missed: less than 2 s.
        #[arg(long)]
        bar: bool,
    },
    /// How long a loaded cluster takes to start again.
    Restart {
        #[arg(long, value_enum, default_value = "cloudpaxos")]
        system: System,
        /// How much to load (KB, MB, GB are powers of 1000).
        #[arg(long, default_value = "1GB", value_parser = parse_bytes)]
        bytes: u64,
        /// The size of one value.
        #[arg(long, default_value_t = 4096)]
        value_bytes: u32,
        /// End the cluster by kill -9 instead of SIGTERM.
        #[arg(long)]
        kill: bool,
    },
    /// What clients notice while a large shard moves.
    Move {
        /// How much the shard holds (KB, MB, GB are powers of 1000).
        #[arg(long, default_value = "256MB", value_parser = parse_bytes)]
        bytes: u64,
        /// How often it moves under half the load that the cluster can bear; once more comes under all of it.
        #[arg(long, default_value_t = 4)]
        moves: u32,
        /// Fail where the bar is missed: no failed put; under half the load 60 % of the rate, and pauses below 200 ms, less
        /// the time in which the disk finishes nothing.
        #[arg(long)]
        bar: bool,
    },
    /// What many groups cost where nobody asks for anything.
    Idle {
        /// Data groups of the cluster.
        #[arg(long, default_value_t = 200)]
        groups: u64,
        /// For how long to look.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Fail where the bar is missed: less than 5 % of a core for each node.
        #[arg(long)]
        bar: bool,
    },
    /// How long the cluster takes to spread a hot range over its groups.
    Balance {
        /// Data groups of the cluster.
        #[arg(long, default_value_t = 4)]
        groups: u64,
        /// For how long to look.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// Fail where the bar is missed: spread within 60 s, no failed request.
        #[arg(long)]
        bar: bool,
    },
    /// For how long nobody can write while hosts are cut off from one another (in network namespaces; needs root).
    Partition {
        /// How often links are cut in each shape.
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// How long each cut lasts.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Which shapes; all if not given.
        #[arg(long, value_enum)]
        shape: Vec<partition::Shape>,
        /// Move, split and merge shards of two data groups meanwhile; what is measured is of both.
        #[arg(long)]
        moving: bool,
        /// Fail where the bar is missed (less than 2 s), or hosts cannot be cut off here.
        #[arg(long)]
        bar: bool,
    },
    /// The basics of the API.
    Smoke {
        #[arg(long, value_enum, default_value = "cloudpaxos")]
        system: System,
        #[arg(long, value_enum, default_value = "all-roles")]
        layout: Layout,
    },
    /// Judges a recorded history again.
    Check {
        /// A file that a failed run left.
        history: PathBuf,
    },
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        unit => return Err(format!("{unit:?} is no unit; use KB, MB or GB")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{digits:?}: {error}"))?;
    number.checked_mul(factor).ok_or_else(|| format!("{text} is too large"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // On a signal the run is dropped, and with it every process that it started.
    let result = tokio::select! {
        result = run(arguments) => result,
        () = interrupted() => {
            eprintln!("interrupted");
            return ExitCode::from(130);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(error) => {
            eprintln!("SIGTERM cannot be caught ({error}); only an interrupt ends the run in order");
            drop(tokio::signal::ctrl_c().await);
        }
    }
}

async fn run(Arguments { command, directory }: Arguments) -> Result<(), HarnessError> {
    fs::create_dir_all(&directory).map_err(HarnessError::io(format!("creating {}", directory.display())))?;
    match command {
        Command::Crash { system, layout, rounds, seconds, clients, keys, watches, no_log, seed } => {
            let (round, seed) = (Duration::from_secs_f64(seconds), seed.unwrap_or_else(workload::fresh_seed));
            let config =
                crash::Config { system, layout, rounds, round, clients, keys, watches, log: !no_log, seed, directory };
            println!("{}", config.command());
            let summary = crash::run(&config).await?;
            println!("faults: {:?}; {} changes in the log", summary.faults, summary.changes);
            println!("PASSED: {} ({:.1?}, {:.1?} of it judging)", summary.report, summary.elapsed, summary.judging);
        }
        Command::Failover { system, kills, bar } => {
            let outages = failover::run(system, kills, directory).await?;
            println!("{} kills of the leader of {}: {:.0?}", kills, system.name(), outages.0);
            println!("unavailable for writes: p50 {:.0?}, max {:.0?}", outages.median(), outages.longest());
            judge(bar, &bars::failover(&outages))?;
        }
        Command::Restart { system, bytes, value_bytes, kill } => {
            let measured = restart::run(system, bytes, value_bytes, kill, directory).await?;
            let restart::Restart { keys, load, stop, ready } = measured;
            println!("{}: {keys} keys of {value_bytes} B loaded in {load:.1?}", system.name());
            println!("stopped in {stop:.2?}, ready again in {ready:.2?}");
        }
        Command::Move { bytes, moves, bar } => {
            let measured = moving::run(bytes, moves, directory).await?;
            let line = |what: &str, phase: &Phase| println!("{what}: {phase}");
            line("saturated", &measured.saturated);
            line("half of that", &measured.half);
            measured.moves.iter().for_each(|phase| line("half, a move", phase));
            line("saturated, a move", &measured.saturated_move);
            judge(bar, &bars::moves(&measured))?;
        }
        Command::Idle { groups, seconds, bar } => {
            let shares = idle::run(groups, Duration::from_secs(seconds), &directory).await?;
            let percent: Vec<String> = shares.iter().map(|share| format!("{:.2} %", share * 100.0)).collect();
            println!("{groups} idle groups, each node's share of a core: {}", percent.join(", "));
            judge(bar, &bars::idle(&shares))?;
        }
        Command::Balance { groups, seconds, bar } => {
            let seen = balancing::run(groups, Duration::from_secs(seconds), &directory).await?;
            for (at, requests, spread) in &seen.looks {
                println!("{at:6.1?}: {requests:?} requests, they differ by {:.0} %", spread * 100.0);
            }
            let after = seen.after.map_or("never".to_owned(), |after| format!("after {after:.1?}"));
            println!(
                "spread {after}, over {} shards; {} requests answered, {} failed, the longest {:.1?}",
                seen.shards, seen.answered, seen.failed, seen.longest
            );
            judge(bar, &bars::balance(&seen))?;
        }
        Command::Partition { rounds, seconds, shape, moving, bar } => {
            let shapes = if shape.is_empty() { partition::SHAPES.to_vec() } else { shape };
            let cuts = partition::Cuts { shapes, rounds, length: Duration::from_secs_f64(seconds), moving };
            let seen = partition::run(&cuts, &directory).await?;
            judge(bar, &bars::partitions(seen.as_ref()))?;
            let Some(seen) = seen else { return Ok(()) };
            let changes = if moving { format!(", {} changes of shards", seen.changes) } else { String::new() };
            println!("{} appends, none failed; the slowest took {:.0?}{changes}", seen.appends, seen.longest);
        }
        Command::Smoke { system, layout } => {
            smoke::run(system, layout, directory).await?;
            println!("PASSED: the basics of the API on {}", system.name());
        }
        Command::Check { history } => check(&history)?,
    }
    Ok(())
}

/// Fails where a bar was missed, if that is wanted.
fn judge(bar: bool, missed: &[String]) -> Result<(), HarnessError> {
    match bar && !missed.is_empty() {
        true => Err(HarnessError::Wrong { what: "the bar".to_owned(), detail: missed.join("; ") }),
        false => Ok(()),
    }
}

fn check(path: &Path) -> Result<(), HarnessError> {
    let file = File::open(path).map_err(HarnessError::io(format!("opening {}", path.display())))?;
    let wrong = |error: checkers::HistoryError| HarnessError::Wrong {
        what: path.display().to_string(),
        detail: error.to_string(),
    };
    let history = History::read_jsonl(BufReader::new(file)).map_err(wrong)?;
    let report = checkers::check(&history);
    if report.is_ok() {
        println!("PASSED: {report}");
        return Ok(());
    }
    Err(HarnessError::Wrong { what: path.display().to_string(), detail: report.to_string() })
}
