//! `leasehold audit`.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::Manner,
    output::{fields, note, print, print_json, print_json_line},
    when,
};
use crate::{
    ledger::{self, Dir, Head, ReadError, Report},
    name::{Digest, PrincipalKind},
    proto::v1,
};

/// Reads the record of every decision and every ending.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold audit verify /var/lib/leasehold
  leasehold audit verify /var/lib/leasehold -o json | jq -r '\"\\(.head.index):\\(.head.digest)\"' > head.txt   keep it elsewhere
  leasehold audit verify /var/lib/leasehold --head $(cat head.txt)
  leasehold audit tail --from 1 --no-follow -o json | jq 'select(.record.type == \"revoked\")'")]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Verifies a ledger from its files alone; exits with 7 where one byte does not fit. Offline, changes nothing.
    ///
    /// The chain by itself cannot show that its tail was cut off, or that all of it was computed anew: compare it with a
    /// head that was kept elsewhere.
    Verify {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// A head that was kept elsewhere: INDEX:sha256:…, or a file that holds one.
        #[arg(long, value_name = "FILE|INDEX:DIGEST")]
        head: Option<String>,
    },
    /// Prints records as they are written.
    Tail {
        /// The first record to print; only what comes otherwise.
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        from: u64,
        /// Stop at the end of what is there.
        #[arg(long)]
        no_follow: bool,
    },
}

impl AuditArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            AuditCommand::Verify { dir, head } => verify(&dir, head.as_deref(), session),
            AuditCommand::Tail { from, no_follow } => tail(from, no_follow, session).await,
        }
    }
}

/// A head as the daemon or the command line writes it; other keys are theirs.
#[derive(Deserialize)]
struct HeadFile {
    index: u64,
    digest: Digest,
}

fn read_head(text: &str) -> Result<Head, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("`{}` is no head: {why}", text.escape_debug()))
            .fix("write INDEX:sha256:…, or the path of a file that holds it")
    };
    let parse = |text: &str| {
        let (index, digest) = text.trim().split_once(':')?;
        Some(Head { index: index.parse().ok()?, digest: digest.parse().ok()? })
    };
    if let Some(head) = parse(text) {
        return Ok(head);
    }
    let mut held = String::new();
    File::open(text)
        .and_then(|f| f.take(4_096).read_to_string(&mut held))
        .map_err(|e| wrong(e.to_string()))?;
    let json = || {
        let head: HeadFile = serde_json::from_str(&held).ok()?;
        Some(Head { index: head.index, digest: head.digest })
    };
    parse(&held).or_else(json).ok_or_else(|| wrong("the file holds none".to_owned()))
}

fn verify(dir: &Path, head: Option<&str>, session: &Session) -> Result<Exit, Failure> {
    let expected = head.map(read_head).transpose()?;
    if !dir.is_dir() {
        return Err(Failure::usage(format!("`{}` is not a directory", dir.display()))
            .fix("name the directory of the ledger: server.state of the daemon's configuration"));
    }
    let report = ledger::verify(&Dir::at(dir), expected).map_err(|e| of_ledger(&e, dir))?;
    if report.records == 0 {
        // A daemon writes its first record before it is ready, so this is no ledger, or no longer one.
        return Err(Failure::new(
            Exit::VerificationFailed,
            format!("`{}` holds no record of a ledger", dir.display()),
        )
        .fix("name the directory of the ledger; if it is this one, its segments were taken away"));
    }
    let now = session.now().wall;
    if session.is_json() {
        let at = |place: Option<(u64, crate::clock::Wall)>| {
            place.map(|(index, time)| json!({ "index": index, "at": time.to_string() }))
        };
        print_json(&json!({
            "good": true, "records": report.records, "segments": report.segments, "bytes": report.bytes,
            "first": at(report.first), "last": at(report.last),
            "head": { "index": report.head.index, "digest": report.head.digest.to_string() },
            "epochs": report.epochs, "epoch": report.epoch, "types": report.types, "refused": report.refused,
            "torn_bytes": report.torn, "compared_with_kept_head": expected.is_some(),
            "compared_with_head_file": report.head_file,
        }))?;
    } else {
        let last = report.last.map(|(_, at)| format!("{at} ({})", when::relative(at, now)));
        let types = report.types.iter().map(|(kind, count)| format!("{kind} {count}"));
        print(&fields([
            ("good", dir.display().to_string()),
            ("records", report.records.to_string()),
            ("of them", types.collect::<Vec<_>>().join("\n")),
            ("segments", report.segments.to_string()),
            ("first", report.first.map(|(_, at)| at.to_string()).unwrap_or_default()),
            ("last", last.unwrap_or_default()),
            ("epochs", report.epochs.to_string()),
            ("head", format!("{}:{}", report.head.index, report.head.digest)),
        ]))?;
    }
    for line in remarks(&report, expected.is_some()) {
        note(line);
    }
    Ok(Exit::Ok)
}

