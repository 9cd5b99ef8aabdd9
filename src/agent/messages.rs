//! The messages of the wrapper and the sidecar, beside the output of the work.

use std::{
    fmt,
    io::{self, Write},
    sync::Arc,
};

use crate::plain;

/// Takes messages of one line each. By default they go to stderr with the prefix `leasehold: `, because stdout belongs to the
/// child.
#[derive(Clone)]
pub struct MessageSink(Arc<dyn Fn(&str) + Send + Sync>);

/// Prints data on stdout. Only the sidecar calls this: a wrapper leaves stdout to its child.
pub(super) fn print_stdout(text: &str) {
    // If the reader closed stdout, the text is not needed.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

impl MessageSink {
    /// Prints on stderr, which the child shares.
    pub fn stderr() -> Self {
        MessageSink::new(|line| {
            // One write for each line, so that the line does not mix with the child's output. The write may fail if stderr is
            // closed.
            let _ = io::stderr().lock().write_all(format!("leasehold: {line}\n").as_bytes());
        })
    }

    /// Passes each line to `send`, without the prefix. `send` must not block.
    pub fn new(send: impl Fn(&str) + Send + Sync + 'static) -> Self {
        MessageSink(Arc::new(send))
    }

    /// Sends one line. Withholds texts that look like secrets. Escapes control characters, so that text from other programs
    /// cannot control the terminal.
    pub(super) fn send(&self, line: &str) {
        (self.0)(&plain::message(line));
    }
}

impl fmt::Debug for MessageSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageSink")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn control_characters_in_a_message_are_escaped() {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let lines = sent.clone();
        let messages = MessageSink::new(move |line| lines.lock().unwrap().push(line.to_owned()));
        messages.send("revoked: \u{1b}[2Jall is well\nreally\u{202e}");
        assert_eq!(*sent.lock().unwrap(), [r"revoked: \u{1b}[2Jall is well\nreally\u{202e}"]);
    }
}
