//! Patterns over SPIFFE IDs. A wildcard stands for whole segments, never for single characters.

use std::{fmt, str::FromStr, sync::Arc};

use super::{NameError, SpiffeId, TrustDomain, text_form};

/// A SPIFFE ID in which `*` matches one path segment and a last `**` matches one or more.
///
/// The trust domain is always written in full. `spiffe://td/tenant/a` matches only that ID, not `/tenant/ab` or
/// `/tenant/a/b`. Wildcards do not match the first segment `spire`. SPIRE reserves it for its own servers and agents,
/// whose SVIDs are valid in the domain on every node. A pattern for them must contain this segment literally.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffePattern {
    text: Arc<str>,
    domain: TrustDomain,
    segments: Arc<[Segment]>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Exactly(Box<str>),
    One,
    Rest,
}

/// The first path segment that SPIRE reserves.
const RESERVED: &str = "spire";

impl SpiffePattern {
    /// Whether the first segment of this ID is reserved, so that wildcards do not match it.
    pub fn is_reserved(id: &SpiffeId) -> bool {
        id.segments().next() == Some(RESERVED)
    }

    /// Whether the pattern matches an ID, segment by segment.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        let written_out = matches!(self.segments.first(), Some(Segment::Exactly(_)));
        if id.trust_domain() != self.domain || (Self::is_reserved(id) && !written_out) {
            return false;
        }
        let mut parts = id.segments();
        for s in self.segments.iter() {
            match (s, parts.next()) {
                (Segment::Rest, Some(_)) => return true,
                (Segment::One, Some(_)) => {}
                (Segment::Exactly(want), Some(is)) if **want == *is => {}
                _ => return false,
            }
        }
        parts.next().is_none()
    }

    /// Returns the trust domain of every ID that the pattern matches.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Returns the ID itself, if the pattern has no wildcard.
    pub fn exact(&self) -> Option<SpiffeId> {
        self.segments.iter().all(|s| matches!(s, Segment::Exactly(_))).then(|| self.text.parse().ok())?
    }

    /// Returns the path segment at a position, counted from 0, in the IDs that the pattern matches. It is `*` if the
    /// segment can be any text.
    pub fn segment(&self, position: usize) -> Option<&str> {
        match self.segments.get(position) {
            Some(Segment::Exactly(text)) => Some(text),
            Some(Segment::One | Segment::Rest) => Some("*"),
            None => matches!(self.segments.last(), Some(Segment::Rest)).then_some("*"),
        }
    }

    /// Returns a SPIFFE ID that the pattern matches, with `any` for each wildcard, as an example in a decision.
    pub fn example(&self) -> SpiffeId {
        let path: Vec<&str> = self
            .segments
            .iter()
            .map(|s| match s {
                Segment::Exactly(s) => s,
                Segment::One | Segment::Rest => "any",
            })
            .collect();
        #[expect(clippy::expect_used, reason = "the parser has checked it with each wildcard replaced")]
        format!("spiffe://{}/{}", self.domain, path.join("/")).parse().expect("a pattern matches an ID")
    }

    /// Whether this pattern matches every SPIFFE ID that the other pattern matches.
    pub fn covers(&self, other: &SpiffePattern) -> bool {
        fn within(wide: &[Segment], narrow: &[Segment]) -> bool {
            match (wide.split_first(), narrow.split_first()) {
                (None, None) => true,
                (Some((Segment::Rest, _)), Some(_)) => true,
                (Some((Segment::One, wide)), Some((Segment::One | Segment::Exactly(_), narrow))) => {
                    within(wide, narrow)
                }
                (Some((Segment::Exactly(x), wide)), Some((Segment::Exactly(y), narrow))) => {
                    x == y && within(wide, narrow)
                }
                _ => false,
            }
        }
        let writes_reserved =
            |p: &Self| matches!(p.segments.first(), Some(Segment::Exactly(s)) if **s == *RESERVED);
        self.domain == other.domain
            && writes_reserved(self) == writes_reserved(other)
            && within(&self.segments, &other.segments)
    }

    /// Whether a SPIFFE ID exists that both patterns match.
    pub fn overlaps(&self, other: &SpiffePattern) -> bool {
        fn meet(a: &[Segment], b: &[Segment]) -> bool {
            match (a.split_first(), b.split_first()) {
                (None, None) => true,
                (Some((Segment::Rest, _)), Some(_)) | (Some(_), Some((Segment::Rest, _))) => true,
                (Some((Segment::Exactly(x), _)), Some((Segment::Exactly(y), _))) if x != y => false,
                (Some((_, a)), Some((_, b))) => meet(a, b),
                _ => false,
            }
        }
        let reserved = |p: &Self| matches!(p.segments.first(), Some(Segment::Exactly(s)) if **s == *RESERVED);
        self.domain == other.domain
            && reserved(self) == reserved(other)
            && meet(&self.segments, &other.segments)
    }
}

impl From<&SpiffeId> for SpiffePattern {
    /// Returns the pattern that matches only this ID.
    fn from(id: &SpiffeId) -> Self {
        let segments = id.segments().map(|s| Segment::Exactly(s.into())).collect();
        SpiffePattern { text: id.as_str().into(), domain: id.trust_domain(), segments }
    }
}

