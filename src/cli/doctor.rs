//! Implements `leasehold doctor`.

use std::{path::Path, time::Duration};

use clap::Args;
use serde_json::json;

use super::{
    Client, Exit, Failure, Session,
    contexts_file::{Context, Contexts, SvidFrom},
    output::{Page, print},
    svid::mint_command,
    timestamp,
};
use crate::{
    clock::Wall,
    config::{ConfiguredPath, PathFault, PathUse},
    identity::{IdentitySource, Pick, TrustBundles, X509Svid, wait_for_identity},
    limits::{CALL, CLOCK_DIFFERENCE_MAX},
    link::{ConnectError, Connector},
    name::PrincipalKind,
    plain,
    secret::redacted,
};

/// Finds what is wrong between you and the daemon, and says how to fix it.
#[derive(Debug, Args)]
#[command(after_help = "\
It checks the context, the files that it names and their modes, your certificates (SVIDs) and both
clocks. For each of your identities, it checks the connection and what the daemon knows about it. It
changes nothing, and exits with 1 if something is wrong. To see whether the daemon itself is healthy
(its disk, its certificate), ask /readyz at the address of server.probe.

Examples:
  leasehold doctor
  leasehold doctor --context prod --as operator
  leasehold doctor -o json | jq '.[] | select(.ok | not)'")]
pub struct DoctorArgs {}

/// The result of one check.
struct Check {
    what: String,
    found: Result<String, Finding>,
}

/// A problem, and how to fix it.
struct Finding {
    what: String,
    fix: String,
}

#[derive(Default)]
struct DoctorReport(Vec<Check>);

impl DoctorReport {
    fn add_ok(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.0.push(Check { what: what.into(), found: Ok(found.into()) });
    }

    fn add_problem(&mut self, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { what: what.into(), found: Err(Finding { what: why.into(), fix: fix.into() }) });
    }

    fn add_failure(&mut self, what: &str, failure: Failure) {
        let fix = failure.facts.iter().filter(|(l, _)| l == "fix").map(|(_, v)| v.clone()).next_back();
        let lines = failure.facts.iter().filter(|(l, _)| l.is_empty()).map(|(_, v)| format!("; {v}"));
        let code = failure.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        let why = std::iter::once(format!("{}{code}", failure.text)).chain(lines).collect::<String>();
        self.add_problem(what, why, fix.unwrap_or_else(|| "correct it".to_owned()));
    }

    fn is_ok(&self) -> bool {
        self.0.iter().all(|c| c.found.is_ok())
    }

    fn page(&self) -> Page {
        let width = self.0.iter().map(|c| c.what.chars().count()).max().unwrap_or(0) + 2;
        let lines = self.0.iter().flat_map(|check| match &check.found {
            Ok(found) => vec![format!("ok    {:<width$}{found}", check.what)],
            Err(wrong) => vec![
                format!("FAIL  {:<width$}{}", check.what, wrong.what),
                format!("      {:<width$}fix: {}", "", wrong.fix),
            ],
        });
        Page::messages(lines)
    }

    fn to_json(&self) -> serde_json::Value {
        let all = self.0.iter().map(|check| match &check.found {
            Ok(found) => json!({ "check": check.what, "ok": true, "found": redacted(found) }),
            Err(wrong) => json!({ "check": check.what, "ok": false, "found": redacted(&wrong.what), "fix": redacted(&wrong.fix) }),
        });
        all.collect()
    }
}

impl DoctorArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let mut report = DoctorReport::default();
        run_checks(session, &mut report).await;
        if session.for_programs() {
            session.print_value(&report.to_json())?;
        } else {
            print(&report.page())?;
        }
        Ok(if report.is_ok() { Exit::Ok } else { Exit::Failure })
    }
}

async fn run_checks(session: &Session, report: &mut DoctorReport) {
    let path = match session.contexts_file() {
        Ok(path) => path,
        Err(failure) => return report.add_failure("contexts", failure),
    };
    match Contexts::load(path) {
        Ok(contexts) => {
            report.add_ok("contexts", format!("{} in {}", contexts.contexts.len(), path.display()));
        }
        Err(errors) => return report.add_failure("contexts", Failure::from(errors)),
    }
    let (name, context) = match session.context() {
        Ok(found) => found,
        Err(failure) => return report.add_failure("context", failure),
    };
    let chosen = match session.is_context_named() {
        true => "by --context or LEASEHOLD_CONTEXT",
        false => "the current one",
    };
    report.add_ok("context", format!("{name} ({chosen}): {} as {}", context.server, context.server_id));
    let mut asked = AskedDaemon { context: context_advice(&name, path), ..AskedDaemon::default() };
    let now = session.now().wall;
    let roots = check_bundles(&context, now, report);
    check_svids(&context, session.role(), &roots, now, report);
    let roles = match session.role() {
        Some(role) => vec![role],
        None => context.identities.keys().copied().collect(),
    };
    if roles.is_empty() {
        return check_role(PrincipalKind::ALL, session, &mut asked, report).await;
    }
    for role in &roles {
        asked.role = if roles.len() > 1 { role.as_str() } else { "" };
        check_role(&[*role], session, &mut asked, report).await;
    }
}

