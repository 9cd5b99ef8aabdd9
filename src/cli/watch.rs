//! Shows a list again and again.

use std::io::{IsTerminal, stdout};

use serde_json::Value;

use super::{
    Exit, Failure, Session,
    client::Retries,
    output::{Page, print},
};
use crate::limits::WATCH;

/// Shows a list again and again, also if the daemon cannot be reached for a time. `look` fetches the list: a value for
/// programs, and a table.
pub(super) async fn watch(
    session: &Session,
    look: impl AsyncFn() -> Result<(Value, Page), Failure>,
) -> Result<Exit, Failure> {
    let mut retries = Retries::new();
    loop {
        let looked = async {
            let (value, table) = look().await?;
            retries.answered();
            if session.for_programs() { session.print_item(&value) } else { print(&screen(session, &table)) }
        };
        match looked.await {
            Ok(()) => session.clock.sleep(WATCH).await,
            failed => retries.wait(failed, session).await?,
        }
    }
}

/// Returns a page that is shown repeatedly. On a terminal, the page replaces the previous page.
fn screen(session: &Session, list: &Page) -> Page {
    let clear = if stdout().is_terminal() { "\u{1b}[2J\u{1b}[H" } else { "" };
    let now = session.now().wall.to_string();
    Page::verbatim(clear).then(&Page::line(&now)).then(list).below(&Page::default())
}
