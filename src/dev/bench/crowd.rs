//! A job that has many leases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tonic::transport::Channel;

use super::{
    figure::Sample,
    lab::{BenchLab, introspect_request, issue_request},
    work::Work,
};
use crate::{
    clock::{Clock, Wall},
    dev::{
        SVID_LIFE, TRUST_DOMAIN,
        demo::{DemoMember, Stage, describe},
    },
    identity::Leaf,
    limits,
    proto::{
        convert::{duration, nearest_wall},
        v1::{self, member_service_client::MemberServiceClient},
    },
    secret::SecretText,
    token::Presenter,
    verify::{Access, Verifier},
};

/// The number of requests in flight while leases are made.
const IN_FLIGHT: usize = 64;
/// The number of connections for these requests.
const CONNECTIONS: usize = 4;
/// How long the job may run: longer than any bench.
const JOB_LIFE: Duration = Duration::from_secs(3_600);
/// The deadlines of leases that end together differ by less than this many milliseconds.
const DEADLINES_WITHIN_MS: usize = 500;

/// A job with one member, which has many leases. The member has an identity that no other job uses, because the leases of one
/// identity are bounded.
pub(super) struct Crowd {
    pub(super) job: String,
    member: DemoMember,
    leaf: Leaf,
    channels: Vec<Channel>,
    clock: Arc<dyn Clock>,
    /// The number of leases that were made.
    pub(super) leases: usize,
}

/// The deadline of each new lease.
#[derive(Clone, Copy)]
pub(super) enum LeaseEnd {
    /// The latest that the daemon allows.
    Latest,
    /// At this moment, or up to half a second later.
    At(Wall),
}

/// Which leases to make.
#[derive(Clone)]
pub(super) struct Filling {
    pub(super) count: usize,
    pub(super) end: LeaseEnd,
    /// Keeps the tokens of the leases 0, `kept_every`, twice `kept_every` and so on, and the token of the last lease.
    pub(super) kept_every: usize,
    /// Checks each kept token when it is issued, so that later checks are quick. If `None`, no token is checked.
    pub(super) verifier: Option<Verifier>,
    /// No lease is made after this moment.
    pub(super) until: Option<Instant>,
}

impl Filling {
    /// Leases of a job that is then revoked. Only the first and the last token are kept.
    pub(super) fn of_one_revocation(count: usize) -> Self {
        Filling { count, end: LeaseEnd::Latest, kept_every: usize::MAX, verifier: None, until: None }
    }
}

/// Leases that were made.
pub(super) struct Filled {
    pub(super) made: usize,
    pub(super) kept: Vec<KeptToken>,
    pub(super) sample: Sample,
    /// Why fewer leases than wanted were made.
    pub(super) stopped: Option<String>,
}

/// The token of a lease.
pub(super) struct KeptToken {
    number: usize,
    pub(super) lease: String,
    pub(super) token: SecretText,
    /// The deadline of the lease.
    pub(super) deadline: Wall,
    pub(super) access: Option<Access>,
}

impl Crowd {
    /// Creates a job, and joins it.
    pub(super) async fn open(lab: &BenchLab<'_>) -> Result<Self, String> {
        let (stage, number) = (lab.stage(), lab.next_crowd());
        let authority = stage.deployment.authority();
        let id = authority.id_at(&format!("/crowd/{number}")).map_err(|e| e.to_string())?;
        let svid = stage.new_svid(authority, &id, SVID_LIFE)?;
        let leaf = svid.leaf().clone();
        let connector = stage.connector_with(svid)?;
        let spec = v1::JobSpec { max_duration: Some(duration(JOB_LIFE)), ..stage.spec(1) };
        let job = stage.create_job_by(&connector, spec).await.map_err(|s| describe(&s))?.id;
        let member = stage.join_by(&connector, &job, "crowd").await.map_err(|s| describe(&s))?;
        let channels = (0..CONNECTIONS).map(|_| connector.channel()).collect();
        Ok(Crowd { job, member, leaf, channels, clock: stage.clock.clone(), leases: 0 })
    }

    /// Makes leases with many requests at once. Stops if the daemon refuses one, or if the time is over.
    pub(super) async fn fill(&mut self, filling: &Filling) -> Result<Filled, String> {
        let begin = Instant::now();
        let turns = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for channel in self.channels.iter().cycle().take(IN_FLIGHT.min(filling.count)) {
            let filler = Filler {
                at: MemberServiceClient::new(channel.clone()),
                session: self.member.session.clone(),
                leaf: self.leaf.clone(),
                clock: self.clock.clone(),
                filling: filling.clone(),
                turns: turns.clone(),
            };
            workers.spawn(filler.run());
        }
        let mut all = Filled::new()?;
        while let Some(filled) = workers.join_next().await {
            let filled = filled.map_err(|e| e.to_string())??;
            all.made = all.made.saturating_add(filled.made);
            all.kept.extend(filled.kept);
            all.sample.add(&filled.sample)?;
            all.stopped = all.stopped.or(filled.stopped);
        }
        all.sample.time = begin.elapsed();
        all.kept.sort_unstable_by_key(|kept| kept.number);
        self.leases = self.leases.saturating_add(all.made);
        Ok(all)
    }

