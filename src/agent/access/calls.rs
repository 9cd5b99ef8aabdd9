//! Calls to the daemon. Each call has a deadline, and ends with a [`Refusal`] if no answer comes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    agent::messages::MessageSink,
    backoff::Backoff,
    clock::Clock,
    limits::CALL,
    link::{Connector, explain},
    proto::{
        DaemonRefusal, transport_refusal,
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
    /// Sends one message, at the first retry.
    retry_notice: Option<Arc<RetryNotice>>,
}

struct RetryNotice {
    messages: MessageSink,
    is_sent: AtomicBool,
}

impl Calls {
    /// Creates the client. The connection is opened at the first call.
    pub(crate) fn new(connector: Connector, clock: Arc<dyn Clock>) -> Self {
        Calls { channel: connector.channel(), connector, clock, retry_notice: None }
    }

    /// Adds the sink for the message at the first retry.
    pub(crate) fn with_retry_notice(self, messages: MessageSink) -> Self {
        let notice = RetryNotice { messages, is_sent: AtomicBool::new(false) };
        Calls { retry_notice: Some(Arc::new(notice)), ..self }
    }

    /// Uses the present connection, and sends no messages.
    pub(crate) fn quiet(&self) -> Self {
        Calls { retry_notice: None, ..self.clone() }
    }

    /// Opens another connection, with the present SVID.
    pub(crate) fn new_connection(&self) -> Self {
        Calls::new(self.connector.clone(), self.clock.clone())
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(crate) fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone())
    }

    pub(crate) fn members(&self) -> MemberServiceClient<Channel> {
        MemberServiceClient::new(self.channel.clone())
    }

    /// Waits for an answer for at most [`CALL`].
    pub(crate) async fn await_answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Refusal> {
        self.within(CALL, call).await
    }

    /// Waits for an answer for at most `span`.
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

    /// Repeats a request with backoff while the daemon cannot answer, for at most `patience`.
    pub(crate) async fn retry<T>(
        &self,
        patience: Duration,
        mut ask: impl AsyncFnMut(Duration) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let deadline = self.clock.now().lease.plus(patience);
        let mut backoff = Backoff::default();
        loop {
            let left = deadline.since(self.clock.now().lease);
            let refusal = match ask(left.min(CALL)).await {
                Err(refusal) if refusal.reason.is_passing() => refusal,
                answer => return answer,
            };
            let wait = backoff.next_wait();
            if deadline.since(self.clock.now().lease) <= wait {
                return Err(refusal);
            }
            if let Some(notice) = &self.retry_notice
                && !notice.is_sent.swap(true, Ordering::Relaxed)
            {
                notice.messages.send(&format!("{refusal}: trying again for up to {} s", patience.as_secs()));
            }
            self.clock.sleep(wait).await;
        }
    }

    pub(crate) fn refusal(&self, status: &Status) -> Refusal {
        read_refusal(status, self.connector.endpoint().address())
    }
}

/// Makes a request that carries its timeout.
pub(crate) fn timed<M>(span: Duration, message: M) -> Request<M> {
    let mut request = Request::new(message);
    request.set_timeout(span);
    request
}

/// Reads the error of the daemon, or of the connection to the daemon.
fn read_refusal(status: &Status, address: &str) -> Refusal {
    // If there is no connection, the daemon got no request.
    if let Some(error) = explain(status) {
        return error.refusal();
    }
    if let Some(daemon_refusal) = DaemonRefusal::of(status) {
        let reason = daemon_refusal.reason.unwrap_or_else(|| Reason::of_code(status.code()));
        return daemon_refusal.into_refusal(reason);
    }
    let unknown = || {
        let text = format!("the daemon answered {}", status.code());
        Refusal::new(Reason::of_code(status.code()), text).with("said", status.message())
    };
    transport_refusal(status, address).unwrap_or_else(unknown)
}

/// Makes the refusal of an answer that lacks a part or has an unknown part.
pub(crate) fn not_understood() -> Refusal {
    Refusal::new(Reason::NotSupported, "the daemon's answer is not understood")
        .fix("update leasehold, or use the one that came with the daemon")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_refusal_keeps_its_reason_and_facts() {
        let facts = HashMap::from([("fix".to_owned(), "ask its owner".to_owned())]);
        let details = ErrorDetails::with_error_info("POLICY_DENIED", "leasehold", facts);
        let denied = Status::with_error_details(Code::PermissionDenied, "this job may not", details);
        let refusal = read_refusal(&denied, "localhost:1");
        assert_eq!((refusal.reason, refusal.fact("fix")), (Reason::PolicyDenied, Some("ask its owner")));
        for lost in [Status::unavailable("x"), Status::cancelled("x"), Status::unknown("h2 error")] {
            assert_eq!(read_refusal(&lost, "localhost:1").reason, Reason::Unreachable);
        }
        let newer = ErrorDetails::with_error_info("NEW", "leasehold", HashMap::<String, String>::new());
        let newer = Status::with_error_details(Code::PermissionDenied, "x", newer);
        assert_eq!(read_refusal(&newer, "localhost:1").reason, Reason::PolicyDenied);
    }

    #[test]
    fn a_decision_is_not_retried() {
        for reason in [Reason::PolicyDenied, Reason::Locked, Reason::JobClosed, Reason::SvidUntrusted] {
            assert!(!reason.is_passing(), "{reason}");
        }
        assert!(Reason::Unreachable.is_passing() && Reason::LedgerUnavailable.is_passing());
    }
}
