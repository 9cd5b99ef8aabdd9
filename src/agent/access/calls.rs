//! Asking the daemon: a deadline on each call, and a [`Refusal`] where there is no answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    agent::{messages::MessageSink, retry::Backoff},
    clock::Clock,
    limits::CALL,
    link::{Connector, explain},
    proto::{
        Told, unspoken,
        v1::{job_service_client::JobServiceClient, member_service_client::MemberServiceClient},
    },
    reason::{Reason, Refusal},
};

/// One connection to the daemon. A clone is the same connection.
#[derive(Clone)]
pub(crate) struct Calls {
    connector: Connector,
    channel: Channel,
    clock: Arc<dyn Clock>,
    /// Who gets one message that a request is tried again.
    voice: Option<Arc<OnceVoice>>,
}

struct OnceVoice(MessageSink, AtomicBool);

impl Calls {
    /// Connects at the first call.
    pub(crate) fn new(connector: Connector, clock: Arc<dyn Clock>) -> Self {
        Calls { channel: connector.channel(), connector, clock, voice: None }
    }

    /// Says when it has to ask again, the first time.
    pub(crate) fn saying(self, voice: MessageSink) -> Self {
        Calls { voice: Some(Arc::new(OnceVoice(voice, AtomicBool::new(false)))), ..self }
    }

    /// On the same connection, without a word.
    pub(crate) fn quiet(&self) -> Self {
        Calls { voice: None, ..self.clone() }
    }

    /// Another connection, with the SVID that there is by now.
    pub(crate) fn anew(&self) -> Self {
        Calls::new(self.connector.clone(), self.clock.clone())
    }

    pub(crate) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    pub(crate) fn members(&self) -> MemberServiceClient<Channel> {
        MemberServiceClient::new(self.channel.clone())
    }

    /// Waits for one answer, within [`CALL`].
    pub(crate) async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        self.within(CALL, call).await
    }

    pub(crate) async fn within<T>(
        &self,
        span: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        let answer = tokio::select! {
            answer = call => answer,
            () = self.clock.sleep(span) => Err(Status::deadline_exceeded("no answer")),
        };
        answer.map(Response::into_inner).map_err(|status| self.refusal(&status))
    }

    /// Asks again, with jittered and capped waits, for as long as the daemon cannot answer and `patience` lasts.
    pub(crate) async fn persist<T>(
        &self,
        patience: Duration,
        mut ask: impl AsyncFnMut(Duration) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let deadline = self.clock.now().lease.plus(patience);
        let mut waits = Backoff::default();
        loop {
            let left = deadline.since(self.clock.now().lease);
            let refusal = match ask(left.min(CALL)).await {
                Err(refusal) if refusal.reason.is_passing() => refusal,
                answer => return answer,
            };
            let wait = waits.next().unwrap_or(CALL);
            if deadline.since(self.clock.now().lease) <= wait {
                return Err(refusal);
            }
            if let Some(once) = &self.voice
                && !once.1.swap(true, Ordering::Relaxed)
            {
                once.0.say(&format!("{refusal}: trying again for up to {} s", patience.as_secs()));
            }
            self.clock.sleep(wait).await;
        }
    }

    pub(crate) fn refusal(&self, status: &Status) -> Refusal {
        refusal_of(status, self.connector.endpoint().address())
    }
}

/// A request that tells the daemon how long it is waited for.
pub(crate) fn timed<M>(span: Duration, message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(span);
    request
}

/// Reads what the daemon, or the way to it, answered instead of an answer.
fn refusal_of(status: &Status, address: &str) -> Refusal {
    // Without a connection nothing was asked.
    if let Some(error) = explain(status) {
        return error.refusal();
    }
    if let Some(told) = Told::of(status) {
        let reason = told.reason.unwrap_or_else(|| Reason::of_code(status.code()));
        return told.into_refusal(reason);
    }
    let unknown = || {
        let text = format!("the daemon answered {}", status.code());
        Refusal::new(Reason::of_code(status.code()), text).with("said", status.message())
    };
    unspoken(status, address).unwrap_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_refusal_keeps_its_reason_and_its_lines_and_a_lost_connection_is_one_too() {
        let facts = HashMap::from([("fix".to_owned(), "ask its owner".to_owned())]);
        let details = ErrorDetails::with_error_info("POLICY_DENIED", "leasehold", facts);
        let denied = Status::with_error_details(Code::PermissionDenied, "this job may not", details);
        let refusal = refusal_of(&denied, "localhost:1");
        assert_eq!((refusal.reason, refusal.fact("fix")), (Reason::PolicyDenied, Some("ask its owner")));
        for lost in [Status::unavailable("x"), Status::cancelled("x"), Status::unknown("h2 error")] {
            assert_eq!(refusal_of(&lost, "localhost:1").reason, Reason::Unreachable);
        }
        let newer = ErrorDetails::with_error_info("NEW", "leasehold", HashMap::<String, String>::new());
        let newer = Status::with_error_details(Code::PermissionDenied, "x", newer);
        assert_eq!(refusal_of(&newer, "localhost:1").reason, Reason::PolicyDenied);
    }

    #[test]
    fn what_was_decided_is_not_asked_again() {
        for reason in [Reason::PolicyDenied, Reason::Locked, Reason::JobClosed, Reason::SvidUntrusted] {
            assert!(!reason.is_passing(), "{reason}");
        }
        assert!(Reason::Unreachable.is_passing() && Reason::LedgerUnavailable.is_passing());
    }
}
