//! Reads the requests in paths of the Hub, without I/O.

use crate::name::ResourceKind;

/// The path under which the API of the Hub is served. A bucket cannot have this name.
const HUB_PATH: &str = "/_hub/";

/// Whether a path belongs to the API of the Hub.
pub(in crate::gateway) fn is_hub_path(path: &str) -> bool {
    path.starts_with(HUB_PATH)
}

/// Returns the part of a path that the Hub's clients know.
pub(super) fn below(path: &str) -> &str {
    path.strip_prefix(HUB_PATH).unwrap_or_default()
}

/// A repository, as clients name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepositoryName {
    pub(super) kind: ResourceKind,
    /// The repository as `OWNER/NAME`.
    pub(super) id: String,
}

/// A request to the API of the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// A description of a repository, by default at its newest revision.
    Info { repository: RepositoryName, revision: Option<String> },
    /// The files and folders below a folder. `folder` is a path that ends in a slash, or an empty text for the root.
    Tree { repository: RepositoryName, revision: String, folder: String, is_recursive: bool },
    /// The bytes of a file.
    Resolve { repository: RepositoryName, revision: String, path: String },
    /// The revisions of a repository.
    Refs { repository: RepositoryName },
    /// The name of the caller.
    WhoAmI,
}

impl Question {
    /// Reads a path below [`HUB_PATH`], and the query. `None` if the Hub has no such path, or if the gateway does not
    /// support it.
    pub(super) fn read(path: &str, query: &str) -> Option<Self> {
        let parts = path.split('/').map(decoded).collect::<Option<Vec<String>>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["api", "whoami-v2"] => Some(Question::WhoAmI),
            ["api", kind, owner, name, rest @ ..] => {
                let kind = match *kind {
                    "models" => ResourceKind::Model,
                    "datasets" => ResourceKind::Dataset,
                    _ => return None,
                };
                Self::read_api(repository(kind, owner, name)?, rest, query)
            }
            ["datasets", owner, name, "resolve", revision, path @ ..] => {
                Self::resolve(repository(ResourceKind::Dataset, owner, name)?, revision, path)
            }
            [owner, name, "resolve", revision, path @ ..] => {
                Self::resolve(repository(ResourceKind::Model, owner, name)?, revision, path)
            }
            _ => None,
        }
    }

    fn read_api(repository: RepositoryName, rest: &[&str], query: &str) -> Option<Self> {
        match rest {
            [] => Some(Question::Info { repository, revision: None }),
            ["revision", revision] => {
                Some(Question::Info { repository, revision: Some((*revision).to_owned()) })
            }
            ["refs"] => Some(Question::Refs { repository }),
            ["tree", revision, folder @ ..] => {
                let folder =
                    folder.iter().filter(|part| !part.is_empty()).map(|part| format!("{part}/")).collect();
                Some(Question::Tree {
                    repository,
                    revision: (*revision).to_owned(),
                    folder,
                    is_recursive: is_true(query, "recursive"),
                })
            }
            _ => None,
        }
    }

    fn resolve(repository: RepositoryName, revision: &str, path: &[&str]) -> Option<Self> {
        if path.is_empty() {
            return None;
        }
        Some(Question::Resolve { repository, revision: revision.to_owned(), path: path.join("/") })
    }
}

fn repository(kind: ResourceKind, owner: &str, name: &str) -> Option<RepositoryName> {
    let is_name = |text: &str| !text.is_empty() && !text.contains(['/', '@', ':']);
    (is_name(owner) && is_name(name)).then(|| RepositoryName { kind, id: format!("{owner}/{name}") })
}

/// Whether a parameter says `true`. Older clients write `True`.
fn is_true(query: &str, name: &str) -> bool {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .any(|(n, v)| n == name && v.eq_ignore_ascii_case("true"))
}

/// Decodes the percent escapes of one segment, once. `None` if an escape is malformed, or if the bytes are not UTF-8.
fn decoded(segment: &str) -> Option<String> {
    let mut parts = segment.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let hex = part.get(..2).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> RepositoryName {
        RepositoryName { kind: ResourceKind::Model, id: "acme/base-7b".into() }
    }

    // The gateway supports exactly the paths that the Hub's clients use.
    #[test]
    fn each_path_of_the_hubs_clients_is_understood() {
        let read = |path: &str| Question::read(path, "recursive=True&expand=false");
        assert_eq!(
            read("api/models/acme/base-7b"),
            Some(Question::Info { repository: model(), revision: None })
        );
        let revision = Some("refs/pr/1".to_owned());
        assert_eq!(
            read("api/models/acme/base-7b/revision/refs%2Fpr%2F1"),
            Some(Question::Info { repository: model(), revision })
        );
        let tree = |folder: &str| Question::Tree {
            repository: RepositoryName { kind: ResourceKind::Dataset, id: "acme/tickets".into() },
            revision: "main".into(),
            folder: folder.into(),
            is_recursive: true,
        };
        assert_eq!(read("api/datasets/acme/tickets/tree/main"), Some(tree("")));
        assert_eq!(read("api/datasets/acme/tickets/tree/main/sub%20dir/x"), Some(tree("sub dir/x/")));
        let file = |path: &str| Question::Resolve {
            repository: model(),
            revision: "2026.10".into(),
            path: path.into(),
        };
        assert_eq!(
            read("acme/base-7b/resolve/2026.10/a/%C3%A4%20b%2Bc%231.json"),
            Some(file("a/ä b+c#1.json"))
        );
        assert_eq!(read("acme/base-7b/resolve/2026.10/%2e%2e/x"), Some(file("../x")), "the store refuses it");
        assert!(matches!(read("datasets/acme/tickets/resolve/v3/a"), Some(Question::Resolve { .. })));
        assert_eq!(read("api/whoami-v2"), Some(Question::WhoAmI));
        for other in [
            "",
            "api",
            "api/agent-harnesses",
            "api/models/acme",
            "api/spaces/a/b",
            "acme/base/resolve/main",
            "api/models/acme/b%zz",
            "api/models/acme/a%40b",
            "acme/base-7b/resolve/main/%ff",
            "api/models/a%2Fb/c",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
