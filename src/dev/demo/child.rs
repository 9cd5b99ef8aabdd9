//! The command under the wrappers of a demo: it waits for a file, and exits with the code in the file.

use std::{ffi::OsStr, io, path::Path, process::Stdio};

use tokio::{
    io::AsyncWriteExt,
    process::Command,
    signal::unix::{SignalKind, signal},
};

use super::watch::LOOK;

/// Writes the process id into a file beside `go`, waits for the file `go`, and returns the exit code in it.
///
/// With `saves`, it saves a checkpoint when it gets SIGTERM, writes down whether that worked, and goes on waiting.
pub fn await_exit_code(go: &Path, saves: Option<&OsStr>) -> u8 {
    let waited = match saves {
        None => write_pid(go).map(|()| {
            loop {
                if let Some(code) = exit_code(go) {
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
    write_pid(go)?;
    let mut has_saved = false;
    loop {
        tokio::select! {
            _ = asked.recv() => if !std::mem::replace(&mut has_saved, true) {
                let result = save(what).await.unwrap_or_else(|e| e.to_string());
                write_atomically(&go.with_extension("saved"), &result)?;
            },
            () = tokio::time::sleep(LOOK) => if let Some(code) = exit_code(go) {
                return Ok(code);
            },
        }
    }
}

/// Stores a checkpoint like the program of a job, with the credentials that the environment names.
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

/// The checkpoint that a child saves.
pub(super) const CHECKPOINT: &[u8] = b"weights, step 100\n";
/// The text that the child writes if the checkpoint was saved.
pub(super) const SAVED: &str = "saved";

fn write_pid(go: &Path) -> io::Result<()> {
    write_atomically(&go.with_extension("pid"), &std::process::id().to_string())
}

/// Returns the exit code from the file, or 1 if the folder was removed because the story was stopped.
fn exit_code(go: &Path) -> Option<u8> {
    match std::fs::read_to_string(go) {
        Ok(text) => Some(text.trim().parse().unwrap_or(1)),
        Err(_) => go.parent().is_some_and(|folder| !folder.exists()).then_some(1),
    }
}

/// Writes a file as a whole, or not at all.
fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("child-draft");
    std::fs::write(&draft, text)?;
    std::fs::rename(draft, path)
}
