//! The `cloudpaxos` command.

use clap::{CommandFactory, FromArgMatches};
use cloudpaxos::cli;
use std::process::ExitCode;

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
