//! Decisions with the shipped policy over catalogs of 1,000 and 10,000 entries, beside bare Cedar on the same request.
//!
//! `cargo bench --bench decisions`, or `-- new` for one kind. The kinds of decisions alternate in one run, so that other load of
//! the machine falls on all of them.
//! Figures go to stdout, each beside its target; nothing is asserted, because a timed test fails on a machine with other work.
//!
//! - *new*: the engine has not met the question before: the dataset or the purpose is another one. If it has met an equal
//!   question about a dataset with equal attributes, it does not evaluate the rules again.
//! - *first*: as *new*, but no other dataset has equal attributes, so the engine evaluates the rules.
//! - *later*: the engine has met it in another second, as when a lease is renewed.
//! - *known*: the engine has met it in this second, as for the members of one job.
//! - *bare Cedar*: `Authorizer::is_authorized` with all rules, all entities and a context with all fields, made for each request.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a bench measures by the machine's clock and ends if it cannot go on"
)]

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    hint::black_box,
    path::Path,
    str::FromStr,
    time::{Duration, Instant},
};

use cedar_policy::{
    Authorizer, Context, Decision as Answer, Entities, EntityUid, PolicySet, Request,
    RestrictedExpression as Value, Schema,
};
use leasehold::{
    clock::Wall,
    internals::{
        catalog::Catalog,
        fence::{Registry, Seq},
        policy::{Bundle, Decision, Engine, Explain, JobRisk, Phase, PolicySource, RequestFacts},
    },
    name::{Action, FenceName, Object, SpiffeId, TenantName},
};
use serde_json::{Value as Json, json};

