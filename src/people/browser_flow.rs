//! Login with a browser on this machine: the authorization code flow with PKCE (RFC 7636, RFC 8252).

use std::time::Duration;

use openidconnect::{
    AuthorizationCode, ClientId, CsrfToken, Nonce, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope,
    TokenResponse,
    core::{CoreAuthenticationFlow, CoreClient},
    url::Url,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    exchange::LoginTerms,
    flow::{Endpoints, FlowFault, SCOPES, endpoints},
    provider_http::{ProviderHttp, causes},
};
use crate::{clock::Clock, plain, secret::SecretText};

/// The size limit for a browser's request: a code, a state, and the headers that browsers send.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// How long one connection may take to send its request.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// A login that waits for a person in a browser.
pub struct BrowserFlow {
    endpoints: Endpoints,
    client_id: ClientId,
    redirect: RedirectUrl,
    listener: TcpListener,
    url: Url,
    state: CsrfToken,
    nonce: Nonce,
    verifier: PkceCodeVerifier,
}

impl BrowserFlow {
    /// Begins a login for a key. `nonce` is the digest of that key, and the ID token must have it. Listens for the
    /// answer on a port of this machine.
    ///
    /// # Errors
    ///
    /// Fails if the provider gives no usable answer, or if no port is free.
    pub async fn begin(http: &ProviderHttp, terms: &LoginTerms, nonce: &str) -> Result<Self, FlowFault> {
        let endpoints = endpoints(http, terms).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let redirect = RedirectUrl::new(format!("http://localhost:{port}/callback"))
            .map_err(|e| FlowFault::Provider(e.to_string()))?;
        let client_id = ClientId::new(terms.client_id.clone());
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let nonce = Nonce::new(nonce.to_owned());
        let asked = nonce.clone();
        let client = CoreClient::from_provider_metadata(endpoints.clone(), client_id.clone(), None)
            .set_redirect_uri(redirect.clone());
        let (url, state, _) = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, CsrfToken::new_random, move || asked)
            .add_scopes(SCOPES.map(|scope| Scope::new(scope.to_owned())))
            .set_pkce_challenge(challenge)
            .url();
        Ok(BrowserFlow { endpoints, client_id, redirect, listener, url, state, nonce, verifier })
    }

    /// Returns the URL at which the person logs in.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Waits for the browser, and exchanges its code for the ID token, which must have our nonce.
    ///
    /// # Errors
    ///
    /// Fails if the person or the provider refused, or if the ID token is not the answer to this login.
    pub async fn finish(
        self,
        http: &ProviderHttp,
        clock: &dyn Clock,
        wait: Duration,
    ) -> Result<SecretText, FlowFault> {
        let code = tokio::select! {
            code = wait_for_code(&self.listener, &self.state, clock) => code?,
            () = clock.sleep(wait) => return Err(FlowFault::TimedOut),
        };
        let client = CoreClient::from_provider_metadata(self.endpoints, self.client_id, None)
            .set_redirect_uri(self.redirect);
        let answer = client
            .exchange_code(code)
            .map_err(|e| FlowFault::Provider(e.to_string()))?
            .set_pkce_verifier(self.verifier)
            .request_async(http)
            .await
            .map_err(|e| FlowFault::Provider(causes(&e)))?;
        let token =
            answer.id_token().ok_or_else(|| FlowFault::OtherToken("the provider sent none".to_owned()))?;
        token
            .claims(&client.id_token_verifier(), &self.nonce)
            .map_err(|e| FlowFault::OtherToken(causes(&e)))?;
        Ok(SecretText::new(token.to_string()))
    }
}

/// Answers requests until a request has our state. All other requests get an error.
async fn wait_for_code(
    listener: &TcpListener,
    state: &CsrfToken,
    clock: &dyn Clock,
) -> Result<AuthorizationCode, FlowFault> {
    loop {
        let (mut tcp, _) = listener.accept().await?;
        let target = tokio::select! {
            target = read_target(&mut tcp) => target,
            () = clock.sleep(REQUEST_WAIT) => None,
        };
        let found = target.and_then(|target| answer_of(&target, state));
        let (status, text) = match &found {
            None => ("400 Bad Request", "This is not the answer to the login that waits here."),
            Some(Ok(_)) => (
                "200 OK",
                "The identity provider accepted your login: go back to the terminal to see the result.",
            ),
            Some(Err(_)) => ("200 OK", "The login was refused: go back to the terminal."),
        };
        let page = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        tokio::select! {
            _ = tcp.write_all(page.as_bytes()) => {}
            () = clock.sleep(REQUEST_WAIT) => {}
        }
        if let Some(found) = found {
            return found;
        }
    }
}

/// Reads the target of a GET request: the text between the method and the version.
async fn read_target(tcp: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut chunk = [0; 2_048];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let read = tcp.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
        head.extend_from_slice(chunk.get(..read)?);
        if head.len() > REQUEST_BYTES_MAX {
            return None;
        }
    }
    let text = String::from_utf8(head).ok()?;
    let mut words = text.lines().next()?.split(' ');
    (words.next()? == "GET").then(|| words.next().map(str::to_owned)).flatten()
}

/// Returns the code or the refusal that a request contains. `None` if the request is not the answer to our login.
fn answer_of(target: &str, state: &CsrfToken) -> Option<Result<AuthorizationCode, FlowFault>> {
    let url = Url::parse("http://localhost/").ok()?.join(target).ok()?;
    let value = |name: &str| {
        let mut values =
            url.query_pairs().filter(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        // A provider sends each parameter once, so a repeated parameter does not count.
        values.next().filter(|_| values.next().is_none())
    };
    let is_ours = value("state").is_some_and(|found| {
        subtle::ConstantTimeEq::ct_eq(found.as_bytes(), state.secret().as_bytes()).into()
    });
    if url.path() != "/callback" || !is_ours {
        return None;
    }
    match (value("code"), value("error")) {
        (Some(code), None) => Some(Ok(AuthorizationCode::new(code))),
        (_, error) => {
            let said = value("error_description").or(error).unwrap_or_else(|| "it gave no code".to_owned());
            Some(Err(FlowFault::Refused(plain::value(&said))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Only the answer to our login is accepted.
    #[test]
    fn an_answer_with_another_state_is_not_ours() {
        let state = CsrfToken::new("ours".to_owned());
        let code =
            |target: &str| answer_of(target, &state).map(|found| found.map(|c| c.secret().clone()).ok());
        assert_eq!(code("/callback?code=a&state=ours"), Some(Some("a".to_owned())));
        for other in [
            "/callback?code=a",
            "/callback?code=a&state=",
            "/callback?code=a&state=Ours",
            "/callback?code=a&state=ours&state=ours",
            "/callback/?code=a&state=ours",
            "/other?code=a&state=ours",
            "http://evil.example/other?code=a&state=ours",
            "/",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
        for refused in [
            "/callback?error=access_denied&state=ours",
            "/callback?state=ours",
            "/callback?code=a&error=b&state=ours",
        ] {
            assert_eq!(code(refused), Some(None), "{refused}");
        }
    }
}
