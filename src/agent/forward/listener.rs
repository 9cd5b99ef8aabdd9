//! The port on 127.0.0.1. It accepts connections of this user, up to a limit, until access or the run ends.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::geteuid;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::{JoinHandle, spawn_blocking},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    leading::LeadingFiles,
    local_key::LocalKey,
    open_connections::{OpenConnection, OpenConnections},
    owner::{is_local, user_of},
    relay::Relay,
};
use crate::{
    agent::{
        access::{
            credential_dir::{CredentialDir, CredentialError},
            obtain::RunContext,
            present::PresentAccess,
        },
        messages::MessageSink,
    },
    clock::Clock,
    limits::{
        FORWARD_CONNECTIONS_MAX, FORWARD_CUT_GRACE, FORWARD_HEADER_BYTES_MAX, FORWARD_NEWCOMERS_MAX,
        FORWARD_QUIET, FORWARD_SLOT_WAIT,
    },
    secret::Secret,
};

/// Who may connect to the local endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Callers {
    /// Only processes of the user that this process runs as.
    SameUser,
    /// Any user of this machine who can read the key, because the credential files are shared with a group.
    WhoHasTheKey,
}

/// The running local endpoint. Dropping the value cuts all requests and closes the port.
pub(in crate::agent) struct Forwarder {
    address: SocketAddr,
    key: LocalKey,
    relay: Arc<Relay>,
    accepting: JoinHandle<()>,
}

