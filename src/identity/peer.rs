//! The proof that a peer was verified.

use std::{fmt, sync::Arc};

use rustls::{ClientConnection, ServerConnection, pki_types::CertificateDer};

use super::{bundle::TrustBundles, leaf::Side, path, svid_error::SvidError};
use crate::{clock::Wall, name::SpiffeId};

/// The other side of a TLS connection, with a verified X.509-SVID. Only this module makes one, from a finished
/// handshake that proved possession of the private key. The SPIFFE ID is proved until [`Peer::not_after`].
///
/// A clone copies only a pointer. A peer keeps the presented chain, so that the chain can be verified again when the bundles
/// change.
#[derive(Clone)]
pub struct Peer(Arc<PeerFacts>);

struct PeerFacts {
    spiffe_id: SpiffeId,
    not_after: Wall,
    x5t_s256: [u8; 32],
    serial: String,
    side: Side,
    chain: Vec<CertificateDer<'static>>,
    bundle_revision: u64,
}

impl Peer {
    /// Returns the client of a connection that a server has accepted.
    ///
    /// The chain counts as verified if the handshake verified it against these bundles. Otherwise the chain is verified
    /// now, regardless of the TLS configuration of the connection. [`Peer::bundle_revision`] is the revision of these
    /// bundles.
    ///
    /// # Errors
    ///
    /// The client showed no chain, or its chain does not verify against these bundles now.
    pub fn of_client(tls: &ServerConnection, now: Wall, bundles: &TrustBundles) -> Result<Peer, SvidError> {
        Self::verified(tls.is_handshaking(), tls.peer_certificates(), Side::Client, now, bundles)
    }

    /// Returns the server of a connection that a client has opened.
    ///
    /// # Errors
    ///
    /// The server's chain does not verify against these bundles now.
    pub fn of_server(tls: &ClientConnection, now: Wall, bundles: &TrustBundles) -> Result<Peer, SvidError> {
        Self::verified(tls.is_handshaking(), tls.peer_certificates(), Side::Server, now, bundles)
    }

    fn verified(
        handshaking: bool,
        presented: Option<&[CertificateDer<'static>]>,
        side: Side,
        now: Wall,
        bundles: &TrustBundles,
    ) -> Result<Peer, SvidError> {
        let chain = presented.filter(|_| !handshaking).ok_or(SvidError::NotPresented)?;
        let verified = match bundles.handshakes().take(chain, side, now) {
            Some(verified) => verified,
            None => path::verify(chain, side, now, bundles)?,
        };
        Ok(Peer(Arc::new(PeerFacts {
            spiffe_id: verified.leaf.spiffe_id,
            not_after: verified.ends,
            x5t_s256: verified.leaf.x5t_s256,
            serial: verified.leaf.serial,
            side,
            chain: chain.to_vec(),
            bundle_revision: bundles.revision(),
        })))
    }

    /// Returns the SPIFFE ID: the only URI in the peer's SVID.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// Returns the end of the identity, exclusive. It is the earliest NotAfter of the SVID and the certificates above
    /// it.
    pub fn not_after(&self) -> Wall {
        self.0.not_after
    }

    /// Returns the SHA-256 of the SVID's DER: the `x5t#S256` of RFC 8705 section 3.1.
    pub fn x5t_s256(&self) -> &[u8; 32] {
        &self.0.x5t_s256
    }

    /// Returns the serial number of the SVID in lower-case hex.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// Returns the revision of the bundles against which the chain was verified.
    pub fn bundle_revision(&self) -> u64 {
        self.0.bundle_revision
    }

    /// Checks that the peer's identity has not expired. The check is cheap enough for each use.
    ///
    /// # Errors
    ///
    /// [`SvidError::Expired`] from [`Peer::not_after`] on.
    pub fn check_time(&self, now: Wall) -> Result<(), SvidError> {
        if now >= self.0.not_after {
            return Err(SvidError::Expired { not_after: self.0.not_after });
        }
        Ok(())
    }

    /// Checks that the identity has not expired and that the chain verifies against these bundles. Use it after a
    /// change of the bundles. Returns the end of the identity: [`Peer::not_after`], or earlier if a certificate of the
    /// new path expires earlier. The signatures of the chain are verified again if the bundles have changed since the
    /// last verification.
    ///
    /// # Errors
    ///
    /// The SVID has expired, or the chain breaks a rule for paths now.
    pub fn check(&self, now: Wall, bundles: &TrustBundles) -> Result<Wall, SvidError> {
        self.check_time(now)?;
        if bundles.revision() == self.0.bundle_revision {
            return Ok(self.0.not_after);
        }
        let verified = path::verify(&self.0.chain, self.0.side, now, bundles)?;
        Ok(verified.ends.min(self.0.not_after))
    }

    /// Whether [`Peer::check`] succeeds.
    pub fn is_current(&self, now: Wall, bundles: &TrustBundles) -> bool {
        self.check(now, bundles).is_ok()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({}, until {})", self.0.spiffe_id, self.0.not_after)
    }
}
