//! The ledger as one tenant may read it: which records, and which of their fields.
//!
//! A tenant reads what happened to its own jobs, members, leases, identities, resources and locks, and which jobs of
//! other tenants used its data. It learns nothing else about other tenants. It learns no count that covers all tenants,
//! so a record loses its index and the count of lowerings. A list names the fields that may be shown of other tenants,
//! so a new field is hidden at first.
//!
//! Most records name a job or a lease, but not its tenant. The view remembers the jobs and leases that concern its
//! tenant, in the order of the records. If a job or lease began before the first record, the view looks it up in the
//! present state.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use serde_json::{Map, Value};

use super::context::BrokerContext;
use crate::{
    ledger::{Cause, CredentialIssued, Event, JobCreated, Record, UseRecord},
    limits,
    name::{Digest, FenceKind, FenceName, JobId, LeaseId, ResourceName, SpiffeId, TenantName},
    state::LockName,
};

/// The relation of a job or lease to the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stake {
    /// The job or lease belongs to the tenant.
    Own,
    /// The job or lease belongs to another tenant and uses data of this tenant.
    Data,
}

/// The fields of an event that the tenant sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fields {
    All,
    /// Only these fields. In lists of resources, only the resources of the tenant.
    Only(&'static [&'static str]),
}

/// The tenant has more jobs or leases than a view can remember.
#[derive(Debug)]
pub(super) struct TooManyFollowed;

/// The records of one tenant, read in order.
pub(super) struct TenantView {
    context: Arc<BrokerContext>,
    tenant: TenantName,
    jobs: HashMap<JobId, Stake>,
    /// Closed jobs, in the order of their ends. If there are too many, the view forgets the oldest one.
    closed: VecDeque<JobId>,
    leases: HashMap<LeaseId, Stake>,
    /// The newest records that were shown, by index. A record that withdraws one of them names its index, and the tenant
    /// gets the hash instead.
    shown: VecDeque<(u64, Digest)>,
}

impl TenantView {
    pub(super) fn new(context: Arc<BrokerContext>, tenant: TenantName) -> Self {
        TenantView {
            context,
            tenant,
            jobs: HashMap::new(),
            closed: VecDeque::new(),
            leases: HashMap::new(),
            shown: VecDeque::new(),
        }
    }

    /// Remembers the live leases, for a reader that begins in the middle of the ledger.
    pub(super) fn remember_live_leases(&mut self) {
        let mut found = Vec::new();
        self.context.table.each(None, |lease| {
            let stake = self.stake(&lease.facts.tenant, lease.facts.scopes.iter().map(|s| &s.resource));
            found.extend(stake.map(|stake| (lease.id, stake)));
        });
        self.leases.extend(found);
    }

    /// Returns a record as the tenant sees it, as one line of JSON. `None` if it does not concern the tenant.
    pub(super) fn show(
        &mut self,
        mut record: Record,
        hash: Digest,
    ) -> Result<Option<String>, TooManyFollowed> {
        let fields = self.fields(&mut record.event);
        if self.jobs.len().max(self.leases.len()) > limits::RECORDS_FOLLOWED_MAX {
            return Err(TooManyFollowed);
        }
        let Some(fields) = fields else { return Ok(None) };
        let line = self.line(&record, fields, hash);
        self.shown.push_back((record.index, hash));
        if self.shown.len() > limits::RECORDS_WITHDRAWN_WITHIN {
            self.shown.pop_front();
        }
        Ok(Some(line))
    }

