//! Ids of jobs and leases as people type them: the whole id, or a beginning that no other id has.

use std::{collections::BTreeMap, str::FromStr};

use super::{Client, Exit, Failure, Session, client::CallKind, job::READERS};
use crate::{
    name::{JobId, LeaseId},
    plain,
    proto::v1,
};

/// The smallest number of characters of an id that is shown, including `j-`.
const SHOWN_MIN: usize = 10;
/// The smallest number of characters that the user must type, including `j-`.
const TYPED_MIN: usize = 6;
/// The length of a whole id.
const WHOLE: usize = 28;

/// The id of a job, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRef(String);

/// The id of a lease, or its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRef(String);

impl FromStr for JobRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<JobId>().is_ok() || is_beginning(text, "j-") {
            return Ok(JobRef(text.to_owned()));
        }
        Err(wrong(text, "job", "j-"))
    }
}

impl FromStr for LeaseRef {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<LeaseId>().is_ok() || is_beginning(text, "l-") {
            return Ok(LeaseRef(text.to_owned()));
        }
        Err(wrong(text, "lease", "l-"))
    }
}

fn wrong(text: &str, what: &str, kind: &str) -> String {
    format!(
        "`{}` is not a {what} id: write `{kind}` and at least four more characters, as `leasehold {what} list` shows it",
        plain::value(text)
    )
}

/// Whether a text can be the beginning of an id of this kind, and is long enough.
pub(super) fn is_beginning(text: &str, kind: &str) -> bool {
    let plain = |c: char| c.is_ascii_digit() || (c.is_ascii_lowercase() && !"ilou".contains(c));
    (TYPED_MIN..WHOLE).contains(&text.len())
        && text.strip_prefix(kind).is_some_and(|rest| rest.chars().all(plain))
}

impl JobRef {
    /// Returns the whole id. If only the beginning was typed, asks the daemon with the identity that `leasehold job list` would
    /// use. A workload may not list jobs that it did not launch.
    pub(super) async fn find(&self, session: &Session) -> Result<JobId, Failure> {
        match self.0.parse() {
            Ok(id) => Ok(id),
            Err(_) => self.resolve(&session.client(&READERS)?).await,
        }
    }

    /// Returns the whole id. Asks the daemon if only the beginning was typed.
    pub(super) async fn resolve(&self, client: &Client) -> Result<JobId, Failure> {
        if let Ok(id) = self.0.parse() {
            return Ok(id);
        }
        let request = v1::ListJobsRequest { id_prefix: self.0.clone(), page_size: 2, ..Default::default() };
        let answer = client.ask(CallKind::Reads, request, async |r| client.jobs().list_jobs(r).await).await?;
        only(&self.0, "job", answer.jobs.into_iter().map(|job| job.id).collect())
    }
}

impl JobRef {
    /// Returns the whole id. If only the beginning was typed, looks for it among the jobs whose review is due. The list of all jobs
    /// may lack such a job, because the daemon may have forgotten it.
    pub(super) async fn of_review<I: Iterator<Item = String>>(
        &self,
        due: impl AsyncFnOnce() -> Result<I, Failure>,
    ) -> Result<JobId, Failure> {
        if let Ok(id) = self.0.parse() {
            return Ok(id);
        }
        let found: Vec<_> = due().await?.filter(|id| id.starts_with(&self.0)).collect();
        if found.is_empty() {
            let text = format!("no review is due of a job whose id begins with {}", self.0);
            return Err(Failure::new(Exit::Failure, text).fix("look for it in `leasehold reviews due`"));
        }
        only(&self.0, "job", found)
    }
}

impl LeaseRef {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the whole id. Asks the daemon if only the beginning was typed.
    pub(super) async fn resolve(&self, client: &Client) -> Result<LeaseId, Failure> {
        if let Ok(id) = self.0.parse() {
            return Ok(id);
        }
        let request = v1::ListLeasesRequest { id_prefix: self.0.clone(), page_size: 2, ..Default::default() };
        let answer =
            client.ask(CallKind::Reads, request, async |r| client.operator().list_leases(r).await).await?;
        only(&self.0, "lease", answer.leases.into_iter().map(|lease| lease.id).collect())
    }
}

