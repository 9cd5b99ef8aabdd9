//! The job itself, as it is sent to the daemon.

use std::{collections::HashMap, fs::File, io::Read, path::Path, time::Duration};

use super::fields::{AtLine, Fields, Noted};
use crate::{
    limits::{
        ATTEMPTS_MAX, FILE_BYTES_MAX, JOB_DURATION_MAX, JOB_RESOURCES_MAX, LEASE_TTL_MAX, MEMBERS_MAX,
        NAME_BYTES_MAX, SPEC_LIST_MAX, TEXT_BYTES_MAX, TTL_MIN,
    },
    name::{
        Digest, HumanName, InstanceName, Method, Pin, ResourceKind, ResourceName, SpiffePattern, TenantName,
    },
    proto::v1,
    written::shown,
};

const GATEWAY: &str = "comes with the S3 gateway and is not served yet: remove it";

pub(super) fn read(
    root: &mut Fields,
    folder: &Path,
    drain: Option<AtLine<Duration>>,
    noted: &mut Noted,
) -> v1::JobSpec {
    let name = root.text("name", noted, job_name);
    let tenant = root.text("tenant", noted, |t| t.parse::<TenantName>().map(|t| t.to_string()));
    let purpose = root.text("purpose", noted, |t| plain(t, NAME_BYTES_MAX));
    let why = root.text("why", noted, |t| plain(t, TEXT_BYTES_MAX));
    let max_duration = root.span("max_duration", TTL_MIN..=JOB_DURATION_MAX, noted);
    let ttl = root.span("credential_ttl", TTL_MIN..=LEASE_TTL_MAX, noted);
    let acting_for = root.text("acting_for", noted, |t| {
        let name = t
            .strip_prefix("human:")
            .ok_or_else(|| format!("`{}` is not a person: write \"human:NAME\"", shown(t)))?;
        name.parse::<HumanName>().map(|h| format!("human:{h}")).map_err(|e| e.to_string())
    });
    // What is there but wrong was noted already; what is absent is told once, at the top.
    for (key, write) in [
        ("name", "name = \"…\""),
        ("purpose", "purpose = \"…\", one that every dataset allows"),
        ("max_duration", "max_duration = \"8h\", the hard end of all access"),
    ] {
        if !root.held(key) {
            root.missing(key, write, noted);
        }
    }
    let tune = root.table("tune", "tune.", noted).map(|fields| tuning(fields, folder, noted));
    let mut pins = HashMap::new();
    let read = resources(root, "read", &mut pins, noted);
    let write = resources(root, "write", &mut pins, noted);
    if !root.held("read") && !root.held("write") {
        root.missing(
            "read",
            "[[read]] resource = \"dataset:…\" or [[write]] resource = \"checkpoint:…\"",
            noted,
        );
    }
    if read.len() + write.len() > JOB_RESOURCES_MAX {
        let n = read.len() + write.len();
        noted.push((
            1,
            format!("{n} resources: write at most {JOB_RESOURCES_MAX} in [[read]] and [[write]] together"),
        ));
    }
    let members = root.table("members", "members.", noted).map(|fields| members(fields, noted));
    let text = |t: Option<AtLine<String>>| t.map(|t| t.value).unwrap_or_default();
    v1::JobSpec {
        name: text(name),
        tenant: text(tenant),
        purpose: text(purpose),
        why: text(why),
        max_duration: max_duration.and_then(wire),
        tune,
        read,
        write,
        members,
        acting_for: text(acting_for),
        credential_ttl: ttl.and_then(wire),
        pins,
        drain: drain.and_then(wire),
    }
}

fn wire(d: AtLine<Duration>) -> Option<prost_types::Duration> {
    d.value.try_into().ok()
}

fn job_name(text: &str) -> Result<String, String> {
    // A job is named by the same grammar as a member.
    text.parse::<InstanceName>().map(|n| n.to_string()).map_err(|_| {
        format!(
            "`{}` is not a job name: write letters, digits, `.`, `_`, `-`, a letter or digit first, at most {NAME_BYTES_MAX} bytes",
            shown(text)
        )
    })
}

/// Text for people: something, not too much, on one line.
fn plain(text: &str, most: usize) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("is empty: write a word, or remove it".to_owned());
    }
    if text.len() > most {
        return Err(format!("{} bytes: write at most {most}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character: write one plain line".to_owned());
    }
    Ok(text.to_owned())
}

