//! The use cases. This module joins all floors below it.
//!
//! Each kind of request has one order of steps. A request for access reads the revision, names the fences, takes its
//! **stand**, reads the state, decides, records, inserts, and **looks again**. A request that ends access changes the
//! state, lowers the fence, and answers. This module also has the signing key of this run of the daemon, and the
//! background work. It does not know wire formats.
//!
//! [`Broker`] has one part for each group of use cases. All parts share one [`BrokerContext`]. Parts do not call each
//! other. If two parts need the same code, both have a value of a shared type.
//!
//! | Part of the broker | Files | What it does |
//! |---|---|---|
//! | `jobs`: [`JobUseCases`](jobs::JobUseCases) | `jobs` `create` `attempts` `job_filter` `tickets` | creates jobs, begins and ends attempts, closes jobs; shows jobs |
//! | `approvals`: [`ApprovalUseCases`](approvals::ApprovalUseCases) | `approvals` `emergencies` | people let jobs pass gates, reject jobs, and take approvals back |
//! | `members`: [`MemberUseCases`](members::MemberUseCases) | `members` `attachment` | lets members join, keeps their streams, and marks silent members as away |
//! | `credentials`: [`CredentialUseCases`](credentials::CredentialUseCases) | `credentials` `offer` `prepared` `issue` `renew` `draft` | offers, issues, renews and releases credentials |
//! | `leases`: [`LeaseUseCases`](leases::LeaseUseCases) | `leases` `listing` | shows leases |
//! | `logins`: [`LoginUseCases`](logins::LoginUseCases) | `logins` | people log in to get an SVID, and log out |
//! | `operators`: [`OperatorUseCases`](operators::OperatorUseCases) | `operators` `revocations` `locks` `lockout` `known` `dependents` `compromise` `recall` `offboard` `remnants` | revocations, locks, recalls and offboardings: what they would end, what access remains afterwards, and checks for mistyped names |
//! | `rules`: [`RuleUseCases`](reload::RuleUseCases) | `reload` `apply_policy` `changes` `close_change` | loads policy and catalog again, or applies another policy, with approvals if policy requires them; shows the catalog |
//! | `policies`: [`PolicyUseCases`](evaluate::PolicyUseCases) | `evaluate` `who_can` `explain_job` | answers questions about present, possible and earlier decisions of policy |
//! | `records`: [`RecordUseCases`](records::RecordUseCases) | `records` `record_stream` `tenant_view` `receipt` | shows the ledger or a tenant's part of it, and waits for records |
//! | `verifiers`: [`VerifierUseCases`](verifiers::VerifierUseCases) | `verifiers` `introspect` `feed` `reach` `use_reports` `resolve_key` | answers verifiers, and selects the lowerings that they get |
//!
//! | Shared by the parts | Files | What it does |
//! |---|---|---|
//! | [`BrokerContext`] | `context` | holds the state of one run of the daemon |
//! | [`AccessControl`](access::AccessControl) | `access` `access_request` `foreign_lock` | finds the [`Caller`], refuses calls that it may not make, hides the locks of other tenants, and defines the steps of a request for access |
//! | `Decisions` | `decide` `judge_job` `launcher` `approved` | asks policy about the work of a job and about its launcher; decides which approvals count now |
//! | `Endings` | `endings` | ends access, and cleans up behind it |
//! | [`Joining`](joining::Joining) | `joining` | decides which identities may be members, before an attempt begins and at a join |
//! | `Sweeps` | `sweeps` | decides the access of open jobs again, and ends access that is no longer allowed |
//! | `Tokens` | `wording` | makes the claims of tokens |
//!
//! | Other file | Contains |
//! |---|---|
//! | `parts` | [`Broker`] itself |
//! | `caller` `session` `rules` | [`Caller`]; the session of a member; [`Rules`] |
//! | `kept_rules` | the policies and catalogs that were in force |
//! | `names` | the fences of requests |
//! | `checkpoints` | the checkpoints of other jobs that a job reads, and the quarantine of outputs |
//! | `presence` `reconnect_limiter` | the connected members; the limit on members that reconnect at once |
//! | `denials` `refusals` `rates` | refused requests in the ledger; shared refusals; the limit on records of a caller |
//! | `proposals` | the changes of the rules that wait for people |
//! | `revocation_reasons` | the reasons of recent revocations |
//! | `background` | [`Task`]: the background work |

mod access;
mod access_request;
mod apply_policy;
mod approvals;
mod approved;
mod attachment;
mod attempts;
mod background;
mod caller;
mod changes;
mod checkpoints;
mod close_change;
mod compromise;
mod context;
mod create;
mod credentials;
mod decide;
mod denials;
mod dependents;
mod draft;
mod emergencies;
mod endings;
mod evaluate;
mod explain_job;
mod feed;
mod foreign_lock;
mod introspect;
mod issue;
mod job_filter;
mod jobs;
mod joining;
mod judge_job;
mod kept_rules;
mod known;
mod launcher;
mod leases;
mod listing;
mod lockout;
mod locks;
mod logins;
mod members;
mod names;
mod offboard;
mod offer;
mod operators;
mod parts;
mod prepared;
mod presence;
mod proposals;
mod rates;
mod reach;
mod recall;
mod receipt;
mod reconnect_limiter;
mod record_stream;
mod records;
mod refusals;
mod reload;
mod remnants;
mod renew;
mod resolve_key;
mod revocation_reasons;
mod revocations;
mod rules;
mod session;
mod sweeps;
mod tenant_view;
mod tickets;
mod use_reports;
mod verifiers;
mod who_can;
mod wording;

pub use apply_policy::{ChangeStep, PolicyOrder, PolicyOrigin, RuleChange, WantedPolicy};
pub use approvals::{ApproveOrder, WaitingGate, WaitingJob};
pub use attachment::{Attachment, Notice, NoticeKind};
pub use attempts::{BeginRequest, Concerned};
pub use background::Task;
pub use caller::Caller;
pub use changes::WaitingChange;
pub use close_change::ChangeClosing;
pub use compromise::RevokedAndLocked;
pub use context::{BrokerContext, BrokerSettings};
pub use draft::Binding;
pub use emergencies::EmergencyOrder;
pub use endings::RecordedEnding;
pub use evaluate::{GateToApprove, PolicyQuestion, PolicyReply};
pub use explain_job::{DecideBy, DecidedAgain, Explained, RecordedDecision};
pub use introspect::TokenVerdict;
pub use job_filter::{JobFilter, JobStateFilter};
pub use kept_rules::KeptRules;
pub use leases::LeaseView;
pub use listing::{LeaseCursor, LeaseFilter};
pub use locks::LockOrder;
pub use logins::{LoggedIn, LoginOrder};
pub use members::JoinRequest;
pub use offboard::Offboarded;
pub use offer::{CredentialKind, IssueRequest, Offer};
pub use parts::Broker;
pub use proposals::ClosedChange;
pub use recall::Recalled;
pub use record_stream::{LedgerView, RecordStart, RecordStream};
pub use reload::ReloadAnswer;
pub use remnants::{Remnant, Remnants};
pub use revocations::EndingOptions;
pub use rules::Rules;
pub use session::MemberSession;
pub use tickets::Tickets;
pub use use_reports::UseReport;
pub use who_can::{EntryThatCan, WhoCanPage, WhoCanQuestion};
