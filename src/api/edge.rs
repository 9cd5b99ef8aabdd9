//! The steps of every call: caller, capacity, deadline, refusal.

use std::{future::Future, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{
    brake::Brake,
    room::{EdgeRoom, RequestRoom, Rooms},
};
use crate::{
    broker::{Broker, Caller, Rules},
    identity::Peer,
    limits,
    link::{ClassifiedPeer, Classify, Connection, PeerClass},
    name::PrincipalKind,
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// A function that reads the configured catalog and policy again. It gets the present rules and returns the new rules.
/// It blocks.
pub type Reloader = Arc<dyn Fn(&Rules) -> Result<Rules, Refusal> + Send + Sync>;

/// The gRPC server of the daemon.
#[derive(Clone)]
pub struct Edge {
    pub(super) broker: Arc<Broker>,
    pub(super) reloader: Reloader,
    /// Cancelled when the daemon begins to stop. Streams then end with `ShuttingDown`.
    pub(super) stopping: CancellationToken,
    pub(super) rooms: Arc<Rooms>,
    pub(super) brake: Arc<Brake>,
}

impl Edge {
    pub fn new(broker: Arc<Broker>, reloader: Reloader, stopping: CancellationToken) -> Self {
        let rooms = Rooms::new(EdgeRoom::default(), broker.clock().clone());
        Edge { broker, reloader, stopping, rooms, brake: Arc::default() }
    }

    /// Sets the limits for requests, instead of the defaults in [`limits`].
    #[must_use]
    pub fn with_room(self, room: EdgeRoom) -> Self {
        let rooms = Rooms::new(room, self.broker.clock().clone());
        Edge { rooms, ..self }
    }

    /// Returns the function with which the listener classifies peers by the catalog.
    pub fn classify(&self) -> Classify {
        let broker = self.broker.clone();
        Classify::new(move |peer| classified(peer, broker.access.caller(peer).ok().as_ref()))
    }

    /// Closes the connections of clients that stop reading responses, until `shutdown`.
    pub async fn close_unread_connections(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.broker.clock().sleep(limits::READER_LOOK) => self.rooms.end_unread(),
            }
        }
    }

    /// Reserves capacity for a request before its body is read. A caller that matches no catalog entry may call only `WhoAmI`.
    pub(super) fn admit(&self, parts: &http::request::Parts) -> Result<Arc<RequestRoom>, Status> {
        let connection = self.connection_of(&parts.extensions)?;
        let rpc = rpc_of(parts.uri.path());
        let caller = self.broker.access.caller(&connection.peer);
        let peer = classified(&connection.peer, caller.as_ref().ok());
        let known = match (caller, rpc) {
            (Err(refusal), Some(rpc)) if rpc != Rpc::WhoAmI => Err(refusal),
            _ => Ok(()),
        };
        let headers =
            parts.headers.iter().map(|(name, value)| name.as_str().len().saturating_add(value.len()));
        let taken = known.and_then(|()| self.rooms.take(&peer, rpc, &connection, headers.sum()));
        taken.map_err(|refusal| match rpc {
            Some(rpc) => self.refuse(rpc, &connection, &refusal),
            None => refusal.status(),
        })
    }

    /// Returns the connection of a request, if its SVID is still valid.
    pub(super) fn connection<T>(&self, request: &Request<T>) -> Result<Connection, Status> {
        self.connection_of(request.extensions())
    }

    fn connection_of(&self, extensions: &http::Extensions) -> Result<Connection, Status> {
        let connection = extensions.get::<Connection>().cloned().ok_or_else(|| {
            Refusal::new(Reason::Internal, "the request has no attested connection").status()
        })?;
        connection
            .check(self.broker.clock().now().wall)
            .map_err(|ending| Refusal::new(ending.reason(), ending.to_string()).status())?;
        Ok(connection)
    }

    /// Returns the capacity that was reserved for a request.
    pub(super) fn room<T>(&self, request: &Request<T>) -> Result<Arc<RequestRoom>, Status> {
        request.extensions().get::<Arc<RequestRoom>>().cloned().ok_or_else(|| {
            Refusal::new(Reason::Internal, "no capacity was reserved for the request").status()
        })
    }

    /// Returns the caller with its catalog entry. Refuses a locked caller.
    pub(super) fn caller(&self, rpc: Rpc, connection: &Connection) -> Result<Caller, Status> {
        self.broker.access.admit(&connection.peer, rpc).map_err(|r| self.refuse(rpc, connection, &r))
    }

    /// Resolves with the reason when an open stream must end: its connection has ended, the daemon is stopping,
    /// or policy no longer allows its caller. Policy is asked again after each lock and reload, and at least every
    /// [`limits::REAUTHORIZE`].
    pub(super) async fn stream_over(
        &self,
        rpc: Rpc,
        connection: &Connection,
        may: impl Fn(&Broker, &Caller) -> Result<(), Refusal> + Send,
    ) -> Refusal {
        let denied = async {
            let broker = &*self.broker;
            let may = move |caller: &Caller| may(broker, caller);
            let refusal = broker.access.until_refused(&connection.peer, rpc, may).await;
            self.broker.denials().count(connection.peer.spiffe_id(), rpc.as_str(), &refusal);
            refusal
        };
        tokio::select! {
            refusal = denied => refusal,
            () = connection.ended.cancelled() => {
                let ending = connection.ending();
                Refusal::new(ending.reason(), ending.to_string())
            }
            () = self.stopping.cancelled() => {
                Refusal::new(Reason::ShuttingDown, "the daemon is stopping: connect again")
            }
        }
    }

    /// Counts and logs a refusal, records it if it is a denial, and returns its status.
    pub(super) fn refuse(&self, rpc: Rpc, connection: &Connection, refusal: &Refusal) -> Status {
        self.broker.denials().count(connection.peer.spiffe_id(), rpc.as_str(), refusal);
        refusal.status()
    }

    /// Runs one use case in a separate task, so that it completes even if the client disconnects.
    pub(super) async fn call<Q, A, F, Fut>(
        &self,
        rpc: Rpc,
        request: Request<Q>,
        use_case: F,
    ) -> Result<Response<A>, Status>
    where
        Q: Send + 'static,
        A: Send + 'static,
        F: FnOnce(Arc<Broker>, Caller, Q) -> Fut + Send + 'static,
        Fut: Future<Output = Result<A, Refusal>> + Send,
    {
        let connection = self.connection(&request)?;
        let caller = self.caller(rpc, &connection)?;
        // The task keeps the permit until it finishes, even if the client disconnects.
        let permit = self.room(&request)?;
        let timeout = deadline_of(&request);
        let (broker, query) = (self.broker.clone(), request.into_inner());
        let expected = appends_record(rpc).then(|| broker.ledger().expect_record());
        let task = tokio::spawn(async move {
            let answer = use_case(broker, caller, query).await;
            drop((permit, expected));
            answer
        });
        let answer = match timeout {
            None => task.await,
            Some(timeout) => match tokio::time::timeout(timeout, task).await {
                Ok(answer) => answer,
                Err(_) => return Err(Status::deadline_exceeded("the call took longer than its deadline")),
            },
        };
        match answer {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(refusal)) => Err(self.refuse(rpc, &connection, &refusal)),
            Err(failed) => {
                tracing::error!(%rpc, panicked = failed.is_panic(), "a use case did not finish");
                Err(self.refuse(
                    rpc,
                    &connection,
                    &Refusal::new(Reason::Internal, "a fault of the daemon: its log has the cause"),
                ))
            }
        }
    }
}

/// Whether the call waits until its record is on disk, and members make it often.
fn appends_record(rpc: Rpc) -> bool {
    matches!(rpc, Rpc::IssueCredential | Rpc::RenewLease)
}

/// Returns the call that a path names. `None` for health, reflection and unknown calls.
pub(super) fn rpc_of(path: &str) -> Option<Rpc> {
    let (_, name) = path.strip_prefix("/leasehold.v1.")?.split_once('/')?;
    Rpc::parse(name)
}

/// Returns the class that decides a caller's capacity, and the name under which its share is counted.
fn classified(peer: &Peer, caller: Option<&Caller>) -> ClassifiedPeer {
    let class = match caller.map(|caller| &caller.principal) {
        None => PeerClass::Unknown,
        Some(principal) if principal.disabled => PeerClass::Unknown,
        Some(principal) if principal.kind == PrincipalKind::Operator => PeerClass::Operator,
        Some(_) => PeerClass::Known,
    };
    ClassifiedPeer { class, counted_as: caller.map_or_else(|| peer.spiffe_id().clone(), Caller::counted_as) }
}

/// Returns the client's deadline from the `grpc-timeout` header: digits and one unit.
fn deadline_of<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(n.saturating_mul(60))),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}
