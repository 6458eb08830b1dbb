"""`randomreader.py FILE COUNT SEED`: read 4 KiB at COUNT random places of FILE; print the seconds it took."""

from __future__ import annotations

import os
import random
import sys
import time

BLOCK = 4096


def main() -> None:
    """Read."""
    path, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    fd = os.open(path, os.O_RDONLY)
    blocks = os.fstat(fd).st_size // BLOCK
    dice = random.Random(seed)
    places = [dice.randrange(blocks) * BLOCK for _ in range(count)]
    begin = time.perf_counter()
    for place in places:
        os.pread(fd, BLOCK, place)
    print(time.perf_counter() - begin)
    os.close(fd)


if __name__ == "__main__":
    main()
