//! Opens the ledger when the daemon starts, and writes copies of its head.

use std::{path::Path, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::failure::StartError;
use crate::{
    clock::Clock,
    config::LedgerConfig,
    ledger::{HeadCopy, HeadKey, Ledger, Lost, Opened},
    limits,
    state::Recorded,
};

/// The ledger, the state from its records, its key, and the copy of its head.
pub(super) struct OpenedLedger {
    pub(super) opened: Opened,
    pub(super) recorded: Recorded,
    pub(super) key: HeadKey,
    pub(super) copy: Option<HeadCopy>,
}

impl OpenedLedger {
    /// Opens the ledger. Refuses a ledger that ends before the head in the copy. Blocks.
    pub(super) fn open(
        config: &LedgerConfig,
        state: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let copy = config.head_copy.as_deref().map(HeadCopy::at);
        let kept = copy.as_ref().map(HeadCopy::read).transpose()?.flatten();
        let mut options = config.options();
        options.kept = kept.as_ref().map(|signed| signed.head);
        let (opened, recorded) = Ledger::open_folded::<Recorded>(state, clock, options)?;
        // The ledger is locked, so no other daemon makes a key at the same time.
        let key = HeadKey::open(state)?;
        match (&copy, &kept) {
            (Some(copy), Some(signed)) if config.lost == Lost::Refuse => copy.check(signed, &key.public())?,
            (Some(_), None) if opened.epoch > 1 => {
                tracing::warn!(
                    "there is no copy of the ledger's head yet: the daemon could not check whether the end of the ledger was cut off"
                );
            }
            _ => {}
        }
        Ok(OpenedLedger { opened, recorded, key, copy })
    }
}

/// Writes a copy of the head as the ledger grows. The copy only confirms the ledger, so an error is only logged, once
/// until the copy works again.
pub(super) async fn keep_copies(
    ledger: Ledger,
    copy: HeadCopy,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let (mut kept, mut works) = (None, true);
    loop {
        let head = ledger.head();
        if kept != Some(head) {
            let now_works = keep_copy_once(&ledger, copy.clone(), works).await;
            if now_works {
                kept = Some(head);
            }
            works = now_works;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = clock.sleep(limits::LEDGER_LOOK) => {}
        }
    }
}

/// Writes a copy of the head now.
pub(super) async fn keep_copy(ledger: &Ledger, copy: HeadCopy) {
    keep_copy_once(ledger, copy, true).await;
}

async fn keep_copy_once(ledger: &Ledger, copy: HeadCopy, loud: bool) -> bool {
    let Some(signed) = ledger.signed_head() else { return true };
    let kept = tokio::task::spawn_blocking(move || copy.keep(&signed)).await;
    let why = match kept {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    if loud {
        tracing::error!(
            why,
            "ledger.head_copy cannot be written: until it can be written, it may go unnoticed if the end of the ledger is cut off"
        );
    }
    false
}
