//! What is shown of the Workload API, through rotations, outages and refusals.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{
    Pick, WorkloadEndpoint,
    message::{MessageFault, State, listed},
    stream::{self, StreamEnd},
    wire::X509svidResponse,
};
use crate::{
    clock::{BootTime, Clock},
    identity::{
        IdentitySource, LoadError, Reloaded, Standing, Trust, TrustBundles, first::NOT_ASKED_YET,
        outage::Outage, source::Published, waits::Waits,
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
    published: Published,
    outage: Mutex<Outage>,
    again: Notify,
}

impl WorkloadSource {
    pub fn new(options: WorkloadOptions, clock: Arc<dyn Clock>) -> Self {
        if let WorkloadEndpoint::Tcp(address) = options.endpoint
            && !address.ip().is_loopback()
        {
            tracing::warn!(%address, "the Workload API is asked over a network without TLS: who listens there sees our key");
        }
        let bundles = TrustBundles::empty().with_svid_life_max(options.svid_life_max);
        let standing = Standing::Awaited { why: NOT_ASKED_YET.to_owned() };
        WorkloadSource {
            outage: Mutex::new(Outage::new(options.outage_max)),
            published: Published::new(None, bundles, standing),
            options,
            clock,
            again: Notify::new(),
        }
    }

    /// Asks for ever.
    async fn ask_on(&self) {
        let mut waits = Waits::new(limits::RETRY_FIRST, limits::RETRY_MAX);
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
                    waits.reset();
                    Duration::ZERO
                }
                StreamEnd::Never { .. } => {
                    self.again.notified().await;
                    Duration::ZERO
                }
                StreamEnd::Away { .. } if lived => {
                    waits.reset();
                    waits.next()
                }
                _ => waits.next(),
            };
            tokio::select! {
                () = self.clock.sleep(wait) => {}
                () = self.again.notified() => {}
            }
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
        let (mut next, mut has_spoken) = (first, false);
        loop {
            match next {
                Ok(Some(message)) => self.take(message),
                Ok(None) => return (StreamEnd::Closed, has_spoken),
                Err(status) => return (StreamEnd::of(endpoint, &status), has_spoken),
            }
            has_spoken = true;
            next = messages.message().await;
        }
    }

    /// Shows what a message says, or says why not.
    fn take(&self, message: X509svidResponse) {
        let now = self.clock.now();
        match State::read(message, &self.options.pick, self.options.svid_life_max, now.wall) {
            Ok(state) => self.show(state),
            Err(fault) => self.discard(&fault),
        }
    }

    fn show(&self, state: State) {
        let now = self.clock.now();
        for line in &state.left_out {
            tracing::error!(line, "a part of what the SPIFFE agent said cannot be used");
        }
        let had = self.published.current().svid.clone();
        let standing = match &state.svid {
            Some(svid) => {
                let (id, until) = (svid.spiffe_id(), svid.not_after());
                tracing::info!(%id, %until, bundles = ?state.bundles, "the SPIFFE agent gave us our SVID and bundles");
                self.outage().over();
                Standing::Good
            }
            None => {
                let (pick, given) = (&self.options.pick, listed(&state.given));
                let why =
                    format!("the SPIFFE agent gives us no longer, or not yet, {pick}; it gives {given}");
                self.lacking(why, had.is_some(), now.boot)
            }
        };
        self.published.replace(state.svid, state.bundles, standing);
    }

    fn discard(&self, fault: &MessageFault) {
        tracing::error!(%fault, "a message of the SPIFFE agent was discarded: what it said before stays");
        let why = format!("what the SPIFFE agent said cannot be used: {fault}");
        match self.published.current().standing {
            Standing::Awaited { .. } => self.published.stand(Standing::Awaited { why }),
            Standing::Good | Standing::Stale { .. } => {
                let now = self.clock.now();
                let since = self.outage().since(now.wall, now.boot);
                self.published.stand(Standing::Stale { since, why });
            }
            Standing::Ended { .. } | Standing::GivenUp { .. } => {}
        }
    }

    /// How we stand without an SVID: it is waited for, or was taken.
    fn lacking(&self, why: String, was_there: bool, now: BootTime) -> Standing {
        let since = self.outage().since(self.clock.now().wall, now);
        match self.published.current().standing {
            Standing::Awaited { .. } if !was_there => Standing::Awaited { why },
            _ => Standing::Ended { since, why },
        }
    }

    fn ended(&self, end: &StreamEnd) {
        let trust = self.published.current();
        let now = self.clock.now();
        match end {
            StreamEnd::Closed => {}
            StreamEnd::Denied { said } => {
                let why = denied(&self.options.endpoint, said);
                if trust.svid.is_some()
                    || matches!(trust.standing, Standing::Awaited { .. })
                        && trust.standing.why() != Some(&why)
                {
                    tracing::error!(%why, "the SPIFFE agent gives us no identity");
                }
                let standing = self.lacking(why, trust.svid.is_some(), now.boot);
                match trust.standing {
                    Standing::GivenUp { .. } => {}
                    _ if trust.svid.is_some() => {
                        self.published.replace(None, TrustBundles::clone(&trust.bundles), standing);
                    }
                    _ => self.published.stand(standing),
                }
            }
            StreamEnd::Never { why } => {
                tracing::error!(%why, "the SPIFFE agent is not asked again before SIGHUP or a restart");
                let since = self.outage().since(now.wall, now.boot);
                self.published.stand(Standing::Ended { since, why: why.clone() });
            }
            StreamEnd::Away { why } => {
                let since = self.outage().since(now.wall, now.boot);
                match &trust.standing {
                    Standing::Good => {
                        tracing::warn!(%why, "the SPIFFE agent is away: its last word holds as far as its SVIDs last");
                        self.published.stand(Standing::Stale { since, why: why.clone() });
                    }
                    Standing::Awaited { why: before } if before != why => {
                        tracing::warn!(%why, "no identity yet");
                        self.published.stand(Standing::Awaited { why: why.clone() });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Drops what expires, and everything once the outage is too long.
    async fn tend(&self) {
        let mut said_expired = false;
        loop {
            self.clock.sleep(limits::IDENTITY_POLL).await;
            let now = self.clock.now();
            let trust = self.published.current();
            if let Some(bundles) = trust.bundles.without_expired(now.wall) {
                tracing::warn!(?bundles, "roots expired and were dropped");
                self.published.replace(trust.svid.clone(), bundles, trust.standing.clone());
            }
            self.give_up_in_time(now.boot);
            let expired = trust.svid.as_ref().is_some_and(|svid| now.wall >= svid.not_after());
            if expired && !said_expired {
                tracing::error!(svid = ?trust.svid, "our own SVID has expired and was not replaced: nobody will accept it");
            }
            said_expired = expired;
        }
    }

    fn give_up_in_time(&self, now: BootTime) {
        let Some(since) = self.outage().too_long(now) else { return };
        let trust = self.published.current();
        let why = match &trust.standing {
            Standing::Stale { why, .. } | Standing::Ended { why, .. } => why.clone(),
            Standing::Good | Standing::Awaited { .. } | Standing::GivenUp { .. } => return,
        };
        tracing::error!(%since, %why, "the source of our identity failed for longer than the limit: nobody is trusted any more");
        let nobody = TrustBundles::empty().with_svid_life_max(self.options.svid_life_max);
        self.published.replace(None, nobody, Standing::GivenUp { since, why });
    }

    fn outage(&self) -> std::sync::MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.published.current()
    }

    fn watch(&self) -> watch::Receiver<Arc<Trust>> {
        self.published.watch()
    }

    fn follow(self: Arc<Self>, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.ask_on() => {}
                () = self.tend() => {}
            }
        })
    }

    /// Asks at once where we were waiting to ask.
    fn reload(&self) -> Result<Reloaded, LoadError> {
        self.again.notify_waiters();
        Ok(Reloaded::Unchanged)
    }
}
