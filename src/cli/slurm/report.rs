//! What is to be told of a run.

use serde::{Deserialize, Serialize};

use super::allocation::{Allocation, Run, SlurmExit};
use crate::{
    clock::Wall,
    name::{JobId, SpiffeId},
};

/// One thing that happened to a run of a Slurm job. Telling it twice is telling it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) job: JobId,
    /// The attempt key of the run.
    pub(super) key: String,
    /// The run, for people.
    pub(super) run: String,
    pub(super) at: Wall,
    pub(super) event: Event,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Slurm allocated it, to somebody whose jobs run as this identity.
    Began { runs_as: SpiffeId },
    /// Slurm released it, or is about to.
    Ended { exit: SlurmExit, requeued: bool },
    /// A node was released, with nothing of it running there any more.
    Released { node: String, exit: SlurmExit },
}

/// What the prolog notes of a run, for its epilog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotedRun {
    pub(super) job: JobId,
    pub(super) key: String,
    pub(super) restarts: u32,
}

impl Report {
    pub(super) fn began(allocation: &Allocation, runs_as: SpiffeId, at: Wall) -> Self {
        Report {
            job: allocation.job,
            key: allocation.run.key(),
            run: allocation.run.to_string(),
            at,
            event: Event::Began { runs_as },
        }
    }

    /// The end of the run that was noted, or else of the only one that there can have been. None where that is not known.
    pub(super) fn ended(allocation: &Allocation, noted: Option<&NotedRun>, at: Wall) -> Option<Self> {
        let noted = noted.filter(|noted| noted.job == allocation.job);
        // After a requeue the environment counts the run that comes.
        let requeued = match noted {
            Some(noted) => allocation.run.restarts > noted.restarts,
            None if allocation.run.restarts == 0 => false,
            None => return None,
        };
        let restarts = noted.map_or(0, |noted| noted.restarts);
        Some(Report {
            job: allocation.job,
            key: noted.map_or_else(|| allocation.run.key(), |noted| noted.key.clone()),
            run: Run { restarts, ..allocation.run.clone() }.to_string(),
            at,
            event: Event::Ended { exit: allocation.exit, requeued },
        })
    }

    /// What a node's Epilog knows: its restart count may be that of the run that comes.
    pub(super) fn released(allocation: &Allocation, node: &str, at: Wall) -> Self {
        Report {
            job: allocation.job,
            key: allocation.run.key(),
            run: allocation.run.to_string(),
            at,
            event: Event::Released { node: node.to_owned(), exit: allocation.exit },
        }
    }

