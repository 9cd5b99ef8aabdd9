//! Implements `leasehold token`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

use super::{
    Exit, Failure, Session,
    client::CallKind,
    failure::CODE,
    output::{Page, TableCell, fields, note, print},
    render, timestamp,
};
use crate::{
    clock::Wall,
    identity::Leaf,
    limits::TOKEN_BYTES_MAX,
    name::{PrincipalKind, SpiffeId},
    plain,
    proto::v1,
    reason::{Reason, Refusal},
    secret::SecretText,
};

/// Shows what a credential says, and checks whether it is valid now.
#[derive(Debug, Args)]
#[command(after_help = "\
A token is a secret, so it is read from a file and never printed. The last example revokes a token
that leaked.

Examples:
  leasehold token inspect $LEASEHOLD_TOKEN_FILE_READING
  leasehold token check t.jwt --audience spiffe://acme.example/gw --presenter-svid svid.pem
  leasehold revoke --reason leak \"$(leasehold token inspect t.jwt -o json | jq -r .claims.lh.lease)\"")]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Shows what a token says, without checking it. Needs no daemon.
    #[command(after_help = "\
Examples:
  leasehold token inspect leaked.jwt
  leasehold token inspect leaked.jwt -o json | jq -r .claims.lh.lease")]
    Inspect {
        /// The file with the token, or - for stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Asks the daemon whether a token is valid now. Exits with 4 if its access was ended, and with 7 if it is
    /// invalid for another reason.
    #[command(after_help = "\
Examples:
  leasehold token check leaked.jwt --audience spiffe://… --presenter spiffe://…
  leasehold token check leaked.jwt --audience spiffe://… --presenter-svid svid.pem")]
    Check {
        /// The file with the token, or - for stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The server that the token must be for
        #[arg(long, value_name = "SPIFFE ID")]
        audience: SpiffeId,
        /// The identity that presents the token
        #[arg(long, value_name = "SPIFFE ID")]
        presenter: Option<SpiffeId>,
        /// The certificate of the presenter (PEM), if the token is bound to it
        #[arg(long, value_name = "FILE", conflicts_with = "presenter")]
        presenter_svid: Option<PathBuf>,
    },
}

impl TokenArgs {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        match self.command {
            TokenCommand::Inspect { file } => inspect(&file, session),
            TokenCommand::Check { file, audience, presenter, presenter_svid } => {
                let presenter = match presenter_svid {
                    Some(svid) => Some(read_presenter(&svid)?),
                    None => presenter.map(|id| (id, Vec::new())),
                };
                check(&file, &audience, presenter, session).await
            }
        }
    }
}

fn read(file: &Path) -> Result<SecretText, Failure> {
    let mut text = String::new();
    // A few bytes more than the largest token, for newlines.
    let most = u64::try_from(TOKEN_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(64);
    let read = if file == Path::new("-") {
        io::stdin().take(most).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|f| f.take(most).read_to_string(&mut text))
    };
    let token = SecretText::new(text);
    match read {
        Err(e) => Err(Failure::new(
            Exit::Failure,
            format!("`{}` cannot be read: {e}", plain::value(&file.to_string_lossy())),
        )
        .fix("give the file with the token, or - for stdin")),
        Ok(_) if token.expose().trim().len() > TOKEN_BYTES_MAX => {
            Err(malformed(format!("it is longer than {TOKEN_BYTES_MAX} bytes, the maximum for a token")))
        }
        Ok(_) => Ok(SecretText::new(token.expose().trim().to_owned())),
    }
}

fn malformed(why: impl Into<String>) -> Failure {
    Refusal::new(Reason::TokenMalformed, "this is not a token")
        .with("why", why)
        .fix("give a file with one JWT in compact form, like the token files of `leasehold run`")
        .into()
}

/// Decodes the header and the claims of a JWT. Does not verify the token.
fn decode(token: &str) -> Result<(Value, Value), Failure> {
    let parts: Vec<_> = token.split('.').collect();
    let [header, claims, _signature] = parts.as_slice() else {
        return Err(malformed(format!("it has {} parts between dots, a token has three", parts.len())));
    };
    let part = |name: &str, text: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        bytes
            .and_then(|b| serde_json::from_slice::<Value>(&b).ok())
            .filter(Value::is_object)
            .ok_or_else(|| malformed(format!("its {name} is not base64url of a JSON object")))
    };
    Ok((part("header", header)?, part("payload", claims)?))
}

const UNVERIFIED: &str =
    "Nothing was verified: anyone can write a token that says this. `leasehold token check` asks the daemon.";

