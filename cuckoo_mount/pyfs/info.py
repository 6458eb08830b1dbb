"""What PyFilesystem wants to know of a node, from ours.

Used by filesystem.py.  Any thread; looks only into the system's lists of users and groups.
"""

from __future__ import annotations

import grp
import pwd
import stat
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Final, cast

from attrs import frozen

from cuckoo_mount.clouds import fsimport  # before fs
from cuckoo_mount.parted.tree import AttributeRequest
from cuckoo_mount.types import Inode

with fsimport.stand_in():
    from fs.enums import ResourceType
    from fs.info import Info
    from fs.permissions import Permissions

_TYPES: Final = {
    stat.S_IFDIR: ResourceType.directory,
    stat.S_IFREG: ResourceType.file,
    stat.S_IFCHR: ResourceType.character,
    stat.S_IFBLK: ResourceType.block_special_file,
    stat.S_IFIFO: ResourceType.fifo,
    stat.S_IFSOCK: ResourceType.socket,
    stat.S_IFLNK: ResourceType.symlink,
}
_NS_PER_S: Final = 10**9
_BLOCK_BYTES: Final = 4096
_STAT_BLOCK_BYTES: Final = 512


@frozen(slots=True)
class Seen:
    """A node a path leads to, the node of the path's last name, and where that leads if it is a symbolic link."""

    inode: Inode
    own: Inode
    target: bytes | None = None


def info_of(name: str, seen: Seen, namespaces: Collection[str]) -> Info:
    """Return the info of a node called `name`, with the namespaces asked for, of those we know."""
    inode = seen.inode
    raw: dict[str, dict[str, object]] = {"basic": {"name": name, "is_dir": stat.S_ISDIR(inode.mode)}}
    if "details" in namespaces:
        raw["details"] = _details(inode)
    if "access" in namespaces:
        raw["access"] = _access(inode)
    if "link" in namespaces:
        raw["link"] = {"target": None if seen.target is None else decoded(seen.target)}
    if "stat" in namespaces:
        raw["stat"] = _stat(inode)
    if "lstat" in namespaces:
        raw["lstat"] = _stat(seen.own)
    return Info(raw)


def _details(inode: Inode) -> dict[str, object]:
    return {
        "_write": ["accessed", "modified"],
        "type": int(_TYPES.get(stat.S_IFMT(inode.mode), ResourceType.unknown)),
        "size": inode.size_bytes,
        "accessed": inode.atime_ns / _NS_PER_S,
        "modified": inode.mtime_ns / _NS_PER_S,
        "metadata_changed": inode.ctime_ns / _NS_PER_S,
        "created": inode.btime_ns / _NS_PER_S,
    }


def _access(inode: Inode) -> dict[str, object]:
    access: dict[str, object] = {
        "_write": ["permissions", "uid", "gid"],
        "permissions": Permissions(mode=stat.S_IMODE(inode.mode)).dump(),
        "uid": inode.uid,
        "gid": inode.gid,
    }
    if (user := _user(inode.uid)) is not None:
        access["user"] = user
    if (group := _group(inode.gid)) is not None:
        access["group"] = group
    return access


@lru_cache(maxsize=1000)
def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


@lru_cache(maxsize=1000)
def _group(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def _stat(inode: Inode) -> dict[str, object]:
    times = {"atime": inode.atime_ns, "mtime": inode.mtime_ns, "ctime": inode.ctime_ns}
    return {
        "st_mode": inode.mode,
        "st_ino": inode.ino,
        "st_dev": 0,
        "st_rdev": inode.rdev,
        "st_nlink": inode.nlink,
        "st_uid": inode.uid,
        "st_gid": inode.gid,
        "st_size": inode.size_bytes,
        "st_blksize": _BLOCK_BYTES,
        "st_blocks": -(-inode.size_bytes // _STAT_BLOCK_BYTES),
        "st_birthtime": inode.btime_ns / _NS_PER_S,
        **{f"st_{name}": value / _NS_PER_S for name, value in times.items()},
        **{f"st_{name}_ns": value for name, value in times.items()},
    }


def request_from(info: Mapping[str, Mapping[str, object]]) -> AttributeRequest:
    """Return the change that a raw info asks for; what cannot be changed is passed over, as PyFilesystem wants it."""
    details, access = info.get("details", {}), info.get("access", {})
    permissions = access.get("permissions")
    return AttributeRequest(
        mode=None if permissions is None else Permissions.get_mode(cast(list[str], permissions)),
        uid=_number(access.get("uid")),
        gid=_number(access.get("gid")),
        atime_ns=_ns(details.get("accessed")),
        mtime_ns=_ns(details.get("modified")),
    )


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _ns(value: object) -> int | None:
    """Return seconds as nanoseconds, whole seconds exactly (a float of today has steps of 238 ns)."""
    if not isinstance(value, int | float):
        return None
    seconds, rest = divmod(value, 1)
    return int(seconds) * _NS_PER_S + round(rest * _NS_PER_S)


def decoded(name: bytes) -> str:
    """Return a name as PyFilesystem has it; what is no UTF-8 is kept in surrogates."""
    return name.decode("utf-8", "surrogateescape")


def encoded(name: str) -> bytes:
    """Return a name as the drive has it.  Raises: UnicodeEncodeError for what never was bytes."""
    return name.encode("utf-8", "surrogateescape")
