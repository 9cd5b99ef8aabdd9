//! Failed handshakes.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use crate::{
    clock::Clock, identity::SvidError, limits, log_budget::LogBudget, name::SpiffeId, reason::Reason,
};

/// A connection that was refused before a request was read.
#[derive(Clone, Debug)]
pub struct HandshakeFailure {
    /// The address from which the connection came.
    pub remote: SocketAddr,
    /// The cause of the failure.
    pub cause: FailureCause,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureCause {
    /// The client broke a rule for SVIDs.
    #[error("{0}")]
    Svid(SvidError),
    /// The client refused our certificate. Usually our root is not in the client's trust bundle.
    #[error("the peer sent the alert {0}")]
    Alert(String),
    /// The bytes are not TLS 1.3, or not TLS.
    #[error("{0}")]
    Protocol(String),
    /// The handshake was not finished within [`limits::HANDSHAKE`].
    #[error("the handshake took longer than {} s", limits::HANDSHAKE.as_secs())]
    TimedOut,
    /// The connection was lost. Port scans and the health checks of load balancers look like this.
    #[error("the peer closed the connection")]
    Closed,
    /// The handshake stalled or was slow while other connections waited for its slot.
    #[error("the handshake was ended because other connections waited for its slot")]
    GaveWay,
    /// The listener has reached its limit of connections for peers of this class.
    #[error("the limit of open connections is reached")]
    Overloaded,
    /// The address has reached its limit of connections in a handshake.
    #[error(
        "{} connections of this address are in a handshake or wait for one, which is the limit for one address",
        limits::HANDSHAKES_WAITING_PER_ADDRESS_MAX
    )]
    AddressFull,
    /// The handshake succeeded, but the peer sent no request.
    #[error("the handshake succeeded, but the peer sent no request within {} s", limits::HANDSHAKE.as_secs())]
    Silent,
    /// The handshake succeeded, but the requests on the connection are refused.
    #[error("`{id}` has {max} connections open, which is the limit for one identity now")]
    PeerFull {
        /// The SPIFFE ID of the peer.
        id: SpiffeId,
        /// How many connections the peer may have open now.
        max: usize,
    },
}

impl HandshakeFailure {
    /// Returns the failure's code for metrics and the log. `None` unless an SVID broke a rule, or the listener, the address or the
    /// peer has reached its limit of connections.
    pub fn reason(&self) -> Option<Reason> {
        match &self.cause {
            FailureCause::Svid(why) => Some(why.reason()),
            FailureCause::Overloaded | FailureCause::AddressFull | FailureCause::PeerFull { .. } => {
                Some(Reason::Overloaded)
            }
            FailureCause::Alert(_)
            | FailureCause::Protocol(_)
            | FailureCause::TimedOut
            | FailureCause::Silent
            | FailureCause::GaveWay
            | FailureCause::Closed => None,
        }
    }
}

impl FailureCause {
    pub(super) fn of(error: &io::Error) -> Self {
        if let Some(why) = SvidError::in_io(error) {
            return FailureCause::Svid(why);
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => FailureCause::Alert(format!("{alert:?}")),
            Some(other) => FailureCause::Protocol(other.to_string()),
            None => FailureCause::Closed,
        }
    }
}

/// A function that is called for every failed handshake, logged or not, to count the failures. It must not block.
#[derive(Clone)]
pub struct HandshakeObserver(Arc<dyn Fn(&HandshakeFailure) + Send + Sync>);

impl HandshakeObserver {
    /// Makes an observer. The function is called for each failure, on the task of the connection.
    pub fn new(observe: impl Fn(&HandshakeFailure) + Send + Sync + 'static) -> Self {
        HandshakeObserver(Arc::new(observe))
    }
}

impl Default for HandshakeObserver {
    fn default() -> Self {
        HandshakeObserver::new(|_| {})
    }
}

impl fmt::Debug for HandshakeObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandshakeObserver")
    }
}

/// Logs at most [`limits::HANDSHAKE_FAILURES_LOGGED`] failures a minute, so that unknown clients cannot fill the disk.
pub(super) struct FailureLog {
    budget: LogBudget,
    observer: HandshakeObserver,
}

impl FailureLog {
    pub(super) fn new(clock: Arc<dyn Clock>, observer: HandshakeObserver) -> Self {
        FailureLog { budget: LogBudget::new(limits::HANDSHAKE_FAILURES_LOGGED, clock), observer }
    }

    pub(super) fn note(&self, failure: &HandshakeFailure) {
        (self.observer.0)(failure);
        let Some(left_out) = self.budget.admit() else { return };
        if left_out > 0 {
            tracing::warn!(left_out, "some failed handshakes were not logged (their number is in left_out)");
        }
        let HandshakeFailure { remote, cause } = failure;
        match failure.reason() {
            Some(reason) => tracing::warn!(%reason, %remote, %cause, "handshake refused"),
            None => tracing::warn!(%remote, %cause, "handshake failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Wall, manual::ManualClock};

    #[test]
    fn all_failures_are_counted_and_a_bounded_number_is_logged() {
        let clock = Arc::new(ManualClock::new(Wall(1_000_000)));
        let seen = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let counted = seen.clone();
        let observer = HandshakeObserver::new(move |_| {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let log = FailureLog::new(clock.clone(), observer);
        let failure = HandshakeFailure { remote: ([127, 0, 0, 1], 1).into(), cause: FailureCause::Closed };
        for _ in 0..1_000 {
            log.note(&failure);
        }
        assert_eq!(seen.load(std::sync::atomic::Ordering::Relaxed), 1_000);
        assert_eq!(log.budget.admit(), None);
    }
}
