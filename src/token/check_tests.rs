use super::*;
use crate::{
    name::{Action, AttemptNumber, FenceName, JobId, LeaseId, ResourceName, Scope},
    token::{Confirmation, LeaseClaims, SigningKey, mint},
};

const NOW: Wall = Wall(1_795_148_000_000);

fn claims() -> Claims {
    let mut claims = Claims {
        iss: "https://leasehold.example".into(),
        sub: "spiffe://td/worker".parse().unwrap(),
        aud: "spiffe://td/gateway".parse().unwrap(),
        exp: NOW.seconds() + 300,
        nbf: NOW.seconds(),
        iat: NOW.seconds(),
        jti: "x".into(),
        client_id: "spiffe://td/worker".parse().unwrap(),
        authorization_details: vec![(&Scope::whole("dataset:acme/d@v1".parse().unwrap())).into()],
        lh: LeaseClaims {
            epoch: 3,
            stood_at: 7,
            lease: LeaseId(1),
            generation: 0,
            job: JobId(2),
            attempt: AttemptNumber::FIRST,
            member: "node-1".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            fences: vec![],
        },
        cnf: None,
    };
    claims.set_fences([FenceName::human("ada".parse().unwrap()), FenceName::epoch()].iter());
    claims
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
        mint(&self.key, &c).unwrap().expose().to_owned()
    }

    fn check_as(&self, token: &str, presenter: Presenter<'_>, now: Wall) -> Result<Claims, TokenError> {
        let expected = Expected { issuer: &self.issuer, audience: &self.audience, presenter };
        check(token, &self.key.public(), expected, now)
    }

    fn check(&self, token: &str) -> Result<Claims, TokenError> {
        self.check_as(token, Presenter::Svid { id: &self.holder, x5t_s256: None }, NOW)
    }

    /// Signs any header and body with the right key.
    fn signed(&self, header: &str, body: &str) -> String {
        let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(body));
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(self.key.sign(input.as_bytes()).unwrap()))
    }
}

#[test]
fn a_token_reads_back_and_names_all_of_its_fences() {
    let case = Case::new();
    let got = case.check(&case.mint(|_| ())).unwrap();
    assert_eq!(got, claims());
    assert_eq!(got.lh.fences, [FenceName::human("ada".parse().unwrap())], "only what the others do not say");
    let names: Vec<String> = got.fence_names().iter().map(ToString::to_string).collect();
    let job = JobId(2);
    for n in [
        "dataset:acme/d".to_owned(),
        "dataset:acme/d@v1".into(),
        "domain:td".into(),
        "epoch".into(),
        "human:ada".into(),
        "identity:spiffe://td/worker".into(),
        "tenant:acme".into(),
        format!("job:{job}"),
        format!("attempt:{job}/1"),
        format!("attempt:{job}/1/reading"),
        format!("member:{job}/1/node-1"),
        format!("member:{job}/1/node-1/reading"),
        format!("lease:{}", LeaseId(1)),
    ] {
        assert!(names.contains(&n), "{n}");
    }
    assert_eq!(names.len(), 13);
    let dataset: ResourceName = "dataset:acme/d@v1".parse().unwrap();
    assert!(got.opens(&dataset, Action::ReadDataset));
    assert!(!got.opens(&dataset, Action::ReadModel));
    assert!(!got.opens(&dataset.unversioned(), Action::ReadDataset));
}

#[test]
fn law_13_a_token_of_another_key_audience_issuer_or_holder_is_refused_each_with_its_own_reason() {
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
    // One bit of claims or signature changed.
    for i in [good.find('.').unwrap() + 5, good.len() - 5] {
        let mut bytes = good.clone().into_bytes();
        bytes[i] = if bytes[i] == b'A' { b'B' } else { b'A' };
        assert_eq!(case.check(&String::from_utf8(bytes).unwrap()), Err(TokenError::Signature), "{i}");
    }
    assert!(case.check(&good).is_ok());
}

#[test]
fn law_09_a_token_is_refused_from_its_exp_on() {
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
fn a_pinned_token_is_good_with_its_certificate_alone_and_never_downgraded() {
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
    let body = serde_json::to_string(&claims()).unwrap();
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
    for t in
        ["", ".", "..", "a.b.c", &good[1..], &format!("{good}="), &format!("{good}.x"), &"a".repeat(5_000)]
    {
        assert!(case.check(t).is_err(), "{t}");
    }
}

#[test]
fn another_implementation_verifies_the_same_token_with_the_published_keys() {
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
    assert_eq!(set, key.public());
    assert_eq!(key.id().epoch(), Some(12));
    let bad = key.public().to_jwks().replace("P-256", "P-384");
    assert!(KeySet::from_jwks(&bad).is_err());
}

#[test]
fn a_token_that_no_header_would_carry_is_not_made() {
    let case = Case::new();
    let mut c = claims();
    c.authorization_details = (0..64)
        .map(|i| (&Scope::whole(format!("dataset:acme/{}-{i}@v1", "d".repeat(60)).parse().unwrap())).into())
        .collect();
    assert!(matches!(mint(&case.key, &c), Err(crate::token::MintError::TooLarge(_))));
}
