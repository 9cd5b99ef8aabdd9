//! Implements `leasehold bench`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use super::{
    Exit, Failure, Session,
    bench_results::{BenchResults, machine_line, progress, to_json},
    bench_vault,
    dev::failed,
    output::{Page, note, print},
    stage::set_up_stage,
};
use crate::{
    config::{LogConfig, LogFormat},
    daemon::init_logging,
    dev::bench::{
        self, BenchFinding, BenchPlan, ChartData, EchoWork, GatewayPlan, GrowthPlan, Machine, VaultPlan,
        VaultProgram, VaultProgramError, Workload,
    },
    limits,
};

/// The path of the growth chart, relative to the folder of the page.
const PICTURE: &str = "img/growth.svg";

/// Measures how many requests a daemon handles on this machine, compared with the machine's limit.
#[derive(Debug, Args)]
#[command(after_help = "\
The command starts a daemon in a temporary folder, and a server without a broker that answers the
same messages: the limit. Both are measured in turns. Use a release build, and stop other work.
`gateway` needs 1.4 GB on the disk, `growth` needs 3 GB and ten minutes, `vault` needs Vault.

Examples:
  leasehold bench
  leasehold bench vault --vault /opt/vault/vault --in-flight 64
  leasehold bench --quick --floor docs/performance.md")]
pub struct BenchArgs {
    /// What: issue, renew, introspect, introspect-first, check, mixed, revoke, storm, end, stages, gateway, growth, vault [default: all but the last four]
    #[arg(value_enum, value_name = "WHAT", hide_possible_values = true)]
    pub what: Vec<Workload>,
    /// Numbers of requests under way at once
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 64, 256], value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub in_flight: Vec<u16>,
    /// Connections that the requests share
    #[arg(long, value_name = "N", default_value_t = 4, hide = true, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub connections: u16,
    /// Seconds for each figure, and for its limit
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub seconds: u16,
    /// Begin this many requests a second [default: begin one when another has ended]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// Numbers of leases for revoke, storm and growth; vault takes the largest
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub leases: Vec<u32>,
    /// Numbers of verifiers for growth, measured one after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', hide = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub verifiers: Vec<u32>,
    /// Seconds that growth may take; the last tenth is for measurements
    #[arg(long, value_name = "N", default_value_t = 600, hide = true, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub at_most: u16,
    /// Streams of a gateway, measured one number after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 8], value_parser = clap::value_parser!(u16).range(1..=100))]
    pub streams: Vec<u16>,
    /// The nginx program to compare a gateway with [default: from PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub nginx: Option<PathBuf>,
    /// The Vault program to compare the daemon with [default: from PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub vault: Option<PathBuf>,
    /// Measure briefly, 64 in flight [default: issue, renew, introspect, check]
    #[arg(long)]
    pub quick: bool,
    /// The folder for the daemon and its ledger [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Write the results into this page; without WHAT or --quick, measure all
    #[arg(long, value_name = "FILE")]
    pub page: Option<PathBuf>,
    /// Draw the ratios, and the growth, into this SVG file
    #[arg(long, value_name = "FILE")]
    pub chart: Option<PathBuf>,
    /// Fail if the ratio of a rate is below half of the ratio on this page
    #[arg(long, value_name = "FILE")]
    pub floor: Option<PathBuf>,
    /// Serve as the program that is measured as the limit
    #[arg(long, hide = true, requires = "echo_folder")]
    pub echo_port: Option<u16>,
    #[arg(long, hide = true)]
    pub echo_folder: Option<PathBuf>,
    /// How much of the daemon's work the limit does
    #[arg(long, hide = true, value_enum, default_value = "signature")]
    pub echo_work: EchoWork,
}

