//! What every call goes through, whatever it asks.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::status::status;
use crate::{
    broker::{Broker, Caller, Rules},
    limits,
    link::{Connection, Share, Shares},
    name::SpiffeId,
    policy::Rpc,
    reason::{Reason, Refusal},
};

/// Reads catalog and policy again from where the configuration says, to follow these. Blocking.
pub type Reloader = Arc<dyn Fn(&Rules) -> Result<Rules, Refusal> + Send + Sync>;

/// The gRPC edge.
#[derive(Clone)]
pub struct Edge {
    pub(super) broker: Arc<Broker>,
    pub(super) reloader: Reloader,
    /// Cancelled when the daemon begins to stop: streams end and say so.
    pub(super) stopping: CancellationToken,
    work: Room,
    /// Room of their own for the calls that end access: whatever else waits for a disk, these do not wait for it.
    endings: Room,
}

/// Room for requests in work at once, of all and of each identity.
#[derive(Clone)]
struct Room {
    all: Arc<Semaphore>,
    each: Arc<Shares>,
}

impl Room {
    fn new(requests_max: usize, requests_per_peer_max: usize) -> Self {
        Room { all: Arc::new(Semaphore::new(requests_max)), each: Shares::new(requests_per_peer_max) }
    }

    /// A place for one request, until it is dropped.
    fn take(&self, id: &SpiffeId) -> Result<(OwnedSemaphorePermit, Share), Refusal> {
        let share = self.each.take(id).ok_or_else(|| {
            let most = self.each.most();
            let text = format!("this identity has {most} requests in work, as many as one may");
            Refusal::new(Reason::Overloaded, text).fix("try again in a moment, with fewer at once")
        })?;
        let place = self.all.clone().try_acquire_owned().map_err(|_| {
            Refusal::new(Reason::Overloaded, "too many requests at once: try again in a moment")
        })?;
        Ok((place, share))
    }
}

impl Edge {
    pub fn new(broker: Arc<Broker>, reloader: Reloader, stopping: CancellationToken) -> Self {
        let room = || Room::new(limits::REQUESTS_MAX, limits::REQUESTS_PER_PEER_MAX);
        Edge { broker, reloader, stopping, work: room(), endings: room() }
    }

    /// Takes so many requests in work at once, of all and of one identity: [`limits::REQUESTS_MAX`] and
    /// [`limits::REQUESTS_PER_PEER_MAX`] where nobody said. The calls that end access are counted apart, with the same bounds.
    #[must_use]
    pub fn with_room(self, requests_max: usize, requests_per_peer_max: usize) -> Self {
        let room = || Room::new(requests_max, requests_per_peer_max);
        Edge { work: room(), endings: room(), ..self }
    }

    /// The connection that a request came on, where its SVID still holds.
    pub(super) fn connection<T>(&self, request: &Request<T>) -> Result<Connection, Status> {
        let connection = request.extensions().get::<Connection>().cloned().ok_or_else(|| {
            status(&Refusal::new(Reason::Internal, "the request came over no attested connection"))
        })?;
        connection
            .check(self.broker.clock().now().wall)
            .map_err(|ending| status(&Refusal::new(ending.reason(), ending.to_string())))?;
        Ok(connection)
    }

    /// The caller as the catalog knows it, if no lock shuts it out.
    pub(super) fn caller(&self, rpc: Rpc, connection: &Connection) -> Result<Caller, Status> {
        self.broker.admit(&connection.peer, rpc).map_err(|r| self.refuse(rpc, connection, &r))
    }

    /// Resolves when a stream that stays open must end, and says why: its connection has ended, the daemon is stopping, or its
    /// caller may no longer have it. That is decided again after each lock and reload, and within [`limits::REAUTHORIZE`].
    pub(super) async fn stream_over(
        &self,
        rpc: Rpc,
        connection: &Connection,
        may: impl Fn(&Broker, &Caller) -> Result<(), Refusal> + Send,
    ) -> Refusal {
        let denied = async {
            let broker = &*self.broker;
            let may = move |caller: &Caller| may(broker, caller);
            let refusal = broker.until_refused(&connection.peer, rpc, may).await;
            self.broker.refused(connection.peer.spiffe_id(), rpc.as_str(), &refusal);
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

    /// Turns a refusal into a status, once it is counted, logged and, where it is a denial, recorded.
    pub(super) fn refuse(&self, rpc: Rpc, connection: &Connection, refusal: &Refusal) -> Status {
        self.broker.refused(connection.peer.spiffe_id(), rpc.as_str(), refusal);
        status(refusal)
    }

    /// Runs one use case in a task of its own: a client that goes away does not leave half of it behind.
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
        let room = if ends_access(rpc) { &self.endings } else { &self.work };
        let place =
            room.take(connection.peer.spiffe_id()).map_err(|busy| self.refuse(rpc, &connection, &busy))?;
        let patience = patience(&request);
        let (broker, query) = (self.broker.clone(), request.into_inner());
        let task = tokio::spawn(async move {
            let answer = use_case(broker, caller, query).await;
            drop(place);
            answer
        });
        let answer = match patience {
            None => task.await,
            Some(patience) => match tokio::time::timeout(patience, task).await {
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

/// The calls that only reduce access.
fn ends_access(rpc: Rpc) -> bool {
    matches!(
        rpc,
        Rpc::CloseJob
            | Rpc::DrainAttempt
            | Rpc::EndAttempt
            | Rpc::ReleaseLease
            | Rpc::Revoke
            | Rpc::Lock
            | Rpc::WaitDurable
    )
}

/// The client's deadline: the `grpc-timeout` header, digits and one unit.
fn patience<T>(request: &Request<T>) -> Option<Duration> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_one_identity_leave_room_for_the_others_and_are_refused_so_that_they_are_tried_again() {
        let (many, other): (SpiffeId, SpiffeId) =
            ("spiffe://td/many".parse().unwrap(), "spiffe://td/other".parse().unwrap());
        let room = Room::new(limits::REQUESTS_MAX, limits::REQUESTS_PER_PEER_MAX);
        let held: Vec<_> = (0..limits::REQUESTS_PER_PEER_MAX).map(|_| room.take(&many).unwrap()).collect();
        let refusal = room.take(&many).err().unwrap();
        assert_eq!(refusal.reason, Reason::Overloaded);
        assert_eq!(status(&refusal).code(), tonic::Code::ResourceExhausted);
        assert!(refusal.text.contains("3072 requests") && refusal.fact("fix").is_some(), "{refusal}");
        let left = limits::REQUESTS_MAX - limits::REQUESTS_PER_PEER_MAX;
        let others: Vec<_> = (0..left).map(|_| room.take(&other).unwrap()).collect();
        let full = room.take(&other).err().unwrap();
        assert!(full.text.contains("too many requests at once"), "{full}");
        drop(held);
        assert!(room.take(&many).is_ok() && room.take(&other).is_ok());
        drop(others);
    }
}
