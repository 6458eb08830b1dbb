"""The namespace against a model of dictionaries, with reopening and kills."""

from __future__ import annotations

import stat

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from cuckoo_mount.errors import CuckooError
from cuckoo_mount.types import InodeChanges, InodeNo
from tests.metadata.helpers import at_once, node
from tests.metadata.machine import SETTINGS, StoreMachine
from tests.metadata.tree_model import Tree

NAMES = st.sampled_from([b"a", b"b", b"\xff"])
PICK = st.integers(0, 1 << 16)


class NamesMachine(StoreMachine[Tree]):
    """Nodes are picked among those that exist, by number modulo."""

    def __init__(self) -> None:
        super().__init__(Tree())

    @initialize()
    def make_tree(self) -> None:
        """Directories 2 = /a, 3 = /a/a, 4 = /b and two files, so that there is something to rename from the start."""
        for parent, name, directory in ((1, b"a", True), (2, b"a", True), (1, b"b", True), (3, b"b", False)):
            self.make_in(InodeNo(parent), name, directory=directory)
        self.make_in(InodeNo(1), b"\xff", directory=False)
        self.commit()

    def pick(self, number: int, *, mostly_directory: bool = True) -> InodeNo:
        directories = sorted(self.model.names)
        if mostly_directory and number % 8:
            return InodeNo(directories[number % len(directories)])
        nodes = sorted(self.model.xattrs)
        return InodeNo(nodes[number % len(nodes)])

    @rule(where=PICK, name=NAMES, directory=st.booleans())
    def make(self, where: int, name: bytes, directory: bool) -> None:
        self.make_in(self.pick(where), name, directory=directory)

    def make_in(self, parent: InodeNo, name: bytes, *, directory: bool) -> None:
        error = None
        try:
            self.model.check_new(parent, name)
        except CuckooError as expected:
            error = type(expected)
        kind = stat.S_IFDIR if directory else stat.S_IFREG
        made = self.both(self.store.make_node(parent, name, node(kind)), error)
        if made is not None:
            assert made.ino not in self.model.xattrs
            self.model.make(parent, name, made.ino, directory=directory)

    @rule(what=PICK, where=PICK, name=NAMES)
    def link(self, what: int, where: int, name: bytes) -> None:
        ino, parent, error = self.pick(what, mostly_directory=False), self.pick(where), None
        try:
            self.model.link(ino, parent, name)
        except CuckooError as expected:
            error = type(expected)
        self.both(self.store.add_link(ino, parent, name, 20), error)

    @rule(where=PICK, name=NAMES, directory=st.booleans())
    def remove(self, where: int, name: bytes, directory: bool) -> None:
        parent, error = self.pick(where), None
        try:
            (self.model.rmdir if directory else self.model.unlink)(parent, name)
        except CuckooError as expected:
            error = type(expected)
        remove = self.store.remove_directory if directory else self.store.remove_link
        self.both(remove(parent, name, 30), error)

    @rule(old=st.tuples(PICK, NAMES), new=st.tuples(PICK, NAMES), flags=st.sampled_from([0, 0, 0, 1, 2, 2, 3]))
    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> None:
        (old_parent, old_name), (new_parent, new_name) = (self.pick(old[0]), old[1]), (self.pick(new[0]), new[1])
        no_replace, exchange = flags & 1 != 0, flags & 2 != 0
        error = None
        try:
            self.model.rename((old_parent, old_name), (new_parent, new_name), no_replace=no_replace, exchange=exchange)
        except CuckooError as expected:
            error = type(expected)
        call = self.store.rename(
            old_parent, old_name, new_parent, new_name, now_ns=40, no_replace=no_replace, exchange=exchange
        )
        self.both(call, error)

    @rule(what=PICK, name=NAMES, value=st.none() | st.binary(max_size=3))
    def set_xattr(self, what: int, name: bytes, value: bytes | None) -> None:
        ino, error = self.pick(what, mostly_directory=False), None
        try:
            self.model.set_xattr(ino, name, value)
        except CuckooError as expected:
            error = type(expected)
        self.both(self.store.set_xattrs(ino, {name: value}, InodeChanges(ctime_ns=50)), error)

    @precondition(lambda self: self.model.orphans())
    @rule(which=PICK)
    def purge(self, which: int) -> None:
        orphans = self.model.orphans()
        ino = orphans[which % len(orphans)]
        self.model.purge(ino)
        at_once(self.store.purge_inode(InodeNo(ino)))

    def compare(self) -> None:
        assert at_once(self.store.orphans()) == self.model.orphans()
        assert self.store.statistics().inodes == len(self.model.xattrs)
        for ino, xattrs in self.model.xattrs.items():
            inode = at_once(self.store.get_inode(InodeNo(ino)))
            assert inode.nlink == self.model.links(ino)
            assert at_once(self.store.list_xattrs(inode.ino)) == sorted(xattrs)
            for name, value in xattrs.items():
                assert at_once(self.store.get_xattr(inode.ino, name)) == value
            if ino in self.model.names:
                self.compare_directory(inode.ino)

    def compare_directory(self, ino: InodeNo) -> None:
        entries = at_once(self.store.list_directory(ino, 0, 1000))
        assert {entry.name: entry.inode.ino for entry in entries} == self.model.names[ino]
        cookies = [entry.cookie for entry in entries]
        assert cookies == sorted(set(cookies))
        for entry in entries:
            assert at_once(self.store.lookup(ino, entry.name)) == entry.inode
            if entry.inode.ino in self.model.names:
                assert at_once(self.store.get_parent(entry.inode.ino)).ino == ino


@pytest.mark.slow
def test_names_against_model() -> None:
    run_state_machine_as_test(NamesMachine, settings=SETTINGS)
