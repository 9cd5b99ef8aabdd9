//! Writes and removes objects: `PutObject`, `CopyObject`, `DeleteObject`, `DeleteObjects`.

use futures_util::{StreamExt, TryStreamExt};
use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectInput,
        DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, Error, PutObjectInput,
        PutObjectOutput, StreamingBlob,
    },
};

use super::{
    caller::{GatewayCaller, OpenedObject, live, without},
    checksum::Checksums,
    conditions::Conditions,
    live_access::LiveAccess,
    read::{check_version, e_tag, signed},
    receive::{Announced, announced_length, receive},
    refusal::{failed, not_implemented},
    store::{FinalCheck, StoreError},
    upload::Upload,
    view::Need,
};
use crate::limits::GATEWAY_DELETE_MAX;

pub(super) async fn put_object(request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let S3Request { input, headers, trailing_headers, .. } = request;
    check_fields(&input)?;
    let opened = caller.open(&input.bucket, &input.key, Need::Write)?;
    let announced = Announced {
        length: announced_length(&headers, input.content_length)?,
        checksums: Checksums::announced(&headers, trailing_headers, input.content_md5.as_deref())?,
    };
    let found = &opened.found;
    if found.path.key.is_folder() {
        if has_bytes(input.body).await {
            return Err(folder_with_bytes());
        }
        let info = found.store.make_folder(&found.path, final_check(&opened.access)).await?;
        return Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(e_tag(&info)),
            ..PutObjectOutput::default()
        }));
    }
    let conditions =
        Conditions { if_match: input.if_match, if_none_match: input.if_none_match, ..Conditions::default() };
    let length = announced.length.and_then(|length| u64::try_from(length).ok());
    let mut upload = found.store.begin(&found.path, &caller.upload_memory(), length).await?;
    let compared = receive(input.body, announced, &mut upload, &opened.access).await?;
    let info = upload.publish(&conditions, final_check(&opened.access)).await?;
    Ok(S3Response::new(PutObjectOutput {
        e_tag: Some(e_tag(&info)),
        size: Some(signed(info.size)),
        checksum_crc32: compared.crc32,
        checksum_crc32c: compared.crc32c,
        checksum_crc64nvme: compared.crc64nvme,
        checksum_sha1: compared.sha1,
        checksum_sha256: compared.sha256,
        ..PutObjectOutput::default()
    }))
}

/// Whether a body has bytes.
async fn has_bytes(body: Option<StreamingBlob>) -> bool {
    let Some(mut body) = body else { return false };
    loop {
        match body.next().await {
            None => return false,
            Some(Ok(bytes)) if bytes.is_empty() => {}
            Some(_) => return true,
        }
    }
}

/// Makes the error for an upload to a key that ends in a slash.
pub(super) fn folder_with_bytes() -> S3Error {
    failed(S3ErrorCode::InvalidArgument, "a key that ends in a slash names a folder, which has no bytes")
}

/// Refuses fields that would change how an object is protected. The gateway does not read these fields.
fn check_fields(input: &PutObjectInput) -> S3Result<()> {
    without(input.sse_customer_algorithm.is_some(), "encryption by the client's key")?;
    without(
        input.object_lock_mode.is_some() || input.object_lock_legal_hold_status.is_some(),
        "object locks",
    )?;
    without(input.write_offset_bytes.is_some(), "appending (x-amz-write-offset-bytes)")?;
    without(input.website_redirect_location.is_some(), "x-amz-website-redirect-location")?;
    without(input.tagging.as_deref().is_some_and(|tags| !tags.is_empty()), "tags")?;
    check_acl(input.acl.as_ref().map(s3s::dto::ObjectCannedACL::as_str))
}

/// Accepts only access control lists that change nothing, because leases decide who may read an object.
pub(super) fn check_acl(acl: Option<&str>) -> S3Result<()> {
    let is_private =
        matches!(acl, None | Some("private" | "bucket-owner-full-control" | "bucket-owner-read"));
    without(!is_private, "this access control list (x-amz-acl)")
}

/// Begins a change, and returns the check to make just before the change appears. The change is under way until the returned
/// check is dropped.
pub(super) fn final_check(access: &LiveAccess) -> FinalCheck {
    let (change, access) = (access.begin_change(), access.clone());
    Box::new(move || {
        access.check()?;
        change.check()
    })
}

