//! The bytes of a file, in chunks whose memory is used again.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::store::StoreError;
use crate::limits::GATEWAY_CHUNK;

/// The number of sent chunks of one file that are kept, so that their memory is used again. One is sent while another is filled.
const SPARE_MAX: usize = 2;

/// Reads a range of a file, chunk by chunk.
#[derive(Debug)]
pub(super) struct FileChunks {
    file: File,
    left: Range<u64>,
    spare: SpareChunks,
    /// Whether the file system can read what is in memory without waiting for the disk.
    reads_memory: bool,
}

/// Chunks that were sent. Their memory is used for the next bytes.
type SpareChunks = Arc<Mutex<Vec<Vec<u8>>>>;

/// A chunk with bytes. Its memory goes back to `spare` when it was sent.
struct FilledChunk {
    chunk: Vec<u8>,
    filled: usize,
    spare: SpareChunks,
}

impl AsRef<[u8]> for FilledChunk {
    fn as_ref(&self) -> &[u8] {
        self.chunk.get(..self.filled).unwrap_or_default()
    }
}

impl Drop for FilledChunk {
    fn drop(&mut self) {
        give_back(&self.spare, std::mem::take(&mut self.chunk));
    }
}

fn give_back(spare: &SpareChunks, chunk: Vec<u8>) {
    let mut all = spare.lock().unwrap_or_else(PoisonError::into_inner);
    if all.len() < SPARE_MAX {
        all.push(chunk);
    }
}

impl FileChunks {
    pub(super) fn new(file: File, range: Range<u64>) -> Self {
        FileChunks { file, left: range, spare: SpareChunks::default(), reads_memory: true }
    }

    /// Whether everything was read.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_empty()
    }

    /// Reads the next chunk. Blocks.
    pub(super) fn read(&mut self) -> Result<Bytes, StoreError> {
        let (mut chunk, mut filled) = (self.take_chunk(), 0_usize);
        while let Some(free) = chunk.get_mut(filled..).filter(|free| !free.is_empty()) {
            match self.file.read_at(free, self.left.start.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled = filled.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 { Err(StoreError::Changed) } else { Ok(self.filled(chunk, filled)) }
    }

    /// Reads the next chunk if the system has it in memory. Does not wait for the disk.
    pub(super) fn read_memory(&mut self) -> Option<Bytes> {
        if !self.reads_memory {
            return None;
        }
        let mut chunk = self.take_chunk();
        let read =
            preadv2(&self.file, &mut [IoSliceMut::new(&mut chunk)], self.left.start, ReadWriteFlags::NOWAIT);
        match read {
            // The end of the file comes too early: the next read reports it.
            Ok(0) | Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(read) => return Some(self.filled(chunk, read)),
            Err(_) => self.reads_memory = false,
        }
        give_back(&self.spare, chunk);
        None
    }

    /// Returns memory that has the length of the next bytes.
    fn take_chunk(&self) -> Vec<u8> {
        let left = self.left.end.saturating_sub(self.left.start);
        let length = usize::try_from(left.min(GATEWAY_CHUNK)).unwrap_or(usize::MAX);
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut chunk = spare.unwrap_or_else(|| vec![0; length]);
        chunk.truncate(length);
        chunk
    }

    fn filled(&mut self, chunk: Vec<u8>, filled: usize) -> Bytes {
        self.left.start = self.left.start.saturating_add(filled as u64);
        Bytes::from_owner(FilledChunk { chunk, filled, spare: self.spare.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every byte of a range comes once and in order, by both ways to read. A file that became shorter is noticed.
    #[test]
    fn a_range_comes_whole_and_in_order() {
        let bytes: Vec<u8> =
            (0..3 * GATEWAY_CHUNK + 77).map(|n| u8::try_from(n / 251 % 256).unwrap()).collect();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let open = |range| FileChunks::new(File::open(&path).unwrap(), range);
        for range in [0..bytes.len(), 5..6, 70_000..bytes.len() - 3] {
            for is_memory_first in [true, false] {
                let mut chunks = open(range.start as u64..range.end as u64);
                let (mut read, mut held) = (Vec::new(), None);
                while !chunks.is_over() {
                    let from_memory = if is_memory_first { chunks.read_memory() } else { None };
                    let chunk = from_memory.unwrap_or_else(|| chunks.read().unwrap());
                    assert!(chunk.len() as u64 <= GATEWAY_CHUNK);
                    read.extend_from_slice(&chunk);
                    // A chunk that is still in use keeps its bytes.
                    if let Some((before, copy)) = held.replace((chunk.clone(), chunk.to_vec())) {
                        assert_eq!(before, copy);
                    }
                }
                assert_eq!(read, bytes[range.clone()]);
                drop(held);
                assert!(chunks.spare.lock().unwrap().len() <= SPARE_MAX);
            }
        }
        let mut short = open(0..bytes.len() as u64 + 1);
        for _ in 0..4 {
            short.read().unwrap();
        }
        assert!(short.read_memory().is_none() && matches!(short.read(), Err(StoreError::Changed)));
    }
}
