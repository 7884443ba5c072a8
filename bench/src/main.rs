//! The load generator, and the comparison of two systems that speak the etcd v3 API.
//!
//! `ci/bench` calls it: it starts the servers, lets `run` measure one cell (an operation, a number
//! of clients) after the other, alternating between the systems, and has `report` turn the results,
//! one JSON object per line, into `docs/benchmarks.md`.
//!
//! Both systems get the same client. It runs on a single-threaded runtime, which costs a third less
//! CPU per call than a multi-threaded one; on a small machine the load generator competes with
//! the servers for every microsecond.

mod cpu;
mod error;
mod load;
mod measurement;
mod operation;
mod report;

use crate::error::BenchError;
use crate::load::{Load, Pace};
use crate::measurement::{Cell, Measurement};
use crate::operation::{Keyspace, Operation};
use clap::{Args, Parser, Subcommand};
use std::fs::OpenOptions;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Measures servers that speak the etcd v3 API.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints ports that are free.
    Ports {
        /// How many.
        count: usize,
    },
    /// Waits until every endpoint answers a read.
    Wait {
        #[command(flatten)]
        target: Target,
        /// For how long.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Writes every key of the key space once.
    Load {
        #[command(flatten)]
        target: Target,
    },
    /// Measures one cell.
    Run(RunArguments),
    /// Prints the throughput that both systems reached at the most clients: the lower median.
    Peak {
        /// What `run` wrote.
        results: PathBuf,
        #[arg(long, value_enum)]
        operation: Operation,
    },
    /// Writes the comparison as Markdown.
    Report {
        /// What `run` wrote.
        results: PathBuf,
        /// The versions, the machine and the command, as Markdown to put on top.
        #[arg(long)]
        preamble: PathBuf,
        /// Where to write; standard output if not given.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Target {
    /// URLs, separated by commas.
    #[arg(long, required = true, value_delimiter = ',')]
    endpoints: Vec<String>,
    #[command(flatten)]
    keyspace: Keyspace,
}

#[derive(Args)]
struct RunArguments {
    #[command(flatten)]
    target: Target,
    /// The system's name in the report.
    #[arg(long)]
    system: String,
    /// What to do.
    #[arg(long, value_enum)]
    operation: Operation,
    /// How many requests are under way at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Connections; one per 16 clients, at least one per endpoint, if not given.
    #[arg(long)]
    connections: Option<usize>,
    /// Open loop: this many operations per second, whatever the answers do. Closed loop if not given.
    #[arg(long)]
    rate: Option<u64>,
    /// How long to measure.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// How long to run before that.
    #[arg(long, default_value_t = 2.0)]
    warmup: f64,
    /// The round; it also turns the order of the endpoints, so that a single client does not always
    /// talk to the same node.
    #[arg(long, default_value_t = 0)]
    round: usize,
    /// The processes of the servers, whose CPU time counts; separated by commas.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// The seed of the keys that are chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Append the result to this file, as one line of JSON.
    #[arg(long)]
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<(), BenchError> {
    match command {
        Command::Ports { count } => ports(count),
        Command::Wait { target, seconds } => {
            block_on(load::wait(&target.endpoints, Instant::now() + Duration::from_secs(seconds)))
        }
        Command::Load { target } => block_on(load::fill(&target.endpoints, &target.keyspace)),
        Command::Run(arguments) => run(arguments),
        Command::Peak { results, operation } => {
            println!("{}", report::peak(&report::read(&results)?, operation)?);
            Ok(())
        }
        Command::Report { results, preamble, output } => {
            let on_top = std::fs::read_to_string(&preamble).map_err(BenchError::file(&preamble))?;
            let text = report::markdown(&on_top, &report::read(&results)?);
            match output {
                Some(path) => {
                    let before = match std::fs::read_to_string(&path) {
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
                        other => other.map_err(BenchError::file(&path))?,
                    };
                    let text = text + report::by_hand(&before);
                    std::fs::write(&path, text).map_err(BenchError::file(&path))
                }
                None => {
                    print!("{text}");
                    Ok(())
                }
            }
        }
    }
}

/// Runs on a single-threaded runtime.
fn block_on<T>(work: impl Future<Output = Result<T, BenchError>>) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::Runtime)?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(work))
}

fn ports(count: usize) -> Result<(), BenchError> {
    // All are held until all are known, so they differ.
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()
        .map_err(BenchError::Runtime)?;
    for listener in &listeners {
        println!("{}", listener.local_addr().map_err(BenchError::Runtime)?.port());
    }
    Ok(())
}

fn run(arguments: RunArguments) -> Result<(), BenchError> {
    let RunArguments { mut target, system, operation, clients, connections, rate, round, pids, seed, .. } = arguments;
    let turn = round % target.endpoints.len();
    target.endpoints.rotate_left(turn);
    let endpoints = target.endpoints.len();
    let load = Load {
        endpoints: target.endpoints,
        keyspace: target.keyspace,
        operation,
        clients,
        connections: connections.unwrap_or((clients / 16).max(endpoints)),
        pace: rate.map_or(Pace::Closed, Pace::Open),
        warmup: Duration::from_secs_f64(arguments.warmup),
        window: Duration::from_secs_f64(arguments.seconds),
        pids,
        seed,
    };
    let measured = block_on(load::run(&load))?;
    let cell = Cell { operation, clients, rate };
    let measurement = Measurement::new(system, cell, round, &load, &measured);
    println!("{measurement}");
    if let Some(path) = arguments.results {
        let mut line = serde_json::to_string(&measurement).map_err(|source| BenchError::Json { line: 0, source })?;
        line.push('\n');
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(BenchError::file(&path))?;
    }
    Ok(())
}
