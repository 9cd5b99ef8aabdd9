//! The echo: a server without a broker that answers the messages of the daemon. Its rates are shown beside the daemon's rates,
//! as the best that this machine can do.

use std::{path::Path, pin::Pin, sync::Arc};

use futures_util::Stream;
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::echo_work::{EchoWork, Worker};
use crate::{
    clock::Clock,
    dev::{Role, TRUST_DOMAIN, deployment::TENANT},
    identity::{FileSource, IdentityFiles},
    link::{Acceptor, Protocol, ServeOptions, serve},
    proto::v1::{
        self,
        member_service_server::{MemberService, MemberServiceServer},
        verifier_service_server::{VerifierService, VerifierServiceServer},
    },
};

/// The files with the answers of the echo, in the folder of the deployment. The daemon gave these answers before.
pub(super) const ANSWERS: [&str; 3] = ["echo.issue", "echo.renew", "echo.introspect"];

/// Serves the answers in the folder of a deployment until `stop` is cancelled.
///
/// # Errors
///
/// Fails if a file cannot be read, or if the server cannot listen on the port.
pub async fn serve_echo(
    folder: &Path,
    port: u16,
    work: EchoWork,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let [issue, renew, introspect] = ANSWERS;
    let read = |name: &str| std::fs::read(folder.join(name)).map_err(|e| format!("{name}: {e}"));
    let issue = v1::IssueCredentialResponse::decode(read(issue)?.as_slice()).map_err(|e| text(&e))?;
    let echo = Echo {
        worker: Worker::new(work, folder, &issue.token, clock.clone())?,
        issue,
        renew: v1::RenewLeaseResponse::decode(read(renew)?.as_slice()).map_err(|e| text(&e))?,
        introspect: v1::IntrospectResponse::decode(read(introspect)?.as_slice()).map_err(|e| text(&e))?,
    };
    let echo = Arc::new(echo);
    let svid = |ending: &str| folder.join(format!("svid/{}.{ending}", Role::Daemon.as_str()));
    let files = IdentityFiles {
        svid: Some((svid("pem"), svid("key"))),
        bundles: vec![(TRUST_DOMAIN.parse().map_err(|_| "no such domain")?, folder.join("ca/bundle.pem"))],
    };
    let source = Arc::new(FileSource::open(files, clock.clone()).map_err(|e| text(&e))?);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.map_err(|e| text(&e))?;
    let acceptor = Acceptor::new(source, clock, Protocol::Grpc);
    let routes = Routes::new(MemberServiceServer::from_arc(echo.clone()))
        .add_service(VerifierServiceServer::from_arc(echo));
    serve(listener, acceptor, routes, ServeOptions::default(), stop).await;
    Ok(())
}

struct Echo {
    issue: v1::IssueCredentialResponse,
    renew: v1::RenewLeaseResponse,
    introspect: v1::IntrospectResponse,
    worker: Worker,
}

fn not_echoed() -> Status {
    Status::unimplemented(format!("the echo of {TENANT} answers issue, renew and introspect"))
}

#[tonic::async_trait]
impl MemberService for Echo {
    type KeepAliveStream = Pin<Box<dyn Stream<Item = Result<v1::KeepAliveResponse, Status>> + Send>>;

    async fn issue_credential(
        &self,
        _: Request<v1::IssueCredentialRequest>,
    ) -> Result<Response<v1::IssueCredentialResponse>, Status> {
        self.worker.work_once(&self.issue.token, None).await?;
        Ok(Response::new(self.issue.clone()))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        let name = &request.get_ref().lease;
        let lease = name.parse().map_err(|_| Status::invalid_argument(format!("`{name}` is no lease id")))?;
        self.worker.work_once(&self.renew.token, Some(lease)).await?;
        Ok(Response::new(self.renew.clone()))
    }

    async fn join_attempt(
        &self,
        _: Request<v1::JoinAttemptRequest>,
    ) -> Result<Response<v1::JoinAttemptResponse>, Status> {
        Err(not_echoed())
    }

    async fn keep_alive(
        &self,
        _: Request<Streaming<v1::KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        Err(not_echoed())
    }

    async fn release_lease(
        &self,
        _: Request<v1::ReleaseLeaseRequest>,
    ) -> Result<Response<v1::ReleaseLeaseResponse>, Status> {
        Err(not_echoed())
    }
}

#[tonic::async_trait]
impl VerifierService for Echo {
    type WatchFencesStream = Pin<Box<dyn Stream<Item = Result<v1::WatchFencesResponse, Status>> + Send>>;

    async fn introspect(
        &self,
        _: Request<v1::IntrospectRequest>,
    ) -> Result<Response<v1::IntrospectResponse>, Status> {
        Ok(Response::new(self.introspect.clone()))
    }

    async fn watch_fences(
        &self,
        _: Request<Streaming<v1::WatchFencesRequest>>,
    ) -> Result<Response<Self::WatchFencesStream>, Status> {
        Err(not_echoed())
    }

    async fn report_use(
        &self,
        _: Request<v1::ReportUseRequest>,
    ) -> Result<Response<v1::ReportUseResponse>, Status> {
        Err(not_echoed())
    }

    async fn resolve_key(
        &self,
        _: Request<v1::ResolveKeyRequest>,
    ) -> Result<Response<v1::ResolveKeyResponse>, Status> {
        Err(not_echoed())
    }

    async fn get_keys(
        &self,
        _: Request<v1::GetKeysRequest>,
    ) -> Result<Response<v1::GetKeysResponse>, Status> {
        Err(not_echoed())
    }
}
