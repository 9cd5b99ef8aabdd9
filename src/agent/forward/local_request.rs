//! A request that the job's program sends to the wrapper's local server, and the copy of it for an S3 gateway.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, request::Parts};

use super::{
    local_key::{LocalKey, signing_key_id},
    refused::NotServed,
};
use crate::{
    agent::access::present::{GatewayAccess, STABLE_BUCKET},
    plain,
    secret::SecretText,
};

/// The path of the local key, for clients that fetch it.
pub(super) const KEY_PATH: &str = "/_leasehold/credentials";
/// The first segment of the Hub's paths. No bucket can have this name.
pub(super) const HUB_PATH: &str = "/_hub";

/// The path at which a gateway accepts newer tokens.
const RENEW_PATH: &str = "/.leasehold/renew";

const TOKEN: HeaderName = HeaderName::from_static("x-leasehold-token");
const SECRET_KEY: HeaderName = HeaderName::from_static("x-leasehold-secret-key");

/// Headers that are about one connection. `Expect` is in the list, because this server answers it itself.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// The protocol of a request and of its answer: S3, or the Hub of Hugging Face.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    S3,
    Hub,
}

impl Dialect {
    pub(super) fn of(path: &str) -> Self {
        let rest = path.strip_prefix(HUB_PATH);
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            Dialect::Hub
        } else {
            Dialect::S3
        }
    }
}

/// A request that came with the local key or token, and may be passed on.
#[derive(Debug)]
pub(super) struct LocalRequest {
    pub(super) dialect: Dialect,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl LocalRequest {
    /// Accepts a request whose signature names the local key, or that has the local token. The gateway checks the signature,
    /// not this function.
    pub(super) fn new(parts: Parts, key: &LocalKey) -> Result<Self, NotServed> {
        let Parts { method, uri, mut headers, .. } = parts;
        // Refuse an absolute URI: only requests to a proxy have one.
        if uri.authority().is_some() || !uri.path().starts_with('/') {
            return Err(NotServed::NoSuchPath);
        }
        let dialect = Dialect::of(uri.path());
        let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        match dialect {
            Dialect::S3 => {
                let id = signing_key_id(authorization, uri.query().unwrap_or_default());
                let id = id.ok_or(NotServed::NotSigned)?;
                if id != key.id {
                    return Err(NotServed::OtherKey(id));
                }
            }
            Dialect::Hub => {
                if !authorization.is_some_and(|value| key.is_bearer(value)) {
                    return Err(NotServed::NoToken);
                }
                headers.remove(header::AUTHORIZATION);
            }
        }
        remove_hop_by_hop(&mut headers);
        let reserved: Vec<_> =
            headers.keys().filter(|name| name.as_str().starts_with("x-leasehold-")).cloned().collect();
        for name in reserved {
            headers.remove(name);
        }
        Ok(LocalRequest { dialect, method, uri, headers })
    }

    /// Chooses the gateway that serves the bucket of the request. If no gateway serves it, a request that only reads goes to
    /// the first gateway, which names the bucket in its refusal. Other requests for such a bucket are refused here, so that
    /// their body is not sent to a gateway. A request without a bucket, or for [`STABLE_BUCKET`], is never refused here.
    pub(super) fn choose<'a>(&self, gateways: &'a [GatewayAccess]) -> Result<&'a GatewayAccess, NotServed> {
        let no_gateway = || NotServed::TryLater("this job has no access at an S3 gateway now".to_owned());
        let first = gateways.first().ok_or_else(no_gateway)?;
        if self.dialect == Dialect::Hub {
            return Ok(first);
        }
        let path = self.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        match gateways.iter().find(|g| g.serves(bucket, key)) {
            Some(gateway) => Ok(gateway),
            None if self.only_reads() || bucket.is_empty() || bucket == STABLE_BUCKET => Ok(first),
            None => Err(NotServed::OtherBucket(bucket.to_owned())),
        }
    }

    /// Whether the request changes nothing, so that it can be sent twice.
    pub(super) fn only_reads(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    /// Makes the request to a gateway, with the present tokens.
    pub(super) fn to_gateway<B>(&self, gateway: &GatewayAccess, key: &LocalKey, body: B) -> Request<B> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        for token in &gateway.tokens {
            if let Some(value) = secret_value(token) {
                headers.append(TOKEN, value);
            }
        }
        if let (Dialect::S3, Some(value)) = (self.dialect, secret_value(&key.secret)) {
            headers.insert(SECRET_KEY, value);
        }
        request
    }

    /// Makes the request that presents newer tokens to a gateway, because a transfer may last longer than its token.
    pub(super) fn renewal<B>(gateway: &GatewayAccess, key: &LocalKey, body: B) -> Request<B> {
        let mut headers = HeaderMap::new();
        if let Ok(host) = HeaderValue::from_str(gateway.endpoint.address()) {
            headers.insert(header::HOST, host);
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        let (method, uri) = (Method::POST, Uri::from_static(RENEW_PATH));
        LocalRequest { dialect: Dialect::S3, method, uri, headers }.to_gateway(gateway, key, body)
    }

    /// The text of the request for the log. The query is left out, because it may contain a signature.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.method, plain::value(self.uri.path()))
    }
}

