//! The same question, put to the daemon: for audiences whose `checks` is `introspect`.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tonic::transport::Channel;
use tonic_types::StatusExt;

use super::verifier::refused;
use crate::{
    clock::Clock,
    limits::{INTROSPECT_WAIT, TOKEN_BYTES_MAX},
    link::{Connector, explain},
    name::{Action, ResourceName, SpiffeId},
    proto::v1::{IntrospectRequest, verifier_service_client::VerifierServiceClient},
    reason::{Reason, Refusal},
    token::{Claims, Presenter, TokenError},
};

/// Asks the daemon whether a token is good now. Nothing is remembered: each answer is as of its own question.
#[derive(Clone)]
pub struct Introspector {
    daemon: VerifierServiceClient<Channel>,
    audience: SpiffeId,
    clock: Arc<dyn Clock>,
}

/// What the daemon has vouched for, at the moment of its answer.
#[derive(Clone, Debug)]
pub struct Introspected {
    pub claims: Claims,
}

impl Introspected {
    /// Whether it opens a resource for an action.
    pub fn opens(&self, resource: &ResourceName, action: Action) -> bool {
        self.claims.opens(resource, action)
    }
}

impl Introspector {
    /// Connects at the first question. Must be called inside a Tokio runtime.
    pub fn new(connector: &Connector, audience: SpiffeId, clock: Arc<dyn Clock>) -> Self {
        Introspector { daemon: VerifierServiceClient::new(connector.channel()), audience, clock }
    }

    /// Asks. A daemon that does not answer within [`INTROSPECT_WAIT`] is a refusal like any other.
    pub async fn introspect(&self, token: &str, presenter: Presenter<'_>) -> Result<Introspected, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused(&TokenError::Malformed("it is longer than 4096 bytes")));
        }
        let presenter_id = match presenter {
            Presenter::Svid { id, .. } => id.to_string(),
            Presenter::Unseen => String::new(),
        };
        let request = IntrospectRequest { token: token.to_owned(), presenter: presenter_id };
        let mut daemon = self.daemon.clone();
        let answer = tokio::select! {
            answer = daemon.introspect(request) => answer.map_err(|status| unanswered(&status))?.into_inner(),
            () = self.clock.sleep(INTROSPECT_WAIT) => {
                return Err(Refusal::new(Reason::Unreachable, "leasehold did not answer in time"));
            }
        };
        if !answer.active {
            let reason = Reason::parse(&answer.reason).unwrap_or(Reason::Internal);
            return Err(Refusal::new(reason, format!("leasehold says that the token is not good: {reason}")));
        }
        // The daemon has verified these very bytes: what they say is true.
        let claims = claims_of(token).ok_or_else(|| {
            refused(&TokenError::Malformed("leasehold calls it good, and it cannot be read here"))
        })?;
        if claims.aud != self.audience {
            return Err(refused(&TokenError::Audience(claims.aud)));
        }
        // What the daemon was told of the presenter is its SPIFFE ID; the certificate is compared here.
        presenter.may_present(&claims).map_err(|error| refused(&error))?;
        Ok(Introspected { claims })
    }
}

impl fmt::Debug for Introspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Introspector({})", self.audience)
    }
}

fn claims_of(token: &str) -> Option<Claims> {
    let body = token.split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()
}

/// No word on the token: no connection, or the daemon refused the question itself.
fn unanswered(status: &tonic::Status) -> Refusal {
    if let Some(error) = explain(status) {
        return error.refusal();
    }
    let details = status.get_error_details();
    let reason = details.error_info().and_then(|info| Reason::parse(&info.reason));
    let reason = reason.unwrap_or(match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Reason::Unreachable,
        _ => Reason::Internal,
    });
    Refusal::new(reason, "leasehold could not be asked about the token")
        .with("answer", format!("{}: {}", status.code(), status.message()))
}
