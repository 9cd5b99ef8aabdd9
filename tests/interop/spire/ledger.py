"""Prints what the ledger has about the job of one SPIFFE ID: ledger.py LEDGER SPIFFE_ID RENEWALS_MIN. Exits 1 if it was disturbed."""

import json
import sys
from collections import Counter

path, holder, renewals_min = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(path, encoding="utf-8") as lines:
    records = [json.loads(line)["record"] for line in lines if line.strip()]

jobs = {r["job"] for r in records if r["type"] == "member.joined" and r["member"] == holder}
found = Counter(r["type"] for r in records if r.get("job") in jobs)
print("      ", ", ".join(f"{count} {kind}" for kind, count in sorted(found.items())))

wrong = []
if len(jobs) != 1:
    wrong.append(f"{len(jobs)} jobs instead of one")
for kind, wanted in {"member.joined": 1, "member.left": 1, "attempt.began": 1, "credential.issued": 1}.items():
    if found[kind] != wanted:
        wrong.append(f"{found[kind]} records of {kind} instead of {wanted}")
for kind in ("member.away", "member.lost", "attempt.suspended", "credential.cancelled", "denied"):
    if found[kind]:
        wrong.append(f"{found[kind]} records of {kind}")
if found["credential.renewed"] < renewals_min:
    wrong.append(f"only {found['credential.renewed']} renewals")
for line in wrong:
    print("      ", line)
sys.exit(bool(wrong))
