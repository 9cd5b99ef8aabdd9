//! Approvals, from a gate of the shipped policy to a job that runs, and back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use leasehold::proto::v1::{self, Half, JobState, Outcome};
use tonic::{Code, Response, Status};

use crate::harness::*;

pub const MONA: &str = "spiffe://people.acme.example/models/mona";
pub const MILO: &str = "spiffe://people.acme.example/models/milo";
pub const PIA: &str = "spiffe://people.acme.example/privacy/pia";
/// The person for whom the usual job is done, as a model owner.
const ADA_OWNER: &str = "spiffe://people.acme.example/models/ada";
/// A reviewer of the platform, in both groups.
pub const REVIEWER: &str = "spiffe://people.platform.example/review/rita";
/// Mona, as a reviewer of the platform.
const MONA_REVIEWER: &str = "spiffe://people.platform.example/review/mona";

pub const PRODUCTION: &str = "gate-production-finetune";
pub const SENSITIVE: &str = "gate-sensitive-data";

/// A job that tunes a production model: two model owners must approve it.
pub fn production() -> v1::JobSpec {
    v1::JobSpec {
        name: "live".into(),
        write: vec!["checkpoint:acme/live-lora".into()],
        ticket: "CHG-1412".into(),
        rollback_to: "model:acme/live-7b@2026.10".into(),
        prompt_alternative: "the longer prompt doubled the latency".into(),
        ..spec()
    }
}

/// A job that reads health data: one person of data protection must approve it.
pub fn sensitive() -> v1::JobSpec {
    v1::JobSpec {
        name: "patients".into(),
        read: vec!["dataset:acme/patients@v1".into(), MODEL.into()],
        ..spec()
    }
}

pub async fn created(world: &World, spec: v1::JobSpec) -> v1::Job {
    let launcher = world.client(LAUNCHER).await;
    let key = format!("key of {}", spec.name);
    let job = launcher.create(spec, &key).await.unwrap().into_inner().job.unwrap();
    assert_eq!(job.state(), JobState::AwaitingApproval);
    assert!(job.request_digest.starts_with("sha256:"), "{job:?}");
    job
}

impl Client {
    pub async fn approve(&self, job: &v1::Job) -> Result<Response<v1::ApproveResponse>, Status> {
        self.approve_at(job, &[]).await
    }

    pub async fn approve_at(
        &self,
        job: &v1::Job,
        gates: &[&str],
    ) -> Result<Response<v1::ApproveResponse>, Status> {
        let request = v1::ApproveRequest {
            job: job.id.clone(),
            request_digest: job.request_digest.clone(),
            gates: gates.iter().map(ToString::to_string).collect(),
            reason: "reviewed, CHG-1412".into(),
        };
        self.approvals().approve(request).await
    }

    async fn reject(&self, job: &v1::Job) -> Result<Response<v1::RejectResponse>, Status> {
        let request = v1::RejectRequest { job: job.id.clone(), reason: "not this data".into() };
        self.approvals().reject(request).await
    }

    pub async fn unapprove(&self, job: &v1::Job) -> Result<Response<v1::WithdrawApprovalResponse>, Status> {
        let request = v1::WithdrawApprovalRequest {
            job: job.id.clone(),
            gate: String::new(),
            reason: "a doubt".into(),
        };
        self.approvals().withdraw_approval(request).await
    }

    /// The names of the jobs that wait, with the gates at which approvals are missing.
    pub async fn waiting(&self, needs_me: bool) -> Vec<(String, Vec<(String, u32)>)> {
        let request = v1::ListApprovalsRequest { needs_me, ..Default::default() };
        let waiting = self.approvals().list_approvals(request).await.unwrap().into_inner().waiting;
        let gates = |w: &v1::WaitingJob| w.gates.iter().map(|g| (g.gate.clone(), g.missing)).collect();
        let named = |w: &v1::WaitingJob| (w.job.as_ref().unwrap().name.clone(), gates(w));
        // The clock of most tests stands still, so jobs that were created at the same time are listed in any order.
        let all: BTreeMap<_, _> = waiting.iter().map(named).collect();
        all.into_iter().collect()
    }
}

