//! A copy of the last signed head, on another disk than the ledger.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{HeadError, HeadPublic, SignedHead};

/// A signed head is some 350 bytes.
const BYTES_MAX: u64 = 4 << 10;

/// The file that holds the last signed head, as `audit verify --head` reads it.
#[derive(Clone, Debug)]
pub struct HeadCopy {
    path: PathBuf,
}

/// The reasons for which the copy of the head cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the copy of the ledger's head, {}, cannot be read", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} has no signed head: restore it, or move it away if you know why it was changed", .path.display())]
    Malformed { path: PathBuf },
    #[error(
        "the copy of the ledger's head, {}, is not of this ledger ({why}): put the right head.key, ledger and copy together, or \
         move the copy away if you know why it differs", .path.display()
    )]
    Foreign { path: PathBuf, why: HeadError },
}

impl HeadCopy {
    pub fn at(path: &Path) -> Self {
        HeadCopy { path: path.to_owned() }
    }

    /// Reads the copy. `None` if there is no copy yet.
    pub fn read(&self) -> Result<Option<SignedHead>, CopyError> {
        let path = || self.path.clone();
        let mut text = String::new();
        match File::open(&self.path).and_then(|f| f.take(BYTES_MAX).read_to_string(&mut text)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                Err(CopyError::Malformed { path: path() })
            }
            Err(source) => Err(CopyError::Io { path: path(), source }),
            Ok(_) => text.parse().map(Some).map_err(|_| CopyError::Malformed { path: path() }),
        }
    }

    /// Checks that a head from the copy was signed with the ledger's key.
    pub fn check(&self, head: &SignedHead, key: &HeadPublic) -> Result<(), CopyError> {
        key.verify(head).map_err(|why| CopyError::Foreign { path: self.path.clone(), why })
    }

    /// Replaces the copy, durably.
    pub fn keep(&self, head: &SignedHead) -> io::Result<()> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(format!("{}\n", head.as_str()).as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}
