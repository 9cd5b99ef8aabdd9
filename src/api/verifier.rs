//! The gRPC service `VerifierService`.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, future, stream};
use tokio::sync::{
    broadcast::error::{RecvError, TryRecvError},
    mpsc, oneshot,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    edge::Edge,
    fields::{check_count, read_name, read_optional_name},
    messages,
    room::RequestRoom,
};
use crate::{
    broker::{Broker, Caller, TokenVerdict, UseReport},
    clock::Wall,
    fence::{Lowering, Subscription},
    job::{ReportedUse, ResourceUse},
    limits,
    link::Connection,
    name::{FenceName, JobId, SpiffeId},
    policy::Rpc,
    proto::{
        convert::{nearest_wall, timestamp},
        v1::{self, verifier_service_server::VerifierService, watch_fences_response::Event},
    },
    reason::{Reason, Refusal},
    token::FenceKey,
};

pub(super) struct Verifiers(pub Edge);

/// Reads one use. If one use cannot be true, the whole report is refused, and the gateway logs that.
fn reported_use(reported: &v1::LeaseUse) -> Result<(JobId, ReportedUse), Refusal> {
    let (first, last) =
        (use_time("uses.first", reported.first.as_ref())?, use_time("uses.last", reported.last.as_ref())?);
    if first > last {
        let text = format!("`uses.first` ({first}) is later than `uses.last` ({last})");
        return Err(Refusal::new(Reason::FieldInvalid, text)
            .with("field", "uses.first")
            .fix("report the earlier time as `first`; nothing of this report was recorded"));
    }
    let v1::LeaseUse { objects, reads, read_bytes, writes, written_bytes, cut, refused, .. } = *reported;
    let done = ResourceUse { objects, reads, read_bytes, writes, written_bytes, cut, refused, first, last };
    let lease = read_name("uses.lease", &reported.lease)?;
    let resource = read_name("uses.resource", &reported.resource)?;
    Ok((read_name("uses.job", &reported.job)?, ReportedUse { lease, resource, done }))
}

fn use_time(field: &'static str, time: Option<&prost_types::Timestamp>) -> Result<Wall, Refusal> {
    time.map(nearest_wall).ok_or_else(|| {
        Refusal::new(Reason::FieldMissing, format!("`{field}` is required")).with("field", field)
    })
}

/// The number of messages that wait for a slow verifier. If there is no room for the next one within
/// [`limits::FEED_STALE`], the feed ends, and the verifier must start over. A revocation never waits for it.
const STREAM_BUFFER: usize = 256;

#[tonic::async_trait]
impl VerifierService for Verifiers {
    async fn introspect(
        &self,
        request: Request<v1::IntrospectRequest>,
    ) -> Result<Response<v1::IntrospectResponse>, Status> {
        self.0
            .call(Rpc::Introspect, request, |broker, caller, q| async move {
                let presenter: Option<SpiffeId> = read_optional_name("presenter", &q.presenter)?;
                let certificate = match q.presenter_sha256.as_slice() {
                    [] => None,
                    bytes => Some(<&[u8; 32]>::try_from(bytes).map_err(|_| {
                        Refusal::new(Reason::FieldInvalid, "`presenter_sha256` is not 32 bytes")
                            .with("field", "presenter_sha256")
                    })?),
                };
                let verdict =
                    broker.verifiers.introspect(&caller, &q.token, presenter.as_ref(), certificate)?;
                Ok(match verdict {
                    TokenVerdict::Inactive { reason } => v1::IntrospectResponse {
                        active: false,
                        reason: reason.code().to_owned(),
                        ..Default::default()
                    },
                    TokenVerdict::Active { claims, lease } => v1::IntrospectResponse {
                        active: true,
                        reason: String::new(),
                        lease: Some(messages::lease(broker.clock().now(), &lease)),
                        subject: claims.sub.to_string(),
                        audience: claims.aud.to_string(),
                        expires: Some(timestamp(Wall::from_seconds(claims.exp))),
                    },
                })
            })
            .await
    }

