//! A disk in memory for tests. It loses bytes that were not synced, fills up and fails.

use std::{
    collections::BTreeMap,
    io::{self, Cursor, ErrorKind, Read},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use super::file::{DirectoryLock, Disk, DiskFile, LockError};

/// A seeded source of numbers (splitmix64). The same seed gives the same numbers.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }
}

#[derive(Clone, Default)]
pub struct Forgetful {
    core: Arc<Core>,
}

#[derive(Default)]
struct Core {
    state: Mutex<DiskState>,
    gate: Condvar,
    locked: AtomicBool,
    segments_locked: AtomicBool,
}

#[derive(Default)]
struct DiskState {
    inodes: BTreeMap<u64, Inode>,
    /// Names as they are seen, and as they would be after a crash.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next_inode: u64,
    faults: Faults,
    syncs: u64,
    writes: u64,
    dead: bool,
    held: bool,
    at_gate: u64,
}

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    reserved: usize,
}

/// The faults of the disk, until others are set.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    pub write: Option<ErrorKind>,
    pub sync: Option<ErrorKind>,
    /// Every change fails.
    pub read_only: bool,
    /// The number of bytes that fit on the disk.
    pub capacity: Option<usize>,
    /// The next write panics.
    pub panic: bool,
}

impl Forgetful {
    pub fn set(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// Returns the number of syncs and writes of files so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.syncs, state.writes)
    }

    /// Lets syncs wait until [`release`](Self::release).
    pub fn hold(&self) {
        self.state().held = true;
    }

    pub fn release(&self) {
        self.state().held = false;
        self.core.gate.notify_all();
    }

    /// Waits until a sync waits for [`release`](Self::release).
    pub fn wait_for_sync(&self) {
        let state = self.state();
        let limit = std::time::Duration::from_secs(20);
        let (_state, waited) = self.core.gate.wait_timeout_while(state, limit, |s| s.at_gate == 0).unwrap();
        assert!(!waited.timed_out(), "nothing was synced");
    }

    /// Returns the number of bytes in all files.
    pub fn used(&self) -> usize {
        self.state().used()
    }

    /// Returns the bytes of a file, and the bytes that would be left after a crash.
    pub fn file(&self, name: &str) -> Option<(Vec<u8>, Vec<u8>)> {
        let state = self.state();
        let seen = state.inodes.get(state.names.get(name)?)?.bytes.clone();
        let durable =
            state.durable_names.get(name).and_then(|i| state.inodes.get(i)).map(|i| i.durable.clone());
        Some((seen, durable.unwrap_or_default()))
    }

    /// Returns the content of the disk after the worst crash, with the segments in order.
    pub fn durable_text(&self) -> String {
        let state = self.state();
        let segments = state.durable_names.iter().filter(|(name, _)| name.starts_with("ledger-"));
        let text = segments.map(|(name, i)| match name.strip_suffix(".zst") {
            // The plain file has the same records.
            Some(plain) if state.durable_names.contains_key(plain) => Vec::new(),
            Some(_) => zstd::decode_all(state.inodes[i].durable.as_slice()).unwrap(),
            None => state.inodes[i].durable.clone(),
        });
        text.map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }

