//! The check that no entry gives access to the bytes of another tenant, or overwrites bytes that others read.

use std::collections::BTreeMap;

use super::{
    Audience,
    checks::{Findings, problem},
    file::{ParsedResource, TenantFile},
};
use crate::{name::SpiffeId, plain};

/// A resource and the file of its entry.
#[derive(Clone, Copy)]
struct LocatedResource<'c> {
    file: &'c TenantFile,
    entry: &'c ParsedResource,
}

impl<'c> LocatedResource<'c> {
    fn audience(self) -> &'c SpiffeId {
        &self.entry.resource.audience
    }

    /// Returns the bucket and folder, without the scheme. Programs see the buckets `s3://NAME`, `gs://NAME` and `az://NAME` as
    /// one bucket `NAME`.
    fn folder(self) -> &'c str {
        let location = self.entry.resource.location.as_str();
        location.split_once("://").map_or(location, |(_, rest)| rest)
    }

    fn is_inside(self, outer: Self) -> bool {
        self.audience() == outer.audience() && self.folder().starts_with(outer.folder())
    }

    /// Whether two resources may have bytes in common. Two resources of one tenant may, if both are only read or both
    /// are checkpoint lines.
    fn may_share_bytes(self, other: Self) -> bool {
        let is_line = |r: Self| r.entry.resource.checkpoint().is_some();
        self.file.tenant == other.file.tenant && is_line(self) == is_line(other)
    }
}

/// Finds pairs of resources of one audience that must not share bytes, although the location of one is inside the location of
/// the other. An audience opens every location with its own key, so it cannot see which tenant owns the bytes.
pub(super) fn check_locations(files: &[TenantFile], found: &mut Findings) {
    let audiences: BTreeMap<&SpiffeId, &Audience> =
        files.iter().flat_map(|f| &f.audiences).map(|a| (&a.audience.name, &a.audience)).collect();
    // An entry of a tenant that its audience does not serve is a mistake already, and must not make another file wrong.
    let is_served = |r: &LocatedResource<'_>| {
        audiences.get(r.audience()).is_some_and(|audience| audience.serves.contains(&r.file.tenant))
    };
    let mut all: Vec<LocatedResource<'_>> = files
        .iter()
        .flat_map(|file| file.resources.iter().map(move |entry| LocatedResource { file, entry }))
        .filter(is_served)
        .collect();
    // A folder comes directly before its content.
    all.sort_by_key(|r| (r.audience(), r.folder()));
    let mut around: Vec<LocatedResource<'_>> = Vec::new();
    for inner in all {
        while around.last().is_some_and(|outer| !inner.is_inside(*outer)) {
            around.pop();
        }
        // If all adjacent pairs may share bytes, all resources in the chain may share bytes.
        if let Some(outer) = around.last().filter(|outer| !inner.may_share_bytes(**outer)) {
            note(inner, *outer, found);
        }
        around.push(inner);
    }
}

