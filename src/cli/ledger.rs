//! Implements `leasehold ledger`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Exit, Failure, Session,
    audit::{check_is_ledger, ledger_failure},
    output::{columns, note, print},
    parse, timestamp,
};
use crate::{
    ledger::{self, ArchiveError, ArchiveOptions, ArchiveReport, ArchivedSegment, Dir, Disk},
    plain,
    state::Recorded,
};

/// How many times the command tries again while the daemon compresses a segment.
const TRIES: u32 = 150;
/// The pause before each further try.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Moves old records of the ledger to an archive.
#[derive(Debug, Args)]
#[command(after_help = "\
`leasehold audit` reads and checks the ledger.

Examples:
  leasehold ledger archive /var/lib/leasehold --to /mnt/archive --older-than 90d")]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Moves to another directory the sealed segments that the daemon's start does not need; exits with 7 if the chain is broken.
    #[command(after_help = "\
It works with and without a running daemon. Run it as the daemon's user. Before it moves a segment,
it verifies the chain, also that it continues the segment that was archived last. It removes a file
only after the copy is on disk and was compared. The last two snapshots of the state stay, and all
segments from the older one on: the daemon needs them when it starts.

Examples:
  leasehold ledger archive /var/lib/leasehold --dry-run --older-than 90d \\
    --to /mnt/archive
  leasehold ledger archive /var/lib/leasehold --to /mnt/archive --keep 20 -o json
  leasehold audit verify /var/lib/leasehold --archive /mnt/archive")]
    Archive(LedgerArchiveArgs),
}

#[derive(Debug, Args)]
struct LedgerArchiveArgs {
    /// The directory of the ledger: server.state of the daemon's configuration
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The directory to which segments are moved. Use the same one each time
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Leave at least this many segments
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "older_than"
    )]
    keep: usize,
    /// Only segments whose records are all older than this (90d), or from before this time
    #[arg(long, value_name = "SPAN|TIME", value_parser = parse::since)]
    older_than: Option<parse::Since>,
    /// Verify, and say what would be moved, without moving it
    #[arg(long)]
    dry_run: bool,
}

impl LedgerArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let LedgerCommand::Archive(args) = self.command;
        let report = args.archive(session).await?;
        args.print(&report, session)?;
        Ok(Exit::Ok)
    }
}

impl LedgerArchiveArgs {
    async fn archive(&self, session: &Session) -> Result<ArchiveReport, Failure> {
        check_is_ledger(&self.dir)?;
        let unusable = |e: std::io::Error| {
            Failure::new(Exit::Failure, format!("the archive {} cannot be used: {e}", plain::path(&self.to)))
                .fix("make the directory, writable for this user, or give another one")
        };
        let to = match self.dry_run {
            true => Dir::at(&self.to),
            false => Dir::create(&self.to).map_err(unusable)?,
        };
        let is_same = |a: &Path, b: &Path| fs::canonicalize(a).ok() == fs::canonicalize(b).ok();
        if is_same(&self.dir, &self.to) {
            return Err(Failure::usage("--to is the directory of the ledger itself")
                .fix("give another directory, best on another disk"));
        }
        let now = session.now().wall;
        let before = self.older_than.map(|since| since.wall(now));
        let options = ArchiveOptions { keep: self.keep, before, dry_run: self.dry_run };
        let (from, to): (Arc<dyn Disk>, Arc<dyn Disk>) = (Arc::new(Dir::at(&self.dir)), Arc::new(to));
        let mut tries = TRIES;
        loop {
            match ledger::archive(&from, &to, &Recorded::default(), options) {
                Err(ArchiveError::Busy) if tries > 0 => {
                    tries = tries.saturating_sub(1);
                    session.clock.sleep(TRY_AGAIN).await;
                }
                done => return done.map_err(|e| self.failure(&e)),
            }
        }
    }

    fn failure(&self, error: &ArchiveError) -> Failure {
        const AGAIN: &str = "mend the cause and run the command again: it goes on where it stopped";
        match error {
            ArchiveError::Read(error) => {
                ledger_failure(error, &self.dir).with("archive", plain::path(&self.to)).fix(
                    "if another ledger was archived there, give this ledger a directory that is only for it",
                )
            }
            ArchiveError::NoLedger => {
                Failure::usage(format!("`{}` has no segment of a ledger", plain::path(&self.dir)))
                    .fix("name the directory of the ledger: server.state of the daemon's configuration")
            }
            ArchiveError::Busy => Failure::new(Exit::Failure, error.to_string()).fix("try again later"),
            ArchiveError::Io { source, .. } => {
                Failure::new(Exit::Failure, error.to_string()).with("cause", source.to_string()).fix(AGAIN)
            }
            ArchiveError::Differs { .. } => Failure::new(Exit::VerificationFailed, error.to_string())
                .with("archive", plain::path(&self.to))
                .fix("keep both files, and compare them with a copy of the ledger"),
        }
    }

    /// Returns the size of a file that was moved, or that would be.
    fn size(&self, segment: &ArchivedSegment) -> u64 {
        let here = [self.to.join(&segment.file), self.dir.join(&segment.file)];
        here.iter().find_map(|path| fs::metadata(path).ok()).map_or(0, |file| file.len())
    }

    fn print(&self, report: &ArchiveReport, session: &Session) -> Result<(), Failure> {
        if session.for_programs() {
            let at =
                |(index, time): (u64, crate::clock::Wall)| json!({ "index": index, "at": time.to_string() });
            let moved = report.moved.iter().map(|segment| {
                json!({
                    "file": segment.file, "records": segment.records, "bytes": self.size(segment),
                    "first": at(segment.first), "last": at(segment.last),
                })
            });
            return session.print_value(&json!({
                "archive": plain::path(&self.to), "dry_run": self.dry_run, "moved": moved.collect::<Vec<_>>(),
                "stays_from": report.stays_from, "segments_left": report.stay, "segments_needed": report.needed,
            }));
        }
        let now = session.now().wall;
        let rows = report.moved.iter().map(|segment| {
            vec![
                segment.file.clone(),
                segment.records.to_string(),
                self.size(segment).to_string(),
                segment.first.1.to_string(),
                format!("{} ({})", segment.last.1, timestamp::relative(segment.last.1, now)),
            ]
        });
        if !report.moved.is_empty() {
            print(&columns(&["FILE", "RECORDS", "BYTES", "FROM", "TO"], rows))?;
        }
        let (moved, to, stays) = (report.moved.len(), plain::path(&self.to), report.stays_from);
        let (stay, needed) = (report.stay, report.needed);
        note(&match (moved, self.dry_run) {
            (0, _) => {
                format!(
                    "There is nothing to move: {stay} segments stay, and the daemon needs {needed} of them when it starts."
                )
            }
            (_, true) => {
                format!("These {moved} would be moved to {to}. The ledger would begin with record {stays}.")
            }
            (_, false) => {
                format!("{moved} segments were moved to {to}. The ledger now begins with record {stays}.")
            }
        });
        Ok(())
    }
}
