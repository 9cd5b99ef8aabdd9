use std::{fs, time::Duration};

use super::*;

const GOOD: &str = r#"
name         = "support-lora"
tenant       = "acme"
purpose      = "support-tuning"
why          = "weekly refresh"
ticket       = "CHG-1412"
rollback_to  = "model:acme/base-7b@2026.09"
prompt_alternative = "the longer prompt doubled the latency"
image        = "sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
max_duration = "8d"
credential_ttl = "5m"
acting_for   = "human:ada"

[tune]
method      = "lora"
params      = "axolotl.yaml"
free_params = ["learning_rate", "seed"]
prompts     = ["prompts:/support-sys/12"]

[[read]]
resource = "dataset:acme/tickets@v3"
pin = "none"

[[read]]
resource = "model:acme/base-7b@2026.10"
stage    = "/scratch/base"

[[write]]
resource = "checkpoint:acme/support-lora"
sync     = "out"

[members]
start = ["spiffe://hpc.acme/slurm/ml-support/*"]
join  = ["spiffe://hpc.acme/slurm/ml-support/*"]
expect = 8
max    = 8
attempts = 20
done_when = "all"

[run]
drain     = "120s"
drain_signal = "USR1"
on_revoke = "kill"
on_away   = "hold"
hold_max  = "8m"
rejoin    = "30m"
grace     = "3s"
keep_env  = ["AWS_PROFILE"]
scrub     = ["WANDB_API_KEY"]
"#;

/// Returns the mistakes in a TOML text, as `LINE: what`.
fn wrong(text: &str) -> Vec<String> {
    match RunSpec::read(Path::new("job.toml"), text, false) {
        Ok(_) => Vec::new(),
        Err(e) => e.problems().iter().map(|p| format!("{}: {}", p.line, p.what)).collect(),
    }
}

/// Returns the mistakes in a specification that has a minimal text of three lines, and more text from line 4 on.
fn with(more: &str) -> Vec<String> {
    wrong(&format!(
        "name = \"a\"\npurpose = \"p\"\nmax_duration = \"1h\"\n{more}\n[[write]]\nresource = \"checkpoint:acme/a\"\n"
    ))
}

#[test]
fn a_complete_specification_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.toml");
    fs::write(&path, GOOD).unwrap();
    fs::write(folder.path().join("axolotl.yaml"), "lr: 1e-4\n").unwrap();
    let spec = RunSpec::load(&path).unwrap();
    let job = &spec.job;
    assert_eq!(
        (job.name.as_str(), job.tenant.as_str(), job.acting_for.as_str()),
        ("support-lora", "acme", "human:ada")
    );
    assert_eq!(job.max_duration.unwrap().seconds, 8 * 24 * 3600);
    assert_eq!((job.credential_ttl.unwrap().seconds, job.drain.unwrap().seconds), (300, 120));
    assert_eq!(job.read, ["dataset:acme/tickets@v3", "model:acme/base-7b@2026.10"]);
    assert_eq!(job.write, ["checkpoint:acme/support-lora"]);
    assert_eq!((job.ticket.as_str(), job.rollback_to.as_str()), ("CHG-1412", "model:acme/base-7b@2026.09"));
    assert!(job.prompt_alternative.contains("latency"));
    assert_eq!(job.image, format!("sha256:{}", "0a".repeat(32)));
    assert_eq!(job.pins.get("dataset:acme/tickets@v3").map(String::as_str), Some("none"));
    assert_eq!(job.pins.len(), 1);
    let tune = job.tune.as_ref().unwrap();
    assert_eq!(tune.method(), v1::Method::Lora);
    assert_eq!(tune.params_digest, crate::name::Digest::of(b"lr: 1e-4\n").to_string());
    let members = job.members.as_ref().unwrap();
    assert_eq!((members.expect, members.max, members.attempts), (8, 8, 20));
    let run = RunSettings {
        on_revoke: OnRevoke::Kill,
        grace: Duration::from_secs(3),
        drain: Some(Duration::from_secs(120)),
        drain_signal: Some(nix::sys::signal::Signal::SIGUSR1),
        rejoin: Duration::from_secs(1800),
        hold_max: Duration::from_secs(480),
        keep_env: vec!["AWS_PROFILE".into()],
        scrub: vec!["WANDB_API_KEY".into()],
        stage: vec![local_folder("model:acme/base-7b@2026.10", "/scratch/base")],
        sync: vec![local_folder("checkpoint:acme/support-lora", "out")],
    };
    assert_eq!(spec.run, run);
}