fn inspect(file: &Path, session: &Session) -> Result<Exit, Failure> {
    let token = read(file)?;
    let (header, claims) = decode(token.expose())?;
    if session.for_programs() {
        session.print_value(&json!({ "verified": false, "header": header, "claims": claims }))?;
    } else {
        print(&page(&header, &claims, session.now().wall))?;
    }
    note(UNVERIFIED);
    Ok(Exit::Ok)
}

fn page(header: &Value, claims: &Value, now: Wall) -> Page {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let text = |value: Option<&Value>| match value {
        None | Some(Value::Null) => TableCell::default(),
        Some(Value::Array(items)) => TableCell::list(items.iter().map(word)),
        Some(other) => word(other).into(),
    };
    let time = |key: &str| {
        let at = claims.get(key).and_then(Value::as_u64).map(Wall::from_seconds);
        at.map_or_else(
            || text(claims.get(key)),
            |at| format!("{at} ({})", timestamp::relative(at, now)).into(),
        )
    };
    let lease = |key: &str| text(claims.get("lh").and_then(|lh| lh.get(key)));
    let details = claims.get("authorization_details").and_then(Value::as_array);
    let opens = details.into_iter().flatten().flat_map(|detail| {
        let listed = |key| detail.get(key).and_then(Value::as_array).into_iter().flatten().map(word);
        let actions = listed("actions").collect::<Vec<_>>().join(", ");
        let identifier = detail.get("identifier").map(word).unwrap_or_default();
        listed("names").map(|name| format!("{identifier}{name}: {actions}")).collect::<Vec<_>>()
    });
    fields([
        ("algorithm", text(header.get("alg"))),
        ("type", text(header.get("typ"))),
        ("key", text(header.get("kid"))),
        ("issuer", text(claims.get("iss"))),
        ("subject", text(claims.get("sub"))),
        ("audience", text(claims.get("aud"))),
        ("opens", TableCell::list(opens)),
        ("issued", time("iat")),
        ("not before", time("nbf")),
        ("expires", time("exp")),
        ("id", text(claims.get("jti"))),
        ("lease", lease("lease")),
        ("generation", lease("gen")),
        ("job", lease("job")),
        ("attempt", lease("attempt")),
        ("tenant", lease("tenant")),
        ("epoch", lease("epoch")),
        ("issued at seq", lease("stood_at")),
        ("bound to", text(claims.get("cnf").and_then(|cnf| cnf.get("x5t#S256")))),
    ])
}

/// Reads the SPIFFE ID and the thumbprint of a certificate.
fn read_presenter(file: &Path) -> Result<(SpiffeId, Vec<u8>), Failure> {
    let unusable = |why: String| {
        Failure::new(
            Exit::Failure,
            format!("{} is not a certificate with a SPIFFE ID: {why}", plain::path(file)),
        )
        .fix("give the certificate chain of the token's holder as PEM, leaf first")
    };
    let leaf = CertificateDer::from_pem_file(file).map_err(|e| unusable(e.to_string()))?;
    let leaf = Leaf::parse(&leaf).map_err(|e| unusable(e.to_string()))?;
    Ok((leaf.spiffe_id, leaf.x5t_s256.to_vec()))
}

async fn check(
    file: &Path,
    audience: &SpiffeId,
    presenter: Option<(SpiffeId, Vec<u8>)>,
    session: &Session,
) -> Result<Exit, Failure> {
    let token = read(file)?;
    let client = session.client(&[PrincipalKind::Verifier, PrincipalKind::Operator])?;
    let (presenter, presenter_sha256) = presenter.map(|(id, x5t)| (id.to_string(), x5t)).unwrap_or_default();
    let request = v1::IntrospectRequest { token: token.expose().to_owned(), presenter, presenter_sha256 };
    let answer =
        client.ask(CallKind::Reads, request, async |r| client.verifier().introspect(r).await).await?;
    if !answer.active {
        return Err(inactive(&answer.reason));
    }
    if answer.audience != audience.as_str() {
        return Err(Refusal::new(Reason::TokenAudience, "the token is valid, but for another audience")
            .with("audience", answer.audience)
            .fix(format!("present it to the audience above; for {audience} the job needs another credential"))
            .into());
    }
    let now = session.now().wall;
    if session.for_programs() {
        session.print_value(&json!({
            "active": true, "subject": answer.subject, "audience": answer.audience,
            "expires": timestamp::value(answer.expires.as_ref(), now),
            "lease": answer.lease.as_ref().map(|l| render::lease_value(l, now)),
        }))?;
    } else {
        print(&fields([
            ("valid now", "yes".to_owned()),
            ("subject", answer.subject),
            ("audience", answer.audience),
            ("expires", timestamp::both(answer.expires.as_ref(), now)),
            ("lease", answer.lease.map(|l| l.id).unwrap_or_default()),
        ]))?;
    }
    Ok(Exit::Ok)
}

