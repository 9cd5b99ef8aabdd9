//! Test cases of a policy: a requester, a request, and the expected answer. The `.toml` files in the policy's directory
//! contain them.

use std::{collections::BTreeSet, fmt, fs, path::Path, time::Duration};

use super::{AskedAct, Phase, Relation, RequestFacts, empty_binding::BINDINGS};
use crate::{
    clock::Wall,
    limits::{FILE_BYTES_MAX, LEASE_TTL_DEFAULT, POLICY_CASES_MAX, SPEC_LIST_MAX, TEXT_BYTES_MAX},
    name::{HumanName, ImageDigest, Method, NameError, ResourceName, SpiffeId, TenantName},
    plain,
    written::{Notes, Placed, Problem, Section, Value, nearest, parse_toml, read_regular_text},
};

/// An answer of the engine in one word, as a case expects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CaseAnswer {
    Allow,
    /// Allowed after people approve.
    Wait,
    Deny,
    /// Refused as if the resource did not exist.
    Absent,
    /// Refused because this kind of principal may never make such a call.
    Kind,
    /// Refused because the catalog does not know the caller.
    Unknown,
    /// Refused because a rule could not be evaluated, or because the question is not valid.
    Error,
}

impl CaseAnswer {
    const ALL: [CaseAnswer; 7] = [
        CaseAnswer::Allow,
        CaseAnswer::Wait,
        CaseAnswer::Deny,
        CaseAnswer::Absent,
        CaseAnswer::Kind,
        CaseAnswer::Unknown,
        CaseAnswer::Error,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            CaseAnswer::Allow => "allow",
            CaseAnswer::Wait => "wait",
            CaseAnswer::Deny => "deny",
            CaseAnswer::Absent => "absent",
            CaseAnswer::Kind => "kind",
            CaseAnswer::Unknown => "unknown",
            CaseAnswer::Error => "error",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|answer| answer.as_str() == text).ok_or_else(|| {
            let words: Vec<_> = Self::ALL.iter().map(|a| a.as_str()).collect();
            format!("`{}` is not an answer: write one of {}", plain::value(text), words.join(", "))
        })
    }
}

impl fmt::Display for CaseAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One test case. All its names are well formed. The catalog and the policies need not know them.
#[derive(Clone, Debug)]
pub struct PolicyCase {
    /// The file and line of the case, for example `tests.toml:12`.
    pub place: String,
    /// The name that the author gave to the case. May be empty.
    pub name: String,
    pub(super) caller: SpiffeId,
    pub(super) act: AskedAct,
    pub expected: CaseAnswer,
    /// The ids of the rules that the case expects to decide. Empty if the case expects that no rule decides.
    pub rules: BTreeSet<String>,
    /// The tenant of the job. `None` means the tenant of the caller.
    pub(super) tenant: Option<TenantName>,
    pub(super) purpose: String,
    pub(super) why: String,
    pub(super) ticket: String,
    pub(super) rollback_to: Option<ResourceName>,
    pub(super) prompt_alternative: String,
    pub(super) image: Option<ImageDigest>,
    pub(super) acting_for: Option<HumanName>,
    /// The other resources of the job. The job's risk is computed from these and the resource that the case asks about.
    pub(super) also: Vec<ResourceName>,
    pub(super) method: Option<Method>,
    pub(super) ttl: Duration,
    pub(super) approved: BTreeSet<String>,
    pub(super) own_checkpoint: bool,
    pub(super) binding: String,
    pub(super) phase: Phase,
    pub(super) now: Wall,
    pub(super) relations: Vec<Relation>,
    pub(super) reason: String,
    pub(super) amr: Vec<String>,
}

impl PolicyCase {
    /// Returns the question as a text: `spiffe://… read_dataset dataset:…`
    pub fn asked(&self) -> String {
        format!("{} {}", self.caller, self.act)
    }

    /// Returns the facts of the case's job.
    pub(super) fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            why: &self.why,
            ticket: &self.ticket,
            rollback_to: self.rollback_to.as_ref(),
            prompt_alternative: &self.prompt_alternative,
            image: self.image.as_ref(),
            acting_for: self.acting_for.as_ref(),
        }
    }
}

