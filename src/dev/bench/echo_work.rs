//! What the echo does for an issue or a renewal, apart from the messages.

use std::{path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::Value;
use tonic::Status;

use super::echo_lease::LeaseMaker;
use crate::{
    clock::Clock,
    ledger::{Credential, CredentialIssued, Event, ExpectedRecord, Ledger, Options},
    name::LeaseId,
    secret::sha256,
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
    /// The echo does all of this in a separate task for each request
    Task,
    /// The echo writes a line into its log
    Log,
    /// The echo decides by policy, and keeps the lease
    Lease,
}

impl EchoWork {
    /// All of them, from the least work to the most.
    pub const ALL: [EchoWork; 7] = [
        EchoWork::Messages,
        EchoWork::Signature,
        EchoWork::Token,
        EchoWork::Record,
        EchoWork::Task,
        EchoWork::Log,
        EchoWork::Lease,
    ];

    /// The name of this value on the command line of the echo.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            EchoWork::Messages => "messages",
            EchoWork::Signature => "signature",
            EchoWork::Token => "token",
            EchoWork::Record => "record",
            EchoWork::Task => "task",
            EchoWork::Log => "log",
            EchoWork::Lease => "lease",
        }
    }

    /// The work that this value adds to the previous value.
    pub const fn adds(self) -> &'static str {
        match self {
            EchoWork::Messages => "the messages, over mutual TLS",
            EchoWork::Signature => "one ES256 signature",
            EchoWork::Token => "the claims of a token",
            EchoWork::Record => "a record on disk",
            EchoWork::Task => "a task for each request",
            EchoWork::Log => "a line in the log",
            EchoWork::Lease => "four decisions by policy, and the lease",
        }
    }
}

/// Does this work, with the code of the daemon.
pub(super) struct Worker {
    work: EchoWork,
    signer: Signer,
    maker: Arc<CredentialMaker>,
}

impl Worker {
    /// Prepares the work in the folder of a deployment. `token` is a token of the daemon.
    pub(super) fn new(
        work: EchoWork,
        folder: &Path,
        token: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, String> {
        let signer = Signer::generate().ok_or("the system could not make an ES256 key")?;
        Ok(Worker { work, signer, maker: Arc::new(CredentialMaker::open(work, folder, token, clock)?) })
    }

    /// Does the work for one request: a renewal of the lease `renewed`, or an issue if it is `None`. The answer stays the same.
    pub(super) async fn work_once(&self, token: &str, renewed: Option<LeaseId>) -> Result<(), Status> {
        let maker = self.maker.clone();
        match self.work {
            EchoWork::Messages => Ok(()),
            EchoWork::Signature => self.signer.sign(token),
            EchoWork::Token => maker.make(renewed).await,
            EchoWork::Record => (maker.expect_record(), maker.make(renewed).await).1,
            EchoWork::Task | EchoWork::Log | EchoWork::Lease => {
                let expected = maker.expect_record();
                let made = tokio::spawn(async move { (maker.make(renewed).await, expected).0 }).await;
                made.map_err(|e| failed(&e.to_string()))?
            }
        }
    }
}

/// Makes credentials like one that the daemon issued.
struct CredentialMaker {
    tokens: TokenMaker,
    ledger: Option<Recorder>,
    leases: Option<LeaseMaker>,
    logs: bool,
}

impl CredentialMaker {
    fn open(work: EchoWork, folder: &Path, token: &str, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let tokens = TokenMaker::like(token)?;
        let ledger = (work >= EchoWork::Record).then(|| Recorder::open(folder, clock.clone())).transpose()?;
        let leases = match &ledger {
            Some(ledger) if work >= EchoWork::Lease => {
                let names = tokens.claims.named_fences().map_err(|e| e.to_string())?;
                Some(LeaseMaker::open(folder, ledger.record.clone(), names, clock)?)
            }
            _ => None,
        };
        Ok(CredentialMaker { tokens, ledger, leases, logs: work >= EchoWork::Log })
    }

    /// Announces the record to the ledger, as the daemon does at the beginning of a call.
    fn expect_record(&self) -> Option<ExpectedRecord> {
        self.ledger.as_ref().map(|recorder| recorder.ledger.expect_record())
    }

    async fn make(&self, renewed: Option<LeaseId>) -> Result<(), Status> {
        let random = || LeaseId::random().map_err(|_| failed("there are no random bytes"));
        let lease = renewed.map_or_else(random, Ok)?;
        let grant = self.leases.as_ref().map(|leases| leases.decide(renewed)).transpose()?;
        let unsigned = self.tokens.prepare(lease)?;
        if let Some(ledger) = &self.ledger {
            ledger.record(lease, renewed, &unsigned).await?;
        }
        let lease_kept = match (&self.leases, grant) {
            (Some(leases), Some(grant)) => Some(leases.renew_or_insert(lease, grant)?),
            _ => None,
        };
        let token = unsigned.sign(&self.tokens.key).map_err(|e| failed(&e.to_string()))?;
        if let Some(kept) = lease_kept {
            kept.set_newest_token_digest(&sha256(token.expose().as_bytes()));
        }
        // The daemon writes no line for a renewal.
        if self.logs && renewed.is_none() {
            let Claims { client_id, sub, aud, .. } = &self.tokens.claims;
            tracing::info!(%lease, job = %client_id, holder = %sub, audience = %aud, "credential issued");
        }
        std::hint::black_box(token);
        Ok(())
    }
}

pub(super) fn failed(why: &str) -> Status {
    Status::internal(why.to_owned())
}

/// Makes the one signature that every issue and renewal needs.
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

/// Writes the records of issued and renewed credentials into a ledger of the echo.
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
        // Each echo has its own ledger, because a ledger has one writer.
        let state = folder.join(format!("echo-ledger-{}", std::process::id()));
        let opened = Ledger::open(&state, clock, Options::default());
        Ok(Recorder { ledger: opened.map_err(|e| e.to_string())?.ledger, record: *record })
    }

    async fn record(
        &self,
        lease: LeaseId,
        renewed: Option<LeaseId>,
        token: &UnsignedToken,
    ) -> Result<(), Status> {
        let credential = Credential { claims_sha256: token.claims_digest, ..self.record.credential.clone() };
        let event = if renewed.is_some() {
            Event::CredentialRenewed {
                lease,
                job: self.record.job,
                attempt: self.record.attempt,
                generation: 1,
                expires: self.record.expires,
                decision: self.record.decision.clone(),
                credential,
            }
        } else {
            Event::CredentialIssued(Box::new(CredentialIssued { lease, credential, ..self.record.clone() }))
        };
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
