"""Uses each token that appears in WORK/stolen at the file server until it is refused, about every 20 ms.

At the end it writes to WORK/used/NAME the moment of the last use that was served, and the refusal of the next. The thief also has
the SVID, so this shows that the access itself ends, and not only a file.
"""

import http.client
import pathlib
import ssl
import sys
import threading
import time
import urllib.parse

work, url, house = pathlib.Path(sys.argv[1]), urllib.parse.urlsplit(sys.argv[2]), pathlib.Path(sys.argv[3])
context = ssl.create_default_context(cafile=str(house / "ca/bundle.pem"))
context.load_cert_chain(str(house / "svid/trainer.pem"), str(house / "svid/trainer.key"))


def use(stolen: pathlib.Path) -> None:
    token = stolen.read_text().strip()
    last, why, line = 0.0, "", None
    while True:
        at = time.time()
        try:
            if line is None:
                line = http.client.HTTPSConnection(url.hostname, url.port, context=context, timeout=5)
            line.request("GET", url.path, headers={"Authorization": f"Bearer {token}"})
            answer = line.getresponse()
            body = answer.read()
            if answer.status != 200:
                why = f"{answer.status} {body[:100]!r}"
                break
            last = at
        except (OSError, http.client.HTTPException) as error:
            # An idle connection may be closed. So ask again on a new one, and if that fails too, it is over.
            if line is not None:
                line.close()
                line = None
                if not isinstance(error, ConnectionRefusedError):
                    continue
            why = repr(error)
            break
        time.sleep(0.02)
    draft = work / "used" / f".{stolen.name}"
    draft.write_text(f"{last:.6f} {why}\n")
    draft.rename(work / "used" / stolen.name)


seen: set[str] = set()
while True:
    for stolen in (work / "stolen").iterdir():
        if not stolen.name.startswith(".") and stolen.name not in seen:
            seen.add(stolen.name)
            threading.Thread(target=use, args=(stolen,), daemon=True).start()
    time.sleep(0.02)
