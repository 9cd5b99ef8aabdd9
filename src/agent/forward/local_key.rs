//! The key that programs on this machine sign their requests with.

use percent::decoded;
use ring::hmac;
use subtle::ConstantTimeEq;

use crate::secret::{Secret, SecretText};

/// The local access key of one attempt, and the tokens that stand for it in other dialects.
///
/// All of them are computed from the session's secret. So an agent that was killed and comes back as the same member has the same
/// key, and nothing has to be stored for it.
#[derive(Clone, Debug)]
pub(super) struct LocalKey {
    /// What AWS calls the access key id. It is no secret.
    pub(super) id: String,
    /// What AWS calls the secret access key.
    pub(super) secret: SecretText,
    /// The bearer token of the Hub's clients, and of clients that fetch the key.
    pub(super) bearer: SecretText,
    /// The port of the attempt's endpoint, unless another program uses it. An agent that was killed and comes back listens at the
    /// same port, so its programs find it again.
    pub(super) port: u16,
}

/// The first port of local endpoints, and their number. Operating systems choose ports for connections above these.
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

    /// Whether a value of the header `Authorization` has the bearer token, with or without the word `Bearer`.
    pub(super) fn is_bearer(&self, value: &str) -> bool {
        let given = value.strip_prefix("Bearer ").unwrap_or(value);
        bool::from(given.as_bytes().ct_eq(self.bearer.expose().as_bytes()))
    }
}

/// The access key id that a request says it is signed with: in its header, or in its query if it is presigned.
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
    /// Decodes percent escapes. A malformed escape stays as it is, so the text fits no key.
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

    // The key of a signed and of a presigned request is found, and other forms have none.
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
