//! Reports and runs on disk.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::report::{Event, NotedRun, Report};
use crate::{
    clock::Wall,
    limits::{SPOOL_FILE_BYTES_MAX, SPOOL_KEPT, SPOOL_REPORTS_MAX},
};

/// A directory with one file per report that is still to be told, and one per Slurm job whose run is noted.
///
/// Each file is written whole or not at all, and is on disk before the daemon is asked: a slurmctld that restarts kills its
/// scripts and runs them again, which finds the same file by its name. Owned by nobody: many scripts work in it at once.
#[derive(Debug)]
pub(super) struct Spool {
    reports: PathBuf,
    runs: PathBuf,
}

/// Why something is not in the spool.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    #[error("{} cannot be used: {why}", path.display())]
    Io { path: PathBuf, why: io::Error },
    #[error("{} holds {SPOOL_REPORTS_MAX} reports already: the daemon has been away for long; `leasehold slurm resend` says why", .0.display())]
    Full(PathBuf),
}

/// A report on disk. Another script may take it away at any time: it told it, or an end has taken the place of a beginning.
#[derive(Debug)]
pub(super) struct Spooled {
    path: PathBuf,
    pub(super) report: Report,
}

/// Held by the one that tells what others left.
pub(super) struct Turn(#[expect(dead_code, reason = "held for its lock")] Flock<fs::File>);

impl Spool {
    /// Opens it, and makes it with mode 0700 where it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, SpoolError> {
        let spool = Spool { reports: dir.join("reports"), runs: dir.join("runs") };
        for path in [&spool.reports, &spool.runs] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|why| SpoolError::Io { path: path.clone(), why })?;
        }
        Ok(spool)
    }

    /// Keeps a report until it is told. One that is there already keeps its place. The end of a run takes the place of its
    /// beginning.
    pub(super) fn keep(&self, report: Report) -> Result<Spooled, SpoolError> {
        let known = self.names()?;
        let name = file_name(&report);
        let begin = end_of_name(&report, "begin");
        for told in known.iter().filter(|n| report.word() == "end" && n.ends_with(&begin)) {
            remove(&self.reports.join(told));
        }
        let same = end_of_name(&report, report.word());
        if let Some(there) = known.iter().find(|n| n.ends_with(&same)) {
            let path = self.reports.join(there);
            if let Some(report) = read(&path).and_then(|text| Report::parse(&text)) {
                return Ok(Spooled { path, report });
            }
            remove(&path);
        }
        if known.len() >= SPOOL_REPORTS_MAX {
            return Err(SpoolError::Full(self.reports.clone()));
        }
        let path = self.reports.join(name);
        write(&self.reports, &path, &report.to_line())?;
        Ok(Spooled { path, report })
    }

    /// What is still to be told, oldest first.
    pub(super) fn pending(&self) -> Result<Vec<Spooled>, SpoolError> {
        let mut names = self.names()?;
        names.sort();
        let paths = names.into_iter().take(SPOOL_REPORTS_MAX).map(|name| self.reports.join(name));
        Ok(paths.filter_map(|path| Some(Spooled { report: Report::parse(&read(&path)?)?, path })).collect())
    }

    /// Notes which run of a Slurm job this is.
    pub(super) fn note(&self, slurm_job: u32, run: &NotedRun) -> Result<(), SpoolError> {
        write(&self.runs, &self.runs.join(slurm_job.to_string()), &run.to_line())
    }

    pub(super) fn noted(&self, slurm_job: u32) -> Option<NotedRun> {
        NotedRun::parse(&read(&self.runs.join(slurm_job.to_string()))?)
    }

    /// The turn to tell what others left, where nobody else has it.
    pub(super) fn turn(&self) -> Option<Turn> {
        let path = self.reports.join(LOCK);
        let file = fs::OpenOptions::new().create(true).append(true).open(path).ok()?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).ok().map(Turn)
    }

    /// Removes notes of runs that no job can outlast.
    pub(super) fn forget_old_runs(&self, now: Wall) {
        for entry in fs::read_dir(&self.runs).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|m| m.modified()).ok();
            let since = modified.and_then(|m| m.duration_since(std::time::UNIX_EPOCH).ok());
            let millis = since.and_then(|s| u64::try_from(s.as_millis()).ok());
            if millis.is_some_and(|at| now.since(Wall(at)) > SPOOL_KEPT) {
                remove(&entry.path());
            }
        }
    }

    fn names(&self) -> Result<Vec<String>, SpoolError> {
        let failed = |why| SpoolError::Io { path: self.reports.clone(), why };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.reports).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().filter(|n| n.ends_with(EXTENSION)).map(str::to_owned));
        }
        Ok(names)
    }
}

impl Spooled {
    /// Whether it is still to be told.
    pub(super) fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// It is told: nothing of it stays.
    pub(super) fn forget(&self) {
        remove(&self.path);
    }
}

const EXTENSION: &str = ".json";
const LOCK: &str = ".turn";

/// Sorts by time; one run of one job has one name for each word.
fn file_name(report: &Report) -> String {
    format!("{:015}{}", report.at.0, end_of_name(report, report.word()))
}

