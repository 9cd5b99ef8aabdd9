use std::{fs, path::PathBuf};

use tempfile::TempDir;

use crate::{
    catalog::Catalog,
    name::{ResourceName, SpiffeId},
};

const PLATFORM: &str = r#"
[tenant.platform]
[[claim]]
tenant = "acme"
match  = ["spiffe://acme.example/**"]
[[claim]]
tenant = "globex"
match  = ["spiffe://globex.example/**"]
"#;

/// A directory with the files of acme and of globex, with which acme shares a model, and the catalog in it.
struct Case {
    dir: TempDir,
    catalog: Catalog,
}

fn tenant(name: &str, more: &str) -> String {
    format!(
        r#"[tenant.{name}]
[[principal]]
match = "spiffe://{name}.example/job/*"
kind  = "workload"
[[audience]]
name      = "spiffe://{name}.example/files"
verifiers = ["spiffe://{name}.example/files"]
checks    = "feed"
presenter = "mtls"
serves    = ["acme", "globex"]
{more}"#
    )
}

fn model(name: &str, audience: &str, more: &str) -> String {
    format!(
        "[[model]]\nname = \"{name}\"\nlocation = \"s3://b/m/\"\naudience = \"spiffe://{audience}.example/files\"\n\
         pin = \"none\"\ntier = \"lab\"\nenvironment = \"development\"\nrisk = \"low\"\ntool_access = \"none\"\n\
         owner = \"o\"\n{more}\n"
    )
}

fn line(of: &str) -> String {
    format!(
        "[[checkpoint]]\nname = \"line\"\nmodel = \"{of}\"\nlocation = \"s3://b/c/\"\n\
         audience = \"spiffe://globex.example/files\"\nowner = \"o\"\n"
    )
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let acme = tenant("acme", &model("base@1", "acme", "shared_with = [\"globex\"]"));
        let globex = tenant("globex", &line("model:acme/base@1"));
        for (file, text) in
            [("acme.toml", acme.as_str()), ("globex.toml", &globex), ("platform.toml", PLATFORM)]
        {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let catalog = Catalog::load(dir.path()).unwrap();
        Case { dir, catalog }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.file(name), text).unwrap();
    }

    /// Reads like a daemon that starts, and returns the mistakes.
    fn start(&mut self) -> Vec<String> {
        self.catalog = Catalog::load_at_start(self.dir.path()).unwrap();
        self.said()
    }

    fn said(&self) -> Vec<String> {
        self.catalog.not_taken().iter().map(ToString::to_string).collect()
    }

    /// Reads again, and returns the mistakes.
    fn reload(&mut self) -> Vec<String> {
        self.catalog = self.catalog.reload(self.dir.path()).unwrap();
        self.said()
    }

    fn knows(&self, id: &str) -> bool {
        self.catalog.principal(&id.parse::<SpiffeId>().unwrap()).is_some()
    }

    fn has(&self, name: &str) -> bool {
        self.catalog.resource(&name.parse::<ResourceName>().unwrap()).is_some()
    }
}

const ACME_JOB: &str = "spiffe://acme.example/job/1";
const GLOBEX_JOB: &str = "spiffe://globex.example/job/1";

#[test]
fn a_tenant_that_names_anothers_identity_holds_no_other_back() {
    let theirs = "spiffe://globex.example/job/1";
    let audience = "[[audience]]\nname = \"spiffe://globex.example/files\"\nverifiers = []\nchecks = \"feed\"\npresenter = \"mtls\"\n";
    let principal = format!("[[principal]]\nmatch = \"{theirs}\"\nkind = \"launcher\"\n");
    let wide = "[[principal]]\nmatch = \"spiffe://globex.example/**\"\nkind = \"operator\"\n";
    for line in [principal.as_str(), wide, audience] {
        let mut case = Case::new();
        case.write("acme.toml", &tenant("acme", line));
        case.write("globex.toml", "[tenant.globex]\n");
        let said = case.reload();
        assert!(!said.is_empty() && said.iter().all(|f| f.starts_with("acme.toml")), "{said:?}");
        assert!(!case.knows(GLOBEX_JOB), "globex's removal waits for acme: {said:?}");
    }
}

