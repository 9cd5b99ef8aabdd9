//! Leasehold gives every model-tuning job exactly the access it was approved for, for exactly as long as it runs.
//!
//! A daemon stands between the programs that launch and run tuning jobs and the datasets and model artefacts that those
//! jobs touch. It attests its callers by SPIFFE X.509-SVID, decides by policy, and issues short-lived credentials for named
//! resources. It keeps every lease in memory. When a job completes, fails or is interrupted, the daemon ends all leases of
//! that job.
//!
//! # The library
//!
//! The library is for two kinds of programs, and only its public modules are its API:
//!
//! | You write | Use |
//! |---|---|
//! | a resource server | [`verify`]; [`identity`] and [`link`] for its connections; [`token`] for the claims of a token |
//! | a client of the daemon | [`proto`]; [`identity`] and [`link`] to connect |
//! | either | [`name`] for names; [`reason`] for the reasons of refusals; [`clock`]; [`limits`] |
//!
//! All other modules are the daemon and its commands. `cargo doc --document-private-items` shows them, with all links of this
//! page.
//!
//! # The floors
//!
//! The floors are layers. A module uses only modules of lower floors. `tests/tidy.rs` lists them for each module, and fails if a
//! module uses any other module.
//!
//! | Floor | Module | Is for | Never |
//! |---|---|---|---|
//! | 0 | [`clock`] | three kinds of time that never mix | decides |
//! | 0 | [`secret`] | secrets that no log, error or `Debug` shows | decides |
//! | 0 | [`limits`] | every limit, with its unit and its reason | decides |
//! | 0 | [`reason`] | the codes of refusals | decides |
//! | 0 | [`written`] | the strict reading of files that people write | decides |
//! | 0 | [`plain`] | text from outside that is safe to show | decides |
//! | 0 | [`backoff`] | how long to wait between retries | decides |
//! | 0 | `log_budget` | a limit on log lines that someone outside can cause | decides |
//! | 0 | `sync` | the synchronization primitives that model checkers replace | decides |
//! | 1 | [`name`] | the names of jobs, resources, identities and others, each parsed once | reads a clock |
//! | 2 | [`proto`] | the types of the wire format, and their conversions | decides |
//! | 2 | [`fence`] | fences: a revocation lowers the fence of a name, which ends all leases that depend on the name | waits, does I/O |
//! | 3 | [`identity`] | the SVID rules, trust bundles, both TLS configurations; the only maker of a `Peer` | authorizes |
//! | 3 | [`catalog`] | the known callers and the resources | decides |
//! | 3 | [`job`] | the states of jobs, attempts and members, and the legal changes between them | does I/O, decides who may |
//! | 4 | [`link`] | the mTLS accept loop with a deadline per connection; the client's connector | looks at a request |
//! | 4 | [`people`] | people who log in: their ID tokens, and the SVIDs that they get | keeps a login |
//! | 4 | [`policy`] | Cedar; the only maker of a `Grant` | keeps state |
//! | 5 | [`lease`] | the table of live leases, deadlines, quotas | exists without a `Grant` |
//! | 5 | [`token`] | ES256 tokens: claims, minting, checking | reads a clock |
//! | 5 | [`ledger`] | the append-only, hash-chained, durable record | decides |
//! | 6 | [`state`] | jobs, attempts, members, locks; the only place that ends jobs and lowers fences | decides who may |
//! | 6 | [`verify`] | for resource servers: the token check, the feed's follower | talks to anything but the daemon |
//! | 7 | [`notify`] | notices to webhooks, made from the records of the ledger | decides, delays a request |
//! | 7 | [`broker`] | the use cases: the code that handles each request | reads or writes a wire format |
//! | 8 | [`api`] [`gateway`] [`agent`] [`slurm`] | the gRPC and HTTP edges; the S3 gateway; the wrapper `run` and the sidecar `agent`; the reports from Slurm | import each other |
//! | 9 | [`config`] [`daemon`] [`dev`] | the daemon's configuration; its start and stop; a whole deployment on one machine | |
//! | 10 | [`cli`] | the command line, with one file for each subcommand | |
//!
//! # Words
//!
//! This code uses these words in a special sense. `docs/concepts.md` explains them with examples.
//!
//! | Word | Means |
//! |---|---|
//! | lease | the access of one member to some resources, until it expires or is ended. The lease *opens* these resources |
//! | fence | a switch with a name (a job, an attempt, a dataset, an identity …). If a fence is *lowered*, every lease ends that was issued for its name until then |
//! | behind | a lease is *behind* a fence if lowering the fence ends the lease |
//! | stand | the state of the fences at the moment of the decision on a request. A lease ends if one of its fences is lowered after that moment (`stood_at`) |
//! | sweep | a second decision on live leases after policy, catalog or locks changed. Leases that are no longer allowed end. A *parameter sweep* is something else: several jobs that differ only in parameters |
//! | revision | a number that grows before each sweep. It shows whether a request was decided by older rules |
//! | half | a part of a job's access: the reading half opens datasets and base models, the writing half opens the job's checkpoints |
//! | gate | a rule of policy that stops a job until people approve the job |
//! | offer | a credential that a job offers to its members: one for each half and audience |
//! | ending | a change that ends access. It takes effect at once, and its record is *deferred*: written afterwards |
//! | grant | the policy engine's proof that policy allowed one request. A lease can be made only from a grant |
//! | attempt, member | one run of a job, and one process that takes part in the run. A member that is silent is *away*, then *lost* |
//! | wrapper | the process of `leasehold run`, which starts a command and keeps its access |
//! | audience | the resource server for which a token is issued, named by its SPIFFE ID |
//! | bundle | a *trust bundle* contains the root certificates of a trust domain, a *policy bundle* the files of a policy. The type [`policy::Bundle`] is something else: a question to policy about all actions of a job at once |
//! | checkpoint line | the checkpoints that jobs write under one name, with one folder for each job |
//! | epoch | one run of the daemon, by its number. A restart begins the next epoch |
//! | feed, tick | the stream of revocations to a resource server, and a message in it that the server sends and the daemon *echoes*: it sends the tick back after all lowerings before it, so nothing is missing |
//! | fold | state that is computed from the ledger's records, one record after the other |
//! | model | a machine-learning model. If the model checkers loom and shuttle are meant, the text names them |
//!
//! # Where to look
//!
//! - Why a revocation writes only one value in memory, however many leases end: [`fence`].
//! - The order of the steps that issue a credential: `broker/issue.rs`.
//! - The leases that end when a job ends: [`state::Store`], [`job::Job::fences_of`].
//! - How to check credentials in your own server: [`verify`] has a short example, `dev/file_server.rs` a full one.
//! - How to call the daemon from your own program: [`proto`] begins with a client.
//! - The promises of the daemon, and the tests that prove them: the tables in `docs/security.md`.
//! - `// Proves law 37` above a test: the law with this number in `tests/laws.txt`.

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
