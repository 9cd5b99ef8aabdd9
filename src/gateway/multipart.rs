//! Uploads in parts: `CreateMultipartUpload`, `UploadPart`, `UploadPartCopy`, `CompleteMultipartUpload`,
//! `AbortMultipartUpload`, `ListParts`, `ListMultipartUploads`.

use s3s::{
    S3Error, S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CompletedPart, CopyPartResult, CreateMultipartUploadInput,
        CreateMultipartUploadOutput, ETag, ListMultipartUploadsInput, ListMultipartUploadsOutput,
        ListPartsInput, ListPartsOutput, MultipartUpload, Part, Range, Timestamp, UploadPartCopyInput,
        UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
    },
};

use super::{
    caller::{GatewayCaller, live, without},
    checksum::{Checksums, Compared},
    conditions::Conditions,
    open_uploads::{OpenUpload, OpenUploads},
    read::signed,
    receive::{Announced, announced_length, receive},
    refusal::failed,
    upload::StoredPart,
    view::Need,
    write::{check_acl, copy, final_check, folder_with_bytes, open_source},
};
use crate::limits::{GATEWAY_LIST_MAX, GATEWAY_PART_BYTES_MIN, GATEWAY_PARTS_MAX};

pub(super) async fn create(
    uploads: &OpenUploads,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    without(input.sse_customer_algorithm.is_some(), "encryption by the client's key")?;
    without(
        input.object_lock_mode.is_some() || input.object_lock_legal_hold_status.is_some(),
        "object locks",
    )?;
    without(input.tagging.as_deref().is_some_and(|tags| !tags.is_empty()), "tags")?;
    check_acl(input.acl.as_ref().map(s3s::dto::ObjectCannedACL::as_str))?;
    let opened = caller.open(&input.bucket, &input.key, Need::Write)?;
    if opened.found.path.key.is_folder() {
        return Err(folder_with_bytes());
    }
    uploads.check_room(&opened)?;
    let parts = opened.found.store.begin_parts(&opened.found.path).await?;
    let upload = uploads.add(&caller, &opened, [&input.bucket, &input.key], parts)?;
    Ok(S3Response::new(CreateMultipartUploadOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(upload.id.clone()),
        checksum_algorithm: input.checksum_algorithm,
        checksum_type: input.checksum_type,
        ..CreateMultipartUploadOutput::default()
    }))
}

pub(super) async fn upload_part(
    uploads: &OpenUploads,
    request: S3Request<UploadPartInput>,
) -> S3Result<S3Response<UploadPartOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let S3Request { input, headers, trailing_headers, .. } = request;
    let number = part_number(input.part_number)?;
    let opened = caller.open(&input.bucket, &input.key, Need::Write)?;
    let open = uploads.find(&caller, &opened, &input.upload_id)?;
    let length = announced_length(&headers, input.content_length)?;
    let announced = Announced {
        length,
        checksums: Checksums::announced(&headers, trailing_headers, input.content_md5.as_deref())?,
    };
    let length = length.and_then(|length| u64::try_from(length).ok());
    let mut upload = open.parts.begin_part(&caller.upload_memory(), length).await?;
    let compared = receive(input.body, announced, &mut upload, &opened.access).await?;
    open.check_open()?;
    let stored = open.parts.store_part(number, upload).await?;
    let e_tag = stored.e_tag.clone();
    uploads.note_part(&open, number, (stored, compared.clone()))?;
    Ok(S3Response::new(UploadPartOutput {
        e_tag: Some(ETag::Strong(e_tag)),
        checksum_crc32: compared.crc32,
        checksum_crc32c: compared.crc32c,
        checksum_crc64nvme: compared.crc64nvme,
        checksum_sha1: compared.sha1,
        checksum_sha256: compared.sha256,
        ..UploadPartOutput::default()
    }))
}

pub(super) async fn upload_part_copy(
    uploads: &OpenUploads,
    request: S3Request<UploadPartCopyInput>,
) -> S3Result<S3Response<UploadPartCopyOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let number = part_number(input.part_number)?;
    let source = open_source(&caller, &input.copy_source)?;
    let target = caller.open(&input.bucket, &input.key, Need::Write)?;
    let open = uploads.find(&caller, &target, &input.upload_id)?;
    let range = input.copy_source_range.as_deref().map(Range::parse).transpose();
    let range = range.map_err(|_| {
        failed(S3ErrorCode::InvalidArgument, "x-amz-copy-source-range is not bytes=FIRST-LAST")
    })?;
    let conditions = Conditions::of_read(
        [input.copy_source_if_match, input.copy_source_if_none_match],
        [input.copy_source_if_modified_since, input.copy_source_if_unmodified_since],
    );
    let mut upload = open.parts.begin_part(&caller.upload_memory(), None).await?;
    copy(&source, range, &conditions, &mut upload, &target.access).await?;
    open.check_open()?;
    let stored = open.parts.store_part(number, upload).await?;
    let e_tag = stored.e_tag.clone();
    uploads.note_part(&open, number, (stored, Compared::default()))?;
    Ok(S3Response::new(UploadPartCopyOutput {
        copy_part_result: Some(CopyPartResult {
            e_tag: Some(ETag::Strong(e_tag)),
            last_modified: Some(now(&caller)),
            ..CopyPartResult::default()
        }),
        ..UploadPartCopyOutput::default()
    }))
}