#[test]
fn a_named_pipe_in_the_directory_blocks_no_reload() {
    let mut case = Case::new();
    fs::remove_file(case.file("acme.toml")).unwrap();
    nix::unistd::mkfifo(&case.file("acme.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    case.write("globex.toml", "[tenant.globex]\n");
    let said = case.reload();
    assert!(said.iter().any(|f| f.contains("is not a regular file")), "{said:?}");
    assert!(case.knows(ACME_JOB) && !case.knows(GLOBEX_JOB));
}

#[test]
fn a_tenant_that_fills_the_catalog_holds_no_other_back() {
    let mut case = Case::new();
    let entry =
        |n: usize| format!("[[principal]]\nmatch = \"spiffe://acme.example/n/{n}\"\nkind = \"workload\"\n");
    let many = |most: usize| (0..most).map(entry).collect::<String>();
    for most in [crate::limits::CATALOG_ENTRIES_PER_TENANT_MAX + 1, crate::limits::CATALOG_ENTRIES_MAX - 4] {
        case.write("acme.toml", &tenant("acme", &many(most)));
        case.write("globex.toml", "[tenant.globex]\n");
        let said = case.reload();
        assert!(said.iter().all(|f| f.starts_with("acme.toml")), "{said:?}");
        assert!(!said.is_empty() && case.knows(ACME_JOB) && !case.knows("spiffe://acme.example/n/1"));
        assert!(!case.knows(GLOBEX_JOB), "globex's removal waits for acme");
    }
}

#[test]
fn a_broken_file_stays_as_it_was_and_removals_in_others_apply() {
    let mut case = Case::new();
    case.write("globex.toml", "[tenant.globex\nthis is not TOML");
    case.write("acme.toml", "[tenant.acme]\n");
    let said = case.reload();
    assert!(said.iter().any(|f| f.starts_with("globex.toml:")), "{said:?}");
    assert!(!case.knows(ACME_JOB), "acme's removal waits for globex");
    assert!(case.knows(GLOBEX_JOB), "globex lost all by a typing error");
    // The model is gone with acme's file, and the entries that depend on it are left out.
    assert!(!case.has("model:acme/base@1") && !case.has("checkpoint:globex/line"), "{said:?}");
    assert!(said.iter().any(|f| f.contains("checkpoint:globex/line is left out")), "{said:?}");

    case.write("globex.toml", &tenant("globex", ""));
    assert_eq!(case.reload(), [""; 0]);
}

#[test]
fn a_share_that_is_taken_back_leaves_out_what_hangs_on_it() {
    let mut case = Case::new();
    case.write("acme.toml", &tenant("acme", &model("base@1", "acme", "")));
    let said = case.reload();
    assert!(case.has("model:acme/base@1") && !case.has("checkpoint:globex/line"), "{said:?}");
    assert!(case.knows(GLOBEX_JOB));
}

#[test]
fn a_missing_file_is_removed_and_an_unreadable_one_stays() {
    let mut case = Case::new();
    fs::remove_file(case.file("globex.toml")).unwrap();
    assert_eq!(case.reload(), [""; 0], "a tenant that left is no mistake of the others");
    assert!(!case.knows(GLOBEX_JOB) && case.knows(ACME_JOB));
    fs::write(case.file("acme.toml"), [0xff, 0xfe]).unwrap();
    assert_eq!(case.reload().len(), 1);
    assert!(case.knows(ACME_JOB));
}

#[test]
fn a_tenant_names_no_identity_that_the_platform_does_not_let_it() {
    let mut case = Case::new();
    let globex =
        tenant("globex", "[[principal]]\nmatch = \"spiffe://acme.example/ops/eve\"\nkind = \"operator\"\n");
    case.write("globex.toml", &globex);
    let said = case.reload();
    assert!(said.iter().any(|f| f.contains("tenant `globex` may not name")), "{said:?}");
    assert!(!case.knows("spiffe://acme.example/ops/eve"));
    let strict = Catalog::load(case.dir.path()).unwrap_err();
    assert!(strict.iter().all(|f| f.file == std::path::Path::new("globex.toml")), "{strict}");
    // It may not name it as a verifier or an audience either.
    for taken in
        ["name      = \"spiffe://globex.example/files\"", "verifiers = [\"spiffe://globex.example/files\"]"]
    {
        case.write("globex.toml", &tenant("globex", "").replace(taken, &taken.replace("globex", "acme")));
        assert!(Catalog::load(case.dir.path()).is_err(), "{taken}");
    }
}

#[test]
fn a_claim_that_is_taken_back_takes_its_identities_at_once() {
    let mut case = Case::new();
    let (less, _) = PLATFORM.split_once("[[claim]]\ntenant = \"globex\"").unwrap();
    case.write("platform.toml", less);
    let said = case.reload();
    assert!(case.knows(ACME_JOB) && !case.knows(GLOBEX_JOB), "{said:?}");
    case.write("globex.toml", &format!("{}\n# changed", tenant("globex", "")));
    assert!(case.reload().iter().all(|f| f.starts_with("globex.toml")));
    assert!(!case.knows(GLOBEX_JOB));
    let only_platform =
        tenant("acme", "[[claim]]\ntenant = \"acme\"\nmatch = [\"spiffe://acme.example/**\"]\n");
    case.write("acme.toml", &only_platform);
    assert!(case.reload().iter().any(|f| f.contains("only platform.toml")), "a tenant gave itself a claim");
}

#[test]
fn of_two_files_in_conflict_the_changed_one_waits() {
    let mut case = Case::new();
    // Without a platform file, every tenant may name all identities, and acme comes before globex.
    fs::remove_file(case.file("platform.toml")).unwrap();
    assert_eq!(case.reload(), [""; 0]);
    let taking = "[[principal]]\nmatch = \"spiffe://globex.example/job/*\"\nkind = \"workload\"\n";
    let acme = tenant("acme", &format!("{}{taking}", model("base@1", "acme", "shared_with = [\"globex\"]")));
    case.write("acme.toml", &acme);
    assert!(!case.reload().is_empty());
    let owner = &case.catalog.principal(&GLOBEX_JOB.parse().unwrap()).unwrap().tenant;
    assert_eq!(owner.as_str(), "globex", "it was there first");
}

#[test]
fn a_directory_that_cannot_be_read_changes_nothing() {
    let case = Case::new();
    assert!(case.catalog.reload(&case.file("nowhere")).is_err());
}

#[test]
fn a_withdrawal_holds_back_no_change_of_the_file_that_used_it() {
    let mut case = Case::new();
    // Both change at once: globex removes its workload, and acme stops sharing its model.
    let globex = |more: &str| tenant("globex", more).replace("/job/*", "/other/*");
    case.write("acme.toml", &tenant("acme", &model("base@1", "acme", "")));
    case.write("globex.toml", &globex(&line("model:acme/base@1")));
    let said = case.reload();
    assert!(!case.knows(GLOBEX_JOB) && !case.has("checkpoint:globex/line"), "{said:?}");
    let wanted = "model `model:acme/base@1` is not declared, or not shared with `globex`";
    assert!(said.len() == 1 && said.iter().all(|m| m.contains(wanted)), "{said:?}");
    // The message is the same for a model that no longer exists.
    case.write("acme.toml", &tenant("acme", ""));
    assert_eq!(case.reload(), said);
    // A name that is new in its file is its own mistake, and its file stays as it was.
    case.write("globex.toml", &tenant("globex", &line("model:acme/base@2")));
    let said = case.reload();
    assert!(said.iter().any(|m| m.contains("model:acme/base@2")), "{said:?}");
    assert!(!case.knows(GLOBEX_JOB), "{said:?}");
}

#[test]
fn a_withdrawn_audience_takes_no_more_than_what_it_served() {
    let mut case = Case::new();
    let served = model("own@1", "acme", "").replace("s3://b/m/", "s3://b/own/");
    case.write("globex.toml", &tenant("globex", &served));
    assert_eq!(case.reload(), [""; 0]);
    case.write("acme.toml", &tenant("acme", "").replace("\"acme\", \"globex\"", "\"acme\""));
    case.write("globex.toml", &tenant("globex", &served).replace("/job/*", "/other/*"));
    let said = case.reload();
    assert!(said.len() == 1 && said.iter().all(|m| m.contains("model:globex/own@1 is left out")), "{said:?}");
    assert!(!case.knows(GLOBEX_JOB) && case.knows("spiffe://globex.example/other/1"), "{said:?}");
}

#[test]
fn a_broken_platform_file_is_no_fault_of_a_tenant() {
    let mut case = Case::new();
    case.write("platform.toml", "[tenant.platform]\nthis is not TOML");
    case.write("globex.toml", "[tenant.globex]\n");
    let said = case.reload();
    assert!(said.iter().all(|m| m.starts_with("platform.toml")), "{said:?}");
    assert!(!case.knows(GLOBEX_JOB) && case.knows(ACME_JOB));
}

// ---------- at a start ----------

#[test]
fn a_start_leaves_out_the_broken_file_of_a_tenant() {
    let mut case = Case::new();
    let good = fs::read_to_string(case.file("acme.toml")).unwrap();
    case.write("platform.toml", &format!("{PLATFORM}{}", platforms_audience()));
    for broken in ["[tenant.acme\n".to_owned(), format!("{good}\nunknown = 1\n")] {
        case.write("acme.toml", &broken);
        assert!(Catalog::load(case.dir.path()).is_err(), "a check reports it");
        let said = case.start();
        assert!(said.iter().any(|m| m.starts_with("acme.toml:")), "{said:?}");
        assert!(said.iter().any(|m| m.contains("checkpoint:globex/line is left out")), "{said:?}");
        assert!(said.iter().all(|m| !m.starts_with("platform.toml")), "{said:?}");
        assert!(!case.knows(ACME_JOB) && case.knows(GLOBEX_JOB));
        assert_eq!(case.catalog.tenants().count(), 3, "globex is not the only tenant");
        // A reload does not change that, until the file is repaired.
        assert_eq!(case.reload(), said);
        assert!(!case.knows(ACME_JOB) && case.knows(GLOBEX_JOB));
        case.write("acme.toml", &good);
        assert_eq!(case.reload(), [""; 0]);
        assert!(case.knows(ACME_JOB) && case.has("checkpoint:globex/line"));
    }
}

fn platforms_audience() -> String {
    let audience =
        "name = \"spiffe://platform.example/files\"\nverifiers = [\"spiffe://platform.example/files\"]";
    format!(
        "[[audience]]\n{audience}\nchecks = \"feed\"\npresenter = \"mtls\"\nserves = [\"acme\", \"globex\"]\n"
    )
}

#[test]
fn a_start_needs_the_platforms_file() {
    let case = Case::new();
    let refused = || Catalog::load_at_start(case.dir.path()).map(drop).unwrap_err().to_string();
    case.write("platform.toml", &format!("{PLATFORM}[[principal]]\nkind = \"operator\"\n"));
    assert!(refused().contains("platform.toml:"));
    fs::write(case.file("platform.toml"), [0xff, 0xfe]).unwrap();
    assert!(refused().contains("platform.toml"));
    // A file without a tenant's name may be the platform's file, which says which identities each tenant may name.
    fs::rename(case.file("platform.toml"), case.file("Platform.toml")).unwrap();
    assert!(refused().contains("Platform.toml"));
    case.write("platform.toml", PLATFORM);
    let mut case = case;
    let said = case.start();
    assert!(said.iter().all(|m| m.starts_with("Platform.toml")) && said.len() == 1, "{said:?}");
}

#[test]
fn a_start_needs_one_good_file() {
    let case = Case::new();
    fs::remove_file(case.file("platform.toml")).unwrap();
    case.write("acme.toml", "[tenant.acme");
    case.write("globex.toml", "[tenant.globex");
    let said = Catalog::load_at_start(case.dir.path()).unwrap_err().to_string();
    assert!(said.contains("acme.toml") && said.contains("globex.toml"), "{said}");
    fs::write(case.file("globex.toml"), [0xff, 0xfe]).unwrap();
    assert!(Catalog::load_at_start(case.dir.path()).is_err());
}

// A reload that leaves out every file would take all access away.
#[test]
fn a_reload_needs_one_good_file() {
    let case = Case::new();
    for file in ["platform.toml", "acme.toml", "globex.toml"] {
        fs::remove_file(case.file(file)).unwrap();
    }
    case.write("other.toml", "[tenant.other");
    let said = case.catalog.reload(case.dir.path()).unwrap_err().to_string();
    assert!(said.contains("other.toml"), "{said}");
}

#[test]
fn a_start_takes_no_side_of_a_conflict() {
    let mut case = Case::new();
    // A reload keeps the entry that was there first. A start does not know which entry came first.
    fs::remove_file(case.file("platform.toml")).unwrap();
    let taking = "[[principal]]\nmatch = \"spiffe://globex.example/job/*\"\nkind = \"workload\"\n";
    case.write("acme.toml", &tenant("acme", taking));
    case.write(
        "third.toml",
        "[tenant.third]\n[[principal]]\nmatch = \"spiffe://third.example/a\"\nkind = \"workload\"\n",
    );
    let said = case.start();
    assert!(!said.is_empty() && !case.knows(GLOBEX_JOB) && !case.knows(ACME_JOB), "{said:?}");
    assert!(case.knows("spiffe://third.example/a"));
}

#[test]
fn at_a_start_the_platform_wins_a_conflict() {
    let mut case = Case::new();
    let operators = "[[principal]]\nmatch = \"spiffe://acme.example/job/*\"\nkind = \"operator\"\n";
    case.write("platform.toml", &format!("{PLATFORM}{operators}"));
    let said = case.start();
    assert!(case.knows(GLOBEX_JOB), "{said:?}");
    let owner = &case.catalog.principal(&ACME_JOB.parse().unwrap()).unwrap().tenant;
    assert_eq!(owner.as_str(), "platform");
}

#[test]
fn a_start_leaves_out_what_the_platform_does_not_claim() {
    let mut case = Case::new();
    let (less, _) = PLATFORM.split_once("[[claim]]\ntenant = \"globex\"").unwrap();
    let narrow = "[[claim]]\ntenant = \"globex\"\nmatch = [\"spiffe://globex.example/a/**\", \"spiffe://globex.example/files\"]\n";
    case.write("platform.toml", &format!("{less}{narrow}"));
    // The first entry disables a/x. It is removed because it is not claimed, so the second entry must not admit a/x.
    let entries = "[[principal]]\nmatch = \"spiffe://globex.example/*/x\"\nkind = \"workload\"\ndisabled = true\n\
                   [[principal]]\nmatch = \"spiffe://globex.example/a/*\"\nkind = \"workload\"\n\
                   [[principal]]\nmatch = \"spiffe://globex.example/a/b/c\"\nkind = \"workload\"\n";
    case.write("globex.toml", &tenant("globex", entries));
    let said = case.start();
    assert!(case.knows(ACME_JOB) && !case.knows(GLOBEX_JOB), "{said:?}");
    assert!(
        !case.knows("spiffe://globex.example/a/x") && case.knows("spiffe://globex.example/a/b/c"),
        "{said:?}"
    );
}

#[test]
fn a_tenant_without_a_file_is_no_reason_to_refuse_a_start() {
    let mut case = Case::new();
    fs::remove_file(case.file("globex.toml")).unwrap();
    let said = case.start();
    let wanted = ["`serves` names tenant `globex`", "`shared_with` names tenant `globex`"];
    assert!(wanted.iter().all(|w| said.iter().any(|m| m.contains(w))), "{said:?}");
    assert!(case.knows(ACME_JOB) && case.has("model:acme/base@1"));
}
