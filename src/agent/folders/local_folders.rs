//! All folders of one run, from the start to the end.

use std::{path::PathBuf, sync::Arc};

use futures_util::future::join_all;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{error::FolderError, objects::ResourceObjects, staged::StagedFolder, synced::SyncedFolder};
use crate::{
    agent::{
        forward::Forwarder,
        messages::MessageSink,
        spec::{LocalFolder, RunSettings},
    },
    clock::Clock,
    name::JobId,
    plain,
};

/// The folders of one run. Dropping the value ends all uploads and removes all copies.
pub(in crate::agent) struct LocalFolders {
    staged: Vec<StagedFolder>,
    synced: Vec<SyncedFolder>,
    removing: Vec<JoinHandle<()>>,
    messages: MessageSink,
}

/// The parts of a run that are needed to fill its folders.
#[derive(Clone, Copy)]
pub(in crate::agent) struct FolderContext<'a> {
    /// The local S3 endpoint, if the job uses an S3 gateway.
    pub(in crate::agent) forwarder: Option<&'a Forwarder>,
    pub(in crate::agent) job: JobId,
    pub(in crate::agent) clock: &'a Arc<dyn Clock>,
    pub(in crate::agent) messages: &'a MessageSink,
}

impl FolderContext<'_> {
    fn objects(&self, folder: &LocalFolder) -> Result<ResourceObjects, FolderError> {
        let resource = &folder.resource;
        let none = || FolderError::NoGateway(resource.clone());
        let forwarder = self.forwarder.filter(|f| f.serves(resource)).ok_or_else(none)?;
        let store = forwarder.client().map_err(|why| FolderError::Object {
            resource: resource.clone(),
            object: String::new(),
            why,
        })?;
        Ok(ResourceObjects::new(store, resource, self.job))
    }
}

impl LocalFolders {
    /// Makes the value for a run without folders.
    pub(in crate::agent) fn none(messages: &MessageSink) -> Self {
        let messages = messages.clone();
        LocalFolders { staged: Vec::new(), synced: Vec::new(), removing: Vec::new(), messages }
    }

    /// Fills the folders. After that, the command can start.
    pub(in crate::agent) async fn prepare(
        settings: &RunSettings,
        context: FolderContext<'_>,
    ) -> Result<Self, FolderError> {
        let FolderContext { clock, messages, .. } = context;
        let mut folders = Self::none(messages);
        // All folders are taken first, so that a folder that cannot be used is found before anything is copied.
        let mut sources = Vec::new();
        for folder in &settings.stage {
            let objects = context.objects(folder)?;
            folders.staged.push(StagedFolder::claim(&folder.path, &objects)?);
            sources.push(objects);
        }
        for folder in &settings.sync {
            let objects = context.objects(folder)?;
            let (clock, messages) = (clock.clone(), messages.clone());
            folders.synced.push(SyncedFolder::start(&folder.path, objects, clock, messages).await?);
        }
        for (staged, objects) in folders.staged.iter_mut().zip(&sources) {
            staged.fill(objects, clock, messages).await?;
        }
        Ok(folders)
    }

    /// Returns the folders that the guard removes if this process is killed.
    pub(in crate::agent) fn copies(&self) -> Vec<PathBuf> {
        self.staged.iter().map(|staged| staged.path().to_owned()).collect()
    }

    /// Whether the run has a synced folder.
    pub(in crate::agent) fn are_synced(&self) -> bool {
        !self.synced.is_empty()
    }

    /// Uploads the remaining files of the synced folders, after the command has ended.
    pub(in crate::agent) async fn upload_the_rest(&mut self) {
        join_all(self.synced.iter_mut().map(SyncedFolder::finish)).await;
    }

    /// Ends all uploads, and prints what was uploaded and until when. Returns a text about the files that were not uploaded.
    pub(in crate::agent) async fn end_uploads(&mut self, until: &str) -> Option<String> {
        let mut all_left = Vec::new();
        for synced in std::mem::take(&mut self.synced) {
            synced.stop();
            self.messages.send(&format!("{}{until}", synced.summary()));
            all_left.extend(synced.left().await);
        }
        (!all_left.is_empty()).then(|| all_left.join("; "))
    }

    /// Ends all uploads, and begins to remove the copies, because access has ended.
    pub(in crate::agent) fn on_access_end(&mut self) {
        self.synced.iter().for_each(SyncedFolder::stop);
        self.begin_to_remove_copies();
    }

    fn begin_to_remove_copies(&mut self) {
        for staged in std::mem::take(&mut self.staged) {
            let messages = self.messages.clone();
            let was_in_place = staged.is_in_place();
            self.removing.push(spawn_blocking(move || match staged.wipe() {
                Ok(()) if was_in_place => {
                    messages.send(&format!("removed the copy in {}", plain::path(staged.path())));
                }
                Ok(()) => messages.send(&format!(
                    "removed the files of the copy in {}, which was moved; the folder that is there now was not touched",
                    plain::path(staged.path())
                )),
                Err(error) => messages.send(&format!(
                    "the copy in {} could not be removed: {error}; remove it yourself",
                    plain::path(staged.path())
                )),
            }));
        }
    }

    /// Removes the copies, and waits until they are removed.
    pub(in crate::agent) async fn remove_copies(&mut self) {
        self.begin_to_remove_copies();
        for removing in std::mem::take(&mut self.removing) {
            let _ = removing.await;
        }
    }
}
