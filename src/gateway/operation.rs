//! The S3 operations that the gateway supports. `docs/gateway.md` has this table too.

/// An operation, and the fields that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// The name of the operation in S3.
    pub(super) name: &'static str,
    /// The action of the lease that the operation needs.
    pub(super) needs: &'static str,
    /// The fields that the operation accepts, beside its bucket and key.
    pub(super) accepts: &'static str,
}

const fn row(name: &'static str, needs: &'static str, accepts: &'static str) -> Operation {
    Operation { name, needs, accepts }
}

/// All supported operations. Other operations are refused, and the refusal names them.
pub(super) const OPERATIONS: [Operation; 19] = [
    row("ListBuckets", "any", "prefix"),
    row("HeadBucket", "any", ""),
    row("GetBucketLocation", "any", ""),
    row("ListObjects", "read", "prefix, delimiter, marker, max-keys, encoding-type"),
    row(
        "ListObjectsV2",
        "read",
        "prefix, delimiter, start-after, continuation-token, max-keys, encoding-type",
    ),
    row("HeadObject", "read", "the four conditions"),
    row("GetObject", "read", "one range or part 1, the four conditions, response-* overrides"),
    row("PutObject", "write", "checksums in headers and trailers, Content-MD5, If-Match, If-None-Match"),
    row("CopyObject", "read and write", "conditions of the source"),
    row("DeleteObject", "delete", ""),
    row("DeleteObjects", "delete", "up to 1000 keys, quiet"),
    row("CreateMultipartUpload", "write", "a checksum algorithm"),
    row("UploadPart", "write", "checksums in headers and trailers, Content-MD5"),
    row("UploadPartCopy", "read and write", "a range and conditions of the source"),
    row("CompleteMultipartUpload", "write", "part checksums, x-amz-mp-object-size, If-Match, If-None-Match"),
    row("AbortMultipartUpload", "write", ""),
    row("ListParts", "write", "part-number-marker, max-parts"),
    row(
        "ListMultipartUploads",
        "write",
        "prefix, key-marker, upload-id-marker, max-uploads; own uploads only",
    ),
    row("GetBucketVersioning", "any", "answers that versions are off"),
];

#[cfg(test)]
mod tests {
    use super::*;

    // The page for operators lists exactly the supported operations, with their accepted fields.
    #[test]
    fn the_page_has_the_table_of_operations() {
        let page = include_str!("../../docs/gateway.md");
        let rows = OPERATIONS.iter().map(|Operation { name, needs, accepts }| {
            format!("| `{name}` | {needs} | {accepts} |").replace("|  |", "| |")
        });
        let table = rows.collect::<Vec<_>>().join("\n");
        assert!(
            page.contains(&format!("|---|---|---|\n{table}\n\n")),
            "write this table into docs/gateway.md:\n{table}"
        );
    }
}
