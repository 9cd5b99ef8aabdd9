//! All bounds of the crate, each with its unit and its reason. If a request exceeds a bound, the daemon refuses it and says so. It
//! never drops anything silently.

use std::time::Duration;

// ---------- requests ----------

/// Bytes of one gRPC message that a client sends: the size of the largest ledger record.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Bytes of one message on a stream that a client sends: a session secret with a heartbeat, or a tick.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Bytes of memory that the daemon counts for each byte of a message, because a decoded message is larger. A usual text takes twice
/// its bytes in the message, a text of one byte some ten times its bytes.
pub const DECODED_PER_BYTE: usize = 4;
/// Bytes of one part of a name: a tenant, a dataset, a version, an instance.
pub const NAME_BYTES_MAX: usize = 128;
/// Bytes of free text that people write: reasons, justifications.
pub const TEXT_BYTES_MAX: usize = 512;
/// Bytes of a caller's idempotency key, and of a scheduler's attempt key.
pub const KEY_BYTES_MAX: usize = 256;
/// Resources that one job may name. Policy decides about each when the job is created, and each adds up to four fences to a lease.
pub const JOB_RESOURCES_MAX: usize = 64;
/// Jobs and resources in the lineage of one job: the jobs that wrote the checkpoints that it reads, and what those jobs read. Each
/// adds fences to the job's tokens, which reach [`TOKEN_BYTES_MAX`] at a similar number.
pub const LINEAGE_MAX: usize = 256;
/// Prompts, parameters, patterns in one specification.
pub const SPEC_LIST_MAX: usize = 256;
/// Members of one attempt.
pub const MEMBERS_MAX: u32 = 10_000;
/// Instances of one attempt, with those that left or were lost: each member can be replaced once.
pub const INSTANCES_MAX: usize = 2 * MEMBERS_MAX as usize;
/// Attempts of one job.
pub const ATTEMPTS_MAX: u32 = 1_000;
/// Entries of a page, if the caller gives no number.
pub const PAGE_DEFAULT: usize = 100;
/// States, outcomes or resources in a filter of `ListJobs`. There are no more states and outcomes than this.
pub const JOB_FILTER_ITEMS_MAX: usize = 16;
/// The highest number of entries of a page.
pub const PAGE_MAX: usize = 1_000;
/// Bytes of a page. A page that would be longer has fewer entries, and a token for the next page.
pub const PAGE_BYTES_MAX: usize = 256 << 10;
/// Members of one job in an answer, those of the newest attempts first: under 4 MiB.
pub const MEMBERS_SHOWN_MAX: usize = INSTANCES_MAX;
/// Memberships that operators ended: a job keeps this many of the latest, with the reasons. The ledger has all of them.
pub const MEMBERSHIPS_ENDED_SHOWN: usize = 8;
/// Locks on one job that an answer shows.
pub const LOCKS_SHOWN: usize = 8;

/// Approvals of one job: under 128 KiB with their reasons. A gate needs at most 100 people, and most gates need one or two.
pub const APPROVALS_PER_JOB_MAX: usize = 128;

/// Waivers of a catalog: people can still review this many exceptions one by one.
pub const WAIVERS_MAX: usize = 256;
/// Jobs of one parameter sweep: a large search, and a number that an approver can still understand.
pub const SWEEP_JOBS_MAX: u32 = 256;

/// Emergencies of one tenant without a review. Past this bound, gates cannot be opened in an emergency until reviews
/// are done.
pub const REVIEWS_DUE_PER_TENANT_MAX: usize = 32;

// ---------- durations ----------

/// The longest duration of a job: a run of three weeks, with a week to spare.
pub const JOB_DURATION_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// The time in which a job with gates must be approved and begin: a week, so that a request outlives a long weekend.
pub const APPROVAL_WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The time for which a job has access after its gates were opened in an emergency, if the person gives no other time:
/// an hour, enough to act.
pub const EMERGENCY_DEFAULT: Duration = Duration::from_secs(3600);
/// The longest access after gates were opened in an emergency: half a shift, long enough to find approvers.
pub const EMERGENCY_MAX: Duration = Duration::from_secs(4 * 3600);
/// The shortest life of a credential: long enough to renew it before it ends.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// The longest life of a lease between renewals.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(15 * 60);
/// The life of a lease, if the job sets no other.
pub const LEASE_TTL_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The longest life of a token whose audience only uses `/keys`. Such an audience accepts a revoked token until the token expires.
pub const OFFLINE_TOKEN_TTL_MAX: Duration = Duration::from_secs(5 * 60);
/// The time between two heartbeats of a member.
pub const BEAT: Duration = Duration::from_secs(5);
/// The number of missed heartbeats after which a member is away.
pub const LOST_AFTER: u32 = 3;
/// The time for which a member that is away may rejoin the same attempt.
pub const REJOIN: Duration = Duration::from_secs(3600);
/// The time for which reading goes on after the begin of a drain.
pub const DRAIN_READ: Duration = Duration::from_secs(10);
/// The longest time for checkpoint writes after the begin of a drain: clouds announce the end of a spot machine two minutes ahead.
pub const DRAIN_GRACE_MAX: Duration = Duration::from_secs(120);
/// The default time for checkpoint writes after the begin of a drain, as in Kubernetes.
pub const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// The time between two ticks of a verifier's feed.
pub const TICK: Duration = Duration::from_secs(1);
/// A verifier sends ticks to the daemon, and the daemon sends each back. If the last tick that came back was sent longer ago than
/// this, the verifier refuses everything.
pub const FEED_STALE: Duration = Duration::from_secs(3);
/// If a verifier's clock and the daemon's differ by more than this, the verifier refuses everything.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(30);
/// The first backoff of a verifier before it connects its feed again. It is doubled each time.
pub const FEED_RETRY_MIN: Duration = Duration::from_millis(100);
/// The longest backoff of a verifier. It is shorter than [`FEED_STALE`], so that the verifier reaches a restarted daemon before the
/// feed is stale.
pub const FEED_RETRY_MAX: Duration = Duration::from_secs(2);
/// The shortest time between two fetches of public keys, so that tokens with invented key ids cause few fetches.
pub const KEY_REFRESH: Duration = Duration::from_secs(1);
/// The time for which a verifier waits for the daemon's answer about a token.
pub const INTROSPECT_WAIT: Duration = Duration::from_secs(5);
/// The time for which a caller's idempotency key is remembered.
pub const IDEMPOTENCY: Duration = Duration::from_secs(24 * 3600);
/// The time for which a lowered fence is kept after its tokens have expired, because clocks differ and feeds reconnect.
pub const FENCE_RETENTION_MARGIN: Duration = Duration::from_secs(60);

/// The time between two checks of a job that waits for approval. The wrapper checks like this only after its stream ended.
pub const APPROVAL_LOOK: Duration = Duration::from_secs(1);

// ---------- counts ----------

