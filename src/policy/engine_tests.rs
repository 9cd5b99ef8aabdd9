//! The shipped policies case by case, and the results of bad policy sets.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::*;
use crate::{
    clock::Wall,
    fence::{Registry, Seq},
    name::{Method, Object, ResourceKind, TenantName},
    policy::{
        JobRisk, Phase, PolicyCase, Relation, RequestFacts, Rpc, read_cases, slice::Reads, source::SCHEMA,
    },
};

const NOW: &str = "2026-11-20T10:00:00Z";
const TRAINER: &str = "spiffe://k8s.acme.example/ns/ml/job/j1";

fn config(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(path)
}

fn catalog() -> Catalog {
    Catalog::load(&config("catalog.d")).unwrap()
}

fn shipped() -> Engine {
    Engine::load(&PolicySource::Default, &catalog(), Explain::Requester).unwrap()
}

/// An engine of one policy file, as a site would write it.
fn site(policies: &str) -> Result<Engine, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("site.cedar"), policies).unwrap();
    Engine::load(&PolicySource::Dir(dir.path().into()), &catalog(), Explain::Requester)
        .map_err(|e| e.iter().map(ToString::to_string).collect())
}

/// A bundle with the values that most cases share.
struct Ask {
    tenant: TenantName,
    purpose: String,
    risk: JobRisk,
    ttl: Duration,
    now: Wall,
    method: Option<Method>,
    phase: Phase,
    approved: BTreeSet<String>,
    own_checkpoint: bool,
    parts: Vec<(Action, Object)>,
}

impl Ask {
    fn of(parts: &[(&str, &str)]) -> Self {
        Ask {
            tenant: "acme".parse().unwrap(),
            purpose: "support-tuning".into(),
            risk: JobRisk::default(),
            ttl: Duration::from_secs(300),
            now: Wall::parse(NOW).unwrap(),
            method: Some(Method::Lora),
            phase: Phase::Running,
            approved: BTreeSet::new(),
            own_checkpoint: true,
            parts: parts.iter().map(|(a, r)| (a.parse().unwrap(), r.parse().unwrap())).collect(),
        }
    }

    fn bundle(&self) -> Bundle<'_> {
        Bundle {
            job: "j-00000000000000000000000001",
            tenant: &self.tenant,
            attempt: 1,
            phase: self.phase,
            purpose: &self.purpose,
            facts: RequestFacts {
                rollback_to: self
                    .parts
                    .iter()
                    .map(|(_, on)| on.resource())
                    .find(|on| on.kind() == ResourceKind::Model),
                ..self.parts.first().map(|(_, on)| RequestFacts::assumed(on.resource())).unwrap_or_default()
            },
            risk: &self.risk,
            method: self.method,
            ttl: self.ttl,
            now: self.now,
            approved: &self.approved,
            own_checkpoint: self.own_checkpoint,
            binding: "",
            parts: &self.parts,
        }
    }

    fn judge(&self, engine: &Engine, who: &str) -> Verdict {
        engine.judge(Asker::Identity(&who.parse().unwrap()), &self.bundle())
    }

    fn refusal(&self, engine: &Engine, who: &str) -> Refusal {
        match self.judge(engine, who) {
            Verdict::Deny { refusal, .. } => refusal,
            other => panic!("{other:?}"),
        }
    }
}

fn cases() -> Vec<PolicyCase> {
    read_cases(&config("policy"), Wall(0)).unwrap()
}

#[test]
fn every_case_of_the_shipped_policies_holds() {
    let (engine, cases) = (shipped(), cases());
    let report = engine.run_cases(&cases);
    assert!(report.failed.is_empty(), "{:#?}", report.failed);
    assert!(report.untried.is_empty(), "no case is decided by {:?}", report.untried);
    assert!(cases.len() >= 80, "{} cases", cases.len());
}

#[test]
fn what_ships_is_what_is_built_in_and_loads_without_a_warning() {
    let dir = Engine::load(&PolicySource::Dir(config("policy")), &catalog(), Explain::Requester).unwrap();
    assert_eq!(dir.digest(), shipped().digest());
    assert!(dir.warnings().is_empty(), "{:?}", dir.warnings());
    assert_eq!(fs::read_to_string(config("policy/leasehold.cedarschema")).unwrap(), SCHEMA);
}

