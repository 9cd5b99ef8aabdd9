//! Listing: `ListBuckets`, `HeadBucket`, `GetBucketLocation`, `ListObjects`, `ListObjectsV2`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use s3s::{
    S3ErrorCode, S3Request, S3Response, S3Result,
    dto::{
        Bucket, CommonPrefix, EncodingType, GetBucketLocationInput, GetBucketLocationOutput,
        GetBucketVersioningInput, GetBucketVersioningOutput, HeadBucketInput, HeadBucketOutput,
        ListBucketsInput, ListBucketsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
        ListObjectsV2Output, Object, ObjectStorageClass, Timestamp,
    },
};

use super::{
    caller::{GatewayCaller, live},
    list_work::{ListWork, Listing},
    listing::{KeyOutcome, ListPage, ListQuery, encode_path},
    read::{e_tag, signed},
    refusal::{failed, unusable},
    store::{Entry, ObjectInfo},
    view::{Mount, UnusableKey},
};
use crate::limits::GATEWAY_LIST_MAX;

/// The region that clients get. They sign with it. It has no other use.
pub(super) const REGION: &str = "us-east-1";

pub(super) fn list_buckets(request: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let prefix = request.input.prefix.unwrap_or_default();
    let made = Timestamp::from(std::time::UNIX_EPOCH);
    let buckets = caller.buckets().into_iter().filter(|name| name.starts_with(&prefix)).map(|name| Bucket {
        name: Some(name),
        creation_date: Some(made.clone()),
        ..Bucket::default()
    });
    Ok(S3Response::new(ListBucketsOutput {
        buckets: Some(buckets.collect()),
        ..ListBucketsOutput::default()
    }))
}

pub(super) fn head_bucket(request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    caller.sees_bucket(&request.input.bucket)?;
    Ok(S3Response::new(HeadBucketOutput {
        bucket_region: Some(REGION.to_owned()),
        ..HeadBucketOutput::default()
    }))
}

pub(super) fn get_bucket_location(
    request: S3Request<GetBucketLocationInput>,
) -> S3Result<S3Response<GetBucketLocationOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    caller.sees_bucket(&request.input.bucket)?;
    // S3 leaves out the constraint for its first region.
    Ok(S3Response::new(GetBucketLocationOutput::default()))
}

/// Answers without a status, which means that versioning was never enabled.
pub(super) fn get_bucket_versioning(
    request: S3Request<GetBucketVersioningInput>,
) -> S3Result<S3Response<GetBucketVersioningOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    caller.sees_bucket(&request.input.bucket)?;
    Ok(S3Response::new(GetBucketVersioningOutput::default()))
}

pub(super) async fn list_objects(
    request: S3Request<ListObjectsInput>,
) -> S3Result<S3Response<ListObjectsOutput>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let after = input.marker.clone().unwrap_or_default();
    let query = query(input.prefix.as_deref(), input.delimiter.as_deref(), after, input.max_keys)?;
    let max = query.max;
    let page = list_page(&caller, &input.bucket, query).await?;
    let next = page.next_after().map(|next| encoding.of_key(next));
    let (contents, common_prefixes) = encoding.of_page(&page);
    Ok(S3Response::new(ListObjectsOutput {
        name: Some(input.bucket),
        prefix: Some(encoding.of_key(input.prefix.as_deref().unwrap_or_default())),
        marker: Some(encoding.of_key(input.marker.as_deref().unwrap_or_default())),
        max_keys: Some(i32::try_from(max).unwrap_or(i32::MAX)),
        is_truncated: Some(page.is_truncated),
        next_marker: next,
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        delimiter: input.delimiter.filter(|d| !d.is_empty()).map(|d| encoding.of_key(&d)),
        encoding_type: input.encoding_type,
        ..ListObjectsOutput::default()
    }))
}

pub(super) async fn list_objects_v2(
    request: S3Request<ListObjectsV2Input>,
) -> S3Result<S3Response<ListObjectsV2Output>> {
    let caller = GatewayCaller::of(&request.extensions)?;
    let input = request.input;
    let encoding = Encoding::of(input.encoding_type.as_ref())?;
    let after = match &input.continuation_token {
        Some(token) => read_token(token)?,
        None => input.start_after.clone().unwrap_or_default(),
    };
    let query = query(input.prefix.as_deref(), input.delimiter.as_deref(), after, input.max_keys)?;
    let max = query.max;
    let page = list_page(&caller, &input.bucket, query).await?;
    let (contents, common_prefixes) = encoding.of_page(&page);
    Ok(S3Response::new(ListObjectsV2Output {
        name: Some(input.bucket),
        prefix: Some(encoding.of_key(input.prefix.as_deref().unwrap_or_default())),
        max_keys: Some(i32::try_from(max).unwrap_or(i32::MAX)),
        key_count: Some(i32::try_from(page.len()).unwrap_or(i32::MAX)),
        continuation_token: input.continuation_token,
        next_continuation_token: page.next_after().map(|next| URL_SAFE_NO_PAD.encode(next)),
        is_truncated: Some(page.is_truncated),
        contents: Some(contents),
        common_prefixes: Some(common_prefixes),
        delimiter: input.delimiter.filter(|d| !d.is_empty()).map(|d| encoding.of_key(&d)),
        encoding_type: input.encoding_type,
        start_after: input.start_after.map(|after| encoding.of_key(&after)),
        ..ListObjectsV2Output::default()
    }))
}

/// Reads a continuation token: the last name of the previous page.
fn read_token(token: &str) -> S3Result<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
        failed(S3ErrorCode::InvalidArgument, "the continuation token is not from this gateway")
    })
}

