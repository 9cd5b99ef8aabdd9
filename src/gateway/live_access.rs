//! The access for one action on one object. It goes on with newer tokens of the same lease.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::{
    name::{Action, Object},
    reason::{Reason, Refusal},
    verify::Access,
};

use super::{attempt_order::AttemptChange, session::TokenSessions, usage::Usages};

/// An allowed action on an object. A transfer may last longer than its token. If the holder has presented a newer token of the
/// same lease, the transfer goes on with the newer token.
#[derive(Clone)]
pub(super) struct LiveAccess {
    access: Access,
    sessions: TokenSessions,
    object: Object,
    action: Action,
    /// A number for the used key, to count different keys. 0 if no key is used.
    key: u64,
}

impl LiveAccess {
    /// Checks that the token allows the action now.
    pub(super) fn new(
        access: &Access,
        sessions: TokenSessions,
        object: Object,
        action: Action,
    ) -> Result<Self, Refusal> {
        access.allows(&object, action)?;
        access.check()?;
        Ok(LiveAccess { access: access.clone(), sessions, object, action, key: 0 })
    }

    /// Returns the access of the first token.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Returns the counters of the transfers.
    pub(super) fn usages(&self) -> &Usages {
        self.sessions.usages()
    }

    /// Sets the key that is used.
    pub(super) fn of_key(self, key: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        LiveAccess { key: hasher.finish(), ..self }
    }

    /// Returns a number that differs for different keys.
    pub(super) fn key(&self) -> u64 {
        self.key
    }

    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// Begins a change. Until the returned value is dropped, a later attempt of the job waits for the change.
    pub(super) fn begin_change(&self) -> AttemptChange {
        self.sessions.begin_change(&self.access)
    }

    /// Checks that the action may go on now.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self.access.check() {
            Err(refusal) if refusal.reason == Reason::TokenExpired => {
                self.successor(&self.access, refusal)?.check()
            }
            checked => checked,
        }
    }

    /// Resolves when the action must end.
    pub(super) fn ended(&self) -> impl Future<Output = Refusal> + Send + 'static {
        let live = self.clone();
        async move {
            let mut access = live.access.clone();
            loop {
                let refusal = access.ended().await;
                if refusal.reason != Reason::TokenExpired {
                    return refusal;
                }
                match live.successor(&access, refusal) {
                    Ok(newer) => access = newer,
                    Err(refusal) => return refusal,
                }
            }
        }
    }

    /// Returns the newer token, if it allows this action too.
    fn successor(&self, access: &Access, refusal: Refusal) -> Result<Access, Refusal> {
        let newer = self.sessions.successor(access).ok_or(refusal)?;
        newer.allows(&self.object, self.action)?;
        Ok(newer)
    }
}
