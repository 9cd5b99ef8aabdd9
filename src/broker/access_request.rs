//! The steps of a request for access, in their order: read, decide, check again.

use std::sync::Arc;

use super::{access::AccessControl, caller::Caller, rules::Rules};
use crate::{
    fence::{Revision, Stand},
    identity::Peer,
    name::FenceName,
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// A request for access: its caller, and the rules that decide it. Each step needs the value that the previous step made:
///
/// 1. [`AccessControl::access_request`] reads the revision, then the rules, then the caller.
/// 2. [`AccessRequest::stand`] notes the state of the fences of the names that the answer depends on (the stand).
/// 3. The use case reads the state, decides, and waits until its record is on disk.
/// 4. [`StandingRequest::look_again`] finds what was revoked or changed since step 1.
///
/// Issuing and renewing do step 4 in another way. They move the stand into a `Grant`. Then the lease table checks the
/// fences again, and [`AccessRequest::has_new_rules`] checks the revision.
pub(super) struct AccessRequest<'a> {
    access: &'a AccessControl,
    rpc: Rpc,
    revision: Revision,
    pub rules: Arc<Rules>,
    pub caller: Caller,
}

/// A request for access that has taken its stand. From now on, the request can safely read the state and decide by it.
pub(super) struct StandingRequest<'a> {
    pub request: AccessRequest<'a>,
    pub stand: Stand,
}

/// Access was revoked or rules changed during the request, so the access that it recorded must end.
pub(super) struct Overtaken {
    pub refusal: Refusal,
    /// The reason, as the record of the end states it.
    pub detail: String,
}

impl AccessControl {
    /// Reads the revision, the rules and the caller, in this order.
    pub(super) fn access_request(&self, peer: &Peer, rpc: Rpc) -> Result<AccessRequest<'_>, Refusal> {
        let revision = self.context.fences.revision();
        let rules = self.context.rules();
        let caller = self.caller(peer)?;
        Ok(AccessRequest { access: self, rpc, revision, rules, caller })
    }
}

impl<'a> AccessRequest<'a> {
    /// Takes the stand. The state must be read after this call.
    pub fn stand<'n>(self, names: impl IntoIterator<Item = &'n FenceName>) -> StandingRequest<'a> {
        let stand = self.access.context.fences.stand(names.into_iter().cloned());
        StandingRequest { request: self, stand }
    }

    /// Takes the stand behind the names of a lease. The state must be read after this call.
    pub fn stand_again(self, lease: &Stand) -> StandingRequest<'a> {
        let stand = self.access.context.fences.stand_again(lease);
        StandingRequest { request: self, stand }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether the revision was raised since the request began. It is raised if the rules change, if a lock on a prefix
    /// or launcher is set, or if an approval or exception no longer counts.
    pub fn has_new_rules(&self) -> bool {
        self.access.context.fences.revision() != self.revision
    }
}

impl StandingRequest<'_> {
    /// Checks the fences and then the revision again, when the record is on disk.
    ///
    /// A lowering of the fence `own` does not count. If the rules changed, `decide_again` gets the current rules and
    /// caller.
    pub fn look_again(
        &self,
        during: &str,
        own: Option<&FenceName>,
        decide_again: impl FnOnce(Option<(&Rules, &Caller)>) -> Result<(), Refusal>,
    ) -> Result<(), Overtaken> {
        let lowered = match own {
            None => self.stand.lowered().map(|(name, _)| name),
            Some(own) => self.stand.lowered_names().find(|name| *name != own),
        };
        if let Some(name) = lowered {
            let detail = format!("{name} was revoked while {during}");
            return Err(Overtaken { refusal: Refusal::new(Reason::Revoked, detail.clone()), detail });
        }
        let decided = match self.request.has_new_rules() {
            false => decide_again(None),
            true => {
                let AccessRequest { access, rpc, caller, .. } = &self.request;
                let rules = access.context.rules();
                access.admit(&caller.peer, *rpc).and_then(|caller| decide_again(Some((&rules, &caller))))
            }
        };
        decided.map_err(|refusal| Overtaken {
            refusal,
            detail: format!("rules or locks changed while {during}"),
        })
    }
}
