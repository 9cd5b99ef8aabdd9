//! The checksums that a client sends with its bytes. s3s reads these checksums but does not compare them.

use base64::{Engine, engine::general_purpose::STANDARD};
use crc_fast::CrcAlgorithm;
use http::HeaderMap;
use md5::{Digest, Md5};
use ring::digest;
use s3s::{S3ErrorCode, S3Result, TrailingHeaders, dto};

use super::refusal::{custom, failed};

/// An algorithm that S3 has for the checksum of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChecksumKind {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl ChecksumKind {
    pub(super) const ALL: [ChecksumKind; 5] = [
        ChecksumKind::Crc32,
        ChecksumKind::Crc32c,
        ChecksumKind::Crc64Nvme,
        ChecksumKind::Sha1,
        ChecksumKind::Sha256,
    ];

    /// Returns the header of the checksum. The trailer has the same name.
    pub(super) const fn header(self) -> &'static str {
        match self {
            ChecksumKind::Crc32 => "x-amz-checksum-crc32",
            ChecksumKind::Crc32c => "x-amz-checksum-crc32c",
            ChecksumKind::Crc64Nvme => "x-amz-checksum-crc64nvme",
            ChecksumKind::Sha1 => "x-amz-checksum-sha1",
            ChecksumKind::Sha256 => "x-amz-checksum-sha256",
        }
    }
}

/// A computation under way.
enum RunningChecksum {
    Crc(crc_fast::Digest, usize),
    Hash(digest::Context),
}

impl RunningChecksum {
    fn new(kind: ChecksumKind) -> Self {
        match kind {
            ChecksumKind::Crc32 => RunningChecksum::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc), 4),
            ChecksumKind::Crc32c => RunningChecksum::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi), 4),
            ChecksumKind::Crc64Nvme => {
                RunningChecksum::Crc(crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme), 8)
            }
            ChecksumKind::Sha1 => {
                RunningChecksum::Hash(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY))
            }
            ChecksumKind::Sha256 => RunningChecksum::Hash(digest::Context::new(&digest::SHA256)),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            RunningChecksum::Crc(crc, _) => crc.update(bytes),
            RunningChecksum::Hash(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> String {
        match self {
            RunningChecksum::Crc(crc, width) => {
                let bytes = crc.finalize().to_be_bytes();
                let from = bytes.len().saturating_sub(width);
                STANDARD.encode(bytes.get(from..).unwrap_or_default())
            }
            RunningChecksum::Hash(hash) => STANDARD.encode(hash.finish()),
        }
    }
}

/// The checksums of one upload: the computed checksums, and the checksums that the client sent.
pub(super) struct Checksums {
    running: Vec<(ChecksumKind, RunningChecksum)>,
    /// The checksums from headers. Checksums from trailers come after the bytes.
    said: Vec<(ChecksumKind, String)>,
    in_trailer: Vec<ChecksumKind>,
    trailers: Option<TrailingHeaders>,
    md5: Option<(Md5, String)>,
}

/// The checksums of an object or part, computed by the gateway: one for each checksum that the client sent, and equal to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) crc32: Option<String>,
    pub(super) crc32c: Option<String>,
    pub(super) crc64nvme: Option<String>,
    pub(super) sha1: Option<String>,
    pub(super) sha256: Option<String>,
}

