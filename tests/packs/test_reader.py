"""PackReader: in this process for every kind of damage, then all of it with worker processes and the real metadata."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.errors import CloudUnavailable, DataTimeout, DataUnavailable, MetadataError
from cuckoo_mount.metadata.records import NewNode
from cuckoo_mount.metadata.store import create_store
from cuckoo_mount.multi.health import Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.policies import Policies
from cuckoo_mount.packs.builder import BuiltPack, ChunkSource
from cuckoo_mount.packs.garbage import collect_garbage
from cuckoo_mount.packs.inspect import share_digest
from cuckoo_mount.packs.reader import RUN_GAP_BYTES, RUN_MAX_BYTES, PackReader, runs
from cuckoo_mount.packs.writer import PackWriter
from cuckoo_mount.types import (
    ROOT_INODE,
    ChunkIndex,
    ChunkWritten,
    CloudName,
    InodeChanges,
    Location,
    PackNo,
    ShareRow,
)
from cuckoo_mount.workers import open_worker_pool
from tests.packs.packtools import (
    DRIVE,
    KEYS,
    InlinePool,
    SmallCatalogue,
    build,
    locations,
    make_clouds,
    make_sources,
    stored_objects,
)

CONTENTS = [b"first " * 20, b"", os.urandom(50), b"z" * 100, os.urandom(1000)]


class Stored:
    """A pack of CONTENTS on clouds, entered in a catalogue, and a reader."""

    def __init__(self, root: Path, *, encrypted: bool = True, names: Sequence[str] = ("a",)) -> None:
        self.root = root
        self.encrypted = encrypted
        self.clouds = make_clouds(root, *names)
        self.pool = InlinePool()
        self.catalogue = SmallCatalogue()
        self.multifs = MultiFS(self.clouds, self.pool, Health(jitter=lambda: 0.0), DRIVE)
        self.reader = self.make_reader()
        self.number = PackNo(0)
        self.locations: list[Location] = []

    def make_reader(self, deadline_s: float = 30.0) -> PackReader:
        return PackReader(self.catalogue, self.multifs, KEYS, DRIVE, encrypted=self.encrypted, deadline_s=deadline_s)

    async def store(self, contents: Sequence[bytes] = CONTENTS) -> BuiltPack:
        await self.multifs.probe()
        writer = PackWriter(
            self.catalogue,
            self.multifs,
            self.pool,
            KEYS,
            self.root,
            drive_id=DRIVE,
            encrypted=self.encrypted,
            policies=Policies(str(len(self.clouds))),
        )
        built = await writer.build(make_sources(self.root, contents))
        self.number = self.catalogue.finish(await writer.store(built))
        self.locations = locations(built, self.number)
        return built

    def objects(self) -> list[Path]:
        return [stored_objects(entry)[0] for entry in self.clouds.values()]


@pytest.mark.parametrize("encrypted", [True, False])
async def test_chunks_come_back(tmp_path: Path, encrypted: bool) -> None:
    stored = Stored(tmp_path, encrypted=encrypted)
    await stored.store()
    assert [await stored.reader.read(location) for location in stored.locations] == CONTENTS
    assert await stored.reader.read_run(stored.locations) == CONTENTS
    assert stored.catalogue.log.count("get_pack") == 1, "pack rows are remembered"


@pytest.mark.parametrize("encrypted", [True, False])
async def test_no_changed_byte_gives_wrong_data(tmp_path: Path, encrypted: bool) -> None:
    stored = Stored(tmp_path, encrypted=encrypted)
    contents = CONTENTS[:3]
    await stored.store(contents)
    (path,) = stored.objects()
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        for location, content in zip(stored.locations, contents, strict=True):
            inside = location.offset <= position < location.offset + location.length_bytes
            if not inside:
                assert await stored.reader.read(location) == content
                continue
            with pytest.raises(DataUnavailable, match=f"cloud a: {path.relative_to(tmp_path / 'a')}: chunk of"):
                await stored.reader.read(location)
            noticed += 1
    assert noticed == sum(location.length_bytes for location in stored.locations)


async def test_a_share_cut_anywhere(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    await stored.store(CONTENTS[:3])
    (path,) = stored.objects()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for location, content in zip(stored.locations, CONTENTS, strict=False):
            try:
                assert await stored.reader.read(location) == content
                assert length >= location.offset + location.length_bytes
            except DataUnavailable:
                assert length < location.offset + location.length_bytes


async def test_another_copy_replaces_a_damaged_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = Stored(tmp_path, names=("a", "b"))
    await stored.store()
    first, second = stored.objects()
    whole = first.read_bytes()
    for path in (first, second):
        path.write_bytes(bytes(len(whole)))
        assert [await stored.reader.read(location) for location in stored.locations] == CONTENTS
        path.unlink()
        assert await stored.reader.read_run(stored.locations) == CONTENTS
        path.write_bytes(whole)
    assert "a share is damaged or lost" in caplog.text


async def test_damage_in_two_copies_at_different_places(tmp_path: Path) -> None:
    stored = Stored(tmp_path, names=("a", "b"))
    await stored.store()
    for path, location in zip(stored.objects(), (stored.locations[0], stored.locations[4]), strict=True):
        damaged = bytearray(path.read_bytes())
        damaged[location.offset] ^= 1
        path.write_bytes(damaged)
    assert [await stored.reader.read(location) for location in stored.locations] == CONTENTS
    with pytest.raises(DataUnavailable):
        await stored.reader.read_run(stored.locations)


async def test_a_location_that_lies(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    await stored.store()
    right = stored.locations[0]
    for wrong in (
        evolve(right, digest=bytes(32)),
        evolve(right, plain_bytes=right.plain_bytes + 1),
        evolve(right, offset=right.offset + 1),
        evolve(right, length_bytes=right.length_bytes - 1),
        evolve(right, length_bytes=0),
    ):
        with pytest.raises(DataUnavailable):
            await stored.reader.read(wrong)
    with pytest.raises(MetadataError):
        await stored.reader.read(evolve(right, pack=PackNo(99)))


async def test_clouds_that_are_down_time_out(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    await stored.store()
    stored.pool.always["a"] = CloudUnavailable("no answer")
    with pytest.raises(DataTimeout, match="cloud a: no answer"):
        await stored.make_reader(deadline_s=0.05).read(stored.locations[0])


async def test_shares_that_moved_are_looked_up_again(tmp_path: Path) -> None:
    stored = Stored(tmp_path, names=("a", "b"))
    await stored.store()
    await stored.reader.read(stored.locations[0])
    row = stored.catalogue.packs[stored.number]
    for path in stored.objects():
        path.rename(path.with_suffix(".9"))
    moved = tuple(ShareRow(9, share.cloud, share.digest) for share in row.shares[:1])
    stored.catalogue.packs[stored.number] = evolve(row, shares=moved)
    assert await stored.reader.read(stored.locations[0]) == CONTENTS[0]


async def test_a_run_is_one_request_and_keeps_the_order_given(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    await stored.store()
    stored.pool.calls.clear()
    backwards = [*reversed(stored.locations), stored.locations[0]]
    assert await stored.reader.read_run(backwards) == [*reversed(CONTENTS), CONTENTS[0]]
    assert stored.pool.calls == [("fetch_run", "a")]
    assert await stored.reader.read_run([]) == []
    with pytest.raises(ValueError, match="one pack"):
        await stored.reader.read_run([stored.locations[0], evolve(stored.locations[1], pack=PackNo(7))])


async def test_only_the_first_chunk_read_ahead_is_certain(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    await stored.store()
    stored.pool.calls.clear()
    assert await stored.reader.read_ahead(stored.locations) == CONTENTS
    assert stored.pool.calls == [("fetch_ahead", "a")]
    (path,) = stored.objects()
    damaged = bytearray(path.read_bytes())
    damaged[stored.locations[2].offset] ^= 1
    path.write_bytes(damaged)
    assert await stored.reader.read_ahead(stored.locations) == [*CONTENTS[:2], None, *CONTENTS[3:]]
    with pytest.raises(DataUnavailable):
        await stored.reader.read_ahead(stored.locations[2:])


async def test_read_ahead_takes_the_copy_whose_first_chunk_is_whole(tmp_path: Path) -> None:
    stored = Stored(tmp_path, names=("a", "b"))
    await stored.store()
    first, _ = stored.objects()
    damaged = bytearray(first.read_bytes())
    damaged[stored.locations[0].offset] ^= 1
    first.write_bytes(damaged)
    assert await stored.reader.read_ahead(stored.locations) == CONTENTS


spans = st.lists(st.tuples(st.integers(0, 40 << 20), st.integers(1, 2 << 20)), max_size=30)


@given(spans)
def test_runs_cover_everything_within_their_limits(given_spans: list[tuple[int, int]]) -> None:
    wanted = [Location(PackNo(1), offset, length, 0, b"") for offset, length in given_spans]
    found = list(runs(wanted))
    flat = [location for run in found for location in run]
    assert len(flat) == len(set(wanted))
    assert set(flat) == set(wanted)
    for run in found:
        end = max(location.offset + location.length_bytes for location in run)
        assert len(run) == 1 or end - run[0].offset <= RUN_MAX_BYTES + max(part.length_bytes for part in run)
        for before, after in itertools.pairwise(run):
            assert after.offset - before.offset - before.length_bytes <= RUN_GAP_BYTES


def test_reprs_on_the_way_to_workers_show_no_key(tmp_path: Path) -> None:
    built, _ = build(tmp_path, CONTENTS)
    assert KEYS.drive_key.hex() not in repr(built)


@pytest.mark.slow
async def test_everything_together(tmp_path: Path) -> None:
    """Worker processes, two folder clouds and the SQLite store, from dirty chunks to garbage."""
    clouds = make_clouds(tmp_path, "a", "b")
    content = tmp_path / "content"
    chunks = [os.urandom(1 << 20), b"text " * 200_000, b"end"]
    content.write_bytes(b"".join(chunk.ljust(1 << 20, b"\0") for chunk in chunks))
    async with (
        await create_store(tmp_path / "metadata.sqlite", uid=0, gid=0, now_ns=1) as metadata,
        open_worker_pool() as pool,
    ):
        multifs = MultiFS(clouds, pool, Health(), DRIVE)
        await multifs.probe()
        writer = PackWriter(
            metadata, multifs, pool, KEYS, tmp_path / "staging", drive_id=DRIVE, encrypted=True, policies=Policies("2")
        )
        await writer.recover()
        node = await metadata.make_node(ROOT_INODE, b"file", NewNode(mode=stat.S_IFREG | 0o600, uid=0, gid=0, now_ns=2))
        first = await metadata.new_versions(len(chunks))
        written = [
            ChunkWritten(ChunkIndex(index), type(first)(first + index), len(chunk), None)
            for index, chunk in enumerate(chunks)
        ]
        await metadata.apply_written(node.ino, InodeChanges(size_bytes=3 << 20, mtime_ns=3), written)
        dirty = await metadata.dirty_chunks(10, ())
        sources = [ChunkSource(chunk, str(content), chunk.index << 20) for chunk in dirty]
        built = await writer.build(sources)
        stored = await writer.store(built)
        await metadata.finish_pack(stored.pack_id, stored.policy, stored.size_bytes, stored.shares, built.sealed, ())
        assert sorted(share.cloud for share in stored.shares) == ["a", "b"]
        assert await metadata.cloud_usage() == {CloudName(name): (1, built.size_bytes) for name in "ab"}
        reader = PackReader(metadata, multifs, KEYS, DRIVE, encrypted=True)
        rows = await metadata.chunk_rows(node.ino, ChunkIndex(0), ChunkIndex(9))
        found = [row.location for row in rows if row.location is not None]
        assert [await reader.read(location) for location in found] == chunks
        stored_objects(clouds[CloudName("a")])[0].unlink()
        assert await reader.read_run(found) == chunks

        # Killed workers are no trouble, and a pack begun is withdrawn at the next mount.
        await writer.store(await writer.build(sources))
        assert (await writer.recover()).withdrawn == 1
        assert len(stored_objects(clouds[CloudName("b")])) == 1

        await metadata.remove_link(ROOT_INODE, b"file", 4)
        await metadata.purge_inode(node.ino)
        assert (await collect_garbage(metadata, multifs)).packs == 1
        assert [stored_objects(entry) for entry in clouds.values()] == [[], []]
        assert await metadata.check_invariants() == []


@pytest.mark.slow
@pytest.mark.parametrize("action", ["hang", "corrupt", "cut", "missing", "fail", "kill"])
async def test_one_bad_cloud_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """Whatever one cloud does inside the worker, the other copy is read, and the bytes are right."""
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    clouds = make_clouds(tmp_path, "a", "b")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"rules": [{"calls": ["get_range"], "match": "/packs/", "action": action}]}))
    bad = clouds[CloudName("a")]
    clouds[CloudName("a")] = evolve(bad, settings=evolve(bad.settings, options=(("fault.plan", str(plan)),)))
    catalogue = SmallCatalogue()
    async with open_worker_pool() as pool:
        multifs = MultiFS(clouds, pool, Health(), DRIVE)
        await multifs.probe()
        writer = PackWriter(
            catalogue, multifs, pool, KEYS, tmp_path, drive_id=DRIVE, encrypted=True, policies=Policies("2")
        )
        built = await writer.build(make_sources(tmp_path, CONTENTS))
        while built.pack_id[0] % 2:  # so that its first copy, on cloud a, is asked first
            built = await writer.build(make_sources(tmp_path, CONTENTS))
        number = catalogue.finish(await writer.store(built))
        # Half of the deadline is for the share that hangs.
        reader = PackReader(catalogue, multifs, KEYS, DRIVE, encrypted=True, deadline_s=6.0)
        assert [await reader.read(location) for location in locations(built, number)] == CONTENTS
        a, _ = multifs.statistics()
        # What hangs is overtaken, not waited for; whether it is down is for the next probe to say.
        assert (a.hedged, a.errors) == (1, 0) if action == "hang" else (a.errors > 0 and a.last_error)


@pytest.mark.slow
async def test_a_cloud_that_lies_about_storing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUCKOO_TESTING", "1")
    clouds = make_clouds(tmp_path, "a")
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"rules": [{"calls": ["put"], "action": "corrupt"}]}))
    entry = clouds[CloudName("a")]
    clouds[CloudName("a")] = evolve(entry, settings=evolve(entry.settings, options=(("fault.plan", str(plan)),)))
    catalogue = SmallCatalogue()
    async with open_worker_pool() as pool:
        multifs = MultiFS(clouds, pool, Health(), DRIVE)
        writer = PackWriter(catalogue, multifs, pool, KEYS, tmp_path, drive_id=DRIVE, encrypted=True)
        contents = [os.urandom(3000)]
        built = await writer.build(make_sources(tmp_path, contents))
        number = catalogue.finish(await writer.store(built))
        reader = PackReader(catalogue, multifs, KEYS, DRIVE, encrypted=True, deadline_s=30.0)
        (path,) = stored_objects(entry)
        (location,) = locations(built, number)
        whole, damaged = b"", path.read_bytes()
        assert share_digest(KEYS, damaged) != built.share_digest
        try:
            whole = await reader.read(location)
        except DataUnavailable:
            return
        assert whole == contents[0]
