//! Reads a record of the ledger, and says what people should know about it.

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};

use super::{
    occasion::Occasion,
    text::{list, short},
};
use crate::{
    clock::{LeaseTime, Wall},
    job::Job,
    ledger::{Actor, ApprovalRecord, ChangeOutcome, Ending, Event, JobCreated},
    name::{Digest, FenceKind, FenceName, HumanName, JobId, LeaseId, Outcome, SpiffeId, TenantName},
    state::LockName,
};

/// The parts of the daemon's present state that a notice needs.
pub trait NoticeLookup: Send + Sync + 'static {
    /// Returns the job, if it is open or was closed lately.
    fn job(&self, id: JobId) -> Option<Arc<Job>>;
    /// Resolves when every approval of the job that is on disk has taken effect.
    fn settled(&self, id: JobId) -> BoxFuture<'_, ()>;
    /// Returns the tenants whose open jobs depend on a person.
    fn tenants_of_person(&self, human: &HumanName) -> BTreeSet<TenantName>;
    /// Returns the tenant of an identity in the present catalog.
    fn tenant_of_identity(&self, id: &SpiffeId) -> Option<TenantName>;
    /// Returns the tenant of a lease that is live or ended lately.
    fn tenant_of_lease(&self, id: LeaseId) -> Option<TenantName>;
}

/// The facts of one record, for people.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NoticeFacts {
    pub(super) occasion: Occasion,
    /// The tenant of the record. `None` if the record belongs to several tenants or to no tenant.
    pub(super) tenant: Option<TenantName>,
    /// The other tenants that the record concerns, because their jobs depend on the person in it.
    pub(super) concerns: BTreeSet<TenantName>,
    /// The name that the record is about, such as `job:j-…`.
    pub(super) subject: String,
    /// One sentence about the record.
    pub(super) summary: String,
    pub(super) data: Map<String, Value>,
}

/// The kinds of records that may cause a notice. A reader skips all other records without parsing them.
const KINDS: [&str; 15] = [
    "job.created",
    "job.approved",
    "job.approval_withdrawn",
    "job.closed",
    "withdrawn",
    "dataset.recalled",
    "dataset.unrecalled",
    "revoked",
    "lock.set",
    "lock.lifted",
    "member.lost",
    "denied",
    "change.proposed",
    "change.approved",
    "change.closed",
];

const LEASES_ENDED: &str = "leases_ended";

/// Whether a line of the ledger may cause a notice.
pub(super) fn may_matter(line: &str) -> bool {
    // The first `"type":"` of a line belongs to the record, because the fields before it contain no text of people.
    let kind = line.split_once("\"type\":\"").and_then(|(_, rest)| rest.split_once('"'));
    kind.is_some_and(|(kind, _)| KINDS.contains(&kind))
}

/// Reads the facts of an event. `None` if people need not know about the event.
pub(super) fn facts_of(event: &Event, lookup: &dyn NoticeLookup, now: LeaseTime) -> Option<NoticeFacts> {
    match event {
        Event::JobCreated(created) => waiting(created),
        Event::JobApproved { job, approvals, .. } => Some(granted(*job, approvals, lookup, now)),
        Event::JobApprovalWithdrawn { job, gate, approver, detail, by, ending, .. } => {
            let mut facts = of_job(Occasion::Voided, *job, lookup, "an approval of it no longer counts");
            facts.put("gate", gate);
            facts.put("approver", approver.as_str());
            facts.put_end(by, detail, *ending);
            Some(facts)
        }
        Event::Withdrawn { job, why, .. } => {
            let mut facts = of_job(Occasion::Voided, *job, lookup, "a report about it did not take effect");
            facts.put("why", why);
            Some(facts)
        }
        Event::JobClosed { job, outcome, by, detail, ending, .. } => {
            let (occasion, what) = match outcome {
                Outcome::Rejected => (Occasion::Denied, "an approver rejected it"),
                Outcome::Expired => (Occasion::Voided, "it waited too long and was closed"),
                Outcome::Revoked => (Occasion::Revoked, "an operator ended its access"),
                Outcome::Lost => {
                    (Occasion::Lost, "its members are gone, and no one reported how its work ended")
                }
                _ => return None,
            };
            let mut facts = of_job(occasion, *job, lookup, what);
            facts.put("outcome", outcome.as_str());
            facts.put_end(by, detail, *ending);
            Some(facts)
        }
        Event::MemberLost { job, attempt, instance, detail, .. } => {
            let what = format!("its member {instance} is lost: {detail}");
            let mut facts = of_job(Occasion::Lost, *job, lookup, &what);
            facts.data.insert("attempt".to_owned(), json!(attempt.value()));
            facts.put("instance", instance.as_str());
            facts.put("why", detail);
            Some(facts)
        }
        Event::DatasetRecalled { .. }
        | Event::DatasetUnrecalled { .. }
        | Event::Revoked { .. }
        | Event::LockSet { .. }
        | Event::LockLifted { .. } => of_operator(event, lookup),
        Event::Denied { by, rpc, reason, text, rules, count } => {
            let tenant = by.parse().ok().and_then(|id| lookup.tenant_of_identity(&id));
            let summary = format!("{rpc} of {by} was refused: {text} ({})", reason.code());
            let mut facts = NoticeFacts::new(Occasion::Refused, tenant, by, &summary);
            facts.put("by", by);
            facts.put("rpc", rpc);
            facts.put("reason", reason.code());
            facts.put("text", text);
            facts.data.insert("rules".to_owned(), list(rules));
            facts.data.insert("count".to_owned(), json!(count));
            Some(facts)
        }
        Event::ChangeProposed { .. } | Event::ChangeApproved { .. } | Event::ChangeClosed { .. } => {
            of_change(event)
        }
        // A kind that is not named here causes no notice.
        _ => None,
    }
}

