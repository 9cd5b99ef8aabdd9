//! A resource server: serves the files of one folder as one dataset, to clients whose lease opens it.
//!
//! ```text
//! cargo run --example resource_server -- --folder DIR --dataset dataset:TENANT/NAME@VERSION --audience SPIFFE-ID \
//!     --daemon HOST:PORT --daemon-id SPIFFE-ID --cert SVID.pem --key SVID.key --bundle CA.pem --listen ADDRESS:PORT
//! curl --cert trainer.pem --key trainer.key --cacert CA.pem -H "Authorization: Bearer $TOKEN" https://ADDRESS:PORT/FILE
//! ```
//!
//! Each request needs two things: the client's X.509-SVID on the TLS connection, and a token of the same holder for this
//! dataset. The server follows the daemon's fence feed, so it answers from memory. It asks again before each part of a
//! download, and a revocation ends a running download.

use std::{convert::Infallible, error::Error, path::PathBuf, sync::Arc};

use bytes::Bytes;
use clap::Parser;
use futures_util::{Stream, stream};
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use leasehold::{
    clock::{Clock, SystemClock},
    identity::{FileSource, IdentityFiles, IdentitySource},
    link::{Acceptor, Connection, Connector, Endpoint, Protocol, ServeOptions, serve},
    name::{Action, Object, ResourceName, SpiffeId},
    reason::{Reason, Refusal},
    token::Presenter,
    verify::{Access, Verifier, VerifierSettings},
};
use tokio::{fs::File, io::AsyncReadExt, net::TcpListener};
use tokio_util::sync::CancellationToken;

type Body = UnsyncBoxBody<Bytes, Refusal>;

const PART_BYTES: usize = 64 << 10;

#[derive(Parser)]
struct Options {
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    dataset: ResourceName,
    /// The `[[audience]]` of the catalog that this server is.
    #[arg(long)]
    audience: SpiffeId,
    #[arg(long)]
    daemon: String,
    #[arg(long)]
    daemon_id: SpiffeId,
    /// This server's own SVID: one of the audience's `verifiers`.
    #[arg(long)]
    cert: PathBuf,
    #[arg(long)]
    key: PathBuf,
    /// The roots that the daemon's SVID and the clients' SVIDs end at.
    #[arg(long)]
    bundle: PathBuf,
    #[arg(long)]
    listen: String,
}

#[derive(Clone)]
struct Server {
    verifier: Verifier,
    dataset: ResourceName,
    folder: Arc<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let files = IdentityFiles {
        svid: Some((options.cert, options.key)),
        bundles: vec![(options.daemon_id.trust_domain(), options.bundle)],
    };
    let source = Arc::new(FileSource::open(files, clock.clone())?);
    // Rotated files are read again without a restart.
    tokio::spawn(source.clone().follow(CancellationToken::new()));
    let source: Arc<dyn IdentitySource> = source;

    let daemon = Endpoint::new(&options.daemon, options.daemon_id)?;
    let connector = Connector::new(source.clone(), clock.clone(), daemon);
    let verifier =
        Verifier::start(VerifierSettings { connector, audience: options.audience, clock: clock.clone() });
    let server = Server { verifier, dataset: options.dataset, folder: Arc::new(options.folder) };

    let listener = TcpListener::bind(&options.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let service = tower::service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            on_signal.cancel();
        }
    });
    serve(listener, Acceptor::new(source, clock, Protocol::Http), service, ServeOptions::default(), stop)
        .await;
    Ok(())
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match self.download(&request).await {
            Ok(body) => Response::new(body),
            Err((status, text)) => {
                let body = Full::from(text).map_err(|never| match never {}).boxed_unsync();
                let mut response = Response::new(body);
                *response.status_mut() = status;
                response
            }
        }
    }

    async fn download(&self, request: &Request<Incoming>) -> Result<Body, (StatusCode, String)> {
        let refused = |refusal: Refusal| (StatusCode::FORBIDDEN, format!("{}: {refusal}\n", refusal.reason));
        let connection = request.extensions().get::<Connection>();
        let peer = &connection.ok_or((StatusCode::UNAUTHORIZED, "no client certificate\n".to_owned()))?.peer;
        let token = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let token =
            token.ok_or((StatusCode::UNAUTHORIZED, "send Authorization: Bearer TOKEN\n".to_owned()))?;

        // The token is checked first: a client without access does not learn which files there are.
        let presenter = Presenter::Svid { id: peer.spiffe_id(), x5t_s256: Some(peer.x5t_s256()) };
        let dataset = Object::from(self.dataset.clone());
        let access =
            self.verifier.check(token, presenter, &dataset, Action::ReadDataset).await.map_err(refused)?;
        let missing = |_| (StatusCode::NOT_FOUND, "there is no such file\n".to_owned());
        let file = self.open(request.uri().path()).await.map_err(missing)?;
        Ok(StreamBody::new(parts(file, access)).boxed_unsync())
    }

    /// Opens a file directly below the folder. Other paths and links are refused.
    async fn open(&self, path: &str) -> std::io::Result<File> {
        let name = path.trim_start_matches('/');
        let is_plain =
            !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let path = self.folder.join(name);
        let is_file = is_plain && tokio::fs::symlink_metadata(&path).await?.is_file();
        if is_file { File::open(path).await } else { Err(std::io::ErrorKind::NotFound.into()) }
    }
}

/// The file in parts. The lease is checked before each, and its end ends the download.
fn parts(file: File, access: Access) -> impl Stream<Item = Result<Frame<Bytes>, Refusal>> {
    stream::try_unfold((file, access), async |(mut file, access)| {
        access.check()?;
        let mut part = vec![0; PART_BYTES];
        let read = tokio::select! {
            read = file.read(&mut part) => read,
            refusal = access.ended() => return Err(refusal),
        };
        let read = read.map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?;
        part.truncate(read);
        Ok((read > 0).then(|| (Frame::data(Bytes::from(part)), (file, access))))
    })
}
