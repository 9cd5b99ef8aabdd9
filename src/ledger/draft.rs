//! A large file while it is written: under a name that no reader knows, in pieces, each of which is synced, so that the
//! sync of a record never waits for the whole file.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use super::file::{Disk, DiskFile};
use crate::limits;

/// A file that is not complete yet.
pub(super) struct Draft<'a> {
    file: Box<dyn DiskFile>,
    unsynced: usize,
    bytes: u64,
    bytes_max: u64,
    stop: &'a AtomicBool,
}

impl<'a> Draft<'a> {
    /// Makes a draft with this name. It replaces a draft that a crash left.
    pub(super) fn create(
        disk: &dyn Disk,
        name: &str,
        bytes_max: u64,
        stop: &'a AtomicBool,
    ) -> io::Result<Self> {
        absent_is_fine(disk.remove(name))?;
        Ok(Draft { file: disk.create(name)?, unsynced: 0, bytes: 0, bytes_max, stop })
    }

    /// Makes the last piece durable. Returns the number of bytes.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.file.sync()?;
        Ok(self.bytes)
    }
}

impl Write for Draft<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Acquire) {
            return Err(io::Error::other("the ledger is being closed"));
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if self.bytes > self.bytes_max {
            return Err(io::Error::other(
                "it is too large for such a file; another limit should have prevented that",
            ));
        }
        self.file.write(bytes)?;
        self.unsynced = self.unsynced.saturating_add(bytes.len());
        if self.unsynced >= limits::LEDGER_SNAPSHOT_PIECE {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}
