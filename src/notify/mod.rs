//! Notices: what people should hear of, sent to their webhooks.
//!
//! The source is the ledger. A notice is sent only for a record that is on disk, and one reader follows the records for all
//! webhooks, so no request and no ending waits for a receiver. Each webhook has a bounded queue and one courier. A receiver that is
//! away fills its own queue only; what does not fit is dropped and counted. The place up to which a webhook has heard is kept in
//! a file, so after a restart a notice may come twice, with the same id, but none that was waiting is missing.
//!
//! It decides nothing, and never sends a token, a key or another secret. A webhook of one tenant hears only of that tenant.
//!
//! | File | Noun |
//! |---|---|
//! | `webhook` | [`Webhook`]: one receiver, as configured |
//! | `occasion` | [`Occasion`]: what a notice is about |
//! | `facts` | `NoticeFacts`: what a record says to people |
//! | `text` | texts of people, made safe and short |
//! | `letter` | `Letter`: the body of a notice, as CloudEvents or for Slack |
//! | `signature` | the signature of Standard Webhooks |
//! | `outbox` | `Outbox`: the bounded queue of one webhook |
//! | `courier` | `Courier`: delivers what is in one outbox |
//! | `place` | `PlaceFile`: the record up to which a webhook has heard |
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
