//! The spool: reports about Slurm runs that are not yet sent to the daemon, and a note about the present run of each Slurm job.
//! After a requeue, a Slurm job has another run.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::report::{NotedRun, RunEvent, RunReport};
use crate::{
    clock::Wall,
    limits::{SPOOL_FILE_BYTES_MAX, SPOOL_NOTE_AGE_MAX, SPOOL_REPORTS_MAX},
    plain,
};

/// A directory with one file for each report that is not sent yet, and one file for each Slurm job with a noted run.
///
/// Each file is complete or does not exist. A report is on disk before it is sent to the daemon. If slurmctld restarts, it
/// kills its scripts and starts them again. The second script finds the report of the first script by the end of its file name.
/// Many scripts use the directory at once.
#[derive(Debug)]
pub struct Spool {
    reports: PathBuf,
    runs: PathBuf,
    /// The function that gets one line if a file cannot be removed.
    warn: fn(&str),
}

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("{} cannot be used: {why}", plain::path(path))]
    Io { path: PathBuf, why: io::Error },
    #[error("{} is full with {SPOOL_REPORTS_MAX} unsent reports: run `leasehold slurm resend`, which sends them or says why it cannot", plain::path(.0))]
    Full(PathBuf),
}

/// A report on disk. Another script may remove it at any time: when the report is sent, or when the end of the run replaces its
/// beginning.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    pub report: RunReport,
    warn: fn(&str),
}

/// The lock of the script that sends the reports that other scripts could not send. Only one script has it.
pub struct SpoolLock(#[expect(dead_code, reason = "held for its lock")] Flock<fs::File>);

impl Spool {
    /// Opens the directory, and creates it with mode 0700 if it does not exist.
    pub fn open(dir: &Path, warn: fn(&str)) -> Result<Self, SpoolError> {
        let spool = Spool { reports: dir.join("reports"), runs: dir.join("runs"), warn };
        for path in [&spool.reports, &spool.runs] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|why| SpoolError::Io { path: path.clone(), why })?;
        }
        Ok(spool)
    }

    /// Stores a report until it is sent. If a report of the same event is already stored, the stored report stays, with its
    /// time. The end of a run replaces its beginning.
    pub fn keep(&self, report: RunReport) -> Result<Spooled, SpoolError> {
        let known = self.names()?;
        let name = file_name(&report);
        let begin = name_suffix(&report, "begin");
        for obsolete in known.iter().filter(|n| report.verb() == "end" && n.ends_with(&begin)) {
            self.remove(&self.reports.join(obsolete));
        }
        let same = name_suffix(&report, report.verb());
        if let Some(there) = known.iter().find(|n| n.ends_with(&same)) {
            let path = self.reports.join(there);
            if let Some(report) = read(&path).and_then(|text| RunReport::parse(&text)) {
                return Ok(self.spooled(path, report));
            }
            self.remove(&path);
        }
        if known.len() >= SPOOL_REPORTS_MAX {
            return Err(SpoolError::Full(self.reports.clone()));
        }
        let path = self.reports.join(name);
        write(&self.reports, &path, &report.to_line())?;
        Ok(self.spooled(path, report))
    }

    /// Returns the reports that are not sent yet, oldest first.
    pub fn pending(&self) -> Result<Vec<Spooled>, SpoolError> {
        let mut names = self.names()?;
        names.sort();
        let paths = names.into_iter().take(SPOOL_REPORTS_MAX).map(|name| self.reports.join(name));
        Ok(paths
            .filter_map(|path| Some(self.spooled(path.clone(), RunReport::parse(&read(&path)?)?)))
            .collect())
    }

    /// Notes the present run of a Slurm job.
    pub fn note(&self, slurm_job: u32, run: &NotedRun) -> Result<(), SpoolError> {
        write(&self.runs, &self.runs.join(slurm_job.to_string()), &run.to_line())
    }

    pub fn noted(&self, slurm_job: u32) -> Option<NotedRun> {
        NotedRun::parse(&read(&self.runs.join(slurm_job.to_string()))?)
    }

    /// Takes the lock for sending the reports of other scripts, if no other script has the lock.
    pub fn lock(&self) -> Option<SpoolLock> {
        let path = self.reports.join(LOCK);
        let file = fs::OpenOptions::new().create(true).append(true).open(path).ok()?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).ok().map(SpoolLock)
    }

    /// Removes notes that are older than any job can be.
    pub fn forget_old_runs(&self, now: Wall) {
        for entry in fs::read_dir(&self.runs).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|m| m.modified()).ok();
            let since = modified.and_then(|m| m.duration_since(std::time::UNIX_EPOCH).ok());
            let millis = since.and_then(|s| u64::try_from(s.as_millis()).ok());
            if millis.is_some_and(|at| now.since(Wall(at)) > SPOOL_NOTE_AGE_MAX) {
                self.remove(&entry.path());
            }
        }
    }

    fn spooled(&self, path: PathBuf, report: RunReport) -> Spooled {
        Spooled { path, report, warn: self.warn }
    }

    fn remove(&self, path: &Path) {
        remove(path, self.warn);
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
    /// Whether the report is not sent yet.
    pub fn is_pending(&self) -> bool {
        self.path.exists()
    }

    /// Removes the report from the spool.
    pub fn remove(&self) {
        remove(&self.path, self.warn);
    }
}