impl Forwarder {
    /// Starts the endpoint for a member with this access and session secret. Returns `None` if the member uses no gateway.
    ///
    /// Holds a request for at most `hold_max` while there is no access.
    pub(in crate::agent) async fn start(
        present: watch::Receiver<PresentAccess>,
        session: &Secret,
        callers: Callers,
        hold_max: Duration,
        context: &RunContext,
    ) -> io::Result<Option<Self>> {
        let has_gateway = matches!(&*present.borrow(), PresentAccess::Open(gateways) if !gateways.is_empty());
        if !has_gateway {
            return Ok(None);
        }
        let key = LocalKey::of_session(session);
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, key.port)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
        };
        let address = listener.local_addr()?;
        let (identity, clock) = (context.identity.clone(), context.clock.clone());
        let relay = Arc::new(Relay::new(key.clone(), present, identity, clock, hold_max));
        let messages = context.messages.clone();
        let accepting = tokio::spawn(accept(listener, address, relay.clone(), callers, messages));
        Ok(Some(Forwarder { address, key, relay, accepting }))
    }

    /// Writes the files that lead programs to this endpoint.
    pub(in crate::agent) fn write_files(&self, dir: &CredentialDir) -> Result<LeadingFiles, CredentialError> {
        LeadingFiles::write(dir, self.address, &self.key)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn key(&self) -> &LocalKey {
        &self.key
    }

    /// Returns the present access of the member.
    pub(super) fn present(&self) -> &watch::Receiver<PresentAccess> {
        &self.relay.present
    }

    /// Cuts all requests and closes the port.
    pub(in crate::agent) fn stop(&self) {
        self.relay.cut.cancel();
        self.accepting.abort();
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(
    listener: TcpListener,
    own: SocketAddr,
    relay: Arc<Relay>,
    callers: Callers,
    messages: MessageSink,
) {
    let (slots, open) = (Arc::new(Semaphore::new(FORWARD_CONNECTIONS_MAX)), OpenConnections::default());
    let newcomers = Arc::new(Semaphore::new(FORWARD_NEWCOMERS_MAX));
    let cutting = tokio::spawn(cut_at_the_end(relay.clone()));
    let _cutting = AbortOnDropHandle::new(cutting);
    let presenting = relay.clone();
    let _presenting =
        AbortOnDropHandle::new(tokio::spawn(async move { presenting.present_newer_tokens().await }));
    let warned = Arc::new(AtomicBool::new(false));
    loop {
        // Further connections wait in the kernel.
        let Ok(newcomer) = newcomers.clone().acquire_owned().await else { return };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                relay.clock.sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (relay, messages, warned) = (relay.clone(), messages.clone(), warned.clone());
        let (slots, open) = (slots.clone(), open.clone());
        tokio::spawn(async move {
            // This check comes first. So another user takes no slot, and does not cause a connection to be closed.
            if !may_connect(peer, own, callers).await {
                if !warned.swap(true, Ordering::Relaxed) {
                    let text =
                        "refused another user of this machine, who tried to use the access of this run";
                    messages.send(text);
                }
                return;
            }
            let _slot = free_slot(&slots, &open, &relay.clock).await;
            drop(newcomer);
            let connection = open.add(relay.clock.now().lease);
            serve(tcp, relay, connection).await;
        });
    }
}

/// Waits for a free slot. While there is none, closes the connection that has waited longest for a request, and looks again
/// every [`FORWARD_SLOT_WAIT`].
async fn free_slot(
    slots: &Arc<Semaphore>,
    open: &OpenConnections,
    clock: &Arc<dyn Clock>,
) -> Option<OwnedSemaphorePermit> {
    loop {
        if slots.available_permits() == 0 {
            open.close_quietest(clock.now().lease);
        }
        tokio::select! {
            slot = slots.clone().acquire_owned() => return slot.ok(),
            // By now, another connection may have ended its request, so it can be closed.
            () = clock.sleep(FORWARD_SLOT_WAIT) => {}
        }
    }
}

/// Whether the user of a connection may use the access. If the user cannot be found, the answer is no.
async fn may_connect(peer: SocketAddr, own: SocketAddr, callers: Callers) -> bool {
    if !is_local(peer) {
        return false;
    }
    match callers {
        Callers::WhoHasTheKey => true,
        // On a machine with many connections the tables are long, so a blocking thread reads them.
        Callers::SameUser => match spawn_blocking(move || user_of(peer, own)).await {
            Ok(Ok(user)) => user == Some(geteuid().as_raw()),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the user of a connection cannot be found");
                false
            }
            Err(_) => false,
        },
    }
}

/// Waits for the end of access, and then cuts all pending requests.
async fn cut_at_the_end(relay: Arc<Relay>) {
    let mut present = relay.present.clone();
    let _ = present.wait_for(|now| matches!(now, PresentAccess::Ended(_))).await;
    relay.cut.cancel();
}

/// Serves one connection until another connection needs its slot, or access ends. After a cut, the connection stays open for a
/// moment, so that the program can notice the cut.
async fn serve(tcp: TcpStream, relay: Arc<Relay>, open: OpenConnection) {
    let _ = tcp.set_nodelay(true);
    let cut_before = relay.cut.is_cancelled();
    let (cut, clock) = (relay.cut.clone(), relay.clock.clone());
    let service = service_fn(|request| {
        let (relay, under_way) = (relay.clone(), open.begin_request(&relay.clock));
        async move {
            let answer = relay.answer(request).await;
            // The request counts as unanswered until the body of its answer is sent or dropped.
            Ok::<_, Infallible>(answer.map(|body| {
                body.map_frame(move |frame| {
                    let _ = &under_way;
                    frame
                })
            }))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(FORWARD_QUIET).max_buf_size(FORWARD_HEADER_BYTES_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(tcp), service));
    // A connection that is opened after the end of access gets only the reason.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = wait_for_cut(&cut), if !cut_before => {}
        // If the program has sent a request meanwhile, its answer is still sent.
        () = open.must_close() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _ = connection.as_mut() => return,
                () = wait_for_cut(&cut), if !cut_before => {}
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection.as_mut() => {}
        () = clock.sleep(FORWARD_CUT_GRACE) => {}
    }
}

async fn wait_for_cut(cut: &CancellationToken) {
    cut.cancelled().await;
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