#[test]
fn every_action_of_the_schema_is_used_and_its_context_fits() {
    let engine = shipped();
    let groups: BTreeSet<_> = engine.rules.schema.action_groups().cloned().collect();
    let asked: BTreeSet<_> = PolicyAct::all().map(|a| a.uid(&engine.types)).collect();
    for action in engine.rules.schema.actions() {
        assert!(asked.contains(action) || groups.contains(action), "{action} is never asked");
    }
    let ask = Ask::of(&[]);
    let amr = ["mfa".to_owned()];
    let caller: SpiffeId = TRAINER.parse().unwrap();
    for act in PolicyAct::all() {
        let facts = match act {
            PolicyAct::Part(_) => ContextFields::of_job(TRAINER, &ask.bundle(), &[]),
            PolicyAct::Rpc(rpc) => {
                let relations = Relation::ALL;
                ContextFields::of_call(&Call {
                    caller: &caller,
                    rpc,
                    tenant: None,
                    relations,
                    now: ask.now,
                    reason: "x",
                    amr: &amr,
                })
            }
        };
        let context = facts.context(&Reads::everything(), &engine.types, &engine.prepared).unwrap();
        context.validate(&engine.rules.schema, &act.uid(&engine.types)).unwrap();
    }
}

#[test]
fn a_bundle_is_decided_whole_and_one_denial_denies_all() {
    let engine = shipped();
    let job = [
        ("read_dataset", "dataset:acme/contracts@v1"),
        ("read_model", "model:acme/base-1b@2026.04"),
        ("finetune", "model:acme/base-1b@2026.04"),
        ("write_checkpoint", "checkpoint:acme/lab-lora"),
        ("read_checkpoint", "checkpoint:acme/lab-lora"),
        ("delete_checkpoint", "checkpoint:acme/lab-lora"),
    ];
    let Verdict::Allow { parts } = Ask::of(&job).judge(&engine, TRAINER) else { panic!() };
    assert_eq!(parts.len(), job.len());
    assert!(parts.iter().all(|p| !p.rules.is_empty()));
    assert_eq!(
        parts[0].to_string(),
        "read_dataset dataset:acme/contracts@v1: trainer-reads-own-or-shared-data"
    );
    let mut ask = Ask::of(&job);
    ask.purpose = "demo-bot".into();
    assert_eq!(ask.refusal(&engine, TRAINER).reason, Reason::PolicyDenied);
    assert_eq!(Ask::of(&[]).refusal(&engine, TRAINER).reason, Reason::FieldMissing);
    let odd = Ask::of(&[("read_dataset", "model:acme/base-1b@2026.04")]);
    assert_eq!(odd.refusal(&engine, TRAINER).reason, Reason::FieldInvalid);
}

#[test]
fn gates_of_all_parts_wait_together_and_a_denial_wins() {
    let engine = shipped();
    let job = [
        ("read_dataset", "dataset:acme/tickets@v3"),
        ("finetune", "model:acme/base-7b@2026.10"),
        ("finetune", "model:acme/agent-7b@2026.11"),
    ];
    let Verdict::Wait { gates, parts } = Ask::of(&job).judge(&engine, TRAINER) else { panic!() };
    let ids: Vec<&str> = gates.iter().map(|g| g.id.as_str()).collect();
    assert_eq!(ids, ["gate-production-finetune", "gate-sensitive-data", "gate-tool-access"]);
    assert_eq!((gates[0].approver_group.as_str(), gates[0].approvals_needed), ("model-owners", 2));
    assert_eq!(gates[0].approval_ttl, Duration::from_secs(4 * 3600));
    assert!(parts[0].rules.contains(&"trainer-reads-own-or-shared-data".to_owned()));
    let mut ask = Ask::of(&job);
    ask.approved = ids.iter().map(ToString::to_string).collect();
    assert!(matches!(ask.judge(&engine, TRAINER), Verdict::Allow { .. }));
    ask.approved.remove("gate-tool-access");
    assert!(matches!(ask.judge(&engine, TRAINER), Verdict::Wait { gates, .. } if gates.len() == 1));
    ask.ttl = Duration::from_secs(301);
    assert_eq!(ask.refusal(&engine, TRAINER).reason, Reason::PolicyDenied);
}

