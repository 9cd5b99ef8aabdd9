//! The limits of a gateway, counted for each holder and for all holders together.

use std::sync::Arc;

use crate::{
    limits::{
        GATEWAY_LISTINGS_MAX, GATEWAY_LISTINGS_PER_PEER_MAX, GATEWAY_LISTINGS_PER_TENANT_MAX,
        GATEWAY_REQUESTS_MAX, GATEWAY_REQUESTS_PER_PEER_MAX, GATEWAY_UPLOAD_KIB_MAX,
        GATEWAY_UPLOAD_KIB_PER_PEER_MAX,
    },
    link::Shares,
    name::TenantName,
};

/// The work that holders may have under way at once.
#[derive(Debug)]
pub(super) struct GatewayRoom {
    pub(super) requests: Arc<Shares>,
    pub(super) listings: Arc<Shares>,
    /// Counts each of the `listings` for the tenant of its job.
    pub(super) listings_of_tenants: Arc<Shares<TenantName>>,
    /// KiB of memory for uploads into object stores.
    pub(super) upload_kib: Arc<Shares>,
}

impl Default for GatewayRoom {
    fn default() -> Self {
        GatewayRoom {
            requests: Shares::new(GATEWAY_REQUESTS_MAX, GATEWAY_REQUESTS_PER_PEER_MAX),
            listings: Shares::new(GATEWAY_LISTINGS_MAX, GATEWAY_LISTINGS_PER_PEER_MAX),
            listings_of_tenants: Shares::new(GATEWAY_LISTINGS_MAX, GATEWAY_LISTINGS_PER_TENANT_MAX),
            upload_kib: Shares::new(GATEWAY_UPLOAD_KIB_MAX, GATEWAY_UPLOAD_KIB_PER_PEER_MAX),
        }
    }
}
