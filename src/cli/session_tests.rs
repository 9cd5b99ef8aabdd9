//! Tests of commands against a scripted daemon, over real connections.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, sync::Mutex, time::Duration};

use clap::Parser;
use tokio::net::TcpListener;
use tokio_stream::Empty;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};
use tonic_types::{ErrorDetails, StatusExt};

use super::*;
use crate::{
    cli::{Cli, Effect, SvidFiles},
    clock::manual::ManualClock,
    identity::{
        StaticSource,
        testing::{NOW, TestCa, bundles},
    },
    limits::CALL,
    link::{Acceptor, Protocol, ServeOptions, serve},
    proto::v1::{
        self,
        operator_service_server::{OperatorService, OperatorServiceServer},
    },
    reason::Reason,
};

const DAEMON: &str = "spiffe://td.example/daemon";

/// The answers of the daemon, and the calls that it got.
#[derive(Default)]
struct Answers {
    revoke: Mutex<Option<Result<v1::RevokeResponse, Status>>>,
    /// The error that WaitDurable returns.
    not_durable: Option<&'static str>,
    asked: Mutex<Vec<String>>,
    /// The daemon never answers.
    is_silent: bool,
}

#[tonic::async_trait]
impl OperatorService for Answers {
    async fn log_out(&self, _: Request<v1::LogOutRequest>) -> Result<Response<v1::LogOutResponse>, Status> {
        unreachable!("no test logs out")
    }

    async fn who_am_i(&self, _: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        self.asked.lock().unwrap().push("whoami".to_owned());
        if self.is_silent {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(v1::WhoAmIResponse {
            spiffe_id: "spiffe://td.example/op".into(),
            kind: "operator".into(),
            tenant: "acme".into(),
            server_time: Some(prost_types::Timestamp { seconds: 1_795_148_000, nanos: 0 }),
            ..Default::default()
        }))
    }

    async fn revoke(&self, r: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        let request = r.get_ref();
        let dry = if request.dry_run { "count" } else { "revoke" };
        self.asked.lock().unwrap().push(format!("{dry} {}", request.name));
        if request.dry_run && matches!(*self.revoke.lock().unwrap(), Some(Ok(_))) {
            return Ok(Response::new(v1::RevokeResponse::default()));
        }
        self.revoke.lock().unwrap().take().unwrap().map(Response::new)
    }

    async fn wait_durable(
        &self,
        r: Request<v1::WaitDurableRequest>,
    ) -> Result<Response<v1::WaitDurableResponse>, Status> {
        self.asked.lock().unwrap().push(format!("wait {:?}", r.get_ref().receipt));
        match self.not_durable {
            None => Ok(Response::new(v1::WaitDurableResponse::default())),
            Some(why) => Err(Status::failed_precondition(why)),
        }
    }

    async fn list_leases(
        &self,
        r: Request<v1::ListLeasesRequest>,
    ) -> Result<Response<v1::ListLeasesResponse>, Status> {
        // There are three pages with one item each.
        let page = r.get_ref().page_token.len();
        self.asked.lock().unwrap().push(format!("page {page}"));
        let next_page_token = if page < 2 { "x".repeat(page + 1) } else { String::new() };
        let lease = v1::Lease { id: format!("l-{page}"), state: "live".into(), ..Default::default() };
        Ok(Response::new(v1::ListLeasesResponse { leases: vec![lease], next_page_token }))
    }

    async fn get_lease(
        &self,
        _: Request<v1::GetLeaseRequest>,
    ) -> Result<Response<v1::GetLeaseResponse>, Status> {
        Ok(Response::new(v1::GetLeaseResponse { lease: None }))
    }