#[test]
fn a_grant_carries_the_stand_that_was_taken_before_it() {
    let engine = shipped();
    let fences = Registry::new(Seq(7));
    let holder: SpiffeId = TRAINER.parse().unwrap();
    let ask = Ask::of(&[("read_dataset", "dataset:acme/contracts@v1")]);
    let stand = fences.stand(["tenant:acme".parse().unwrap()]);
    let Decision::Grant(grant) = engine.decide(&holder, &ask.bundle(), stand, Revision(3)) else { panic!() };
    assert_eq!((grant.stand().at(), grant.revision(), grant.holder()), (Seq(7), Revision(3), &holder));
    assert_eq!((grant.policy(), grant.catalog()), (engine.digest(), engine.catalog().digest()));
    fences.lower(&"tenant:acme".parse().unwrap(), crate::clock::LeaseTime(1));
    assert!(!grant.into_parts().stand.is_up());
    let denied = Ask::of(&[("read_dataset", "dataset:acme/nothing@v1")]);
    let stand = fences.stand(["tenant:acme".parse().unwrap()]);
    let Decision::Denied { stand, refusal, .. } =
        engine.decide(&holder, &denied.bundle(), stand, Revision(3))
    else {
        panic!()
    };
    assert!(stand.is_up() && refusal.reason == Reason::ResourceNotFound);
}

#[test]
fn a_missing_and_a_foreign_resource_get_the_same_refusal() {
    let engine = shipped();
    let who = "spiffe://k8s.globex.example/ns/ml/job/j1";
    let say = |name: &str| {
        let mut ask = Ask::of(&[("read_dataset", name)]);
        ask.tenant = "globex".parse().unwrap();
        let r = ask.refusal(&engine, who);
        (r.reason, format!("{r:?}").replace(name, "NAME"))
    };
    assert_eq!(say("dataset:acme/contracts@v1"), say("dataset:acme/nothing@v1"));
    assert_eq!(say("dataset:acme/contracts@v1"), say("dataset:nobody/x@v1"));
    assert!(!say("dataset:acme/contracts@v1").1.contains("legal@acme.example"));
}

#[test]
fn a_refusal_names_who_asked_the_rule_and_the_way_out() {
    let engine = shipped();
    let mut ask = Ask::of(&[("read_dataset", "dataset:acme/tickets@v3")]);
    ask.purpose = "demo-bot".into();
    let r = ask.refusal(&engine, TRAINER);
    assert_eq!(r.text, "this job may not read dataset:acme/tickets@v3");
    assert_eq!(r.fact("you").unwrap(), format!("{TRAINER}; purpose asked: \"demo-bot\""));
    assert_eq!(
        r.fact("rule").unwrap(),
        "trainer-reads-own-or-shared-data: this dataset may be used for: support-eval, support-tuning"
    );
    assert_eq!(
        r.fact("fix").unwrap(),
        "set purpose in the job file to one of these if it is true, or ask its owner, data-tickets@acme.example"
    );
    let etl = "spiffe://k8s.acme.example/ns/etl/sa/nightly";
    let r = Ask::of(&[("read_model", "model:acme/base-1b@2026.04")]).refusal(&engine, etl);
    assert!(r.fact("rule").unwrap().ends_with("it requires the role trainer; your roles: none"), "{r:?}");
    assert!(r.fact("fix").unwrap().contains("acme.toml:"), "{r:?}");
    // Both are missing, so the message names both.
    ask.parts = Ask::of(&[("read_dataset", "dataset:acme/corpus@2026-10")]).parts;
    let r = ask.refusal(&engine, etl);
    assert!(r.fact("rule").unwrap().contains("by the role trainer"), "{r:?}");
    assert!(r.fact("fix").unwrap().contains("and set purpose = \"support-tuning\""), "{r:?}");
    ask.parts = Ask::of(&[("read_dataset", "dataset:acme/tickets@v3")]).parts;
    ask.purpose = "support-tuning".into();
    let r = ask.refusal(&engine, "spiffe://hpc.acme.example/slurm/ml-support/n1");
    assert!(r.fact("rule").unwrap().starts_with("guard-shared-identity: restricted data"), "{r:?}");
    assert!(r.fact("fix").unwrap().contains("identity = \"job\", or ask its owner"), "{r:?}");
    let mut other = Ask::of(&[("delete_checkpoint", "checkpoint:acme/lab-lora")]);
    other.own_checkpoint = false;
    let r = other.refusal(&engine, TRAINER);
    assert!(r.text.contains("delete from") && r.fact("fix").unwrap().contains("this job writes"), "{r:?}");
}

