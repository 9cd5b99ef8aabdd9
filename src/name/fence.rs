//! The names of fences: a closed list with one grammar.

use std::{fmt, str::FromStr, sync::Arc};

use super::{
    AttemptNumber, HumanName, ImageDigest, InstanceName, JobId, LeaseId, NameError, ResourceName, SpiffeId,
    TenantName, TrustDomain, text_form,
};

/// The name of a fence.
///
/// | Form | Ends |
/// |---|---|
/// | `epoch` | everything of this run of the daemon |
/// | `domain:TD` | all of one trust domain's holders |
/// | `tenant:T` | all of a tenant's jobs, and all use of its resources |
/// | `job:J` | a job |
/// | `attempt:J/N`, `attempt:J/N/reading` | an attempt, or its reading half |
/// | `member:J/N/I`, `member:J/N/I/reading` | a member, or its reading half |
/// | `identity:spiffe://…` | all that a SPIFFE ID holds or launched |
/// | `human:NAME` | all done on behalf of a person |
/// | `image:sha256:…` | all of the jobs that say they run this container image |
/// | `dataset:T/D[@V]`, `model:T/M[@V]`, `checkpoint:T/C` | a resource, all versions or one |
/// | `lease:L` | one lease |
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FenceName(Arc<str>);

/// The kind of a fence name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceKind {
    /// Everything of this run of the daemon.
    Epoch,
    /// All holders of one trust domain.
    Domain(TrustDomain),
    /// All jobs of a tenant, and all use of its resources.
    Tenant(TenantName),
    /// One job.
    Job(JobId),
    /// One attempt of a job.
    Attempt(JobId, AttemptNumber),
    /// The reading half of an attempt.
    AttemptReading(JobId, AttemptNumber),
    /// One member of an attempt.
    Member(JobId, AttemptNumber, InstanceName),
    /// The reading half of a member.
    MemberReading(JobId, AttemptNumber, InstanceName),
    /// All leases and jobs of a SPIFFE ID.
    Identity(SpiffeId),
    /// All jobs on behalf of a person.
    Human(HumanName),
    /// All jobs that say they run this container image.
    Image(ImageDigest),
    /// One version of a resource, or all versions if the name has no version.
    Resource(ResourceName),
    /// One lease.
    Lease(LeaseId),
}

impl From<FenceKind> for FenceName {
    fn from(kind: FenceKind) -> Self {
        let text = match kind {
            FenceKind::Epoch => "epoch".to_owned(),
            FenceKind::Domain(d) => format!("domain:{d}"),
            FenceKind::Tenant(t) => format!("tenant:{t}"),
            FenceKind::Job(j) => format!("job:{j}"),
            FenceKind::Attempt(j, n) => format!("attempt:{j}/{n}"),
            FenceKind::AttemptReading(j, n) => format!("attempt:{j}/{n}/reading"),
            FenceKind::Member(j, n, i) => format!("member:{j}/{n}/{i}"),
            FenceKind::MemberReading(j, n, i) => format!("member:{j}/{n}/{i}/reading"),
            FenceKind::Identity(i) => format!("identity:{i}"),
            FenceKind::Human(h) => format!("human:{h}"),
            FenceKind::Image(i) => format!("image:{i}"),
            FenceKind::Resource(r) => r.as_str().to_owned(),
            FenceKind::Lease(l) => format!("lease:{l}"),
        };
        FenceName(text.into())
    }
}

impl FenceName {
    /// Returns the name in the grammar of [`FenceName`].
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the kind of the name, with its parts.
    pub fn kind(&self) -> FenceKind {
        #[expect(clippy::expect_used, reason = "made from a kind, or parsed into one")]
        parse(&self.0).expect("a fence name is always valid")
    }

