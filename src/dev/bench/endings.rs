//! Measures how long a resource server still accepts a token after the event that ends its access.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    figure::{Measured, Sample},
    lab::BenchLab,
    work::OfflineCheck,
};
use crate::{
    dev::{
        Role,
        demo::{DemoMember, describe},
    },
    proto::v1,
};

/// How long to wait for the end of an access. If a token is still accepted after this time, the bench fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// An event that ends the access of a job or of one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndingEvent {
    /// An operator revokes the lease.
    RevokeLease,
    /// An operator revokes the job.
    RevokeJob,
    /// The member reports that its work completed.
    Completed,
    /// The launcher closes the job.
    CloseJob,
    /// The connection of the member breaks.
    Lost,
}

impl EndingEvent {
    /// All events, in the order in which they are measured.
    pub const ALL: [EndingEvent; 5] = [
        EndingEvent::RevokeLease,
        EndingEvent::RevokeJob,
        EndingEvent::Completed,
        EndingEvent::CloseJob,
        EndingEvent::Lost,
    ];

    /// Describes the event in a few words.
    pub const fn as_str(self) -> &'static str {
        match self {
            EndingEvent::RevokeLease => "an operator revokes the lease",
            EndingEvent::RevokeJob => "an operator revokes the job",
            EndingEvent::Completed => "the member reports its end",
            EndingEvent::CloseJob => "the launcher closes the job",
            EndingEvent::Lost => "the member's connection breaks",
        }
    }
}

/// The times from one kind of event to the last use that a resource server accepted.
#[derive(Clone, Debug)]
pub struct Delay {
    /// The event that ended the access.
    pub event: EndingEvent,
    /// The median, the 99th percentile and the longest of the times. The rate in this value has no meaning.
    pub times: Measured,
}

impl BenchLab<'_> {
    /// Ends the access of new jobs, each by the same event, and measures how long the access is still accepted.
    pub(super) async fn measure_ending(&self, event: EndingEvent, times: usize) -> Result<Delay, String> {
        let mut sample = Sample::new()?;
        for n in 0..times {
            sample.record(self.end_once(event, n).await.map_err(|why| format!("{}: {why}", event.as_str()))?);
        }
        Ok(Delay { event, times: sample.measured() })
    }

    async fn end_once(&self, event: EndingEvent, n: usize) -> Result<Duration, String> {
        let stage = self.stage();
        let failed = |status: tonic::Status| describe(&status);
        let job = stage.create_job(stage.spec(1)).await.map_err(failed)?;
        let mut member = stage.join(&job.id, &format!("end-{n}")).await.map_err(failed)?;
        let (lease, token) = member.issue(None).await.map_err(failed)?;
        let check = self.offline_check(token)?;
        check.once().await?;
        let user = tokio::spawn(use_until_refused(check));
        let from = Instant::now();
        self.cause(event, member, &job.id, &lease.id).await?;
        let last = user.await.map_err(|e| e.to_string())??;
        Ok(last.saturating_duration_since(from))
    }

    async fn cause(
        &self,
        event: EndingEvent,
        member: DemoMember,
        job: &str,
        lease: &str,
    ) -> Result<(), String> {
        let stage = self.stage();
        let failed = |status: tonic::Status| describe(&status);
        let revoke = async |name: String| {
            let request = v1::RevokeRequest { name, reason: "bench".into(), ..Default::default() };
            stage.operator_client(Role::Operator)?.revoke(request).await.map_err(failed).map(drop)
        };
        match event {
            EndingEvent::RevokeLease => revoke(format!("lease:{lease}")).await,
            EndingEvent::RevokeJob => revoke(format!("job:{job}")).await,
            EndingEvent::Completed => {
                let session = member.session.clone();
                let request = v1::EndAttemptRequest {
                    job: job.to_owned(),
                    attempt: session.attempt,
                    outcome: v1::Outcome::Completed as i32,
                    instance: session.instance,
                    detail: String::new(),
                    session_secret: session.secret,
                };
                stage.job_client(Role::Trainer)?.end_attempt(request).await.map_err(failed).map(drop)
            }
            EndingEvent::CloseJob => {
                let request = v1::CloseJobRequest { job: job.to_owned(), ..Default::default() };
                stage.job_client(Role::Trainer)?.close_job(request).await.map_err(failed).map(drop)
            }
            EndingEvent::Lost => {
                drop(member);
                Ok(())
            }
        }
    }
}

/// Uses a token again and again, and returns when the last accepted use began.
async fn use_until_refused(check: OfflineCheck) -> Result<Instant, String> {
    let begin = Instant::now();
    let mut last = begin;
    loop {
        let now = Instant::now();
        if check.once().await.is_err() {
            return Ok(last);
        }
        if now.duration_since(begin) > PATIENCE {
            return Err(format!("the token is accepted {} s after the event", PATIENCE.as_secs()));
        }
        last = now;
        // A loop without a pause would take the processor from the daemon.
        tokio::time::sleep(Duration::from_micros(50)).await;
    }
}
