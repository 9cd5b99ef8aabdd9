//! SPIFFE IDs and trust domains, exactly as in SPIFFE-ID section 2. IDs are not normalised: two spellings are two IDs.

use std::{fmt, str::FromStr, sync::Arc};

use super::{NameError, text_form};

/// The highest number of bytes in a trust domain name (SPIFFE-ID section 2.3).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// The highest number of bytes in a SPIFFE ID (SPIFFE-ID section 2.3).
const SPIFFE_ID_BYTES_MAX: usize = 2048;
const SCHEME: &str = "spiffe://";

/// A trust domain name: `example.org`. Names are compared as a whole, so a parent domain is another domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Returns the name without a scheme, 1 to 255 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_trust_domain(text).map_err(|why| NameError::new(text, "a trust domain", why))?;
        Ok(TrustDomain(text.into()))
    }
}

fn check_trust_domain(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err("it is longer than 255 bytes");
    }
    if !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')) {
        return Err("a trust domain is made of a-z, 0-9, `.`, `-` and `_`, without a port or user");
    }
    Ok(())
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_form!(TrustDomain, as_str);

/// The SPIFFE ID of a workload: `spiffe://example.org/ns/x/sa/y`. It always has a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Returns the whole ID with its scheme, at most 2048 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part between the scheme and the path.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.split().0.into())
    }

    /// Returns the path, with its leading slash.
    pub fn path(&self) -> &str {
        self.split().1
    }

    /// Returns the segments of the path.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }

    fn split(&self) -> (&str, &str) {
        let rest = self.0.get(SCHEME.len()..).unwrap_or_default();
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check_spiffe_id(text).map_err(|why| NameError::new(text, "a SPIFFE ID", why))?;
        Ok(SpiffeId(text.into()))
    }
}

fn check_spiffe_id(text: &str) -> Result<(), &'static str> {
    if text.len() > SPIFFE_ID_BYTES_MAX {
        return Err("it is longer than 2048 bytes");
    }
    let rest = text.strip_prefix(SCHEME).ok_or("it does not begin with `spiffe://` in lower case")?;
    let (domain, path) =
        rest.split_once('/').ok_or("it has no path: that is a trust domain, not a workload")?;
    check_trust_domain(domain)?;
    for segment in path.split('/') {
        match segment {
            "" => return Err("a path segment is empty"),
            "." | ".." => return Err("a path segment is `.` or `..`"),
            s if !s
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_')) =>
            {
                return Err("a path is made of a-z, A-Z, 0-9, `.`, `-` and `_` between slashes");
            }
            _ => {}
        }
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_form!(SpiffeId, as_str);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Result<SpiffeId, NameError> {
        text.parse()
    }

    // Proves case A01.
    #[test]
    fn a_plain_id_is_accepted() {
        for t in ["spiffe://example.org/a", "spiffe://example.org/ns/x/sa/y"] {
            assert_eq!(id(t).unwrap().as_str(), t);
        }
        assert_eq!(id("spiffe://example.org/a/b").unwrap().trust_domain().as_str(), "example.org");
        assert_eq!(id("spiffe://example.org/a/b").unwrap().segments().collect::<Vec<_>>(), ["a", "b"]);
    }

    // Proves case A02.
    #[test]
    fn another_scheme_is_refused() {
        for t in ["", "s", "spiffe:/", "spiffe:td/a", "http://td/a", "sparfe://td/a"] {
            assert!(id(t).is_err(), "{t}");
        }
    }

    // Proves case A03, case A04.
    #[test]
    fn upper_case_is_refused() {
        for t in ["SPIFFE://td/a", "Spiffe://td/a", "spiffe://TD/a", "spiffe://tD/a"] {
            assert!(id(t).is_err(), "{t}");
        }
    }

    // Proves case A05, case A06, case A07.
    #[test]
    fn an_authority_is_only_a_trust_domain() {
        for t in ["spiffe://", "spiffe:///a", "spiffe://u@td/a", "spiffe://td:8080/a", "spiffe://td:/a"] {
            assert!(id(t).is_err(), "{t}");
        }
    }

    // Proves case A08.
    #[test]
    fn every_other_byte_is_refused_in_a_trust_domain() {
        for c in (0u32..=0xff).filter_map(char::from_u32) {
            let ok = matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
            assert_eq!(format!("t{c}d").parse::<TrustDomain>().is_ok(), ok, "{c:?}");
        }
    }

    // Proves case A09, case A10.
    #[test]
    fn an_address_is_a_name_like_any_other() {
        assert!(id("spiffe://10.0.0.1/w").is_ok());
        assert!(id("spiffe://a_b/w").is_ok());
        assert!(id("spiffe://[::1]/w").is_err());
    }

    // Proves case A11.
    #[test]
    fn a_trust_domain_is_at_most_255_bytes() {
        assert!("a".repeat(255).parse::<TrustDomain>().is_ok());
        assert!("a".repeat(256).parse::<TrustDomain>().is_err());
    }

    // Proves case A12, case A13, case A14.
    #[test]
    fn queries_and_escapes_are_refused() {
        let bad = ["/a?x=1", "/a?", "/a#f", "/a#", "/%41", "/a%2fb"];
        for t in bad {
            assert!(id(&format!("spiffe://td{t}")).is_err(), "{t}");
        }
        assert!(id("spiffe://%62%61%64/a").is_err());
    }

    // Proves case A15, case A16, case A17, case A18.
    #[test]
    fn segments_are_not_empty_and_not_dots() {
        for t in ["//", "/a//b", "/", "/a/", "/.", "/..", "/a/./b", "/a/../b"] {
            assert!(id(&format!("spiffe://td{t}")).is_err(), "{t}");
        }
        for t in ["/.a", "/..a", "/..."] {
            assert!(id(&format!("spiffe://td{t}")).is_ok(), "{t}");
        }
    }

    // Proves case A19.
    #[test]
    fn every_other_byte_is_refused_in_a_path() {
        for c in (0u32..=0xff).filter_map(char::from_u32).filter(|c| *c != '/') {
            let ok = c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            assert_eq!(id(&format!("spiffe://td/x{c}y")).is_ok(), ok, "{c:?}");
        }
    }

    // Proves case A20, case A21.
    #[test]
    fn an_id_is_at_most_2048_bytes() {
        let head = "spiffe://td/";
        assert!(id(&format!("{head}{}", "a".repeat(2048 - head.len()))).is_ok());
        assert!(id(&format!("{head}{}", "a".repeat(2049 - head.len()))).is_err());
    }

    // Proves case A22.
    #[test]
    fn an_id_without_a_path_is_no_workload() {
        assert!(id("spiffe://td").is_err());
    }

    // Proves case A23, case A24.
    #[test]
    fn ids_are_compared_byte_for_byte() {
        assert_ne!(id("spiffe://td/A").unwrap(), id("spiffe://td/a").unwrap());
        let all: Vec<TrustDomain> = ["example.org", "example.org.", "x.example.org", "example.orgx"]
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a == b, i == j);
            }
        }
    }

    #[test]
    fn what_an_error_shows_is_bounded_and_printable() {
        let e = id(&format!("\u{1b}[31m{}", "x".repeat(500))).unwrap_err().to_string();
        assert!(e.len() < 300 && !e.contains('\u{1b}'), "{e}");
    }
}