/// The facts that are already known about the daemon. They are reported once, not for each identity.
#[derive(Default)]
struct AskedDaemon {
    /// The identity that asks, if there are several.
    role: &'static str,
    /// The advice for a user who means another daemon than the one at the address.
    context: String,
    has_answered: bool,
    problems: Vec<String>,
}

impl AskedDaemon {
    /// Adds the identity to the name of a check, if several identities are checked.
    fn of(&self, what: &str) -> String {
        format!("{what} {}", self.role).trim_end().to_owned()
    }
}

/// Connects with one identity, and asks the daemon about it.
async fn check_role(
    wanted: &[PrincipalKind],
    session: &Session,
    asked: &mut AskedDaemon,
    report: &mut DoctorReport,
) {
    let chosen = match session.choose(wanted) {
        Ok(chosen) => chosen,
        Err(failure) => return report.add_failure("identity", failure),
    };
    let (connector, source) = match (session.connector(&chosen), &chosen.svid) {
        (Ok(found), _) => found,
        (Err(failure), SvidFrom::WorkloadApi { .. }) => return report.add_failure("SPIFFE agent", failure),
        // A file that cannot be used was already reported, and cannot be used for a connection.
        (Err(_), SvidFrom::Files(_)) => return,
    };
    if let SvidFrom::WorkloadApi { pick, .. } = &chosen.svid
        && !check_agent(&*source, pick, session, report).await
    {
        return;
    }
    if !check_connection(&connector, asked, report).await {
        return;
    }
    let client = Client::new(connector, source, session.clock.clone(), session.identity_wait());
    check_daemon(&client, session, asked, report).await;
}

/// Checks the SVID and bundles that the SPIFFE agent gives us. Waits only for a short time, because the user wants to know the
/// present state.
async fn check_agent(
    source: &dyn IdentitySource,
    pick: &Pick,
    session: &Session,
    report: &mut DoctorReport,
) -> bool {
    let wait = session.identity_wait().min(CALL);
    let first = wait_for_identity(source, &*session.clock, wait, |_| {}).await;
    let (trust, now) = (source.current(), session.now().wall);
    match first.map_err(|e| e.to_string()).and_then(|_| trust.check(now).map_err(|e| e.to_string())) {
        Ok(()) => {
            let svid = trust.svid.as_ref().map(|svid| {
                format!("{}, ends {}", svid.spiffe_id(), timestamp::relative(svid.not_after(), now))
            });
            let domains: Vec<_> = trust.bundles.domains().map(ToString::to_string).collect();
            report.add_ok(
                "SPIFFE agent",
                format!("{}; bundles of {}", svid.unwrap_or_default(), domains.join(", ")),
            );
            true
        }
        Err(why) => {
            report.add_problem(
                "SPIFFE agent",
                why,
                format!("check that the agent runs and that it has an entry that gives us {pick}"),
            );
            false
        }
    }
}

/// Checks the bundles. Returns the bundles that can be read.
fn check_bundles(context: &Context, now: Wall, report: &mut DoctorReport) -> TrustBundles {
    let mut roots = TrustBundles::empty();
    for (domain, path) in &context.bundles {
        let what = format!("bundle {domain}");
        let fix = "get the bundle of that trust domain again, as PEM or as a SPIFFE bundle document";
        match roots.clone().with_file_at(domain.clone(), path, now) {
            Err(why) => report.add_problem(what, why.to_string(), fix),
            Ok(more) => {
                roots = more;
                let mine = format!("`{domain}`");
                let warnings: Vec<_> =
                    roots.warnings().into_iter().filter(|w| w.starts_with(&mine)).collect();
                let count = match roots.root_count(domain).unwrap_or(0) {
                    1 => "1 CA certificate".to_owned(),
                    n => format!("{n} CA certificates"),
                };
                match warnings.is_empty() {
                    true => report.add_ok(what, format!("{count} in {}", path.display())),
                    false => report.add_problem(what, warnings.join("; "), fix),
                }
            }
        }
    }
    roots
}

