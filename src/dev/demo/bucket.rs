//! The S3 download of a program that knows nothing of Leasehold, and how it is cut.

use std::{ffi::OsStr, io::Write, process::Stdio, time::Duration};

use http_body_util::BodyExt;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{
    story::Story,
    watch::{Observed, Stopwatch, within},
};
use crate::{
    clock::SystemClock,
    dev::{
        deployment::TENANT,
        s3_client::{S3Client, text_of},
    },
};

/// The pause between two reads of the program. It makes the download slow enough to be cut.
const READ_PAUSE: Duration = Duration::from_millis(5);

impl Story<'_> {
    pub(super) async fn show_bucket(&mut self) {
        let claim = "a program that uses S3 and knows nothing of leasehold is cut in its download";
        let begun = self.begin_s3_download().await;
        let (mut wrapper, mut lines, job) = match begun {
            Ok(begun) => begun,
            Err(why) => return self.report_ms(claim, 0.0, Err(why)),
        };
        let start = Stopwatch::now();
        let seen = async {
            self.revoke(&format!("job:{job}"), "demo: the S3 download must be cut").await?;
            let cut = next_line(&mut lines).await?;
            let ms = start.ms();
            let refused = next_line(&mut lines).await?;
            if !refused.contains("ExpiredToken") || !refused.contains("the S3 download must be cut") {
                return Err(format!("{cut}; then {refused}"));
            }
            Ok((format!("{cut}; its next request: 403 ExpiredToken, with the whole reason"), ms))
        }
        .await;
        self.report_measured(claim, start, seen);
        if let Err(error) = wrapper.kill().await {
            tracing::debug!(%error, "the wrapper had ended");
        }
    }

    /// Starts a wrapper whose program downloads an object by S3. Returns when half of the object has arrived.
    async fn begin_s3_download(&self) -> Observed<(Child, Lines<BufReader<ChildStdout>>, String)> {
        let stage = self.stage();
        let log = std::fs::File::create(stage.deployment.path("s3.stderr")).map_err(|e| e.to_string())?;
        let mut wrapper = Command::new(&stage.program)
            .env("LEASEHOLD_CONTEXTS", &stage.contexts)
            .args(["run", "--on-revoke", "ignore", "--spec"])
            .arg(stage.deployment.path("s3-job.toml"))
            .arg("--")
            .arg(&stage.program)
            .args(["__s3", &format!("{TENANT}/data/big.bin")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| e.to_string())?;
        let stdout = wrapper.stdout.take().ok_or("the wrapper has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let job = next_line(&mut lines).await.map_err(|why| {
            let log = std::fs::read_to_string(stage.deployment.path("s3.stderr")).unwrap_or_default();
            format!("{why}: {log}")
        })?;
        Ok((wrapper, lines, job))
    }
}

async fn next_line(lines: &mut Lines<BufReader<ChildStdout>>) -> Observed<String> {
    let line = within("the program's next line", lines.next_line()).await?.map_err(|e| e.to_string())?;
    line.ok_or_else(|| "the program ended".to_owned())
}

/// Runs as the program of the job. Prints the job when half of the object has arrived, then how the download ended, and then
/// the answer to another request.
pub fn download_slowly(object: &OsStr) -> u8 {
    let object = object.to_string_lossy().into_owned();
    let downloaded = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(download(&object)));
    match downloaded {
        Ok(()) => 0,
        Err(error) => {
            say(&error.to_string());
            1
        }
    }
}

async fn download(object: &str) -> std::io::Result<()> {
    let (client, clock) = (S3Client::from_env()?, SystemClock::new());
    let response = client.get(object, &clock).await?;
    if !response.status().is_success() {
        return Err(std::io::Error::other(text_of(response).await));
    }
    let length = response.headers().get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    let length: u64 = length.and_then(|text| text.parse().ok()).unwrap_or_default();
    let (mut body, mut got, mut has_half) = (response.into_body(), 0_u64, false);
    let end = loop {
        match body.frame().await {
            None => break format!("it got all of {length} bytes"),
            Some(Err(error)) => break format!("{error} after {got} of {length} bytes"),
            Some(Ok(frame)) => {
                got = got.saturating_add(frame.data_ref().map_or(0, bytes::Bytes::len) as u64);
            }
        }
        if got > length / 2 {
            if !std::mem::replace(&mut has_half, true) {
                say(&std::env::var("LEASEHOLD_JOB").unwrap_or_default());
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
    };
    say(&end);
    let again = client.get(object, &clock).await?;
    say(&text_of(again).await.replace('\n', " "));
    Ok(())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // If no process reads the line, the demo was stopped.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
