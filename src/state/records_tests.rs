use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{
    clock::LeaseTime,
    job::testing::sample_job,
    name::{Method, Object, Pin},
};

type Alteration = fn(&mut Job);

fn spec_mut(job: &mut Job) -> &mut Spec {
    Arc::make_mut(&mut job.spec)
}

fn tune_mut(job: &mut Job) -> &mut Tuning {
    spec_mut(job).tune.as_mut().unwrap()
}

fn input_mut(job: &mut Job) -> &mut Input {
    &mut Arc::make_mut(&mut job.inputs)[0]
}

/// One alteration of each field that a person approves.
const ALTERATIONS: &[Alteration] = &[
    |j| spec_mut(j).name.push('x'),
    |j| spec_mut(j).tenant = "other".parse().unwrap(),
    |j| spec_mut(j).purpose.push('x'),
    |j| spec_mut(j).why.push('x'),
    |j| spec_mut(j).ticket.push('x'),
    |j| spec_mut(j).rollback_to = None,
    |j| spec_mut(j).prompt_alternative.push('x'),
    |j| spec_mut(j).image = None,
    |j| spec_mut(j).sweep.as_mut().unwrap().jobs += 1,
    |j| spec_mut(j).sweep = None,
    |j| spec_mut(j).max_duration += Duration::from_millis(1),
    |j| tune_mut(j).method = Method::Full,
    |j| tune_mut(j).params_digest = None,
    |j| tune_mut(j).free_params.push("x".into()),
    |j| tune_mut(j).prompts.push("prompts:/x/1".into()),
    |j| spec_mut(j).read.push("dataset:acme/more@v1".parse().unwrap()),
    |j| spec_mut(j).read_checkpoints.clear(),
    |j| spec_mut(j).write.push("checkpoint:acme/more".parse().unwrap()),
    |j| spec_mut(j).pins.clear(),
    |j| spec_mut(j).members.start.push("spiffe://td/x".parse().unwrap()),
    |j| spec_mut(j).members.join.push("spiffe://td/x".parse().unwrap()),
    |j| spec_mut(j).members.expect += 1,
    |j| spec_mut(j).members.max += 1,
    |j| spec_mut(j).members.attempts += 1,
    |j| spec_mut(j).members.done_when = DoneWhen::Any,
    |j| spec_mut(j).acting_for = Some("eve".parse().unwrap()),
    |j| spec_mut(j).credential_ttl = None,
    |j| spec_mut(j).drain = None,
    |j| j.launcher = "spiffe://td/other".parse().unwrap(),
    |j| j.acting_for = None,
    |j| input_mut(j).resource = "dataset:acme/tickets@v4".parse().unwrap(),
    |j| input_mut(j).pin = Pin::None,
    |j| input_mut(j).location.push_str("more/"),
    |j| input_mut(j).classification = None,
    |j| input_mut(j).data_classes.push("pii".into()),
    |j| input_mut(j).tier = Some("production".into()),
    |j| j.inputs = Arc::new([]),
];

fn job(text: &str, number: u32) -> Job {
    let spec = Spec {
        name: text.to_owned(),
        tenant: "acme".parse().unwrap(),
        purpose: text.to_owned(),
        why: text.to_owned(),
        ticket: text.to_owned(),
        rollback_to: Some("model:acme/base@1".parse().unwrap()),
        prompt_alternative: text.to_owned(),
        image: Some(Digest([9; 32]).to_string().parse().unwrap()),
        sweep: Some(ParamSweep { jobs: 3, values: [("seed".to_owned(), "7".to_owned())].into() }),
        max_duration: Duration::from_millis(u64::from(number)),
        tune: Some(Tuning {
            method: Method::Lora,
            params_digest: Some(Digest([7; 32])),
            free_params: vec!["seed".into()],
            prompts: vec![text.to_owned()],
        }),
        read: vec!["dataset:acme/tickets@v3".parse().unwrap()],
        read_checkpoints: vec![Object::folder("checkpoint:acme/lora".parse().unwrap(), JobId(8))],
        write: vec!["checkpoint:acme/lora".parse().unwrap()],
        pins: [("dataset:acme/tickets@v3".parse().unwrap(), Pin::None)].into(),
        members: Members {
            start: vec!["spiffe://td/start".parse().unwrap()],
            join: vec!["spiffe://td/join".parse().unwrap()],
            expect: number,
            max: number,
            attempts: number,
            done_when: DoneWhen::All,
        },
        acting_for: Some("ada".parse().unwrap()),
        credential_ttl: Some(Duration::from_millis(u64::from(number))),
        drain: Some(Duration::from_millis(u64::from(number))),
    };
    let input = Input {
        resource: "dataset:acme/tickets@v3".parse().unwrap(),
        pin: format!("hf-revision:{}", "ab".repeat(20)).parse().unwrap(),
        location: "s3://acme-data/tickets/v3/".into(),
        classification: Some("internal".into()),
        data_classes: vec!["support".into()],
        tier: Some("base".into()),
    };
    Job {
        idempotency_key: "k".into(),
        ends: LeaseTime(2),
        inputs: vec![input].into(),
        ..sample_job(1, spec, LeaseTime(1))
    }
}

