//! The code that issuing and renewing a credential share.

use std::sync::Arc;

use super::{
    access::AccessControl, caller::Caller, context::BrokerContext, decide::Decisions, endings::Endings,
    prepared::PreparedCredentials, refusals::ledger_unavailable, wording::Tokens,
};
use crate::{
    ledger::Event,
    limits,
    name::{JobId, LeaseId},
    reason::{Reason, Refusal},
};

/// The use cases of members for their credentials.
pub struct CredentialUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) decisions: Decisions,
    pub(super) endings: Endings,
    pub(super) tokens: Tokens,
    pub(super) prepared: PreparedCredentials,
}

impl CredentialUseCases {
    /// Writes the record of a credential. If the write fails, records that the credential was cancelled, because the
    /// first record may still be on disk.
    pub(super) async fn record_credential(
        &self,
        caller: &Caller,
        lease: LeaseId,
        job: JobId,
        record: &Event,
    ) -> Result<(), Refusal> {
        let ledger = &self.context.ledger;
        let written = match ledger.text(record) {
            Ok(text) => {
                self.context.rates.charge_bytes(caller, text.bytes())?;
                tokio::time::timeout(limits::LEDGER_WAIT, ledger.append_text(text)).await
            }
            Err(error) => Ok(Err(error)),
        };
        let why = match written {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        metrics::counter!("leasehold_ledger_refusals_total").increment(1);
        let refusal = ledger_unavailable(&why);
        self.cancel(lease, job, refusal.reason);
        Err(refusal)
    }

    /// Records that a credential with a written record was not handed out.
    pub(super) fn cancel(&self, lease: LeaseId, job: JobId, reason: Reason) {
        self.context.ledger.defer(&Event::CredentialCancelled { lease, job, reason });
    }
}
