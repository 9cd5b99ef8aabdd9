//! Every bound in one place, each with its unit and its reason. Past a bound comes a clear refusal, never a silent drop.

use std::time::Duration;

// ---------- what a request may be ----------

/// Bytes of one gRPC message that a client sends: what fits into a record of the ledger.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Bytes of one message on a stream that a client sends: a session and a beat, or a tick.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Bytes of memory for each byte of a message, once it is decoded: a text of one byte takes some ten times that, a usual one
/// twice.
pub const DECODED_PER_BYTE: usize = 4;
/// Bytes of a name's part: a tenant, a dataset, a version, an instance.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of free text that people write: reasons, justifications.
pub const TEXT_BYTES_MAX: usize = 512;
/// Bytes of a caller's idempotency key, and of a scheduler's attempt key.
pub const KEY_BYTES_MAX: usize = 256;
/// Resources that one job may name: each is decided at creation, and each adds up to four fences to a lease.
pub const JOB_RESOURCES_MAX: usize = 64;
/// Prompts, parameters, patterns in one specification.
pub const SPEC_LIST_MAX: usize = 256;
/// Members of one attempt.
pub const MEMBERS_MAX: u32 = 10_000;
/// Instances that one attempt may have had: those that left or were lost stay named.
pub const INSTANCES_MAX: usize = 2 * MEMBERS_MAX as usize;
/// Attempts of one job.
pub const ATTEMPTS_MAX: u32 = 1_000;
/// Entries of a page, where the caller asked for none and at the most.
pub const PAGE_DEFAULT: usize = 100;
/// States, outcomes or resources that a filter of ListJobs names: there are no more states and outcomes than this.
pub const JOB_FILTER_ITEMS_MAX: usize = 16;
/// The most entries of a page.
pub const PAGE_MAX: usize = 1_000;
/// Bytes of a page: past them it ends early, and says where to go on.
pub const PAGE_BYTES_MAX: usize = 256 << 10;
/// Members of one job that an answer shows, those of the newest attempts first: under 4 MiB.
pub const MEMBERS_SHOWN_MAX: usize = INSTANCES_MAX;

// ---------- how long ----------

/// The longest that a job may last. A run of three weeks with a week to spare.
pub const JOB_DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The shortest life of a credential that makes sense: a renewal needs a part of it.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// The longest life of a lease between renewals.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(15 * 60);
/// The life of a lease where nobody asked for another.
pub const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The longest life of a token whose audience checks nothing but `/keys`: until then a revocation may go unnoticed.
pub const OFFLINE_TOKEN_TTL_MAX: Duration = Duration::from_secs(5 * 60);
/// Between two beats of a member.
pub const BEAT: Duration = Duration::from_secs(5);
/// Missed beats after which a member is away.
pub const LOST_AFTER: u32 = 3;
/// How long a member that is away may come back to the same attempt.
pub const REJOIN: Duration = Duration::from_secs(3600);
/// After a drain began, how long reading goes on.
pub const DRAIN_READ: Duration = Duration::from_secs(10);
/// After a drain began, the longest that checkpoint writes go on: the notice of a spot machine.
pub const DRAIN_GRACE_MAX: Duration = Duration::from_secs(120);
/// After a drain began, how long checkpoint writes go on where nobody said: the default of Kubernetes.
pub const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Between two ticks of a verifier's feed.
pub const TICK: Duration = Duration::from_secs(1);
/// The age of the last echoed tick past which a verifier refuses everything.
pub const FEED_STALE: Duration = Duration::from_secs(3);
/// The difference between a verifier's clock and the daemon's past which it refuses everything.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(30);
/// The first wait of a verifier before it connects its feed again; doubled each time.
pub const FEED_RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest such wait: under [`FEED_STALE`], so that a daemon that is back is heard again within it.
pub const FEED_RETRY_MAX: Duration = Duration::from_secs(2);
/// Between two looks for newer public keys: a token with a made-up key id costs the daemon no more than that.
pub const KEY_REFRESH: Duration = Duration::from_secs(1);
/// How long a verifier waits for the daemon's word on a token.
pub const INTROSPECT_WAIT: Duration = Duration::from_secs(5);
/// How long a caller's idempotency key is remembered.
pub const IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);
/// How long past its tokens' life a lowered fence is kept: clocks differ, feeds reconnect.
pub const FENCE_RETENTION_MARGIN: Duration = Duration::from_secs(60);

