//! Identifiers that the daemon makes: opaque, 128 random bits. The knowledge of an identifier gives no access.

use std::{fmt, num::NonZeroU64, str::FromStr};

use super::{NameError, text_form};
use crate::secret::{NoRandomness, random_u128};

/// Crockford's base 32, lower case.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 26;

fn write_base32(value: u128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [b'0'; DIGITS];
    let mut left = value;
    for place in text.iter_mut().rev() {
        let digit = usize::try_from(left & 31).unwrap_or_default();
        *place = ALPHABET.get(digit).copied().unwrap_or(b'0');
        left >>= 5;
    }
    f.write_str(std::str::from_utf8(&text).unwrap_or_default())
}

fn read_base32(text: &str) -> Option<u128> {
    if text.len() != DIGITS {
        return None;
    }
    let mut value: u128 = 0;
    for (i, b) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|a| *a == b)?;
        if i == 0 && digit > 7 {
            return None; // more than 128 bits
        }
        value = (value << 5) | digit as u128;
    }
    Some(value)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $wanted:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u128);

        impl $name {
            /// Makes a new identifier from random bits.
            ///
            /// # Errors
            ///
            /// The operating system gave no random bytes.
            pub fn random() -> Result<Self, NoRandomness> {
                random_u128().map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_base32(self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                text.strip_prefix($prefix)
                    .and_then(read_base32)
                    .map($name)
                    .ok_or_else(|| NameError::new(text, $wanted, concat!("it is `", $prefix, "` and 26 letters and digits")))
            }
        }
        text_form!($name);
    };
}

id! {
    /// A job: `j-` and 26 characters.
    JobId, "j-", "a job id"
}
id! {
    /// A lease: `l-` and 26 characters.
    LeaseId, "l-", "a lease id"
}

/// The beginning of an access key. Access keys of S3 have letters and digits only, in upper case.
const ACCESS_KEY_PREFIX: &str = "LHK";

impl LeaseId {
    /// Returns the access key of a lease, for S3 clients: `LHK` and the characters of the id.
    pub fn to_access_key(self) -> String {
        let id = self.to_string();
        format!("{ACCESS_KEY_PREFIX}{}", id.trim_start_matches("l-").to_ascii_uppercase())
    }

    /// Returns the lease that an access key names. `None` for any other text.
    pub fn of_access_key(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(ACCESS_KEY_PREFIX)?;
        let is_upper = !digits.bytes().any(|byte| byte.is_ascii_lowercase());
        is_upper.then(|| read_base32(&digits.to_ascii_lowercase())).flatten().map(LeaseId)
    }
}

/// The number of an attempt, counted from 1. It is a fencing number: an attempt with a greater number ends all earlier
/// attempts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptNumber(NonZeroU64);

impl AttemptNumber {
    /// The number of the first attempt of each job: 1.
    pub const FIRST: AttemptNumber = AttemptNumber(NonZeroU64::MIN);

    /// Makes a number. Returns `None` for 0.
    pub fn new(n: u64) -> Option<Self> {
        NonZeroU64::new(n).map(AttemptNumber)
    }

    /// Returns the number. It is at least 1.
    pub fn value(self) -> u64 {
        self.0.get()
    }

    /// Returns the number of the next attempt. Stops at the largest number.
    #[must_use]
    pub fn next(self) -> Self {
        AttemptNumber(self.0.saturating_add(1))
    }
}

impl fmt::Display for AttemptNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Debug for AttemptNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl serde::Serialize for AttemptNumber {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.value())
    }
}
impl<'de> serde::Deserialize<'de> for AttemptNumber {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        NonZeroU64::deserialize(d).map(AttemptNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_key_names_its_lease_in_one_way_only() {
        for id in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            let key = LeaseId(id).to_access_key();
            assert!(
                key.len() == 29 && key.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()),
                "{key}"
            );
            assert_eq!(LeaseId::of_access_key(&key), Some(LeaseId(id)));
            for other in [
                key.to_ascii_lowercase(),
                format!("{key}0"),
                key.replace("LHK", "AKIA"),
                key.replace("LHK", "LHKl-"),
            ] {
                assert_eq!(LeaseId::of_access_key(&other), None, "{other}");
            }
        }
        assert_eq!(LeaseId::of_access_key("LHK7zzzzzzzzzzzzzzzzzzzzzzzzz"), None);
    }

    #[test]
    fn ids_read_back_and_nothing_else_is_one() {
        for v in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            assert_eq!(JobId(v).to_string().parse::<JobId>().unwrap(), JobId(v));
        }
        for t in [
            "",
            "j-",
            "j-0",
            "l-00000000000000000000000000",
            "j-80000000000000000000000000",
            "j-0000000000000000000000000U",
        ] {
            assert!(t.parse::<JobId>().is_err(), "{t}");
        }
    }
}