/// Reads the cases in the `.toml` files of a directory, in the order of their names. `now` is the time for cases that
/// name no time.
///
/// # Errors
/// Every mistake in the cases.
pub fn read_cases(dir: &Path, now: Wall) -> Result<Vec<PolicyCase>, Vec<Problem>> {
    read_case_texts(case_files(dir)?.iter().map(|(file, text)| (file.as_str(), text.as_str())), now)
}

/// Returns the names and texts of the `.toml` files of a directory, in the order of their names.
pub(super) fn case_files(dir: &Path) -> Result<Vec<(String, String)>, Vec<Problem>> {
    let problem = |file: &Path, what: String| Problem { file: file.to_owned(), line: 0, what };
    let entries = fs::read_dir(dir)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| vec![problem(dir, format!("the directory cannot be read: {e}"))])?;
    let mut names: Vec<_> = entries.into_iter().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".toml") && !name.starts_with('.'));
    names.sort();
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        match read_regular_text(&dir.join(&name), FILE_BYTES_MAX) {
            Ok(text) => files.push((name, text)),
            Err(why) => problems.push(problem(Path::new(&name), why)),
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// Reads the cases in texts, each with the name of its file.
///
/// # Errors
/// Every mistake in the cases.
pub fn read_case_texts<'t>(
    files: impl Iterator<Item = (&'t str, &'t str)>,
    now: Wall,
) -> Result<Vec<PolicyCase>, Vec<Problem>> {
    let (mut cases, mut problems) = (Vec::new(), Vec::new());
    for (file, text) in files {
        let mut notes = Notes::new(Path::new(file));
        notes.read(parse_toml(text), |root, notes| read_file(file, root, now, &mut cases, notes));
        problems.extend(notes.into_problems());
    }
    if cases.len() > POLICY_CASES_MAX {
        let what = format!("{} cases: write at most {POLICY_CASES_MAX}", cases.len());
        problems.push(Problem { file: "the cases".into(), line: 0, what });
    }
    problems.sort();
    if problems.is_empty() { Ok(cases) } else { Err(problems) }
}

/// The values that the cases of a file share.
struct CaseDefaults {
    purpose: String,
    why: String,
    ticket: String,
    rollback_to: Option<ResourceName>,
    prompt_alternative: String,
    method: Option<Method>,
    ttl: Duration,
    now: Wall,
}

fn read_file(file: &str, root: &mut Section<'_>, now: Wall, cases: &mut Vec<PolicyCase>, notes: &mut Notes) {
    let mut table = root.section("defaults", notes);
    let shared = CaseDefaults {
        purpose: table.text("purpose", notes, line).unwrap_or_default(),
        why: table.text("why", notes, line).unwrap_or_default(),
        ticket: table.text("ticket", notes, line).unwrap_or_default(),
        rollback_to: table.text("rollback_to", notes, optional_resource).flatten(),
        prompt_alternative: table.text("prompt_alternative", notes, line).unwrap_or_default(),
        method: table.text("method", notes, method).flatten(),
        ttl: ttl(&mut table, notes).unwrap_or(LEASE_TTL_DEFAULT),
        now: table.text("now", notes, moment).unwrap_or(now),
    };
    table.finish(notes);
    for mut table in root.list_of_sections("case", POLICY_CASES_MAX, notes) {
        cases.extend(read_case(file, &mut table, &shared, notes));
        table.finish(notes);
    }
}