    async fn report_use(
        &self,
        request: Request<v1::ReportUseRequest>,
    ) -> Result<Response<v1::ReportUseResponse>, Status> {
        self.0
            .call(Rpc::ReportUse, request, |broker, caller, q| async move {
                check_count("uses", q.uses.len(), limits::USES_PER_REPORT_MAX)?;
                let report = UseReport {
                    audience: read_name("audience", &q.audience)?,
                    uses: q.uses.iter().map(reported_use).collect::<Result<_, Refusal>>()?,
                    lost_transfers: q.lost_transfers,
                    run: q.run,
                    is_last: q.last,
                    seq: q.seq,
                };
                let unknown = broker.verifiers.report_use(&caller, report)?;
                Ok(v1::ReportUseResponse { unknown })
            })
            .await
    }

    async fn resolve_key(
        &self,
        request: Request<v1::ResolveKeyRequest>,
    ) -> Result<Response<v1::ResolveKeyResponse>, Status> {
        self.0
            .call(Rpc::ResolveKey, request, |broker, caller, q| async move {
                let audience: SpiffeId = read_name("audience", &q.audience)?;
                let key = broker.verifiers.resolve_key(&caller, &audience, &q.access_key, &q.date)?;
                Ok(v1::ResolveKeyResponse { date_key: key.expose().to_vec() })
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
        let held = self.0.room(&request)?;
        let refuse = |r: Refusal| self.0.refuse(Rpc::WatchFences, &connection, &r);
        let mut ticks = request.into_inner();
        let first = tokio::time::timeout(limits::HANDSHAKE, ticks.next()).await;
        let Ok(Some(first)) = first else {
            return Err(refuse(Refusal::new(
                Reason::FieldMissing,
                "the first message must name the audience",
            )));
        };
        let first = first?;
        let audience: SpiffeId = read_name("audience", &first.audience).map_err(refuse)?;
        self.0.broker.verifiers.may_watch(&caller, &audience).map_err(refuse)?;
        let (tx, rx) = mpsc::channel(STREAM_BUFFER);
        let (last, end) = oneshot::channel();
        let feed = Feed {
            broker: self.0.broker.clone(),
            edge: self.0.clone(),
            connection,
            fences: self.0.broker.verifiers.fence_key(&audience),
            audience,
            ticks,
            tx,
            held,
        };
        tokio::spawn(feed.run(first.tick, last));
        // The end comes after all messages, even if they are read late.
        let end = stream::once(end).filter_map(|end| future::ready(end.ok().map(Err)));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx).chain(end))))
    }

    async fn get_keys(
        &self,
        request: Request<v1::GetKeysRequest>,
    ) -> Result<Response<v1::GetKeysResponse>, Status> {
        self.0
            .call(Rpc::GetKeys, request, |broker, _, _| async move {
                Ok(v1::GetKeysResponse { jwks: broker.verifiers.jwks(), epoch: broker.epoch() })
            })
            .await
    }
}

/// The feed of one verifier: the lowerings that concern its audience, each with the sequence number of the
/// previous one.
struct Feed {
    broker: Arc<Broker>,
    edge: Edge,
    connection: Connection,
    audience: SpiffeId,
    /// The key that hides the names of fences from this audience: it gets a keyed digest of each name.
    fences: FenceKey,
    ticks: Streaming<v1::WatchFencesRequest>,
    tx: mpsc::Sender<Result<v1::WatchFencesResponse, Status>>,
    held: Arc<RequestRoom>,
}

impl Feed {
    async fn run(mut self, first_tick: u64, end: oneshot::Sender<Status>) {
        metrics::gauge!("leasehold_fence_feeds").increment(1.0);
        if let Err(why) = self.follow(first_tick).await {
            // A client that has disconnected receives nothing more.
            let _ = end.send(why.status());
        }
        metrics::gauge!("leasehold_fence_feeds").decrement(1.0);
    }

