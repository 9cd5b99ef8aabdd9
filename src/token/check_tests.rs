use super::*;
use crate::{
    name::{Action, AttemptNumber, FenceName, JobId, LeaseId, Object, Scope},
    token::{AuthorizationDetail, Confirmation, FenceTags, LeaseClaims, SigningKey, mint},
};

const NOW: Wall = Wall(1_795_148_000_000);

fn details(resources: &[&str]) -> Vec<AuthorizationDetail> {
    let scopes: Vec<Scope> = resources.iter().map(|r| Scope::whole(r.parse().unwrap())).collect();
    AuthorizationDetail::of_scopes(&scopes, JobId(2))
}

/// Returns the claims of a token, without the tags of its fences.
fn claims() -> Claims {
    Claims {
        iss: "https://leasehold.example".into(),
        sub: "spiffe://td/worker".parse().unwrap(),
        aud: "spiffe://td/gateway".parse().unwrap(),
        exp: NOW.seconds() + 300,
        nbf: NOW.seconds(),
        iat: NOW.seconds(),
        jti: "x".into(),
        client_id: JobId(2),
        authorization_details: details(&["dataset:acme/d@v1"]),
        lh: LeaseClaims {
            epoch: 3,
            stood_at: 7,
            lease: LeaseId(1),
            generation: 0,
            job: JobId(2),
            attempt: AttemptNumber::FIRST,
            tenant: "acme".parse().unwrap(),
            fences: FenceTags::default(),
            others: String::new(),
        },
        cnf: None,
    }
}

/// Makes a token that this key signs. Each number gives a different token.
pub(in crate::token) fn minted(key: &SigningKey, number: u64) -> String {
    let mut claims = Claims { jti: number.to_string(), ..claims() };
    let others = [FenceName::human("ada".parse().unwrap()), FenceName::epoch()];
    claims.set_fences(others.iter(), &key.fence_key(&claims.aud)).unwrap();
    mint(key, &claims).unwrap().expose().to_owned()
}

struct Case {
    key: SigningKey,
    issuer: String,
    audience: SpiffeId,
    holder: SpiffeId,
}

impl Case {
    fn new() -> Self {
        let c = claims();
        Case { key: SigningKey::generate(3, 1).unwrap(), issuer: c.iss, audience: c.aud, holder: c.sub }
    }

    fn mint(&self, change: impl FnOnce(&mut Claims)) -> String {
        let mut c = claims();
        change(&mut c);
        let c = self.with_fences(c);
        mint(&self.key, &c).unwrap().expose().to_owned()
    }

    fn with_fences(&self, mut claims: Claims) -> Claims {
        let others = [FenceName::human("ada".parse().unwrap()), FenceName::epoch()];
        claims.set_fences(others.iter(), &self.key.fence_key(&claims.aud)).unwrap();
        claims
    }

    fn check_as(&self, token: &str, presenter: Presenter<'_>, now: Wall) -> Result<Claims, TokenError> {
        let expected = Expected { issuer: &self.issuer, audience: &self.audience, presenter };
        check(token, self.key.public(), expected, now)
    }

    fn check(&self, token: &str) -> Result<Claims, TokenError> {
        self.check_as(token, Presenter::Svid { id: &self.holder, x5t_s256: None }, NOW)
    }

    /// Signs any header and body with the correct key.
    fn signed(&self, header: &str, body: &str) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(body));
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(self.key.sign(input.as_bytes()).unwrap()))
    }
}

#[test]
fn a_token_reads_back_with_a_tag_for_each_of_its_fences() {
    let case = Case::new();
    let got = case.check(&case.mint(|_| ())).unwrap();
    assert_eq!(got, case.with_fences(claims()));
    let names: Vec<String> = got.named_fences().unwrap().iter().map(ToString::to_string).collect();
    let job = JobId(2);
    for n in [
        "dataset:acme/d".to_owned(),
        "dataset:acme/d@v1".into(),
        "domain:td".into(),
        "epoch".into(),
        "identity:spiffe://td/worker".into(),
        "tenant:acme".into(),
        format!("job:{job}"),
        format!("attempt:{job}/1"),
        format!("attempt:{job}/1/reading"),
        format!("lease:{}", LeaseId(1)),
    ] {
        assert!(names.contains(&n), "{n}");
    }
    assert_eq!((names.len(), got.fences().len(), got.lh.others.as_str()), (10, 11, "h"));
    let key = case.key.fence_key(&got.aud);
    for (at, name) in names.iter().enumerate() {
        assert_eq!((got.fences()[at], got.fence(at)), (key.tag(&name.parse().unwrap()), name.clone()));
    }
    assert_eq!(got.fences()[10], key.tag(&FenceName::human("ada".parse().unwrap())));
    assert_eq!(got.fence(10), "a human that the token depends on");
    let opens = |object: &str, action| got.opens(&object.parse().unwrap(), action);
    assert!(opens("dataset:acme/d@v1", Action::ReadDataset));
    assert!(!opens("dataset:acme/d@v1", Action::ReadModel));
    assert!(!opens("dataset:acme/d", Action::ReadDataset));
}

