//! The ledger, for those who may read it or wait for it.

use std::sync::Arc;

use super::{access::AccessControl, caller::Caller, context::BrokerContext, receipt::Receipts};
use crate::{
    ledger::{LedgerError, Tail},
    limits,
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// What callers ask about the records of the ledger.
pub struct RecordUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) receipts: Receipts,
}

impl RecordUseCases {
    /// Returns a receipt, with which a caller can wait until the record of a revocation is on disk.
    pub fn receipt(&self, index: u64) -> Vec<u8> {
        self.receipts.issue(index)
    }

    /// Waits until the record of a receipt, and all records before it, are on disk.
    pub async fn wait_durable(&self, caller: &Caller, receipt: &[u8]) -> Result<(), Refusal> {
        self.access.authorize(caller, Rpc::WaitDurable, Some(caller.tenant()), &[], "")?;
        let index = self.receipts.read(receipt).ok_or_else(|| {
            Refusal::new(Reason::EpochChanged, "the receipt is not from this run of the daemon")
                .fix("do it again: if the first time lasted, the second gets the same answer")
        })?;
        let waited =
            tokio::time::timeout(limits::DURABLE_WAIT, self.context.ledger.wait_durable(index)).await;
        let waited =
            waited.unwrap_or_else(|_| Err(LedgerError::Unavailable { why: "it takes too long".into() }));
        waited.map(drop).map_err(|error| {
            tracing::error!(%error, "a record is not durable");
            Refusal::new(
                Reason::LedgerUnavailable,
                "the record is not on disk: what it ended stays ended while this daemon runs",
            )
            .fix("mend the disk; the daemon writes it as soon as it can")
        })
    }

    /// Whether a caller may see how far the ledger has come. The ledger covers all tenants, so only its readers may.
    pub fn may_see_heads(&self, caller: &Caller) -> bool {
        caller.is_only_tenant() || self.access.authorize(caller, Rpc::TailLedger, None, &[], "").is_ok()
    }

    /// Follows the ledger from a record on. It covers all tenants, so only callers that may see all of them may read it.
    pub fn tail_ledger(&self, caller: &Caller, from: u64) -> Result<Tail, Refusal> {
        if self.access.is_for_all_tenants(caller, Rpc::TailLedger)? || caller.is_only_tenant() {
            return Ok(self.context.ledger.tail(from));
        }
        let text = "the ledger covers every tenant, and you may see only one";
        Err(Refusal::new(Reason::KindNotAllowed, text)
            .fix("ask a platform operator, or an auditor of all tenants"))
    }
}