#[test]
fn a_refused_call_names_the_rules_that_would_permit_it() {
    let engine = shipped();
    let caller: SpiffeId = "spiffe://k8s.acme.example/ns/ci/sa/launcher".parse().unwrap();
    let tenant: TenantName = "globex".parse().unwrap();
    let call = Call {
        caller: &caller,
        rpc: Rpc::CreateJob,
        tenant: Some(&tenant),
        relations: &[],
        now: Wall::parse(NOW).unwrap(),
        reason: "",
        amr: &[],
    };
    let r = engine.authorize(&call).unwrap_err();
    assert_eq!(r.text, "this launcher may not call CreateJob in tenant globex");
    assert!(
        r.fact("rule").unwrap().contains("launcher-creates-jobs: jobs are created by launchers"),
        "{r:?}"
    );
    let r = engine.authorize(&Call { rpc: Rpc::Revoke, ..call }).unwrap_err();
    assert_eq!((r.reason, r.text.as_ref()), (Reason::KindNotAllowed, "a launcher may not call Revoke"));
    let nobody: SpiffeId = "spiffe://k8s.acme.example/nobody".parse().unwrap();
    let r = engine.authorize(&Call { caller: &nobody, ..call }).unwrap_err();
    assert_eq!(r.reason, Reason::PrincipalUnknown);
}

#[test]
fn a_requester_sees_no_rule_that_is_for_operators() {
    let engine = Engine::load(&PolicySource::Default, &catalog(), Explain::Operators).unwrap();
    let mut ask = Ask::of(&[
        ("read_dataset", "dataset:acme/tickets@v3"),
        ("read_dataset", "dataset:acme/contracts@v1"),
    ]);
    ask.purpose = "demo-bot".into();
    let Verdict::Deny { refusal, rules } = ask.judge(&engine, TRAINER) else { panic!() };
    assert_eq!(rules, ["trainer-reads-own-or-shared-data"]);
    let shown = format!("{refusal:?}");
    assert!(refusal.fact("rule").is_none() && !shown.contains("support-tuning"), "{shown}");
    assert!(!shown.contains("trainer-reads") && shown.contains("data-tickets@acme.example"), "{shown}");
}

#[test]
fn no_policy_and_no_catalog_allow_nothing() {
    let ask = Ask::of(&[("read_dataset", "dataset:acme/contracts@v1")]);
    let none = site("").unwrap();
    assert_eq!(ask.refusal(&none, TRAINER).reason, Reason::PolicyDenied);
    let empty = Engine::load(&PolicySource::Default, &Catalog::empty(), Explain::Requester).unwrap();
    assert_eq!(ask.refusal(&empty, TRAINER).reason, Reason::PrincipalUnknown);
    assert!(matches!(ask.judge(&shipped(), TRAINER), Verdict::Allow { .. }));
}

#[test]
fn a_catalog_entry_is_judged_as_any_of_its_identities() {
    let engine = shipped();
    let c = catalog();
    let ask = Ask::of(&[("read_dataset", "dataset:acme/contracts@v1")]);
    let verdict = |pattern: &str| {
        let entry = c.principals().find(|p| p.pattern.to_string() == pattern).unwrap();
        engine.judge(Asker::Entry(entry), &ask.bundle())
    };
    assert!(matches!(verdict("spiffe://k8s.acme.example/ns/ml/job/*"), Verdict::Allow { .. }));
    assert!(matches!(verdict("spiffe://hpc.acme.example/slurm/ml-support/*"), Verdict::Deny { .. }));
}

// ---------- bad policies ----------

const PERMIT: &str = "@id(\"open\") permit (principal is Leasehold::Workload, action, resource);\n";

#[test]
fn a_rule_that_fails_denies_and_only_operators_see_it() {
    let site = site(&format!(
        "{PERMIT}@id(\"broken\") forbid (principal is Leasehold::Workload, \
         action == Leasehold::Action::\"read_dataset\", resource is Leasehold::Dataset)\n\
         when {{ context.ttl_seconds * 9223372036854775807 > 0 }};"
    ))
    .unwrap();
    let ask = Ask::of(&[("read_dataset", "dataset:acme/contracts@v1")]);
    let Verdict::Deny { refusal, rules } = ask.judge(&site, TRAINER) else { panic!() };
    assert_eq!(refusal.reason, Reason::PolicyError);
    assert!(rules.iter().any(|r| r.contains("broken")), "{rules:?}");
    assert!(!format!("{refusal:?}").contains("broken"), "{refusal:?}");
    // The rule applies if its arithmetic does not overflow.
    let mut none = ask;
    none.ttl = Duration::from_secs(1);
    assert_eq!(none.refusal(&site, TRAINER).reason, Reason::PolicyDenied);
}