    /// Decides what the tenant sees of an event. Every kind of event needs an answer here.
    fn fields(&mut self, event: &mut Event) -> Option<Fields> {
        match event {
            // A restart of the daemon explains the end of all leases, so the tenant sees it. The other fields are about
            // all tenants.
            Event::EpochBegan(_) => {
                self.leases.clear();
                Some(Fields::Only(&[]))
            }
            Event::EpochEnded { .. } => Some(Fields::Only(&[])),
            // The tenant sees the digest of the policy, because its decisions name it. The digest of the catalog is
            // hidden, because it changes with each tenant's file.
            Event::CatalogLoaded { .. } => Some(Fields::Only(&["policy"])),
            Event::PolicyApplied { .. } => Some(Fields::Only(&["policy", "before"])),
            Event::PolicyNotApplied { .. } => Some(Fields::Only(&["policy"])),
            // Only the platform sees who changes the rules of all tenants.
            Event::ChangeProposed { .. } | Event::ChangeApproved { .. } | Event::ChangeClosed { .. } => None,
            Event::Snapshot(_) => None,
            // This record stands for records that were only counted, because too many were waiting. Some of them may be this
            // tenant's, so the tenant must know. Their number is about all tenants.
            Event::Coalesced(_) => Some(Fields::Only(&[])),

            Event::JobCreated(job) => self.job_created(job),
            Event::JobClosed { job, .. } => {
                let stake = self.job(*job);
                self.job_closed(*job);
                of_stake(stake?, &["job", "outcome", "at"])
            }
            Event::JobConflict { job, .. }
            | Event::JobApproved { job, .. }
            | Event::JobGlassBroken { job, .. }
            | Event::JobApprovalWithdrawn { job, .. }
            | Event::AttemptBegan { job, .. }
            | Event::AttemptDraining { job, .. }
            | Event::AttemptEnded { job, .. }
            | Event::MemberJoined { job, .. }
            | Event::MemberDraining { job, .. }
            | Event::MemberAway { job, .. }
            | Event::MemberLeft { job, .. }
            | Event::MemberLost { job, .. }
            | Event::Withdrawn { job, .. } => all_if(self.job(*job) == Some(Stake::Own)),

            // The job may be forgotten by then, so the record names the tenant.
            Event::ReviewDone { tenant, .. } => all_if(*tenant == self.tenant),

            Event::CredentialIssued(issued) => self.credential_issued(issued),
            Event::CredentialRenewed { lease, job, .. } => {
                let stake = self.lease(*lease).or_else(|| self.own_job(*job));
                of_stake(stake?, &["lease", "job", "attempt", "generation", "expires"])
            }
            Event::CredentialCancelled { lease, job, .. } => {
                let stake = self.lease(*lease).or_else(|| self.own_job(*job));
                self.leases.remove(lease);
                of_stake(stake?, &["lease", "job", "reason"])
            }
            Event::LeasesEnded { cause, leases, .. } => self.leases_ended(cause, leases),
            Event::DatasetRecalled { name, .. } | Event::DatasetUnrecalled { name, .. } => {
                all_if(name.tenant() == self.tenant)
            }
            // The tenant's own jobs read the recalled data, so the tenant may know its name.
            Event::OutputsQuarantined { jobs, .. } => {
                jobs.retain(|job| self.own_job(*job).is_some());
                all_if(!jobs.is_empty())
            }

            Event::JobUsed { job, uses, .. } => self.job_used(*job, uses),
            Event::UseLost { audience, .. } => all_if(self.owns_audience(audience)),

            Event::Lowered { name, .. } | Event::Revoked { name, .. } => all_if(self.owns(name)),
            Event::LockSet { name, of, .. } => {
                all_if(of.as_ref() == Some(&self.tenant) || self.owns_lock(name))
            }
            Event::LockLifted { name, .. } => all_if(self.owns_lock(name)),
            Event::PersonLoggedIn(login) => all_if(self.is_own_identity(&login.person)),
            Event::PersonLoggedOut { person, .. } => all_if(self.is_own_identity(person)),
            Event::Denied { by, .. } => {
                all_if(by.parse::<SpiffeId>().is_ok_and(|id| self.is_own_identity(&id)))
            }
        }
    }

    /// Returns the fields of a use report. The owner of data sees who used it, and nothing about the job's other
    /// resources.
    fn job_used(&self, job: JobId, uses: &mut Vec<UseRecord>) -> Option<Fields> {
        if self.own_job(job).is_some() {
            return Some(Fields::All);
        }
        uses.retain(|used| used.resource.resource().tenant() == self.tenant);
        (!uses.is_empty()).then_some(Fields::Only(&["job", "audience", "uses"]))
    }

    fn owns_audience(&self, audience: &SpiffeId) -> bool {
        self.context.rules().catalog().audience(audience).is_some_and(|a| a.tenant == self.tenant)
    }

