//! One run of a Slurm job, read from the environment of a script.

use std::fmt;

use crate::{
    limits::KEY_BYTES_MAX,
    name::{JobId, SpiffeId},
    plain,
};

/// The word before a Leasehold job's id in the comment of a Slurm job.
const MARK: &str = "leasehold:";

/// Identifies a run of a Slurm job. The prolog, the nodes and the epilog of one run have equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlurmRun {
    pub cluster: String,
    pub slurm_job: u32,
    pub restarts: u32,
    /// The id that Slurm gives the run, from version 26.05 on.
    pub sluid: Option<String>,
}

/// A run of a Slurm job that belongs to a Leasehold job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub job: JobId,
    pub run: SlurmRun,
    /// The Slurm user.
    pub user: String,
    /// The Slurm account, if the cluster has accounts.
    pub account: Option<String>,
    /// The name of the node, in a node's Epilog.
    pub node: Option<String>,
    pub exit: SlurmExit,
}

/// How the batch script ended (`SLURM_JOB_EXIT_CODE2`). Both numbers are zero if the script has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlurmExit {
    pub code: u8,
    pub signal: u8,
}

/// Why a script's environment cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlurmEnvError {
    #[error("{0} is not set: Slurm sets it for the scripts that slurm.conf names, see deploy/slurm")]
    Absent(&'static str),
    #[error("{name} is `{}`, which is not a value that Slurm sets", plain::value(value))]
    InvalidValue { name: &'static str, value: String },
    #[error("the Slurm comment has `{}`, which is not a job id: write leasehold:JOB with the id that `leasehold job create` printed", plain::value(.0))]
    Comment(String),
    #[error(
        "the template `{}` gives no valid SPIFFE ID for the Slurm user `{}`: change --runs-as",
        plain::value(template),
        plain::value(user)
    )]
    Template { template: String, user: String },
}

impl SlurmRun {
    /// Reads the environment of a script, or of a job.
    pub fn read(var: &impl Fn(&str) -> Option<String>) -> Result<Self, SlurmEnvError> {
        let restarts = match var("SLURM_JOB_RESTART_COUNT") {
            None => number("SLURM_RESTART_COUNT", var("SLURM_RESTART_COUNT").unwrap_or_else(|| "0".into()))?,
            Some(count) => number("SLURM_JOB_RESTART_COUNT", count)?,
        };
        let cluster = needed("SLURM_CLUSTER_NAME", var)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if cluster.len() > KEY_BYTES_MAX / 4 || !cluster.chars().all(plain) {
            return Err(SlurmEnvError::InvalidValue { name: "SLURM_CLUSTER_NAME", value: cluster });
        }
        let sluid = var("SLURM_JOB_SLUID").filter(|s| !s.is_empty());
        if let Some(invalid) = sluid.as_ref().filter(|s| s.len() > KEY_BYTES_MAX / 4 || !s.chars().all(plain))
        {
            return Err(SlurmEnvError::InvalidValue { name: "SLURM_JOB_SLUID", value: invalid.clone() });
        }
        let slurm_job = number("SLURM_JOB_ID", needed("SLURM_JOB_ID", var)?)?;
        Ok(SlurmRun { cluster, slurm_job, restarts, sluid })
    }

    /// Returns the beginning of the attempt keys. It is equal for all runs of this Slurm job.
    pub fn key_prefix(&self) -> String {
        format!("slurm:{}:{}:", self.cluster, self.slurm_job)
    }

    /// Returns the attempt key. All nodes of a run have this key, and each requeue gets a new key.
    pub fn key(&self) -> String {
        let prefix = self.key_prefix();
        match &self.sluid {
            Some(sluid) => format!("{prefix}{}:{sluid}", self.restarts),
            None => format!("{prefix}{}", self.restarts),
        }
    }
}

/// Writes a text such as `Slurm job 7 on hpc`, and the number of the restart.
impl fmt::Display for SlurmRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slurm job {} on {}", self.slurm_job, self.cluster)?;
        match self.restarts {
            0 => Ok(()),
            n => write!(f, ", restart {n}"),
        }
    }
}

