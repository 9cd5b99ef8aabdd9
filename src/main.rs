//! The binary: parses the command line, runs the command, exits with its code.

use std::process::ExitCode;

use leasehold::internals::cli::Cli;

/// The issue of a credential makes about 200 allocations, which cost less with this allocator (docs/performance.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::from_env() {
        Ok(cli) => cli.run().into(),
        Err(exit) => exit.into(),
    }
}
