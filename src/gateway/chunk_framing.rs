//! A bound on the chunks of a chunked upload (`aws-chunked`). s3s keeps a chunk in memory until it is complete.

use crate::limits::GATEWAY_CHUNK_BYTES_MAX;

/// Follows a body in chunks, and fails at a chunk that is longer than any client sends.
pub(super) struct ChunkFraming(ChunkState);

impl Default for ChunkFraming {
    fn default() -> Self {
        ChunkFraming(ChunkState::Size(0))
    }
}

impl ChunkFraming {
    /// Follows the framing over some bytes.
    ///
    /// # Errors
    ///
    /// A chunk is too long, or its size is malformed.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<(), BadChunk> {
        self.0 = self.0.follow(bytes)?;
        Ok(())
    }
}

/// The position of the next byte in the framing (`HEX[;extension]\r\n`, data, `\r\n`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// In the size, with the digits that were read so far.
    Size(usize),
    /// After the size, before the end of the line, with the size.
    Line(usize),
    /// In the data or the line break after it, with the number of bytes that are left.
    Data(usize),
    /// After the last chunk, in the trailers.
    End,
}

/// A chunk is too long, or its size is not a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk of the body is longer than {GATEWAY_CHUNK_BYTES_MAX} bytes, or its size is malformed")]
pub(super) struct BadChunk;

impl ChunkState {
    /// Tracks the framing over some bytes.
    fn follow(mut self, mut bytes: &[u8]) -> Result<Self, BadChunk> {
        while let Some((byte, rest)) = bytes.split_first() {
            self = match self {
                ChunkState::End => return Ok(self),
                ChunkState::Data(left) => {
                    let skipped = left.min(bytes.len());
                    bytes = bytes.get(skipped..).unwrap_or_default();
                    self = match left.saturating_sub(skipped) {
                        0 => ChunkState::Size(0),
                        left => ChunkState::Data(left),
                    };
                    continue;
                }
                ChunkState::Size(size) => match (char::from(*byte).to_digit(16), byte) {
                    (Some(digit), _) => {
                        let size =
                            size.saturating_mul(16).saturating_add(usize::try_from(digit).unwrap_or(0));
                        if size > GATEWAY_CHUNK_BYTES_MAX {
                            return Err(BadChunk);
                        }
                        ChunkState::Size(size)
                    }
                    (None, b'\n') => ChunkState::after(size),
                    (None, b';' | b'\r') => ChunkState::Line(size),
                    (None, _) => return Err(BadChunk),
                },
                ChunkState::Line(size) if *byte == b'\n' => ChunkState::after(size),
                ChunkState::Line(size) => ChunkState::Line(size),
            };
            bytes = rest;
        }
        Ok(self)
    }

    /// Returns the state after the line of a size: the data and a line break, or the trailers.
    fn after(size: usize) -> Self {
        if size == 0 { ChunkState::End } else { ChunkState::Data(size.saturating_add(2)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The guard tracks the framing regardless of how the bytes are split, and refuses a chunk beyond the bound.
    #[test]
    fn a_long_chunk_is_refused_wherever_the_bytes_are_split() {
        let good = b"5;chunk-signature=ab\r\nhello\r\n3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
        for at in 0..good.len() {
            let (head, tail) = good.split_at(at);
            let state = ChunkState::Size(0).follow(head).and_then(|state| state.follow(tail));
            assert_eq!(state, Ok(ChunkState::End), "{at}");
        }
        let long = format!("3\r\nabc\r\n{:x}\r\n", GATEWAY_CHUNK_BYTES_MAX + 1);
        for bad in [long.as_str(), "ffffffffffffffffffff\r\n", "x\r\n", "-1\r\n"] {
            assert_eq!(ChunkState::Size(0).follow(bad.as_bytes()), Err(BadChunk), "{bad}");
        }
    }
}
