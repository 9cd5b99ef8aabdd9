//! The repositories of a lease. Each leased model or dataset is a repository with its owner and name, and its versions
//! are the revisions.

use s3s::{S3ErrorCode, S3Result};

use super::path::RepositoryName;
use crate::{
    gateway::{
        caller::GatewayCaller,
        list_work::Listing,
        listing::ListQuery,
        live_access::LiveAccess,
        refusal::{failed, refused, unusable},
        store::{Entry, ObjectInfo},
        view::{Mount, Need, STABLE_BUCKET, UnusableKey},
    },
    limits::HUB_FILES_MAX,
    name::Digest,
    plain,
    reason::Reason,
    secret::sha256,
};

/// One leased version of a model or a dataset.
pub(super) struct LeasedVersion {
    /// The version of the resource.
    pub(super) version: String,
    /// The digest that clients use as a commit: 40 hexadecimal digits.
    pub(super) commit: String,
    pub(super) access: LiveAccess,
    pub(super) mount: Mount,
}

/// A file of a revision, by its path from the root.
pub(super) struct RepositoryFile {
    pub(super) path: String,
    pub(super) info: ObjectInfo,
}

/// Returns all leased versions of a repository, the newest last. A repository that is not leased gets the same answer
/// as an absent repository.
pub(super) fn revisions(caller: &GatewayCaller, name: &RepositoryName) -> S3Result<Vec<LeasedVersion>> {
    let mut all = Vec::new();
    let mut why = caller.session.refused.clone();
    for token in &caller.session.tokens {
        for mount in token.view.mounts_of(STABLE_BUCKET) {
            let resource = mount.object.resource();
            let is_named = resource.kind() == name.kind && id_of(resource.as_str()) == Some(name.id.as_str());
            let (true, Some(action), Some(version)) =
                (is_named, Need::Read.action(resource.kind()), resource.version())
            else {
                continue;
            };
            match LiveAccess::new(&token.access, caller.sessions.clone(), mount.object.clone(), action) {
                Ok(access) => all.push(LeasedVersion {
                    version: version.to_owned(),
                    commit: commit_of(resource.as_str()),
                    access,
                    mount: mount.clone(),
                }),
                Err(refusal) if refusal.reason == Reason::TokenScope => {}
                Err(refusal) => why = why.or(Some(refusal)),
            }
        }
    }
    if all.is_empty() {
        return Err(match why {
            Some(refusal) => refused(&refusal),
            None => failed(
                S3ErrorCode::NoSuchBucket,
                format!(
                    "the lease opens no {} `{}`: name it in the job file",
                    name.kind.as_str(),
                    plain::value(&name.id)
                ),
            ),
        });
    }
    all.sort_by(|a, b| a.version.cmp(&b.version));
    all.dedup_by(|a, b| a.version == b.version);
    Ok(all)
}

/// Returns the requested revision: a version, a commit, or `main`, which is the newest version of the lease.
pub(super) fn revision(
    caller: &GatewayCaller,
    name: &RepositoryName,
    wanted: Option<&str>,
) -> S3Result<LeasedVersion> {
    let mut all = revisions(caller, name)?;
    let at = match wanted {
        None | Some("main" | "refs/heads/main") => all.len().checked_sub(1),
        Some(text) => all.iter().position(|r| r.version == text || r.commit == text),
    };
    match at {
        Some(at) => Ok(all.swap_remove(at)),
        None => {
            let versions: Vec<&str> = all.iter().map(|r| r.version.as_str()).collect();
            let text = format!(
                "the lease opens no revision `{}` of `{}`: ask for {} or main",
                plain::value(wanted.unwrap_or_default()),
                plain::value(&name.id),
                versions.join(", ")
            );
            Err(failed(S3ErrorCode::NoSuchVersion, text))
        }
    }
}

/// Returns `OWNER/NAME` for `KIND:OWNER/NAME@VERSION`.
fn id_of(resource: &str) -> Option<&str> {
    resource.split_once(':')?.1.split('@').next()
}

/// Returns the digest of a version's name. It stands for a commit, because the name never changes.
fn commit_of(resource: &str) -> String {
    hex(&sha256(resource.as_bytes()))
}

/// Returns the digest that clients use for a file's content: 40 hexadecimal digits that change with the file.
pub(super) fn blob_of(info: &ObjectInfo) -> String {
    hex(&sha256(format!("{}:{}", info.e_tag, info.size).as_bytes()))
}

fn hex(digest: &[u8; 32]) -> String {
    let text = Digest(*digest).to_string();
    let digits = text.rsplit(':').next().unwrap_or_default();
    digits.chars().take(40).collect()
}

impl LeasedVersion {
    /// Returns the files whose paths begin with a prefix, in order.
    ///
    /// # Errors
    ///
    /// The store cannot list the files, or there are more than [`HUB_FILES_MAX`].
    pub(super) async fn files(&self, caller: &GatewayCaller, prefix: &str) -> S3Result<Vec<RepositoryFile>> {
        let listing = Listing::begin(caller)?;
        let work = listing.with(&self.access);
        let place = self.mount.place.clone().map_err(|fault| unusable(&UnusableKey::Store(fault), true))?;
        let mut query = ListQuery {
            prefix: prefix.to_owned(),
            delimiter: None,
            after: String::new(),
            // With this maximum, a directory is walked only once. An object store still returns smaller pages.
            max: HUB_FILES_MAX.saturating_add(1),
        };
        let mut files = Vec::new();
        loop {
            let entries = place.list(&query, &work).await?;
            let last = entries.all.iter().rev().find_map(|entry| match entry {
                Entry::Object(key, _) => Some(key.clone()),
                Entry::Prefix(_) => None,
            });
            for entry in entries.all {
                if let Entry::Object(path, info) = entry
                    && !path.ends_with('/')
                {
                    files.push(RepositoryFile { path, info });
                }
            }
            if files.len() > HUB_FILES_MAX {
                let text = format!("the repository has more than {HUB_FILES_MAX} files: read it with S3");
                return Err(failed(S3ErrorCode::InvalidRequest, text));
            }
            match last {
                Some(last) if !entries.is_complete => query.after = last,
                _ => return Ok(files),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A version has one commit that never changes, in the form that clients check.
    #[test]
    fn a_version_has_one_commit() {
        let commit = commit_of("model:acme/base-7b@2026.10");
        assert_eq!(commit, commit_of("model:acme/base-7b@2026.10"));
        assert_ne!(commit, commit_of("model:acme/base-7b@2026.11"));
        assert!(commit.len() == 40 && commit.bytes().all(|b| b.is_ascii_hexdigit()), "{commit}");
        assert_eq!(id_of("model:acme/base-7b@2026.10"), Some("acme/base-7b"));
    }
}