/// The catalogs: how many entries each has, and whether its datasets have equal attributes.
const CATALOGS: [(usize, bool); 3] = [(1_000, true), (10_000, true), (1_000, false)];
const ROUNDS: usize = 400;
/// Decisions of one kind in one round.
const TURN: usize = 25;
const NOW: u64 = 1_800_000_000_000;
/// Each dataset of the smaller catalog with each purpose gives 11,000 questions, of which 10,000 are asked as new.
const PURPOSES: [&str; 11] = ["support-tuning", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
const HOLDER: &str = "spiffe://k8s.acme.example/ns/ml/job/a";

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let sides: Vec<Side> = CATALOGS.into_iter().map(|(entries, alike)| Side::new(entries, alike)).collect();
    let mut times: BTreeMap<(usize, &str), Vec<f64>> = BTreeMap::new();
    let mut asked = 0;
    for _ in 0..ROUNDS {
        for side in &sides {
            for what in ["first", "new", "later", "known", "bare Cedar"] {
                let is_wanted = wanted.is_empty() || wanted.iter().any(|kind| kind == what);
                if !is_wanted || side.alike == (what == "first") {
                    continue;
                }
                let kept = times.entry((side.entries, what)).or_default();
                for _ in 0..TURN {
                    asked += 1;
                    let question = match what {
                        "first" | "new" => side.unasked(),
                        "known" => Question::about(0, 0),
                        "later" => Question::about(0, asked),
                        _ => Question::about(asked % side.entries, asked),
                    };
                    let from = Instant::now();
                    if what == "bare Cedar" {
                        side.decide_bare(&question);
                    } else {
                        side.decide(&question);
                    }
                    kept.push(from.elapsed().as_secs_f64() * 1e6);
                }
            }
        }
    }
    println!("load of this machine: {}", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!("{} decisions of each kind, in µs\n", ROUNDS * TURN);
    println!("{:>8}  {:<12} {:>8} {:>8}   target", "entries", "", "p50", "p99");
    let mut p50s = BTreeMap::new();
    for ((entries, what), mut times) in times {
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times[times.len() * share / 100];
        p50s.insert((entries, what), at(50));
        let target = match what {
            "bare Cedar" => String::new(),
            _ => format!("≤ 10   {}", if at(50) <= 10.0 { "ok" } else { "MISSED" }),
        };
        println!("{entries:>8}  {what:<12} {:>8.2} {:>8.2}   {target}", at(50), at(99));
    }
    for what in ["new", "later", "known", "bare Cedar"] {
        let (Some(large), Some(small)) = (p50s.get(&(CATALOGS[1].0, what)), p50s.get(&(CATALOGS[0].0, what)))
        else {
            continue;
        };
        let ratio = large / small;
        let verdict = if ratio <= 1.2 { "ok" } else { "MISSED" };
        println!(
            "{what}: {} entries to {}: {ratio:.2} ×   ≤ 1.2 ×   {verdict}",
            CATALOGS[1].0, CATALOGS[0].0
        );
    }
}

/// The question whether the holder may read a dataset. It contains the name, as a request does, so the bench does not measure the
/// making of the name.
struct Question {
    dataset: String,
    parts: [(Action, Object); 1],
    purpose: &'static str,
    second: usize,
}

impl Question {
    fn about(number: usize, second: usize) -> Self {
        let dataset = dataset(number);
        let parts = [(Action::ReadDataset, dataset.parse().unwrap())];
        Question { dataset, parts, purpose: PURPOSES[0], second }
    }
}

/// One catalog, as the engine and as Cedar have it.
struct Side {
    entries: usize,
    /// Whether all datasets have equal attributes.
    alike: bool,
    /// How many new questions were asked.
    asked: Cell<usize>,
    engine: Engine,
    fences: Registry,
    tenant: TenantName,
    holder: SpiffeId,
    approved: BTreeSet<String>,
    risk: JobRisk,
    authorizer: Authorizer,
    policies: PolicySet,
    entities: Entities,
    schema: Schema,
}

impl Side {
    fn new(entries: usize, alike: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("acme.toml"), catalog(entries, alike)).unwrap();
        let catalog = Catalog::load(folder.path()).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policy");
        let read = |name: &str| fs::read_to_string(shipped.join(name)).unwrap();
        let (schema, _) = Schema::from_cedarschema_str(&read("leasehold.cedarschema")).unwrap();
        let datasets = (0..entries).map(dataset);
        Side {
            entries,
            alike,
            asked: Cell::new(0),
            engine: Engine::load(&PolicySource::Default, &catalog, Explain::Requester).unwrap(),
            fences: Registry::new(Seq(0)),
            tenant: "acme".parse().unwrap(),
            holder: HOLDER.parse().unwrap(),
            approved: BTreeSet::new(),
            risk: JobRisk::default(),
            authorizer: Authorizer::new(),
            policies: PolicySet::from_str(&read("leasehold.cedar")).unwrap(),
            entities: Entities::from_json_value(entity_list(datasets), Some(&schema)).unwrap(),
            schema,
        }
    }

    /// Returns a question that was not asked before: no two of them have both dataset and purpose in common.
    fn unasked(&self) -> Question {
        let number = self.asked.get();
        self.asked.set(number + 1);
        let purpose = PURPOSES[number / self.entries];
        Question { purpose, ..Question::about(number % self.entries, number) }
    }

    /// Decides a question. Takes the stand first, as the daemon does.
    fn decide(&self, question: &Question) {
        let bundle = Bundle {
            job: "j-00000000000000000000000001",
            tenant: &self.tenant,
            attempt: 1,
            phase: Phase::Running,
            purpose: question.purpose,
            facts: RequestFacts::default(),
            risk: &self.risk,
            method: None,
            ttl: Duration::from_secs(300),
            now: Wall(NOW + question.second as u64 * 1_000),
            approved: &self.approved,
            own_checkpoint: true,
            binding: "",
            parts: &question.parts,
        };
        let stand = self.fences.stand([] as [FenceName; 0]);
        match self.engine.decide(&self.holder, &bundle, stand, self.fences.revision()) {
            Decision::Grant(grant) => drop(black_box(grant)),
            other => panic!("the shipped policy does not allow it: {other:?}"),
        }
    }

    /// Asks Cedar for the same decision.
    fn decide_bare(&self, question: &Question) {
        let uid =
            |kind: &str, id: &str| EntityUid::from_str(&format!("Leasehold::{kind}::\"{id}\"")).unwrap();
        let text = |t: &str| Value::new_string(t.to_owned());
        let now = Wall(NOW + question.second as u64 * 1_000).to_string();
        let context = Context::from_pairs([
            ("spiffe_id".to_owned(), text(HOLDER)),
            ("job".to_owned(), text("j-00000000000000000000000001")),
            ("tenant".to_owned(), Value::new_entity_uid(uid("Tenant", "acme"))),
            ("attempt".to_owned(), Value::new_long(1)),
            ("phase".to_owned(), text("running")),
            ("purpose".to_owned(), text("support-tuning")),
            ("method".to_owned(), text("none")),
            ("ttl_seconds".to_owned(), Value::new_long(300)),
            ("now".to_owned(), Value::new_datetime(now)),
            ("why".to_owned(), text("")),
            ("ticket".to_owned(), text("")),
            ("rollback_to".to_owned(), text("")),
            ("prompt_alternative".to_owned(), text("")),
            ("acting_for".to_owned(), text("")),
            ("risk".to_owned(), Value::new_long(0)),
            ("risk_reasons".to_owned(), Value::new_set([])),
            ("approved".to_owned(), Value::new_set([])),
            ("image".to_owned(), text("")),
            ("waived".to_owned(), Value::new_set([])),
            ("own_checkpoint".to_owned(), Value::new_bool(true)),
            ("binding".to_owned(), text("subject")),
        ])
        .unwrap();
        let request = Request::new(
            uid("Workload", "spiffe://k8s.acme.example/ns/ml/job/*"),
            uid("Action", "read_dataset"),
            uid("Dataset", &question.dataset),
            context,
            Some(&self.schema),
        )
        .unwrap();
        let answer = self.authorizer.is_authorized(&request, &self.policies, &self.entities);
        assert_eq!(answer.decision(), Answer::Allow);
        black_box(answer);
    }
}