/// Removes the headers that are about one connection, and the headers that `Connection` names.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn secret_value(secret: &SecretText) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(secret.expose()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{link::Endpoint, secret::Secret};

    fn key() -> LocalKey {
        LocalKey::of_session(&Secret::from_bytes(&[7; 32]).unwrap())
    }

    fn gateway(at: &str, location: &str) -> GatewayAccess {
        let endpoint = Endpoint::new(at, "spiffe://a.example/gateway".parse().unwrap()).unwrap();
        let mut gateway = GatewayAccess::new(endpoint);
        gateway.tokens = vec![SecretText::new("reading".into()), SecretText::new("writing".into())];
        gateway.locations.push(location.to_owned());
        gateway
    }

    fn parts(path: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn signed(id: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/20261130/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        )
    }

    // A request reaches the gateway as the program signed it. The tokens are added, and headers that only we may set are
    // removed.
    #[test]
    fn a_request_is_passed_on_as_it_was_signed() {
        let (key, auth) = (key(), signed(&key().id));
        let came = [
            ("host", "127.0.0.1:9000"),
            ("authorization", auth.as_str()),
            ("x-amz-date", "20261130T000000Z"),
            ("connection", "keep-alive, x-one"),
            ("x-one", "1"),
            ("expect", "100-continue"),
            ("x-leasehold-token", "forged"),
            ("x-leasehold-secret-key", "forged"),
        ];
        let local = LocalRequest::new(parts("/b//k%2e%2e/%20?list-type=2&x=%2F", &came), &key).unwrap();
        let sent = local.to_gateway(&gateway("g:1", "s3://b/"), &key, ());
        assert_eq!(sent.uri().to_string(), "/b//k%2e%2e/%20?list-type=2&x=%2F");
        let tokens: Vec<_> = sent.headers().get_all(TOKEN).iter().collect();
        assert_eq!(tokens, ["reading", "writing"]);
        assert_eq!(sent.headers()[SECRET_KEY], key.secret.expose());
        assert_eq!(
            (&sent.headers()["host"], &sent.headers()["authorization"]),
            (&"127.0.0.1:9000".parse().unwrap(), &auth.parse().unwrap())
        );
        for gone in ["connection", "x-one", "expect"] {
            assert!(!sent.headers().contains_key(gone), "{gone}");
        }
        let shown = format!("{:?}", sent.headers());
        assert!(!shown.contains("reading") && !shown.contains(key.secret.expose()), "{shown}");
    }

    // A refusal names the key if leasehold did not give it to the program, for a key in a header and in a presigned URL.
    #[test]
    fn another_key_is_refused_by_name() {
        let auth = signed("AKIAIOSFODNN7EXAMPLE");
        let refused = LocalRequest::new(parts("/b/k", &[("authorization", &auth)]), &key()).unwrap_err();
        assert!(matches!(refused, NotServed::OtherKey(id) if id == "AKIAIOSFODNN7EXAMPLE"));
        let presigned = parts("/b/k?X-Amz-Credential=AKIA%2F2026", &[]);
        assert!(matches!(LocalRequest::new(presigned, &key()), Err(NotServed::OtherKey(_))));
        assert!(matches!(
            LocalRequest::new(parts("http://x.example/b", &[]), &key()),
            Err(NotServed::NoSuchPath)
        ));
    }

    // A request without a signature gets no token: it is refused here.
    #[test]
    fn a_request_without_a_signature_is_refused() {
        for came in [&[][..], &[("authorization", "AWS AKIA:sig")], &[("authorization", "Basic YTpi")]] {
            let refused = LocalRequest::new(parts("/b/k", came), &key());
            assert!(matches!(refused, Err(NotServed::NotSigned)), "{came:?}");
        }
    }

    // If no gateway serves a bucket, the body of a request that changes the bucket is not sent to a gateway.
    #[test]
    fn a_change_of_an_unknown_bucket_is_refused() {
        let gateways = [gateway("one:1", "s3://first/x/")];
        let auth = signed(&key().id);
        let chosen = |method: Method, path: &str| {
            let mut parts = parts(path, &[("authorization", &auth)]);
            parts.method = method;
            LocalRequest::new(parts, &key()).unwrap().choose(&gateways).map(|_| ())
        };
        for method in [Method::PUT, Method::POST, Method::DELETE] {
            let refused = chosen(method.clone(), "/other/k").unwrap_err();
            assert!(matches!(refused, NotServed::OtherBucket(name) if name == "other"), "{method}");
            assert!(chosen(method.clone(), "/first/x/k").is_ok());
            assert!(chosen(method, "/leasehold/dataset/acme/tickets%40v3/k").is_ok());
        }
        assert!(chosen(Method::GET, "/other/k").is_ok(), "the gateway refuses it by name");
    }

    // The Hub's clients need the local token, which does not leave this machine.
    #[test]
    fn the_hub_needs_the_local_token() {
        let key = key();
        let path = "/_hub/api/models/acme/base";
        assert!(matches!(LocalRequest::new(parts(path, &[]), &key), Err(NotServed::NoToken)));
        let bearer = format!("Bearer {}", key.bearer.expose());
        let local = LocalRequest::new(parts(path, &[("authorization", &bearer)]), &key).unwrap();
        let sent = local.to_gateway(&gateway("g:1", "s3://b/"), &key, ());
        assert!(!sent.headers().contains_key("authorization") && !sent.headers().contains_key(SECRET_KEY));
        assert!(sent.headers().contains_key(TOKEN));
    }

    // Each bucket goes to the gateway that serves it.
    #[test]
    fn each_bucket_goes_to_its_gateway() {
        let gateways = [gateway("one:1", "s3://first/x/"), gateway("two:1", "s3://second/y/")];
        let auth = signed(&key().id);
        let local = |path: &str| LocalRequest::new(parts(path, &[("authorization", &auth)]), &key()).unwrap();
        let chosen = |path: &str| {
            let local = local(path);
            local.choose(&gateways).unwrap().endpoint.address().to_owned()
        };
        assert_eq!([chosen("/second/y/k"), chosen("/first"), chosen("/")], ["two:1", "one:1", "one:1"]);
        assert!(matches!(local("/b").choose(&[]), Err(NotServed::TryLater(_))));
    }
}
