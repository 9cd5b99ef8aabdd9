//! What follows from the records, kept beside them, so that a segment can begin with it.
//!
//! The writer's thread owns one [`Fold`] and gives it every record that is durable, in order. When a segment is full, the
//! next accepted record is preceded by a place for a snapshot: what the fold is after all records before that place is
//! written into a file of its own, and the record at that place, the first one of the new segment, holds its digest.
//! So a snapshot is exactly the state at its place, whatever was accepted meanwhile, and no caller waits for it.

use std::io::{self, Read};

use super::{
    event::{Event, Snapshot},
    file::Disk,
    record::{self, Line},
    segment,
};
use crate::{limits, name::Digest};

/// What follows from the records.
pub trait Fold: Send + 'static {
    /// The version of what [`write`](Fold::write) gives. Of another version nothing is read or compared.
    fn form(&self) -> u32;
    /// Whether events of this `type` change it.
    fn takes(&self, kind: &str) -> bool;
    /// Takes one more event, of the record at this index. After an error it is of no use.
    fn apply(&mut self, index: u64, event: Event) -> Result<(), &'static str>;
    /// How many things it holds, roughly: what a snapshot costs.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// All of it. The same records give the same bytes, also where it began with a snapshot on the way.
    fn write(&self) -> Result<Vec<u8>, serde_json::Error>;
    /// Becomes what was written. After an error it is as before.
    fn read(&mut self, text: &[u8]) -> Result<(), String>;
}

/// Snapshot files that are kept: the last, and the one before it should that one be damaged.
const KEPT: usize = 2;

/// Writes the snapshot that belongs to a place, durably, and answers the record of it.
pub(super) fn write(disk: &dyn Disk, index: u64, fold: &dyn Fold) -> io::Result<Snapshot> {
    let text = fold.write()?;
    let name = segment::snapshot_name(index);
    let draft = segment::SNAPSHOT_DRAFT;
    match disk.remove(draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = disk.create(draft)?;
    if let Err(error) = file.write(&text).and_then(|()| file.sync()) {
        drop(file);
        // A part of it would only take room from the records.
        let _ = disk.remove(draft);
        return Err(error);
    }
    drop(file);
    disk.rename(draft, &name)?;
    disk.sync_dir()?;
    Ok(Snapshot {
        form: fold.form(),
        digest: Digest::of(&text),
        bytes: u64::try_from(text.len()).unwrap_or(u64::MAX),
        latest: crate::clock::Wall(0),
    })
}

/// Removes the files of all but the last snapshots.
pub(super) fn prune(disk: &dyn Disk) -> io::Result<()> {
    let names = segment::snapshots_of(disk.list()?);
    for (_, old) in names.iter().rev().skip(KEPT) {
        disk.remove(old)?;
    }
    Ok(())
}

/// Reads the snapshot of a place into a fold. False where there is none that fits.
pub(super) fn read(disk: &dyn Disk, index: u64, said: &Snapshot, fold: &mut dyn Fold) -> bool {
    if said.form != fold.form() || said.bytes > limits::LEDGER_SNAPSHOT_BYTES_MAX {
        return false;
    }
    let mut text = Vec::new();
    let Ok(file) = disk.read(&segment::snapshot_name(index), 0) else { return false };
    if file.take(said.bytes.saturating_add(1)).read_to_end(&mut text).is_err() {
        return false;
    }
    if Digest::of(&text) != said.digest {
        tracing::warn!(index, "a ledger snapshot is damaged and is not used: more records are read instead");
        return false;
    }
    match fold.read(&text) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(index, %error, "a ledger snapshot cannot be read: more records are read instead");
            false
        }
    }
}

/// The first index of the last segment that begins with a snapshot which fits; the fold is then what that says.
pub(super) fn begin(disk: &dyn Disk, fold: &mut dyn Fold) -> io::Result<Option<(u64, Snapshot)>> {
    for (first, file) in segment::of(disk.list()?).into_iter().rev() {
        let mut line = Vec::new();
        let cap = u64::try_from(limits::LEDGER_RECORD_BYTES_MAX).unwrap_or(u64::MAX);
        let read = disk.read(&file, 0)?;
        let mut read = io::BufReader::new(read.take(cap));
        io::BufRead::read_until(&mut read, b'\n', &mut line)?;
        if line.pop_if(|b| *b == b'\n').is_none() {
            continue;
        }
        if let Ok(Line { index, kind: record::SNAPSHOT, fields, .. }) = record::split(&line)
            && index == first
            && let Ok(Event::Snapshot(said)) = record::event(fields)
            && self::read(disk, first, &said, fold)
        {
            return Ok(Some((first, said)));
        }
    }
    Ok(None)
}
