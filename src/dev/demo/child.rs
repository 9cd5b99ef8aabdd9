//! The child that the wrappers of a story run.

use std::{ffi::OsStr, io, path::Path, process::Stdio};

use tokio::{
    io::AsyncWriteExt,
    process::Command,
    signal::unix::{SignalKind, signal},
};

use super::watch::LOOK;

/// Says its process id, waits for a file, and ends with the code that stands in it.
///
/// One that `saves` a checkpoint does so when it is told to end, by SIGTERM, and says what came of it; it goes on all the same.
pub fn await_word(go: &Path, saves: Option<&OsStr>) -> u8 {
    let waited = match saves {
        None => say_pid(go).map(|()| {
            loop {
                if let Some(code) = word(go) {
                    return code;
                }
                std::thread::sleep(LOOK);
            }
        }),
        Some(what) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| runtime.block_on(save_and_wait(go, what))),
    };
    waited.unwrap_or(1)
}

async fn save_and_wait(go: &Path, what: &OsStr) -> io::Result<u8> {
    let mut asked = signal(SignalKind::terminate())?;
    say_pid(go)?;
    let mut has_saved = false;
    loop {
        tokio::select! {
            _ = asked.recv() => if !std::mem::replace(&mut has_saved, true) {
                let said = save(what).await.unwrap_or_else(|e| e.to_string());
                put(&go.with_extension("saved"), &said)?;
            },
            () = tokio::time::sleep(LOOK) => if let Some(code) = word(go) {
                return Ok(code);
            },
        }
    }
}

/// Stores a checkpoint as a job's program does, by the credentials that its environment names.
async fn save(what: &OsStr) -> io::Result<String> {
    let mut store = Command::new(std::env::current_exe()?)
        .args(["dev", "store"])
        .arg(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = store.stdin.take() {
        stdin.write_all(CHECKPOINT).await?;
    }
    let done = store.wait_with_output().await?;
    Ok(match done.status.success() {
        true => SAVED.to_owned(),
        false => String::from_utf8_lossy(&done.stderr).into_owned(),
    })
}

/// What a child saves.
pub(super) const CHECKPOINT: &[u8] = b"weights, step 100\n";
/// What it says where it could.
pub(super) const SAVED: &str = "saved";

fn say_pid(go: &Path) -> io::Result<()> {
    put(&go.with_extension("pid"), &std::process::id().to_string())
}

/// What it is told to end with. A story that broke off takes its folder with it, and tells nobody any more.
fn word(go: &Path) -> Option<u8> {
    match std::fs::read_to_string(go) {
        Ok(text) => Some(text.trim().parse().unwrap_or(1)),
        Err(_) => go.parent().is_some_and(|folder| !folder.exists()).then_some(1),
    }
}

/// Writes a file whole.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("child-draft");
    std::fs::write(&draft, text)?;
    std::fs::rename(draft, path)
}