impl FromStr for SpiffePattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new(text, "a SPIFFE ID pattern", why);
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| bad("it does not begin with `spiffe://`"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| bad("it has no path"))?;
        let domain: TrustDomain =
            domain.parse().map_err(|_| bad("its trust domain is not one, or has a wildcard"))?;
        let mut segments = Vec::new();
        let mut plain = format!("spiffe://{domain}");
        for s in path.split('/') {
            if matches!(segments.last(), Some(Segment::Rest)) {
                return Err(bad("`**` may be only at the end"));
            }
            segments.push(match s {
                "*" => Segment::One,
                "**" => Segment::Rest,
                s if s.contains('*') => return Err(bad("`*` stands for a whole segment")),
                s => Segment::Exactly(s.into()),
            });
            plain.push('/');
            plain.push_str(if s.contains('*') { "x" } else { s });
        }
        plain.parse::<SpiffeId>().map_err(|_| bad("without its wildcards it is not a SPIFFE ID"))?;
        Ok(SpiffePattern { text: text.into(), domain, segments: segments.into() })
    }
}

impl fmt::Display for SpiffePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
text_form!(SpiffePattern);

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(pattern: &str, id: &str) -> bool {
        pattern.parse::<SpiffePattern>().unwrap().matches(&id.parse().unwrap())
    }

    #[test]
    fn a_pattern_matches_by_whole_segments() {
        assert!(hits("spiffe://td/tenant/a", "spiffe://td/tenant/a"));
        assert!(!hits("spiffe://td/tenant/a", "spiffe://td/tenant/ab"));
        assert!(!hits("spiffe://td/tenant/a", "spiffe://td/tenant/a/b"));
        assert!(!hits("spiffe://td/tenant/a", "spiffe://td.evil/tenant/a"));
        assert!(hits("spiffe://td/ns/*/sa/x", "spiffe://td/ns/ml/sa/x"));
        assert!(!hits("spiffe://td/ns/*/sa/x", "spiffe://td/ns/a/b/sa/x"));
        assert!(hits("spiffe://td/slurm/**", "spiffe://td/slurm/a/b/c"));
        assert!(!hits("spiffe://td/slurm/**", "spiffe://td/slurm"));
    }

    #[test]
    fn a_pattern_that_could_surprise_is_refused() {
        for p in [
            "spiffe://*/a",
            "spiffe://td/a*",
            "spiffe://td/**/a",
            "spiffe://td",
            "spiffe://td/a/../b",
            "td/a",
        ] {
            assert!(p.parse::<SpiffePattern>().is_err(), "{p}");
        }
    }

    #[test]
    fn no_wildcard_matches_the_identities_of_spire_itself() {
        for id in ["spiffe://td/spire/server", "spiffe://td/spire/agent/join_token/x"] {
            for p in ["spiffe://td/**", "spiffe://td/*/**", "spiffe://td/*/server", "spiffe://td/*/agent/*/x"]
            {
                assert!(!hits(p, id), "{p} {id}");
            }
            assert!(hits("spiffe://td/spire/**", id), "who means it writes it out: {id}");
        }
        assert!(hits("spiffe://td/**", "spiffe://td/spired/server"));
        assert!(hits("spiffe://td/**", "spiffe://td/ns/spire"));
    }

    #[test]
    fn overlap_is_symmetric_and_agrees_with_matching() {
        let p = |t: &str| t.parse::<SpiffePattern>().unwrap();
        for (a, b, both) in [
            ("spiffe://td/a/*", "spiffe://td/*/b", true),
            ("spiffe://td/a/**", "spiffe://td/a/b/c", true),
            ("spiffe://td/a", "spiffe://td/a/b", false),
            ("spiffe://td/a/**", "spiffe://td/a", false),
            ("spiffe://td/a", "spiffe://other/a", false),
            ("spiffe://td/**", "spiffe://td/spire/agent/**", false),
            ("spiffe://td/*/server", "spiffe://td/spire/server", false),
            ("spiffe://td/spire/*", "spiffe://td/spire/server", true),
        ] {
            assert_eq!(p(a).overlaps(&p(b)), both, "{a} {b}");
            assert_eq!(p(b).overlaps(&p(a)), both, "{b} {a}");
        }
    }

    #[test]
    fn a_pattern_matches_its_own_example() {
        for p in ["spiffe://td/a/b", "spiffe://td/*/b/**", "spiffe://td/**"] {
            let p = p.parse::<SpiffePattern>().unwrap();
            assert!(p.matches(&p.example()), "{p}");
        }
    }

    #[test]
    fn only_a_pattern_without_wildcards_is_one_id() {
        assert!("spiffe://td/a/b".parse::<SpiffePattern>().unwrap().exact().is_some());
        assert!("spiffe://td/a/*".parse::<SpiffePattern>().unwrap().exact().is_none());
    }

    #[test]
    fn a_pattern_covers_what_it_always_matches() {
        let covers = |wide: &str, narrow: &str| {
            wide.parse::<SpiffePattern>().unwrap().covers(&narrow.parse::<SpiffePattern>().unwrap())
        };
        for (wide, narrow) in [
            ("spiffe://td/**", "spiffe://td/a/**"),
            ("spiffe://td/**", "spiffe://td/**"),
            ("spiffe://td/ns/*/job/**", "spiffe://td/ns/ml/job/*"),
            ("spiffe://td/a/*", "spiffe://td/a/b"),
            ("spiffe://td/spire/**", "spiffe://td/spire/agent/*"),
        ] {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [
            ("spiffe://td/a/*", "spiffe://td/a/**"),
            ("spiffe://td/a/b", "spiffe://td/a/*"),
            ("spiffe://td/a/**", "spiffe://td/a"),
            ("spiffe://td/**", "spiffe://other/a"),
            ("spiffe://td/**", "spiffe://td/spire/agent"),
            ("spiffe://td/a/*", "spiffe://td/a/b/c"),
        ] {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }
}
