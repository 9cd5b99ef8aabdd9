//! Implements `leasehold login` and `leasehold logout`.

use std::path::PathBuf;

use clap::Args;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    Exit, Failure, Session,
    client::CallKind,
    contexts_file::{Context, Contexts, SvidFrom},
    login_call::LoginClient,
    login_files::LoginFolder,
    output::{Page, note, note_page, print_line},
};
use crate::{
    limits::LOGIN_WAIT,
    name::{GroupName, PrincipalKind},
    people::{
        BrowserFlow, DeviceFlow, FlowFault, HttpFault, KeyRequest, LoginAnswer, LoginBody, LoginTerms,
        ProviderHttp,
    },
    plain,
    proto::v1,
    reason::{Reason, Refusal},
    secret::SecretText,
};

/// Logs you in at your identity provider, and gets a certificate (SVID) for some hours.
#[derive(Debug, Args)]
#[command(after_help = "\
The command prints an address. Open it in a browser and sign in; the command then writes your key
and certificate into ~/.local/share/leasehold/logins, and the context uses them. No browser is
opened for you. With --device the browser may be on another machine.

If you are in several groups, the certificate is for one of them: the first that the daemon
knows, or the one that --group names. Your role follows from the daemon's catalog.

The context needs `login = \"HOST:PORT\"`, the daemon's listener for logins. Or give it with --at.

Examples:
  leasehold login
  leasehold login --device
  leasehold login --context prod --group model-owners")]
pub struct LoginArgs {
    /// Sign in with a browser on another machine: shows an address and a code
    #[arg(long)]
    device: bool,
    /// Log in as a member of this group [default: your first group]
    #[arg(long, value_name = "GROUP")]
    group: Option<GroupName>,
    /// The daemon's listener for logins [default: `login` of the context]
    #[arg(long, value_name = "HOST:PORT")]
    at: Option<String>,
    /// The CA certificates to trust for your identity provider's server, as PEM [default: the machine's]
    #[arg(long, value_name = "FILE")]
    issuer_ca: Option<PathBuf>,
}

impl LoginArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let (name, context) = session.context()?;
        let address = self.at.clone().or_else(|| context.login.clone()).ok_or_else(|| {
            Failure::usage(format!("context `{name}` does not say where to log in"))
                .fix(format!("add --at HOST:PORT, or write login = \"HOST:PORT\" below [context.{name}] in the contexts file"))
        })?;
        let folder = LoginFolder::find()?;
        let daemon = LoginClient::new(session, &name, &context, &address)?;
        let terms = daemon.terms().await?;
        if self.device && !terms.device_flow {
            return Err(Refusal::new(Reason::LoginRefused, "this daemon does not allow the device flow")
                .fix("log in without --device, or have an operator set people.device_flow = true")
                .into());
        }
        let http = self.http(&terms)?;
        let key = KeyPair::generate().map_err(|e| made_no_key(&e))?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        let request = CertificateParams::default().serialize_request(&key).and_then(|request| request.pem());
        let request = request.map_err(|e| made_no_key(&e))?;
        let nonce = KeyRequest::from_pem(&request).map_err(|fault| Failure::from(fault.refusal()))?.nonce();
        let token = match self.device {
            true => by_device(session, &http, &terms, &nonce).await,
            false => by_browser(session, &http, &terms, &nonce).await,
        };
        let token = token.map_err(|fault| of_fault(fault, &terms))?;
        let body = LoginBody {
            id_token: token.expose().to_owned(),
            key_request: request,
            group: self.group.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let answer = daemon.log_in(&body).await?;
        let role: PrincipalKind = answer.kind.parse().map_err(|_| {
            Failure::new(
                Exit::Failure,
                format!("the daemon gave an unknown role: `{}`", plain::value(&answer.kind)),
            )
        })?;
        let files = folder.files(&name, role);
        if folder.roles(&name, &context).contains(&role)
            && let Err(failure) = end(session, role).await
        {
            let why = plain::line(&failure.text).into_owned();
            note(&format!(
                "Your earlier login as {role} could not be ended, so it stays valid until it expires: {why}"
            ));
        }
        folder.write(&files, &answer.svid, &key_pem)?;
        keep(session, &name, self.at, role, files.into())?;
        show(session, &name, role, &answer)
    }

    fn http(&self, terms: &LoginTerms) -> Result<ProviderHttp, Failure> {
        let unusable = |file: &PathBuf, why: String| {
            Failure::usage(format!("`{}` cannot be used: {why}", plain::path(file)))
                .fix("name a file with CA certificates in PEM")
        };
        let ca = match &self.issuer_ca {
            Some(file) => Some(std::fs::read(file).map_err(|e| unusable(file, e.to_string()))?),
            None => None,
        };
        ProviderHttp::new(&terms.issuer, ca.as_deref()).map_err(|why| match (&why, &self.issuer_ca) {
            (HttpFault::PlainIssuer, _) => Refusal::new(Reason::LoginRefused, why.to_string())
                .with("identity provider", plain::value(&terms.issuer))
                .fix("have an operator write an https issuer into [people] of the daemon's configuration")
                .into(),
            (_, Some(file)) => unusable(file, why.to_string()),
            (_, None) => Failure::new(
                Exit::Failure,
                format!("the CA certificates of this machine cannot be used: {why}"),
            )
            .fix("name the CA certificates of your identity provider with --issuer-ca FILE"),
        })
    }
}

