//! The names of fences for verifiers: opaque, and different for each audience.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::name::{FenceName, SpiffeId};

/// The number of bytes in a tag.
///
/// If two names have the same tag, a request is refused wrongly, and never allowed wrongly. 96 bits are more than the 80 bits
/// that RFC 2104 section 5 requires. Someone without the key who guesses the name behind a tag must get a lease, or cause a
/// lowering, for each guess. base64url writes three bytes as four characters. Twelve is a multiple of three, so adjacent tags
/// need no padding.
const TAG_BYTES: usize = 12;

/// The name of a fence at one audience: HMAC-SHA256 with the key of that audience, truncated to 96 bits.
///
/// A verifier compares the tags of a token with the tags of its feed. It cannot learn the names from the tags.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FenceTag([u8; TAG_BYTES]);

impl FenceTag {
    /// Reads a tag of the feed. `None` if the tag has another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(FenceTag(bytes.try_into().ok()?))
    }

    /// Returns the 12 bytes that the feed sends.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FenceTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

/// The key that makes the tags for one audience. Only the daemon has it.
#[derive(Clone)]
pub struct FenceKey(hmac::Key);

impl FenceKey {
    /// Derives the key of an audience from the secret of one epoch of the daemon.
    pub(super) fn derive(secret: &hmac::Key, audience: &SpiffeId) -> Self {
        let mut context = hmac::Context::with_key(secret);
        context.update(b"leasehold fence tags v1\0");
        context.update(audience.as_str().as_bytes());
        FenceKey(hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref()))
    }

    /// Returns the tag of a fence.
    pub fn tag(&self, name: &FenceName) -> FenceTag {
        let mac = hmac::sign(&self.0, name.as_str().as_bytes());
        let mut tag = [0; TAG_BYTES];
        for (to, from) in tag.iter_mut().zip(mac.as_ref()) {
            *to = *from;
        }
        FenceTag(tag)
    }
}

impl fmt::Debug for FenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FenceKey([redacted])")
    }
}

/// A list of tags. It is written as one text in base64url.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FenceTags(pub Vec<FenceTag>);

impl Serialize for FenceTags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|tag| tag.0).collect();
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for FenceTags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let tags = bytes.chunks(TAG_BYTES).map(FenceTag::from_bytes).collect::<Option<_>>();
        tags.map(FenceTags).ok_or_else(|| D::Error::custom("expected tags of 12 bytes each"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::SigningKey;

    #[test]
    fn a_name_has_a_different_tag_per_audience_and_epoch() {
        let name: FenceName = "human:ada".parse().unwrap();
        let (files, web) = ("spiffe://td/files".parse().unwrap(), "spiffe://td/web".parse().unwrap());
        let (one, other) = (SigningKey::generate(1, 1).unwrap(), SigningKey::generate(2, 1).unwrap());
        let tag = one.fence_key(&files).tag(&name);
        assert_eq!(tag, one.fence_key(&files).tag(&name));
        for different in [
            one.fence_key(&web).tag(&name),
            other.fence_key(&files).tag(&name),
            one.fence_key(&files).tag(&"human:bob".parse().unwrap()),
        ] {
            assert_ne!(tag, different);
        }
    }

    #[test]
    fn tags_round_trip_and_a_partial_tag_is_refused() {
        let key = SigningKey::generate(1, 1).unwrap().fence_key(&"spiffe://td/files".parse().unwrap());
        let tags = FenceTags(["epoch", "human:ada"].map(|n| key.tag(&n.parse().unwrap())).to_vec());
        let text = serde_json::to_string(&tags).unwrap();
        assert_eq!(text.len(), 2 + 2 * 16);
        assert_eq!(serde_json::from_str::<FenceTags>(&text).unwrap(), tags);
        assert!(serde_json::from_str::<FenceTags>(&text.replacen('"', "\"AAAA", 1)).is_err());
        assert_eq!(format!("{key:?}"), "FenceKey([redacted])");
    }
}
