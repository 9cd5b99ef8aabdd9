//! The answers of the API of the Hub.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::StreamBody;
use s3s::{Body, S3ErrorCode, S3Result, dto};
use serde_json::{Value, json};

use super::{
    path::{Question, below},
    repository::{LeasedVersion, RepositoryFile, blob_of, revision, revisions},
};
use crate::gateway::{
    caller::{GatewayCaller, live},
    conditions::Conditions,
    download::Download,
    refusal::{failed, unusable},
    store::ObjectInfo,
};

const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

/// Answers a request of the Hub's clients.
///
/// # Errors
///
/// The lease does not open the repository or file, or it does not exist.
pub(in crate::gateway) async fn answer(
    caller: &GatewayCaller,
    request: &Request<Body>,
) -> S3Result<Response<Body>> {
    let (method, uri) = (request.method(), request.uri());
    let question = Question::read(below(uri.path()), uri.query().unwrap_or_default()).ok_or_else(|| {
        failed(S3ErrorCode::NoSuchKey, "this gateway does not support this path of the Hub API")
    })?;
    if *method != Method::GET && *method != Method::HEAD {
        return Err(failed(
            S3ErrorCode::MethodNotAllowed,
            "the Hub API of this gateway is read-only: write with S3",
        ));
    }
    match question {
        Question::WhoAmI => {
            Ok(json_answer(&json!({ "name": "leasehold", "type": "user", "orgs": [] }), None))
        }
        Question::Info { repository, revision: wanted } => {
            let found = revision(caller, &repository, wanted.as_deref())?;
            let files = found.files(caller, "").await?;
            live(&found.access)?;
            let siblings: Vec<Value> = files.iter().map(|file| json!({ "rfilename": file.path })).collect();
            let info = json!({
                "id": repository.id, "modelId": repository.id, "sha": found.commit, "private": true, "gated": false,
                "disabled": false, "tags": [], "siblings": siblings,
            });
            Ok(json_answer(&info, Some(&found)))
        }
        Question::Tree { repository, revision: wanted, folder, is_recursive } => {
            let found = revision(caller, &repository, Some(&wanted))?;
            let files = found.files(caller, &folder).await?;
            live(&found.access)?;
            if files.is_empty() && !folder.is_empty() {
                return Err(failed(S3ErrorCode::NoSuchKey, "the repository has no such folder"));
            }
            Ok(json_answer(&tree(&files, &folder, is_recursive), Some(&found)))
        }
        Question::Refs { repository } => {
            let branches: Vec<Value> = revisions(caller, &repository)?
                .iter()
                .map(|r| json!({ "name": r.version, "ref": format!("refs/heads/{}", r.version), "targetCommit": r.commit }))
                .collect();
            Ok(json_answer(&json!({ "branches": branches, "tags": [], "converts": [] }), None))
        }
        Question::Resolve { repository, revision: wanted, path } => {
            let found = revision(caller, &repository, Some(&wanted))?;
            resolve(caller, found, &path, method, request.headers()).await
        }
    }
}

fn json_answer(value: &Value, revision: Option<&LeasedVersion>) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(revision) = revision {
        insert(response.headers_mut(), COMMIT, &revision.commit);
    }
    response
}

/// Returns the files below a folder, and their folders.
fn tree(files: &[RepositoryFile], folder: &str, is_recursive: bool) -> Value {
    let (mut entries, mut folders) = (Vec::new(), BTreeSet::new());
    for file in files {
        let below = file.path.strip_prefix(folder).unwrap_or(&file.path);
        for (at, _) in below.match_indices('/') {
            if let Some(name) = below.get(..at) {
                folders.insert(format!("{folder}{name}"));
            }
            if !is_recursive {
                break;
            }
        }
        if is_recursive || !below.contains('/') {
            entries.push(json!({ "type": "file", "path": file.path, "size": file.info.size, "oid": blob_of(&file.info) }));
        }
    }
    let no_object = "0".repeat(40);
    entries.extend(
        folders.iter().map(|path| json!({ "type": "directory", "path": path, "size": 0, "oid": no_object })),
    );
    Value::from(entries)
}

/// Returns the bytes of a file, or only their description.
async fn resolve(
    caller: &GatewayCaller,
    revision: LeasedVersion,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
) -> S3Result<Response<Body>> {
    let found = revision.mount.found(path).map_err(|fault| unusable(&fault, true))?;
    if *method == Method::HEAD {
        let info = found.head().await?;
        live(&revision.access)?;
        let mut response = Response::new(Body::empty());
        describe(response.headers_mut(), &revision, &info, info.size);
        return Ok(response);
    }
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = range.map(dto::Range::parse).transpose();
    let range =
        range.map_err(|_| failed(S3ErrorCode::InvalidRange, "the header `Range` is not understood"))?;
    let reading = found.read(range, &Conditions::default()).await?;
    live(&revision.access)?;
    let bytes = reading.range.end.saturating_sub(reading.range.start);
    let (info, part) = (reading.info, reading.range);
    let description = revision.access.clone().of_key(path);
    let download = Download::new(reading.chunks, bytes, description, caller);
    let mut response = Response::new(Body::http_body_unsync(StreamBody::new(download.map_ok(Frame::data))));
    describe(response.headers_mut(), &revision, &info, bytes);
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let shown = format!("bytes {}-{}/{}", part.start, part.end.saturating_sub(1), info.size);
        insert(response.headers_mut(), header::CONTENT_RANGE, &shown);
    }
    Ok(response)
}

/// Sets the headers that clients need for each file. Clients do not cache a file without these headers.
fn describe(headers: &mut HeaderMap, revision: &LeasedVersion, info: &ObjectInfo, bytes: u64) {
    insert(headers, COMMIT, &revision.commit);
    insert(headers, header::ETAG, &format!("\"{}\"", blob_of(info)));
    insert(headers, header::CONTENT_LENGTH, &bytes.to_string());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn file(path: &str) -> RepositoryFile {
        let info = ObjectInfo { size: 3, e_tag: path.to_owned(), modified: SystemTime::UNIX_EPOCH };
        RepositoryFile { path: path.to_owned(), info }
    }

    fn paths(tree: &Value) -> Vec<String> {
        let shown = |entry: &Value| {
            let kind = if entry["type"] == "directory" { "/" } else { "" };
            assert_eq!(entry["oid"].as_str().unwrap().len(), 40);
            format!("{}{kind}", entry["path"].as_str().unwrap())
        };
        tree.as_array().unwrap().iter().map(shown).collect()
    }

    // A listing names each file and folder once, with paths from the root.
    #[test]
    fn a_tree_has_paths_from_the_root() {
        let files = [file("a.json"), file("data/x/1.parquet"), file("data/x/2.parquet"), file("data/y.txt")];
        assert_eq!(paths(&tree(&files, "", false)), ["a.json", "data/"]);
        assert_eq!(
            paths(&tree(&files, "", true)),
            ["a.json", "data/x/1.parquet", "data/x/2.parquet", "data/y.txt", "data/", "data/x/"]
        );
        assert_eq!(paths(&tree(&files[1..], "data/", false)), ["data/y.txt", "data/x/"]);
    }
}
