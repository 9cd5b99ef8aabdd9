//! The name and the SPIFFE ID of a person.

use std::fmt::Write;

use super::fault::LoginFault;
use crate::{
    limits::NAME_BYTES_MAX,
    name::{GroupName, HumanName, SpiffeId, TrustDomain},
    secret::sha256,
};

/// The longest subject that OpenID Connect allows (Core, section 2).
const SUBJECT_BYTES_MAX: usize = 255;

/// The first two characters of a name whose subject is too long, or does not begin with `a` to `z` or a digit. The third is
/// `_`, `-`, `.` or `h`. In a name without this mark, two hex digits follow each `_`, so no other subject gets a marked name.
const MARK: &str = "x_";

/// Returns the name of the person whom an identity provider calls `sub`.
///
/// Two subjects never get the same name, even if names are compared without case. The characters `a` to `z`, digits, `-` and a
/// single `.` are kept. Each other byte becomes `_` and its two hex digits. If the name would be too long, it is the SHA-256
/// digest of the subject.
///
/// # Errors
///
/// Fails if the subject is empty, is longer than 255 bytes, or has characters that are not ASCII.
pub fn human_of_subject(sub: &str) -> Result<HumanName, LoginFault> {
    if sub.is_empty() || sub.len() > SUBJECT_BYTES_MAX || !sub.is_ascii() {
        return Err(LoginFault::Subject);
    }
    let mut name = String::with_capacity(sub.len());
    if !sub.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        name.push_str(MARK);
    }
    for byte in sub.bytes() {
        let is_plain = byte.is_ascii_lowercase()
            || byte.is_ascii_digit()
            || byte == b'-'
            || byte == b'.' && !name.is_empty() && !name.ends_with('.');
        if is_plain {
            name.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(name, "_{byte:02x}");
        }
    }
    if name.len() > NAME_BYTES_MAX {
        name = format!("{MARK}h");
        for byte in sha256(sub.as_bytes()) {
            let _ = write!(name, "{byte:02x}");
        }
    }
    name.parse().map_err(|_| LoginFault::Subject)
}

/// The number of the path segment with the person's name in a SPIFFE ID of [`person_id`], counted from 1.
pub const PERSON_SEGMENT: usize = 2;

/// Returns the SPIFFE ID of a person, as a member of one group or of no group: `spiffe://DOMAIN/human/NAME/GROUP`.
///
/// # Errors
///
/// Fails if the ID would be longer than SPIFFE allows.
pub fn person_id(
    domain: &TrustDomain,
    human: &HumanName,
    group: Option<&GroupName>,
) -> Result<SpiffeId, LoginFault> {
    let text = match group {
        None => format!("spiffe://{domain}/human/{human}"),
        Some(group) => format!("spiffe://{domain}/human/{human}/{group}"),
    };
    text.parse().map_err(|_| LoginFault::Subject)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn name(sub: &str) -> String {
        human_of_subject(sub).unwrap().to_string()
    }

    // People whose subjects look alike are different people.
    #[test]
    fn subjects_that_look_alike_get_different_names() {
        let subs = [
            "ada", "Ada", "ADA", "a.da", "a..da", "a_da", "_ada", "x_ada", "x__41da", "x_41da", "xAda",
            "a%64a", "a/da", "ada/", "/ada", "..", ".", "a b", "ada\n", "x_h00", "xh00", "-ada", "ada-",
            "ada.", ".ada",
        ];
        let names: HashSet<String> = subs.iter().map(|sub| name(sub).to_ascii_lowercase()).collect();
        assert_eq!(names.len(), subs.len(), "{names:?}");
        assert_eq!((name("ada.lovelace-1"), name("Ada")), ("ada.lovelace-1".into(), "x__41da".into()));
    }

    #[test]
    fn a_malformed_subject_is_refused() {
        for sub in ["", "ädä", &"a".repeat(256)] {
            assert!(human_of_subject(sub).is_err(), "{sub}");
        }
    }

    #[test]
    fn a_long_subject_gets_a_digest_as_its_name() {
        let (one, other) = ("A".repeat(255), format!("{}B", "A".repeat(254)));
        assert_ne!(name(&one), name(&other));
        assert!(name(&one).starts_with("x_h") && name(&one).len() == 67);
    }

    proptest! {
        // The encoding is injective, even without regard to case, and always gives a valid path segment.
        #[test]
        fn two_subjects_never_share_a_name(a in "[ -~]{1,60}", b in "[ -~]{1,60}") {
            let (x, y) = (name(&a), name(&b));
            prop_assert_eq!(a == b, x.eq_ignore_ascii_case(&y));
            let domain = "people.example".parse().unwrap();
            let group: GroupName = "ml".parse().unwrap();
            let id = person_id(&domain, &x.parse().unwrap(), Some(&group)).unwrap();
            prop_assert_eq!(id.segments().collect::<Vec<_>>(), ["human", x.as_str(), "ml"]);
        }
    }
}