    /// Adds a file durably.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = state.new_inode();
        state.inodes.insert(inode, Inode { durable: bytes.clone(), bytes, reserved: 0 });
        state.names.insert(name.into(), inode);
        state.durable_names.insert(name.into(), inode);
    }

    /// Simulates a power failure: this disk stops, and the returned disk has the remaining bytes. Of the bytes that
    /// were not synced, nothing, all, a part, or a part and then blocks of zeros may remain.
    pub fn crash(&self, dice: &mut Dice) -> Forgetful {
        let mut state = self.state();
        state.dead = true;
        state.held = false;
        self.core.gate.notify_all();
        let mut left = DiskState::default();
        let mut all: Vec<String> = state.names.keys().chain(state.durable_names.keys()).cloned().collect();
        all.sort();
        all.dedup();
        for name in all {
            let (seen, durable) = (state.names.get(&name), state.durable_names.get(&name));
            let Some(inode) =
                (if dice.roll(2) == 0 { durable } else { seen }).and_then(|i| state.inodes.get(i))
            else {
                continue;
            };
            let mut bytes = inode.durable.clone();
            if let Some(rest) = inode.bytes.strip_prefix(bytes.as_slice()) {
                let keep = usize::try_from(dice.roll(rest.len() as u64 + 1)).unwrap();
                bytes.extend_from_slice(&rest[..keep]);
                if keep < rest.len() && dice.roll(3) == 0 {
                    bytes.resize(bytes.len() + rest.len() - keep, 0);
                }
            }
            let id = left.new_inode();
            left.inodes.insert(id, Inode { durable: bytes.clone(), bytes, reserved: inode.reserved });
            left.names.insert(name.clone(), id);
            left.durable_names.insert(name, id);
        }
        let core = Core { state: Mutex::new(left), ..Core::default() };
        Forgetful { core: Arc::new(core) }
    }

    /// Simulates a killed process on a running machine: returns another disk with all present bytes, synced or not.
    pub fn kill(&self) -> Forgetful {
        let state = self.state();
        let left = DiskState {
            inodes: state.inodes.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            next_inode: state.next_inode,
            ..DiskState::default()
        };
        Forgetful { core: Arc::new(Core { state: Mutex::new(left), ..Core::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.core.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl DiskState {
    fn new_inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode
    }

    fn used(&self) -> usize {
        self.names.values().filter_map(|i| self.inodes.get(i)).map(|i| i.bytes.len().max(i.reserved)).sum()
    }

    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn writable(&self) -> io::Result<()> {
        self.alive()?;
        if self.faults.read_only { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    fn inode(&mut self, name: &str) -> io::Result<&mut Inode> {
        let id = self.names.get(name).ok_or(ErrorKind::NotFound)?;
        self.inodes.get_mut(id).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

struct Unlock(Arc<Core>);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

struct UnlockSegments(Arc<Core>);

impl Drop for UnlockSegments {
    fn drop(&mut self) {
        self.0.segments_locked.store(false, Ordering::Release);
    }
}

impl Disk for Forgetful {
    fn lock(&self) -> Result<DirectoryLock, LockError> {
        if self.core.locked.swap(true, Ordering::AcqRel) {
            return Err(LockError::Held { by: None });
        }
        Ok(DirectoryLock::new(Unlock(self.core.clone())))
    }

    fn lock_segments(&self) -> Result<DirectoryLock, LockError> {
        if self.core.segments_locked.swap(true, Ordering::AcqRel) {
            return Err(LockError::Held { by: None });
        }
        Ok(DirectoryLock::new(UnlockSegments(self.core.clone())))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.state();
        state.alive()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn read(&self, file: &str, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let mut state = self.state();
        state.alive()?;
        let mut cursor = Cursor::new(state.inode(file)?.bytes.clone());
        cursor.set_position(offset);
        Ok(Box::new(cursor))
    }

    fn create(&self, file: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state();
        state.writable()?;
        if state.names.contains_key(file) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.new_inode();
        state.inodes.insert(inode, Inode::default());
        state.names.insert(file.into(), inode);
        Ok(Box::new(OpenFile { disk: self.clone(), inode, name: file.into() }))
    }

    fn append(&self, file: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state();
        state.alive()?;
        let inode = *state.names.get(file).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(OpenFile { disk: self.clone(), inode, name: file.into() }))
    }

    fn truncate(&self, file: &str, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        let inode = state.inode(file)?;
        inode.bytes.truncate(usize::try_from(bytes).unwrap());
        inode.durable = inode.bytes.clone();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        let inode = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.into(), inode);
        Ok(())
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        state.names.remove(file).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn reserve(&self, file: &str, bytes: u64) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        let bytes = usize::try_from(bytes).unwrap();
        let had = state.inode(file).map_or(0, |i| i.reserved);
        let free = state.faults.capacity.map_or(usize::MAX, |c| c.saturating_sub(state.used()));
        if bytes.saturating_sub(had) > free {
            return Err(ErrorKind::StorageFull.into());
        }
        let id = state.names.get(file).copied().unwrap_or_else(|| state.new_inode());
        state.inodes.entry(id).or_default().reserved = bytes;
        state.names.insert(file.into(), id);
        state.durable_names.insert(file.into(), id);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.state();
        state.writable()?;
        if let Some(kind) = state.faults.sync {
            return Err(kind.into());
        }
        state.durable_names = state.names.clone();
        Ok(())
    }
}

struct OpenFile {
    disk: Forgetful,
    inode: u64,
    name: String,
}

impl DiskFile for OpenFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.writable()?;
        assert!(!state.faults.panic, "a planted panic");
        state.writes += 1;
        let free = state.faults.capacity.map_or(usize::MAX, |c| c.saturating_sub(state.used()));
        // A failing write leaves a part of the bytes.
        let (fits, error) = match state.faults.write {
            Some(kind) => (bytes.len() / 2, Some(kind)),
            None if bytes.len() > free => (free, Some(ErrorKind::StorageFull)),
            None => (bytes.len(), None),
        };
        let inode = state.inodes.get_mut(&self.inode).ok_or(ErrorKind::NotFound)?;
        inode.bytes.extend_from_slice(&bytes[..fits.min(bytes.len())]);
        error.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.held {
            state.at_gate += 1;
            self.disk.core.gate.notify_all();
            state = self.disk.core.gate.wait_while(state, |s| s.held).unwrap();
            state.at_gate -= 1;
        }
        state.writable()?;
        state.syncs += 1;
        if let Some(kind) = state.faults.sync {
            return Err(kind.into());
        }
        let inode = state.inodes.get_mut(&self.inode).ok_or(ErrorKind::NotFound)?;
        inode.durable = inode.bytes.clone();
        Ok(())
    }
    fn in_place(&self) -> io::Result<()> {
        let named = self.disk.state().names.get(&self.name) == Some(&self.inode);
        named.then_some(()).ok_or_else(|| io::Error::other("it was removed, renamed or replaced"))
    }
}
