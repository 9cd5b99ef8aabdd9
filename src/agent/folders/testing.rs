//! An object store for tests. Its downloads fail after 1 MiB.

use std::{fmt, ops::Range};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory,
    path::Path,
};

/// The number of bytes after which a download breaks.
const BREAKS_AFTER: u64 = 1 << 20;

/// A store in memory. A download of more than 1 MiB breaks after 1 MiB. Uploads do not break.
#[derive(Debug, Default)]
pub(super) struct BreakingStore(InMemory);

impl fmt::Display for BreakingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BreakingStore")
    }
}

#[tonic::async_trait]
impl ObjectStore for BreakingStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut result = self.0.get_opts(location, options).await?;
        let Range { start, end } = result.range.clone();
        if end - start > BREAKS_AFTER {
            let whole = result.bytes().await?;
            let first = whole.slice(..usize::try_from(BREAKS_AFTER).unwrap());
            let broken = Error::Generic { store: "test", source: "the connection was reset".into() };
            let pieces: Vec<Result<Bytes>> = vec![Ok(first), Err(broken)];
            let again = GetOptions { range: Some((start..end).into()), ..GetOptions::default() };
            result = self.0.get_opts(location, again).await?;
            result.payload = GetResultPayload::Stream(futures_util::stream::iter(pieces).boxed());
        }
        Ok(result)
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.0.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, opts).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}