/// Reads what an operator did to a name.
fn of_operator(event: &Event, lookup: &dyn NoticeLookup) -> Option<NoticeFacts> {
    let (occasion, name, tenant, what, by, why, ending) = match event {
        Event::DatasetRecalled { name, by, reason, ending, .. } => {
            (Occasion::Recalled, name.to_string(), Some(name.tenant()), "was recalled", by, reason, *ending)
        }
        Event::DatasetUnrecalled { name, by, reason } => {
            let what = "is no longer recalled";
            (Occasion::Recalled, name.to_string(), Some(name.tenant()), what, by, reason, Ending::default())
        }
        Event::Revoked { name, by, reason, ending } => {
            let tenant = tenant_of(name, lookup);
            (Occasion::Revoked, name.to_string(), tenant, "was revoked", by, reason, *ending)
        }
        Event::LockSet { name, by, of, reason, ending, .. } => {
            let tenant = tenant_of_lock(name, lookup).or_else(|| of.clone());
            (Occasion::Revoked, name.clone(), tenant, "was locked", by, reason, *ending)
        }
        Event::LockLifted { name, by, reason } => {
            let tenant = tenant_of_lock(name, lookup);
            let what = "is no longer locked";
            (Occasion::Revoked, name.clone(), tenant, what, by, reason, Ending::default())
        }
        _ => return None,
    };
    let mut facts = NoticeFacts::new(occasion, tenant, &name, &format!("{name} {what} by {by}: {why}"));
    facts.put("name", &name);
    if let Ok(LockName::Name(name)) = name.parse::<LockName>()
        && let FenceKind::Human(human) = name.kind()
    {
        facts.concerns = lookup.tenants_of_person(&human);
    }
    if let Event::LockSet { until: Some(until), .. } = event {
        facts.put("until", &Wall(until.0).to_string());
    }
    facts.put_end(by, why, ending);
    Some(facts)
}

