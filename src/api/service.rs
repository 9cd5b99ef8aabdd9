//! The five gRPC services with health and reflection, combined into one service for `link`.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tonic::service::Routes;

use super::{
    approval::Approvals,
    edge::{Edge, rpc_of},
    job::Jobs,
    member::MembersService,
    operator::Operators,
    request_body::{Messages, RequestBody, discard, too_large},
    response::ResponseBody,
    verifier::Verifiers,
};
use crate::{
    limits,
    link::Connection,
    policy::Rpc,
    proto::{self, v1},
    reason::{Reason, Refusal},
};

/// All services in one. It adds the Reason to responses that tonic makes.
#[derive(Clone)]
pub struct Service {
    edge: Edge,
    routes: Routes,
}

impl Edge {
    /// Combines all services, with health and reflection, into one service for `link`.
    pub fn service<H>(self, health: H) -> Result<Service, tonic_reflection::server::Error>
    where
        H: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + tonic::server::NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        H::Response: axum::response::IntoResponse,
        H::Future: Send + 'static,
    {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // These are the types of a refusal's details.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let max = limits::MESSAGE_BYTES_MAX;
        let edge = self.clone();
        let jobs = v1::job_service_server::JobServiceServer::new(Jobs(self.clone()));
        let members = v1::member_service_server::MemberServiceServer::new(MembersService(self.clone()));
        let operators = v1::operator_service_server::OperatorServiceServer::new(Operators(self.clone()));
        let approvals = v1::approval_service_server::ApprovalServiceServer::new(Approvals(self.clone()));
        let verifiers = v1::verifier_service_server::VerifierServiceServer::new(Verifiers(self));
        let routes = Routes::new(jobs.max_decoding_message_size(max))
            .add_service(members.max_decoding_message_size(max))
            .add_service(operators.max_decoding_message_size(max))
            .add_service(approvals.max_decoding_message_size(max))
            .add_service(verifiers.max_decoding_message_size(max))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(health);
        Ok(Service { edge, routes })
    }
}

impl<B> tower::Service<http::Request<B>> for Service
where
    B: http_body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::<http::Request<RequestBody<B>>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let brake = self.edge.brake.clone();
        let connection = parts.extensions.get::<Connection>().cloned();
        let held = match self.edge.admit(&parts) {
            Ok(held) => held,
            Err(refused) => {
                let read = discard(body, messages(&parts), self.edge.broker.clock().clone());
                let refused = refused.into_http();
                return Box::pin(async move {
                    read.await;
                    brake.wait(refused.headers(), connection.as_ref()).await;
                    Ok(refused)
                });
            }
        };
        parts.extensions.insert(held.clone());
        let body = RequestBody::new(body, messages(&parts), held.clone(), self.edge.broker.clock().clone());
        let answer = self.routes.call(http::Request::from_parts(parts, body));
        Box::pin(async move {
            let answer = with_reason(answer.await?);
            held.answered();
            if answer.headers().contains_key("grpc-status") {
                // A refusal has no body, so its wait needs no capacity.
                drop(held);
                brake.wait(answer.headers(), connection.as_ref()).await;
                return Ok(answer);
            }
            Ok(answer.map(|body| tonic::body::Body::new(ResponseBody::new(body, held))))
        })
    }
}

/// Returns the number of messages that a client may send with a call. A health call has one message, and reflection has
/// several.
fn messages(parts: &http::request::Parts) -> Messages {
    match rpc_of(parts.uri.path()) {
        Some(Rpc::KeepAlive | Rpc::WatchFences) => Messages::Many,
        Some(_) => Messages::One,
        None if parts.uri.path().starts_with("/grpc.reflection.") => Messages::Several,
        None => Messages::One,
    }
}

/// Adds the Reason to the refusals that tonic makes: `OUT_OF_RANGE` for a message over the limit, `UNIMPLEMENTED` for an
/// unknown call.
fn with_reason(answer: http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    let bare = !answer.headers().contains_key("grpc-status-details-bin");
    let code = answer.headers().get("grpc-status").and_then(|v| v.to_str().ok());
    let refusal = match code {
        Some("11") if bare => too_large(limits::MESSAGE_BYTES_MAX),
        Some("12") if bare => Refusal::new(Reason::NotSupported, "this daemon has no such call")
            .fix("compare the versions: `leasehold whoami` shows the daemon's version"),
        _ => return answer,
    };
    refusal.status().into_http()
}
