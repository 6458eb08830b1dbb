"""Makes calls as somebody and tells what came of each; see test_permissions.py.

A program of its own that needs the standard library only: its text is run in a child process, which becomes who calls.
Standard input: JSON {"uid": …, "gid": …, "groups": […], "calls": [[name, argument…], …]}, paths below the current
folder, bytes in hexadecimal.  Standard output: a JSON list with what each call returned, or the name of its errno.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Callable

Answer = object


def _open(path: str, flags: int) -> Answer:
    fd = os.open(path, flags | os.O_NONBLOCK, 0o666)
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _write(path: str) -> Answer:
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return os.write(fd, b"written")
    finally:
        os.close(fd)


def _create(path: str, mode: int) -> Answer:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    return "made"


CALLS: dict[str, Callable[..., Answer]] = {
    "umask": lambda mask: str(os.umask(mask) and ""),
    "access": lambda path, mode: os.access(path, mode),
    "stat": lambda path: oct(os.stat(path).st_mode),
    "open": _open,
    "write": _write,
    "list": lambda path: sorted(os.listdir(path)),
    "create": _create,
    "mkdir": lambda path, mode: os.mkdir(path, mode),
    "mkfifo": lambda path, mode: os.mkfifo(path, mode),
    "symlink": lambda target, path: os.symlink(target, path),
    "readlink": lambda path: os.readlink(path),
    "link": lambda old, new: os.link(old, new),
    "rename": lambda old, new: os.rename(old, new),
    "unlink": lambda path: os.unlink(path),
    "rmdir": lambda path: os.rmdir(path),
    "truncate": lambda path, size: os.truncate(path, size),
    "chmod": lambda path, mode: os.chmod(path, mode),
    "chown": lambda path, uid, gid: os.chown(path, uid, gid),
    "touch": lambda path: os.utime(path),
    "utime": lambda path, atime_ns, mtime_ns: os.utime(path, ns=(atime_ns, mtime_ns)),
    "getxattr": lambda path, name: os.getxattr(path, name).hex(),
    "setxattr": lambda path, name, value, flags: os.setxattr(path, name, bytes.fromhex(value), flags),
    "removexattr": lambda path, name: os.removexattr(path, name),
    "listxattr": lambda path: sorted(os.listxattr(path)),
}


def attempt(name: str, *arguments: object) -> Answer:
    """Make one call; return what came of it."""
    try:
        return CALLS[name](*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def main() -> None:
    """Make all calls, as who was asked for."""
    asked = json.load(sys.stdin)
    if os.geteuid() == 0:
        os.setgroups(asked["groups"])
        os.setgid(asked["gid"])
        os.setuid(asked["uid"])
    json.dump([attempt(*call) for call in asked["calls"]], sys.stdout)


if __name__ == "__main__":
    main()
