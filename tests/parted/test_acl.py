"""ACLs as attribute values: parsing, what chmod and inheritance make of them.  Pure, property tests."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import InvalidArgument
from cuckoo_mount.parted import acl
from cuckoo_mount.parted.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl, AclEntry

permissions = st.integers(0, 7)
ids = st.integers(0, 0xFFFFFFFE)
modes = st.integers(0, 0o7777).map(lambda bits: stat.S_IFREG | bits)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    """Any valid ACL in the kernel's order: owner, users, group, groups, mask, others."""
    users, groups = (draw(st.lists(ids, max_size=4, unique=True)) for _ in range(2))
    entries = [AclEntry(USER_OBJ, draw(permissions))]
    entries += [AclEntry(USER, draw(permissions), who) for who in sorted(users)]
    entries.append(AclEntry(GROUP_OBJ, draw(permissions)))
    entries += [AclEntry(GROUP, draw(permissions), who) for who in sorted(groups)]
    masked: bool = draw(st.booleans())
    if users or groups or masked:
        entries.append(AclEntry(MASK, draw(permissions)))
    entries.append(AclEntry(OTHER, draw(permissions)))
    return tuple(entries)


def of_tag(entries: Acl, tag: int) -> list[int]:
    return [entry.permissions for entry in entries if entry.tag == tag]


@given(acls())
def test_what_is_built_is_parsed_again(entries: Acl) -> None:
    assert acl.parse(acl.build(entries)) == entries


def test_the_bytes_are_the_kernels() -> None:
    # As `setfacl -m u:1000:rw` on a file of mode 0644 makes it, read with getxattr(2) from ext4.
    value = bytes.fromhex("0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff")
    entries = acl.parse(value)
    assert entries == (
        AclEntry(USER_OBJ, 6),
        AclEntry(USER, 6, 1000),
        AclEntry(GROUP_OBJ, 4),
        AclEntry(MASK, 6),
        AclEntry(OTHER, 4),
    )
    assert acl.build(entries) == value
    assert acl.mode_of(entries, stat.S_IFREG | 0o644) == stat.S_IFREG | 0o664


@given(acls(), st.binary(min_size=1, max_size=7))
def test_a_cut_value_is_refused(entries: Acl, tail: bytes) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(acl.build(entries) + tail)


@pytest.mark.parametrize("tag", [USER_OBJ, GROUP_OBJ, OTHER])
@given(entries=acls())
def test_an_acl_without_owner_group_or_others_is_refused(tag: int, entries: Acl) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(acl.build(tuple(entry for entry in entries if entry.tag != tag)))


@given(acls().filter(lambda entries: bool(of_tag(entries, USER) or of_tag(entries, GROUP))))
def test_names_need_a_mask(entries: Acl) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(acl.build(tuple(entry for entry in entries if entry.tag != MASK)))


@pytest.mark.parametrize("value", [b"", b"\x02", struct.pack("<I", 1), struct.pack("<I", 3) + bytes(8)])
def test_other_versions_and_scraps_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        acl.parse(value)


@given(acls(), modes)
def test_after_chmod_the_mode_is_what_was_asked_for(entries: Acl, mode: int) -> None:
    changed = acl.with_mode(entries, mode)
    assert acl.mode_of(changed, mode) == mode
    # Nothing but owner, others and the mask (the group where there is no mask) may change.
    for tag in (USER, GROUP):
        assert of_tag(changed, tag) == of_tag(entries, tag)
    if of_tag(entries, MASK):
        assert of_tag(changed, GROUP_OBJ) == of_tag(entries, GROUP_OBJ)
    assert acl.with_mode(changed, mode) == changed


@given(acls(), modes)
def test_an_acl_replaces_the_permission_bits_and_nothing_else_of_the_mode(entries: Acl, mode: int) -> None:
    assert acl.mode_of(entries, mode) & ~0o777 == mode & ~0o777


@given(acls(), modes)
def test_a_new_file_never_gets_more_than_it_asked_for_nor_than_the_default_gives(entries: Acl, mode: int) -> None:
    access, new_mode = acl.inherit(entries, mode)
    assert new_mode & ~mode & 0o777 == 0
    assert new_mode & ~acl.mode_of(entries, mode) & 0o777 == 0
    assert new_mode & ~0o777 == mode & ~0o777
    if access is None:
        assert acl.is_minimal(entries)
    else:
        assert acl.mode_of(access, mode) == new_mode
        assert [(entry.tag, entry.who) for entry in access] == [(entry.tag, entry.who) for entry in entries]
        # Named users keep what the default gives them; the mask holds them back (acl(5), "object creation").
        assert of_tag(access, USER) == of_tag(entries, USER)


@given(acls(), modes)
def test_a_minimal_acl_says_what_the_mode_says(entries: Acl, mode: int) -> None:
    if acl.is_minimal(entries):
        bits = acl.mode_of(entries, mode)
        assert (bits >> 6 & 7, bits >> 3 & 7, bits & 7) == tuple(entry.permissions for entry in entries)
    else:
        assert len(entries) > 3