/// What an auditor should know beside the good news.
fn remarks(report: &Report, compared: bool) -> Vec<&'static str> {
    let mut out = Vec::new();
    if report.torn > 0 {
        out.push("The last line is not whole: a write under way, or one that a crash cut off. It was never answered.");
    }
    if report.refused > 0 {
        out.push(
            "Some places are empty: their records were refused by a write error, and never answered as good.",
        );
    }
    if !compared {
        out.push("Compared with no head that was kept elsewhere: keep this one, and give it by --head the next time.");
    }
    out
}

fn of_ledger(error: &ReadError, dir: &Path) -> Failure {
    match error {
        ReadError::Tamper(place) => Failure::new(
            Exit::VerificationFailed,
            "the ledger is not what was written",
        )
        .with(
            "where",
            if place.line > 0 { format!("{}:{}", place.file, place.line) } else { place.file.clone() },
        )
        .with("record", place.index.to_string())
        .with("what", place.what.to_string())
        .fix("keep these files as they are; compare with a copy and with heads that were kept elsewhere"),
        ReadError::Io { file, source } => {
            Failure::new(Exit::Failure, format!("{} cannot be read: {source}", dir.join(file).display()))
                .fix("read it as a user who may, or verify a copy")
        }
    }
}

async fn tail(from_index: u64, no_follow: bool, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Auditor, PrincipalKind::Operator])?;
    let request = v1::TailLedgerRequest { from_index, no_follow };
    let mut stream = client.follow(request, async |r| client.operator().tail_ledger(r).await).await?;
    loop {
        match stream.message().await.map_err(|status| client.failure(&status, Manner::Reads))? {
            None => return Ok(Exit::Ok),
            Some(answer) => {
                let record: Value = serde_json::from_str(&answer.record).unwrap_or(Value::Null);
                if session.is_json() {
                    print_json_line(&json!({ "index": answer.index, "record": record }))?;
                } else {
                    print(&line(answer.index, &record))?;
                }
            }
        }
    }
}

/// What stands around an event, which a row shows by itself or leaves out.
const ENVELOPE: [&str; 8] = ["v", "index", "prev", "time", "epoch", "refused", "type", "hash"];

/// One row: index, time, type, and what the event says.
fn line(index: u64, record: &Value) -> String {
    let text = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let said = record
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !ENVELOPE.contains(&key.as_str()) && !matches!(value, Value::Null));
    let said: Vec<_> = said
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key}={}", text.escape_debug()),
            other => format!("{key}={other}"),
        })
        .collect();
    format!("{index:>8}  {}  {:<18}  {}\n", text("time"), text("type"), said.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_from_the_command_line_and_from_a_file() {
        let digest = Digest::of(b"x");
        let written = format!("7:{digest}");
        let head = Head { index: 7, digest };
        assert_eq!(read_head(&written).unwrap(), head);
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for text in [format!("{written}\n"), format!(r#"{{"v":1,"index":7,"digest":"{digest}"}}"#)] {
            std::fs::write(path, text).unwrap();
            assert_eq!(read_head(path).unwrap(), head);
        }
        std::fs::write(path, "{}").unwrap();
        for bad in [path, "/nonexistent/head", "7", "x:sha256:00"] {
            assert_eq!(read_head(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_changed_ledger_ends_with_seven_and_says_where() {
        let tamper =
            ledger::Tamper { file: "ledger-1.jsonl".into(), line: 3, index: 3, what: ledger::Fault::Hash };
        let failure = of_ledger(&ReadError::Tamper(tamper), Path::new("/l"));
        assert_eq!(failure.exit.code(), 7);
        insta::assert_snapshot!(failure.render(), @r#"
        leasehold: error: the ledger is not what was written
          where   ledger-1.jsonl:3
          record  3
          what    it does not match its own hash: it was changed after it was written
          fix     keep these files as they are; compare with a copy and with heads that were kept elsewhere
        Nothing was changed.
        "#);
    }

    #[test]
    fn a_directory_without_a_record_is_not_good() {
        let folder = tempfile::tempdir().unwrap();
        let session = Session::new(crate::cli::Format::Json, None, None);
        assert_eq!(verify(folder.path(), None, &session).unwrap_err().exit.code(), 7);
        let gone = folder.path().join("gone");
        assert_eq!(verify(&gone, None, &session).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_record_is_one_row_without_its_envelope() {
        let record = json!({
            "v": 1, "index": 7, "prev": "sha256:0", "time": "2026-11-20T10:02:11.402Z", "epoch": 3,
            "type": "revoked", "behind": 2, "name": "job:j-1", "hash": "sha256:1",
        });
        assert_eq!(
            line(7, &record),
            "       7  2026-11-20T10:02:11.402Z  revoked             behind=2 name=job:j-1\n"
        );
    }
}
