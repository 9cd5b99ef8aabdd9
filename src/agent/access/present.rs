//! The access of a member to S3 gateways, in the form that the local S3 endpoint (`forward`) needs.

use std::sync::Arc;

use super::access_end::AccessEnd;
use crate::{link::Endpoint, name::Object, secret::SecretText};

/// The present access of a member. Each change of a token makes a new value.
#[derive(Clone, Debug)]
pub(crate) enum PresentAccess {
    /// The member is connected to the daemon.
    Open(Arc<Vec<GatewayAccess>>),
    /// The connection to the daemon is lost. The member tries to come back.
    Away,
    /// Access has ended and does not come back.
    Ended(AccessEnd),
}

/// One S3 gateway, and what the member may use there.
#[derive(Clone, Debug)]
pub(crate) struct GatewayAccess {
    pub(crate) endpoint: Endpoint,
    /// The tokens: one for each half of the access that has a token.
    pub(crate) tokens: Vec<SecretText>,
    /// The folders of the resources, such as `s3://bucket/prefix/`.
    pub(crate) locations: Vec<String>,
    pub(crate) resources: Vec<Object>,
}

impl GatewayAccess {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        GatewayAccess { endpoint, tokens: Vec::new(), locations: Vec::new(), resources: Vec::new() }
    }

    /// Whether this gateway gets requests for this bucket and key: the bucket is that of one of its locations, or the key begins
    /// with the stable name of one of its resources.
    pub(crate) fn serves(&self, bucket: &str, key: &str) -> bool {
        let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
        let has_name = |resource: &Object| {
            let below =
                |name: &str| rest.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('/'));
            resource.to_string().split_once(':').is_some_and(|(k, name)| k == kind && below(name))
        };
        let has_bucket = |location: &String| {
            location.split_once("://").and_then(|(_, rest)| rest.split('/').next()) == Some(bucket)
        };
        (bucket == STABLE_BUCKET && self.resources.iter().any(has_name))
            || self.locations.iter().any(has_bucket)
    }
}

/// The bucket in which each resource has a name that does not depend on its location.
pub(crate) const STABLE_BUCKET: &str = "leasehold";

#[cfg(test)]
mod tests {
    use super::*;

    // A bucket, or a stable name, leads to the gateway that serves it.
    #[test]
    fn a_bucket_or_a_stable_name_has_a_gateway() {
        let endpoint = Endpoint::new("gateway:1", "spiffe://a.example/gateway".parse().unwrap()).unwrap();
        let mut gateway = GatewayAccess::new(endpoint);
        gateway.locations.push("s3://acme-data/tickets/v3/".to_owned());
        gateway.resources.push("dataset:acme/tickets@v3".parse().unwrap());
        for (bucket, key) in [
            ("acme-data", "tickets/v3/a"),
            ("acme-data", ""),
            ("leasehold", "dataset/acme/tickets@v3/train.parquet"),
        ] {
            assert!(gateway.serves(bucket, key), "{bucket}/{key}");
        }
        for (bucket, key) in [("acme", "x"), ("leasehold", "dataset/acme/tickets@v33/a"), ("leasehold", "")] {
            assert!(!gateway.serves(bucket, key), "{bucket}/{key}");
        }
    }
}
