//! The samples in `config/` and `deploy/` work together as `config/README.md` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use leasehold::{
    internals::agent::RunSpec,
    proto::v1::{self, Half, JobState},
};

use crate::harness::*;

fn sample(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The rows of the table below a heading, without its head.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, below) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let rows = below.lines().skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

fn words(cell: &str) -> Vec<String> {
    cell.split(", ").filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A sample job, and the answer that its tenant's launcher gets.
struct SampleJob {
    file: String,
    spec: v1::JobSpec,
    answer: String,
    rules: Vec<String>,
    people: Vec<String>,
}

impl SampleJob {
    fn all(page: &str) -> Vec<Self> {
        let jobs = table(page, "The jobs").into_iter().map(|row| {
            let [file, answer, rules, people] = row.try_into().unwrap();
            let path = if file.starts_with("deploy/") { file.clone() } else { format!("config/{file}") };
            let spec = RunSpec::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
            let spec = spec.unwrap_or_else(|e| panic!("{file}: {:?}", e.problems())).job;
            let people = words(&people).iter().map(|p| format!("spiffe://people.acme.example/{p}")).collect();
            SampleJob { file, spec, answer, rules: words(&rules), people }
        });
        let jobs: Vec<_> = jobs.collect();
        let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/jobs")).unwrap().count();
        assert_eq!(jobs.len(), files + 1, "each file of config/jobs, and the one of deploy/slurm, has a row");
        jobs
    }
}

/// A daemon with the sample catalog and the sample policy.
async fn served() -> World {
    let mut world = World::prepared(|setup| {
        setup.real_clock = true;
        setup.catalog = ["acme.toml", "globex.toml", "platform.toml"]
            .map(|file| (file, sample(&format!("config/catalog.d/{file}"))))
            .into();
    });
    fs::remove_file(world.file("policy/dev.cedar")).unwrap();
    world.restart().await;
    world
}

/// What a dry run answers: `allow`, `wait` or the code of the refusal; and the gates, or the rules that refused.
async fn answer(client: &Client, spec: &v1::JobSpec) -> (String, Vec<String>) {
    let request = v1::CreateJobRequest { spec: Some(spec.clone()), dry_run: true, ..Default::default() };
    match client.jobs().create_job(request).await {
        Ok(created) => {
            let job = created.into_inner().job.unwrap();
            let word = if job.state() == JobState::Ready { "allow" } else { "wait" };
            (word.to_owned(), job.waiting_for.iter().map(|gate| gate.id.clone()).collect())
        }
        Err(status) => {
            let no = Refused::of(&status);
            let rule = no.facts.get("rule").and_then(|rule| rule.split(':').next()).map(str::to_owned);
            (no.reason, rule.into_iter().collect())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sample_identity_gets_the_answers_of_the_page() {
    let page = sample("config/README.md");
    let world = served().await;
    let jobs = SampleJob::all(&page);
    let identities = table(&page, "Who may create them");
    // Each entry of the catalogs has a row, except that of people who log in.
    let catalog = leasehold::internals::catalog::Catalog::load(&world.file("catalog.d")).unwrap();
    let named: Vec<leasehold::name::SpiffeId> =
        identities.iter().map(|row| format!("spiffe://{}", row[0]).parse().unwrap()).collect();
    for entry in catalog.principals().filter(|e| e.pattern.trust_domain().as_str() != "login.acme.example") {
        let has_row =
            named.iter().any(|id| catalog.principal(id).is_some_and(|p| p.pattern == entry.pattern));
        assert!(has_row, "no row of the table is of the entry {}", entry.pattern);
    }
    // The sample configuration accepts the trust domain of each.
    let config = sample("config/leasehold.toml");
    let mut wrong = Vec::new();
    for (id, row) in named.iter().zip(&identities) {
        assert!(config.contains(&format!("\"{}\" = \"/run/", id.trust_domain())), "{id}");
        let client = world.client(id.as_str()).await;
        for job in &jobs {
            let cell = &row[if job.spec.tenant == "globex" { 2 } else { 1 }];
            let (got, rules) = answer(&client, &job.spec).await;
            let holds = match (cell.as_str(), job.answer.as_str()) {
                ("as above", "deny") => got == "POLICY_DENIED" && rules == job.rules,
                ("as above", answer) => got == answer && rules == job.rules,
                (code, _) => got == code,
            };
            if !holds {
                wrong.push(format!("{}: {id}: {cell}, and it got {got} {rules:?}", job.file));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

// Each gate of the samples lets a job pass with exactly the people of the page, and the job then works.
#[tokio::test(flavor = "multi_thread")]
async fn each_sample_job_runs_when_its_people_have_approved() {
    let page = sample("config/README.md");
    let world = served().await;
    let launchers = BTreeMap::from([("acme", LAUNCHER), ("globex", GLOBEX_LAUNCHER)]);
    for job in SampleJob::all(&page).into_iter().filter(|job| job.answer != "deny") {
        let file = &job.file;
        let launcher = world.client(launchers[job.spec.tenant.as_str()]).await;
        let made = launcher.create(job.spec.clone(), file).await;
        let made = made.unwrap_or_else(|no| panic!("{file}: {:?}", Refused::of(&no)));
        let made = made.into_inner().job.unwrap();
        for person in &job.people {
            refused(launcher.begin(&made.id, "run").await)
                .is(tonic::Code::FailedPrecondition, "APPROVAL_REQUIRED");
            let request = v1::ApproveRequest {
                job: made.id.clone(),
                request_digest: made.request_digest.clone(),
                reason: "reviewed".into(),
                ..Default::default()
            };
            let approved = world.client(person).await.approvals().approve(request).await;
            approved.unwrap_or_else(|no| panic!("{file}: {person}: {:?}", Refused::of(&no)));
        }
        // The cluster's own daemon begins the job of Slurm, and the launcher all others.
        let starter = match file.starts_with("deploy/slurm") {
            true => world.client(SCHEDULER).await,
            false => launcher,
        };
        let begun = starter.begin(&made.id, "run").await;
        let begun = begun.unwrap_or_else(|no| panic!("{file}: {:?}", Refused::of(&no))).into_inner();
        let member = job.spec.members.clone().unwrap().join[0].clone();
        let member = world.client(&member).await;
        let mut worker = Worker::join(member, &made.id, 1, "rank-0", &begun.ticket).await.unwrap();
        worker.keep_alive().await;
        let halves: &[Half] =
            if job.spec.write.is_empty() { &[Half::Reading] } else { &[Half::Reading, Half::Writing] };
        if job.spec.tenant == "acme" {
            let gateway = world.client(GATEWAY).await;
            for half in halves {
                let request = v1::IntrospectRequest {
                    token: worker.issue(*half).await.text,
                    presenter: worker.client.id.clone(),
                    // Needed for an identity that jobs share.
                    presenter_sha256: worker.client.credentials.sha256().to_vec(),
                };
                let seen = gateway.verifiers().introspect(request).await.unwrap().into_inner();
                assert!(seen.active, "{file}: {}", seen.reason);
            }
        }
        launcher_ends(&world, &made.id, launchers[job.spec.tenant.as_str()]).await;
    }
    assert_eq!(world.daemon().broker.live_leases(), 0);
    // The samples meet every gate of the sample policy except one. A job that meets this gate must name an earlier job, so no
    // sample file can contain it. `config/policy/tests.toml` has the cases of this gate.
    let rules = world.daemon().broker.rules.in_force();
    let mut gates: BTreeSet<String> =
        rules.engine.rules().filter(|r| r.gate.is_some()).map(|r| r.id.clone()).collect();
    let met: BTreeSet<String> = SampleJob::all(&page)
        .into_iter()
        .filter(|job| job.answer == "wait")
        .flat_map(|job| job.rules)
        .collect();
    assert!(gates.remove("gate-production-checkpoint"));
    assert_eq!(met, gates);
}

async fn launcher_ends(world: &World, job: &str, launcher: &str) {
    world.client(launcher).await.end(job, 1, v1::Outcome::Completed).await.unwrap();
}
