"""A program that saves a document as careful editors do, and one that reads it all the time; run as processes.

    saving.py save PATH COUNT SYNC    write a temporary file, fsync it if SYNC is 1, rename it over PATH; COUNT times
    saving.py read PATH               until a line comes on standard input; prints how many reads and versions it saw

`version(number)` is the document: every byte of it depends on the number, and so does its length, so that a mixture of
two is none.  Nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import os
import select
import sys


def version(number: int) -> bytes:
    """Return the document as it is saved for the `number`th time: 9 to 200,000 bytes."""
    block = hashlib.sha256(b"%d" % number).digest()
    return b"%8d\n" % number + block * (number * 7919 % 6250)


def save(path: str, count: int, sync: bool) -> None:
    """Save versions 1 to `count`, each by a rename over the one before."""
    for number in range(1, count + 1):
        temporary = f"{path}.{number % 2}.tmp"
        with open(temporary, "wb") as file:
            file.write(version(number))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, path)


def read(path: str) -> None:
    """Read until told to end.  Raises: AssertionError for a mixture or an older version; OSError if there is none."""
    print("reading", flush=True)
    reads, last, seen = 0, -1, set()
    while not select.select([sys.stdin], [], [], 0)[0]:
        with open(path, "rb") as file:
            found = file.read()
        number = int(found[:8])
        assert found == version(number), f"a mixture: {len(found)} bytes that begin as version {number}"
        assert number >= last, f"version {number} after {last}"
        seen.add(number)
        reads, last = reads + 1, number
    print(reads, len(seen), last, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1")
    else:
        read(sys.argv[2])
