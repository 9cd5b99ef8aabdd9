//! The use cases of callers that read the ledger or wait for records.

use std::sync::Arc;

use super::{
    access::AccessControl,
    caller::Caller,
    context::BrokerContext,
    receipt::Receipts,
    record_stream::{LedgerView, PartReader, RecordStart, RecordStream, TenantReaders},
    tenant_view::TenantView,
};
use crate::{
    ledger::LedgerError,
    limits,
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// The use cases for the records of the ledger.
pub struct RecordUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) receipts: Receipts,
    pub(super) readers: TenantReaders,
}

impl RecordUseCases {
    /// Returns a receipt. With it, a caller can wait until the record of a revocation is on disk.
    pub fn receipt(&self, index: u64) -> Vec<u8> {
        self.receipts.issue(index)
    }

    /// Waits until the record of a receipt, and all records before it, are on disk.
    pub async fn wait_durable(&self, caller: &Caller, receipt: &[u8]) -> Result<(), Refusal> {
        self.access.authorize(caller, Rpc::WaitDurable, Some(caller.tenant()), &[], "")?;
        let index = self.receipts.read(receipt).ok_or_else(|| {
            Refusal::new(Reason::EpochChanged, "the receipt is not from this run of the daemon")
                .fix("repeat the call that gave the receipt: if it took effect, it gets the same answer and a new receipt")
        })?;
        let waited =
            tokio::time::timeout(limits::DURABLE_WAIT, self.context.ledger.wait_durable(index)).await;
        let waited =
            waited.unwrap_or_else(|_| Err(LedgerError::Unavailable { why: "it takes too long".into() }));
        waited.map(drop).map_err(|error| {
            tracing::error!(%error, "a record is not durable");
            Refusal::new(
                Reason::LedgerUnavailable,
                "the record is not on disk: the access stays ended while this daemon runs, but a restart may not know of it",
            )
            .fix("repair the disk; the daemon writes the record as soon as it can")
        })
    }

    /// Whether a caller may see the head of the ledger. The ledger covers all tenants, so only callers that may read
    /// all of it may see the head.
    pub fn may_see_heads(&self, caller: &Caller) -> bool {
        caller.is_only_tenant() || self.access.authorize(caller, Rpc::TailLedger, None, &[], "").is_ok()
    }

    /// Returns the part of the ledger that a caller may see: all records, or the records that concern its tenant.
    pub fn ledger_view(&self, caller: &Caller) -> Result<LedgerView, Refusal> {
        let is_for_all = self.access.is_for_all_tenants(caller, Rpc::TailLedger)?;
        Ok(match is_for_all || caller.is_only_tenant() {
            true => LedgerView::All,
            false => LedgerView::OfTenant(caller.tenant().clone()),
        })
    }

    /// Refuses a reader if it may no longer see the same part of the ledger as when it began to read.
    pub fn may_go_on(&self, caller: &Caller, view: &LedgerView) -> Result<(), Refusal> {
        match self.ledger_view(caller)? == *view {
            true => Ok(()),
            false => Err(Refusal::new(Reason::KindNotAllowed, "you may now see another part of the ledger")
                .fix("read it again, from the first record")),
        }
    }

    /// Follows the ledger, or its records that concern the caller's tenant.
    ///
    /// A reader of one tenant's records begins with the first record, with the next record, or after a record that it
    /// has. It may not give an index, because with several tries it would learn the number of other tenants' records.
    pub fn tail_ledger(
        &self,
        view: &LedgerView,
        start: RecordStart,
        no_follow: bool,
    ) -> Result<RecordStream, Refusal> {
        let last = self.context.ledger.head().index;
        let next = last.saturating_add(1);
        let LedgerView::OfTenant(tenant) = view else {
            let from = match start {
                RecordStart::Next => next,
                RecordStart::At(from) => from,
                RecordStart::After(_) => {
                    return Err(invalid("after", "you see the whole ledger: use an index"));
                }
            };
            return Ok(RecordStream { tail: self.context.ledger.tail(from), no_follow, part: None });
        };
        let place = self.readers.take(tenant)?;
        let mut view = TenantView::new(self.context.clone(), tenant.clone());
        let (from, after) = match start {
            RecordStart::Next => {
                view.remember_live_leases();
                (next, None)
            }
            RecordStart::At(1) => (1, None),
            RecordStart::After(hash) => (1, Some(hash)),
            RecordStart::At(_) => {
                let text =
                    "you see the records of one tenant, which have no index: begin with 1, or with `after`";
                return Err(invalid("from_index", text));
            }
        };
        let part = PartReader { view, after, last, _place: place };
        Ok(RecordStream { tail: self.context.ledger.tail(from), no_follow, part: Some(part) })
    }
}

fn invalid(field: &'static str, text: &'static str) -> Refusal {
    Refusal::new(Reason::FieldInvalid, text).with("field", field)
}
