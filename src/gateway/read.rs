//! Reads objects: `GetObject`, `HeadObject`.

use s3s::{
    S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{self, ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, StreamingBlob},
};

use super::{
    caller::{GatewayCaller, live, without},
    conditions::Conditions,
    download::Download,
    refusal::failed,
    store::ObjectInfo,
    view::Need,
};

/// The type of all objects, because stores do not keep types.
const CONTENT_TYPE: &str = "binary/octet-stream";
/// Revoked data must not stay in a cache.
const NO_STORE: &str = "no-store";

pub(super) async fn get_object(request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    without(input.sse_customer_algorithm.is_some(), "encryption by the client's key")?;
    let range = part_range(input.part_number, input.range)?;
    let opened = caller.open(&input.bucket, &input.key, Need::Read)?;
    let conditions = Conditions::of_read(
        [input.if_match, input.if_none_match],
        [input.if_modified_since, input.if_unmodified_since],
    );
    let found = &opened.found;
    let reading = found.read(range, &conditions).await?;
    live(&opened.access)?;
    let bytes = reading.range.end.saturating_sub(reading.range.start);
    let content_range = range.map(|_| {
        format!("bytes {}-{}/{}", reading.range.start, reading.range.end.saturating_sub(1), reading.info.size)
    });
    let body = Download::new(reading.chunks, bytes, opened.access, &caller);
    Ok(S3Response::new(GetObjectOutput {
        body: Some(StreamingBlob::new(body)),
        accept_ranges: Some("bytes".to_owned()),
        cache_control: Some(NO_STORE.to_owned()),
        content_length: Some(signed(bytes)),
        content_range,
        content_type: Some(CONTENT_TYPE.to_owned()),
        e_tag: Some(e_tag(&reading.info)),
        last_modified: Some(reading.info.modified.into()),
        ..GetObjectOutput::default()
    }))
}

pub(super) async fn head_object(
    request: S3Request<HeadObjectInput>,
) -> S3Result<S3Response<HeadObjectOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    without(input.sse_customer_algorithm.is_some(), "encryption by the client's key")?;
    let opened = caller.open(&input.bucket, &input.key, Need::Read)?;
    let conditions = Conditions::of_read(
        [input.if_match, input.if_none_match],
        [input.if_modified_since, input.if_unmodified_since],
    );
    let found = &opened.found;
    let info = found.head().await?;
    conditions.check_read(&info)?;
    live(&opened.access)?;
    Ok(S3Response::new(HeadObjectOutput {
        accept_ranges: Some("bytes".to_owned()),
        cache_control: Some(NO_STORE.to_owned()),
        content_length: Some(signed(info.size)),
        content_type: Some(CONTENT_TYPE.to_owned()),
        e_tag: Some(e_tag(&info)),
        last_modified: Some(info.modified.into()),
        ..HeadObjectOutput::default()
    }))
}

/// Accepts only the version `null`, because stores keep only one version.
pub(super) fn check_version(version: Option<&str>) -> S3Result<()> {
    without(version.is_some_and(|version| version != "null"), "versions of objects")
}

/// Returns the range of a request for a part. For readers, an object has only one part.
fn part_range(part: Option<i32>, range: Option<dto::Range>) -> S3Result<Option<dto::Range>> {
    match (part, range) {
        (None, range) => Ok(range),
        (Some(1), None) => Ok(Some(dto::Range::Int { first: 0, last: None })),
        (Some(_), Some(_)) => Err(failed(
            S3ErrorCode::InvalidRequest,
            "a request has either a range or a part number, not both",
        )),
        (Some(_), None) => {
            Err(failed(S3ErrorCode::InvalidRange, "an object has one part: ask for part 1, or for a range"))
        }
    }
}

pub(super) fn e_tag(info: &ObjectInfo) -> ETag {
    ETag::Strong(info.e_tag.clone())
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
