//! The source for the Workload API. It handles rotations, outages and refusals.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{
    endpoint::WorkloadEndpoint,
    message::{MessageFault, Pick, WorkloadState, listed},
    stream::{self, StreamEnd},
    wire::X509svidResponse,
};
use crate::{
    backoff::Backoff,
    clock::{BootTime, Clock},
    identity::{
        bundle::TrustBundles,
        load::LoadError,
        origin_status::OriginStatus,
        source::{IdentitySource, ReloadOutcome, Trust},
        source_state::SourceState,
    },
    limits,
};

/// Options for the use of the Workload API.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    /// The address of the agent.
    pub endpoint: WorkloadEndpoint,
    /// The choice of the SVID, if the agent gives several.
    pub pick: Pick,
    /// The longest accepted life of an SVID.
    pub svid_life_max: Duration,
    /// The time for which the last good state is used while the agent fails.
    pub outage_max: Duration,
}

impl WorkloadOptions {
    /// Makes options with the bounds from `limits`.
    pub fn new(endpoint: WorkloadEndpoint) -> Self {
        WorkloadOptions {
            endpoint,
            pick: Pick::First,
            svid_life_max: limits::SVID_LIFE_MAX,
            outage_max: limits::IDENTITY_OUTAGE_MAX,
        }
    }
}

/// A source with the last good message of the agent. It connects while [`IdentitySource::follow`] runs. The limit of an outage
/// is [`WorkloadOptions::outage_max`].
///
/// | What happens | What is shown | Then |
/// |---|---|---|
/// | a message | its whole state; absent parts were withdrawn | the stream stays open |
/// | a message with an empty mandatory field, or another unusable message | the previous state | the stream stays open |
/// | the agent closes the stream without an error | the previous state | a retry at once |
/// | the agent is unreachable | the previous state, until the limit | retries with backoff |
/// | PermissionDenied | no SVID; roots until the limit | retries with backoff |
/// | InvalidArgument, Unimplemented | the previous state, until the limit | no retry except by [`IdentitySource::reload`] |
/// | the limit passes | nothing: no peer is trusted | as before |
pub struct WorkloadSource {
    options: WorkloadOptions,
    clock: Arc<dyn Clock>,
    status: OriginStatus,
}

impl WorkloadSource {
    /// Makes a source. It does not connect yet: only [`IdentitySource::follow`] does.
    pub fn new(options: WorkloadOptions, clock: Arc<dyn Clock>) -> Self {
        if let WorkloadEndpoint::Tcp(address) = options.endpoint
            && !address.ip().is_loopback()
        {
            tracing::warn!(%address, "the Workload API is used over a network without TLS: every program that listens on that network sees our key");
        }
        let bundles = TrustBundles::empty().with_svid_life_max(options.svid_life_max);
        let standing = SourceState::not_asked_yet();
        let origin = format!("the SPIFFE agent at {}", options.endpoint);
        let status = OriginStatus::new(origin, bundles, standing, options.outage_max, clock.clone());
        WorkloadSource { options, clock, status }
    }

    /// Keeps a stream open until shutdown.
    async fn poll(&self) {
        let mut backoff = Backoff::new(limits::RETRY_FIRST, limits::RETRY_MAX);
        loop {
            let began = self.clock.now().boot;
            let (end, has_answered) = match stream::open(&self.options.endpoint, &*self.clock).await {
                Ok(messages) => self.read(messages).await,
                Err(end) => (end, false),
            };
            // A slow refusal is not a stream that worked, so it is retried with backoff as well.
            let lived = has_answered && self.lived(began);
            self.note_end(&end);
            let wait = match end {
                // Retry at once, unless the agent only closes streams.
                StreamEnd::Closed if lived => {
                    backoff.reset();
                    Duration::ZERO
                }
                StreamEnd::Never { .. } => {
                    self.status.retry_requested().await;
                    Duration::ZERO
                }
                StreamEnd::Away { .. } if lived => {
                    backoff.reset();
                    backoff.next_wait()
                }
                _ => backoff.next_wait(),
            };
            self.status.wait_to_retry(wait).await;
        }
    }

    /// Whether a stream lasted longer than an agent needs to refuse it.
    fn lived(&self, began: BootTime) -> bool {
        self.clock.now().boot.since(began) >= limits::RETRY_FIRST
    }

    /// Reads one stream to its end. Returns the kind of the end, and whether the agent sent a message.
    async fn read(&self, mut messages: Streaming<X509svidResponse>) -> (StreamEnd, bool) {
        let endpoint = &self.options.endpoint;
        let first = tokio::select! {
            message = messages.message() => message,
            () = self.clock.sleep(limits::CALL) => {
                let why = format!("the SPIFFE agent at {endpoint} sent nothing");
                return (StreamEnd::Away { why }, false);
            }
        };
        if let Ok(None) = first {
            // Without a message, even an orderly end is not an answer.
            let why = format!("the SPIFFE agent at {endpoint} closed the stream and sent nothing");
            return (StreamEnd::Away { why }, false);
        }
        let (mut next, mut has_answered) = (first, false);
        loop {
            match next {
                Ok(Some(message)) => self.take(message),
                Ok(None) => return (StreamEnd::Closed, has_answered),
                Err(status) => return (StreamEnd::of(endpoint, &status), has_answered),
            }
            has_answered = true;
            let Some(patience) = self.patience() else {
                next = messages.message().await;
                continue;
            };
            next = tokio::select! {
                message = messages.message() => message,
                () = self.clock.sleep(patience) => {
                    let why = format!("the SPIFFE agent at {endpoint} did not rotate our SVID in time");
                    return (StreamEnd::Away { why }, true);
                }
            };
        }
    }