/// Open jobs of one tenant.
pub const JOBS_OPEN_PER_TENANT_MAX: usize = 100_000;
/// Idempotency keys of one caller that are remembered, for [`IDEMPOTENCY`] each: a job a second, all day.
pub const IDEMPOTENCY_KEYS_PER_CALLER_MAX: usize = 100_000;
/// Idempotency keys of one tenant that are remembered: two jobs a second, all day. This is a fifth of [`IDEMPOTENCY_KEYS_MAX`].
pub const IDEMPOTENCY_KEYS_PER_TENANT_MAX: usize = 200_000;
/// Bytes of one tenant's idempotency keys, with their data: enough for [`IDEMPOTENCY_KEYS_PER_TENANT_MAX`] keys of the usual
/// length.
pub const IDEMPOTENCY_KEYS_BYTES_PER_TENANT_MAX: usize = 48 << 20;
/// Idempotency keys that are remembered: under 300 MiB if each is 64 bytes long.
pub const IDEMPOTENCY_KEYS_MAX: usize = 1_000_000;
/// Bytes of one tenant's open jobs, as they are recorded, with their attempts and members: 60 attempts of 10,000 members, or
/// 100,000 jobs of the usual size.
pub const JOBS_OPEN_BYTES_PER_TENANT_MAX: usize = 256 << 20;
/// Bytes of all open jobs: eight times what one tenant may have.
pub const JOBS_OPEN_BYTES_MAX: usize = 2 << 30;
/// Closed jobs that are kept in memory for `job list`. Older jobs are in the ledger. If there are more, the tenant with
/// the most closed jobs loses its oldest.
pub const JOBS_CLOSED_MAX: usize = 10_000;
/// Bytes of the closed jobs of [`JOBS_CLOSED_MAX`]: about 25 KiB each.
pub const JOBS_CLOSED_BYTES_MAX: usize = 256 << 20;
/// Live leases of one job.
pub const LEASES_PER_JOB_MAX: usize = 100_000;
/// Live leases of one identity, which several jobs may share.
pub const LEASES_PER_HOLDER_MAX: usize = 250_000;
/// Live leases of one tenant's jobs: half of all, so that one tenant cannot block the others.
pub const LEASES_PER_TENANT_MAX: usize = 1_000_000;
/// Live leases of the daemon: under 1 GiB.
pub const LEASES_MAX: usize = 2_000_000;
/// The longest time for which one task lowers fences before the feed gets a turn.
pub const LOWERING_RUN_MAX: Duration = Duration::from_millis(5);
/// Leases behind a name that a task sweeps in about a millisecond. If there are more, the feed does not wait for the sweep.
pub const SWEPT_IN_TASK_MAX: u64 = 1_000;
/// Ended leases kept for `lease list`, newest first.
pub const LEASES_ENDED_MAX: usize = 10_000;
/// The time for which an ended lease is kept for `lease list`, because its holder may still try to renew it.
pub const LEASES_ENDED_KEPT: Duration = Duration::from_secs(3600);
/// Events of leases that wait for a slow watcher. If more wait, the watcher gets only the number of events that it missed.
pub const LEASE_EVENTS_BACKLOG: usize = 4_096;
/// Identities that are or recently were members of a job: under 256 MiB with their jobs.
pub const IDENTITIES_MAX: usize = 1_000_000;
/// The time after a job's end in which an identity that is for one job only cannot join another: until all SVIDs of the job's
/// processes have expired.
pub const IDENTITY_BOUND: Duration = SVID_LIFE_MAX;
/// Identities of one job that an answer about the job checks for membership in other open jobs.
pub const IDENTITIES_SHOWN: usize = 64;
/// Break-glass identities, which can always lift locks: so few that people can know each by name.
pub const BREAK_GLASS_MAX: usize = 16;
/// Reasons of revocations that are kept for the members who lose access: under 1 MiB.
pub const REVOCATION_REASONS_MAX: usize = 256;
/// Names of operators in one call. A caller whose lock shuts out operators must confirm each of them by name.
pub const LOCKS_OUT_MAX: usize = 1_000;
/// Locks in force.
pub const LOCKS_MAX: usize = 100_000;
/// Locks that the operators of one tenant have set.
pub const LOCKS_PER_TENANT_MAX: usize = 10_000;
/// Fences of one snapshot message of the fence feed: about 25 KiB.
pub const FEED_CHUNK: usize = 1_000;
/// Lowerings that wait for a slow verifier. If more wait, the verifier must begin with a new snapshot.
pub const FEED_BACKLOG: usize = 16_384;
/// Ticks of a feed that were sent and have not come back: one more than fit into [`FEED_STALE`].
pub const FEED_TICKS_MAX: usize = 4;
/// Lowered fences that a verifier keeps, at about 50 bytes each: a thousand endings a second for as long as tokens live.
pub const FEED_FENCES_MAX: usize = 1_000_000;
/// Public keys that a verifier accepts from one run of the daemon. While keys rotate, there are two.
pub const KEYS_MAX: usize = 64;
/// Records that may wait for the disk. If there are more, requests that widen access are refused.
pub const LEDGER_QUEUE_MAX: usize = 65_536;
/// Bytes of one ledger record.
pub const LEDGER_RECORD_BYTES_MAX: usize = 256 << 10;
/// Bytes of the records that may wait for the disk.
pub const LEDGER_QUEUE_BYTES_MAX: usize = 256 << 20;
/// Records of endings that are kept in memory while the disk fails. Of further endings, only their number and a digest are recorded
/// (*coalesced*).
pub const LEDGER_DEFERRED_MAX: usize = 262_144;
/// Entries in an answer about a recall, an offboarding or remnants. The answer has the total number.
pub const REACH_SHOWN_MAX: usize = 1_000;
/// Identities that a revocation locks if its cause is a compromise. If there are more, the call is refused, and an operator locks a
/// prefix.
pub const COMPROMISED_MAX: usize = 256;
/// Records of set and lifted locks that are kept in addition to the endings of [`LEDGER_DEFERRED_MAX`]. A lock stays after a
/// restart, so its record must not be coalesced.
pub const LEDGER_DEFERRED_LOCKS_MAX: usize = 131_072;
/// Bytes that are written and synced at once.
pub const LEDGER_BATCH_BYTES_MAX: usize = 4 << 20;
/// How long the ledger's writer waits for more records if many are expected. One sync costs as much processor time as several
/// records, so each record costs less if more of them share a sync.
pub const LEDGER_GATHER: Duration = Duration::from_millis(1);
/// Bytes of one line that is read: a record and its envelope. It is larger than [`LEDGER_RECORD_BYTES_MAX`], because an older
/// version may have allowed larger records.
pub const LEDGER_LINE_BYTES_MAX: usize = 16 << 20;
/// Bytes after which a segment of the ledger is closed and the next one begins: people can still open a file of this size.
pub const LEDGER_SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of the records of one segment that are read: the largest `ledger.segment` and its last batch. A compressed
/// file with more was not written by the daemon.
pub const LEDGER_SEGMENT_READ_MAX: u64 = 17 << 30;
/// The window of a compressed segment, as a power of two: 8 MiB, which `zstd -19` needs at most. It bounds the memory of
/// each reader.
pub const LEDGER_WINDOW_LOG_MAX: u32 = 23;
/// The time before the daemon tries again to compress a segment, if the disk or another process kept it from that.
pub const LEDGER_COMPRESS_RETRY: Duration = Duration::from_secs(30);
/// Segments that stay plain, because they differ from their compressed copy or cannot be read. If there are so many, the machine
/// or its disk is faulty, and no more segments are compressed.
pub const LEDGER_SEGMENTS_LEFT_PLAIN_MAX: usize = 16;
/// Records after which a segment is closed even if it is small. A start reads at most this many records after the
/// snapshot.
pub const LEDGER_SEGMENT_RECORDS: u64 = 20_000;
/// Bytes of a snapshot. Open jobs take at most 4 GiB: twice [`JOBS_OPEN_BYTES_MAX`], because a job is written twice while one of
/// its records may be withdrawn. Four times as much leaves room for all other state, so no snapshot reaches this bound.
pub const LEDGER_SNAPSHOT_BYTES_MAX: u64 = 16 << 30;
/// Bytes of a snapshot that are written and synced at once. The sync of a record waits for at most this many bytes.
pub const LEDGER_SNAPSHOT_PIECE: usize = 1 << 20;
/// The time between two checks that the ledger's files exist: a removed file may stay unnoticed for this time. The head is written
/// at the same interval, so a start misses no more than this time if the end of the ledger was cut off.
pub const LEDGER_LOOK: Duration = Duration::from_secs(1);
/// Bytes on the disk that are reserved for the records of endings if the disk is full: some ten thousand records.
pub const LEDGER_RESERVE_BYTES: u64 = 16 << 20;
/// Free bytes on the ledger's disk below which nothing is issued, so that an operator has time to act.
pub const FREE_SPACE_STOP: u64 = 1 << 30;
/// The first backoff after a write error.
pub const LEDGER_RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest backoff after a write error.
pub const LEDGER_RETRY_MAX: Duration = Duration::from_secs(5);
/// Lines that a reader of the ledger's tail has in memory at once.
pub const LEDGER_TAIL_CHUNK: usize = 256;
/// Readers of one tenant's records at once. Each reads the whole ledger, and remembers the jobs and leases of the tenant.
pub const READERS_PER_TENANT_MAX: usize = 4;
/// Jobs that a reader of one tenant's records remembers, and also live leases: some 40 MiB. The quotas of a tenant allow fewer.
pub const RECORDS_FOLLOWED_MAX: usize = 1_200_000;
/// Shown records that a reader of one tenant's records remembers. If the ledger withdraws one of them, the `withdrawn` record
/// follows within seconds, and the reader shows it too.
pub const RECORDS_WITHDRAWN_WITHIN: usize = 4_096;
/// KiB of records per second that the calls of one SPIFFE ID may write in the long run. This is enough for 10,000
/// members that share one ID and renew two credentials each every two to three minutes.
pub const RATE_PER_IDENTITY: u32 = 250;
/// KiB of records per second that the calls of one tenant may write in the long run: four times [`RATE_PER_IDENTITY`]. So a tenant
/// adds at most 88 GB a day to the ledger, with the bursts.
pub const RATE_PER_TENANT: u32 = 1_000;
/// The burst: after a time without calls, a caller may use this many seconds of [`RATE_PER_IDENTITY`] and [`RATE_PER_TENANT`] at
/// once. This is enough for 10,000 members that return after a restart with a join and two credentials each.
pub const RATE_BURST_SECONDS: u32 = 200;
/// Calls a second with which one operator of a tenant revokes, locks or unlocks. The platform's operators have no such bound.
pub const OPERATOR_CALLS: u32 = 50;
/// Calls a second with which all operators of one tenant together revoke, lock or unlock.
pub const OPERATOR_CALLS_OF_TENANT: u32 = 200;
/// Log lines a second about the revocations and locks of one operator.
pub const OPERATOR_LINES: u32 = 5;
/// Seconds of [`OPERATOR_CALLS`], [`OPERATOR_CALLS_OF_TENANT`] and [`OPERATOR_LINES`] that may be used at once after a time without
/// calls.
pub const OPERATOR_BURST_SECONDS: u32 = 20;
/// Kinds of refusal (caller, call and reason) that are counted separately in one minute, each with at most two records
/// and two lines of the log: under 5 GB a day for all callers.
pub const REFUSAL_KINDS_MAX: usize = 4_096;
/// SPIFFE IDs whose rates are measured separately. If there are more, they share rates in groups until some of them are idle.
pub const RATED_IDENTITIES_MAX: usize = 100_000;
/// Groups of SPIFFE IDs that share a rate while more than [`RATED_IDENTITIES_MAX`] are measured: one or two of those in a group.
pub const RATED_GROUPS: u64 = 65_536;
/// The number of times that one request is decided. If the rules change during each of these decisions, the request is refused as
/// contended.
pub const REVISION_RETRIES: u32 = 8;
/// Bytes of a token. nginx, Apache and gunicorn accept header lines of 8 KiB, and Tomcat accepts 8 KiB for all lines of
/// a request. So half a KiB is left for the other headers. 64 resources with names of 33 bytes fit.
pub const TOKEN_BYTES_MAX: usize = 7_680;
/// Tokens that the daemon, or one verifier, remembers, so that it checks the signature of each at most once. Claims take up to 8 KiB:
/// 64 MiB in all.
pub const VERIFIED_TOKENS_MAX: usize = 8_192;
/// Members for which the daemon caches what it computed from their job and the rules: about 6 KiB each, 48 MiB in all.
pub const PREPARED_MAX: usize = 8_192;
/// Bytes by which a member's SPIFFE ID may be longer than the pattern with wildcards that it matches: a namespace, a name and a
/// UID. Before members join, the daemon measures a job's tokens with IDs of this length.
pub const WILDCARD_BYTES_MAX: usize = 256;