const EXTENSION: &str = ".json";
const LOCK: &str = ".turn";

/// Returns a name that begins with the time, so that names sort by time. The rest of the name is equal for all reports of one
/// event.
fn file_name(report: &RunReport) -> String {
    format!("{:015}{}", report.at.0, name_suffix(report, report.verb()))
}

fn name_suffix(report: &RunReport, word: &str) -> String {
    let (job, key) = (report.job, &report.key);
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '.' };
    let mut key: String = key.chars().map(plain).collect();
    if let RunEvent::Released { node, .. } = &report.event {
        key.extend(std::iter::once('~').chain(node.chars().map(plain)));
    }
    format!("~{job}~{key}~{word}{EXTENSION}")
}

/// Reads a small regular file.
fn read(path: &Path) -> Option<String> {
    let length = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    if length > SPOOL_FILE_BYTES_MAX { None } else { fs::read_to_string(path).ok() }
}

fn remove(path: &Path, warn: fn(&str)) {
    // Another script may have removed the file.
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        warn(&format!("leasehold: {} cannot be removed: {error}", plain::path(path)));
    }
}

fn write(folder: &Path, path: &Path, line: &str) -> Result<(), SpoolError> {
    let write_whole = || {
        let mut draft = tempfile::Builder::new()
            .prefix(".draft-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(folder)?;
        draft.write_all(line.as_bytes())?;
        draft.as_file().sync_all()?;
        draft.persist(path)?;
        fs::File::open(folder)?.sync_all()
    };
    write_whole().map_err(|why: io::Error| SpoolError::Io { path: path.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slurm::report::tests::allocation;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(&dir.path().join("spool"), |_| ()).unwrap();
        (dir, spool)
    }

    fn began(job: u32, restarts: u32, at: u64) -> RunReport {
        let id = "spiffe://hpc.acme.example/slurm/ada".parse().unwrap();
        RunReport::began(&allocation(job, restarts, "0:0"), id, Wall(at))
    }

    fn ended(job: u32, at: u64) -> RunReport {
        RunReport::ended(&allocation(job, 0, "3:0"), None, Wall(at)).unwrap()
    }

    #[test]
    fn a_script_that_runs_twice_leaves_one_report() {
        let (_dir, spool) = spool();
        spool.keep(ended(4, 10)).unwrap();
        spool.keep(began(5, 0, 20)).unwrap();
        assert_eq!(spool.keep(ended(4, 30)).unwrap().report, ended(4, 10), "the first report is kept");
        let pending = spool.pending().unwrap();
        assert_eq!(
            pending.iter().map(|s| s.report.clone()).collect::<Vec<_>>(),
            [ended(4, 10), began(5, 0, 20)]
        );
        // The next script that opens the spool finds all reports that were not removed.
        let again = Spool::open(spool.reports.parent().unwrap(), |_| ()).unwrap();
        again.pending().unwrap().iter().for_each(Spooled::remove);
        assert!(spool.pending().unwrap().is_empty());
        pending.iter().for_each(Spooled::remove);
    }

    #[test]
    fn the_end_of_a_run_replaces_only_its_own_beginning() {
        let (_dir, spool) = spool();
        for report in [began(4, 0, 1), began(4, 1, 2), began(40, 0, 3)] {
            spool.keep(report).unwrap();
        }
        spool.keep(ended(4, 4)).unwrap();
        let left: Vec<_> = spool.pending().unwrap().into_iter().map(|s| s.report).collect();
        assert_eq!(left, [began(4, 1, 2), began(40, 0, 3), ended(4, 4)]);
    }

    #[test]
    fn other_files_stay_and_a_full_spool_is_an_error() {
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
        let refused = Spool::open(&dir.path().join("spool"), |_| ()).unwrap_err();
        assert!(refused.to_string().contains("spool/reports cannot be used: "), "{refused}");
    }

    #[test]
    fn one_script_at_a_time_holds_the_lock() {
        let (_dir, spool) = spool();
        let lock = spool.lock();
        assert!(lock.is_some());
        assert!(spool.lock().is_none());
        drop(lock);
        assert!(spool.lock().is_some());
    }

    #[test]
    fn a_note_stays_as_long_as_a_job_can_run() {
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
        spool.forget_old_runs(now.plus(SPOOL_NOTE_AGE_MAX + std::time::Duration::from_secs(60)));
        assert_eq!(spool.noted(4), None);
    }
}
