//! A SPIFFE agent that sends what a test sets: the server's side of the Workload API, on a socket in its own folder.
//!
//! It does what a correct agent never does: SVIDs that last seconds, redactions, refusals, empty fields, a socket that
//! dies.

use std::{
    collections::HashMap,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::Stream;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/workload_server/_.rs"));

    impl std::fmt::Debug for X509svid {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "X509svid({})", self.spiffe_id)
        }
    }
}

use wire::{
    X509svid, X509svidRequest, X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};

/// What is sent on every stream, open now or opened later.
#[derive(Clone)]
enum Say {
    Nothing,
    HangUp,
    State(X509svidResponse),
    Refuse(Code, String),
}

/// The agent. Dropping it removes its socket.
pub struct Agent {
    folder: TempDir,
    say: watch::Sender<(Say, usize)>,
    calls: Arc<AtomicUsize>,
    /// The metadata of each call.
    headers: Arc<Mutex<Vec<Option<String>>>>,
    alive: Mutex<CancellationToken>,
}

impl Agent {
    /// Starts to serve, without sending anything yet.
    pub fn start() -> Self {
        let agent = Agent {
            folder: tempfile::tempdir().unwrap(),
            say: watch::Sender::new((Say::Nothing, 0)),
            calls: Arc::default(),
            headers: Arc::default(),
            alive: Mutex::default(),
        };
        agent.live();
        agent
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Its URI as in a configuration.
    pub fn uri(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Sets the complete state from now on.
    pub fn say(&self, svids: Vec<X509svid>, federated: &[(&str, Vec<u8>)]) {
        let federated_bundles =
            federated.iter().map(|(id, der)| ((*id).to_owned(), der.clone())).collect::<HashMap<_, _>>();
        self.tell(Say::State(X509svidResponse { svids, crl: Vec::new(), federated_bundles }));
    }

    /// Ends every stream with this, from now on.
    pub fn refuse(&self, code: Code, message: &str) {
        self.tell(Say::Refuse(code, message.to_owned()));
    }

    /// Ends every stream normally without a message, from now on.
    pub fn hang_up(&self) {
        self.tell(Say::HangUp);
    }

    /// Accepts calls, and sends nothing on them until another method is called.
    pub fn hesitate(&self) {
        self.tell(Say::Nothing);
    }

    /// Ends the open streams normally. New calls are answered.
    pub fn close_streams(&self) {
        self.say.send_modify(|(_, closed)| *closed += 1);
    }

    fn tell(&self, say: Say) {
        self.say.send_modify(|now| now.0 = say);
    }

    /// Stops at once, and closes its socket.
    pub fn die(&self) {
        self.alive.lock().unwrap().cancel();
        let _ = std::fs::remove_file(self.socket());
    }

    /// Comes back at the same path, and sends what it sent before.
    pub fn live(&self) {
        let alive = CancellationToken::new();
        *self.alive.lock().unwrap() = alive.clone();
        let listener = UnixListener::bind(self.socket()).unwrap();
        let service = Service {
            say: self.say.clone(),
            calls: self.calls.clone(),
            headers: self.headers.clone(),
            alive: alive.clone(),
        };
        tokio::spawn(async move {
            let serving = tonic::transport::Server::builder()
                .add_service(SpiffeWorkloadApiServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener));
            tokio::select! {
                _ = serving => {}
                () = alive.cancelled() => {}
            }
        });
    }

    /// How often it was called.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// The `workload.spiffe.io` metadata of each call.
    pub fn headers(&self) -> Vec<Option<String>> {
        self.headers.lock().unwrap().clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.alive.lock().unwrap().cancel();
    }
}

struct Service {
    say: watch::Sender<(Say, usize)>,
    calls: Arc<AtomicUsize>,
    headers: Arc<Mutex<Vec<Option<String>>>>,
    alive: CancellationToken,
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Pin<Box<dyn Stream<Item = Result<X509svidResponse, Status>> + Send>>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let header = request.metadata().get("workload.spiffe.io").map(|v| v.to_str().unwrap().to_owned());
        self.headers.lock().unwrap().push(header.clone());
        if header.as_deref() != Some("true") {
            return Err(Status::invalid_argument("the security header is missing"));
        }
        let (tx, rx) = mpsc::channel(16);
        let (mut said, alive) = (self.say.subscribe(), self.alive.clone());
        tokio::spawn(async move {
            let closed = said.borrow().1;
            let mut sent: Option<X509svidResponse> = None;
            loop {
                let (say, closes) = said.borrow_and_update().clone();
                if closes != closed {
                    return;
                }
                match say {
                    Say::State(state) if sent.as_ref() != Some(&state) => {
                        sent = Some(state.clone());
                        if tx.send(Ok(state)).await.is_err() {
                            return;
                        }
                    }
                    Say::Refuse(code, message) => {
                        let _ = tx.send(Err(Status::new(code, message))).await;
                        return;
                    }
                    Say::HangUp => return,
                    Say::State(_) | Say::Nothing => {}
                }
                tokio::select! {
                    changed = said.changed() => if changed.is_err() { return },
                    () = alive.cancelled() => {
                        // A process that dies sends nothing.
                        let _ = tx.send(Err(Status::unavailable("the agent died"))).await;
                        return;
                    }
                    () = tx.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// The concatenated DER of all certificates of a PEM text.
pub fn der(pem: &str) -> Vec<u8> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).flat_map(|cert| cert.unwrap().to_vec()).collect()
}

/// An entry as an agent sends it.
pub fn entry(id: &str, chain_pem: &str, key_pem: &str, bundle_pem: &str) -> X509svid {
    X509svid {
        spiffe_id: id.to_owned(),
        x509_svid: der(chain_pem),
        x509_svid_key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap().secret_der().to_vec(),
        bundle: der(bundle_pem),
        hint: String::new(),
    }
}
