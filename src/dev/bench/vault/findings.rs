//! The results of a bench of Vault.

use std::time::Duration;

use crate::dev::bench::figure::Measured;

/// Where Vault keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultStorage {
    /// On the disk, in its own database. One server is the whole cluster.
    Raft,
    /// In memory. A restart loses everything.
    Memory,
}

impl VaultStorage {
    /// Both kinds, in the order in which they are measured.
    pub const ALL: [VaultStorage; 2] = [VaultStorage::Raft, VaultStorage::Memory];

    /// The name in tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            VaultStorage::Raft => "raft",
            VaultStorage::Memory => "memory",
        }
    }

    /// The target for the daemon's rate divided by Vault's rate.
    pub const fn target(self) -> f64 {
        match self {
            VaultStorage::Raft => 12.0,
            VaultStorage::Memory => 4.0,
        }
    }
}

/// The rate at which the daemon issues credentials, beside the rate at which Vault creates tokens.
#[derive(Clone, Debug)]
pub struct VaultFigure {
    /// Where Vault keeps its data.
    pub storage: VaultStorage,
    /// The number of requests in flight at once.
    pub in_flight: usize,
    /// The measurement of the daemon.
    pub ours: Measured,
    /// The measurement of Vault.
    pub vault: Measured,
}

impl VaultFigure {
    /// Returns our rate divided by Vault's rate.
    pub fn ratio(&self) -> f64 {
        self.ours.per_second / self.vault.per_second.max(f64::EPSILON)
    }
}

/// Many leases of one server, which one call revoked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ManyLeases {
    /// The number of leases.
    pub leases: usize,
    /// How many bytes the resident memory of the server grew while it made them.
    pub memory: u64,
    /// The time until the call that revokes all of them was answered.
    pub call: Duration,
    /// The time from the beginning of that call until a verifier refuses the last token. `None` if the call is answered only when
    /// all tokens are refused.
    pub refused: Option<Duration>,
}

impl ManyLeases {
    /// Returns the bytes of memory for each lease.
    pub fn bytes_a_lease(&self) -> u64 {
        self.memory / u64::try_from(self.leases).unwrap_or(u64::MAX).max(1)
    }

    /// Returns the time until all tokens are refused and the caller knows it.
    pub fn over(&self) -> Duration {
        self.refused.unwrap_or_default().max(self.call)
    }
}

/// Many leases of the daemon, and equally many of Vault.
#[derive(Clone, Debug)]
pub struct VaultRevocation {
    /// Where Vault keeps its data.
    pub storage: VaultStorage,
    /// The measurement of the daemon. One job has all of its leases.
    pub ours: ManyLeases,
    /// The measurement of Vault. One role has all of its leases.
    pub vault: ManyLeases,
}

impl VaultRevocation {
    /// Returns how many times longer Vault's revocation takes.
    pub fn times_faster(&self) -> f64 {
        self.vault.over().as_secs_f64() / self.ours.over().as_secs_f64().max(f64::EPSILON)
    }

    /// Returns how many times more memory a lease of Vault takes. `None` if our memory did not grow.
    pub fn times_smaller(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a ratio is shown with three digits")]
        let bytes = |leases: &ManyLeases| leases.bytes_a_lease() as f64;
        (self.ours.bytes_a_lease() > 0).then(|| bytes(&self.vault) / bytes(&self.ours))
    }
}

/// One result.
#[derive(Clone, Debug)]
pub enum VaultFinding {
    Rate(VaultFigure),
    Revocation(VaultRevocation),
}

#[cfg(test)]
mod tests {
    use super::*;

    // If a call is answered before the last token is refused, the revocation is over only when that token is refused.
    #[test]
    fn a_revocation_is_over_when_all_tokens_are_refused() {
        let of = |memory, call, refused| ManyLeases {
            leases: 1_000,
            memory,
            call: Duration::from_millis(call),
            refused: Option::map(refused, Duration::from_millis),
        };
        let revocation =
            |ours| VaultRevocation { storage: VaultStorage::Raft, ours, vault: of(10_000_000, 500, None) };
        let found = revocation(of(400_000, 2, Some(5)));
        assert_eq!((found.times_faster(), found.times_smaller()), (100.0, Some(25.0)));
        let found = revocation(of(0, 5, Some(2)));
        assert_eq!((found.times_faster(), found.times_smaller()), (100.0, None));
    }
}
