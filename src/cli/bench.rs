//! Implements `leasehold bench`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Exit, Failure, Session, bench_gateway, bench_growth, bench_leases, bench_vault,
    dev::failed,
    output::{Page, columns, note, print},
    stage::set_up_stage,
};
use crate::{
    dev::bench::{
        self, BenchFinding, BenchPlan, ChartData, Delay, EchoWork, Figure, GatewayFinding, GatewayPlan,
        GrowthFinding, GrowthPlan, Machine, Measured, RevokeFigure, StageFigure, StormFigure, VaultFinding,
        VaultPlan, VaultProgram, Workload,
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
    /// Write rates, growth or results of Vault between their lines in this page
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
        if done.is_err() && results.growth.is_empty() && results.vault.is_empty() {
            return done.map(|()| Exit::Ok);
        }
        // Growth and Vault take minutes. If the bench fails, it still shows the results that it has.
        show(session, &machine, &results)?;
        done?;
        self.write_files(&machine, session, &results).map_err(|e| Failure::new(Exit::Failure, e))?;
        let slow = bench::below(&floors.unwrap_or_default(), &results.figures);
        if slow.is_empty() {
            return Ok(Exit::Ok);
        }
        let text = format!("slower than half of what the page states: {}", slow.join("; "));
        Err(Failure::new(Exit::Failure, text))
    }

    /// Fails if the plan measures nothing that the wanted page or chart can show.
    fn check_files(&self, plan: &BenchPlan) -> Result<(), Failure> {
        let is_drawn = |workload: &Workload| workload.is_rate() || *workload == Workload::Growth;
        let is_drawn = plan.workloads.iter().any(is_drawn);
        let is_shown =
            (self.page.is_none() || is_drawn || plan.vault.is_some()) && (self.chart.is_none() || is_drawn);
        let text = "`--page` and `--chart` show rates and growth, and `--page` shows Vault too: measure issue, renew, introspect, introspect-first, check, mixed or growth; for `--page` also vault";
        if is_shown { Ok(()) } else { Err(Failure::usage(text)) }
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
        let all: &[Workload] = if self.quick { &Workload::QUICK } else { &Workload::ALL };
        let workloads = match self.what.as_slice() {
            [] => all.to_vec(),
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

fn write_page(
    page: &Path,
    machine: &Machine,
    session: &Session,
    results: &BenchResults,
) -> Result<(), String> {
    let now = session.clock.now().wall.to_string();
    let date = now.split('T').next().unwrap_or_default();
    let mut text = read_page(page)?;
    if !results.figures.is_empty() {
        text = bench::with_figures(&text, machine, date, &results.figures).map_err(|e| named(page, &e))?;
    }
    if !results.growth.is_empty() {
        let written = bench::with_growth(&text, machine, date, &results.growth, PICTURE);
        text = written.map_err(|e| named(page, &e))?;
    }
    if !results.vault.is_empty() {
        let written = bench::with_vault(&text, machine, date, &results.vault_version, &results.vault);
        text = written.map_err(|e| named(page, &e))?;
    }
    std::fs::write(page, text).map_err(|e| named(page, &e))
}

/// What a run found.
#[derive(Default)]
struct BenchResults {
    figures: Vec<Figure>,
    delays: Vec<Delay>,
    revocations: Vec<RevokeFigure>,
    storms: Vec<StormFigure>,
    stages: Vec<StageFigure>,
    gateway: Vec<GatewayFinding>,
    growth: Vec<GrowthFinding>,
    vault: Vec<VaultFinding>,
    vault_version: String,
}

impl BenchResults {
    fn add(&mut self, finding: BenchFinding) {
        match finding {
            BenchFinding::Rate(figure) => self.figures.push(figure),
            BenchFinding::Delay(delay) => self.delays.push(delay),
            BenchFinding::Revoke(figure) => self.revocations.push(figure),
            BenchFinding::Storm(figure) => self.storms.push(figure),
            BenchFinding::Stages(stages) => self.stages.extend(stages),
            BenchFinding::Gateway(finding) => self.gateway.push(finding),
            BenchFinding::Growth(GrowthFinding::Progress { .. }) => {}
            BenchFinding::Growth(finding) => self.growth.push(finding),
            BenchFinding::Vault(finding) => self.vault.push(finding),
        }
    }
}

/// The line that shows the progress after a result.
fn progress(finding: &BenchFinding) -> String {
    match finding {
        BenchFinding::Growth(finding) => bench_growth::progress(finding),
        other => format!("{}: measured", name_of(other)),
    }
}

/// A short name of a result.
fn name_of(finding: &BenchFinding) -> String {
    match finding {
        BenchFinding::Rate(f) => format!("{} with {} in flight", f.workload.as_str(), f.in_flight),
        BenchFinding::Delay(d) => d.event.as_str().to_owned(),
        BenchFinding::Revoke(f) => format!("revoke with {} leases", f.leases),
        BenchFinding::Storm(f) => format!("storm of {} leases", f.leases),
        BenchFinding::Stages(_) => "stages".to_owned(),
        BenchFinding::Gateway(finding) => bench_gateway::name_of(finding),
        BenchFinding::Growth(_) => "growth".to_owned(),
        BenchFinding::Vault(finding) => bench_vault::name_of(finding),
    }
}

fn microseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}

fn show(session: &Session, machine: &Machine, results: &BenchResults) -> Result<(), Failure> {
    if session.for_programs() {
        let mut value = to_json(machine, results);
        if let Value::Object(fields) = &mut value {
            fields.insert("revoke".to_owned(), bench_leases::revoke_json(&results.revocations));
            fields.insert("storm".to_owned(), bench_leases::storm_json(&results.storms));
            if !results.gateway.is_empty() {
                fields.insert("gateway".to_owned(), bench_gateway::to_json(&results.gateway));
            }
            if !results.growth.is_empty() {
                fields.insert("growth".to_owned(), bench_growth::to_json(&results.growth));
            }
            if !results.vault.is_empty() {
                let vault = bench_vault::to_json(&results.vault_version, &results.vault);
                fields.insert("vault".to_owned(), vault);
            }
        }
        return session.print_value(&value);
    }
    let mut limits: Vec<String> = Vec::new();
    for figure in &results.figures {
        let line = format!("limit of {}: {}", figure.workload.as_str(), figure.workload.limit());
        if !limits.contains(&line) {
            limits.push(line);
        }
    }
    let machine = format!(
        "{} cores, {}, Linux {}, load {} before; one fdatasync of a record {} µs, measuring {} µs of a request",
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.load,
        microseconds(machine.disk_sync),
        format_args!("{:.2}", machine.measuring.as_secs_f64() * 1e6),
    );
    let sections = [
        rate_table(&results.figures),
        Page::lines(limits),
        bench_leases::revoke_table(&results.revocations),
        bench_leases::storm_table(&results.storms),
        end_table(&results.delays),
        stage_table(&results.stages),
        bench_gateway::page_of(&results.gateway),
        bench_growth::page_of(&results.growth),
        bench_vault::page_of(&results.vault_version, &results.vault),
        Page::line(&machine),
    ];
    let filled = sections.into_iter().filter(|section| *section != Page::default());
    print(&filled.reduce(|all, section| all.below(&section)).unwrap_or_default())
}

fn rate_table(figures: &[Figure]) -> Page {
    let rows = figures.iter().map(|f| {
        vec![
            f.workload.as_str().to_owned(),
            f.in_flight.to_string(),
            format!("{:.2}", f.ratio()),
            format!("{:.0}", f.ours.per_second),
            format!("{:.0}", f.limit.per_second),
            microseconds(f.ours.p50),
            microseconds(f.ours.p99),
            microseconds(f.limit.p50),
            microseconds(f.ours.processor),
            microseconds(f.limit.processor),
        ]
    });
    let headings = [
        "WHAT",
        "IN FLIGHT",
        "RATIO",
        "A SECOND",
        "LIMIT",
        "P50 µs",
        "P99 µs",
        "LIMIT'S P50 µs",
        "CPU µs",
        "LIMIT'S CPU µs",
    ];
    if figures.is_empty() { Page::default() } else { columns(&headings, rows) }
}

pub(super) fn measured_json(m: &Measured) -> Value {
    let seconds = |time: Duration| time.as_secs_f64();
    json!({
        "calls": m.calls, "per_second": m.per_second,
        "p50_seconds": seconds(m.p50), "p99_seconds": seconds(m.p99), "longest_seconds": seconds(m.longest),
        "processor_seconds": seconds(m.processor),
    })
}

fn end_table(delays: &[Delay]) -> Page {
    let milliseconds = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    let rows = delays.iter().map(|d| {
        let Measured { calls, p50, longest, .. } = &d.times;
        vec![d.event.as_str().to_owned(), calls.to_string(), milliseconds(*p50), milliseconds(*longest)]
    });
    let headings = ["EVENT", "TIMES", "LAST ACCEPTED USE, P50 ms", "LONGEST ms"];
    if delays.is_empty() { Page::default() } else { columns(&headings, rows) }
}

fn stage_table(stages: &[StageFigure]) -> Page {
    let rows = stages.iter().map(|s| {
        vec![
            s.adds().to_owned(),
            s.in_flight.to_string(),
            format!("{:.0}", s.measured.per_second),
            microseconds(s.measured.p50),
            microseconds(s.measured.processor),
        ]
    });
    let headings = ["AN ISSUE, WITH ALSO", "IN FLIGHT", "A SECOND", "P50 µs", "CPU µs"];
    if stages.is_empty() { Page::default() } else { columns(&headings, rows) }
}

fn to_json(machine: &Machine, results: &BenchResults) -> Value {
    let seconds = |time: Duration| time.as_secs_f64();
    let figures: Vec<Value> = results
        .figures
        .iter()
        .map(|f| {
            json!({
                "what": f.workload.as_str(), "in_flight": f.in_flight, "ratio": f.ratio(),
                "ours": measured_json(&f.ours), "limit": measured_json(&f.limit), "limit_is": f.workload.limit(),
            })
        })
        .collect();
    let delays: Vec<Value> = results
        .delays
        .iter()
        .map(|d| {
            json!({
                "event": d.event.as_str(), "times": d.times.calls,
                "p50_seconds": seconds(d.times.p50), "longest_seconds": seconds(d.times.longest),
            })
        })
        .collect();
    let stages: Vec<Value> = results
        .stages
        .iter()
        .map(
            |s| json!({ "adds": s.adds(), "in_flight": s.in_flight, "measured": measured_json(&s.measured) }),
        )
        .collect();
    json!({
        "machine": {
            "cores": machine.cores, "processor": machine.processor, "kernel": machine.kernel,
            "load": machine.load, "disk_sync_seconds": seconds(machine.disk_sync),
            "measuring_seconds": seconds(machine.measuring),
        },
        "release": !cfg!(debug_assertions),
        "figures": figures,
        "delays": delays,
        "stages": stages,
    })
}
