//! A walk over the files below a folder, in the order of their keys. Blocks.

use std::ops::ControlFlow;

use nix::errno::Errno;

use super::{
    directory::errno,
    folder::{Missing, OpenFolder},
    kept_names::{FirstNames, KeptNames, NameBounds},
    listing::ListQuery,
    store::{Entries, Entry, StoreError},
};
use crate::limits::{GATEWAY_KEY_DEPTH_MAX, GATEWAY_WALK_LEVEL_BYTES_MIN};

/// A folder on the way down, and its next names.
struct Level {
    folder: OpenFolder,
    /// The key of the folder. It is empty, or ends in a slash.
    key: String,
    names: FirstNames,
    /// The name that was taken last.
    last: String,
}

/// A function that counts visited entries. It is called with 1 before a folder is read, and then with the number of its entries. An
/// error ends the walk.
type GoOn<'a> = &'a dyn Fn(usize) -> Result<(), StoreError>;

/// The bounds of a walk.
#[derive(Clone, Copy)]
pub(super) struct WalkBounds<'a> {
    pub(super) go_on: GoOn<'a>,
    /// Bytes of the names that a walk keeps in memory at once.
    pub(super) name_bytes: usize,
}

impl WalkBounds<'_> {
    /// Returns the bounds of a folder at this depth. Each level takes half of the bytes that the levels above leave, and at least
    /// [`GATEWAY_WALK_LEVEL_BYTES_MIN`].
    fn of_level(&self, depth: usize, names_max: usize) -> NameBounds {
        let shift = u32::try_from(depth.saturating_add(1)).unwrap_or(u32::MAX);
        let bytes = self.name_bytes.checked_shr(shift).unwrap_or(0);
        NameBounds { names_max, bytes_max: bytes.max(GATEWAY_WALK_LEVEL_BYTES_MIN.min(self.name_bytes)) }
    }

    /// Calls `see` with each name in a folder, if the walk may go on. The folder counts as one more entry, so that empty folders
    /// count too.
    fn visit(
        &self,
        folder: &OpenFolder,
        see: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        (self.go_on)(1)?;
        let seen = folder.visit(see).map_err(|error| match errno(&error) {
            Some(Errno::E2BIG) => StoreError::TooManyEntries,
            _ => error.into(),
        })?;
        (self.go_on)(seen)
    }
}

impl Level {
    fn open(folder: OpenFolder, key: String) -> Self {
        let names = FirstNames { names: Vec::new().into_iter(), is_all: false };
        Level { folder, key, names, last: String::new() }
    }

    /// Returns the next name that may lead to an entry. If no kept name is left, reads the next names from the folder.
    fn next(
        &mut self,
        query: &ListQuery,
        walk: WalkBounds<'_>,
        bounds: NameBounds,
    ) -> Result<Option<String>, StoreError> {
        loop {
            if let Some(name) = self.names.names.next() {
                self.last.clone_from(&name);
                return Ok(Some(name));
            }
            if self.names.is_all {
                return Ok(None);
            }
            let (mut kept, mut key) = (KeptNames::new(bounds), self.key.clone());
            walk.visit(&self.folder, &mut |name| {
                key.truncate(self.key.len());
                key.push_str(name);
                if name > self.last.as_str() && may_lead_to(&key, query) {
                    kept.offer(name);
                }
                ControlFlow::Continue(())
            })?;
            self.names = kept.into_order();
        }
    }
}