    /// Names [`FenceKind::Epoch`].
    pub fn epoch() -> Self {
        FenceKind::Epoch.into()
    }
    /// Names [`FenceKind::Domain`].
    pub fn domain(d: TrustDomain) -> Self {
        FenceKind::Domain(d).into()
    }
    /// Names [`FenceKind::Tenant`].
    pub fn tenant(t: TenantName) -> Self {
        FenceKind::Tenant(t).into()
    }
    /// Names [`FenceKind::Job`].
    pub fn job(j: JobId) -> Self {
        FenceKind::Job(j).into()
    }
    /// Names [`FenceKind::Attempt`].
    pub fn attempt(j: JobId, n: AttemptNumber) -> Self {
        FenceKind::Attempt(j, n).into()
    }
    /// Names [`FenceKind::AttemptReading`].
    pub fn attempt_reading(j: JobId, n: AttemptNumber) -> Self {
        FenceKind::AttemptReading(j, n).into()
    }
    /// Names [`FenceKind::Member`].
    pub fn member(j: JobId, n: AttemptNumber, i: InstanceName) -> Self {
        FenceKind::Member(j, n, i).into()
    }
    /// Names [`FenceKind::MemberReading`].
    pub fn member_reading(j: JobId, n: AttemptNumber, i: InstanceName) -> Self {
        FenceKind::MemberReading(j, n, i).into()
    }
    /// Names [`FenceKind::Identity`].
    pub fn identity(i: SpiffeId) -> Self {
        FenceKind::Identity(i).into()
    }
    /// Names [`FenceKind::Human`].
    pub fn human(h: HumanName) -> Self {
        FenceKind::Human(h).into()
    }
    /// Names [`FenceKind::Image`].
    pub fn image(i: ImageDigest) -> Self {
        FenceKind::Image(i).into()
    }
    /// Names [`FenceKind::Resource`].
    pub fn resource(r: ResourceName) -> Self {
        FenceKind::Resource(r).into()
    }
    /// Names [`FenceKind::Lease`].
    pub fn lease(l: LeaseId) -> Self {
        FenceKind::Lease(l).into()
    }
}

fn parse(text: &str) -> Result<FenceKind, &'static str> {
    if text == "epoch" {
        return Ok(FenceKind::Epoch);
    }
    let (kind, rest) = text.split_once(':').ok_or(
        "write its kind, a colon and its name, such as job:j-…, identity:spiffe://acme.example/tuner, \
         dataset:acme/tickets@v3, model:acme/base-7b, tenant:acme or human:ada",
    )?;
    fn attempt(text: &str) -> Option<(JobId, AttemptNumber)> {
        let (job, number) = text.split_once('/')?;
        let n = number.parse().ok().and_then(AttemptNumber::new)?;
        // A name has only one text, so leading zeros and signs are refused.
        (n.to_string() == number).then_some((job.parse().ok()?, n))
    }
    match kind {
        "domain" => {
            rest.parse().map(FenceKind::Domain).map_err(|_| "write a trust domain, such as domain:acme.example")
        }
        "tenant" => {
            rest.parse().map(FenceKind::Tenant).map_err(|_| "write the name of a tenant, such as tenant:acme")
        }
        "job" => rest
            .parse()
            .map(FenceKind::Job)
            .map_err(|_| "write job: and the id of a job, as `leasehold job list` shows it"),
        "attempt" => {
            const NOT: &str = "write attempt: and the id of a job, a slash and a number, such as attempt:j-…/2";
            let (rest, reading) = rest.strip_suffix("/reading").map_or((rest, false), |r| (r, true));
            let (j, n) = attempt(rest).ok_or(NOT)?;
            Ok(if reading { FenceKind::AttemptReading(j, n) } else { FenceKind::Attempt(j, n) })
        }
        "member" => {
            const NOT: &str = "write the job, the attempt and the member, such as member:j-…/2/node-7";
            let mut cut = rest.splitn(4, '/');
            let (j, n, i, reading) = (cut.next(), cut.next(), cut.next(), cut.next());
            let (Some(j), Some(n), Some(i)) = (j, n, i) else { return Err(NOT) };
            let (j, n) = attempt(&format!("{j}/{n}")).ok_or(NOT)?;
            let i = i.parse().map_err(|_| NOT)?;
            match reading {
                None => Ok(FenceKind::Member(j, n, i)),
                Some("reading") => Ok(FenceKind::MemberReading(j, n, i)),
                Some(_) => Err(NOT),
            }
        }
        "identity" => rest
            .parse()
            .map(FenceKind::Identity)
            .map_err(|_| "write a whole SPIFFE ID, such as identity:spiffe://acme.example/tuner"),
        "human" => {
            rest.parse().map(FenceKind::Human).map_err(|_| "write the name of a person, such as human:ada")
        }
        "image" => rest
            .parse()
            .map(FenceKind::Image)
            .map_err(|_| "write the digest of a container image, such as image:sha256:… with 64 hexadecimal digits"),
        "dataset" | "model" | "checkpoint" => text
            .parse()
            .map(FenceKind::Resource)
            .map_err(|_| "write its tenant, a slash and its name, such as dataset:acme/tickets or dataset:acme/tickets@v3"),
        "lease" => rest
            .parse()
            .map(FenceKind::Lease)
            .map_err(|_| "write lease: and the id of a lease, as `leasehold lease list` shows it"),
        _ => Err(
            "there is no such kind: write job:, lease:, identity:, dataset:, model:, checkpoint:, tenant:, domain:, human:, \
             image:, attempt: or member:, and the name; to lock, also launcher: or identity-prefix:",
        ),
    }
}

