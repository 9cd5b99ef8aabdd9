//! Resources: datasets, models and checkpoint lines.

use std::collections::BTreeSet;

use crate::{
    clock::Wall,
    name::{Pin, ResourceName, SpiffeId, TenantName},
};

super::words! {
    /// How confidential a dataset is.
    Classification {
        Public = "public",
        Internal = "internal",
        Confidential = "confidential",
        Restricted = "restricted",
    }
}
super::words! {
    /// How far the source of a dataset is trusted.
    SourceTrust {
        Curated = "curated",
        Reviewed = "reviewed",
        Untrusted = "untrusted",
    }
}
super::words! {
    /// How much depends on a model.
    Tier {
        Production = "production",
        Staging = "staging",
        Lab = "lab",
        Sandbox = "sandbox",
    }
}
super::words! {
    /// The environment that a model runs in.
    Environment {
        Production = "production",
        Staging = "staging",
        Development = "development",
    }
}
super::words! {
    /// What harm a changed model could do.
    Risk {
        Low = "low",
        Medium = "medium",
        High = "high",
    }
}
super::words! {
    /// What tools a model can call.
    ToolAccess {
        None = "none",
        Sandbox = "sandbox",
        Production = "production",
    }
}
super::words! {
    /// Whether the bytes can be reached only through the resource server that the entry names as `audience`.
    Enforcement {
        Audience = "audience",
        /// They can be reached in other ways too, such as by a user id on a shared file system. Each lease says so.
        Advisory = "advisory",
    }
}

/// A dataset, a model or a checkpoint line.
#[derive(Clone, Debug)]
pub struct Resource {
    pub name: ResourceName,
    pub tenant: TenantName,
    /// The resource's folder, as a URL that ends in a slash.
    pub location: String,
    /// The audience that serves it to holders of a credential.
    pub audience: SpiffeId,
    pub pin: Pin,
    /// The owner to ask. Printed in every refusal.
    pub owner: String,
    pub enforced: Enforcement,
    /// Other tenants whose jobs may read it.
    pub shared_with: BTreeSet<TenantName>,
    pub facts: ResourceFacts,
    /// The file and line of its entry, for example `acme.toml:40`.
    pub declared: String,
}

/// The facts that only one kind of resource has.
#[derive(Clone, Debug)]
pub enum ResourceFacts {
    Dataset(DatasetFacts),
    Model(ModelFacts),
    Checkpoint(CheckpointFacts),
}

#[derive(Clone, Debug)]
pub struct DatasetFacts {
    pub classification: Classification,
    pub data_classes: BTreeSet<String>,
    pub source_trust: SourceTrust,
    /// What it may be used for.
    pub purposes: BTreeSet<String>,
    /// The moment from which no one may read it.
    pub retain_until: Option<Wall>,
}

#[derive(Clone, Debug)]
pub struct ModelFacts {
    pub tier: Tier,
    pub environment: Environment,
    pub risk: Risk,
    pub tool_access: ToolAccess,
}

/// A checkpoint line. Each job and attempt that writes to it has a folder below its location.
#[derive(Clone, Debug)]
pub struct CheckpointFacts {
    /// The model that its checkpoints are tuned from.
    pub model: ResourceName,
}

impl Resource {
    /// Whether a tenant may know that it exists.
    pub fn visible_to(&self, tenant: &TenantName) -> bool {
        self.tenant == *tenant || self.shared_with.contains(tenant)
    }

    pub fn dataset(&self) -> Option<&DatasetFacts> {
        match &self.facts {
            ResourceFacts::Dataset(facts) => Some(facts),
            ResourceFacts::Model(_) | ResourceFacts::Checkpoint(_) => None,
        }
    }

    pub fn model(&self) -> Option<&ModelFacts> {
        match &self.facts {
            ResourceFacts::Model(facts) => Some(facts),
            ResourceFacts::Dataset(_) | ResourceFacts::Checkpoint(_) => None,
        }
    }

    pub fn checkpoint(&self) -> Option<&CheckpointFacts> {
        match &self.facts {
            ResourceFacts::Checkpoint(facts) => Some(facts),
            ResourceFacts::Dataset(_) | ResourceFacts::Model(_) => None,
        }
    }
}
