//! The time that each stage of an issue or a renewal takes. To measure it, the bench starts a row of small servers that answer
//! the same messages. Each does one stage more than the one before, and the daemon, the last one, does all stages.

use super::{
    echo_work::EchoWork,
    figure::{Measured, Sample},
    lab::{BenchLab, EchoProcess, Server},
    load::Load,
    plan::{BenchPlan, Workload},
};

/// A server, and what it does for an issue or a renewal.
#[derive(Clone, Debug)]
pub struct StageFigure {
    /// The measured request: an issue or a renewal.
    pub workload: Workload,
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
    /// Measures how long each server takes for an issue, and then for a renewal. The servers are measured in turns.
    pub(super) async fn measure_stages(
        &self,
        plan: &BenchPlan,
        in_flight: usize,
    ) -> Result<Vec<StageFigure>, String> {
        let mut echoes = Vec::new();
        for work in EchoWork::ALL {
            echoes.push((work, self.start_echo(work, plan).await?));
        }
        let mut figures = Vec::new();
        for workload in [Workload::Issue, Workload::Renew] {
            figures.extend(self.measure_stages_of(plan, workload, in_flight, &echoes).await?);
        }
        Ok(figures)
    }

    /// Measures one kind of request. The daemon writes no line in the log for a renewal, so there is no such stage.
    async fn measure_stages_of(
        &self,
        plan: &BenchPlan,
        workload: Workload,
        in_flight: usize,
        echoes: &[(EchoWork, EchoProcess)],
    ) -> Result<Vec<StageFigure>, String> {
        let load = Load { in_flight, time: plan.part(), rate: plan.rate };
        let has_stage = |work| workload == Workload::Issue || work != EchoWork::Log;
        let echoes = || echoes.iter().filter(|(work, _)| has_stage(*work));
        let servers = || echoes().map(|(work, echo)| (Some(*work), Server::Other(echo)));
        let servers = || servers().chain([(None, Server::Daemon)]);
        let mut samples = Vec::new();
        for (_, server) in servers() {
            self.apply(workload, server, Load { time: load.time / 4, rate: None, ..load }).await?;
            samples.push(Sample::new()?);
        }
        for _ in 0..plan.rounds {
            for ((_, server), sample) in servers().zip(&mut samples) {
                self.measure_part(workload, server, load, sample).await?;
            }
        }
        let figures = servers().zip(&samples).map(|((work, _), sample)| StageFigure {
            workload,
            work,
            in_flight,
            measured: sample.measured(),
        });
        Ok(figures.collect())
    }
}