#[test]
fn a_rule_that_fails_denies_a_call_too() {
    let site = site(&format!(
        "{PERMIT}@id(\"broken\") forbid (principal, action == Leasehold::Action::\"CreateJob\", resource)\n\
         when {{ context.now.offset(duration(\"9223372036854775807ms\")) > context.now }};"
    ))
    .unwrap();
    let caller: SpiffeId = TRAINER.parse().unwrap();
    let tenant: TenantName = "acme".parse().unwrap();
    let now = Wall::parse(NOW).unwrap();
    let call = Call {
        caller: &caller,
        rpc: Rpc::CreateJob,
        tenant: Some(&tenant),
        relations: &[],
        now,
        reason: "",
        amr: &[],
    };
    assert_eq!(site.authorize(&call).unwrap_err().reason, Reason::PolicyError);
}

#[test]
fn all_mistakes_in_policies_are_reported_with_line_and_policy() {
    let found = site(concat!(
        "@id(\"one\")\npermit (principal is Leasehold::Workload, action == Leasehold::Action::\"finetune\", resource is Leasehold::Model)\n",
        "when {\n  resource.teir == \"lab\" };\n",
        "@id(\"two\")\nforbid (principal, action == Leasehold::Action::\"fine_tune\", resource);\n",
        "permit (principal is Leasehold::Workload, action == Leasehold::Action::\"CreateJob\", resource);\n",
        "@id(\"one\")\nforbid (principal, action, resource);\n",
        "@id(\"four\") @explian(\"x\")\nforbid (principal, action, resource) when { principal.disabled };\n",
        "@id(\"five\")\nforbid (principal is Leasehold::Workload, action == Leasehold::Action::\"read_dataset\", resource is Leasehold::Dataset)\n",
        "when { resource.retain_until < context.now };\n",
    ))
    .err()
    .unwrap();
    for (place, what) in [
        ("site.cedar:4: policy `one`", "attribute `teir`"),
        ("site.cedar:6: policy `two`", "fine_tune"),
        ("site.cedar:7: ", "no valid @id"),
        ("site.cedar:8: policy `one`", "line 1 has this @id already"),
        ("site.cedar:10: policy `four`", "unknown annotation @explian"),
        ("site.cedar:14: policy `five`", "retain_until"),
    ] {
        assert!(found.iter().any(|f| f.starts_with(place) && f.contains(what)), "{place} {what}: {found:#?}");
    }
}

#[test]
fn a_typo_in_the_grammar_has_its_line() {
    let found = site("@id(\"a\")\npermit (principal, action, resource)\nwhen { true }\n@id(\"b\")\nforbit (principal, action, resource);\n")
        .err()
        .unwrap();
    assert!(found.iter().any(|f| f.starts_with("site.cedar:4: ")), "{found:?}");
}

#[test]
fn a_gate_says_who_approves_and_can_be_opened() {
    let gate = |annotations: &str, rest: &str| {
        site(&format!(
            "@id(\"g\") {annotations}\nforbid (principal is Leasehold::Workload, \
             action == Leasehold::Action::\"finetune\", resource is Leasehold::Model) {rest};"
        ))
        .map(|_| ())
        .map_err(|e| e.join("\n"))
    };
    const ALL: &str =
        "@gate(\"approval\") @explain(\"e\") @approver_group(\"g\") @approvals(\"1\") @approval_ttl(\"4h\")";
    const OPENS: &str = "unless { context.approved.contains(\"g\") }";
    assert_eq!(gate(ALL, OPENS), Ok(()));
    assert!(
        gate(ALL, "unless { context.approved.contains(\"h\") }")
            .unwrap_err()
            .contains("would not open this gate")
    );
    assert!(gate(&ALL.replace("\"1\"", "\"0\""), OPENS).unwrap_err().contains("@approvals"));
    assert!(gate(&ALL.replace("4h", "soon"), OPENS).unwrap_err().contains("@approval_ttl"));
    assert!(gate(&ALL.replace("@explain(\"e\")", ""), OPENS).unwrap_err().contains("no @explain"));
    assert!(gate(&ALL.replace("approval\")", "vote\")"), OPENS).unwrap_err().contains("vote"));
    assert!(gate("@approvals(\"1\")", OPENS).unwrap_err().contains("for gates"));
    // The gate would stop calls permanently, because calls carry no approvals.
    let call = site(&format!(
        "@id(\"g\") {ALL}\nforbid (principal, action, resource) \
         unless {{ context has approved && context.approved.contains(\"g\") }};"
    ));
    assert!(call.err().unwrap().join("\n").contains("can hold back only actions of jobs"));
}

