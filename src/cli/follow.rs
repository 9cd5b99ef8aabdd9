//! Following something over restarts of the daemon and rotations of our own SVID.

use super::{Failure, Session, output::note};
use crate::{agent::Backoff, limits::CALL, reason::Reason};

/// One thing that is followed: whether the daemon has answered yet, and how long to wait before it is asked again.
pub(super) struct Following {
    has_answered: bool,
    waits: Backoff,
    said: String,
}

impl Following {
    pub(super) fn new() -> Self {
        Following { has_answered: false, waits: Backoff::default(), said: String::new() }
    }

    /// The daemon answers: the next loss is waited out from the beginning.
    pub(super) fn answered(&mut self) {
        self.has_answered = true;
        self.waits = Backoff::default();
        self.said.clear();
    }

    /// Waits after a stream or a call ended, if asking again may help. A first call that fails is not repeated.
    pub(super) async fn wait(
        &mut self,
        ended: Result<(), Failure>,
        session: &Session,
    ) -> Result<(), Failure> {
        if let Err(failure) = ended {
            // Without a reason: our own files are being replaced at this moment.
            let may_pass = failure.is_passing() || matches!(failure.reason, None | Some(Reason::SvidExpired));
            if !self.has_answered || !may_pass || failure.exit == super::Exit::Ok {
                return Err(failure);
            }
            if failure.text != self.said {
                note(&format!("leasehold: {}. It is tried again until the daemon answers.", failure.text));
                self.said = failure.text.into_owned();
            }
        }
        session.clock.sleep(self.waits.next().unwrap_or(CALL)).await;
        Ok(())
    }
}
