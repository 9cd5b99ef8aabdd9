//! Who may come.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::name::{HumanName, PrincipalKind, SpiffeId, SpiffePattern, TenantName};

super::words! {
    /// Whose a SPIFFE ID is.
    IdentityUse {
        /// It belongs to one job alone.
        Job = "job",
        /// Several jobs may carry it: joining wants a ticket.
        Shared = "shared",
    }
}

/// One `[[principal]]` of a tenant's file: all SPIFFE IDs that its pattern matches are treated alike.
#[derive(Clone, Debug)]
pub struct Principal {
    pub tenant: TenantName,
    /// What it matches. No two entries of a catalog have the same one.
    pub pattern: SpiffePattern,
    pub kind: PrincipalKind,
    pub identity: IdentityUse,
    pub roles: BTreeSet<String>,
    pub groups: BTreeSet<String>,
    /// On behalf of whom its word is believed.
    pub may_act_for: Vec<HumanPattern>,
    /// Known, but shut out.
    pub disabled: bool,
    /// Where it stands, as `acme.toml:12`.
    pub matched: String,
    /// The path segment, from 1, that names the person.
    pub(super) human_segment: Option<usize>,
}

impl Principal {
    /// The entry of an identity that the daemon's configuration names to lift locks, if the catalog has none. No policy knows it,
    /// so it can do nothing else.
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
            matched: "policy.break_glass".to_owned(),
            human_segment: None,
        }
    }

    /// Whether its word is believed that it acts for this person.
    pub fn may_act_for(&self, human: &HumanName) -> bool {
        self.may_act_for.iter().any(|p| match p {
            HumanPattern::Any => true,
            HumanPattern::Exactly(h) => h == human,
        })
    }

    /// The person that an identity of this entry is, where the catalog says how to tell.
    pub fn human(&self, id: &SpiffeId) -> Option<HumanName> {
        id.segments().nth(self.human_segment?.checked_sub(1)?)?.parse().ok()
    }
}

/// `human:*` or `human:ada`.
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
            None => Err("it has the form human:* or human:NAME".to_owned()),
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

/// `segment:N`: the N-th path segment, from 1.
pub(super) struct HumanSegment(pub(super) usize);

impl FromStr for HumanSegment {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("segment:")
            .and_then(|n| n.parse().ok())
            .filter(|n| (1..=64).contains(n))
            .map(HumanSegment)
            .ok_or("it has the form segment:N, counting path segments from 1")
    }
}
