//! The files of a login: a key and an SVID for each context and role. Only their user can read them.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{
    Exit, Failure, SvidFiles,
    contexts_file::{Context, SvidFrom},
};
use crate::{name::PrincipalKind, plain};

/// The folder with the files of all logins.
pub(super) struct LoginFolder(PathBuf);

impl LoginFolder {
    /// Returns `leasehold/logins` in `$XDG_DATA_HOME` or `~/.local/share`.
    pub(super) fn find() -> Result<Self, Failure> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        var("XDG_DATA_HOME")
            .or_else(|| Some(var("HOME")?.join(".local/share")))
            .map(|data| LoginFolder(data.join("leasehold/logins")))
            .ok_or_else(|| {
                Failure::usage("there is no folder for your key: XDG_DATA_HOME and HOME are not set")
                    .fix("set HOME")
            })
    }

    /// Returns the paths of the files of a login. The files may not exist.
    pub(super) fn files(&self, context: &str, role: PrincipalKind) -> SvidFiles {
        let file = |ending: &str| self.0.join(context).join(format!("{role}.{ending}"));
        SvidFiles { cert: file("pem"), key: file("key") }
    }

    /// Writes the key and the SVID of a login, with mode 0600. Each file is complete or does not exist.
    pub(super) fn write(&self, files: &SvidFiles, cert: &str, key: &str) -> Result<(), Failure> {
        let write = |path: &Path, text: &str| -> io::Result<()> {
            let folder = path.parent().unwrap_or(&self.0);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let mut draft = tempfile::Builder::new()
                .prefix(".login-")
                .permissions(fs::Permissions::from_mode(0o600))
                .tempfile_in(folder)?;
            draft.write_all(text.as_bytes())?;
            draft.as_file().sync_all()?;
            draft.persist(path)?;
            Ok(())
        };
        for (path, text) in [(&files.key, key), (&files.cert, cert)] {
            write(path, text).map_err(|e| {
                Failure::new(Exit::Failure, format!("`{}` cannot be written: {e}", plain::path(path)))
                    .fix("make the folder writable for you, or set XDG_DATA_HOME to another folder")
            })?;
        }
        Ok(())
    }

    /// Returns the roles of a context whose identity is a login in this folder.
    pub(super) fn roles(&self, name: &str, context: &Context) -> Vec<PrincipalKind> {
        let is_ours = |role: &PrincipalKind, from: &SvidFrom| matches!(from, SvidFrom::Files(files) if *files == self.files(name, *role));
        context.identities.iter().filter(|(role, from)| is_ours(role, from)).map(|(role, _)| *role).collect()
    }

    /// Removes the files of a login. The key is overwritten first.
    pub(super) fn wipe(files: &SvidFiles) -> io::Result<()> {
        if let Ok(length) = fs::metadata(&files.key).map(|found| found.len()) {
            let zeros = vec![0; usize::try_from(length.min(1 << 16)).unwrap_or(0)];
            let mut key = fs::OpenOptions::new().write(true).open(&files.key)?;
            key.write_all(&zeros)?;
            key.sync_all()?;
        }
        for path in [&files.key, &files.cert] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_login_are_private_and_go_away() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LoginFolder(dir.path().join("logins"));
        let files = folder.files("prod", PrincipalKind::Operator);
        folder.write(&files, "cert", "key").unwrap();
        folder.write(&files, "cert 2", "key 2").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&files.key), mode(&files.cert), mode(files.key.parent().unwrap())),
            (0o600, 0o600, 0o700)
        );
        assert_eq!(fs::read_to_string(&files.cert).unwrap(), "cert 2");
        LoginFolder::wipe(&files).unwrap();
        assert_eq!(fs::read_dir(files.key.parent().unwrap()).unwrap().count(), 0);
        LoginFolder::wipe(&files).unwrap();
    }
}
