"""Imports from a source that gives what real ones rarely do: odd names, files that change, errors in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from cuckoo_mount.clouds.walking import Entry
from cuckoo_mount.errors import CloudMissing, CloudUnavailable, NoSpace
from cuckoo_mount.sources.base import part_sizes
from cuckoo_mount.sources.copying import Importer, Outcome, Wishes


@define
class Storage:
    """Files by path, all of them in the root but for those of `folders`.  `listed`: sizes other than the real ones."""

    files: dict[str, bytes] = field(factory=dict)
    folders: dict[str, list[Entry]] = field(factory=dict)
    listed: dict[str, int] = field(factory=dict)
    broken: dict[str, Exception] = field(factory=dict)

    def entries(self, folder: str) -> list[Entry]:
        if folder in self.broken:
            raise self.broken[folder]
        if folder:
            return self.folders[folder]
        names = [name for name in self.files if "/" not in name or name.startswith("/")]
        found = [Entry(name, self.listed.get(name, len(self.files[name]))) for name in names]
        return [*found, *(Entry(name, None) for name in self.folders if "/" not in name)]

    def blocks(self, name: str, size_bytes: int) -> Iterator[bytes]:
        yield self.files[name][:100]
        if name in self.broken:
            raise self.broken[name]
        yield self.files[name][100:]

    def close(self) -> None:
        pass


def run(source: Storage, target: Path, *, overwrite: bool = False, root: str = "") -> Outcome:
    wishes = Wishes(jobs=2, overwrite=overwrite)
    return Importer(source, target, wishes, root=root, tell=lambda outcome: None).run()


def test_what_fails_is_named_and_all_else_is_copied(tmp_path: Path) -> None:
    whole = b"x" * 300
    source = Storage(
        files={"good": whole, "shrunk": whole, "grown": whole, "gone": whole, "cut": whole, "..": b"", "n" * 256: b""},
        folders={"in": [Entry("good", 3)], "closed": []},
        listed={"shrunk": 400, "grown": 200},
        broken={
            "gone": CloudMissing("no such object"),
            "cut": CloudUnavailable("the connection broke"),
            "closed": CloudUnavailable("it cannot be listed"),
        },
    )
    source.files["in/good"] = b"abc"
    outcome = run(source, tmp_path)
    assert {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == {
        "good": whole,
        "in/good": b"abc",
    }
    assert sorted(line.partition(":")[0][:10] for line in outcome.troubles) == [
        "..", "closed", "cut", "gone", "grown", "nnnnnnnnnn", "shrunk"
    ]  # fmt: skip
    assert (outcome.failed, outcome.files, outcome.size_bytes) == (7, 2, 303)
    assert "400 bytes announced, 300 came" in "\n".join(outcome.troubles)


def test_a_root_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CloudUnavailable):
        run(Storage(broken={"far": CloudUnavailable("no answer")}), tmp_path, root="far")


def test_a_bug_is_not_taken_for_a_file_that_failed(tmp_path: Path) -> None:
    source = Storage(files={f"f{number}": b"x" for number in range(500)}, broken={"f7": ZeroDivisionError()})
    with pytest.raises(ZeroDivisionError):
        run(source, tmp_path)
    assert not list(tmp_path.glob(".cuckoo-import-*"))
    assert not (tmp_path / "f7").exists()


def test_a_full_disk_ends_it_at_once(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        source = Storage(files={f"f{number}": bytes(100_000) for number in range(200)})
        with pytest.raises(OSError, match="No space") as caught:
            run(source, tmp_path)
        assert caught.value.errno == NoSpace.errno
        kept = list(tmp_path.iterdir())
        assert 0 < len(kept) <= 10
        assert {path.stat().st_size for path in kept} == {100_000}
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_parts_cover_the_whole_file() -> None:
    size_bytes = (16 << 20) + 5
    parts = list(part_sizes(size_bytes))
    assert [offset for offset, _ in parts] == [0, 8 << 20, 16 << 20]
    assert sum(length for _, length in parts) == size_bytes
    assert not list(part_sizes(0))