fn dataset(number: usize) -> String {
    format!("dataset:acme/data-{number}@v1")
}

/// A catalog with this number of datasets. If they are not alike, each has a different owner.
fn catalog(entries: usize, alike: bool) -> String {
    let mut text = String::from(
        "[tenant.acme]\n[[principal]]\nmatch = \"spiffe://k8s.acme.example/ns/ml/job/*\"\nkind = \"workload\"\n\
         identity = \"job\"\nroles = [\"trainer\"]\n[[audience]]\nname = \"spiffe://k8s.acme.example/gw\"\n\
         verifiers = [\"spiffe://k8s.acme.example/gw\"]\nchecks = \"feed\"\npresenter = \"mtls\"\n",
    );
    for number in 0..entries {
        let owner = if alike { 0 } else { number };
        text.push_str(&format!(
            "[[dataset]]\nname = \"data-{number}@v1\"\nlocation = \"s3://d/{number}/\"\naudience = \"spiffe://k8s.acme.example/gw\"\n\
             pin = \"none\"\nclassification = \"internal\"\ndata_classes = []\nsource_trust = \"curated\"\n\
             purposes = {PURPOSES:?}\nowner = \"o-{owner}\"\nretain_until = 2099-01-01\n"
        ));
    }
    text
}

/// Makes Cedar entities of these entries.
fn entity_list(datasets: impl Iterator<Item = String>) -> Json {
    let tenant = json!({ "type": "Leasehold::Tenant", "id": "acme" });
    let mut all = vec![
        json!({ "uid": tenant, "attrs": {}, "parents": [] }),
        json!({
            "uid": { "type": "Leasehold::Workload", "id": "spiffe://k8s.acme.example/ns/ml/job/*" },
            "attrs": {
                "tenant": { "__entity": tenant }, "trust_domain": "k8s.acme.example", "roles": ["trainer"], "disabled": false,
                "identity": "job",
            },
            "parents": [tenant],
        }),
    ];
    all.extend(datasets.map(|name| {
        json!({
            "uid": { "type": "Leasehold::Dataset", "id": name },
            "attrs": {
                "tenant": { "__entity": tenant }, "owner": "o-0", "shared_with": [], "pinned": false, "enforced": "checked",
                "classification": "internal", "data_classes": [], "source_trust": "curated",
                "allowed_purposes": PURPOSES,
                "retain_until": { "__extn": { "fn": "datetime", "arg": "2099-01-01T00:00:00Z" } },
            },
            "parents": [tenant],
        })
    }));
    Json::Array(all)
}
