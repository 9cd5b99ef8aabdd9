//! Checks tokens by a call to the daemon, for audiences whose `checks` is `introspect`.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    clock::Clock,
    limits::{INTROSPECT_WAIT, TOKEN_BYTES_MAX},
    link::{Connector, RotatingChannel, explain},
    name::{Action, Object, SpiffeId},
    proto::{
        DaemonRefusal,
        v1::{IntrospectRequest, verifier_service_client::VerifierServiceClient},
    },
    reason::{Reason, Refusal},
    token::{Claims, Presenter, TokenError},
};

/// Asks the daemon whether a token is valid now. Does not cache answers.
#[derive(Clone)]
pub struct Introspector {
    daemon: Arc<RotatingChannel>,
    audience: SpiffeId,
    clock: Arc<dyn Clock>,
}

/// The claims that were valid at the moment of the daemon's answer.
#[derive(Clone, Debug)]
pub struct Introspection {
    /// The claims of the token, as the daemon read them.
    pub claims: Claims,
}

impl Introspection {
    /// Whether the token allows an action on an object.
    pub fn opens(&self, object: &Object, action: Action) -> bool {
        self.claims.opens(object, action)
    }
}

impl Introspector {
    /// Makes an introspector that connects at its first request. Must be called inside a Tokio runtime.
    pub fn new(connector: &Connector, audience: SpiffeId, clock: Arc<dyn Clock>) -> Self {
        Introspector { daemon: Arc::new(RotatingChannel::new(connector.clone())), audience, clock }
    }

    /// Asks the daemon. If the daemon does not answer within [`INTROSPECT_WAIT`], the token is refused.
    ///
    /// # Errors
    ///
    /// Fails if the daemon refuses the token or does not answer, if the token is for another audience, or if the presenter may
    /// not use it.
    pub async fn introspect(&self, token: &str, presenter: Presenter<'_>) -> Result<Introspection, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::too_long().into());
        }
        let (id, certificate) = match presenter {
            Presenter::Svid { id, x5t_s256 } => (id.to_string(), x5t_s256.map(|x| x.to_vec())),
            Presenter::Unseen | Presenter::KeyHolder(_) => (String::new(), None),
        };
        let request = IntrospectRequest {
            token: token.to_owned(),
            presenter: id,
            presenter_sha256: certificate.unwrap_or_default(),
        };
        let mut daemon = VerifierServiceClient::new(self.daemon.channel());
        let answer = tokio::select! {
            answer = daemon.introspect(request) => answer.map_err(|status| unanswered(&status, NOT_ASKED))?.into_inner(),
            () = self.clock.sleep(INTROSPECT_WAIT) => {
                return Err(Refusal::new(Reason::Unreachable, "leasehold did not answer in time"));
            }
        };
        if !answer.active {
            let reason = Reason::parse(&answer.reason).unwrap_or(Reason::Internal);
            return Err(Refusal::new(reason, format!("leasehold refuses the token: {reason}")));
        }
        // The daemon has verified these bytes, so the claims can be trusted.
        let claims = claims_of(token)
            .ok_or(TokenError::Malformed("leasehold accepts it, but it cannot be read here"))?;
        if claims.aud != self.audience {
            return Err(TokenError::Audience(claims.aud).into());
        }
        // The daemon has compared the SPIFFE ID of the presenter. The certificate is compared here.
        presenter.may_present(&claims)?;
        Ok(Introspection { claims })
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

const NOT_ASKED: &str = "leasehold could not be asked about the token";

/// Makes the refusal if the daemon did not check the token: it cannot be reached, or it refused the request.
pub(super) fn unanswered(status: &tonic::Status, text: &'static str) -> Refusal {
    if let Some(error) = explain(status) {
        return error.refusal();
    }
    let reason = DaemonRefusal::of(status).and_then(|daemon_refusal| daemon_refusal.reason);
    let reason = reason.unwrap_or(match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Reason::Unreachable,
        _ => Reason::Internal,
    });
    Refusal::new(reason, text).with("answer", format!("{}: {}", status.code(), status.message()))
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;
    use crate::{
        proto::v1::IntrospectResponse,
        token::Confirmation,
        verify::testing::{AUDIENCE, HOLDER, ScriptedDaemon},
    };

    fn introspector(daemon: &ScriptedDaemon) -> Introspector {
        Introspector::new(&daemon.connector("/files"), AUDIENCE.parse().unwrap(), daemon.clock.clone())
    }

    #[tokio::test]
    async fn a_valid_token_is_bound_to_holder_audience_and_certificate() {
        let daemon = ScriptedDaemon::start().await;
        let asks = introspector(&daemon);
        *daemon.wire.introspection.lock().unwrap() =
            Ok(IntrospectResponse { active: true, ..Default::default() });
        let (holder, thief) = (HOLDER.parse().unwrap(), "spiffe://a.example/thief".parse().unwrap());
        let by = |id, x5t_s256| Presenter::Svid { id, x5t_s256 };
        let token = daemon.token(|_| ());
        let good = asks.introspect(&token, by(&holder, None)).await.unwrap();
        assert_eq!(good.claims, daemon.claims());
        let opens = |name: &str| good.opens(&name.parse().unwrap(), Action::ReadDataset);
        assert!(opens("dataset:acme/tickets@v3") && !opens("dataset:acme/tickets@v4"));
        {
            let asked = daemon.wire.introspected.lock().unwrap();
            assert_eq!((asked[0].token.as_str(), asked[0].presenter.as_str()), (token.as_str(), HOLDER));
        }
        let reason =
            async |token: &str, presenter| asks.introspect(token, presenter).await.unwrap_err().reason;
        assert_eq!(reason(&token, by(&thief, None)).await, Reason::TokenPresenter);
        let other = daemon.token(|c| c.aud = "spiffe://a.example/other".parse().unwrap());
        assert_eq!(reason(&other, by(&holder, None)).await, Reason::TokenAudience);
        let bound =
            daemon.token(|c| c.cnf = Some(Confirmation { x5t_s256: URL_SAFE_NO_PAD.encode([1; 32]) }));
        assert!(asks.introspect(&bound, by(&holder, Some(&[1; 32]))).await.is_ok());
        assert_eq!(reason(&bound, by(&holder, Some(&[2; 32]))).await, Reason::TokenCertificate);
        assert_eq!(reason(&bound, Presenter::Unseen).await, Reason::TokenPresenter);
    }

    #[tokio::test]
    async fn a_refused_token_and_a_refused_request_keep_their_reason() {
        let daemon = ScriptedDaemon::start().await;
        let asks = introspector(&daemon);
        let token = daemon.token(|_| ());
        let says = |answer| *daemon.wire.introspection.lock().unwrap() = answer;
        says(Ok(IntrospectResponse { active: false, reason: "REVOKED".into(), ..Default::default() }));
        assert_eq!(asks.introspect(&token, Presenter::Unseen).await.unwrap_err().reason, Reason::Revoked);
        let none = std::collections::HashMap::<String, String>::new();
        let details = ErrorDetails::with_error_info("AUDIENCE_UNKNOWN", "leasehold", none);
        says(Err(tonic::Status::with_error_details(tonic::Code::PermissionDenied, "no", details)));
        let refused = asks.introspect(&token, Presenter::Unseen).await.unwrap_err();
        assert_eq!(refused.reason, Reason::AudienceUnknown);
        assert!(refused.fact("answer").is_some_and(|text| !text.contains(&token)));
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        assert_eq!(
            asks.introspect(&long, Presenter::Unseen).await.unwrap_err().reason,
            Reason::TokenMalformed
        );
    }
}
