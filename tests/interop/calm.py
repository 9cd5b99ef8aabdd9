"""How long something took, without the time in which any process of this machine waited for a processor or a disk.

calm.py keep FILE           records that time, as the kernel counts it, until it is killed
calm.py between FILE A B    prints the seconds from the moment A to the moment B, without the waiting time between them

On an idle machine this is the time of the clock. If the kernel does not count waiting times, it always is.
"""

import bisect
import pathlib
import sys
import time


def waited() -> float:
    total = 0
    for of in ("cpu", "io"):
        try:
            first = pathlib.Path(f"/proc/pressure/{of}").read_text(encoding="ascii").splitlines()[0]
            total += int(first.rsplit("total=", 1)[1])
        except (OSError, IndexError, ValueError):
            pass
    return total / 1e6


def keep(file: str) -> None:
    with open(file, "w", encoding="ascii") as out:
        while True:
            out.write(f"{time.time():.6f} {waited():.6f}\n")
            out.flush()
            time.sleep(0.05)


def between(file: str, begin: float, end: float) -> float:
    # Its last line may be half written.
    lines = pathlib.Path(file).read_text(encoding="ascii").rsplit("\n", 1)[0].splitlines()
    moments = [tuple(map(float, line.split())) for line in lines]
    times = [at for at, _ in moments]

    def until(at: float) -> float:
        right = bisect.bisect(times, at)
        if right == 0 or right == len(moments):
            return moments[min(right, len(moments) - 1)][1]
        (t0, w0), (t1, w1) = moments[right - 1], moments[right]
        return w0 + (w1 - w0) * (at - t0) / (t1 - t0)

    return max(0.0, (end - begin) - (until(end) - until(begin)))


if sys.argv[1] == "keep":
    keep(sys.argv[2])
else:
    print(f"{between(sys.argv[2], float(sys.argv[3]), float(sys.argv[4])):.3f}")