// ---------- connections ----------

/// Connections that the kernel keeps until the daemon accepts them. If there are more, the kernel drops them, and a client tries
/// again only after a second. The kernel keeps fewer if `net.core.somaxconn` is lower.
pub const LISTEN_BACKLOG: u32 = 4_096;
/// The longest time for a TLS handshake, from the accept to its end.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes under way at once.
pub const HANDSHAKES_MAX: usize = 512;
/// Handshakes of one address (of one /64 for IPv6) under way at once. Further handshakes of that address wait, and other addresses
/// go first. The remaining slots are for other addresses, so they seldom need to take a slot from the busy one.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4 * 3;
/// Connections that wait for a handshake, a socket each: enough for all clients that return at once after a restart. If
/// one more comes, the latest connection of the address with the most connections is closed.
pub const HANDSHAKES_WAITING_MAX: usize = 4_096;
/// Connections of one address that are in a handshake or wait for one. Further connections of that address are closed.
pub const HANDSHAKES_WAITING_PER_ADDRESS_MAX: usize = HANDSHAKES_WAITING_MAX / 4 * 3;
/// Handshakes that must end and whose sockets are not closed yet. They are few, because each closes its socket as soon as its task
/// runs.
pub const HANDSHAKES_ENDING_MAX: usize = 256;
/// While all slots for handshakes are taken, a client that is silent for this time loses its slot to a waiting connection. An
/// honest client answers within a round trip.
pub const HANDSHAKE_SILENCE: Duration = Duration::from_millis(500);
/// While all slots for handshakes are taken, a handshake may take at most this time, even if its client answers. Thousands of
/// clients that return at once after a restart need less.
pub const HANDSHAKE_CROWDED: Duration = Duration::from_secs(2);
/// Connections of callers that the catalog knows, open at once: twice the members of the largest attempt.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Connections of one SPIFFE ID open at once: all members of the largest attempt may share one. While others are connected, one
/// identity has at most as many connections as are still free for all others.
pub const CONNECTIONS_PER_PEER_MAX: usize = MEMBERS_MAX as usize;
/// Connections of callers that no catalog entry matches: enough to call `whoami` while an entry is being written.
pub const CONNECTIONS_UNKNOWN_MAX: usize = 256;
/// Connections of one SPIFFE ID that no catalog entry matches.
pub const CONNECTIONS_UNKNOWN_PER_PEER_MAX: usize = 8;
/// Connections that are reserved for operators: some for each person on call, and their scripts. Other callers cannot use them.
pub const CONNECTIONS_OPERATORS_MAX: usize = 256;
/// Connections that exceed their identity's share and stay open for [`CONNECTION_GRACE`], so that the client gets the reason. If
/// there are more, they are cut without a reason.
pub const CONNECTIONS_REFUSED_MAX: usize = 256;
/// Streams of one HTTP/2 connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Streams of one HTTP/2 connection of a caller that no catalog entry matches.
pub const STREAMS_UNKNOWN_MAX: u32 = 4;
/// Bytes that a client may send on one stream before the daemon has read them: HTTP/2's own default.
pub const STREAM_WINDOW_BYTES: u32 = 65_535;
/// Bytes that a client may send on one connection before the daemon has read them: HTTP/2 allows no smaller window.
pub const CONNECTION_WINDOW_BYTES: u32 = 65_535;
/// Bytes of one response that HTTP/2 buffers before the client can receive them.
pub const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Bytes of a request's headers: a token and the other headers.
pub const HEADER_BYTES_MAX: u32 = 16 << 10;
/// The time from the end of a connection's SVID to the end of the connection.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(2);
/// The longest time for which a member's stream stays open after a lock, to send the notice that the membership ended.
pub const LAST_NOTICE: Duration = Duration::from_millis(500);
/// Certificates in a presented chain.
pub const CHAIN_MAX: usize = 8;
/// Bytes of one presented certificate.
pub const CERTIFICATE_BYTES_MAX: usize = 16 << 10;
/// Names of all kinds in one certificate's subject alternative name: one is the SPIFFE ID, the others are host names.
pub const SAN_NAMES_MAX: usize = 64;
/// The longest time from NotBefore to NotAfter of an SVID: a day, plus an hour for issuers that set NotBefore back.
/// SVIDs cannot be revoked, so only their end limits them.
pub const SVID_LIFE_MAX: Duration = Duration::from_secs(25 * 3600);
/// Trust domains with a bundle.
pub const TRUST_DOMAINS_MAX: usize = 1_024;
/// Roots of one trust domain: two while they rotate, more if regions have their own.
pub const BUNDLE_ROOTS_MAX: usize = 64;
/// Certificates of one bundle, including expired ones: SPIRE keeps the root of each of its servers for a day after it has
/// expired.
pub const BUNDLE_CERTIFICATES_MAX: usize = 1_024;
/// Failed handshakes with a log line each, in one minute. The log counts the others.
pub const HANDSHAKE_FAILURES_LOGGED: u32 = 60;
/// Lines in the log about one origin of identities, such as a SPIFFE agent, in one minute. The log counts the others.
pub const IDENTITY_LINES_LOGGED: u32 = 30;
/// Pairs of trust domains that share a root and that one source names in warnings.
pub const SHARED_ROOTS_WARNED_MAX: usize = 256;
/// The time between two checks of the identity files. SPIRE replaces an SVID after half of its life, so the files need no faster
/// check.
pub const IDENTITY_POLL: Duration = Duration::from_secs(2);
/// The time for which a start waits for a first identity. A registration entry reaches its agent within seconds, and
/// people need a minute.
pub const IDENTITY_WAIT: Duration = Duration::from_secs(60);
/// The time for which the last good SVID and roots are used while their source fails: the longest life of an SVID.
pub const IDENTITY_OUTAGE_MAX: Duration = SVID_LIFE_MAX;
/// SVIDs of one workload: more than a node has tenants.
pub const WORKLOAD_SVIDS_MAX: usize = 256;
/// Bytes of one message of the Workload API: a thousand federated bundles of two roots.
pub const WORKLOAD_MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Certificate authorities of the web in one file: a system has some 150.
pub const WEB_ROOTS_MAX: usize = 1_024;
/// The time between two fetches of a foreign bundle, if its publisher gives none: the default of the standard.
pub const BUNDLE_REFRESH: Duration = Duration::from_secs(300);
/// The shortest time between two fetches of a foreign bundle, even if its publisher asks for less.
pub const BUNDLE_REFRESH_MIN: Duration = Duration::from_secs(5);
/// The longest time between two fetches of a foreign bundle, so that the removal of a root is known within a day.
pub const BUNDLE_REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);
/// Connections at once to each of the listeners for probes, discovery and keys. If one more comes, the connection that has been
/// idle for longest is closed, so a request is seldom cut.
pub const WEB_CONNECTIONS_MAX: usize = 1_024;
/// Bytes of a request to a listener for probes, discovery and keys.
pub const WEB_REQUEST_BYTES_MAX: usize = 8 << 10;
/// The time for which a connection for probes, discovery and keys may be open, even if it is in use: a few polls of a monitor.
pub const WEB_CONNECTION: Duration = Duration::from_secs(60);
/// The time between two HTTP/2 pings of an open connection, and the longest wait for an answer. A dead peer is found
/// after both times together.
pub const PING: Duration = Duration::from_secs(5);
/// The longest time from a request's headers to the end of its body, and from the first to the last byte of a message
/// on a stream.
pub const BODY: Duration = Duration::from_secs(10);
/// The time for which a refusal waits for the body of its request. The body is discarded.
pub const REFUSED_BODY: Duration = Duration::from_secs(1);
/// The time for which an answer may wait for a client that does not read. After that the connection ends.
pub const READER_STALL: Duration = Duration::from_secs(10);
/// The time between two checks for clients that do not read.
pub const READER_LOOK: Duration = Duration::from_secs(2);
/// Requests in progress at once. More are refused.
pub const REQUESTS_MAX: usize = 4_096;
/// Requests of one SPIFFE ID in progress at once: half, because all members of an attempt may share one ID. While others have
/// requests in progress, one ID has at most as many as are still free for all others.
pub const REQUESTS_PER_PEER_MAX: usize = REQUESTS_MAX / 2;
/// Requests in progress at once that are reserved for operators who end access or lift locks. Other callers cannot use them.
pub const REQUESTS_OPERATORS_MAX: usize = 256;
/// The time after which the daemon refuses a call that exceeds the caller's share or rate. The wait slows callers that retry at
/// once.
pub const REFUSAL_WAIT: Duration = Duration::from_secs(1);
/// Refusals that wait at once, at about 4 KiB each with their stream. Past this bound, a refusal is sent at once.
pub const REFUSALS_WAITING_MAX: usize = 4_096;
/// Refusals of one SPIFFE ID that wait at once: all streams of four connections.
pub const REFUSALS_WAITING_PER_PEER_MAX: usize = 1_024;
/// Requests of callers that no catalog entry matches, in progress at once.
pub const REQUESTS_UNKNOWN_MAX: usize = 64;
/// Requests of one SPIFFE ID that no catalog entry matches, in progress at once.
pub const REQUESTS_UNKNOWN_PER_PEER_MAX: usize = 8;
/// Lists of jobs, leases or locks in progress at once. A list of 1,000 jobs takes some 5 ms of a core.
pub const LISTS_MAX: usize = 32;
/// Lists of one SPIFFE ID in progress at once.
pub const LISTS_PER_PEER_MAX: usize = 4;
/// Calls that wait for the disk at once. They do not count as requests in progress.
pub const DURABLE_WAITS_MAX: usize = 1_024;
/// Calls of one SPIFFE ID that wait for the disk at once: enough for a script with many endings.
pub const DURABLE_WAITS_PER_PEER_MAX: usize = 128;
/// Streams of members and of resource servers: one for each member of two of the largest attempts, and as many again while members
/// replace their connections.
pub const FEEDS_MAX: usize = 4 * MEMBERS_MAX as usize;
/// Streams that watch a job or follow the ledger.
pub const WATCHES_MAX: usize = 2_048;
/// Streams of one SPIFFE ID that watch a job or follow the ledger: a console with a job in each of its windows.
pub const WATCHES_PER_PEER_MAX: usize = 256;
/// Bytes that are buffered for all callers that the catalog knows, of requests and of answers.
pub const BUFFERED_BYTES_MAX: usize = 256 << 20;
/// Bytes that are buffered for one SPIFFE ID: an eighth.
pub const BUFFERED_BYTES_PER_PEER_MAX: usize = BUFFERED_BYTES_MAX / 8;
/// Bytes that are buffered for operators who end access or lift locks, in addition to [`BUFFERED_BYTES_MAX`].
pub const BUFFERED_BYTES_OPERATORS_MAX: usize = 32 << 20;
/// Bytes that are buffered for all callers that no catalog entry matches.
pub const BUFFERED_BYTES_UNKNOWN_MAX: usize = 4 << 20;
/// Bytes that are buffered for one such caller: the answers of `whoami` and of reflection.
pub const BUFFERED_BYTES_UNKNOWN_PER_PEER_MAX: usize = 256 << 10;
/// Bytes that a request uses in addition to its headers and message: its task and the beginning of its response.
pub const REQUEST_BYTES: usize = 4 << 10;
/// The largest value that a configuration may set for a bound on connections, streams or requests: one process can hold a million
/// sockets open.
pub const ROOM_MAX: u32 = 1_000_000;
/// Requests in progress of members that return after a restart: enough to fill the ledger's batches, but so few that
/// the request for a new job does not wait behind thousands of them.
pub const RETURNING_MAX: usize = 64;
/// Requests of returning members in progress and waiting: half of all. The other half is for new callers.
pub const RETURNING_WAITING_MAX: usize = REQUESTS_MAX / 2;
/// The longest wait of a returning member's request: half of the time for which the client waits.
pub const RETURNING_WAIT: Duration = Duration::from_secs(5);
/// The time from SIGTERM to the exit of the daemon.
pub const SHUTDOWN: Duration = Duration::from_secs(10);
/// The longest time for which a call waits until an ending is on disk. A client that wants to wait longer calls again.
pub const DURABLE_WAIT: Duration = Duration::from_secs(30);
/// The time after which an open stream is authorized again, because rules may read the time. After a lock and a reload, this
/// happens at once.
pub const REAUTHORIZE: Duration = Duration::from_secs(1);
/// The longest time for which a request waits for its record.
pub const LEDGER_WAIT: Duration = Duration::from_secs(5);
/// The longest time for which the command line waits for one answer: twice the longest wait for a record.
pub const CALL: Duration = Duration::from_secs(10);
/// The time between two polls of a command that watches a list.
pub const WATCH: Duration = Duration::from_secs(2);