fn tuning(mut fields: Fields, folder: &Path, noted: &mut Noted) -> v1::Tuning {
    let method = fields.text("method", noted, |t| t.parse::<Method>().map(wire_method));
    if !fields.held("method") {
        fields.missing("method", "one of full, lora, adapter, prompt-tuning, preference", noted);
    }
    let params = fields
        .text("params", noted, |t| digest_of(&folder.join(t)).map_err(|e| format!("`{}` {e}", shown(t))));
    let free_params = fields.texts("free_params", SPEC_LIST_MAX, noted, |t| plain(t, NAME_BYTES_MAX));
    let prompts = fields.texts("prompts", SPEC_LIST_MAX, noted, |t| plain(t, TEXT_BYTES_MAX));
    fields.finish(noted);
    v1::Tuning {
        method: method.map_or(v1::Method::Unspecified, |m| m.value).into(),
        params_digest: params.map(|d| d.value.to_string()).unwrap_or_default(),
        free_params,
        prompts,
    }
}

fn wire_method(method: Method) -> v1::Method {
    match method {
        Method::Full => v1::Method::Full,
        Method::Lora => v1::Method::Lora,
        Method::Adapter => v1::Method::Adapter,
        Method::PromptTuning => v1::Method::PromptTuning,
        Method::Preference => v1::Method::Preference,
    }
}

fn digest_of(path: &Path) -> Result<Digest, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| format!("cannot be read, beside the specification: {e}"))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err("is not a file: write the path of one, as seen from the specification".to_owned());
    }
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes: parameters only, no data"));
    }
    Ok(Digest::of(&bytes))
}

fn resources(
    root: &mut Fields,
    key: &'static str,
    pins: &mut HashMap<String, String>,
    noted: &mut Noted,
) -> Vec<String> {
    let writing = key == "write";
    let prefix = if writing { "write." } else { "read." };
    let mut out: Vec<String> = Vec::new();
    for mut fields in root.tables(key, prefix, JOB_RESOURCES_MAX, noted) {
        let resource = fields.text("resource", noted, |t| if writing { to_write(t) } else { to_read(t) });
        let pin = fields.text("pin", noted, |t| t.parse::<Pin>());
        for later in ["as", "stage", "sync"] {
            fields.refuse(later, GATEWAY, noted);
        }
        if !fields.held("resource") {
            let write = if writing {
                "resource = \"checkpoint:TENANT/NAME\""
            } else {
                "resource = \"dataset:TENANT/NAME@VERSION\""
            };
            fields.missing("resource", write, noted);
        }
        if let Some(resource) = resource {
            let name = resource.value.to_string();
            if out.contains(&name) {
                noted.push((resource.line, format!("{prefix}resource: {name} stands twice: remove one")));
            } else {
                if let Some(pin) = pin {
                    pins.insert(name.clone(), pin.value.to_string());
                }
                out.push(name);
            }
        }
        fields.finish(noted);
    }
    out
}

fn to_read(text: &str) -> Result<ResourceName, String> {
    let name: ResourceName = text.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    match (name.kind(), name.version()) {
        (ResourceKind::Checkpoint, _) => {
            Err(format!("{name} is a checkpoint line: write it in [[write]], where it may be read back too"))
        }
        (_, None) => Err(format!("{name} has no version: write {name}@VERSION")),
        (_, Some(_)) => Ok(name),
    }
}

fn to_write(text: &str) -> Result<ResourceName, String> {
    let name: ResourceName = text.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    match name.kind() {
        ResourceKind::Checkpoint => Ok(name),
        kind => {
            Err(format!("{name} is a {}, which no job writes: write checkpoint:TENANT/NAME", kind.as_str()))
        }
    }
}

fn members(mut fields: Fields, noted: &mut Noted) -> v1::Members {
    let pattern = |t: &str| t.parse::<SpiffePattern>().map(|p| p.to_string());
    let start = fields.texts("start", SPEC_LIST_MAX, noted, pattern);
    let join = fields.texts("join", SPEC_LIST_MAX, noted, pattern);
    let expect = fields.count("expect", 1..=MEMBERS_MAX, noted);
    let max = fields.count("max", 1..=MEMBERS_MAX, noted);
    let attempts = fields.count("attempts", 1..=ATTEMPTS_MAX, noted);
    let done_when = fields.text("done_when", noted, |t| match t.strip_prefix("instance:") {
        Some(instance) => {
            instance.parse::<InstanceName>().map(|i| format!("instance:{i}")).map_err(|e| e.to_string())
        }
        None if t == "all" || t == "any" => Ok(t.to_owned()),
        None => Err(format!("`{}` stands here: write \"all\", \"any\" or \"instance:NAME\"", shown(t))),
    });
    let whole = expect.as_ref().map_or(1, |e| e.value);
    if let Some(max) = max.as_ref().filter(|m| m.value < whole) {
        noted.push((
            max.line,
            format!("members.max: {} is less than expect: write at least {whole}", max.value),
        ));
    }
    fields.finish(noted);
    v1::Members {
        start,
        join,
        expect: expect.map_or(0, |n| n.value),
        max: max.map_or(0, |n| n.value),
        attempts: attempts.map_or(0, |n| n.value),
        done_when: done_when.map(|d| d.value).unwrap_or_default(),
    }
}