// ---------- how many ----------

/// Open jobs of one tenant.
pub const JOBS_OPEN_PER_TENANT_MAX: usize = 100_000;
/// Idempotency keys of one caller that are remembered, for [`IDEMPOTENCY`] each: a job a second, all day.
pub const IDEMPOTENCY_KEYS_PER_CALLER_MAX: usize = 100_000;
/// Idempotency keys of one tenant that are remembered: a fifth of all, two jobs a second, all day.
pub const IDEMPOTENCY_KEYS_PER_TENANT_MAX: usize = 200_000;
/// Bytes of those: as many of the usual length, with what is kept beside each.
pub const IDEMPOTENCY_KEYS_BYTES_PER_TENANT_MAX: usize = 48 << 20;
/// Idempotency keys that are remembered: under 300 MiB where each is 64 bytes long.
pub const IDEMPOTENCY_KEYS_MAX: usize = 1_000_000;
/// Bytes of one tenant's open jobs, as they are recorded, with their attempts and members: 60 attempts of 10,000 members, or
/// 100,000 jobs of the usual size.
pub const JOBS_OPEN_BYTES_PER_TENANT_MAX: usize = 256 << 20;
/// Bytes of all open jobs: eight times what one tenant may have.
pub const JOBS_OPEN_BYTES_MAX: usize = 2 << 30;
/// Closed jobs kept in memory for `job list`; older ones are in the ledger. Past it the tenant that has the most gives up its
/// oldest.
pub const JOBS_CLOSED_MAX: usize = 10_000;
/// Bytes of those: one of 25 KiB each.
pub const JOBS_CLOSED_BYTES_MAX: usize = 256 << 20;
/// Live leases of one job.
pub const LEASES_PER_JOB_MAX: usize = 100_000;
/// Live leases of one identity, which several jobs may share.
pub const LEASES_PER_HOLDER_MAX: usize = 250_000;
/// Live leases of one tenant's jobs: half of all, so that no tenant keeps the others out.
pub const LEASES_PER_TENANT_MAX: usize = 1_000_000;
/// Live leases of the daemon: under 1 GiB.
pub const LEASES_MAX: usize = 2_000_000;
/// Ended leases kept for `lease list`, newest first.
pub const LEASES_ENDED_MAX: usize = 10_000;
/// How long an ended lease is kept for it: as long as a renewal of it may still be tried.
pub const LEASES_ENDED_KEPT: Duration = Duration::from_secs(3600);
/// Events of leases that a slow watcher may fall behind before it is told what it missed.
pub const LEASE_EVENTS_BACKLOG: usize = 4_096;
/// Identities that are or lately were members: under 256 MiB with their jobs.
pub const IDENTITIES_MAX: usize = 1_000_000;
/// How long after the end of its job an identity that belongs to one job alone still belongs to it: until every SVID is over
/// that a process of that job can have had.
pub const IDENTITY_BOUND: Duration = SVID_LIFE_MAX;
/// Of a job's identities, how many are looked at for being members of other open jobs too when it is shown.
pub const IDENTITIES_SHOWN: usize = 64;
/// Identities that lift locks in any case: few enough that each is known by name.
pub const BREAK_GLASS_MAX: usize = 16;
/// Locks in force.
pub const LOCKS_MAX: usize = 100_000;
/// Fences of one snapshot message of the fence feed: about 25 KiB.
pub const FEED_CHUNK: usize = 1_000;
/// Lowerings that a slow verifier may fall behind before it must start over.
pub const FEED_BACKLOG: usize = 16_384;
/// Ticks of a feed that may be under way: a second more than go stale.
pub const FEED_TICKS_MAX: usize = 4;
/// Lowered fences that a verifier keeps, at about 50 bytes: a thousand endings a second for as long as tokens live.
pub const FEED_FENCES_MAX: usize = 1_000_000;
/// Public keys of one life of the daemon: two while they rotate.
pub const KEYS_MAX: usize = 64;
/// Records that may wait for the disk. Past it, what widens access is refused.
pub const LEDGER_QUEUE_MAX: usize = 65_536;
/// Bytes of one ledger record.
pub const LEDGER_RECORD_BYTES_MAX: usize = 256 << 10;
/// Bytes of the records that may wait for the disk.
pub const LEDGER_QUEUE_BYTES_MAX: usize = 256 << 20;
/// Endings that are kept in memory while the disk is away, each as a record of its own. Past it they are coalesced.
pub const LEDGER_DEFERRED_MAX: usize = 262_144;
/// Bytes that are written and synced at once.
pub const LEDGER_BATCH_BYTES_MAX: usize = 4 << 20;
/// Bytes of one line that is read back: a record and its envelope, with room for a larger bound of old.
pub const LEDGER_LINE_BYTES_MAX: usize = 16 << 20;
/// Bytes past which a segment is closed and the next one begun: a file that people can still open.
pub const LEDGER_SEGMENT_BYTES: u64 = 64 << 20;
/// Records past which a segment is closed all the same: a start reads at most so many beside the snapshot.
pub const LEDGER_SEGMENT_RECORDS: u64 = 20_000;
/// Bytes of a snapshot: four times what the quotas of all tenants together let the state hold, since a job is written twice
/// while a record of it may be withdrawn. Never reached, so that what is written can be read.
pub const LEDGER_SNAPSHOT_BYTES_MAX: u64 = 16 << 30;
/// Bytes of a snapshot that are written and synced at once: a record's own sync waits behind no more.
pub const LEDGER_SNAPSHOT_PIECE: usize = 1 << 20;
/// Between two looks at whether the ledger's files are where they belong: for so long a removed file may go unnoticed while
/// nothing is written. As often the head is kept, so that a tail cut off behind the daemon's back shows if it is older.
pub const LEDGER_LOOK: Duration = Duration::from_secs(1);
/// Bytes kept back for endings on a full disk: some ten thousand records.
pub const LEDGER_RESERVE_BYTES: u64 = 16 << 20;
/// Free bytes on the ledger's disk below which nothing is issued any more: an operator has time to act.
pub const FREE_SPACE_STOP: u64 = 1 << 30;
/// Between a write error and the first try again, and between two tries at the most.
pub const LEDGER_RETRY_FIRST: Duration = Duration::from_millis(100);
/// See [`LEDGER_RETRY_FIRST`].
pub const LEDGER_RETRY_MAX: Duration = Duration::from_secs(5);
/// Lines that a reader of the ledger's tail holds at once.
pub const LEDGER_TAIL_CHUNK: usize = 256;
/// Kibibytes of records a second that calls of one SPIFFE ID may have written in the long run: 10,000 members that share one ID
/// renew two credentials each every two to three minutes.
pub const RATE_PER_IDENTITY: u32 = 250;
/// Kibibytes of records a second that calls of one tenant may have written in the long run: four such crowds. A tenant's share of
/// the ledger's growth is thereby at most 88 GB a day, with the bursts.
pub const RATE_PER_TENANT: u32 = 1_000;
/// How many seconds of these rates may be used at once, after a time without calls: 10,000 members come back after a restart
/// with a join and two credentials each.
pub const RATE_BURST_SECONDS: u32 = 200;
/// Kinds of refusal (who, which call, why) that are kept apart in one minute, each with two records and two lines of the log at
/// the most: under 5 GB a day for all callers.
pub const REFUSAL_KINDS_MAX: usize = 4_096;
/// SPIFFE IDs whose rates are known at once. Past it, who is new counts by its tenant until others were quiet.
pub const RATED_IDENTITIES_MAX: usize = 100_000;
/// Start-overs of one request under a changing revision before it is refused as contended.
pub const REVISION_RETRIES: u32 = 8;
/// Bytes of a token. nginx, Apache and gunicorn take header lines of 8 KiB, and Tomcat takes 8 KiB for all lines of a
/// request: half a KiB is left for the others. 64 resources with names of 33 bytes fit.
pub const TOKEN_BYTES_MAX: usize = 7_680;
/// Bytes by which an identity that joins by a pattern with wildcards may be longer than the pattern: a namespace, a name and
/// a UID. The tokens of a job are measured with it before anyone joins.
pub const WILDCARD_BYTES_MAX: usize = 256;

