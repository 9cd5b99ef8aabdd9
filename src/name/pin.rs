//! Pins: the digests or commits that identify the exact content of a dataset or model version.

use std::{fmt, str::FromStr};

use super::{Digest, NameError, digest::read_hex, label::check_part, text_form};

/// Identifies the exact content of a version, so that a change after its approval can be noticed. There is no default: write
/// `none` explicitly.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Pin {
    /// SHA-256 of a manifest of files: `manifest:<hex>`.
    Manifest(Digest),
    /// A commit of a model hub's repository: `hf-revision:<sha1>`.
    HfRevision([u8; 20]),
    /// A commit in lakeFS: `lakefs-commit:<id>`.
    LakefsCommit(String),
    /// A snapshot of an Iceberg table: `iceberg-snapshot:<id>`.
    IcebergSnapshot(i64),
    /// SHA-256 of a list of object versions: `s3-versions:<hex>`.
    S3Versions(Digest),
    /// The version may change: `none`.
    None,
}

impl FromStr for Pin {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new(text, "a pin", why);
        if text == "none" {
            return Ok(Pin::None);
        }
        let (kind, value) = text.split_once(':').ok_or_else(|| {
            bad("it must be one of manifest:…, hf-revision:…, lakefs-commit:…, iceberg-snapshot:…, s3-versions:…, none")
        })?;
        let sha256 =
            || read_hex::<32>(value).map(Digest).ok_or_else(|| bad("it must have 64 hexadecimal digits"));
        Ok(match kind {
            "manifest" => Pin::Manifest(sha256()?),
            "s3-versions" => Pin::S3Versions(sha256()?),
            "hf-revision" => {
                Pin::HfRevision(read_hex(value).ok_or_else(|| bad("a revision is 40 hexadecimal digits"))?)
            }
            "lakefs-commit" => {
                check_part(value).map_err(bad)?;
                Pin::LakefsCommit(value.into())
            }
            "iceberg-snapshot" => {
                Pin::IcebergSnapshot(value.parse().map_err(|_| bad("a snapshot id is a whole number"))?)
            }
            _ => {
                return Err(bad(
                    "its kind is not one of manifest, hf-revision, lakefs-commit, iceberg-snapshot, s3-versions",
                ));
            }
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
            bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
        }
        match self {
            Pin::Manifest(d) => {
                f.write_str("manifest:")?;
                hex(f, &d.0)
            }
            Pin::S3Versions(d) => {
                f.write_str("s3-versions:")?;
                hex(f, &d.0)
            }
            Pin::HfRevision(r) => {
                f.write_str("hf-revision:")?;
                hex(f, r)
            }
            Pin::LakefsCommit(c) => write!(f, "lakefs-commit:{c}"),
            Pin::IcebergSnapshot(s) => write!(f, "iceberg-snapshot:{s}"),
            Pin::None => f.write_str("none"),
        }
    }
}
text_form!(Pin);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_read_back_and_half_pins_are_refused() {
        for t in [
            format!("manifest:{}", "4b".repeat(32)),
            format!("hf-revision:{}", "77".repeat(20)),
            "lakefs-commit:c0ffee".into(),
            "iceberg-snapshot:-7".into(),
            format!("s3-versions:{}", "00".repeat(32)),
            "none".into(),
        ] {
            assert_eq!(t.parse::<Pin>().unwrap().to_string(), t);
        }
        for t in
            ["", "manifest:4b", "hf-revision:main", "latest", "manifest", "lakefs-commit:../x", "git:abc"]
        {
            assert!(t.parse::<Pin>().is_err(), "{t}");
        }
    }
}
