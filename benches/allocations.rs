//! Counts the allocations of memory for each request: issue, renew, introspect and check, beside their limits.
//!
//! `cargo bench --bench allocations`. The daemon and the limit are processes of this program, with an allocator that counts. Each
//! of them writes its count into a file, so that this process can read it. The counts hardly depend on the machine.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench uses the machine's clock and ends if it cannot go on"
)]

use std::{
    env, fs,
    os::unix::{fs::FileExt, process::parent_id},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use dhat::HeapStats;
use leasehold::{
    clock::{Clock, SystemClock},
    internals::{
        cli::Cli,
        dev::{AllocationFigure, DevDeployment, Stage, count_allocations, free_ports},
    },
};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// How often a process writes its count.
const INTERVAL: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let _counting = dhat::Profiler::builder().testing().trim_backtraces(Some(0)).build();
    let command = env::args().nth(1);
    if matches!(command.as_deref(), Some("serve" | "bench")) {
        thread::spawn(|| write_counts(parent_id()));
        return match Cli::from_env() {
            Ok(cli) => cli.run().into(),
            Err(exit) => exit.into(),
        };
    }
    let folder = counts_of(std::process::id());
    fs::create_dir(&folder).unwrap();
    let counted = tokio::runtime::Runtime::new().unwrap().block_on(count_all());
    fs::remove_dir_all(&folder).unwrap();
    match counted {
        Ok(figures) => {
            print(&figures);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("the bench could not go on: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The folder for the counts of the children of a process: one file for each child, named after its process id.
fn counts_of(parent: u32) -> PathBuf {
    env::temp_dir().join(format!("leasehold-allocations-{parent}"))
}

/// Writes the count of this process again and again. It allocates nothing meanwhile.
fn write_counts(parent: u32) {
    let file = fs::File::create(counts_of(parent).join(std::process::id().to_string())).unwrap();
    loop {
        if file.write_all_at(&HeapStats::get().total_blocks.to_le_bytes(), 0).is_err() {
            return;
        }
        thread::sleep(INTERVAL);
    }
}

fn count_of(process: u32) -> Option<u64> {
    if process == std::process::id() {
        return Some(HeapStats::get().total_blocks);
    }
    let bytes = fs::read(counts_of(std::process::id()).join(process.to_string())).ok()?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

async fn count_all() -> Result<Vec<AllocationFigure>, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let free = free_ports().map_err(|e| e.to_string())?;
    let deployment = DevDeployment::set_up(folder.path(), None, free.ports, clock.clone());
    let stage = Stage {
        deployment: Arc::new(deployment.map_err(|e| e.to_string())?),
        clock,
        program: env::current_exe().map_err(|e| e.to_string())?,
        contexts: folder.path().join("contexts.toml"),
    };
    count_allocations(&stage, &count_of).await
}

fn print(figures: &[AllocationFigure]) {
    println!("allocations for each request, of the process that answers\n");
    println!("{:<12} {:>10} {:>10} {:>10}   the limit is", "", "requests", "ours", "limit");
    for AllocationFigure { workload, requests, ours, limit } in figures {
        println!(
            "{:<12} {requests:>10} {ours:>10.1} {limit:>10.1}   {}",
            workload.as_str(),
            workload.limit()
        );
    }
}
