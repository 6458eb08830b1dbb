"""Opens prepared targets with many combinations of flags and tells what came of it; see test_open_flags.py.

A program of its own that needs the standard library only: test_open_flags.py runs its text in a child process, which
becomes the user who opens.  Standard input: JSON {"uid": …, "targets": [[path, flags], …]}, the paths below the current
folder.  Standard output: a JSON list with one answer per target.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import stat
import sys
from collections.abc import Callable

BLOCK = 4096
"""What is written and how far is read: with O_DIRECT a local disk takes whole, aligned blocks only."""
_LETTERS = b"abcdefgh"
# F_GETFL also shows the kernel's own O_LARGEFILE, and O_NOATIME and the like as they were given.
_STATUS_FLAGS = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC | os.O_DIRECT | os.O_NOATIME | os.O_PATH

Answer = dict[str, object]


def outcome(call: Callable[[], object]) -> object:
    """Return what `call` returns, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def told(data: bytes) -> str:
    """Return bytes in a form that is short for runs of one byte."""
    runs: list[list[int]] = []
    for byte in data:
        if runs and runs[-1][0] == byte:
            runs[-1][1] += 1
        else:
            runs.append([byte, 1])
    return " ".join(f"{bytes([byte])!r}*{count}" for byte, count in runs)


def use(fd: int, number: int) -> Answer:
    """Write, seek, read and list through `fd`, as far as it lets us."""
    buffer = mmap.mmap(-1, BLOCK)  # anonymous memory is aligned
    buffer.write(_LETTERS[number % len(_LETTERS)].to_bytes(1, "big") * BLOCK)

    def read() -> str:
        count = os.readv(fd, [buffer])
        return told(buffer[:count])

    def size() -> int:
        return os.fstat(fd).st_size if stat.S_ISREG(os.fstat(fd).st_mode) else 0

    before_ns = os.fstat(fd).st_atime_ns
    first = outcome(read)
    moved = "moved" if os.fstat(fd).st_atime_ns != before_ns else "stays"
    answer: Answer = {
        "kind": stat.S_IFMT(os.fstat(fd).st_mode),
        "flags": outcome(lambda: fcntl.fcntl(fd, fcntl.F_GETFL) & _STATUS_FLAGS),
        "read": first,
        "atime": moved if before_ns == 0 else "new",
        "list": outcome(lambda: sorted(os.listdir(fd))),
    }
    if not stat.S_ISDIR(os.fstat(fd).st_mode):  # what a directory's offsets mean is the file system's own business
        buffer.seek(0)
        buffer.write(_LETTERS[number % len(_LETTERS)].to_bytes(1, "big") * BLOCK)
        answer |= {
            "seek": outcome(lambda: os.lseek(fd, 0, os.SEEK_SET)),
            "write": outcome(lambda: os.writev(fd, [buffer])),
            "position": outcome(lambda: os.lseek(fd, 0, os.SEEK_CUR)),
            "end": outcome(lambda: os.lseek(fd, 0, os.SEEK_END)),
            "size": size(),
            "again": outcome(lambda: os.lseek(fd, 0, os.SEEK_SET)),
            "read back": outcome(read),
        }
    buffer.close()
    return answer


def attempt(path: str, flags: int, number: int) -> Answer:
    """Open `path` with `flags`, use and close it; return what a program sees."""
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        return {"refused": errno.errorcode.get(error.errno or 0, str(error.errno))}
    try:
        return use(fd, number)
    finally:
        os.close(fd)


def main() -> None:
    """Answer for every target, as the user that was asked for."""
    asked = json.load(sys.stdin)
    os.umask(0o022)
    if asked["uid"] != os.geteuid():
        os.setgroups([])
        os.setgid(asked["uid"])
        os.setuid(asked["uid"])
    answers = [attempt(path, flags, number) for number, (path, flags) in enumerate(asked["targets"])]
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
