//! What a wrapper wrote into a directory that somebody else chose.

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

/// The digest of each file that was written, in a file beside them that is there first. It tells what a killed wrapper left
/// from what others put there: by what a file holds, never by what it is called.
///
/// Lines of a digest and a name. A file that is being replaced has two. No secret is in it.
#[derive(Debug)]
pub(super) struct Manifest {
    folder: PathBuf,
    files: BTreeMap<String, Vec<Digest>>,
}

impl Manifest {
    /// What it is called.
    const NAME: &str = ".leasehold";

    /// Of a directory that nothing was written to.
    pub(super) fn empty(folder: PathBuf) -> Self {
        Manifest { folder, files: BTreeMap::new() }
    }

    /// What an earlier wrapper left of it. Empty where there is none, or what is called so is something else.
    pub(super) fn left_in(folder: &Path) -> Self {
        let mut manifest = Self::empty(folder.to_owned());
        let text = own_file(&folder.join(Self::NAME)).and_then(|bytes| String::from_utf8(bytes).ok());
        for line in text.iter().flat_map(|t| t.lines()).take(4 * CREDENTIALS_MAX) {
            let Some((Ok(digest), name)) = line.split_once(' ').map(|(d, name)| (d.parse(), name)) else {
                return Self::empty(folder.to_owned());
            };
            manifest.files.entry(name.to_owned()).or_default().push(digest);
        }
        manifest
    }

    /// Whether it names a file of this name.
    pub(super) fn names(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Notes a file that is about to be written. On disk when it returns.
    pub(super) fn note(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let digests = self.files.entry(name.to_owned()).or_default();
        digests.push(Digest::of(bytes));
        // The one that is there, and the one that is to be.
        let old = digests.len().saturating_sub(2);
        digests.drain(..old);
        let lines =
            self.files.iter().flat_map(|(name, all)| all.iter().map(move |d| format!("{d} {name}\n")));
        let text: String = lines.collect();
        let draft = self.folder.join(draft_name().map_err(io::Error::other)?);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&draft, self.folder.join(Self::NAME))
        };
        write().inspect_err(|_| drop(fs::remove_file(&draft)))
    }

    /// Whether what is there under a name is what a wrapper of this user wrote.
    pub(super) fn proves(&self, name: &OsStr) -> bool {
        let Some(name) = name.to_str() else { return false };
        let path = self.folder.join(name);
        if is_draft(name) {
            return is_own_file(&path);
        }
        if name == Self::NAME {
            return !self.files.is_empty() && is_own_file(&path);
        }
        let Some(digests) = self.files.get(name) else { return false };
        own_file(&path).is_some_and(|bytes| digests.contains(&Digest::of(&bytes)))
    }

    /// What there is of it, itself the last: whoever is killed half way leaves the rest so that it can still be told.
    pub(super) fn proven(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|e| e.file_name());
        let mut proven: Vec<_> = names.filter(|n| self.proves(n)).collect();
        proven.sort_by_key(|n| n.as_os_str() == Self::NAME);
        proven.into_iter().map(|n| self.folder.join(n)).collect()
    }
}

/// A name that nobody else has, for a file that is being written.
pub(super) fn draft_name() -> Result<String, NoRandomness> {
    Ok(format!("{}-{:032x}.new", Manifest::NAME, random_u128()?))
}

fn is_draft(name: &str) -> bool {
    let random = name.strip_prefix(Manifest::NAME).and_then(|n| n.strip_prefix('-')?.strip_suffix(".new"));
    random.is_some_and(|r| r.len() == 32 && r.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Never follows a link, and opens nothing: another kind of file may make whoever opens it wait, or something happen.
fn is_own_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.uid() == geteuid().as_raw())
}

/// What is in a file of this user, where it is one and no larger than we write any.
fn own_file(path: &Path) -> Option<Vec<u8>> {
    if !is_own_file(path) {
        return None;
    }
    let file = open_regular(OpenOptions::new().read(true), path).ok()?;
    let mut bytes = Vec::new();
    file.take(CREDENTIAL_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= CREDENTIAL_FILE_BYTES_MAX).then_some(bytes)
}

/// Opens a file, where it is a regular one. Never waits: something else may have taken its place since it was looked at.
pub(super) fn open_regular(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
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
    fn what_is_proven_is_what_was_written_and_nothing_that_is_only_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut manifest = Manifest::empty(folder.path().to_owned());
        assert!(!manifest.proves(OsStr::new(Manifest::NAME)));
        for text in ["first", "second", "third"] {
            manifest.note("reading-a", text.as_bytes()).unwrap();
        }
        for (text, is_ours) in
            [("third", true), ("second", true), ("first", false), ("", false), ("mine", false)]
        {
            fs::write(path("reading-a"), text).unwrap();
            let left = Manifest::left_in(folder.path());
            assert_eq!(left.proves(OsStr::new("reading-a")), is_ours, "{text}");
            assert!(left.proves(OsStr::new(Manifest::NAME)));
        }
        fs::write(path("reading-b"), "third").unwrap();
        fs::write(path(&draft_name().unwrap()), "half a tok").unwrap();
        let left = Manifest::left_in(folder.path());
        assert!(!left.proves(OsStr::new("reading-b")), "it names no such file");
        assert_eq!(left.proven().len(), 2, "the draft and the manifest");
        assert_eq!(left.proven().last(), Some(&path(Manifest::NAME)));
        // What is called as the manifest is, and is none.
        fs::write(path(Manifest::NAME), "a note of mine\n").unwrap();
        assert!(!Manifest::left_in(folder.path()).proves(OsStr::new(Manifest::NAME)));
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
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