/// Reads what people said to a change of the rules. It belongs to no tenant: the rules are for all.
fn of_change(event: &Event) -> Option<NoticeFacts> {
    let about = |occasion, call: &str, to: &Digest, what: &str| {
        let mut facts =
            NoticeFacts::new(occasion, None, &format!("change:{to}"), &format!("{call} to {to} {what}"));
        facts.put("call", call);
        facts.put("to", &to.to_string());
        facts.put("to_look", "leasehold policy history");
        facts
    };
    let facts = match event {
        Event::ChangeProposed { call, to, by, human, reason, waiting_for, until, .. } => {
            let gates = waiting_for.iter().map(|g| format!("{} of {}", g.approvals_needed, g.approver_group));
            let gates: Vec<String> = gates.collect();
            let what = format!("was proposed by {by} and waits for {}", gates.join(", "));
            let mut facts = about(Occasion::Waiting, call, to, &what);
            facts.put("by", &by.to_string());
            facts.put("human", human.as_ref().map_or("", |human| human.as_str()));
            facts.put("why", reason);
            facts.put("until", &Wall(until.0).to_string());
            facts.data.insert("gates".to_owned(), list(gates));
            facts
        }
        Event::ChangeApproved { call, to, approvals, .. } => {
            let first = approvals.first()?;
            let mut facts = about(
                Occasion::Granted,
                call,
                to,
                &format!("was approved by {}: {}", first.by, first.reason),
            );
            facts.put("approver", first.by.as_str());
            facts.put("human", first.human.as_ref().map_or("", |human| human.as_str()));
            facts.put("why", &first.reason);
            facts.data.insert("gates".to_owned(), list(approvals.iter().map(|a| &a.gate)));
            facts
        }
        Event::ChangeClosed { call, to, proposed_by, outcome, by, reason, .. } => {
            let occasion = match outcome {
                ChangeOutcome::Rejected => Occasion::Denied,
                ChangeOutcome::Withdrawn | ChangeOutcome::Voided => Occasion::Voided,
                ChangeOutcome::Applied => return None,
            };
            let what = format!("was {} by {by}: {reason}", outcome.as_str());
            let mut facts = about(occasion, call, to, &what);
            facts.put("outcome", outcome.as_str());
            facts.put("proposed_by", proposed_by.as_str());
            facts.put("by", &by.to_string());
            facts.put("why", reason);
            facts
        }
        _ => return None,
    };
    Some(facts)
}

/// Reads the request of a job that waits.
fn waiting(created: &JobCreated) -> Option<NoticeFacts> {
    if created.waiting_for.is_empty() {
        return None;
    }
    let (job, spec) = (created.job, &created.spec);
    let gates = created.waiting_for.iter().map(|g| format!("{} of {}", g.approvals_needed, g.approver_group));
    let gates = gates.collect::<Vec<_>>().join(", ");
    let summary = format!("job {job} ({}) of {} waits for {gates}", spec.name, spec.tenant);
    let mut facts = NoticeFacts::new(
        Occasion::Waiting,
        Some(spec.tenant.clone()),
        &FenceName::job(job).to_string(),
        &summary,
    );
    facts.put("job", &job.to_string());
    facts.put("job_name", &spec.name);
    facts.put("purpose", &spec.purpose);
    facts.put("why", &spec.why);
    facts.put("ticket", &spec.ticket);
    facts.put("rollback_to", spec.rollback_to.as_ref().map_or("", |name| name.as_str()));
    facts.put("prompt_alternative", &spec.prompt_alternative);
    facts.put("image", spec.image.as_ref().map_or("", |image| image.as_str()));
    facts.put("launcher", created.launcher.as_str());
    if let Some(human) = &created.acting_for {
        facts.put("acting_for", human.as_str());
    }
    if let Some(method) = spec.method {
        facts.put("method", method.as_str());
    }
    let folders = spec.read_checkpoints.iter().map(ToString::to_string);
    let read: Vec<String> = spec.read.iter().map(ToString::to_string).chain(folders).collect();
    facts.data.insert("read".to_owned(), list(&read));
    facts.data.insert("write".to_owned(), list(&spec.write));
    let classes =
        created.inputs.iter().flat_map(|i| i.data_classes.iter().chain(&i.classification).chain(&i.tier));
    let mut classes: Vec<&String> = classes.collect();
    classes.sort();
    classes.dedup();
    facts.data.insert("sensitive".to_owned(), list(classes));
    facts.data.insert("risk".to_owned(), json!(created.decision.risk.score));
    facts.data.insert("risk_reasons".to_owned(), list(&created.decision.risk.reasons));
    let gates = created
        .waiting_for
        .iter()
        .map(|g| format!("{}: {} of {}: {}", g.id, g.approvals_needed, g.approver_group, g.explanation));
    facts.data.insert("gates".to_owned(), list(gates));
    if let Some(digest) = created.request_digest {
        facts.put("request_digest", &digest.to_string());
    }
    facts.put("to_look", &format!("leasehold job show {job}"));
    facts.put("to_approve", &format!("leasehold approve {job} --reason TEXT"));
    Some(facts)
}

