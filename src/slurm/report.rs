//! Reports about a run.

use serde::{Deserialize, Serialize};

use super::allocation::{Allocation, SlurmExit, SlurmRun};
use crate::{
    clock::Wall,
    name::{JobId, SpiffeId},
};

/// One event in a run of a Slurm job. If a report is sent twice, the second one changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunReport {
    pub job: JobId,
    /// The attempt key of the run.
    pub key: String,
    /// The run, in words for people.
    pub run: String,
    pub at: Wall,
    pub event: RunEvent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEvent {
    /// Slurm allocated nodes to a user whose jobs run as this identity.
    Began { runs_as: SpiffeId },
    /// Slurm has released the nodes, or will release them soon.
    Ended { exit: SlurmExit, requeued: bool },
    /// Slurm has released a node. No process of the run is left on the node.
    Released { node: String, exit: SlurmExit },
}

/// The note that the prolog writes about a run, for its epilog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotedRun {
    pub job: JobId,
    pub key: String,
    pub restarts: u32,
}

impl RunReport {
    pub fn began(allocation: &Allocation, runs_as: SpiffeId, at: Wall) -> Self {
        RunReport {
            job: allocation.job,
            key: allocation.run.key(),
            run: allocation.run.to_string(),
            at,
            event: RunEvent::Began { runs_as },
        }
    }

    /// Reports the end of the noted run. If there is no note, reports only the end of a first run, and returns `None` for a
    /// later run.
    pub fn ended(allocation: &Allocation, noted: Option<&NotedRun>, at: Wall) -> Option<Self> {
        let noted = noted.filter(|noted| noted.job == allocation.job);
        // After a requeue, the environment has the count of the next run.
        let requeued = match noted {
            Some(noted) => allocation.run.restarts > noted.restarts,
            None if allocation.run.restarts == 0 => false,
            None => return None,
        };
        let restarts = noted.map_or(0, |noted| noted.restarts);
        Some(RunReport {
            job: allocation.job,
            key: noted.map_or_else(|| allocation.run.key(), |noted| noted.key.clone()),
            run: SlurmRun { restarts, ..allocation.run.clone() }.to_string(),
            at,
            event: RunEvent::Ended { exit: allocation.exit, requeued },
        })
    }

    /// Reports what a node's Epilog knows. The restart count in its environment may be the count of the next run.
    pub fn released(allocation: &Allocation, node: &str, at: Wall) -> Self {
        RunReport {
            job: allocation.job,
            key: allocation.run.key(),
            run: allocation.run.to_string(),
            at,
            event: RunEvent::Released { node: node.to_owned(), exit: allocation.exit },
        }
    }

    /// Returns `begin`, `end` or `release`. A run has at most one `begin`, one `end`, and one `release` for each node.
    pub fn verb(&self) -> &'static str {
        match self.event {
            RunEvent::Began { .. } => "begin",
            RunEvent::Ended { .. } => "end",
            RunEvent::Released { .. } => "release",
        }
    }

    /// Returns the beginning of the attempt keys. It is equal for all runs of this Slurm job.
    pub fn key_prefix(&self) -> &str {
        let end = self.key.match_indices(':').nth(2).map_or(self.key.len(), |(at, _)| at.saturating_add(1));
        self.key.get(..end).unwrap_or(&self.key)
    }

    pub fn to_line(&self) -> String {
        let written = |exit: &SlurmExit| Some(format!("{}:{}", exit.code, exit.signal));
        let (runs_as, exit, requeued, node) = match &self.event {
            RunEvent::Began { runs_as } => (Some(runs_as.to_string()), None, None, None),
            RunEvent::Ended { exit, requeued } => (None, written(exit), Some(*requeued), None),
            RunEvent::Released { node, exit } => (None, written(exit), None, Some(node.clone())),
        };
        let written = ReportLine {
            version: VERSION,
            job: self.job.to_string(),
            key: self.key.clone(),
            run: self.run.clone(),
            at_ms: self.at.0,
            runs_as,
            exit,
            requeued,
            node,
        };
        serde_json::to_string(&written).unwrap_or_default()
    }

    pub fn parse(text: &str) -> Option<Self> {
        let ReportLine { version, job, key, run, at_ms, runs_as, exit, requeued, node } =
            serde_json::from_str(text).ok()?;
        let event = match (version, runs_as, exit, requeued, node) {
            (VERSION, Some(id), None, None, None) => RunEvent::Began { runs_as: id.parse().ok()? },
            (VERSION, None, Some(exit), Some(requeued), None) => {
                RunEvent::Ended { exit: SlurmExit::parse(&exit)?, requeued }
            }
            (VERSION, None, Some(exit), None, Some(node)) => {
                RunEvent::Released { node, exit: SlurmExit::parse(&exit)? }
            }
            _ => return None,
        };
        Some(RunReport { job: job.parse().ok()?, key, run, at: Wall(at_ms), event })
    }
}

