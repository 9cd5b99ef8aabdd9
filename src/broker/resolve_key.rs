//! Access keys of S3 clients. A gateway gets a key that checks the signatures of one day, and never the secret itself.

use std::time::Duration;

use super::{caller::Caller, refusals::lease_not_found, renew::lease_refusal, verifiers::VerifierUseCases};
use crate::{
    clock::Wall,
    lease::Lease,
    name::{LeaseId, SpiffeId},
    policy::{Relation, Rpc},
    reason::{Reason, Refusal},
    secret::DateKey,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

impl VerifierUseCases {
    /// Returns the key for the signatures of one day, if the lease of an access key is live and of this audience. Only the S3
    /// gateways of the audience get it: other leases have no S3 key.
    pub fn resolve_key(
        &self,
        caller: &Caller,
        audience: &SpiffeId,
        access_key: &str,
        date: &str,
    ) -> Result<DateKey, Refusal> {
        self.check_verifies(caller, audience)?;
        self.access.authorize(caller, Rpc::ResolveKey, Some(caller.tenant()), &[Relation::Verifier], "")?;
        let now = self.context.clock.now();
        if !is_near(date, now.wall) {
            let text = "`date` is not a day near today, written as YYYYMMDD";
            return Err(Refusal::new(Reason::FieldInvalid, text).with("field", "date"));
        }
        let lease = LeaseId::of_access_key(access_key).and_then(|id| self.context.table.find(id));
        // A key of another audience and an absent one get the same answer.
        let of_audience = |lease: &&Lease| lease.facts.audience == *audience;
        let lease = lease.as_deref().filter(of_audience).ok_or_else(lease_not_found)?;
        let secret = lease.s3_secret.as_deref().ok_or_else(lease_not_found)?;
        lease.check(now.lease).map_err(|refused| lease_refusal(lease, refused))?;
        Ok(secret.date_key(date))
    }
}

/// Whether a date is today, or the day before or after.
fn is_near(date: &str, now: Wall) -> bool {
    let yesterday = Wall(now.0.saturating_sub(u64::try_from(DAY.as_millis()).unwrap_or_default()));
    [yesterday, now, now.plus(DAY)].iter().any(|day| day_of(*day) == date)
}

/// Returns the day of a time, as `YYYYMMDD`.
fn day_of(at: Wall) -> String {
    at.to_string().chars().take(10).filter(char::is_ascii_digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_near_for_three_days() {
        let now = Wall::parse("2026-03-01T00:30:00Z").unwrap();
        for date in ["20260228", "20260301", "20260302"] {
            assert!(is_near(date, now), "{date}");
        }
        for date in ["20260227", "20260303", "2026-03-01", "", "2026030"] {
            assert!(!is_near(date, now), "{date}");
        }
    }
}