    async fn lock(&self, _: Request<v1::LockRequest>) -> Result<Response<v1::LockResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn recall_dataset(
        &self,
        _: Request<v1::RecallDatasetRequest>,
    ) -> Result<Response<v1::RecallDatasetResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn unrecall_dataset(
        &self,
        _: Request<v1::UnrecallDatasetRequest>,
    ) -> Result<Response<v1::UnrecallDatasetResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn offboard(
        &self,
        _: Request<v1::OffboardRequest>,
    ) -> Result<Response<v1::OffboardResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn verify_clean(
        &self,
        _: Request<v1::VerifyCleanRequest>,
    ) -> Result<Response<v1::VerifyCleanResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn unlock(&self, _: Request<v1::UnlockRequest>) -> Result<Response<v1::UnlockResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_locks(
        &self,
        _: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn reload_catalog(
        &self,
        _: Request<v1::ReloadCatalogRequest>,
    ) -> Result<Response<v1::ReloadCatalogResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type TailLedgerStream = Empty<Result<v1::TailLedgerResponse, Status>>;

    async fn evaluate_policy(
        &self,
        _: Request<v1::EvaluatePolicyRequest>,
    ) -> Result<Response<v1::EvaluatePolicyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn who_can(&self, _: Request<v1::WhoCanRequest>) -> Result<Response<v1::WhoCanResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn explain_job(
        &self,
        _: Request<v1::ExplainJobRequest>,
    ) -> Result<Response<v1::ExplainJobResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn apply_policy(
        &self,
        _: Request<v1::ApplyPolicyRequest>,
    ) -> Result<Response<v1::ApplyPolicyResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_waivers(
        &self,
        _: Request<v1::ListWaiversRequest>,
    ) -> Result<Response<v1::ListWaiversResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_policies(
        &self,
        _: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tail_ledger(
        &self,
        _: Request<v1::TailLedgerRequest>,
    ) -> Result<Response<Self::TailLedgerStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// A running daemon, and a folder with a context for it.
struct Running {
    answers: Arc<Answers>,
    clock: Arc<ManualClock>,
    folder: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Running {
    async fn start(answers: Answers) -> Self {
        let ca = TestCa::new("td.example");
        let clock = Arc::new(ManualClock::new(NOW));
        let answers = Arc::new(answers);
        let source = StaticSource::new(Some(Arc::new(ca.svid("/daemon").svid())), bundles(&[&ca]));
        let acceptor = Acceptor::new(Arc::new(source), clock.clone(), Protocol::Grpc);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let routes = Routes::new(OperatorServiceServer::from_arc(answers.clone())).prepare();
        tokio::spawn(serve(listener, acceptor, routes, ServeOptions::default(), shutdown.clone()));

        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let operator = ca.svid("/op");
        fs::write(path("bundle.pem"), ca.pem()).unwrap();
        fs::write(path("op.pem"), operator.chain_pem()).unwrap();
        fs::write(path("op.key"), operator.key_pem()).unwrap();
        fs::set_permissions(path("op.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let context = Context {
            server,
            server_id: DAEMON.parse().unwrap(),
            bundles: BTreeMap::from([(ca.domain(), path("bundle.pem"))]),
            issuer: None,
            login: None,
            identities: BTreeMap::from([(
                PrincipalKind::Operator,
                SvidFrom::Files(SvidFiles { cert: path("op.pem"), key: path("op.key") }),
            )]),
        };
        let running = Running { answers, clock, folder, shutdown };
        running.save(context);
        running
    }

    fn contexts(&self) -> PathBuf {
        self.folder.path().join("contexts.toml")
    }

    fn save(&self, context: Context) {
        let contexts = BTreeMap::from([("test".to_owned(), context)]);
        Contexts { current: Some("test".into()), contexts, ..Default::default() }
            .save(&self.contexts())
            .unwrap();
    }

    fn change(&self, change: impl FnOnce(&mut Context)) {
        let mut context = Contexts::load(&self.contexts()).unwrap().contexts.remove("test").unwrap();
        change(&mut context);
        self.save(context);
    }

    fn session(&self) -> Session {
        Session::of_test(self.clock.clone(), self.contexts(), None)
    }

    async fn run(&self, line: &str) -> Result<Exit, Failure> {
        let words = std::iter::once("leasehold").chain(line.split(' '));
        Cli::try_parse_from(words).unwrap().run_in(self.session()).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.answers.asked.lock().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn ended(durable: bool) -> Answers {
    let ending = v1::Ending { seq: 9, behind: 2, durable, receipt: vec![7] };
    let answer = v1::RevokeResponse { ending: Some(ending), ..Default::default() };
    Answers { revoke: Mutex::new(Some(Ok(answer))), ..Default::default() }
}

#[tokio::test]
async fn the_doctor_finds_no_fault_in_a_good_context() {
    let daemon = Running::start(Answers::default()).await;
    assert_eq!(daemon.run("whoami").await.unwrap(), Exit::Ok);
    assert_eq!(daemon.run("doctor").await.unwrap(), Exit::Ok);
    fs::set_permissions(daemon.folder.path().join("op.key"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(daemon.run("doctor").await.unwrap(), Exit::Failure, "a key that others may read");
}

#[tokio::test]
async fn the_doctor_finds_clocks_that_differ() {
    let daemon = Running::start(Answers::default()).await;
    daemon.clock.advance(Duration::from_secs(31));
    assert_eq!(daemon.run("doctor").await.unwrap(), Exit::Failure);
}

#[tokio::test]
async fn a_revocation_that_is_not_durable_in_time_exits_with_5() {
    let revoke = "revoke tenant:acme --reason leak";
    let daemon = Running::start(ended(false)).await;
    assert_eq!(daemon.run(revoke).await.unwrap(), Exit::Ok);
    assert_eq!(daemon.asked(), ["count tenant:acme", "revoke tenant:acme", "wait [7]"]);

    let daemon = Running::start(Answers { not_durable: Some("the disk is full"), ..ended(false) }).await;
    let failure = daemon.run(revoke).await.unwrap_err();
    assert_eq!(failure.exit, Exit::NotDurable);
    assert!(matches!(failure.effect, Effect::Said(_)), "it is in force all the same");

    let daemon = Running::start(ended(true)).await;
    assert_eq!(daemon.run(revoke).await.unwrap(), Exit::Ok);
    assert_eq!(
        daemon.asked(),
        ["count tenant:acme", "revoke tenant:acme"],
        "what is durable is not waited for"
    );
}

#[tokio::test]
async fn a_refusal_shows_its_facts_and_who_we_are() {
    let details = ErrorDetails::with_error_info(
        "POLICY_DENIED",
        "leasehold",
        [("rule".to_owned(), "operators-end-access".to_owned())],
    );
    let status = Status::with_error_details(tonic::Code::PermissionDenied, "you may not end this", details);
    let answers = Answers { revoke: Mutex::new(Some(Err(status))), ..Default::default() };
    let daemon = Running::start(answers).await;
    let failure = daemon.run("revoke tenant:other --reason x").await.unwrap_err();
    assert_eq!((failure.reason, failure.exit), (Some(Reason::PolicyDenied), Exit::Denied));
    insta::assert_snapshot!(failure.render(), @r#"
    leasehold: denied: you may not end this
      code   POLICY_DENIED
      you    spiffe://td.example/op
      rule   operators-end-access
    Nothing was changed.
    "#);
}

#[tokio::test]
async fn a_list_fetches_pages_up_to_its_limit() {
    let daemon = Running::start(Answers::default()).await;
    assert_eq!(daemon.run("lease list").await.unwrap(), Exit::Ok);
    assert_eq!(daemon.asked(), ["page 0", "page 1", "page 2"]);
    assert_eq!(daemon.run("lease list --limit 2").await.unwrap(), Exit::Ok);
    assert_eq!(daemon.asked(), ["page 0", "page 1"]);
}

#[tokio::test]
async fn an_incomplete_answer_is_a_failure() {
    let daemon = Running::start(Answers::default()).await;
    let failure = daemon.run("lease show l-00000000000000000000000009").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Failure);
    let failure = daemon.run("lock list").await.unwrap_err();
    assert_eq!(failure.reason, Some(Reason::NotSupported));
    assert_eq!(daemon.run("audit tail --no-follow").await.unwrap(), Exit::Ok);
}

#[tokio::test]
async fn a_call_to_a_silent_daemon_times_out() {
    let daemon = Running::start(Answers { is_silent: true, ..Default::default() }).await;
    let passing = async {
        while daemon.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        daemon.clock.advance(CALL);
        std::future::pending::<()>().await;
    };
    let failure = tokio::select! {
        answer = daemon.run("whoami") => answer.unwrap_err(),
        () = passing => unreachable!(),
    };
    assert_eq!(failure.reason, Some(Reason::Unreachable));
    assert_eq!(failure.effect, Effect::Nothing);
}

#[tokio::test]
async fn a_server_with_another_identity_is_not_asked() {
    let daemon = Running::start(ended(true)).await;
    daemon.change(|context| context.server_id = "spiffe://td.example/other".parse().unwrap());
    let failure = daemon.run("revoke tenant:acme --reason x").await.unwrap_err();
    assert_eq!((failure.exit, failure.effect.clone()), (Exit::Denied, Effect::Nothing));
    assert!(daemon.asked().is_empty());
    assert_eq!(daemon.run("doctor").await.unwrap(), Exit::Failure);

    daemon.change(|context| context.server = "127.0.0.1:1".into());
    let failure = daemon.run("whoami").await.unwrap_err();
    assert_eq!((failure.reason, failure.exit), (Some(Reason::Unreachable), Exit::Failure));
}

#[tokio::test]
async fn an_expired_svid_is_not_tried() {
    let daemon = Running::start(Answers::default()).await;
    daemon.clock.advance(Duration::from_secs(2 * 3600));
    let failure = daemon.run("whoami").await.unwrap_err();
    assert_eq!(failure.reason, Some(Reason::SvidExpired));
}

#[tokio::test]
async fn a_missing_identity_is_reported_with_the_known_ones() {
    let daemon = Running::start(Answers::default()).await;
    let session = Session::of_test(daemon.clock.clone(), daemon.contexts(), Some(PrincipalKind::Launcher));
    let failure = session.client(PrincipalKind::ALL).err().unwrap();
    assert!(failure.render().contains("has    operator"), "{}", failure.render());
    let failure = daemon.run("job check /nonexistent.toml").await.unwrap_err();
    assert_eq!(failure.exit, Exit::Usage, "a job file is read before any call");
    fs::remove_file(daemon.folder.path().join("op.key")).unwrap();
    let failure = daemon.run("whoami").await.unwrap_err();
    assert!(failure.render().contains("`private key` does not exist"), "{}", failure.render());
}

#[tokio::test]
async fn contexts_are_chosen_and_deleted() {
    let daemon = Running::start(Answers::default()).await;
    assert_eq!(daemon.run("context use other").await.unwrap_err().exit, Exit::Usage);
    assert_eq!(daemon.run("context use test").await.unwrap(), Exit::Ok);
    assert_eq!(daemon.run("context delete test").await.unwrap(), Exit::Ok);
    assert_eq!(Contexts::load(&daemon.contexts()).unwrap(), Contexts::default());
    let failure = daemon.run("whoami").await.unwrap_err();
    assert!(failure.render().contains("leasehold dev"), "{}", failure.render());
}