fn query(
    prefix: Option<&str>,
    delimiter: Option<&str>,
    after: String,
    max_keys: Option<i32>,
) -> S3Result<ListQuery> {
    let max = match max_keys {
        None => GATEWAY_LIST_MAX,
        Some(max) => usize::try_from(max)
            .map_err(|_| failed(S3ErrorCode::InvalidArgument, "max-keys is below zero"))?
            .min(GATEWAY_LIST_MAX),
    };
    Ok(ListQuery {
        prefix: prefix.unwrap_or_default().to_owned(),
        delimiter: delimiter.filter(|delimiter| !delimiter.is_empty()).map(str::to_owned),
        after,
        max,
    })
}

/// Whether keys are percent-encoded in the answer.
#[derive(Clone, Copy)]
enum Encoding {
    None,
    Url,
}

impl Encoding {
    fn of(asked: Option<&EncodingType>) -> S3Result<Self> {
        match asked.map(EncodingType::as_str) {
            None | Some("") => Ok(Encoding::None),
            Some(EncodingType::URL) => Ok(Encoding::Url),
            Some(_) => Err(failed(S3ErrorCode::InvalidArgument, "encoding-type can only be `url`")),
        }
    }

    fn of_key(self, key: &str) -> String {
        match self {
            Encoding::None => key.to_owned(),
            Encoding::Url => encode_path(key),
        }
    }

    fn of_page(self, page: &ListPage<ObjectInfo>) -> (Vec<Object>, Vec<CommonPrefix>) {
        let objects = page.objects.iter().map(|(key, info)| Object {
            key: Some(self.of_key(key)),
            e_tag: Some(e_tag(info)),
            size: Some(signed(info.size)),
            last_modified: Some(info.modified.into()),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..Object::default()
        });
        let prefixes = page.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(self.of_key(prefix)) });
        (objects.collect(), prefixes.collect())
    }
}

/// Lists the keys of a bucket that the caller may read, mount by mount. The mounts are in the order of their prefixes,
/// so the keys are in order too.
async fn list_page(caller: &GatewayCaller, bucket: &str, query: ListQuery) -> S3Result<ListPage<ObjectInfo>> {
    let mounts = caller.readable(bucket)?;
    let listing = Listing::begin(caller)?;
    let mut page = ListPage::new(query);
    if page.query().max == 0 {
        return Ok(page);
    }
    for (access, mount) in &mounts {
        if !matches_prefix(mount, &page.query().prefix) {
            continue;
        }
        live(access)?;
        if list_mount(mount, &mut page, &listing.with(access)).await? == KeyOutcome::Full {
            break;
        }
        live(access)?;
    }
    Ok(page)
}

/// Whether a listing with this prefix can have keys of the mount.
fn matches_prefix(mount: &Mount, prefix: &str) -> bool {
    mount.prefix.starts_with(prefix) || prefix.starts_with(&mount.prefix)
}

/// Adds the keys of a mount to a page.
async fn list_mount(mount: &Mount, page: &mut ListPage<ObjectInfo>, work: &ListWork) -> S3Result<KeyOutcome> {
    let place = mount.place.as_ref().map_err(|fault| unusable(&UnusableKey::Store(fault.clone()), true))?;
    // If the delimiter comes in the mount's prefix after the requested prefix, all keys of the mount have one common prefix. The
    // page shows only this prefix.
    if mount.prefix.starts_with(&page.query().prefix)
        && let Some(above) = page.common_prefix(&mount.prefix)
    {
        let any = ListQuery { max: 1, ..ListQuery::default() };
        let is_empty = place.list(&any, work).await?.all.is_empty();
        return Ok(if is_empty { KeyOutcome::Continue } else { page.add_prefix(above) });
    }
    let query = page.query().clone();
    let mut after = match query.after.strip_prefix(mount.prefix.as_str()) {
        Some(below) => below.to_owned(),
        None if query.after > mount.prefix => return Ok(KeyOutcome::Continue),
        None => String::new(),
    };
    let prefix = query.prefix.strip_prefix(mount.prefix.as_str()).unwrap_or_default().to_owned();
    loop {
        let inner = ListQuery {
            prefix: prefix.clone(),
            delimiter: query.delimiter.clone().filter(|delimiter| delimiter == "/"),
            after: after.clone(),
            max: query.max.saturating_sub(page.len()),
        };
        let entries = place.list(&inner, work).await?;
        let is_complete = entries.is_complete;
        let mut skipped = None;
        for entry in entries.all {
            let (key, taken) = match entry {
                Entry::Object(key, info) => {
                    let taken = page.add(format!("{}{key}", mount.prefix), info);
                    (key, taken)
                }
                Entry::Prefix(key) => {
                    let taken = page.add_prefix(format!("{}{key}", mount.prefix));
                    (key, taken)
                }
            };
            match taken {
                KeyOutcome::Full => return Ok(KeyOutcome::Full),
                KeyOutcome::SkipBelow(above) if query.delimiter.as_deref() != Some("/") => {
                    let below = above.strip_prefix(mount.prefix.as_str()).unwrap_or(&key).to_owned();
                    // The last character of Unicode comes after all keys with this prefix.
                    skipped = Some(format!("{below}\u{10ffff}"));
                    break;
                }
                KeyOutcome::SkipBelow(_) | KeyOutcome::Continue => after = key,
            }
        }
        match skipped {
            Some(next) => after = next,
            None if is_complete => return Ok(KeyOutcome::Continue),
            None => {}
        }
    }
}
