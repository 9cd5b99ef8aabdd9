//! Container images, by the digest of their manifest.

use std::{fmt, str::FromStr, sync::Arc};

use super::{Digest, NameError, text_form};

/// The digest of a container image, as registries write it: `sha256:` and 64 hexadecimal digits. It is the same for every tag and
/// every registry that has the image.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageDigest(Arc<str>);

impl ImageDigest {
    /// Returns the digest as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageDigest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse::<Digest>() {
            Ok(_) => Ok(ImageDigest(text.into())),
            Err(_) => Err(NameError::new(
                text,
                "the digest of an image",
                "it must be `sha256:` and 64 hexadecimal digits; a tag can be moved, so it is refused",
            )),
        }
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_form!(ImageDigest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_its_digest_only() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(digest.parse::<ImageDigest>().unwrap().as_str(), digest);
        for other in [
            "trainer:latest".to_owned(),
            format!("registry.example/trainer@{digest}"),
            digest.to_uppercase(),
            format!("sha512:{}", "0a".repeat(64)),
            String::new(),
        ] {
            assert!(other.parse::<ImageDigest>().is_err(), "{other}");
        }
    }
}
