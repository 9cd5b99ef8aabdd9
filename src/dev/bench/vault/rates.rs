//! Measures how many credentials the daemon issues in a second, and how many tokens Vault creates.

use super::{
    VaultFigure, VaultPlan, VaultStorage,
    server::{VaultServer, VaultTokens},
};
use crate::dev::bench::{
    figure::Sample,
    lab::{BenchLab, Server},
    load::Load,
    machine::processor_time,
    plan::{BenchPlan, Workload},
    work::Work,
};

impl BenchLab<'_> {
    /// Measures the daemon, Vault on the disk and Vault in memory in turns.
    pub(super) async fn measure_vault(
        &self,
        vault: &VaultPlan,
        plan: &BenchPlan,
        in_flight: usize,
    ) -> Result<Vec<VaultFigure>, String> {
        let load = Load { in_flight, time: plan.part(), rate: plan.rate };
        // New processes hold no tokens of an earlier measurement.
        let mut servers = Vec::new();
        for storage in VaultStorage::ALL {
            let server = VaultServer::start(&vault.program, storage, self.stage().deployment.root()).await?;
            servers.push((storage, server, Sample::new()?));
        }
        let warm_up = Load { time: load.time / 4, rate: None, ..load };
        self.apply(Workload::Issue, Server::Daemon, warm_up).await?;
        for (_, server, _) in &servers {
            create_tokens(&server.tokens, warm_up).await?;
        }
        let mut ours = Sample::new()?;
        for _ in 0..plan.rounds {
            for (_, server, sample) in &mut servers {
                let id = server.id()?;
                let before = processor_time(id).unwrap_or_default();
                let part = create_tokens(&server.tokens, load).await?;
                let taken = processor_time(id).unwrap_or_default().saturating_sub(before);
                sample.add(&part)?;
                sample.time = sample.time.saturating_add(part.time);
                sample.processor = sample.processor.saturating_add(taken);
            }
            self.measure_part(Workload::Issue, Server::Daemon, load, &mut ours).await?;
        }
        let mut figures = Vec::new();
        for (storage, server, sample) in servers {
            server.stop().await?;
            figures.push(VaultFigure { storage, in_flight, ours: ours.measured(), vault: sample.measured() });
        }
        Ok(figures)
    }
}

/// Creates tokens, with one connection for each request in flight.
async fn create_tokens(tokens: &VaultTokens, load: Load) -> Result<Sample, String> {
    let request = tokens.create_request()?;
    let mut works = Vec::with_capacity(load.in_flight);
    for _ in 0..load.in_flight {
        works.push(Work::Vault { at: tokens.connect().await?, request: request.clone() });
    }
    load.apply(works).await
}