// ---------- files ----------

/// Bytes of a configuration, catalog or policy file.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a certificate, key or bundle file: a bundle of 64 large roots is under 256 KiB.
pub const PEM_BYTES_MAX: u64 = 1 << 20;
/// Principals, audiences and resources of a catalog together. 10,000 of them take 0.1 s to prepare for policy, and the patterns of
/// different tenants are compared in pairs.
pub const CATALOG_ENTRIES_MAX: usize = 20_000;
/// Entries of one tenant, if the catalog has several tenants, so that one tenant cannot fill the catalog.
pub const CATALOG_ENTRIES_PER_TENANT_MAX: usize = CATALOG_ENTRIES_MAX / 4 * 3;
/// Mistakes of the catalog that one answer names. The log has all of them.
pub const CATALOG_MISTAKES_SHOWN_MAX: usize = 1_000;
/// Mistakes of the catalog that the answer to `status` and `doctor` names: enough for a person to begin with.
pub const CATALOG_MISTAKES_SHOWN_BRIEFLY_MAX: usize = 20;
/// Questions to the policies in one search for catalog entries without effect: some 0.2 s. After that, entries count as
/// used.
pub const POLICY_GAP_QUESTIONS_MAX: usize = 5_000;
/// The deepest nesting of brackets in one policy, because Cedar reads by recursion.
pub const POLICY_BRACKETS_MAX: usize = 16;
/// The highest number of `||`, `&&`, `+`, `-`, `*` and `if` in one policy, because each can nest the expression one level deeper.
pub const POLICY_OPERATORS_MAX: usize = 48;
/// The highest number of attributes in one chain, as in `a.b.c`.
pub const POLICY_CHAIN_MAX: usize = 32;
/// Moments with which the policies for one action compare the time. If there are more, decisions about this action are cached for
/// only a second.
pub const POLICY_MOMENTS_MAX: usize = 16;
/// Policies of a set. Each policy that applies to an action adds less than a microsecond to each decision about it.
pub const POLICIES_MAX: usize = 1_000;
/// Purposes of one dataset that `who-can` tries: for each purpose, policy decides about each catalog entry.
pub const WHO_CAN_PURPOSES_MAX: usize = 32;
/// Catalog entries that an answer names as the approvers of one gate.
pub const APPROVERS_SHOWN_MAX: usize = 8;
/// Files of one applied policy, and files of its test cases.
pub const POLICY_FILES_MAX: usize = 256;