fn read_case(
    file: &str,
    table: &mut Section<'_>,
    shared: &CaseDefaults,
    notes: &mut Notes,
) -> Option<PolicyCase> {
    let place = format!("{file}:{}", table.line());
    let caller = table.need("as", "\"spiffe://…\"", notes, str::parse::<SpiffeId>);
    let act = read_act(table, notes);
    let expected = table.need("expect", "\"allow\"", notes, CaseAnswer::parse);
    let rule = table.text("rule", notes, line);
    let rules = table.list("rules", SPEC_LIST_MAX, notes, line);
    if rule.is_some() && !rules.is_empty() {
        table.wrong("rules", "`rule` names one already: write all of them in `rules`", notes);
    }
    let relations = table.list("relation", SPEC_LIST_MAX, notes, |word| {
        Relation::parse(word).ok_or_else(|| unknown(word, Relation::ALL.iter().map(|r| r.as_str())))
    });
    let case = PolicyCase {
        place,
        name: table.text("name", notes, line).unwrap_or_default(),
        caller: caller?,
        act: act?,
        expected: expected?,
        rules: values(rules).chain(rule).collect(),
        tenant: table.text("tenant", notes, str::parse::<TenantName>),
        purpose: table.text("purpose", notes, line).unwrap_or_else(|| shared.purpose.clone()),
        why: table.text("why", notes, line).unwrap_or_else(|| shared.why.clone()),
        ticket: table.text("ticket", notes, line).unwrap_or_else(|| shared.ticket.clone()),
        rollback_to: table
            .text("rollback_to", notes, optional_resource)
            .unwrap_or_else(|| shared.rollback_to.clone()),
        prompt_alternative: table
            .text("prompt_alternative", notes, line)
            .unwrap_or_else(|| shared.prompt_alternative.clone()),
        image: table.text("image", notes, str::parse::<ImageDigest>),
        acting_for: table.text("acting_for", notes, |text| {
            text.strip_prefix("human:").unwrap_or(text).parse::<HumanName>()
        }),
        also: values(table.list("also", SPEC_LIST_MAX, notes, str::parse::<ResourceName>)).collect(),
        method: table.text("method", notes, method).unwrap_or(shared.method),
        ttl: ttl(table, notes).unwrap_or(shared.ttl),
        approved: values(table.list("approved", SPEC_LIST_MAX, notes, line)).collect(),
        own_checkpoint: table.value("own_checkpoint", notes, Value::truth).unwrap_or(true),
        binding: table.text("binding", notes, binding).unwrap_or_default(),
        phase: table.text("phase", notes, phase).unwrap_or(Phase::Running),
        now: table.text("now", notes, moment).unwrap_or(shared.now),
        relations: values(relations).collect(),
        reason: table.text("reason", notes, line).unwrap_or_default(),
        amr: values(table.list("amr", SPEC_LIST_MAX, notes, line)).collect(),
    };
    Some(case)
}

/// Reads `do` and `on`: an action on a resource, or a call about a tenant.
fn read_act(table: &mut Section<'_>, notes: &mut Notes) -> Option<AskedAct> {
    let act = table.need("do", "\"read_dataset\"", notes, line);
    let on = table.need("on", "\"dataset:acme/tickets@v3\"", notes, line);
    AskedAct::parse(&act?, &on?, None)
        .map_err(|(field, why)| table.wrong(if field == "action" { "do" } else { "on" }, why, notes))
        .ok()
}

fn values<T>(items: Vec<Placed<T>>) -> impl Iterator<Item = T> {
    items.into_iter().map(|item| item.value)
}

fn unknown<'k>(word: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(near) => format!("`{}` is not known here: write `{near}`?", plain::value(word)),
        None => {
            format!(
                "`{}` is not known here: write one of {}",
                plain::value(word),
                known.collect::<Vec<_>>().join(", ")
            )
        }
    }
}

fn line(text: &str) -> Result<String, String> {
    if text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(format!("it has a control character or more than {TEXT_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

/// Reads a resource; an empty text stands for none.
fn optional_resource(text: &str) -> Result<Option<ResourceName>, NameError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

fn method(text: &str) -> Result<Option<Method>, String> {
    match text {
        "none" => Ok(None),
        word => word
            .parse()
            .map(Some)
            .map_err(|_| unknown(word, Method::ALL.iter().map(|m| m.as_str()).chain(["none"]))),
    }
}

fn phase(text: &str) -> Result<Phase, String> {
    let all = [Phase::Creating, Phase::Running, Phase::Draining];
    let found = all.into_iter().find(|phase| phase.as_str() == text);
    found.ok_or_else(|| unknown(text, all.iter().map(|phase| phase.as_str())))
}

fn binding(text: &str) -> Result<String, String> {
    if BINDINGS.contains(&text) { Ok(text.to_owned()) } else { Err(unknown(text, BINDINGS.into_iter())) }
}

fn moment(text: &str) -> Result<Wall, String> {
    Wall::parse(text).ok_or_else(|| {
        format!("`{}` is not a time: write it as \"2026-11-20T10:00:00Z\"", plain::value(text))
    })
}

/// Reads a number of seconds.
fn ttl(table: &mut Section<'_>, notes: &mut Notes) -> Option<Duration> {
    table.count("ttl", 1..=u32::MAX, notes).map(|seconds| Duration::from_secs(seconds.into()))
}
