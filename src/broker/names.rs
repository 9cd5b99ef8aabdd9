//! The names of the fences behind which a request stands.

use super::{
    decide::{model_of, models_read, tuned},
    rules::Rules,
};
use crate::{
    job::{Job, Lineage, Spec},
    name::{AttemptNumber, FenceName, Half, InstanceName, ResourceName, Scope, SpiffeId},
};

/// Returns the fences of an identity: its SPIFFE ID, its trust domain, and the person who uses it.
pub(super) fn of_identity(rules: &Rules, id: &SpiffeId) -> Vec<FenceName> {
    let human = rules.catalog().principal(id).and_then(|p| p.human(id));
    let mut names = vec![FenceName::identity(id.clone()), FenceName::domain(id.trust_domain())];
    names.extend(human.map(FenceName::human));
    names
}

/// Returns the fences of a specification: its tenant, its launcher, the human for whom it acts, its image, and these
/// resources. If the launcher is a person, this person has a fence too, even if the specification names another human.
pub(super) fn of_spec(
    rules: &Rules,
    spec: &Spec,
    launcher: &SpiffeId,
    resources: impl Iterator<Item = ResourceName>,
) -> Vec<FenceName> {
    let mut names = vec![FenceName::epoch(), FenceName::tenant(spec.tenant.clone())];
    names.extend(of_identity(rules, launcher));
    names.extend(spec.acting_for.clone().map(FenceName::human));
    names.extend(spec.image.clone().map(FenceName::image));
    for r in resources {
        names.extend(of_resource(&r));
    }
    names
}

/// Returns the fences of a resource: the tenant that owns it, all its versions, and the version itself.
pub(super) fn of_resource(name: &ResourceName) -> [FenceName; 3] {
    [
        FenceName::tenant(name.tenant()),
        FenceName::resource(name.unversioned()),
        FenceName::resource(name.clone()),
    ]
}

/// Returns the fences of the origin of the checkpoints that a job reads: the jobs that wrote them, the data and models that
/// those jobs read, and the models of the checkpoint lines.
pub(super) fn of_lineage(rules: &Rules, spec: &Spec, lineage: &Lineage) -> Vec<FenceName> {
    let mut names: Vec<FenceName> = lineage.jobs.iter().copied().map(FenceName::job).collect();
    let mut models = models_read(rules, spec);
    models.extend(lineage.resources.iter().filter_map(|line| model_of(rules, line)));
    names.extend(lineage.resources.iter().chain(&models).flat_map(of_resource));
    names
}

/// Returns the fences of a job, including the job itself and the models that it tunes.
pub(super) fn of_job(rules: &Rules, job: &Job) -> Vec<FenceName> {
    let resources = job.spec.resources().cloned().chain(tuned(rules, &job.spec));
    let mut names = of_spec(rules, &job.spec, &job.launcher, resources);
    names.extend(of_lineage(rules, &job.spec, &job.lineage));
    names.push(FenceName::job(job.id));
    names
}

/// Returns the fences that every lease of a member has. The fences of the opened resources are not among them.
pub(super) fn of_member(
    rules: &Rules,
    job: &Job,
    attempt: AttemptNumber,
    instance: &InstanceName,
    holder: &SpiffeId,
) -> Vec<FenceName> {
    let mut names = of_job(rules, job);
    names.extend(of_place(rules, job, attempt, instance, holder));
    names
}

/// Returns the fences of a lease: the fences of its job, its holder, the resources of its scopes, and the models that its job
/// tunes. If the lease opens checkpoints of other jobs, the fences of their origin are added.
pub(super) fn of_lease(
    rules: &Rules,
    job: &Job,
    attempt: AttemptNumber,
    instance: &InstanceName,
    holder: &SpiffeId,
    half: Half,
    scopes: &[Scope],
) -> Vec<FenceName> {
    let resources = scopes.iter().map(|s| s.resource.clone()).chain(tuned(rules, &job.spec));
    let mut names = of_spec(rules, &job.spec, &job.launcher, resources);
    if scopes.iter().any(|s| s.folder.is_some()) {
        names.extend(of_lineage(rules, &job.spec, &job.lineage));
    }
    names.push(FenceName::job(job.id));
    names.extend(of_place(rules, job, attempt, instance, holder));
    if half == Half::Reading {
        names.push(FenceName::attempt_reading(job.id, attempt));
        names.push(FenceName::member_reading(job.id, attempt, instance.clone()));
    }
    names
}

fn of_place(
    rules: &Rules,
    job: &Job,
    attempt: AttemptNumber,
    instance: &InstanceName,
    holder: &SpiffeId,
) -> Vec<FenceName> {
    let mut names = of_identity(rules, holder);
    names.push(FenceName::attempt(job.id, attempt));
    names.push(FenceName::member(job.id, attempt, instance.clone()));
    names
}
