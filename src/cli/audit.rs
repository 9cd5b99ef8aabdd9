//! `leasehold audit`.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    audit_tail::TailArgs,
    client::CallKind,
    output::{Page, TableCell, fields, note, print, print_line},
    timestamp,
};
use crate::{
    ledger::{self, Dir, Head, HeadPublic, ReadError, SignedHead, VerifyReport},
    limits,
    name::{Digest, PrincipalKind},
    proto::v1,
    state::Recorded,
};

/// Reads the record of every decision and every ending.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold audit verify /var/lib/leasehold
  leasehold audit head --key > ledger.pub        once; keep it elsewhere
  leasehold audit head > head.json               as often as you like; keep the last one elsewhere
  leasehold audit verify /var/lib/leasehold --head head.json --key ledger.pub
  leasehold audit tail --from 1 --no-follow --about dataset:acme/tickets
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
    #[command(after_help = "\
Examples:
  leasehold audit verify /var/lib/leasehold
  leasehold audit verify copy/ --head head.json --key ledger.pub
  leasehold audit verify copy/ -o json | jq .head")]
    Verify {
        /// The ledger: server.state of the daemon's configuration, or a copy of it.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// A head that was kept elsewhere: INDEX:sha256:…, or a file that holds one. The signature of a signed one is checked.
        #[arg(long, value_name = "FILE|INDEX:DIGEST")]
        head: Option<String>,
        /// The public key that the head must be signed with, as PEM; else the one in DIR.
        #[arg(long, value_name = "FILE", requires = "head")]
        key: Option<PathBuf>,
    },
    /// Prints the last durable record as the daemon signs it: keep it elsewhere, for `audit verify --head`.
    #[command(after_help = "\
Examples:
  leasehold audit head >> heads.jsonl               from cron; to another machine
  leasehold audit head --key > ledger.pub           once")]
    Head {
        /// Print the public key instead, once, to keep it with the heads.
        #[arg(long)]
        key: bool,
    },
    /// Prints records as they are written, one a row. For platform operators, and auditors of all tenants.
    ///
    /// A row fits the terminal; `-o wide` shows more of a record and `-o json` all of it, a line each. Goes on after a restart of
    /// the daemon with the record that comes next.
    #[command(after_help = "\
Examples:
  leasehold audit tail
  leasehold audit tail --since 2h --no-follow --type revoked,lock.set,denied
  leasehold audit tail --since 2026-11-29T08:00:00Z --until 2026-11-29T09:00:00Z -o wide
  leasehold audit tail --from 1 --no-follow --about dataset:acme/tickets      every version of it
  leasehold audit tail --from 1 --no-follow -o json > records.jsonl")]
    Tail(TailArgs),
}

impl AuditArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            AuditCommand::Verify { dir, head, key } => verify(&dir, head.as_deref(), key.as_deref(), session),
            AuditCommand::Head { key } => head(key, session).await,
            AuditCommand::Tail(args) => args.run(session).await,
        }
    }
}

/// A head as the daemon or the command line writes it; other keys are theirs.
#[derive(Deserialize)]
struct HeadFile {
    index: u64,
    digest: Digest,
}

/// A head that was kept, and its signature where it has one.
#[derive(Debug, PartialEq)]
struct KeptHead {
    head: Head,
    signed: Option<SignedHead>,
}

fn read_head(text: &str) -> Result<KeptHead, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("`{}` is no head: {why}", text.escape_debug()))
            .fix("write INDEX:sha256:…, or the path of a file that holds it")
    };
    let parse = |text: &str| {
        let (index, digest) = text.trim().split_once(':')?;
        Some(Head { index: index.parse().ok()?, digest: digest.parse().ok()? })
    };
    if let Some(head) = parse(text) {
        return Ok(KeptHead { head, signed: None });
    }
    let mut held = String::new();
    File::open(text)
        .and_then(|f| f.take(4_096).read_to_string(&mut held))
        .map_err(|e| wrong(e.to_string()))?;
    if let Ok(signed) = held.parse::<SignedHead>() {
        return Ok(KeptHead { head: signed.head, signed: Some(signed) });
    }
    let json = || {
        let head: HeadFile = serde_json::from_str(&held).ok()?;
        Some(Head { index: head.index, digest: head.digest })
    };
    let head = parse(&held).or_else(json).ok_or_else(|| wrong("the file holds none".to_owned()))?;
    Ok(KeptHead { head, signed: None })
}

