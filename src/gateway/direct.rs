//! Requests of clients without an SVID. They have a direct key: an access key that names a lease, and the lease's token as
//! session token.

use http::{Request, Response};
use hyper::body::Incoming;
use s3s::{Body, S3Error, S3ErrorCode, S3Result};
use tokio_util::sync::CancellationToken;

use super::{
    direct_keys::DirectKeys,
    front::{Gateway, SECRET_KEY, TOKEN, bounded, check_document, check_form, error_response},
    hub,
    refusal::{failed, not_implemented, refused},
    signed_request::SignedRequest,
};
use crate::{
    clock::Wall,
    name::{LeaseId, SpiffeId},
    plain,
    reason::{Reason, Refusal},
    token::{KeyHolder, Presenter},
};

const ASK_AGAIN: &str = "if the job is still open, it asks for a new key, by IssueCredential or `leasehold s3-key`; if it is closed, create a new job";

impl Gateway {
    /// Answers a request of a client without an SVID. If the signature is right, calls `proven` with the holder of the lease. If
    /// `proven` returns a refusal, the request is refused.
    pub(super) async fn answer_direct(
        &self,
        request: Request<Incoming>,
        keys: &DirectKeys,
        cut: CancellationToken,
        proven: impl FnOnce(&SpiffeId) -> Result<(), Refusal>,
    ) -> Response<Body> {
        self.handle_direct(request, keys, cut, proven).await.unwrap_or_else(error_response)
    }

    async fn handle_direct(
        &self,
        request: Request<Incoming>,
        keys: &DirectKeys,
        cut: CancellationToken,
        proven: impl FnOnce(&SpiffeId) -> Result<(), Refusal>,
    ) -> S3Result<Response<Body>> {
        let mut request = bounded(request, self.sessions.clock());
        if hub::is_hub_path(request.uri().path()) {
            return Err(not_implemented("the facade of the Hub for direct keys"));
        }
        // Only wrappers send these headers, and they send them to the listener for mutual TLS.
        request.headers_mut().remove(TOKEN);
        request.headers_mut().remove(SECRET_KEY);
        check_form(&request)?;
        check_document(&request)?;
        let signed = SignedRequest::read(&request)?;
        let lease = LeaseId::of_access_key(&signed.access_key).ok_or_else(unknown_key)?;
        // The token comes first: without a valid one, no request reaches the daemon.
        let token = signed.session_token.expose();
        let opened = self.sessions.open(&[token], Presenter::KeyHolder(KeyHolder::new(lease))).await;
        let session = opened.map_err(|refusal| refused_key(&refusal))?;
        let Some(accepted) = session.tokens.first() else { return Err(unknown_key()) };
        let (access, holder) = (accepted.access.clone(), accepted.access.claims().sub.clone());
        check_date(&signed.date, self.sessions.clock().now().wall)?;
        let key =
            keys.date_key(lease, &signed.date, &access).await.map_err(|refusal| refused_key(&refusal))?;
        signed.check(&request, &key)?;
        // This comes after the check of the signature, so a stolen token without its secret uses no capacity of its holder.
        let room = self.take_room(&holder)?;
        proven(&holder).map_err(|refusal| refused(&refusal))?;
        let local = keys.local_key(&signed.date);
        signed.sign_again(&mut request, &local)?;
        let caller = self.caller(session, holder, cut, room, request.version());
        self.serve_signed(request, caller, keys.local_secret()).await
    }
}

/// Refuses a signature whose date is not yesterday, today or tomorrow. A lease lives for minutes, so its URLs were signed today
/// or yesterday, and the clock of the client may be ahead.
fn check_date(date: &str, now: Wall) -> S3Result<()> {
    const DAY: u64 = 24 * 60 * 60;
    let day = |seconds: u64| {
        Wall::from_seconds(seconds).to_string().chars().take(10).filter(|c| *c != '-').collect()
    };
    let seconds = now.seconds();
    let near: [String; 3] = [seconds.saturating_sub(DAY), seconds, seconds.saturating_add(DAY)].map(day);
    if near.iter().any(|day| day == date) {
        return Ok(());
    }
    let text = format!("the request was signed on {}, and today is {}", plain::value(date), near[1]);
    Err(failed(S3ErrorCode::RequestTimeTooSkewed, text))
}

fn unknown_key() -> S3Error {
    let text = format!("this is not the access key of a lease with an S3 key; fix: {ASK_AGAIN}");
    failed(S3ErrorCode::InvalidAccessKeyId, text)
}

/// Makes the error for the client of an S3 key. A wrapper would get a new token by itself. This client cannot, so the error
/// tells it not to try again.
fn refused_key(refusal: &Refusal) -> S3Error {
    match refusal.reason {
        Reason::LeaseNotFound => unknown_key(),
        Reason::TokenEpoch | Reason::EpochChanged => {
            let text = "the daemon was restarted, which ended the key";
            refused(&Refusal::new(Reason::LeaseEnded, text).fix(ASK_AGAIN))
        }
        Reason::Revoked | Reason::LeaseEnded | Reason::LeaseExpired | Reason::TokenExpired => {
            refused(&refusal.clone().fix(ASK_AGAIN))
        }
        _ => refused(refusal),
    }
}
