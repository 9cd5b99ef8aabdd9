//! Refusals as a client receives them: from the daemon, or from the transport.

use std::collections::BTreeMap;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::reason::{ERROR_DOMAIN, Reason, Refusal};

/// A refusal that the daemon sent: the `ErrorInfo` of a status.
#[derive(Clone, Debug)]
pub struct DaemonRefusal {
    /// The reason. `None` if this build does not know the code, because the daemon is newer.
    pub reason: Option<Reason>,
    /// The code of the reason as it was received.
    pub code: String,
    text: String,
    facts: BTreeMap<String, String>,
}

impl DaemonRefusal {
    /// Reads a status. Returns `None` if it is from a proxy or from tonic, not from the daemon.
    pub fn of(status: &Status) -> Option<Self> {
        let info = status.get_error_details().error_info().filter(|i| i.domain == ERROR_DOMAIN).cloned()?;
        Some(DaemonRefusal {
            reason: Reason::parse(&info.reason),
            code: info.reason,
            text: status.message().to_owned(),
            facts: info.metadata.into_iter().collect(),
        })
    }

    /// Converts it to a [`Refusal`], with a reason that this build knows.
    pub fn into_refusal(self, reason: Reason) -> Refusal {
        let refusal = Refusal::new(reason, self.text);
        self.facts.into_iter().fold(refusal, |refusal, (label, value)| refusal.with(label, value))
    }
}

/// Returns the refusal for a status that is not from the daemon: no answer, a broken connection, an unknown request.
/// `None` if the code does not show which case it is.
pub fn transport_refusal(status: &Status, address: &str) -> Option<Refusal> {
    Some(match status.code() {
        Code::DeadlineExceeded => {
            Refusal::new(Reason::Unreachable, format!("`{address}` did not answer in time"))
                .fix("check the daemon: its /readyz and its log")
        }
        // tonic reports a connection that breaks during an answer as `Unknown`.
        Code::Unavailable | Code::Cancelled | Code::Unknown => {
            Refusal::new(Reason::Unreachable, format!("the connection to `{address}` was lost"))
                .fix("try again; the daemon's log says why the connection ended")
                .with("said", status.message())
        }
        Code::Unimplemented => Refusal::new(Reason::NotSupported, "this daemon does not know that request")
            .fix("update the daemon, or use its version of `leasehold`"),
        Code::OutOfRange => Refusal::new(Reason::MessageTooLarge, "the message is larger than what is read")
            .fix("ask for less at once"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(reason: &str, domain: &str) -> Status {
        let facts = HashMap::from([("you", "spiffe://td/me"), ("fix", "ask its owner")]);
        let facts = facts.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect::<HashMap<_, _>>();
        let details = ErrorDetails::with_error_info(reason, domain, facts);
        Status::with_error_details(Code::PermissionDenied, "this job may not", details)
    }

    #[test]
    fn a_refusal_comes_back_as_it_was_put_into_the_status() {
        let daemon_refusal = DaemonRefusal::of(&status("POLICY_DENIED", ERROR_DOMAIN)).unwrap();
        let refusal = daemon_refusal.clone().into_refusal(daemon_refusal.reason.unwrap());
        assert_eq!((refusal.reason, &*refusal.text), (Reason::PolicyDenied, "this job may not"));
        let facts: Vec<_> = refusal.facts.iter().map(|(label, value)| (&**label, &**value)).collect();
        assert_eq!(facts, [("fix", "ask its owner"), ("you", "spiffe://td/me")]);
    }

    #[test]
    fn a_newer_reason_keeps_its_code_and_a_proxy_is_no_daemon() {
        let newer = DaemonRefusal::of(&status("NEW", ERROR_DOMAIN)).unwrap();
        assert_eq!((newer.reason, newer.code.as_str()), (None, "NEW"));
        assert!(DaemonRefusal::of(&status("POLICY_DENIED", "proxy.example")).is_none());
        assert!(DaemonRefusal::of(&Status::permission_denied("x")).is_none());
    }

    #[test]
    fn a_lost_connection_names_its_address_and_no_decision() {
        for lost in [Status::unavailable("x"), Status::unknown("x"), Status::deadline_exceeded("x")] {
            let refusal = transport_refusal(&lost, "localhost:1").unwrap();
            assert_eq!(refusal.reason, Reason::Unreachable);
            assert!(refusal.text.contains("localhost:1"), "{refusal}");
        }
        assert!(transport_refusal(&Status::permission_denied("x"), "localhost:1").is_none());
    }
}
