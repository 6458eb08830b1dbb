"""The same random calls on a mount and in a local folder: results, errno, attributes, times and content are the same.

A Hypothesis state machine (so that what fails is shrunk to few calls); test_posix.py plays longer sequences from seeds.
One mount serves all examples, each has a folder of its own.  What differs on purpose, all of it in docs/semantics.md,
is left out or allowed where DIFFERENCES is named.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.mount.mounting import Mount, mounted
from tests.mount.side import OLD_NS, Side, changed_times, digest, look, outcome, same_nodes

pytestmark = [
    pytest.mark.mount,
    pytest.mark.slow,
    pytest.mark.timeout(600),  # a failure is shrunk before it is told
    pytest.mark.skipif(os.geteuid() != 0, reason="gives files away and sets trusted attributes, so it has to be root"),
]

DIFFERENCES: Final = {
    "set-id": "set-id bits of a file go with root's writes, too: a chmod that sets them is undone by a chown at once",
    "blocks": "st_blocks counts chunks of 1 MiB, once the kernel has handed the bytes over: only no blocks of an empty "
    "file are compared",
    "umask": "the kernel applies the umask also below a default ACL: it is 0 here",
    "same size": "a truncation to the size that a file has leaves its times alone, as POSIX says; ext4's moves them",
    "same value": "ctime moves when an attribute or ACL is set to what it is, or an ACL removed that is not there; "
    "ext4's does not",
    "default ACL": "a default ACL of something that is no directory is answered by EOPNOTSUPP, elsewhere by EACCES",
    "missing": "no O_TMPFILE, RENAME_WHITEOUT, fallocate, SEEK_HOLE: pyfuse3 has no calls for them",
}

CHUNK: Final = 1 << 20
SETTINGS: Final = settings(
    max_examples=14,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
NAMES: Final = st.sampled_from([b"a", b"b", b"d", b"d/a", b"d/b", b"d/e", b"d/e/a", b"g"])
LEAVES: Final = st.sampled_from([b"a", b"e", b"new"])
SLOTS: Final = st.integers(0, 2)
TARGETS: Final = st.one_of(NAMES, NAMES, SLOTS)
"""A name, or the number of what is held open."""
OFFSETS: Final = st.sampled_from([0, 0, 1, 100, 4095, 4096, 70_001, CHUNK - 1, CHUNK, CHUNK + 7, 2 * CHUNK + 5])
DATA: Final = st.builds(
    lambda seed, length: random.Random(seed).randbytes(length),
    st.integers(0, 1 << 16),
    st.sampled_from([0, 1, 100, 4096, 5000, 70_000, CHUNK + 3]),
)
FLAGS: Final = st.builds(
    lambda access, more: access | sum(more),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.sets(st.sampled_from([os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW]), max_size=3),
)
MODES: Final = st.sampled_from([0, 0o600, 0o644, 0o664, 0o751, 0o777, 0o1777, 0o2770, 0o4755, 0o6711])
OWNERS: Final = st.sampled_from([-1, 0, 1000, 4711])
ATTRIBUTES: Final = st.sampled_from(["user.a", "user.b", "trusted.c"])
QUESTIONS: Final = st.sampled_from(["stat", "list", "target", "attributes"])
ACLS: Final = st.sampled_from(["system.posix_acl_access", "system.posix_acl_default"])
_USER, _GROUP, _MASK = 0x02, 0x08, 0x10
_COARSE: Final = 5  # CLOCK_REALTIME_COARSE, which stamps files


def acl(user: int, named: int, group: int, mask: int, other: int) -> bytes:
    """Return a POSIX ACL that grants `named` to user 1000 and to group 2000."""
    nobody = (1 << 32) - 1
    entries = [(0x01, user, nobody), (_USER, named, 1000), (0x04, group, nobody), (_GROUP, named, 2000)]
    entries += [(_MASK, mask, nobody), (0x20, other, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


MINIMAL_ACL: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, perm, (1 << 32) - 1) for tag, perm in ((0x01, 6), (0x04, 4), (0x20, 0))
)
ACL_VALUES: Final = st.one_of(
    st.builds(acl, *[st.integers(0, 7)] * 5), st.sampled_from([MINIMAL_ACL, b"", MINIMAL_ACL[:-3], acl(7, 9, 7, 7, 7)])
)


START_OPTIONS: Final = ("-o", "allow_other")


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all examples."""
    with mounted(tmp_path_factory.mktemp("machine") / "drive", *START_OPTIONS, deadline_s=3000) as found:
        yield found