fn check_svids(
    context: &Context,
    only: Option<PrincipalKind>,
    roots: &TrustBundles,
    now: Wall,
    report: &mut DoctorReport,
) {
    let files = context.identities.iter().filter_map(|(role, from)| match from {
        SvidFrom::Files(files) => Some((role, files)),
        SvidFrom::WorkloadApi { .. } => None,
    });
    for (role, files) in files.filter(|(role, _)| only.is_none_or(|o| o == **role)) {
        let what = format!("SVID {role}");
        let file = |path: &Path, wanted| ConfiguredPath { key: what.clone(), path: path.to_owned(), wanted };
        let mut readable = true;
        for path in [file(&files.cert, PathUse::File), file(&files.key, PathUse::PrivateFile)] {
            if let Err(fault) = path.check() {
                // A check of the file's content would add a second row for this file.
                readable = false;
                let fix = match &fault {
                    PathFault::OpenToOthers { .. } => format!("chmod 600 {}", path.shown()),
                    _ => "check that the program that issues this SVID writes this file, readable by this user only".to_owned(),
                };
                report.add_problem(what.clone(), format!("`{}` {fault}", path.shown()), fix);
            }
        }
        if !readable {
            continue;
        }
        match X509Svid::load(&files.cert, &files.key) {
            Err(error) => {
                report.add_problem(what, error.to_string(), "issue this SVID again, certificate and key together");
            }
            Ok(svid) if !svid.is_current(now) => {
                let renew = "renew it: check that the SPIFFE agent, or `leasehold dev`, runs, and that the clock is right";
                let mint = mint_command(&files.cert, svid.spiffe_id());
                report.add_problem(
                    what,
                    outside_validity(&svid, now),
                    mint.unwrap_or_else(|| renew.to_owned()),
                );
            }
            Ok(svid) => match svid.verify(roots, now) {
                Ok(()) => {
                    let (id, until) = (svid.spiffe_id(), timestamp::relative(svid.not_after(), now));
                    report.add_ok(what, format!("{id}, ends {until}"));
                }
                Err(why) => report.add_problem(
                    what,
                    format!("a daemon would refuse {}: {why}", svid.spiffe_id()),
                    "issue it again so that it follows this rule; certificate chain and bundle must belong together",
                ),
            },
        }
    }
}

/// Returns the name of the present context, and how to use another context.
fn context_advice(name: &str, file: &Path) -> String {
    format!(
        "this is the context {name} of {}; if you mean another daemon: leasehold context use NAME",
        plain::path(file)
    )
}

/// Explains why an SVID cannot be used now: its validity has not begun, or has ended.
fn outside_validity(svid: &X509Svid, now: Wall) -> String {
    let (from, until) = (svid.leaf().not_before, svid.not_after());
    let which = match now < from {
        true => format!("is not valid yet: it begins {}", timestamp::relative(from, now)),
        false => format!("expired {}", timestamp::relative(until, now)),
    };
    format!("{} {which}: it is valid from {from} to {until}", svid.spiffe_id())
}

async fn check_connection(connector: &Connector, asked: &mut AskedDaemon, report: &mut DoctorReport) -> bool {
    let address = connector.endpoint().address();
    match connector.connected_channel().await {
        Ok(_) => {
            let found = format!("{address}, TLS 1.3, both sides authenticated");
            report.add_ok(asked.of("connection"), found);
            true
        }
        Err(error) => {
            let why = match error.cause() {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            };
            // If several identities have the same problem, such as an address without a server, it is reported once.
            if !asked.problems.contains(&why) {
                // Another server listens at the address. Often the context is that of another daemon.
                let fix = match error {
                    ConnectError::ServerNotTrusted { .. } | ConnectError::Protocol { .. } => {
                        format!("{}; {}", error.fix(), asked.context)
                    }
                    _ => error.fix(),
                };
                report.add_problem(asked.of("connection"), &*why, fix);
                asked.problems.push(why);
            }
            false
        }
    }
}

