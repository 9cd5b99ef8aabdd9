//! Implements `leasehold audit`.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::{
    Exit, Failure, Session,
    audit_tail::TailArgs,
    output::{Page, TableCell, fields, note, print, print_line},
    timestamp,
};
use crate::{
    ledger::{self, Dir, Head, HeadPublic, ReadError, SignedHead, VerifyReport},
    limits,
    name::{Digest, PrincipalKind},
    plain,
    state::Recorded,
};

/// Reads and checks the record of every decision (the ledger).
#[derive(Debug, Args)]
#[command(after_help = "\
The ledger is a chain: each record has the digest of the previous one, so a changed record is
found. The head is the last record. Keep a signed head on another machine, and `audit verify
--head` also finds records that were cut off.

Examples:
  leasehold audit head > head.json
  leasehold audit verify /var/lib/leasehold --head head.json
  leasehold audit tail --from 1 --no-follow --about dataset:acme/tickets")]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Checks that no record of a ledger was changed; exits with 7 if one was. Needs no daemon.
    #[command(after_help = "\
The files cannot show that their last records were cut off, or that all of them were written
again. Compare them with a head that was kept on another machine: see `leasehold audit head`.

Examples:
  leasehold audit verify /var/lib/leasehold --archive /mnt/archive
  leasehold audit verify copy/ --head head.json --key ledger.pub
  leasehold audit verify copy/ -o json | jq .head")]
    Verify {
        /// The directory of the ledger: server.state of the daemon's configuration, or a copy of it
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// The directory to which `leasehold ledger archive` moved older records: check these too
        #[arg(long, value_name = "DIR")]
        archive: Option<PathBuf>,
        /// Compare with this head: INDEX:sha256:…, or a file that has one
        #[arg(long, value_name = "FILE|INDEX:DIGEST")]
        head: Option<String>,
        /// The public key that signed the head (PEM) [default: from DIR]
        #[arg(long, value_name = "FILE", requires = "head")]
        key: Option<PathBuf>,
    },
    /// Prints the signed head of the ledger, to keep on another machine.
    #[command(after_help = "\
Examples:
  leasehold audit head >> heads.jsonl               regularly
  leasehold audit head --key > ledger.pub           once")]
    Head {
        /// Print the public key that signs the heads, and no head
        #[arg(long)]
        key: bool,
    },
    /// Prints the records of the ledger as they are written, one a row.
    #[command(after_help = "\
Operators and auditors of the platform see all records. Those of a tenant see only the records
that concern their tenant, without an index. `-o wide` shows more of each record, and `-o json`
shows all of it. After a restart of the daemon, the command goes on with the next record.

Examples:
  leasehold audit tail --since 2h --no-follow --type revoked,lock.set,denied
  leasehold audit tail --from 1 --no-follow --about dataset:acme/tickets
  leasehold audit tail --from 1 --no-follow -o json > records.jsonl")]
    Tail(TailArgs),
}

impl AuditArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            AuditCommand::Verify { dir, archive, head, key } => {
                verify(&dir, archive.as_deref(), head.as_deref(), key.as_deref(), session)
            }
            AuditCommand::Head { key } => print_head(key, session).await,
            AuditCommand::Tail(args) => args.run(session).await,
        }
    }
}

/// A head in JSON, as the daemon or the command line writes it. Other keys are ignored.
#[derive(Deserialize)]
struct HeadFile {
    index: u64,
    digest: Digest,
}

/// A head that a person kept, with its signature if it is signed.
#[derive(Debug, PartialEq)]
struct KeptHead {
    head: Head,
    signed: Option<SignedHead>,
}

fn read_head(text: &str) -> Result<KeptHead, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("`{}` is not a head: {why}", plain::value(text)))
            .fix("write INDEX:sha256:…, or the path of a file that `leasehold audit head` wrote")
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
    let head = parse(&held).or_else(json).ok_or_else(|| wrong("the file has no head".to_owned()))?;
    Ok(KeptHead { head, signed: None })
}

