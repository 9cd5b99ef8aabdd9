//! The memory for uploads into object stores. Received bytes wait in this memory until they are sent.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::store::StoreError;
use crate::{
    limits::GATEWAY_UPLOAD_BLOCK,
    link::{Share, Shares},
    name::SpiffeId,
};

/// The memory for the uploads of one holder. It is counted in KiB, for each holder and for all holders together.
#[derive(Clone, Debug)]
pub(super) struct UploadMemory {
    kib: Arc<Shares>,
    holder: SpiffeId,
}

impl UploadMemory {
    pub(super) fn new(kib: Arc<Shares>, holder: SpiffeId) -> Self {
        UploadMemory { kib, holder }
    }

    /// Takes memory for an upload, until the share is dropped.
    ///
    /// # Errors
    ///
    /// The holder's share is used up, or all memory is in use.
    pub(super) fn take(&self, bytes: usize) -> Result<Share, StoreError> {
        let kib = bytes.div_ceil(1 << 10).max(1);
        self.kib.take(&self.holder, kib).map_err(|_| StoreError::NoMemory)
    }
}

/// Bytes that wait to be sent, in a few large blocks. A received piece would keep the whole buffer of its connection,
/// even if it is one byte long.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    full: Vec<Bytes>,
    last: BytesMut,
    size: usize,
}

impl Blocks {
    /// Copies bytes to the end.
    pub(super) fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.last.len() == self.last.capacity() {
                let full = std::mem::take(&mut self.last).freeze();
                self.full.extend((!full.is_empty()).then_some(full));
                // The blocks of a small object are small.
                self.last = BytesMut::with_capacity(self.size.clamp(4 << 10, GATEWAY_UPLOAD_BLOCK));
            }
            let room = self.last.capacity().saturating_sub(self.last.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.last.extend_from_slice(now);
            self.size = self.size.saturating_add(now.len());
            bytes = later;
        }
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }
}

impl IntoIterator for Blocks {
    type Item = Bytes;
    type IntoIter = std::iter::Chain<std::vec::IntoIter<Bytes>, std::option::IntoIter<Bytes>>;

    fn into_iter(self) -> Self::IntoIter {
        let last = Some(self.last.freeze()).filter(|last| !last.is_empty());
        self.full.into_iter().chain(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Many small pieces take little more memory than their bytes.
    #[test]
    fn small_pieces_are_kept_in_few_blocks() {
        let (mut blocks, size) = (Blocks::default(), 3 << 20);
        for n in 0..size {
            blocks.add(&[u8::try_from(n % 251).unwrap()]);
        }
        assert_eq!(blocks.size(), size);
        let all: Vec<Bytes> = blocks.into_iter().collect();
        assert!(all.len() < 30, "{} blocks", all.len());
        let whole = all.concat();
        assert!(
            whole.len() == size && whole.iter().enumerate().all(|(n, byte)| usize::from(*byte) == n % 251)
        );
        let mut one = Blocks::default();
        one.add(b"x");
        assert!(one.last.capacity() <= 8 << 10, "{} bytes for one", one.last.capacity());
        assert_eq!(Blocks::default().into_iter().count(), 0);
    }

    // One holder leaves memory to another.
    #[test]
    fn a_holder_leaves_memory_to_others() {
        let all = Shares::new(256, 256);
        let memory = |name: &str| {
            UploadMemory::new(all.clone(), format!("spiffe://td.example/{name}").parse().unwrap())
        };
        let held: Vec<Share> = std::iter::from_fn(|| memory("a").take(10 << 10).ok()).collect();
        // The 13th share was taken while 136 of 256 KiB were left. With it, the holder has 130 KiB, and 126 KiB are left.
        assert_eq!(held.len(), 13, "about half of all");
        assert!(memory("b").take(130 << 10).is_err() && memory("b").take(60 << 10).is_ok());
        drop(held);
        assert!(memory("b").take(130 << 10).is_ok());
    }
}
