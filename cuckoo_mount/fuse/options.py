"""Mount options, as `-o` of people, fstab and mount(8) has them.

Used by mount.py and the command line.  Pure.  What `uid=`, `gid=` and `umask=` mean is in fuse(8): what is shown, not
what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import UsageError

_KERNEL: Final = frozenset(
    {"allow_other", "allow_root", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "noatime", "atime"}
)
_OURS: Final = frozenset({"noxattr", "nopush"})
_WITH_NUMBER: Final = {"uid": 10, "gid": 10, "umask": 8}
_NOT_OURS: Final = frozenset({"auto", "noauto", "user", "nouser", "users", "_netdev", "nofail", "defaults", "relatime"})
"""Options that mount(8) and fstab deal with themselves."""
_ID_MAX: Final = (1 << 32) - 2
_UMASK_MAX: Final = 0o777


@frozen(slots=True)
class MountOptions:
    """Options, checked.  `kernel`: what the kernel and libfuse are told, `read_only` is one of them.

    `uid`, `gid`: shown as owner and group of everything; `umask`: every mode is shown as 0777 without these bits; None:
    as stored.  `xattrs`: extended attributes and ACLs are there.  `pushing`: whole chunks go to the page cache.
    """

    kernel: frozenset[str] = frozenset()
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    xattrs: bool = True
    pushing: bool = True

    @property
    def read_only(self) -> bool:
        """Whether nothing may be changed through this mount."""
        return "ro" in self.kernel

    @property
    def access_times(self) -> bool:
        """Whether reading a file moves its atime, as relatime does."""
        return "noatime" not in self.kernel

    @property
    def acls(self) -> bool:
        """Whether POSIX ACLs count: not where the modes that they belong to are not shown."""
        return self.xattrs and self.umask is None


def parse_mount_options(options: Sequence[str]) -> MountOptions:
    """Return the options of one or more `-o` arguments, each a comma-separated list.  Raises: UsageError."""
    words: set[str] = set()
    numbers: dict[str, int] = {}
    for option in ",".join(options).split(","):
        name, equals, value = option.strip().partition("=")
        if name.startswith("x-") or name in _NOT_OURS or not name:
            continue
        if name in _WITH_NUMBER:
            numbers[name] = _number(name, value)
        elif not equals and name in _KERNEL | _OURS:
            words.add(name)
        else:
            known = sorted(_KERNEL | _OURS | {f"{name}=" for name in _WITH_NUMBER})
            raise UsageError(f"unknown mount option {option.strip()!r}; known are {', '.join(known)}")
    if {"allow_other", "allow_root"} <= words:
        raise UsageError("-o allow_other lets root in, too; leave allow_root out")
    return MountOptions(
        kernel=frozenset(words & _KERNEL - {"rw"}),
        uid=numbers.get("uid"),
        gid=numbers.get("gid"),
        umask=numbers.get("umask"),
        xattrs="noxattr" not in words,
        pushing="nopush" not in words,
    )


def _number(name: str, value: str) -> int:
    base = _WITH_NUMBER[name]
    try:
        number = int(value, base)
    except ValueError:
        number = -1
    if not 0 <= number <= (_UMASK_MAX if name == "umask" else _ID_MAX):
        example = "-o umask=022, an octal number" if name == "umask" else f"-o {name}=1000, a number"
        raise UsageError(f"mount option {name}={value!r} is wrong; say for example {example}")
    return number
