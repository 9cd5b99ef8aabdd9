//! Pins: if the catalog pins a resource to a manifest, only the objects of the manifest are served, and only with the
//! same bytes.
//!
//! Before an object is read for the first time, the gateway reads the whole object and compares its SHA-256. It
//! remembers the entity tag of the compared object, and compares again if the tag changes. The last bytes of a transfer
//! are sent only if the tag has not changed meanwhile.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{BoxStream, try_unfold},
};
use ring::digest::{Context, SHA256};
use s3s::dto::{self, ETag, ETagCondition};
use tokio::task::spawn_blocking;

use super::{
    conditions::Conditions,
    key::{ObjectPath, STAGING, SubKey},
    list_work::ListWork,
    listing::ListQuery,
    manifest::{PinManifest, PinnedObject},
    store::{Entries, Entry, LocationStore, ObjectInfo, ObjectReading, StoreError},
};
use crate::{
    limits::{MANIFEST_BYTES_MAX, MANIFESTS_KEPT_MAX, PINNED_COMPARED_MAX, PINNED_TRIES},
    name::{Digest, Pin},
    plain,
    reason::{Reason, Refusal},
};

/// The manifests of a gateway, and the objects that were compared with them.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// The folder of the manifests, each in a file `SHA256.manifest`. `None` if data is not compared with its pin.
    folder: Option<PathBuf>,
    read: Mutex<HashMap<Digest, Arc<PinManifest>>>,
    compared: Arc<ComparedObjects>,
}

/// The compared objects: the manifest, the key and the entity tag.
#[derive(Debug, Default)]
struct ComparedObjects {
    whole: Mutex<HashSet<(Digest, String, String)>>,
    /// Locks that allow one comparison at a time for each key. So further requests for an object wait for the first
    /// comparison.
    turns: [tokio::sync::Mutex<()>; 16],
}

/// The manifest to which the catalog pins a resource, or the reason for which the manifest cannot be used.
#[derive(Clone, Debug)]
pub(super) struct PinnedTo {
    manifest: Result<Arc<PinManifest>, String>,
    digest: Digest,
    compared: Arc<ComparedObjects>,
}

impl Pins {
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Pins { folder, ..Pins::default() }
    }

    /// Returns the manifest for a resource with this pin. `None` if the resource is not compared.
    pub(super) fn of(&self, pin: &Pin) -> Option<PinnedTo> {
        let (Some(folder), Pin::Manifest(digest)) = (&self.folder, pin) else { return None };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = match read.get(digest) {
            Some(manifest) => Ok(manifest.clone()),
            None => read_manifest(folder, digest).map(Arc::new),
        };
        if let Ok(manifest) = &manifest
            && (read.len() < MANIFESTS_KEPT_MAX || read.contains_key(digest))
        {
            read.insert(*digest, manifest.clone());
        }
        if let Err(why) = &manifest {
            tracing::error!(
                why,
                "the manifest of a pinned resource cannot be used: the resource is not served"
            );
        }
        Some(PinnedTo { manifest, digest: *digest, compared: self.compared.clone() })
    }
}

/// Reads the manifest with this digest.
fn read_manifest(folder: &Path, digest: &Digest) -> Result<PinManifest, String> {
    let path = folder.join(file_name(digest));
    let shown = plain::path(&path);
    let mut text = String::new();
    let file = File::open(&path).map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
    let read = file.take(MANIFEST_BYTES_MAX.saturating_add(1)).read_to_string(&mut text);
    read.map_err(|error| format!("`{shown}` cannot be read: {error}"))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(format!("`{shown}` has more than {MANIFEST_BYTES_MAX} bytes"));
    }
    if Digest::of(text.as_bytes()) != *digest {
        return Err(format!("`{shown}` has another SHA-256 than its name says"));
    }
    PinManifest::parse(&text).map_err(|why| format!("`{shown}` is no manifest: {why}"))
}

