//! A folder, and paths that cannot lead out of the folder.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat, renameat},
    sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::limits::{FILE_LISTING_MAX, FILE_PATH_DEPTH_MAX, FILE_SEGMENT_BYTES_MAX};

/// A path inside a folder: plain names, each decoded once. It is empty for the folder itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SubPath(Vec<String>);

/// Why a text is not a valid path inside a folder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubPathError {
    #[error("the path is not percent-encoded UTF-8")]
    Encoding,
    #[error("a part of the path is empty, `.` or `..`")]
    Dots,
    #[error("a part of the path has a slash or a control character")]
    Character,
    #[error("a part of the path is longer than {FILE_SEGMENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("the path is more than {FILE_PATH_DEPTH_MAX} folders deep")]
    TooDeep,
}

impl SubPath {
    /// Parses the part of a URL after the resource. Splits the text at its slashes first, and then decodes the parts. So an
    /// encoded slash separates nothing, and is refused.
    pub(super) fn parse(text: &str) -> Result<Self, SubPathError> {
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.is_empty() {
            return Ok(SubPath(Vec::new()));
        }
        let segments: Vec<String> =
            text.split('/').take(FILE_PATH_DEPTH_MAX + 1).map(segment).collect::<Result<_, _>>()?;
        if segments.len() > FILE_PATH_DEPTH_MAX {
            return Err(SubPathError::TooDeep);
        }
        Ok(SubPath(segments))
    }

    /// Makes a path from one name. The name must come from this program, because it is not checked.
    pub(super) fn one(name: &str) -> Self {
        SubPath(vec![name.to_owned()])
    }

    /// Puts the path inside three parent folders, whose names were parsed elsewhere.
    pub(super) fn under(self, parents: [&str; 3]) -> Self {
        SubPath(parents.into_iter().map(str::to_owned).chain(self.0).collect())
    }

    /// Whether the path is the folder itself.
    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn display(&self) -> String {
        self.0.join("/")
    }
}

fn segment(text: &str) -> Result<String, SubPathError> {
    let name = decode(text)?;
    if matches!(name.as_str(), "" | "." | "..") {
        return Err(SubPathError::Dots);
    }
    if name.chars().any(|c| c == '/' || c.is_control()) {
        return Err(SubPathError::Character);
    }
    if name.len() > FILE_SEGMENT_BYTES_MAX {
        return Err(SubPathError::TooLong);
    }
    Ok(name)
}

/// Percent-decodes a text once (RFC 3986 section 2.1).
pub(super) fn decode(text: &str) -> Result<String, SubPathError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(SubPathError::Encoding) };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| SubPathError::Encoding)?);
    }
    String::from_utf8(bytes).map_err(|_| SubPathError::Encoding)
}

/// The item at a path.
pub(super) enum ServedItem {
    File(File, u64),
    Folder(Vec<FolderEntry>),
}

/// One line of a listing.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub(super) struct FolderEntry {
    pub(super) name: String,
    /// `file` or `folder`. Links and devices are not served or listed.
    pub(super) kind: &'static str,
    pub(super) bytes: u64,
}

/// A folder that is served. Each path is opened name by name from the root, and no name may be a link. So no one can redirect a
/// path between a check and its use. Every call blocks on the disk, so do not call it in an async task.
#[derive(Clone, Debug)]
pub(super) struct ServedFolder(PathBuf);

impl ServedFolder {
    pub(super) fn new(root: PathBuf) -> Self {
        ServedFolder(root)
    }

    /// Opens a file, or lists a folder.
    pub(super) fn find(&self, below: &SubPath) -> io::Result<ServedItem> {
        let Some((name, parents)) = below.0.split_last() else {
            return list(self.walk(&[], MissingFolder::Fails)?);
        };
        let parent = self.walk(parents, MissingFolder::Fails)?;
        // With O_NONBLOCK, opening a pipe does not wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let found = openat(parent, name.as_str(), flags, Mode::empty())?;
        let seen = fstat(&found)?;
        match kind(seen.st_mode) {
            SFlag::S_IFREG => Ok(ServedItem::File(found.into(), u64::try_from(seen.st_size).unwrap_or(0))),
            SFlag::S_IFDIR => list(found),
            _ => Err(Errno::ENOENT.into()),
        }
    }

    /// Creates a file in the staging folder. [`StagedFile::place`] moves the file to its final path. If it is not called, the
    /// file is removed.
    pub(super) fn upload(&self, staging: &SubPath, name: String) -> io::Result<(StagedFile, File)> {
        let folder = self.walk(&staging.0, MissingFolder::IsMade)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&folder, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok((StagedFile { root: self.clone(), folder, name: Some(name) }, file.into()))
    }

