//! The uploads in parts that are under way.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use s3s::{S3Error, S3ErrorCode, S3Result};
use tokio_util::sync::CancellationToken;

use super::{
    caller::{GatewayCaller, OpenedObject},
    checksum::Compared,
    live_access::LiveAccess,
    refusal::failed,
    upload::{MultipartUpload, StoredPart},
    view::Found,
};
use crate::{
    clock::{Clock, LeaseTime, Wall},
    limits::{
        GATEWAY_COMPLETED_KEPT, GATEWAY_PARTS_IN_ALL_MAX, GATEWAY_PARTS_PER_JOB_MAX, GATEWAY_UPLOAD_IDLE,
        GATEWAY_UPLOAD_LOOK, GATEWAY_UPLOADS_MAX, GATEWAY_UPLOADS_PER_JOB_MAX,
    },
    name::{Object, SpiffeId},
    reason::Reason,
    secret::random_u128,
};

/// An upload in parts. Only its holder can find it, in the same attempt and for the same object.
pub(super) struct OpenUpload {
    pub(super) id: String,
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) began: Wall,
    pub(super) parts: MultipartUpload,
    found: Found,
    holder: SpiffeId,
    state: Mutex<UploadState>,
}

struct UploadState {
    stored: BTreeMap<u16, (StoredPart, Compared)>,
    /// The newest access with which the upload was used.
    access: LiveAccess,
    used: LeaseTime,
    /// Whether the upload was completed or removed.
    is_over: bool,
    /// Whether a request is completing or aborting the upload.
    is_ending: bool,
}

/// A completed upload. A client that did not get the answer can ask again.
#[derive(Clone)]
struct CompletedUpload {
    id: String,
    holder: SpiffeId,
    found: Found,
    e_tag: String,
}

/// The right to complete or abort an upload. Only one request at a time has the right, until it drops this value.
pub(super) struct EndingTurn(Arc<OpenUpload>);

impl Drop for EndingTurn {
    fn drop(&mut self) {
        self.0.state().is_ending = false;
    }
}

/// All uploads in parts that are under way. A clone shares them.
#[derive(Clone, Default)]
pub(super) struct OpenUploads(Arc<Mutex<UploadTable>>);

#[derive(Default)]
struct UploadTable {
    open: HashMap<String, Arc<OpenUpload>>,
    completed: VecDeque<CompletedUpload>,
    parts: usize,
    /// The number of parts of each object that has parts.
    parts_of: HashMap<Object, usize>,
}

impl OpenUploads {
    /// Adds an upload.
    pub(super) fn add(
        &self,
        caller: &GatewayCaller,
        opened: &OpenedObject,
        name: [&str; 2],
        parts: MultipartUpload,
    ) -> S3Result<Arc<OpenUpload>> {
        let now = caller.sessions.clock().now();
        let id = random_u128().map_err(|_| failed(S3ErrorCode::InternalError, "no random bytes"))?;
        let [bucket, key] = name.map(str::to_owned);
        let upload = Arc::new(OpenUpload {
            id: format!("{id:032x}"),
            bucket,
            key,
            began: now.wall,
            parts,
            found: opened.found.clone(),
            holder: caller.holder.clone(),
            state: Mutex::new(UploadState {
                stored: BTreeMap::new(),
                access: opened.access.clone(),
                used: now.lease,
                is_over: false,
                is_ending: false,
            }),
        });
        self.table().open.insert(upload.id.clone(), upload.clone());
        Ok(upload)
    }

    /// Checks that the bounds allow one more upload to this object.
    pub(super) fn check_room(&self, opened: &OpenedObject) -> S3Result<()> {
        let table = self.table();
        let object = &opened.found.object;
        let objects = || table.open.values().map(|upload| &upload.found.object);
        let of_object = objects().filter(|other| *other == object).count();
        let of_tenant = objects().filter(|other| are_of_one_tenant(other, object)).count();
        if of_object >= GATEWAY_UPLOADS_PER_JOB_MAX
            || is_full(of_tenant, table.open.len(), GATEWAY_UPLOADS_MAX)
        {
            let text = "too many uploads in parts are under way: complete or abort some, or try again later";
            return Err(failed(S3ErrorCode::SlowDown, text));
        }
        Ok(())
    }

