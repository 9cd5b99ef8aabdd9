//! Implements `leasehold s3-key`.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;
use serde_json::json;

use super::{Exit, Failure, Session, client::CallKind};
use crate::{
    agent,
    name::{Half, PrincipalKind, SpiffeId},
    plain,
    proto::{convert::wall, v1},
};

/// Gets an S3 key for a client without a wrapper. Prints it for credential_process of AWS.
#[derive(Debug, Args)]
#[command(after_help = "\
The key works from any machine, at the address that the gateway has for such clients. It ends with
its job, by a revocation, and when it expires (15 minutes at most). The client then runs this
command again. A key only reads, or only writes: a client that does both has a profile for each. The
command needs a running `leasehold agent` with --dir, as the same user. In ~/.aws/config:

  [profile lease]
  credential_process = leasehold s3-key --dir /run/leasehold/creds
  endpoint_url       = https://gateway.acme.example:8447
  region             = us-east-1
  s3 =
      signature_version = s3v4

Examples:
  leasehold s3-key --dir /run/leasehold/creds
  leasehold s3-key --dir /run/leasehold/creds --half writing")]
pub struct S3KeyArgs {
    /// The agent's credential folder [default: from LEASEHOLD_CREDENTIALS]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The use of the key: reading, or writing checkpoints
    #[arg(long, value_name = "HALF", default_value = "reading")]
    half: Half,
    /// The gateway, if the job uses several
    #[arg(long, value_name = "SPIFFE ID")]
    audience: Option<SpiffeId>,
}

impl S3KeyArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let dir = self.folder()?;
        let fix = "start `leasehold agent --dir DIR` as this user, and give the same DIR";
        let member = agent::session_in(&dir).ok_or_else(|| {
            Failure::new(Exit::Failure, "no agent of this user keeps its session in this folder")
                .with("folder", plain::path(&dir))
                .fix(fix)
        })?;
        let client = session.client(&[PrincipalKind::Workload])?;
        let request = v1::IssueCredentialRequest {
            session: Some(member),
            half: v1::Half::from(self.half).into(),
            audience: self.audience.map(|audience| audience.to_string()).unwrap_or_default(),
            kind: v1::CredentialKind::S3.into(),
            ..Default::default()
        };
        let issued = client
            .ask(CallKind::Changes, request, async |r| client.members().issue_credential(r).await)
            .await?;
        let (Some(key), Some(expires)) = (issued.s3_key, issued.token_expires.as_ref().and_then(wall)) else {
            return Err(Failure::new(Exit::Failure, "the daemon's answer has no S3 key"));
        };
        let text = json!({
            "Version": 1,
            "AccessKeyId": key.access_key,
            "SecretAccessKey": key.secret_key,
            "SessionToken": issued.token,
            "Expiration": expires.to_string(),
        });
        // To print the secret is the purpose of this command.
        writeln!(io::stdout().lock(), "{text}")
            .map_err(|error| Failure::new(Exit::Failure, format!("stdout cannot be written: {error}")))?;
        Ok(Exit::Ok)
    }

    fn folder(&self) -> Result<PathBuf, Failure> {
        let index = || std::env::var_os("LEASEHOLD_CREDENTIALS").map(PathBuf::from);
        let named = || self.dir.clone().or_else(|| Some(index()?.parent()?.to_owned()));
        named().ok_or_else(|| {
            Failure::usage("there is no credential folder: LEASEHOLD_CREDENTIALS is not set")
                .fix("give the folder of `leasehold agent` with --dir")
        })
    }
}
