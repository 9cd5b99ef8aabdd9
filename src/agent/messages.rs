//! What the wrapper says, beside what its child says.

use std::{
    fmt,
    io::{self, Write},
    sync::Arc,
};

use crate::plain;

/// Takes one line at a time. stdout belongs to the child alone, so this is stderr, each line after `leasehold: `.
#[derive(Clone)]
pub struct MessageSink(Arc<dyn Fn(&str) + Send + Sync>);

/// Data for who reads stdout, where no child has it.
pub(super) fn print(text: &str) {
    // Who closed it wants to know nothing more.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

impl MessageSink {
    /// Speaks on the stderr that the child has too.
    pub fn stderr() -> Self {
        MessageSink::new(|line| {
            // Written at once, so that it does not mix with what the child writes. Who closed it wants to hear no more.
            let _ = io::stderr().lock().write_all(format!("leasehold: {line}\n").as_bytes());
        })
    }

    /// Speaks to somebody else, without the prefix. Must not wait.
    pub fn new(say: impl Fn(&str) + Send + Sync + 'static) -> Self {
        MessageSink(Arc::new(say))
    }

    /// Says one line. What came from elsewhere does not speak to the terminal.
    pub(super) fn say(&self, line: &str) {
        (self.0)(&plain::line(line));
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
    fn what_came_from_elsewhere_does_not_speak_to_the_terminal() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = heard.clone();
        let voice = MessageSink::new(move |line| ears.lock().unwrap().push(line.to_owned()));
        voice.say("revoked: \u{1b}[2Jall is well\nreally\u{202e}");
        assert_eq!(*heard.lock().unwrap(), [r"revoked: \u{1b}[2Jall is well\nreally\u{202e}"]);
    }
}
