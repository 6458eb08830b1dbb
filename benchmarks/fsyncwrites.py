"""`fsyncwrites.py FILE COUNT`: write 4 KiB at random places of FILE, each with an fsync; print the seconds it took.

For machines without fio, which does the same.
"""

from __future__ import annotations

import os
import random
import sys
import time

BLOCK = 4096


def main() -> None:
    """Write."""
    path, count = sys.argv[1], int(sys.argv[2])
    places = random.Random(1)
    data = os.urandom(BLOCK)
    fd = os.open(path, os.O_RDWR)
    blocks = os.fstat(fd).st_size // BLOCK
    begin = time.perf_counter()
    for _ in range(count):
        os.pwrite(fd, data, places.randrange(blocks) * BLOCK)
        os.fsync(fd)
    print(time.perf_counter() - begin)
    os.close(fd)


if __name__ == "__main__":
    main()