#[test]
fn a_token_opens_the_folder_of_its_job_and_no_other() {
    let case = Case::new();
    let got =
        case.check(&case.mint(|c| c.authorization_details = details(&["checkpoint:acme/lora"]))).unwrap();
    let line: crate::name::ResourceName = "checkpoint:acme/lora".parse().unwrap();
    for action in [Action::WriteCheckpoint, Action::ReadCheckpoint, Action::DeleteCheckpoint] {
        assert!(got.opens(&Object::folder(line.clone(), JobId(2)), action));
        assert!(!got.opens(&Object::folder(line.clone(), JobId(3)), action));
        assert!(!got.opens(&line.clone().into(), action), "a line is no folder");
    }
}

#[test]
fn a_token_shows_no_name_that_its_verifier_need_not_know() {
    let case = Case::new();
    let token = case.mint(|_| ());
    let body = String::from_utf8(URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap();
    assert!(body.contains("worker") && !body.contains("ada"), "{body}");
}

#[test]
fn a_token_without_the_tag_of_one_of_its_fences_is_refused() {
    let case = Case::new();
    let changes: [fn(&mut Claims); 3] =
        [|c| c.lh.fences.0.truncate(3), |c| c.lh.fences.0.clear(), |c| c.lh.others.clear()];
    for change in changes {
        let mut c = case.with_fences(claims());
        change(&mut c);
        let token = mint(&case.key, &c).unwrap();
        assert_eq!(case.check(token.expose()).unwrap_err().reason(), Reason::TokenMalformed);
    }
}

// Proves law 13.
#[test]
fn each_wrong_claim_of_a_token_has_its_reason() {
    let case = Case::new();
    let good = case.mint(|_| ());
    let other = Case::new();
    assert_eq!(case.check(&other.mint(|_| ())), Err(TokenError::KeyUnknown));
    assert_eq!(case.check(&case.mint(|c| c.iss = "https://evil".into())), Err(TokenError::Issuer));
    let err = case.check(&case.mint(|c| c.aud = "spiffe://td/other".parse().unwrap())).unwrap_err();
    assert_eq!(err.reason(), Reason::TokenAudience);
    let thief = "spiffe://td/thief".parse().unwrap();
    let err = case.check_as(&good, Presenter::Svid { id: &thief, x5t_s256: None }, NOW).unwrap_err();
    assert_eq!(err.reason(), Reason::TokenPresenter);
    // One bit of the claims or of the signature is changed.
    for i in [good.find('.').unwrap() + 5, good.len() - 5] {
        let mut bytes = good.clone().into_bytes();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        assert_eq!(case.check(&String::from_utf8(bytes).unwrap()), Err(TokenError::Signature), "{i}");
    }
    assert!(case.check(&good).is_ok());
}

// Proves law 09.
#[test]
fn a_token_is_refused_from_its_exp_on() {
    let case = Case::new();
    let token = case.mint(|c| c.exp = NOW.seconds() + 1);
    let svid = Presenter::Svid { id: &case.holder, x5t_s256: None };
    assert!(case.check_as(&token, svid, Wall(NOW.0 + 999)).is_ok());
    assert_eq!(case.check_as(&token, svid, Wall(NOW.0 + 1_000)).unwrap_err().reason(), Reason::TokenExpired);
    let early = case.mint(|c| c.nbf = NOW.seconds() + 6);
    assert_eq!(case.check(&early).unwrap_err().reason(), Reason::TokenNotYetValid);
    assert!(case.check(&case.mint(|c| c.nbf = NOW.seconds() + 5)).is_ok());
}

#[test]
fn a_pinned_token_needs_its_certificate() {
    let case = Case::new();
    let (mine, other) = ([1u8; 32], [2u8; 32]);
    let token = case.mint(|c| c.cnf = Some(Confirmation { x5t_s256: URL_SAFE_NO_PAD.encode(mine) }));
    let with = |x| case.check_as(&token, Presenter::Svid { id: &case.holder, x5t_s256: x }, NOW);
    assert!(with(Some(&mine)).is_ok());
    assert_eq!(with(Some(&other)), Err(TokenError::Certificate));
    assert_eq!(with(None), Err(TokenError::Certificate));
    assert_eq!(case.check_as(&token, Presenter::Unseen, NOW), Err(TokenError::NoPresenter));
}

#[test]
fn a_header_that_chooses_its_own_key_rule_or_type_is_refused() {
    let case = Case::new();
    let kid = case.key.id().to_string();
    let body = serde_json::to_string(&case.with_fences(claims())).unwrap();
    assert!(
        case.check(&case.signed(&format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}"}}"#), &body))
            .is_ok()
    );
    for header in [
        format!(r#"{{"alg":"none","typ":"at+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"HS256","typ":"at+jwt","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","typ":"JWT","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#),
        format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}","crit":["x"]}}"#),
        format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}","jwk":{{}}}}"#),
        format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}","x5c":[]}}"#),
        format!(r#"{{"alg":"ES256","alg":"ES256","typ":"at+jwt","kid":"{kid}"}}"#),
    ] {
        let err = case.check(&case.signed(&header, &body)).unwrap_err();
        assert_eq!(err.reason(), Reason::TokenMalformed, "{header}");
    }
    let twice = body.replacen(r#""exp":"#, r#""exp":9999999999,"exp":"#, 1);
    let header = format!(r#"{{"alg":"ES256","typ":"at+jwt","kid":"{kid}"}}"#);
    assert_eq!(case.check(&case.signed(&header, &twice)).unwrap_err().reason(), Reason::TokenMalformed);
}

#[test]
fn texts_that_are_no_token_are_refused() {
    let case = Case::new();
    let good = case.mint(|_| ());
    for t in [
        "",
        ".",
        "..",
        "a.b.c",
        &good[1..],
        &format!("{good}="),
        &format!("{good}.x"),
        &"a".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        assert!(case.check(t).is_err(), "{t}");
    }
}

#[test]
fn another_library_verifies_the_token_by_published_keys() {
    let case = Case::new();
    let token = case.mint(|c| {
        c.iat = 4_000_000_000;
        c.nbf = 1_000_000_000;
        c.exp = 4_000_000_300;
    });
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&case.key.public().to_jwks()).unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(case.key.id().as_str()).unwrap()).unwrap();
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    rules.set_audience(&["spiffe://td/gateway"]);
    let seen = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &rules).unwrap();
    assert_eq!(seen.claims["sub"], "spiffe://td/worker");
    assert_eq!(seen.header.typ.as_deref(), Some("at+jwt"));
}