impl BenchArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        if let (Some(port), Some(folder)) = (self.echo_port, &self.echo_folder) {
            if self.echo_work >= EchoWork::Log {
                init_logging(&LogConfig { format: LogFormat::Text, level: LevelFilter::INFO });
            }
            let stop = CancellationToken::new();
            let served = bench::serve_echo(folder, port, self.echo_work, session.clock.clone(), stop).await;
            return served.map(|()| Exit::Ok).map_err(|e| Failure::new(Exit::Failure, e));
        }
        let floors =
            self.floor.as_deref().map(|page| bench::floors(&read_page(page)?).map_err(|e| named(page, &e)));
        let floors = floors.transpose().map_err(|e| Failure::new(Exit::Usage, e))?;
        let plan = self.plan().await?;
        self.check_files(&plan)?;
        let builder = || tempfile::Builder::new();
        let folder = match &self.dir {
            Some(dir) => builder().prefix("leasehold-bench-").tempdir_in(dir),
            None => builder().prefix("leasehold-bench-").tempdir(),
        }
        .map_err(|e| failed("a temporary folder could not be created", &e))?;
        let (stage, _ports) = set_up_stage(folder.path(), session)?;
        let machine =
            Machine::look(stage.deployment.root()).map_err(|e| failed("the disk cannot be measured", &e))?;
        if cfg!(debug_assertions) {
            note("this build is not optimized: its figures say nothing about a release build");
        }
        if plan.workloads.contains(&Workload::Gateway) && plan.gateway.nginx.is_none() {
            note(
                "there is no nginx in PATH, so the gateway is measured without its limit: install nginx, or use --nginx",
            );
        }
        let version = plan.vault.as_ref().map(|vault| vault.program.version.clone()).unwrap_or_default();
        let mut results = BenchResults { vault_version: version, ..Default::default() };
        let mut report = |finding: BenchFinding| {
            if !session.for_programs() {
                note(&progress(&finding));
            }
            results.add(finding);
        };
        let done = bench::run(&plan, &stage, &mut report).await;
        let done = done.map_err(|why| failed("the bench could not go on", &why));
        if done.is_err() && results.reports().is_empty() {
            return done.map(|()| Exit::Ok);
        }
        // Some measurements take minutes. If one fails, the results before it are still shown and written.
        show(session, &machine, &results)?;
        self.write_files(&machine, session, &results).map_err(|e| Failure::new(Exit::Failure, e))?;
        done?;
        let slow = bench::below(&floors.unwrap_or_default(), &results.figures);
        if slow.is_empty() {
            return Ok(Exit::Ok);
        }
        let text = format!("slower than half of what the page states: {}", slow.join("; "));
        Err(Failure::new(Exit::Failure, text))
    }

    /// Fails if the page lacks a section for a result, or if the plan measures nothing that the chart can show.
    fn check_files(&self, plan: &BenchPlan) -> Result<(), Failure> {
        if let Some(page) = &self.page {
            let text = read_page(page).map_err(Failure::usage)?;
            for workload in &plan.workloads {
                let section = bench::with_section(&text, workload.section(), "");
                section.map_err(|e| Failure::usage(named(page, &e)))?;
            }
        }
        let is_drawn = |workload: &Workload| workload.is_rate() || *workload == Workload::Growth;
        if self.chart.is_none() || plan.workloads.iter().any(is_drawn) {
            return Ok(());
        }
        Err(Failure::usage(
            "`--chart` shows rates and growth: measure issue, renew, introspect, introspect-first, check, mixed or growth",
        ))
    }

    /// Writes the page and the charts.
    fn write_files(
        &self,
        machine: &Machine,
        session: &Session,
        results: &BenchResults,
    ) -> Result<(), String> {
        let draw = |figures, path: &Path| {
            let chart = bench::draw_chart(ChartData { figures, growth: &results.growth });
            std::fs::write(path, chart?).map_err(|e| named(path, &e))
        };
        if let Some(chart) = &self.chart {
            draw(&results.figures, chart)?;
        }
        let Some(page) = &self.page else { return Ok(()) };
        if !results.growth.is_empty() {
            let picture = page.with_file_name(PICTURE);
            if let Some(folder) = picture.parent() {
                std::fs::create_dir_all(folder).map_err(|e| named(folder, &e))?;
            }
            draw(&[], &picture)?;
        }
        write_page(page, machine, session, results)
    }

    async fn plan(&self) -> Result<BenchPlan, Failure> {
        let workloads = match self.what.as_slice() {
            [] if self.quick => Workload::QUICK.to_vec(),
            [] if self.page.is_some() => self.page_workloads().await?,
            [] => Workload::ALL.to_vec(),
            what => what.to_vec(),
        };
        let (in_flight, time) = match self.quick {
            true => (vec![64], Duration::from_secs(2)),
            false => (
                self.in_flight.iter().copied().map(usize::from).collect(),
                Duration::from_secs(self.seconds.into()),
            ),
        };
        let (connections, gateway) = (self.connections.into(), self.gateway_plan());
        let vault = match workloads.contains(&Workload::Vault) {
            true => Some(self.vault_plan().await?),
            false => None,
        };
        let (revoke_leases, storm_leases) = match self.quick {
            true => (numbers(&self.leases, &[1_000]), numbers(&self.leases, &[1_000])),
            false => (numbers(&self.leases, &[1_000, 10_000]), numbers(&self.leases, &[10_000])),
        };
        Ok(BenchPlan {
            workloads,
            in_flight,
            connections,
            time,
            rounds: 4,
            endings: if self.quick { 5 } else { 20 },
            revoke_leases,
            storm_leases,
            rate: self.rate,
            gateway,
            growth: self.growth_plan(),
            vault,
        })
    }

    /// Returns the workloads that a page shows. Leaves out what cannot be compared, because nginx or Vault is absent.
    async fn page_workloads(&self) -> Result<Vec<Workload>, Failure> {
        let mut all = [&Workload::ALL[..], &[Workload::Stages, Workload::Growth]].concat();
        match self.gateway_plan().nginx {
            Some(_) => all.push(Workload::Gateway),
            None => note("there is no nginx in PATH, so the page keeps its old gateway figures: use --nginx"),
        }
        match VaultProgram::find(self.vault.as_deref()).await {
            Ok(_) => all.push(Workload::Vault),
            Err(VaultProgramError::Absent) => {
                note("there is no vault in PATH, so the page keeps its old Vault figures: use --vault");
            }
            Err(error) => return Err(bench_vault::without_vault(error)),
        }
        Ok(all)
    }

    fn growth_plan(&self) -> GrowthPlan {
        let (leases, verifiers): (&[u32], &[u32]) = match self.quick {
            true => (&[1_000, 10_000], &[1, 10, 100]),
            false => (&[1_000, 10_000, 100_000, 1_000_000], &[1, 10, 100, 1_000, 5_000]),
        };
        let sorted = |given: &[u32], default| {
            let mut all = numbers(given, default);
            all.sort_unstable();
            all
        };
        GrowthPlan {
            leases: sorted(&self.leases, leases),
            verifiers: sorted(&self.verifiers, verifiers),
            revocations: 20,
            time: Duration::from_secs(self.at_most.into()),
        }
    }

    async fn vault_plan(&self) -> Result<VaultPlan, Failure> {
        let program = VaultProgram::find(self.vault.as_deref()).await;
        let program = program.map_err(bench_vault::without_vault)?;
        let leases = numbers(&self.leases, if self.quick { &[1_000] } else { &[20_000] });
        Ok(VaultPlan {
            program,
            leases: leases.into_iter().max().unwrap_or(1).min(limits::LEASES_PER_JOB_MAX),
        })
    }

    fn gateway_plan(&self) -> GatewayPlan {
        let (nginx, streams) = (
            self.nginx.clone().or_else(bench::find_nginx),
            self.streams.iter().copied().map(usize::from).collect(),
        );
        let whole = GatewayPlan {
            nginx,
            streams,
            time: Duration::from_secs(self.seconds.into()),
            rounds: 4,
            cuts: 1_000,
            upload_bytes: 1 << 30,
            memory_streams: 64,
        };
        match self.quick {
            true => GatewayPlan {
                time: Duration::from_millis(800),
                rounds: 2,
                cuts: 50,
                upload_bytes: 128 << 20,
                ..whole
            },
            false => whole,
        }
    }
}

