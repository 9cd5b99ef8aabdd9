//! The manifest lists the files that the wrapper wrote into a directory. It is used only for a directory that the user named.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, unistd::geteuid};

use crate::{
    limits::{CREDENTIAL_FILE_BYTES_MAX, CREDENTIALS_MAX},
    name::Digest,
    secret::{NoRandomness, random_u128},
};

/// The digests of the files that a wrapper writes into a directory. The manifest is a file in this directory, and is written
/// before the other files. So the next wrapper recognizes the files of a wrapper that was killed by their content, not by their
/// names.
///
/// The first line contains a random name, the draft name. Each file is written under this name first, and then renamed. Each
/// other line contains a digest and a file name. A file that is being replaced has two lines. The manifest contains no secret.
#[derive(Debug)]
pub(crate) struct Manifest {
    folder: PathBuf,
    draft: String,
    files: BTreeMap<String, Vec<Digest>>,
}

impl Manifest {
    /// The manifest's file name.
    const NAME: &str = ".leasehold";

    /// Makes the manifest for a directory into which no wrapper has written a file.
    pub(crate) fn new(folder: PathBuf) -> Result<Self, NoRandomness> {
        Ok(Manifest { folder, draft: draft_name()?, files: BTreeMap::new() })
    }

    /// Reads the manifest of an earlier wrapper. Returns an empty manifest if the directory has none, or if the file is not a
    /// manifest.
    pub(crate) fn load(folder: &Path) -> Self {
        let nothing = || Manifest { folder: folder.to_owned(), draft: String::new(), files: BTreeMap::new() };
        let mut manifest = nothing();
        let Some(text) = Self::read_own_text(&folder.join(Self::NAME)) else { return manifest };
        let mut lines = text.lines();
        match lines.next().and_then(|first| first.strip_prefix(DRAFT)) {
            Some(draft) if is_draft(draft) => manifest.draft = draft.to_owned(),
            _ => return manifest,
        }
        for line in lines.take(4 * CREDENTIALS_MAX) {
            let Some((Ok(digest), name)) = line.split_once(' ').map(|(d, name)| (d.parse(), name)) else {
                return nothing();
            };
            manifest.files.entry(name.to_owned()).or_default().push(digest);
        }
        manifest
    }

    /// Reads a text file if it belongs to this user and is not larger than the files that we write.
    pub(crate) fn read_own_text(path: &Path) -> Option<String> {
        read_own_file(path).and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// The name under which each file is written first.
    pub(crate) fn draft(&self) -> &str {
        &self.draft
    }

    /// Whether the manifest lists a file of this name.
    pub(crate) fn lists(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Records a file before it is written. Writes the manifest.
    pub(crate) fn record(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let digests = self.files.entry(name.to_owned()).or_default();
        digests.push(Digest::of(bytes));
        // Keeps the digests of the present content and of the next content.
        let old = digests.len().saturating_sub(2);
        digests.drain(..old);
        let lines =
            self.files.iter().flat_map(|(name, all)| all.iter().map(move |d| format!("{d} {name}\n")));
        let text: String = [format!("{DRAFT}{}\n", self.draft)].into_iter().chain(lines).collect();
        let (manifest_path, draft) = (self.folder.join(Self::NAME), self.folder.join(&self.draft));
        // While no manifest exists, the next wrapper could not recognize a file with the draft name. So the first manifest is
        // written under its final name.
        let next = if self.is_written() { &draft } else { &manifest_path };
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(next)?;
            file.write_all(text.as_bytes())?;
            if *next == manifest_path { Ok(()) } else { fs::rename(next, &manifest_path) }
        };
        write().inspect_err(|_| drop(fs::remove_file(next)))
    }

    /// Whether the manifest file exists and contains this draft name.
    fn is_written(&self) -> bool {
        !self.draft.is_empty() && Self::load(&self.folder).draft == self.draft
    }

    /// Whether a wrapper of this user wrote the file of this name.
    pub(crate) fn is_written_by_wrapper(&self, name: &OsStr) -> bool {
        let Some(name) = name.to_str() else { return false };
        let path = self.folder.join(name);
        if name == self.draft || name == Self::NAME {
            return !self.draft.is_empty() && is_own_file(&path);
        }
        let Some(digests) = self.files.get(name) else { return false };
        read_own_file(&path).is_some_and(|bytes| digests.contains(&Digest::of(&bytes)))
    }

    /// The files that a wrapper wrote. The manifest comes last, so that an interrupted removal can be continued.
    pub(crate) fn proven_files(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|e| e.file_name());
        let mut proven: Vec<_> = names.filter(|n| self.is_written_by_wrapper(n)).collect();
        proven.sort_by_key(|n| n.as_os_str() == Self::NAME);
        proven.into_iter().map(|n| self.folder.join(n)).collect()
    }
}

