//! Signed heads of the ledger. Verifiers and auditors keep them, to detect a truncated or rewritten ledger.
//!
//! The ledger's key is an Ed25519 pair. When the daemon starts for the first time, it creates the pair in the directory of
//! the segments: `head.key`, private to the daemon's user, and `head.pub` for auditors. A signed head is one line of JSON,
//! `{"v":1,"epoch":…,"index":…,"digest":…,"time":…,"key":…,"signature":…}`. The signature covers `leasehold ledger
//! head`, a newline, and the line up to `,"signature"`. A person who has the key and the files can rewrite the ledger
//! and sign the result. So the daemon sends new heads to every follower all the time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    str::FromStr,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    hkdf,
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use serde::{Deserialize, Serialize};

use super::record::Head;
use crate::{clock::Wall, limits, name::Digest, secret::Secret};

pub(super) const KEY_FILE: &str = "head.key";
const KEY_DRAFT: &str = "head.key.new";
/// The name of the public key's file in the ledger's directory.
pub const HEAD_PUBLIC_FILE: &str = "head.pub";
const CONTEXT: &str = "leasehold ledger head\n";
/// The salt for secrets that are derived from the key.
const DERIVED: &str = "leasehold derived from the ledger's key";
const SIGNATURE: &str = ",\"signature\":\"";
/// The bytes of an Ed25519 SubjectPublicKeyInfo (RFC 8410) before the 32 bytes of the key.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The ledger's private key.
pub struct HeadKey {
    pair: Ed25519KeyPair,
    public: HeadPublic,
    /// The input of [`derive`](Self::derive).
    root: hkdf::Prk,
}

/// The ledger's public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPublic([u8; 32]);

/// A durable record, signed with the ledger's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    /// The run of the daemon that signed the head, counted from 1.
    pub epoch: u64,
    /// The index and the digest of the record.
    pub head: Head,
    /// The time of the signature, on the daemon's wall clock.
    pub time: Wall,
    /// SHA-256 of the public key's SubjectPublicKeyInfo.
    pub key: Digest,
    line: String,
}

/// The reasons for which the ledger's key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadKeyError {
    #[error("the ledger's key {file} cannot be {what}")]
    Io { file: &'static str, what: &'static str, source: io::Error },
    #[error("the ledger's key {file} may be read by others: run chmod 600 on it")]
    ReadableByOthers { file: &'static str },
    #[error("{file} is not {what}: restore it, or move it away, and the daemon will create a new one")]
    Malformed { file: &'static str, what: &'static str },
    #[error("the system could not make an Ed25519 key")]
    Generate,
}

/// The reasons for which a signed head is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("it is not a signed head")]
    Malformed,
    #[error("it was signed with another key")]
    OtherKey,
    #[error("its signature does not match its content")]
    Signature,
}