/// Returns the given numbers. If there are none, returns the default.
fn numbers(given: &[u32], default: &[u32]) -> Vec<usize> {
    let numbers = if given.is_empty() { default } else { given };
    numbers.iter().filter_map(|n| usize::try_from(*n).ok()).collect()
}

fn named(page: &Path, why: &dyn std::fmt::Display) -> String {
    format!("{}: {why}", page.display())
}

fn read_page(page: &Path) -> Result<String, String> {
    std::fs::read_to_string(page).map_err(|e| named(page, &e))
}

fn show(session: &Session, machine: &Machine, results: &BenchResults) -> Result<(), Failure> {
    if session.for_programs() {
        return session.print_value(&to_json(machine, results));
    }
    let reports = results.reports().into_iter();
    let machine = Page::line(&machine_line(machine));
    let pages = reports.map(|(_, report)| report.to_page()).chain([machine]);
    print(&pages.reduce(|all, page| all.below(&page)).unwrap_or_default())
}

/// Writes each report that is not empty into its section of a page.
fn write_page(
    page: &Path,
    machine: &Machine,
    session: &Session,
    results: &BenchResults,
) -> Result<(), String> {
    let now = session.clock.now().wall.to_string();
    let date = now.split('T').next().unwrap_or_default();
    let mut text = read_page(page)?;
    for (name, report) in results.reports() {
        let mut section = report.to_markdown();
        if name == Workload::Growth.section() {
            section.push_str(&format!("\n![The same figures as curves]({PICTURE})\n"));
        }
        section.push_str(&format!("\n{date}: {}.\n", machine_line(machine)));
        text = bench::with_section(&text, name, &section).map_err(|e| named(page, &e))?;
    }
    std::fs::write(page, text).map_err(|e| named(page, &e))
}