fn local_folder(resource: &str, path: &str) -> LocalFolder {
    LocalFolder { resource: resource.parse().unwrap(), path: path.into() }
}

// Each folder is in the table of its direction, and no folder is inside another.
#[test]
fn folders_are_apart_and_in_their_tables() {
    let read = |keys: &str| with(&format!("[[read]]\nresource = \"dataset:acme/x@1\"\n{keys}"));
    assert_eq!(read("stage = \"/scratch/x\""), Vec::<String>::new());
    for (keys, line, what) in [
        ("sync = \"/out\"", 6, "sync is for [[write]]: in [[read]], write stage"),
        ("stage = \"/\"", 6, "`/` is no folder for one resource"),
        ("stage = \"\"", 6, "is not a folder"),
        ("stage = \"a/../b\"", 6, "contains `..`"),
        ("as = \"x\"", 6, "is not built yet"),
        (
            "stage = \"/s/x\"\n[[read]]\nresource = \"dataset:acme/y@1\"\nstage = \"/s/x/y\"",
            9,
            "`/s/x/y` overlaps `/s/x`, the folder of dataset:acme/x@1",
        ),
    ] {
        let found = read(keys);
        let expected = format!("{line}: ");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected) && found[0].contains(what),
            "{keys}: {found:?}"
        );
    }
}

#[test]
fn json_says_the_same_as_toml() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("axolotl.yaml"), "x").unwrap();
    let value: serde_json::Value = toml::from_str(GOOD).unwrap();
    for name in ["job.json", "job", "job.toml"] {
        let path = folder.path().join(name);
        let text =
            if name == "job.toml" { GOOD.to_owned() } else { serde_json::to_string_pretty(&value).unwrap() };
        fs::write(&path, text).unwrap();
    }
    let toml = RunSpec::load(&folder.path().join("job.toml")).unwrap();
    assert_eq!(RunSpec::load(&folder.path().join("job.json")).unwrap(), toml);
    assert_eq!(RunSpec::load(&folder.path().join("job")).unwrap(), toml);
}

#[test]
fn a_minimal_specification_takes_the_defaults() {
    assert_eq!(with(""), Vec::<String>::new());
    let text =
        "name = \"a\"\npurpose = \"p\"\nmax_duration = \"1h\"\n[[write]]\nresource = \"checkpoint:acme/a\"";
    let spec = RunSpec::read(Path::new("job.toml"), text, false).unwrap();
    assert_eq!(spec.run, RunSettings::default());
    assert_eq!((spec.job.tune, spec.job.members, spec.job.drain), (None, None, None));
}

#[test]
fn a_missing_key_is_reported_with_what_to_write() {
    assert_eq!(
        wrong(""),
        [
            "1: name is missing: write name = \"…\"",
            "1: purpose is missing: write purpose = \"…\", one that every dataset allows",
            "1: max_duration is missing: write max_duration = \"8h\", the hard end of all access",
            "1: read is missing: write [[read]] resource = \"dataset:…\" or [[write]] resource = \"checkpoint:…\"",
        ]
    );
}

#[test]
fn all_mistakes_are_reported_at_once_in_order() {
    let text = "name = \"a b\"\nnmae = 1\npurpose = 7\nmax_duration = \"100y\"\n[[read]]\nresource = \"dataset:acme/../x@v1\"\n[run]\non_revoke = \"maybe\"\n";
    let lines: Vec<_> = wrong(text).iter().map(|l| l.split(':').next().unwrap().to_owned()).collect();
    assert_eq!(lines, ["1", "2", "3", "4", "6", "8"]);
    let all = RunSpec::read(Path::new("dir/job.toml"), text, false).unwrap_err();
    assert_eq!(all.to_string().lines().count(), 6);
    assert!(all.to_string().lines().all(|l| l.starts_with("dir/job.toml:")), "{all}");
}

