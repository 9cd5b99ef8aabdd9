//! One run of a Slurm job.

use std::fmt;

use crate::{
    limits::KEY_BYTES_MAX,
    name::{JobId, SpiffeId},
};

/// What names a Leasehold job in the comment of a Slurm job.
const MARK: &str = "leasehold:";

/// Which run of which Slurm job; the same for its prolog, its nodes and its epilog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) cluster: String,
    pub(super) slurm_job: u32,
    pub(super) restarts: u32,
    /// Slurm's own name of the run, from 26.05 on.
    pub(super) sluid: Option<String>,
}

/// A run of a Slurm job that has a Leasehold job, as a prolog or an epilog sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Allocation {
    pub(super) job: JobId,
    pub(super) run: Run,
    /// Whom Slurm runs it for.
    pub(super) user: String,
    /// Where the cluster has accounts.
    pub(super) account: Option<String>,
    /// On a node, its name.
    pub(super) node: Option<String>,
    pub(super) exit: SlurmExit,
}

/// `SLURM_JOB_EXIT_CODE2`: how the batch script ended, where it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SlurmExit {
    pub(super) code: u8,
    pub(super) signal: u8,
}

/// Why an environment is not that of a prolog or an epilog.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAnAllocation {
    #[error("{0} is not set: this is for the scripts of slurm.conf, see deploy/slurm")]
    Absent(&'static str),
    #[error("{name} is `{}`, which is not understood", value.escape_debug())]
    Odd { name: &'static str, value: String },
    #[error("the comment names `{}`, which is no job: write leasehold:JOB, as `leasehold job create` printed it", .0.escape_debug())]
    Comment(String),
    #[error("no SPIFFE ID can be made of `{template}` for the Slurm user `{}`", user.escape_debug())]
    Template { template: String, user: String },
}

impl Run {
    /// From the environment of a script, or of a job.
    pub(super) fn read(var: &impl Fn(&str) -> Option<String>) -> Result<Self, NotAnAllocation> {
        let restarts = match var("SLURM_JOB_RESTART_COUNT") {
            None => number("SLURM_RESTART_COUNT", var("SLURM_RESTART_COUNT").unwrap_or_else(|| "0".into()))?,
            Some(count) => number("SLURM_JOB_RESTART_COUNT", count)?,
        };
        let cluster = needed("SLURM_CLUSTER_NAME", var)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if cluster.len() > KEY_BYTES_MAX / 4 || !cluster.chars().all(plain) {
            return Err(NotAnAllocation::Odd { name: "SLURM_CLUSTER_NAME", value: cluster });
        }
        let sluid = var("SLURM_JOB_SLUID").filter(|s| !s.is_empty());
        if let Some(odd) = sluid.as_ref().filter(|s| s.len() > KEY_BYTES_MAX / 4 || !s.chars().all(plain)) {
            return Err(NotAnAllocation::Odd { name: "SLURM_JOB_SLUID", value: odd.clone() });
        }
        let slurm_job = number("SLURM_JOB_ID", needed("SLURM_JOB_ID", var)?)?;
        Ok(Run { cluster, slurm_job, restarts, sluid })
    }

    /// What the keys of all runs of this Slurm job begin with.
    pub(super) fn key_prefix(&self) -> String {
        format!("slurm:{}:{}:", self.cluster, self.slurm_job)
    }

    /// The attempt key: one for all nodes of a run, another for each requeue.
    pub(super) fn key(&self) -> String {
        let prefix = self.key_prefix();
        match &self.sluid {
            Some(sluid) => format!("{prefix}{}:{sluid}", self.restarts),
            None => format!("{prefix}{}", self.restarts),
        }
    }
}

/// For people: `Slurm job 7 on hpc`, and which restart it is.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slurm job {} on {}", self.slurm_job, self.cluster)?;
        match self.restarts {
            0 => Ok(()),
            n => write!(f, ", restart {n}"),
        }
    }
}

