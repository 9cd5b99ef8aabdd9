"""A raw client that sends what no SDK sends: broken documents, wrong lengths, slow bodies, many connections without a request.

hostile.py PORT GATEWAY       PORT is the gateway's for direct keys, GATEWAY its process

Each attack goes through the forwarder of an agent and to the direct listener. Meanwhile a well-behaved client of each reads a small object
again and again, and the memory of the gateway is measured. Plain sockets and a signature by hand, so that nothing corrects the requests.
"""

import concurrent.futures
import datetime
import hashlib
import hmac
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

from direct import DIRECT, LEASEHOLD, Agent, Tally

UNSIGNED = "UNSIGNED-PAYLOAD"
MIB = 1 << 20
# What the gateway may have resident, and how long a well-behaved client may wait for an object of a few bytes.
RESIDENT_MAX, PATIENCE = 150 * MIB, 30


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Answer:
    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d+)", head)
        self.status = int(status[1]) if status else 0
        self.head = head.decode("latin-1")

    def part(self, name):
        found = re.search(rf"<{name}>([^<]*)</{name}>".encode(), self.body)
        return found[1].decode() if found else ""

    def __repr__(self):
        return f"{self.status} {self.body[:200]!r}"


class Door:
    """One way into the gateway, with a key for writing, and the number and address of the connections that are idle there."""

    def __init__(self, name, address, host, key, folder, idle, tls=None):
        self.name, self.address, self.host, self.key, self.folder, self.idle, self.tls = name, address, host, key, folder, idle, tls

    def connect(self, timeout=90):
        tcp = socket.create_connection(self.address, timeout=timeout)
        return self.tls.wrap_socket(tcp, server_hostname="localhost") if self.tls else tcp

    def head(self, method, target, length, digest=UNSIGNED, more=()):
        """The head of a signed request. Its Content-Length need not be that of its body."""
        return self.signed(method, target, length, digest, more)[0]

    def signed(self, method, target, length, digest, more=()):
        """Returns that head, and a function that frames and signs one chunk after the other."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        path, _, query = target.partition("?")
        headers = {"host": self.host, "x-amz-content-sha256": digest, "x-amz-date": now, **dict(more)}
        if self.key.get("SessionToken"):
            headers["x-amz-security-token"] = self.key["SessionToken"]
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        pairs = sorted(pair if "=" in pair else f"{pair}=" for pair in query.split("&") if pair)
        canonical = "\n".join([method, path, "&".join(pairs), lines, names, digest])
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{sha256(canonical.encode())}"
        key = f"AWS4{self.key['SecretAccessKey']}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()
        credential = f"{self.key['AccessKeyId']}/{scope}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
        if length is not None:
            headers["content-length"] = str(length)
        last = [signature]

        def chunk(data):
            words = ["AWS4-HMAC-SHA256-PAYLOAD", now, scope, last[0], sha256(b""), sha256(data)]
            last[0] = hmac.new(key, "\n".join(words).encode(), "sha256").hexdigest()
            return f"{len(data):x};chunk-signature={last[0]}\r\n".encode() + data + b"\r\n"

        lines = [f"{method} {target} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]
        return "".join(lines).encode(), chunk

    def target(self, name, query=""):
        return f"/dev/out/{self.folder}/{name}{query}"

    def ask(self, method, target, body=b"", length=None, **more):
        """Sends a request, and reads one answer."""
        with self.connect() as tcp:
            if length is None and body is not None:
                length = len(body)
            tcp.sendall(self.head(method, target, length, **more) + (body or b""))
            return read_answer(tcp)

    def begin_upload(self, name):
        created = self.ask("POST", self.target(name, "?uploads="))
        assert created.status == 200, created
        return created.part("UploadId")


def read_answer(tcp):
    """Reads up to the end of one answer, or of the connection."""
    raw = b""
    try:
        while not is_whole(raw) and (piece := tcp.recv(65536)):
            raw += piece
    except (ConnectionError, ssl.SSLError):
        pass
    return Answer(raw)


def is_whole(raw):
    head, found, body = raw.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if b"chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    return bool(found) and len(body) >= int(length[1] if length else 0)


class Good(threading.Thread):
    """A client that reads a small object on a new connection, five times a second."""

    def __init__(self, door):
        super().__init__(daemon=True)
        self.door, self.over, self.waits, self.faults = door, threading.Event(), [], []
        stored = door.ask("PUT", door.target("small"), b"0123456789")
        assert stored.status == 200, stored

    def run(self):
        while not self.over.wait(0.2):
            began = time.monotonic()
            seen = self.read()
            self.waits.append(time.monotonic() - began)
            if seen is not None:
                self.faults.append(seen)

    def read(self):
        """Returns what went wrong. A connection that is refused is tried once more, as SDKs do."""
        for turn in range(2):
            try:
                with self.door.connect(timeout=PATIENCE) as tcp:
                    tcp.sendall(self.door.head("GET", self.door.target("small"), None))
                    answer = read_answer(tcp)
                if answer.body == b"0123456789":
                    return None
                seen = repr(answer)
            except OSError as error:
                seen = repr(error)
        return seen


def resident(pid, name="VmHWM"):
    """The most that a process had resident since `forget`."""
    return int(re.search(rf"{name}:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) << 10


def forget(pid):
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


# ---------- attacks: each returns what it saw, and whether that is right ----------

def documents(door, check):
    """Answers that come at once."""
    upload = door.begin_upload("broken")
    end = door.target("broken", f"?uploadId={upload}")

    def refused(what, status, code, answer):
        check(f"{what}: {code}", (answer.status, answer.part("Code")) == (status, code), answer)

    entities = b'<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>'
    broken = [b"<broken", b"\xff\xfe\x00", b"<CompleteMultipartUpload><Part></CompleteMultipartUpload>", b"<a>" * 50_000, entities]
    for what, target in (("CompleteMultipartUpload", end), ("DeleteObjects", "/dev?delete=")):
        answers = [door.ask("POST", target, body) for body in broken]
        codes = {(answer.status, answer.part("Code")) for answer in answers}
        check(f"{what} with each of {len(broken)} broken documents: MalformedXML", codes == {(400, "MalformedXML")}, answers)
    refused("CompleteMultipartUpload without a document", 400, "MalformedXML", door.ask("POST", end))
    refused("DeleteObjects without a document", 400, "MissingRequestBodyError", door.ask("POST", "/dev?delete="))
    part = "<Part><PartNumber>{}</PartNumber><ETag>&quot;0&quot;</ETag></Part>"
    many = "".join(part.format(number) for number in range(1, 10_002))
    many = f"<CompleteMultipartUpload>{many}</CompleteMultipartUpload>".encode()
    refused("10,001 parts", 400, "MalformedXML", door.ask("POST", end, many))
    for number in (0, 10_001, -1):
        one = f"<CompleteMultipartUpload>{part.format(number)}</CompleteMultipartUpload>".encode()
        refused(f"CompleteMultipartUpload with part {number}", 400, "InvalidArgument", door.ask("POST", end, one))
        refused(f"UploadPart {number}", 400, "InvalidArgument", door.ask("PUT", door.target("broken", f"?partNumber={number}&uploadId={upload}"), b"x"))
    large = 6 << 30
    refused("an object of 6 GiB", 400, "EntityTooLarge", door.ask("PUT", door.target("huge"), length=large))
    refused("a part of 6 GiB", 400, "EntityTooLarge", door.ask("PUT", door.target("broken", f"?partNumber=1&uploadId={upload}"), length=large))
    lengths(door, check, refused)
    signed_chunks(door, check, refused)


def lengths(door, check, refused):
    body = b"0123456789"
    refused("a body with another digest", 400, "XAmzContentSHA256Mismatch", door.ask("PUT", door.target("digest"), body, digest=sha256(b"other")))
    # A Content-Length that is too short ends the body there. What follows is no request.
    with door.connect() as tcp:
        tcp.sendall(door.head("PUT", door.target("short"), 4, digest=sha256(body)) + body + b"\r\n\r\n")
        refused("a Content-Length that is too short", 400, "XAmzContentSHA256Mismatch", read_answer(tcp))
        check("the rest of such a body is not a request", read_answer(tcp).status in (0, 400))
    chunked = [("content-encoding", "aws-chunked"), ("x-amz-trailer", "x-amz-checksum-crc32")]
    framed = b"a\r\n0123456789\r\n0\r\nx-amz-checksum-crc32:pgeVrg==\r\n\r\n"
    for words, decoded in (("short", 4), ("long", 1_000)):
        more = [*chunked, ("x-amz-decoded-content-length", str(decoded))]
        answer = door.ask("PUT", door.target(f"decoded-{words}"), framed, digest="STREAMING-UNSIGNED-PAYLOAD-TRAILER", more=more)
        refused(f"a decoded length that is too {words}", 400, "IncompleteBody", answer)
    for words in ("twelve", "-1", "10, 11"):
        answer = door.ask("PUT", door.target("length"), body, length=words)
        check(f"a Content-Length of `{words}`: 400", answer.status == 400, answer)
    # The connection ends in the middle of a body. The Python of this suite cannot end one half of TLS.
    with door.connect() as tcp:
        tcp.sendall(door.head("PUT", door.target("ended"), 1_000) + body)
        if not door.tls:
            tcp.shutdown(socket.SHUT_WR)
            answer = read_answer(tcp)
            check("a body that ends early: no answer, or IncompleteBody", answer.status == 0 or answer.part("Code") == "IncompleteBody", answer)


def signed_chunks(door, check, refused):
    """A body in signed chunks. No client of this suite sends one unless it is asked to."""
    def put(name, spoil=bytes):
        data = [b"0" * 65_536, b"1" * 1_000, b""]
        more = [("content-encoding", "aws-chunked"), ("x-amz-decoded-content-length", str(sum(map(len, data))))]
        # The length of a chunk's frame: its length in hexadecimal digits, its signature, and line ends.
        length = sum(len(f"{len(piece):x}") + len(";chunk-signature=") + 64 + 4 + len(piece) for piece in data)
        head, chunk = door.signed("PUT", door.target(name), length, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", more)
        with door.connect() as tcp:
            tcp.sendall(head + spoil(b"".join(map(chunk, data))))
            return read_answer(tcp)

    if door.tls:
        refused("a body in signed chunks", 501, "NotImplemented", put("chunks"))
        return
    answer = put("chunks")
    check("a body in signed chunks is stored", answer.status == 200, answer)
    back = door.ask("GET", door.target("chunks"), None)
    check("it is whole", back.body == b"0" * 65_536 + b"1" * 1_000, back)
    check("it is deleted", door.ask("DELETE", door.target("chunks")).status == 204)
    refused("a chunk that was changed", 403, "SignatureDoesNotMatch", put("changed", lambda body: body.replace(b"11", b"12", 1)))


def slow(door, check):
    """Bodies that come too slowly, side by side."""
    def stalled():
        began = time.monotonic()
        with door.connect() as tcp:
            tcp.sendall(door.head("PUT", door.target("stalled"), 1_000) + b"0123456789")
            answer = read_answer(tcp)
        seconds = time.monotonic() - began
        check(f"a Content-Length that is too long: RequestTimeout after {seconds:.0f} s",
              (answer.status, answer.part("Code")) == (400, "RequestTimeout") and seconds < 45, answer)

    def dripping():
        began = time.monotonic()
        with door.connect() as tcp:
            tcp.sendall(door.head("PUT", door.target("dripping"), 1_000))
            tcp.settimeout(1)
            answer = None
            while answer is None and time.monotonic() - began < 120:
                try:
                    tcp.sendall(b"x")
                    answer = Answer(tcp.recv(65536))
                except TimeoutError:
                    pass
                except OSError as error:
                    answer = Answer(b"")
                    answer.body = repr(error).encode()
        seconds = time.monotonic() - began
        check(f"one byte a second: RequestTimeout after {seconds:.0f} s",
              answer is not None and (answer.status, answer.part("Code")) == (400, "RequestTimeout") and seconds < 90, answer)

    at_once(stalled, dripping)


def idle(door, check):
    """Connections that send nothing. At the direct listener, each fourth one makes its handshake before."""
    count, source = door.idle
    held, fault = [], None
    for number in range(count):
        try:
            tcp = socket.create_connection(door.address, timeout=10, source_address=(source, 0))
            held.append(tcp)
            if door.tls and number % 4 == 0:
                held[-1] = door.tls.wrap_socket(tcp, server_hostname="localhost")
        except (ConnectionError, ssl.SSLError):
            # The listener has no room for it.
            pass
        except OSError as error:
            fault = error
            break
    check(f"{count:,} idle connections are accepted or closed", fault is None, fault)
    time.sleep(12)
    for tcp in held:
        tcp.close()


def at_once(*stories):
    with concurrent.futures.ThreadPoolExecutor(len(stories)) as pool:
        for done in [pool.submit(story) for story in stories]:
            done.result()


def story(tally):
    port, gateway = map(int, sys.argv[1:])
    lock = threading.Lock()
    agent = Agent("hostile")
    try:
        local = json.loads(subprocess.run([LEASEHOLD, "agent", "credential-process", "--dir", agent.dir], capture_output=True, check=True).stdout)
        address = agent.variables["LEASEHOLD_S3_ENDPOINT"].removeprefix("http://")
        forwarder = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        context = ssl.create_default_context(cafile=DIRECT / "web.pem")
        context.set_alpn_protocols(["http/1.1"])
        doors = [
            # Programs of one user share 512 connections of their forwarder, and more wait (docs/gateway.md).
            Door("forwarder", forwarder, address, local, f"{agent.job}/f", (1_000, "127.0.0.1")),
            Door("direct", ("127.0.0.1", port), f"localhost:{port}", agent.key("writing"), f"{agent.job}/d", (1_000, "127.0.0.9"), context),
        ]
        good = [Good(door) for door in doors]
        forget(gateway)
        for client in good:
            client.start()

        def attack(door):
            def check(words, holds, seen=None):
                with lock:
                    tally.check(f"{door.name}: {words}", holds, seen)
            at_once(lambda: documents(door, check), lambda: idle(door, check), lambda: slow(door, check))

        at_once(*(lambda door=door: attack(door) for door in doors))
        for client in good:
            client.over.set()
            client.join(2 * PATIENCE)
            waits, faults = client.waits, client.faults
            tally.check(f"{client.door.name}: a well-behaved client went on: {len(waits)} reads, the slowest {max(waits):.2f} s", not faults and max(waits) < PATIENCE, faults[:3])
        most = resident(gateway)
        tally.check(f"the gateway had at most {most / MIB:.0f} MiB resident, the agent {resident(agent.process.pid) / MIB:.0f} MiB", most < RESIDENT_MAX)
        out = DIRECT / "outer/out" / agent.job
        left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        tally.equal("only what was whole is visible", left, ["d/small", "f/small"])
    finally:
        agent.stop()


if __name__ == "__main__":
    Tally().run(story)
