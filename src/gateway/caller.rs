//! The caller of one request: its session, its connection, and its share of the limits.

use std::{fmt, sync::Arc};

use http::{Extensions, Version};
use s3s::{S3Error, S3ErrorCode, S3Result};
use tokio_util::sync::CancellationToken;

use super::{
    live_access::LiveAccess,
    refusal::{failed, refused, unusable},
    room::GatewayRoom,
    session::{TokenSession, TokenSessions},
    upload_memory::UploadMemory,
    view::{Found, Mount, Need},
};
use crate::{
    link::Share,
    name::{Object, SpiffeId},
    plain,
    reason::{Reason, Refusal},
    verify::Access,
};

/// The caller of one request. The gateway puts it into the extensions of the request; a clone is a few pointers.
#[derive(Clone)]
pub(super) struct GatewayCaller {
    pub(super) session: TokenSession,
    pub(super) sessions: TokenSessions,
    /// The holder of its tokens.
    pub(super) holder: SpiffeId,
    /// Closes its connection at once.
    pub(super) cut: CancellationToken,
    /// The version of HTTP of its request.
    pub(super) version: Version,
    pub(super) rooms: Arc<GatewayRoom>,
    /// The caller's slot among the requests under way. Transfers keep the slot until they end.
    pub(super) room: Arc<Share>,
}

/// An object that the caller may use for its request.
#[derive(Clone)]
pub(super) struct OpenedObject {
    pub(super) access: LiveAccess,
    pub(super) found: Found,
}

impl GatewayCaller {
    /// Returns the caller of a request.
    pub(super) fn of(extensions: &Extensions) -> S3Result<Self> {
        let missing =
            || failed(S3ErrorCode::InternalError, "the request did not come through the gateway's front");
        extensions.get::<GatewayCaller>().cloned().ok_or_else(missing)
    }

    /// Returns the memory for the caller's uploads into object stores.
    pub(super) fn upload_memory(&self) -> UploadMemory {
        UploadMemory::new(self.rooms.upload_kib.clone(), self.holder.clone())
    }

    /// Authorizes the use of a key. A key that the caller may not see gets the same answer as an absent key.
    pub(super) fn open(&self, bucket: &str, key: &str, need: Need) -> S3Result<OpenedObject> {
        let mut why = self.session.refused.clone();
        // The first lease that opens the resource, but not for this use.
        let mut too_narrow: Option<(&Access, &Object)> = None;
        // Only the innermost folder decides, so a read-only folder stays read-only inside a writable folder.
        let found = self.session.tokens.iter().flat_map(|token| token.view.find(bucket, key));
        let innermost = found.map(|(mount, _)| mount.prefix.len()).max();
        for token in &self.session.tokens {
            for (mount, rest) in token.view.find(bucket, key) {
                if Some(mount.prefix.len()) != innermost {
                    continue;
                }
                let Some(action) = need.action(mount.object.resource().kind()) else {
                    too_narrow = too_narrow.or(Some((&token.access, &mount.object)));
                    continue;
                };
                match LiveAccess::new(&token.access, self.sessions.clone(), mount.object.clone(), action) {
                    Ok(access) => {
                        let found = mount.found(rest).map_err(|f| unusable(&f, need == Need::Read))?;
                        return Ok(OpenedObject { access: access.of_key(rest), found });
                    }
                    Err(refusal) if refusal.reason == Reason::TokenScope => {
                        too_narrow = too_narrow.or(Some((&token.access, &mount.object)));
                    }
                    Err(refusal) => why = why.or(Some(refusal)),
                }
            }
        }
        // No other lease allows it, so it counts as a refused use of the first one.
        if let Some((access, object)) = too_narrow {
            self.sessions.usages().add_refusal(access, object);
        }
        let why = why.unwrap_or_else(|| closed(bucket, key, need));
        metrics::counter!("leasehold_gateway_refused_total", "reason" => why.reason.code()).increment(1);
        Err(refused(&why))
    }

    /// Returns the mounts of a bucket that the caller may list, by prefix, each with its access. A key is in at most
    /// one of them.
    pub(super) fn readable(&self, bucket: &str) -> S3Result<Vec<(LiveAccess, Mount)>> {
        let mut all: Vec<(LiveAccess, Mount)> = Vec::new();
        let mut why = self.session.refused.clone();
        for token in &self.session.tokens {
            for mount in token.view.mounts_of(bucket) {
                let Some(action) = Need::Read.action(mount.object.resource().kind()) else { continue };
                match LiveAccess::new(&token.access, self.sessions.clone(), mount.object.clone(), action) {
                    Ok(access) => all.push((access, mount.clone())),
                    Err(refusal) if refusal.reason == Reason::TokenScope => {}
                    Err(refusal) => why = why.or(Some(refusal)),
                }
            }
        }
        if all.is_empty() {
            return Err(refused(&why.unwrap_or_else(|| closed(bucket, "", Need::Read))));
        }
        all.sort_by(|a, b| a.1.prefix.cmp(&b.1.prefix));
        let mut outer: Option<String> = None;
        all.retain(|(_, mount)| {
            let is_inside = outer.as_deref().is_some_and(|outer| mount.prefix.starts_with(outer));
            if !is_inside {
                outer = Some(mount.prefix.clone());
            }
            !is_inside
        });
        Ok(all)
    }

    /// Returns the buckets in which the tokens of the caller open prefixes, in order.
    pub(super) fn buckets(&self) -> Vec<String> {
        let names = self.session.tokens.iter().flat_map(|token| token.view.buckets());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Checks that the caller sees a bucket.
    pub(super) fn sees_bucket(&self, bucket: &str) -> S3Result<()> {
        if self.session.tokens.iter().any(|token| token.view.mounts_of(bucket).next().is_some()) {
            return Ok(());
        }
        let why = self.session.refused.clone();
        Err(refused(&why.unwrap_or_else(|| closed(bucket, "", Need::Read))))
    }
}

impl fmt::Debug for GatewayCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatewayCaller({})", self.holder)
    }
}

/// Returns the refusal for a key that the tokens do not open.
fn closed(bucket: &str, key: &str, need: Need) -> Refusal {
    let to = match need {
        Need::Read => "read",
        Need::Write => "write",
        Need::Delete => "delete",
    };
    let name = plain::value(&if key.is_empty() { bucket.to_owned() } else { format!("{bucket}/{key}") });
    Refusal::new(Reason::TokenScope, format!("the lease does not allow you to {to} `s3://{name}`"))
        .fix("name the resource in the job file; `leasehold job show JOB` says what the job opens")
}

/// Checks that an access has not ended.
pub(super) fn live(access: &LiveAccess) -> S3Result<()> {
    access.check().map_err(|refusal| refused(&refusal))
}

/// Refuses a field that the gateway does not read.
pub(super) fn without(is_present: bool, what: &str) -> Result<(), S3Error> {
    if is_present { Err(super::refusal::not_implemented(what)) } else { Ok(()) }
}