    /// Makes leases, and fails if fewer than wanted were made.
    pub(super) async fn fill_whole(&mut self, filling: &Filling) -> Result<Filled, String> {
        let filled = self.fill(filling).await?;
        match filled.stopped {
            Some(why) => Err(format!("only {} of {} leases were made: {why}", filled.made, filling.count)),
            None => Ok(filled),
        }
    }

    /// Returns the request of a new lease with the latest deadline, for a load.
    pub(super) fn issue_work(&self, worker: usize) -> Work {
        let channel = self.channels.get(worker % self.channels.len().max(1)).cloned();
        let at = channel.map_or_else(|| self.member.members.clone(), MemberServiceClient::new);
        let request = v1::IssueCredentialRequest {
            ttl: Some(duration(limits::LEASE_TTL_MAX)),
            ..issue_request(Some(self.member.session.clone()))
        };
        Work::Issue { at, request }
    }

    /// Returns the request that asks the daemon whether a token is good.
    pub(super) fn introspect_request(&self, token: &SecretText) -> v1::IntrospectRequest {
        introspect_request(token, &self.leaf)
    }

    /// Checks a token.
    pub(super) async fn accept(&self, verifier: &Verifier, token: &SecretText) -> Result<Access, String> {
        accept(verifier, &self.leaf, token).await
    }
}

async fn accept(verifier: &Verifier, leaf: &Leaf, token: &SecretText) -> Result<Access, String> {
    let presenter = Presenter::Svid { id: &leaf.spiffe_id, x5t_s256: Some(&leaf.x5t_s256) };
    verifier.accept(token.expose(), presenter).await.map_err(|refusal| refusal.to_string())
}

impl Filled {
    fn new() -> Result<Self, String> {
        Ok(Filled { made: 0, kept: Vec::new(), sample: Sample::new()?, stopped: None })
    }
}

/// Makes leases one after the other.
struct Filler {
    at: MemberServiceClient<Channel>,
    session: v1::Session,
    leaf: Leaf,
    clock: Arc<dyn Clock>,
    filling: Filling,
    /// The number of the next lease. All fillers share it.
    turns: Arc<AtomicUsize>,
}

impl Filler {
    async fn run(mut self) -> Result<Filled, String> {
        let mut filled = Filled::new()?;
        loop {
            if self.filling.until.is_some_and(|until| Instant::now() >= until) {
                filled.stopped = Some("the time was over".to_owned());
                return Ok(filled);
            }
            let turn = self.turns.fetch_add(1, Ordering::Relaxed);
            if turn >= self.filling.count {
                return Ok(filled);
            }
            let request = v1::IssueCredentialRequest {
                ttl: Some(duration(self.ttl(turn))),
                ..issue_request(Some(self.session.clone()))
            };
            let from = Instant::now();
            let issued = match self.at.issue_credential(request).await {
                Ok(issued) => issued.into_inner(),
                Err(status) => {
                    self.turns.store(self.filling.count, Ordering::Relaxed);
                    filled.stopped = Some(describe(&status));
                    return Ok(filled);
                }
            };
            filled.sample.record(from.elapsed());
            filled.made = filled.made.saturating_add(1);
            if turn.is_multiple_of(self.filling.kept_every.max(1))
                || turn.saturating_add(1) == self.filling.count
            {
                filled.kept.push(self.keep(turn, issued).await?);
            }
        }
    }

    fn ttl(&self, turn: usize) -> Duration {
        match self.filling.end {
            LeaseEnd::Latest => limits::LEASE_TTL_MAX,
            LeaseEnd::At(end) => {
                let later = u64::try_from(turn % DEADLINES_WITHIN_MS).unwrap_or_default();
                let end = end.plus(Duration::from_millis(later));
                end.since(self.clock.now().wall).max(limits::TTL_MIN)
            }
        }
    }

    async fn keep(&self, number: usize, issued: v1::IssueCredentialResponse) -> Result<KeptToken, String> {
        let token = SecretText::new(issued.token);
        let lease = issued.lease.ok_or("a token has no lease")?;
        let deadline = lease.expires.as_ref().map(nearest_wall).ok_or("a lease has no deadline")?;
        let access = match &self.filling.verifier {
            Some(verifier) => Some(accept(verifier, &self.leaf, &token).await?),
            None => None,
        };
        Ok(KeptToken { number, lease: lease.id, token, deadline, access })
    }
}

/// Adds the identities of crowds to the catalog of a deployment.
pub(super) fn let_crowd_in(stage: &Stage) -> std::io::Result<()> {
    let file = stage.deployment.path("catalog.d/dev.toml");
    let entry = format!(
        "\n[[principal]]\nmatch = \"spiffe://{TRUST_DOMAIN}/crowd/*\"\nkind  = \"workload\"\nroles = [\"trainer\"]\n"
    );
    let text = std::fs::read_to_string(&file)?;
    // A bench of several things starts the daemon several times.
    if text.contains(&entry) { Ok(()) } else { std::fs::write(&file, text + &entry) }
}