class TreeMachine(RuleBasedStateMachine):
    """`sides`: the mount, then the local folder."""

    drive: Mount
    local: Path
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        folder = f"example{next(self.numbers)}"
        self.sides = [Side(os.fsencode(top / folder)) for top in (self.drive.path, self.local)]
        for side in self.sides:
            os.mkdir(side.root)
        self.before = [side.looks() for side in self.sides]

    def both(self, call: Callable[[Side], object]) -> None:
        """Make a call on both sides, in a tick of the clock of its own, and compare all that can be seen."""
        started_ns = next_tick_ns()
        ours, theirs = (outcome(lambda side=side: call(side)) for side in self.sides)  # type: ignore[misc]
        assert ours == theirs, f"{ours!r:.500} on the mount, {theirs!r:.500} in the local folder"
        self.compare(started_ns)

    def compare(self, started_ns: int) -> None:
        looks = [side.looks() for side in self.sides]
        ended_ns = time.time_ns()  # not of the coarse clock: a kernel with multigrain times may be ahead of that
        mount, local = looks
        assert_equal(*({name: node.compared for name, node in side.items()} for side in looks))
        assert same_nodes(mount) == same_nodes(local)
        moved = [changed_times(was, now) for was, now in zip(self.before, looks, strict=True)]
        assert moved[0] == moved[1], f"times that moved: {moved[0]}, and in the local folder {moved[1]}"
        for kind, name in moved[0]:
            now_ns = mount[name].mtime_ns if kind == "mtime" else mount[name].ctime_ns
            assert started_ns <= now_ns <= ended_ns or now_ns < OLD_NS, f"{kind} of {name!r} is no time of this call"
        self.before = looks

    @initialize()
    def make_something(self) -> None:
        for folder in (b"d", b"d/e", b"g"):
            self.both(lambda side, folder=folder: os.mkdir(side.path(folder)))  # type: ignore[misc]
        self.both(lambda side: side.write_file(b"a", 0, b"first"))
        self.both(lambda side: side.write_file(b"d/b", CHUNK - 2, b"second"))
        self.both(lambda side: side.open(0, b"a", os.O_RDWR, 0))
        self.both(lambda side: side.open(1, b"d/e", os.O_RDONLY, 0))

    # -- open files --

    @rule(slot=SLOTS, name=NAMES, flags=FLAGS, mode=st.sampled_from([0o600, 0o664, 0o777]))
    def open(self, slot: int, name: bytes, flags: int, mode: int) -> None:
        self.both(lambda side: side.open(slot, name, flags, mode))

    @rule(slot=SLOTS)
    def close(self, slot: int) -> None:
        self.both(lambda side: side.close(slot))

    @rule(slot=SLOTS, offset=OFFSETS, data=DATA)
    def pwrite(self, slot: int, offset: int, data: bytes) -> None:
        self.both(lambda side: os.pwrite(side.fd(slot), data, offset))

    @rule(slot=SLOTS, data=DATA)
    def write_where_it_is(self, slot: int, data: bytes) -> None:
        self.both(lambda side: os.write(side.fd(slot), data) if not is_fifo(side.fd(slot)) else None)

    @rule(slot=SLOTS, offset=OFFSETS, length=OFFSETS)
    def pread(self, slot: int, offset: int, length: int) -> None:
        self.both(lambda side: digest(os.pread(side.fd(slot), length, offset)))

    @rule(slot=SLOTS, offset=OFFSETS, data=DATA)
    def map(self, slot: int, offset: int, data: bytes) -> None:
        self.both(lambda side: side.map(slot, offset, data))

    @rule(slot=SLOTS, only_data=st.booleans())
    def sync(self, slot: int, only_data: bool) -> None:
        self.both(lambda side: (os.fdatasync if only_data else os.fsync)(side.fd(slot)))

    @rule(slot=SLOTS, what=st.sampled_from(["list", "mkdir", "create", "stat", "unlink"]), name=LEAVES)
    def within(self, slot: int, what: str, name: bytes) -> None:
        self.both(lambda side: side.within(slot, what, name))

    # -- content by name --

    @rule(name=NAMES, offset=OFFSETS, data=DATA)
    def write_file(self, name: bytes, offset: int, data: bytes) -> None:
        self.both(lambda side: side.write_file(name, offset, data))

    @rule(name=NAMES, data=DATA)
    def append(self, name: bytes, data: bytes) -> None:
        self.both(lambda side: side.append(name, data))

    @rule(name=NAMES, offset=OFFSETS, length=OFFSETS)
    def read_file(self, name: bytes, offset: int, length: int) -> None:
        self.both(lambda side: side.read_file(name, offset, length))

    @rule(where=TARGETS, size=OFFSETS)
    def truncate(self, where: bytes | int, size: int) -> None:
        def do(side: Side) -> object:
            found = at(side, where)
            if os.stat(found).st_size == size:
                return DIFFERENCES["same size"]
            os.truncate(found, size)
            return "cut"

        self.both(do)

    # -- names --

    @rule(name=NAMES, mode=st.sampled_from([0o755, 0o777, 0o700]))
    def mkdir(self, name: bytes, mode: int) -> None:
        self.both(lambda side: os.mkdir(side.path(name), mode))

    @rule(name=NAMES)
    def rmdir(self, name: bytes) -> None:
        self.both(lambda side: os.rmdir(side.path(name)))

    @rule(name=NAMES)
    def unlink(self, name: bytes) -> None:
        self.both(lambda side: os.unlink(side.path(name)))

    @rule(old=NAMES, new=NAMES, flags=st.sampled_from([0, 0, 0, 1, 2, 2, 3]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.both(lambda side: side.rename(old, new, flags))

    @rule(old=NAMES, new=NAMES, follow=st.booleans())
    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        self.both(lambda side: os.link(side.path(old), side.path(new), follow_symlinks=follow))

    @rule(name=NAMES, to=st.sampled_from([b"a", b"e", b"../a", b"d", b"nothing", b"\xff\n", b"x" * 200]))
    def symlink(self, name: bytes, to: bytes) -> None:
        self.both(lambda side: os.symlink(to, side.path(name)))

    @rule(name=NAMES, kind=st.sampled_from([stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK]))
    def mknod(self, name: bytes, kind: int) -> None:
        self.both(lambda side: os.mknod(side.path(name), kind | 0o662))

    # -- attributes --

    @rule(
        where=TARGETS, what=st.sampled_from(["stat", "list", "target", "attributes"]), name=st.one_of(ATTRIBUTES, ACLS)
    )
    def ask(self, where: bytes | int, what: str, name: str) -> None:
        """One rule for all that changes nothing: else most steps would be questions."""
        answer: dict[str, Callable[[bytes | int], object]] = {
            "stat": lambda found: look(os.stat(found)).compared,
            "list": lambda found: sorted(os.listdir(found)),
            "target": lambda found: os.readlink(found) if isinstance(found, bytes) else None,
            "attributes": lambda found: (sorted(os.listxattr(found)), os.getxattr(found, name)),
        }
        self.both(lambda side: answer[what](at(side, where)))

    @rule(where=TARGETS, mode=MODES)
    def chmod(self, where: bytes | int, mode: int) -> None:
        def do(side: Side) -> None:
            found = at(side, where)
            os.chmod(found, mode)
            if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(os.stat(found).st_mode):
                os.chown(found, 1000, -1)
                os.chmod(found, os.stat(found).st_mode & 0o1777)  # a group that may not execute keeps its bit

        self.both(do)

    @rule(where=TARGETS, uid=OWNERS, gid=OWNERS)
    def chown(self, where: bytes | int, uid: int, gid: int) -> None:
        self.both(lambda side: os.chown(at(side, where), uid, gid))

    @rule(name=NAMES, uid=OWNERS, gid=OWNERS)
    def lchown(self, name: bytes, uid: int, gid: int) -> None:
        self.both(lambda side: os.lchown(side.path(name), uid, gid))

    @rule(where=TARGETS, atime_ns=st.integers(-(10**18), OLD_NS - 1), mtime_ns=st.integers(-(10**18), OLD_NS - 1))
    def utime(self, where: bytes | int, atime_ns: int, mtime_ns: int) -> None:
        self.both(lambda side: os.utime(at(side, where), ns=(atime_ns, mtime_ns)))

    @rule(where=TARGETS)
    def utime_now(self, where: bytes | int) -> None:
        self.both(lambda side: os.utime(at(side, where)))

    @rule(where=TARGETS, name=ATTRIBUTES, value=DATA, flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]))
    def set_attribute(self, where: bytes | int, name: str, value: bytes, flags: int) -> None:
        def do(side: Side) -> object:
            found = at(side, where)
            if name in os.listxattr(found) and os.getxattr(found, name) == value[:200] and flags != os.XATTR_CREATE:
                return DIFFERENCES["same value"]
            os.setxattr(found, name, value[:200], flags)
            return "set"

        self.both(do)

    @rule(where=TARGETS, name=st.one_of(ATTRIBUTES, ACLS))
    def remove_attribute(self, where: bytes | int, name: str) -> None:
        def do(side: Side) -> object:
            found = at(side, where)
            os.removexattr(found, name)
            os.utime(found, ns=(1, 2))  # DIFFERENCES["same value"]
            return "removed"

        self.both(do)

    @rule(where=TARGETS, name=ACLS, value=ACL_VALUES)
    def set_acl(self, where: bytes | int, name: str, value: bytes) -> None:
        def do(side: Side) -> object:
            found = at(side, where)
            if "default" in name and not stat.S_ISDIR(os.stat(found).st_mode):
                return DIFFERENCES["default ACL"]
            os.setxattr(found, name, value)
            os.utime(found, ns=(1, 2))  # moves ctime on both: DIFFERENCES["same value"]
            return "set"

        self.both(do)

    # -- what changes nothing --

    @rule(what=st.sampled_from(["leave", "leave", "leave", "evict", "drop_pages", "remount"]))
    def disturb(self, what: str) -> None:
        if what == "remount":
            for side in self.sides:
                side.close_all()
        before = self.sides[0].looks()
        if what == "evict":
            self.drive.sync()
            self.drive.evict()
        if what in ("evict", "drop_pages"):
            self.drive.drop_caches()
        if what == "remount":
            self.drive.umount()
            shutil.rmtree(self.drive.paths.cache)
            self.drive.start(*START_OPTIONS)
        after = self.sides[0].looks()
        assert_equal(after, before)
        self.before[0] = after
        if what != "leave":
            self.compare_contents()

    def compare_contents(self) -> None:
        assert_equal(*(side.contents() for side in self.sides))

    def teardown(self) -> None:
        try:
            self.compare_contents()
            self.drive.check()
        finally:
            for side in self.sides:
                side.close_all()


