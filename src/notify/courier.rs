//! The delivery of the letters in one outbox.

use std::{error::Error, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header};
use reqwest::{Client, redirect::Policy};
use tokio_util::sync::CancellationToken;

use super::{
    letter::Letter,
    outbox::{Outbox, WaitingLetter},
    place::PlaceFile,
    signature::SigningSecrets,
    webhook::{Webhook, WebhookFault, WebhookUrl},
};
use crate::{
    backoff::Backoff,
    clock::Clock,
    identity::{LoadError, web_client},
    limits::{
        CALL, NOTICE_AGE_MAX, NOTICE_PLACE_INTERVAL, NOTICE_RETRY_FIRST, NOTICE_RETRY_MAX, RECEIVER_PATIENCE,
    },
};

/// Delivers the letters of one outbox, one after the other.
pub(super) struct Courier {
    pub(super) webhook: Arc<Webhook>,
    pub(super) outbox: Arc<Outbox>,
    /// The file that says up to which record notices were delivered.
    pub(super) place: PlaceFile,
    pub(super) client: Client,
    pub(super) clock: Arc<dyn Clock>,
}

/// Why a letter was not delivered. The text never contains the URL, which may be a secret.
#[derive(Debug, thiserror::Error)]
enum DeliveryFault {
    #[error("{} {}", .0.key, .0.what)]
    File(WebhookFault),
    #[error("the receiver could not be reached: {0}")]
    Unreachable(String),
    #[error("the receiver redirects ({0}), and redirects are not followed: configure the final URL")]
    Redirected(StatusCode),
    /// The receiver answered with an error. `retry_after` is how long it asked us to wait, if it did.
    #[error("the receiver answered {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
}

/// Whether an outage of the receiver was logged, and how many notices were given up in it. So an outage takes only a few lines of
/// the log.
#[derive(Default)]
struct ReceiverOutage {
    is_reported: bool,
    dropped: u64,
}

