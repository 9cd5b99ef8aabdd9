//! A request that is signed by AWS Signature Version 4 with a direct key, and the check of its signature.
//!
//! The gateway does not have the client's secret, only a key for the signatures of one day. With this key, it computes the
//! signature and compares. Then it signs the request again with its own local secret, because s3s also checks the signature.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use s3s::{S3Error, S3ErrorCode, S3Result};
use subtle::ConstantTimeEq;

use super::refusal::{failed, not_implemented};
use crate::{
    limits::GATEWAY_SIGNED_HEADERS_MAX,
    secret::{DateKey, SecretText, hex, sha256},
};

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TOKEN_HEADER: HeaderName = HeaderName::from_static("x-amz-security-token");
const TOKEN_PARAMETER: &str = "X-Amz-Security-Token";
const SIGNATURE_PARAMETER: &str = "X-Amz-Signature";
const PAYLOAD_HEADER: &str = "x-amz-content-sha256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Where a request carries its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SignaturePlace {
    Header,
    /// A presigned URL.
    Query,
}

/// What a request says about its signature.
#[derive(Debug)]
pub(super) struct SignedRequest {
    pub(super) access_key: String,
    /// `YYYYMMDD`.
    pub(super) date: String,
    pub(super) session_token: SecretText,
    place: SignaturePlace,
    region: String,
    /// `YYYYMMDDTHHMMSSZ`.
    time: String,
    signed_headers: Vec<String>,
    signature: String,
}

/// The fields of a signature, before they are read.
struct SignatureFields {
    place: SignaturePlace,
    credential: String,
    signed_headers: String,
    signature: String,
    time: String,
}