/// Checks the signature of a head. An unsigned head passes only if no key was given.
fn check_signature(kept: &KeptHead, key: Option<&Path>, dir: &Path) -> Result<(), Failure> {
    let Some(signed) = &kept.signed else {
        return match key {
            None => Ok(()),
            Some(_) => Err(Failure::usage("the head is not signed, so --key cannot check it")
                .fix("give a head that `leasehold audit head` printed, or leave --key out")),
        };
    };
    let path = key.map_or_else(|| dir.join(ledger::HEAD_PUBLIC_FILE), Path::to_owned);
    let mut pem = String::new();
    File::open(&path)
        .and_then(|f| f.take(limits::PEM_BYTES_MAX).read_to_string(&mut pem))
        .map_err(|e| Failure::usage(format!("the key {} cannot be read: {e}", plain::path(&path))))?;
    let public = HeadPublic::from_pem(&pem).ok_or_else(|| {
        Failure::usage(format!("{} is not an Ed25519 public key in PEM form", plain::path(&path)))
    })?;
    public.verify(signed).map_err(|why| {
        Failure::new(Exit::VerificationFailed, format!("the signature of the head is wrong: {why}"))
            .with("key", format!("{}, {}", public.id(), path.display()))
            .with("head", format!("names the key {}", signed.key))
            .fix("use the key that `leasehold audit head --key` printed when you kept the first head")
    })
}

async fn print_head(key: bool, session: &Session) -> Result<Exit, Failure> {
    let client = session.client(&[PrincipalKind::Operator, PrincipalKind::Auditor])?;
    let answer = client.who_am_i().await?;
    if answer.ledger_head.is_empty() {
        return Err(Failure::new(
            Exit::Denied,
            "you may not read the whole ledger, so the daemon does not give you its head",
        )
        .fix("ask as an operator or auditor of the platform: see `leasehold whoami`"));
    }
    match key {
        // The PEM text of the key has several lines.
        true => print(&Page::lines(answer.ledger_key.lines()))?,
        false => print_line(&answer.ledger_head)?,
    }
    Ok(Exit::Ok)
}

fn verify(
    dir: &Path,
    archive: Option<&Path>,
    head: Option<&str>,
    key: Option<&Path>,
    session: &Session,
) -> Result<Exit, Failure> {
    let kept = head.map(read_head).transpose()?;
    check_is_ledger(dir)?;
    if let Some(archive) = archive.filter(|archive| !archive.is_dir()) {
        return Err(Failure::usage(format!("`{}` is not a directory", plain::path(archive)))
            .fix("name the directory to which `leasehold ledger archive --to` moved records"));
    }
    if let Some(kept) = &kept {
        check_signature(kept, key, dir)?;
    }
    let expected = kept.as_ref().map(|k| k.head);
    let mut state = Recorded::default();
    let report = match archive {
        None => ledger::verify_folded(&Dir::at(dir), expected, &mut state),
        Some(archive) => ledger::verify_with_archive(
            Arc::new(Dir::at(dir)),
            Arc::new(Dir::at(archive)),
            expected,
            &mut state,
        ),
    }
    .map_err(|e| ledger_failure(&e, dir))?;
    if report.records == 0 {
        // A daemon writes its first record before it is ready. So this directory is no ledger, or the files of the ledger were
        // removed.
        return Err(Failure::new(
            Exit::VerificationFailed,
            format!("`{}` has no record of a ledger", plain::path(dir)),
        )
        .fix("name the directory of the ledger; if this is the directory, its files were removed"));
    }
    if let Some(archive) = archive
        && let Some((first, _)) = report.first.filter(|(index, _)| *index > 1)
    {
        let last = first.saturating_sub(1);
        let text = format!(
            "records 1 to {last} are neither in `{}` nor in `{}`",
            plain::path(dir),
            plain::path(archive)
        );
        return Err(Failure::new(Exit::VerificationFailed, text).fix(
            "look for another archive or a copy of it; to check only what is in the ledger's directory, leave out --archive",
        ));
    }
    print_report(&report, dir, kept.as_ref(), session)?;
    for line in remarks(&report, expected.is_some()) {
        note(&line);
    }
    Ok(Exit::Ok)
}

/// Refuses a path that is no directory.
pub(super) fn check_is_ledger(dir: &Path) -> Result<(), Failure> {
    if dir.is_dir() {
        return Ok(());
    }
    Err(Failure::usage(format!("`{}` is not a directory", plain::path(dir)))
        .fix("name the directory of the ledger: server.state of the daemon's configuration"))
}

