//! The wait for a first identity.

use std::time::Duration;

use super::{IdentitySource, Standing, Trust};
use crate::clock::Clock;

/// Why there is no identity to begin with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    #[error("no identity was issued within {} s: {why}", waited.as_secs())]
    NotInTime { waited: Duration, why: String },
    #[error("no identity will be issued: {why}")]
    Never { why: String },
}

/// Waits until a source that somebody follows has an SVID. A new workload is often faster than its registration entry.
///
/// `say` is told once, with the reason, when there is something to wait for.
pub async fn first_identity(
    source: &dyn IdentitySource,
    clock: &dyn Clock,
    wait: Duration,
    say: impl FnOnce(&str),
) -> Result<std::sync::Arc<Trust>, NoIdentity> {
    let mut trusts = source.watch();
    let deadline = clock.sleep(wait);
    tokio::pin!(deadline);
    let mut say = Some(say);
    loop {
        let trust = trusts.borrow_and_update().clone();
        let why = match &trust.standing {
            _ if trust.svid.is_some() => return Ok(trust),
            Standing::Ended { why, .. } | Standing::GivenUp { why, .. } => {
                return Err(NoIdentity::Never { why: why.clone() });
            }
            Standing::Good => return Err(NoIdentity::Never { why: "no SVID is configured".to_owned() }),
            Standing::Awaited { why } | Standing::Stale { why, .. } => why.clone(),
        };
        // Before the first answer there is nothing to tell.
        if why != NOT_ASKED_YET
            && let Some(say) = say.take()
        {
            say(&why);
        }
        tokio::select! {
            changed = trusts.changed() => {
                if changed.is_err() {
                    return Err(NoIdentity::Never { why });
                }
            }
            () = &mut deadline => return Err(NoIdentity::NotInTime { waited: wait, why }),
        }
    }
}

/// Why a source that was just made has nothing.
pub(super) const NOT_ASKED_YET: &str = "it was not asked yet";