impl SignedRequest {
    /// Reads what a request says about its signature. Checks the form, and not the signature.
    pub(super) fn read<B>(request: &Request<B>) -> S3Result<Self> {
        let query = read_query(request.uri().query().unwrap_or_default())?;
        let fields = match request.headers().get(header::AUTHORIZATION) {
            Some(_) if parameter(&query, SIGNATURE_PARAMETER)?.is_some() => {
                return Err(malformed("the request is signed twice, in its headers and in its URL"));
            }
            Some(value) => fields_of_header(value, request.headers())?,
            None => fields_of_query(&query)?,
        };
        let SignatureFields { place, credential, signed_headers, signature, time } = fields;
        let parts: Vec<&str> = credential.split('/').collect();
        let [access_key, date, region, "s3", "aws4_request"] = *parts.as_slice() else {
            return Err(malformed("the credential is not KEY/DATE/REGION/s3/aws4_request"));
        };
        let is_region = |text: &str| {
            !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let is_time = time.len() == 16 && time.starts_with(date) && date.len() == 8;
        if !is_region(region) || !is_time || !date.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed("the region or the date of the signature is malformed"));
        }
        let signed_headers = read_signed_headers(&signed_headers, request.headers())?;
        Ok(SignedRequest {
            access_key: access_key.to_owned(),
            date: date.to_owned(),
            session_token: session_token(place, &query, request.headers())?,
            place,
            region: region.to_owned(),
            time,
            signed_headers,
            signature,
        })
    }

    /// Compares the signature.
    pub(super) fn check<B>(&self, request: &Request<B>, key: &DateKey) -> S3Result<()> {
        let path = request.uri().path();
        let is_ours = |path: &str| -> S3Result<bool> {
            let expected = key.sign(&self.region, &self.text_to_sign(request, path)?);
            Ok(expected.as_bytes().ct_eq(self.signature.as_bytes()).into())
        };
        // Some clients sign the path as they send it, with characters that the standard would encode.
        if is_ours(&canonical_path(path)?)? || is_ours(path)? {
            return Ok(());
        }
        let text =
            "the signature is not that of this request and key: check the secret, the region and the clock";
        Err(failed(S3ErrorCode::SignatureDoesNotMatch, text))
    }

    /// Removes the session token from a request, and signs the request with another key of the same date.
    pub(super) fn sign_again<B>(mut self, request: &mut Request<B>, key: &DateKey) -> S3Result<()> {
        request.headers_mut().remove(TOKEN_HEADER);
        self.signed_headers.retain(|name| name != TOKEN_HEADER.as_str());
        if self.place == SignaturePlace::Query {
            let query = request.uri().query().unwrap_or_default();
            let kept = query.split('&').filter(|pair| {
                let name = decode(pair.split('=').next().unwrap_or_default(), Plus::Space);
                !matches!(name.as_deref(), Some(TOKEN_PARAMETER | SIGNATURE_PARAMETER))
            });
            let kept = kept.collect::<Vec<_>>().join("&");
            set_query(request, &kept)?;
        }
        let text = self.text_to_sign(request, &canonical_path(request.uri().path())?)?;
        let signature = key.sign(&self.region, &text);
        if self.place == SignaturePlace::Query {
            let query = request.uri().query().unwrap_or_default();
            return set_query(request, &format!("{query}&{SIGNATURE_PARAMETER}={signature}"));
        }
        let SignedRequest { access_key, date, region, .. } = &self;
        let names = self.signed_headers.join(";");
        let value = format!(
            "{ALGORITHM} Credential={access_key}/{date}/{region}/s3/aws4_request, SignedHeaders={names}, Signature={signature}"
        );
        let value = HeaderValue::try_from(value).map_err(|_| malformed("the signature is malformed"))?;
        request.headers_mut().insert(header::AUTHORIZATION, value);
        Ok(())
    }

    /// Returns the text that the client signed. `path` has the form in which the client signed it.
    fn text_to_sign<B>(&self, request: &Request<B>, path: &str) -> S3Result<String> {
        let mut pairs: Vec<(String, String)> = read_query(request.uri().query().unwrap_or_default())?
            .into_iter()
            .filter(|(name, _)| self.place == SignaturePlace::Header || name != SIGNATURE_PARAMETER)
            .map(|(name, value)| (encode(&name, Slash::Encoded), encode(&value, Slash::Encoded)))
            .collect();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut headers = String::new();
        for name in &self.signed_headers {
            let values: Vec<String> =
                request.headers().get_all(name).iter().map(normal_value).collect::<S3Result<_>>()?;
            headers.push_str(&format!("{name}:{}\n", values.join(",")));
        }
        let payload = match self.place {
            SignaturePlace::Query => UNSIGNED.to_owned(),
            SignaturePlace::Header => match request.headers().get(PAYLOAD_HEADER).map(normal_value) {
                Some(value) => value?,
                None => return Err(malformed("the header x-amz-content-sha256 is missing")),
            },
        };
        let (method, query, names) = (request.method(), pairs.join("&"), self.signed_headers.join(";"));
        let canonical = format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{payload}");
        let SignedRequest { date, region, time, .. } = self;
        let digest = hex(&sha256(canonical.as_bytes()));
        Ok(format!("{ALGORITHM}\n{time}\n{date}/{region}/s3/aws4_request\n{digest}"))
    }
}

fn fields_of_header(value: &HeaderValue, headers: &HeaderMap) -> S3Result<SignatureFields> {
    let wrong = || malformed("the header Authorization is not one of Signature Version 4");
    let rest = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix(ALGORITHM)?.strip_prefix(' '))
        .ok_or_else(wrong)?;
    let fields: Vec<(&str, &str)> =
        rest.split(',').filter_map(|field| field.trim().split_once('=')).collect();
    let [("Credential", credential), ("SignedHeaders", signed_headers), ("Signature", signature)] =
        *fields.as_slice()
    else {
        return Err(wrong());
    };
    if headers.get_all(header::AUTHORIZATION).iter().count() > 1 {
        return Err(wrong());
    }
    let time = headers.get("x-amz-date").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let payload = headers.get(PAYLOAD_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    if payload.starts_with(b"STREAMING-AWS4-") {
        return Err(not_implemented(
            "bodies in signed chunks (STREAMING-AWS4-HMAC-SHA256-PAYLOAD) with a direct key, since TLS protects the body",
        ));
    }
    Ok(SignatureFields {
        place: SignaturePlace::Header,
        credential: credential.to_owned(),
        signed_headers: signed_headers.to_owned(),
        signature: signature.to_owned(),
        time: time.to_owned(),
    })
}