async fn by_browser(
    session: &Session,
    http: &ProviderHttp,
    terms: &LoginTerms,
    nonce: &str,
) -> Result<SecretText, FlowFault> {
    let flow = BrowserFlow::begin(http, terms, nonce).await?;
    note("Open this address in a browser on this machine, and sign in:");
    // `note` would hide the address, because a part of it looks like a secret. `note_page` shows it.
    note_page(&Page::line(&format!("  {}", flow.url())));
    flow.finish(http, &*session.clock, LOGIN_WAIT).await
}

async fn by_device(
    session: &Session,
    http: &ProviderHttp,
    terms: &LoginTerms,
    nonce: &str,
) -> Result<SecretText, FlowFault> {
    let flow = DeviceFlow::begin(http, terms, nonce).await?;
    let open = format!("Open {} in a browser, type the code {}, and sign in.", flow.url(), flow.code());
    note_page(&Page::line(&open));
    if let Some(url) = flow.url_with_code() {
        note_page(&Page::line(&format!("Or open {url}")));
    }
    flow.finish(http, session.clock.clone(), LOGIN_WAIT).await
}

/// Writes the identity of a login into its context. Reads the file again first, because another command may have changed it.
fn keep(
    session: &Session,
    name: &str,
    at: Option<String>,
    role: PrincipalKind,
    from: SvidFrom,
) -> Result<(), Failure> {
    change(session, name, |context| {
        if at.is_some() {
            context.login = at;
        }
        context.identities.insert(role, from);
    })
}

fn change(session: &Session, name: &str, change: impl FnOnce(&mut Context)) -> Result<(), Failure> {
    let path = session.contexts_file()?;
    let mut contexts = Contexts::load(path)?;
    if let Some(context) = contexts.contexts.get_mut(name) {
        change(context);
    }
    contexts.save(path).map_err(|e| {
        Failure::new(Exit::Failure, format!("`{}` cannot be written: {e}", plain::path(path)))
            .fix("set LEASEHOLD_CONTEXTS to a file that you may write")
    })
}

