//! The login and logout of people.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::{
    access::{AccessControl, names_no_person},
    caller::Caller,
    context::BrokerContext,
    endings::{Endings, RecordedEnding},
    refusals::plain_refusal,
};
use crate::{
    catalog::Principal,
    clock::Wall,
    ledger::Ending,
    limits::{LOGIN_LINES_MAX, LOGINS_AHEAD_MAX, LOGINS_AHEAD_PER_PERSON_MAX, LOGINS_AT_ONCE_MAX},
    log_budget::LogBudget,
    name::{FenceName, GroupName, HumanName, PrincipalKind, SpiffeId},
    people::{self, KeyRequest, LoginFault, People, PersonClaims},
    plain,
    policy::Rpc,
    reason::{Reason, Refusal},
    secret::SecretText,
    state::Login,
};

/// The use cases of people who log in and out.
pub struct LoginUseCases {
    pub(super) context: Arc<BrokerContext>,
    pub(super) access: AccessControl,
    pub(super) endings: Endings,
    /// The permits for logins that are being checked.
    under_way: Semaphore,
    /// The logins that wait until the clock reaches the time of their ID tokens.
    ahead: LoginsAhead,
    log_budget: LogBudget,
}

/// A person's request to log in.
pub struct LoginOrder {
    pub id_token: SecretText,
    /// A certificate signing request as PEM.
    pub key_request: String,
    /// The group for which the person logs in. `None` means the first group of the person.
    pub group: Option<String>,
}

/// A person who logged in.
pub struct LoggedIn {
    pub login: Login,
    pub kind: PrincipalKind,
    pub group: Option<GroupName>,
    /// The chain as PEM, leaf first.
    pub svid: String,
    /// The roots of the people trust domain as PEM.
    pub bundle: String,
    pub until: Wall,
}

/// The size of a login's record without the texts that the identity provider chooses, in bytes.
const LOGIN_RECORD_BYTES: usize = 1_024;

/// Returns the size of a login's record, in bytes.
fn record_bytes(claims: &PersonClaims, groups: &[String]) -> usize {
    let texts = claims.amr.iter().chain(groups).map(String::len).sum::<usize>();
    LOGIN_RECORD_BYTES.saturating_add(claims.sub.len()).saturating_add(texts)
}

impl LoginUseCases {
    pub(super) fn new(context: Arc<BrokerContext>, access: AccessControl, endings: Endings) -> Self {
        let log_budget = LogBudget::new(LOGIN_LINES_MAX, context.clock.clone());
        let under_way = Semaphore::new(LOGINS_AT_ONCE_MAX);
        LoginUseCases { context, access, endings, under_way, ahead: LoginsAhead::default(), log_budget }
    }

    /// Returns the settings for people, if they may log in.
    pub fn people(&self) -> Option<&Arc<People>> {
        self.context.settings.people.as_ref()
    }

    /// Checks an ID token, records the login, and returns an SVID for the person's key.
    pub async fn log_in(&self, order: LoginOrder) -> Result<LoggedIn, Refusal> {
        let done = self.try_log_in(order).await;
        match &done {
            Ok(_) => metrics::counter!("leasehold_logins_total").increment(1),
            Err(no) => {
                let reason = no.reason.code();
                metrics::counter!("leasehold_logins_refused_total", "reason" => reason).increment(1);
            }
        }
        done
    }

    async fn try_log_in(&self, order: LoginOrder) -> Result<LoggedIn, Refusal> {
        let people = self.people().ok_or_else(|| {
            Refusal::new(Reason::NotSupported, "people do not log in at this daemon")
                .fix("have an operator write [people] in its configuration")
        })?;
        let turn = self.under_way.try_acquire().map_err(|_| LoginFault::Busy.refusal())?;
        let key = KeyRequest::from_pem(&order.key_request).map_err(|fault| fault.refusal())?;
        let clock = &*self.context.clock;
        let claims = people.check(&order.id_token, &key, clock).await.map_err(|fault| self.refuse(&fault))?;
        let human = people::human_of_subject(&claims.sub).map_err(|fault| fault.refusal())?;
        let ahead = if claims.issued > clock.now().wall {
            // Frees the permit for other logins while this login waits.
            drop(turn);
            let place = self.ahead.enter(&human).map_err(|fault| fault.refusal())?;
            people.wait_until_issued(&claims, clock).await.map_err(|fault| self.refuse(&fault))?;
            Err(place)
        } else {
            Ok(turn)
        };
        let now = clock.now();
        let group = people.rules.choose(&claims, order.group.as_deref()).map_err(|fault| fault.refusal())?;
        let id =
            people::person_id(&people.domain, &human, group.as_ref()).map_err(|fault| fault.refusal())?;
        let principal = self.entry_of(&id, &people.rules.groups_of(&claims))?;
        if principal.human(&id).as_ref() != Some(&human) {
            let text = "your catalog entry does not name you";
            return Err(names_no_person(Reason::LoginRefused, text, &id, &principal));
        }
        self.check_unlocked(&id, FenceName::human(human.clone()))?;
        self.context.refuse_if_held()?;
        let groups: Vec<String> = people.rules.groups_of(&claims).iter().map(ToString::to_string).collect();
        let person = people::person_id(&people.domain, &human, None).map_err(|fault| fault.refusal())?;
        self.context.rates.charge_login(&person, record_bytes(&claims, &groups))?;
        people.spent.spend(&order.id_token, &human, now.wall).map_err(|fault| fault.refusal())?;
        let until = now.wall.plus(people.rules.life).min(people.authority.not_after());
        let svid = people.authority.issue(&key, &id, now.wall, until).map_err(|error| {
            tracing::error!(%error, "the SVID of a person could not be signed");
            Refusal::new(Reason::Internal, "a fault of the daemon: its log has the cause")
        })?;
        let PersonClaims { sub, amr, .. } = claims.clone();
        let login = Login {
            certificate: svid.digest,
            serial: svid.serial,
            id,
            human,
            issuer: people.provider.options().issuer.clone(),
            sub,
            groups,
            amr,
            terms: people.terms(group.as_ref().map(GroupName::as_str), claims.is_bound),
            at: now.lease,
            until: now.lease_at(until),
        };
        self.context.state.log_in(login.clone()).await.map_err(plain_refusal)?;
        drop(ahead);
        tracing::info!(id = %login.id, serial = %login.serial, %until, "a person logged in");
        let bundle = people.authority.bundle().to_owned();
        Ok(LoggedIn { login, kind: principal.kind, group, svid: svid.cert, bundle, until })
    }