fn fields_of_query(query: &[(String, String)]) -> S3Result<SignatureFields> {
    let Some(signature) = parameter(query, SIGNATURE_PARAMETER)? else {
        let text = "the request is not signed: sign it with AWS Signature Version 4";
        return Err(failed(S3ErrorCode::AccessDenied, text));
    };
    let need = |name: &str| -> S3Result<String> {
        let value = parameter(query, name)?;
        value
            .map(str::to_owned)
            .ok_or_else(|| malformed("the presigned URL lacks a parameter of Signature Version 4"))
    };
    if need("X-Amz-Algorithm")? != ALGORITHM {
        return Err(malformed("the algorithm of the presigned URL is not AWS4-HMAC-SHA256"));
    }
    Ok(SignatureFields {
        place: SignaturePlace::Query,
        credential: need("X-Amz-Credential")?,
        signed_headers: need("X-Amz-SignedHeaders")?,
        signature: signature.to_owned(),
        time: need("X-Amz-Date")?,
    })
}

/// Reads the names of the signed headers. All headers that have a meaning for S3 must be signed. Otherwise someone who passes a
/// signed request on could add such a header.
fn read_signed_headers(text: &str, headers: &HeaderMap) -> S3Result<Vec<String>> {
    let names: Vec<String> = text.split(';').map(str::to_owned).collect();
    let is_name = |name: &String| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let in_order = names.windows(2).all(|two| matches!(two, [a, b] if a < b));
    if names.len() > GATEWAY_SIGNED_HEADERS_MAX || !names.iter().all(is_name) || !in_order {
        return Err(malformed("the signed headers are not a list of lower-case names in order"));
    }
    if let Some(missing) = names.iter().find(|name| !headers.contains_key(name.as_str())) {
        return Err(malformed(&format!("the signed header `{missing}` is missing")));
    }
    let is_signed = |name: &str| names.iter().any(|signed| signed == name);
    let unsigned =
        headers.keys().find(|name| name.as_str().starts_with("x-amz-") && !is_signed(name.as_str()));
    if let Some(unsigned) = unsigned {
        let text =
            format!("the header `{unsigned}` is not signed: sign every header that begins with x-amz-");
        return Err(failed(S3ErrorCode::AccessDenied, text));
    }
    if !is_signed("host") {
        return Err(failed(S3ErrorCode::AccessDenied, "the header `host` is not signed"));
    }
    Ok(names)
}

/// Returns the session token. It is in the headers if the signature is there, and otherwise in the URL.
fn session_token(
    place: SignaturePlace,
    query: &[(String, String)],
    headers: &HeaderMap,
) -> S3Result<SecretText> {
    let in_header: Vec<&HeaderValue> = headers.get_all(TOKEN_HEADER).iter().collect();
    let in_query = parameter(query, TOKEN_PARAMETER)?;
    let token = match (place, in_header.as_slice(), in_query) {
        (SignaturePlace::Header, [token], None) => token.to_str().unwrap_or_default(),
        (SignaturePlace::Query, [], Some(token)) => token,
        (_, [], None) => {
            let text = "the request has no session token: send the one that came with the key";
            return Err(failed(S3ErrorCode::InvalidToken, text));
        }
        _ => {
            let text =
                "the session token must be beside the signature, once: both in headers, or both in the URL";
            return Err(failed(S3ErrorCode::InvalidToken, text));
        }
    };
    Ok(SecretText::new(token.to_owned()))
}

/// Returns the value of a parameter. Refuses a parameter that occurs twice.
fn parameter<'q>(query: &'q [(String, String)], name: &str) -> S3Result<Option<&'q str>> {
    let mut found = query.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
    match (found.next(), found.next()) {
        (value, None) => Ok(value),
        _ => Err(malformed("the URL has a parameter of the signature twice")),
    }
}

/// Whether a plus sign stands for a space.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plus {
    Space,
    Literal,
}

/// Whether a slash is encoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slash {
    Encoded,
    Kept,
}

fn read_query(query: &str) -> S3Result<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(name, Plus::Space)?, decode(value, Plus::Space)?))
    });
    pairs.collect::<Option<_>>().ok_or_else(|| malformed("the query of the URL is malformed"))
}

