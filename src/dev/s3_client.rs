//! A small S3 client for the demo. It contains no code for Leasehold, and signs GET requests with the key that its environment
//! names.

use std::{fs, io, path::Path};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ring::hmac;
use tokio::net::TcpStream;

use crate::{
    clock::{Clock, Wall},
    secret::{SecretText, sha256},
};

/// The address of the server, and the key with which the client signs.
pub(super) struct S3Client {
    /// The address, as `HOST:PORT`.
    address: String,
    key: S3Key,
}

/// An access key of S3, with the region that its signatures name.
pub(super) struct S3Key {
    pub(super) region: String,
    pub(super) id: String,
    pub(super) secret: SecretText,
}

impl S3Client {
    /// Reads the variables that any S3 client reads.
    pub(super) fn from_env() -> io::Result<Self> {
        let var =
            |name: &str| std::env::var(name).map_err(|_| io::Error::other(format!("{name} is not set")));
        let endpoint: Uri = var("AWS_ENDPOINT_URL_S3")?.parse().map_err(io::Error::other)?;
        let address = endpoint.authority().map(ToString::to_string).unwrap_or_default();
        let key = S3Key::read(var("AWS_SHARED_CREDENTIALS_FILE")?.as_ref(), var("AWS_REGION")?)?;
        Ok(S3Client { address, key })
    }

    /// Requests an object, by its bucket and key.
    pub(super) async fn get(&self, object: &str, clock: &dyn Clock) -> io::Result<Response<Incoming>> {
        let tcp = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(io::Error::other)?;
        tokio::spawn(async move {
            // If the connection fails, reading the body fails too and reports the failure.
            let _ = connection.await;
        });
        let request = self.signed(&format!("/{object}"), clock.now().wall).map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }

    fn signed(&self, path: &str, now: Wall) -> Result<Request<Empty<Bytes>>, http::Error> {
        let headers = self.key.sign("GET", &self.address, path, EMPTY_SHA256, now);
        let request = headers.iter().fold(Request::get(path), |r, (name, value)| r.header(*name, value));
        request.body(Empty::new())
    }
}

impl S3Key {
    /// Reads a file of credentials, as AWS writes them.
    pub(super) fn read(file: &Path, region: String) -> io::Result<Self> {
        let text = SecretText::new(fs::read_to_string(file)?);
        let field = |name: &str| {
            let lines = text.expose().lines().filter_map(|line| line.split_once('='));
            let mut found =
                lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned());
            found.next_back().ok_or_else(|| io::Error::other(format!("the key file has no {name}")))
        };
        let (id, secret) = (field("aws_access_key_id")?, SecretText::new(field("aws_secret_access_key")?));
        Ok(S3Key { region, id, secret })
    }

    /// Signs a request by AWS Signature Version 4, and returns its headers. The path must contain only characters that need no escape,
    /// and no query. `payload` is the SHA-256 of the body, or [`UNSIGNED_PAYLOAD`].
    pub(super) fn sign(
        &self,
        method: &str,
        host: &str,
        path: &str,
        payload: &str,
        now: Wall,
    ) -> [(&'static str, String); 4] {
        const HEADERS: &str = "host;x-amz-content-sha256;x-amz-date";
        let text = now.to_string();
        let digits: String = text.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
        let (date, day) = (format!("{digits}Z"), digits.chars().take(8).collect::<String>());
        let canonical = format!(
            "{method}\n{path}\n\nhost:{host}\nx-amz-content-sha256:{payload}\nx-amz-date:{date}\n\n{HEADERS}\n{payload}"
        );
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&sha256(canonical.as_bytes())));
        let mut key = format!("AWS4{}", self.secret.expose()).into_bytes();
        for part in [day.as_str(), self.region.as_str(), "s3", "aws4_request"] {
            key = mac(&key, part);
        }
        let signature = hex(&mac(&key, &to_sign));
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={HEADERS}, Signature={signature}",
            self.id
        );
        [
            ("host", host.to_owned()),
            ("x-amz-content-sha256", payload.to_owned()),
            ("x-amz-date", date),
            ("authorization", authorization),
        ]
    }
}

/// Stands for the digest of a body that the signature does not cover.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// The digest of a request without a body.
pub(super) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the text of a refusal.
pub(super) async fn text_of(response: Response<Incoming>) -> String {
    let status = response.status();
    match response.into_body().collect().await {
        Ok(body) => format!("{status}: {}", String::from_utf8_lossy(&body.to_bytes())),
        Err(_) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The signature is equal to the signature that botocore makes for this request.
    #[test]
    fn a_request_is_signed_as_botocore_signs_it() {
        let client = S3Client {
            address: "examplebucket.s3.amazonaws.com".into(),
            key: S3Key {
                region: "us-east-1".into(),
                id: "AKIAIOSFODNN7EXAMPLE".into(),
                secret: SecretText::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
            },
        };
        let request = client.signed("/test.txt", Wall(1_369_353_600_000)).unwrap();
        assert_eq!(request.headers()["x-amz-date"], "20130524T000000Z");
        let signed = request.headers()[http::header::AUTHORIZATION].to_str().unwrap();
        assert_eq!(
            signed,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, \
             Signature=df548e2ce037944d03f3e68682813b093763996d597cf890ca3d9037fd231eb4"
        );
    }
}
