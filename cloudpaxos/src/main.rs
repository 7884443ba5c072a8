//! The `cloudpaxos` command.

use clap::{CommandFactory, FromArgMatches};
use cloudpaxos::cli;
use std::process::ExitCode;

// A request allocates some dozens of times here, and RocksDB as often (hence `override`); glibc's
// allocator took a sixth of a put's CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = cli::Cli::command().get_matches();
    let cli = match cli::Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match cli::dispatch(cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cloudpaxos: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
