"""ports.py COUNT [FILE]: prints the first of COUNT ports of loopback that are free and follow each other.

The system assigns none of them to a process that asks for any free port or that connects, so they stay free
while a server there starts, ends and starts again. FILE has the ports that were printed before.
"""

import pathlib
import random
import socket
import sys

LOWEST = 10_000


def highest() -> int:
    try:
        text = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        return int(text.split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def are_free(first: int, count: int) -> bool:
    held = []
    try:
        for port in range(first, first + count):
            s = socket.socket()
            held.append(s)
            s.bind(("127.0.0.1", port))
        return True
    except OSError:
        return False
    finally:
        for s in held:
            s.close()


count = int(sys.argv[1])
memory = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
given = {int(line) for line in memory.read_text().split()} if memory and memory.exists() else set()
end = highest() - count
if end <= LOWEST:
    LOWEST, end = 1_024, 65_535 - count
for _ in range(1000):
    first = random.randrange(LOWEST, end)
    wanted = range(first, first + count)
    if given.isdisjoint(wanted) and are_free(first, count):
        if memory:
            with memory.open("a") as out:
                out.writelines(f"{port}\n" for port in wanted)
        print(first)
        sys.exit(0)
sys.exit("no free ports")
