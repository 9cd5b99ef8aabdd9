//! Reads the job from its specification file, and makes the message for the daemon.

use std::{collections::HashMap, fs::File, io::Read, path::Path, time::Duration};

use super::{
    RunSettings,
    folder::{self, LocalFolder},
};
use crate::{
    limits::{
        ATTEMPTS_MAX, FILE_BYTES_MAX, JOB_DURATION_MAX, JOB_RESOURCES_MAX, LEASE_TTL_MAX, MEMBERS_MAX,
        NAME_BYTES_MAX, SPEC_LIST_MAX, SWEEP_JOBS_MAX, TEXT_BYTES_MAX, TTL_MIN,
    },
    name::{
        Digest, HumanName, ImageDigest, InstanceName, Method, Object, Pin, ResourceKind, ResourceName,
        SpiffePattern, TenantName,
    },
    plain,
    proto::v1,
    written::{Notes, Placed, Section, span},
};

const NOT_BUILT: &str = "is not built yet: remove it";

pub(super) fn read(
    root: &mut Section<'_>,
    folder: &Path,
    run: &mut RunSettings,
    notes: &mut Notes,
) -> v1::JobSpec {
    let name = root.need("name", "\"…\"", notes, job_name);
    let tenant = root.text("tenant", notes, |t| t.parse::<TenantName>().map(|t| t.to_string()));
    let purpose =
        root.need("purpose", "\"…\", one that every dataset allows", notes, |t| plain(t, NAME_BYTES_MAX));
    let why = root.text("why", notes, |t| plain(t, TEXT_BYTES_MAX));
    let ticket = root.text("ticket", notes, |t| plain(t, NAME_BYTES_MAX));
    let rollback_to = root.text("rollback_to", notes, to_go_back_to);
    let prompt_alternative = root.text("prompt_alternative", notes, |t| plain(t, TEXT_BYTES_MAX));
    let image = root.text("image", notes, |t| t.parse::<ImageDigest>().map(|image| image.to_string()));
    let max_duration = root.need("max_duration", "\"8h\", the hard end of all access", notes, |t| {
        span(t, TTL_MIN..=JOB_DURATION_MAX)
    });
    let ttl = root.text("credential_ttl", notes, |t| span(t, TTL_MIN..=LEASE_TTL_MAX));
    let acting_for = root.text("acting_for", notes, |t| {
        let name = t
            .strip_prefix("human:")
            .ok_or_else(|| format!("`{}` is not a person: write \"human:NAME\"", plain::value(t)))?;
        name.parse::<HumanName>().map(|h| format!("human:{h}")).map_err(|e| e.to_string())
    });
    let tune = root.section_if_there("tune", notes).map(|table| tuning(table, folder, notes));
    let sweep = root.section_if_there("sweep", notes).map(|table| param_sweep(table, notes));
    let mut pins = HashMap::new();
    let read = resources(root, "read", &mut pins, run, notes);
    let write = resources(root, "write", &mut pins, run, notes);
    if !root.has("read") && !root.has("write") && !root.is_not_a_table() {
        let what = "read is missing: write [[read]] resource = \"dataset:…\" or [[write]] resource = \"checkpoint:…\"";
        notes.problem(root.line(), what);
    }
    if read.len() + write.len() > JOB_RESOURCES_MAX {
        let n = read.len() + write.len();
        let what =
            format!("{n} resources: write at most {JOB_RESOURCES_MAX} in [[read]] and [[write]] together");
        notes.problem(root.line(), what);
    }
    let members = root.section_if_there("members", notes).map(|table| members(table, notes));
    v1::JobSpec {
        name: name.unwrap_or_default(),
        tenant: tenant.unwrap_or_default(),
        purpose: purpose.unwrap_or_default(),
        why: why.unwrap_or_default(),
        ticket: ticket.unwrap_or_default(),
        rollback_to: rollback_to.unwrap_or_default(),
        prompt_alternative: prompt_alternative.unwrap_or_default(),
        image: image.unwrap_or_default(),
        sweep,
        max_duration: max_duration.and_then(wire),
        tune,
        read,
        write,
        members,
        acting_for: acting_for.unwrap_or_default(),
        credential_ttl: ttl.and_then(wire),
        pins,
        drain: run.drain.and_then(wire),
    }
}

