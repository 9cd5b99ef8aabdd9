//! The `head` file: the index and the digest of the last record that was safely on disk when the file was written. When the
//! daemon starts, the file shows whether other files were lost or truncated by accident.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use super::{
    fault::{Fault, ReadError, Tamper},
    file::Disk,
    record::Head,
};
use crate::name::Digest;

pub(super) const HEAD_FILE: &str = "head";
const HEAD_DRAFT: &str = "head.new";
/// The head file's line is some 110 bytes.
const HEAD_BYTES_MAX: u64 = 1_024;

/// The content of the head file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeadLine {
    v: u32,
    index: u64,
    digest: Digest,
}

impl HeadLine {
    fn write(head: Head) -> String {
        format!("{{\"v\":1,\"index\":{},\"digest\":\"{}\"}}\n", head.index, head.digest)
    }
}

/// Reads the head file, if it exists.
pub(super) fn read_head(disk: &dyn Disk) -> Result<Option<Head>, ReadError> {
    let fault = |what| {
        ReadError::Tamper(Tamper { file: HEAD_FILE.into(), line: 1, index: 0, what: Fault::HeadFile(what) })
    };
    let failed = |source| ReadError::Io { file: HEAD_FILE.into(), source };
    let mut text = Vec::new();
    match disk.read(HEAD_FILE, 0) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
        Ok(file) => file.take(HEAD_BYTES_MAX).read_to_end(&mut text).map_err(failed)?,
    };
    let line: HeadLine = serde_json::from_slice(&text).map_err(|_| fault("it cannot be read"))?;
    let head = Head { index: line.index, digest: line.digest };
    if text != HeadLine::write(head).as_bytes() {
        return Err(fault("it is not formatted as the daemon writes it"));
    }
    Ok(Some(head))
}

/// Replaces the head file, durably.
pub(super) fn write_head(disk: &dyn Disk, head: Head) -> io::Result<()> {
    match disk.remove(HEAD_DRAFT) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = disk.create(HEAD_DRAFT)?;
    file.write(HeadLine::write(head).as_bytes())?;
    file.sync()?;
    drop(file);
    disk.rename(HEAD_DRAFT, HEAD_FILE)?;
    disk.sync_dir()
}