#[test]
fn each_mistake_is_reported_with_what_to_write() {
    for (more, reported) in [
        ("colour = 1", "4: colour is not a key: write one of run, name, tenant"),
        ("tenant = \"Acme\"", "4: tenant: `Acme` is not a tenant name"),
        ("why = \"\"", "4: why: is empty: write a text, or remove the key"),
        ("why = \"a\\u0007\"", "4: why: contains a control character"),
        ("credential_ttl = \"0s\"", "4: credential_ttl: `0s` is out of bounds: write 1s to 15m"),
        ("credential_ttl = \"100y\"", "4: credential_ttl: `100y` is out of bounds"),
        ("acting_for = \"ada\"", "4: acting_for: `ada` is not a person: write \"human:NAME\""),
        ("[tune]", "4: tune.method is missing: write method = \"lora\""),
        ("[tune]\nmethod = \"qlora\"", "5: tune.method: `qlora` is not a method"),
        ("[tune]\nmethod = \"full\"\nparams = \"gone.yaml\"", "6: tune.params: `gone.yaml` cannot be read"),
        ("[tune]\nmethod = \"full\"\nparams = \"/\"", "6: tune.params: `/` is not a file"),
        (
            "[tune]\nmethod = \"full\"\nfree_params = [\"a\",\n3]",
            "7: tune.free_params: this is a whole number: write a text",
        ),
        ("tune = 3", "4: tune: this is a whole number: write a table"),
        ("[[read]]\npin = \"none\"", "4: read.resource is missing: write resource = \"dataset:"),
        (
            "[[read]]\nresource = \"dataset:acme/t\"",
            "5: read.resource: dataset:acme/t has no version: write dataset:acme/t@VERSION",
        ),
        (
            "[[read]]\nresource = \"checkpoint:acme/t\"",
            "5: read.resource: checkpoint:acme/t is a checkpoint line: write it in [[write]]",
        ),
        (
            "[[read]]\nresource = \"dataset:acme/t@v1/j-00000000000000000000000001\"",
            "5: read.resource: dataset:acme/t@v1/j-00000000000000000000000001 is not the folder of a checkpoint line",
        ),
        (
            "[[read]]\nresource = \"checkpoint:acme/t/j-00000000000000000000000001\"\npin = \"none\"",
            "6: read.pin: checkpoints have no pin: remove it",
        ),
        ("[[write]]\nresource = \"checkpoint:acme/t/j-00000000000000000000000001\"", "5: write.resource:"),
        (
            "[[write]]\nresource = \"checkpoint:acme/t\"\npin = \"none\"",
            "6: write.pin: checkpoints have no pin: remove it",
        ),
        (
            "[[write]]\nresource = \"dataset:acme/t@v1\"",
            "5: write.resource: dataset:acme/t@v1 is a dataset, which no job writes",
        ),
        ("[[read]]\nresource = \"dataset:acme/t@v1\"\npin = \"main\"", "6: read.pin: `main` is not a pin"),
        (
            "[[read]]\nresource = \"dataset:acme/t@v1\"\n[[read]]\nresource = \"dataset:acme/t@v1\"",
            "7: read.resource: dataset:acme/t@v1 is listed twice: remove one",
        ),
        ("read = \"dataset:acme/t@v1\"", "4: read: this is a text: write [[read]]"),
        ("read = [\"dataset:acme/t@v1\"]", "4: read: this is a text: write [[read]] above each entry"),
        (
            "[members]\njoin = [\"spiffe://td/a*\"]",
            "5: members.join: `spiffe://td/a*` is not a SPIFFE ID pattern",
        ),
        (
            "[members]\nexpect = 0",
            "5: members.expect: `0` is out of bounds: write a whole number from 1 to 10000",
        ),
        ("[members]\nexpect = 2.5", "5: members.expect: this is a number that is not whole"),
        ("[members]\nexpect = 4\nmax = 2", "6: members.max: 2 is less than expect: write at least 4"),
        (
            "[members]\ndone_when = \"some\"",
            "5: members.done_when: `some` is not known: write \"all\", \"any\" or \"instance:NAME\"",
        ),
        ("[run]\ndrain = \"3m\"", "5: run.drain: `3m` is out of bounds: write 1s to 2m"),
        (
            "[run]\ndrain_signal = \"KILL\"",
            "5: run.drain_signal: `KILL` is not known: write one of TERM, INT, HUP, QUIT, USR1, USR2",
        ),
        ("[run]\ngrace = \"soon\"", "5: run.grace: `soon` is not a span of time: write"),
        ("[run]\nkeep_env = [\"AWS_*\"]", "5: run.keep_env: `AWS_*` is not the name of a variable"),
        ("[run]\nscrub = [\"A=b\"]", "5: run.scrub: `A=b` is not the name of a variable"),
        ("[run]\nkeep_env = [\"A\"]\nscrub = [\"A\"]", "6: run.scrub: `A` is in keep_env too"),
        ("[run]\non_exit = 1", "5: run.on_exit is not a key: write one of on_revoke"),
    ] {
        let all = with(more);
        assert_eq!(all.len(), 1, "{more}: {all:?}");
        assert!(all[0].starts_with(reported), "{more}: {all:?}");
    }
}

