//! The four services with health and reflection, as one that `link` serves.

use futures_util::future::BoxFuture;
use tonic::service::Routes;

use super::{
    edge::Edge, job::Jobs, member::MembersService, operator::Operators, status::status, verifier::Verifiers,
};
use crate::{
    limits,
    proto::{self, v1},
    reason::{Reason, Refusal},
};

/// The services, with the Reason put into answers that tonic gives by itself.
#[derive(Clone)]
pub struct Service(Routes);

impl Edge {
    /// All services, with health and reflection, as one that `link` serves.
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
                // The types of a refusal's details.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let max = limits::MESSAGE_BYTES_MAX;
        Ok(Service(
            Routes::new(
                v1::job_service_server::JobServiceServer::new(Jobs(self.clone()))
                    .max_decoding_message_size(max),
            )
            .add_service(
                v1::member_service_server::MemberServiceServer::new(MembersService(self.clone()))
                    .max_decoding_message_size(max),
            )
            .add_service(
                v1::operator_service_server::OperatorServiceServer::new(Operators(self.clone()))
                    .max_decoding_message_size(max),
            )
            .add_service(
                v1::verifier_service_server::VerifierServiceServer::new(Verifiers(self))
                    .max_decoding_message_size(max),
            )
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(health),
        ))
    }
}

impl<B> tower::Service<http::Request<B>> for Service
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<tonic::codegen::StdError> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        tower::Service::<http::Request<B>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move { Ok(with_reason(answer.await?)) })
    }
}

/// A message over the limit is refused by tonic with a bare OUT_OF_RANGE, an unknown call with a bare UNIMPLEMENTED: both
/// get their Reason.
fn with_reason(answer: http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    let bare = !answer.headers().contains_key("grpc-status-details-bin");
    let code = answer.headers().get("grpc-status").and_then(|v| v.to_str().ok());
    let refusal = match code {
        Some("11") if bare => Refusal::new(
            Reason::MessageTooLarge,
            format!("the message is larger than {} bytes", limits::MESSAGE_BYTES_MAX),
        ),
        Some("12") if bare => Refusal::new(Reason::NotSupported, "this daemon has no such call")
            .fix("compare versions: leasehold whoami shows the daemon's"),
        _ => return answer,
    };
    status(&refusal).into_http()
}
