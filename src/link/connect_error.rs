//! The reasons why a connection to a server cannot be opened.

use std::{error::Error, io, sync::Arc};

use rustls::AlertDescription;

use crate::{
    clock::Wall,
    identity::SvidError,
    name::SpiffeId,
    reason::{Reason, Refusal},
};

/// Why there is no connection. Each variant has a [`Reason`] and a text that says what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The connection was refused or lost, or there is no such host.
    #[error("cannot reach `{address}`")]
    Unreachable {
        /// The `HOST:PORT` that was dialed.
        address: String,
        /// The error of the system.
        #[source]
        cause: Arc<io::Error>,
    },
    /// The server did not finish the handshake within [`HANDSHAKE`](crate::limits::HANDSHAKE).
    #[error("`{address}` did not answer in time")]
    TimedOut {
        /// The `HOST:PORT` that was dialed.
        address: String,
    },
    /// The server refused our SVID. We see only the alert. The log of the server shows the broken rule.
    #[error("`{address}` refused our SVID (TLS alert {alert})")]
    Refused {
        /// The `HOST:PORT` that was dialed.
        address: String,
        /// The name that rustls has for the TLS alert.
        alert: String,
    },
    /// We refused the server's SVID.
    #[error("the SVID of the server at `{address}` is refused: {why}")]
    ServerNotTrusted {
        /// The `HOST:PORT` that was dialed.
        address: String,
        /// The rule that the server's certificate chain breaks.
        why: SvidError,
    },
    /// The configuration of the process has no SVID.
    #[error("no SVID to connect with")]
    OwnSvidAbsent,
    /// The source of our identity has not issued an SVID yet, or has revoked it.
    #[error("no SVID to connect with: {why}")]
    OwnIdentity {
        /// The source's reason, for people.
        why: String,
    },
    /// Our SVID is not valid now, so no connection is tried.
    #[error("our own SVID, `{spiffe_id}`, is valid only from {not_before} to {not_after}")]
    OwnSvidExpired {
        /// The SPIFFE ID of our SVID.
        spiffe_id: SpiffeId,
        /// The NotBefore of our SVID.
        not_before: Wall,
        /// The NotAfter of our SVID.
        not_after: Wall,
    },
    /// The server answered, but not in TLS 1.3 with the wanted protocol.
    #[error("`{address}` does not speak the protocol of leasehold: {found}")]
    Protocol {
        /// The `HOST:PORT` that was dialed.
        address: String,
        /// The answer of the server, for people.
        found: String,
    },
}

impl ConnectError {
    /// Returns the code of the failure, as commands report it.
    pub fn reason(&self) -> Reason {
        match self {
            ConnectError::Unreachable { .. }
            | ConnectError::TimedOut { .. }
            | ConnectError::Protocol { .. } => Reason::Unreachable,
            ConnectError::Refused { alert, .. } if alert == CERTIFICATE_REQUIRED => {
                Reason::NoClientCertificate
            }
            ConnectError::Refused { .. } => Reason::SvidUntrusted,
            ConnectError::ServerNotTrusted { why, .. } => why.reason(),
            ConnectError::OwnSvidAbsent => Reason::NoClientCertificate,
            ConnectError::OwnIdentity { .. } => Reason::IdentityUnavailable,
            ConnectError::OwnSvidExpired { .. } => Reason::SvidExpired,
        }
    }

    /// Returns what the reader can do about the failure.
    pub fn fix(&self) -> String {
        match self {
            ConnectError::Unreachable { .. } | ConnectError::TimedOut { .. } => {
                "check that the server runs, the address, and the network between".to_owned()
            }
            ConnectError::Refused { .. } => {
                "check that the server has the bundle of our trust domain and that our SVID is an X.509-SVID; \
                 the server's log shows the broken rule"
                    .to_owned()
            }
            ConnectError::ServerNotTrusted { why: SvidError::OtherServer { found, .. }, .. } => {
                format!("if `{found}` is the right server, configure that SPIFFE ID; otherwise correct the address")
            }
            ConnectError::ServerNotTrusted { why, .. } => match why.reason() {
                Reason::SvidExpired => "renew the server's SVID, and compare the clocks".to_owned(),
                Reason::SvidInvalid => "issue the server an SVID that keeps the rule".to_owned(),
                _ => "check that our bundle of the server's trust domain is up to date".to_owned(),
            },
            ConnectError::OwnSvidAbsent => "name the files of an X.509-SVID and its key".to_owned(),
            ConnectError::OwnIdentity { .. } => {
                "check that the SPIFFE agent runs and has a registration entry for this process".to_owned()
            }
            ConnectError::OwnSvidExpired { .. } => {
                "renew it: check the clock, and that the SPIFFE agent runs and writes to the configured files"
                    .to_owned()
            }
            ConnectError::Protocol { .. } => {
                "check that the address is that of a TLS 1.3 listener of leasehold".to_owned()
            }
        }
    }

    /// Returns the error of the system for an unreachable address: connection refused, unknown host, no route.
    pub fn cause(&self) -> Option<String> {
        match self {
            ConnectError::Unreachable { cause, .. } => Some(cause.to_string()),
            _ => None,
        }
    }

    /// Converts the error into a [`Refusal`].
    pub fn refusal(&self) -> Refusal {
        let refusal = Refusal::new(self.reason(), self.to_string()).fix(self.fix());
        match self.cause() {
            Some(cause) => refusal.with("cause", cause),
            None => refusal,
        }
    }

    /// Reads the failure of a handshake, or of the first read after it.
    pub(super) fn of(address: &str, error: io::Error) -> Self {
        let address = address.to_owned();
        if let Some(why) = SvidError::in_io(&error) {
            return ConnectError::ServerNotTrusted { address, why };
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => Self::of_alert(address, *alert),
            Some(other) => ConnectError::Protocol { address, found: other.to_string() },
            None => ConnectError::Unreachable { address, cause: Arc::new(error) },
        }
    }

    fn of_alert(address: String, alert: AlertDescription) -> Self {
        use AlertDescription as A;
        let text = format!("{alert:?}");
        match alert {
            A::CertificateUnknown
            | A::CertificateRequired
            | A::CertificateExpired
            | A::CertificateRevoked
            | A::UnsupportedCertificate
            | A::BadCertificate
            | A::NoCertificate
            | A::UnknownCA
            | A::DecryptError
            | A::AccessDenied => ConnectError::Refused { address, alert: text },
            _ => ConnectError::Protocol { address, found: format!("TLS alert {text}") },
        }
    }
}

/// The text that rustls has for the alert about an absent client certificate (RFC 8446 section 6.2).
const CERTIFICATE_REQUIRED: &str = "CertificateRequired";

/// Finds the [`ConnectError`] in the error of a client library, such as a `tonic::Status`, a `hyper::Error` or an `io::Error`,
/// at any depth. `None` if there was a connection and something else failed.
pub fn explain(error: &(dyn Error + 'static)) -> Option<ConnectError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<ConnectError>() {
            return Some(found.clone());
        }
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(found) = explain_io(io)
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Looks inside an `io::Error`, because its inner error is not among its sources.
fn explain_io(error: &io::Error) -> Option<ConnectError> {
    let inner = error.get_ref()?;
    if let Some(found) = inner.downcast_ref::<ConnectError>() {
        return Some(found.clone());
    }
    let address = "the server".to_owned();
    match inner.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(ConnectError::of_alert(address, *alert)),
        other => SvidError::in_tls(other).map(|why| ConnectError::ServerNotTrusted { address, why }),
    }
}
