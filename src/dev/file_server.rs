//! A small file server for holders of leases. It uses only [`verify`](crate::verify), and is an example for authors of resource
//! servers.
//!
//! ```text
//! GET            /dataset/TENANT/NAME@VERSION/PATH     a file, a range of it, or the JSON listing of a folder
//! GET            /model/TENANT/NAME@VERSION/PATH
//! PUT GET DELETE /checkpoint/TENANT/NAME/JOB/PATH      JOB is the job of the token
//! Authorization: Bearer TOKEN, over mutual TLS with the SVID of the token's holder
//! ```
//!
//! Every resource server takes these steps in this order: (1) read what is requested, (2) [`Verifier::check`] the token for it,
//! with the peer of the connection as presenter, (3) only then look whether it exists, (4) [`Access::check`] before each part,
//! (5) stop when [`Access::ended`] resolves, (6) check once more before an upload becomes visible.

use std::{collections::HashMap, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use nix::errno::Errno;
use tokio::{
    io::AsyncWriteExt,
    net::TcpListener,
    sync::{Semaphore, broadcast},
};
use tokio_util::sync::CancellationToken;

use super::{
    folder::{ServedFolder, ServedItem, SubPath},
    target::Target,
    transfer::{BodyError, DownloadBody, FileTransfer, TransferCounter, TransferDirection, TransferEnd},
};
use crate::{
    clock::Clock,
    identity::IdentitySource,
    limits::{FILE_TRANSFERS_MAX, FILE_TRANSFERS_TOLD, FILE_UPLOAD_BYTES_MAX},
    link::{Acceptor, Connection, Protocol, ServeOptions, serve},
    name::ResourceName,
    reason::{Reason, Refusal},
    secret::random_u128,
    token::Presenter,
    verify::{Access, Verifier},
};

type FileBody = UnsyncBoxBody<Bytes, BodyError>;

/// Serves folders as datasets and models, and stores checkpoints. Cloning is cheap.
#[derive(Clone)]
pub struct FileServer {
    verifier: Verifier,
    folders: Arc<HashMap<ResourceName, ServedFolder>>,
    checkpoints: ServedFolder,
    upload_bytes_max: u64,
    transfers: Arc<Semaphore>,
    ended: broadcast::Sender<FileTransfer>,
}

/// Why a request is not served.
enum RequestError {
    Refused(Refusal),
    /// A refusal with an HTTP status that differs from the reason's usual status.
    Status(StatusCode, Refusal),
    Disk(io::Error),
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        RequestError::Refused(refusal)
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        RequestError::Disk(error)
    }
}

impl FileServer {
    /// Makes a server for datasets and models, each in a folder, and for checkpoints in `checkpoints/TENANT/NAME/JOB`.
    pub fn new(verifier: Verifier, folders: HashMap<ResourceName, PathBuf>, checkpoints: PathBuf) -> Self {
        let folders = folders.into_iter().map(|(name, path)| (name, ServedFolder::new(path))).collect();
        FileServer {
            verifier,
            folders: Arc::new(folders),
            checkpoints: ServedFolder::new(checkpoints),
            upload_bytes_max: FILE_UPLOAD_BYTES_MAX,
            transfers: Arc::new(Semaphore::new(FILE_TRANSFERS_MAX)),
            ended: broadcast::Sender::new(FILE_TRANSFERS_TOLD),
        }
    }

    /// Sets the size of the largest upload.
    #[cfg(test)]
    pub fn with_upload_bytes_max(mut self, bytes: u64) -> Self {
        self.upload_bytes_max = bytes;
        self
    }

    /// Returns a receiver of transfers. It gets the value of each transfer when the transfer has ended.
    pub fn transfers(&self) -> broadcast::Receiver<FileTransfer> {
        self.ended.subscribe()
    }

