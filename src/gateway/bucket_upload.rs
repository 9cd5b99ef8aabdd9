//! Uploads into a bucket. Received bytes wait in memory only until they fill a part.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use object_store::{
    MultipartId, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion, WriteMultipart,
    multipart::PartId, path::Path,
};
use s3s::dto::ETagCondition;

use super::{
    bucket::{BucketStore, failed, info},
    conditions::Conditions,
    store::{FinalCheck, ObjectInfo, StoreError},
    upload::StoredPart,
    upload_memory::{Blocks, UploadMemory},
};
use crate::{
    limits::{GATEWAY_BACKEND_PART_BYTES, GATEWAY_BACKEND_PARTS_IN_FLIGHT, GATEWAY_BUCKET_PART_BYTES_MAX},
    link::Share,
};

/// The upload of a whole object. A small object is sent at once. A larger object is sent in parts, and the store joins
/// them at the end. If the upload is dropped before it is published, the parts that were sent are removed.
pub(super) struct BucketUpload {
    store: BucketStore,
    path: Path,
    small: Blocks,
    large: Option<WriteMultipart>,
    _memory: Share,
}

/// The memory of an upload in parts: the parts that are being sent, and the part that is received.
const LARGE_BYTES: usize = GATEWAY_BACKEND_PART_BYTES * (GATEWAY_BACKEND_PARTS_IN_FLIGHT + 1);

impl BucketUpload {
    /// Takes memory for an object of this length.
    pub(super) fn begin(
        store: BucketStore,
        path: Path,
        memory: &UploadMemory,
        length: Option<u64>,
    ) -> Result<Self, StoreError> {
        let length = length.and_then(|length| usize::try_from(length).ok());
        let needed = length.filter(|length| *length < GATEWAY_BACKEND_PART_BYTES).unwrap_or(LARGE_BYTES);
        let _memory = memory.take(needed)?;
        Ok(BucketUpload { store, path, small: Blocks::default(), large: None, _memory })
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        if let Some(large) = &mut self.large {
            large.wait_for_capacity(GATEWAY_BACKEND_PARTS_IN_FLIGHT).await.map_err(failed)?;
            // This copies the bytes, because a small piece would keep the buffer of its connection.
            large.write(&bytes);
            return Ok(());
        }
        self.small.add(&bytes);
        if self.small.size() < GATEWAY_BACKEND_PART_BYTES {
            return Ok(());
        }
        let upload = self.store.objects.put_multipart(&self.path).await.map_err(failed)?;
        let mut large = WriteMultipart::new_with_chunk_size(upload, GATEWAY_BACKEND_PART_BYTES);
        for bytes in std::mem::take(&mut self.small) {
            large.put(bytes);
        }
        self.large = Some(large);
        Ok(())
    }

    pub(super) async fn publish(
        mut self,
        conditions: &Conditions,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        let (objects, path) = (self.store.objects.clone(), self.path.clone());
        match self.large.take() {
            None => {
                // The request to the store can carry only some conditions, so all of them are checked first.
                check_now(&self.store, &self.path, conditions).await?;
                final_check().map_err(StoreError::Ended)?;
                let payload: PutPayload = std::mem::take(&mut self.small).into_iter().collect();
                let options = PutOptions { mode: mode(conditions), ..PutOptions::default() };
                objects.put_opts(&path, payload, options).await.map_err(failed)?;
            }
            Some(large) => {
                if let Err(error) = check_now(&self.store, &self.path, conditions)
                    .await
                    .and(final_check().map_err(StoreError::Ended))
                {
                    self.large = Some(large);
                    return Err(error);
                }
                large.finish().await.map_err(failed)?;
            }
        }
        let meta = objects.head(&path).await.map_err(failed)?;
        Ok(info(&meta))
    }
}

/// Checks the conditions directly before a change. Stores check no conditions when they join parts, and only some for
/// small objects.
async fn check_now(store: &BucketStore, path: &Path, conditions: &Conditions) -> Result<(), StoreError> {
    if conditions.if_match.is_none() && conditions.if_none_match.is_none() {
        return Ok(());
    }
    match store.objects.head(path).await.map_err(failed) {
        Ok(meta) => conditions.check_write(Some(&info(&meta))),
        Err(StoreError::NotFound) => conditions.check_write(None),
        Err(error) => Err(error),
    }
}