pub(super) async fn complete(
    uploads: &OpenUploads,
    request: S3Request<CompleteMultipartUploadInput>,
) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let has_checksum = input.checksum_crc32.is_some()
        || input.checksum_crc32c.is_some()
        || input.checksum_crc64nvme.is_some()
        || input.checksum_sha1.is_some()
        || input.checksum_sha256.is_some();
    without(has_checksum, "a checksum of the whole object (x-amz-checksum-*) when parts are joined")?;
    let opened = caller.open(&input.bucket, &input.key, Need::Write)?;
    let answer = |e_tag: String| {
        S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket.clone()),
            key: Some(input.key.clone()),
            e_tag: Some(ETag::Strong(e_tag)),
            ..CompleteMultipartUploadOutput::default()
        })
    };
    let open = match uploads.find(&caller, &opened, &input.upload_id) {
        Ok(open) => open,
        Err(absent) => match uploads.completed_before(&caller, &opened, &input.upload_id) {
            Some(e_tag) => return Ok(answer(e_tag)),
            None => return Err(absent),
        },
    };
    let turn = open.begin_end()?;
    let named = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
    let wanted = wanted_parts(&open, &named, input.mpu_object_size)?;
    let conditions =
        Conditions { if_match: input.if_match, if_none_match: input.if_none_match, ..Conditions::default() };
    // The completion goes on if the client disconnects, so that the client's next attempt gets the outcome.
    let uploads = uploads.clone();
    let ending = tokio::spawn(async move {
        // The caller's slot and the right to complete the upload are kept until the end.
        let (_caller, _turn) = (caller, turn);
        let look = final_check(&opened.access);
        let info = open.parts.complete(&wanted, &conditions, look).await?;
        uploads.completed(&open, info.e_tag.clone());
        if let Err(error) = open.parts.remove().await {
            tracing::error!(%error, "the rest of a completed upload could not be removed");
        }
        Ok::<_, S3Error>(info.e_tag)
    });
    let stopped = |_| failed(S3ErrorCode::InternalError, "the gateway stopped while it joined the parts");
    Ok(answer(ending.await.map_err(stopped)??))
}

/// Checks the list of parts with which a client completes an upload. Returns the number and the stored facts of each
/// part.
fn wanted_parts(
    open: &OpenUpload,
    named: &[CompletedPart],
    size: Option<i64>,
) -> S3Result<Vec<(u16, StoredPart)>> {
    if named.is_empty() || named.len() > usize::from(GATEWAY_PARTS_MAX) {
        return Err(failed(
            S3ErrorCode::MalformedXML,
            "the list has no part, or more than an upload can have",
        ));
    }
    let stored = open.stored();
    let numbers = named
        .iter()
        .map(|part| part_number(part.part_number.unwrap_or(0)))
        .collect::<S3Result<Vec<u16>>>()?;
    if !numbers.is_sorted_by(|a, b| a < b) {
        return Err(failed(S3ErrorCode::InvalidPartOrder, "the parts are not in ascending order"));
    }
    let mut wanted: Vec<(u16, StoredPart)> = Vec::with_capacity(named.len());
    for (at, (part, number)) in named.iter().zip(numbers).enumerate() {
        let known = stored.get(&number).filter(|(known, compared)| {
            part.e_tag.as_ref().is_some_and(|tag| tag.value() == known.e_tag) && !compared.differs_from(part)
        });
        let Some((known, _)) = known else {
            let text = format!("part {number} was not stored, or was stored with another ETag or checksum");
            return Err(failed(S3ErrorCode::InvalidPart, text));
        };
        let is_last = at.saturating_add(1) == named.len();
        if !is_last && known.size < GATEWAY_PART_BYTES_MIN {
            let text = format!(
                "part {number} has {} bytes: all parts but the last have at least {GATEWAY_PART_BYTES_MIN}",
                known.size
            );
            return Err(failed(S3ErrorCode::EntityTooSmall, text));
        }
        wanted.push((number, known.clone()));
    }
    let total = wanted.iter().fold(0u64, |total, (_, part)| total.saturating_add(part.size));
    if size.is_some_and(|size| size != signed(total)) {
        return Err(failed(
            S3ErrorCode::InvalidRequest,
            "x-amz-mp-object-size is not the total size of the parts",
        ));
    }
    Ok(wanted)
}

