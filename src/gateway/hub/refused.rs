//! Refusals that the Hub's clients show.
//!
//! The Hub's clients do not show the body of most error answers. They show the text of the headers `x-error-message`
//! and `x-hf-warning` (tested with `huggingface_hub` 2.4). If the answer has the code `GatedRepo`, the client does not
//! try again. If a client asks for the bytes of a file, this code would hide the text, so such an answer does not have the code.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use s3s::{Body, S3Error, S3ErrorCode};

use crate::plain;

const CODE: HeaderName = HeaderName::from_static("x-error-code");
const MESSAGE: HeaderName = HeaderName::from_static("x-error-message");
const WARNING: HeaderName = HeaderName::from_static("x-hf-warning");

/// Turns an error into an answer that the Hub's clients understand.
pub(in crate::gateway) fn hub_refusal(error: &S3Error, method: &Method, path: &str) -> Response<Body> {
    let status = error.status_code().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = plain::message(error.message().unwrap_or("the request could not be served")).into_owned();
    let body = if *method == Method::HEAD {
        String::new()
    } else {
        serde_json::json!({ "error": text }).to_string()
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in error.headers().into_iter().flatten() {
        headers.insert(name, value.clone());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let asks_for_bytes = *method == Method::GET && path.contains("/resolve/");
    if let Some(code) = hub_code(error.code(), status).filter(|code| *code != "GatedRepo" || !asks_for_bytes)
    {
        headers.insert(CODE, HeaderValue::from_static(code));
    }
    set_text_headers(headers, status, &text);
    response
}

fn hub_code(s3_code: &S3ErrorCode, status: StatusCode) -> Option<&'static str> {
    match s3_code {
        S3ErrorCode::NoSuchKey => Some("EntryNotFound"),
        S3ErrorCode::NoSuchBucket => Some("RepoNotFound"),
        S3ErrorCode::NoSuchVersion => Some("RevisionNotFound"),
        _ if status == StatusCode::FORBIDDEN => Some("GatedRepo"),
        _ => None,
    }
}

fn set_text_headers(headers: &mut HeaderMap, status: StatusCode, text: &str) {
    let ascii: String =
        text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    if let Ok(value) = HeaderValue::from_str(&ascii) {
        headers.insert(MESSAGE, value);
    }
    if let (StatusCode::FORBIDDEN, Ok(value)) =
        (status, HeaderValue::from_str(&format!("leasehold; {ascii}")))
    {
        headers.insert(WARNING, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::refusal::{failed, refused};
    use crate::reason::{Reason, Refusal};

    // The answer shows why access ended. An absent file does not count as a refusal of the repository.
    #[test]
    fn the_hubs_clients_are_shown_the_reason() {
        let ended = refused(&Refusal::new(Reason::Revoked, "job:j-1 was revoked by ada"));
        let head = hub_refusal(&ended, &Method::HEAD, "/_hub/acme/base/resolve/main/x");
        assert_eq!(
            (head.status(), &head.headers()[CODE]),
            (StatusCode::FORBIDDEN, &HeaderValue::from_static("GatedRepo"))
        );
        let get = hub_refusal(&ended, &Method::GET, "/_hub/acme/base/resolve/main/x");
        assert!(!get.headers().contains_key(CODE));
        assert_eq!(get.headers()["leasehold-reason"], "REVOKED");
        assert!(get.headers()[MESSAGE].to_str().unwrap().contains("revoked by ada"));
        assert!(get.headers()[WARNING].to_str().unwrap().starts_with("leasehold; REVOKED"));
        let absent = hub_refusal(&failed(S3ErrorCode::NoSuchKey, "no"), &Method::GET, "/_hub/api/x");
        assert_eq!(
            (absent.status(), &absent.headers()[CODE]),
            (StatusCode::NOT_FOUND, &HeaderValue::from_static("EntryNotFound"))
        );
        assert!(!absent.headers().contains_key(WARNING));
    }
}
