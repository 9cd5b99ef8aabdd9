//! Notices: events that people should know of, sent to their webhooks.
//!
//! The source is the ledger. A notice is sent only for a record that is on disk. One reader follows the records for all
//! webhooks. So a request or the end of a lease or job never waits for a receiver. Each webhook has a limited queue and one
//! courier. A receiver that cannot be reached fills only its queue. Notices beyond the limit are dropped and counted. For each
//! webhook, a file stores the index of the last record up to which no notice waits. So after a restart a notice may come
//! twice, with the same id, but no notice that waited is missing.
//!
//! This module decides nothing, and never sends a token, a key or another secret. A webhook of one tenant gets only notices of
//! that tenant, and notices about a person on whom that tenant's open jobs depend.
//!
//! | File | Contains |
//! |---|---|
//! | `webhook` | [`Webhook`]: one receiver, as configured |
//! | `occasion` | [`Occasion`]: what a notice is about |
//! | `facts` | `NoticeFacts`: the facts of a record, for people |
//! | `text` | texts that people wrote, made safe and short |
//! | `letter` | `Letter`: the body of a notice, as CloudEvents or for Slack |
//! | `signature` | the signature of Standard Webhooks |
//! | `outbox` | `Outbox`: the limited queue of one webhook |
//! | `courier` | `Courier`: delivers the letters of one outbox |
//! | `place` | `PlaceFile`: the record up to which a webhook has all its notices |
//! | `service` | [`Notices`]: reads the records and runs the couriers |

mod courier;
mod facts;
mod letter;
mod occasion;
mod outbox;
mod place;
mod service;
mod signature;
mod text;
mod webhook;

pub use facts::NoticeLookup;
pub use occasion::Occasion;
pub use service::{NoticeParts, Notices};
pub use webhook::{LetterFormat, TenantsHeard, UrlFrom, Webhook, WebhookUrl};
