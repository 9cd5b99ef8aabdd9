//! What is shown of the Workload API, through rotations, outages and refusals.

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

/// What is asked for, and for how long the last answer is used.
#[derive(Clone, Debug)]
pub struct WorkloadOptions {
    pub endpoint: WorkloadEndpoint,
    /// Which SVID is ours, where the agent gives several.
    pub pick: Pick,
    /// The longest life of an SVID that is accepted.
    pub svid_life_max: Duration,
    /// How long the last good state is used while the agent cannot be asked.
    pub outage_max: Duration,
}

impl WorkloadOptions {
    /// With the bounds of `limits`.
    pub fn new(endpoint: WorkloadEndpoint) -> Self {
        WorkloadOptions {
            endpoint,
            pick: Pick::First,
            svid_life_max: limits::SVID_LIFE_MAX,
            outage_max: limits::IDENTITY_OUTAGE_MAX,
        }
    }
}

/// Shows what the agent said last. Asks nothing until [`IdentitySource::follow`] runs.
///
/// | What happens | What is shown | Then |
/// |---|---|---|
/// | a message | its state, whole: what is absent was withdrawn | the stream goes on |
/// | a message with an empty mandatory field, or one that cannot be used | what was before | the stream goes on |
/// | the stream ends in order | what was before | asked again at once |
/// | the agent is away | what was before, until the limit | asked again, ever slower |
/// | PermissionDenied | no SVID; roots until the limit | asked again, ever slower |
/// | InvalidArgument, Unimplemented | what was before, until the limit | not asked again but by [`IdentitySource::reload`] |
/// | the limit passes | nothing: nobody is trusted | as before |
pub struct WorkloadSource {
    options: WorkloadOptions,
    clock: Arc<dyn Clock>,
    asked: OriginStatus,
}

impl WorkloadSource {
    pub fn new(options: WorkloadOptions, clock: Arc<dyn Clock>) -> Self {
        if let WorkloadEndpoint::Tcp(address) = options.endpoint
            && !address.ip().is_loopback()
        {
            tracing::warn!(%address, "the Workload API is asked over a network without TLS: who listens there sees our key");
        }
        let bundles = TrustBundles::empty().with_svid_life_max(options.svid_life_max);
        let standing = SourceState::not_asked_yet();
        let origin = format!("the SPIFFE agent at {}", options.endpoint);
        let asked = OriginStatus::new(origin, bundles, standing, options.outage_max, clock.clone());
        WorkloadSource { options, clock, asked }
    }

    /// Asks for ever.
    async fn ask_on(&self) {
        let mut backoff = Backoff::new(limits::RETRY_FIRST, limits::RETRY_MAX);
        loop {
            let began = self.clock.now().boot;
            let (end, has_spoken) = match stream::open(&self.options.endpoint, &*self.clock).await {
                Ok(messages) => self.hear(messages).await,
                Err(end) => (end, false),
            };
            // One that took its time to refuse was no stream that lived: it is asked ever slower, too.
            let lived = has_spoken && self.lived(began);
            self.ended(&end);
            let wait = match end {
                // At once, unless the agent does nothing but close.
                StreamEnd::Closed if lived => {
                    backoff.reset();
                    Duration::ZERO
                }
                StreamEnd::Never { .. } => {
                    self.asked.wanted_now().await;
                    Duration::ZERO
                }
                StreamEnd::Away { .. } if lived => {
                    backoff.reset();
                    backoff.next_wait()
                }
                _ => backoff.next_wait(),
            };
            self.asked.wanted_after(wait).await;
        }
    }

    /// Whether a stream was more than an answer and an end.
    fn lived(&self, began: BootTime) -> bool {
        self.clock.now().boot.since(began) >= limits::RETRY_FIRST
    }

