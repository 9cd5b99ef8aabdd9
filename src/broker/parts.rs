//! The broker: one part for each group of use cases, over one context.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use super::{
    access::AccessControl,
    approvals::ApprovalUseCases,
    approved::human_of,
    context::{BrokerContext, BrokerSettings},
    credentials::CredentialUseCases,
    decide::Decisions,
    denials::Denials,
    endings::Endings,
    evaluate::PolicyUseCases,
    jobs::JobUseCases,
    joining::Joining,
    leases::LeaseUseCases,
    logins::LoginUseCases,
    members::MemberUseCases,
    operators::OperatorUseCases,
    prepared::PreparedCredentials,
    receipt::Receipts,
    record_stream::TenantReaders,
    records::RecordUseCases,
    reload::RuleUseCases,
    sweeps::Sweeps,
    tickets::Tickets,
    use_reports::UseReporters,
    verifiers::VerifierUseCases,
    wording::Tokens,
};
use crate::{
    clock::Clock,
    fence::Registry,
    job::Job,
    ledger::Ledger,
    name::{HumanName, JobId, LeaseId, SpiffeId, TenantName},
    secret::NoRandomness,
};

/// The use cases, grouped by subject.
pub struct Broker {
    pub(super) context: Arc<BrokerContext>,
    pub(super) endings: Endings,
    pub access: AccessControl,
    pub jobs: JobUseCases,
    pub approvals: ApprovalUseCases,
    pub members: MemberUseCases,
    pub credentials: CredentialUseCases,
    pub leases: LeaseUseCases,
    pub logins: LoginUseCases,
    pub operators: OperatorUseCases,
    pub rules: RuleUseCases,
    pub policies: PolicyUseCases,
    pub records: RecordUseCases,
    pub verifiers: VerifierUseCases,
}

impl Broker {
    /// Makes the parts and joins them.
    pub fn new(context: BrokerContext, tickets: Tickets) -> Result<Arc<Self>, NoRandomness> {
        let context = Arc::new(context);
        let access = AccessControl { context: context.clone() };
        let decisions = Decisions { context: context.clone() };
        let endings = Endings { context: context.clone() };
        let sweeps =
            Sweeps { context: context.clone(), decisions: decisions.clone(), endings: endings.clone() };
        let tokens = Tokens { context: context.clone() };
        let joining =
            Joining { context: context.clone(), access: access.clone(), decisions: decisions.clone() };
        Ok(Arc::new(Broker {
            jobs: JobUseCases {
                context: context.clone(),
                access: access.clone(),
                decisions: decisions.clone(),
                endings: endings.clone(),
                joining: joining.clone(),
                tokens: tokens.clone(),
                tickets,
            },
            approvals: ApprovalUseCases {
                context: context.clone(),
                access: access.clone(),
                decisions: decisions.clone(),
                endings: endings.clone(),
                sweeps: sweeps.clone(),
            },
            members: MemberUseCases {
                context: context.clone(),
                access: access.clone(),
                endings: endings.clone(),
                joining,
            },
            credentials: CredentialUseCases {
                context: context.clone(),
                access: access.clone(),
                decisions: decisions.clone(),
                endings: endings.clone(),
                prepared: PreparedCredentials::new(tokens.clone()),
                tokens,
            },
            logins: LoginUseCases::new(context.clone(), access.clone(), endings.clone()),
            leases: LeaseUseCases { context: context.clone(), access: access.clone() },
            operators: OperatorUseCases {
                context: context.clone(),
                access: access.clone(),
                endings: endings.clone(),
                sweeps: sweeps.clone(),
            },
            rules: RuleUseCases {
                context: context.clone(),
                access: access.clone(),
                decisions: decisions.clone(),
                sweeps,
                reloading: Mutex::new(()),
            },
            policies: PolicyUseCases { context: context.clone(), access: access.clone(), decisions },
            records: RecordUseCases {
                context: context.clone(),
                access: access.clone(),
                receipts: Receipts::new()?,
                readers: TenantReaders::default(),
            },
            verifiers: VerifierUseCases {
                context: context.clone(),
                access: access.clone(),
                reporters: UseReporters::default(),
            },
            context,
            endings,
            access,
        }))
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.context.clock
    }

    pub fn epoch(&self) -> u64 {
        self.context.epoch
    }

    pub fn settings(&self) -> &BrokerSettings {
        &self.context.settings
    }

    pub fn ledger(&self) -> &Ledger {
        &self.context.ledger
    }

    pub fn denials(&self) -> &Denials {
        &self.context.denials
    }

    pub fn fences(&self) -> &Registry {
        &self.context.fences
    }

    /// Sets the gauges of leases, fences and the catalog for `/metrics`.
    pub fn measure(&self) {
        metrics::gauge!("leasehold_leases_live").set(self.context.table.len() as f64);
        metrics::gauge!("leasehold_fences").set(self.context.fences.len() as f64);
        let mistakes = self.context.rules().catalog().not_taken().len();
        metrics::gauge!("leasehold_catalog_mistakes").set(mistakes as f64);
        let now = self.context.clock.now().wall;
        let rules = self.context.rules();
        let observed = rules.catalog().exceptions().observed.iter().filter(|o| now < o.until).count();
        metrics::gauge!("leasehold_tenants_observed").set(observed as f64);
        metrics::gauge!("leasehold_reviews_due").set(self.context.state.reviews_due(None) as f64);
        metrics::gauge!("leasehold_issuing_held").set(f64::from(u8::from(self.context.is_held())));
    }

    /// Returns a job that is open or was closed recently.
    pub fn job(&self, id: JobId) -> Option<Arc<Job>> {
        self.context.state.job(id)
    }

    /// Waits until every approval of a job that is on disk has taken effect.
    pub async fn settled(&self, id: JobId) {
        self.context.state.settled(id).await;
    }

    /// Returns the tenants of the open jobs in which a person is involved: as launcher, approver or member, or because
    /// the job acts for the person.
    pub fn tenants_of_person(&self, human: &HumanName) -> BTreeSet<TenantName> {
        let rules = self.context.rules();
        let is = |id: &SpiffeId| human_of(&rules, id).as_ref() == Some(human);
        let concerns = |job: &Job| {
            job.acting_for.as_ref() == Some(human)
                || is(&job.launcher)
                || job.approvals.iter().any(|a| a.human.as_ref() == Some(human) || is(&a.by))
                || job.current().is_some_and(|attempt| attempt.members.identities().any(is))
        };
        let jobs = self.context.state.open_jobs();
        jobs.iter().filter(|job| concerns(job)).map(|job| job.spec.tenant.clone()).collect()
    }

    /// Returns the tenant of an identity in the present catalog.
    pub fn tenant_of_identity(&self, id: &SpiffeId) -> Option<TenantName> {
        self.context.rules().catalog().principal(id).map(|p| p.tenant.clone())
    }

    /// Returns the tenant of a lease that is live or ended recently.
    pub fn tenant_of_lease(&self, id: LeaseId) -> Option<TenantName> {
        self.context.lease_tenant(id)
    }

    /// Refuses all requests for access from now on, or accepts them again.
    pub fn hold(&self, held: bool) {
        self.context.hold(held);
    }

    pub fn live_leases(&self) -> usize {
        self.context.table.len()
    }

    pub fn open_jobs(&self) -> usize {
        self.context.state.open_jobs().len()
    }
}
