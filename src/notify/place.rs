//! The record up to which a webhook has all its notices.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{limits::WEBHOOK_FILE_BYTES_MAX, written::read_regular_text};

/// The file with the place of one webhook in the ledger: the index of the last record up to which no notice waits. It is not
/// synced to disk. If the newest place is lost, some notices come twice, and no notice is missing.
#[derive(Clone, Debug)]
pub(super) struct PlaceFile(PathBuf);

impl PlaceFile {
    /// Returns the file of a webhook in the directory of the daemon's state.
    pub(super) fn of(state: &Path, webhook: &str) -> Self {
        PlaceFile(state.join("notices").join(webhook))
    }

    /// Reads the place. `None` if the file does not exist or cannot be read.
    pub(super) fn load(&self) -> Option<u64> {
        read_regular_text(&self.0, WEBHOOK_FILE_BYTES_MAX).ok()?.trim().parse().ok()
    }

    /// Writes the place. The file has the old or the new place, never a part.
    ///
    /// # Errors
    /// Fails if the directory or the file cannot be written.
    pub(super) fn store(&self, index: u64) -> io::Result<()> {
        if let Some(dir) = self.0.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        // No name of a webhook ends in ` draft`, so the draft is never the file of another webhook.
        let mut draft = self.0.clone().into_os_string();
        draft.push(" draft");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        io::Write::write_all(&mut file, format!("{index}\n").as_bytes())?;
        fs::rename(&draft, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let place = PlaceFile::of(folder.path(), "ops");
        assert_eq!(place.load(), None);
        place.store(41).unwrap();
        place.store(42).unwrap();
        assert_eq!(place.load(), Some(42));
        fs::write(folder.path().join("notices/ops"), "x").unwrap();
        assert_eq!(place.load(), None);
        assert_eq!(fs::read_dir(folder.path().join("notices")).unwrap().count(), 1);
    }
}