fn show(session: &Session, name: &str, role: PrincipalKind, answer: &LoginAnswer) -> Result<Exit, Failure> {
    if session.for_programs() {
        session.print_value(&json!({
            "spiffe_id": answer.spiffe_id, "human": answer.human, "kind": answer.kind, "group": answer.group,
            "groups": answer.groups, "amr": answer.amr, "until": answer.until, "context": name,
        }))?;
        return Ok(Exit::Ok);
    }
    print_line(&plain::line(&answer.spiffe_id))?;
    let group = match answer.group.as_str() {
        "" => String::new(),
        group => format!(" of the group {}", plain::line(group)),
    };
    note(&format!(
        "You are logged in as {role}{group} until {}. To end it: leasehold logout",
        plain::line(&answer.until)
    ));
    let others: Vec<_> =
        answer.groups.iter().filter(|group| **group != answer.group).map(|g| plain::line(g)).collect();
    if let [first, ..] = others.as_slice() {
        note(&format!(
            "You are in these groups too: {}. To change: leasehold login --group {first}",
            others.join(", ")
        ));
    }
    Ok(Exit::Ok)
}

fn made_no_key(error: &rcgen::Error) -> Failure {
    Failure::new(Exit::Failure, format!("no key could be made: {error}"))
}

fn of_fault(fault: FlowFault, terms: &LoginTerms) -> Failure {
    let text = plain::line(&fault.to_string()).into_owned();
    let issuer = plain::line(&terms.issuer).into_owned();
    let (reason, fix) = match fault {
        FlowFault::Provider(_) => {
            (Reason::ProviderUnavailable, "check that this machine reaches the identity provider")
        }
        FlowFault::NoDeviceFlow => (Reason::LoginRefused, "log in without --device"),
        FlowFault::Listen(_) => (Reason::LoginRefused, "log in with --device"),
        FlowFault::Refused(_) => {
            (Reason::LoginRefused, "log in again, or ask the operators of the identity provider")
        }
        FlowFault::TimedOut => (Reason::LoginRefused, "log in again"),
        FlowFault::OtherToken(_) => {
            (Reason::LoginRefused, "log in again; if it lasts, ask the operators of the identity provider")
        }
    };
    Failure::from(Refusal::new(reason, text).with("identity provider", issuer).fix(fix))
}

/// Ends your login at the daemon, and removes your key and certificate from this machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Ends the logins of the current context. The daemon refuses the certificate from then on. The
session at your identity provider stays; end it in the browser.

Examples:
  leasehold logout
  leasehold logout --context prod")]
pub struct LogoutArgs {}

impl LogoutArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let (name, context) = session.context()?;
        let folder = LoginFolder::find()?;
        let mut roles = folder.roles(&name, &context);
        if let Some(role) = session.role() {
            roles.retain(|found| *found == role);
        }
        if roles.is_empty() {
            return Err(Failure::new(Exit::Failure, format!("you are not logged in in context `{name}`"))
                .fix("leasehold login, or name another context with --context"));
        }
        let mut failed = None;
        for role in roles {
            let ended = end(session, role).await;
            let files = folder.files(&name, role);
            LoginFolder::wipe(&files).map_err(|e| {
                Failure::new(Exit::Failure, format!("`{}` cannot be removed: {e}", plain::path(&files.key)))
                    .fix("remove it yourself")
            })?;
            change(session, &name, |context| drop(context.identities.remove(&role)))?;
            match ended {
                Ok(()) => {
                    note(&format!("You are logged out as {role}. Your key was removed from this machine."));
                }
                Err(failure) => failed = Some(failure),
            }
        }
        match failed {
            None => Ok(Exit::Ok),
            Some(failure) => Err(failure.saying(
                "Your key was removed from this machine, but the daemon was not asked to end the login. The login ends when its certificate expires.",
            )),
        }
    }
}

/// Ends the login of a role at the daemon. If the login has already ended, this is not a failure.
async fn end(session: &Session, role: PrincipalKind) -> Result<(), Failure> {
    let ended = async {
        let client = session.client(&[role])?;
        client
            .ask(CallKind::Changes, v1::LogOutRequest {}, async |r| client.operator().log_out(r).await)
            .await
    };
    match ended.await {
        Ok(_) => Ok(()),
        Err(failure) if matches!(failure.reason, Some(Reason::LoginRequired | Reason::SvidExpired)) => Ok(()),
        Err(failure) => Err(failure),
    }
}
