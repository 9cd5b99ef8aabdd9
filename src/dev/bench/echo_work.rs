//! What the echo does for an issue or a renewal, apart from the messages.

use std::{path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::Value;
use tonic::Status;

use crate::{
    clock::Clock,
    ledger::{CredentialIssued, Event, Ledger, Options},
    name::LeaseId,
    token::{Claims, FenceKey, SigningKey, UnsignedToken},
};

/// A record of an issued credential, for the echo. The daemon wrote it before.
pub(super) const RECORD: &str = "echo.record";

/// How much of the daemon's work the echo does for each issue and renewal. Each value includes the work of the previous value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum EchoWork {
    /// The echo sends the answer
    Messages,
    /// The echo makes one ES256 signature
    Signature,
    /// The echo writes the claims of a new token, and signs them
    Token,
    /// The echo waits until a record of the credential is on disk
    Record,
}

impl EchoWork {
    /// All of them, from the least work to the most.
    pub const ALL: [EchoWork; 4] =
        [EchoWork::Messages, EchoWork::Signature, EchoWork::Token, EchoWork::Record];

    /// The name of this value on the command line of the echo.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            EchoWork::Messages => "messages",
            EchoWork::Signature => "signature",
            EchoWork::Token => "token",
            EchoWork::Record => "record",
        }
    }

    /// The work that this value adds to the previous value.
    pub const fn adds(self) -> &'static str {
        match self {
            EchoWork::Messages => "the messages, over mutual TLS",
            EchoWork::Signature => "one ES256 signature",
            EchoWork::Token => "the claims of a token",
            EchoWork::Record => "a record on disk",
        }
    }
}

/// Does this work, with the code of the daemon.
pub(super) struct Worker {
    work: EchoWork,
    signer: Signer,
    maker: TokenMaker,
    ledger: Option<Recorder>,
}

impl Worker {
    /// Prepares the work in the folder of a deployment. `token` is a token of the daemon.
    pub(super) fn new(
        work: EchoWork,
        folder: &Path,
        token: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        Ok(Worker {
            work,
            signer: Signer::generate().ok_or("the system could not make an ES256 key")?,
            maker: TokenMaker::like(token)?,
            ledger: (work == EchoWork::Record).then(|| Recorder::open(folder, clock)).transpose()?,
        })
    }

    /// Does the work for one request. The answer does not depend on it.
    pub(super) async fn work_once(&self, token: &str) -> Result<(), Status> {
        match self.work {
            EchoWork::Messages => Ok(()),
            EchoWork::Signature => self.signer.sign(token),
            EchoWork::Token | EchoWork::Record => {
                let lease = LeaseId::random().map_err(|_| failed("there are no random bytes"))?;
                let unsigned = self.maker.prepare(lease)?;
                if let Some(ledger) = &self.ledger {
                    ledger.record(lease, &unsigned).await?;
                }
                let token = unsigned.sign(&self.maker.key);
                std::hint::black_box(token).map(drop).map_err(|e| failed(&e.to_string()))
            }
        }
    }
}

fn failed(why: &str) -> Status {
    Status::internal(why.to_owned())
}

/// Makes the one signature that every issue needs.
struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn generate() -> Option<Self> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).ok()?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).ok()?;
        Some(Signer { pair, random })
    }

    fn sign(&self, token: &str) -> Result<(), Status> {
        let signature = self.pair.sign(&self.random, token.as_bytes());
        std::hint::black_box(signature).map(drop).map_err(|_| failed("it could not be signed"))
    }
}

/// Makes tokens with the claims of a token of the daemon. Each new token is of another lease.
struct TokenMaker {
    key: SigningKey,
    fence_key: FenceKey,
    claims: Claims,
}

impl TokenMaker {
    fn like(token: &str) -> Result<Self, String> {
        let body = token.split('.').nth(1).unwrap_or_default();
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|e| e.to_string())?;
        let claims: Claims = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        let key = SigningKey::generate(1, 1).map_err(|e| e.to_string())?;
        let fence_key = key.fence_key(&claims.aud);
        Ok(TokenMaker { key, fence_key, claims })
    }

    fn prepare(&self, lease: LeaseId) -> Result<UnsignedToken, Status> {
        let mut claims = self.claims.clone();
        claims.set_lease(lease, &self.fence_key);
        UnsignedToken::prepare(&self.key, &claims).map_err(|e| failed(&e.to_string()))
    }
}

/// Writes the record of an issued credential into a ledger of the echo.
struct Recorder {
    ledger: Ledger,
    record: CredentialIssued,
}

impl Recorder {
    fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let text = std::fs::read_to_string(folder.join(RECORD)).map_err(|e| format!("{RECORD}: {e}"))?;
        let Event::CredentialIssued(record) = serde_json::from_str(&text).map_err(|e| e.to_string())? else {
            return Err(format!("{RECORD} is no record of an issued credential"));
        };
        let opened = Ledger::open(&folder.join("echo-ledger"), clock, Options::default());
        Ok(Recorder { ledger: opened.map_err(|e| e.to_string())?.ledger, record: *record })
    }

    async fn record(&self, lease: LeaseId, token: &UnsignedToken) -> Result<(), Status> {
        let mut record = self.record.clone();
        record.lease = lease;
        record.credential.claims_sha256 = token.claims_digest;
        let event = Event::CredentialIssued(Box::new(record));
        self.ledger.append(&event).await.map(drop).map_err(|e| failed(&e.to_string()))
    }
}

/// Finds the last record of an issued credential in a ledger, and returns its event as JSON.
pub(super) fn last_issued(state: &Path) -> Result<String, String> {
    let io = |e: std::io::Error| e.to_string();
    let mut segments: Vec<_> = std::fs::read_dir(state)
        .map_err(io)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    segments.sort();
    let last = segments.last().ok_or("the daemon has no ledger")?;
    let text = std::fs::read_to_string(last).map_err(io)?;
    let line = text.lines().rev().find(|line| line.contains(r#""type":"credential.issued""#));
    let mut event: Value =
        serde_json::from_str(line.ok_or("no credential was issued")?).map_err(|e| e.to_string())?;
    if let Some(fields) = event.as_object_mut() {
        for envelope in ["v", "index", "prev", "time", "epoch", "refused", "hash"] {
            fields.remove(envelope);
        }
    }
    Ok(event.to_string())
}
