"""POSIX access control lists as Linux passes them in extended attributes.

Used by partedfs.py.  Pure functions.  The kernel checks access (`enable_acl`); keeping mode and ACL in step is ours.
Source: acl(5), the kernel's include/uapi/linux/posix_acl_xattr.h (version 2; entries of tag u16, permissions u16, id
u32).
"""

from __future__ import annotations

import struct
from typing import Final

from attrs import frozen

from cuckoo_mount.errors import InvalidArgument

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

USER_OBJ: Final = 0x01
USER: Final = 0x02
GROUP_OBJ: Final = 0x04
GROUP: Final = 0x08
MASK: Final = 0x10
OTHER: Final = 0x20

_VERSION: Final = 2
_HEADER: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF


@frozen(slots=True)
class AclEntry:
    """One entry; `who` is a user or group id for USER and GROUP, else unused."""

    tag: int
    permissions: int
    who: int = _NO_ID


Acl = tuple[AclEntry, ...]


def parse(value: bytes) -> Acl:
    """Return the entries of an attribute value.  Raises: InvalidArgument."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise InvalidArgument("an ACL of a wrong length")
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise InvalidArgument("an ACL of an unknown version")
    acl = tuple(AclEntry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :]))
    tags = [entry.tag for entry in acl]
    if acl and any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)):
        raise InvalidArgument("an ACL without owner, group or others")
    if (USER in tags or GROUP in tags) and tags.count(MASK) != 1:
        raise InvalidArgument("an ACL that names somebody needs a mask")
    return acl


def build(acl: Acl) -> bytes:
    """Return the attribute value of the entries."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(e.tag, e.permissions, e.who) for e in acl)


def _permissions(acl: Acl, tag: int) -> int | None:
    return next((entry.permissions for entry in acl if entry.tag == tag), None)


def mode_of(acl: Acl, mode: int) -> int:
    """Return `mode` with the permission bits that the ACL stands for: the group bits show the mask if there is one."""
    owner = _permissions(acl, USER_OBJ) or 0
    mask = _permissions(acl, MASK)
    group = mask if mask is not None else _permissions(acl, GROUP_OBJ) or 0
    other = _permissions(acl, OTHER) or 0
    return (mode & ~0o777) | owner << 6 | group << 3 | other


def is_minimal(acl: Acl) -> bool:
    """Return whether the permission bits say all that the ACL says."""
    return len(acl) <= 3 and _permissions(acl, MASK) is None


def with_mode(acl: Acl, mode: int) -> Acl:
    """Return the ACL after chmod(2) to `mode`."""
    group_tag = MASK if _permissions(acl, MASK) is not None else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    return tuple(AclEntry(e.tag, bits.get(e.tag, e.permissions), e.who) for e in acl)


def inherit(default: Acl, mode: int) -> tuple[Acl | None, int]:
    """Return (access ACL or None, mode) of a node made with `mode` in a directory with this default ACL.

    The permissions are the intersection of both.  (The kernel has already taken the umask from `mode`: FUSE has no
    way to ask it not to, see docs/semantics.md.)
    """
    group_tag = MASK if _permissions(default, MASK) is not None else GROUP_OBJ
    bits = {USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, OTHER: mode & 7}
    acl = tuple(AclEntry(e.tag, e.permissions & bits.get(e.tag, 7), e.who) for e in default)
    new_mode = mode_of(acl, mode)
    return (None if is_minimal(acl) else acl), new_mode