    fn job_created(&mut self, created: &JobCreated) -> Option<Fields> {
        let used = created.inputs.iter().map(|i| &i.resource).chain(&created.outputs);
        let stake =
            self.stake(&created.spec.tenant, used.chain(&created.spec.read).chain(&created.spec.write))?;
        self.jobs.insert(created.job, stake);
        of_stake(stake, &["job", "spec", "inputs", "at", "ends"])
    }

    fn job_closed(&mut self, job: JobId) {
        if self.jobs.contains_key(&job) {
            self.closed.push_back(job);
        }
        if self.closed.len() > limits::JOBS_CLOSED_MAX
            && let Some(oldest) = self.closed.pop_front()
        {
            self.jobs.remove(&oldest);
        }
    }

    fn credential_issued(&mut self, issued: &CredentialIssued) -> Option<Fields> {
        let stake = self.stake(&issued.tenant, issued.scopes.iter().map(|s| &s.resource))?;
        self.leases.insert(issued.lease, stake);
        let seen_by_data_owner = &[
            "lease",
            "job",
            "attempt",
            "tenant",
            "instance",
            "member",
            "purpose",
            "half",
            "audience",
            "scopes",
            "inputs",
            "issued",
            "expires",
            "expires_at_latest",
        ];
        of_stake(stake, seen_by_data_owner)
    }

    fn leases_ended(&mut self, cause: &Cause, leases: &mut Vec<LeaseId>) -> Option<Fields> {
        let mut has_own = false;
        leases.retain(|id| {
            let stake = self.lease(*id);
            has_own |= stake == Some(Stake::Own);
            stake.is_some()
        });
        for id in &*leases {
            self.leases.remove(id);
        }
        if leases.is_empty() {
            return None;
        }
        if has_own {
            return Some(Fields::All);
        }
        // If the lowered fence is not of this tenant, its name is hidden: it may be an identity or person of another tenant.
        match cause {
            Cause::Lowered { name, .. } if !self.owns(name) => Some(Fields::Only(&["leases"])),
            Cause::Lowered { .. } | Cause::Expired | Cause::Released | Cause::NoLongerAllowed { .. } => {
                Some(Fields::Only(&["leases", "cause"]))
            }
        }
    }