impl Checksums {
    /// Reads the announcements of the client: headers, the names of trailers, and Content-MD5.
    pub(super) fn announced(
        headers: &HeaderMap,
        trailers: Option<TrailingHeaders>,
        content_md5: Option<&str>,
    ) -> S3Result<Self> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut checksums =
            Checksums { running: Vec::new(), said: Vec::new(), in_trailer: Vec::new(), trailers, md5: None };
        let announced = text("x-amz-trailer").unwrap_or_default().to_ascii_lowercase();
        for kind in ChecksumKind::ALL {
            if let Some(said) = text(kind.header()) {
                checksums.said.push((kind, said.to_owned()));
            } else if announced.split(',').any(|name| name.trim() == kind.header()) {
                checksums.in_trailer.push(kind);
            } else {
                continue;
            }
            checksums.running.push((kind, RunningChecksum::new(kind)));
        }
        if let Some(said) = content_md5 {
            if STANDARD.decode(said).map(|bytes| bytes.len()) != Ok(16) {
                return Err(failed(S3ErrorCode::InvalidDigest, "Content-MD5 is not the base64 of 16 bytes"));
            }
            checksums.md5 = Some((Md5::new(), said.to_owned()));
        }
        Ok(checksums)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        for (_, running) in &mut self.running {
            running.update(bytes);
        }
        if let Some((md5, _)) = &mut self.md5 {
            md5.update(bytes);
        }
    }

    /// Compares the checksums after the last byte.
    pub(super) fn compare(self) -> S3Result<Compared> {
        let Checksums { running, mut said, in_trailer, trailers, md5 } = self;
        for kind in in_trailer {
            let value = trailers.as_ref().and_then(|trailers| {
                trailers
                    .read(|map| map.get(kind.header()).and_then(|v| v.to_str().ok()).map(str::to_owned))
                    .flatten()
            });
            let value = value.ok_or_else(|| {
                let text = format!("the trailer `{}` was announced, but did not come", kind.header());
                custom("MalformedTrailerError", text)
            })?;
            said.push((kind, value));
        }
        if let Some((md5, wanted)) = md5
            && STANDARD.encode(md5.finalize()) != wanted
        {
            return Err(failed(S3ErrorCode::BadDigest, "the bytes do not have the MD5 of Content-MD5"));
        }
        let mut compared = Compared::default();
        for (kind, running) in running {
            let computed = running.finish();
            if said.iter().any(|(said_kind, value)| *said_kind == kind && *value != computed) {
                let text = format!("the bytes do not have the checksum of `{}`", kind.header());
                return Err(failed(S3ErrorCode::BadDigest, text));
            }
            *compared.field(kind) = Some(computed);
        }
        Ok(compared)
    }
}

impl Compared {
    fn field(&mut self, kind: ChecksumKind) -> &mut Option<String> {
        match kind {
            ChecksumKind::Crc32 => &mut self.crc32,
            ChecksumKind::Crc32c => &mut self.crc32c,
            ChecksumKind::Crc64Nvme => &mut self.crc64nvme,
            ChecksumKind::Sha1 => &mut self.sha1,
            ChecksumKind::Sha256 => &mut self.sha256,
        }
    }

    /// Whether a completed part names another checksum than the stored one.
    pub(super) fn differs_from(&self, part: &dto::CompletedPart) -> bool {
        let differs = |stored: &Option<String>, named: &Option<String>| match (stored, named) {
            (Some(stored), Some(named)) => stored != named,
            _ => false,
        };
        differs(&self.crc32, &part.checksum_crc32)
            || differs(&self.crc32c, &part.checksum_crc32c)
            || differs(&self.crc64nvme, &part.checksum_crc64nvme)
            || differs(&self.sha1, &part.checksum_sha1)
            || differs(&self.sha256, &part.checksum_sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(
        headers: &[(&'static str, &str)],
        md5: Option<&str>,
        bytes: &[u8],
    ) -> Result<Compared, S3ErrorCode> {
        let headers =
            headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect();
        let mut checksums = Checksums::announced(&headers, None, md5).map_err(|e| e.code().clone())?;
        for part in bytes.chunks(3) {
            checksums.update(part);
        }
        checksums.compare().map_err(|e| e.code().clone())
    }

    // Each checksum of S3 is computed as its standard says: the check values of the CRC catalogue and of RFC 1321, 3174
    // and 6234 for `123456789`.
    #[test]
    fn each_checksum_is_compared_with_the_bytes() {
        let good = [
            ("x-amz-checksum-crc32", "y/Q5Jg=="),
            ("x-amz-checksum-crc32c", "4waSgw=="),
            ("x-amz-checksum-crc64nvme", "rosUhgp5mIg="),
            ("x-amz-checksum-sha1", "98O8HYCOBHMq32eZZczDTKeuNEE="),
            ("x-amz-checksum-sha256", "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ];
        let compared = compare(&good, Some("JfnnlDI7RTiF9RgfG2JNCw=="), b"123456789").unwrap();
        assert_eq!(compared.crc64nvme.as_deref(), Some("rosUhgp5mIg="));
        for (name, value) in good {
            assert_eq!(compare(&[(name, value)], None, b"123456780"), Err(S3ErrorCode::BadDigest), "{name}");
        }
        let md5 = Some("JfnnlDI7RTiF9RgfG2JNCw==");
        assert_eq!(compare(&[], md5, b"x"), Err(S3ErrorCode::BadDigest));
        assert_eq!(compare(&[], Some("short"), b"x"), Err(S3ErrorCode::InvalidDigest));
        let trailer = [("x-amz-trailer", "x-amz-checksum-crc32")];
        assert_eq!(
            compare(&trailer, None, b"x"),
            Err(S3ErrorCode::Custom("MalformedTrailerError".into())),
            "announced only"
        );
    }
}
