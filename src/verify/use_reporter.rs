//! Reports to the daemon how leases were used.

use std::{fmt, sync::Arc};

use super::introspect::unanswered;
use crate::{
    clock::Clock,
    limits::INTROSPECT_WAIT,
    link::{Connector, RotatingChannel},
    name::SpiffeId,
    proto::v1::{LeaseUse, ReportUseRequest, verifier_service_client::VerifierServiceClient},
    reason::{Reason, Refusal},
    secret::random_u128,
};

/// Whether a run of a gateway goes on after a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Other reports will follow.
    Interim,
    /// The gateway stops.
    Last,
}

/// Reports how the leases of one audience were used, over mutual TLS.
#[derive(Clone)]
pub struct UseReporter {
    daemon: Arc<RotatingChannel>,
    audience: SpiffeId,
    clock: Arc<dyn Clock>,
    run: u64,
}

impl UseReporter {
    /// Makes a reporter that connects at its first report. Must be called inside a Tokio runtime.
    pub fn new(connector: &Connector, audience: SpiffeId, clock: Arc<dyn Clock>) -> Self {
        // The number distinguishes the runs of the gateway.
        let run = random_u128().map_or(0, |random| u64::try_from(random >> 64).unwrap_or_default());
        UseReporter { daemon: Arc::new(RotatingChannel::new(connector.clone())), audience, clock, run }
    }

    /// Sends a report. If the same report is sent again with the same number, the daemon records it once. Returns how many uses
    /// the daemon did not record, because it does not know their job or resource.
    ///
    /// # Errors
    ///
    /// Fails if the daemon refuses the report, or does not answer within [`INTROSPECT_WAIT`].
    pub async fn report(
        &self,
        seq: u64,
        uses: Vec<LeaseUse>,
        lost_transfers: u64,
        report: Report,
    ) -> Result<u32, Refusal> {
        let (audience, last) = (self.audience.to_string(), report == Report::Last);
        let request = ReportUseRequest { audience, uses, lost_transfers, run: self.run, last, seq };
        let mut daemon = VerifierServiceClient::new(self.daemon.channel());
        tokio::select! {
            answer = daemon.report_use(request) => match answer {
                Ok(answer) => Ok(answer.into_inner().unknown),
                Err(status) => Err(unanswered(&status, "leasehold does not take the report")),
            },
            () = self.clock.sleep(INTROSPECT_WAIT) => {
                Err(Refusal::new(Reason::Unreachable, "leasehold did not answer in time"))
            }
        }
    }
}

impl fmt::Debug for UseReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UseReporter({})", self.audience)
    }
}
