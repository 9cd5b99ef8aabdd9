//! Reads a job's specification. All mistakes are reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::fields::{read_duration, secret_in};
use crate::{
    job::{DoneWhen, Members, ParamSweep, Spec, Tuning},
    limits,
    name::{
        Digest, HumanName, ImageDigest, InstanceName, Method, Object, Pin, ResourceKind, ResourceName,
        SpiffeId, SpiffePattern, TenantName,
    },
    plain,
    proto::{convert::duration, v1},
    reason::{Reason, Refusal},
    secret::holds_secret,
};

/// The mistakes that were found so far, and the reason of the first one.
#[derive(Default)]
struct Mistakes {
    first: Option<Reason>,
    found: Vec<String>,
}

impl Mistakes {
    fn add(&mut self, reason: Reason, what: String) {
        self.first.get_or_insert(reason);
        self.found.push(what);
    }

    fn parse_name<T: std::str::FromStr<Err = impl std::fmt::Display>>(
        &mut self,
        field: &str,
        text: &str,
    ) -> Option<T> {
        match text.parse() {
            Ok(name) => Some(name),
            Err(e) => {
                self.add(Reason::FieldInvalid, format!("`{field}`: {e}"));
                None
            }
        }
    }

    fn check_text(&mut self, field: &str, text: &str, max: usize, required: bool) -> String {
        if required && text.trim().is_empty() {
            self.add(Reason::FieldMissing, format!("`{field}` is required"));
        }
        let is_long = text.len() > max;
        if is_long {
            self.add(Reason::FieldInvalid, format!("`{field}` is longer than {max} bytes"));
        }
        if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            self.add(Reason::FieldInvalid, format!("`{field}` has control characters in it"));
        }
        if !is_long && holds_secret(text) {
            self.add(Reason::FieldInvalid, secret_in(field));
        }
        text.to_owned()
    }

    fn bounded<'a>(&mut self, field: &str, list: &'a [String], max: usize) -> &'a [String] {
        if list.len() > max {
            self.add(Reason::FieldInvalid, format!("`{field}` has more than {max} entries"));
        }
        list.get(..list.len().min(max)).unwrap_or_default()
    }

    fn parse_duration(
        &mut self,
        field: &'static str,
        d: Option<&prost_types::Duration>,
        max: Duration,
    ) -> Option<Duration> {
        match read_duration(field, d, max) {
            Ok(life) => life,
            Err(refusal) => {
                self.add(refusal.reason, refusal.text.into_owned());
                None
            }
        }
    }

    /// Writes one refusal about all mistakes. It has the reason of the first mistake.
    fn into_refusal(self) -> Refusal {
        let reason = self.first.unwrap_or(Reason::FieldInvalid);
        match self.found.as_slice() {
            [one] => Refusal::new(reason, one.clone()),
            many => {
                let refusal = Refusal::new(reason, format!("the specification has {} mistakes", many.len()));
                self.found.into_iter().fold(refusal, |r, what| r.with("field", what))
            }
        }
    }
}