// ---------- connections ----------

/// A TLS handshake, from accept to done.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once.
pub const HANDSHAKES_MAX: usize = 512;
/// Connections that wait for one, a socket each: enough for all that come back at once after a restart.
pub const HANDSHAKES_WAITING_MAX: usize = 4_096;
/// While all of those are under way: the silence after which one is given up for another that waits. An honest client
/// answers within a round trip.
pub const HANDSHAKE_SILENCE: Duration = Duration::from_millis(500);
/// While all of those are under way: the longest that one may take, silent or not. Thousands that come back at once after a
/// restart are done in less.
pub const HANDSHAKE_CROWDED: Duration = Duration::from_secs(2);
/// Connections of callers that the catalog knows, open at once: twice the members of the largest attempt.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Connections of one SPIFFE ID open at once: all members of the largest attempt may share one. While others are connected,
/// one identity gets less: never more than is left for all others.
pub const CONNECTIONS_PER_PEER_MAX: usize = MEMBERS_MAX as usize;
/// Connections of callers that no catalog entry matches: enough to ask who one is while an entry is being written.
pub const CONNECTIONS_UNKNOWN_MAX: usize = 256;
/// Connections of one SPIFFE ID that no catalog entry matches.
pub const CONNECTIONS_UNKNOWN_PER_PEER_MAX: usize = 8;
/// Connections that are kept for operators, however many others are connected: some for each person on call, and their scripts.
pub const CONNECTIONS_OPERATORS_MAX: usize = 256;
/// Connections beyond an identity's share that stay for [`CONNECTION_GRACE`], to hear why. More are cut without a word.
pub const CONNECTIONS_REFUSED_MAX: usize = 256;
/// Streams of one HTTP/2 connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Streams of one HTTP/2 connection of a caller that no catalog entry matches.
pub const STREAMS_UNKNOWN_MAX: u32 = 4;
/// Bytes that a client may send on one stream before the daemon has read them: HTTP/2's own default.
pub const STREAM_WINDOW_BYTES: u32 = 65_535;
/// Bytes that a client may send on one connection before the daemon has read them: HTTP/2 allows no smaller window.
pub const CONNECTION_WINDOW_BYTES: u32 = 65_535;
/// Bytes that HTTP/2 takes of one answer before the client has room for them.
pub const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Bytes of a request's headers: a token and what goes with it.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// From the end of a connection's SVID to the cut.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(2);
/// Certificates of a presented chain.
pub const CHAIN_MAX: usize = 8;
/// Bytes of one presented certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 10;
/// Names of every kind in one certificate's subject alternative name: one is the SPIFFE ID, the others are host names.
pub const SAN_NAMES_MAX: usize = 64;
/// From NotBefore to NotAfter of an SVID: a day, with an hour for issuers that set NotBefore back. A longer one is no
/// short-lived identity, and with no revocation of SVIDs its end is the only thing that ends it.
pub const SVID_LIFE_MAX: Duration = Duration::from_secs(25 * 3600);
/// Trust domains with a bundle.
pub const TRUST_DOMAINS_MAX: usize = 1_024;
/// Roots of one trust domain: two while they rotate, more where regions have their own.
pub const BUNDLE_ROOTS_MAX: usize = 64;
/// Certificates of one bundle, those that have expired among them: SPIRE leaves a root in for a day after its end, of each server.
pub const BUNDLE_CERTIFICATES_MAX: usize = 1_024;
/// Failed handshakes that the log names in one minute; it counts the others.
pub const HANDSHAKE_FAILURES_LOGGED: u32 = 60;
/// From one look at the identity files to the next. SPIRE rotates half a life before the end.
pub const IDENTITY_POLL: Duration = Duration::from_secs(2);
/// How long a start waits for a first identity: a registration entry reaches its agent within seconds, and people need a minute.
pub const IDENTITY_WAIT: Duration = Duration::from_secs(60);
/// How long the last good SVID and roots are used while their source fails: as long as the longest SVID that was made before.
pub const IDENTITY_OUTAGE_MAX: Duration = SVID_LIFE_MAX;
/// SVIDs that one workload is given: more than a node has tenants.
pub const WORKLOAD_SVIDS_MAX: usize = 256;
/// Bytes of one message of the Workload API: a thousand federated bundles of two roots.
pub const WORKLOAD_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Certificate authorities of the web in one file: a system has some 150.
pub const WEB_ROOTS_MAX: usize = 1_024;
/// From one fetch of a foreign bundle to the next, where its publisher does not say: the standard's default.
pub const BUNDLE_REFRESH: Duration = Duration::from_secs(300);
/// The shortest such time: a publisher that wants more is not asked more often.
pub const BUNDLE_REFRESH_MIN: Duration = Duration::from_secs(5);
/// The longest such time: a root that was taken away is known of within a day.
pub const BUNDLE_REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);
/// Connections at once to each of the listeners for probes, discovery and keys. For one more, the one that has done nothing
/// for longest gives way: a request would have to be overtaken by so many others while it arrives.
pub const WEB_CONNECTIONS_MAX: usize = 1_024;
/// Bytes of a request there.
pub const WEB_REQUEST_BYTES_MAX: usize = 8 << 10;
/// How long one of those connections may be open, whatever goes on in it: a few polls of a monitor that keeps it.
pub const WEB_CONNECTION: Duration = Duration::from_secs(60);
/// Between two HTTP/2 pings of an open connection, and how long an answer may take: a dead peer is found in the sum.
pub const PING: Duration = Duration::from_secs(5);
/// From a request's headers to the end of its body, and from the first byte of a message on a stream to its last.
pub const BODY: Duration = Duration::from_secs(10);
/// How long a refusal waits for the body of its request, which is dropped as it comes.
pub const REFUSED_BODY: Duration = Duration::from_secs(1);
/// How long an answer may wait for a client that does not read. Past it the connection ends.
pub const READER_STALL: Duration = Duration::from_secs(10);
/// Between two looks at clients that do not read.
pub const READER_LOOK: Duration = Duration::from_secs(2);
/// Requests in work at once; more are refused.
pub const REQUESTS_MAX: usize = 4_096;
/// Requests of one SPIFFE ID in work at once: half, since all members of an attempt may share one. While others have requests
/// in work, one identity gets less: never more than is left for all others.
pub const REQUESTS_PER_PEER_MAX: usize = REQUESTS_MAX / 2;
/// Requests of operators who end access, or give it back, in work at once. No one else takes this room.
pub const REQUESTS_OPERATORS_MAX: usize = 256;
/// Requests of callers that no catalog entry matches, in work at once.
pub const REQUESTS_UNKNOWN_MAX: usize = 64;
/// Such requests of one SPIFFE ID.
pub const REQUESTS_UNKNOWN_PER_PEER_MAX: usize = 8;
/// Calls that wait for the disk at once. They take no room from others.
pub const DURABLE_WAITS_MAX: usize = 1_024;
/// Such calls of one SPIFFE ID: of a script that ends many things at once.
pub const DURABLE_WAITS_PER_PEER_MAX: usize = 128;
/// Streams of members and of resource servers: one for each member of two of the largest attempts, twice while connections
/// are replaced.
pub const FEEDS_MAX: usize = 4 * MEMBERS_MAX as usize;
/// Streams that watch a job or follow the ledger.
pub const WATCHES_MAX: usize = 2_048;
/// Such streams of one SPIFFE ID: a console with a job in each of its windows.
pub const WATCHES_PER_PEER_MAX: usize = 256;
/// Bytes that are buffered for all callers that the catalog knows, of requests and of answers.
pub const BUFFERED_BYTES_MAX: usize = 256 << 20;
/// Bytes that are buffered for one SPIFFE ID: an eighth.
pub const BUFFERED_BYTES_PER_PEER_MAX: usize = BUFFERED_BYTES_MAX / 8;
/// Bytes that are buffered for operators who end access, or give it back.
pub const BUFFERED_BYTES_OPERATORS_MAX: usize = 32 << 20;
/// Bytes that are buffered for all callers that no catalog entry matches.
pub const BUFFERED_BYTES_UNKNOWN_MAX: usize = 4 << 20;
/// Bytes that are buffered for one of them: who it is, and what reflection says.
pub const BUFFERED_BYTES_UNKNOWN_PER_PEER_MAX: usize = 256 << 10;
/// Bytes that a request takes beside its headers and its message: its task and its answer's beginning.
pub const REQUEST_BYTES: usize = 4 << 10;
/// The most that a configuration may write for any of these bounds: a million sockets is what one process can hold open.
pub const ROOM_MAX: u32 = 1_000_000;
/// Of the requests in work, those of members that come back to what they had before a restart: enough to fill the ledger's
/// batches, so few that a new job's request is not behind thousands of them.
pub const RETURNING_MAX: usize = 64;
/// Such requests in work and waiting for their turn: half of all, the other half is for who is new.
pub const RETURNING_WAITING_MAX: usize = REQUESTS_MAX / 2;
/// The longest that one of them waits: half of what its client does.
pub const RETURNING_WAIT: Duration = Duration::from_secs(5);
/// SIGTERM to exit.
pub const SHUTDOWN: Duration = Duration::from_secs(10);
/// The longest that a call waits for an ending to be on disk. Who wants to wait on asks again.
pub const DURABLE_WAIT: Duration = Duration::from_secs(30);
/// The longest until an open stream is decided again. A lock and a reload wake it at once; this is for rules that look at the time.
pub const REAUTHORIZE: Duration = Duration::from_secs(1);
/// The longest that a request may wait for its record.
pub const LEDGER_WAIT: Duration = Duration::from_secs(5);
/// The longest that the command line waits for one answer: twice what a record may take.
pub const CALL: Duration = Duration::from_secs(10);
/// Between two looks of a command that watches a list.
pub const WATCH: Duration = Duration::from_secs(2);