/// Returns the name of a manifest's file.
pub fn file_name(digest: &Digest) -> String {
    let digest = digest.to_string();
    format!("{}.manifest", digest.strip_prefix("sha256:").unwrap_or(&digest))
}

/// Makes the manifest of a folder on this machine. Does not follow links, and leaves out files that a gateway does not
/// serve. Blocks.
///
/// # Errors
///
/// A file cannot be read, changes meanwhile, or cannot be in a manifest.
pub fn manifest_of_folder(root: &Path) -> Result<PinManifest, String> {
    let failed = |path: &Path, error: io::Error| format!("`{}` cannot be read: {error}", plain::path(path));
    let mut manifest = PinManifest::default();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| failed(&folder, e))? {
            let path = entry.map_err(|e| failed(&folder, e))?.path();
            let seen = fs::symlink_metadata(&path).map_err(|e| failed(&path, e))?;
            let name = path.strip_prefix(root).ok().and_then(Path::to_str);
            let name = name.ok_or_else(|| format!("`{}` has no valid name", plain::path(&path)))?;
            if seen.is_dir() && name != STAGING {
                folders.push(path);
            } else if seen.is_file() {
                let (size, sha256) = size_and_sha256(&path).map_err(|e| failed(&path, e))?;
                if size != seen.len() {
                    return Err(format!("`{}` changed while it was read", plain::path(&path)));
                }
                manifest.add(name, PinnedObject { size, sha256 })?;
            }
        }
    }
    Ok(manifest)
}

fn size_and_sha256(path: &Path) -> io::Result<(u64, Digest)> {
    let (mut file, mut digest, mut size) = (File::open(path)?, Context::new(&SHA256), 0_u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, Digest(digest.finish().as_ref().try_into().unwrap_or_default())));
        }
        size = size.saturating_add(read as u64);
        digest.update(buffer.get(..read).unwrap_or_default());
    }
}

impl PinnedTo {
    fn manifest(&self) -> Result<&Arc<PinManifest>, StoreError> {
        self.manifest.as_ref().map_err(|_| {
            let text = "this gateway does not have the manifest that the catalog pins";
            let refusal = Refusal::new(Reason::PinMismatch, text);
            StoreError::NotAsPinned(
                refusal.fix("the operator of the gateway must put the manifest into the folder that `manifests` in [gateway] names"),
            )
        })
    }

    /// Returns the size and digest that an object must have. An object that is not in the manifest does not exist.
    fn object(&self, key: &SubKey) -> Result<PinnedObject, StoreError> {
        self.manifest()?.object(key.as_str()).copied().ok_or(StoreError::NotFound)
    }

    /// Describes an object after its bytes were compared. So HEAD refuses an object exactly if GET would refuse it.
    pub(super) async fn head(
        &self,
        store: &Arc<LocationStore>,
        path: &ObjectPath,
    ) -> Result<ObjectInfo, StoreError> {
        let pinned = self.object(&path.key)?;
        let info = store.head(path).await.map_err(|error| missing(error, &path.key))?;
        check_size(&path.key, &pinned, &info)?;
        self.compare(store, path, pinned, &info).await?;
        Ok(info)
    }

    /// Opens an object after its bytes were compared.
    pub(super) async fn read(
        &self,
        store: &Arc<LocationStore>,
        path: &ObjectPath,
        range: Option<dto::Range>,
        conditions: &Conditions,
    ) -> Result<ObjectReading, StoreError> {
        for _ in 0..PINNED_TRIES {
            let info = self.head(store, path).await?;
            let reading = store.read(path, range, conditions).await?;
            if reading.info.e_tag == info.e_tag {
                let chunks = while_unchanged(reading.chunks, store.clone(), path.clone(), info.e_tag);
                return Ok(ObjectReading { chunks: chunks.boxed(), ..reading });
            }
        }
        Err(differs(&path.key, "it changes again and again"))
    }

