//! The names of the fences that a request stands behind.

use super::{decide::tuned, rules::Rules};
use crate::{
    job::{Job, Spec},
    name::{AttemptNumber, FenceName, Half, InstanceName, ResourceName, Scope, SpiffeId},
};

/// Returns what shuts an identity out: its own name, its trust domain, and the person behind it.
pub(super) fn of_identity(rules: &Rules, id: &SpiffeId) -> Vec<FenceName> {
    let human = rules.catalog().principal(id).and_then(|p| p.human(id));
    let mut names = vec![FenceName::identity(id.clone()), FenceName::domain(id.trust_domain())];
    names.extend(human.map(FenceName::human));
    names
}

/// Returns what a specification depends on: its tenant, its launcher, the human it acts for, its image, and these resources. A
/// launcher that is a person depends on that person, even if the specification names another.
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

/// Returns what a resource depends on: the tenant that owns it, all its versions, and the version itself.
pub(super) fn of_resource(name: &ResourceName) -> [FenceName; 3] {
    [
        FenceName::tenant(name.tenant()),
        FenceName::resource(name.unversioned()),
        FenceName::resource(name.clone()),
    ]
}

/// Returns what a job depends on, with the job itself and the models that it tunes.
pub(super) fn of_job(rules: &Rules, job: &Job) -> Vec<FenceName> {
    let tuned = tuned(rules, &job.spec.read, &job.spec.write);
    let mut names = of_spec(
        rules,
        &job.spec,
        &job.launcher,
        job.spec.read.iter().chain(&job.spec.write).cloned().chain(tuned),
    );
    names.push(FenceName::job(job.id));
    names
}

/// Returns what every membership depends on, in addition to what the member opens.
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

/// Returns what a lease depends on: its scopes, and the models that its job tunes.
pub(super) fn of_lease(
    rules: &Rules,
    job: &Job,
    attempt: AttemptNumber,
    instance: &InstanceName,
    holder: &SpiffeId,
    half: Half,
    scopes: &[Scope],
) -> Vec<FenceName> {
    let tuned = tuned(rules, &job.spec.read, &job.spec.write);
    let resources = scopes.iter().map(|s| s.resource.clone()).chain(tuned);
    let mut names = of_spec(rules, &job.spec, &job.launcher, resources);
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
