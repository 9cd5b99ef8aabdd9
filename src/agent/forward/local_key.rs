//! The key with which programs on this machine sign their requests.

use percent::decoded;
use ring::hmac;
use subtle::ConstantTimeEq;

use crate::secret::{Secret, SecretText};

/// The local access key of one attempt, and the tokens that replace it in other protocols.
///
/// All of them are computed from the session's secret. So an agent that was killed and comes back as the same member has the
/// same key, and the key is not stored.
#[derive(Clone, Debug)]
pub(super) struct LocalKey {
    /// The access key id, as AWS calls it. It is not a secret.
    pub(super) id: String,
    /// The secret access key, as AWS calls it.
    pub(super) secret: SecretText,
    /// The bearer token for clients of the Hub, and for clients that fetch the key.
    pub(super) bearer: SecretText,
    /// The port of the attempt's endpoint, unless another program uses that port. An agent that was killed and comes back
    /// listens on the same port, so that its programs find it again.
    pub(super) port: u16,
}

/// The first port of local endpoints, and the number of ports. Operating systems choose higher ports for outgoing connections.
const PORTS: (u16, u16) = (20_000, 10_000);

impl LocalKey {
    pub(super) fn of_session(session: &Secret) -> Self {
        let part = |name: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, session.expose());
            hmac::sign(&key, format!("leasehold local s3 key: {name}").as_bytes())
        };
        let text = |tag: hmac::Tag| {
            Secret::from_bytes(tag.as_ref()).map_or_else(|| SecretText::new(String::new()), |s| s.to_text())
        };
        let digits: String = part("id").as_ref().iter().take(9).map(|byte| format!("{byte:02X}")).collect();
        let drawn =
            part("port").as_ref().iter().take(2).fold(0_u16, |n, byte| n.rotate_left(8) ^ u16::from(*byte));
        LocalKey {
            id: format!("LH{digits}"),
            secret: text(part("secret")),
            bearer: text(part("bearer")),
            port: PORTS.0.saturating_add(drawn % PORTS.1),
        }
    }

    /// Whether the value of an `Authorization` header is the bearer token, with or without the word `Bearer`.
    pub(super) fn is_bearer(&self, value: &str) -> bool {
        let given = value.strip_prefix("Bearer ").unwrap_or(value);
        bool::from(given.as_bytes().ct_eq(self.bearer.expose().as_bytes()))
    }
}

/// Reads the access key id with which a request is signed: from its header, or from its query if it is presigned.
pub(super) fn signing_key_id(authorization: Option<&str>, query: &str) -> Option<String> {
    if let Some(value) = authorization {
        let fields = value.strip_prefix("AWS4-HMAC-SHA256").unwrap_or_default();
        let credential = fields.split(',').find_map(|f| f.trim().strip_prefix("Credential="));
        return credential.and_then(|c| c.split('/').next()).map(str::to_owned);
    }
    let credential = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Credential="))?;
    decoded(credential).split('/').next().map(str::to_owned)
}

mod percent {
    /// Decodes percent escapes. A malformed escape stays as it is, so that the text matches no key.
    pub(super) fn decoded(text: &str) -> String {
        let mut parts = text.split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            match part.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    bytes.extend_from_slice(part.get(2..).unwrap_or_default().as_bytes());
                }
                None => {
                    bytes.push(b'%');
                    bytes.extend_from_slice(part.as_bytes());
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // An agent that comes back as the same member has the same local key. Another member has another key.
    #[test]
    fn the_same_session_has_the_same_key() {
        let (one, other) = (Secret::random().unwrap(), Secret::random().unwrap());
        let key = LocalKey::of_session(&one);
        let again = LocalKey::of_session(&one);
        assert_eq!((&key.id, key.secret.expose(), key.port), (&again.id, again.secret.expose(), again.port));
        assert!((20_000..30_000).contains(&key.port), "{}", key.port);
        assert_ne!(key.id, LocalKey::of_session(&other).id);
        assert_ne!(key.secret.expose(), one.to_text().expose(), "the session's secret stays here");
        assert_ne!(key.secret.expose(), key.bearer.expose());
        assert_eq!((key.id.len(), key.secret.expose().len()), (20, 43));
        assert!(!format!("{key:?}").contains(key.secret.expose()));
        assert!(
            key.is_bearer(&format!("Bearer {}", key.bearer.expose())) && key.is_bearer(key.bearer.expose())
        );
        assert!(!key.is_bearer("Bearer x") && !key.is_bearer(""));
    }

    // The key of a signed request and of a presigned request is found. Other forms have no key.
    #[test]
    fn a_request_names_the_key_that_signed_it() {
        let header = "AWS4-HMAC-SHA256 Credential=LH01/20261130/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00";
        assert_eq!(signing_key_id(Some(header), "").as_deref(), Some("LH01"));
        let query = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=LH01%2F20261130%2Fus-east-1%2Fs3%2Faws4_request";
        assert_eq!(signing_key_id(None, query).as_deref(), Some("LH01"));
        assert_eq!(signing_key_id(Some("AWS AKIA:sig"), query), None, "the header decides");
        assert_eq!(signing_key_id(None, "list-type=2"), None);
        assert_eq!(signing_key_id(None, "X-Amz-Credential=%zz%2").as_deref(), Some("%zz%2"));
    }
}
