//! Names and identifiers. They are parsed once, when they enter the program, and are always valid after that.
//!
//! This module defines the grammar of all names. It uses no clock, does no I/O and has no state. Each type has one text
//! form, which `Display` writes and `FromStr` reads.

mod action;
mod digest;
mod fence;
mod id;
mod image;
mod label;
mod object;
mod pattern;
mod pin;
mod resource;
mod spiffe;

pub use action::{Action, Half, Method, Outcome, PrincipalKind, Scope};
pub use digest::Digest;
pub use fence::{FenceKind, FenceName};
pub use id::{AttemptNumber, JobId, LeaseId};
pub use image::ImageDigest;
pub use label::{GroupName, HumanName, InstanceName, TenantName};
pub use object::Object;
pub use pattern::SpiffePattern;
pub use pin::Pin;
pub use resource::{ResourceKind, ResourceName};
pub use spiffe::{SpiffeId, TrustDomain};

use crate::plain;

/// The reason for which a text is not a name of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is not {wanted}: {why}")]
pub struct NameError {
    shown: String,
    wanted: &'static str,
    why: &'static str,
}

impl NameError {
    pub(crate) fn new(text: &str, wanted: &'static str, why: &'static str) -> Self {
        NameError { shown: plain::ascii_value(text), wanted, why }
    }
}

/// Writes hexadecimal digits in lower case with one call, because records and answers have many digests.
fn write_hex(bytes: &[u8; 32], f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or_default();
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        if let [high, low] = pair {
            (*high, *low) = (digit(byte >> 4), digit(*byte));
        }
    }
    f.write_str(std::str::from_utf8(&text).unwrap_or_default())
}

/// Implements the text forms of a newtype over its `Display` and `FromStr`: Debug, Serialize, Deserialize. A type that
/// contains its text is serialized with `as_str`, without a formatter.
macro_rules! text_form {
    ($t:ty) => {
        text_form!($t, |this, serializer| serializer.collect_str(this));
    };
    ($t:ty, as_str) => {
        text_form!($t, |this, serializer| serializer.serialize_str(this.as_str()));
    };
    ($t:ty, |$this:ident, $serializer:ident| $serialized:expr) => {
        impl std::fmt::Debug for $t {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
        impl serde::Serialize for $t {
            fn serialize<S: serde::Serializer>(&self, $serializer: S) -> Result<S::Ok, S::Error> {
                let $this = self;
                $serialized
            }
        }
        impl<'de> serde::Deserialize<'de> for $t {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use text_form;
