//! VerifierService on the wire.

use std::{pin::Pin, sync::Arc};

use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert::{self, maybe_named, named, timestamp},
    edge::Edge,
};
use crate::{
    broker::{Broker, Verdict},
    fence::Subscription,
    limits,
    link::Connection,
    name::SpiffeId,
    policy::Rpc,
    proto::v1::{self, verifier_service_server::VerifierService, watch_fences_response::Event},
    reason::{Reason, Refusal},
};

pub(super) struct Verifiers(pub Edge);

/// Messages that wait for a slow verifier. Past it the verifier starts over: it is never waited for.
const STREAM_BUFFER: usize = 256;

#[tonic::async_trait]
impl VerifierService for Verifiers {
    async fn introspect(
        &self,
        request: Request<v1::IntrospectRequest>,
    ) -> Result<Response<v1::IntrospectResponse>, Status> {
        self.0
            .call(Rpc::Introspect, request, |broker, caller, q| async move {
                let presenter: Option<SpiffeId> = maybe_named("presenter", &q.presenter)?;
                let certificate = match q.presenter_sha256.as_slice() {
                    [] => None,
                    bytes => Some(<&[u8; 32]>::try_from(bytes).map_err(|_| {
                        Refusal::new(Reason::FieldInvalid, "`presenter_sha256` is not 32 bytes")
                            .with("field", "presenter_sha256")
                    })?),
                };
                let seen = broker.introspect(&caller, &q.token, presenter.as_ref(), certificate)?;
                Ok(match seen.verdict {
                    Verdict::Inactive { reason } => v1::IntrospectResponse {
                        active: false,
                        reason: reason.code().to_owned(),
                        ..Default::default()
                    },
                    Verdict::Active { claims, lease } => v1::IntrospectResponse {
                        active: true,
                        reason: String::new(),
                        lease: Some(convert::lease(broker.clock().now(), &lease)),
                        subject: claims.sub.to_string(),
                        audience: claims.aud.to_string(),
                        expires: Some(timestamp(crate::clock::Wall::from_seconds(claims.exp))),
                    },
                })
            })
            .await
    }

    type WatchFencesStream = Pin<Box<dyn Stream<Item = Result<v1::WatchFencesResponse, Status>> + Send>>;

    async fn watch_fences(
        &self,
        request: Request<Streaming<v1::WatchFencesRequest>>,
    ) -> Result<Response<Self::WatchFencesStream>, Status> {
        let connection = self.0.connection(&request)?;
        let caller = self.0.caller(Rpc::WatchFences, &connection)?;
        let refuse = |r: Refusal| self.0.refuse(Rpc::WatchFences, &connection, &r);
        let mut ticks = request.into_inner();
        let first = tokio::time::timeout(limits::HANDSHAKE, ticks.next()).await;
        let Ok(Some(first)) = first else {
            return Err(refuse(Refusal::new(Reason::FieldMissing, "the first message names the audience")));
        };
        let first = first?;
        let audience: SpiffeId = named("audience", &first.audience).map_err(refuse)?;
        self.0.broker.may_watch(&caller, &audience).map_err(refuse)?;
        let (tx, rx) = mpsc::channel(STREAM_BUFFER);
        let feed =
            Feed { broker: self.0.broker.clone(), stopping: self.0.stopping.clone(), connection, ticks, tx };
        tokio::spawn(feed.run(first.tick));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }

    async fn get_keys(
        &self,
        request: Request<v1::GetKeysRequest>,
    ) -> Result<Response<v1::GetKeysResponse>, Status> {
        self.0
            .call(Rpc::GetKeys, request, |broker, _, _| async move {
                Ok(v1::GetKeysResponse { jwks: broker.jwks(), epoch: broker.epoch() })
            })
            .await
    }
}

/// One verifier's feed.
struct Feed {
    broker: Arc<Broker>,
    stopping: tokio_util::sync::CancellationToken,
    connection: Connection,
    ticks: Streaming<v1::WatchFencesRequest>,
    tx: mpsc::Sender<Result<v1::WatchFencesResponse, Status>>,
}

