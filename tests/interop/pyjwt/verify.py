"""verify.py ADDRESS FOLDER ISSUER: a resource server that has only PyJWT and the issuer's address."""

import base64
import json
import sys
import time
import urllib.request

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from reflected import Daemon, Member
from tally import Tally

DATA = "dataset:dev/offline@v1"
TRAINER = "spiffe://dev.leasehold/trainer"
AUDIENCE = "spiffe://dev.leasehold/offline"
LONGEST = 5 * 60  # seconds that a token of such an audience lives


def story(tally, address, folder, issuer):
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", timeout=10) as answer:
        found = json.load(answer)
    tally.equal("discovery names the issuer", found["issuer"], issuer)
    tally.equal("discovery names only ES256", found["id_token_signing_alg_values_supported"], ["ES256"])
    keys = jwt.PyJWKClient(found["jwks_uri"], timeout=10)

    def verify(token, **other):
        """As in the manual of PyJWT."""
        wanted = {"audience": AUDIENCE, "issuer": issuer} | other
        key = keys.get_signing_key_from_jwt(token)
        require = ["exp", "iat", "nbf", "iss", "aud", "sub", "jti"]
        return jwt.decode(token, key, algorithms=["ES256"], options={"require": require}, **wanted)

    with Daemon(address, folder, "trainer") as trainer:
        member = Member(trainer, [DATA])
        asked = int(time.time())
        issued = member.issue(ttl={"seconds": 600})
        good(tally, issued, verify(issued.token), issuer, asked)
        header(tally, jwt.get_unverified_header(issued.token), found["jwks_uri"])
        bad(tally, issued.token, verify)
        late(tally, member, verify)
        member.end()
        # This is a known limit, which the credential states: a server that does not ask the daemon learns of no ending.
        tally.check("after the end of the job only its short life ends the token", verify(issued.token))


def good(tally, issued, claims, issuer, asked):
    tally.equal("iss", claims["iss"], issuer)
    tally.equal("aud is one audience", claims["aud"], AUDIENCE)
    tally.equal("sub is the holder's SPIFFE ID", claims["sub"], TRAINER)
    tally.check("iat is now", abs(claims["iat"] - asked) <= 5, (claims["iat"], asked))
    life = claims["exp"] - claims["iat"]
    tally.check("exp is within five minutes of iat, though ten were asked for", 0 < life <= LONGEST, life)
    tally.check("the answer says what shortened it", issued.shortened_by, list(issued.shortened_by))
    tally.equal("the answer says the same exp", issued.token_expires.seconds, claims["exp"])
    bound = issued.revocation_bound
    tally.equal("the answer says that only expiry ends it", (bound.by, bound.at_most.seconds), ("expiry", LONGEST))
    tally.equal("the answer says that any holder can use it", issued.binding, 3)
    opened = [(d["identifier"] + n, d["actions"]) for d in claims["authorization_details"] for n in d["names"]]
    tally.equal("the token allows what was asked for, and no more", opened, [(DATA, ["read_dataset"])])


def header(tally, header, jwks_uri):
    tally.equal("typ", header["typ"], "at+jwt")
    tally.equal("alg", header["alg"], "ES256")
    with urllib.request.urlopen(jwks_uri, timeout=10) as answer:
        kids = [key["kid"] for key in json.load(answer)["keys"]]
    tally.check("kid is one of /keys", header["kid"] in kids, (header["kid"], kids))


def bad(tally, token, verify):
    head, body, signature = token.split(".")

    def part(text):
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    wider = part(json.dumps(claims | {"exp": claims["exp"] + 3600}).encode())
    tally.raises(
        "a token whose claims were changed is refused",
        jwt.InvalidSignatureError,
        lambda: verify(f"{head}.{wider}.{signature}"),
    )
    first = "A" if signature[0] != "A" else "B"
    tally.raises(
        "a token whose signature was changed is refused",
        jwt.InvalidSignatureError,
        lambda: verify(f"{head}.{body}.{first}{signature[1:]}"),
    )
    kid = jwt.get_unverified_header(token)["kid"]
    forged = jwt.encode(
        claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers={"kid": kid, "typ": "at+jwt"}
    )
    tally.raises("a token that another key signed is refused", jwt.InvalidSignatureError, lambda: verify(forged))
    bare = part(json.dumps({"alg": "none", "typ": "at+jwt", "kid": kid}).encode())
    tally.raises("a token without a signature is refused", jwt.InvalidAlgorithmError, lambda: verify(f"{bare}.{body}."))
    tally.raises(
        "at another audience it is refused",
        jwt.InvalidAudienceError,
        lambda: verify(token, audience="spiffe://dev.leasehold/files"),
    )
    tally.raises(
        "as another issuer's it is refused",
        jwt.InvalidIssuerError,
        lambda: verify(token, issuer="https://issuer.example"),
    )


def late(tally, member, verify):
    short = member.issue(ttl={"seconds": 5}).token
    exp = verify(short)["exp"]
    tally.check("a token of five seconds is valid before its exp", exp - time.time() <= 5, exp - time.time())
    while time.time() < exp:
        time.sleep(max(0.0, exp - time.time()))
    tally.raises("and is refused from its exp on", jwt.ExpiredSignatureError, lambda: verify(short))


if __name__ == "__main__":
    Tally().run(lambda tally: story(tally, *sys.argv[1:4]))