impl NotedRun {
    pub fn of(allocation: &Allocation) -> Self {
        NotedRun { job: allocation.job, key: allocation.run.key(), restarts: allocation.run.restarts }
    }

    pub fn to_line(&self) -> String {
        let NotedRun { job, key, restarts } = self;
        let written =
            NoteLine { version: VERSION, job: job.to_string(), key: key.clone(), restarts: *restarts };
        serde_json::to_string(&written).unwrap_or_default()
    }

    pub fn parse(text: &str) -> Option<Self> {
        let NoteLine { version, job, key, restarts } = serde_json::from_str(text).ok()?;
        (version == VERSION).then_some(NotedRun { job: job.parse().ok()?, key, restarts })
    }
}

/// The version of the file format. A file with another version is ignored.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReportLine {
    version: u8,
    job: String,
    key: String,
    run: String,
    at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    runs_as: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requeued: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoteLine {
    version: u8,
    job: String,
    key: String,
    restarts: u32,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn allocation(slurm_job: u32, restarts: u32, exit: &str) -> Allocation {
        Allocation {
            job: JobId(u128::from(slurm_job)),
            run: SlurmRun { cluster: "hpc".into(), slurm_job, restarts, sluid: None },
            user: "ada".into(),
            account: None,
            node: None,
            exit: SlurmExit::parse(exit).unwrap(),
        }
    }

    #[test]
    fn a_report_reads_back_and_other_text_does_not() {
        let id: SpiffeId = "spiffe://hpc.acme.example/slurm/ada".parse().unwrap();
        let began = RunReport::began(&allocation(4, 0, "0:0"), id, Wall(5));
        let ended = RunReport::ended(&allocation(4, 0, "3:0"), None, Wall(6)).unwrap();
        let released = RunReport::released(&allocation(4, 0, "3:0"), "n1", Wall(7));
        assert_eq!(released.key_prefix(), allocation(4, 0, "3:0").run.key_prefix());
        for report in [began, ended, released] {
            assert_eq!(RunReport::parse(&report.to_line()), Some(report.clone()));
            for odd in [
                report.to_line().replace("\"version\":1", "\"version\":2"),
                report.to_line().replace("\"run\"", "\"ran\""),
                report.to_line().replace("\"j-", "\"k-"),
                report.to_line().chars().skip(1).collect(),
            ] {
                assert_eq!(RunReport::parse(&odd), None, "{odd}");
            }
        }
        let noted = NotedRun::of(&allocation(4, 1, "0:0"));
        assert_eq!(NotedRun::parse(&noted.to_line()), Some(noted));
    }

    // Proves law 29.
    #[test]
    fn a_requeued_run_ends_under_the_key_it_began_with() {
        let noted = NotedRun::of(&allocation(4, 0, "0:0"));
        // As measured, the epilogs of run 0 already have the count of run 1.
        let report = RunReport::ended(&allocation(4, 1, "0:0"), Some(&noted), Wall(5)).unwrap();
        assert_eq!(report.key, "slurm:hpc:4:0");
        assert_eq!(report.event, RunEvent::Ended { exit: SlurmExit::default(), requeued: true });
        let report = RunReport::ended(&allocation(4, 0, "0:0"), Some(&noted), Wall(5)).unwrap();
        assert_eq!(report.event, RunEvent::Ended { exit: SlurmExit::default(), requeued: false });
        // If there is no note, only the first run is certain. An end under a guessed key could end the next run.
        assert_eq!(RunReport::ended(&allocation(4, 0, "0:0"), None, Wall(5)).unwrap().key, "slurm:hpc:4:0");
        assert_eq!(RunReport::ended(&allocation(4, 1, "0:0"), None, Wall(5)), None);
        // A note about another job with the same number is not used.
        let other = NotedRun { job: JobId(9), ..noted };
        assert_eq!(RunReport::ended(&allocation(4, 1, "0:0"), Some(&other), Wall(5)), None);
    }
}