#[test]
fn published_keys_read_back_and_others_are_refused() {
    let key = SigningKey::generate(12, 1).unwrap();
    let set = KeySet::from_jwks(&key.public().to_jwks()).unwrap();
    assert_eq!(&set, key.public());
    assert_eq!(key.id().epoch(), Some(12));
    let bad = key.public().to_jwks().replace("P-256", "P-384");
    assert!(KeySet::from_jwks(&bad).is_err());
    // A point with another y is not on the curve, so it could verify no signature.
    let mut jwks: serde_json::Value = serde_json::from_str(&key.public().to_jwks()).unwrap();
    jwks["keys"][0]["y"] = "A".repeat(43).into();
    assert!(KeySet::from_jwks(&jwks.to_string()).is_err());
}

#[test]
fn a_token_that_no_header_would_carry_is_not_made() {
    let case = Case::new();
    let mut c = claims();
    let names: Vec<String> = (0..64).map(|i| format!("dataset:acme/{}-{i}@v1", "d".repeat(60))).collect();
    c.authorization_details = details(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let c = case.with_fences(c);
    assert!(matches!(mint(&case.key, &c), Err(crate::token::MintError::TooLarge(_))));
}

#[test]
fn as_many_resources_as_a_job_may_have_fit_into_a_token() {
    let case = Case::new();
    let names: Vec<String> =
        (0..64).map(|i| format!("dataset:acme/support-tickets-region-{i:02}@2026-11")).collect();
    let token = case
        .mint(|c| c.authorization_details = details(&names.iter().map(String::as_str).collect::<Vec<_>>()));
    assert!(case.check(&token).is_ok(), "{} bytes", token.len());
    let bytes = token.len();
    assert!(bytes < TOKEN_BYTES_MAX - 400, "{bytes} bytes leave no room for longer identities");
}

// Claims that were made for one lease of a member also fit the next lease, with the tag of that lease.
#[test]
fn claims_of_another_lease_have_its_tag() {
    let case = Case::new();
    let key = case.key.fence_key(&claims().aud);
    let mut moved = case.with_fences(claims());
    moved.set_lease(LeaseId(9), &key);
    let mut made = claims();
    made.lh.lease = LeaseId(9);
    assert_eq!(moved, case.with_fences(made));
    assert_ne!(moved.fences(), case.with_fences(claims()).fences());
}