    /// Removes a file. Refuses to remove a folder.
    pub(super) fn remove(&self, below: &SubPath) -> io::Result<()> {
        let (name, parents) = below.0.split_last().ok_or(Errno::EISDIR)?;
        let parent = self.walk(parents, MissingFolder::Fails)?;
        Ok(unlinkat(parent, name.as_str(), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes the files that an earlier server left in a folder.
    pub(super) fn clear(&self, below: &SubPath) -> io::Result<()> {
        let folder = self.walk(&below.0, MissingFolder::IsMade)?;
        let ServedItem::Folder(entries) = list(folder)? else { return Ok(()) };
        let folder = self.walk(&below.0, MissingFolder::Fails)?;
        for entry in entries {
            unlinkat(&folder, entry.name.as_str(), UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    }

    fn walk(&self, names: &[String], missing: MissingFolder) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = open(&self.0, flags, Mode::empty())?;
        for name in names {
            if missing == MissingFolder::IsMade {
                match mkdirat(&at, name.as_str(), Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            at = openat(&at, name.as_str(), flags | OFlag::O_NOFOLLOW, Mode::empty())?;
        }
        Ok(at)
    }
}

/// What to do if a folder on the path is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingFolder {
    Fails,
    IsMade,
}

/// A file that is being written. If the value is dropped before the file is placed, the file is removed.
pub(super) struct StagedFile {
    root: ServedFolder,
    folder: OwnedFd,
    name: Option<String>,
}

impl StagedFile {
    /// Moves the file to its final path. Replaces an existing file.
    pub(super) fn place(mut self, below: &SubPath) -> io::Result<()> {
        let (target, parents) = below.0.split_last().ok_or(Errno::EISDIR)?;
        let parent = self.root.walk(parents, MissingFolder::IsMade)?;
        if let Some(name) = &self.name {
            renameat(&self.folder, name.as_str(), &parent, target.as_str())?;
        }
        self.name = None;
        // Now the file name is on disk. The bytes were on disk before.
        Ok(nix::unistd::fsync(&parent)?)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = unlinkat(&self.folder, name.as_str(), UnlinkatFlags::NoRemoveDir)
        {
            tracing::error!(%error, name, "an unfinished upload could not be removed");
        }
    }
}

fn kind(mode: nix::libc::mode_t) -> SFlag {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT
}

fn list(folder: OwnedFd) -> io::Result<ServedItem> {
    let mut open = Dir::from_fd(folder.try_clone()?)?;
    let mut entries = Vec::new();
    for entry in open.iter() {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let seen = match fstatat(folder.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(seen) => seen,
            Err(Errno::ENOENT) => continue, // removed meanwhile
            Err(error) => return Err(error.into()),
        };
        let (kind, bytes) = match kind(seen.st_mode) {
            SFlag::S_IFREG => ("file", u64::try_from(seen.st_size).unwrap_or(0)),
            SFlag::S_IFDIR => ("folder", 0),
            _ => continue,
        };
        if entries.len() >= FILE_LISTING_MAX {
            return Err(Errno::E2BIG.into());
        }
        entries.push(FolderEntry { name: name.to_owned(), kind, bytes });
    }
    entries.sort();
    Ok(ServedItem::Folder(entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::encode_path;

    #[test]
    fn every_file_name_survives_a_url() {
        for name in [
            "part 1.txt",
            "100%.txt",
            "a#b?c&d=e+f.txt",
            "%41",
            "grün/日本.txt",
            "a;b@c:d[e]",
            "\"'<>\\^`{|}~",
        ] {
            let encoded = encode_path(name);
            let uri: http::Uri = format!("/dataset/acme/tickets@v3/{encoded}").parse().unwrap();
            let path = uri.path().splitn(5, '/').nth(4).unwrap();
            assert_eq!(SubPath::parse(path).unwrap().display(), name, "{encoded}");
        }
    }

    #[test]
    fn a_path_is_decoded_once_and_never_climbs() {
        let below = |text: &str| SubPath::parse(text).map(|b| b.0.join("|"));
        assert_eq!(below("").unwrap(), "");
        assert_eq!(below("a/b%20c/d/").unwrap(), "a|b c|d");
        assert_eq!(below("a%252e%252e").unwrap(), "a%2e%2e", "once");
        for (text, why) in [
            ("..", SubPathError::Dots),
            ("a/../b", SubPathError::Dots),
            ("%2e%2e/b", SubPathError::Dots),
            ("a/%2E/b", SubPathError::Dots),
            ("a//b", SubPathError::Dots),
            ("/etc/passwd", SubPathError::Dots),
            ("..%2fb", SubPathError::Character),
            ("%2fetc", SubPathError::Character),
            ("a%00b", SubPathError::Character),
            ("%zz", SubPathError::Encoding),
            ("%f", SubPathError::Encoding),
            ("%ff", SubPathError::Encoding),
        ] {
            assert_eq!(below(text), Err(why), "{text}");
        }
        assert_eq!(below(&"a".repeat(256)), Err(SubPathError::TooLong));
        assert_eq!(below(&"a/".repeat(33)), Err(SubPathError::TooDeep));
    }

    #[test]
    fn no_link_is_followed_and_no_device_is_opened() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let root = tempfile::tempdir().unwrap();
        let link =
            |to: &std::path::Path, name| std::os::unix::fs::symlink(to, root.path().join(name)).unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        std::fs::write(root.path().join("in/file"), "y").unwrap();
        link(outside.path(), "out");
        link(&outside.path().join("secret"), "one");
        link(&root.path().join("in/file"), "even_inside");
        nix::unistd::mkfifo(&root.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let folder = ServedFolder::new(root.path().to_owned());
        for path in ["out/secret", "out", "one", "even_inside", "pipe", "in/file/x"] {
            assert!(folder.find(&SubPath::parse(path).unwrap()).is_err(), "{path}");
        }
        assert!(matches!(folder.find(&SubPath::parse("in/file").unwrap()).unwrap(), ServedItem::File(_, 1)));
        let ServedItem::Folder(entries) = folder.find(&SubPath::parse("").unwrap()).unwrap() else {
            panic!()
        };
        assert_eq!(entries, [FolderEntry { name: "in".into(), kind: "folder", bytes: 0 }]);
        let (upload, _) = folder.upload(&SubPath::parse("staging").unwrap(), "t".into()).unwrap();
        assert!(upload.place(&SubPath::parse("out/new").unwrap()).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(root.path().join("staging")).unwrap().count(), 0, "it leaves nothing");
        assert!(folder.remove(&SubPath::parse("out/secret").unwrap()).is_err());
    }
}
