//! A small S3 client for the demo. It knows nothing of Leasehold, and signs GET requests with the key that its environment
//! names.

use std::{fs, io};

use bytes::Bytes;
use http::{Request, Response, Uri, header};
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
    region: String,
    key_id: String,
    secret: SecretText,
}

impl S3Client {
    /// Reads the variables that any S3 client reads.
    pub(super) fn from_env() -> io::Result<Self> {
        let var =
            |name: &str| std::env::var(name).map_err(|_| io::Error::other(format!("{name} is not set")));
        let endpoint: Uri = var("AWS_ENDPOINT_URL_S3")?.parse().map_err(io::Error::other)?;
        let address = endpoint.authority().map(ToString::to_string).unwrap_or_default();
        let file = fs::read_to_string(var("AWS_SHARED_CREDENTIALS_FILE")?)?;
        let field = |name: &str| {
            let lines = file.lines().filter_map(|line| line.split_once('='));
            let mut found =
                lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned());
            found.next_back().ok_or_else(|| io::Error::other(format!("the key file has no {name}")))
        };
        Ok(S3Client {
            address,
            region: var("AWS_REGION")?,
            key_id: field("aws_access_key_id")?,
            secret: SecretText::new(field("aws_secret_access_key")?),
        })
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

    /// Signs a request by AWS Signature Version 4. The path must contain only characters that need no escape.
    fn signed(&self, path: &str, now: Wall) -> Result<Request<Empty<Bytes>>, http::Error> {
        const HEADERS: &str = "host;x-amz-content-sha256;x-amz-date";
        let payload = EMPTY_SHA256;
        let text = now.to_string();
        let digits: String = text.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
        let (date, day) = (format!("{digits}Z"), digits.chars().take(8).collect::<String>());
        let canonical = format!(
            "GET\n{path}\n\nhost:{}\nx-amz-content-sha256:{payload}\nx-amz-date:{date}\n\n{HEADERS}\n{payload}",
            self.address
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
            self.key_id
        );
        Request::get(path)
            .header(header::HOST, &self.address)
            .header("x-amz-content-sha256", payload)
            .header("x-amz-date", date)
            .header(header::AUTHORIZATION, authorization)
            .body(Empty::new())
    }
}

/// The digest of a request without a body.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

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
            region: "us-east-1".into(),
            key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: SecretText::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
        };
        let request = client.signed("/test.txt", Wall(1_369_353_600_000)).unwrap();
        assert_eq!(request.headers()["x-amz-date"], "20130524T000000Z");
        let signed = request.headers()[header::AUTHORIZATION].to_str().unwrap();
        assert_eq!(
            signed,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date, \
             Signature=df548e2ce037944d03f3e68682813b093763996d597cf890ca3d9037fd231eb4"
        );
    }
}
