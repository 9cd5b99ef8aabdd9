//! The memory of many leases, and how long their revocation takes.

use tokio::time::Instant;

use super::{ManyLeases, VaultPlan, VaultRevocation, VaultStorage, server::VaultServer};
use crate::dev::bench::{
    crowd::{Crowd, Filling},
    lab::BenchLab,
    load::Batch,
    machine::resident,
    revocations::Revoker,
    work::Work,
};

/// How many requests for leases are in flight at once.
const IN_FLIGHT: usize = 64;
/// How many leases are made and revoked before the measurement begins, to warm up connections and caches.
const WARM_UP: usize = 500;

impl BenchLab<'_> {
    /// Makes and revokes many leases of the daemon, then equally many of Vault with each storage.
    pub(super) async fn revoke_beside_vault(
        &self,
        vault: &VaultPlan,
    ) -> Result<Vec<VaultRevocation>, String> {
        self.revoke_job(WARM_UP).await?;
        let ours = self.revoke_job(vault.leases).await?;
        let mut revocations = Vec::new();
        for storage in VaultStorage::ALL {
            let server = VaultServer::start(&vault.program, storage, self.stage().deployment.root()).await?;
            revoke_role(&server, WARM_UP).await?;
            let vault = revoke_role(&server, vault.leases).await?;
            server.stop().await?;
            revocations.push(VaultRevocation { storage, ours, vault });
        }
        Ok(revocations)
    }

    /// Makes the leases of one job, and revokes the job.
    async fn revoke_job(&self, leases: usize) -> Result<ManyLeases, String> {
        let mut revoker = Revoker::connect(self).await?;
        let mut crowd = Crowd::open(self).await?;
        let filling = Filling::of_one_revocation(leases);
        let before = self.daemon_memory()?;
        let filled = crowd.fill_whole(&filling).await?;
        let memory = self.daemon_memory()?.saturating_sub(before);
        let last = filled.kept.last().ok_or("the job has no lease")?;
        let times = self.revoke_crowd(&mut revoker, &crowd, last).await?;
        Ok(ManyLeases { leases, memory, call: times.call, refused: Some(times.refused) })
    }
}

/// Makes tokens of the role, and revokes all of them.
async fn revoke_role(server: &VaultServer, leases: usize) -> Result<ManyLeases, String> {
    let tokens = &server.tokens;
    let request = tokens.create_request()?;
    let mut works = Vec::with_capacity(IN_FLIGHT);
    for _ in 0..IN_FLIGHT {
        works.push(Work::Vault { at: tokens.connect().await?, request: request.clone() });
    }
    let before = resident(server.id()?)?;
    all_but_one(leases).apply(works).await?;
    // Vault closes a new connection if no request comes within ten seconds.
    let mut client = tokens.connect().await?;
    let last = tokens.create(&mut client).await?.token;
    let memory = resident(server.id()?)?.saturating_sub(before);
    if !tokens.accepts(&mut client, &last).await? {
        return Err("Vault refuses a token that it has just created".to_owned());
    }
    let from = Instant::now();
    tokens.revoke_all(&mut client).await?;
    let call = from.elapsed();
    match tokens.accepts(&mut client, &last).await? {
        false => Ok(ManyLeases { leases, memory, call, refused: None }),
        true => Err("Vault accepts a token after its revocation".to_owned()),
    }
}

/// Returns a batch without the last lease, which is made separately, because its token is used.
fn all_but_one(leases: usize) -> Batch {
    Batch { requests: leases.saturating_sub(1), in_flight: IN_FLIGHT }
}