    /// Compares the bytes of an object, unless they were compared before.
    async fn compare(
        &self,
        store: &Arc<LocationStore>,
        path: &ObjectPath,
        pinned: PinnedObject,
        info: &ObjectInfo,
    ) -> Result<(), StoreError> {
        let known = (self.digest, path.key.as_str().to_owned(), info.e_tag.clone());
        if self.compared.has(&known) {
            return Ok(());
        }
        let (compared, store, path) = (self.compared.clone(), store.clone(), path.clone());
        // If a client gives up, the comparison goes on, and the next request of the client finds the result.
        let comparing = tokio::spawn(async move {
            let [first, ..] = &compared.turns;
            let _turn = compared.turns.get(turn_of(&known.1)).unwrap_or(first).lock().await;
            if compared.has(&known) {
                return Ok(());
            }
            let sha256 = sha256_of(&store, &path, &known.2).await?;
            if sha256 != pinned.sha256 {
                return Err(differs(&path.key, &format!("its SHA-256 is {sha256}")));
            }
            compared.add(known);
            Ok(())
        });
        comparing.await.map_err(|_| StoreError::Unavailable("a comparison was broken off".to_owned()))?
    }

    /// Lists only the objects of the manifest.
    pub(super) async fn list(
        &self,
        store: &LocationStore,
        folder: &str,
        query: &ListQuery,
        work: &ListWork,
    ) -> Result<Entries, StoreError> {
        let manifest = self.manifest()?;
        let mut query = query.clone();
        loop {
            let mut entries = store.list(folder, &query, work).await?;
            let last = entries.all.last().map(|entry| match entry {
                Entry::Object(key, _) | Entry::Prefix(key) => key.clone(),
            });
            entries.all.retain(|entry| match entry {
                Entry::Object(key, _) => manifest.object(key).is_some(),
                Entry::Prefix(prefix) => manifest.has_below(prefix),
            });
            match last {
                Some(last) if entries.all.is_empty() && !entries.is_complete => query.after = last,
                _ => return Ok(entries),
            }
        }
    }
}

impl ComparedObjects {
    fn has(&self, known: &(Digest, String, String)) -> bool {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).contains(known)
    }

    fn add(&self, known: (Digest, String, String)) {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.len() >= PINNED_COMPARED_MAX {
            // The objects are compared again when they are used again.
            whole.clear();
        }
        whole.insert(known);
    }
}

fn turn_of(key: &str) -> usize {
    key.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte))) % 16
}

/// Returns the SHA-256 of an object, if it still has this entity tag.
async fn sha256_of(store: &LocationStore, path: &ObjectPath, e_tag: &str) -> Result<Digest, StoreError> {
    let unchanged = Conditions {
        if_match: Some(ETagCondition::ETag(ETag::Strong(e_tag.to_owned()))),
        ..Conditions::default()
    };
    let mut chunks = store.read(path, None, &unchanged).await?.chunks;
    let mut digest = Context::new(&SHA256);
    while let Some(chunk) = chunks.try_next().await? {
        // A megabyte takes a millisecond, which is long for a thread that serves other requests.
        let hashed = spawn_blocking(move || {
            digest.update(&chunk);
            digest
        });
        digest =
            hashed.await.map_err(|_| StoreError::Unavailable("a comparison was broken off".to_owned()))?;
    }
    Ok(Digest(digest.finish().as_ref().try_into().unwrap_or_default()))
}

/// Passes each chunk on when the next chunk has arrived. The last chunk waits until the object was checked again.
fn while_unchanged(
    chunks: BoxStream<'static, Result<Bytes, StoreError>>,
    store: Arc<LocationStore>,
    path: ObjectPath,
    e_tag: String,
) -> impl Stream<Item = Result<Bytes, StoreError>> {
    let state = (chunks, None::<Bytes>, store, path, e_tag);
    try_unfold(state, async |(mut chunks, mut held, store, path, e_tag)| {
        while let Some(next) = chunks.try_next().await? {
            if let Some(chunk) = held.replace(next) {
                return Ok(Some((chunk, (chunks, held, store, path, e_tag))));
            }
        }
        let Some(last) = held.take() else { return Ok(None) };
        let now = store.head(&path).await.map_err(|error| missing(error, &path.key))?;
        if now.e_tag != e_tag {
            return Err(differs(&path.key, "it changed while it was sent"));
        }
        Ok(Some((last, (chunks, None, store, path, e_tag))))
    })
}