/// The text of a refusal of someone who has a part in the job.
fn involved<T>(answer: Result<Response<T>, Status>) -> String {
    let no = refused(answer);
    no.is(Code::PermissionDenied, "APPROVER_INVOLVED");
    no.text
}

pub async fn approved_by(world: &World, job: &v1::Job, people: &[&str]) -> v1::Job {
    let mut last = job.clone();
    for id in people {
        let answer = world.client(id).await.approve(job).await;
        let answer = answer.unwrap_or_else(|no| panic!("{id}: {:?}", Refused::of(&no))).into_inner();
        assert!(answer.changed, "{id}");
        last = answer.job.unwrap();
    }
    last
}

/// Begins a job and joins it.
pub async fn running(world: &World, job: &v1::Job) -> Worker {
    running_as(world, job, WORKER).await
}

pub async fn running_as(world: &World, job: &v1::Job, worker: &str) -> Worker {
    let begun = world.client(LAUNCHER).await.begin(&job.id, "run-1").await.unwrap().into_inner();
    let client = world.client(worker).await;
    let mut worker = Worker::join(client, &job.id, 1, "rank-0", &begun.ticket).await.unwrap();
    worker.keep_alive().await;
    worker
}

pub fn waits_at(job: &v1::Job) -> Vec<&str> {
    job.waiting_for.iter().map(|g| g.id.as_str()).collect()
}