impl HeadKey {
    /// Opens the key in the ledger's directory, or creates a new key. A new key is a draft until [`keep`](Self::keep)
    /// renames it. `keep` is called after the first record: a final key without records means that the ledger was lost.
    pub fn open(dir: &Path) -> Result<Self, HeadKeyError> {
        let failed = |what| move |source| HeadKeyError::Io { file: KEY_FILE, what, source };
        let malformed = HeadKeyError::Malformed { file: KEY_FILE, what: "an Ed25519 key in PKCS#8" };
        let (pair, root) = match read_private(&dir.join(KEY_FILE))? {
            Some(pem) => parse(&pem).ok_or(malformed)?,
            // A daemon that was killed while it started may already have signed with the draft key.
            None => match read_private(&dir.join(KEY_DRAFT))?.and_then(|pem| parse(&pem)) {
                Some(both) => both,
                None => {
                    let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                        .map_err(|_| HeadKeyError::Generate)?;
                    let pem = zeroize::Zeroizing::new(to_pem("PRIVATE KEY", made.as_ref()));
                    write(&dir.join(KEY_DRAFT), pem.as_bytes(), 0o600)
                        .and_then(|()| File::open(dir)?.sync_all())
                        .map_err(failed("made"))?;
                    parse(&pem).ok_or(malformed)?
                }
            },
        };
        let public = <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| HeadKeyError::Generate)?;
        let public = HeadPublic(public);
        // Write the public key for auditors. If that fails, the daemon retries when it starts again.
        let shown = dir.join(HEAD_PUBLIC_FILE);
        if fs::read_to_string(&shown).ok().as_deref() != Some(public.to_pem().as_str())
            && let Err(error) = write(&shown, public.to_pem().as_bytes(), 0o644)
        {
            tracing::warn!(%error, "the ledger's public key cannot be written beside it");
        }
        Ok(HeadKey { pair, public, root })
    }

    /// Renames a new key from its draft name to its final name, durably. Call it after the ledger's first record.
    pub fn keep(&self, dir: &Path) -> Result<(), HeadKeyError> {
        let failed = |source| HeadKeyError::Io { file: KEY_FILE, what: "kept", source };
        match fs::rename(dir.join(KEY_DRAFT), dir.join(KEY_FILE)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.and_then(|()| File::open(dir)?.sync_all()).map_err(failed),
        }
    }

    /// Derives a secret for a purpose with HKDF-SHA-256 (RFC 5869). The secret is the same as long as the key is the
    /// same, and it does not reveal the key.
    pub fn derive(&self, purpose: &str) -> Result<Secret, HeadKeyError> {
        let mut bytes = zeroize::Zeroizing::new([0u8; 32]);
        let info = [purpose.as_bytes()];
        let okm = self.root.expand(&info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(bytes.as_mut()));
        okm.ok().and_then(|()| Secret::from_bytes(bytes.as_ref())).ok_or(HeadKeyError::Generate)
    }

    pub fn public(&self) -> HeadPublic {
        self.public
    }

    /// Signs a durable record.
    pub fn sign(&self, epoch: u64, head: Head, time: Wall) -> SignedHead {
        let (key, Head { index, digest }) = (self.public.id(), head);
        let mut line = format!(
            "{{\"v\":1,\"epoch\":{epoch},\"index\":{index},\"digest\":\"{digest}\",\"time\":\"{time}\",\"key\":\"{key}\""
        );
        let signature = self.pair.sign(format!("{CONTEXT}{line}").as_bytes());
        line.push_str(SIGNATURE);
        line.push_str(&URL_SAFE_NO_PAD.encode(signature));
        line.push_str("\"}");
        SignedHead { epoch, head, time, key, line }
    }
}

impl std::fmt::Debug for HeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeadKey({})", self.public.id())
    }
}

impl HeadPublic {
    /// Returns the SHA-256 of the SubjectPublicKeyInfo.
    pub fn id(&self) -> Digest {
        Digest::of(&self.spki())
    }

    /// Writes the PEM text that [`HeadPublic::from_pem`] reads.
    pub fn to_pem(&self) -> String {
        to_pem("PUBLIC KEY", &self.spki())
    }

    /// Reads the PEM text of one Ed25519 public key.
    pub fn from_pem(text: &str) -> Option<Self> {
        let der = from_pem("PUBLIC KEY", text)?;
        der.strip_prefix(SPKI.as_slice())?.try_into().ok().map(HeadPublic)
    }

    /// Checks that this key signed exactly this head.
    ///
    /// # Errors
    ///
    /// Another key signed it, or the signature is damaged or wrong.
    pub fn verify(&self, signed: &SignedHead) -> Result<(), HeadError> {
        if signed.key != self.id() {
            return Err(HeadError::OtherKey);
        }
        let (said, signature) = signed.line.split_once(SIGNATURE).ok_or(HeadError::Malformed)?;
        let signature = signature.strip_suffix("\"}").and_then(|s| URL_SAFE_NO_PAD.decode(s).ok());
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(format!("{CONTEXT}{said}").as_bytes(), &signature.ok_or(HeadError::Malformed)?)
            .map_err(|_| HeadError::Signature)
    }

    fn spki(&self) -> Vec<u8> {
        [SPKI.as_slice(), &self.0].concat()
    }
}

impl SignedHead {
    /// Returns the line without a newline, in the form that `audit verify --head` reads.
    pub fn as_str(&self) -> &str {
        &self.line
    }
}

/// Reads a signed head from its line. [`HeadPublic::verify`] checks the signature.
impl FromStr for SignedHead {
    type Err = HeadError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct SignedHeadLine {
            v: u32,
            epoch: u64,
            index: u64,
            digest: Digest,
            time: String,
            key: Digest,
            signature: String,
        }
        let line = text.trim();
        let said: SignedHeadLine = serde_json::from_str(line).map_err(|_| HeadError::Malformed)?;
        let time = Wall::parse(&said.time).ok_or(HeadError::Malformed)?;
        // Accept only the form that the daemon writes, so that the signed text is the text of the line.
        if said.v != 1 || serde_json::to_string(&said).ok().as_deref() != Some(line) {
            return Err(HeadError::Malformed);
        }
        let head = Head { index: said.index, digest: said.digest };
        Ok(SignedHead { epoch: said.epoch, head, time, key: said.key, line: line.to_owned() })
    }
}

