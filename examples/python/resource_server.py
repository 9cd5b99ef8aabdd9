"""A resource server: serves the files of one folder as one dataset, to clients with a token for it.

Each request needs two things: an X.509-SVID on the TLS connection, and a token of the same holder. The daemon decides whether the
token is good, before the answer begins and once a second while it goes on.
"""

import argparse
import asyncio
import dataclasses
import hashlib
import pathlib
import ssl
import time

import grpc
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from leasehold.v1 import common_pb2, verifier_pb2, verifier_pb2_grpc
from uvicorn.protocols.http.h11_impl import H11Protocol

CHUNK_BYTES = 64 << 10
ASK_AGAIN_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Peer:
    """The peer of the TLS connection."""

    spiffe_id: str
    sha256: bytes


class AttestedProtocol(H11Protocol):
    """Gives each request the certificate of its connection: `request.state.peer`."""

    def connection_made(self, transport):
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        uris = [value for kind, value in tls.getpeercert().get("subjectAltName", ()) if kind == "URI"]
        spiffe_id = uris[0] if len(uris) == 1 else ""  # an SVID has exactly one URI
        peer = Peer(spiffe_id, hashlib.sha256(tls.getpeercert(binary_form=True)).digest())
        self.app_state = {**self.app_state, "peer": peer}


class Refused(Exception):
    """The token does not allow this, or the daemon cannot be asked."""


class Verifier:
    """Asks the daemon about tokens of one audience."""

    def __init__(self, daemon, audience, bundle, cert, key):
        credentials = grpc.ssl_channel_credentials(
            bundle.read_bytes(), key.read_bytes(), cert.read_bytes()
        )
        self.stub = verifier_pb2_grpc.VerifierServiceStub(grpc.aio.secure_channel(daemon, credentials))
        self.audience = audience

    async def check(self, token, peer, resource, action):
        question = verifier_pb2.IntrospectRequest(token=token, presenter=peer.spiffe_id, presenter_sha256=peer.sha256)
        try:
            answer = await self.stub.Introspect(question, timeout=5)
        except grpc.aio.AioRpcError as error:
            raise Refused(f"the daemon cannot be asked: {error.code().name}") from error
        if not answer.active:
            raise Refused(answer.reason)
        if answer.audience != self.audience:
            raise Refused(f"the token is for {answer.audience}")
        scopes = {scope.resource: scope.actions for scope in answer.lease.scopes}
        if action not in scopes.get(resource, ()):
            raise Refused(f"the token does not open {resource}")


def application(folder, dataset, verifier):
    """One route: GET /PATH reads a file of the dataset."""
    app = FastAPI()
    folder = folder.resolve()

    @app.get("/{path:path}")
    async def read(path: str, request: Request):
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise HTTPException(401, "send the token as `Authorization: Bearer …`")

        async def still_good():
            await verifier.check(token, request.state.peer, dataset, common_pb2.ACTION_READ_DATASET)

        try:
            await still_good()
        except Refused as refusal:
            raise HTTPException(403, str(refusal)) from refusal
        file = (folder / path).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise HTTPException(404, f"{dataset} has no {path}")
        return StreamingResponse(cut_when_refused(file, still_good), media_type="application/octet-stream")

    return app


async def cut_when_refused(file, still_good):
    """The file in chunks. An exception here closes the connection, so that the client sees an incomplete answer."""
    asked = time.monotonic()
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            if time.monotonic() - asked >= ASK_AGAIN_SECONDS:
                await still_good()
                asked = time.monotonic()
            yield chunk


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="what is served")
    parser.add_argument("--dataset", required=True, help="its name: dataset:TENANT/NAME@VERSION")
    parser.add_argument("--audience", required=True, help="our [[audience]] of the catalog")
    parser.add_argument("--daemon", required=True, help="HOST:PORT of leasehold")
    parser.add_argument("--bundle", type=pathlib.Path, required=True, help="the roots of the trust domain")
    parser.add_argument("--cert", type=pathlib.Path, required=True, help="our SVID")
    parser.add_argument("--key", type=pathlib.Path, required=True, help="its key")
    parser.add_argument("--port", type=int, default=8450)
    args = parser.parse_args()

    async def serve():
        verifier = Verifier(args.daemon, args.audience, args.bundle, args.cert, args.key)
        config = uvicorn.Config(
            application(args.folder, args.dataset, verifier),
            host="127.0.0.1",
            port=args.port,
            http=AttestedProtocol,
            ssl_certfile=args.cert,
            ssl_keyfile=args.key,
            ssl_ca_certs=args.bundle,
            ssl_cert_reqs=ssl.CERT_REQUIRED,
        )
        await uvicorn.Server(config).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