// A person who came into a job by a pattern, as another identity, has a part in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_by_a_pattern_may_not_approve_as_another() {
    let world = World::with(|setup| {
        setup.catalog.get_mut("acme.toml").unwrap().push_str(
            "\n[[principal]]\nmatch = \"spiffe://people.acme.example/n/*\"\nkind = \"workload\"\nroles = [\"trainer\"]\n\
             human = \"segment:2\"\n",
        );
    })
    .await;
    let members = v1::Members { join: vec!["spiffe://people.acme.example/n/*".into()], ..Default::default() };
    let job = created(&world, v1::JobSpec { members: Some(members), ..production() }).await;
    approved_by(&world, &job, &[MILO, REVIEWER]).await;
    let begun = world.client(LAUNCHER).await.begin(&job.id, "run-1").await.unwrap().into_inner();
    let notebook = world.client("spiffe://people.acme.example/n/mona").await;
    Worker::join(notebook, &job.id, 1, "rank-0", &begun.ticket).await.unwrap();
    let text = involved(world.client(MONA).await.approve(&job).await);
    assert!(
        text.contains("human:mona is involved in the job, as spiffe://people.acme.example/n/mona"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_too_few_waits_and_enough_people_run() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let gates: [(v1::JobSpec, &str, &[&str]); 2] =
        [(production(), PRODUCTION, &[MONA, MILO]), (sensitive(), SENSITIVE, &[PIA])];
    for ((spec, gate, people), own) in gates.into_iter().zip([WORKER, OTHER_WORKER]) {
        let members = v1::Members { join: vec![own.into()], ..Default::default() };
        let job = created(&world, v1::JobSpec { members: Some(members), ..spec }).await;
        let (last, few) = people.split_last().unwrap();
        let seen = approved_by(&world, &job, few).await;
        assert_eq!((seen.state(), waits_at(&seen)), (JobState::AwaitingApproval, vec![gate]));
        refused(launcher.begin(&job.id, "run-1").await).is(Code::FailedPrecondition, "APPROVAL_REQUIRED");
        let seen = approved_by(&world, &job, &[last]).await;
        assert_eq!((seen.state(), waits_at(&seen)), (JobState::Ready, vec![]));
        // The same again changes nothing.
        let again = world.client(last).await.approve(&job).await.unwrap().into_inner();
        assert_eq!((again.changed, again.gates.as_slice()), (false, &[gate.to_owned()][..]));
        let worker = running_as(&world, &job, own).await;
        let token = worker.issue(Half::Reading).await;
        token.is_live(&world.client(GATEWAY).await).await;
        let records = world.records().await;
        let issued = records.of("credential.issued").into_iter().last().unwrap();
        let by: Vec<_> =
            issued["approvals"].as_array().unwrap().iter().map(|a| a["by"].as_str().unwrap()).collect();
        assert_eq!(by, people, "{issued}");
        launcher.end(&job.id, 1, Outcome::Completed).await.unwrap();
    }
}

/// Another gate of the shipped policy, and all gates at one job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gate_of_a_job_needs_its_own_people() {
    let world = World::with(|setup| {
        let acme = setup.catalog.get_mut("acme.toml").unwrap();
        let at = acme.find("name        = \"live-7b@2026.10\"").unwrap();
        let text = acme[at..].replacen("tool_access = \"none\"", "tool_access = \"production\"", 1);
        acme.truncate(at);
        acme.push_str(&text);
    })
    .await;
    let spec = v1::JobSpec { read: vec!["dataset:acme/patients@v1".into()], ..production() };
    let job = created(&world, spec).await;
    assert_eq!(waits_at(&job), [PRODUCTION, SENSITIVE, "gate-tool-access"]);
    let mona = world.client(MONA).await;
    let only = mona.approve_at(&job, &["gate-tool-access"]).await.unwrap().into_inner();
    assert_eq!(waits_at(only.job.as_ref().unwrap()), [PRODUCTION, SENSITIVE]);
    refused(mona.approve_at(&job, &[SENSITIVE]).await).is(Code::PermissionDenied, "NOT_AN_APPROVER");
    refused(mona.approve_at(&job, &["gate-of-no-one"]).await).is(Code::InvalidArgument, "FIELD_INVALID");
    approved_by(&world, &job, &[MONA, PIA]).await;
    let seen = approved_by(&world, &job, &[REVIEWER]).await;
    assert_eq!((seen.state(), waits_at(&seen)), (JobState::Ready, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_with_a_part_in_a_job_cannot_approve_it() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    // It is done for ada, who is a model owner too.
    let text = involved(world.client(ADA_OWNER).await.approve(&job).await);
    assert!(text.contains("human:ada"), "{text}");
    let text = involved(world.client(ADA_OWNER).await.reject(&job).await);
    assert!(text.contains("human:ada"), "{text}");
    // One person gives one approval, even with several identities.
    approved_by(&world, &job, &[MONA]).await;
    let text = involved(world.client(MONA_REVIEWER).await.approve(&job).await);
    assert!(text.contains(MONA), "{text}");
    // The identity that the job names as a member.
    let members = v1::Members { join: vec![WORKER.into()], start: vec![MILO.into()], ..Default::default() };
    let spec = v1::JobSpec { name: "started".into(), members: Some(members), ..production() };
    let started = created(&world, spec).await;
    let text = involved(world.client(MILO).await.approve(&started).await);
    assert!(text.contains("members.start"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_than_the_approvers_are_refused() {
    let world = World::start().await;
    let job = created(&world, production()).await;
    // In another group, and in none.
    let no = refused(world.client(PIA).await.approve(&job).await);
    no.is(Code::PermissionDenied, "NOT_AN_APPROVER");
    assert!(no.facts["asks"].contains("model-owners"), "{no:?}");
    for answer in [
        refused(world.client(OPERATOR).await.approve(&job).await),
        refused(world.client(OPERATOR).await.reject(&job).await),
    ] {
        answer.is(Code::PermissionDenied, "NOT_AN_APPROVER");
        assert!(answer.facts["asks"].contains("model-owners"), "{answer:?}");
    }
    refused(world.client(LAUNCHER).await.approve(&job).await).is(Code::PermissionDenied, "KIND_NOT_ALLOWED");
    // For an operator of another tenant the job does not exist.
    let stranger = world.client(GLOBEX_OPERATOR).await;
    refused(stranger.approve(&job).await).is(Code::NotFound, "JOB_NOT_FOUND");
    refused(stranger.reject(&job).await).is(Code::NotFound, "JOB_NOT_FOUND");
    refused(stranger.unapprove(&job).await).is(Code::NotFound, "JOB_NOT_FOUND");
    assert_eq!(stranger.waiting(false).await, []);
    // Only the request that was shown is approved.
    let mona = world.client(MONA).await;
    let other = v1::Job { request_digest: format!("sha256:{}", "00".repeat(32)), ..job.clone() };
    let no = refused(mona.approve(&other).await);
    no.is(Code::FailedPrecondition, "REQUEST_MISMATCH");
    assert_eq!((&no.facts["yours"], &no.facts["job"]), (&other.request_digest, &job.request_digest));
    let request = v1::ApproveRequest {
        job: job.id.clone(),
        request_digest: job.request_digest.clone(),
        ..Default::default()
    };
    refused(mona.approvals().approve(request).await).is(Code::InvalidArgument, "FIELD_MISSING");
    // A job that no gate holds back.
    let free = world.client(LAUNCHER).await.create(spec(), "free").await.unwrap().into_inner().job.unwrap();
    refused(mona.approve(&free).await).is(Code::FailedPrecondition, "STATE_CONFLICT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_shows_what_waits_and_what_waits_for_me() {
    let world = World::start().await;
    let live = created(&world, production()).await;
    created(&world, sensitive()).await;
    let (mona, operator) = (world.client(MONA).await, world.client(OPERATOR).await);
    let gate = |gate: &str, missing| vec![(gate.to_owned(), missing)];
    let patients = || ("patients".to_owned(), gate(SENSITIVE, 1));
    assert_eq!(operator.waiting(false).await, [("live".into(), gate(PRODUCTION, 2)), patients()]);
    assert_eq!(operator.waiting(true).await, []);
    assert_eq!(mona.waiting(true).await, [("live".to_owned(), gate(PRODUCTION, 2))]);
    mona.approve(&live).await.unwrap();
    assert_eq!(mona.waiting(true).await, []);
    assert_eq!(mona.waiting(false).await, [("live".into(), gate(PRODUCTION, 1)), patients()]);
    let request = v1::ListApprovalsRequest::default();
    let listed = mona.approvals().list_approvals(request).await.unwrap().into_inner().waiting;
    let live = listed.iter().find(|w| w.job.as_ref().unwrap().name == "live").unwrap();
    assert_eq!(live.gates[0].operators, ["spiffe://people.acme.example/models/*"]);
    let given = &live.job.as_ref().unwrap().gates[0].approvals;
    assert_eq!((given[0].by.as_str(), given[0].human.as_str()), (MONA, "human:mona"));
    assert_eq!((given[0].void_because.as_str(), given[0].reason.as_str()), ("", "reviewed, CHG-1412"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_job_is_closed_and_stays_so() {
    let world = World::start().await;
    let job = created(&world, sensitive()).await;
    let pia = world.client(PIA).await;
    let closed = pia.reject(&job).await.unwrap().into_inner().job.unwrap();
    assert_eq!((closed.outcome(), closed.detail.as_str()), (Outcome::Rejected, "not this data"));
    assert_eq!(pia.reject(&job).await.unwrap().into_inner().job.unwrap().outcome(), Outcome::Rejected);
    refused(pia.approve(&job).await).is(Code::FailedPrecondition, "JOB_CLOSED");
    let begun = world.client(LAUNCHER).await.begin(&job.id, "run-1").await;
    refused(begun).is(Code::FailedPrecondition, "JOB_CLOSED");
    let closed = world.records().await.one("job.closed").clone();
    assert_eq!(
        (closed["outcome"].as_str(), closed["by"]["spiffe_id"].as_str()),
        (Some("rejected"), Some(PIA))
    );
    // The catalog says which person the identity is.
    assert_eq!(closed["by"]["human"], "pia");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_approval_waits_again_or_ends_the_job() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let job = created(&world, production()).await;
    approved_by(&world, &job, &[MONA, MILO]).await;
    let mona = world.client(MONA).await;
    let done = mona.unapprove(&job).await.unwrap().into_inner();
    assert_eq!(
        (done.gates.as_slice(), done.job.unwrap().state()),
        (&[PRODUCTION.to_owned()][..], JobState::AwaitingApproval)
    );
    assert_eq!(mona.unapprove(&job).await.unwrap().into_inner().gates, Vec::<String>::new());
    approved_by(&world, &job, &[MONA, REVIEWER]).await;
    let worker = running(&world, &job).await;
    let tokens = worker.issue_both().await;
    // Two others are enough.
    mona.unapprove(&job).await.unwrap();
    tokens[0].is_live(&gateway).await;
    let done = world.client(MILO).await.unapprove(&job).await.unwrap().into_inner();
    assert_eq!(done.job.unwrap().outcome(), Outcome::Revoked);
    assert_eq!(done.ending.unwrap().behind, 2);
    for token in &tokens {
        token.is_dead(&gateway, "LEASE_ENDED").await;
    }
}

/// A lock that voids an approval ends what runs on it at once. Once it is lifted, the approval counts again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_the_approval_of_a_locked_person_ends() {
    let locks = [
        format!("identity:{MONA}"),
        "human:mona".into(),
        "identity-prefix:spiffe://people.acme.example/models/".into(),
        "domain:people.acme.example".into(),
    ];
    for name in locks {
        let world = World::start().await;
        let (gateway, platform) = (world.client(GATEWAY).await, world.client(PLATFORM).await);
        let job = created(&world, production()).await;
        approved_by(&world, &job, &[MONA, REVIEWER]).await;
        let worker = running(&world, &job).await;
        let token = worker.issue(Half::Reading).await;
        let request = v1::LockRequest {
            name: name.clone(),
            reason: "left the company".into(),
            ahead: true,
            locks_out: operators_of_acme(),
            ..Default::default()
        };
        let locked = platform.operators().lock(request).await.unwrap().into_inner();
        assert_eq!(locked.ending.unwrap().behind, 1, "{name}");
        token.is_dead(&gateway, "LEASE_ENDED").await;
        let no = refused(worker.try_issue(Half::Reading).await);
        no.is(Code::FailedPrecondition, "APPROVAL_REQUIRED");
        let seen = platform.job(&job.id).await;
        let void = |j: &v1::Job| j.gates[0].approvals.iter().filter(|a| !a.void_because.is_empty()).count();
        assert_eq!((waits_at(&seen), void(&seen)), (vec![PRODUCTION], 1), "{name}");
        // Unlocked, the approval counts again.
        platform.unlock(&name).await.unwrap();
        worker.issue(Half::Reading).await.is_live(&gateway).await;
    }
}

fn operators_of_acme() -> Vec<String> {
    ["u", "models", "privacy", "emergency"].map(|of| format!("spiffe://people.acme.example/{of}/*")).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_on_the_approval_of_someone_who_left_ends() {
    let world = World::start().await;
    let gateway = world.client(GATEWAY).await;
    let job = created(&world, sensitive()).await;
    approved_by(&world, &job, &[PIA]).await;
    let worker = running(&world, &job).await;
    let token = worker.issue(Half::Reading).await;
    let before = world.read("catalog.d/acme.toml");
    let group = "groups = [\"data-protection\"]";
    assert!(before.contains(group));
    world.write("catalog.d/acme.toml", &before.replace(group, "groups = [\"visitors\"]"));
    let request = v1::ReloadCatalogRequest { dry_run: false };
    let reloaded =
        world.client(PLATFORM).await.operators().reload_catalog(request).await.unwrap().into_inner();
    assert_eq!((reloaded.ended, reloaded.not_taken), (1, vec![]));
    token.is_dead(&gateway, "LEASE_ENDED").await;
    refused(worker.try_issue(Half::Reading).await).is(Code::FailedPrecondition, "APPROVAL_REQUIRED");
    // A reviewer of the platform takes their place.
    approved_by(&world, &job, &[REVIEWER]).await;
    worker.issue(Half::Reading).await.is_live(&gateway).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_is_good_until_its_ttl_and_then_holds() {
    let world = World::start().await;
    let launcher = world.client(LAUNCHER).await;
    let job = created(&world, production()).await;
    approved_by(&world, &job, &[MONA, MILO]).await;
    // The gate's approval_ttl is 4 h.
    world.time().advance(Duration::from_secs(4 * 3_600));
    refused(launcher.begin(&job.id, "run-1").await).is(Code::FailedPrecondition, "APPROVAL_REQUIRED");
    let (mona, milo) = (world.client(MONA).await, world.client(MILO).await);
    for person in [&mona, &milo] {
        person.approve(&job).await.unwrap();
    }
    let launcher = world.client(LAUNCHER).await;
    launcher.begin(&job.id, "run-1").await.unwrap();
    let seen = launcher.job(&job.id).await;
    // Its two hours began with the attempt, not with the question.
    let (began, ends) = (seen.attempts[0].began.unwrap().seconds, seen.ends_at_latest.unwrap().seconds);
    assert_eq!(ends - began, 2 * 3_600);
    assert_eq!(waits_at(&seen), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_loses_no_approval_and_no_withdrawal() {
    let mut world = World::start().await;
    let job = created(&world, production()).await;
    approved_by(&world, &job, &[MONA, MILO]).await;
    world.client(MONA).await.unapprove(&job).await.unwrap();
    world.restart().await;
    let launcher = world.client(LAUNCHER).await;
    let seen = launcher.job(&job.id).await;
    let given: Vec<_> = seen.gates[0].approvals.iter().map(|a| a.by.as_str()).collect();
    assert_eq!((given, seen.state()), (vec![MILO], JobState::AwaitingApproval));
    assert_eq!(seen.request_digest, job.request_digest);
    approved_by(&world, &job, &[REVIEWER]).await;
    world.restart().await;
    let worker = running(&world, &job).await;
    let token = worker.issue(Half::Reading).await;
    token.is_live(&world.client(GATEWAY).await).await;
}

/// Begins a job as soon as that is allowed, joins it and asks for a credential. `None` if something was refused.
async fn work_as_soon_as_possible(
    world: &World,
    launcher: &Client,
    job: &v1::Job,
    turn: usize,
) -> Option<(Token, Worker)> {
    let mut begun = None;
    for _ in 0..200 {
        begun = launcher.begin(&job.id, "run-1").await.ok();
        if begun.is_some() {
            break;
        }
    }
    let begun = begun?.into_inner();
    let client = world.client(&format!("{WORKER}-{turn}")).await;
    let worker = Worker::join(client, &job.id, 1, "rank-0", &begun.ticket).await.ok()?;
    let token = worker.try_issue(Half::Reading).await.ok()?.into_inner();
    Some((worker.token(token), worker))
}

/// One of the sensitive jobs of a race, for its own worker.
fn racing(turn: usize) -> v1::JobSpec {
    let members = v1::Members { join: vec![format!("{WORKER}-{turn}")], ..Default::default() };
    v1::JobSpec { name: format!("race-{turn}"), members: Some(members), ..sensitive() }
}

/// A rejection, a lock or a revocation comes at the same time as the last approval: afterwards no lease lives on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_raced_with_its_opposite_leaves_no_live_lease() {
    let world = World::start().await;
    let (gateway, platform) = (world.client(GATEWAY).await, world.client(PLATFORM).await);
    let (pia, launcher) = (world.client(PIA).await, world.client(LAUNCHER).await);
    let mut outcomes = BTreeSet::new();
    for turn in 0..24 {
        let job = created(&world, racing(turn)).await;
        let rita = world.client(REVIEWER).await;
        let approving = rita.approve(&job);
        let opposite = async {
            match turn % 3 {
                0 => pia.reject(&job).await.is_ok(),
                1 => platform.lock(&format!("identity:{REVIEWER}")).await.is_ok(),
                _ => platform.revoke(&format!("job:{}", job.id)).await.is_ok(),
            }
        };
        let work = work_as_soon_as_possible(&world, &launcher, &job, turn);
        let (approved, done, worked) = tokio::join!(approving, opposite, work);
        outcomes.insert((turn % 3, approved.is_ok(), done));
        // An approved job that was rejected too late was not rejected.
        let rejected = launcher.job(&job.id).await.outcome() == Outcome::Rejected;
        if let Some((token, _worker)) = worked
            && (turn % 3 != 0 || rejected)
        {
            let seen = token.seen_by(&gateway).await;
            assert!(!seen.active, "turn {turn}: a lease lives on");
        }
        if turn % 3 == 1 {
            platform.unlock(&format!("identity:{REVIEWER}")).await.unwrap();
        }
    }
    println!("{outcomes:?}");
}

/// A recall, another policy or the end of the job comes at the same time as the last approval: afterwards no lease lives on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_raced_with_recall_policy_or_end_leaves_no_lease() {
    const PATIENTS: &str = "dataset:acme/patients@v1";
    let world = World::with(|setup| setup.policy = "source = \"applied\"".into()).await;
    let (gateway, platform) = (world.client(GATEWAY).await, world.client(PLATFORM).await);
    let (operator, launcher) = (world.client(OPERATOR).await, world.client(LAUNCHER).await);
    let policy_with = |more: &str| {
        let file = |file: &str, text: String| v1::PolicyFile { file: file.into(), text };
        let shipped = ["leasehold.cedar", "dev.cedar"].map(|f| file(f, world.read(&format!("policy/{f}"))));
        let mut policies = shipped.to_vec();
        policies.push(file("more.cedar", more.into()));
        v1::ApplyPolicyRequest { policies, reason: "a race".into(), ..Default::default() }
    };
    let closed = "@id(\"no-patients\") forbid (principal is Leasehold::Workload, action == Leasehold::Action::\"read_dataset\", \
         resource) when { resource == Leasehold::Dataset::\"dataset:acme/patients@v1\" };";
    for turn in 0..18 {
        let job = created(&world, racing(turn)).await;
        let pia = world.client(PIA).await;
        let opposite = async {
            match turn % 3 {
                0 => {
                    let recall = v1::RecallDatasetRequest {
                        name: PATIENTS.into(),
                        reason: "r".into(),
                        ..Default::default()
                    };
                    operator.operators().recall_dataset(recall).await.map(drop)
                }
                1 => platform.operators().apply_policy(policy_with(closed)).await.map(drop),
                _ => {
                    let close = v1::CloseJobRequest { job: job.id.clone(), outcome: 0, reason: "c".into() };
                    launcher.jobs().close_job(close).await.map(drop)
                }
            }
        };
        let work = work_as_soon_as_possible(&world, &launcher, &job, turn);
        let (_, done, worked) = tokio::join!(pia.approve(&job), opposite, work);
        done.unwrap_or_else(|no| panic!("turn {turn}: {:?}", Refused::of(&no)));
        if let Some((token, _worker)) = worked {
            assert!(!token.seen_by(&gateway).await.active, "turn {turn}: a lease lives on");
        }
        match turn % 3 {
            0 => {
                let back = v1::UnrecallDatasetRequest { name: PATIENTS.into(), reason: "over".into() };
                platform.operators().unrecall_dataset(back).await.unwrap();
            }
            1 => {
                platform.operators().apply_policy(policy_with("")).await.unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(world.daemon().broker.live_leases(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_for_approval_starts_with_it() {
    let world = World::with(|setup| setup.real_clock = true).await;
    let pia = world.client(PIA).await;
    for (decision, code) in [("approve", 7), ("reject", 125)] {
        let spec = job_toml("", "").replace(TICKETS, "dataset:acme/patients@v1");
        let mut wrapper = world.wrap(&spec, &["--wait-approval"], "echo started; exit 7");
        let open = || v1::ListJobsRequest { open_only: true, ..Default::default() };
        let waits = async || pia.jobs().list_jobs(open()).await.unwrap().into_inner().jobs;
        eventually("a waiting job", async || waits().await.len() == 1).await;
        let job = pia.job(&waits().await[0].id).await;
        match decision {
            "approve" => drop(pia.approve(&job).await.unwrap()),
            _ => drop(pia.reject(&job).await.unwrap()),
        }
        assert_eq!(wrapper.exit().await, Some(code), "{}", wrapper.stderr());
        assert!(wrapper.stderr().contains(&format!("leasehold approve {}", job.id)), "{}", wrapper.stderr());
    }
}
