//! The binary: parses the command line, runs the command, exits with its code.

use std::process::ExitCode;

use leasehold::internals::cli::Cli;

fn main() -> ExitCode {
    match Cli::from_env() {
        Ok(cli) => cli.run().into(),
        Err(exit) => exit.into(),
    }
}
