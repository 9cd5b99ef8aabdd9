//! From a refusal to a gRPC status.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::reason::{ERROR_DOMAIN, Reason, Refusal};

/// The gRPC code of a reason.
pub fn code(reason: Reason) -> Code {
    use Reason as R;
    match reason {
        R::NoClientCertificate
        | R::SvidInvalid
        | R::SvidExpired
        | R::TrustDomainUnknown
        | R::SvidUntrusted => Code::Unauthenticated,
        R::PrincipalUnknown
        | R::KindNotAllowed
        | R::PolicyDenied
        | R::PolicyError
        | R::Locked
        | R::NotAMember
        | R::SessionMismatch
        | R::TicketRequired
        | R::IdentityBound
        | R::TokenMalformed
        | R::TokenKeyUnknown
        | R::TokenSignature
        | R::TokenIssuer
        | R::TokenAudience
        | R::TokenExpired
        | R::TokenNotYetValid
        | R::TokenPresenter
        | R::TokenCertificate
        | R::TokenEpoch
        | R::TokenScope => Code::PermissionDenied,
        R::FieldInvalid | R::FieldMissing | R::TtlInvalid | R::MessageTooLarge | R::CatalogInvalid => {
            Code::InvalidArgument
        }
        R::NotSupported => Code::Unimplemented,
        R::JobNotFound
        | R::AttemptNotFound
        | R::LeaseNotFound
        | R::ResourceNotFound
        | R::LockNotFound
        | R::NameUnknown
        | R::AudienceUnknown => Code::NotFound,
        R::PinMismatch
        | R::OperatorsLockedOut
        | R::ApprovalRequired
        | R::JobClosed
        | R::AttemptStale
        | R::AttemptEnded
        | R::AttemptKeyUsed
        | R::AttemptDraining
        | R::AttemptsExhausted
        | R::StateConflict
        | R::NotJoined
        | R::LeaseExpired
        | R::LeaseEnded
        | R::Revoked
        | R::EpochChanged => Code::FailedPrecondition,
        R::IdempotencyConflict | R::InstanceTaken => Code::AlreadyExists,
        R::MembersFull | R::QuotaExceeded | R::Overloaded => Code::ResourceExhausted,
        R::Contended => Code::Aborted,
        R::FellBehind => Code::DataLoss,
        R::IdentityUnavailable
        | R::FeedStale
        | R::ClockDifference
        | R::LedgerUnavailable
        | R::ShuttingDown
        | R::Unreachable => Code::Unavailable,
        R::Internal => Code::Internal,
    }
}

/// The status of a refusal: its line as the message, its reason and facts as `ErrorInfo`.
pub fn status(refusal: &Refusal) -> Status {
    let mut facts: HashMap<String, String> = HashMap::new();
    for (label, value) in &refusal.facts {
        facts
            .entry(label.to_string())
            .and_modify(|v| {
                v.push('\n');
                v.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    let retry_after = facts.get("retry_after").and_then(|t| t.strip_suffix('s')?.parse().ok());
    let mut details = ErrorDetails::with_error_info(refusal.reason.code(), ERROR_DOMAIN, facts);
    if let Some(seconds) = retry_after {
        details.set_retry_info(Some(std::time::Duration::from_secs(seconds)));
    }
    Status::with_error_details(code(refusal.reason), refusal.text.to_string(), details)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_code_that_is_not_ok() {
        for r in Reason::ALL {
            assert_ne!(code(*r), Code::Ok, "{r}");
            let s = status(&Refusal::new(*r, "text").with("rule", "a").with("rule", "b").fix("c"));
            let info = s.get_error_details().error_info().cloned().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (r.code(), "leasehold"));
            assert_eq!(info.metadata["rule"], "a\nb");
        }
    }

    #[test]
    fn when_to_try_again_is_told_as_clients_of_google_rpc_read_it() {
        let refusal = Refusal::new(Reason::Overloaded, "too often").with("retry_after", "7s");
        let retry = status(&refusal).get_error_details().retry_info().cloned().unwrap();
        assert_eq!(retry.retry_delay, Some(std::time::Duration::from_secs(7)));
    }
}
