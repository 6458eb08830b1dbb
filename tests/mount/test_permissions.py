"""Who may do what: calls of people without rights come to the same on the mount and on a local folder.

Owners, groups, supplementary groups, modes (set-id and sticky bits too), ACLs and default ACLs are drawn at random.
The namespaces of extended attributes are compared in the same manner; then cases by name.
"""

from __future__ import annotations

import json
import os
import random
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
from tests.mount.mounting import Mount, mounted

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
    with mounted(tmp_path_factory.mktemp("permissions") / "drive", "-o", "allow_other,suid", deadline_s=900) as found:
        yield found


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


# -- random permissions --


def random_acl(dice: random.Random) -> str:
    """An ACL as the kernel takes it, in hexadecimal.  The group class has x: see `random_preparation`."""
    entries = [acl.AclEntry(acl.USER_OBJ, dice.randrange(8))]
    entries += [acl.AclEntry(acl.USER, dice.randrange(8), uid) for uid in UIDS if dice.random() < 0.5]
    entries.append(acl.AclEntry(acl.GROUP_OBJ, dice.randrange(8) | 1))
    entries += [acl.AclEntry(acl.GROUP, dice.randrange(8), gid) for gid in GIDS if dice.random() < 0.4]
    if len(entries) > 2:
        entries.append(acl.AclEntry(acl.MASK, dice.choice((1, 5, 7, 7))))
    return acl.build((*entries, acl.AclEntry(acl.OTHER, dice.randrange(8)))).hex()


def random_preparation(dice: random.Random, case: str) -> list[list[Any]]:
    """Calls of root that make a case: a folder with a few nodes of random owners, modes and ACLs."""
    calls: list[list[Any]] = [
        ["umask", 0],
        ["mkdir", case, 0o777],
        ["create", f"{case}/file", 0o666],
        ["create", f"{case}/other", 0o666],
        ["mkdir", f"{case}/folder", 0o777],
        ["create", f"{case}/folder/file", 0o666],
        ["symlink", "file", f"{case}/link"],
        ["mkfifo", f"{case}/fifo", 0o666],
        ["write", f"{case}/file"],
        ["setxattr", f"{case}/file", "user.x", "00ff", 0],
    ]
    for name in ("file", "other", "folder/file", "folder", "fifo", "."):
        path = f"{case}/{name}"
        is_folder = name in ("folder", ".")
        calls.append(["chown", path, dice.choice(UIDS), dice.choice(GIDS)])
        mode = dice.choice(MODES[5:] if is_folder else MODES)
        # Set-group-id comes with the group's x.  Without, where it means nothing, Linux clears it at a write by who is
        # not in the group, and FUSE does not tell who writes.
        calls.append(["chmod", path, mode | dice.choice((0, 0, 0, 0o1000, 0o2010, 0o4000, 0o6010, 0o7010))])
        if dice.random() < 0.4:
            calls.append(["setxattr", path, ACLS[0], random_acl(dice), 0])
        if is_folder and dice.random() < 0.4:
            calls.append(["setxattr", path, ACLS[1], random_acl(dice), 0])
        if dice.random() < 0.5 and not is_folder:
            calls.append(["utime", path, 1, 2])
    return calls


def random_call(dice: random.Random, case: str, person: Person) -> list[Any]:
    while True:
        call = _any_call(dice, case)
        # Set-id bits go with root's writes too, on a local disk they stay (docs/semantics.md).
        if person != ROOT or call[0] not in ("write", "truncate", "open"):
            return call


def _any_call(dice: random.Random, case: str) -> list[Any]:
    path, other = (f"{case}/{dice.choice(NAMES)}" for _ in range(2))
    mode = dice.choice((0o644, 0o666, 0o777, 0o2775, 0o4755, 0o6711, 0o1777, 0o2674))
    choices: list[list[Any]] = [
        ["access", path, dice.randrange(8)],
        ["stat", path],
        ["open", path, dice.choice((os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDONLY | os.O_NOATIME))],
        ["open", path, os.O_WRONLY | os.O_TRUNC],
        ["write", path],
        ["list", dice.choice((case, f"{case}/folder"))],
        ["create", path, mode],
        ["create", f"{case}/folder/{dice.choice('abc')}", mode],
        ["mkdir", path, mode],
        ["mkdir", f"{case}/folder/{dice.choice('abc')}", mode],
        ["mkfifo", path, mode],
        ["symlink", "file", path],
        ["link", path, other],
        ["rename", path, other],
        ["unlink", path],
        ["rmdir", path],
        ["truncate", path, dice.randrange(100, 1 << 20)],
        ["chmod", path, mode],
        ["chown", path, dice.choice((-1, -1, *UIDS)), dice.choice((-1, *GIDS))],
        ["touch", path],
        ["utime", path, 3, 4],
        ["getxattr", path, "user.x"],
        ["setxattr", path, "user.x", "aa", dice.randrange(3)],
        ["removexattr", path, "user.x"],
        ["setxattr", path, dice.choice(ACLS), random_acl(dice), 0],
        ["removexattr", path, dice.choice(ACLS)],
        ["listxattr", path],
    ]
    return dice.choice(choices)


def compare(mounted: Path, local: Path, seed: int, count: int) -> None:
    """Play `count` cases on both sides, a third of the calls of each by each of the people in turn."""
    print(f"seed {seed}, {count} cases")
    dice = random.Random(seed)
    preparation = [call for number in range(count) for call in random_preparation(dice, str(number))]
    rounds: list[tuple[Person, list[list[Any]]]] = []
    for _ in range(3):
        for person in PEOPLE:
            # With a default ACL the umask counts on the mount and not on a local disk (docs/semantics.md): it is 0.
            calls: list[list[Any]] = [["umask", 0]]
            calls += [random_call(dice, str(number), person) for number in range(count) for _ in range(3)]
            rounds.append((person, calls))
    for folder in (mounted, local):
        folder.mkdir()
        folder.chmod(0o755)
        made = make_calls(folder, ROOT, preparation)
        assert all(answer is None or not str(answer).startswith("E") for answer in made), made
    succeeded = refused = 0
    for person, calls in rounds:
        ours, theirs = make_calls(mounted, person, calls), make_calls(local, person, calls)
        for call, our, their in zip(calls, ours, theirs, strict=True):
            assert our == their, f"seed {seed}: {person} {call}: {our} on the mount, {their} on the local disk"
            refused += str(their) in ("EACCES", "EPERM")
            succeeded += not str(their).startswith("E")
        for number in range(count):
            found, expected = seen(mounted / str(number)), seen(local / str(number))
            of_case = [call for call in calls if any(str(part).split("/")[0] == str(number) for part in call[1:])]
            assert found == expected, f"seed {seed}: after {person} {of_case}"
    print(f"{succeeded} calls succeeded, {refused} were refused for want of permission")
    assert min(succeeded, refused) > count


@pytest.mark.parametrize("seed", [1, 2])
def test_people_may_do_what_they_may_do_on_a_local_disk(drive: Mount, tmp_path: Path, seed: int) -> None:
    compare(drive.path / f"random{seed}", tmp_path / "local", seed, 40)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_very_many_random_permissions(drive: Mount, tmp_path: Path) -> None:
    for _ in range(12):
        seed = random.randrange(1 << 32)
        compare(drive.path / f"long{seed}", tmp_path / str(seed), seed, 200)


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
