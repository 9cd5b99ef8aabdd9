//! The S3 gateway: unmodified programs read and write with their lease, and a revocation cuts their transfers.
//!
//! A request comes over mutual TLS from the wrapper of a member, with the member's tokens. The gateway checks the tokens only
//! with [`verify`](crate::verify), and never issues or renews anything. The library s3s provides the S3 protocol. The gateway
//! decides on the key of an object byte for byte, as the client sent it, and checks the access before each chunk.
//! `docs/gateway.md` explains the gateway to operators.
//!
//! Background tasks: the accept loop of [`link`](crate::link), a task for unfinished uploads, and a task for usages
//! (all end with the gateway). Each download has a task that cuts a client that stopped reading (it ends with the
//! download), and each direct key (an access key for a client without an SVID) has one that forgets the key when its access ends.
//!
//! | File | Contains |
//! |---|---|
//! | `front` | [`Gateway`]: takes the tokens out of a request, and hands the client's own request on |
//! | `settings` | [`GatewaySettings`]: the section `[gateway]` |
//! | `direct_listener` | [`DirectListener`]: clients without an SVID |
//! | `direct` | the requests of clients without an SVID |
//! | `signed_request` | the signature of a request with a direct key |
//! | `direct_keys` | direct keys, resolved at the daemon |
//! | `address_room` | connections of clients that have not proven who they are |
//! | `session` | sessions: each token is checked once, and kept |
//! | `caller` | the caller of a request, and what it may open |
//! | `attempt_order` | what an attempt wrote is visible before the next attempt's first request is served |
//! | `live_access` | an access that goes on with newer tokens of its lease |
//! | `view` | buckets and prefixes that a token opens |
//! | `key` | the key of an object below a leased prefix |
//! | `operation` | the table of operations |
//! | `service` | the operations in the form of the s3s traits |
//! | `read` `list` `write` `multipart` | the operations |
//! | `listing` | one page of a listing, without I/O |
//! | `list_work` | the remaining work of a listing |
//! | `conditions` | If-Match and the other conditions |
//! | `download` | the body of a download |
//! | `receive` | the body of an upload |
//! | `received_body` | the body of a request, within its bounds |
//! | `body_pace` | the pace of a body: slow clients lose their slots |
//! | `checksum` | the checksums that clients send |
//! | `chunk_framing` | a bound on the chunks of an upload |
//! | `room` | the work that holders may have under way |
//! | `upload_memory` | memory for uploads into object stores |
//! | `open_uploads` | uploads in parts that are under way |
//! | `usage` | the use of leases, counted and reported |
//! | `manifest` `pins` | the objects of a pinned resource, and the comparison of their bytes |
//! | `refusal` | refusals in the form of S3 errors |
//! | `hub/` | the API of the Hugging Face Hub |
//! | `stores` `store` | the stores, and their operations |
//! | `upload` | bytes that are not visible yet |
//! | `directory` `directory_upload` `file_chunks` `folder` `cached_open` | a directory of this machine as a store |
//! | `walk` `walk_turns` `kept_names` | the listings of a directory |
//! | `bucket` `bucket_upload` `bucket_client` | a bucket of an object store as a store |

mod address_room;
mod attempt_order;
mod body_pace;
mod bucket;
mod bucket_client;
mod bucket_upload;
mod cached_open;
mod caller;
mod checksum;
mod chunk_framing;
mod conditions;
mod direct;
mod direct_keys;
mod direct_listener;
mod directory;
mod directory_upload;
mod download;
mod file_chunks;
mod folder;
mod front;
mod hub;
mod kept_names;
mod key;
mod list;
mod list_work;
mod listing;
mod live_access;
mod manifest;
mod multipart;
mod open_uploads;
mod operation;
mod pins;
mod read;
mod receive;
mod received_body;
mod refusal;
mod room;
mod service;
mod session;
mod settings;
mod signed_request;
mod store;
mod stores;
#[cfg(test)]
mod testing;
mod upload;
mod upload_memory;
mod usage;
mod view;
mod walk;
mod walk_turns;
mod write;

pub use bucket_client::{BucketSettings, StoreFault};
pub use direct_listener::{DirectFault, DirectListener, WebCertificate};
pub use front::Gateway;
pub use listing::encode_path;
pub use pins::{file_name as manifest_file_name, manifest_of_folder};
pub use session::CatalogReader;
pub use settings::{GatewaySettings, KeptIn, StoreSettings};
