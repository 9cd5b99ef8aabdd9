//! The time that each stage of issuing a credential takes. To measure it, the bench starts a row of small servers that answer the
//! same messages. Each does one stage more than the one before, and the daemon, the last one, does all stages.

use super::{
    echo_work::EchoWork,
    figure::{Measured, Sample},
    lab::{BenchLab, Server},
    load::Load,
    plan::{BenchPlan, Workload},
};

/// A server, and what it does for an issue.
#[derive(Clone, Debug)]
pub struct StageFigure {
    /// The work of the echo. `None` if the server is the daemon.
    pub work: Option<EchoWork>,
    /// Requests under way at once.
    pub in_flight: usize,
    /// What was measured.
    pub measured: Measured,
}

impl StageFigure {
    /// The work that this server adds to the work of the previous server.
    pub const fn adds(&self) -> &'static str {
        match self.work {
            Some(work) => work.adds(),
            None => "all else: the daemon",
        }
    }
}

impl BenchLab<'_> {
    /// Measures how long each server takes to issue a credential. The servers are measured in turns.
    pub(super) async fn measure_stages(
        &self,
        plan: &BenchPlan,
        in_flight: usize,
    ) -> Result<Vec<StageFigure>, String> {
        let load = Load { in_flight, time: plan.part(), rate: plan.rate };
        let mut echoes = Vec::new();
        for work in EchoWork::ALL {
            echoes.push((work, self.start_echo(work, plan).await?));
        }
        let servers = || echoes.iter().map(|(work, echo)| (Some(*work), Server::Other(echo)));
        let servers = || servers().chain([(None, Server::Daemon)]);
        let mut samples = Vec::new();
        for (_, server) in servers() {
            self.apply(Workload::Issue, server, Load { time: load.time / 4, rate: None, ..load }).await?;
            samples.push(Sample::new()?);
        }
        for _ in 0..plan.rounds {
            for ((_, server), sample) in servers().zip(&mut samples) {
                self.measure_part(Workload::Issue, server, load, sample).await?;
            }
        }
        let figures = servers().zip(&samples).map(|((work, _), sample)| StageFigure {
            work,
            in_flight,
            measured: sample.measured(),
        });
        Ok(figures.collect())
    }
}