/// Reads a specification. `tenant` and `caller` are the defaults for absent fields.
pub(super) fn from_wire(wire: &v1::JobSpec, tenant: &TenantName, caller: &SpiffeId) -> Result<Spec, Refusal> {
    let mut m = Mistakes::default();
    let name = m.parse_name::<InstanceName>("name", &wire.name).map(|n| n.to_string()).unwrap_or_default();
    let tenant =
        if wire.tenant.is_empty() { Some(tenant.clone()) } else { m.parse_name("tenant", &wire.tenant) };
    let purpose = m.check_text("purpose", &wire.purpose, limits::NAME_BYTES_MAX, true);
    let why = m.check_text("why", &wire.why, limits::TEXT_BYTES_MAX, false);
    let ticket = m.check_text("ticket", &wire.ticket, limits::NAME_BYTES_MAX, false);
    let rollback_to = rollback(&mut m, &wire.rollback_to);
    let prompt_alternative =
        m.check_text("prompt_alternative", &wire.prompt_alternative, limits::TEXT_BYTES_MAX, false);
    let image = match wire.image.as_str() {
        "" => None,
        text => m.parse_name::<ImageDigest>("image", text),
    };
    let max_duration = m.parse_duration("max_duration", wire.max_duration.as_ref(), limits::JOB_DURATION_MAX);
    if wire.max_duration.is_none() {
        m.add(Reason::FieldMissing, "`max_duration` is required: all access ends after this time".into());
    }

    let (folders, read): (Vec<String>, Vec<String>) = m
        .bounded("read", &wire.read, limits::JOB_RESOURCES_MAX)
        .iter()
        .cloned()
        .partition(|name| name.parse::<Object>().is_ok_and(|object| object.job().is_some()));
    let read = resources(&mut m, "read", &read, &[ResourceKind::Dataset, ResourceKind::Model]);
    let read_checkpoints = checkpoints(&mut m, &folders);
    let write = resources(&mut m, "write", &wire.write, &[ResourceKind::Checkpoint]);
    if wire.read.is_empty() && wire.write.is_empty() {
        m.add(
            Reason::FieldMissing,
            "`read` or `write` is required: a job must name what it reads or writes".into(),
        );
    }
    let pins = pins(&mut m, wire);
    let tune = wire.tune.as_ref().and_then(|t| tuning(&mut m, t));
    if !write.is_empty() && wire.tune.is_none() {
        m.add(
            Reason::FieldMissing,
            "`tune.method` is required: a job that writes a checkpoint tunes a model".into(),
        );
    }
    let sweep = wire.sweep.as_ref().and_then(|s| param_sweep(&mut m, s, tune.as_ref()));
    let members = members(&mut m, wire.members.as_ref(), caller);
    let acting_for = match wire.acting_for.as_str() {
        "" => None,
        text => m.parse_name::<HumanName>("acting_for", text.strip_prefix("human:").unwrap_or(text)),
    };
    let credential_ttl =
        m.parse_duration("credential_ttl", wire.credential_ttl.as_ref(), limits::JOB_DURATION_MAX);
    let drain = m.parse_duration("drain", wire.drain.as_ref(), limits::DRAIN_GRACE_MAX);

    match (m.first, tenant, max_duration) {
        (None, Some(tenant), Some(max_duration)) => Ok(Spec {
            name,
            tenant,
            purpose,
            why,
            ticket,
            rollback_to,
            prompt_alternative,
            image,
            sweep,
            max_duration,
            tune,
            read,
            read_checkpoints,
            write,
            pins,
            members,
            acting_for,
            credential_ttl,
            drain,
        }),
        _ => Err(m.into_refusal()),
    }
}

/// Reads the model version to which a rollback returns.
fn rollback(m: &mut Mistakes, text: &str) -> Option<ResourceName> {
    if text.is_empty() {
        return None;
    }
    let name = m.parse_name::<ResourceName>("rollback_to", text)?;
    if name.kind() == ResourceKind::Model && name.version().is_some() {
        return Some(name);
    }
    m.add(Reason::FieldInvalid, format!("`rollback_to`: {name} is not a version of a model"));
    None
}

fn pins(m: &mut Mistakes, wire: &v1::JobSpec) -> BTreeMap<ResourceName, Pin> {
    let mut pins = BTreeMap::new();
    for (resource, pin) in &wire.pins {
        if let (Some(r), Some(p)) =
            (m.parse_name::<ResourceName>("pins", resource), m.parse_name::<Pin>("pins", pin))
        {
            pins.insert(r, p);
        }
    }
    pins
}

/// Reads the folders of other jobs. Each text is a folder of a checkpoint line.
fn checkpoints(m: &mut Mistakes, folders: &[String]) -> Vec<Object> {
    let mut out: Vec<Object> = Vec::new();
    for folder in folders.iter().filter_map(|text| text.parse::<Object>().ok()) {
        if folder.resource().kind() != ResourceKind::Checkpoint {
            m.add(Reason::FieldInvalid, format!("`read`: {folder} is not the folder of a checkpoint line"));
        } else if out.contains(&folder) {
            m.add(Reason::FieldInvalid, format!("`read`: {folder} is named twice"));
        } else {
            out.push(folder);
        }
    }
    out
}

fn resources(m: &mut Mistakes, field: &str, list: &[String], kinds: &[ResourceKind]) -> Vec<ResourceName> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for text in m.bounded(field, list, limits::JOB_RESOURCES_MAX) {
        let Some(r) = m.parse_name::<ResourceName>(field, text) else { continue };
        if r.kind() == ResourceKind::Checkpoint && !kinds.contains(&r.kind()) {
            let what = format!(
                "`{field}`: {r} is a checkpoint line: write {r}/JOB for the checkpoints of another job"
            );
            m.add(Reason::FieldInvalid, what);
        } else if !kinds.contains(&r.kind()) {
            let kinds: Vec<&str> = kinds.iter().map(|k| k.as_str()).collect();
            m.add(Reason::FieldInvalid, format!("`{field}`: {r} is not a {}", kinds.join(" or ")));
        } else if r.kind() != ResourceKind::Checkpoint && r.version().is_none() {
            m.add(Reason::FieldInvalid, format!("`{field}`: {r} has no version: write {r}@VERSION"));
        } else if !seen.insert(r.clone()) {
            m.add(Reason::FieldInvalid, format!("`{field}`: {r} is named twice"));
        } else {
            out.push(r);
        }
    }
    out
}