/// Lists the entries below a folder, with keys relative to the folder. Lists at most one entry more than requested.
///
/// Keeps only as many names of each folder as it may need, and reads a folder again if they do not suffice.
pub(super) fn list(
    folder: OpenFolder,
    query: &ListQuery,
    walk: WalkBounds<'_>,
) -> Result<Entries, StoreError> {
    let by_folder = query.delimiter.as_deref() == Some("/");
    let most = query.max.saturating_add(1);
    let mut entries = Entries::default();
    let mut levels = vec![Level::open(folder, String::new())];
    while let Some(depth) = levels.len().checked_sub(1)
        && let Some(level) = levels.last_mut()
    {
        if entries.all.len() >= most {
            return Ok(entries);
        }
        // Most names are entries, so the first read keeps only as many names as the page still needs. If folders turn out to be
        // empty, the next read keeps as many names as fit.
        let is_first_look = level.last.is_empty();
        let need = if is_first_look { most.saturating_sub(entries.all.len()).max(1) } else { usize::MAX };
        let Some(name) = level.next(query, walk, walk.of_level(depth, need))? else {
            levels.pop();
            continue;
        };
        let key = format!("{}{name}", level.key);
        let Some(folder_name) = name.strip_suffix('/') else {
            // A file that was removed meanwhile is left out.
            if let Ok(info) = level.folder.info(&name) {
                entries.all.push(Entry::Object(key, info));
            }
            continue;
        };
        if key.matches('/').count() > GATEWAY_KEY_DEPTH_MAX {
            continue; // no key can name what is below
        }
        let Ok(inner) = level.folder.enter(folder_name, Missing::Fails) else { continue };
        let inner = Level::open(inner, key);
        if by_folder && inner.key.len() > query.prefix.len() {
            if has_file(&inner, walk, depth.saturating_add(1))? {
                entries.all.push(Entry::Prefix(inner.key));
            }
            continue;
        }
        levels.push(inner);
    }
    entries.is_complete = true;
    Ok(entries)
}

/// Whether a key may be in the listing. If the key is a folder, whether keys below the folder may be in the listing.
fn may_lead_to(key: &str, query: &ListQuery) -> bool {
    let is_folder = key.ends_with('/');
    let in_prefix = key.starts_with(&query.prefix) || is_folder && query.prefix.starts_with(key);
    // `after` is the last key that was listed. If it is below this folder, later keys of the folder may follow. If it is the folder
    // itself, and folders are listed as common prefixes, nothing of the folder follows.
    let is_over = query.after == key && query.delimiter.as_deref() == Some("/");
    let comes_after = key > query.after.as_str() || is_folder && query.after.starts_with(key) && !is_over;
    in_prefix && comes_after
}