    /// Hears one stream to its end. Answers that, and whether the agent said anything on it.
    async fn hear(&self, mut messages: Streaming<X509svidResponse>) -> (StreamEnd, bool) {
        let endpoint = &self.options.endpoint;
        let first = tokio::select! {
            message = messages.message() => message,
            () = self.clock.sleep(limits::CALL) => {
                let why = format!("the SPIFFE agent at {endpoint} said nothing");
                return (StreamEnd::Away { why }, false);
            }
        };
        if let Ok(None) = first {
            // It has said nothing of us: that it hangs up in order makes it no answer.
            let why = format!("the SPIFFE agent at {endpoint} hung up and said nothing");
            return (StreamEnd::Away { why }, false);
        }
        let (mut next, mut has_spoken) = (first, false);
        loop {
            match next {
                Ok(Some(message)) => self.take(message),
                Ok(None) => return (StreamEnd::Closed, has_spoken),
                Err(status) => return (StreamEnd::of(endpoint, &status), has_spoken),
            }
            has_spoken = true;
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

    /// How long an open stream may be silent: until the SVID that it brought is late. An agent that hangs, or whose place another
    /// has taken, keeps its stream open and says nothing more; whoever listens at the endpoint now says how things are.
    fn patience(&self) -> Option<Duration> {
        let trust = self.asked.current();
        let leaf = trust.svid.as_ref()?.leaf();
        let life = leaf.not_after.since(leaf.not_before);
        let late = leaf.not_before.plus(life * 3 / 4);
        // One that answers and is late is asked no more often than this.
        Some(late.since(self.clock.now().wall).max(life / 8))
    }

    /// Shows what a message says, or says why not.
    fn take(&self, message: X509svidResponse) {
        let now = self.clock.now();
        match WorkloadState::read(message, &self.options.pick, self.options.svid_life_max, now.wall) {
            Ok(state) => self.show(state),
            Err(fault) => self.discard(&fault),
        }
    }

    fn show(&self, state: WorkloadState) {
        for line in &state.left_out {
            tracing::error!(line, "a part of what the SPIFFE agent said cannot be used");
        }
        let had = self.asked.current().svid.clone();
        let standing = match &state.svid {
            Some(svid) => {
                let (id, until) = (svid.spiffe_id(), svid.not_after());
                tracing::info!(%id, %until, bundles = %state.bundles, "the SPIFFE agent gave us our SVID and bundles");
                self.asked.answered();
                SourceState::Good
            }
            None => {
                let (pick, given) = (&self.options.pick, listed(&state.given));
                let why =
                    format!("the SPIFFE agent gives us no longer, or not yet, {pick}; it gives {given}");
                self.lacking(why, had.is_some())
            }
        };
        self.asked.replace(state.svid, state.bundles, standing);
    }

    fn discard(&self, fault: &MessageFault) {
        tracing::error!(%fault, "a message of the SPIFFE agent was discarded: what it said before stays");
        let why = format!("what the SPIFFE agent said cannot be used: {fault}");
        match self.asked.current().standing {
            SourceState::Awaited { .. } => self.asked.stand(SourceState::Awaited { why }),
            SourceState::Good | SourceState::Stale { .. } => {
                let since = self.asked.failing();
                self.asked.stand(SourceState::Stale { since, why });
            }
            SourceState::Ended { .. } | SourceState::GivenUp { .. } => {}
        }
    }

    /// How we stand without an SVID: it is waited for, or was taken.
    fn lacking(&self, why: String, was_there: bool) -> SourceState {
        let since = self.asked.failing();
        match self.asked.current().standing {
            SourceState::Awaited { .. } if !was_there => SourceState::Awaited { why },
            _ => SourceState::Ended { since, why },
        }
    }

    fn ended(&self, end: &StreamEnd) {
        let trust = self.asked.current();
        match end {
            StreamEnd::Closed => {}
            StreamEnd::Denied { said } => {
                let why = denied(&self.options.endpoint, said);
                if trust.svid.is_some()
                    || matches!(trust.standing, SourceState::Awaited { .. })
                        && trust.standing.why() != Some(&why)
                {
                    tracing::error!(%why, "the SPIFFE agent gives us no identity");
                }
                let standing = self.lacking(why, trust.svid.is_some());
                match trust.standing {
                    SourceState::GivenUp { .. } => {}
                    _ if trust.svid.is_some() => {
                        self.asked.replace(None, TrustBundles::clone(&trust.bundles), standing);
                    }
                    _ => self.asked.stand(standing),
                }
            }
            StreamEnd::Never { why } => {
                tracing::error!(%why, "the SPIFFE agent is not asked again before SIGHUP or a restart");
                let since = self.asked.failing();
                self.asked.stand(SourceState::Ended { since, why: why.clone() });
            }
            StreamEnd::Away { why } => {
                let since = self.asked.failing();
                match &trust.standing {
                    SourceState::Good => {
                        tracing::warn!(%why, "the SPIFFE agent is away: its last word holds as far as its SVIDs last");
                        self.asked.stand(SourceState::Stale { since, why: why.clone() });
                    }
                    SourceState::Awaited { why: before } if before != why => {
                        tracing::warn!(%why, "no identity yet");
                        self.asked.stand(SourceState::Awaited { why: why.clone() });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Whom to tell that we have no identity.
fn denied(endpoint: &WorkloadEndpoint, said: &str) -> String {
    let (uid, gid, pid) = (nix::unistd::getuid(), nix::unistd::getgid(), nix::unistd::getpid());
    format!(
        "the SPIFFE agent at {endpoint} has no identity for this process ({said}): ask who runs SPIRE for a registration entry \
         on this node that matches it (uid {uid}, gid {gid}, pid {pid})"
    )
}

impl IdentitySource for WorkloadSource {
    fn current(&self) -> Arc<Trust> {
        self.asked.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.asked.watch()
    }

    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.asked.follow(self.ask_on(), shutdown).await })
    }

    /// Asks at once where we were waiting to ask.
    fn reload(&self) -> Result<ReloadOutcome, LoadError> {
        self.asked.ask_now();
        Ok(ReloadOutcome::Unchanged)
    }
}