    /// `begin`, `end` or `release`: a run has at most one of each, and of the last one on each node.
    pub(super) fn word(&self) -> &'static str {
        match self.event {
            Event::Began { .. } => "begin",
            Event::Ended { .. } => "end",
            Event::Released { .. } => "release",
        }
    }

    /// What the keys of all runs of this Slurm job begin with.
    pub(super) fn key_prefix(&self) -> &str {
        let end = self.key.match_indices(':').nth(2).map_or(self.key.len(), |(at, _)| at.saturating_add(1));
        self.key.get(..end).unwrap_or(&self.key)
    }

    pub(super) fn to_line(&self) -> String {
        let written = |exit: &SlurmExit| Some(format!("{}:{}", exit.code, exit.signal));
        let (runs_as, exit, requeued, node) = match &self.event {
            Event::Began { runs_as } => (Some(runs_as.to_string()), None, None, None),
            Event::Ended { exit, requeued } => (None, written(exit), Some(*requeued), None),
            Event::Released { node, exit } => (None, written(exit), None, Some(node.clone())),
        };
        let written = Written {
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

    pub(super) fn parse(text: &str) -> Option<Self> {
        let Written { version, job, key, run, at_ms, runs_as, exit, requeued, node } =
            serde_json::from_str(text).ok()?;
        let event = match (version, runs_as, exit, requeued, node) {
            (VERSION, Some(id), None, None, None) => Event::Began { runs_as: id.parse().ok()? },
            (VERSION, None, Some(exit), Some(requeued), None) => {
                Event::Ended { exit: SlurmExit::parse(&exit)?, requeued }
            }
            (VERSION, None, Some(exit), None, Some(node)) => {
                Event::Released { node, exit: SlurmExit::parse(&exit)? }
            }
            _ => return None,
        };
        Some(Report { job: job.parse().ok()?, key, run, at: Wall(at_ms), event })
    }
}

impl NotedRun {
    pub(super) fn of(allocation: &Allocation) -> Self {
        NotedRun { job: allocation.job, key: allocation.run.key(), restarts: allocation.run.restarts }
    }

    pub(super) fn to_line(&self) -> String {
        let NotedRun { job, key, restarts } = self;
        let written =
            WrittenRun { version: VERSION, job: job.to_string(), key: key.clone(), restarts: *restarts };
        serde_json::to_string(&written).unwrap_or_default()
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let WrittenRun { version, job, key, restarts } = serde_json::from_str(text).ok()?;
        (version == VERSION).then_some(NotedRun { job: job.parse().ok()?, key, restarts })
    }
}

/// Of the form below. A file of another is left alone.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
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
struct WrittenRun {
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
            run: Run { cluster: "hpc".into(), slurm_job, restarts, sluid: None },
            user: "ada".into(),
            account: None,
            node: None,
            exit: SlurmExit::parse(exit).unwrap(),
        }
    }

    #[test]
    fn a_report_reads_back_and_what_is_not_one_does_not() {
        let id: SpiffeId = "spiffe://hpc.acme.example/slurm/ada".parse().unwrap();
        let began = Report::began(&allocation(4, 0, "0:0"), id, Wall(5));
        let ended = Report::ended(&allocation(4, 0, "3:0"), None, Wall(6)).unwrap();
        let released = Report::released(&allocation(4, 0, "3:0"), "n1", Wall(7));
        assert_eq!(released.key_prefix(), allocation(4, 0, "3:0").run.key_prefix());
        for report in [began, ended, released] {
            assert_eq!(Report::parse(&report.to_line()), Some(report.clone()));
            for odd in [
                report.to_line().replace("\"version\":1", "\"version\":2"),
                report.to_line().replace("\"run\"", "\"ran\""),
                report.to_line().replace("\"j-", "\"k-"),
                report.to_line().chars().skip(1).collect(),
            ] {
                assert_eq!(Report::parse(&odd), None, "{odd}");
            }
        }
        let noted = NotedRun::of(&allocation(4, 1, "0:0"));
        assert_eq!(NotedRun::parse(&noted.to_line()), Some(noted));
    }

    #[test]
    fn law_29_the_end_of_a_requeued_run_is_told_under_the_key_that_it_began_with() {
        let noted = NotedRun::of(&allocation(4, 0, "0:0"));
        // Measured: the epilogs of run 0 already have the count of run 1.
        let report = Report::ended(&allocation(4, 1, "0:0"), Some(&noted), Wall(5)).unwrap();
        assert_eq!(report.key, "slurm:hpc:4:0");
        assert_eq!(report.event, Event::Ended { exit: SlurmExit::default(), requeued: true });
        let report = Report::ended(&allocation(4, 0, "0:0"), Some(&noted), Wall(5)).unwrap();
        assert_eq!(report.event, Event::Ended { exit: SlurmExit::default(), requeued: false });
        // Without a note, only the first run can be told apart: an end under a guessed key could end the next one.
        assert_eq!(Report::ended(&allocation(4, 0, "0:0"), None, Wall(5)).unwrap().key, "slurm:hpc:4:0");
        assert_eq!(Report::ended(&allocation(4, 1, "0:0"), None, Wall(5)), None);
        // A note of another job that had this number is none.
        let other = NotedRun { job: JobId(9), ..noted };
        assert_eq!(Report::ended(&allocation(4, 1, "0:0"), Some(&other), Wall(5)), None);
    }
}
