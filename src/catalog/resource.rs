//! Resources: datasets, models and checkpoint lines.

use std::collections::BTreeSet;

use crate::{
    clock::Wall,
    name::{Pin, ResourceName, SpiffeId, TenantName},
};

super::words! {
    /// The confidentiality of a dataset.
    Classification {
        Public = "public",
        Internal = "internal",
        Confidential = "confidential",
        Restricted = "restricted",
    }
}
super::words! {
    /// The trust in the source of a dataset.
    SourceTrust {
        Curated = "curated",
        Reviewed = "reviewed",
        Untrusted = "untrusted",
    }
}
super::words! {
    /// The importance of a model.
    Tier {
        Production = "production",
        Staging = "staging",
        Lab = "lab",
        Sandbox = "sandbox",
    }
}
super::words! {
    /// The environment in which a model runs.
    Environment {
        Production = "production",
        Staging = "staging",
        Development = "development",
    }
}
super::words! {
    /// The harm that a changed model could do.
    Risk {
        Low = "low",
        Medium = "medium",
        High = "high",
    }
}
super::words! {
    /// The tools that a model can call.
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
        /// The bytes can be reached in other ways too, such as by a user id on a shared file system. Each lease says
        /// so.
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
    /// The audience that serves the resource to holders of a credential.
    pub audience: SpiffeId,
    pub pin: Pin,
    /// The owner of the resource. Every refusal names the owner.
    pub owner: String,
    pub enforced: Enforcement,
    /// Other tenants whose jobs may read the resource.
    pub shared_with: BTreeSet<TenantName>,
    pub facts: ResourceFacts,
    /// The file and line of the entry, for example `acme.toml:40`.
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
    /// The purposes for which the dataset may be used.
    pub purposes: BTreeSet<String>,
    /// The time from which the dataset must not be read.
    pub retain_until: Option<Wall>,
}

#[derive(Clone, Debug)]
pub struct ModelFacts {
    pub tier: Tier,
    pub environment: Environment,
    pub risk: Risk,
    pub tool_access: ToolAccess,
}

/// The facts of a checkpoint line. Each job and attempt writes to its own folder below the location of the line.
#[derive(Clone, Debug)]
pub struct CheckpointFacts {
    /// The model from which the checkpoints are tuned.
    pub model: ResourceName,
}

impl Resource {
    /// Whether a tenant may know that the resource exists.
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