/// Changes of the rules that wait for approval. Each keeps a policy of up to 256 KiB.
pub const CHANGES_PROPOSED_MAX: usize = 16;

/// Changes of one person that wait for approval, so that one person cannot take all slots.
pub const CHANGES_PER_PERSON_MAX: usize = 4;

/// Changes of the rules that no longer wait and that `policy history` still lists: about 2 KiB each, without their policies.
pub const CHANGES_CLOSED_KEPT_MAX: usize = 32;

/// Keys that may sign policies, and signatures in one file: two people who both change their keys need four.
pub const POLICY_SIGNATURES_MAX: usize = 8;

/// Bytes of a file with the signatures of a policy.
pub const POLICY_SIGNATURE_BYTES_MAX: u64 = 16 << 10;
/// Lines of mistakes, failing cases and warnings in an answer about a policy.
pub const MISTAKES_SHOWN_MAX: usize = 100;
/// Waiting jobs that an answer about a policy names.
pub const JOBS_CHANGED_SHOWN_MAX: usize = 64;
/// Records at the end of the ledger that are searched for the decisions of a job: about a second of reading.
pub const EXPLAINED_RECORDS_MAX: u64 = 200_000;
/// Decisions of one job that are explained, and leases whose issue is remembered while they are searched.
pub const EXPLAINED_MAX: usize = 256;
/// Policies, and also catalogs, that the daemon keeps so that it can repeat old decisions: a change a day for some months.
pub const KEPT_RULES_MAX: usize = 128;
/// Bytes on disk of all kept policies and catalogs. The oldest are removed first, but never the rules in force.
pub const KEPT_RULES_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one kept file: a catalog of the largest tenants' files.
pub const KEPT_FILE_BYTES_MAX: u64 = 128 << 20;
/// Cases of a policy set: 10,000 are decided in well under a second.
pub const POLICY_CASES_MAX: usize = 10_000;
/// Bytes of each of the three caches of a policy engine: many times what a site with 10,000 catalog entries needs.
pub const POLICY_CACHE_BYTES_MAX: usize = 32 << 20;
/// Decisions that one policy engine caches.
pub const DECISIONS_KEPT_MAX: usize = 65_536;
/// Contexts that one policy engine caches, so that questions about other resources need not make them again.
pub const CONTEXTS_KEPT_MAX: usize = 4_096;
/// Forbids that are joined into one, so that an evaluation does not nest deeply.
pub const FORBIDS_JOINED_MAX: usize = 16;
/// Decisions that one policy engine caches about all actions of a job at once, if policy allowed them.
pub const BUNDLES_KEPT_MAX: usize = 16_384;

// ---------- the wrapper ----------

/// The time from SIGTERM to SIGKILL, if the job file does not set it.
pub const TERM_GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// The longest time from SIGTERM to SIGKILL. The access of the command has already ended.
pub const TERM_GRACE_MAX: Duration = Duration::from_secs(10 * 60);
/// The time for which the wrapper waits after SIGKILL, because a process in an uninterruptible wait may never end.
pub const KILL_WAIT: Duration = Duration::from_secs(2);
/// Credentials of one member: two halves of as many audiences as a job has resources.
pub const CREDENTIALS_MAX: usize = 2 * JOB_RESOURCES_MAX;
/// Sessions of killed agents in one directory that the next agent may continue: as many as one user runs on a machine.
pub const SESSIONS_LEFT_MAX: usize = 64;
/// The time between two checks that the credential files exist. A check is a few `stat` calls, and a lost file means at
/// most a second without access.
pub const CREDENTIAL_LOOK: Duration = Duration::from_secs(1);
/// The time for which an agent goes on after SIGTERM, if the job file does not set it. Kubernetes kills the agent after
/// 30 s, and the report of its end takes up to [`REPORT`].
pub const AGENT_FINISH: Duration = Duration::from_secs(20);
/// Bytes of the file in which another container reports how the work ended: a word or a number.
pub const WORD_BYTES_MAX: u64 = 64;
/// The time for which the file of [`WORD_BYTES_MAX`] may be empty or without its last newline, because a program is still writing
/// it.
pub const END_FILE_SETTLE_TIME: Duration = Duration::from_secs(1);
/// Bytes of a credential file that a killed wrapper left. Even the index of all credential files is under 4 MiB.
pub const CREDENTIAL_FILE_BYTES_MAX: u64 = 4 << 20;
/// The time for which a run tries to begin while the daemon does not answer: long enough for a restart, short enough
/// for a wrong address.
pub const START_PATIENCE: Duration = Duration::from_secs(10);
/// The longest time for a run that could not begin to close the job that it created.
pub const UNDO: Duration = Duration::from_secs(3);
/// The longest time for a wrapper to report the end of its command. If it does not succeed, access ends because heartbeats are
/// missed.
pub const REPORT: Duration = Duration::from_secs(5);
/// The first backoff of a client between two tries of a call.
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest backoff between two tries of a call: a restarted daemon is found within a heartbeat.
pub const RETRY_MAX: Duration = BEAT;
/// Threads of a daemon that serve requests. More threads would wait for the same locks. Other commands use one thread.
pub const WORKER_THREADS_MAX: usize = 32;
/// Threads that a daemon needs in addition: the ledger's writer, and blocking work.
pub const SPARE_THREADS: usize = 4;
/// The time for which the wrapper holds back a signal. If another process of `leasehold run` gets the signal in this time, the
/// command got it too, and the wrapper does not pass it on.
pub const SIGNAL_TOGETHER: Duration = Duration::from_millis(100);
/// The longest time in which a slow sender reaches all processes of a group with one signal.
pub const SIGNAL_LATE: Duration = Duration::from_secs(1);
/// The time for which a guard tries to end the processes of a job after SIGKILL, before it reports the processes that
/// it could not end.
pub const GUARD_PATIENCE: Duration = Duration::from_secs(30);
/// If an SVID has less life left than this, it was not renewed in time, and a run reports this.
pub const SVID_SHORT: Duration = Duration::from_secs(60);
/// The time between two checks whether the work that an agent watches has ended.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of a ticket file: 43 characters, and a newline of an editor.
pub const TICKET_BYTES_MAX: u64 = 256;

// ---------- pinned objects ----------

/// Objects of a manifest: at 128 bytes a line, 64 MiB of text.
pub const MANIFEST_OBJECTS_MAX: usize = 500_000;
/// Bytes of the text of a manifest.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Manifests that a gateway keeps in memory. Others are read again for each token.
pub const MANIFESTS_KEPT_MAX: usize = 64;
/// Objects whose bytes a gateway has compared and that it remembers: some 200 bytes each.
pub const PINNED_COMPARED_MAX: usize = 100_000;
/// The number of times that an object is compared with its pin again because it changed before it was opened.
pub const PINNED_TRIES: usize = 3;

// ---------- reports of use ----------

/// Uses in one report of a gateway: some 400 bytes each, in all less than half of a message.
pub const USES_PER_REPORT_MAX: usize = 256;
/// Reports of one gateway in a minute. A gateway makes a report every 10 s, and more only if thousands of leases end at once.
pub const USE_REPORTS_PER_MINUTE: u32 = 64;
/// The time between two reports about one live lease.
pub const USE_REPORT: Duration = Duration::from_secs(60);
/// Objects whose first use by a lease is remembered, for all leases. Past this bound, every use of an object counts as
/// the first use.
pub const USE_OBJECTS_MAX: usize = 1_000_000;

// ---------- the API of the Hugging Face Hub ----------

/// Files of one repository in a list. Models have some hundreds of files, and a list of 10,000 is 2 MiB.
pub const HUB_FILES_MAX: usize = 10_000;

// ---------- the local S3 endpoint ----------

