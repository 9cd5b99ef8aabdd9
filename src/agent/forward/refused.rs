//! Refusals in the form that S3 and the Hugging Face Hub use. So unmodified programs show them, and know whether to try again.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;

use super::{local_request::Dialect, relay::AnswerBody};
use crate::{agent::access::access_end::AccessEnd, plain, reason::Reason};

/// The header that contains the code of the `Reason`.
pub(super) const REASON_HEADER: HeaderName = HeaderName::from_static("leasehold-reason");

/// Why the forwarder answers a request itself.
#[derive(Clone, Debug)]
pub(super) enum NotServed {
    /// Access has ended, and does not come back. Programs must not try again.
    Ended(AccessEnd),
    /// The member is away, or the gateway cannot be reached. Programs may try again.
    TryLater(String),
    /// The request is signed with a key that leasehold did not give to this program.
    OtherKey(String),
    /// The request has no signature.
    NotSigned,
    /// The request writes to a bucket that no gateway of this job serves.
    OtherBucket(String),
    /// The request does not have the token for clients of the Hub.
    NoToken,
    /// The forwarder has nothing at this path.
    NoSuchPath,
}

impl NotServed {
    fn status(&self) -> StatusCode {
        match self {
            NotServed::Ended(_)
            | NotServed::OtherKey(_)
            | NotServed::NotSigned
            | NotServed::OtherBucket(_) => StatusCode::FORBIDDEN,
            NotServed::TryLater(_) => StatusCode::SERVICE_UNAVAILABLE,
            NotServed::NoToken => StatusCode::UNAUTHORIZED,
            NotServed::NoSuchPath => StatusCode::NOT_FOUND,
        }
    }

    /// The error code of S3. SDKs try again after `ServiceUnavailable`, but not after the others.
    fn s3_code(&self) -> &'static str {
        match self {
            NotServed::Ended(_) => "ExpiredToken",
            NotServed::TryLater(_) => "ServiceUnavailable",
            NotServed::OtherKey(_) => "InvalidAccessKeyId",
            NotServed::NotSigned | NotServed::OtherBucket(_) | NotServed::NoToken => "AccessDenied",
            NotServed::NoSuchPath => "NoSuchKey",
        }
    }

    fn reason(&self) -> Option<Reason> {
        match self {
            NotServed::Ended(end) => Some(end.reason),
            NotServed::TryLater(_) => Some(Reason::Unreachable),
            NotServed::OtherKey(_)
            | NotServed::NotSigned
            | NotServed::OtherBucket(_)
            | NotServed::NoToken
            | NotServed::NoSuchPath => None,
        }
    }

    /// Returns one line for the person who reads the program's error.
    fn text(&self) -> String {
        match self {
            NotServed::Ended(end) => format!("access has ended ({}): {}", end.reason, end.message),
            NotServed::TryLater(why) => format!("leasehold cannot serve this request now, try again: {why}"),
            NotServed::OtherKey(id) => format!(
                "the request is signed with the key {}, which leasehold did not give to this program: remove that key from the script or its settings",
                plain::ascii_value(id)
            ),
            NotServed::NotSigned => "the request has no signature of Version 4: let the program use the key that leasehold gave it, and remove settings for anonymous access, such as `--no-sign-request`, and settings for older signatures".to_owned(),
            NotServed::OtherBucket(bucket) => format!(
                "this job has no access to the bucket `{}`: name the resource in the job file",
                plain::value(bucket)
            ),
            NotServed::NoToken => "the request has no token of this job: remove `token=` from the script, and leave HF_TOKEN unset".to_owned(),
            NotServed::NoSuchPath => "leasehold has nothing at this path".to_owned(),
        }
    }

    /// Makes the answer. The answer to HEAD has no body.
    pub(super) fn response(&self, dialect: Dialect, method: &Method, path: &str) -> Response<AnswerBody> {
        let text = plain::message(&self.text()).into_owned();
        let (kind, body) = match dialect {
            Dialect::S3 => ("application/xml", self.xml(&text, path)),
            Dialect::Hub => ("application/json", serde_json::json!({ "error": text }).to_string()),
        };
        let body = if *method == Method::HEAD { String::new() } else { body };
        let mut response = Response::new(AnswerBody::Whole(Full::new(Bytes::from(body))));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(reason) = self.reason() {
            headers.insert(REASON_HEADER, HeaderValue::from_static(reason.code()));
        }
        if let NotServed::TryLater(_) = self {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if dialect == Dialect::Hub {
            self.name_to_hub_clients(&text, method, path, headers);
        }
        response
    }

    fn xml(&self, text: &str, path: &str) -> String {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{}</Code><Message>{}</Message><Resource>{}</Resource></Error>",
            self.s3_code(),
            escaped(text),
            escaped(&plain::value(path)),
        )
    }

    /// Adds the headers in which the Hub's clients look for the reason. Every client function that we tried shows one of them.
    /// The code `GatedRepo` keeps a client from trying again. For the bytes of a file, this code would hide the text, so it is
    /// left out. Clients always show `x-hf-warning`.
    fn name_to_hub_clients(&self, text: &str, method: &Method, path: &str, headers: &mut http::HeaderMap) {
        let ascii: String =
            text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        if let Ok(value) = HeaderValue::from_str(&ascii) {
            headers.insert("x-error-message", value);
        }
        let is_bytes = *method == Method::GET && path.contains("/resolve/");
        if let (NotServed::Ended(_), false) = (self, is_bytes) {
            headers.insert("x-error-code", HeaderValue::from_static("GatedRepo"));
        }
        if let (NotServed::Ended(_), Ok(value)) =
            (self, HeaderValue::from_str(&format!("leasehold; {ascii}")))
        {
            headers.insert("x-hf-warning", value);
        }
    }
}