pub(super) async fn copy_object(
    request: S3Request<CopyObjectInput>,
) -> S3Result<S3Response<CopyObjectOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    // s3s does not parse these two headers for a copy.
    let headers = &request.headers;
    let is_conditional = headers.contains_key("if-match") || headers.contains_key("if-none-match");
    without(is_conditional, "conditions on the target of a copy (If-Match, If-None-Match)")?;
    let input = request.input;
    check_acl(input.acl.as_ref().map(s3s::dto::ObjectCannedACL::as_str))?;
    without(input.sse_customer_algorithm.is_some(), "encryption by the client's key")?;
    let source = open_source(&caller, &input.copy_source)?;
    let target = caller.open(&input.bucket, &input.key, Need::Write)?;
    let conditions = Conditions::of_read(
        [input.copy_source_if_match, input.copy_source_if_none_match],
        [input.copy_source_if_modified_since, input.copy_source_if_unmodified_since],
    );
    let found = &target.found;
    if found.path.key.is_folder() {
        return Err(folder_with_bytes());
    }
    let mut upload = found.store.begin(&found.path, &caller.upload_memory(), None).await?;
    copy(&source, None, &conditions, &mut upload, &target.access).await?;
    let info = upload.publish(&Conditions::default(), final_check(&target.access)).await?;
    Ok(S3Response::new(CopyObjectOutput {
        copy_object_result: Some(CopyObjectResult {
            e_tag: Some(e_tag(&info)),
            last_modified: Some(info.modified.into()),
            ..CopyObjectResult::default()
        }),
        ..CopyObjectOutput::default()
    }))
}

/// Authorizes the source of a copy like all other reads.
pub(super) fn open_source(caller: &GatewayCaller, source: &CopySource) -> S3Result<OpenedObject> {
    match source {
        CopySource::Bucket { bucket, key, version_id } => {
            check_version(version_id.as_deref())?;
            caller.open(bucket, key, Need::Read)
        }
        CopySource::AccessPoint { .. } | CopySource::Outpost { .. } => {
            Err(not_implemented("access points as the source of a copy"))
        }
    }
}

/// Copies the bytes of an object, or of a range of it, into an upload. Stops when one of the two accesses ends.
pub(super) async fn copy(
    source: &OpenedObject,
    range: Option<s3s::dto::Range>,
    conditions: &Conditions,
    upload: &mut Upload,
    target: &LiveAccess,
) -> S3Result<()> {
    let found = &source.found;
    let reading = found.read(range, conditions).await.map_err(|error| match error {
        StoreError::NotModified => StoreError::Precondition,
        error => error,
    })?;
    let (mut chunks, mut left) = (reading.chunks, reading.range.end.saturating_sub(reading.range.start));
    while let Some(chunk) = chunks.try_next().await? {
        live(&source.access)?;
        live(target)?;
        left = left.saturating_sub(chunk.len() as u64);
        upload.write(chunk).await?;
    }
    if left > 0 { Err(StoreError::Changed.into()) } else { Ok(()) }
}

pub(super) async fn delete_object(
    request: S3Request<DeleteObjectInput>,
) -> S3Result<S3Response<DeleteObjectOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    check_version(input.version_id.as_deref())?;
    let is_conditional = input.if_match.is_some()
        || input.if_match_size.is_some()
        || input.if_match_last_modified_time.is_some();
    without(is_conditional, "conditions of a delete")?;
    delete(&caller, &input.bucket, &input.key).await?;
    Ok(S3Response::with_status(DeleteObjectOutput::default(), http::StatusCode::NO_CONTENT))
}

async fn delete(caller: &GatewayCaller, bucket: &str, key: &str) -> S3Result<()> {
    let opened = caller.open(bucket, key, Need::Delete)?;
    Ok(opened.found.store.delete(&opened.found.path, final_check(&opened.access)).await?)
}

/// Authorizes each key separately. If one key is refused, the others are still deleted.
pub(super) async fn delete_objects(
    request: S3Request<DeleteObjectsInput>,
) -> S3Result<S3Response<DeleteObjectsOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let is_quiet = input.delete.quiet.unwrap_or(false);
    if input.delete.objects.len() > GATEWAY_DELETE_MAX {
        let text = format!("one request deletes at most {GATEWAY_DELETE_MAX} objects");
        return Err(failed(S3ErrorCode::MalformedXML, text));
    }
    let (mut deleted, mut errors) = (Vec::new(), Vec::new());
    for object in input.delete.objects {
        let is_conditional =
            object.e_tag.is_some() || object.last_modified_time.is_some() || object.size.is_some();
        let checked = check_version(object.version_id.as_deref())
            .and_then(|()| without(is_conditional, "conditions of a delete"));
        let outcome = match checked {
            Ok(()) => delete(&caller, &input.bucket, &object.key).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) if is_quiet => {}
            Ok(()) => deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() }),
            Err(error) => errors.push(Error {
                code: Some(error.code().as_str().to_owned()),
                key: Some(object.key),
                message: error.message().map(str::to_owned),
                version_id: None,
            }),
        }
    }
    Ok(S3Response::new(DeleteObjectsOutput {
        deleted: Some(deleted),
        errors: Some(errors),
        ..DeleteObjectsOutput::default()
    }))
}
