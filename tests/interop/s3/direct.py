"""Programs with direct keys and no wrapper: boto3, the aws CLI and curl against one gateway, until its job ends.

direct.py NAME PORT WAY       NAME is `inner` (the gateway in the daemon) or `outer` (`leasehold gateway`), WAY ends the job: `operator` or `job`

The folder of the deployment is in DIRECT, the program in LEASEHOLD, and the contexts in LEASEHOLD_CONTEXTS.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

here = pathlib.Path(__file__).parent
sys.path.insert(0, str(here.parent))
from tally import Tally  # noqa: E402

LEASEHOLD, DIRECT = os.environ["LEASEHOLD"], pathlib.Path(os.environ["DIRECT"])
MIB = 1 << 20


def wait_for(seconds, holds):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def leasehold(*words):
    return subprocess.run([LEASEHOLD, *words], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


class Agent:
    """`leasehold agent` beside the programs. It has the session; they have keys."""

    def __init__(self, name):
        self.dir, ready = DIRECT / f"{name}.creds", DIRECT / f"{name}.ready"
        self.log = open(DIRECT / f"{name}.agent.log", "w")
        spec = DIRECT / "s3-job.toml"
        words = [LEASEHOLD, "agent", "--spec", spec, "--dir", self.dir, "--ready-file", ready, "--instance", name]
        # If this process is killed, the agent ends too.
        words += ["--watch-pid", str(os.getpid()), "--on-revoke", "ignore"]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        if not wait_for(60, lambda: ready.exists() or self.process.poll() is not None) or not ready.exists():
            raise RuntimeError(f"no agent: {pathlib.Path(self.log.name).read_text()[-500:]}")
        lines = (line.removeprefix("export ").split("=", 1) for line in ready.read_text().splitlines() if "=" in line)
        self.variables = {name: value.strip("'\"") for name, value in lines}
        self.job = self.variables["LEASEHOLD_JOB"]

    def key(self, half):
        done = leasehold("s3-key", "--dir", str(self.dir), "--half", half)
        if done.returncode != 0:
            raise RuntimeError(f"no key: {done.stderr}")
        return json.loads(done.stdout)

    def stop(self):
        """Ends the job, with which the agent ends."""
        leasehold("job", "close", self.job)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


class Clients:
    """The programs of others, and what they are given: a profile for each half, as docs/gateway.md says."""

    def __init__(self, name, port, agent):
        self.name, self.agent, self.url = name, agent, f"https://localhost:{port}"
        config = DIRECT / f"{name}.aws-config"
        profiles = (
            f"[profile {half}]\ncredential_process = {LEASEHOLD} s3-key --dir {agent.dir} --half {half}\n"
            f"endpoint_url       = {self.url}\nregion             = us-east-1\ns3 =\n    signature_version = s3v4\n"
            for half in ("reading", "writing")
        )
        config.write_text("".join(profiles))
        mine = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.env = mine | {
            "AWS_CONFIG_FILE": str(config),
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_CA_BUNDLE": str(DIRECT / "web.pem"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
            "LEASEHOLD_JOB": agent.job,
        }

    def env_of(self, half):
        return self.env | {"AWS_PROFILE": half}

    def env_of_key(self, key):
        """For a program that has a copy of a key, and nothing else."""
        fixed = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        fixed |= {"AWS_SESSION_TOKEN": key["SessionToken"], "AWS_ENDPOINT_URL": self.url, "AWS_REGION": "us-east-1"}
        return self.env | fixed

    def program(self, half, *words):
        """Runs clients.py. Returns its last line on stderr if it failed, and otherwise None."""
        return self.program_in(self.env_of(half), *words)

    def program_in(self, env, *words):
        done = subprocess.run([sys.executable, here / "clients.py", *words], env=env, capture_output=True, text=True, timeout=170, stdin=subprocess.DEVNULL)
        return None if done.returncode == 0 else (done.stderr.strip() or "failed").splitlines()[-1]

    def begin(self, env, result, *words):
        log = open(f"{result}.log", "w")
        return subprocess.Popen([sys.executable, here / "clients.py", "cut", *words, result], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def boto3(self, half, **config):
        """boto3 with the profile of this half."""
        import boto3
        from botocore.config import Config
        os.environ.update(self.env)
        return boto3.Session(profile_name=half).client("s3", config=Config(**config))

    def boto3_with(self, access, secret, token, **config):
        import boto3
        from botocore.config import Config
        session = boto3.Session(aws_access_key_id=access, aws_secret_access_key=secret, aws_session_token=token, region_name="us-east-1")
        return session.client("s3", endpoint_url=self.url, verify=str(DIRECT / "web.pem"), config=Config(**config))


def curl(*words):
    """Returns the status and the text."""
    words = ["curl", "-s", "--max-time", "60", "--cacert", DIRECT / "web.pem", "-w", "\n%{http_code}", *words]
    done = subprocess.run(words, capture_output=True, timeout=90, stdin=subprocess.DEVNULL)
    text, _, status = done.stdout.rpartition(b"\n")
    return int(status), text


def code_of(call):
    """The code and the message that boto3 shows for a refusal."""
    from botocore.exceptions import BotoCoreError, ClientError
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    except BotoCoreError as error:
        return type(error).__name__, str(error)
    return "none", "it was served"


def reads_and_writes(tally, clients):
    weights = DIRECT / f"{clients.name}.weights"
    weights.write_bytes(os.urandom(40 * MIB + 1))
    data = str(DIRECT / clients.name / "data")
    asked = [(f"{name} {what}", half, words) for name in ("boto3", "aws") for what, half, words in (
        ("reads by credential_process", "reading", ("read", name, data)),
        ("writes 40 MiB in parts by credential_process", "writing", ("write", name, str(weights))),
    )]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        faults = pool.map(lambda one: clients.program(one[1], *one[2]), asked)
    for (what, _, _), fault in zip(asked, faults):
        tally.check(f"{clients.name}: {what}", fault is None, fault)
    fault = clients.program("reading", "write", "boto3", str(weights))
    tally.check(f"{clients.name}: the key for reading writes nothing", fault is not None and "AccessDenied" in fault, fault)


def presigned(tally, clients):
    """URLs for curl, which are tried again after the end. Returns one that is signed for reading."""
    whole = (DIRECT / clients.name / "data/part-0.parquet").read_bytes()
    reading, writing = clients.boto3("reading"), clients.boto3("writing")
    url = reading.generate_presigned_url("get_object", Params={"Bucket": "dev", "Key": "data/part-0.parquet"}, ExpiresIn=600)
    status, text = curl(url)
    tally.check(f"{clients.name}: curl reads by a URL that boto3 signed", status == 200 and text == whole, (status, text[:200]))
    key = f"out/{clients.agent.job}/by-url"
    put = writing.generate_presigned_url("put_object", Params={"Bucket": "dev", "Key": key}, ExpiresIn=600)
    status, text = curl("-T", here / "aws.txt", put)
    stored = DIRECT / clients.name / key
    tally.check(f"{clients.name}: curl writes by a URL that boto3 signed", status == 200 and stored.read_bytes() == (here / "aws.txt").read_bytes(), text)
    env = clients.env_of("reading")
    signed = subprocess.run(["aws", "s3", "presign", "s3://dev/data/part-0.parquet"], env=env, capture_output=True, text=True, timeout=60).stdout.strip()
    status, text = curl(signed)
    tally.check(f"{clients.name}: curl reads by a URL that the aws CLI signed", status == 200 and text == whole, (status, text[:200]))
    status, text = curl(url.replace("X-Amz-Security-Token", "X-Amz-Other"))
    tally.check(f"{clients.name}: a URL without its session token is refused", status == 400 and b"InvalidToken" in text, text)
    status, text = curl(url.replace("part-0", "part-1"))
    tally.check(f"{clients.name}: a URL for another object is refused", status == 403 and b"SignatureDoesNotMatch" in text, text)
    old = clients.boto3("reading", signature_version="s3")
    status, text = curl(old.generate_presigned_url("get_object", Params={"Bucket": "dev", "Key": "data/part-0.parquet"}))
    tally.check(f"{clients.name}: a URL of Signature Version 2 is refused", status == 400 and b"s3v4" in text, text)
    return url


def refusals(tally, clients, key):
    """Each wrong part of a key gets the code of S3."""
    access, secret, token = key["AccessKeyId"], key["SecretAccessKey"], key["SessionToken"]
    other = clients.agent.key("reading")
    cases = [
        ("another session token", (access, secret, other["SessionToken"]), "AccessDenied", "TOKEN_PRESENTER"),
        ("a made-up session token", (access, secret, "a.b.c"), "AccessDenied", "TOKEN_MALFORMED"),
        ("no session token", (access, secret, None), "InvalidToken", "session token"),
        ("another secret", (access, other["SecretAccessKey"], token), "SignatureDoesNotMatch", ""),
        ("a made-up access key", ("AKIAIOSFODNN7EXAMPLE", secret, token), "InvalidAccessKeyId", ""),
    ]
    for what, parts, code, words in cases:
        seen = code_of(lambda: clients.boto3_with(*parts).list_objects_v2(Bucket="dev", Prefix="data/"))
        tally.check(f"{clients.name}: {what} gets {code}", seen[0] == code and words in seen[1], seen)
    seen = code_of(lambda: clients.boto3("reading", signature_version="s3").list_objects_v2(Bucket="dev", Prefix="data/"))
    tally.check(f"{clients.name}: Signature Version 2 is refused", seen[0] == "InvalidRequest" and "s3v4" in seen[1], seen)
    seen = code_of(lambda: clients.boto3_with(access, secret, token).head_object(Bucket="dev", Key="data/part-0.parquet"))
    tally.check(f"{clients.name}: a copied key works until the job ends", seen[0] == "none", seen)


def cut(tally, clients, key, way):
    """Ends the job while four programs transfer, and prints when each has its error."""
    results = DIRECT / f"{clients.name}.cut"
    results.mkdir()
    running = {}
    for what, env, words in [
        ("boto3 down", clients.env_of("reading"), ("boto3", "down")),
        ("aws down", clients.env_of("reading"), ("aws", "down")),
        ("boto3 up", clients.env_of("writing"), ("boto3", "up")),
        ("a copied key down", clients.env_of_key(key), ("boto3", "down")),
    ]:
        result = str(results / what.replace(" ", "-"))
        running[what] = (result, clients.begin(env, result, *words))
    begun = wait_for(60, lambda: all(os.path.exists(f"{result}.begun") for result, _ in running.values()))
    tally.check(f"{clients.name}: all transfers have begun", begun)
    # The aws CLI says so before its first byte.
    time.sleep(2)
    at = time.time_ns()
    job = clients.agent.job
    ended = leasehold("revoke", f"job:{job}", "--reason", "tried out") if way == "operator" else leasehold("job", "close", job)
    tally.check(f"{clients.name}: {' '.join(ended.args[1:3])} ends the job", ended.returncode == 0, ended.stderr)
    for what, (result, process) in running.items():
        if not wait_for(60, lambda: os.path.exists(result)):
            tally.check(f"{clients.name}: {what} is cut", False, "no error within 60 s")
        else:
            seen = json.loads(pathlib.Path(result).read_text())
            error = " ".join(seen["error"].split())
            tally.check(f"{clients.name}: {what}, cut by {way}: {(seen['at'] - at) / 1e6:.0f} ms to the error: {error[:140]}", not error.startswith("none"))
        process.kill()
        process.wait()


def afterwards(tally, clients, key, url):
    status, text = curl(url)
    tally.check(f"{clients.name}: a URL from before gets ExpiredToken", status == 403 and b"ExpiredToken" in text, (status, text))
    stolen = clients.boto3_with(key["AccessKeyId"], key["SecretAccessKey"], key["SessionToken"])
    for what, call in [
        ("reads", lambda: stolen.get_object(Bucket="dev", Key="data/part-0.parquet")),
        ("lists", lambda: stolen.list_objects_v2(Bucket="dev", Prefix="data/")),
    ]:
        seen = code_of(call)
        tally.check(f"{clients.name}: a copied key {what} nothing after the end", seen[0] == "ExpiredToken", seen)
    again = leasehold("s3-key", "--dir", str(clients.agent.dir))
    tally.check(f"{clients.name}: no new key is given", again.returncode != 0 and not again.stdout, again)
    seen = code_of(lambda: clients.boto3("reading").list_objects_v2(Bucket="dev", Prefix="data/"))
    tally.check(f"{clients.name}: boto3 shows why it gets no new key", seen[0] == "CredentialRetrievalError" and "leasehold" in seen[1].lower(), seen)
    out = DIRECT / clients.name / "out"
    tally.equal(f"{clients.name}: no upload that was cut became visible", [str(p) for p in out.rglob("*-cut")], [])


def story(tally):
    name, port, way = sys.argv[1:]
    agent = Agent(name)
    try:
        clients = Clients(name, int(port), agent)
        reads_and_writes(tally, clients)
        url = presigned(tally, clients)
        key = agent.key("reading")
        refusals(tally, clients, key)
        cut(tally, clients, key, way)
        afterwards(tally, clients, key, url)
    finally:
        agent.stop()


if __name__ == "__main__":
    Tally().run(story)