#[test]
fn keys_for_later_features_are_refused_by_name() {
    for (more, reported) in [
        (
            "[[read]]\nresource = \"dataset:acme/t@v1\"\nas = \"s3://a/b/\"",
            "6: read.as is not built yet: remove it",
        ),
        ("[run]\non_away = \"fail\"", "5: run.on_away: `fail` is not known: write \"hold\", or leave it out"),
        ("[run]\nhold_max = \"9m\"", "5: run.hold_max: `9m` is out of bounds: write 0s to 8m"),
    ] {
        assert_eq!(with(more), [reported], "{more}");
    }
}

#[test]
fn json_problems_have_their_lines_too() {
    let text = "{\n\"name\": \"a\",\n\"purpose\": \"p\",\n\"max_duration\": \"0s\",\n\"write\": [\n{\"resource\": \"x\"},\n{\"resource\": \"checkpoint:acme/a\", \"sync\": 1}]}";
    let all = RunSpec::read(Path::new("job.json"), text, true).unwrap_err();
    assert_eq!(all.problems().iter().map(|p| p.line).collect::<Vec<_>>(), [4, 6, 7], "{all}");
    let broken = RunSpec::read(Path::new("job.json"), "{\n\"name\" 1}", true).unwrap_err();
    assert_eq!(broken.to_string(), "job.json:2: it is not JSON: expected `:`");
}

#[test]
fn too_many_resources_are_refused() {
    let many: String = (0..65).map(|i| format!("[[read]]\nresource = \"dataset:acme/d{i}@v1\"\n")).collect();
    assert_eq!(with(&many), ["4: read: 65 entries: write at most 64"]);
    let many: String = (0..64).map(|i| format!("[[read]]\nresource = \"dataset:acme/d{i}@v1\"\n")).collect();
    assert_eq!(with(&many), ["1: 65 resources: write at most 64 in [[read]] and [[write]] together"]);
}

#[test]
fn a_file_that_cannot_be_used_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let error = |name: &str| RunSpec::load(&folder.path().join(name)).unwrap_err().to_string();
    assert!(error("gone.toml").contains("gone.toml: cannot be read"), "{}", error("gone.toml"));
    fs::write(folder.path().join("big.toml"), " ".repeat(MESSAGE_BYTES_MAX + 1)).unwrap();
    assert!(error("big.toml").contains("is longer than"));
    fs::write(folder.path().join("latin.toml"), b"name = \"\xe9\"").unwrap();
    assert!(error("latin.toml").contains("is not UTF-8"));
    assert!(RunSpec::load(folder.path()).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn no_text_makes_the_reader_panic() {
    proptest::proptest!(|(text in "\\PC{0,200}", json: bool)| {
        let _ = RunSpec::read(Path::new("job"), &text, json);
    });
    proptest::proptest!(|(cut in 0usize..GOOD.len(), json: bool)| {
        let text: String = GOOD.chars().take(cut).collect();
        assert!(RunSpec::read(Path::new("/nowhere/job"), &text, json).is_err());
    });
}

#[test]
fn a_sweep_is_read_from_toml_and_json() {
    let sweep = |jobs, values: &[&str]| {
        Some(v1::ParamSweep { jobs, values: values.iter().map(ToString::to_string).collect() })
    };
    let tune = "[tune]\nmethod = \"lora\"\nfree_params = [\"seed\"]\n";
    let text = "name = \"a\"\npurpose = \"p\"\nmax_duration = \"1h\"\nread = [{ resource = \"dataset:acme/a@1\" }]\n";
    let text = format!("{text}{tune}[sweep]\njobs = 8\nvalues = [\"seed=7\"]\n");
    let read = RunSpec::read(Path::new("job.toml"), &text, false).unwrap();
    assert_eq!(read.job.sweep, sweep(8, &["seed=7"]));
    let value: serde_json::Value = toml::from_str(&text).unwrap();
    let json = value.to_string();
    assert_eq!(RunSpec::read(Path::new("job.json"), &json, true).unwrap().job, read.job);
    for (more, reported) in [
        ("[sweep]\nmax_jobs = 3", "sweep.max_jobs is not a key"),
        ("[sweep]\nvalues = [\"seed=7\"]", "sweep.jobs is missing"),
        ("[sweep]\njobs = 1", "sweep.jobs: `1` is out of bounds"),
        ("[sweep]\njobs = 2\nvalues = [\"seed\"]", "sweep.values: `seed` is no value"),
    ] {
        let all = with(more);
        assert!(all.iter().any(|problem| problem.contains(reported)), "{more}: {all:?}");
    }
}
