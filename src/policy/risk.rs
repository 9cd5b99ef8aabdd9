//! The risk of a job. It is computed from the catalog, because a launcher must not rate its own job.

use std::collections::BTreeSet;

use crate::{
    catalog::{
        Catalog, Classification, Enforcement, IdentityUse, Principal, Resource, ResourceFacts, Risk,
        SourceTrust, Tier, ToolAccess,
    },
    name::{Pin, PrincipalKind, ResourceName, TenantName},
};

/// One reason for which a job is risky.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RiskReason {
    /// The job reads data of the class `pii` or `phi`.
    PersonalData,
    /// The job reads data of the class `credentials`.
    CredentialsInData,
    /// The job reads data of the class `source-code`.
    SourceCode,
    /// The job reads data that is classified as restricted.
    RestrictedData,
    /// The job reads data from a source that is not trusted.
    UntrustedSource,
    /// The job opens a resource that another tenant shares.
    ForeignData,
    /// The job reads a version without a pin, so the bytes may change.
    UnpinnedInput,
    /// The job reads a resource that programs can also reach without Leasehold.
    AdvisoryInput,
    /// The job reads or tunes a production model.
    ProductionModel,
    /// The job reads or tunes a model that can call production tools.
    ProductionTools,
    /// The job reads or tunes a model that the catalog lists with `risk = "high"`.
    HighRiskModel,
    /// The job's workload has an identity that several jobs may share.
    SharedIdentity,
}

impl RiskReason {
    const fn as_str(self) -> &'static str {
        match self {
            RiskReason::PersonalData => "personal-data",
            RiskReason::CredentialsInData => "credentials-in-data",
            RiskReason::SourceCode => "source-code",
            RiskReason::RestrictedData => "restricted-data",
            RiskReason::UntrustedSource => "untrusted-source",
            RiskReason::ForeignData => "foreign-data",
            RiskReason::UnpinnedInput => "unpinned-input",
            RiskReason::AdvisoryInput => "advisory-input",
            RiskReason::ProductionModel => "production-model",
            RiskReason::ProductionTools => "production-tools",
            RiskReason::HighRiskModel => "high-risk-model",
            RiskReason::SharedIdentity => "shared-identity",
        }
    }

    /// Returns the weight in the score: 3 if people or production can be harmed, 1 if a mistake becomes more likely.
    const fn weight(self) -> u32 {
        match self {
            RiskReason::PersonalData
            | RiskReason::CredentialsInData
            | RiskReason::RestrictedData
            | RiskReason::UntrustedSource
            | RiskReason::ProductionModel
            | RiskReason::ProductionTools => 3,
            RiskReason::HighRiskModel | RiskReason::SourceCode => 2,
            RiskReason::ForeignData
            | RiskReason::UnpinnedInput
            | RiskReason::AdvisoryInput
            | RiskReason::SharedIdentity => 1,
        }
    }
}

/// The risk of a job: a closed set of reasons, and a score.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobRisk(BTreeSet<RiskReason>);

impl JobRisk {
    /// Computes the risk of a job of `tenant` whose members have these entries and open these resources. A resource
    /// that is not in the catalog adds nothing, because a decision refuses it in any case.
    pub fn of<'a>(
        catalog: &Catalog,
        tenant: &TenantName,
        resources: impl IntoIterator<Item = &'a ResourceName>,
        holders: impl IntoIterator<Item = &'a Principal>,
    ) -> Self {
        let mut reasons = BTreeSet::new();
        for resource in resources.into_iter().filter_map(|name| catalog.resource(name)) {
            add_reasons(resource, tenant, &mut reasons);
            let model = resource.checkpoint().and_then(|line| catalog.resource(&line.model));
            if let Some(model) = model {
                add_reasons(model, tenant, &mut reasons);
            }
        }
        let is_shared =
            |p: &Principal| p.kind == PrincipalKind::Workload && p.identity == IdentityUse::Shared;
        if holders.into_iter().any(is_shared) {
            reasons.insert(RiskReason::SharedIdentity);
        }
        JobRisk(reasons)
    }

    /// Returns the sum of the weights of the reasons.
    pub fn score(&self) -> u32 {
        self.0.iter().map(|reason| reason.weight()).sum()
    }

    /// Returns the words of the reasons, sorted.
    pub fn reasons(&self) -> Vec<&'static str> {
        let mut words: Vec<_> = self.0.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words
    }
}

fn add_reasons(resource: &Resource, tenant: &TenantName, reasons: &mut BTreeSet<RiskReason>) {
    let mut add = |is_so: bool, reason| {
        if is_so {
            reasons.insert(reason);
        }
    };
    add(resource.tenant != *tenant, RiskReason::ForeignData);
    match &resource.facts {
        ResourceFacts::Dataset(data) => {
            let has = |class: &str| data.data_classes.contains(class);
            add(has("pii") || has("phi"), RiskReason::PersonalData);
            add(has("credentials"), RiskReason::CredentialsInData);
            add(has("source-code"), RiskReason::SourceCode);
            add(data.classification == Classification::Restricted, RiskReason::RestrictedData);
            add(data.source_trust == SourceTrust::Untrusted, RiskReason::UntrustedSource);
        }
        ResourceFacts::Model(model) => {
            add(model.tier == Tier::Production, RiskReason::ProductionModel);
            add(model.tool_access == ToolAccess::Production, RiskReason::ProductionTools);
            add(model.risk == Risk::High, RiskReason::HighRiskModel);
        }
        ResourceFacts::Checkpoint(_) => return,
    }
    add(resource.pin == Pin::None, RiskReason::UnpinnedInput);
    add(resource.enforced == Enforcement::Advisory, RiskReason::AdvisoryInput);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn risk(tenant: &str, resources: &[&str], holder: &str) -> JobRisk {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/catalog.d");
        let catalog = Catalog::load(&dir).unwrap();
        let names: Vec<ResourceName> = resources.iter().map(|name| name.parse().unwrap()).collect();
        let holder = catalog.principal(&holder.parse().unwrap()).map(|p| &**p);
        JobRisk::of(&catalog, &tenant.parse().unwrap(), &names, holder)
    }

    const OWN: &str = "spiffe://k8s.acme.example/ns/ml/job/j1";
    const SHARED: &str = "spiffe://hpc.acme.example/slurm/ml-support/node7";

    /// The reasons come from the resources that a job opens, and from the model of the checkpoint line that it writes.
    #[test]
    fn the_reasons_of_a_risk_come_from_the_catalog() {
        let quiet = risk("acme", &["dataset:acme/tickets@v1", "model:acme/base-1b@2026.04"], OWN);
        assert_eq!((quiet.score(), quiet.reasons()), (0, vec![]));
        let tickets = risk("acme", &["dataset:acme/tickets@v3"], OWN);
        assert_eq!((tickets.score(), tickets.reasons()), (6, vec!["personal-data", "restricted-data"]));
        let line = risk("acme", &["checkpoint:acme/support-lora"], SHARED);
        assert_eq!(line.reasons(), ["high-risk-model", "production-model", "shared-identity"]);
        assert_eq!(line.score(), 6);
        let corpus = risk("globex", &["dataset:acme/corpus@2026-10"], OWN);
        assert_eq!(corpus.reasons(), ["advisory-input", "foreign-data", "unpinned-input"]);
    }

    #[test]
    fn unknown_resources_and_no_holder_have_no_risk() {
        assert_eq!(risk("acme", &["dataset:acme/absent@v1"], "spiffe://td/none"), JobRisk::default());
    }
}
