//! A client that signs by AWS Signature Version 4, written from its specification.

use std::fmt::Write;

use ring::{digest, hmac};

use crate::clock::{Clock, SystemClock};

pub(super) const SECRET: &str = "the-secret-of-the-local-key";
const ACCESS_KEY: &str = "LEASEHOLDLOCAL";
const REGION: &str = "us-east-1";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hmac_of(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Returns the time of the machine in the form of the protocol. s3s compares it with the same clock.
pub(super) fn amz_date() -> String {
    let at = SystemClock::new().now().wall.to_string();
    at.split('.').next().unwrap().trim_end_matches('Z').replace(['-', ':'], "") + "Z"
}

/// Returns the headers of a request, with its signature. `target` is an encoded path and query whose parameters are in
/// order.
pub(super) fn signed(
    method: &str,
    host: &str,
    target: &str,
    payload: &str,
    more: &[(&str, &str)],
) -> Vec<(String, String)> {
    let date = amz_date();
    let mut headers: Vec<(String, String)> =
        more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    headers.push(("host".into(), host.into()));
    headers.push(("x-amz-content-sha256".into(), payload.into()));
    headers.push(("x-amz-date".into(), date.clone()));
    headers.sort();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let canonical_headers: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let request = format!("{method}\n{path}\n{query}\n{canonical_headers}\n{names}\n{payload}");
    let (scope, signature) = signature(&date, &request);
    headers.push((
        "authorization".into(),
        format!(
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
        ),
    ));
    headers
}

/// Returns a presigned target for a GET.
pub(super) fn presigned(host: &str, path: &str, seconds: u32) -> String {
    presigned_with(host, path, seconds, "")
}

/// A presigned target with a parameter that comes before the signed headers.
pub(super) fn presigned_with(host: &str, path: &str, seconds: u32, more: &str) -> String {
    let date = amz_date();
    let day = &date[..8];
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={ACCESS_KEY}%2F{day}%2F{REGION}%2Fs3%2Faws4_request\
         &X-Amz-Date={date}&X-Amz-Expires={seconds}{more}&X-Amz-SignedHeaders=host"
    );
    let request = format!("GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    format!("{path}?{query}&X-Amz-Signature={}", signature(&date, &request).1)
}

fn signature(date: &str, request: &str) -> (String, String) {
    let scope = format!("{}/{REGION}/s3/aws4_request", &date[..8]);
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", sha256_hex(request.as_bytes()));
    let key = ["s3", "aws4_request"]
        .iter()
        .fold(hmac_of(&hmac_of(format!("AWS4{SECRET}").as_bytes(), &date[..8]), REGION), |key, part| {
            hmac_of(&key, part)
        });
    (scope, hex(&hmac_of(&key, &text)))
}