/// Connections of programs to the local S3 endpoint of one run at once, each with one request. If more programs connect, the
/// connections that have waited longest for a request are closed. A data loader with 32 workers has some 10 in each worker.
pub const FORWARD_CONNECTIONS_MAX: usize = 512;
/// While no connection slot is free: the time between two searches for a connection that can be closed.
pub const FORWARD_SLOT_WAIT: Duration = Duration::from_millis(100);
/// The time that a connection waits for a request before it can be closed for others.
pub const FORWARD_QUIET_MIN: Duration = Duration::from_secs(1);
/// New connections to the local endpoint that wait for a slot, or for the check which user opened them.
pub const FORWARD_NEWCOMERS_MAX: usize = 64;
/// Connections to one gateway that wait for their next request.
pub const FORWARD_IDLE_MAX: usize = 64;
/// The time for which an idle connection to a gateway is kept. Servers keep idle connections for longer.
pub const FORWARD_IDLE: Duration = Duration::from_secs(10);
/// The time for which a program's connection may be open without a request.
pub const FORWARD_QUIET: Duration = Duration::from_secs(600);
/// Bytes of one request's headers that are buffered, and also of its body.
pub const FORWARD_HEADER_BYTES_MAX: usize = 256 << 10;
/// The default time for which a request is held while the member is away or the gateway cannot be reached: longer than
/// a restart of the daemon, shorter than the 60 s after which boto3 gives up a request.
pub const FORWARD_HOLD: Duration = Duration::from_secs(30);
/// The longest time for which a job file may hold requests.
pub const FORWARD_HOLD_MAX: Duration = Duration::from_secs(8 * 60);
/// The time for which a refused request waits for newer tokens. The gateway may learn of an ending earlier than `leasehold run`, by
/// some milliseconds.
pub const FORWARD_SETTLE: Duration = Duration::from_secs(2);
/// The time for which a connection may take to notice a cut before it is closed.
pub const FORWARD_CUT_GRACE: Duration = Duration::from_millis(100);
/// The validity of the local key, as the container endpoint states it. The key does not change. Python clients that see
/// less than 15 minutes fetch the key for each request.
pub const LOCAL_KEY_SHOWN: Duration = Duration::from_secs(12 * 3600);

// ---------- folders of a run: stage and sync ----------

/// Objects of one resource that are copied to a folder. A resource with more files is read through S3.
pub const STAGE_OBJECTS_MAX: usize = 100_000;
/// Requests of one copy at once: enough for a fast network, and a sixteenth of the requests that a gateway allows one SPIFFE ID.
pub const STAGE_REQUESTS: usize = 8;
/// Bytes of an object that one request of a copy asks for.
pub const STAGE_CHUNK: u64 = 32 << 20;
/// A copy fails after this many broken transfers in a row that brought no byte.
pub const STAGE_TRIES: u32 = 8;
/// The time between two log lines about the progress of a copy.
pub const STAGE_SAY: Duration = Duration::from_secs(5);
/// Bytes of the list of a copy's complete files: 100,000 lines of 640 bytes.
pub const STAGE_JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// The number of attempts to remove a copy while a program writes into it.
pub const STAGE_WIPE_TRIES: usize = 5;
/// Files of a synced folder.
pub const SYNC_FILES_MAX: usize = 100_000;
/// Nested folders in a synced folder: fewer than a key of the gateway may have.
pub const SYNC_DEPTH_MAX: usize = 32;
/// The time between two checks of a synced folder.
pub const SYNC_LOOK: Duration = Duration::from_secs(1);
/// The time for which a file must be unchanged before it counts as finished.
pub const SYNC_SETTLE: Duration = Duration::from_secs(3);
/// Uploads of one folder at once. Each has up to three parts in memory.
pub const SYNC_UPLOADS: usize = 3;
/// Bytes of one part of an upload. Files of more than 140 GiB have larger parts.
pub const SYNC_PART: u64 = 16 << 20;
/// Parts of one upload: fewer than a gateway accepts.
pub const SYNC_PARTS_MAX: u64 = 9_000;
/// After this many failed uploads of one file, the end of a run no longer waits for the file.
pub const SYNC_TRIES: u32 = 5;

// ---------- Slurm ----------

/// The longest time for which a prolog or an epilog waits for the daemon, because slurmctld and the next job on the
/// node wait for the script.
pub const SLURM_BUDGET: Duration = Duration::from_secs(2);
/// Reports that a head node keeps while the daemon does not answer: a begin and an end of each of 5,000 runs.
pub const SPOOL_REPORTS_MAX: usize = 10_000;
/// Bytes of one report or note on disk.
pub const SPOOL_FILE_BYTES_MAX: u64 = 4 << 10;
/// The time for which a head node tries to report the begin of a run. Later, the members of the run have begun the attempt or given
/// up.
pub const SPOOL_BEGIN_KEPT: Duration = Duration::from_secs(10 * 60);
/// The time for which the report of a run's end waits, if the run began no attempt so far. The call that reports the begin may
/// still be under way: a call, and the wait for its record.
pub const SPOOL_BEGIN_LATEST: Duration = Duration::from_secs(20);
/// The time for which a head node tries to report the end of a run: the longest duration of a job.
pub const SPOOL_NOTE_AGE_MAX: Duration = JOB_DURATION_MAX;

/// Letters by which a mistyped name may differ from the name that a message suggests. If more differ, the person meant another
/// name.
pub const NEAREST_EDITS_MAX: usize = 8;
/// Steps of one search for the nearest word: 10 ms. Names of 40 bytes take 2,000 steps each. Further names are not
/// compared.
pub const NEAREST_STEPS_MAX: usize = 4 << 20;
/// Names that one search for the nearest name reads, first those of the same tenant and kind: 2 ms.
pub const NEAREST_NAMES_MAX: usize = 4_096;
/// Open jobs that one search for the nearest name reads.
pub const NEAREST_JOBS_MAX: usize = 256;
/// Names of variables that one message lists. The message counts the others.
pub const NAMES_SHOWN_MAX: usize = 20;
/// If a value has at least this many characters and all are hexadecimal digits, messages do not show it. The shortest keys of this
/// form have 32.
pub const HEX_SECRET_MIN: usize = 32;
/// Characters of a value that a message quotes: enough for a person to find the value.
pub const SHOWN_CHARS_MAX: usize = 80;
/// Combining marks on one letter that are shown as they are. All scripts need fewer.
pub const MARKS_IN_A_ROW_MAX: usize = 4;

// ---------- the command line ----------

/// Jobs and live leases that `audit tail --about` follows at once: some 60 MiB of their names.
pub const AUDIT_FOLLOWED_MAX: usize = 1_000_000;

// ---------- the file server ----------

/// Bytes that are read, checked and sent at a time.
pub const FILE_CHUNK: usize = 64 << 10;
/// Transfers under way at once. More are refused.
pub const FILE_TRANSFERS_MAX: usize = 512;
/// Bytes of one uploaded file by default: the shard of a large checkpoint.
pub const FILE_UPLOAD_BYTES_MAX: u64 = 16 << 30;
/// Segments of a path below a resource.
pub const FILE_PATH_DEPTH_MAX: usize = 32;
/// Bytes of one segment: the limit of file systems.
pub const FILE_SEGMENT_BYTES_MAX: usize = 255;
/// Entries of a listing. A folder with more entries is refused, never shown in part.
pub const FILE_LISTING_MAX: usize = 10_000;
/// The time for which a transfer may take to notice the end of access before its connection is cut.
pub const FILE_CUT_GRACE: Duration = Duration::from_millis(100);
/// Ended transfers that wait for a slow observer.
pub const FILE_TRANSFERS_TOLD: usize = 1_024;

// ---------- the gateway ----------

