//! Refusals in the form of S3 errors.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use s3s::{S3Error, S3ErrorCode};

use super::{store::StoreError, view::UnusableKey};
use crate::{
    plain,
    reason::{Reason, Refusal},
};

/// The header with the code of a refusal. A response to HEAD has no body.
const REASON: HeaderName = HeaderName::from_static("leasehold-reason");

/// Converts a refusal to an S3 error. A client gives up at 403, and tries again at 503.
pub(super) fn refused(refusal: &Refusal) -> S3Error {
    let (code, status) = code_of(refusal.reason);
    let mut text = format!("{}: {}", refusal.reason.code(), refusal.text);
    for (label, value) in &refusal.facts {
        text.push_str(&format!("; {label}: {value}"));
    }
    let mut error = S3Error::with_message(code, plain::message(&text).into_owned());
    error.set_status_code(status);
    let mut headers = HeaderMap::new();
    headers.insert(REASON, HeaderValue::from_static(refusal.reason.code()));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    error.set_headers(with_xml(headers));
    error
}

/// Adds the content type. The headers of an error replace the headers of its XML body, so they must have the type.
fn with_xml(mut headers: HeaderMap) -> HeaderMap {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    headers
}

/// Returns the S3 code and status for each reason.
fn code_of(reason: Reason) -> (S3ErrorCode, StatusCode) {
    match reason {
        // The wrapper gets a new token, so the client's next attempt is served.
        Reason::TokenEpoch | Reason::EpochChanged => {
            (S3ErrorCode::ServiceUnavailable, StatusCode::SERVICE_UNAVAILABLE)
        }
        Reason::Overloaded | Reason::QuotaExceeded => {
            (S3ErrorCode::SlowDown, StatusCode::SERVICE_UNAVAILABLE)
        }
        Reason::Revoked | Reason::LeaseExpired | Reason::LeaseEnded | Reason::TokenExpired => {
            (S3ErrorCode::ExpiredToken, StatusCode::FORBIDDEN)
        }
        Reason::NotSupported => (S3ErrorCode::NotImplemented, StatusCode::NOT_IMPLEMENTED),
        Reason::FieldInvalid | Reason::FieldMissing => (S3ErrorCode::InvalidRequest, StatusCode::BAD_REQUEST),
        Reason::Internal => (S3ErrorCode::InternalError, StatusCode::INTERNAL_SERVER_ERROR),
        reason if reason.http_status() == StatusCode::SERVICE_UNAVAILABLE => {
            (S3ErrorCode::ServiceUnavailable, StatusCode::SERVICE_UNAVAILABLE)
        }
        _ => (S3ErrorCode::AccessDenied, StatusCode::FORBIDDEN),
    }
}

/// Makes an error with an S3 code and a text.
pub(super) fn failed(code: S3ErrorCode, text: impl Into<Cow<'static, str>>) -> S3Error {
    S3Error::with_message(code, text)
}

/// Makes an error with an S3 code that s3s does not know, and a text.
pub(super) fn custom(code: &'static str, text: impl Into<Cow<'static, str>>) -> S3Error {
    let mut error = failed(S3ErrorCode::Custom(code.into()), text);
    error.set_status_code(StatusCode::BAD_REQUEST);
    error
}

/// Makes the error for a field or an operation that is not supported.
pub(super) fn not_implemented(what: &str) -> S3Error {
    failed(
        S3ErrorCode::NotImplemented,
        format!("this gateway does not support {what}: send the request without it"),
    )
}

/// Makes the error for a key that cannot be opened.
pub(super) fn unusable(fault: &UnusableKey, is_read: bool) -> S3Error {
    match fault {
        // Such an object cannot exist in a store.
        UnusableKey::Key(fault) if is_read => failed(S3ErrorCode::NoSuchKey, fault.to_string()),
        UnusableKey::Key(fault) => failed(S3ErrorCode::InvalidArgument, fault.to_string()),
        UnusableKey::Store(fault) => failed(S3ErrorCode::AccessDenied, fault.to_string()),
    }
}

impl From<StoreError> for S3Error {
    /// The cause of an internal failure is only in the log. The client never sees it.
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::NotFound => failed(S3ErrorCode::NoSuchKey, text),
            StoreError::Precondition => failed(S3ErrorCode::PreconditionFailed, text),
            StoreError::NotModified => {
                let mut error = failed(S3ErrorCode::NotModified, text);
                error.set_status_code(StatusCode::NOT_MODIFIED);
                error
            }
            StoreError::Range(_) => failed(S3ErrorCode::InvalidRange, text),
            StoreError::FolderInTheWay | StoreError::ObjectInTheWay => {
                failed(S3ErrorCode::InvalidArgument, text)
            }
            StoreError::TooManyEntries => failed(S3ErrorCode::InvalidRequest, text),
            StoreError::PartsMissing => failed(S3ErrorCode::InvalidPart, text),
            StoreError::PartTooLarge(_) => failed(S3ErrorCode::EntityTooLarge, text),
            StoreError::NoMemory | StoreError::TooManyListings => failed(S3ErrorCode::SlowDown, text),
            StoreError::Ended(refusal) | StoreError::NotAsPinned(refusal) => refused(&refusal),
            StoreError::Unavailable(_) => {
                tracing::warn!(why = %plain::message(&text), "a store behind the gateway cannot be used");
                failed(S3ErrorCode::SlowDown, "the store behind the gateway cannot be used now: try again")
            }
            StoreError::Changed | StoreError::Io(_) => {
                tracing::error!(why = %plain::message(&text), "an object could not be served");
                failed(
                    S3ErrorCode::InternalError,
                    "the object could not be served: the gateway's log says why",
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A client gives up after an ending, tries again while the state is unknown, and can read the whole reason.
    #[test]
    fn clients_retry_only_what_may_pass() {
        for (reason, status) in [
            (Reason::Revoked, 403),
            (Reason::LeaseEnded, 403),
            (Reason::TokenExpired, 403),
            (Reason::TokenScope, 403),
            (Reason::TokenPresenter, 403),
            (Reason::Locked, 403),
            (Reason::FeedStale, 503),
            (Reason::ClockDifference, 503),
            (Reason::TokenEpoch, 503),
            (Reason::Overloaded, 503),
            (Reason::Unreachable, 503),
        ] {
            let error = refused(&Refusal::new(reason, "job:j-1 was revoked").fix("ask its owner"));
            assert_eq!(error.status_code().unwrap().as_u16(), status, "{reason}");
            let message = error.message().unwrap();
            assert_eq!(message, format!("{}: job:j-1 was revoked; fix: ask its owner", reason.code()));
            assert_eq!(error.headers().unwrap()[REASON], reason.code());
        }
        for reason in Reason::ALL {
            let status = code_of(*reason).1.as_u16();
            assert!([400, 403, 500, 501, 503].contains(&status), "{reason}");
        }
    }
}