fn end_of_name(report: &Report, word: &str) -> String {
    let (job, key) = (report.job, &report.key);
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '.' };
    let mut key: String = key.chars().map(plain).collect();
    if let Event::Released { node, .. } = &report.event {
        key.extend(std::iter::once('~').chain(node.chars().map(plain)));
    }
    format!("~{job}~{key}~{word}{EXTENSION}")
}

/// A small file, where it is one.
fn read(path: &Path) -> Option<String> {
    let length = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    if length > SPOOL_FILE_BYTES_MAX { None } else { fs::read_to_string(path).ok() }
}

fn remove(path: &Path) {
    // Another script may have told it too.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        super::super::output::note(&format!("leasehold: {} cannot be removed: {error}", path.display()));
    }
}

fn write(folder: &Path, path: &Path, line: &str) -> Result<(), SpoolError> {
    let whole = || {
        let mut draft = tempfile::Builder::new()
            .prefix(".draft-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)?;
        draft.write_all(line.as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    whole().map_err(|why: io::Error| SpoolError::Io { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::slurm::report::tests::allocation;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool")).unwrap();
        (dir, spool)
    }

    fn began(job: u32, restarts: u32, at: u64) -> Report {
        let id = "spiffe://hpc.acme.example/slurm/ada".parse().unwrap();
        Report::began(&allocation(job, restarts, "0:0"), id, Wall(at))
    }

    fn ended(job: u32, at: u64) -> Report {
        Report::ended(&allocation(job, 0, "3:0"), None, Wall(at)).unwrap()
    }

    #[test]
    fn a_script_that_runs_twice_leaves_one_report_which_keeps_its_place() {
        let (_dir, spool) = spool();
        spool.keep(ended(4, 10)).unwrap();
        spool.keep(began(5, 0, 20)).unwrap();
        assert_eq!(spool.keep(ended(4, 30)).unwrap().report, ended(4, 10), "the first time stands");
        let pending = spool.pending().unwrap();
        assert_eq!(
            pending.iter().map(|s| s.report.clone()).collect::<Vec<_>>(),
            [ended(4, 10), began(5, 0, 20)]
        );
        // Opened by the next script, it is all there; told, it is gone.
        let again = Spool::open(spool.reports.parent().unwrap()).unwrap();
        again.pending().unwrap().iter().for_each(Spooled::forget);
        assert!(spool.pending().unwrap().is_empty());
        pending.iter().for_each(Spooled::forget);
    }

    #[test]
    fn the_end_of_a_run_takes_the_place_of_its_beginning_and_of_no_other() {
        let (_dir, spool) = spool();
        for report in [began(4, 0, 1), began(4, 1, 2), began(40, 0, 3)] {
            spool.keep(report).unwrap();
        }
        spool.keep(ended(4, 4)).unwrap();
        let left: Vec<_> = spool.pending().unwrap().into_iter().map(|s| s.report).collect();
        assert_eq!(left, [began(4, 1, 2), began(40, 0, 3), ended(4, 4)]);
    }

    #[test]
    fn what_is_not_a_report_is_left_alone_and_a_full_spool_says_so() {
        let (dir, spool) = spool();
        fs::write(spool.reports.join("1~x~end.json"), "{").unwrap();
        fs::write(spool.reports.join(".draft-1"), "{").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", spool.reports.join("2~x~end.json")).unwrap();
        assert!(spool.pending().unwrap().is_empty());
        assert!(spool.reports.join("1~x~end.json").exists());
        for n in 0..SPOOL_REPORTS_MAX {
            fs::write(spool.reports.join(format!("3~{n}~end.json")), "").unwrap();
        }
        assert!(matches!(spool.keep(ended(4, 1)), Err(SpoolError::Full(_))));
        fs::remove_dir_all(dir.path().join("spool")).unwrap();
        fs::write(dir.path().join("spool"), "").unwrap();
        let refused = Spool::open(&dir.path().join("spool")).unwrap_err();
        assert!(refused.to_string().contains("spool/reports cannot be used: "), "{refused}");
    }

    #[test]
    fn one_at_a_time_tells_what_others_left() {
        let (_dir, spool) = spool();
        let turn = spool.turn();
        assert!(turn.is_some());
        assert!(spool.turn().is_none());
        drop(turn);
        assert!(spool.turn().is_some());
    }

    #[test]
    fn the_run_of_a_slurm_job_is_noted_until_no_job_can_outlast_it() {
        let (_dir, spool) = spool();
        let first = NotedRun::of(&allocation(4, 0, "0:0"));
        let second = NotedRun::of(&allocation(4, 1, "0:0"));
        assert_eq!(spool.noted(4), None);
        spool.note(4, &first).unwrap();
        spool.note(4, &second).unwrap();
        assert_eq!(spool.noted(4), Some(second.clone()));
        let now = crate::clock::Clock::now(&crate::clock::SystemClock::new()).wall;
        spool.forget_old_runs(now);
        assert_eq!(spool.noted(4), Some(second));
        spool.forget_old_runs(now.plus(SPOOL_KEPT + std::time::Duration::from_secs(60)));
        assert_eq!(spool.noted(4), None);
    }
}
