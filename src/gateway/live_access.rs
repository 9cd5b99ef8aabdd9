//! The access of one use, which goes on with newer tokens of the same lease.

use crate::{
    name::{Action, Object},
    reason::{Reason, Refusal},
    verify::Access,
};

use super::{session::TokenSessions, usage::Usages};

/// An allowed use. A transfer may last longer than its token: if the holder presented a newer token of the same lease
/// meanwhile, the use goes on with that.
#[derive(Clone)]
pub(super) struct LiveAccess {
    access: Access,
    sessions: TokenSessions,
    object: Object,
    action: Action,
}

impl LiveAccess {
    /// Checks that the token allows this now.
    pub(super) fn new(
        access: &Access,
        sessions: TokenSessions,
        object: Object,
        action: Action,
    ) -> Result<Self, Refusal> {
        access.allows(&object, action)?;
        access.check()?;
        Ok(LiveAccess { access: access.clone(), sessions, object, action })
    }

    /// The first token of the use.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Where its transfers are counted.
    pub(super) fn usages(&self) -> &Usages {
        self.sessions.usages()
    }

    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// Checks that the use may go on now.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self.access.check() {
            Err(refusal) if refusal.reason == Reason::TokenExpired => {
                self.successor(&self.access, refusal)?.check()
            }
            checked => checked,
        }
    }

    /// Resolves when the use must end.
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

    /// Returns the newer token, if it allows this use too.
    fn successor(&self, access: &Access, refusal: Refusal) -> Result<Access, Refusal> {
        let newer = self.sessions.successor(access).ok_or(refusal)?;
        newer.allows(&self.object, self.action)?;
        Ok(newer)
    }
}