fn granted(
    job: JobId,
    approvals: &[ApprovalRecord],
    lookup: &dyn NoticeLookup,
    now: LeaseTime,
) -> NoticeFacts {
    let by = approvals.first().map(|a| a.by.to_string()).unwrap_or_default();
    let found = lookup.job(job);
    let lacking = found.as_ref().map(|job| job.waiting_for(now).map(|g| g.id.clone()).collect::<Vec<_>>());
    let what = match &lacking {
        Some(_) if found.is_some_and(|job| job.is_closed()) => {
            format!("{by} approved it, and it is closed by now")
        }
        Some(gates) if gates.is_empty() => format!("{by} approved it, and it may begin"),
        Some(gates) => format!("{by} approved it, and it still waits at {}", gates.join(", ")),
        None => format!("{by} approved it"),
    };
    let mut facts = of_job(Occasion::Granted, job, lookup, &what);
    facts.data.insert("gates".to_owned(), list(approvals.iter().map(|a| &a.gate)));
    facts.put("approver", &by);
    if let Some(human) = approvals.first().and_then(|a| a.human.as_ref()) {
        facts.put("human", human.as_str());
    }
    facts.put("why", approvals.first().map_or("", |a| &a.reason));
    facts.data.insert("still_waits_at".to_owned(), list(lacking.unwrap_or_default()));
    facts
}

/// Makes the facts about a job. In the summary, `what` follows the name of the job.
fn of_job(occasion: Occasion, id: JobId, lookup: &dyn NoticeLookup, what: &str) -> NoticeFacts {
    let job = lookup.job(id);
    let name = job.as_ref().map(|job| job.spec.name.clone()).unwrap_or_default();
    let tenant = job.as_ref().map(|job| job.spec.tenant.clone());
    let named = if name.is_empty() { String::new() } else { format!(" ({name})") };
    let mut facts = NoticeFacts::new(
        occasion,
        tenant,
        &FenceName::job(id).to_string(),
        &format!("job {id}{named}: {what}"),
    );
    facts.put("job", &id.to_string());
    facts.put("job_name", &name);
    if let Some(job) = &job {
        facts.put("launcher", job.launcher.as_str());
        if let Some(human) = &job.acting_for {
            facts.put("acting_for", human.as_str());
        }
    }
    facts
}

/// Returns the tenant of a name. `None` if the name covers several tenants, as a trust domain may.
fn tenant_of(name: &FenceName, lookup: &dyn NoticeLookup) -> Option<TenantName> {
    match name.kind() {
        FenceKind::Epoch | FenceKind::Domain(_) | FenceKind::Human(_) | FenceKind::Image(_) => None,
        FenceKind::Tenant(tenant) => Some(tenant),
        FenceKind::Resource(resource) => Some(resource.tenant()),
        FenceKind::Identity(id) => lookup.tenant_of_identity(&id),
        FenceKind::Lease(lease) => lookup.tenant_of_lease(lease),
        FenceKind::Job(job)
        | FenceKind::Attempt(job, _)
        | FenceKind::AttemptReading(job, _)
        | FenceKind::Member(job, ..)
        | FenceKind::MemberReading(job, ..) => lookup.job(job).map(|job| job.spec.tenant.clone()),
    }
}

fn tenant_of_lock(name: &str, lookup: &dyn NoticeLookup) -> Option<TenantName> {
    match name.parse::<LockName>() {
        Ok(LockName::Name(name)) => tenant_of(&name, lookup),
        Ok(LockName::Launcher(id)) => lookup.tenant_of_identity(&id),
        Ok(LockName::Recall(resource)) => Some(resource.tenant()),
        Ok(LockName::Prefix(_)) | Err(_) => None,
    }
}

impl NoticeFacts {
    fn new(occasion: Occasion, tenant: Option<TenantName>, subject: &str, summary: &str) -> Self {
        let (subject, summary) = (short(subject), short(summary));
        NoticeFacts { occasion, tenant, concerns: BTreeSet::new(), subject, summary, data: Map::new() }
    }

    /// Returns the facts for the tenants in `concerns`. They leave out the number of leases that ended, because it counts
    /// the leases of all tenants.
    pub(super) fn for_concerned(&self) -> NoticeFacts {
        let mut facts = self.clone();
        facts.data.remove(LEASES_ENDED);
        facts
    }

    /// Adds a text of people. An empty text is left out.
    fn put(&mut self, key: &str, text: &str) {
        if !text.is_empty() {
            self.data.insert(key.to_owned(), short(text).into());
        }
    }