fn part_number(number: i32) -> S3Result<u16> {
    let number = u16::try_from(number).ok().filter(|number| (1..=GATEWAY_PARTS_MAX).contains(number));
    number.ok_or_else(|| {
        failed(S3ErrorCode::InvalidArgument, format!("a part number is 1 to {GATEWAY_PARTS_MAX}"))
    })
}

pub(super) async fn abort(
    uploads: &OpenUploads,
    request: S3Request<AbortMultipartUploadInput>,
) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let opened = caller.open(&input.bucket, &input.key, Need::Write)?;
    let open = uploads.find(&caller, &opened, &input.upload_id)?;
    let _turn = open.begin_end()?;
    if let Some(upload) = uploads.take(&open.id) {
        upload.parts.remove().await?;
    }
    Ok(S3Response::with_status(AbortMultipartUploadOutput::default(), http::StatusCode::NO_CONTENT))
}

pub(super) fn list_parts(
    uploads: &OpenUploads,
    request: S3Request<ListPartsInput>,
) -> S3Result<S3Response<ListPartsOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let opened = caller.open(&input.bucket, &input.key, Need::Write)?;
    live(&opened.access)?;
    let open = uploads.find(&caller, &opened, &input.upload_id)?;
    let after = u16::try_from(input.part_number_marker.unwrap_or(0)).unwrap_or(0);
    let max = usize::try_from(input.max_parts.unwrap_or(i32::MAX)).unwrap_or(0).min(GATEWAY_LIST_MAX);
    let stored = open.stored();
    let mut later = stored.range(after.saturating_add(1)..);
    let parts: Vec<Part> = later
        .by_ref()
        .take(max)
        .map(|(number, (part, compared))| Part {
            part_number: Some(i32::from(*number)),
            size: Some(signed(part.size)),
            e_tag: Some(ETag::Strong(part.e_tag.clone())),
            checksum_crc32: compared.crc32.clone(),
            checksum_crc32c: compared.crc32c.clone(),
            checksum_crc64nvme: compared.crc64nvme.clone(),
            checksum_sha1: compared.sha1.clone(),
            checksum_sha256: compared.sha256.clone(),
            ..Part::default()
        })
        .collect();
    let is_truncated = later.next().is_some();
    Ok(S3Response::new(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        max_parts: Some(i32::try_from(max).unwrap_or(i32::MAX)),
        part_number_marker: input.part_number_marker,
        next_part_number_marker: parts.last().and_then(|part| part.part_number),
        is_truncated: Some(is_truncated),
        parts: Some(parts),
        ..ListPartsOutput::default()
    }))
}

/// Lists only the caller's own uploads.
pub(super) fn list_uploads(
    uploads: &OpenUploads,
    request: S3Request<ListMultipartUploadsInput>,
) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    caller.sees_bucket(&input.bucket)?;
    let prefix = input.prefix.clone().unwrap_or_default();
    let after =
        (input.key_marker.clone().unwrap_or_default(), input.upload_id_marker.clone().unwrap_or_default());
    let max = usize::try_from(input.max_uploads.unwrap_or(i32::MAX)).unwrap_or(0).min(GATEWAY_LIST_MAX);
    let own = uploads.of_holder(&caller.holder);
    let mut matching = own.iter().filter(|upload| {
        let is_after = (&upload.key, &upload.id) > (&after.0, &after.1);
        upload.bucket == input.bucket
            && upload.key.starts_with(&prefix)
            && is_after
            && caller.open(&upload.bucket, &upload.key, Need::Write).is_ok()
    });
    let page: Vec<MultipartUpload> = matching
        .by_ref()
        .take(max)
        .map(|upload| MultipartUpload {
            key: Some(upload.key.clone()),
            upload_id: Some(upload.id.clone()),
            initiated: Some(time_of(upload.began)),
            ..MultipartUpload::default()
        })
        .collect();
    let is_truncated = matching.next().is_some();
    Ok(S3Response::new(ListMultipartUploadsOutput {
        bucket: Some(input.bucket),
        prefix: input.prefix,
        key_marker: input.key_marker,
        upload_id_marker: input.upload_id_marker,
        next_key_marker: page.last().filter(|_| is_truncated).and_then(|upload| upload.key.clone()),
        next_upload_id_marker: page
            .last()
            .filter(|_| is_truncated)
            .and_then(|upload| upload.upload_id.clone()),
        is_truncated: Some(is_truncated),
        max_uploads: Some(i32::try_from(max).unwrap_or(i32::MAX)),
        uploads: Some(page),
        ..ListMultipartUploadsOutput::default()
    }))
}

fn now(caller: &GatewayCaller) -> Timestamp {
    time_of(caller.sessions.clock().now().wall)
}

fn time_of(at: crate::clock::Wall) -> Timestamp {
    std::time::UNIX_EPOCH
        .checked_add(std::time::Duration::from_millis(at.0))
        .unwrap_or(std::time::UNIX_EPOCH)
        .into()
}