    /// Serves until the shutdown. First removes the unfinished uploads of an earlier server. This is safe, because only one
    /// server uses a folder of checkpoints at a time.
    pub async fn serve(
        self,
        listener: TcpListener,
        source: Arc<dyn IdentitySource>,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let checkpoints = self.checkpoints.clone();
        run_blocking(move || checkpoints.clear(&staging())).await?;
        let acceptor = Acceptor::new(source, clock.clone(), Protocol::Http);
        let service = tower::service_fn(move |request| {
            let (server, clock) = (self.clone(), clock.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, clock).await) }
        });
        serve(listener, acceptor, service, ServeOptions::default(), shutdown).await;
        Ok(())
    }

    async fn answer(&self, request: Request<Incoming>, clock: Arc<dyn Clock>) -> Response<FileBody> {
        match self.handle(request, clock).await {
            Ok(response) => response,
            Err(RequestError::Refused(refusal)) => refusal_response(refusal.reason.http_status(), &refusal),
            Err(RequestError::Status(status, refusal)) => refusal_response(status, &refusal),
            Err(RequestError::Disk(error)) => disk_error_response(&error),
        }
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        clock: Arc<dyn Clock>,
    ) -> Result<Response<FileBody>, RequestError> {
        let connection = request.extensions().get::<Connection>().cloned().ok_or_else(|| {
            Refusal::new(Reason::NoClientCertificate, "the connection has no client certificate")
        })?;
        let target = Target::parse(request.method(), request.uri().path())?;
        let token = bearer(request.headers())?;
        let peer = &connection.peer;
        let presenter = Presenter::Svid { id: peer.spiffe_id(), x5t_s256: Some(peer.x5t_s256()) };
        let access = self.verifier.check(token, presenter, &target.object(), target.action).await?;
        let (folder, below) = self.place(&target)?;
        match *request.method() {
            Method::PUT => {
                let tally = self.start_transfer(TransferDirection::Upload, &target, &connection)?;
                self.receive(request, folder, below, access, tally).await
            }
            Method::DELETE => {
                access.check()?;
                run_blocking(move || folder.remove(&below)).await?;
                Ok(empty(StatusCode::NO_CONTENT))
            }
            _ => match run_blocking(move || folder.find(&below)).await? {
                ServedItem::Folder(entries) => {
                    access.check()?;
                    let listing = serde_json::json!({ "entries": entries }).to_string();
                    Ok(json(StatusCode::OK, listing))
                }
                ServedItem::File(file, length) => {
                    let part = Part::parse(request.headers(), length)?;
                    let tally = self.start_transfer(TransferDirection::Download, &target, &connection)?;
                    let file = part.of(file).await?;
                    let body = DownloadBody::new(file, part.length, access, tally, connection, clock);
                    Ok(part.response(length, body.boxed_unsync()))
                }
            },
        }
    }

    /// Returns the folder and the path of the target, even if nothing is at the path. Fails if no folder is served as the resource.
    fn place(&self, target: &Target) -> Result<(ServedFolder, SubPath), RequestError> {
        let below = target.below.clone();
        let Some(job) = target.job else {
            let folder = self.folders.get(&target.resource).cloned();
            return Ok((folder.ok_or_else(|| io::Error::from(Errno::ENOENT))?, below));
        };
        let tenant = target.resource.tenant();
        Ok((
            self.checkpoints.clone(),
            below.under([tenant.as_str(), target.resource.name(), &job.to_string()]),
        ))
    }

    fn start_transfer(
        &self,
        direction: TransferDirection,
        target: &Target,
        connection: &Connection,
    ) -> Result<TransferCounter, RequestError> {
        let permit = self.transfers.clone().try_acquire_owned().map_err(|_| {
            let text = "too many transfers are running: try again";
            RequestError::Status(StatusCode::SERVICE_UNAVAILABLE, Refusal::new(Reason::Overloaded, text))
        })?;
        Ok(TransferCounter {
            transfer: FileTransfer {
                direction,
                peer: connection.peer.spiffe_id().clone(),
                resource: target.resource.clone(),
                path: target.below.display(),
                bytes: 0,
                end: TransferEnd::Broken,
            },
            ended: self.ended.clone(),
            _permit: permit,
        })
    }

    /// Receives an upload into the staging folder. Moves the file to its final path when it is complete and the access is still
    /// live.
    async fn receive(
        &self,
        request: Request<Incoming>,
        folder: ServedFolder,
        below: SubPath,
        access: Access,
        mut tally: TransferCounter,
    ) -> Result<Response<FileBody>, RequestError> {
        let most = self.upload_bytes_max;
        let too_large = || {
            let text = format!("an upload is at most {most} bytes");
            RequestError::Status(StatusCode::PAYLOAD_TOO_LARGE, Refusal::new(Reason::QuotaExceeded, text))
        };
        let mut body = request.into_body();
        if http_body::Body::size_hint(&body).lower() > most {
            return Err(too_large());
        }
        let name = random_u128().map_err(io::Error::other)?;
        let (upload, file) = run_blocking(move || folder.upload(&staging(), format!("{name:032x}"))).await?;
        let mut file = tokio::fs::File::from_std(file);
        let mut ended = Box::pin(access.ended());
        let cut = |tally: &mut TransferCounter, refusal: Refusal| {
            tally.set_end(TransferEnd::Cut(refusal.reason));
            RequestError::Refused(refusal)
        };
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                refusal = &mut ended => return Err(cut(&mut tally, refusal)),
            };
            access.check().map_err(|refusal| cut(&mut tally, refusal))?;
            let Some(frame) = frame else { break };
            let Ok(bytes) = frame.map_err(|_| broken_upload())?.into_data() else { continue };
            tally.add(bytes.len());
            if tally.transfer.bytes > most {
                return Err(too_large());
            }
            file.write_all(&bytes).await?;
        }
        file.flush().await?;
        file.sync_all().await?;
        access.check().map_err(|refusal| cut(&mut tally, refusal))?;
        run_blocking(move || upload.place(&below)).await?;
        tally.set_end(TransferEnd::Whole);
        Ok(empty(StatusCode::CREATED))
    }
}