/// Believes a signed head by a key, and one that is not signed only where no key was given.
fn believe(kept: &KeptHead, key: Option<&Path>, dir: &Path) -> Result<(), Failure> {
    let Some(signed) = &kept.signed else {
        return match key {
            None => Ok(()),
            Some(_) => Err(Failure::usage("the head is not signed, and a key was given to check it by")
                .fix("give a head as `leasehold audit head` prints it, or leave the key away")),
        };
    };
    let path = key.map_or_else(|| dir.join(ledger::HEAD_PUBLIC_FILE), Path::to_owned);
    let mut pem = String::new();
    File::open(&path)
        .and_then(|f| f.take(limits::PEM_BYTES_MAX).read_to_string(&mut pem))
        .map_err(|e| Failure::usage(format!("the key {} cannot be read: {e}", path.display())))?;
    let public = HeadPublic::from_pem(&pem)
        .ok_or_else(|| Failure::usage(format!("{} is no Ed25519 public key as PEM", path.display())))?;
    public.verify(signed).map_err(|why| {
        Failure::new(Exit::VerificationFailed, format!("the head is not to be believed: {why}"))
            .with("key", format!("{}, {}", public.id(), path.display()))
            .with("head", format!("says that it was signed with {}", signed.key))
            .fix(
                "compare with the key that `leasehold audit head --key` printed when you began to keep heads",
            )
    })
}

async fn head(key: bool, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(PrincipalKind::ALL)?;
    let answer = client
        .ask(CallKind::Reads, v1::WhoAmIRequest {}, async |r| client.operator().who_am_i(r).await)
        .await?;
    if answer.ledger_head.is_empty() {
        return Err(Failure::new(
            Exit::Denied,
            "the daemon hands its head to those who may read the whole ledger",
        )
        .fix("come as an operator or auditor of the platform: see `leasehold whoami`"));
    }
    match key {
        // The key is PEM, of several lines.
        true => print(&Page::lines(answer.ledger_key.lines()))?,
        false => print_line(&answer.ledger_head)?,
    }
    Ok(Exit::Ok)
}

fn verify(dir: &Path, head: Option<&str>, key: Option<&Path>, session: &Session) -> Result<Exit, Failure> {
    let kept = head.map(read_head).transpose()?;
    if !dir.is_dir() {
        return Err(Failure::usage(format!("`{}` is not a directory", dir.display()))
            .fix("name the directory of the ledger: server.state of the daemon's configuration"));
    }
    if let Some(kept) = &kept {
        believe(kept, key, dir)?;
    }
    let expected = kept.as_ref().map(|k| k.head);
    let signed = kept.as_ref().is_some_and(|k| k.signed.is_some());
    let report = ledger::verify_folded(&Dir::at(dir), expected, &mut Recorded::default())
        .map_err(|e| of_ledger(&e, dir))?;
    if report.records == 0 {
        // A daemon writes its first record before it is ready, so this is no ledger, or no longer one.
        return Err(Failure::new(
            Exit::VerificationFailed,
            format!("`{}` holds no record of a ledger", dir.display()),
        )
        .fix("name the directory of the ledger; if it is this one, its segments were taken away"));
    }
    let now = session.now().wall;
    if session.for_programs() {
        let at = |place: Option<(u64, crate::clock::Wall)>| {
            place.map(|(index, time)| json!({ "index": index, "at": time.to_string() }))
        };
        session.print_value(&json!({
            "good": true, "records": report.records, "segments": report.segments, "bytes": report.bytes,
            "first": at(report.first), "last": at(report.last),
            "head": { "index": report.head.index, "digest": report.head.digest.to_string() },
            "epochs": report.epochs, "epoch": report.epoch, "types": report.types, "refused": report.refused,
            "torn_bytes": report.torn, "compared_with_kept_head": expected.is_some(),
            "compared_with_head_file": report.head_file, "kept_head_is_signed": signed,
            "snapshots": report.snapshots, "snapshots_followed": report.snapshots_followed,
        }))?;
    } else {
        let last = report.last.map(|(_, at)| format!("{at} ({})", timestamp::relative(at, now)));
        let (all, followed) = (report.snapshots, report.snapshots_followed);
        let snapshots = format!("{all}, of which {followed} follow from the records");
        let types = report.types.iter().map(|(kind, count)| format!("{kind} {count}"));
        print(&fields([
            ("good", TableCell::from(dir.display().to_string())),
            ("records", report.records.to_string().into()),
            ("of them", TableCell::list(types)),
            ("segments", report.segments.to_string().into()),
            ("snapshots", snapshots.into()),
            ("first", report.first.map(|(_, at)| at.to_string()).unwrap_or_default().into()),
            ("last", last.unwrap_or_default().into()),
            ("epochs", report.epochs.to_string().into()),
            ("head", format!("{}:{}", report.head.index, report.head.digest).into()),
        ]))?;
    }
    for line in remarks(&report, expected.is_some()) {
        note(&line);
    }
    Ok(Exit::Ok)
}