/// Completes `job:j-0abc` and `lease:l-0abc`. Returns every other name unchanged.
pub(super) async fn resolve_name(client: &Client, name: &str) -> Result<String, Failure> {
    Ok(match name.split_once(':') {
        Some(("job", id)) if is_beginning(id, "j-") => {
            format!("job:{}", JobRef(id.to_owned()).resolve(client).await?)
        }
        Some(("lease", id)) if is_beginning(id, "l-") => {
            format!("lease:{}", LeaseRef(id.to_owned()).resolve(client).await?)
        }
        _ => name.to_owned(),
    })
}

fn only<T: FromStr>(beginning: &str, what: &str, found: Vec<String>) -> Result<T, Failure> {
    match found.as_slice() {
        [id] => id.parse().map_err(|_| super::job::incomplete()),
        [] => Err(Failure::new(
            Exit::Failure,
            format!("no {what} that you may see has an id that begins with {beginning}"),
        )
        .fix(format!("look for it in `leasehold {what} list`, or write the whole id"))),
        several => Err(Failure::usage(format!("{beginning} is the beginning of more than one {what} id"))
            .with("such as", several.join(", "))
            .fix("write more characters of the id")),
    }
}

/// Shortens each id of a list, if the result is unique in the list.
pub(super) fn shortened<'a>(ids: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    let mut sorted: Vec<&str> = ids.collect();
    sorted.sort_unstable();
    sorted.dedup();
    let common = |a: Option<&&str>, b: &str| {
        a.map_or(0, |a| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count())
    };
    let short = |at: usize, id: &&'a str| {
        let before = at.checked_sub(1).and_then(|at| sorted.get(at));
        let after = sorted.get(at.saturating_add(1));
        let len = common(before, id).max(common(after, id)).saturating_add(1).max(SHOWN_MIN);
        (*id, id.get(..len).unwrap_or(id))
    };
    sorted.iter().enumerate().map(|(at, id)| short(at, id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_whole_or_at_least_four_characters() {
        let id = JobId(7 << 100).to_string();
        for good in [&id, &id[..10], &id[..6]] {
            assert!(good.parse::<JobRef>().is_ok(), "{good}");
        }
        for bad in ["", "j-", "j-000", "l-0000", "j-0OOO", "j-0000\n", &format!("{id}0")] {
            assert!(bad.parse::<JobRef>().is_err(), "{bad}");
        }
        assert!("l-00000".parse::<LeaseRef>().is_ok());
    }

    #[test]
    fn short_ids_are_unique_in_their_list() {
        let ids = ["j-aaaaaaaa1x", "j-aaaaaaaa2x", "j-bbbbbbbbbb", "j-b"];
        let short = shortened(ids.into_iter());
        assert_eq!(short["j-aaaaaaaa1x"], "j-aaaaaaaa1");
        assert_eq!(short["j-aaaaaaaa2x"], "j-aaaaaaaa2");
        assert_eq!(short["j-bbbbbbbbbb"], "j-bbbbbbbb");
        assert_eq!(short["j-b"], "j-b");
    }

    #[test]
    fn a_beginning_of_no_id_or_of_two_is_refused() {
        let two = vec![JobId(1).to_string(), JobId(2).to_string()];
        let failure = only::<JobId>("j-0000", "job", two).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.render().contains("write more characters of the id"), "{}", failure.render());
        assert_eq!(only::<JobId>("j-0000", "job", Vec::new()).unwrap_err().exit, Exit::Failure);
        assert_eq!(only::<JobId>("j-0000", "job", vec![JobId(1).to_string()]).unwrap(), JobId(1));
    }
}