#[test]
fn a_rule_that_matches_no_one_is_refused_or_warned_of() {
    // A tenant may remove an entry that a rule of the platform names.
    let gone = site(
        "@id(\"a\") forbid (principal == Leasehold::Workload::\"spiffe://k8s.acme.example/ns/ml/jobs/*\", action, resource);",
    )
    .unwrap();
    let [warning] = gone.warnings() else { panic!("{:?}", gone.warnings()) };
    for said in ["has no effect", "did you mean spiffe://k8s.acme.example/ns/ml/job/*?", "context.spiffe_id"]
    {
        assert!(warning.contains(said), "{warning}");
    }
    let found = site("@id(\"a\") forbid (principal, action, resource == Leasehold::Dataset::\"tickets\");")
        .err()
        .unwrap();
    assert!(found.iter().any(|f| f.contains("write it in full")), "{found:?}");
    let good = site(
        "@id(\"a\") forbid (principal == Leasehold::Workload::\"spiffe://k8s.acme.example/ns/ml/job/*\", action, \
         resource == Leasehold::Dataset::\"dataset:acme/later@v1\");",
    )
    .unwrap();
    assert_eq!(good.warnings().len(), 1);
}

#[test]
fn a_rule_about_one_identity_looks_at_its_spiffe_id() {
    let site = site(&format!(
        "{PERMIT}@id(\"not-j1\") forbid (principal is Leasehold::Workload, action in Leasehold::Action::\"tune_part\", resource)\n\
         when {{ context.spiffe_id == \"{TRAINER}\" }};"
    ))
    .unwrap();
    let ask = Ask::of(&[("read_dataset", "dataset:acme/contracts@v1")]);
    assert_eq!(ask.refusal(&site, TRAINER).reason, Reason::PolicyDenied);
    assert!(matches!(ask.judge(&site, "spiffe://k8s.acme.example/ns/ml/job/j2"), Verdict::Allow { .. }));
}

#[test]
fn an_ignored_policy_file_and_a_second_schema_are_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let load = || Engine::load(&PolicySource::Dir(dir.path().into()), &Catalog::empty(), Explain::Requester);
    fs::write(dir.path().join("leasehold.cedarschema"), SCHEMA).unwrap();
    assert!(load().is_ok());
    fs::write(dir.path().join("leasehold.cedarschema"), format!("{SCHEMA}\n")).unwrap();
    assert!(load().err().unwrap().to_string().contains("built in"));
    fs::write(dir.path().join("leasehold.cedarschema"), SCHEMA).unwrap();
    fs::write(dir.path().join("guard.ceder"), "x").unwrap();
    assert!(load().err().unwrap().to_string().contains("would not be read"));
    assert!(
        Engine::load(&PolicySource::Dir("/nowhere".into()), &Catalog::empty(), Explain::Requester).is_err()
    );
}

#[test]
fn the_same_question_has_the_same_answer() {
    let (a, b) = (shipped(), shipped());
    for case in cases() {
        assert_eq!(a.run_case(&case), b.run_case(&case), "{case:?}");
    }
}

#[test]
fn a_kept_answer_is_given_only_to_the_same_question() {
    let engine = shipped();
    let mut ask = Ask::of(&[("read_dataset", "dataset:acme/tickets@v1")]);
    ask.now = Wall::parse("2026-06-30T11:59:59.999Z").unwrap();
    assert!(matches!(ask.judge(&engine, TRAINER), Verdict::Allow { .. }));
    assert!(matches!(ask.judge(&engine, "spiffe://k8s.acme.example/ns/ml/job/j2"), Verdict::Allow { .. }));
    assert_eq!(engine.memo.len(), 1, "the shipped rules do not look at who it is within an entry");
    ask.now = Wall::parse("2026-06-30T12:00:00.000Z").unwrap();
    ask.refusal(&engine, TRAINER);
    ask.now = Wall::parse("2026-06-30T11:59:58Z").unwrap();
    assert!(matches!(ask.judge(&engine, TRAINER), Verdict::Allow { .. }));
    ask.purpose = "demo-bot".into();
    ask.refusal(&engine, TRAINER);
    ask.purpose = "support-tuning".into();
    ask.refusal(&engine, "spiffe://k8s.acme.example/ns/etl/sa/x");
    assert!(matches!(ask.judge(&engine, TRAINER), Verdict::Allow { .. }));
}