impl Feed {
    async fn run(mut self, first_tick: u64) {
        metrics::gauge!("leasehold_fence_feeds").increment(1.0);
        if let Err(why) = self.follow(first_tick).await {
            let end = self.tx.send(Err(super::status(&why)));
            let _ = tokio::time::timeout(limits::CONNECTION_GRACE, end).await;
        }
        metrics::gauge!("leasehold_fence_feeds").decrement(1.0);
    }

    /// Until the client goes (`Ok`), or something ends the feed that the client must hear of.
    async fn follow(&mut self, first_tick: u64) -> Result<(), Refusal> {
        let Subscription { snapshot, at, mut lowerings } = self.broker.fences().subscribe();
        let now = self.broker.clock().now();
        let retained = limits::LEASE_TTL_MAX.saturating_add(limits::FENCE_RETENTION_MARGIN);
        let retained_since =
            now.wall.0.saturating_sub(u64::try_from(retained.as_millis()).unwrap_or(u64::MAX));
        self.send(Event::Start(v1::FeedStart {
            epoch: self.broker.epoch(),
            issuer: self.broker.settings().issuer.clone(),
            time: Some(timestamp(now.wall)),
            retained_since: Some(timestamp(crate::clock::Wall(retained_since))),
        }))
        .await?;
        for chunk in snapshot.chunks(limits::FEED_CHUNK) {
            let fences = chunk
                .iter()
                .map(|(name, seq)| v1::LoweredFence { name: name.to_string(), seq: seq.0 })
                .collect();
            self.send(Event::Snapshot(v1::FeedSnapshot { fences, complete: false, seq: 0 })).await?;
        }
        self.send(Event::Snapshot(v1::FeedSnapshot { fences: Vec::new(), complete: true, seq: at.0 }))
            .await?;
        let mut prev = at.0;
        self.tick(first_tick).await?;
        loop {
            tokio::select! {
                // Lowerings before ticks: an echoed tick says that all that was lowered before it was sent before it.
                biased;
                lowering = lowerings.recv() => match lowering {
                    Ok(l) => {
                        let (name, seq) = (l.name.to_string(), l.seq.0);
                        self.send(Event::Lowered(v1::FeedLowered { name, seq, prev })).await?;
                        prev = seq;
                    }
                    Err(RecvError::Lagged(missed)) => {
                        return Err(Refusal::new(Reason::FellBehind, format!("{missed} lowerings were missed: start over")));
                    }
                    Err(RecvError::Closed) => return Err(stopping()),
                },
                () = self.connection.ended.cancelled() => {
                    let e = self.connection.ending();
                    return Err(Refusal::new(e.reason(), e.to_string()));
                }
                () = self.stopping.cancelled() => return Err(stopping()),
                message = self.ticks.next() => match message {
                    Some(Ok(m)) => {
                        if let Err(e) = self.connection.check(self.broker.clock().now().wall) {
                            return Err(Refusal::new(e.reason(), e.to_string()));
                        }
                        self.tick(m.tick).await?;
                    }
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    }

    async fn tick(&self, tick: u64) -> Result<(), Refusal> {
        let time = Some(timestamp(self.broker.clock().now().wall));
        let ledger_head = convert::ledger_head(&self.broker);
        self.send(Event::Tick(v1::FeedTick { tick, time, ledger_head })).await
    }

    /// Sends, waiting no longer than a feed may be stale: a verifier that reads slower than that refuses everything anyway.
    async fn send(&self, event: Event) -> Result<(), Refusal> {
        let message = v1::WatchFencesResponse { event: Some(event) };
        match tokio::time::timeout(limits::FEED_STALE, self.tx.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Refusal::new(Reason::FellBehind, "the feed is not read: start over")),
        }
    }
}

fn stopping() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the daemon is stopping: connect again")
}
