//! The credentials of one member: what each credential opens, its files, and when to request it again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    calls::not_understood,
    credential_dir::{CredentialDir, CredentialError, MendResult},
    index::{CredentialIndex, DrainNote, IndexEntry, IndexResource},
    member::stream::AttemptSession,
    present::GatewayAccess,
    schedule::{More, Schedule},
};
use crate::{
    agent::messages::MessageSink,
    clock::{LeaseTime, Now, Wall},
    limits::CREDENTIALS_MAX,
    link::Endpoint,
    name::{Action, Half, LeaseId, Scope},
    proto::{convert::nearest_wall, v1},
    reason::Refusal,
    secret::{SecretText, random_fraction},
};

/// Two times of the daemon that differ by less than this are equal, because tokens count in whole seconds.
const SAME: Duration = Duration::from_secs(1);

/// All credentials of a member, and the directory of their files.
pub(crate) struct CredentialSet {
    credentials: Vec<HeldCredential>,
    dir: Arc<CredentialDir>,
    messages: MessageSink,
    /// Live leases that are no longer used, and are released next.
    unused_leases: Vec<LeaseId>,
    /// Counts the changes of tokens and offers.
    changes: u64,
}

impl CredentialSet {
    /// Makes one credential for each offer. All credentials are due now.
    pub(crate) fn from_offers(
        offers: Vec<v1::Offer>,
        now: LeaseTime,
        dir: Arc<CredentialDir>,
        messages: MessageSink,
    ) -> Result<Self, Refusal> {
        let credentials = HeldCredential::from_offers(offers, now)?;
        Ok(CredentialSet { credentials, dir, messages, unused_leases: Vec::new(), changes: 0 })
    }

    pub(crate) fn len(&self) -> usize {
        self.credentials.len()
    }

    pub(crate) fn get(&self, at: usize) -> Option<&HeldCredential> {
        self.credentials.get(at)
    }

    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut HeldCredential> {
        self.credentials.get_mut(at)
    }

    /// Describes the resources that each credential opens, for example `reads dataset:acme/tickets@v3`.
    pub(crate) fn opens(&self) -> Vec<String> {
        self.credentials.iter().map(HeldCredential::opens).collect()
    }

    // ---------- gateways ----------

    /// How often a token or an offer has changed so far.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// The S3 gateways, each with the present tokens for it.
    pub(crate) fn gateways(&self) -> Vec<GatewayAccess> {
        let mut gateways: Vec<GatewayAccess> = Vec::new();
        for credential in self.credentials.iter().filter(|c| !c.withdrawn) {
            let Some(endpoint) = &credential.gateway else { continue };
            let at = gateways.iter().position(|g| g.endpoint == *endpoint);
            let at = at.unwrap_or_else(|| {
                gateways.push(GatewayAccess::new(endpoint.clone()));
                gateways.len().saturating_sub(1)
            });
            let Some(gateway) = gateways.get_mut(at) else { continue };
            gateway.tokens.extend(credential.token.clone());
            gateway.locations.extend(credential.locations.values().cloned());
            gateway.resources.extend(credential.scopes.iter().map(Scope::name));
        }
        gateways
    }

    // ---------- what is due ----------

    /// The credentials to request now, each with its position.
    pub(crate) fn due(&mut self, now: LeaseTime) -> impl Iterator<Item = (usize, &mut HeldCredential)> {
        let all = self.credentials.iter_mut().enumerate();
        all.filter(move |(_, c)| c.schedule.due().is_some_and(|at| at <= now))
    }

    pub(crate) fn next_due(&self) -> Option<LeaseTime> {
        self.credentials.iter().filter_map(|c| c.schedule.due()).min()
    }

    pub(crate) fn next_expiry(&self) -> Option<LeaseTime> {
        self.credentials.iter().filter_map(|c| c.schedule.expires()).min()
    }

    /// When the last token expires. `None` if there is no token.
    pub(crate) fn last_expiry(&self) -> Option<LeaseTime> {
        self.credentials.iter().filter_map(|c| c.schedule.expires()).max()
    }

    /// Makes every wanted credential due at once.
    pub(crate) fn request_now(&mut self, now: LeaseTime) {
        let wanted = self.credentials.iter_mut().filter(|c| c.schedule.is_wanted());
        wanted.for_each(|c| c.schedule.request_now(now));
    }

    /// Forgets all leases, because they have ended, and makes every wanted credential due now.
    pub(crate) fn replace_leases(&mut self, now: LeaseTime) {
        self.credentials.iter_mut().for_each(|c| c.lease = None);
        self.request_now(now);
    }

