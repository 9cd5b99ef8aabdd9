//! The reactions of a member to the daemon's answers.

use super::{live::LiveMember, requests::MemberAnswer};
use crate::{
    agent::access::{access_end::AccessEnd, credential_dir::CredentialError, credential_set::Granted},
    name::Half,
    proto::convert::nearest_wall,
    reason::{MemberStep, Reason, Refusal},
};

impl LiveMember {
    /// Acts on an answer. Returns the end of access if the answer is a final refusal.
    pub(super) fn on_answer(&mut self, answer: MemberAnswer) -> Option<AccessEnd> {
        match answer {
            MemberAnswer::Issued { at, answer } => {
                let counts = self.credentials.get_mut(at)?.schedule.mark_answered();
                self.on_credential(at, answer.and_then(Granted::from_issue), counts)
            }
            MemberAnswer::Renewed { at, lease, answer } => {
                let credential = self.credentials.get_mut(at)?;
                let counts = credential.schedule.mark_answered() && credential.lease == Some(lease);
                self.on_credential(at, answer.and_then(Granted::from_renewal), counts)
            }
            MemberAnswer::Released => None,
            MemberAnswer::Connected(Ok(connected)) => {
                self.on_connected(connected);
                None
            }
            MemberAnswer::Connected(Err(refusal)) => self.on_connect_refused(refusal),
            MemberAnswer::Drained { answer: Ok(answer), reason } => {
                let wall = |time: &Option<_>| time.as_ref().map(nearest_wall);
                self.note_drain(&reason, wall(&answer.reading_ends), wall(&answer.writing_ends));
                None
            }
            MemberAnswer::Drained { answer: Err(refusal), .. } => {
                if self.ended.is_none() {
                    self.context.messages.send(&format!(
                        "the daemon could not be informed that your program is to end ({}: {refusal}); its access goes on until it has ended",
                        refusal.reason
                    ));
                }
                None
            }
        }
    }

    /// Acts on the answer to a request for a credential. `counts` is false if another request replaced this one in the
    /// meantime.
    fn on_credential(
        &mut self,
        at: usize,
        answer: Result<Granted, Refusal>,
        counts: bool,
    ) -> Option<AccessEnd> {
        match answer {
            Ok(granted) if counts => self.on_granted(at, granted),
            Ok(late) => self.credentials.add_unused_lease(late.lease),
            Err(refusal) => return self.on_refused(at, refusal, counts),
        }
        None
    }

    fn on_granted(&mut self, at: usize, granted: Granted) {
        let now = self.context.clock.now();
        match self.credentials.put(at, granted, now, self.lead_ms) {
            // Access has ended in the meantime.
            Err(CredentialError::Wiped) => {}
            // Files that could not be written are kept in memory. `mend` tries to write them again.
            Ok(()) | Err(CredentialError::Write { .. }) => {
                self.credentials.refresh_index(&self.session);
                self.credentials.mend();
            }
            Err(error) => {
                self.context.messages.send(&format!("{error}; trying again"));
                if let Some(credential) = self.credentials.get_mut(at) {
                    credential.schedule.mark_failed(now.lease);
                }
            }
        }
    }

    fn on_refused(&mut self, at: usize, refusal: Refusal, counts: bool) -> Option<AccessEnd> {
        let now = self.context.clock.now().lease;
        let credential = self.credentials.get_mut(at)?;
        let is_renewal = credential.lease.is_some();
        match refusal.reason.member_step() {
            // Perhaps only this lease is locked. So request a new credential: if the job or the identity is locked, that is refused
            // too, and the answer says what is locked.
            MemberStep::Stop if is_renewal && refusal.reason == Reason::Locked => {
                credential.lease = None;
                credential.schedule.request_now(now);
            }
            MemberStep::Stop => return Some(AccessEnd::of_refusal(refusal)),
            // The request that replaced this one is already due.
            _ if !counts => {}
            MemberStep::StopHalf if credential.half == Half::Reading => {
                self.credentials.end_reading();
                self.credentials.refresh_index(&self.session);
            }
            MemberStep::ReplaceLease if is_renewal => {
                credential.lease = None;
                credential.schedule.request_now(now);
            }
            MemberStep::Rejoin => {
                credential.schedule.mark_failed(now);
                self.lose_connection(now);
            }
            MemberStep::ReplaceLease | MemberStep::TryLater | MemberStep::StopHalf => {
                credential.schedule.mark_failed(now);
            }
        }
        None
    }
}