    /// Returns the time for which an open stream may be silent: until the renewal of the SVID is late. An agent that
    /// hangs or was replaced may keep its stream open without messages. A new connection then reaches the present
    /// agent.
    fn patience(&self) -> Option<Duration> {
        let trust = self.status.current();
        let leaf = trust.svid.as_ref()?.leaf();
        let life = leaf.not_after.since(leaf.not_before);
        let late = leaf.not_before.plus(life * 3 / 4);
        // The lower bound limits how often a working but late agent is contacted.
        Some(late.since(self.clock.now().wall).max(life / 8))
    }

    /// Publishes the state of a message, or logs why the message is discarded.
    fn take(&self, message: X509svidResponse) {
        let now = self.clock.now();
        match WorkloadState::read(message, &self.options.pick, self.options.svid_life_max, now.wall) {
            Ok(state) => self.show(state),
            Err(fault) => self.discard(&fault),
        }
    }

    fn show(&self, state: WorkloadState) {
        for line in state.left_out.iter().filter(|_| self.status.may_log()) {
            tracing::error!(line, "a part of a message of the SPIFFE agent cannot be used");
        }
        let before = self.status.current();
        let had = before.svid.as_ref();
        let standing = match &state.svid {
            Some(svid) => {
                let (id, until) = (svid.spiffe_id(), svid.not_after());
                let is_new = !had.is_some_and(|had| had.presents_as(svid))
                    || !state.bundles.trusts_as(&before.bundles);
                if is_new && self.status.may_log() {
                    tracing::info!(%id, %until, bundles = %state.bundles, "the SPIFFE agent gave us our SVID and bundles");
                }
                self.status.end_outage();
                SourceState::Good
            }
            None => {
                let (pick, given) = (&self.options.pick, listed(&state.given));
                let why = format!("the SPIFFE agent does not give us {pick}; it gives {given}");
                self.without_svid(why, had.is_some())
            }
        };
        self.status.replace(state.svid, state.bundles, standing);
    }

    fn discard(&self, fault: &MessageFault) {
        if self.status.may_log() {
            tracing::error!(%fault, "a message of the SPIFFE agent cannot be used: the previous SVID and bundles stay in use");
        }
        let why = format!("a message of the SPIFFE agent cannot be used: {fault}");
        match self.status.current().standing {
            SourceState::Awaited { .. } => self.status.set_state(SourceState::Awaited { why }),
            SourceState::Good | SourceState::Stale { .. } => {
                let since = self.status.begin_outage();
                self.status.set_state(SourceState::Stale { since, why });
            }
            SourceState::Ended { .. } | SourceState::GivenUp { .. } => {}
        }
    }

    /// Returns the state without an SVID: we wait for the first SVID, or our SVID was revoked.
    fn without_svid(&self, why: String, was_there: bool) -> SourceState {
        let since = self.status.begin_outage();
        match self.status.current().standing {
            SourceState::Awaited { .. } if !was_there => SourceState::Awaited { why },
            _ => SourceState::Ended { since, why },
        }
    }

    fn note_end(&self, end: &StreamEnd) {
        let trust = self.status.current();
        match end {
            StreamEnd::Closed => {}
            StreamEnd::Denied { said } => {
                let why = denied(&self.options.endpoint, said);
                let is_new = trust.svid.is_some()
                    || matches!(trust.standing, SourceState::Awaited { .. })
                        && trust.standing.why() != Some(&why);
                if is_new && self.status.may_log() {
                    tracing::error!(%why, "the SPIFFE agent gives us no identity");
                }
                let standing = self.without_svid(why, trust.svid.is_some());
                match trust.standing {
                    SourceState::GivenUp { .. } => {}
                    _ if trust.svid.is_some() => {
                        self.status.replace(None, TrustBundles::clone(&trust.bundles), standing);
                    }
                    _ => self.status.set_state(standing),
                }
            }
            StreamEnd::Never { why } => {
                if self.status.may_log() {
                    tracing::error!(%why, "the SPIFFE agent is not contacted again before SIGHUP or a restart");
                }
                let since = self.status.begin_outage();
                self.status.set_state(SourceState::Ended { since, why: why.clone() });
            }
            StreamEnd::Away { why } => {
                let since = self.status.begin_outage();
                match &trust.standing {
                    SourceState::Good => {
                        if self.status.may_log() {
                            tracing::warn!(%why, "the SPIFFE agent is unreachable: its last state is used until its SVIDs expire");
                        }
                        self.status.set_state(SourceState::Stale { since, why: why.clone() });
                    }
                    SourceState::Awaited { why: before } if before != why => {
                        if self.status.may_log() {
                            tracing::warn!(%why, "no identity yet");
                        }
                        self.status.set_state(SourceState::Awaited { why: why.clone() });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Returns the text if the agent gives us no identity. It says who can register the workload.
fn denied(endpoint: &WorkloadEndpoint, said: &str) -> String {
    let (uid, gid, pid) = (nix::unistd::getuid(), nix::unistd::getgid(), nix::unistd::getpid());
    format!(
        "the SPIFFE agent at {endpoint} has no identity for this process ({said}): ask the operators of SPIRE for a registration entry \
         on this node that matches it (uid {uid}, gid {gid}, pid {pid})"
    )
}

impl IdentitySource for WorkloadSource {
    fn current(&self) -> Arc<Trust> {
        self.status.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.status.watch()
    }

    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.status.follow(self.poll(), shutdown).await })
    }

    /// Ends the present wait for a retry.
    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        self.status.retry_now();
        Ok(ReloadOutcome::Unchanged)
    }
}