fn wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn job_name(text: &str) -> Result<String, String> {
    // The names of jobs and members have the same syntax.
    text.parse::<InstanceName>().map(|n| n.to_string()).map_err(|_| {
        format!(
            "`{}` is not a job name: write letters, digits, `.`, `_`, `-`, a letter or digit first, at most {NAME_BYTES_MAX} bytes",
            plain::value(text)
        )
    })
}

/// Text for people: not empty, not too long, on one line.
fn plain(text: &str, most: usize) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("is empty: write a text, or remove the key".to_owned());
    }
    if text.len() > most {
        return Err(format!("{} bytes: write at most {most}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err("contains a control character: write one plain line".to_owned());
    }
    Ok(text.to_owned())
}

fn tuning(mut table: Section<'_>, folder: &Path, notes: &mut Notes) -> v1::Tuning {
    let example = "\"lora\", or one of full, adapter, prompt-tuning, preference";
    let method = table.need("method", example, notes, |t| t.parse::<Method>().map(v1::Method::from));
    let params = table.text("params", notes, |t| {
        digest_of(&folder.join(t)).map_err(|e| format!("`{}` {e}", plain::value(t)))
    });
    let free_params = table.list("free_params", SPEC_LIST_MAX, notes, |t| plain(t, NAME_BYTES_MAX));
    let prompts = table.list("prompts", SPEC_LIST_MAX, notes, |t| plain(t, TEXT_BYTES_MAX));
    table.finish(notes);
    v1::Tuning {
        method: method.unwrap_or(v1::Method::Unspecified).into(),
        params_digest: params.map(|digest| digest.to_string()).unwrap_or_default(),
        free_params: values(free_params),
        prompts: values(prompts),
    }
}

fn param_sweep(mut table: Section<'_>, notes: &mut Notes) -> v1::ParamSweep {
    let jobs = table.count("jobs", 2..=SWEEP_JOBS_MAX, notes);
    if jobs.is_none() && !table.has("jobs") {
        let what = "sweep.jobs is missing: write how many jobs the sweep has";
        notes.problem(table.line(), what);
    }
    let values_found = table.list("values", SPEC_LIST_MAX, notes, |t| match t.split_once('=') {
        Some((name, _)) if !name.trim().is_empty() => plain(t, TEXT_BYTES_MAX),
        _ => Err(format!("`{}` is no value: write \"NAME=VALUE\"", plain::value(t))),
    });
    table.finish(notes);
    v1::ParamSweep { jobs: jobs.unwrap_or(0), values: values(values_found) }
}

fn values(list: Vec<Placed<String>>) -> Vec<String> {
    list.into_iter().map(|item| item.value).collect()
}

fn digest_of(path: &Path) -> Result<Digest, String> {
    let mut bytes = Vec::new();
    let file =
        File::open(path).map_err(|e| format!("cannot be read in the folder of the specification: {e}"))?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err(
            "is not a file: write the path of a file, relative to the folder of the specification".to_owned()
        );
    }
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is longer than {FILE_BYTES_MAX} bytes: parameters only, no data"));
    }
    Ok(Digest::of(&bytes))
}