async fn check_daemon(
    client: &Client,
    session: &Session,
    asked: &mut AskedDaemon,
    report: &mut DoctorReport,
) {
    let before = session.now();
    let answer = client.who_am_i().await;
    let after = session.now();
    let answer = match answer {
        Ok(answer) => answer,
        Err(failure) => return report.add_failure(&asked.of("daemon"), failure),
    };
    let is_first = !std::mem::replace(&mut asked.has_answered, true);
    if is_first {
        report.add_ok("daemon", format!("leasehold {}, epoch {}", answer.server_version, answer.epoch));
    }
    if answer.kind.is_empty() {
        report.add_problem(
            asked.of("catalog"),
            format!("no entry matches {}", answer.spiffe_id),
            "add a [[principal]] that matches it to the catalog file of your team, then run `leasehold catalog reload`",
        );
    } else {
        let matched =
            if answer.matched.is_empty() { String::new() } else { format!(", by {}", answer.matched) };
        let kind = match answer.kind.parse::<PrincipalKind>() {
            Ok(kind) => kind.with_article(),
            Err(_) => answer.kind.as_str(),
        };
        report.add_ok(asked.of("catalog"), format!("you are {kind} of {}{matched}", answer.tenant));
    }
    if !answer.locked.is_empty() {
        let fix = "ask an operator: `leasehold lock list` shows the lock, and `leasehold unlock` lifts it";
        report.add_problem(asked.of("lock"), answer.locked.clone(), fix);
    }
    if !is_first {
        return;
    }
    if !answer.observed.is_empty() {
        let what = format!(
            "policy refuses nothing to the jobs of these tenants, because they are observed: {}",
            answer.observed.join(", ")
        );
        report.add_problem(
            "observed tenants",
            what,
            "when you have seen enough, remove [[observe]] from platform.toml and reload",
        );
    }
    if let Some(first) = answer.catalog_mistakes.first() {
        let count = match answer.catalog_mistakes.len() {
            1 => String::new(),
            n => format!(", and {} more lines", n.saturating_sub(1)),
        };
        report.add_problem(
            "catalog files",
            format!("not in force: {first}{count}"),
            "correct the file, then run `leasehold catalog reload`, which lists every mistake",
        );
    }
    let round_trip = after.boot.since(before.boot);
    let middle = before.wall.plus(round_trip / 2);
    match timestamp::moment(answer.server_time.as_ref()) {
        Some(theirs) => compare_clocks(middle, theirs, round_trip, report),
        None => report.add_problem(
            "clock",
            "the daemon did not send its time",
            "use the leasehold that came with the daemon",
        ),
    }
}

fn compare_clocks(ours: Wall, theirs: Wall, round_trip: Duration, report: &mut DoctorReport) {
    let apart = ours.since(theirs).max(theirs.since(ours));
    let shown = format!("{} ms from the daemon's, ± {} ms", apart.as_millis(), round_trip.as_millis() / 2);
    if apart > CLOCK_DIFFERENCE_MAX {
        let most = CLOCK_DIFFERENCE_MAX.as_secs();
        report.add_problem(
            "clock",
            format!("{shown}; servers refuse tokens beyond {most} s"),
            "synchronize both clocks, for example with NTP",
        );
    } else {
        report.add_ok("clock", shown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{NOW, TestCa};

    // An SVID that is not valid yet has not expired.
    #[test]
    fn the_two_sides_of_a_validity_have_different_words() {
        let svid = TestCa::new("td.example").svid("/op").svid();
        let early = outside_validity(&svid, Wall(svid.leaf().not_before.0 - 60_000));
        assert!(early.contains("is not valid yet: it begins in 1m") && !early.contains("expired"), "{early}");
        let late = outside_validity(&svid, svid.not_after().plus(Duration::from_secs(60)));
        assert!(late.contains("expired 1m ago"), "{late}");
        assert!(NOW >= svid.leaf().not_before && NOW < svid.not_after());
    }

    #[test]
    fn one_line_for_each_check_and_a_fix_for_each_problem() {
        let mut report = DoctorReport::default();
        report.add_ok("contexts", "1 in /c.toml");
        assert!(report.is_ok());
        compare_clocks(Wall(100_000), Wall(100_020), Duration::from_millis(4), &mut report);
        compare_clocks(Wall(100_000), Wall(140_000), Duration::from_millis(4), &mut report);
        assert!(!report.is_ok());
        insta::assert_snapshot!(report.page().to_string(), @r#"
        ok    contexts  1 in /c.toml
        ok    clock     20 ms from the daemon's, ± 2 ms
        FAIL  clock     40000 ms from the daemon's, ± 2 ms; servers refuse tokens beyond 30 s
                        fix: synchronize both clocks, for example with NTP
        "#);
        assert_eq!(report.to_json()[2]["ok"], false);
    }
}
