//! Principals: the identities that may connect.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::name::{HumanName, PrincipalKind, SpiffeId, SpiffePattern, TenantName};

super::words! {
    /// Whether a SPIFFE ID belongs to one job or to several.
    IdentityUse {
        /// The SPIFFE ID belongs to one job only.
        Job = "job",
        /// Several jobs may use it, so joining requires a ticket.
        Shared = "shared",
    }
}

/// One `[[principal]]` of a tenant's file: all SPIFFE IDs that its pattern matches are treated alike.
#[derive(Clone, Debug)]
pub struct Principal {
    pub tenant: TenantName,
    /// The pattern of the SPIFFE IDs. No two entries of a catalog have the same pattern.
    pub pattern: SpiffePattern,
    pub kind: PrincipalKind,
    pub identity: IdentityUse,
    pub roles: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    /// The people for whom the principal may act.
    pub may_act_for: Vec<HumanPattern>,
    /// Whether the principal is known but may do nothing.
    pub disabled: bool,
    /// The file and line of the entry, for example `acme.toml:12`.
    pub declared_at: String,
    /// The path segment that names the person, counted from 1.
    pub(super) human_segment: Option<usize>,
}

impl Principal {
    /// Returns the entry of a `policy.break_glass` identity that is not in the catalog. No policy matches it, so it can only
    /// lift locks.
    pub fn break_glass(id: &SpiffeId) -> Self {
        Principal {
            tenant: TenantName::platform(),
            pattern: SpiffePattern::from(id),
            kind: PrincipalKind::Operator,
            identity: IdentityUse::Shared,
            roles: BTreeSet::new(),
            groups: BTreeSet::new(),
            may_act_for: Vec::new(),
            disabled: false,
            declared_at: "policy.break_glass".to_owned(),
            human_segment: None,
        }
    }

    /// Whether the principal may act for this person.
    pub fn may_act_for(&self, human: &HumanName) -> bool {
        self.may_act_for.iter().any(|p| match p {
            HumanPattern::Any => true,
            HumanPattern::Exactly(h) => h == human,
        })
    }

    /// Returns the person who uses an identity of this entry, if the catalog says which path segment names the person.
    pub fn human(&self, id: &SpiffeId) -> Option<HumanName> {
        id.segments().nth(self.human_segment?.checked_sub(1)?)?.to_ascii_lowercase().parse().ok()
    }

    /// Whether this path segment, counted from 1, names the person in the identities of this entry.
    pub fn names_person_in(&self, segment: usize) -> bool {
        self.human_segment == Some(segment)
    }

    /// Returns the text that names the person in all identities of this entry. It is `*` if these can be different
    /// people. `None` if the identities are not people.
    pub fn human_text(&self) -> Option<&str> {
        self.pattern.segment(self.human_segment?.checked_sub(1)?)
    }
}

/// The people of an entry: `human:*`, or one person as in `human:ada`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HumanPattern {
    Any,
    Exactly(HumanName),
}

impl FromStr for HumanPattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("human:") {
            Some("*") => Ok(HumanPattern::Any),
            Some(name) => name.parse().map(HumanPattern::Exactly).map_err(|e| format!("{e}")),
            None => Err("it must have the form human:* or human:NAME".to_owned()),
        }
    }
}

impl fmt::Display for HumanPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HumanPattern::Any => f.write_str("human:*"),
            HumanPattern::Exactly(name) => write!(f, "human:{name}"),
        }
    }
}

/// `segment:N`: the N-th path segment, counted from 1.
pub(super) struct HumanSegment(pub(super) usize);

impl FromStr for HumanSegment {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("segment:")
            .and_then(|n| n.parse().ok())
            .filter(|n| (1..=64).contains(n))
            .map(HumanSegment)
            .ok_or("it must have the form segment:N, counting path segments from 1")
    }
}