fn resources(
    root: &mut Section<'_>,
    key: &'static str,
    pins: &mut HashMap<String, String>,
    run: &mut RunSettings,
    notes: &mut Notes,
) -> Vec<String> {
    let writing = key == "write";
    let example = if writing { "\"checkpoint:TENANT/NAME\"" } else { "\"dataset:TENANT/NAME@VERSION\"" };
    let mut out: Vec<String> = Vec::new();
    for mut table in root.list_of_sections(key, JOB_RESOURCES_MAX, notes) {
        let resource =
            table.need("resource", example, notes, |t| if writing { to_write(t) } else { to_read(t) });
        let pin = table.text("pin", notes, str::parse::<Pin>);
        if pin.is_some() && (writing || resource.as_ref().is_some_and(|resource| resource.job().is_some())) {
            table.wrong("pin", "checkpoints have no pin: remove it".to_owned(), notes);
        }
        table.refuse("as", NOT_BUILT, notes);
        let (own, other) = if writing { ("sync", "stage") } else { ("stage", "sync") };
        let wrong_table = if writing {
            "is for [[read]]: in [[write]], write sync"
        } else {
            "is for [[write]]: in [[read]], write stage"
        };
        table.refuse(other, wrong_table, notes);
        let path = table.text(own, notes, folder::path);
        if let (Some(resource), Some(path)) = (&resource, path) {
            let folder = LocalFolder { resource: resource.clone(), path };
            for known in [&run.stage, &run.sync] {
                folder::check_apart(&table, own, &folder, known, notes);
            }
            if writing { run.sync.push(folder) } else { run.stage.push(folder) }
        }
        if let Some(name) = resource.map(|resource| resource.to_string()) {
            if out.contains(&name) {
                table.wrong("resource", format!("{name} is listed twice: remove one"), notes);
            } else {
                if let Some(pin) = pin {
                    pins.insert(name.clone(), pin.to_string());
                }
                out.push(name);
            }
        }
        table.finish(notes);
    }
    out
}

fn to_read(text: &str) -> Result<Object, String> {
    let object: Object = text.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    let name = object.resource();
    match (name.kind(), name.version(), object.job()) {
        (ResourceKind::Checkpoint, _, Some(_)) | (_, Some(_), None) => Ok(object),
        (ResourceKind::Checkpoint, _, None) => Err(format!(
            "{name} is a checkpoint line: write it in [[write]], where it may be read back too; or {name}/JOB for the checkpoints of another job"
        )),
        (_, _, Some(_)) => Err(format!("{object} is not the folder of a checkpoint line")),
        (_, None, None) => Err(format!("{name} has no version: write {name}@VERSION")),
    }
}

fn to_go_back_to(text: &str) -> Result<String, String> {
    let name: ResourceName = text.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    match (name.kind(), name.version()) {
        (ResourceKind::Model, Some(_)) => Ok(name.to_string()),
        _ => Err(format!("{name} is not a version of a model: write \"model:TENANT/NAME@VERSION\"")),
    }
}

fn to_write(text: &str) -> Result<Object, String> {
    let name: ResourceName = text.parse().map_err(|e: crate::name::NameError| e.to_string())?;
    match name.kind() {
        ResourceKind::Checkpoint => Ok(name.into()),
        kind => {
            Err(format!("{name} is a {}, which no job writes: write checkpoint:TENANT/NAME", kind.as_str()))
        }
    }
}

fn members(mut table: Section<'_>, notes: &mut Notes) -> v1::Members {
    let pattern = |t: &str| t.parse::<SpiffePattern>().map(|p| p.to_string());
    let start = table.list("start", SPEC_LIST_MAX, notes, pattern);
    let join = table.list("join", SPEC_LIST_MAX, notes, pattern);
    let expect = table.count("expect", 1..=MEMBERS_MAX, notes);
    let max = table.count("max", 1..=MEMBERS_MAX, notes);
    let attempts = table.count("attempts", 1..=ATTEMPTS_MAX, notes);
    let done_when = table.text("done_when", notes, |t| match t.strip_prefix("instance:") {
        Some(instance) => {
            instance.parse::<InstanceName>().map(|i| format!("instance:{i}")).map_err(|e| e.to_string())
        }
        None if t == "all" || t == "any" => Ok(t.to_owned()),
        None => {
            Err(format!("`{}` is not known: write \"all\", \"any\" or \"instance:NAME\"", plain::value(t)))
        }
    });
    let least = expect.unwrap_or(1);
    if let Some(max) = max.filter(|max| *max < least) {
        table.wrong("max", format!("{max} is less than expect: write at least {least}"), notes);
    }
    table.finish(notes);
    v1::Members {
        start: values(start),
        join: values(join),
        expect: expect.unwrap_or(0),
        max: max.unwrap_or(0),
        attempts: attempts.unwrap_or(0),
        done_when: done_when.unwrap_or_default(),
    }
}
