//! A story being told, and the claims that each story has.

use tokio::process::Child;

use super::{
    Claim, Stage,
    calls::say,
    watch::{Observed, Stopwatch, within},
};
use crate::{
    dev::{Role, Running},
    identity::{Leaf, X509Svid},
    ledger,
    name::Digest,
    proto::v1,
};

/// Who tells, where, and to whom.
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
    /// Starts what each story begins with.
    pub(super) async fn opens(&mut self) -> Observed<(Child, Running)> {
        let start = Stopwatch::now();
        let daemon = self.stage.daemon().await?;
        let running =
            Running::start(&self.stage.house, self.stage.clock.clone()).await.map_err(|e| e.to_string())?;
        within("the verifier's feed", running.verifier.ready()).await?;
        self.say("a daemon starts, and a verifier follows it", start, Ok("ready, feed complete".into()));
        Ok((daemon, running))
    }

    /// Stops it, and looks at what it leaves behind. Answers whether all that was told holds.
    pub(super) async fn closes(mut self, daemon: Child, running: Running) -> Observed<bool> {
        running.stop().await;
        self.stage.stop(daemon).await?;
        self.ledger().await;
        Ok(self.all_hold)
    }

    /// Tells one claim that the rest depends on; nothing where it does not hold.
    pub(super) fn need<T>(
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
        self.say_ms(claim, ms, observed);
        found
    }

    /// Tells one claim, measured from a moment.
    pub(super) fn say(&mut self, claim: &'static str, start: Stopwatch, seen: Observed<String>) {
        self.say_ms(claim, start.ms(), seen);
    }

    /// Tells one claim that took so long.
    pub(super) fn say_ms(&mut self, claim: &'static str, ms: f64, seen: Observed<String>) {
        let (observed, holds) = match seen {
            Ok(observed) => (observed, true),
            Err(why) => (why, false),
        };
        self.all_hold &= holds;
        (self.report)(&Claim { claim, observed, ms, holds });
    }

    pub(super) async fn revoke(&self, name: &str, why: &str) -> Observed<v1::RevokeResponse> {
        let mut client = self.stage.operators(Role::Operator)?;
        let request =
            v1::RevokeRequest { name: name.into(), reason: why.into(), dry_run: false, ahead: false };
        Ok(client.revoke(request).await.map_err(|s| say(&s))?.into_inner())
    }

    async fn ledger(&mut self) {
        let start = Stopwatch::now();
        let state = self.stage.house.path("state");
        let seen = ledger::verify(&ledger::Dir::at(&state), None)
            .map(|r| format!("{} records, head {}", r.records, short(&r.head.digest)))
            .map_err(|e| e.to_string());
        self.say("the ledger is whole", start, seen);

        let start = Stopwatch::now();
        let seen = flipped(&state, &self.stage.house.path("ledger-copy"));
        self.say("one flipped byte in a copy of it is found", start, seen);
    }
}

impl Stage {
    /// The certificate that tokens of the jobs here are bound to.
    pub(super) fn trainer(&self) -> Observed<Leaf> {
        let svid = X509Svid::load(&self.house.cert(Role::Trainer), &self.house.key(Role::Trainer));
        Ok(svid.map_err(|e| e.to_string())?.leaf().clone())
    }
}

fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(19).collect()
}

/// Copies the ledger, flips one byte in the middle of it, and verifies the copy.
fn flipped(state: &std::path::Path, copy: &std::path::Path) -> Observed<String> {
    let io = |e: std::io::Error| e.to_string();
    std::fs::create_dir_all(copy).map_err(io)?;
    let mut segment = None;
    for entry in std::fs::read_dir(state).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let text = name.to_string_lossy().into_owned();
        if text.ends_with(".jsonl") || text == "head" {
            std::fs::copy(entry.path(), copy.join(&name)).map_err(io)?;
        }
        if text.ends_with(".jsonl") {
            segment = Some(copy.join(&name));
        }
    }
    let segment = segment.ok_or("the ledger has no segment")?;
    ledger::verify(&ledger::Dir::at(copy), None).map_err(|e| format!("the copy itself is not whole: {e}"))?;
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
