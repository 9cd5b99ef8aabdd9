//! A job's request as its approver sees it, and the differences between two requests.

use super::{
    output::{Page, TableCell, fields},
    render,
};
use crate::{proto::v1, written::span_text};

/// Lists the facts of a request, each with its name. An approval covers all of them.
fn request_rows(job: &v1::Job) -> Vec<(&'static str, Vec<String>)> {
    let spec = job.spec.clone().unwrap_or_default();
    let tune = spec.tune.clone().unwrap_or_default();
    let members = spec.members.clone().unwrap_or_default();
    let one = |text: &str| if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    let span = |d: Option<&prost_types::Duration>| {
        let seconds = |d: &prost_types::Duration| u64::try_from(d.seconds).unwrap_or(0);
        d.map(|d| span_text(std::time::Duration::from_secs(seconds(d))))
    };
    let processes =
        format!("{} of at most {}, in {} attempt(s)", members.expect, members.max, members.attempts);
    let mut pins: Vec<String> = spec.pins.iter().map(|(name, pin)| format!("{name} {pin}")).collect();
    pins.sort();
    // The checkpoints of other jobs.
    let checkpoints = spec.read.into_iter().filter(|name| name.starts_with("checkpoint:"));
    vec![
        ("launcher", one(&job.launcher)),
        ("acting for", one(&job.acting_for)),
        ("purpose", one(&job.purpose)),
        ("why", one(&job.why)),
        ("ticket", one(&spec.ticket)),
        ("rollback to", one(&spec.rollback_to)),
        ("why not a prompt", one(&spec.prompt_alternative)),
        ("image", one(&spec.image)),
        ("reads", job.inputs.iter().map(input_text).chain(checkpoints).collect()),
        ("writes", spec.write),
        ("pins", pins),
        ("method", one(&render::method(tune.method()))),
        ("params", one(&tune.params_digest)),
        ("free params", tune.free_params),
        (
            "sweep",
            spec.sweep.iter().map(|s| format!("{} jobs: one approval covers them all", s.jobs)).collect(),
        ),
        ("prompts", tune.prompts),
        ("members", members.join),
        ("begun by", members.start),
        ("processes", one(&processes)),
        ("done when", one(&members.done_when)),
        ("max duration", span(spec.max_duration.as_ref()).into_iter().collect()),
        ("credential ttl", span(spec.credential_ttl.as_ref()).into_iter().collect()),
        ("drain", span(spec.drain.as_ref()).into_iter().collect()),
    ]
}

/// Describes one input, with the facts that make it sensitive.
fn input_text(input: &v1::JobInput) -> String {
    let mut facts: Vec<String> = Vec::new();
    facts.extend(Some(input.classification.clone()).filter(|c| !c.is_empty()));
    facts.extend(input.data_classes.iter().cloned());
    facts.extend(Some(&input.tier).filter(|t| !t.is_empty()).map(|tier| format!("tier {tier}")));
    facts.push(format!("pin {}", input.pin));
    let location = match input.location.as_str() {
        "" => String::new(),
        location => format!(" at {location}"),
    };
    format!("{}  ({}){location}", input.resource, facts.join(", "))
}

/// Renders the whole request, with its gates and the number of approvals of each gate.
pub(super) fn request_page(job: &v1::Job) -> Page {
    let rows = request_rows(job).into_iter().map(|(name, values)| (name, TableCell::list(values)));
    let head = [
        ("job", TableCell::from(job.id.as_str())),
        ("name", job.name.as_str().into()),
        ("tenant", job.tenant.as_str().into()),
        ("state", render::job_state_or_outcome(job).into()),
        ("risk", render::risk_text(job.risk.as_ref()).into()),
    ];
    let digest = [("request", TableCell::from(job.request_digest.as_str()))];
    let page = fields(head.into_iter().chain(rows).chain(digest));
    if job.gates.is_empty() { page } else { page.below(&render::all_gates_table(&job.gates)) }
}

/// Lists the facts that are only in the new request, and the facts that are only in the earlier request.
pub(super) fn differences(before: &v1::Job, now: &v1::Job) -> Vec<String> {
    let mut lines = Vec::new();
    for ((name, old), (_, new)) in request_rows(before).into_iter().zip(request_rows(now)) {
        lines.extend(old.iter().filter(|v| !new.contains(v)).map(|v| format!("- {name}: {v}")));
        lines.extend(new.iter().filter(|v| !old.contains(v)).map(|v| format!("+ {name}: {v}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> v1::Job {
        let spec = v1::JobSpec {
            write: vec!["checkpoint:acme/lora".into()],
            max_duration: Some(prost_types::Duration { seconds: 7_200, nanos: 0 }),
            tune: Some(v1::Tuning { method: v1::Method::Lora as i32, ..Default::default() }),
            members: Some(v1::Members {
                join: vec!["spiffe://td/worker".into()],
                expect: 1,
                max: 1,
                attempts: 2,
                ..Default::default()
            }),
            ..Default::default()
        };
        let input = v1::JobInput {
            resource: "dataset:acme/tickets@v3".into(),
            pin: "none".into(),
            classification: "restricted".into(),
            data_classes: vec!["pii".into()],
            ..Default::default()
        };
        v1::Job {
            id: "j-1".into(),
            name: "lora".into(),
            state: v1::JobState::AwaitingApproval as i32,
            launcher: "spiffe://td/launcher".into(),
            inputs: vec![input],
            spec: Some(spec),
            request_digest: "sha256:00".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_request_shows_what_makes_it_sensitive() {
        let page = request_page(&job()).to_string();
        for fact in ["dataset:acme/tickets@v3  (restricted, pii, pin none)", "lora", "2h", "sha256:00"] {
            assert!(page.contains(fact), "{fact} is not in:\n{page}");
        }
    }

    #[test]
    fn a_difference_names_the_old_and_the_new_value() {
        assert_eq!(differences(&job(), &job()), Vec::<String>::new());
        let mut now = job();
        now.inputs[0].data_classes.clear();
        now.spec.as_mut().unwrap().write.push("checkpoint:acme/more".into());
        assert_eq!(
            differences(&job(), &now),
            [
                "- reads: dataset:acme/tickets@v3  (restricted, pii, pin none)",
                "+ reads: dataset:acme/tickets@v3  (restricted, pin none)",
                "+ writes: checkpoint:acme/more",
            ]
        );
    }
}