/// Makes the error for an incomplete upload. The client has probably disconnected, and does not read it.
fn broken_upload() -> RequestError {
    let refusal = Refusal::new(Reason::FieldInvalid, "the upload is incomplete, and was discarded");
    RequestError::Status(StatusCode::BAD_REQUEST, refusal)
}

/// Returns the path of the staging folder. No tenant can have its name.
fn staging() -> SubPath {
    SubPath::one(".uploads")
}

/// Runs disk work on a blocking thread.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Reads the bearer token (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return Err(Refusal::new(Reason::TokenMalformed, "the request has no token, or more than one")
            .fix("send `Authorization: Bearer TOKEN`"));
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            Refusal::new(Reason::TokenMalformed, "the authorization header is not `Bearer TOKEN`")
                .fix("send `Authorization: Bearer TOKEN`")
        })
}

/// A file, or one range of it.
struct Part {
    from: u64,
    length: u64,
    range: bool,
}

impl Part {
    /// Reads a single range (RFC 9110 section 14.1.2). Several ranges, or an invalid one, mean the whole file.
    fn parse(headers: &HeaderMap, length: u64) -> Result<Self, RequestError> {
        let whole = Part { from: 0, length, range: false };
        // The server sends no validators, so no condition can be true, and the range is ignored (section 13.1.5).
        if headers.contains_key(header::IF_RANGE) {
            return Ok(whole);
        }
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let Some((first, last)) =
            range.and_then(|text| text.strip_prefix("bytes=")).and_then(|r| r.split_once('-'))
        else {
            return Ok(whole);
        };
        let (from, to) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(from), Ok(to)) if from <= to => (from, to.saturating_add(1).min(length)),
            (Ok(from), Err(_)) if last.trim().is_empty() => (from, length),
            (Err(_), Ok(suffix)) if first.trim().is_empty() => (length.saturating_sub(suffix), length),
            _ => return Ok(whole),
        };
        if from >= to {
            let text = format!("the file has {length} bytes");
            return Err(RequestError::Status(
                StatusCode::RANGE_NOT_SATISFIABLE,
                Refusal::new(Reason::FieldInvalid, text),
            ));
        }
        Ok(Part { from, length: to.saturating_sub(from), range: true })
    }

    async fn of(&self, file: std::fs::File) -> io::Result<tokio::fs::File> {
        use tokio::io::AsyncSeekExt;
        let mut file = tokio::fs::File::from_std(file);
        if self.from > 0 {
            file.seek(io::SeekFrom::Start(self.from)).await?;
        }
        Ok(file)
    }

    fn response(&self, length: u64, body: FileBody) -> Response<FileBody> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, self.length.into());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        // Revoked data must not stay in a cache.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.range {
            let last = self.from.saturating_add(self.length).saturating_sub(1);
            if let Ok(value) = format!("bytes {}-{last}/{length}", self.from).parse() {
                headers.insert(header::CONTENT_RANGE, value);
            }
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        response
    }
}

fn refusal_response(status: StatusCode, refusal: &Refusal) -> Response<FileBody> {
    let text = serde_json::json!({
        "reason": refusal.reason.code(),
        "message": refusal.text,
        "fix": refusal.fact("fix"),
    });
    let mut response = json(status, text.to_string());
    let headers = response.headers_mut();
    headers.insert("leasehold-reason", HeaderValue::from_static(refusal.reason.code()));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Answers a disk error. Only a caller whose token opens the resource gets this answer, so the caller may know what exists.
fn disk_error_response(error: &io::Error) -> Response<FileBody> {
    let answer = |status, reason, text: &'static str| refusal_response(status, &Refusal::new(reason, text));
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => {
            answer(StatusCode::NOT_FOUND, Reason::ResourceNotFound, "there is no such file")
        }
        Some(Errno::EISDIR | Errno::EEXIST | Errno::EPERM) => {
            answer(StatusCode::CONFLICT, Reason::StateConflict, "the path is a folder: name a file in it")
        }
        Some(Errno::E2BIG) => {
            answer(StatusCode::CONFLICT, Reason::QuotaExceeded, "the folder has too many entries to list")
        }
        _ => {
            tracing::error!(%error, "a file could not be served");
            answer(StatusCode::INTERNAL_SERVER_ERROR, Reason::Internal, "the file could not be served")
        }
    }
}

fn json(status: StatusCode, text: String) -> Response<FileBody> {
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn empty(status: StatusCode) -> Response<FileBody> {
    let mut response = Response::new(FileBody::default());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
#[path = "file_server_tests.rs"]
mod tests;
