//! The ready file: it exists while all credentials are in their files. A shell can read it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::access::{credential_dir::CredentialDir, folder::is_same, manifest::draft_name};
use crate::plain;

/// Writes and removes the ready file, if the user asked for one.
pub(super) struct ReadySignal {
    path: Option<PathBuf>,
    text: String,
    dir: Arc<CredentialDir>,
    written: Option<ReadyPlace>,
}

enum ReadyPlace {
    /// The file is in the credential directory, which keeps it as one of its files.
    Inside(String),
    Outside(#[expect(dead_code, reason = "kept for its drop, which removes the file")] ReadyFile),
}

impl ReadySignal {
    pub(super) fn new(path: Option<PathBuf>, text: String, dir: Arc<CredentialDir>) -> Self {
        ReadySignal { path, text, dir, written: None }
    }

    /// Removes the file of a sidecar that was killed, so that no program mistakes it for the file of this process. Leaves any
    /// other file.
    pub(super) fn remove_stale(path: &Path) {
        ReadyFile::remove_stale(path);
    }

    /// Writes the file if all credentials are complete. Otherwise removes the file.
    pub(super) fn set(&mut self, is_complete: bool) -> Result<(), String> {
        let Some(path) = self.path.clone().filter(|_| is_complete) else {
            self.remove();
            return Ok(());
        };
        if self.written.is_none() {
            let inside = self.dir.put_open(&path, &self.text).map_err(|e| e.to_string())?;
            self.written = Some(match inside {
                Some(name) => ReadyPlace::Inside(name),
                None => ReadyPlace::Outside(ReadyFile::write(path, &self.text)?),
            });
        }
        Ok(())
    }

    pub(super) fn remove(&mut self) {
        if let Some(ReadyPlace::Inside(name)) = self.written.take() {
            self.dir.remove(&name);
        }
    }
}

/// The first bytes of every ready file.
const READY_BEGINS: &str = "export LEASEHOLD_JOB=";

/// A ready file outside the credential directory. Dropping it removes the file, unless another file has replaced it.
#[derive(Debug)]
struct ReadyFile {
    path: PathBuf,
    /// The file, which is kept open so that no other file gets its inode number.
    file: File,
}

impl ReadyFile {
    fn remove_stale(path: &Path) {
        if !fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
            return;
        }
        let mut text = String::new();
        let read = File::open(path).and_then(|f| f.take(READY_BEGINS.len() as u64).read_to_string(&mut text));
        if read.is_ok() && text == READY_BEGINS {
            // If the removal fails, the file is replaced later.
            let _ = fs::remove_file(path);
        }
    }

    /// Writes the file under a random name first, because other users may be able to write to the folder. Then renames it.
    fn write(path: PathBuf, text: &str) -> Result<Self, String> {
        let write = || -> io::Result<File> {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let next = folder.join(draft_name().map_err(io::Error::other)?);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&next)?;
            let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&next, &path));
            written.inspect_err(|_| drop(fs::remove_file(&next)))?;
            Ok(file)
        };
        match write() {
            Ok(file) => Ok(ReadyFile { path, file }),
            Err(e) => Err(format!("the ready file {} could not be written: {e}", plain::path(&path))),
        }
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if is_same(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes lines of the form `export NAME='value'`, for `. FILE` in a shell. No value is a secret.
pub(super) fn export_lines(variables: &[(OsString, OsString)]) -> String {
    let text = |t: &OsStr| String::from_utf8_lossy(t.as_bytes()).replace('\'', r"'\''");
    variables.iter().map(|(name, value)| format!("export {}='{}'\n", text(name), text(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_variables_back() {
        let set = [("A".into(), "/run/x".into()), ("B".into(), "it's $HOME".into())];
        let script = format!("{}printf '%s|%s' \"$A\" \"$B\"", export_lines(&set));
        let said = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "/run/x|it's $HOME");
    }

    #[test]
    fn a_ready_file_is_not_written_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mine) = (folder.path().join("ready"), folder.path().join("mine"));
        fs::write(&mine, "mine").unwrap();
        let draft = folder.path().join(format!(".leasehold-ready-{}", std::process::id()));
        for link in [draft, path.clone()] {
            std::os::unix::fs::symlink(&mine, link).unwrap();
        }
        let ready = ReadyFile::write(path.clone(), "x\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        drop(ready);
        assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    }

    #[test]
    fn only_a_stale_ready_file_is_removed_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let (stale, mine, gone) =
            (folder.path().join("ready"), folder.path().join("job.toml"), folder.path().join("gone"));
        fs::write(&stale, "export LEASEHOLD_JOB='j-1'\nexport LEASEHOLD_ATTEMPT='1'\n").unwrap();
        fs::write(&mine, "name = 'mine'\n").unwrap();
        for path in [&stale, &mine, &gone] {
            ReadyFile::remove_stale(path);
        }
        assert!(!stale.exists());
        assert_eq!(fs::read_to_string(&mine).unwrap(), "name = 'mine'\n");
    }

    #[test]
    fn a_ready_file_is_removed_with_its_sidecar() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready");
        let ready = ReadyFile::write(path.clone(), "x\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        drop(ready);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // The file of a later sidecar stays.
        let before = ReadyFile::write(path.clone(), "x\n").unwrap();
        let after = ReadyFile::write(path.clone(), "y\n").unwrap();
        drop(before);
        assert_eq!(fs::read_to_string(&path).unwrap(), "y\n");
        drop(after);
        assert!(!path.exists());
        assert!(ReadyFile::write("/no/such/folder/ready".into(), "x").unwrap_err().contains("/no/such"));
    }
}