fn tuning(m: &mut Mistakes, t: &v1::Tuning) -> Option<Tuning> {
    let method = v1::Method::try_from(t.method).ok().and_then(|method| Method::try_from(method).ok());
    let Some(method) = method else {
        m.add(
            Reason::FieldMissing,
            "`tune.method` is required: full, lora, adapter, prompt-tuning or preference".into(),
        );
        return None;
    };
    let params_digest = if t.params_digest.is_empty() {
        None
    } else {
        m.parse_name::<Digest>("tune.params_digest", &t.params_digest)
    };
    let texts = |m: &mut Mistakes, field, list: &[String]| {
        m.bounded(field, list, limits::SPEC_LIST_MAX)
            .iter()
            .map(|x| m.check_text(field, x, limits::TEXT_BYTES_MAX, true))
            .collect()
    };
    let free_params = texts(m, "tune.free_params", &t.free_params);
    let prompts = texts(m, "tune.prompts", &t.prompts);
    Some(Tuning { method, params_digest, free_params, prompts })
}

/// Reads a parameter sweep. It must have exactly one `NAME=VALUE` entry for each free parameter.
fn param_sweep(m: &mut Mistakes, wire: &v1::ParamSweep, tune: Option<&Tuning>) -> Option<ParamSweep> {
    if !(2..=limits::SWEEP_JOBS_MAX).contains(&wire.jobs) {
        let what = format!("`sweep.jobs` is {}: write 2 to {}", wire.jobs, limits::SWEEP_JOBS_MAX);
        m.add(Reason::FieldInvalid, what);
    }
    let free = tune.map(|tune| tune.free_params.as_slice()).unwrap_or_default();
    let mut values = BTreeMap::new();
    for text in m.bounded("sweep.values", &wire.values, limits::SPEC_LIST_MAX) {
        m.check_text("sweep.values", text, limits::TEXT_BYTES_MAX, true);
        match text.split_once('=') {
            Some((name, value)) if free.iter().any(|known| known == name) => {
                if values.insert(name.to_owned(), value.to_owned()).is_some() {
                    m.add(
                        Reason::FieldInvalid,
                        format!("`sweep.values`: {} has two values", plain::value(name)),
                    );
                }
            }
            Some((name, _)) => {
                let what = format!("`sweep.values`: {} is not in tune.free_params", plain::value(name));
                m.add(Reason::FieldInvalid, what);
            }
            None => m.add(Reason::FieldInvalid, "`sweep.values`: write NAME=VALUE".to_owned()),
        }
    }
    for name in free.iter().filter(|name| !values.contains_key(*name)) {
        m.add(Reason::FieldMissing, format!("`sweep.values` has no value for {}", plain::value(name)));
    }
    if free.is_empty() {
        m.add(Reason::FieldMissing, "`tune.free_params` is required: a sweep varies it".to_owned());
    }
    Some(ParamSweep { jobs: wire.jobs, values })
}

fn members(m: &mut Mistakes, wire: Option<&v1::Members>, caller: &SpiffeId) -> Members {
    let default = v1::Members::default();
    let w = wire.unwrap_or(&default);
    let patterns = |m: &mut Mistakes, field, list: &[String]| -> Vec<SpiffePattern> {
        m.bounded(field, list, limits::SPEC_LIST_MAX).iter().filter_map(|x| m.parse_name(field, x)).collect()
    };
    let start = patterns(m, "members.start", &w.start);
    let mut join = patterns(m, "members.join", &w.join);
    if w.join.is_empty() {
        join.extend(caller.as_str().parse::<SpiffePattern>().ok());
    }
    let expect = w.expect.max(1);
    let max = if w.max == 0 { expect } else { w.max };
    if max < expect {
        m.add(
            Reason::FieldInvalid,
            format!("`members.max` ({max}) is less than `members.expect` ({expect})"),
        );
    }
    if max > limits::MEMBERS_MAX {
        m.add(Reason::FieldInvalid, format!("`members.max` is above {}", limits::MEMBERS_MAX));
    }
    let attempts = w.attempts.max(1);
    if attempts > limits::ATTEMPTS_MAX {
        m.add(Reason::FieldInvalid, format!("`members.attempts` is above {}", limits::ATTEMPTS_MAX));
    }
    let done_when = w.done_when.parse::<DoneWhen>().unwrap_or_else(|e| {
        m.add(Reason::FieldInvalid, format!("`members.done_when`: {e}"));
        DoneWhen::All
    });
    Members { start, join, expect, max, attempts, done_when }
}

