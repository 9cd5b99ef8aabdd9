//! One demo run: starts the daemon and the file server, and reports each claim with what was observed.

use tokio::process::Child;

use super::{
    Claim, Stage,
    calls::describe,
    watch::{Observed, Stopwatch, within},
};
use crate::{
    dev::{Role, Running},
    identity::{Leaf, X509Svid},
    ledger,
    name::Digest,
    proto::v1,
};

/// One run of a story.
pub(super) struct Story<'a> {
    pub(super) stage: &'a Stage,
    report: &'a mut (dyn FnMut(&Claim) + Send),
    all_hold: bool,
}

impl<'a> Story<'a> {
    pub(super) fn new(stage: &'a Stage, report: &'a mut (dyn FnMut(&Claim) + Send)) -> Self {
        Story { stage, report, all_hold: true }
    }
}

impl Story<'_> {
    pub(super) fn stage(&self) -> &'_ Stage {
        self.stage
    }

    /// Starts the daemon, the file server and the S3 gateway.
    pub(super) async fn open(&mut self) -> Observed<(Child, Running)> {
        let start = Stopwatch::now();
        let daemon = self.stage.start_daemon().await?;
        let running = Running::start(&self.stage.deployment, self.stage.clock.clone())
            .await
            .map_err(|e| e.to_string())?;
        within("the verifier's feed", running.verifier.ready()).await?;
        within("the feed of the S3 gateway", running.s3_verifier.ready()).await?;
        self.report(
            "a daemon starts, and a file server follows its revocations",
            start,
            Ok("ready, feed complete".into()),
        );
        Ok((daemon, running))
    }

    /// Stops the daemon and the file server, and checks the ledger. Returns whether all claims were observed.
    pub(super) async fn close(mut self, daemon: Child, running: Running) -> Observed<bool> {
        running.stop().await;
        self.stage.stop_daemon(daemon).await?;
        self.check_ledger();
        Ok(self.all_hold)
    }

    /// Reports a claim that later claims depend on. Returns `None` if the claim was not observed.
    pub(super) fn require<T>(
        &mut self,
        claim: &'static str,
        start: Stopwatch,
        seen: Observed<(String, T)>,
    ) -> Option<T> {
        let ms = start.ms();
        let (observed, found) = match seen {
            Ok((observed, found)) => (Ok(observed), Some(found)),
            Err(why) => (Err(why), None),
        };
        self.report_ms(claim, ms, observed);
        found
    }

    /// Reports a claim. Its duration is the time since `start`.
    pub(super) fn report(&mut self, claim: &'static str, start: Stopwatch, seen: Observed<String>) {
        self.report_ms(claim, start.ms(), seen);
    }

    /// Reports a claim with a measured duration, or a failure with the time since `start`.
    pub(super) fn report_measured(
        &mut self,
        claim: &'static str,
        start: Stopwatch,
        seen: Observed<(String, f64)>,
    ) {
        match seen {
            Ok((observed, ms)) => self.report_ms(claim, ms, Ok(observed)),
            Err(why) => self.report(claim, start, Err(why)),
        }
    }

    /// Reports a claim with a duration of `ms`.
    pub(super) fn report_ms(&mut self, claim: &'static str, ms: f64, seen: Observed<String>) {
        let (observed, holds) = match seen {
            Ok(observed) => (observed, true),
            Err(why) => (why, false),
        };
        self.all_hold &= holds;
        (self.report)(&Claim { claim, observed, ms, holds });
    }

    pub(super) async fn revoke(&self, name: &str, why: &str) -> Observed<v1::RevokeResponse> {
        let mut client = self.stage.operator_client(Role::Operator)?;
        let request = v1::RevokeRequest {
            name: name.into(),
            reason: why.into(),
            dry_run: false,
            ahead: false,
            cause: 0,
        };
        Ok(client.revoke(request).await.map_err(|s| describe(&s))?.into_inner())
    }

    fn check_ledger(&mut self) {
        let start = Stopwatch::now();
        let state = self.stage.deployment.path("state");
        let seen = ledger::verify(&ledger::Dir::at(&state), None)
            .map(|r| format!("{} records, head {}", r.records, short(&r.head.digest)))
            .map_err(|e| e.to_string());
        self.report("the ledger is complete and unchanged", start, seen);

        let start = Stopwatch::now();
        let seen = flip_byte(&state, &self.stage.deployment.path("ledger-copy"));
        self.report("one changed byte in a copy of it is found", start, seen);
    }
}

impl Stage {
    /// Returns the trainer's certificate, to which the tokens of the demo jobs are bound.
    pub(in crate::dev) fn trainer(&self) -> Observed<Leaf> {
        let svid = X509Svid::load(&self.deployment.cert(Role::Trainer), &self.deployment.key(Role::Trainer));
        Ok(svid.map_err(|e| e.to_string())?.leaf().clone())
    }
}

fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(19).collect()
}

/// Copies the ledger, flips one byte in the middle of the copy, and verifies the copy.
fn flip_byte(state: &std::path::Path, copy: &std::path::Path) -> Observed<String> {
    let io = |e: std::io::Error| e.to_string();
    std::fs::create_dir_all(copy).map_err(io)?;
    let mut segment = None;
    for entry in std::fs::read_dir(state).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let text = name.to_string_lossy().into_owned();
        if text.ends_with(".jsonl") || text.ends_with(".jsonl.zst") || text == "head" {
            std::fs::copy(entry.path(), copy.join(&name)).map_err(io)?;
        }
        if text.ends_with(".jsonl") {
            segment = Some(copy.join(&name));
        }
    }
    let segment = segment.ok_or("the ledger has no segment")?;
    ledger::verify(&ledger::Dir::at(copy), None).map_err(|e| format!("the copy itself is not good: {e}"))?;
    let mut bytes = std::fs::read(&segment).map_err(io)?;
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    std::fs::write(&segment, bytes).map_err(io)?;
    match ledger::verify(&ledger::Dir::at(copy), None) {
        Err(tamper) => Ok(tamper.to_string()),
        Ok(_) => Err("it was not found".into()),
    }
}
