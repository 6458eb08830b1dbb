"""Who may do what: calls of people without rights come to the same on the mount and on a local folder.

Owners, groups, supplementary groups, modes (set-id and sticky bits too), ACLs and default ACLs are drawn at random.
The namespaces of extended attributes are compared in the same manner; then cases by name.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen

from cuckoo_mount.parted import acl
from tests.mount import trying
from tests.mount.mounting import Mount

pytestmark = [
    pytest.mark.mount,
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, so it has to start as root"),
]

OLD_NS: Final = 10**18


@frozen
class Person:
    """Somebody who makes calls."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT: Final = Person(0, 0)
PEOPLE: Final = (Person(65534, 65534), Person(65534, 65534, (1234,)), Person(1000, 77, (1234, 5678)), ROOT)
UIDS: Final = (0, 1000, 65534)
GIDS: Final = (0, 77, 1234, 5678, 65534)
MODES: Final = (0, 0o600, 0o640, 0o660, 0o664, 0o666, 0o700, 0o711, 0o750, 0o755, 0o770, 0o775, 0o777)
NAMES: Final = ("file", "other", "folder", "folder/file", "folder/new", "new", "link", "fifo")
ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of this module, open to other users."""
    found = Mount(tmp_path_factory.mktemp("permissions") / "drive", deadline_s=900)
    try:
        found.start("-o", "allow_other,suid")
        yield found
        found.finish()
    finally:
        found.clear_away()
    found.delete()


def make_calls(folder: Path, person: Person, calls: list[list[Any]]) -> list[object]:
    """Let `person` make calls in `folder` (entered as root), and return what came of each."""
    asked = {"uid": person.uid, "gid": person.gid, "groups": person.groups, "calls": calls}
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", Path(trying.__file__).read_text("utf-8")],
        input=json.dumps(asked).encode(),
        cwd=folder,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    answers: list[object] = json.loads(done.stdout)
    return answers


def seen(folder: Path) -> dict[str, object]:
    """Return what root sees of everything in a folder, the folder included."""
    found: dict[str, object] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        mtime = status.st_mtime_ns if status.st_mtime_ns < OLD_NS else "now"
        shown = oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size, mtime, attributes
        found[str(path.relative_to(folder))] = shown
    return found


# -- set-id bits, ACLs and attributes: cases by name --

NOBODY: Final = PEOPLE[0]


@pytest.fixture
def here(drive: Mount, request: pytest.FixtureRequest) -> Path:
    """A folder for the test, on the mount, in which everybody may do everything."""
    name: str = request.node.name
    folder = drive.path / name.translate({ord(char): "_" for char in "[] /"})
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def mode_of(path: Path) -> str:
    return oct(stat.S_IMODE(path.lstat().st_mode))


def test_o_trunc_takes_the_set_id_bits_of_an_empty_file(here: Path) -> None:
    file = here / "file"
    file.touch()
    file.chmod(0o6777)
    assert make_calls(here, NOBODY, [["open", "file", os.O_WRONLY | os.O_TRUNC]]) == [stat.S_IFREG]
    assert mode_of(file) == "0o777"


@pytest.mark.parametrize(("groups", "mode"), [((), "0o770"), ((1234,), "0o2770")])
def test_an_acl_set_by_somebody_outside_the_group_takes_the_set_group_id_bit(
    here: Path, groups: tuple[int, ...], mode: str
) -> None:
    file = here / "file"
    file.touch()
    os.chown(file, NOBODY.uid, 1234)
    file.chmod(0o2770)
    entries = (acl.AclEntry(acl.USER_OBJ, 7), acl.AclEntry(acl.USER, 7, 1000), acl.AclEntry(acl.GROUP_OBJ, 7))
    value = acl.build((*entries, acl.AclEntry(acl.MASK, 7), acl.AclEntry(acl.OTHER, 0))).hex()
    person = Person(NOBODY.uid, NOBODY.gid, groups)
    assert make_calls(here, person, [["setxattr", "file", ACLS[0], value, 0]]) == [None]
    assert mode_of(file) == mode


def test_an_acl_that_is_not_there_may_be_removed(here: Path) -> None:
    (here / "file").touch()
    assert (
        make_calls(here, ROOT, [["removexattr", path, name] for path in ("file", ".") for name in ACLS]) == [None] * 4
    )
    assert make_calls(here, ROOT, [["removexattr", "file", "user.x"]]) == ["ENODATA"]


def test_setgid_folders_and_groups_that_somebody_is_in_besides(here: Path) -> None:
    for name, gid in (("ours", 1234), ("theirs", 5678)):
        (here / name).mkdir()
        os.chown(here / name, NOBODY.uid, gid)
        (here / name).chmod(0o2770)
    person = Person(NOBODY.uid, NOBODY.gid, (1234,))
    assert make_calls(
        here,
        person,
        [
            ["create", "ours/file", 0o2775],
            ["create", "theirs/file", 0o2775],
            ["mkdir", "ours/below", 0o755],
            ["create", "mine", 0o644],
            ["chown", "mine", -1, 1234],
            ["chown", "mine", -1, 5678],
            ["chmod", "mine", 0o2775],
            ["chmod", "theirs/file", 0o2775],
        ],
    ) == ["made", "made", None, "made", None, "EPERM", None, None]
    assert (mode_of(here / "ours" / "file"), (here / "ours" / "file").stat().st_gid) == ("0o2755", 1234)
    assert (mode_of(here / "theirs" / "file"), (here / "theirs" / "file").stat().st_gid) == ("0o775", 5678)
    assert (mode_of(here / "ours" / "below"), (here / "ours" / "below").stat().st_gid) == ("0o2755", 1234)
    assert (mode_of(here / "mine"), (here / "mine").stat().st_gid) == ("0o2775", 1234)


XATTR_CALLS: Final[list[list[Any]]] = [
    ["setxattr", path, name, value, flags]
    for path in ("file", "folder", "fifo", "theirs", "link", "sticky")
    for name in ("user.a", "trusted.a", "security.a", "security.capability", "system.a", "nonsense", "user.", *ACLS)
    for value, flags in (("00", os.XATTR_REPLACE), ("01", os.XATTR_CREATE), ("02", os.XATTR_CREATE), ("", 0))
]


@pytest.mark.parametrize("person", [ROOT, NOBODY], ids=["root", "nobody"])
def test_every_namespace_of_attributes(here: Path, tmp_path: Path, person: Person) -> None:
    """As on a local disk: who may set, replace, see and remove which attributes, on which kind of node."""
    local = tmp_path / "local"
    local.mkdir()
    calls = list(XATTR_CALLS)
    for name in ("file", "folder", "fifo", "theirs", "sticky"):
        calls.append(["listxattr", name])
        for attribute in ("user.a", "trusted.a", "security.a", "nonsense", "system.a", "user.", "user.none", *ACLS):
            calls += [["getxattr", name, attribute], ["removexattr", name, attribute]]
    answers = []
    for folder in (here, local):
        folder.chmod(0o755)
        for name in ("file", "theirs", "folder/inner"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        os.mkfifo(folder / "fifo")
        (folder / "sticky").mkdir()
        os.symlink("theirs", folder / "link")
        for name in ("file", "fifo", "folder"):
            os.chown(folder / name, person.uid, person.gid)
        (folder / "sticky").chmod(0o1777)
        answers.append(make_calls(folder, person, calls))
    wrong = [
        f"{call}: {our} on the mount, {their} on the local disk"
        for call, our, their in zip(calls, *answers, strict=True)
        if our != their
    ]
    assert not wrong, "\n".join(wrong)
    assert answers[0].count(None) > 10