/// Returns the condition in the form of the store.
fn mode(conditions: &Conditions) -> PutMode {
    if conditions.must_be_new() {
        return PutMode::Create;
    }
    match conditions.if_match.as_ref().and_then(ETagCondition::as_etag) {
        Some(tag) => {
            PutMode::Update(UpdateVersion { e_tag: Some(format!("\"{}\"", tag.value())), version: None })
        }
        None => PutMode::Overwrite,
    }
}

impl Drop for BucketUpload {
    fn drop(&mut self) {
        if let Some(large) = self.large.take() {
            tokio::spawn(async move {
                if let Err(error) = large.abort().await {
                    tracing::warn!(%error, "an unfinished upload could not be removed from the store");
                }
            });
        }
    }
}

impl fmt::Debug for BucketUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketUpload({})", self.path)
    }
}

/// A part that is received. It waits in memory, because the store's client must be able to send it again.
#[derive(Debug)]
pub(super) struct BucketPart {
    blocks: Blocks,
    most: usize,
    _memory: Share,
}

impl BucketPart {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.blocks.size().saturating_add(bytes.len()) > self.most {
            return Err(StoreError::PartTooLarge(self.most as u64));
        }
        self.blocks.add(bytes);
        Ok(())
    }
}

/// A multipart upload of a client: the client cuts the object into parts, and each part goes to the store as it is.
pub(super) struct BucketParts {
    store: BucketStore,
    path: Path,
    id: MultipartId,
    stored: Mutex<BTreeMap<u16, PartId>>,
}

impl BucketParts {
    pub(super) async fn begin(store: BucketStore, path: Path) -> Result<Self, StoreError> {
        let id = store.parts.create_multipart(&path).await.map_err(failed)?;
        Ok(BucketParts { store, path, id, stored: Mutex::default() })
    }

    /// Takes memory for a part of this length.
    pub(super) fn begin_part(
        &self,
        memory: &UploadMemory,
        length: Option<u64>,
    ) -> Result<BucketPart, StoreError> {
        let most = usize::try_from(length.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        if length.is_some() && most > GATEWAY_BUCKET_PART_BYTES_MAX {
            return Err(StoreError::PartTooLarge(GATEWAY_BUCKET_PART_BYTES_MAX as u64));
        }
        let most = most.min(GATEWAY_BUCKET_PART_BYTES_MAX);
        Ok(BucketPart { blocks: Blocks::default(), most, _memory: memory.take(most)? })
    }

    pub(super) async fn store_part(&self, number: u16, part: BucketPart) -> Result<StoredPart, StoreError> {
        let BucketPart { blocks, _memory, .. } = part;
        let size = blocks.size() as u64;
        let payload: PutPayload = blocks.into_iter().collect();
        let index = usize::from(number).saturating_sub(1);
        let stored = self.store.parts.put_part(&self.path, &self.id, index, payload).await.map_err(failed)?;
        let e_tag = stored.content_id.trim_matches('"').to_owned();
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(number, stored);
        Ok(StoredPart { size, e_tag })
    }

    pub(super) async fn complete(
        &self,
        wanted: &[(u16, StoredPart)],
        conditions: &Conditions,
        final_check: FinalCheck,
    ) -> Result<ObjectInfo, StoreError> {
        let mut parts = Vec::with_capacity(wanted.len());
        {
            let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            for (at, (number, part)) in wanted.iter().enumerate() {
                // The client of the store numbers the parts by their position in the list.
                if usize::from(*number) != at.saturating_add(1) {
                    return Err(StoreError::PartsMissing);
                }
                let known = stored.get(number).ok_or(StoreError::NotFound)?;
                if known.content_id.trim_matches('"') != part.e_tag {
                    return Err(StoreError::Changed);
                }
                parts.push(PartId { content_id: known.content_id.clone() });
            }
        }
        check_now(&self.store, &self.path, conditions).await?;
        final_check().map_err(StoreError::Ended)?;
        self.store.parts.complete_multipart(&self.path, &self.id, parts).await.map_err(failed)?;
        let meta = self.store.objects.head(&self.path).await.map_err(failed)?;
        Ok(info(&meta))
    }

    /// Removes the parts. After the upload was completed, there are no parts.
    pub(super) async fn remove(&self) -> Result<(), StoreError> {
        match self.store.parts.abort_multipart(&self.path, &self.id).await.map_err(failed) {
            Err(StoreError::NotFound) => Ok(()),
            removed => removed,
        }
    }
}

impl fmt::Debug for BucketParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketParts({})", self.path)
    }
}
