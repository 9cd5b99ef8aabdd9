//! Policy: Cedar decides what is allowed. Only this module makes a [`Grant`], and each lease needs a grant.
//!
//! This module contains the schema, the strict validation of policies, the entities that are made from the catalog,
//! gates, and the texts of refusals. An engine never changes: a new policy or catalog makes another engine. Equal input
//! gives equal decisions, so they can be cached. The module uses no clock, is not async, and knows no state of jobs or
//! locks.
//!
//! Cedar skips a rule whose evaluation fails, so a broken `forbid` would forbid nothing. Therefore policies are validated
//! strictly when they are read, and an error in an evaluation denies.
//!
//! | File | Contains |
//! |---|---|
//! | `ask` `decision` | [`Bundle`] and [`Call`]: the questions; [`Decision`] and [`Grant`]: the answers |
//! | `engine` `outcome` `decision_cache` | [`Engine`]: rules over a catalog; the outcome for one act, and a cache of outcomes |
//! | `source` `rules` `entity_references` `fault` | policies as they are read and validated; their mistakes |
//! | `nesting` | a check before Cedar reads a policy: its expressions must not be nested too deep |
//! | `entities` `context` `slice` | the input of Cedar: entities, context, and the rules that can apply |
//! | `time_reads` `context_cache` | how the rules use the time of a decision; a cache of contexts |
//! | `bundle` | [`PolicyBundle`]: the files of a policy and of its test cases |
//! | `signature` | [`SignedBundle`], [`TrustedKeys`]: the signatures on the files of a policy, and the keys that may sign |
//! | `cases` `case_run` | [`PolicyCase`]: a test case with its expected answer; the run of all cases |
//! | `entry_answer` | answers for one entry of the catalog, without the reasons of a denial |
//! | `gaps` | entries of a catalog that have no effect under the policies |
//! | `empty_binding` | rules that forbid every job by mistake |
//! | `ungated` | models that can be tuned past their gates |
//! | `explain` `probe` | the texts of a refusal, and the single change that would have permitted the act |
//! | `risk` | [`JobRisk`]: the risk of a job, by the catalog |
//! | `rpc` | [`Rpc`]: each call as an action of the schema |

mod ask;
mod bundle;
mod case_run;
mod cases;
mod context;
mod context_cache;
mod decision;
mod decision_cache;
mod empty_binding;
mod engine;
mod entities;
mod entity_references;
mod entry_answer;
mod explain;
mod fault;
mod gaps;
mod nesting;
mod outcome;
mod probe;
mod risk;
mod rpc;
mod rules;
mod signature;
mod slice;
mod source;
mod time_reads;
mod ungated;

pub use ask::{AskedAct, Asker, Bundle, Call, Phase, RequestFacts};
pub use bundle::PolicyBundle;
pub use case_run::FailedCase;
pub use cases::{PolicyCase, read_case_texts, read_cases};
pub use decision::{CallVerdict, Decided, Decision, Grant, GrantParts, Verdict};
pub use engine::Engine;
pub use entry_answer::EntryAnswer;
pub use explain::Explain;
pub use fault::PolicyErrors;
pub use risk::JobRisk;
pub use rpc::{Relation, Rpc};
pub use rules::Rule;
pub use signature::{BundleSigner, SIGNATURE_FILE, SignedBundle, TrustedKeys, stale_signature, texts_digest};
pub use source::{PolicySource, PolicyText, policy_digest, schema_digest};
