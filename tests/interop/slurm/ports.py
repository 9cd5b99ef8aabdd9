"""Prints the first of N ports of loopback that are free and follow each other."""

import socket
import sys


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
for _ in range(1000):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        first = s.getsockname()[1]
    if first + count < 65536 and are_free(first, count):
        print(first)
        sys.exit(0)
sys.exit("no free ports")