    fn stake<'a>(&self, of: &TenantName, mut uses: impl Iterator<Item = &'a ResourceName>) -> Option<Stake> {
        match *of == self.tenant {
            true => Some(Stake::Own),
            false => uses.any(|r| r.tenant() == self.tenant).then_some(Stake::Data),
        }
    }

    fn job(&self, id: JobId) -> Option<Stake> {
        self.jobs.get(&id).copied().or_else(|| {
            let job = self.context.state.job(id)?;
            self.stake(&job.spec.tenant, job.spec.resources())
        })
    }

    fn own_job(&self, id: JobId) -> Option<Stake> {
        self.job(id).filter(|stake| *stake == Stake::Own)
    }

    fn lease(&self, id: LeaseId) -> Option<Stake> {
        self.leases.get(&id).copied().or_else(|| {
            let table = &self.context.table;
            let live = table.find(id).map(|lease| lease.facts.clone());
            let facts = live.or_else(|| table.find_ended(id).map(|ended| ended.facts))?;
            self.stake(&facts.tenant, facts.scopes.iter().map(|s| &s.resource))
        })
    }

    /// Whether a name belongs to the tenant. A name that can cover several tenants, such as a trust domain, belongs to
    /// no tenant.
    fn owns(&self, name: &FenceName) -> bool {
        match name.kind() {
            FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Human(_) | FenceKind::Image(_) => false,
            FenceKind::Tenant(tenant) => tenant == self.tenant,
            FenceKind::Resource(resource) => resource.tenant() == self.tenant,
            FenceKind::Identity(id) => self.is_own_identity(&id),
            FenceKind::Lease(lease) => self.lease(lease) == Some(Stake::Own),
            FenceKind::Job(job)
            | FenceKind::Attempt(job, _)
            | FenceKind::AttemptReading(job, _)
            | FenceKind::Member(job, ..)
            | FenceKind::MemberReading(job, ..) => self.job(job) == Some(Stake::Own),
        }
    }

    fn owns_lock(&self, name: &str) -> bool {
        match name.parse::<LockName>() {
            Ok(LockName::Name(name)) => self.owns(&name),
            Ok(LockName::Launcher(id)) => self.is_own_identity(&id),
            Ok(LockName::Recall(resource)) => resource.tenant() == self.tenant,
            Ok(LockName::Prefix(_)) | Err(_) => false,
        }
    }

    /// Whether the present catalog has the identity in this tenant.
    fn is_own_identity(&self, id: &SpiffeId) -> bool {
        self.context.rules().catalog().principal(id).is_some_and(|p| p.tenant == self.tenant)
    }

    /// Writes the line without its index, without the digest of the line before, and with its own hash. The hash covers
    /// all fields of the record. A reader could guess a hidden field and confirm the guess by the hash, but cannot
    /// guess the digest of the line before.
    fn line(&self, record: &Record, fields: Fields, hash: Digest) -> String {
        let mut map = match serde_json::to_value(&record.event) {
            Ok(Value::Object(map)) => map,
            Ok(_) | Err(_) => Map::new(),
        };
        let kind = map.remove("type").unwrap_or_default();
        match fields {
            Fields::All => {}
            Fields::Only(names) => {
                map.retain(|name, _| names.contains(&name.as_str()));
                self.keep_own_resources(&mut map);
            }
        }
        hide_counts(&mut map);
        self.hide_foreign_person(&mut map);
        if let Some(Value::Object(decision)) = map.get_mut("decision") {
            decision.remove("catalog");
        }
        if let Event::Withdrawn { index, .. } = &record.event {
            map.remove("index");
            if let Some((_, withdrawn)) = self.shown.iter().find(|(at, _)| at == index) {
                map.insert("record".to_owned(), withdrawn.to_string().into());
            }
        }
        let event = Value::Object(map).to_string();
        let event = event.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or_default();
        let comma = if event.is_empty() { "" } else { "," };
        format!(
            "{{\"v\":1,\"time\":\"{}\",\"epoch\":{},\"type\":{kind}{comma}{event},\"hash\":\"{hash}\"}}",
            record.time, record.epoch
        )
    }

    /// Leaves out which person another tenant's identity is. That is in the catalog file of that tenant.
    fn hide_foreign_person(&self, map: &mut Map<String, Value>) {
        let Some(Value::Object(by)) = map.get_mut("by") else { return };
        let id = by.get("spiffe_id").and_then(Value::as_str).and_then(|id| id.parse().ok());
        if !id.is_some_and(|id| self.is_own_identity(&id)) {
            by.remove("human");
        }
    }

    /// Reduces the record of another tenant to the parts about this tenant's resources.
    fn keep_own_resources(&self, map: &mut Map<String, Value>) {
        let is_own = |value: &Value| {
            let name = value.get("resource").unwrap_or(value).as_str();
            name.and_then(|name| name.parse::<ResourceName>().ok()).is_some_and(|r| r.tenant() == self.tenant)
        };
        let keep = |map: &mut Map<String, Value>, list: &str| {
            if let Some(Value::Array(items)) = map.get_mut(list) {
                items.retain(&is_own);
            }
        };
        keep(map, "inputs");
        keep(map, "scopes");
        if let Some(Value::Object(spec)) = map.get_mut("spec") {
            spec.retain(|name, _| ["tenant", "purpose", "read", "write"].contains(&name.as_str()));
            keep(spec, "read");
            keep(spec, "write");
        }
    }
}

/// Returns all fields if the job or lease is the tenant's own. If it only uses the tenant's data, returns these fields.
fn of_stake(stake: Stake, seen_by_data_owner: &'static [&'static str]) -> Option<Fields> {
    Some(match stake {
        Stake::Own => Fields::All,
        Stake::Data => Fields::Only(seen_by_data_owner),
    })
}

fn all_if(is_own: bool) -> Option<Fields> {
    is_own.then_some(Fields::All)
}

/// Removes the count of lowerings, because it covers all tenants.
fn hide_counts(map: &mut Map<String, Value>) {
    map.remove("stood_at");
    if let Some(Value::Object(ending)) = map.get_mut("ending") {
        ending.remove("seq");
    }
    if let Some(Value::Object(lowered)) = map.get_mut("cause").and_then(|cause| cause.get_mut("lowered")) {
        lowered.remove("seq");
    }
}
