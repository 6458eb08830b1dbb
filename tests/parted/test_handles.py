"""Numbers of open files, and the life of a node that lost its last name: against a model of what is purged when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.cache.state import FileState
from cuckoo_mount.errors import InvalidArgument
from cuckoo_mount.parted.handles import DirectoryHandle, FileHandle, HandleTable, References
from cuckoo_mount.types import InodeNo

A, B = InodeNo(7), InodeNo(8)


def file_handle() -> FileHandle:
    return FileHandle(FileState(A, 0), writing=False, drops_privileges=False)


def test_numbers_are_not_used_again() -> None:
    table = HandleTable()
    first = table.add_file(file_handle())
    table.remove_file(first)
    assert table.add_file(file_handle()) != first
    assert table.add_directory(DirectoryHandle(A)) not in (first, first + 1)
    assert len(table) == 2


def test_a_closed_number_is_invalid() -> None:
    table = HandleTable()
    number = table.add_file(file_handle())
    table.remove_file(number)
    for use in (table.file, table.remove_file, table.directory, table.remove_directory):
        with pytest.raises(InvalidArgument):
            use(number)


def test_a_file_is_no_directory() -> None:
    table = HandleTable()
    file, directory = table.add_file(file_handle()), table.add_directory(DirectoryHandle(A))
    with pytest.raises(InvalidArgument):
        table.directory(file)
    with pytest.raises(InvalidArgument):
        table.remove_file(directory)
    assert table.directory(directory).ino == A
    assert len(table) == 2


def test_a_node_that_nobody_knows_is_purged_with_its_last_name() -> None:
    assert References().lost_last_name(A)


def test_a_node_in_use_is_purged_at_the_last_forget_only() -> None:
    references = References()
    references.add(A)
    references.add(A)
    assert not references.lost_last_name(A)
    assert not references.drop(A, 1)
    assert references.drop(A, 1)
    assert len(references) == 0


def test_a_node_with_a_name_is_not_purged_when_the_kernel_forgets_it() -> None:
    references = References()
    references.add(A)
    assert not references.drop(A, 1)
    assert len(references) == 0


steps = st.lists(st.tuples(st.sampled_from(["add", "drop", "lose"]), st.sampled_from([A, B]), st.integers(1, 3)))


@given(steps)
def test_every_nameless_node_is_purged_exactly_once(plan: list[tuple[str, InodeNo, int]]) -> None:
    references = References()
    counts = {A: 0, B: 0}
    nameless: set[InodeNo] = set()
    purged: list[InodeNo] = []
    for action, ino, count in plan:
        if ino in purged or (action == "lose" and ino in nameless):
            continue
        if action == "add":
            references.add(ino)
            counts[ino] += 1
        elif action == "drop" and counts[ino]:
            count = min(count, counts[ino])
            counts[ino] -= count
            if references.drop(ino, count):
                purged.append(ino)
        elif action == "lose":
            nameless.add(ino)
            if references.lost_last_name(ino):
                purged.append(ino)
        assert (ino in purged) == (ino in nameless and not counts[ino])
    assert len(references) == sum(count > 0 for count in counts.values())