def assert_equal(found: Mapping[bytes, object], expected: Mapping[bytes, object]) -> None:
    names = [name for name in {**found, **expected} if found.get(name) != expected.get(name)]
    text = "\n".join(f"{name!r}: {found.get(name)}, not {expected.get(name)}" for name in names)
    assert not names, text


def next_tick_ns() -> int:
    """Wait until the clock that stamps files has moved; return what it shows then."""
    last_ns = time.clock_gettime_ns(_COARSE)
    while (now_ns := time.clock_gettime_ns(_COARSE)) == last_ns:
        time.sleep(0.0005)
    return now_ns


def is_fifo(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def at(side: Side, where: bytes | int) -> bytes | int:
    return side.fd(where) if isinstance(where, int) else side.path(where)


def run(drive: Mount, local: Path, with_settings: settings) -> None:
    machine = type("Machine", (TreeMachine,), {"drive": drive, "local": local, "numbers": itertools.count()})
    os.umask(0)  # DIFFERENCES["umask"]; given back by the fixture own_umask
    run_state_machine_as_test(machine, settings=with_settings)


def test_calls_do_on_a_mount_what_they_do_on_a_local_disk(drive: Mount, tmp_path: Path) -> None:
    run(drive, tmp_path, SETTINGS)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_very_many_calls_do_on_a_mount_what_they_do_on_a_local_disk(drive: Mount, tmp_path: Path) -> None:
    long = settings(SETTINGS, max_examples=300, stateful_step_count=80, derandomize=False)
    print("Hypothesis says how an example that fails is run again")
    run(drive, tmp_path, long)
