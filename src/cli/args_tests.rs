use super::*;

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("leasehold").chain(line.iter().copied()))
}

const JOB: &str = "j-00000000000000000000000007";

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_subcommand_has_help_and_examples() {
    let command = Cli::command();
    let mut seen = 0;
    for sub in command.get_subcommands() {
        let name = sub.get_name();
        assert!(sub.get_about().is_some(), "{name} has no help");
        let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(after.contains(&format!("leasehold {name}")), "{name} has no example");
        for below in sub.get_subcommands() {
            let word = below.get_name();
            assert!(below.get_about().is_some(), "{name} {word} has no help");
            let after = below.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains(&format!("leasehold {name} {word}")), "{name} {word} has no example");
            for arg in below.get_positionals() {
                assert!(arg.get_help().is_some(), "{name} {word} does not say what {} is", arg.get_id());
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 45);
}

/// Returns the output of `--help` of a command on a terminal of 100 columns.
fn help_of(path: &[&str]) -> String {
    let line: Vec<&str> = ["leasehold"].iter().chain(path).chain(&["--help"]).copied().collect();
    help_on(100, &line)
}

fn help_on(width: usize, line: &[&str]) -> String {
    let command = Cli::command().mut_subcommands(fill_paragraphs).term_width(width);
    command.try_get_matches_from(line).unwrap_err().to_string()
}

#[test]
fn the_paragraphs_of_a_help_fill_the_terminal() {
    assert_eq!(filled("a b.\nC d\n\nSee:\n  x\n  y\nE\nf"), "a b. C d\n\nSee:\n  x\n  y\nE f");
    let help = help_on(80, &["leasehold", "dataset", "recall", "--help"]);
    let text = help.split("Examples:").next().unwrap();
    let short = text.lines().filter(|line| !line.starts_with(' ') && line.split(' ').count() == 1);
    assert_eq!(short.filter(|line| !line.is_empty() && !line.ends_with(':')).count(), 0, "{text}");
}

#[test]
fn each_help_fits_one_screen_and_ends_with_examples() {
    let mut wrong = Vec::new();
    for sub in Cli::command().get_subcommands() {
        let below = sub.get_subcommands().map(|below| vec![sub.get_name(), below.get_name()]);
        for path in below.chain([vec![sub.get_name()]]) {
            let help = help_of(&path);
            let (lines, examples) = (help.lines().count(), help.rsplit("Examples:").next().unwrap());
            let count = examples.lines().filter(|line| line.contains("leasehold ")).count();
            if lines > 40 || !(1..=3).contains(&count) {
                wrong.push(format!("{}: {lines} lines, {count} examples", path.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_help_of_the_program_names_each_command_once() {
    let groups = HELP.split("Try it:").nth(1).unwrap().split("Everywhere:").next().unwrap();
    let names = groups.lines().filter_map(|line| line.get(..26)).flat_map(|names| names.split(','));
    let mut named: Vec<&str> = names.map(str::trim).filter(|n| !n.is_empty() && *n != "help").collect();
    named.sort_unstable();
    let command = Cli::command();
    let mut all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    all.sort_unstable();
    assert_eq!(named, all);
    let help = help_of(&[]);
    assert!(help.lines().count() <= 60, "{} lines:\n{help}", help.lines().count());
    assert!(help.contains("--workload-api") && help.contains("Exit codes:"), "{help}");
}

#[test]
fn no_line_of_a_help_is_longer_than_the_widest_help() {
    // The program sets `max_term_width`, so a longer line is broken on every terminal.
    const WIDEST: usize = 110;
    let mut wide = Vec::new();
    let command = Cli::command();
    let below = command.get_subcommands().flat_map(clap::Command::get_subcommands);
    for sub in command.get_subcommands().chain(below) {
        let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        wide.extend(
            after.lines().filter(|l| l.chars().count() > WIDEST).map(|l| format!("{}: {l}", sub.get_name())),
        );
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

#[test]
fn no_example_is_broken_where_half_of_it_does_harm() {
    // On a terminal of 80 columns the rest of an example is on the next line, and people copy one line.
    let mut wide = Vec::new();
    let command = Cli::command();
    let below = command.get_subcommands().flat_map(clap::Command::get_subcommands);
    for sub in command.get_subcommands().chain(below) {
        let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        let is_broken = |line: &&str| {
            line.chars().count() > 80
                && (line.contains("--dry-run") || line.trim_start().contains("   "))
                && line.starts_with("  leasehold ")
        };
        wide.extend(after.lines().filter(is_broken).map(str::to_owned));
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

#[test]
fn the_help_of_a_daemon_has_no_options_of_its_clients() {
    for program in ["serve", "gateway"] {
        let help = help_of(&[program]);
        assert!(!help.contains("--context") && !help.contains("--as "), "{help}");
        assert!(help.contains("gives this server its identity") && !help.contains("your identity"), "{help}");
        let cli = parse(&[program, "--config", "c", "--workload-api", "unix:///s"]).unwrap();
        assert!(cli.workload_api.is_some(), "the option reaches the session");
    }
}

#[test]
fn the_promised_command_lines_parse() {
    for line in [
        "demo -o json",
        "demo --story jobs",
        "dev --dir d --data x --port 0",
        "serve --config leasehold.toml",
        "run --spec job.toml -- python train.py --epochs 3",
        &format!(
            "run --spec job.toml --job {JOB} --attempt-key k --instance n0 --on-revoke kill --dir d -- true"
        ),
        &format!("run --job {JOB} --attempt-key k --supersede --ticket-file t -- true"),
        "agent --spec job.toml --ready-file r --dir d --on-revoke ignore",
        &format!("agent --job {JOB} --attempt-key k --watch-pid 7 --on-revoke kill"),
        &format!("agent attach {JOB} --instance n0 --ticket-file t"),
        "agent credential-process --dir d",
        "job create --spec job.toml --idempotency-key k --wait",
        "job create --spec job.toml --wait --timeout 8h",
        "run --spec job.toml --wait-approval -- true",
        "approvals --needs-me -o json",
        &format!("approve {JOB} --gate gate-a --gate gate-b --reason why --yes"),
        &format!("reject {JOB} --reason why"),
        &format!("unapprove {JOB} --gate gate-a --reason why"),
        "job create --spec job.toml --dry-run",
        "job check job.toml",
        "job list --open -o json",
        &format!("job show {JOB} --watch"),
        &format!("job close {JOB} --outcome failed --reason why"),
        &format!("job drain {JOB} --grace 30s"),
        "lease list --behind dataset:acme/tickets@v3 --all",
        "lease show l-00000000000000000000000009",
        &format!("revoke {JOB} --reason why --dry-run"),
        "revoke identity:spiffe://td.example/w --reason why --no-wait",
        "lock tenant:acme --reason why --ttl 8h",
        "lock identity-prefix:spiffe://td.example/a/ --reason why",
        "lock list",
        "unlock tenant:acme --reason why",
        "policy check",
        "policy check policy --catalog catalog.d",
        "catalog check catalog.d",
        "catalog pin /srv/data/tickets --to manifests",
        "catalog reload --dry-run",
        "token inspect -",
        "token check f --audience spiffe://td.example/files",
        "audit verify ledger --head 7:sha256:00",
        "audit tail --from 1 --no-follow -o json",
        "slurm prolog --spool /var/spool/leasehold --runs-as spiffe://td.example/slurm/{user}",
        "slurm epilog --spool /var/spool/leasehold --timeout 1s",
        "slurm node-epilog --spool /var/spool/leasehold",
        "slurm resend --spool /var/spool/leasehold --every 5s",
        "slurm key",
        "whoami --as operator",
        "doctor --context dev",
        "context list",
        "context use dev",
        "config check leasehold.toml",
        "audit tail --about dataset:acme/tickets",
        "completions bash",
        "version -o json",
    ] {
        assert!(
            parse(&line.split(' ').collect::<Vec<_>>()).is_ok(),
            "{line}: {}",
            parse(&line.split(' ').collect::<Vec<_>>()).unwrap_err()
        );
    }
}

#[test]
fn a_wrong_command_line_is_refused_before_any_call() {
    for line in [
        "",
        "jobs",
        "job show j-1",
        "revoke job:nope --reason why",
        "revoke tenant:acme",
        "revoke tenant:acme --reason why --dry-run --no-wait",
        "revoke epoch --reason why",
        "lock tenant:acme",
        "lock tenant:acme --reason why --ttl 0s",
        "unlock tenant:acme",
        "run --spec job.toml",
        "run --spec job.toml --on-revoke sleep -- true",
        "run -- true",
        "agent",
        "agent --job x",
        "agent --spec job.toml --watch-pid 0",
        "agent attach",
        "whoami --as boss",
        "whoami -o xml",
        "token check f",
        "token check f --audience files",
    ] {
        let words: Vec<_> = line.split(' ').filter(|w| !w.is_empty()).collect();
        assert!(parse(&words).is_err(), "{line}");
    }
}

#[test]
fn a_run_without_dashes_or_without_a_job_gets_a_tip() {
    for (line, said) in [
        ("run --spec job.toml true", "after `--`"),
        ("run --spec job.toml", "say what to run"),
        ("run -- true", "--job ID"),
        ("agent", "--job ID"),
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let args: Vec<_> =
            std::iter::once("leasehold").chain(words.iter().copied()).map(OsString::from).collect();
        let tip = tip(&parse(&words).unwrap_err(), &args).unwrap_or_default();
        assert!(tip.contains(said), "{line}: {tip}");
    }
    let args = ["leasehold", "jobs"].map(OsString::from);
    assert_eq!(tip(&parse(&["jobs"]).unwrap_err(), &args), None);
}

#[test]
fn the_wrapped_command_keeps_its_own_arguments() {
    let cli = parse(&["run", "--spec", "job.toml", "--", "python", "-o", "x", "--as", "y"]).unwrap();
    let CliCommand::Run(args) = cli.command else { panic!("not run") };
    assert_eq!(args.command, ["python", "-o", "x", "--as", "y"]);
    assert_eq!(cli.output, Format::Table);
}

#[test]
fn a_parse_error_is_json_if_json_was_asked_for() {
    let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    for line in ["leasehold jobs -o json", "leasehold --output=json jobs", "leasehold jobs -ojson"] {
        assert!(wants_json(&words(line)), "{line}");
    }
    for line in ["leasehold jobs", "leasehold -o table jobs", "leasehold run -- x -o json"] {
        assert!(!wants_json(&words(line)), "{line}");
    }
    let json = usage_failure(&parse(&["job", "show", "j-1"]).unwrap_err(), &[]).to_json();
    assert_eq!(json["error"]["exit"], 64);
    assert!(json["error"]["message"].as_str().unwrap().starts_with("invalid value 'j-1'"), "{json}");
}

#[test]
fn no_usage_error_prints_a_token_or_obeys_an_argument() {
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiJsLTEyMzQ1Njc4OTAifQ.Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZkdISUpLTE1OTzEyMzQ1";
    let signed = "https://acme.blob.core.windows.net/data?sv=2024-11-04&sig=Zm9vYmFy%2Bx%3D";
    for value in [
        token,
        signed,
        "x\u{202e}\nFAKE",
        "\u{1b}[31mred",
        "x\u{1b}[0m\nFAKE: ok",
        "--x\u{1b}[0m\nFAKE: ok",
        "x\u{7}\nFAKE: ok",
    ] {
        let attached = format!("-o{value}");
        for line in [
            &["revoke", value, "--reason", "r"][..],
            &["job", "show", value],
            &["job", "list", attached.as_str()],
            &["verify-clean", value],
            &["audit", "tail", "--type", value],
            &["lease", "list", "--behind", value],
            &[value],
        ] {
            let error = with_safe_values(parse(line).unwrap_err());
            assert!(!error.render().ansi().to_string().contains(value), "{value:?}");
            let words: Vec<_> = line.iter().map(OsString::from).collect();
            let (shown, json) = (without_secrets(&error.to_string(), &words), usage_failure(&error, &words));
            assert!(!shown.contains(value) && !json.to_json().to_string().contains(token), "{shown}");
            assert!(shown.lines().all(|l| l.chars().all(plain::is_plain)), "{shown:?}");
            assert!(shown.lines().count() > 1, "lines of our own are lines: {shown}");
            assert!(shown.lines().all(|l| !l.starts_with("FAKE")), "{shown}");
        }
    }
}
