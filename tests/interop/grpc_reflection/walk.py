"""walk.py ADDRESS FOLDER: a job from its creation to its end, by a client that was made from reflection."""

import queue
import secrets
import sys

import grpc

from reflected import JOBS, MEMBERS, VERIFIERS, Daemon, Member, refusal
from tally import Tally

DATA = "dataset:dev/data@v1"
TRAINER = "spiffe://dev.leasehold/trainer"
HEALTH = "grpc.health.v1.Health"


class KeepAlive:
    """The stream of a member: sends the messages that are put in, and keeps those that come."""

    def __init__(self, daemon):
        self.request, call = daemon.method(MEMBERS, "KeepAlive")
        self.sending = queue.Queue()
        self.stream = call(iter(self.sending.get, None), timeout=60)

    def beat(self, n, **fields):
        self.sending.put(self.request(beat=n, **fields))
        return next(self.stream)

    def close(self):
        self.sending.put(None)
        self.stream.cancel()


def story(tally, address, folder):
    with (
        Daemon(address, folder, "trainer") as trainer,
        Daemon(address, folder, "files") as files,
        Daemon(address, folder, None) as stranger,
    ):
        served(tally, trainer, stranger)
        walk(tally, trainer, files, Daemon.certificate_sha256(folder, "trainer"))


def served(tally, trainer, stranger):
    services = trainer.services()
    wanted = {f"leasehold.v1.{name}Service" for name in ("Job", "Member", "Operator", "Verifier")} | {HEALTH}
    tally.check("reflection lists every service", wanted <= services, services)
    for service in ("", *sorted(wanted - {HEALTH})):
        status = trainer.call(HEALTH, "Check", service=service).status
        tally.equal(f"health says SERVING of {service or 'the whole'}", status, 1)
    code, _ = refusal(stranger.services)
    tally.equal("without a certificate not even reflection answers", code, grpc.StatusCode.UNAVAILABLE)


def walk(tally, trainer, files, certificate):
    member = Member(trainer, [DATA])
    job = member.created.job
    tally.check("CreateJob creates, and says so", member.created.created and bool(job.id), member.created)
    tally.equal("the job's launcher is the SVID of the connection", job.launcher, TRAINER)
    tally.equal("the job is Ready", job.state, 2)
    allowed = [(d.action, d.resource, d.result) for d in member.created.decisions]
    tally.check("CreateJob returns the decision", ("read_dataset", DATA, "allow") in allowed, allowed)
    tally.equal("BeginAttempt begins attempt 1", member.begun.attempt.number, 1)
    tally.check("BeginAttempt gives a ticket", len(member.begun.ticket) >= 43, len(member.begun.ticket))
    tally.equal("JoinAttempt admits the member", member.joined.member.spiffe_id, TRAINER)
    offered = [scope.resource for offer in member.joined.offers for scope in offer.scopes]
    tally.equal("JoinAttempt offers the scopes that were decided, and no more", offered, [DATA])

    wrong = dict(member.session, secret=secrets.token_bytes(32))
    answer = refusal(lambda: trainer.call(MEMBERS, "IssueCredential", session=wrong, half="HALF_READING"))
    wanted = (grpc.StatusCode.PERMISSION_DENIED, "SESSION_MISMATCH")
    tally.equal("another session secret is refused, with its Reason", answer, wanted)

    stream = KeepAlive(trainer)
    tally.equal("KeepAlive echoes the first beat", stream.beat(1, session=member.session).beat, 1)
    tally.equal("KeepAlive echoes the second beat", stream.beat(2).beat, 2)

    issued = member.issue()
    lease = issued.lease
    tally.check("IssueCredential returns a token", issued.token.count(".") == 2)
    tally.equal("the lease is live", lease.state, "live")
    tally.equal("the lease is of this job and attempt", (lease.job, lease.attempt), (member.job, 1))
    tally.equal("the audience follows the feed", issued.revocation_bound.by, "feed")
    tally.check("the answer has the location", DATA in issued.locations, dict(issued.locations))

    def introspect(daemon=files, **shown):
        shown = {"presenter": TRAINER, "presenter_sha256": certificate} | shown
        return daemon.call(VERIFIERS, "Introspect", token=issued.token, **shown)

    seen = introspect()
    tally.check("the verifier learns that the token is active", seen.active, seen.reason)
    tally.equal("Introspect names the subject", seen.subject, TRAINER)
    tally.equal("Introspect names the lease", seen.lease.id, lease.id)
    code, reason = refusal(lambda: introspect(trainer))
    tally.check(
        "the holder itself is no verifier, and may not introspect",
        code is grpc.StatusCode.PERMISSION_DENIED,
        (code, reason),
    )
    other = introspect(presenter="spiffe://dev.leasehold/launcher")
    tally.equal("for another identity the token is not active", (other.active, other.reason), (False, "TOKEN_PRESENTER"))
    other = introspect(presenter_sha256=bytes(32))
    tally.equal("with another certificate it is not active", (other.active, other.reason), (False, "TOKEN_CERTIFICATE"))

    ended = member.end()
    tally.equal("EndAttempt closes the job", (ended.job.state, ended.job.outcome), (4, 1))
    tally.equal("EndAttempt counts the lease that stood behind it", ended.ending.behind, 1)
    seen = introspect()
    tally.check("after the end the token is inactive, at once", not seen.active, seen)
    tally.check("and Introspect says why", seen.reason in ("REVOKED", "LEASE_ENDED"), seen.reason)
    told = refusal(lambda: next(message.notice.kind for message in stream.stream if message.notice.kind))
    tally.equal("the member's stream says that its access has ended", told, (None, 1))
    stream.close()
    code, reason = refusal(member.issue)
    tally.equal("nothing more is issued", (code, reason), (grpc.StatusCode.FAILED_PRECONDITION, "JOB_CLOSED"))
    again = member.end()
    tally.check("the same end reported again is no conflict", not again.conflict)
    shown = trainer.call(JOBS, "GetJob", job=member.job).job
    tally.equal("no lease of the job is live", shown.live_leases, 0)


if __name__ == "__main__":
    Tally().run(lambda tally: story(tally, sys.argv[1], sys.argv[2]))
