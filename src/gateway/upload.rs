//! Uploads: bytes that are not visible before they are complete.

use bytes::Bytes;

use super::{
    bucket_upload::{BucketPart, BucketParts, BucketUpload},
    conditions::Conditions,
    directory_upload::{DirectoryParts, DirectoryUpload},
    store::{FinalCheck, ObjectInfo, StoreError},
    upload_memory::UploadMemory,
};

/// An upload of one object or part. If the upload is dropped before it becomes visible, its bytes are removed.
#[derive(Debug)]
pub(super) enum Upload {
    Directory(DirectoryUpload),
    Bucket(BucketUpload),
    BucketPart(BucketPart),
}

impl Upload {
    /// Adds bytes.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        match self {
            Upload::Directory(upload) => upload.write(bytes).await,
            Upload::Bucket(upload) => upload.write(bytes).await,
            Upload::BucketPart(part) => part.write(&bytes),
        }
    }

    /// Makes the upload visible as an object, if the conditions are met and the lease has not ended.
    pub(super) async fn publish(
        self,
        conditions: &Conditions,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        match self {
            Upload::Directory(upload) => upload.publish(conditions, final_check).await,
            Upload::Bucket(upload) => upload.publish(conditions, final_check).await,
            // A part becomes visible only with its upload.
            Upload::BucketPart(_) => Err(StoreError::PartsMissing),
        }
    }
}

/// A part that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredPart {
    pub(super) size: u64,
    /// The `ETag` without quotation marks.
    pub(super) e_tag: String,
}

/// An upload in parts. It stays until it is completed or removed.
#[derive(Debug)]
pub(super) enum MultipartUpload {
    Directory(DirectoryParts),
    Bucket(BucketParts),
}

impl MultipartUpload {
    /// Begins a part. `length` is given if it is known.
    pub(super) async fn begin_part(
        &self,
        memory: &UploadMemory,
        length: Option<u64>,
    ) -> Result<Upload, StoreError> {
        match self {
            MultipartUpload::Directory(parts) => parts.begin_part().await.map(Upload::Directory),
            MultipartUpload::Bucket(parts) => parts.begin_part(memory, length).map(Upload::BucketPart),
        }
    }

    /// Stores a part. It replaces an earlier part with the same number.
    pub(super) async fn store_part(&self, number: u16, upload: Upload) -> Result<StoredPart, StoreError> {
        match (self, upload) {
            (MultipartUpload::Directory(parts), Upload::Directory(upload)) => {
                parts.store_part(number, upload).await
            }
            (MultipartUpload::Bucket(parts), Upload::BucketPart(part)) => {
                parts.store_part(number, part).await
            }
            _ => Err(StoreError::PartsMissing),
        }
    }

    /// Joins parts into an object. `wanted` has the number of each part, and its size and entity tag when it was stored. The
    /// object becomes visible if the conditions are met and the lease has not ended.
    pub(super) async fn complete(
        &self,
        wanted: &[(u16, StoredPart)],
        conditions: &Conditions,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        match self {
            MultipartUpload::Directory(parts) => parts.complete(wanted, conditions, final_check).await,
            MultipartUpload::Bucket(parts) => parts.complete(wanted, conditions, final_check).await,
        }
    }

    /// Removes all parts.
    pub(super) async fn remove(&self) -> Result<(), StoreError> {
        match self {
            MultipartUpload::Directory(parts) => parts.remove().await,
            MultipartUpload::Bucket(parts) => parts.remove().await,
        }
    }
}