    /// Returns the refusal for the person, and logs the details that the person must not see.
    fn refuse(&self, fault: &LoginFault) -> Refusal {
        if matches!(fault, LoginFault::TokenRefused { .. } | LoginFault::Provider { .. })
            && let Some(left_out) = self.log_budget.admit()
        {
            tracing::warn!(why = %plain::line(&fault.to_string()), left_out, "a login was refused");
        }
        fault.refusal()
    }

    /// Finds the catalog entry for a person. People are not workloads, so they hold no credentials of jobs.
    fn entry_of(&self, id: &SpiffeId, groups: &[GroupName]) -> Result<Arc<Principal>, Refusal> {
        let rules = self.context.rules();
        let entry = rules.catalog().principal(id).filter(|entry| {
            !entry.disabled
                && matches!(
                    entry.kind,
                    PrincipalKind::Operator | PrincipalKind::Auditor | PrincipalKind::Launcher
                )
        });
        entry.cloned().ok_or_else(|| {
            let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
            let groups = if groups.is_empty() { "none that Leasehold knows".to_owned() } else { groups.join(", ") };
            Refusal::new(Reason::LoginRefused, "the catalog has no operator, auditor or launcher for you")
                .with("you", id.to_string())
                .with("your groups", groups)
                .fix("name another of your groups with --group, or ask the owner of the catalog file to add a [[principal]] whose match covers this ID")
        })
    }

    /// Refuses a person whom a lock shuts out, by identity or by name.
    fn check_unlocked(&self, id: &SpiffeId, human: FenceName) -> Result<(), Refusal> {
        let lock = self.access.lock_on_identity(id);
        let lock = lock.or_else(|| self.context.state.lock_on(std::iter::once(&human)));
        lock.map_or(Ok(()), |lock| Err(self.context.locked(&lock)))
    }

    /// Ends the caller's own login, and returns whether the caller was logged in. From then on, the daemon does not
    /// accept the SVID of the login, and open streams end at once.
    pub fn log_out(&self, caller: &Caller) -> Result<(bool, RecordedEnding), Refusal> {
        self.access.authorize(caller, Rpc::LogOut, Some(caller.tenant()), &[], "")?;
        let certificate = caller.login.as_ref().map(|login| login.certificate);
        let record =
            certificate.and_then(|certificate| self.context.state.log_out(&certificate, caller.actor()));
        self.context.decide_again();
        Ok((record.is_some(), self.endings.recorded(Ending::default(), record)))
    }
}

/// The people whose logins wait, because their ID tokens are dated ahead of our clock. A person is in the list once for
/// each login.
#[derive(Default)]
struct LoginsAhead(Mutex<Vec<HumanName>>);

impl LoginsAhead {
    /// Takes a place for a waiting login. The place is free again when the value is dropped.
    fn enter(&self, human: &HumanName) -> Result<PlaceAhead<'_>, LoginFault> {
        let mut waiting = self.lock();
        if waiting.iter().filter(|other| *other == human).count() >= LOGINS_AHEAD_PER_PERSON_MAX {
            return Err(LoginFault::Ahead);
        }
        if waiting.len() >= LOGINS_AHEAD_MAX {
            return Err(LoginFault::Busy);
        }
        waiting.push(human.clone());
        Ok(PlaceAhead { of: self, human: human.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<HumanName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct PlaceAhead<'a> {
    of: &'a LoginsAhead,
    human: HumanName,
}

impl Drop for PlaceAhead<'_> {
    fn drop(&mut self) {
        let mut waiting = self.of.lock();
        if let Some(at) = waiting.iter().position(|human| *human == self.human) {
            waiting.swap_remove(at);
        }
    }
}
