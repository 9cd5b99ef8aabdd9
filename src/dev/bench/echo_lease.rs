//! The decisions and the lease that the echo makes for an issue or a renewal, with the code of the daemon.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use tonic::Status;

use super::echo_work::failed;
use crate::{
    catalog::Catalog,
    clock::Clock,
    fence::{Registry, Seq},
    lease::{Facts, Lease, Quotas, Table, Terms},
    ledger::CredentialIssued,
    name::{Action, FenceName, LeaseId, Object, SpiffeId},
    policy::{
        Asker, Bundle, Call, Decision, Engine, Explain, Grant, JobRisk, Phase, PolicySource, Relation,
        RequestFacts, Rpc, Verdict,
    },
};

/// Decides about issues and renewals as the daemon does, and keeps the leases.
pub(super) struct LeaseMaker {
    engine: Engine,
    fences: Registry,
    table: Table,
    names: Vec<FenceName>,
    facts: Arc<Facts>,
    parts: Vec<(Action, Object)>,
    risk: JobRisk,
    launcher: SpiffeId,
    job: String,
    record: CredentialIssued,
    clock: Arc<dyn Clock>,
}

impl LeaseMaker {
    /// Reads the catalog and the policy in the folder of a deployment. Each lease will be like the lease of `record`, behind the
    /// fences with these names.
    pub(super) fn open(
        folder: &Path,
        record: CredentialIssued,
        names: Vec<FenceName>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let catalog = Catalog::load(&folder.join("catalog.d")).map_err(|e| e.to_string())?;
        let source = PolicySource::Dir(folder.join("policy"));
        let engine = Engine::load(&source, &catalog, Explain::Requester).map_err(|e| e.to_string())?;
        let parts = record.scopes.iter().flat_map(|s| s.actions.iter().map(|action| (*action, s.name())));
        let all = usize::MAX;
        Ok(LeaseMaker {
            engine,
            fences: Registry::new(Seq(0)),
            table: Table::new(Quotas { job: all, holder: all, tenant: all, daemon: all }),
            names,
            facts: Arc::new(Facts {
                tenant: record.tenant.clone(),
                job: record.job,
                attempt: record.attempt,
                instance: record.instance.clone(),
                holder: record.member.clone(),
                half: record.half,
                audience: record.audience.clone(),
                scopes: record.scopes.as_slice().into(),
            }),
            parts: parts.collect(),
            risk: JobRisk::default(),
            launcher: record.launcher.clone(),
            job: record.job.to_string(),
            record,
            clock,
        })
    }

    /// Makes the four decisions of an issue, or of the renewal of this lease: about the call of the member, the call of the launcher,
    /// the work of the launcher, and the credential.
    pub(super) fn decide(&self, renewed: Option<LeaseId>) -> Result<Grant, Status> {
        let lease = renewed.and_then(|id| self.table.find(id));
        let stand = match lease {
            Some(lease) => self.fences.stand_again(lease.stand()),
            None => self.fences.stand(self.names.iter().cloned()),
        };
        let rpc = if renewed.is_some() { Rpc::RenewLease } else { Rpc::IssueCredential };
        let member: &[Relation] = &[Relation::Join, Relation::Member];
        for (caller, rpc, relations) in
            [(&self.facts.holder, rpc, member), (&self.launcher, Rpc::CreateJob, &[Relation::Launcher])]
        {
            let (tenant, now) = (Some(&self.facts.tenant), self.clock.now().wall);
            let call = Call { caller, rpc, tenant, relations, now, reason: &self.record.why, amr: &[] };
            self.engine.authorize(&call).map_err(|refusal| failed(&refusal.text))?;
        }
        let approved = BTreeSet::new();
        let launch = self.bundle(Phase::Creating, 0, "", &approved);
        if let Verdict::Deny { refusal, .. } = self.engine.judge(Asker::Identity(&self.launcher), &launch) {
            return Err(failed(&refusal.text));
        }
        let binding = &self.record.credential.binding;
        let bundle = self.bundle(Phase::Running, self.facts.attempt.value(), binding, &approved);
        match self.engine.decide(&self.facts.holder, &bundle, stand, self.fences.revision()) {
            Decision::Grant(grant) => Ok(grant),
            Decision::Denied { refusal, .. } => Err(failed(&refusal.text)),
            Decision::Waiting { .. } => Err(failed("the policy asks for approvals")),
        }
    }

    fn bundle<'a>(
        &'a self,
        phase: Phase,
        attempt: u64,
        binding: &'a str,
        approved: &'a BTreeSet<String>,
    ) -> Bundle<'a> {
        Bundle {
            job: &self.job,
            tenant: &self.facts.tenant,
            attempt,
            phase,
            purpose: &self.record.purpose,
            facts: RequestFacts { why: &self.record.why, ..RequestFacts::default() },
            risk: &self.risk,
            method: self.record.method,
            ttl: self.record.expires.since(self.record.issued),
            now: self.clock.now().wall,
            approved,
            own_checkpoint: true,
            binding,
            parts: &self.parts,
        }
    }

    /// Renews the lease with this id, or adds a lease if the table has none with this id.
    pub(super) fn renew_or_insert(&self, id: LeaseId, grant: Grant) -> Result<Arc<Lease>, Status> {
        let issued = self.clock.now().lease;
        let deadline = issued.plus(self.record.expires.since(self.record.issued));
        if let Some(lease) = self.table.find(id) {
            let next = lease.generation().saturating_add(1);
            let renewed = lease.renew(&grant, next, issued, deadline);
            return renewed.map(|()| lease).map_err(|refused| failed(&refused.to_string()));
        }
        let facts = self.facts.clone();
        let terms = Terms { id, issued, deadline, latest: deadline, facts, s3_secret: None };
        self.table.insert(grant, terms).map_err(|unborn| failed(&unborn.to_string()))
    }
}
