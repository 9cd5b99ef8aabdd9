//! Shows people how far a copy has come.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{agent::messages::MessageSink, clock::Clock, limits::STAGE_SAY, plain::bytes_shown};

/// The bytes of one copy.
#[derive(Debug)]
pub(super) struct CopyProgress {
    total: u64,
    copied: AtomicU64,
}

impl CopyProgress {
    pub(super) fn new(total: u64) -> Self {
        CopyProgress { total, copied: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Runs a copy. Every few seconds, prints a line that begins with `what`.
    pub(super) async fn report<T>(
        &self,
        what: &str,
        copy: impl Future<Output = T>,
        clock: &dyn Clock,
        messages: &MessageSink,
    ) -> T {
        let mut copy = pin!(copy);
        let began = clock.now().lease;
        loop {
            tokio::select! {
                biased;
                done = &mut copy => return done,
                () = clock.sleep(STAGE_SAY) => {
                    let copied = self.copied.load(Ordering::Relaxed);
                    let speed = copied / clock.now().lease.since(began).as_secs().max(1);
                    messages.send(&format!(
                        "{what}: {} of {}, {} per second",
                        bytes_shown(copied),
                        bytes_shown(self.total),
                        bytes_shown(speed)
                    ));
                }
            }
        }
    }
}

/// Shows a number of files to people.
pub(super) fn files_shown(files: u64) -> String {
    match files {
        1 => "1 file".to_owned(),
        more => format!("{more} files"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::clock::{Wall, manual::ManualClock};

    #[tokio::test]
    async fn a_long_copy_says_how_far_it_is() {
        let (clock, sent) = (ManualClock::new(Wall(0)), Arc::new(Mutex::new(Vec::new())));
        let lines = sent.clone();
        let messages = MessageSink::new(move |line| lines.lock().unwrap().push(line.to_owned()));
        let progress = CopyProgress::new(4 << 20);
        let copy = async {
            progress.add(1 << 20);
            tokio::task::yield_now().await;
            clock.advance(STAGE_SAY);
            while sent.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            7
        };
        assert_eq!(progress.report("copying x", copy, &clock, &messages).await, 7);
        let line = sent.lock().unwrap().first().cloned().unwrap();
        assert!(line.starts_with("copying x: 1.0 MiB of 4.0 MiB, "), "{line}");
    }
}
