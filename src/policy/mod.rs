//! Policy: what is allowed, decided by Cedar. The only maker of a [`Grant`], and no lease exists without one.
//!
//! Owns the schema, the reading and strict validation of policies, the entities made of the catalog, gates, and the words of
//! a refusal. An engine never changes: a new policy or catalog makes another one. Equal input gives equal decisions, so they
//! can be cached: no clock, no await, no state of jobs or locks in here.
//!
//! Cedar skips a rule whose evaluation fails, so a broken `forbid` would forbid nothing. Therefore policies are validated
//! strictly when they are read, and an error in an evaluation denies.
//!
//! | File | Noun |
//! |---|---|
//! | `ask` `decision` | [`Bundle`] and [`Call`]: what is asked; [`Decision`] and [`Grant`]: what is answered |
//! | `engine` `outcome` `decision_cache` | [`Engine`]: rules over a catalog; the outcome for one act, and a cache of outcomes |
//! | `source` `rules` `entity_references` `fault` | policies read, validated, and what is wrong with them |
//! | `entities` `context` `slice` | what Cedar is given: entities, context, and the rules that can matter |
//! | `bundle` | [`PolicyBundle`]: the files of a policy and of its cases, as they are handed over |
//! | `signature` | [`SignedBundle`], [`TrustedKeys`]: the keys that vouch for the files of a policy |
//! | `cases` `case_run` | [`PolicyCase`]: an expected answer, as a file has it; the run of all cases |
//! | `entry_answer` | what one entry of the catalog may do, without the reasons of a denial |
//! | `gaps` | entries of a catalog that have no effect under the policies |
//! | `ungated` | models that can be tuned past their gates |
//! | `explain` `probe` | the words of a refusal, and which one change would have permitted it |
//! | `risk` | [`JobRisk`]: what makes a job risky, by the catalog |
//! | `rpc` | [`Rpc`]: each call as an action of the schema |

mod ask;
mod bundle;
mod case_run;
mod cases;
mod context;
mod decision;
mod decision_cache;
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
mod ungated;

pub use ask::{AskedAct, Asker, Bundle, Call, Phase, RequestFacts};
pub use bundle::PolicyBundle;
pub use case_run::{CaseReport, FailedCase};
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
