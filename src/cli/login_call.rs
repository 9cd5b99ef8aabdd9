//! The calls of a login to the daemon. They use TLS with the daemon's SVID only, because we have no SVID yet.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::{Exit, Failure, Session, contexts_file::Context};
use crate::{
    clock::Clock,
    identity::{StaticSource, TrustBundles, client_config},
    limits::{CALL, LOGIN_BODY_BYTES_MAX},
    link::Endpoint,
    people::{LoginAnswer, LoginBody, LoginProblem, LoginTerms},
    reason::{Reason, Refusal},
};

/// The daemon's listener for logins.
pub(super) struct LoginClient {
    address: String,
    tls: Arc<ClientConfig>,
    clock: Arc<dyn Clock>,
}

impl LoginClient {
    /// Makes a client that trusts the roots of a context, and only the daemon's identity. Opens no connection.
    pub(super) fn new(
        session: &Session,
        name: &str,
        context: &Context,
        address: &str,
    ) -> Result<Self, Failure> {
        let endpoint = Endpoint::new(address, context.server_id.clone())
            .map_err(|e| Failure::usage(e.to_string()).fix("write --at HOST:PORT"))?;
        let now = session.now().wall;
        let mut bundles = TrustBundles::empty();
        for (domain, file) in &context.bundles {
            bundles = bundles.with_file_at(domain.clone(), file, now).map_err(|e| {
                Failure::new(Exit::Failure, format!("a bundle of context `{name}` cannot be used"))
                    .with("file", e.to_string())
                    .fix("get the bundle of the daemon's trust domain from its operator")
            })?;
        }
        let source = Arc::new(StaticSource::new(None, bundles));
        let clock = session.clock.clone();
        let tls = client_config(source, clock.clone(), context.server_id.clone(), &[b"http/1.1"]);
        Ok(LoginClient { address: endpoint.address().to_owned(), tls, clock })
    }

    /// Asks the daemon how people log in.
    pub(super) async fn terms(&self) -> Result<LoginTerms, Failure> {
        self.call(Method::GET, Bytes::new()).await
    }

    /// Exchanges an ID token for an SVID.
    pub(super) async fn log_in(&self, body: &LoginBody) -> Result<LoginAnswer, Failure> {
        let body = serde_json::to_vec(body).map(Zeroizing::new);
        let body = body.map_err(|e| Failure::new(Exit::Failure, format!("the login cannot be sent: {e}")))?;
        self.call(Method::POST, Bytes::copy_from_slice(&body)).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, body: Bytes) -> Result<T, Failure> {
        // The daemon may have to call the identity provider first, so this waits longer than for other calls.
        tokio::select! {
            answer = self.request(method, body) => answer,
            () = self.clock.sleep(CALL.saturating_mul(3)) => Err(self.unreachable("it did not answer in time")),
        }
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, body: Bytes) -> Result<T, Failure> {
        let unreachable = |e: &dyn std::fmt::Display| self.unreachable(&e.to_string());
        let tcp = TcpStream::connect(&self.address).await.map_err(|e| unreachable(&e))?;
        // The verifier compares the SPIFFE ID, not this name.
        let name = ServerName::try_from("leasehold").map_err(|e| unreachable(&e))?;
        let stream =
            TlsConnector::from(self.tls.clone()).connect(name, tcp).await.map_err(|e| unreachable(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
        let connection = async {
            // The connection ends with the response. If the connection fails, the response reports it.
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let request = Request::builder()
            .method(method)
            .uri("/login")
            .header(header::HOST, &self.address)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|e| unreachable(&e))?;
        let answered = async {
            let answer = sender.send_request(request).await.map_err(|e| unreachable(&e))?;
            let status = answer.status();
            let body =
                Limited::new(answer.into_body(), LOGIN_BODY_BYTES_MAX.saturating_mul(4)).collect().await;
            let body = body.map_err(|e| unreachable(&e))?.to_bytes();
            if status.is_success() {
                return serde_json::from_slice(&body)
                    .map_err(|_| self.unreachable("its answer is not from leasehold"));
            }
            match serde_json::from_slice::<LoginProblem>(&body) {
                Ok(problem) => Err(Failure::from(problem.refusal())),
                Err(_) => Err(self.unreachable(&format!("it answered {status}"))),
            }
        };
        tokio::select! {
            answered = answered => answered,
            () = connection => Err(self.unreachable("the connection ended")),
        }
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::from(
            Refusal::new(
                Reason::Unreachable,
                format!("the listener for logins at {} cannot be used", self.address),
            )
            .with("why", crate::plain::line(why).into_owned())
            .fix(
                "check the address (`people.listen` in the daemon's configuration), and that the daemon runs",
            ),
        )
    }
}
