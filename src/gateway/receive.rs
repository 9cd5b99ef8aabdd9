//! Receives the body of an upload, within bounds, until its access ends.

use std::pin::pin;

use futures_util::StreamExt;
use http::HeaderMap;
use s3s::{S3Error, S3ErrorCode, S3Result, dto::StreamingBlob};

use super::{
    body_pace::TooSlow,
    checksum::{Checksums, Compared},
    live_access::LiveAccess,
    refusal::{custom, failed, refused},
    upload::Upload,
    usage::{Direction, Transfer},
};
use crate::limits::GATEWAY_PUT_BYTES_MAX;

/// The facts about the body from the headers of the request.
pub(super) struct Announced {
    pub(super) length: Option<i64>,
    pub(super) checksums: Checksums,
}

/// Writes a body into an upload, and compares its checksums. Stops if the access ends.
pub(super) async fn receive(
    body: Option<StreamingBlob>,
    announced: Announced,
    upload: &mut Upload,
    access: &LiveAccess,
) -> S3Result<Compared> {
    let Announced { length, mut checksums } = announced;
    let length = length.map(|length| u64::try_from(length).unwrap_or(u64::MAX));
    if length.is_some_and(|length| length > GATEWAY_PUT_BYTES_MAX) {
        return Err(too_large());
    }
    let mut transfer = Transfer::begin(Direction::Write, access);
    let mut ended = pin!(access.ended());
    let mut received = 0u64;
    let mut body = body;
    loop {
        let next = async {
            match &mut body {
                Some(body) => body.next().await,
                None => None,
            }
        };
        let frame = tokio::select! {
            frame = next => frame,
            refusal = &mut ended => {
                transfer.cut(&refusal);
                return Err(refused(&refusal));
            }
        };
        if let Err(refusal) = access.check() {
            transfer.cut(&refusal);
            return Err(refused(&refusal));
        }
        let Some(frame) = frame else { break };
        let bytes = frame.map_err(|error| broken(&*error))?;
        received = received.saturating_add(bytes.len() as u64);
        if received > GATEWAY_PUT_BYTES_MAX {
            return Err(too_large());
        }
        // This is checked for each chunk, because the memory for an upload was reserved by its length.
        if length.is_some_and(|length| received > length) {
            return Err(other_length());
        }
        transfer.add(bytes.len() as u64);
        checksums.update(&bytes);
        upload.write(bytes).await?;
    }
    if length.is_some_and(|length| length != received) {
        return Err(other_length());
    }
    let compared = checksums.compare()?;
    transfer.finish();
    Ok(compared)
}

/// Returns the length of a body without its framing, from the headers. It is required for a body in signed chunks,
/// because the end of such a body does not show whether a part is missing.
pub(super) fn announced_length(headers: &HeaderMap, content_length: Option<i64>) -> S3Result<Option<i64>> {
    let Some(decoded) = headers.get("x-amz-decoded-content-length") else {
        let digest = headers.get("x-amz-content-sha256").map(http::HeaderValue::as_bytes);
        if digest.is_some_and(|digest| digest.starts_with(b"STREAMING-")) {
            let text = "a body in chunks needs x-amz-decoded-content-length";
            return Err(failed(S3ErrorCode::MissingContentLength, text));
        }
        return Ok(content_length);
    };
    let length = decoded.to_str().ok().and_then(|text| text.parse::<i64>().ok());
    match length.filter(|length| *length >= 0) {
        Some(length) => Ok(Some(length)),
        None => Err(failed(S3ErrorCode::InvalidArgument, "x-amz-decoded-content-length is not a length")),
    }
}

fn too_large() -> S3Error {
    let text = format!("one upload is at most {GATEWAY_PUT_BYTES_MAX} bytes: send larger objects in parts");
    failed(S3ErrorCode::EntityTooLarge, text)
}

fn other_length() -> S3Error {
    failed(S3ErrorCode::IncompleteBody, "the body does not have the length that was announced")
}

/// Converts an error of the body. s3s checks signatures and digests while the body is read, and reports faults in the
/// texts of its errors.
fn broken(error: &(dyn std::error::Error + Send + Sync)) -> S3Error {
    let text = error.to_string();
    if text.contains("SignatureMismatch") {
        failed(S3ErrorCode::SignatureDoesNotMatch, "the signature of a chunk of the body is wrong")
    } else if text.contains("Sha256Mismatch") {
        custom("XAmzContentSHA256Mismatch", "the body does not have the digest of x-amz-content-sha256")
    } else if text.contains(&TooSlow.to_string()) {
        failed(S3ErrorCode::RequestTimeout, TooSlow.to_string())
    } else {
        failed(S3ErrorCode::IncompleteBody, "the body is incomplete or malformed")
    }
}
