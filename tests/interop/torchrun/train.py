"""A training program of a few ranks: gloo on loopback, one all-reduce a step, and a separate session for each rank.

torchrun starts each rank in its own session. Here each rank calls setsid again, as a launcher inside of a launcher does.
Leaves WORK/ranks/NODE.RANK with its process id, waits, and ends as CASE says.
"""

import os
import pathlib
import signal
import sys
import time

import torch
import torch.distributed as dist

case, work = sys.argv[1], pathlib.Path(sys.argv[2])
rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
node = os.environ["GROUP_RANK"]
if os.getpid() != os.getsid(0):
    os.setsid()
assert pathlib.Path(os.environ["LEASEHOLD_TOKEN_FILE_READING"]).read_text().strip(), "no token"

# The process that a rank leaves behind: a data loader in its own session, which ignores SIGTERM.
loader = os.fork()
if loader == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (work / "ranks" / f"{node}.{local}.loader").write_text(str(os.getpid()))
    time.sleep(600)
    os._exit(0)

dist.init_process_group("gloo")
(work / "ranks" / f"{node}.{local}").write_text(str(os.getpid()))
for step in range(2 if case == "done" else 100_000):
    one = torch.ones(1)
    dist.all_reduce(one)
    assert one.item() == dist.get_world_size()
    (work / "ranks" / f"{node}.{local}.step").write_text(str(step))
    time.sleep(0.1)
dist.destroy_process_group()