/// Bytes that the gateway reads, checks and sends at a time: larger chunks are not faster.
pub const GATEWAY_CHUNK: u64 = 256 << 10;
/// The longest time for which a request of an attempt waits until the uploads and deletions of earlier attempts are done.
pub const GATEWAY_CHANGE_WAIT: Duration = Duration::from_secs(15);
/// Written bytes of an upload after which a sync to the disk begins.
pub const GATEWAY_SYNC_STEP: u64 = 32 << 20;
/// Bytes of a key below a leased prefix: S3's limit for a whole key.
pub const GATEWAY_KEY_BYTES_MAX: usize = 1_024;
/// Names between the slashes of such a key.
pub const GATEWAY_KEY_DEPTH_MAX: usize = 64;
/// Bytes of one such name: the limit of file systems.
pub const GATEWAY_SEGMENT_BYTES_MAX: usize = 255;
/// Entries of one listed folder: some tenths of a second of work on the disk. A folder with more entries is refused, never shown
/// in part.
pub const GATEWAY_FOLDER_ENTRIES_MAX: usize = 200_000;
/// Keys and common prefixes of one page of a listing: S3's limit.
pub const GATEWAY_LIST_MAX: usize = 1_000;
/// Keys of one bulk delete: S3's limit.
pub const GATEWAY_DELETE_MAX: usize = 1_000;
/// Reads, writes and listings in one directory that use the disk at once. More wait.
pub const GATEWAY_DISK_WORK_MAX: usize = 64;
/// Stores of one gateway.
pub const GATEWAY_STORES_MAX: usize = 256;
/// Requests in progress at once, transfers included: with two chunks each, under 512 MiB.
pub const GATEWAY_REQUESTS_MAX: usize = 1_024;
/// Requests of one SPIFFE ID in progress at once: an eighth, so that a few identities cannot stop the others. If all
/// members of an attempt share one identity, they share this bound.
pub const GATEWAY_REQUESTS_PER_PEER_MAX: usize = GATEWAY_REQUESTS_MAX / 8;
/// Bytes of a request's headers: two tokens, S3's 2 KiB of metadata, a signature, and a long key.
pub const GATEWAY_HEADER_BYTES_MAX: u32 = 64 << 10;
/// Tokens of one request: one for each half.
pub const GATEWAY_TOKENS_PER_REQUEST_MAX: usize = 2;
/// Accepted tokens that are kept: at about 8 KiB each, 64 MiB.
pub const GATEWAY_SESSIONS_MAX: usize = 8_192;
/// Leases whose direct keys a gateway keeps, at under 1 KiB each: 4 MiB. A key that was removed is resolved again.
pub const GATEWAY_DIRECT_KEYS_MAX: usize = 4_096;
/// Leases without a direct key that a gateway remembers, so that it does not ask the daemon again.
pub const GATEWAY_KEYLESS_LEASES_MAX: usize = 256;
/// Dates for which the key of one lease is kept: yesterday, today and tomorrow.
pub const GATEWAY_DATES_PER_KEY_MAX: usize = 3;
/// Headers that one signature covers: a usual client signs under 20.
pub const GATEWAY_SIGNED_HEADERS_MAX: usize = 64;
/// Connections of clients without an SVID, before their first signature was checked. Each takes some 100 KiB at most: 25 MiB.
pub const GATEWAY_DIRECT_UNPROVEN_MAX: usize = 256;
/// Connections of one address before their first signature was checked: a quarter of [`GATEWAY_DIRECT_UNPROVEN_MAX`].
pub const GATEWAY_DIRECT_UNPROVEN_PER_ADDRESS_MAX: usize = GATEWAY_DIRECT_UNPROVEN_MAX / 4;
/// The time in which a connection must send a request with a good signature. It is longer than [`GATEWAY_HOLD`], for which a
/// request is held while tokens cannot be checked, so a client has time to try again.
pub const GATEWAY_DIRECT_UNPROVEN_TIME: Duration = Duration::from_secs(30);
/// Connections of clients without an SVID whose signature was checked.
pub const GATEWAY_DIRECT_CONNECTIONS_MAX: usize = 1_024;
/// Such connections of one holder: as many as its requests in progress.
pub const GATEWAY_DIRECT_CONNECTIONS_PER_HOLDER_MAX: usize = GATEWAY_REQUESTS_PER_PEER_MAX;
/// The time between two checks for a newer certificate of the listener for clients without an SVID.
pub const GATEWAY_CERTIFICATE_LOOK: Duration = Duration::from_secs(60);
/// The time for which a request is held while tokens cannot be checked. Then the client is asked to try again. It is
/// longer than a restart of the daemon, shorter than the timeouts of clients.
pub const GATEWAY_HOLD: Duration = Duration::from_secs(10);
/// The time for which a transfer may take to notice the end of access before its connection is cut.
pub const GATEWAY_CUT_GRACE: Duration = Duration::from_millis(50);
/// The longest pause between two pieces of a request's body.
pub const GATEWAY_WRITER_STALL: Duration = Duration::from_secs(30);
/// Bytes of a body per second that a client must send in the long run. Slower clients would keep their slots for days.
pub const GATEWAY_BODY_PACE: u32 = 8 << 10;
/// The total time for which the gateway waits for the bytes of a body before it enforces [`GATEWAY_BODY_PACE`].
pub const GATEWAY_BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one `PutObject` or part: S3's limit.
pub const GATEWAY_PUT_BYTES_MAX: u64 = 5 << 30;
/// Bytes of a part that is not the last: S3's limit.
pub const GATEWAY_PART_BYTES_MIN: u64 = 5 << 20;
/// Parts of one upload: S3's limit.
pub const GATEWAY_PARTS_MAX: u16 = 10_000;
/// Parts of all uploads under way, at about 200 bytes each.
pub const GATEWAY_PARTS_IN_ALL_MAX: usize = 500_000;
/// Parts of all uploads of one job under way: an eighth.
pub const GATEWAY_PARTS_PER_JOB_MAX: usize = GATEWAY_PARTS_IN_ALL_MAX / 8;
/// Uploads in parts under way at once.
pub const GATEWAY_UPLOADS_MAX: usize = 4_096;
/// Uploads in parts of one job under way at once: a few files of each rank.
pub const GATEWAY_UPLOADS_PER_JOB_MAX: usize = 1_024;
/// The time for which an upload in parts may stay unused: as long as a member that is away may come back.
pub const GATEWAY_UPLOAD_IDLE: Duration = REJOIN;
/// The time between two checks for uploads whose access ended.
pub const GATEWAY_UPLOAD_LOOK: Duration = Duration::from_secs(2);
/// Bytes of an upload's parts that are joined between two checks of its access.
pub const GATEWAY_JOIN_STEP: u64 = 64 << 20;
/// Listings under way at once.
pub const GATEWAY_LISTINGS_MAX: usize = 256;
/// Listings of one SPIFFE ID under way at once.
pub const GATEWAY_LISTINGS_PER_PEER_MAX: usize = 64;
/// Listings of one tenant's jobs under way at once: half of all.
pub const GATEWAY_LISTINGS_PER_TENANT_MAX: usize = GATEWAY_LISTINGS_MAX / 2;
/// Listings in one directory that use the disk at once, out of [`GATEWAY_DISK_WORK_MAX`]. Reads and writes have the rest.
pub const GATEWAY_WALKS_MAX: usize = 4;
/// Listings of one tenant in one directory that use the disk at once: a half, so that another tenant need not wait.
pub const GATEWAY_WALKS_PER_TENANT_MAX: usize = GATEWAY_WALKS_MAX / 2;
/// Listings of one SPIFFE ID that use the disk at once, in all directories together. More wait, and other holders of the tenant go
/// first.
pub const GATEWAY_WALKS_PER_HOLDER_MAX: usize = 2;
/// Listings that use the disk at once, in all directories together. More wait. Each keeps [`GATEWAY_WALK_NAMES_BYTES`] of names and
/// up to [`GATEWAY_LIST_MAX`] entries of some KiB at the most, so together they take under 128 MiB.
pub const GATEWAY_WALKS_IN_ALL_MAX: usize = 16;
/// Listings of one tenant that use the disk at once, in all directories together: half of all.
pub const GATEWAY_WALKS_IN_ALL_PER_TENANT_MAX: usize = GATEWAY_WALKS_IN_ALL_MAX / 2;
/// Bytes of the names that a listing keeps while it walks through folders: more than a page of the longest names. If a folder has
/// more names, the listing reads the folder again when it has used the kept ones.
pub const GATEWAY_WALK_NAMES_BYTES: usize = 4 << 20;
/// Bytes of names that a listing keeps at least for one folder, even if the folder lies deep: some 50 of the longest names.
pub const GATEWAY_WALK_LEVEL_BYTES_MIN: usize = 16 << 10;
/// Bytes that a kept name takes beside its letters.
pub const GATEWAY_WALK_NAME_BYTES: usize = 48;
/// Pages without entries that one listing reads from an object store before it is refused. Such a page has only the marks of
/// folders.
pub const GATEWAY_EMPTY_PAGES_MAX: usize = 100;
/// Entries of folders that one listing visits: some seconds of work on the disk. A listing that needs more is refused.
pub const GATEWAY_WALK_ENTRIES_MAX: usize = 500_000;
/// Completed uploads that are remembered, for clients that did not get the answer.
pub const GATEWAY_COMPLETED_KEPT: usize = 1_024;
/// Bytes of one chunk of a chunked upload: clients send 64 KiB to 1 MiB, and each is in memory until it is complete.
pub const GATEWAY_CHUNK_BYTES_MAX: usize = 2 << 20;
/// Bytes of a refused upload that are received and discarded, because most clients read an answer only after they have sent
/// everything: the usual size of a part.
pub const GATEWAY_UNREAD_BYTES_MAX: usize = 64 << 20;
/// The time for which a refused upload is received.
pub const GATEWAY_UNREAD_WAIT: Duration = Duration::from_secs(10);
/// Bytes of one part that the gateway sends to an object store, if the gateway makes the parts.
pub const GATEWAY_BACKEND_PART_BYTES: usize = 8 << 20;
/// Parts of one upload that the gateway sends to an object store at once.
pub const GATEWAY_BACKEND_PARTS_IN_FLIGHT: usize = 2;
/// Bytes of one part of a client's upload to an object store. The part stays in memory until the store has it.
pub const GATEWAY_BUCKET_PART_BYTES_MAX: usize = 64 << 20;
/// KiB of memory for uploads to all object stores at once: 512 MiB.
pub const GATEWAY_UPLOAD_KIB_MAX: usize = 512 << 10;
/// KiB of the memory of [`GATEWAY_UPLOAD_KIB_MAX`] for the uploads of one SPIFFE ID: half, enough for four of the largest parts.
pub const GATEWAY_UPLOAD_KIB_PER_PEER_MAX: usize = GATEWAY_UPLOAD_KIB_MAX / 2;
/// Bytes of one block of the memory for uploads. Received bytes are copied into blocks.
pub const GATEWAY_UPLOAD_BLOCK: usize = 256 << 10;
/// Pairs of a lease and an object whose use is added up until it is logged: some 60 MiB. Further use is counted only in the
/// metrics.
pub const GATEWAY_USAGES_MAX: usize = 65_536;
/// The time between two checks for leases that are over. A check logs the use of these leases.
pub const GATEWAY_USAGE_LOOK: Duration = Duration::from_secs(10);
/// If a lease was not used for this time, its use so far is logged.
pub const GATEWAY_USAGE_IDLE: Duration = Duration::from_secs(15 * 60);
/// Bytes of an XML body: the list of 10,000 parts with their checksums takes 3 MiB.
pub const GATEWAY_XML_BYTES_MAX: usize = 4 << 20;