impl Allocation {
    /// From the environment of a script. None where the Slurm job has no Leasehold job.
    pub(super) fn read(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, NotAnAllocation> {
        let Some(job) = job_of(&var("SLURM_JOB_COMMENT").unwrap_or_default())? else { return Ok(None) };
        let present = |name: &str| var(name).filter(|v| !v.is_empty() && v != "(null)");
        let exit = match var("SLURM_JOB_EXIT_CODE2") {
            Some(text) => SlurmExit::parse(&text)
                .ok_or(NotAnAllocation::Odd { name: "SLURM_JOB_EXIT_CODE2", value: text })?,
            None => SlurmExit::default(),
        };
        Ok(Some(Allocation {
            job,
            run: Run::read(&var)?,
            user: present("SLURM_JOB_USER").ok_or(NotAnAllocation::Absent("SLURM_JOB_USER"))?,
            account: present("SLURM_JOB_ACCOUNT"),
            node: present("SLURMD_NODENAME"),
            exit,
        }))
    }

    /// The SPIFFE ID that this user's jobs run as: `{user}`, `{account}` and `{cluster}` are filled in.
    pub(super) fn runs_as(&self, template: &str) -> Result<SpiffeId, NotAnAllocation> {
        let unfit = || NotAnAllocation::Template { template: template.to_owned(), user: self.user.clone() };
        let account = self.account.as_deref().unwrap_or_default();
        // One segment each: a name with a slash would stand for somebody else.
        for (place, value) in [("{user}", self.user.as_str()), ("{account}", account)] {
            if template.contains(place) && (value.is_empty() || value.contains('/')) {
                return Err(unfit());
            }
        }
        let id = template
            .replace("{cluster}", &self.run.cluster)
            .replace("{account}", account)
            .replace("{user}", &self.user);
        id.parse().map_err(|_| unfit())
    }
}

/// The job that a comment names, among other words.
fn job_of(comment: &str) -> Result<Option<JobId>, NotAnAllocation> {
    let words = comment.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '"' | '\''));
    match words.filter_map(|word| word.strip_prefix(MARK)).next() {
        None => Ok(None),
        Some(id) => id.parse().map(Some).map_err(|_| NotAnAllocation::Comment(id.to_owned())),
    }
}

impl SlurmExit {
    /// `CODE:SIGNAL`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (code, signal) = text.split_once(':')?;
        Some(SlurmExit { code: code.parse().ok()?, signal: signal.parse().ok()? })
    }

    /// Whether it says anything: 0:0 is also what a cancelled, a requeued and a timed out job have.
    pub(super) fn is_silent(self) -> bool {
        self == SlurmExit::default()
    }

    /// Whether somebody asked it to end: SIGHUP, SIGINT or SIGTERM, or the code that a shell gives for one.
    pub(super) fn was_asked(self) -> bool {
        matches!((self.code, self.signal), (_, 1 | 2 | 15) | (129 | 130 | 143, 0))
    }
}

impl fmt::Display for SlurmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (code, 0) => write!(f, "exit code {code}"),
            (_, signal) => write!(f, "ended by signal {signal}"),
        }
    }
}

fn needed(name: &'static str, var: &impl Fn(&str) -> Option<String>) -> Result<String, NotAnAllocation> {
    var(name).filter(|v| !v.is_empty()).ok_or(NotAnAllocation::Absent(name))
}