/// A catalog with the datasets `a` and `b`, which are alike, and `c`, which has another owner.
fn alike() -> Catalog {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from(
        "[tenant.acme]\n[[principal]]\nmatch = \"spiffe://k8s.acme.example/ns/ml/job/*\"\nkind = \"workload\"\n\
         identity = \"job\"\nroles = [\"trainer\"]\n[[audience]]\nname = \"spiffe://k8s.acme.example/gw\"\n\
         verifiers = [\"spiffe://k8s.acme.example/gw\"]\nchecks = \"feed\"\npresenter = \"mtls\"\n",
    );
    for (name, owner) in [("a", "x"), ("b", "x"), ("c", "y")] {
        text.push_str(&format!(
            "[[dataset]]\nname = \"{name}@v1\"\nlocation = \"s3://d/{name}/\"\naudience = \"spiffe://k8s.acme.example/gw\"\n\
             pin = \"none\"\nclassification = \"internal\"\ndata_classes = []\nsource_trust = \"curated\"\n\
             purposes = [\"support-tuning\"]\nowner = \"{owner}\"\nretain_until = 2099-01-01\n"
        ));
    }
    fs::write(dir.path().join("acme.toml"), text).unwrap();
    Catalog::load(dir.path()).unwrap()
}

// The answer for a resource is kept for all resources with equal attributes, but not if a rule looks at the resource itself.
#[test]
fn resources_with_equal_attributes_share_an_answer() {
    let asks = ["a", "b", "c"].map(|name| {
        let name = format!("dataset:acme/{name}@v1");
        Ask::of(&[("read_dataset", &name)])
    });
    let engine = Engine::load(&PolicySource::Default, &alike(), Explain::Requester).unwrap();
    for ask in &asks {
        assert!(matches!(ask.judge(&engine, TRAINER), Verdict::Allow { .. }));
    }
    assert_eq!(engine.memo.len(), 2, "one for a and b, one for c");

    for (scope, condition) in [
        (r#"resource == Leasehold::Dataset::"dataset:acme/a@v1""#, "true"),
        (r#"resource in Leasehold::Dataset::"dataset:acme/a@v1""#, "true"),
        ("resource", r#"resource == Leasehold::Dataset::"dataset:acme/a@v1""#),
        ("resource", r#"[Leasehold::Dataset::"dataset:acme/a@v1"].contains(resource)"#),
        ("resource", r#"resource is Leasehold::Dataset in Leasehold::Dataset::"dataset:acme/a@v1""#),
        ("resource", r#"(if true then resource else resource) == Leasehold::Dataset::"dataset:acme/a@v1""#),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let rule = format!(
            r#"@id("p") permit (principal, action == Leasehold::Action::"read_dataset", {scope}) when {{ {condition} }};"#
        );
        fs::write(dir.path().join("site.cedar"), &rule).unwrap();
        let engine = Engine::load(&PolicySource::Dir(dir.path().into()), &alike(), Explain::Requester);
        let engine = engine.unwrap_or_else(|e| panic!("{rule}: {e:?}"));
        let allowed = asks.each_ref().map(|ask| matches!(ask.judge(&engine, TRAINER), Verdict::Allow { .. }));
        assert_eq!(allowed, [true, false, false], "{rule}");
    }
}

// A shared answer depends on waivers and on the model of a checkpoint line too, and not on which resource was asked about first.
#[test]
fn a_shared_answer_is_that_of_each_resource() {
    let by_name = r#"
        @id("p") permit (principal, action, resource) when { resource has owner && resource.owner != "" };
        @id("guard") forbid (principal, action == Leasehold::Action::"read_dataset", resource)
          when { resource.shared_with.isEmpty() } unless { context.waived.contains("guard") };
    "#;
    let engines = || [shipped(), site(by_name).unwrap_or_else(|e| panic!("{e:?}"))];
    let mut asked = 0;
    for is_reversed in [false, true] {
        for engine in engines() {
            let mut resources: Vec<&Resource> = engine.catalog.resources().collect();
            resources.sort_by(|a, b| a.name.cmp(&b.name));
            if is_reversed {
                resources.reverse();
            }
            let ask = Ask::of(&[]);
            let bundle = ask.bundle();
            for on in resources {
                for waived in [&[][..], &["guard"][..]] {
                    let facts = ContextFields::of_job(TRAINER, &bundle, waived);
                    for action in Action::ALL.iter().filter(|action| action.applies_to() == on.name.kind()) {
                        for principal in engine.catalog.principals() {
                            let Some(slice) = engine.slices.get(&(principal.kind, PolicyAct::Part(*action)))
                            else {
                                continue;
                            };
                            let me = &engine.prepared.principals[&principal.pattern];
                            let uid = &engine.prepared.resources[&on.name].uid;
                            let own = engine.evaluate(slice, &engine.prepared.entities, me, uid, &facts);
                            let shared = engine.part(principal, *action, on, &facts);
                            assert_eq!(format!("{shared:?}"), format!("{own:?}"), "{action} {uid} {me}");
                            asked += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(asked > 1_000, "{asked}");
}

// An act is allowed faster by a set in which the forbids are joined. It is the same set of acts, allowed by the same permits.
#[test]
fn joined_forbids_allow_what_the_rules_allow() {
    let odd = site(
        r#"
        @id("p") permit (principal, action, resource);
        @id("always") forbid (principal, action == Leasehold::Action::"delete_checkpoint", resource);
        @id("both") forbid (principal, action, resource)
          when { context has ttl_seconds && context.ttl_seconds > 300 } unless { context.purpose == "evaluation" };
        @id("two") forbid (principal, action, resource)
          when { principal.disabled } when { context has purpose && context.purpose == "evaluation" };
        @id("overflow") forbid (principal is Leasehold::Workload, action in Leasehold::Action::"tune_part", resource)
          when { context.attempt * 9223372036854775807 == 1 };
        @id("one") forbid (principal == Leasehold::Workload::"spiffe://k8s.acme.example/ns/ml/job/*", action, resource)
          when { context has own_checkpoint && context.own_checkpoint };
        "#,
    )
    .unwrap();
    let shipped = shipped();
    let gates: BTreeSet<String> =
        shipped.rules().filter(|r| r.gate.is_some()).map(|r| r.id.clone()).collect();
    let (mut allowed, mut refused) = (0, 0);
    for engine in [&shipped, &odd] {
        let unchanged =
            PolicySet::from_policies(engine.policies().map(|(_, policy)| policy.clone())).unwrap();
        for (purpose, ttl, approved, own_checkpoint, attempt) in [
            ("support-tuning", 300, BTreeSet::new(), true, 1),
            ("support-tuning", 300, gates.clone(), false, 1),
            ("evaluation", 301, gates.clone(), true, 1),
            ("evaluation", 60, gates.clone(), false, 2),
        ] {
            let ask = Ask {
                purpose: purpose.into(),
                ttl: Duration::from_secs(ttl),
                approved,
                own_checkpoint,
                ..Ask::of(&[])
            };
            let bundle = Bundle { attempt, ..ask.bundle() };
            let facts = ContextFields::of_job(TRAINER, &bundle, &[]);
            for ((kind, act), slice) in &engine.slices {
                let (PolicyAct::Part(action), Some(joined)) = (act, &slice.joined) else { continue };
                for principal in engine.catalog.principals().filter(|p| p.kind == *kind) {
                    let me = &engine.prepared.principals[&principal.pattern];
                    let resources = engine.prepared.resources.iter();
                    for on in resources
                        .filter(|(name, _)| name.kind() == action.applies_to())
                        .map(|(_, resource)| &resource.uid)
                    {
                        let request = engine.request(slice, me, on, &facts).unwrap();
                        let by = |set| {
                            let answer = engine.evaluate_policies(&request, set, &engine.prepared.entities);
                            answer.ok().filter(|(allowed, _)| *allowed).map(|(_, permits)| ids(&permits))
                        };
                        let answer = by(&unchanged);
                        assert_eq!(by(&slice.all), answer, "{} {me} {on} {purpose}", act.as_str());
                        assert_eq!(by(joined), answer, "{} {me} {on} {purpose}", act.as_str());
                        if answer.is_some() { allowed += 1 } else { refused += 1 }
                    }
                }
            }
        }
    }
    assert!(allowed > 20 && refused > 20, "{allowed} allowed, {refused} refused");
}