/// What an auditor should know beside the good news.
fn remarks(report: &VerifyReport, compared: bool) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    if report.torn > 0 {
        out.push(
            "The last line is not whole: a write under way, or one that a crash cut off. It was never answered.".into(),
        );
    }
    if report.refused > 0 {
        out.push(
            "Some places are empty: their records were refused by a write error, and never answered as good."
                .into(),
        );
    }
    if let Some((first, _)) = report.first.filter(|(index, _)| *index > 1) {
        let last = first.saturating_sub(1);
        out.push(format!(
            "Records 1 to {last} are not here. What follows from them is believed as the first snapshot says: verify the \
             segments that were moved away together with these."
        ));
    }
    if !compared {
        out.push(
            "Compared with no head that was kept elsewhere: keep this one, and give it by --head the next time.".into(),
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_from_the_command_line_and_from_a_file() {
        let digest = Digest::of(b"x");
        let written = format!("7:{digest}");
        let head = Head { index: 7, digest };
        assert_eq!(read_head(&written).unwrap(), KeptHead { head, signed: None });
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        for text in [format!("{written}\n"), format!(r#"{{"v":1,"index":7,"digest":"{digest}"}}"#)] {
            std::fs::write(path, text).unwrap();
            assert_eq!(read_head(path).unwrap(), KeptHead { head, signed: None });
        }
        std::fs::write(path, "{}").unwrap();
        for bad in [path, "/nonexistent/head", "7", "x:sha256:00"] {
            assert_eq!(read_head(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_signed_head_is_believed_by_its_key_alone() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = ledger::HeadKey::open(dir.path()).unwrap();
        ledger::HeadKey::open(other.path()).unwrap();
        let signed = key.sign(1, Head { index: 7, digest: Digest::of(b"x") }, crate::clock::Wall(1));
        let path = dir.path().join("kept.json");
        std::fs::write(&path, format!("{}\n", signed.as_str())).unwrap();
        let kept = read_head(path.to_str().unwrap()).unwrap();
        assert_eq!(kept.signed.as_ref(), Some(&signed));
        believe(&kept, None, dir.path()).unwrap();
        believe(&kept, Some(&dir.path().join("head.pub")), other.path()).unwrap();
        let failure = believe(&kept, None, other.path()).unwrap_err();
        assert_eq!(failure.exit.code(), 7);
        let unsigned = KeptHead { signed: None, ..kept };
        assert_eq!(believe(&unsigned, Some(&path), dir.path()).unwrap_err().exit, Exit::Usage);
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
        assert_eq!(verify(folder.path(), None, None, &session).unwrap_err().exit.code(), 7);
        let gone = folder.path().join("gone");
        assert_eq!(verify(&gone, None, None, &session).unwrap_err().exit, Exit::Usage);
    }
}