/// Escapes text for XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::agent::access::access_end::AttemptStatus;

    fn ended() -> NotServed {
        NotServed::Ended(AccessEnd {
            reason: Reason::Revoked,
            message: "revoked by <ada>: wrong data".to_owned(),
            attempt: AttemptStatus::Ended,
        })
    }

    async fn text(response: Response<AnswerBody>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    // A refusal after the end of access contains the whole reason. SDKs do not try again after its status.
    #[tokio::test]
    async fn an_ended_access_says_why_in_the_words_of_s3() {
        let response = ended().response(Dialect::S3, &Method::GET, "/b/k");
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers()[REASON_HEADER], "REVOKED");
        insta::assert_snapshot!(text(response).await, @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <Error><Code>ExpiredToken</Code><Message>access has ended (REVOKED): revoked by &lt;ada&gt;: wrong data</Message><Resource>/b/k</Resource></Error>
        "#);
        assert_eq!(text(ended().response(Dialect::S3, &Method::HEAD, "/b/k")).await, "");
    }

    // A program that may try again gets a header that says so.
    #[test]
    fn a_member_that_is_away_may_be_asked_again() {
        let response =
            NotServed::TryLater("the daemon is away".into()).response(Dialect::S3, &Method::GET, "/b/k");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    // Clients of the Hub see the reason. If they fetch the bytes of a file, the refusal has no code.
    #[test]
    fn clients_of_the_hub_get_the_reason_in_headers() {
        let path = "/_hub/acme/base/resolve/main/model.safetensors";
        let head = ended().response(Dialect::Hub, &Method::HEAD, path);
        assert_eq!(head.headers()["x-error-code"], "GatedRepo");
        let get = ended().response(Dialect::Hub, &Method::GET, path);
        assert!(get.headers().get("x-error-code").is_none());
        let shown = get.headers()["x-error-message"].to_str().unwrap();
        assert!(shown.contains("revoked by <ada>"), "{shown}");
        assert!(get.headers()["x-hf-warning"].to_str().unwrap().starts_with("leasehold; access has ended"));
    }
}
