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
/// Its first line names the draft under which each file is written before it takes its own name: a name that no one else can
/// have guessed. Then lines of a digest and a name. A file that is being replaced has two. No secret is in it.
#[derive(Debug)]
pub(crate) struct Manifest {
    folder: PathBuf,
    draft: String,
    files: BTreeMap<String, Vec<Digest>>,
}

impl Manifest {
    /// What it is called.
    const NAME: &str = ".leasehold";

    /// Of a directory that nothing was written to.
    pub(crate) fn empty(folder: PathBuf) -> Result<Self, NoRandomness> {
        Ok(Manifest { folder, draft: draft_name()?, files: BTreeMap::new() })
    }

    /// What an earlier wrapper left of it. Proves nothing if there is none, or if the file of that name is something else.
    pub(crate) fn left_in(folder: &Path) -> Self {
        let nothing = || Manifest { folder: folder.to_owned(), draft: String::new(), files: BTreeMap::new() };
        let mut manifest = nothing();
        let Some(text) = Self::own_text(&folder.join(Self::NAME)) else { return manifest };
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

    /// The text of a file of this user, if it is one and no larger than we write any.
    pub(crate) fn own_text(path: &Path) -> Option<String> {
        own_file(path).and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// The name under which the next file is written.
    pub(crate) fn draft(&self) -> &str {
        &self.draft
    }

    /// Whether it names a file of this name.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Notes a file that is about to be written. On disk when it returns.
    pub(crate) fn note(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let digests = self.files.entry(name.to_owned()).or_default();
        digests.push(Digest::of(bytes));
        // The one that is there, and the one that is to be.
        let old = digests.len().saturating_sub(2);
        digests.drain(..old);
        let lines =
            self.files.iter().flat_map(|(name, all)| all.iter().map(move |d| format!("{d} {name}\n")));
        let text: String = [format!("{DRAFT}{}\n", self.draft)].into_iter().chain(lines).collect();
        let (own, draft) = (self.folder.join(Self::NAME), self.folder.join(&self.draft));
        // The first one names the draft, so there is none before it.
        let next = if self.is_there() { &draft } else { &own };
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(next)?;
            file.write_all(text.as_bytes())?;
            if *next == own { Ok(()) } else { fs::rename(next, &own) }
        };
        write().inspect_err(|_| drop(fs::remove_file(next)))
    }

    /// Whether the file is there and names this draft.
    fn is_there(&self) -> bool {
        !self.draft.is_empty() && Self::left_in(&self.folder).draft == self.draft
    }

    /// Whether what is there under a name is what a wrapper of this user wrote.
    pub(crate) fn proves(&self, name: &OsStr) -> bool {
        let Some(name) = name.to_str() else { return false };
        let path = self.folder.join(name);
        if name == self.draft || name == Self::NAME {
            return !self.draft.is_empty() && is_own_file(&path);
        }
        let Some(digests) = self.files.get(name) else { return false };
        own_file(&path).is_some_and(|bytes| digests.contains(&Digest::of(&bytes)))
    }

    /// What there is of it, itself the last: whoever is killed half way leaves the rest so that it can still be told.
    pub(crate) fn proven(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|e| e.file_name());
        let mut proven: Vec<_> = names.filter(|n| self.proves(n)).collect();
        proven.sort_by_key(|n| n.as_os_str() == Self::NAME);
        proven.into_iter().map(|n| self.folder.join(n)).collect()
    }
}

/// A name that nobody else has, for a file that is being written.
pub(crate) fn draft_name() -> Result<String, NoRandomness> {
    Ok(format!("{}-{:032x}.new", Manifest::NAME, random_u128()?))
}

/// Before the name of the draft.
const DRAFT: &str = "draft ";

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
pub(crate) fn open_regular(options: &OpenOptions, path: &Path) -> io::Result<File> {
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
        assert!(!Manifest::left_in(folder.path()).proves(OsStr::new(Manifest::NAME)));
        let mut manifest = Manifest::empty(folder.path().to_owned()).unwrap();
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
        fs::write(path(manifest.draft()), "half a tok").unwrap();
        let others = draft_name().unwrap();
        fs::write(path(&others), "mine").unwrap();
        let left = Manifest::left_in(folder.path());
        assert!(!left.proves(OsStr::new("reading-b")), "it names no such file");
        assert!(!left.proves(OsStr::new(&others)), "it names another draft");
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