impl Allocation {
    /// Reads the environment of a script. Returns `None` if the Slurm job has no Leasehold job.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, SlurmEnvError> {
        let Some(job) = job_of(&var("SLURM_JOB_COMMENT").unwrap_or_default())? else { return Ok(None) };
        let present = |name: &str| var(name).filter(|v| !v.is_empty() && v != "(null)");
        let exit = match var("SLURM_JOB_EXIT_CODE2") {
            Some(text) => SlurmExit::parse(&text)
                .ok_or(SlurmEnvError::InvalidValue { name: "SLURM_JOB_EXIT_CODE2", value: text })?,
            None => SlurmExit::default(),
        };
        Ok(Some(Allocation {
            job,
            run: SlurmRun::read(&var)?,
            user: present("SLURM_JOB_USER").ok_or(SlurmEnvError::Absent("SLURM_JOB_USER"))?,
            account: present("SLURM_JOB_ACCOUNT"),
            node: present("SLURMD_NODENAME"),
            exit,
        }))
    }

    /// Returns the SPIFFE ID of this user's jobs: the template with values for `{user}`, `{account}` and `{cluster}`.
    pub fn runs_as(&self, template: &str) -> Result<SpiffeId, SlurmEnvError> {
        let unfit = || SlurmEnvError::Template { template: template.to_owned(), user: self.user.clone() };
        let account = self.account.as_deref().unwrap_or_default();
        // Each value fills one path segment, because a value with a slash could name another identity.
        for (placeholder, value) in [("{user}", self.user.as_str()), ("{account}", account)] {
            if template.contains(placeholder) && (value.is_empty() || value.contains('/')) {
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

/// Finds the job in a comment that may contain other words.
fn job_of(comment: &str) -> Result<Option<JobId>, SlurmEnvError> {
    let mut words = comment.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '"' | '\''));
    match words.find_map(|word| word.strip_prefix(MARK)) {
        None => Ok(None),
        Some(id) => id.parse().map(Some).map_err(|_| SlurmEnvError::Comment(id.to_owned())),
    }
}

impl SlurmExit {
    /// Parses `CODE:SIGNAL`.
    pub fn parse(text: &str) -> Option<Self> {
        let (code, signal) = text.split_once(':')?;
        Some(SlurmExit { code: code.parse().ok()?, signal: signal.parse().ok()? })
    }

    /// Whether the exit is 0:0. This does not mean success: jobs that were cancelled, requeued or timed out report it too.
    pub fn is_inconclusive(self) -> bool {
        self == SlurmExit::default()
    }

    /// Whether the script was asked to end: by SIGHUP, SIGINT or SIGTERM, or by the exit code that a shell returns for one of
    /// them.
    pub fn was_asked_to_end(self) -> bool {
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

fn needed(name: &'static str, var: &impl Fn(&str) -> Option<String>) -> Result<String, SlurmEnvError> {
    var(name).filter(|v| !v.is_empty()).ok_or(SlurmEnvError::Absent(name))
}

fn number(name: &'static str, text: String) -> Result<u32, SlurmEnvError> {
    text.parse().map_err(|_| SlurmEnvError::InvalidValue { name, value: text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Allocation>, SlurmEnvError> {
        Allocation::read(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    /// The environment that slurmctld 22.05 sets for an `EpilogSlurmctld`, on a cluster without accounts.
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
    fn a_runs_key_has_cluster_job_restart_and_sluid() {
        let comment = format!("nightly, leasehold:{}; ask ada", JobId(7));
        let a = read(&epilog(&comment, "3:0", "1")).unwrap().unwrap();
        assert_eq!((a.job, a.run.key().as_str()), (JobId(7), "slurm:hpc:4:1"));
        assert_eq!(a.exit.to_string(), "exit code 3");
        assert_eq!((a.account, a.node), (None, None));
        let mut newer = epilog(&comment, "0:0", "0");
        newer.push(("SLURM_JOB_SLUID", "s8K2F0"));
        assert_eq!(read(&newer).unwrap().unwrap().run.key(), "slurm:hpc:4:0:s8K2F0");
        // The environment of a job has another name for the count, and has no count before the first requeue.
        let of_job = |vars: &[(&str, &str)]| {
            SlurmRun::read(&|name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let first = [("SLURM_CLUSTER_NAME", "hpc"), ("SLURM_JOB_ID", "4")];
        assert_eq!(of_job(&first).unwrap().key(), "slurm:hpc:4:0");
        assert_eq!(
            of_job(&[&first[..], &[("SLURM_RESTART_COUNT", "2")]].concat()).unwrap().key(),
            "slurm:hpc:4:2"
        );
        assert_eq!(of_job(&first[..1]), Err(SlurmEnvError::Absent("SLURM_JOB_ID")));
    }

    #[test]
    fn a_comment_without_a_job_is_skipped_and_a_bad_id_is_an_error() {
        for comment in ["", "weekly", "leasehold", "unleasehold:x"] {
            assert_eq!(read(&epilog(comment, "0:0", "0")), Ok(None), "{comment}");
        }
        assert_eq!(read(&[]), Ok(None), "a job without a comment");
        assert_eq!(read(&epilog("leasehold:j-7", "0:0", "0")), Err(SlurmEnvError::Comment("j-7".into())));
        let comment = format!("leasehold:{}", JobId(7));
        for (name, value) in
            [("SLURM_CLUSTER_NAME", "h:pc"), ("SLURM_JOB_ID", "x"), ("SLURM_JOB_EXIT_CODE2", "0")]
        {
            let mut vars = epilog(&comment, "0:0", "0");
            vars.retain(|(n, _)| *n != name);
            vars.push((name, value));
            assert_eq!(read(&vars), Err(SlurmEnvError::InvalidValue { name, value: value.into() }));
        }
    }

    #[test]
    fn a_slurm_user_gives_one_spiffe_id_and_no_other_path() {
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
    fn an_exit_code_has_its_signal_and_zero_is_inconclusive() {
        let exit = |text| SlurmExit::parse(text).unwrap();
        assert!(exit("0:0").is_inconclusive());
        assert!(!exit("0:9").is_inconclusive() && !exit("0:9").was_asked_to_end());
        assert!(
            exit("0:15").was_asked_to_end()
                && exit("143:0").was_asked_to_end()
                && !exit("1:0").was_asked_to_end()
        );
        assert_eq!(exit("0:9").to_string(), "ended by signal 9");
        for odd in ["", "0", "0:0:0", "-1:0", "256:0"] {
            assert_eq!(SlurmExit::parse(odd), None, "{odd}");
        }
    }
}
