//! A stream of ledger records, for one reader.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::tenant_view::{TenantView, TooManyFollowed};
use crate::{
    ledger::{Tail, TailError, TailLine},
    limits,
    name::{Digest, TenantName},
    reason::{Reason, Refusal},
};

/// The part of the ledger that a caller may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerView {
    /// The whole ledger.
    All,
    /// The records that concern one tenant.
    OfTenant(TenantName),
}

/// The record with which a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordStart {
    /// The next record that is written.
    Next,
    /// The record at this index, counted from 1.
    At(u64),
    /// The record after the record with this hash. For readers who see no index.
    After(Digest),
}

/// One record for a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownRecord {
    /// The index of the record. 0 for a reader of one tenant's records, because it must not learn the number of other
    /// records.
    pub index: u64,
    /// The line on disk, or the part of it that the tenant may see.
    pub line: String,
}

/// The records that one reader sees, in order.
pub struct RecordStream {
    pub(super) tail: Tail,
    /// Whether the stream ends at the last record.
    pub(super) no_follow: bool,
    /// Set for a reader of one tenant's records.
    pub(super) part: Option<PartReader>,
}

/// The state of a reader of one tenant's records.
pub(super) struct PartReader {
    pub(super) view: TenantView,
    /// The hash of the record after which the reader begins, until the record is found.
    pub(super) after: Option<Digest>,
    /// The last record when the stream was opened.
    pub(super) last: u64,
    pub(super) _place: ReaderPlace,
}

impl RecordStream {
    /// Returns the next record that the reader may see. `None` after the last one.
    pub async fn next(&mut self) -> Option<Result<ShownRecord, Refusal>> {
        let mut left_out = 0_u64;
        loop {
            let line = match self.no_follow {
                true => self.tail.next_present().await,
                false => self.tail.next().await,
            };
            let Some(part) = &mut self.part else {
                return line.map(|line| {
                    line.map(|l| ShownRecord { index: l.index, line: l.line }).map_err(|e| cut_off(&e))
                });
            };
            let read = match line {
                None => part.check_found(u64::MAX).map(|()| None),
                Some(line) => line.map_err(|e| cut_off(&e)).and_then(|line| part.read(&line).map(Some)),
            };
            match read {
                Ok(None) => return None,
                Ok(Some(Some(line))) => return Some(Ok(ShownRecord { index: 0, line })),
                Ok(Some(None)) => {}
                Err(refusal) => return Some(Err(refusal)),
            }
            left_out = left_out.saturating_add(1);
            // If the reader may see only few of many records, this loop runs for long. It must let other tasks run.
            if left_out.is_multiple_of(32) {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl PartReader {
    /// Returns the line as the reader sees it. `None` if the reader may not see it, or if the first record was not
    /// found yet.
    fn read(&mut self, line: &TailLine) -> Result<Option<String>, Refusal> {
        let (record, hash) = line.read().map_err(|e| cut_off(&e))?;
        let shown = self.view.show(record, hash).map_err(|TooManyFollowed| {
            let text = format!(
                "more than {} open jobs and live leases concern your tenant",
                limits::RECORDS_FOLLOWED_MAX
            );
            Refusal::new(Reason::Overloaded, text).fix("ask an auditor of the platform for these records")
        })?;
        match self.after {
            None => Ok(shown),
            Some(after) => {
                // Only a record that the reader may see counts as found.
                if shown.is_some() && after == hash {
                    self.after = None;
                }
                self.check_found(line.index)?;
                Ok(None)
            }
        }
    }

    /// The reader wants to begin after a certain record. Refuses if this record did not exist when the stream was
    /// opened, or if the reader may not see it.
    fn check_found(&self, index: u64) -> Result<(), Refusal> {
        match self.after {
            Some(_) if index >= self.last => {
                let text = "no record that you may see has the hash in `after`";
                Err(Refusal::new(Reason::FieldInvalid, text)
                    .with("field", "after")
                    .fix("read from the first record"))
            }
            _ => Ok(()),
        }
    }
}

fn cut_off(error: &TailError) -> Refusal {
    tracing::warn!(%error, "a ledger reader was cut off");
    Refusal::new(Reason::FellBehind, error.to_string()).fix("read on from the last record that you have")
}

/// The number of readers of each tenant's records. Each reader reads the whole ledger, so a tenant may have only a few
/// readers at a time.
#[derive(Clone, Default)]
pub(super) struct TenantReaders(Arc<Mutex<HashMap<TenantName, usize>>>);

/// A slot for a reader of a tenant, until it is dropped.
pub(super) struct ReaderPlace {
    readers: TenantReaders,
    tenant: TenantName,
}

impl TenantReaders {
    /// Takes a slot. Refuses if the tenant already has the highest number of readers.
    pub(super) fn take(&self, tenant: &TenantName) -> Result<ReaderPlace, Refusal> {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = readers.entry(tenant.clone()).or_default();
        if *count >= limits::READERS_PER_TENANT_MAX {
            let text = format!(
                "the tenant {tenant} has {count} readers of its records, which is the most that it may have"
            );
            return Err(Refusal::new(Reason::Overloaded, text).fix("end one of them, or try again later"));
        }
        *count += 1;
        Ok(ReaderPlace { readers: self.clone(), tenant: tenant.clone() })
    }
}

impl Drop for ReaderPlace {
    fn drop(&mut self) {
        let mut readers = self.readers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = readers.get_mut(&self.tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                readers.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_few_readers_and_no_effect_on_others() {
        let (readers, acme) = (TenantReaders::default(), "acme".parse().unwrap());
        let taken: Vec<_> =
            (0..limits::READERS_PER_TENANT_MAX).map(|_| readers.take(&acme).unwrap()).collect();
        assert_eq!(readers.take(&acme).err().unwrap().reason, Reason::Overloaded);
        readers.take(&"globex".parse().unwrap()).unwrap();
        drop(taken);
        readers.take(&acme).unwrap();
        assert!(readers.0.lock().unwrap().is_empty());
    }
}