fn canonical_path(path: &str) -> S3Result<String> {
    let path = decode(path, Plus::Literal).ok_or_else(|| malformed("the path of the URL is malformed"))?;
    Ok(encode(&path, Slash::Kept))
}

/// Decodes percent-encoding. `None` if it is malformed, or if the bytes are not UTF-8.
fn decode(text: &str, plus: Plus) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                out.push(u8::try_from(high << 4 | low).ok()?);
            }
            b'+' if plus == Plus::Space => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

/// Encodes as Signature Version 4 says: all bytes but letters, digits and `-._~`.
fn encode(text: &str, slash: Slash) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            b'/' if slash == Slash::Kept => out.push('/'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Returns a header's value without spaces at its beginning and end, and with single spaces inside.
fn normal_value(value: &HeaderValue) -> S3Result<String> {
    let text =
        std::str::from_utf8(value.as_bytes()).map_err(|_| malformed("a signed header is not UTF-8"))?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn set_query<B>(request: &mut Request<B>, query: &str) -> S3Result<()> {
    let path = request.uri().path();
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    *request.uri_mut() = target.parse::<Uri>().map_err(|_| malformed("the URL is malformed"))?;
    Ok(())
}

fn malformed(text: &str) -> S3Error {
    failed(S3ErrorCode::AuthorizationHeaderMalformed, text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        gateway::testing::{SECRET, presigned_with, sha256_hex, signed},
        secret::S3Secret,
    };

    const HOST: &str = "gateway.example:8447";
    const TOKEN: (&str, &str) = ("x-amz-security-token", "a.b.c");

    fn keys(date: &str) -> (DateKey, DateKey) {
        (S3Secret::of_test(SECRET).date_key(date), S3Secret::of_test("local").date_key(date))
    }

    fn request(method: &str, target: &str, headers: &[(String, String)]) -> Request<()> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(()).unwrap()
    }

    fn in_headers(target: &str, more: &[(&str, &str)]) -> Request<()> {
        request("GET", target, &signed("GET", HOST, target, &sha256_hex(b""), more))
    }

    fn in_url(path: &str) -> Request<()> {
        let target = presigned_with(HOST, path, 600, "&X-Amz-Security-Token=a.b.c");
        request("GET", &target, &[("host".into(), HOST.into())])
    }

    fn code(result: S3Result<impl std::fmt::Debug>) -> String {
        result.unwrap_err().code().as_str().to_owned()
    }

    // The request that s3s gets is the one that was signed, without its session token, and signed with the local key.
    #[test]
    fn a_request_is_checked_and_signed_again_without_its_token() {
        for mut asked in [in_headers("/b/k%20%2B?x=1%202&y=", &[TOKEN]), in_url("/b/k%20%2B")] {
            let read = SignedRequest::read(&asked).unwrap();
            let (theirs, local) = keys(&read.date);
            assert_eq!((read.access_key.as_str(), read.session_token.expose()), ("LEASEHOLDLOCAL", "a.b.c"));
            read.check(&asked, &theirs).unwrap();
            assert_eq!(code(read.check(&asked, &local)), "SignatureDoesNotMatch");
            let path = asked.uri().path().to_owned();
            read.sign_again(&mut asked, &local).unwrap();
            assert_eq!(asked.uri().path(), path);
            let shown = format!("{asked:?}");
            assert!(!shown.contains("a.b.c") && !shown.to_lowercase().contains("security-token"), "{shown}");
            assert_eq!(code(SignedRequest::read(&asked)), "InvalidToken");
        }
    }

    #[test]
    fn a_changed_request_has_another_signature() {
        let original = in_headers("/b/k?list-type=2&prefix=a", &[TOKEN, ("x-amz-acl", "private")]);
        let (theirs, _) = keys(&SignedRequest::read(&original).unwrap().date);
        let changes: [fn(&mut Request<()>); 6] = [
            |r| *r.method_mut() = http::Method::PUT,
            |r| *r.uri_mut() = "/b/other?list-type=2&prefix=a".parse().unwrap(),
            |r| *r.uri_mut() = "/b/k?list-type=2&prefix=b".parse().unwrap(),
            |r| *r.uri_mut() = "/b/k?list-type=2&prefix=a&x=".parse().unwrap(),
            |r| drop(r.headers_mut().insert("x-amz-acl", HeaderValue::from_static("public-read"))),
            |r| assert!(r.headers_mut().append("x-amz-acl", HeaderValue::from_static("private"))),
        ];
        for change in changes {
            let mut changed = request("GET", "/", &[]);
            *changed.uri_mut() = original.uri().clone();
            *changed.headers_mut() = original.headers().clone();
            change(&mut changed);
            assert_eq!(
                code(SignedRequest::read(&changed).unwrap().check(&changed, &theirs)),
                "SignatureDoesNotMatch"
            );
        }
        // Someone who passes a presigned URL on cannot turn it into a copy.
        for mut added in [in_url("/b/k"), in_headers("/b/k", &[TOKEN])] {
            added.headers_mut().insert("x-amz-copy-source", HeaderValue::from_static("/other/key"));
            assert_eq!(code(SignedRequest::read(&added)), "AccessDenied");
        }
    }

    #[test]
    fn other_forms_of_a_signature_are_refused() {
        assert_eq!(code(SignedRequest::read(&request("GET", "/b/k", &[]))), "AccessDenied");
        assert_eq!(code(SignedRequest::read(&in_headers("/b/k", &[]))), "InvalidToken");
        let mut two_tokens = in_headers("/b/k", &[TOKEN]);
        assert!(two_tokens.headers_mut().append(TOKEN.0, HeaderValue::from_static("d.e.f")));
        assert_eq!(code(SignedRequest::read(&two_tokens)), "InvalidToken");
        assert_eq!(
            code(SignedRequest::read(&in_headers("/b/k?X-Amz-Security-Token=a.b.c", &[TOKEN]))),
            "InvalidToken"
        );
        let mut twice = in_url("/b/k");
        let header = in_headers("/b/k", &[TOKEN]).headers()[header::AUTHORIZATION].clone();
        twice.headers_mut().insert(header::AUTHORIZATION, header.clone());
        assert_eq!(code(SignedRequest::read(&twice)), "AuthorizationHeaderMalformed");
        for payload in ["STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"] {
            let headers = signed("PUT", HOST, "/b/k", payload, &[TOKEN]);
            assert_eq!(code(SignedRequest::read(&request("PUT", "/b/k", &headers))), "NotImplemented");
        }
        let text = header.to_str().unwrap();
        for (from, to) in [
            ("s3/aws4", "sts/aws4"),
            ("us-east-1", "us/east"),
            ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
            ("SignedHeaders=host;", "SignedHeaders=host;host;"),
            ("SignedHeaders=host;", "SignedHeaders=Host;"),
            ("SignedHeaders=host;", "SignedHeaders=absent;host;"),
            ("Signature=", "Other="),
        ] {
            let mut wrong = in_headers("/b/k", &[TOKEN]);
            let value = HeaderValue::try_from(text.replace(from, to)).unwrap();
            wrong.headers_mut().insert(header::AUTHORIZATION, value);
            assert_eq!(code(SignedRequest::read(&wrong)), "AuthorizationHeaderMalformed", "{to}");
        }
    }

    proptest! {
        // No form of encoding changes what a request opens between the check and s3s, and none stops the gateway.
        #[test]
        fn signing_again_changes_nothing_that_a_request_opens(path in "/[a-z%+ .~=&;é/]{0,24}", query in "[a-z%+=&;2Ff]{0,24}") {
            let target = format!("{path}?{query}");
            let Ok(uri) = target.parse::<Uri>() else { return Ok(()) };
            let mut asked = in_headers("/b/k", &[TOKEN]);
            *asked.uri_mut() = uri.clone();
            let Ok(read) = SignedRequest::read(&asked) else { return Ok(()) };
            let (theirs, local) = keys(&read.date);
            prop_assert!(read.check(&asked, &theirs).is_err());
            if read.sign_again(&mut asked, &local).is_ok() {
                prop_assert_eq!(asked.uri(), &uri);
            }
        }
    }
}
