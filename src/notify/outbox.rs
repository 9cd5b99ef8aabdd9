//! The limited queue of one webhook.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{letter::Letter, occasion::Occasion};
use crate::{
    clock::LeaseTime,
    limits::{NOTICES_BYTES_MAX, NOTICES_MAX, NOTICES_REFUSED_PART},
};

/// Letters that wait for delivery, oldest first, and the last record that was read for this webhook.
#[derive(Default)]
pub(super) struct Outbox {
    queue: Mutex<LetterQueue>,
    filled: Notify,
}

#[derive(Default)]
struct LetterQueue {
    letters: VecDeque<WaitingLetter>,
    bytes: usize,
    /// The number of letters about refused requests, and their bytes.
    refused: (usize, usize),
    /// The last record that was read.
    read: u64,
    /// The number of letters that were dropped since the queue was last empty.
    dropped: u64,
}

/// A letter, and when it began to wait.
#[derive(Clone, Debug)]
pub(super) struct WaitingLetter {
    pub(super) letter: Letter,
    pub(super) since: LeaseTime,
}

/// The result of putting a letter into an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Waits,
    /// The letter was dropped, for the first time since the queue was last empty.
    DroppedFirst,
    Dropped,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, LetterQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the record after which this outbox begins.
    pub(super) fn begin_after(&self, index: u64) {
        self.lock().read = index;
    }

    /// Puts a letter at the end, unless the queue is full. A full queue keeps the oldest letters, because they show how a flood
    /// began. Letters about refused requests may use only a part of the queue, so that they cannot fill it.
    pub(super) fn put(&self, letter: Letter, now: LeaseTime) -> Put {
        let mut queue = self.lock();
        let bytes = queue.bytes.saturating_add(letter.bytes());
        let is_about_refused = letter.occasion == Occasion::Refused;
        let refused = match is_about_refused {
            true => (queue.refused.0.saturating_add(1), queue.refused.1.saturating_add(letter.bytes())),
            false => (0, 0),
        };
        if queue.letters.len() >= NOTICES_MAX
            || bytes > NOTICES_BYTES_MAX
            || refused.0 > NOTICES_MAX / NOTICES_REFUSED_PART
            || refused.1 > NOTICES_BYTES_MAX / NOTICES_REFUSED_PART
        {
            queue.dropped = queue.dropped.saturating_add(1);
            return if queue.dropped == 1 { Put::DroppedFirst } else { Put::Dropped };
        }
        queue.bytes = bytes;
        if is_about_refused {
            queue.refused = refused;
        }
        queue.letters.push_back(WaitingLetter { letter, since: now });
        drop(queue);
        self.filled.notify_one();
        Put::Waits
    }

    /// Notes that all records up to this one were read.
    pub(super) fn has_read(&self, index: u64) {
        self.lock().read = index;
    }

    /// Returns the oldest letter.
    pub(super) fn first(&self) -> Option<WaitingLetter> {
        self.lock().letters.front().cloned()
    }

    /// Removes the oldest letter. If the queue is empty after that, returns how many letters were dropped because it was full.
    pub(super) fn remove_first(&self) -> Option<u64> {
        let mut queue = self.lock();
        let gone = queue.letters.pop_front()?;
        queue.bytes = queue.bytes.saturating_sub(gone.letter.bytes());
        if gone.letter.occasion == Occasion::Refused {
            let (number, bytes) = queue.refused;
            queue.refused = (number.saturating_sub(1), bytes.saturating_sub(gone.letter.bytes()));
        }
        let dropped = queue.letters.is_empty().then(|| std::mem::take(&mut queue.dropped));
        dropped.filter(|n| *n > 0)
    }

    /// Returns the record up to which no letter waits.
    pub(super) fn place(&self) -> u64 {
        let queue = self.lock();
        queue.letters.front().map_or(queue.read, |first| first.letter.index.saturating_sub(1))
    }

    /// Resolves when a letter was put since the last call.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn letter(index: u64, bytes: usize) -> Letter {
        let occasion = Occasion::Waiting;
        Letter { index, occasion, id: String::new(), content_type: "", body: Bytes::from(vec![0; bytes]) }
    }

    fn about_refused(index: u64, bytes: usize) -> Letter {
        Letter { occasion: Occasion::Refused, ..letter(index, bytes) }
    }

    // Any caller can cause notices of refused requests. They leave a part of the queue for other notices.
    #[test]
    fn a_flood_of_refusals_leaves_room_for_the_rest() {
        let (flooded, large) = (Outbox::default(), Outbox::default());
        let waiting = (1..=NOTICES_MAX as u64)
            .filter(|n| flooded.put(about_refused(*n, 1), LeaseTime(0)) == Put::Waits);
        assert_eq!(waiting.count(), NOTICES_MAX / 4);
        let waiting =
            (0..NOTICES_MAX as u64).filter(|n| flooded.put(letter(*n, 1), LeaseTime(0)) == Put::Waits);
        assert_eq!(waiting.count(), NOTICES_MAX - NOTICES_MAX / 4);
        assert_eq!(large.put(about_refused(1, NOTICES_BYTES_MAX / 4), LeaseTime(0)), Put::Waits);
        assert_eq!(large.put(about_refused(2, 1), LeaseTime(0)), Put::DroppedFirst);
        large.remove_first();
        assert_eq!(large.put(about_refused(3, 1), LeaseTime(0)), Put::Waits);
    }

    #[test]
    fn an_outbox_is_bounded_in_number() {
        let outbox = Outbox::default();
        for index in 1..=NOTICES_MAX as u64 {
            assert_eq!(outbox.put(letter(index, 1), LeaseTime(0)), Put::Waits);
        }
        assert_eq!(outbox.put(letter(9_999, 1), LeaseTime(0)), Put::DroppedFirst);
        assert_eq!(outbox.put(letter(9_999, 1), LeaseTime(0)), Put::Dropped);
        assert_eq!(outbox.first().unwrap().letter.index, 1, "what came first stays");
        let reported: Vec<u64> = (0..NOTICES_MAX).filter_map(|_| outbox.remove_first()).collect();
        assert_eq!(reported, [2], "the dropped ones are reported once, when the queue is empty");
    }

    #[test]
    fn an_outbox_is_bounded_in_bytes() {
        let outbox = Outbox::default();
        assert_eq!(outbox.put(letter(1, NOTICES_BYTES_MAX), LeaseTime(0)), Put::Waits);
        assert_eq!(outbox.put(letter(2, 1), LeaseTime(0)), Put::DroppedFirst);
        outbox.remove_first();
        assert_eq!(outbox.put(letter(3, 1), LeaseTime(0)), Put::Waits);
    }

    #[test]
    fn the_place_is_before_the_first_that_waits() {
        let outbox = Outbox::default();
        outbox.begin_after(10);
        assert_eq!(outbox.place(), 10);
        outbox.put(letter(14, 1), LeaseTime(0));
        outbox.has_read(20);
        assert_eq!(outbox.place(), 13);
        outbox.remove_first();
        assert_eq!(outbox.place(), 20);
    }
}
