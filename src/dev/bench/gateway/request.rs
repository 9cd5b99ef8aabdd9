//! The bytes of requests.

use std::ops::Range;

use crate::{clock::Wall, dev::s3_client::S3Key, secret::SecretText};

/// A request that is signed once and made many times. This works because a signature is accepted for 15 minutes, and does not
/// cover the range.
#[derive(Clone)]
pub(super) struct BenchRequest {
    head: String,
}

impl BenchRequest {
    /// Signs a request for an object with the key. `payload` stands for the body: the digest of an empty body, or the mark for
    /// a body that is not signed.
    pub(super) fn sign(method: &str, host: &str, path: &str, key: &S3Key, payload: &str, now: Wall) -> Self {
        let mut request = Self::unsigned(method, host, path);
        for (name, value) in key.sign(method, host, path, payload, now) {
            if name != "host" {
                request = request.with(name, &value);
            }
        }
        request
    }

    /// A request of a client without a key.
    pub(super) fn unsigned(method: &str, host: &str, path: &str) -> Self {
        BenchRequest { head: format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n") }
    }

    /// Adds what the wrapper adds on the way to a gateway: a token, and the key that the gateway compares the signature with.
    pub(super) fn with_access(self, token: &SecretText, key: &S3Key) -> Self {
        self.with("x-leasehold-token", token.expose()).with("x-leasehold-secret-key", key.secret.expose())
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        for part in [name, ": ", value, "\r\n"] {
            self.head.push_str(part);
        }
        self
    }

    /// The bytes of the request for the whole object.
    pub(super) fn whole(&self) -> Vec<u8> {
        format!("{}\r\n", self.head).into_bytes()
    }

    /// The bytes of the request for a range.
    pub(super) fn range(&self, range: &Range<u64>) -> Vec<u8> {
        let last = range.end.saturating_sub(1);
        format!("{}range: bytes={}-{last}\r\n\r\n", self.head, range.start).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A request for a range has the headers of a request for the whole object, and one more header.
    #[test]
    fn a_request_is_written_as_http_has_it() {
        let request = BenchRequest::unsigned("GET", "localhost", "/a").with("x-one", "1");
        assert_eq!(request.whole(), b"GET /a HTTP/1.1\r\nhost: localhost\r\nx-one: 1\r\n\r\n");
        let range = request.range(&(64..128));
        assert_eq!(range, b"GET /a HTTP/1.1\r\nhost: localhost\r\nx-one: 1\r\nrange: bytes=64-127\r\n\r\n");
    }
}