fn check_size(key: &SubKey, pinned: &PinnedObject, info: &ObjectInfo) -> Result<(), StoreError> {
    if info.size == pinned.size {
        return Ok(());
    }
    Err(differs(key, &format!("it has {} bytes, and {} are pinned", info.size, pinned.size)))
}

/// Converts the error of an absent object: a missing pinned object differs from its pin.
fn missing(error: StoreError, key: &SubKey) -> StoreError {
    match error {
        StoreError::NotFound => differs(key, "it is gone"),
        other => other,
    }
}

fn differs(key: &SubKey, how: &str) -> StoreError {
    let shown = plain::value(key.as_str());
    tracing::error!(object = shown, how, "an object is not what the catalog pins");
    metrics::counter!("leasehold_gateway_refused_total", "reason" => Reason::PinMismatch.code()).increment(1);
    let refusal = Refusal::new(
        Reason::PinMismatch,
        format!("the object `{shown}` differs from the pin in the catalog: {how}"),
    );
    StoreError::NotAsPinned(
        refusal.fix(
            "the owner of the data must restore the object, or publish the changed data as another version",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{
        directory::DirectoryStore,
        stores::{Place, Stores},
    };

    struct Scene {
        data: tempfile::TempDir,
        manifests: tempfile::TempDir,
        digest: Digest,
    }

    impl Scene {
        /// A folder of two files, whose manifest is in the folder of the gateway.
        fn new() -> Self {
            let (data, manifests) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::create_dir_all(data.path().join("v3/train")).unwrap();
            fs::write(data.path().join("v3/train/part-0"), "0123456789").unwrap();
            fs::write(data.path().join("v3/readme"), "hello").unwrap();
            let manifest = manifest_of_folder(&data.path().join("v3")).unwrap();
            let digest = manifest.digest();
            fs::write(manifests.path().join(file_name(&digest)), manifest.text()).unwrap();
            Scene { data, manifests, digest }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.data.path().join("v3").join(name), text).unwrap();
        }

        fn place(&self) -> Place {
            let store = LocationStore::Directory(DirectoryStore::new(self.data.path().to_owned()));
            let stores = Stores::new([("s3://acme/".to_owned(), Arc::new(store))]);
            let stores = stores.with_manifests(Some(self.manifests.path().to_owned()));
            stores.place("s3://acme/v3/", &Pin::Manifest(self.digest)).unwrap()
        }
    }

    async fn read(place: &Place, key: &str) -> Result<String, String> {
        let path = ObjectPath { folder: place.folder.clone(), key: SubKey::parse(key).unwrap() };
        let pin = place.pin.as_ref().unwrap();
        let reading = pin.read(&place.store, &path, None, &Conditions::default()).await;
        let reading = reading.map_err(|e| e.to_string())?;
        let chunks: Vec<_> = reading.chunks.map(Result::unwrap).collect().await;
        Ok(String::from_utf8(chunks.concat()).unwrap())
    }

    fn work() -> ListWork {
        ListWork::of(1_000, Box::new(|| Ok(())))
    }

    async fn listed(place: &Place, query: ListQuery) -> Vec<String> {
        let entries = place.list(&ListQuery { max: 10, ..query }, &work()).await.unwrap();
        entries.all.into_iter().map(|(Entry::Object(name, _) | Entry::Prefix(name))| name).collect()
    }

    // Only the pinned objects are served, and only with the same bytes. The refusal names the object that differs.
    #[tokio::test]
    async fn only_the_pinned_bytes_are_served() {
        let scene = Scene::new();
        scene.write("extra", "x");
        let place = scene.place();
        assert_eq!(read(&place, "train/part-0").await.unwrap(), "0123456789");
        assert_eq!(listed(&place, ListQuery::default()).await, ["readme", "train/part-0"]);
        let folders = ListQuery { delimiter: Some("/".into()), ..ListQuery::default() };
        assert_eq!(listed(&place, folders).await, ["readme", "train/"]);
        assert_eq!(read(&place, "extra").await.unwrap_err(), "there is no such object");

        scene.write("train/part-0", "0123456780");
        let differs = read(&place, "train/part-0").await.unwrap_err();
        assert!(
            differs.contains("`train/part-0` differs from the pin in the catalog: its SHA-256 is sha256:"),
            "{differs}"
        );
        scene.write("readme", "hello!");
        let longer = read(&place, "readme").await.unwrap_err();
        assert!(
            longer.contains("`readme`") && longer.contains("it has 6 bytes, and 5 are pinned"),
            "{longer}"
        );
        fs::remove_file(scene.data.path().join("v3/readme")).unwrap();
        assert!(read(&place, "readme").await.unwrap_err().contains("it is gone"));
        scene.write("train/part-0", "0123456789");
        assert_eq!(read(&place, "train/part-0").await.unwrap(), "0123456789", "it is what it was");
    }

    // HEAD says what GET would say, also of an object that no one has read yet.
    #[tokio::test]
    async fn a_look_at_an_object_compares_its_bytes() {
        let scene = Scene::new();
        let place = scene.place();
        let path = ObjectPath { folder: place.folder.clone(), key: SubKey::parse("train/part-0").unwrap() };
        let head = async || place.pin.as_ref().unwrap().head(&place.store, &path).await;
        assert_eq!(head().await.unwrap().size, 10);
        scene.write("train/part-0", "0123456780");
        let differs = head().await.unwrap_err().to_string();
        assert!(differs.contains("its SHA-256 is sha256:"), "{differs}");
        assert_eq!(read(&place, "train/part-0").await.unwrap_err(), differs);
    }

    // A program can give a file the time and the length that it had.
    #[tokio::test]
    async fn a_change_that_hides_its_time_is_found() {
        let scene = Scene::new();
        let place = scene.place();
        assert_eq!(read(&place, "train/part-0").await.unwrap(), "0123456789");
        let file = File::options().write(true).open(scene.data.path().join("v3/train/part-0")).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"9876543210", 0).unwrap();
        file.set_modified(modified).unwrap();
        let differs = read(&place, "train/part-0").await.unwrap_err();
        assert!(differs.contains("its SHA-256 is"), "{differs}");
    }

    // The client has no whole object, because the last bytes are missing.
    #[tokio::test]
    async fn a_change_during_a_transfer_cuts_it() {
        let scene = Scene::new();
        let place = scene.place();
        let path = ObjectPath { folder: place.folder.clone(), key: SubKey::parse("train/part-0").unwrap() };
        let pin = place.pin.as_ref().unwrap();
        let reading = pin.read(&place.store, &path, None, &Conditions::default()).await.unwrap();
        scene.write("train/part-0", "9876543210");
        let chunks: Vec<_> = reading.chunks.collect().await;
        let cut = chunks.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(cut.contains("it changed while it was sent"), "{cut}");
    }

    // Without its manifest, or with another text in its place, a pinned resource is not served.
    #[tokio::test]
    async fn a_missing_manifest_serves_nothing() {
        let scene = Scene::new();
        let path = scene.manifests.path().join(file_name(&scene.digest));
        fs::write(&path, "leasehold manifest 1\n").unwrap();
        let refused = read(&scene.place(), "readme").await.unwrap_err();
        assert!(refused.contains("does not have the manifest"), "{refused}");
        fs::remove_file(&path).unwrap();
        let place = scene.place();
        assert!(read(&place, "readme").await.is_err());
        assert!(place.list(&ListQuery::default(), &work()).await.is_err());
    }
}