/// Whether a key can name a file below this folder.
fn has_file(level: &Level, walk: WalkBounds<'_>, depth: usize) -> Result<bool, StoreError> {
    let Level { folder, key, .. } = level;
    let mut last = String::new();
    loop {
        let (mut kept, mut has_file) = (KeptNames::new(walk.of_level(depth, usize::MAX)), false);
        walk.visit(folder, &mut |name| {
            if !name.ends_with('/') {
                has_file = true;
                return ControlFlow::Break(());
            }
            if name > last.as_str() {
                kept.offer(name);
            }
            ControlFlow::Continue(())
        })?;
        if has_file {
            return Ok(true);
        }
        let FirstNames { names, is_all } = kept.into_order();
        for name in names {
            let inner_key = format!("{key}{name}");
            if inner_key.matches('/').count() <= GATEWAY_KEY_DEPTH_MAX
                && let Ok(inner) = folder.enter(name.trim_end_matches('/'), Missing::Fails)
                && self::has_file(&Level::open(inner, inner_key), walk, depth.saturating_add(1))?
            {
                return Ok(true);
            }
            last = name;
        }
        if is_all {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        gateway::{list_work::ListWork, store::FinalCheck},
        limits::GATEWAY_WALK_NAMES_BYTES,
        reason::{Reason, Refusal},
    };

    fn walked(root: &std::path::Path, query: &ListQuery, go_on: GoOn<'_>) -> Result<Vec<String>, StoreError> {
        let walk = WalkBounds { go_on, name_bytes: GATEWAY_WALK_NAMES_BYTES };
        let entries = list(OpenFolder::root(root).unwrap(), query, walk)?;
        Ok(entries.all.iter().map(|entry| entry.name().to_owned()).collect())
    }

    fn by_folder() -> ListQuery {
        ListQuery { delimiter: Some("/".into()), max: 1_000, ..ListQuery::default() }
    }

    // A listing ends with its access, in the middle of a folder tree.
    #[test]
    fn a_walk_ends_with_its_access() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..50 {
            std::fs::create_dir_all(root.path().join(format!("{n:02}/a/b"))).unwrap();
        }
        let looks = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = looks.clone();
        let look: FinalCheck =
            Box::new(move || match counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0..10 => Ok(()),
                _ => Err(Refusal::new(Reason::Revoked, "it was revoked")),
            });
        let work = ListWork::of(1_000, look);
        let ended = walked(root.path(), &by_folder(), &|entries| work.visit(entries));
        assert!(matches!(ended, Err(StoreError::Ended(_))), "{ended:?}");
        assert_eq!(looks.load(std::sync::atomic::Ordering::Relaxed), 11, "it stopped at once");
    }

    // The walks of one listing together visit a bounded number of entries.
    #[test]
    fn walks_of_one_listing_share_a_bound() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..10 {
            std::fs::write(root.path().join(n.to_string()), "").unwrap();
        }
        let work = ListWork::of(30, Box::new(|| Ok(())));
        let walk = || walked(root.path(), &by_folder(), &|entries| work.visit(entries));
        assert_eq!(walk().unwrap().len(), 10);
        assert_eq!(walk().unwrap().len(), 10);
        assert!(matches!(walk(), Err(StoreError::TooManyEntries)));
    }

    // A listing that may keep next to no names finds the same entries, by reading folders again.
    #[test]
    fn a_listing_with_little_memory_finds_the_same() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..40 {
            std::fs::create_dir_all(root.path().join(format!("empty-{n:02}/a"))).unwrap();
            std::fs::create_dir_all(root.path().join(format!("full-{n:02}/a"))).unwrap();
            std::fs::write(root.path().join(format!("full-{n:02}/a/file")), "").unwrap();
            std::fs::write(root.path().join(format!("full-{n:02}.txt")), "").unwrap();
        }
        let go_on = |_| Ok(());
        for delimiter in [None, Some("/".to_owned())] {
            for (max, after) in [(1_000, ""), (1, ""), (7, "full-03/a/file"), (1_000, "full-20.txt")] {
                let query = ListQuery {
                    delimiter: delimiter.clone(),
                    max,
                    after: after.into(),
                    ..ListQuery::default()
                };
                let listed = |name_bytes| {
                    let walk = WalkBounds { go_on: &go_on, name_bytes };
                    let entries = list(OpenFolder::root(root.path()).unwrap(), &query, walk).unwrap();
                    let names: Vec<String> = entries.all.iter().map(|e| e.name().to_owned()).collect();
                    (names, entries.is_complete)
                };
                let whole = listed(GATEWAY_WALK_NAMES_BYTES);
                assert!(!whole.0.is_empty() && whole.0.is_sorted(), "{whole:?}");
                assert_eq!(listed(1), whole, "{query:?}");
                assert_eq!(listed(300), whole, "{query:?}");
            }
        }
    }

    // Files that are too deep for a key are not searched. Each level on the way keeps an open folder.
    #[test]
    fn a_folder_is_searched_only_as_deep_as_keys_go() {
        let root = tempfile::tempdir().unwrap();
        let deep = |levels: usize| root.path().join("x/".repeat(levels));
        std::fs::create_dir_all(deep(GATEWAY_KEY_DEPTH_MAX + 100)).unwrap();
        let visited = Cell::new(0);
        let go_on = |_| {
            visited.set(visited.get() + 1);
            Ok(())
        };
        assert_eq!(walked(root.path(), &by_folder(), &go_on).unwrap(), [""; 0]);
        assert!(visited.get() <= 2 * (GATEWAY_KEY_DEPTH_MAX + 2), "{} looks", visited.get());
        std::fs::write(deep(GATEWAY_KEY_DEPTH_MAX).join("last"), "").unwrap();
        assert_eq!(walked(root.path(), &by_folder(), &go_on).unwrap(), ["x/"], "the deepest key is found");
    }
}