/// Converts a specification to its protobuf message.
pub(super) fn to_wire(spec: &Spec) -> v1::JobSpec {
    let names = |list: &[ResourceName]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
    let patterns = |list: &[SpiffePattern]| list.iter().map(ToString::to_string).collect();
    v1::JobSpec {
        name: spec.name.clone(),
        tenant: spec.tenant.to_string(),
        purpose: spec.purpose.clone(),
        why: spec.why.clone(),
        ticket: spec.ticket.clone(),
        rollback_to: spec.rollback_to.as_ref().map(ToString::to_string).unwrap_or_default(),
        prompt_alternative: spec.prompt_alternative.clone(),
        image: spec.image.as_ref().map(ToString::to_string).unwrap_or_default(),
        sweep: spec.sweep.as_ref().map(|sweep| v1::ParamSweep {
            jobs: sweep.jobs,
            values: sweep.values.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        }),
        max_duration: Some(duration(spec.max_duration)),
        tune: spec.tune.as_ref().map(|t| v1::Tuning {
            method: v1::Method::from(t.method) as i32,
            params_digest: t.params_digest.map(|d| d.to_string()).unwrap_or_default(),
            free_params: t.free_params.clone(),
            prompts: t.prompts.clone(),
        }),
        read: names(&spec.read)
            .into_iter()
            .chain(spec.read_checkpoints.iter().map(ToString::to_string))
            .collect(),
        write: names(&spec.write),
        members: Some(v1::Members {
            start: patterns(&spec.members.start),
            join: patterns(&spec.members.join),
            expect: spec.members.expect,
            max: spec.members.max,
            attempts: spec.members.attempts,
            done_when: spec.members.done_when.to_string(),
        }),
        acting_for: spec.acting_for.as_ref().map(|h| format!("human:{h}")).unwrap_or_default(),
        credential_ttl: spec.credential_ttl.map(duration),
        pins: spec.pins.iter().map(|(r, p)| (r.to_string(), p.to_string())).collect(),
        drain: spec.drain.map(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::JobSpec {
        v1::JobSpec {
            name: "lora".into(),
            purpose: "tuning".into(),
            max_duration: Some(duration(Duration::from_secs(60))),
            read: vec!["dataset:acme/d@v1".into()],
            ..Default::default()
        }
    }

    fn read(w: &v1::JobSpec) -> Result<Spec, Refusal> {
        from_wire(w, &"acme".parse().unwrap(), &"spiffe://td/me".parse().unwrap())
    }

    #[test]
    fn what_is_left_out_takes_the_callers_tenant_and_identity() {
        let spec = read(&wire()).unwrap();
        assert_eq!(spec.tenant.as_str(), "acme");
        assert!(spec.members.may_join(&"spiffe://td/me".parse().unwrap()));
        assert_eq!((spec.members.expect, spec.members.max, spec.members.attempts), (1, 1, 1));
        assert_eq!(read(&to_wire(&spec)).unwrap(), spec, "and it reads back");
    }

    // Proves law 03.
    #[test]
    fn absurd_lives_are_refused() {
        let span = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
        for d in [
            span(0, 0),
            span(-1, 0),
            span(100 * 365 * 86_400, 0),
            span(i64::MAX, 0),
            span(1, -1),
            span(0, 999),
        ] {
            let e = read(&v1::JobSpec { max_duration: d, ..wire() }).unwrap_err();
            assert_eq!(e.reason, Reason::TtlInvalid, "{d:?}");
            let e = read(&v1::JobSpec { credential_ttl: d, ..wire() }).unwrap_err();
            assert_eq!(e.reason, Reason::TtlInvalid, "{d:?}");
        }
    }

    // Proves law 08.
    #[test]
    fn a_climbing_name_is_refused_with_all_other_mistakes() {
        let e = read(&v1::JobSpec {
            name: "a/b".into(),
            read: vec!["dataset:acme/../x@v1".into(), "checkpoint:acme/c".into(), "dataset:acme/d".into()],
            write: vec!["checkpoint:acme/c".into()],
            members: Some(v1::Members { done_when: "never".into(), expect: 3, max: 2, ..Default::default() }),
            ..wire()
        })
        .unwrap_err();
        let found: Vec<&str> = e.facts.iter().map(|(_, v)| v.as_str()).collect();
        assert_eq!(found.len(), 7, "{found:#?}");
        assert!(found.iter().any(|f| f.contains("..")));
    }
}