    /// Finds an upload of this caller to this object. Uploads of other callers count as absent.
    pub(super) fn find(
        &self,
        caller: &GatewayCaller,
        opened: &OpenedObject,
        id: &str,
    ) -> S3Result<Arc<OpenUpload>> {
        let upload = self.table().open.get(id).cloned();
        let upload = upload.filter(|upload| upload.is_of(caller, opened)).ok_or_else(no_such_upload)?;
        let mut state = upload.state();
        state.access = opened.access.clone();
        state.used = caller.sessions.clock().now().lease;
        drop(state);
        Ok(upload)
    }

    /// Returns the uploads that this holder began, by key and id, for listings.
    pub(super) fn of_holder(&self, holder: &SpiffeId) -> Vec<Arc<OpenUpload>> {
        let table = self.table();
        let mut all: Vec<_> =
            table.open.values().filter(|upload| upload.holder == *holder).cloned().collect();
        all.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
        all
    }

    /// Adds a stored part.
    pub(super) fn note_part(
        &self,
        upload: &OpenUpload,
        number: u16,
        part: (StoredPart, Compared),
    ) -> S3Result<()> {
        let mut table = self.table();
        let of_object = table.parts_of.get(&upload.found.object).copied().unwrap_or(0);
        let of_tenant =
            table.parts_of.iter().filter(|(other, _)| are_of_one_tenant(other, &upload.found.object));
        let of_tenant = of_tenant.fold(0, |sum: usize, (_, parts)| sum.saturating_add(*parts));
        if of_object >= GATEWAY_PARTS_PER_JOB_MAX || is_full(of_tenant, table.parts, GATEWAY_PARTS_IN_ALL_MAX)
        {
            let text = "too many parts are stored: complete or abort some uploads, or try again later";
            return Err(failed(S3ErrorCode::SlowDown, text));
        }
        let mut state = upload.state();
        state.check_open()?;
        if state.stored.insert(number, part).is_none() {
            table.count(&upload.found.object, 1);
        }
        Ok(())
    }

    /// Removes an upload. Returns it if it was still in the table.
    pub(super) fn take(&self, id: &str) -> Option<Arc<OpenUpload>> {
        self.table().take(id)
    }

    /// Keeps the outcome of a completed upload.
    pub(super) fn completed(&self, upload: &OpenUpload, e_tag: String) {
        let mut table = self.table();
        table.take(&upload.id);
        if table.completed.len() >= GATEWAY_COMPLETED_KEPT {
            table.completed.pop_front();
        }
        let (id, holder, found) = (upload.id.clone(), upload.holder.clone(), upload.found.clone());
        table.completed.push_back(CompletedUpload { id, holder, found, e_tag });
    }

    /// Returns the entity tag of the object, if this caller completed the upload before.
    pub(super) fn completed_before(
        &self,
        caller: &GatewayCaller,
        opened: &OpenedObject,
        id: &str,
    ) -> Option<String> {
        let table = self.table();
        let known = table.completed.iter().find(|known| known.id == id)?;
        let same = known.holder == caller.holder
            && known.found.object == opened.found.object
            && known.found.path.key == opened.found.path.key;
        same.then(|| known.e_tag.clone())
    }