    /// Adds who ended something, why, and how many leases ended.
    fn put_end(&mut self, by: &Actor, why: &str, ending: Ending) {
        self.put("by", &by.to_string());
        self.put("why", why);
        self.data.insert(LEASES_ENDED.to_owned(), json!(ending.behind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Empty;
    impl NoticeLookup for Empty {
        fn job(&self, _: JobId) -> Option<Arc<Job>> {
            None
        }
        fn settled(&self, _: JobId) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }
        fn tenants_of_person(&self, human: &HumanName) -> BTreeSet<TenantName> {
            let of_ada = (human.as_str() == "ada").then(|| "acme".parse().unwrap());
            of_ada.into_iter().collect()
        }
        fn tenant_of_identity(&self, _: &SpiffeId) -> Option<TenantName> {
            Some("acme".parse().unwrap())
        }
        fn tenant_of_lease(&self, _: LeaseId) -> Option<TenantName> {
            None
        }
    }

    fn revoked(name: &str) -> NoticeFacts {
        let event = Event::Revoked {
            name: name.parse().unwrap(),
            by: Actor::Daemon("test".into()),
            reason: "a\nb AKIAIOSFODNN7EXAMPLE".into(),
            ending: Ending { seq: 9, behind: 2 },
        };
        facts_of(&event, &Empty, LeaseTime(0)).unwrap()
    }

    #[test]
    fn a_revocation_names_its_tenant_if_it_has_one() {
        let facts = revoked("dataset:globex/reviews@v1");
        assert_eq!(facts.tenant.clone().unwrap().as_str(), "globex");
        assert_eq!((facts.occasion, &facts.data["leases_ended"]), (Occasion::Revoked, &json!(2)));
        assert!(facts.data.get("seq").is_none(), "the count of lowerings is that of all tenants");
        assert_eq!(revoked("domain:td.example").tenant, None);
        assert_eq!(revoked("identity:spiffe://td/x").tenant.unwrap().as_str(), "acme");
    }

    #[test]
    fn a_tenant_hears_of_a_person_without_counts_of_others() {
        let facts = revoked("human:ada");
        assert_eq!((facts.tenant.clone(), facts.concerns.len()), (None, 1));
        assert_eq!(facts.data["leases_ended"], json!(2));
        assert!(!facts.for_concerned().data.contains_key("leases_ended"));
        assert!(revoked("human:bob").concerns.is_empty());
    }

    #[test]
    fn a_change_of_the_rules_is_noticed_by_the_platform() {
        let (from, to) = (Digest::of(b"from"), Digest::of(b"to"));
        let by = || Actor::from("spiffe://td/second".parse::<SpiffeId>().unwrap());
        let closed = |outcome| Event::ChangeClosed {
            call: "ApplyPolicy".into(),
            from,
            to,
            proposed_by: "spiffe://td/first".parse().unwrap(),
            outcome,
            by: by(),
            reason: "it opens too much".into(),
        };
        let facts = |event: Event| facts_of(&event, &Empty, LeaseTime(0));
        for (outcome, occasion) in [
            (ChangeOutcome::Rejected, Occasion::Denied),
            (ChangeOutcome::Withdrawn, Occasion::Voided),
            (ChangeOutcome::Voided, Occasion::Voided),
        ] {
            let facts = facts(closed(outcome)).unwrap();
            assert_eq!((facts.occasion, facts.tenant.clone()), (occasion, None));
            assert_eq!(facts.data["why"], "it opens too much");
            assert!(facts.summary.contains(outcome.as_str()), "{}", facts.summary);
        }
        let proposed = Event::ChangeProposed {
            call: "ApplyPolicy".into(),
            from,
            to,
            by: by(),
            human: None,
            reason: "CHG-1".into(),
            waiting_for: Vec::new(),
            until: LeaseTime(1),
        };
        let proposed = facts(proposed).unwrap();
        assert_eq!((proposed.occasion, proposed.subject), (Occasion::Waiting, format!("change:{to}")));
        for kind in ["change.proposed", "change.approved", "change.closed"] {
            assert!(may_matter(&format!(r#"{{"v":1,"index":7,"type":"{kind}"}}"#)), "{kind}");
        }
    }

    #[test]
    fn texts_of_people_are_made_safe() {
        let facts = revoked("tenant:acme");
        let why = facts.data["why"].as_str().unwrap();
        assert!(!why.contains('\n') && !why.contains("AKIA"), "{why}");
        assert!(!facts.summary.contains('\n'), "{}", facts.summary);
    }

    #[test]
    fn lines_of_other_kinds_are_skipped() {
        let line = |kind: &str| format!(r#"{{"v":1,"index":7,"type":"{kind}","x":"\"type\":\"revoked\""}}"#);
        assert!(may_matter(&line("revoked")));
        assert!(!may_matter(&line("credential.issued")));
        assert!(!may_matter("not a record"));
    }
}