impl FromStr for FenceName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse(text).map_err(|why| NameError::new(text, "a name of something that access depends on", why))?;
        Ok(FenceName(text.into()))
    }
}

impl fmt::Display for FenceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_form!(FenceName, as_str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_reads_back_as_itself() {
        let (j, n, i) = (JobId(7), AttemptNumber::FIRST, "node-1".parse::<InstanceName>().unwrap());
        for k in [
            FenceKind::Epoch,
            FenceKind::Domain("td.example".parse().unwrap()),
            FenceKind::Tenant("acme".parse().unwrap()),
            FenceKind::Job(j),
            FenceKind::Attempt(j, n),
            FenceKind::AttemptReading(j, n),
            FenceKind::Member(j, n, i.clone()),
            FenceKind::MemberReading(j, n, i.clone()),
            FenceKind::Member(j, n, "reading".parse().unwrap()),
            FenceKind::Identity("spiffe://td.example/a".parse().unwrap()),
            FenceKind::Human("ada".parse().unwrap()),
            FenceKind::Image(format!("sha256:{}", "0a".repeat(32)).parse().unwrap()),
            FenceKind::Resource("dataset:acme/tickets@v3".parse().unwrap()),
            FenceKind::Resource("checkpoint:acme/lora".parse().unwrap()),
            FenceKind::Lease(LeaseId(9)),
        ] {
            let name = FenceName::from(k.clone());
            assert_eq!(name.kind(), k);
            assert_eq!(name.as_str().parse::<FenceName>().unwrap(), name);
        }
    }

    #[test]
    fn one_thing_has_one_name() {
        let j = JobId(7);
        for t in [
            "Epoch".to_owned(),
            "epoch:".into(),
            "volume:x".into(),
            format!("attempt:{j}/0"),
            format!("attempt:{j}/01"),
            format!("attempt:{j}/+1"),
            format!("attempt:{j}/1/writing"),
            format!("member:{j}/1"),
            format!("member:{j}/1/a/b"),
            "identity:spiffe://td".into(),
            "dataset:acme/../x".into(),
            "tenant:Acme".into(),
            "image:trainer:latest".into(),
        ] {
            assert!(t.parse::<FenceName>().is_err(), "{t}");
        }
    }
}