/// Reads a file that only this user may read. `None` if the file does not exist.
fn read_private(path: &Path) -> Result<Option<zeroize::Zeroizing<String>>, HeadKeyError> {
    let failed = |source| HeadKeyError::Io { file: KEY_FILE, what: "read", source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if file.metadata().map_err(failed)?.permissions().mode() & 0o077 != 0 {
        return Err(HeadKeyError::ReadableByOthers { file: KEY_FILE });
    }
    let mut pem = zeroize::Zeroizing::new(String::new());
    file.take(limits::PEM_BYTES_MAX).read_to_string(&mut pem).map_err(failed)?;
    Ok(Some(pem))
}

/// Returns the key pair of a private key as PEM, and the input for derived secrets.
fn parse(pem: &str) -> Option<(Ed25519KeyPair, hkdf::Prk)> {
    let der = zeroize::Zeroizing::new(from_pem("PRIVATE KEY", pem)?);
    let root = hkdf::Salt::new(hkdf::HKDF_SHA256, DERIVED.as_bytes()).extract(&der);
    Some((Ed25519KeyPair::from_pkcs8(&der).ok()?, root))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at_checked(64).unwrap_or((rest, ""));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn from_pem(label: &str, text: &str) -> Option<Vec<u8>> {
    let body = text.trim().strip_prefix(&format!("-----BEGIN {label}-----"))?;
    let body = body.strip_suffix(&format!("-----END {label}-----"))?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Wall = Wall(1_795_148_000_123);

    fn head(index: u64) -> Head {
        Head { index, digest: Digest::of(b"line") }
    }

    #[test]
    fn the_head_key_survives_a_restart_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let key = HeadKey::open(dir.path()).unwrap();
        let signed = key.sign(3, head(7), AT);
        // A start that was killed before its first record leaves a draft, which the next start uses.
        assert!(!dir.path().join(KEY_FILE).exists());
        assert_eq!(HeadKey::open(dir.path()).unwrap().public(), key.public());
        key.keep(dir.path()).unwrap();
        let again = HeadKey::open(dir.path()).unwrap();
        again.keep(dir.path()).unwrap();
        // Derived secrets survive too. They differ by purpose and by key.
        let derived = |key: &HeadKey, purpose| key.derive(purpose).unwrap().digest();
        assert_eq!(derived(&again, "a"), derived(&key, "a"));
        assert_ne!(derived(&again, "b"), derived(&key, "a"));
        let elsewhere = tempfile::tempdir().unwrap();
        assert_ne!(derived(&HeadKey::open(elsewhere.path()).unwrap(), "a"), derived(&key, "a"));
        assert_eq!(again.public(), key.public());
        again.public().verify(&signed).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(KEY_FILE), 0o600);
        let shown = fs::read_to_string(dir.path().join(HEAD_PUBLIC_FILE)).unwrap();
        assert_eq!(HeadPublic::from_pem(&shown), Some(key.public()));
        let private = fs::read_to_string(dir.path().join(KEY_FILE)).unwrap();
        assert!(!format!("{key:?}").contains(private.lines().nth(1).unwrap()));

        fs::set_permissions(dir.path().join(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(HeadKey::open(dir.path()), Err(HeadKeyError::ReadableByOthers { .. })));
    }

    #[test]
    fn a_signed_head_reads_back_and_no_changed_byte_passes() {
        let dir = tempfile::tempdir().unwrap();
        let key = HeadKey::open(dir.path()).unwrap();
        let signed = key.sign(3, head(7), AT);
        let read: SignedHead = format!("{}\n", signed.as_str()).parse().unwrap();
        assert_eq!((read.epoch, read.head, read.time), (3, head(7), AT));
        assert_eq!(read, signed);
        for at in 0..signed.as_str().len() {
            for bit in 0..7 {
                let mut changed = signed.as_str().as_bytes().to_vec();
                changed[at] ^= 1 << bit;
                let believed = String::from_utf8(changed)
                    .ok()
                    .and_then(|t| t.parse::<SignedHead>().ok())
                    .is_some_and(|h| key.public().verify(&h).is_ok() && h != signed);
                assert!(!believed, "byte {at}, bit {bit}");
            }
        }
        let other = tempfile::tempdir().unwrap();
        let other = HeadKey::open(other.path()).unwrap();
        assert_eq!(other.public().verify(&signed), Err(HeadError::OtherKey));
    }
}
