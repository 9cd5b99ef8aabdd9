//! Implements `leasehold policy sign` and `keygen`.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    Exit, Failure, Session,
    failure::mistakes,
    output::{fields, note, print, print_line},
};
use crate::{
    limits::PEM_BYTES_MAX,
    plain,
    policy::{BundleSigner, PolicyBundle, SIGNATURE_FILE},
    written::read_regular_text,
};

#[derive(Debug, Args)]
#[command(after_help = "\
Writes the file policy.sig into the directory. The signature covers the names and the texts of
all .cedar files and of the cases beside them, so sign again after each change. Signatures of other
keys for the same files stay. The daemon requires a signature if its configuration has
the key policy.trusted_keys.

Examples:
  leasehold policy keygen policy-signer
  leasehold policy sign --key policy-signer.key my/policy")]
pub(super) struct PolicySignArgs {
    /// The private key: Ed25519 or P-256, PKCS#8 in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The directory of .cedar files and cases
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Writes NAME.key (mode 0600) and NAME.pub, and overwrites nothing. Keep NAME.key away from the
daemon's host. The daemon's configuration names NAME.pub in policy.trusted_keys.

Examples:
  leasehold policy keygen policy-signer")]
pub(super) struct PolicyKeygenArgs {
    /// The path of the two key files, without their endings
    #[arg(value_name = "NAME")]
    name: PathBuf,
}

impl PolicySignArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let shown = plain::path(&self.key);
        let failed = |what: String| Failure::new(Exit::Failure, what);
        let pem = read_regular_text(&self.key, PEM_BYTES_MAX)
            .map_err(|why| failed(format!("{shown}: it {why}")))?;
        let signer =
            BundleSigner::from_pem(&Zeroizing::new(pem)).map_err(|why| failed(format!("{shown} {why}")))?;
        let bundle = PolicyBundle::read(&self.dir).map_err(|lines| {
            let what = mistakes(&format!("the policy directory {}", plain::path(&self.dir)), lines.len());
            Failure { exit: Exit::Failure, ..Failure::of_problems(what, lines.into_iter()) }
        })?;
        if bundle.policies.is_empty() {
            return Err(Failure::usage(format!("{} has no .cedar file", plain::path(&self.dir))));
        }
        let text =
            signer.sign(&bundle.policies, &bundle.cases, bundle.signatures.as_deref()).map_err(failed)?;
        let file = self.dir.join(SIGNATURE_FILE);
        let draft = self.dir.join(format!(".{SIGNATURE_FILE}.new"));
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, &file)).map_err(|e| unwritten(&file, &e))?;
        let (key, files) = (signer.public().id().to_string(), bundle.policies.len() + bundle.cases.len());
        match session.for_programs() {
            true => {
                session.print_value(&json!({ "file": plain::path(&file), "key": key, "files": files }))?;
            }
            false => {
                print(&fields([("signed", plain::path(&file)), ("key", key), ("files", files.to_string())]))?;
            }
        }
        Ok(Exit::Ok)
    }
}

impl PolicyKeygenArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let made = BundleSigner::generate()
            .map_err(|e| Failure::new(Exit::Failure, format!("no key could be made: {e}")))?;
        let with = |ending: &str| {
            let mut path = self.name.clone().into_os_string();
            path.push(ending);
            PathBuf::from(path)
        };
        let (private, public) = (with(".key"), with(".pub"));
        write_new(&private, &made.private, 0o600)?;
        write_new(&public, &made.public, 0o644)?;
        let (private, public) = (plain::path(&private), plain::path(&public));
        if session.for_programs() {
            session.print_value(&json!({ "private": private, "public": public }))?;
        } else {
            print_line(&private)?;
            print_line(&public)?;
            note("Name the public key in policy.trusted_keys of the daemon's configuration.");
        }
        Ok(Exit::Ok)
    }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|e| unwritten(path, &e))
}

fn unwritten(path: &Path, e: &io::Error) -> Failure {
    let fix = match e.kind() {
        io::ErrorKind::AlreadyExists => "use another name: this command overwrites no key",
        _ => "name a directory that you may write",
    };
    Failure::new(Exit::Failure, format!("{} cannot be written: {e}", plain::path(path))).fix(fix)
}
