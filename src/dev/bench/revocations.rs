//! Measures the revocation of jobs that have many leases.

use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::Channel;

use super::{
    crowd::{Crowd, Filling, KeptToken},
    figure::{Measured, Sample},
    lab::BenchLab,
};
use crate::{
    dev::{Role, demo::describe},
    proto::v1::{self, operator_service_client::OperatorServiceClient},
    reason::Reason,
    verify::Access,
};

/// How long to wait until a verifier refuses a revoked token.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most leases of all jobs that are revoked for one figure. If each job has many leases, fewer jobs are revoked.
const LEASES_IN_ALL: usize = 200_000;
/// The least number of jobs that are revoked, even if they have more than [`LEASES_IN_ALL`].
const JOBS_MIN: usize = 3;

/// The times of the revocations of several jobs, each with this number of leases.
#[derive(Clone, Debug)]
pub struct RevokeFigure {
    /// The number of leases of each job.
    pub leases: usize,
    /// The time of the call. Its rate has no meaning.
    pub call: Measured,
    /// The time from the beginning of the call until a verifier on the feed refuses a token of the job.
    pub refused: Measured,
}

/// The times of one revocation.
pub(super) struct RevokeTimes {
    pub(super) call: Duration,
    pub(super) refused: Duration,
}

/// A connected client of an operator, which revokes.
pub(super) struct Revoker(OperatorServiceClient<Channel>);

impl Revoker {
    pub(super) async fn connect(lab: &BenchLab<'_>) -> Result<Self, String> {
        let mut client = lab.stage().operator_client(Role::Operator)?;
        client.who_am_i(v1::WhoAmIRequest {}).await.map_err(|status| describe(&status))?;
        Ok(Revoker(client))
    }

    /// Ends everything behind a name.
    pub(super) async fn revoke(&mut self, name: String) -> Result<(), String> {
        let request = v1::RevokeRequest { name, reason: "bench".into(), ..Default::default() };
        self.0.revoke(request).await.map(drop).map_err(|status| describe(&status))
    }

    /// Returns how many leases a revocation of the name would end. Revokes nothing.
    pub(super) async fn leases_behind(&mut self, name: String) -> Result<u64, String> {
        let request = v1::RevokeRequest { name, reason: "bench".into(), dry_run: true, ..Default::default() };
        let answer = self.0.revoke(request).await.map_err(|status| describe(&status))?.into_inner();
        Ok(answer.ending.map_or(0, |ending| ending.behind))
    }
}

impl BenchLab<'_> {
    /// Revokes jobs with this number of leases, one after the other.
    pub(super) async fn measure_revocations(
        &self,
        leases: usize,
        jobs: usize,
    ) -> Result<RevokeFigure, String> {
        let mut revoker = Revoker::connect(self).await?;
        let (mut call, mut refused) = (Sample::new()?, Sample::new()?);
        let jobs = jobs.min((LEASES_IN_ALL / leases.max(1)).max(JOBS_MIN));
        let filling = Filling::of_one_revocation(leases);
        for _ in 0..jobs {
            let mut crowd = Crowd::open(self).await?;
            let filled = crowd.fill_whole(&filling).await?;
            let last = filled.kept.last().ok_or("the job has no lease")?;
            let times = self.revoke_crowd(&mut revoker, &crowd, last).await?;
            call.record(times.call);
            refused.record(times.refused);
        }
        Ok(RevokeFigure { leases, call: call.measured(), refused: refused.measured() })
    }

    /// Revokes a job, and waits until the verifier refuses a token of the job.
    pub(super) async fn revoke_crowd(
        &self,
        revoker: &mut Revoker,
        crowd: &Crowd,
        kept: &KeptToken,
    ) -> Result<RevokeTimes, String> {
        let access = crowd.accept(self.verifier(), &kept.token).await?;
        let refusal = tokio::spawn(moment_of_revocation(access));
        let from = Instant::now();
        revoker.revoke(format!("job:{}", crowd.job)).await?;
        let call = from.elapsed();
        let refused = tokio::time::timeout(PATIENCE, refusal).await;
        let refused = refused.map_err(|_| "a token is accepted after its job was revoked")?;
        let refused = refused.map_err(|e| e.to_string())??;
        Ok(RevokeTimes { call, refused: refused.saturating_duration_since(from) })
    }
}

/// Waits until the access is revoked. Fails if it ends for another reason.
pub(super) async fn moment_of_revocation(access: Access) -> Result<Instant, String> {
    let refusal = access.ended().await;
    let at = Instant::now();
    if refusal.reason == Reason::Revoked { Ok(at) } else { Err(refusal.to_string()) }
}