// ---------- files ----------

/// Bytes of a configuration, catalog or policy file.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a certificate, key or bundle file: a bundle of 64 large roots is under 256 KiB.
pub const PEM_BYTES_MAX: u64 = 1 << 20;
/// Principals, audiences and resources of a catalog together: 10,000 take 0.1 s to prepare for policy, and patterns of different
/// tenants are compared in pairs.
pub const CATALOG_ENTRIES_MAX: usize = 20_000;
/// Questions that one look for idle catalog entries asks of the policies: some 0.2 s. Past it entries are taken to be of use.
pub const POLICY_GAP_QUESTIONS_MAX: usize = 5_000;
/// Policies of a set: each that an action slice holds adds under a microsecond to its decisions.
pub const POLICIES_MAX: usize = 1_000;
/// Answers of one policy engine that are kept to be given again: about 40 MiB of questions and rule lists.
pub const DECISIONS_KEPT_MAX: usize = 65_536;

// ---------- the wrapper ----------

/// From the polite signal to SIGKILL, where the specification says nothing else.
pub const TERM_GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// The longest that a child may take after the polite signal: its access is gone already.
pub const TERM_GRACE_MAX: Duration = Duration::from_secs(10 * 60);
/// From SIGKILL until the wrapper no longer waits: a process in an uninterruptible wait may never go.
pub const KILL_WAIT: Duration = Duration::from_secs(2);
/// Credentials of one member: two halves of as many audiences as a job has resources.
pub const CREDENTIALS_MAX: usize = 2 * JOB_RESOURCES_MAX;
/// What killed agents left in one place, and may be taken up by the next: as many agents as one user runs on a machine.
pub const SESSIONS_LEFT_MAX: usize = 64;
/// Between two looks at whether the credential files are still there: a few `stat` calls, for a second without access at most.
pub const CREDENTIAL_LOOK: Duration = Duration::from_secs(1);
/// How long an agent goes on after SIGTERM if the job file does not say: Kubernetes kills it after 30 s, and the report of its
/// end takes up to [`REPORT`].
pub const AGENT_FINISH: Duration = Duration::from_secs(20);
/// Bytes of a file in which a neighbour says how the work ended: a word or a number.
pub const WORD_BYTES_MAX: u64 = 64;
/// How long such a file may be empty or without its last newline, while it is being written.
pub const WORD_SETTLES: Duration = Duration::from_secs(1);
/// Bytes of a file of credentials that a killed wrapper left: the index of so many is under 4 MiB.
pub const CREDENTIAL_FILE_BYTES_MAX: u64 = 4 << 20;
/// How long a run tries to begin while the daemon cannot answer: a restart of it goes unnoticed, a wrong address does not hang.
pub const START_PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a run which did not begin takes to close what it had made.
pub const UNDO: Duration = Duration::from_secs(3);
/// The longest that a wrapper takes to report the end of its child: past it, access ends by the heartbeat window.
pub const REPORT: Duration = Duration::from_secs(5);
/// The first wait of a client between two attempts at one call.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest wait between two attempts at one call: a daemon that comes back is found within a beat.
pub const RETRY_MAX: Duration = BEAT;
/// Threads that serve in a daemon: past it more of them wait for the same locks. Other commands run on one.
pub const WORKER_THREADS_MAX: usize = 32;
/// Threads that a daemon needs beside those: the ledger's writer, and work that blocks.
pub const SPARE_THREADS: usize = 4;
/// How long a signal is held back to see whether it came to more of our processes than one, and so to the command too.
pub const SIGNAL_TOGETHER: Duration = Duration::from_millis(100);
/// How much later a slow sender may still reach the last process of a group with one signal.
pub const SIGNAL_LATE: Duration = Duration::from_secs(1);
/// How long a guard goes on ending what is left of a job after SIGKILL, before it says what it could not end.
pub const GUARD_PATIENCE: Duration = Duration::from_secs(30);
/// Less than this left of an SVID, it was not renewed in time: a run says so.
pub const SVID_SHORT: Duration = Duration::from_secs(60);
/// Between two looks at a process that an agent watches and did not start.
pub const WATCH_PID: Duration = Duration::from_millis(100);
/// Bytes of a file that a ticket is in: 43 characters, with room for an editor's newline.
pub const TICKET_BYTES_MAX: u64 = 256;

