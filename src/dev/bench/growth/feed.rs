//! Measures how long it takes until many verifiers have heard of a revocation.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{task::JoinSet, time::Instant};

use super::{FeedFigure, GrowthFinding, GrowthPlan};
use crate::{
    dev::{
        Role,
        bench::{
            crowd::{Crowd, Filling, LeaseEnd},
            figure::Sample,
            lab::BenchLab,
            revocations::{Revoker, moment_of_revocation},
        },
    },
    verify::{Verifier, VerifierSettings},
};

/// The number of verifiers that connect at once.
const CONNECTING: usize = 64;
/// How long to wait until these verifiers follow the feed, and until all verifiers refuse a revoked token.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a number of verifiers was not measured.
enum FeedFault {
    /// The time was over, or this machine or a bound of the daemon allows fewer verifiers.
    Bound(String),
    /// Something failed, so the bench must fail.
    Broken(String),
}

impl From<String> for FeedFault {
    fn from(why: String) -> Self {
        FeedFault::Broken(why)
    }
}

impl BenchLab<'_> {
    /// Lets more and more verifiers follow the feed, and measures with each number of them. After `until`, it starts at most one
    /// more group of verifiers for each number.
    pub(super) async fn measure_feeds(
        &self,
        plan: &GrowthPlan,
        until: Instant,
        report: &mut (dyn FnMut(GrowthFinding) + Send),
    ) -> Result<(), String> {
        allow_open_files();
        let mut crowd = Crowd::open(self).await?;
        let mut revoker = Revoker::connect(self).await?;
        let mut verifiers = Vec::new();
        for wanted in &plan.verifiers {
            let measured = match self.add_verifiers(&mut verifiers, *wanted, until).await {
                Ok(()) => measure_feed(&mut crowd, &mut revoker, &verifiers, plan.revocations).await,
                Err(fault) => Err(fault),
            };
            match measured {
                Ok(figure) => report(GrowthFinding::Feed(figure)),
                Err(FeedFault::Bound(why)) => {
                    report(GrowthFinding::Stopped(format!("{wanted} verifiers: {why}")));
                    return Ok(());
                }
                Err(FeedFault::Broken(why)) => return Err(format!("{wanted} verifiers: {why}")),
            }
        }
        Ok(())
    }

    /// Starts verifiers in groups until there are enough.
    async fn add_verifiers(
        &self,
        verifiers: &mut Vec<Verifier>,
        wanted: usize,
        until: Instant,
    ) -> Result<(), FeedFault> {
        let (deployment, clock) = (&self.stage().deployment, &self.stage().clock);
        let connector = deployment.connector(Role::Files, clock.clone()).map_err(|e| e.to_string())?;
        let audience = deployment.id(Role::Files).map_err(|e| e.to_string())?;
        while verifiers.len() < wanted {
            let count = wanted.saturating_sub(verifiers.len()).min(CONNECTING);
            let start = |_| {
                let (connector, clock) = (connector.clone(), clock.clone());
                Verifier::start(VerifierSettings { connector, audience: audience.clone(), clock })
            };
            let new: Vec<Verifier> = (0..count).map(start).collect();
            let ready = join_all(new.iter().map(Verifier::ready));
            if tokio::time::timeout(PATIENCE, ready).await.is_err() {
                let refusal = new.iter().find_map(|verifier| verifier.state().err());
                let why = refusal.map_or_else(String::new, |refusal| format!(": {refusal}"));
                let after = verifiers.len();
                return Err(FeedFault::Bound(format!("{after} of them are ready, the next is not{why}")));
            }
            verifiers.extend(new);
            if verifiers.len() < wanted && Instant::now() >= until {
                return Err(FeedFault::Bound(format!("the time was over after {} of them", verifiers.len())));
            }
        }
        Ok(())
    }
}

/// Revokes leases, and measures for each how long it takes until the last verifier refuses its token.
async fn measure_feed(
    crowd: &mut Crowd,
    revoker: &mut Revoker,
    verifiers: &[Verifier],
    revocations: usize,
) -> Result<FeedFigure, FeedFault> {
    let filling = Filling { count: 1, end: LeaseEnd::Latest, kept_every: 1, verifier: None, until: None };
    let mut heard = Sample::new()?;
    for _ in 0..revocations {
        let filled = crowd.fill_whole(&filling).await?;
        let kept = filled.kept.last().ok_or_else(|| "there is no lease".to_owned())?;
        let accepting = verifiers.iter().map(|verifier| crowd.accept(verifier, &kept.token));
        let accesses = try_join_all(accepting).await.map_err(FeedFault::Bound)?;
        let mut waiting: JoinSet<_> = accesses.into_iter().map(moment_of_revocation).collect();
        let from = Instant::now();
        revoker.revoke(format!("lease:{}", kept.lease)).await?;
        let mut last = from;
        let all = async {
            while let Some(moment) = waiting.join_next().await {
                let moment = moment.map_err(|e| FeedFault::Broken(e.to_string()))?;
                // If the feed of a verifier is late, the verifier refuses all tokens, not only revoked ones.
                last = last.max(moment.map_err(FeedFault::Bound)?);
            }
            Ok::<_, FeedFault>(())
        };
        let all = tokio::time::timeout(PATIENCE, all).await;
        all.map_err(|_| "a verifier accepts a revoked token".to_owned())??;
        heard.record(last.saturating_duration_since(from));
    }
    Ok(FeedFigure { verifiers: verifiers.len(), heard: heard.measured() })
}

/// Raises the limit on open files as far as this process may, because each verifier has a connection. If that is not enough, the
/// verifiers cannot connect.
fn allow_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