    /// Notes a lease from a response that no longer counts, so that the lease is released. Does nothing if a credential uses the
    /// lease.
    pub(crate) fn add_unused_lease(&mut self, lease: LeaseId) {
        let is_used = self.credentials.iter().any(|c| c.lease == Some(lease));
        if self.unused_leases.len() < CREDENTIALS_MAX && !is_used {
            self.unused_leases.push(lease);
        }
    }

    pub(crate) fn take_unused_leases(&mut self) -> Vec<LeaseId> {
        std::mem::take(&mut self.unused_leases)
    }

    /// Whether each wanted credential has a token.
    pub(crate) fn is_complete(&self) -> bool {
        self.credentials.iter().filter(|c| c.schedule.is_wanted()).all(HeldCredential::has_token)
    }

    /// Replaces the offers, and writes the index if they changed.
    pub(crate) fn update_offers(&mut self, offers: Vec<v1::Offer>, session: &AttemptSession, now: LeaseTime) {
        self.changes = self.changes.saturating_add(1);
        let before: Vec<_> = self.credentials.iter().map(|c| c.lease).collect();
        let changed = self.replace_offers(offers, now);
        let dropped = before.into_iter().zip(&self.credentials).filter(|(_, after)| after.lease.is_none());
        self.unused_leases.extend(dropped.filter_map(|(lease, _)| lease));
        match changed {
            Ok(false) => {}
            Ok(true) => {
                self.messages.send("the offers for this job have changed: see credentials.json");
                self.refresh_index(session);
            }
            Err(refusal) => self.messages.send(&format!("the offers for this job have changed: {refusal}")),
        }
    }

    /// Compares the new offers with the credentials, because the catalog may have changed while the connection was down.
    /// Returns whether anything changed. Credentials keep their positions, because pending responses name the positions.
    fn replace_offers(&mut self, offers: Vec<v1::Offer>, now: LeaseTime) -> Result<bool, Refusal> {
        let mut fresh = HeldCredential::from_offers(offers, now)?;
        let mut changed = false;
        for old in &mut self.credentials {
            let is_same = |new: &HeldCredential| {
                (new.half, &new.audience, &new.scopes) == (old.half, &old.audience, &old.scopes)
            };
            match fresh.iter().position(is_same).map(|i| fresh.swap_remove(i)) {
                Some(new) => {
                    changed |= old.locations != new.locations || old.withdrawn;
                    (old.locations, old.gateway) = (new.locations, new.gateway);
                    if std::mem::take(&mut old.withdrawn) {
                        old.schedule = new.schedule;
                    }
                }
                None if old.withdrawn => {}
                None => {
                    (changed, old.withdrawn, old.lease) = (true, true, None);
                    old.schedule.stop();
                    old.remove_files(&self.dir);
                }
            }
        }
        for mut new in fresh.into_iter().take(CREDENTIALS_MAX.saturating_sub(self.credentials.len())) {
            new.name = file_name(new.half, &new.audience, &self.credentials);
            self.credentials.push(new);
            changed = true;
        }
        Ok(changed)
    }

    // ---------- files ----------

    /// Writes a credential to its files. The daemon's clock is ahead of this host's by `lead_ms`.
    pub(crate) fn put(
        &mut self,
        at: usize,
        granted: Granted,
        now: Now,
        lead_ms: i64,
    ) -> Result<(), CredentialError> {
        let wall = Wall(now.wall.0.saturating_add_signed(lead_ms));
        let draw = random_fraction();
        self.changes = self.changes.saturating_add(1);
        match self.credentials.get_mut(at) {
            Some(credential) => credential.put(&self.dir, granted, now.lease, wall, draw),
            None => Ok(()),
        }
    }

    pub(crate) fn write_index(&self, session: &AttemptSession) -> Result<(), CredentialError> {
        let index = CredentialIndex {
            job: session.job,
            attempt: session.attempt,
            credentials: self.credentials.iter().filter_map(HeldCredential::index_entry).collect(),
        };
        self.dir.write_index(&index).map(drop)
    }

    /// Writes the index while the work runs. [`mend`](Self::mend) writes it later if it cannot be written now.
    pub(crate) fn refresh_index(&self, session: &AttemptSession) {
        match self.write_index(session) {
            Ok(()) | Err(CredentialError::Wiped | CredentialError::Write { .. }) => {}
            Err(error) => self.messages.send(&error.to_string()),
        }
    }