    /// Sends the feed until the client disconnects (`Ok`), or until the feed ends for a reason that the client must
    /// know.
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
        let bytes = std::mem::size_of_val(snapshot.as_slice());
        self.held.read(bytes)?;
        for chunk in snapshot.chunks(limits::FEED_CHUNK) {
            // Send these messages one at a time, because they are the only large messages of a feed.
            self.all_taken().await?;
            let fences = chunk
                .iter()
                .filter(|(name, _)| self.broker.verifiers.is_name_for(&self.audience, name))
                .map(|(name, seq)| v1::LoweredFence { fence: self.tag(name), seq: seq.0 })
                .collect();
            self.send(Event::Snapshot(v1::FeedSnapshot { fences, complete: false, seq: 0 })).await?;
        }
        self.send(Event::Snapshot(v1::FeedSnapshot { fences: Vec::new(), complete: true, seq: at.0 }))
            .await?;
        drop(snapshot);
        self.held.forget(bytes);
        let mut prev = at.0;
        self.send_tick(first_tick).await?;
        let (edge, connection, audience) =
            (self.edge.clone(), self.connection.clone(), self.audience.clone());
        let may = |broker: &Broker, caller: &Caller| broker.verifiers.may_watch(caller, &audience);
        let over = edge.stream_over(Rpc::WatchFences, &connection, may);
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased;
                why = &mut over => return Err(why),
                lowering = lowerings.recv() => match lowering {
                    Ok(lowering) => self.send_lowered(lowering, &mut prev).await?,
                    Err(RecvError::Lagged(missed)) => return Err(missing(missed)),
                    Err(RecvError::Closed) => return Err(stopping()),
                },
                message = self.ticks.next() => match message {
                    Some(Ok(m)) => {
                        if let Err(e) = self.connection.check(self.broker.clock().now().wall) {
                            return Err(Refusal::new(e.reason(), e.to_string()));
                        }
                        // An echoed tick guarantees that every earlier lowering was sent before it. The order of the
                        // branches does not ensure this, because both can arrive between the two polls.
                        for _ in 0..lowerings.len() {
                            match lowerings.try_recv() {
                                Ok(lowering) => self.send_lowered(lowering, &mut prev).await?,
                                Err(TryRecvError::Lagged(missed)) => return Err(missing(missed)),
                                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                            }
                        }
                        self.send_tick(m.tick).await?;
                    }
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    }

    /// Sends a lowering if it concerns the audience.
    async fn send_lowered(&self, lowering: Lowering, prev: &mut u64) -> Result<(), Refusal> {
        if !self.broker.verifiers.is_lowering_for(&self.audience, &lowering) {
            return Ok(());
        }
        let (fence, seq) = (self.tag(&lowering.name), lowering.seq.0);
        self.send(Event::Lowered(v1::FeedLowered { fence, seq, prev: *prev })).await?;
        *prev = seq;
        Ok(())
    }

    fn tag(&self, name: &FenceName) -> Vec<u8> {
        self.fences.tag(name).as_bytes().to_vec()
    }

    async fn send_tick(&self, tick: u64) -> Result<(), Refusal> {
        let time = Some(timestamp(self.broker.clock().now().wall));
        let caller = self.broker.access.caller(&self.connection.peer)?;
        let ledger_head = messages::ledger_head(&self.broker, &caller);
        self.send(Event::Tick(v1::FeedTick { tick, time, ledger_head })).await
    }

    /// Sends an event. Waits at most as long as a feed may be stale, because a slower verifier refuses everything
    /// anyway.
    async fn send(&self, event: Event) -> Result<(), Refusal> {
        let message = v1::WatchFencesResponse { event: Some(event) };
        let sent = tokio::select! {
            biased;
            sent = self.tx.send(Ok(message)) => sent.is_ok(),
            () = self.broker.clock().sleep(limits::FEED_STALE) => false,
        };
        if sent { Ok(()) } else { Err(unread()) }
    }

    /// Waits until the client has read all messages, at most as long as a feed may be stale.
    async fn all_taken(&self) -> Result<(), Refusal> {
        tokio::select! {
            biased;
            taken = self.tx.reserve_many(STREAM_BUFFER) => taken.map(drop).map_err(|_| unread()),
            () = self.broker.clock().sleep(limits::FEED_STALE) => Err(unread()),
        }
    }
}

fn unread() -> Refusal {
    Refusal::new(Reason::FellBehind, "the feed is not read: start over")
}

fn missing(missed: u64) -> Refusal {
    Refusal::new(Reason::FellBehind, format!("{missed} lowerings were missed: start over"))
}

fn stopping() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the daemon is stopping: connect again")
}
