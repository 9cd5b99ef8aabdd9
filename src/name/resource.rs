//! Names of resources: datasets, models, checkpoint lines.

use std::{fmt, str::FromStr, sync::Arc};

use super::{NameError, TenantName, label::check_part, text_form};

/// The kind of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    /// Data to train on. Versioned.
    Dataset,
    /// The weights that a job begins with. Versioned.
    Model,
    /// A checkpoint line, into which jobs write their results. Not versioned: each job has a folder in it.
    Checkpoint,
}

impl ResourceKind {
    /// Returns the word before the colon of a resource name.
    pub const fn as_str(self) -> &'static str {
        match self {
            ResourceKind::Dataset => "dataset",
            ResourceKind::Model => "model",
            ResourceKind::Checkpoint => "checkpoint",
        }
    }
}

/// The name of a resource: `dataset:acme/tickets@v3`, `model:acme/base-7b@2026.10`, `checkpoint:acme/support-lora`.
///
/// A checkpoint line has no version. The name of a dataset or model without a version means all of its versions. Such a
/// name can be revoked or locked, but not read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceName {
    kind: ResourceKind,
    text: Arc<str>,
}

impl ResourceName {
    /// Makes a name from its parts.
    ///
    /// # Errors
    ///
    /// A part breaks a rule for names, or a checkpoint line has a version.
    pub fn new(
        kind: ResourceKind,
        tenant: &TenantName,
        name: &str,
        version: Option<&str>,
    ) -> Result<Self, NameError> {
        match version {
            Some(v) => format!("{}:{tenant}/{name}@{v}", kind.as_str()).parse(),
            None => format!("{}:{tenant}/{name}", kind.as_str()).parse(),
        }
    }

    /// Returns the kind, from the word before the colon.
    pub fn kind(&self) -> ResourceKind {
        self.kind
    }

    /// Returns the whole name: `KIND:TENANT/NAME`, and `@VERSION` if there is a version.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the owner: the part before the slash.
    pub fn tenant(&self) -> TenantName {
        #[expect(clippy::expect_used, reason = "the parser has checked it")]
        self.parts().0.parse().expect("a resource name holds a tenant name")
    }

    /// Returns the name without kind, tenant and version.
    pub fn name(&self) -> &str {
        self.parts().1
    }

    /// Returns the part after `@`. `None` for a checkpoint line, and for a name of all versions.
    pub fn version(&self) -> Option<&str> {
        self.parts().2
    }

    /// Returns the name without its version.
    #[must_use]
    pub fn unversioned(&self) -> ResourceName {
        let text = self.text.split_once('@').map_or_else(|| self.text.clone(), |(t, _)| t.into());
        ResourceName { kind: self.kind, text }
    }

    fn parts(&self) -> (&str, &str, Option<&str>) {
        let rest = self.text.split_once(':').map_or("", |(_, r)| r);
        let (tenant, rest) = rest.split_once('/').unwrap_or((rest, ""));
        match rest.split_once('@') {
            Some((name, version)) => (tenant, name, Some(version)),
            None => (tenant, rest, None),
        }
    }
}

impl FromStr for ResourceName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new(text, "a resource name", why);
        let (kind, rest) = text.split_once(':').ok_or_else(|| {
            bad("it must have the form dataset:TENANT/NAME@VERSION, model:… or checkpoint:…")
        })?;
        let kind = match kind {
            "dataset" => ResourceKind::Dataset,
            "model" => ResourceKind::Model,
            "checkpoint" => ResourceKind::Checkpoint,
            _ => return Err(bad("its kind is not one of dataset, model, checkpoint")),
        };
        let (tenant, rest) = rest.split_once('/').ok_or_else(|| bad("it has no tenant"))?;
        tenant.parse::<TenantName>().map_err(|_| bad("its tenant is not a tenant name"))?;
        let (name, version) = match rest.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (rest, None),
        };
        check_part(name).map_err(bad)?;
        if let Some(version) = version {
            check_part(version).map_err(bad)?;
            if kind == ResourceKind::Checkpoint {
                return Err(bad("a checkpoint line has no version"));
            }
        }
        Ok(ResourceName { kind, text: text.into() })
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
text_form!(ResourceName, as_str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_parts() {
        let n: ResourceName = "dataset:acme/tickets@v3".parse().unwrap();
        assert_eq!((n.tenant().as_str(), n.name(), n.version()), ("acme", "tickets", Some("v3")));
        assert_eq!(n.unversioned().as_str(), "dataset:acme/tickets");
        let c: ResourceName = "checkpoint:acme/support-lora".parse().unwrap();
        assert_eq!((c.kind(), c.version()), (ResourceKind::Checkpoint, None));
        assert_eq!(c.unversioned(), c);
    }

    #[test]
    fn names_that_climb_hide_or_overrun_are_refused() {
        for t in [
            "dataset:acme/../x@v1",
            "dataset:acme/a..b@v1",
            "dataset:acme/@v1",
            "dataset:acme/a@",
            "dataset:acme/a/b@v1",
            "dataset:ACME/a@v1",
            "dataset:/a@v1",
            "volume:acme/a@v1",
            "checkpoint:acme/a@v1",
            "acme/a@v1",
            "dataset:acme/a@v1\n",
            "dataset:acme/a@v1@v2",
        ] {
            assert!(t.parse::<ResourceName>().is_err(), "{t:?}");
        }
    }
}
