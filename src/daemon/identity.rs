//! The daemon's own identity: its source, its state, and its remaining life.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::StartError;
use crate::{
    api::NotReady,
    clock::{Clock, Wall},
    config::{IdentityConfig, IdentityFrom, PeopleConfig},
    identity::{IdentityOptions, IdentitySource, Leaf, Origin, SourceState, Trust, WorkloadEndpoint},
    limits,
    reason::Reason,
};

/// Opens the source that the configuration names.
pub(super) fn open(
    config: &IdentityConfig,
    people: Option<&PeopleConfig>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn IdentitySource>, StartError> {
    // The roots of the trust domain for people are added here, so that operators do not have to configure them twice.
    let of_people = people.map(|people| (people.trust_domain.clone(), people.ca_cert.clone()));
    let mut allowed = config.trust_domains.clone();
    if let (Some(allowed), Some((domain, _))) = (&mut allowed, &of_people) {
        allowed.insert(domain.clone());
    }
    let origin = match &config.from {
        IdentityFrom::Files { cert, key } => Origin::Files { cert: cert.clone(), key: key.clone() },
        IdentityFrom::WorkloadApi { endpoint, pick } => {
            let endpoint = match endpoint {
                Some(endpoint) => endpoint.clone(),
                None => WorkloadEndpoint::from_env()?,
            };
            Origin::WorkloadApi { endpoint, pick: pick.clone() }
        }
    };
    let options = IdentityOptions {
        origin,
        bundles: config
            .bundles
            .iter()
            .map(|(domain, path)| (domain.clone(), path.clone()))
            .chain(of_people)
            .collect(),
        federation: config.federation.clone(),
        allowed,
        svid_life_max: config.max_svid_ttl,
        outage_max: config.outage_max,
    };
    Ok(options.open(clock)?)
}

/// Returns the answer of `/readyz` about the identity: whether clients can connect.
pub(super) fn ready(trust: &Trust, now: Wall) -> Result<(), NotReady> {
    trust.check(now).map_err(|why| NotReady::new(Reason::IdentityUnavailable).because(why.to_string()))
}

/// Measures and logs the remaining life of our identity, until `shutdown`. Decides nothing.
pub(super) async fn watch(
    source: Arc<dyn IdentitySource>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) {
    let mut watched = Watched::default();
    loop {
        watched.report_changes(&source.current(), clock.now().wall);
        let failing = u32::try_from(source.failing()).unwrap_or(u32::MAX);
        metrics::gauge!("leasehold_identity_origins_failing").set(f64::from(failing));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = clock.sleep(limits::IDENTITY_POLL) => {}
        }
    }
}

/// The state at the last check.
#[derive(Default)]
struct Watched {
    svid: Option<[u8; 32]>,
    is_late: bool,
}

impl Watched {
    fn report_changes(&mut self, trust: &Trust, now: Wall) {
        let leaf = trust.svid.as_ref().map(|svid| svid.leaf());
        let digest = leaf.map(|leaf| leaf.x5t_s256);
        if digest.is_some() && digest != self.svid {
            if self.svid.is_some() {
                metrics::counter!("leasehold_svid_rotations_total").increment(1);
            }
            self.svid = digest;
            if let Some(svid) = &trust.svid
                && let Err(why) = svid.verify(&trust.bundles, now)
            {
                tracing::error!(%svid, %why, "every client refuses our SVID: have another one issued");
            }
        }
        let left = leaf.map_or(Duration::ZERO, |leaf| leaf.not_after.since(now));
        metrics::gauge!("leasehold_svid_remaining_seconds").set(left.as_secs_f64());
        metrics::gauge!("leasehold_identity_good")
            .set(f64::from(u8::from(trust.standing == SourceState::Good)));
        let is_late = leaf.is_none_or(|leaf| missed_half_life(leaf, now));
        metrics::gauge!("leasehold_svid_rotation_late").set(f64::from(u8::from(is_late)));
        if is_late && !self.is_late {
            let why = trust.standing.why().unwrap_or("its source reports no error");
            tracing::warn!(
                left_seconds = left.as_secs(),
                why,
                "our SVID was not rotated at its half-life: check its source before the SVID expires"
            );
        }
        self.is_late = is_late;
    }
}

/// Whether an SVID is older than half of its life and a tenth of its life more. Issuers renew an SVID after half of its
/// life, and spread the renewals over some time.
fn missed_half_life(leaf: &Leaf, now: Wall) -> bool {
    let life = leaf.not_after.since(leaf.not_before);
    now.since(leaf.not_before) > life / 2 + life / 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{HOUR, NOW, TestCa, at, before, bundles};

    const MINUTE: Duration = Duration::from_secs(60);

    fn trust(ca: &TestCa, life: Duration) -> Trust {
        let svid = ca.issue("spiffe://example.org/daemon", &|params| {
            params.not_before = at(before(NOW, life));
            params.not_after = at(NOW.plus(life));
        });
        Trust {
            revision: 1,
            svid: Some(Arc::new(svid.svid())),
            bundles: Arc::new(bundles(&[ca])),
            standing: SourceState::Good,
        }
    }

    #[test]
    fn a_missed_half_life_alarms_once_until_the_next_svid() {
        let ca = TestCa::new("example.org");
        // The SVID is at its half-life now. An issuer may take a tenth of the life more.
        let trust_now = trust(&ca, HOUR);
        let mut watched = Watched::default();
        watched.report_changes(&trust_now, NOW);
        assert!(!watched.is_late);
        watched.report_changes(&trust_now, NOW.plus(12 * MINUTE));
        assert!(!watched.is_late);
        watched.report_changes(&trust_now, NOW.plus(12 * MINUTE + Duration::from_secs(1)));
        assert!(watched.is_late);
        watched.report_changes(&trust(&ca, 2 * HOUR), NOW.plus(13 * MINUTE));
        assert!(!watched.is_late);
        let gone = Trust { svid: None, ..trust_now };
        watched.report_changes(&gone, NOW);
        assert!(watched.is_late, "none at all is late, too");
    }

    #[test]
    fn a_daemon_is_ready_while_its_svid_can_be_used() {
        let ca = TestCa::new("example.org");
        let good = trust(&ca, HOUR);
        let why = || "the agent is away".to_owned();
        assert_eq!(ready(&good, NOW), Ok(()));
        let stale = Trust { standing: SourceState::Stale { since: NOW, why: why() }, ..good.clone() };
        assert_eq!(ready(&stale, NOW), Ok(()), "an outage is survived as far as SVIDs last");
        let said = |trust: &Trust, now| ready(trust, now).unwrap_err().to_string();
        assert!(said(&stale, NOW.plus(HOUR)).contains("was not renewed: the agent is away"));
        assert!(said(&good, NOW.plus(HOUR)).starts_with("IDENTITY_UNAVAILABLE\nour SVID expired at "));
        for standing in [
            SourceState::Awaited { why: why() },
            SourceState::Ended { since: NOW, why: why() },
            SourceState::GivenUp { since: NOW, why: why() },
        ] {
            let trust = Trust { standing, ..good.clone() };
            assert!(said(&trust, NOW).contains("the agent is away"), "{trust:?}");
        }
    }
}