/// Makes the HTTP client of a webhook: TLS 1.3 with the configured authorities, no proxy, no redirects.
///
/// # Errors
/// Fails if the file with the authorities cannot be used, or the client cannot be made.
pub(super) fn client_of(webhook: &Webhook, clock: Arc<dyn Clock>) -> Result<Client, ClientFault> {
    let tls = web_client(webhook.ca.as_deref(), clock)?;
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CALL)
        .timeout(RECEIVER_PATIENCE)
        .pool_max_idle_per_host(1)
        .user_agent(concat!("leasehold/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| ClientFault::Client(causes(&error)))?;
    Ok(client)
}

/// Why the client of a webhook could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientFault {
    /// The authorities of the webhook cannot be read or used.
    #[error(transparent)]
    Authorities(#[from] LoadError),
    /// The HTTP client did not accept the TLS configuration.
    #[error("no HTTP client could be made: {0}")]
    Client(String),
}

impl Courier {
    /// Delivers letters until it is cancelled. Then writes to the file up to which record notices were delivered.
    pub(super) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.deliver() => {}
            () = stop.cancelled() => {}
        }
        self.keep_place(None).await;
    }

    async fn deliver(&self) {
        let mut backoff = Backoff::new(NOTICE_RETRY_FIRST, NOTICE_RETRY_MAX);
        let (mut outage, mut kept) = (ReceiverOutage::default(), None);
        loop {
            let Some(first) = self.outbox.first() else {
                kept = self.keep_place(kept).await;
                tokio::select! {
                    () = self.outbox.filled() => {}
                    () = self.clock.sleep(NOTICE_PLACE_INTERVAL) => {}
                }
                continue;
            };
            let wait = match self.post(&first.letter).await {
                Ok(()) => {
                    backoff.reset();
                    metrics::counter!("leasehold_notices_total", "outcome" => "sent").increment(1);
                    self.report_end_of(std::mem::take(&mut outage));
                    self.remove_first();
                    continue;
                }
                Err(fault) => {
                    metrics::counter!("leasehold_notices_total", "outcome" => "failed_attempt").increment(1);
                    self.judge(&first, &fault, &mut outage);
                    backoff.next_wait().max(fault.wait().unwrap_or_default())
                }
            };
            kept = self.keep_place(kept).await;
            self.clock.sleep(wait).await;
        }
    }

    /// Reports a failed attempt. Gives up a letter if it has waited too long, or if the receiver refused it permanently.
    fn judge(&self, first: &WaitingLetter, fault: &DeliveryFault, outage: &mut ReceiverOutage) {
        if !std::mem::replace(&mut outage.is_reported, true) {
            let name = &self.webhook.name;
            tracing::warn!(webhook = %name, why = %fault, "a notice could not be delivered: it is tried again");
        }
        let has_waited = self.clock.now().lease.since(first.since);
        if has_waited < NOTICE_AGE_MAX && !fault.is_final() {
            return;
        }
        metrics::counter!("leasehold_notices_total", "outcome" => "dropped").increment(1);
        if outage.dropped == 0 {
            let name = &self.webhook.name;
            tracing::error!(webhook = %name, id = first.letter.id, "a notice was given up; how many were is logged when the receiver works again");
        }
        outage.dropped = outage.dropped.saturating_add(1);
        self.remove_first();
    }

    fn report_end_of(&self, outage: ReceiverOutage) {
        if outage.is_reported {
            let ReceiverOutage { dropped, .. } = outage;
            tracing::info!(webhook = %self.webhook.name, dropped, "notices are delivered again");
        }
    }

    fn remove_first(&self) {
        metrics::gauge!("leasehold_notices_waiting").decrement(1.0);
        if let Some(dropped) = self.outbox.remove_first() {
            let name = &self.webhook.name;
            tracing::warn!(webhook = %name, dropped, "the queue was full, so notices were dropped");
        }
    }

    /// Writes to the file up to which record notices were delivered, if that has changed. Returns what the file says.
    async fn keep_place(&self, kept: Option<u64>) -> Option<u64> {
        let place = self.outbox.place();
        if kept == Some(place) {
            return kept;
        }
        let file = self.place.clone();
        match tokio::task::spawn_blocking(move || file.store(place)).await {
            Ok(Ok(())) => Some(place),
            Ok(Err(error)) => {
                tracing::debug!(%error, webhook = %self.webhook.name, "the file that says which notices were delivered could not be written");
                kept
            }
            Err(_) => kept,
        }
    }

    async fn post(&self, letter: &Letter) -> Result<(), DeliveryFault> {
        let webhook = self.webhook.clone();
        let read =
            tokio::task::spawn_blocking(move || Ok((webhook.read_url()?, webhook.read_secrets()?))).await;
        let broken_off = |_| DeliveryFault::Unreachable("the daemon stops".to_owned());
        let (url, secrets): (WebhookUrl, Option<SigningSecrets>) =
            read.map_err(broken_off)?.map_err(DeliveryFault::File)?;
        let seconds = self.clock.now().wall.0 / 1_000;
        let mut request = self
            .client
            .post(url.expose())
            .header(header::CONTENT_TYPE, letter.content_type)
            .header("webhook-id", &letter.id)
            .header("webhook-timestamp", seconds)
            .body(letter.body.clone());
        if let Some(secrets) = secrets {
            request = request.header("webhook-signature", secrets.sign(&letter.id, seconds, &letter.body));
        }
        // The body of the answer is not read.
        let answer =
            request.send().await.map_err(|error| DeliveryFault::Unreachable(causes(&error.without_url())))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status if status.is_redirection() => Err(DeliveryFault::Redirected(status)),
            status => Err(DeliveryFault::Status { status, retry_after: retry_after(answer.headers()) }),
        }
    }
}

impl DeliveryFault {
    /// Whether the receiver refused this letter permanently.
    fn is_final(&self) -> bool {
        matches!(self, DeliveryFault::Status { status: StatusCode::GONE, .. })
    }

    /// Returns how long the receiver asked us to wait.
    fn wait(&self) -> Option<Duration> {
        match self {
            DeliveryFault::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Reads how many seconds a receiver asks us to wait. A longer time than our longest wait is cut to that wait.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(NOTICE_RETRY_MAX))
}

/// Joins an error and its causes on one line.
fn causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line.push_str(": ");
        line.push_str(&inner.to_string());
        cause = inner.source();
    }
    crate::plain::message(&line).into_owned()
}