// ---------- Slurm ----------

/// The longest that a prolog or an epilog waits for the daemon: slurmctld, and on a node the next job, wait for the script.
pub const SLURM_BUDGET: Duration = Duration::from_secs(2);
/// Reports that a head node keeps while the daemon is away: a begin and an end of each of 5,000 runs.
pub const SPOOL_REPORTS_MAX: usize = 10_000;
/// Bytes of one report or note on disk.
pub const SPOOL_FILE_BYTES_MAX: u64 = 4 << 10;
/// How long the beginning of a run is worth telling: past it, the run's own members have begun it, or have given up.
pub const SPOOL_BEGIN_KEPT: Duration = Duration::from_secs(10 * 60);
/// How long after the end of a run its beginning may still be under way: a call, and the record that it waits for.
pub const SPOOL_BEGIN_LATEST: Duration = Duration::from_secs(20);
/// How long the end of a run is worth telling: no job lasts longer.
pub const SPOOL_KEPT: Duration = JOB_DURATION_MAX;

/// Letters by which a name may differ from the one that is offered in its place: more is another name.
pub const NEAREST_EDITS_MAX: usize = 8;

// ---------- the command line ----------

/// Jobs and live leases that `audit tail --about` follows at once: some 60 MiB of their names.
pub const AUDIT_FOLLOWED_MAX: usize = 1_000_000;

// ---------- the file server ----------

/// Bytes that are read, checked and sent at a time.
pub const FILE_CHUNK: usize = 64 << 10;
/// Transfers under way at once; more are refused.
pub const FILE_TRANSFERS_MAX: usize = 512;
/// Bytes of one uploaded file, where nobody said: the shard of a large checkpoint.
pub const FILE_UPLOAD_BYTES_MAX: u64 = 16 << 30;
/// Segments of a path below a resource.
pub const FILE_PATH_DEPTH_MAX: usize = 32;
/// Bytes of one segment: what file systems take.
pub const FILE_SEGMENT_BYTES_MAX: usize = 255;
/// Entries of a listing. A folder with more is refused, never shown in part.
pub const FILE_LISTING_MAX: usize = 10_000;
/// After an access ended, how long a transfer may take to notice before its connection is cut.
pub const FILE_CUT_GRACE: Duration = Duration::from_millis(100);
/// Ended transfers that a slow observer may fall behind.
pub const FILE_TRANSFERS_TOLD: usize = 1_024;