/// The paths of all values in a request.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(k, v)| leaves(v, &format!("{path}/{k}"), found)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().for_each(|item| leaves(item, path, found));
        }
        _ => {
            found.insert(path.to_owned());
        }
    }
}

fn differing(a: &Value, b: &Value, path: &str, found: &mut BTreeSet<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differing(&of(a), &of(b), &format!("{path}/{key}"), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() && a.iter().any(Value::is_object) => {
            a.iter().zip(b).for_each(|(a, b)| differing(a, b, path, found));
        }
        _ if a != b => {
            found.insert(path.to_owned());
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn every_field_of_a_request_is_in_its_digest(text in ".{0,40}", number in 1u32..1_000_000) {
        let job = job(&text, number);
        let mut seen = BTreeSet::from([request_digest(&job).unwrap()]);
        let (mut all, mut altered) = (BTreeSet::new(), BTreeSet::new());
        let before = serde_json::to_value(request_record(&job)).unwrap();
        leaves(&before, "", &mut all);
        for alter in ALTERATIONS {
            let mut other = job.clone();
            alter(&mut other);
            prop_assert!(seen.insert(request_digest(&other).unwrap()), "a digest came twice");
            differing(&before, &serde_json::to_value(request_record(&other)).unwrap(), "", &mut altered);
        }
        // A field that no alteration reaches has no test: add one.
        let fixed: Vec<_> = all.difference(&altered).map(String::as_str).collect();
        prop_assert_eq!(fixed, ["/is", "/spec/v"]);
    }
}

#[test]
fn neighbouring_texts_do_not_run_together() {
    let digest = |name: &str, purpose: &str| {
        let mut job = job("x", 1);
        spec_mut(&mut job).name = name.into();
        spec_mut(&mut job).purpose = purpose.into();
        request_digest(&job).unwrap()
    };
    assert_ne!(digest("ab", "c"), digest("a", "bc"));
    assert_ne!(digest("a\",\"purpose\":\"b", ""), digest("a", "b"));
}

/// This digest is pinned, because approvals name it, and auditors compute it from the record of the job.
#[test]
fn the_digest_of_a_request_is_what_it_was() {
    let mut job = job("support", 60_000);
    // A job of an older daemon did not have these.
    let spec = spec_mut(&mut job);
    (spec.ticket, spec.rollback_to, spec.prompt_alternative, spec.image, spec.sweep) =
        (String::new(), None, String::new(), None, None);
    spec.read_checkpoints.clear();
    input_mut(&mut job).location.clear();
    assert_eq!(
        request_digest(&job).unwrap().to_string(),
        "sha256:4a9c9df7720ee1358dc0603114802147ef7ae003c411b4e4026c6ca644900865"
    );
    assert_ne!(request_digest(&job).unwrap(), spec_digest(&job.spec).unwrap());
}

#[test]
fn a_gate_of_an_old_record_has_an_approval_ttl() {
    let old = r#"{"id":"g","explanation":"e","approver_group":"owners","approvals_needed":2}"#;
    let gate = gate_of(serde_json::from_str(old).unwrap());
    assert_eq!(gate.approval_ttl, Duration::from_secs(3_600));
}
