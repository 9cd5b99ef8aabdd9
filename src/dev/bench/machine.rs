//! The machine on which the figures were measured.

use std::{fs, io::Write, path::Path, thread, time::Duration};

use tokio::time::Instant;

use super::figure::Sample;

/// The number of bytes in the record of an issued credential.
const RECORD_BYTES: usize = 1_490;
/// How many empty measurements are made, to find out how long one measurement takes.
const MEASUREMENTS: u32 = 100_000;
/// How many writes are measured. Their median is the time of one write.
const WRITES: usize = 100;

/// The facts about the machine that a reader of the figures must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The number of processors that this process may use.
    pub cores: usize,
    /// The model of the processor, or an empty text.
    pub processor: String,
    /// The version of the kernel, or an empty text.
    pub kernel: String,
    /// The load before the measurement: how many processes wanted a processor in the last minute, or an empty text.
    pub load: String,
    /// The median time to write a record of usual size to the disk of the ledger, with `fdatasync`.
    pub disk_sync: Duration,
    /// How much of each request is the work of measuring it: two readings of the clock, and an entry in a histogram.
    pub measuring: Duration,
}

impl Machine {
    /// Inspects this machine, and measures its disk in `folder`.
    ///
    /// # Errors
    ///
    /// Fails if no file can be written in the folder.
    pub fn look(folder: &Path) -> std::io::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name")?.split_once(':').map(|(_, model)| model.trim().to_owned())
            })
            .unwrap_or_default();
        Ok(Machine {
            cores: thread::available_parallelism().map_or(1, usize::from),
            processor,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            disk_sync: sync_time(folder)?,
            measuring: measuring_time().map_err(std::io::Error::other)?,
        })
    }
}

/// Returns the processor time of all threads of a process. `None` if the kernel does not count it.
pub(super) fn processor_time(process: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let mut nanoseconds: u64 = 0;
    for thread in threads.flatten() {
        // A thread that has ended meanwhile has no file.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let taken: u64 = text.split_whitespace().next()?.parse().ok()?;
        nanoseconds = nanoseconds.saturating_add(taken);
    }
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

/// Returns the resident memory of a process, in bytes.
pub(super) fn resident(process: u32) -> Result<u64, String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).map_err(|e| e.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    Ok(kib.ok_or("this kernel does not say how much memory a process has")?.saturating_mul(1 << 10))
}

fn measuring_time() -> Result<Duration, String> {
    let mut sample = Sample::new()?;
    let begin = Instant::now();
    for _ in 0..MEASUREMENTS {
        sample.record(Instant::now().elapsed());
    }
    Ok(begin.elapsed() / MEASUREMENTS)
}

fn sync_time(folder: &Path) -> std::io::Result<Duration> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begin = Instant::now();
        file.write_all(&[b'x'; RECORD_BYTES])?;
        file.sync_data()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(WRITES / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_time_of_a_process_grows() {
        let Some(before) = processor_time(std::process::id()) else {
            eprintln!("this kernel does not count processor time");
            return;
        };
        let begin = Instant::now();
        while processor_time(std::process::id()) <= Some(before) {
            assert!(begin.elapsed() < Duration::from_secs(60), "it does not grow");
        }
        assert_eq!(processor_time(u32::MAX), None);
    }
}