fn print_report(
    report: &VerifyReport,
    dir: &Path,
    kept: Option<&KeptHead>,
    session: &Session,
) -> Result<(), Failure> {
    let (compared, signed) = (kept.is_some(), kept.is_some_and(|k| k.signed.is_some()));
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
            "torn_bytes": report.torn, "compared_with_kept_head": compared,
            "compared_with_head_file": report.head_file, "kept_head_is_signed": signed,
            "snapshots": report.snapshots, "snapshots_followed": report.snapshots_followed,
            "archived_segments": report.archived,
        }))
    } else {
        let last = report.last.map(|(_, at)| format!("{at} ({})", timestamp::relative(at, now)));
        let (all, followed) = (report.snapshots, report.snapshots_followed);
        let snapshots = format!("{all}, {followed} of them checked against the records");
        let types = report.types.iter().map(|(kind, count)| format!("{kind} {count}"));
        let segments = match report.archived {
            0 => report.segments.to_string(),
            archived => format!("{}, {archived} of them in the archive", report.segments),
        };
        print(&fields([
            ("good", TableCell::from(plain::path(dir))),
            ("records", report.records.to_string().into()),
            ("by type", TableCell::list(types)),
            ("segments", segments.into()),
            ("snapshots", snapshots.into()),
            ("first", report.first.map(|(_, at)| at.to_string()).unwrap_or_default().into()),
            ("last", last.unwrap_or_default().into()),
            ("epochs", report.epochs.to_string().into()),
            ("head", format!("{}:{}", report.head.index, report.head.digest).into()),
        ]))
    }
}

/// Returns remarks for an auditor about a ledger without errors.
fn remarks(report: &VerifyReport, compared: bool) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    if report.torn > 0 {
        out.push(
            "The last line is incomplete: it is being written, or a crash cut it off. No caller got an answer for it.".into(),
        );
    }
    if report.refused > 0 {
        out.push("Some records are empty: the disk refused them, and their callers got an error.".into());
    }
    if let Some((first, _)) = report.first.filter(|(index, _)| *index > 1) {
        let last = first.saturating_sub(1);
        out.push(format!(
            "The records from {first} on were checked. Records 1 to {last} are not here, and their result is taken from the \
             first snapshot. To check them too, name the directory to which they were moved with --archive."
        ));
    }
    if !compared {
        out.push(
            "No kept head was given, so records that were cut off at the end are not found. Keep this head, and give it with --head next time.".into(),
        );
    }
    out
}

pub(super) fn ledger_failure(error: &ReadError, dir: &Path) -> Failure {
    match error {
        ReadError::Tamper(place) => Failure::new(
            Exit::VerificationFailed,
            "the ledger was changed after it was written",
        )
        .with(
            "where",
            if place.line > 0 { format!("{}:{}", place.file, place.line) } else { place.file.clone() },
        )
        .with("record", place.index.to_string())
        .with("what", place.what.to_string())
        .fix("keep these files as they are; compare them with a copy and with heads that were kept on another machine"),
        ReadError::Io { file, source } => {
            Failure::new(Exit::Failure, format!("{} cannot be read: {source}", plain::path(&dir.join(file))))
                .fix("run this as a user who may read it, or verify a copy")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_from_an_argument_or_a_file() {
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
    fn a_signed_head_passes_only_with_its_own_key() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = ledger::HeadKey::open(dir.path()).unwrap();
        ledger::HeadKey::open(other.path()).unwrap();
        let signed = key.sign(1, Head { index: 7, digest: Digest::of(b"x") }, crate::clock::Wall(1));
        let path = dir.path().join("kept.json");
        std::fs::write(&path, format!("{}\n", signed.as_str())).unwrap();
        let kept = read_head(path.to_str().unwrap()).unwrap();
        assert_eq!(kept.signed.as_ref(), Some(&signed));
        check_signature(&kept, None, dir.path()).unwrap();
        check_signature(&kept, Some(&dir.path().join("head.pub")), other.path()).unwrap();
        let failure = check_signature(&kept, None, other.path()).unwrap_err();
        assert_eq!(failure.exit.code(), 7);
        let unsigned = KeptHead { signed: None, ..kept };
        assert_eq!(check_signature(&unsigned, Some(&path), dir.path()).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_changed_ledger_exits_with_7_and_says_where() {
        let tamper =
            ledger::Tamper { file: "ledger-1.jsonl".into(), line: 3, index: 3, what: ledger::Fault::Hash };
        let failure = ledger_failure(&ReadError::Tamper(tamper), Path::new("/l"));
        assert_eq!(failure.exit.code(), 7);
        insta::assert_snapshot!(failure.render(), @r#"
        leasehold: error: the ledger was changed after it was written
          where   ledger-1.jsonl:3
          record  3
          what    it does not match its own hash: it was changed after it was written
          fix     keep these files as they are; compare them with a copy and with heads that were kept on another machine
        Nothing was changed.
        "#);
    }

    #[test]
    fn a_directory_without_records_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let session = Session::new(crate::cli::Format::Json, None, None);
        assert_eq!(verify(folder.path(), None, None, None, &session).unwrap_err().exit.code(), 7);
        let gone = folder.path().join("gone");
        assert_eq!(verify(&gone, None, None, None, &session).unwrap_err().exit, Exit::Usage);
    }
}