/// A random name for a file that is being written.
pub(crate) fn draft_name() -> Result<String, NoRandomness> {
    Ok(format!("{}-{:032x}.new", Manifest::NAME, random_u128()?))
}

/// The text before the draft name in the first line.
const DRAFT: &str = "draft ";

fn is_draft(name: &str) -> bool {
    let random = name.strip_prefix(Manifest::NAME).and_then(|n| n.strip_prefix('-')?.strip_suffix(".new"));
    random.is_some_and(|r| r.len() == 32 && r.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Whether the path is a regular file of this user. Does not follow links, and does not open the file: opening a FIFO or a
/// device can block or have effects.
fn is_own_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.uid() == geteuid().as_raw())
}

/// Reads a file if it belongs to this user and is not larger than the files that we write.
fn read_own_file(path: &Path) -> Option<Vec<u8>> {
    if !is_own_file(path) {
        return None;
    }
    let file = open_regular(OpenOptions::new().read(true), path).ok()?;
    let mut bytes = Vec::new();
    file.take(CREDENTIAL_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= CREDENTIAL_FILE_BYTES_MAX).then_some(bytes)
}

/// Opens a file if it is a regular file. Never blocks, even if another kind of file replaces it meanwhile.
pub(crate) fn open_regular(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(refused());
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = options.clone().custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_proven_by_its_content_not_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert!(!Manifest::load(folder.path()).is_written_by_wrapper(OsStr::new(Manifest::NAME)));
        let mut manifest = Manifest::new(folder.path().to_owned()).unwrap();
        for text in ["first", "second", "third"] {
            manifest.record("reading-a", text.as_bytes()).unwrap();
        }
        for (text, is_ours) in
            [("third", true), ("second", true), ("first", false), ("", false), ("mine", false)]
        {
            fs::write(path("reading-a"), text).unwrap();
            let left = Manifest::load(folder.path());
            assert_eq!(left.is_written_by_wrapper(OsStr::new("reading-a")), is_ours, "{text}");
            assert!(left.is_written_by_wrapper(OsStr::new(Manifest::NAME)));
        }
        fs::write(path("reading-b"), "third").unwrap();
        fs::write(path(manifest.draft()), "half a tok").unwrap();
        let others = draft_name().unwrap();
        fs::write(path(&others), "mine").unwrap();
        let left = Manifest::load(folder.path());
        assert!(!left.is_written_by_wrapper(OsStr::new("reading-b")), "it names no such file");
        assert!(!left.is_written_by_wrapper(OsStr::new(&others)), "it names another draft");
        assert_eq!(left.proven_files().len(), 2, "the draft and the manifest");
        assert_eq!(left.proven_files().last(), Some(&path(Manifest::NAME)));
        // A file with the name of the manifest that is not a manifest.
        fs::write(path(Manifest::NAME), "a note of mine\n").unwrap();
        assert!(!Manifest::load(folder.path()).is_written_by_wrapper(OsStr::new(Manifest::NAME)));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).unwrap();
        for name in ["fifo", "link"] {
            let opened = open_regular(OpenOptions::new().write(true), &folder.path().join(name));
            assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
