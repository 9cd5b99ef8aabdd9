//! Implements `leasehold config`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    failure::mistakes,
    output::{Page, columns, note, print},
    serve::mint_of,
};
use crate::{
    config::{Config, DefaultUsed, GatewayConfig, IdentityConfig, Loaded},
    daemon::{Inspection, Look, inspect, inspect_gateway},
    plain,
};

/// Checks the daemon's configuration file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  leasehold config check /etc/leasehold/leasehold.toml
  leasehold config check leasehold.toml -o json | jq .defaults")]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Reads every file that the daemon reads at its start, and lists all mistakes.
    #[command(after_help = "\
The command checks the daemon's certificate as clients do, and reads bundles, catalog and policies.
It checks that the state folder can be written and that the addresses are free, and lists every
default in use. Run it as the daemon's user. The daemon may be running. The command also checks the
file of `leasehold gateway`.

Examples:
  leasehold config check /etc/leasehold/leasehold.toml
  leasehold config check leasehold.toml -o json | jq .defaults")]
    Check {
        /// The configuration file of `leasehold serve` or `leasehold gateway`
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl ConfigArgs {
    pub(super) fn run(self, session: &Session) -> Result<Exit, Failure> {
        let ConfigCommand::Check { file } = self.command;
        check(&file, session)
    }
}

fn check(file: &Path, session: &Session) -> Result<Exit, Failure> {
    let mistaken = |e| Failure { exit: Exit::Failure, ..Failure::from(e) };
    if GatewayConfig::is_in(file) {
        let Loaded { config, defaults } = GatewayConfig::load(file).map_err(mistaken)?;
        let mut inspection = inspect_gateway(&config, &session.clock);
        inspection.look_at_port("gateway.listen", config.gateway.listen, "leasehold gateway");
        return report(file, "leasehold gateway", (&inspection, &defaults), &config.identity, session);
    }
    let Loaded { config, defaults } = Config::load(file).map_err(mistaken)?;
    let mut inspection = inspect(&config, &session.clock);
    inspection.look_at_ports(&config);
    inspection.look_at_state(&config);
    report(file, "leasehold serve", (&inspection, &defaults), &config.identity, session)
}

/// Prints the findings. Fails if `program` would not start, or would start without a part of the catalog.
fn report(
    file: &Path,
    program: &str,
    (inspection, defaults): (&Inspection, &[DefaultUsed]),
    identity: &IdentityConfig,
    session: &Session,
) -> Result<Exit, Failure> {
    if session.for_programs() {
        session.print_value(&value(inspection, defaults))?;
    } else {
        print(&table(inspection, defaults))?;
        for warning in inspection.warnings() {
            note(&format!("leasehold: warning: {warning}"));
        }
    }
    let (faults, of_tenants) = (inspection.faults(), inspection.mistakes());
    let count = faults.len().saturating_add(of_tenants.len());
    if count > 0 {
        let so = match faults.is_empty() {
            false => format!("so `{program}` would not start"),
            true => format!("and `{program}` would start without those files or entries of the catalog"),
        };
        let what = format!("{}, {so}", mistakes(&plain::path(file), count));
        let all = faults.into_iter().chain(of_tenants);
        let failure = Failure { exit: Exit::Failure, ..Failure::of_problems(what, all) };
        return Err(match mint_of(identity, session) {
            Some(mint) => failure.fix(mint),
            None => failure,
        });
    }
    note(&match inspection.warnings().len() {
        0 => "The configuration is good.".to_owned(),
        1 => "The configuration is good, with 1 warning: see above.".to_owned(),
        n => format!("The configuration is good, with {n} warnings: see above."),
    });
    Ok(Exit::Ok)
}

fn value(inspection: &Inspection, defaults: &[DefaultUsed]) -> Value {
    let looks = inspection.looks.iter().map(|look| {
        json!({
            "key": look.key, "path": look.means, "ok": look.is_ok(),
            "faults": look.faults, "mistakes": look.mistakes, "warnings": look.warnings,
        })
    });
    let defaults = defaults.iter().map(|d| json!({ "key": d.key, "value": d.value }));
    json!({
        "good": inspection.looks.iter().all(Look::is_ok),
        "paths": looks.collect::<Vec<_>>(), "defaults": defaults.collect::<Vec<_>>(),
    })
}

fn table(inspection: &Inspection, defaults: &[DefaultUsed]) -> Page {
    let rows = inspection.looks.iter().map(|look| {
        let state = match (look.is_ok(), look.warnings.is_empty()) {
            (false, _) => "FAIL",
            (true, false) => "warn",
            (true, true) => "ok",
        };
        vec![state.to_owned(), look.key.clone(), look.means.clone()]
    });
    let looks = columns(&["", "KEY", "RESOLVED"], rows);
    let rows = defaults.iter().map(|d| vec![d.key.clone(), d.value.clone()]);
    match defaults.is_empty() {
        true => looks,
        false => looks.below(&columns(&["DEFAULT USED", "VALUE"], rows)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Format;

    #[test]
    fn a_configuration_is_good_only_if_the_daemon_can_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("leasehold.toml");
        let text = "[server]\ngrpc = \"127.0.0.1:0\"\nprobe = \"127.0.0.1:0\"\nstate = \"state\"\n[issuer]\nurl = \"http://127.0.0.1:1\"\n\
                    listen = \"127.0.0.1:0\"\n[identity]\ncert = \"c\"\nkey = \"k\"\nbundles = { \"td.example\" = \"b\" }\n\
                    [policy]\ndir = \"p\"\ncatalog = \"d\"\n";
        std::fs::write(&file, text).unwrap();
        let session = Session::new(Format::Json, None, None);
        let failure = check(&file, &session).unwrap_err();
        assert_eq!(failure.exit, Exit::Failure);
        let said = failure.render();
        for key in [
            "identity.cert",
            "identity.key",
            "identity.bundles.\"td.example\"",
            "policy.dir",
            "policy.catalog",
        ] {
            assert!(said.contains(key), "{key} is not in {said}");
        }
        for name in ["c", "k", "b"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        for name in ["p", "d"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let said = check(&file, &session).unwrap_err().render();
        assert!(said.contains("contains no certificate") && said.contains("may be read by others"), "{said}");
    }
}