fn note(inner: LocatedResource<'_>, outer: LocatedResource<'_>, found: &mut Findings) {
    let (first, second) = if inner.file.file < outer.file.file { (inner, outer) } else { (outer, inner) };
    let what = format!(
        "the location `{}` of {} overlaps with the location of {} at {}",
        plain::value(&second.entry.resource.location),
        second.entry.resource.name,
        first.entry.resource.name,
        first.entry.resource.declared
    );
    if first.file.tenant == second.file.tenant {
        let fix = "give the checkpoint line a folder that contains no dataset or model, and is inside none";
        found.problems.push(problem(second.file, second.entry.line, what, fix));
    } else {
        let fix = "give each tenant its own folder; to share data, use `shared_with`";
        found.conflict(problem(second.file, second.entry.line, what, fix), first.file);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::catalog::Catalog;

    const AUDIENCE: &str = "spiffe://a.example/gateway";

    fn entry(kind: &str, name: &str, location: &str) -> String {
        let facts = match kind {
            "dataset" => {
                "classification = \"internal\"\ndata_classes = []\nsource_trust = \"curated\"\npurposes = [\"p\"]\npin = \"none\"\n"
            }
            "checkpoint" => "model = \"model:acme/m@1\"\n",
            _ => {
                "tier = \"lab\"\nenvironment = \"development\"\nrisk = \"low\"\ntool_access = \"none\"\npin = \"none\"\n"
            }
        };
        format!(
            "[[{kind}]]\nname = \"{name}\"\nlocation = \"{location}\"\naudience = \"{AUDIENCE}\"\nowner = \"o@x\"\n{facts}"
        )
    }

    /// The mistakes of the files of two tenants whom one audience serves.
    fn mistakes(acme: &[String], beta: &[String]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let audience = format!(
            "[[audience]]\nname = \"{AUDIENCE}\"\nverifiers = [\"{AUDIENCE}\"]\nchecks = \"feed\"\npresenter = \"mtls\"\nserves = [\"acme\", \"beta\"]\n"
        );
        let acme = format!("[tenant.acme]\n{audience}{}", acme.concat());
        fs::write(dir.path().join("acme.toml"), acme).unwrap();
        fs::write(dir.path().join("beta.toml"), format!("[tenant.beta]\n{}", beta.concat())).unwrap();
        let found = Catalog::load(dir.path()).err();
        found.iter().flat_map(|e| e.iter().map(ToString::to_string)).collect()
    }

    // A tenant cannot get another tenant's bytes by an entry, with any scheme.
    #[test]
    fn locations_of_two_tenants_are_apart() {
        let acme = [entry("dataset", "d@v1", "s3://m/x/secret/")];
        for location in ["s3://m/", "s3://m/x/", "s3://m/x/secret/", "gs://m/x/secret/a/", "file://m/x/"] {
            let found = mistakes(&acme, &[entry("dataset", "d@v1", location)]);
            assert!(
                found.len() == 1 && found[0].contains("overlaps with the location of"),
                "{location}: {found:?}"
            );
        }
        for location in ["s3://m/x/secret-2/", "s3://m/y/", "s3://m2/x/secret/"] {
            assert_eq!(mistakes(&acme, &[entry("dataset", "d@v1", location)]), [""; 0], "{location}");
        }
    }

    // A job cannot write over a dataset of its tenant through a checkpoint line.
    #[test]
    fn a_checkpoint_line_is_apart_from_what_is_read() {
        let found = |line: &str, dataset: &str| {
            let model = entry("model", "m@1", "s3://models/m/");
            let line = entry("checkpoint", "c", line);
            mistakes(&[model, line, entry("dataset", "d@v1", dataset)], &[])
        };
        for (line, dataset) in
            [("s3://m/x/", "s3://m/x/d/"), ("s3://m/x/d/", "s3://m/x/"), ("s3://m/x/", "gs://m/x/")]
        {
            let found = found(line, dataset);
            assert!(
                found.len() == 1 && found[0].contains("overlaps with the location of"),
                "{line}: {found:?}"
            );
        }
        assert_eq!(found("s3://m/x/", "s3://m/y/"), [""; 0]);
    }

    // Datasets of one tenant may lie in each other.
    #[test]
    fn datasets_of_one_tenant_may_lie_in_each_other() {
        let both = [entry("dataset", "all@v1", "s3://m/"), entry("dataset", "part@v1", "s3://m/part/")];
        assert_eq!(mistakes(&both, &[]), [""; 0]);
    }

    // The folder for unfinished uploads is not a location.
    #[test]
    fn the_folder_of_uploads_is_not_a_location() {
        let found = mistakes(&[entry("dataset", "d@v1", "s3://m/.leasehold-uploads/")], &[]);
        assert!(found.len() == 1 && found[0].contains(".leasehold-uploads"), "{found:?}");
    }
}
