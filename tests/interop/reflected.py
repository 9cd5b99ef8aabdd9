"""A client that knows of Leasehold only what server reflection says.

No .proto is compiled: descriptors come over the connection (`grpc.reflection.v1alpha`), message classes are made from them.
"""

import hashlib
import pathlib
import secrets
import ssl

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

DEADLINE = 10  # seconds, for each call


class Daemon:
    """One connection, as one of the identities in a folder of `leasehold dev`. With role None, without a certificate."""

    def __init__(self, address, folder, role):
        folder = pathlib.Path(folder)
        files = {} if role is None else {
            "private_key": (folder / f"svid/{role}.key").read_bytes(),
            "certificate_chain": (folder / f"svid/{role}.pem").read_bytes(),
        }
        bundle = (folder / "ca/bundle.pem").read_bytes()
        self.channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(bundle, **files))
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    @staticmethod
    def certificate_sha256(folder, role):
        """SHA-256 of the leaf of an identity, as a resource server sees it on the connection."""
        pem = (pathlib.Path(folder) / f"svid/{role}.pem").read_text()
        end = "-----END CERTIFICATE-----"
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)])).digest()

    def services(self):
        return set(self.database.get_services())

    def method(self, service, name):
        """The descriptor of a method, its callable on the channel, and the class of its requests."""
        method = self.pool.FindServiceByName(service).FindMethodByName(name)
        request = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        kind = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }[(method.client_streaming, method.server_streaming)]
        call = kind(
            f"/{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return request, call

    def call(self, service, name, /, **fields):
        """One unary call; fields as keyword arguments, messages in them as dicts, enum values by name."""
        request, call = self.method(service, name)
        return call(request(**fields), timeout=DEADLINE)


def refusal(call):
    """The status code and the Reason of a refused call, or None and the answer if the call succeeds."""
    try:
        return None, call()
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        info = error_details_pb2.ErrorInfo()
        for detail in status.details if status else []:
            if detail.Unpack(info):
                break
        return error.code(), info.reason


JOBS = "leasehold.v1.JobService"
MEMBERS = "leasehold.v1.MemberService"
VERIFIERS = "leasehold.v1.VerifierService"


class Member:
    """A job that only reads, begun and joined by one identity."""

    def __init__(self, daemon, read, instance="pod-0"):
        self.daemon = daemon
        self.created = daemon.call(
            JOBS,
            "CreateJob",
            spec={"name": "interop", "purpose": "trying-out", "max_duration": {"seconds": 600}, "read": read},
            idempotency_key=secrets.token_hex(8),
        )
        self.job = self.created.job.id
        self.begun = daemon.call(JOBS, "BeginAttempt", job=self.job, key="first")
        self.attempt = self.begun.attempt.number
        secret = secrets.token_bytes(32)
        self.session = {"job": self.job, "attempt": self.attempt, "instance": instance, "secret": secret}
        self.joined = daemon.call(
            MEMBERS,
            "JoinAttempt",
            job=self.job,
            attempt=self.attempt,
            instance=instance,
            session_digest=hashlib.sha256(secret).digest(),
            ticket=self.begun.ticket,
        )

    def issue(self, **fields):
        return self.daemon.call(MEMBERS, "IssueCredential", session=self.session, half="HALF_READING", **fields)

    def end(self):
        return self.daemon.call(
            JOBS, "EndAttempt", job=self.job, attempt=self.attempt, outcome="OUTCOME_COMPLETED"
        )
