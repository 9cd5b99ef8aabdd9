//! The witness that a peer was verified.

use std::{fmt, sync::Arc};

use rustls::{ClientConnection, ServerConnection, pki_types::CertificateDer};

use super::{bundle::TrustBundles, leaf::Side, path, svid_error::SvidError};
use crate::{clock::Wall, name::SpiffeId};

/// The other side of a TLS connection, whose X.509-SVID verified. Only this module makes one, from a finished handshake
/// that proved the possession of the key; whoever holds one may rely on its SPIFFE ID until [`Peer::not_after`].
///
/// A clone is a pointer. It holds the presented chain, so that it can be verified again when the bundles change.
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
    /// The client of a connection that a server has accepted.
    ///
    /// A `Peer` rests on these very bundles, and [`Peer::bundle_revision`] says which they were. Where the handshake verified the
    /// chain against them, that counts; else it is verified now, whatever configuration the connection was made with.
    pub fn of_client(tls: &ServerConnection, now: Wall, bundles: &TrustBundles) -> Result<Peer, SvidError> {
        Self::verified(tls.is_handshaking(), tls.peer_certificates(), Side::Client, now, bundles)
    }

    /// The server of a connection that a client has made.
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

    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.0.spiffe_id
    }

    /// From here on the peer is nobody: the NotAfter of its SVID, exclusive, or of a certificate that vouches for it where
    /// that comes first.
    pub fn not_after(&self) -> Wall {
        self.0.not_after
    }

    /// SHA-256 of the SVID's DER: the `x5t#S256` of RFC 8705 section 3.1.
    pub fn x5t_s256(&self) -> &[u8; 32] {
        &self.0.x5t_s256
    }

    /// The SVID's serial number in lower-case hex.
    pub fn serial(&self) -> &str {
        &self.0.serial
    }

    /// The revision of the bundles that its chain was verified against.
    pub fn bundle_revision(&self) -> u64 {
        self.0.bundle_revision
    }

    /// Whether its time is not over. For each use; costs a comparison.
    pub fn check_time(&self, now: Wall) -> Result<(), SvidError> {
        if now >= self.0.not_after {
            return Err(SvidError::Expired { not_after: self.0.not_after });
        }
        Ok(())
    }

    /// Until when it would be accepted now: its time is not over, and its chain verifies against these bundles. Never after
    /// [`Peer::not_after`], and before it where what vouches for it by these bundles ends sooner. For a change of the bundles;
    /// costs the signatures of the chain where they differ from those it was made with.
    pub fn check(&self, now: Wall, bundles: &TrustBundles) -> Result<Wall, SvidError> {
        self.check_time(now)?;
        if bundles.revision() == self.0.bundle_revision {
            return Ok(self.0.not_after);
        }
        let verified = path::verify(&self.0.chain, self.0.side, now, bundles)?;
        Ok(verified.ends.min(self.0.not_after))
    }

    /// [`Peer::check`] where the rule that it breaks is of no interest.
    pub fn is_current(&self, now: Wall, bundles: &TrustBundles) -> bool {
        self.check(now, bundles).is_ok()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({}, until {})", self.0.spiffe_id, self.0.not_after)
    }
}