    /// Writes missing files again: files that another program removed, and files that did not fit on the disk. Prints each
    /// cause once.
    pub(crate) fn mend(&self) {
        let place = self.dir.path().display();
        match self.dir.mend() {
            MendResult::Nothing => {}
            MendResult::Again(cause) => {
                self.messages.send(&format!("the credential files in {place} are written again ({cause})"));
            }
            MendResult::Failing(cause) => self.messages.send(&format!(
                "credential files in {place} cannot be written ({cause}): those that are there stay, and your program goes on; trying again until it works"
            )),
        }
    }

    /// Writes a note to the files with the time until which the program may finish.
    pub(crate) fn note_drain(&self, note: DrainNote) {
        // `mend` writes the note later if it cannot be written now.
        let _ = self.dir.note_drain(note);
    }

    /// Removes the files of expired tokens. Returns a line about each.
    pub(crate) fn remove_expired(&mut self, now: LeaseTime) -> Vec<String> {
        let mut lines = Vec::new();
        let expired = |c: &&mut HeldCredential| c.schedule.expires().is_some_and(|at| at <= now);
        for credential in self.credentials.iter_mut().filter(expired) {
            self.changes = self.changes.saturating_add(1);
            credential.remove_files(&self.dir);
            credential.schedule.mark_expired();
            lines.push(match credential.schedule.due() {
                None if !credential.shortened_by.is_empty() => {
                    format!("what {} has ended: {}", credential.opens(), credential.shortened_by.join(", "))
                }
                _ => format!("what {} has expired: it was not renewed", credential.opens()),
            });
        }
        lines
    }

    /// Ends all credentials that read, permanently: the attempt drains.
    pub(crate) fn end_reading(&mut self) {
        self.changes = self.changes.saturating_add(1);
        for credential in self.credentials.iter_mut().filter(|c| c.half == Half::Reading) {
            credential.schedule.stop();
            credential.lease = None;
            credential.remove_files(&self.dir);
        }
    }

    /// Wipes all files, permanently.
    pub(crate) fn wipe(&mut self) {
        self.dir.wipe();
        self.credentials.iter_mut().for_each(|c| c.schedule.stop());
    }
}

/// One credential of a member, with or without a token.
#[derive(Debug)]
pub(crate) struct HeldCredential {
    /// The name of the token file. The header file for `curl -H @FILE` is beside it.
    name: String,
    pub(crate) half: Half,
    audience: String,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) schedule: Schedule,
    /// The limits that shortened the lifetime of the token in the last response.
    shortened_by: Vec<String>,
    scopes: Vec<Scope>,
    locations: HashMap<String, String>,
    /// The S3 gateway of the audience.
    gateway: Option<Endpoint>,
    token: Option<SecretText>,
    /// When the token expires, on the daemon's clock. `None` if there is no token.
    token_expires: Option<Wall>,
    /// Whether the daemon has withdrawn the offer.
    withdrawn: bool,
}

impl HeldCredential {
    /// Makes one credential for each offer, with a different file name for each.
    fn from_offers(offers: Vec<v1::Offer>, now: LeaseTime) -> Result<Vec<Self>, Refusal> {
        let mut all: Vec<HeldCredential> = Vec::with_capacity(offers.len());
        for offer in offers {
            let half = Half::try_from(offer.half()).map_err(|_| not_understood())?;
            let scopes = offer.scopes.iter().map(scope_of).collect::<Option<_>>();
            let gateway = gateway_of(&offer)?;
            all.push(HeldCredential {
                name: file_name(half, &offer.audience, &all),
                half,
                scopes: scopes.ok_or_else(not_understood)?,
                audience: offer.audience,
                lease: None,
                schedule: Schedule::new(now),
                shortened_by: Vec::new(),
                locations: offer.locations,
                gateway,
                token: None,
                token_expires: None,
                withdrawn: false,
            });
        }
        Ok(all)
    }

    pub(crate) fn issue_request(&self, session: &AttemptSession) -> v1::IssueCredentialRequest {
        v1::IssueCredentialRequest {
            session: Some(session.to_wire()),
            half: v1::Half::from(self.half).into(),
            audience: self.audience.clone(),
            ..Default::default()
        }
    }

    /// Writes the token to its files. `wall` is the daemon's time. If a file cannot be written now, it is written later, and
    /// the grant counts as received.
    fn put(
        &mut self,
        dir: &CredentialDir,
        granted: Granted,
        now: LeaseTime,
        wall: Wall,
        draw: f64,
    ) -> Result<(), CredentialError> {
        let header = SecretText::new(format!("Authorization: Bearer {}\n", granted.token.expose()));
        let written = [dir.put(&self.name, &granted.token), dir.put(&header_name(&self.name), &header)];
        let written = written.into_iter().collect::<Result<Vec<_>, _>>().map(drop);
        if !matches!(written, Ok(()) | Err(CredentialError::Write { .. })) {
            return written;
        }
        let more = self.more(&granted);
        self.schedule.mark_granted(now, granted.token_expires.since(wall), more, draw);
        self.lease = Some(granted.lease);
        self.token_expires = Some(granted.token_expires);
        self.token = Some(granted.token);
        self.shortened_by = granted.shortened_by;
        written
    }

