use super::*;
use crate::{
    gateway::{directory::DirectoryStore, store::LocationStore},
    name::Pin,
};

/// Parts of hostile keys: separators, climbs, encodings, siblings, and names that some file systems treat specially.
const PIECES: [&str; 40] = [
    "/",
    "/",
    "/",
    "//",
    ".",
    "..",
    "../",
    "/..",
    "/../",
    "./",
    "ds",
    "ds/",
    "ds-secret",
    "ds-secret/",
    "d",
    "s",
    "DS/",
    "x",
    "a b",
    "%2e%2e",
    "%2F",
    "%00",
    "%252e%252e%252f",
    "..%2f",
    "\0",
    "\n",
    "\u{7f}",
    "\\",
    "..\\",
    ":",
    "é",
    "e\u{301}",
    "日本",
    "\u{202e}",
    "\u{ff0e}\u{ff0e}",
    "\u{2215}",
    "\u{feff}",
    ".leasehold-uploads",
    "leasehold",
    "~",
];

/// A small generator of numbers (xorshift): the same keys in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % most as u64).unwrap()
    }
}

fn view() -> TokenView {
    let stores = Stores::new([(
        "s3://acme-data/".to_owned(),
        Arc::new(LocationStore::Directory(DirectoryStore::new("/root".into()))),
    )]);
    let mount = |bucket: &str, prefix: &str| Mount {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        object: "dataset:acme/tickets@v3".parse().unwrap(),
        place: stores.place("s3://acme-data/ds/", &Pin::None),
    };
    let mounts = vec![mount("acme-data", "ds/"), mount(STABLE_BUCKET, "dataset/acme/tickets@v3/")];
    TokenView { catalog: Digest::ZERO, mounts }
}

/// Resolves `.` and `..` in a path, as a careless program would.
fn followed(path: &str) -> String {
    let mut at: Vec<&str> = Vec::new();
    for name in path.split(['/', '\\']) {
        match name {
            "" | "." => {}
            ".." => drop(at.pop()),
            name => at.push(name),
        }
    }
    format!("/{}", at.join("/"))
}

// Keys, prefixes and copy sources never lead out of the leased prefix. Each of a million generated keys is opened by
// its literal bytes or refused.
#[test]
fn a_million_keys_find_no_way_out_of_a_prefix() {
    let (view, mut numbers) = (view(), Numbers(0x9e37_79b9_7f4a_7c15));
    let (mut opened, mut climbing) = (0u32, 0u32);
    let mut key = String::new();
    for _ in 0..1_000_000 {
        key.clear();
        if numbers.below(4) > 0 {
            key.push_str("ds/");
        }
        for _ in 0..=numbers.below(6) {
            key.push_str(PIECES[numbers.below(PIECES.len())]);
        }
        climbing += u32::from(key.contains(".."));
        let found = view.find("acme-data", &key);
        assert_eq!(found.is_empty(), !key.as_bytes().starts_with(b"ds/"), "{key:?}");
        for (mount, rest) in found {
            let Ok(found) = mount.found(rest) else { continue };
            opened += 1;
            // The opened key is equal to the written key, letter by letter.
            let slash = if found.path.key.is_folder() { "/" } else { "" };
            assert_eq!(format!("{}{}{slash}", mount.prefix, found.path.key.as_str()), key);
            assert_eq!(found.path.folder, "ds/");
            let path = format!("/base/{}{}", found.path.folder, found.path.key.as_str());
            assert!(
                found
                    .path
                    .key
                    .as_str()
                    .split('/')
                    .all(|name| !matches!(name, "" | "." | "..") && !name.contains('\0')),
                "{key:?}"
            );
            // A backslash is a letter on this system, so only slashes are followed here.
            let careless = followed(&path.replace('\\', "_"));
            assert!(careless.starts_with("/base/ds/"), "{key:?} leads to {careless}");
        }
    }
    assert!(opened > 50_000 && climbing > 100_000, "{opened} {climbing}: the keys prove nothing");
}

// A sibling whose name begins with the leased name is not inside of it, in either bucket.
#[test]
fn a_prefix_ends_with_its_slash() {
    let view = view();
    for (bucket, key, inside) in [
        ("acme-data", "ds/x", true),
        ("acme-data", "ds/", true),
        ("acme-data", "ds", false),
        ("acme-data", "ds-secret/x", false),
        ("acme-data", "/ds/x", false),
        ("acme-data", "DS/x", false),
        ("leasehold", "dataset/acme/tickets@v3/x", true),
        ("leasehold", "dataset/acme/tickets@v30/x", false),
        ("leasehold", "dataset/acme/tickets/x", false),
        ("globex-data", "ds/x", false),
    ] {
        assert_eq!(!view.find(bucket, key).is_empty(), inside, "{bucket}/{key}");
    }
    assert!(view.mounts[0].found("").is_err(), "the folder itself is no object");
}