    /// Until `shutdown`, removes uploads whose access ended or that were idle for too long.
    pub(super) async fn watch(&self, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = clock.sleep(GATEWAY_UPLOAD_LOOK) => {}
            }
            let now = clock.now().lease;
            let open: Vec<_> = self.table().open.values().cloned().collect();
            for upload in open.iter().filter(|upload| upload.must_go(now)) {
                let Some(upload) = self.take(&upload.id) else { continue };
                tracing::info!(object = %upload.found.object, "an upload in parts was removed, because its access ended or it was not used for too long");
                if let Err(error) = upload.parts.remove().await {
                    tracing::error!(%error, "the parts of an upload could not be removed");
                }
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, UploadTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn are_of_one_tenant(one: &Object, other: &Object) -> bool {
    one.resource().tenant() == other.resource().tenant()
}

/// Whether a tenant has used its share. The share is half of what other tenants leave free, so that further tenants
/// always get a share.
fn is_full(of_tenant: usize, of_all: usize, max: usize) -> bool {
    let of_others = of_all.saturating_sub(of_tenant);
    of_tenant >= max.saturating_sub(of_others) / 2
}

impl UploadTable {
    fn take(&mut self, id: &str) -> Option<Arc<OpenUpload>> {
        let upload = self.open.remove(id)?;
        let mut state = upload.state();
        state.is_over = true;
        let stored = state.stored.len();
        drop(state);
        self.parts = self.parts.saturating_sub(stored);
        if let Some(of_object) = self.parts_of.get_mut(&upload.found.object) {
            *of_object = of_object.saturating_sub(stored);
            if *of_object == 0 {
                self.parts_of.remove(&upload.found.object);
            }
        }
        Some(upload)
    }

    /// Counts parts that were stored.
    fn count(&mut self, object: &Object, parts: usize) {
        self.parts = self.parts.saturating_add(parts);
        let of_object = self.parts_of.entry(object.clone()).or_default();
        *of_object = of_object.saturating_add(parts);
    }
}

impl UploadState {
    /// Checks that no request ended the upload or is ending it.
    fn check_open(&self) -> S3Result<()> {
        if self.is_over {
            return Err(no_such_upload());
        }
        if self.is_ending {
            let text = "another request is completing or aborting this upload: try again later";
            return Err(failed(S3ErrorCode::SlowDown, text));
        }
        Ok(())
    }
}

impl OpenUpload {
    /// Takes the right to complete or abort an upload. A second request is asked to try again later.
    pub(super) fn begin_end(self: &Arc<Self>) -> S3Result<EndingTurn> {
        let mut state = self.state();
        state.check_open()?;
        state.is_ending = true;
        drop(state);
        Ok(EndingTurn(self.clone()))
    }

    /// Checks that parts may be stored.
    pub(super) fn check_open(&self) -> S3Result<()> {
        self.state().check_open()
    }

    fn state(&self) -> MutexGuard<'_, UploadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the stored parts, by number.
    pub(super) fn stored(&self) -> BTreeMap<u16, (StoredPart, Compared)> {
        self.state().stored.clone()
    }

    fn is_of(&self, caller: &GatewayCaller, opened: &OpenedObject) -> bool {
        let (now, then) = (opened.access.access().claims(), self.state().access.access().claims().lh.attempt);
        self.holder == caller.holder
            && self.found.object == opened.found.object
            && self.found.path.key == opened.found.path.key
            && now.lh.attempt == then
    }

    /// Whether the upload must be removed, because its access ended or it was idle for too long. While the state of the
    /// access is not known, the upload stays, because its holder may come back. While a request ends the upload, that
    /// request checks the access.
    fn must_go(&self, now: LeaseTime) -> bool {
        let state = self.state();
        if state.is_ending {
            return false;
        }
        let may_come_back = |reason| {
            matches!(
                reason,
                Reason::TokenExpired
                    | Reason::TokenEpoch
                    | Reason::EpochChanged
                    | Reason::FeedStale
                    | Reason::ClockDifference
            )
        };
        let has_ended = state.access.check().is_err_and(|refusal| !may_come_back(refusal.reason));
        has_ended || now.since(state.used) >= GATEWAY_UPLOAD_IDLE
    }
}

fn no_such_upload() -> S3Error {
    failed(
        S3ErrorCode::NoSuchUpload,
        "there is no such upload: it was completed or aborted, or its access ended",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_leaves_room_for_others() {
        // Tenants come one after another, and each takes all that it gets.
        let (max, mut all) = (4_096, 0);
        for _ in 0..8 {
            let mut own = 0;
            while !is_full(own, all, max) {
                (own, all) = (own + 1, all + 1);
            }
            assert!(own > 0 && own <= max / 2, "{own}");
        }
        assert!(all < max);
    }
}