    fn has_token(&self) -> bool {
        self.token_expires.is_some()
    }

    fn more(&self, granted: &Granted) -> More {
        if granted.latest.is_some_and(|latest| granted.token_expires.plus(SAME) >= latest) {
            return More::Never;
        }
        match self.token_expires {
            Some(before) if granted.token_expires <= before => More::NotYet,
            _ => More::Yes,
        }
    }

    fn remove_files(&mut self, dir: &CredentialDir) {
        dir.remove(&self.name);
        dir.remove(&header_name(&self.name));
        (self.token, self.token_expires) = (None, None);
    }

    fn opens(&self) -> String {
        let names: Vec<String> = self.scopes.iter().map(|s| s.name().to_string()).collect();
        let verb = match self.half {
            Half::Reading => "reads",
            Half::Writing => "writes",
        };
        format!("{verb} {}", names.join(", "))
    }

    fn index_entry(&self) -> Option<IndexEntry> {
        let resource = |scope: &Scope| IndexResource {
            scope: scope.clone(),
            location: self.locations.get(&scope.name().to_string()).cloned(),
        };
        Some(IndexEntry {
            name: self.name.clone(),
            half: self.half,
            audience: self.audience.clone(),
            lease: self.lease?,
            expires: self.token_expires?,
            resources: self.scopes.iter().map(resource).collect(),
        })
    }
}

/// The daemon's response to an issue or a renewal.
pub(crate) struct Granted {
    pub(crate) lease: LeaseId,
    token: SecretText,
    token_expires: Wall,
    latest: Option<Wall>,
    shortened_by: Vec<String>,
}

impl Granted {
    pub(crate) fn from_issue(response: v1::IssueCredentialResponse) -> Result<Self, Refusal> {
        Self::new(response.lease, response.token, response.token_expires, response.shortened_by)
    }

    pub(crate) fn from_renewal(response: v1::RenewLeaseResponse) -> Result<Self, Refusal> {
        Self::new(response.lease, response.token, response.token_expires, response.shortened_by)
    }

    fn new(
        lease: Option<v1::Lease>,
        token: String,
        token_expires: Option<prost_types::Timestamp>,
        shortened_by: Vec<String>,
    ) -> Result<Self, Refusal> {
        let token = SecretText::new(token);
        let whole = lease.and_then(|l| Some((l.id.parse().ok()?, l.expires_at_latest))).zip(token_expires);
        let ((lease, latest), expires) = whole.ok_or_else(not_understood)?;
        let latest = latest.as_ref().map(nearest_wall);
        Ok(Granted { lease, token, token_expires: nearest_wall(&expires), latest, shortened_by })
    }
}

fn header_name(name: &str) -> String {
    format!("{name}.header")
}

/// Makes a name that no other credential has, for example `reading-gateway`: the half, and the last segment of the audience's
/// path.
fn file_name(half: Half, audience: &str, others: &[HeldCredential]) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    let last: String = audience.rsplit('/').next().unwrap_or_default().chars().take(64).map(plain).collect();
    let first = format!("{half}-{last}");
    let mut name = first.clone();
    for n in 2_u32.. {
        if others.iter().all(|other| other.name != name) {
            break;
        }
        name = format!("{first}-{n}");
    }
    name
}

/// The S3 gateway of an offer, if its audience has one.
fn gateway_of(offer: &v1::Offer) -> Result<Option<Endpoint>, Refusal> {
    if offer.s3_endpoint.is_empty() {
        return Ok(None);
    }
    let server_id = offer.s3_server_id.parse().map_err(|_| not_understood())?;
    Endpoint::new(&offer.s3_endpoint, server_id).map(Some).map_err(|_| not_understood())
}

fn scope_of(wire: &v1::Scope) -> Option<Scope> {
    let whole = Scope::of(&wire.resource.parse().ok()?);
    if wire.actions.is_empty() {
        return Some(whole);
    }
    Some(Scope { actions: wire.actions().map(|a| Action::try_from(a).ok()).collect::<Option<_>>()?, ..whole })
}

#[cfg(test)]
#[path = "credential_set_tests.rs"]
mod tests;