// ---------- people who log in ----------

/// The life of a login, if the configuration does not set it: a working day.
pub const LOGIN_LIFE: Duration = Duration::from_secs(8 * 3600);
/// The longest life of a login. After that, a removal from a group of the identity provider has taken effect.
pub const LOGIN_LIFE_MAX: Duration = Duration::from_secs(12 * 3600);
/// The shortest life of a login. Shorter logins would end before a person has read a request.
pub const LOGIN_LIFE_MIN: Duration = Duration::from_secs(60);
/// Logins in force: 10,000 people, or fewer who log in more often. Each takes about 1 KiB.
pub const LOGINS_MAX: usize = 10_000;
/// Logins of one person in force, from several machines and with several groups. One more login ends the oldest.
pub const LOGINS_PER_PERSON_MAX: usize = 16;
/// Logins that are checked at once, because each may wait for the identity provider. Past this bound, a login is refused, and the
/// client tries again.
pub const LOGINS_AT_ONCE_MAX: usize = 32;
/// Logins that wait because their ID token is dated ahead of our clock.
pub const LOGINS_AHEAD_MAX: usize = 256;
/// Logins of one person that wait because their ID token is dated ahead of our clock.
pub const LOGINS_AHEAD_PER_PERSON_MAX: usize = 2;
/// Bytes of the body of a login: an ID token and a request for a certificate.
pub const LOGIN_BODY_BYTES_MAX: usize = 48 << 10;
/// Bytes of an ID token. A token with hundreds of groups has about 16 KiB.
pub const ID_TOKEN_BYTES_MAX: usize = 32 << 10;
/// Bytes of a certificate signing request as PEM. A request for a P-256 key has about 400.
pub const KEY_REQUEST_BYTES_MAX: usize = 4 << 10;
/// The highest age of an ID token when it is used: enough for a person to type the code, and little time for a thief.
pub const ID_TOKEN_AGE_MAX: Duration = Duration::from_secs(10 * 60);
/// The lead that the clock of the identity provider may have. A login waits until our clock reaches the token's time,
/// and clients wait 30 s for a login.
pub const ID_TOKEN_EARLY_MAX: Duration = Duration::from_secs(20);
/// ID tokens that are remembered, so that a token cannot be used twice: more than people send in [`ID_TOKEN_AGE_MAX`].
pub const ID_TOKENS_REMEMBERED_MAX: usize = 16_384;
/// ID tokens of one person that are remembered, so a person cannot log in more often than this in [`ID_TOKEN_AGE_MAX`].
pub const ID_TOKENS_PER_PERSON_MAX: usize = 32;
/// Bytes of an answer of the identity provider. Key sets and discovery documents have a few KiB.
pub const PROVIDER_ANSWER_BYTES_MAX: usize = 256 << 10;
/// The time for which the keys of the identity provider are used before they are fetched again.
pub const PROVIDER_KEYS_KEPT: Duration = Duration::from_secs(3600);
/// The shortest time between two fetches of the keys of the identity provider, so that invalid tokens do not cause many
/// fetches.
pub const PROVIDER_KEYS_RETRY: Duration = Duration::from_secs(10);
/// Groups in `[people.groups]`. The path of a SPIFFE ID has one group, and each group needs an entry of the catalog.
pub const PEOPLE_GROUPS_MAX: usize = 256;
/// Authentication methods (`amr`) of one login that are kept. Providers send one to four.
pub const LOGIN_METHODS_MAX: usize = 16;
/// Bytes of one authentication method, or of a claim's value that is compared.
pub const LOGIN_WORD_BYTES_MAX: usize = 256;
/// Log lines in a minute about ID tokens that are not accepted, because all callers can cause such lines.
pub const LOGIN_LINES_MAX: u32 = 60;
/// The time for which `leasehold login` waits for a person in a browser.
pub const LOGIN_WAIT: Duration = Duration::from_secs(10 * 60);

// ---------- notices ----------

/// Webhooks of one daemon. Each has a queue and a task.
pub const WEBHOOKS_MAX: usize = 16;
/// Bytes of a file with a URL or with secrets of a webhook.
pub const WEBHOOK_FILE_BYTES_MAX: u64 = 4 << 10;
/// Bytes of a secret that signs notices. Standard Webhooks allows these lengths.
pub const WEBHOOK_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets that sign one notice: the new and the old secret while receivers change, and one in reserve.
pub const WEBHOOK_SECRETS_MAX: usize = 3;
/// Tenants that one webhook names.
pub const WEBHOOK_TENANTS_MAX: usize = 256;
/// Characters of one text in a notice.
pub const NOTICE_TEXT_CHARS_MAX: usize = 600;
/// Entries of one list in a notice.
pub const NOTICE_LIST_MAX: usize = 20;
/// Bytes of the body of a notice: a few lists of names, and texts.
pub const NOTICE_BYTES_MAX: usize = 16 << 10;
/// Notices that wait for one receiver: a day of approvals of a large team.
pub const NOTICES_MAX: usize = 1_000;
/// Bytes of the notices that wait for one receiver.
pub const NOTICES_BYTES_MAX: usize = 2 << 20;
/// Notices of refused requests may fill one part in this many of a receiver's queue, because all callers can cause such notices.
pub const NOTICES_REFUSED_PART: usize = 4;
/// The first wait after a failed delivery.
pub const NOTICE_RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two attempts, also if the receiver asks for a longer one.
pub const NOTICE_RETRY_MAX: Duration = Duration::from_secs(60);
/// The time for which a notice is tried again. Later it is no longer useful, and it delays other notices.
pub const NOTICE_AGE_MAX: Duration = Duration::from_secs(3_600);
/// The time in which a receiver must answer.
pub const RECEIVER_PATIENCE: Duration = Duration::from_secs(10);
/// The time between two checks whether the position of a webhook in the ledger must be saved.
pub const NOTICE_PLACE_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two attempts to read a record that cannot be read.
pub const NOTICE_READ_AGAIN: Duration = Duration::from_secs(30);
/// Records at the end of the ledger that a start reads again for notices that were not delivered.
pub const NOTICE_RESUME_RECORDS_MAX: u64 = 100_000;