fn inactive(code: &str) -> Failure {
    const TEXT: &str = "the token is not valid now";
    let Some(reason) = Reason::parse(code) else {
        return Failure::new(Exit::VerificationFailed, TEXT).with(CODE, code);
    };
    let refusal = Refusal::new(reason, TEXT);
    match meaning(reason) {
        Some((means, fix)) => refusal.with("means", means).fix(fix),
        None => refusal,
    }
    .into()
}

/// Explains the reason of a verifier to a person who has the token in a file.
fn meaning(reason: Reason) -> Option<(&'static str, &'static str)> {
    Some(match reason {
        Reason::TokenPresenter => (
            "it may be valid, but only its holder may present it, and you named another identity or none",
            "add --presenter SPIFFE-ID or --presenter-svid FILE of the holder; `leasehold token inspect` shows it as the subject",
        ),
        Reason::TokenCertificate => (
            "it may be valid, but it is bound to a certificate that you did not give",
            "add --presenter-svid FILE with that certificate; `leasehold lease show` says whether its lease is live",
        ),
        Reason::TokenAudience => (
            "your identity may not verify tokens for the audience of this token",
            "see its audience in `leasehold token inspect`, and ask as a verifier of that audience: --as verifier",
        ),
        Reason::TokenExpired => ("it has expired", "no action is needed: no server accepts it now"),
        Reason::TokenEpoch => (
            "it was issued before the last restart of the daemon",
            "no action is needed: no server accepts it now",
        ),
        Reason::TokenSignature | Reason::TokenKeyUnknown | Reason::TokenIssuer => (
            "this daemon did not sign it",
            "compare the issuer in `leasehold token inspect` with `leasehold context show`",
        ),
        Reason::Revoked | Reason::LeaseEnded | Reason::LeaseExpired => (
            "the access that it gave has ended",
            "`leasehold lease show` and `leasehold audit tail --about` show why",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_is_shown_without_its_signature() {
        let (header, claims) = decode(&token(
            r#"{"alg":"ES256","typ":"at+jwt","kid":"1.1.x"}"#,
            r#"{"iss":"https://l.example","sub":"spiffe://td.example/w","aud":"spiffe://td.example/f","exp":1795148300,
               "authorization_details":[{"type":"leasehold.v1","identifier":"dataset:acme/","names":["t@v3"],"actions":["read_dataset"]}],
               "lh":{"epoch":3,"lease":"l-1","fences":"AAAAAAAAAAAAAAAA"}}"#,
        ))
        .unwrap();
        let shown = page(&header, &claims, Wall(1_795_148_000_000));
        insta::assert_snapshot!(shown, @r#"
        algorithm  ES256
        type       at+jwt
        key        1.1.x
        issuer     https://l.example
        subject    spiffe://td.example/w
        audience   spiffe://td.example/f
        opens      dataset:acme/t@v3: read_dataset
        expires    2026-11-20T04:18:20.000Z (in 5m)
        lease      l-1
        epoch      3
        "#);
    }

    #[test]
    fn text_that_is_not_a_token_is_refused_and_not_shown() {
        for text in ["", "5ecret", "5ecret.a", "5ecret.a.b", "W10.W10.x", "a.b.c.d"] {
            let failure = decode(text).unwrap_err();
            assert_eq!(failure.exit, Exit::VerificationFailed);
            assert!(!failure.render().contains("5ecret"), "{}", failure.render());
        }
    }

    #[test]
    fn an_invalid_token_exits_with_the_code_of_its_reason() {
        assert_eq!(inactive("TOKEN_EXPIRED").exit.code(), 7);
        assert_eq!(inactive("REVOKED").exit.code(), 4);
        assert_eq!(inactive("SOMETHING_NEW").exit.code(), 7);
    }

    #[test]
    fn a_file_longer_than_any_token_is_not_read_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x".repeat(1 << 20)).unwrap();
        assert_eq!(read(file.path()).unwrap_err().reason, Some(Reason::TokenMalformed));
        std::fs::write(file.path(), " a.b.c\n").unwrap();
        assert_eq!(read(file.path()).unwrap().expose(), "a.b.c");
    }
}
