//! Leasehold gives every model-tuning job exactly the access it was approved for, for exactly as long as it runs.
//!
//! A daemon stands between the programs that launch and run tuning jobs and the datasets and model artefacts that those
//! jobs touch. It attests its callers by SPIFFE X.509-SVID, decides by policy, issues short-lived credentials for named
//! resources, keeps every lease in memory, and ends all of them when the job completes, fails or is interrupted.
//!
//! # The library
//!
//! The library is for two kinds of programs, and only its public modules are its API:
//!
//! | You write | Use |
//! |---|---|
//! | a resource server | [`verify`]; [`identity`] and [`link`] for its connections; [`token`] for the claims of a token |
//! | a client of the daemon | [`proto`]; [`identity`] and [`link`] to connect |
//! | either | [`name`] and [`reason`] for what is named and why something is refused; [`clock`]; [`limits`] |
//!
//! Everything else is the daemon and its commands. `cargo doc --document-private-items` shows it, with all links of this page.
//!
//! # The floors
//!
//! Each module uses only floors below its own, as listed in `tests/tidy.rs`, which fails on any other path.
//!
//! | Floor | Module | Is for | Never |
//! |---|---|---|---|
//! | 0 | [`clock`] [`secret`] [`limits`] [`reason`] [`written`] [`plain`] [`backoff`] `log_budget` `sync` | time, secrets, bounds, codes of refusal, strict reading of files that people write, text that is safe to show, waits between retries, a bound on lines of the log, the primitives that model checkers replace | decides |
//! | 1 | [`name`] | every name, parsed once | reads a clock |
//! | 2 | [`proto`] | the wire types, and their conversions | decides |
//! | 2 | [`fence`] | fences: named switches that end all leases behind a name with one store | waits, does I/O |
//! | 3 | [`identity`] | the SVID rules, trust bundles, both TLS configurations; the only maker of a `Peer` | authorizes |
//! | 3 | [`catalog`] | which callers are known, which resources exist | decides |
//! | 3 | [`job`] | states and legal moves of jobs, attempts, members; pure | decides who may |
//! | 4 | [`link`] | the mTLS accept loop with a deadline per connection; the client's connector | knows the request |
//! | 4 | [`people`] | people who log in: ID tokens, and the SVIDs that they get for them | keeps a login |
//! | 4 | [`policy`] | Cedar; the only maker of a `Grant` | keeps state |
//! | 5 | [`lease`] | the table of live leases, deadlines, quotas | exists without a `Grant` |
//! | 5 | [`token`] | ES256 tokens: claims, minting, checking | reads a clock |
//! | 5 | [`ledger`] | the append-only, hash-chained, durable record | decides |
//! | 6 | [`state`] | jobs, attempts, members, locks; the only place that ends jobs and lowers fences | decides who may |
//! | 6 | [`verify`] | for resource servers: the token check, the feed's follower | talks to anything but the daemon |
//! | 7 | [`notify`] | notices to webhooks, from the records of the ledger | decides, delays a request |
//! | 7 | [`broker`] | the use cases, each request written once | speaks a wire format |
//! | 8 | [`api`] [`gateway`] [`agent`] [`slurm`] | the gRPC and HTTP edges; the S3 gateway; the wrapper `run`, the sidecar `agent`; what Slurm reports | import each other |
//! | 9 | [`config`] [`daemon`] [`dev`] | the daemon's configuration, its start and stop; everything on one machine, to try | |
//! | 10 | [`cli`] | one file per subcommand | |
//!
//! # Words
//!
//! The words that this code uses in a special sense. `docs/concepts.md` explains them with examples.
//!
//! | Word | Means |
//! |---|---|
//! | fence | a switch with a name (a job, an attempt, a dataset, an identity …). To *lower* it ends every lease issued behind it before |
//! | stand | what the fences showed when a request was decided. A lease ends when one of its fences is lowered after its stand (`stood_at`) |
//! | sweep | a second decision on live leases after policy, catalog or locks changed. Those that are no longer allowed end |
//! | revision | a number that rises before each sweep, so that a request that was decided by old rules notices |
//! | half | what a lease is for: the reading half opens datasets and base models, the writing half the job's checkpoints |
//! | gate | a rule of policy that people must approve before a job may pass it |
//! | grant | the engine's proof that policy allowed one request. Each lease is made of one |
//! | attempt, member | one run of a job, and one process that takes part in it. A member that is silent is *away*, then *lost* |
//! | audience | the resource server that a token is for, by its SPIFFE ID |
//! | checkpoint line | the checkpoints that jobs write under one name, one folder for each job |
//! | feed, tick | the stream of revocations to a resource server, and the message in it that proves that nothing is missing |
//! | fold | state that is computed from the ledger's records, one by one |
//! | model | a machine-learning model. If the model checkers loom and shuttle are meant, the text names them |
//!
//! # Where to look
//!
//! - Why a revocation is one store, regardless of the number of leases: [`fence`].
//! - The order of the steps that issue a credential: `broker/issue.rs`.
//! - What ends when a job ends: [`state::Store`], [`job::Job::fences_of`].
//! - How to check credentials in your own server: [`verify`] has a short example, `dev/file_server.rs` a full one.
//! - How to call the daemon from your own program: [`proto`] begins with a client.
//! - What is promised, and which test proves it: the tables in `docs/security.md`.

#![allow(rustdoc::private_intra_doc_links, reason = "the map is for those who read the daemon too")]

// The library: what a resource server or a client uses.
pub mod clock;
pub mod identity;
pub mod limits;
pub mod link;
pub mod name;
pub mod proto;
pub mod reason;
pub mod secret;
pub mod token;
#[cfg(feature = "verify")]
pub mod verify;

// The daemon and the commands: no API.
#[cfg(feature = "cli")]
mod agent;
#[cfg(feature = "server")]
mod api;
mod backoff;
#[cfg(feature = "server")]
mod broker;
#[cfg(feature = "server")]
mod catalog;
#[cfg(feature = "cli")]
mod cli;
#[cfg(feature = "server")]
mod config;
#[cfg(feature = "server")]
mod daemon;
#[cfg(feature = "cli")]
mod dev;
#[cfg(feature = "verify")]
mod fence;
#[cfg(feature = "server")]
mod gateway;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod internals;
#[cfg(feature = "server")]
mod job;
#[cfg(feature = "server")]
mod lease;
#[cfg(feature = "server")]
mod ledger;
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "only some features listen or fetch"))]
mod log_budget;
#[cfg(feature = "server")]
mod notify;
#[cfg(feature = "server")]
mod people;
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "the library shows fewer texts than the commands")
)]
mod plain;
#[cfg(feature = "server")]
mod policy;
#[cfg(feature = "cli")]
mod slurm;
#[cfg(feature = "server")]
mod state;
mod sync;
#[cfg(feature = "server")]
mod written;