fn number(name: &'static str, text: String) -> Result<u32, NotAnAllocation> {
    text.parse().map_err(|_| NotAnAllocation::Odd { name, value: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Allocation>, NotAnAllocation> {
        Allocation::read(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    /// As slurmctld 22.05 sets it for an EpilogSlurmctld, on a cluster without accounts.
    fn epilog<'a>(comment: &'a str, exit: &'a str, restarts: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("SLURM_CLUSTER_NAME", "hpc"),
            ("SLURM_JOB_ACCOUNT", "(null)"),
            ("SLURM_JOB_COMMENT", comment),
            ("SLURM_JOB_EXIT_CODE2", exit),
            ("SLURM_JOB_ID", "4"),
            ("SLURM_JOB_RESTART_COUNT", restarts),
            ("SLURM_JOB_USER", "ada"),
        ]
    }

    #[test]
    fn a_run_is_keyed_by_cluster_job_and_restart_and_by_slurms_own_name_where_there_is_one() {
        let comment = format!("nightly, leasehold:{}; ask ada", JobId(7));
        let a = read(&epilog(&comment, "3:0", "1")).unwrap().unwrap();
        assert_eq!((a.job, a.run.key().as_str()), (JobId(7), "slurm:hpc:4:1"));
        assert_eq!(a.exit.to_string(), "exit code 3");
        assert_eq!((a.account, a.node), (None, None));
        let mut newer = epilog(&comment, "0:0", "0");
        newer.push(("SLURM_JOB_SLUID", "s8K2F0"));
        assert_eq!(read(&newer).unwrap().unwrap().run.key(), "slurm:hpc:4:0:s8K2F0");
        // A job's own environment has the count by another name, and none before its first requeue.
        let of_job = |vars: &[(&str, &str)]| {
            Run::read(&|name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let first = [("SLURM_CLUSTER_NAME", "hpc"), ("SLURM_JOB_ID", "4")];
        assert_eq!(of_job(&first).unwrap().key(), "slurm:hpc:4:0");
        assert_eq!(
            of_job(&[&first[..], &[("SLURM_RESTART_COUNT", "2")]].concat()).unwrap().key(),
            "slurm:hpc:4:2"
        );
        assert_eq!(of_job(&first[..1]), Err(NotAnAllocation::Absent("SLURM_JOB_ID")));
    }

    #[test]
    fn a_comment_without_a_job_is_nothing_and_one_with_half_a_job_is_said() {
        for comment in ["", "weekly", "leasehold", "unleasehold:x"] {
            assert_eq!(read(&epilog(comment, "0:0", "0")), Ok(None), "{comment}");
        }
        assert_eq!(read(&[]), Ok(None), "a job without a comment");
        assert_eq!(read(&epilog("leasehold:j-7", "0:0", "0")), Err(NotAnAllocation::Comment("j-7".into())));
        let comment = format!("leasehold:{}", JobId(7));
        for (name, value) in
            [("SLURM_CLUSTER_NAME", "h:pc"), ("SLURM_JOB_ID", "x"), ("SLURM_JOB_EXIT_CODE2", "0")]
        {
            let mut vars = epilog(&comment, "0:0", "0");
            vars.retain(|(n, _)| *n != name);
            vars.push((name, value));
            assert_eq!(read(&vars), Err(NotAnAllocation::Odd { name, value: value.into() }));
        }
    }

    #[test]
    fn a_slurm_user_is_one_spiffe_id_and_never_another_path() {
        let comment = format!("leasehold:{}", JobId(7));
        let mut a = read(&epilog(&comment, "0:0", "0")).unwrap().unwrap();
        let template = "spiffe://hpc.acme.example/slurm/{cluster}/{user}";
        assert_eq!(a.runs_as(template).unwrap().to_string(), "spiffe://hpc.acme.example/slurm/hpc/ada");
        assert!(
            a.runs_as("spiffe://hpc.acme.example/slurm/{account}/{user}").is_err(),
            "there is no account"
        );
        a.account = Some("ml".into());
        let id = a.runs_as("spiffe://hpc.acme.example/slurm/{account}/{user}").unwrap();
        assert_eq!(id.to_string(), "spiffe://hpc.acme.example/slurm/ml/ada");
        for user in ["ada/../bob", "a b", "", "..", "{account}"] {
            a.user = user.into();
            assert!(a.runs_as(template).is_err(), "{user}");
        }
    }

    #[test]
    fn an_exit_is_read_with_its_signal_and_zero_says_nothing() {
        let exit = |text| SlurmExit::parse(text).unwrap();
        assert!(exit("0:0").is_silent());
        assert!(!exit("0:9").is_silent() && !exit("0:9").was_asked());
        assert!(exit("0:15").was_asked() && exit("143:0").was_asked() && !exit("1:0").was_asked());
        assert_eq!(exit("0:9").to_string(), "ended by signal 9");
        for odd in ["", "0", "0:0:0", "-1:0", "256:0"] {
            assert_eq!(SlurmExit::parse(odd), None, "{odd}");
        }
    }
}
