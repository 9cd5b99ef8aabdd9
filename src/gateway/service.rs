//! The operations in the form of the s3s traits.

use std::sync::Arc;

use s3s::{
    S3, S3ErrorCode, S3Request, S3Response, S3Result,
    access::{S3Access, S3AccessContext},
    auth::{S3Auth, SecretKey},
    config::{S3Config, StaticConfigProvider},
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CreateMultipartUploadInput,
        CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
        DeleteObjectsOutput, GetBucketLocationInput, GetBucketLocationOutput, GetBucketVersioningInput,
        GetBucketVersioningOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
        HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListMultipartUploadsInput,
        ListMultipartUploadsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input,
        ListObjectsV2Output, ListPartsInput, ListPartsOutput, PutObjectInput, PutObjectOutput,
        UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
    },
    service::{S3Service, S3ServiceBuilder},
};

use super::{
    caller::GatewayCaller, list, multipart, open_uploads::OpenUploads, operation::OPERATIONS, read,
    refusal::failed, refusal::not_implemented, write,
};
use crate::limits::GATEWAY_XML_BYTES_MAX;

tokio::task_local! {
    /// The secret of the access key with which the request in this task was signed. s3s requests the secret only by the
    /// id of the key. The task has the secret, so two requests cannot be mixed up.
    pub(super) static SIGNED_WITH: SecretKey;
}

/// Builds the S3 protocol around the operations.
pub(super) fn service(uploads: Arc<OpenUploads>) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Operations { uploads });
    builder.set_auth(SecretOfRequest);
    builder.set_access(KnownOperations);
    let mut config = S3Config::default();
    config.xml_max_body_size = GATEWAY_XML_BYTES_MAX;
    builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
    builder.build()
}

/// Gives s3s the secret with which the request in this task is signed. s3s asks with the id of the access key, which has no
/// meaning here.
struct SecretOfRequest;

#[tonic::async_trait]
impl S3Auth for SecretOfRequest {
    async fn get_secret_key(&self, _access_key: &str) -> S3Result<SecretKey> {
        let missing = |_| failed(S3ErrorCode::InvalidAccessKeyId, "the request has no key of a wrapper");
        SIGNED_WITH.try_with(Clone::clone).map_err(missing)
    }
}

/// Accepts signed requests for known operations. Each operation authorizes its own keys.
struct KnownOperations;

#[tonic::async_trait]
impl S3Access for KnownOperations {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(failed(
                S3ErrorCode::AccessDenied,
                "the request is not signed: sign it with AWS Signature Version 4",
            ));
        }
        let name = context.s3_op().name();
        if !OPERATIONS.iter().any(|operation| operation.name == name) {
            return Err(not_implemented(&format!("the operation `{name}`")));
        }
        GatewayCaller::of(context.extensions_mut()).map(drop)
    }
}

struct Operations {
    uploads: Arc<OpenUploads>,
}

#[tonic::async_trait]
impl S3 for Operations {
    async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        list::list_buckets(request)
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        list::head_bucket(request)
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        list::get_bucket_location(request)
    }

    async fn get_bucket_versioning(
        &self,
        request: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        list::get_bucket_versioning(request)
    }

    async fn list_objects(
        &self,
        request: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        list::list_objects(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        list::list_objects_v2(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        read::head_object(request).await
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        read::get_object(request).await
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        write::put_object(request).await
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        write::copy_object(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        write::delete_object(request).await
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        write::delete_objects(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        multipart::create(&self.uploads, request).await
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        multipart::upload_part(&self.uploads, request).await
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        multipart::upload_part_copy(&self.uploads, request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        multipart::complete(&self.uploads, request).await
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        multipart::abort(&self.uploads, request).await
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        multipart::list_parts(&self.uploads, request)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        multipart::list_uploads(&self.uploads, request)
    }
}
