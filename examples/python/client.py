"""A training script that reads one file of a dataset through its lease: client.py DATASET PATH.

Run it by `leasehold run`, which sets LEASEHOLD_CREDENTIALS and the SVID variables.
"""

import json
import os
import pathlib
import ssl
import sys

import httpx


def credential_for(resource):
    """The token's file and the place of a resource, as the wrapper wrote them."""
    listed = json.loads(pathlib.Path(os.environ["LEASEHOLD_CREDENTIALS"]).read_text())
    for credential in listed["credentials"]:
        for scope in credential["resources"]:
            if scope["resource"] == resource:
                return pathlib.Path(credential["path"]), scope["location"]
    raise SystemExit(f"this job has no credential for {resource}")


def main():
    resource, path = sys.argv[1:]
    token_file, location = credential_for(resource)
    tls = ssl.create_default_context(cafile=os.environ["LEASEHOLD_BUNDLE"])
    tls.load_cert_chain(os.environ["LEASEHOLD_SVID_CERT"], os.environ["LEASEHOLD_SVID_KEY"])
    # The token is renewed in its file, so read the file for each request.
    headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"}
    with httpx.stream("GET", location + path, headers=headers, verify=tls) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {answer.read().decode()}")
        for part in answer.iter_bytes():
            sys.stdout.buffer.write(part)


if __name__ == "__main__":
    main()
