"""What every Cloud must do, as tests: subclass `CloudConformance` and give it a `make_cloud` fixture.

    class TestFolder(CloudConformance):
        @pytest.fixture
        def make_cloud(self, tmp_path: Path) -> MakeCloud:
            return lambda: open_cloud(CloudSettings(name="folder", url=str(tmp_path)))

`make_cloud()` opens the same, at first empty storage each time.  The other fixtures, in cloud_trouble.py, say how a
storage can be brought into trouble, or why it cannot.  What a cloud cannot do it says in its capabilities.  A test is
skipped for one of these two reasons only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import pytest

from cuckoo_mount.clouds.base import Capabilities, Cloud, DeletesMany
from cuckoo_mount.errors import CloudCorrupt, CloudMissing, CloudUnavailable, UsageError
from cuckoo_mount.testing.cloud_trouble import (
    PATIENT_TIMEOUT_S,
    Cannot,
    CloudTrouble,
    MakeCloud,
    Wire,
    content,
)

FillWith = Callable[[Sequence[str]], None]
_THREADS = 8
_MANY = 1203
_ATTEMPTS = 9
_LARGE_BYTES = (9 << 20) + 1  # above the size from which S3 clients send several parts
_BAD_NAMES = ["", "/a", "a/", "a//b", "a/../b", ".", "a/.", "A", "a b", "a~b", "ä", "a\0", "a\n", "x" * 201]

T = TypeVar("T")


def in_threads(action: Callable[[int], T], count: int) -> list[T]:
    """Return [action(0), … action(count - 1)], run by 8 threads; raises the first error."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(action, range(count)))


def put_stubbornly(cloud: Cloud, name: str, data: bytes) -> None:
    """Put, and try again as the layers above do: some servers stumble over puts and deletes at the same time."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(CloudUnavailable):
            return cloud.put(name, data)
    cloud.put(name, data)


class CloudConformance(CloudTrouble):
    """The suite.  Every test uses a storage of its own."""

    @pytest.fixture
    def fill_with(self, make_cloud: MakeCloud) -> FillWith:
        """Give the function that stores an object of one byte under each name; a faster way may take its place."""

        def fill(names: Sequence[str]) -> None:
            with contextlib.closing(make_cloud()) as cloud:
                in_threads(lambda number: cloud.put(names[number], b"x"), len(names))

        return fill

    @pytest.fixture
    def cloud(self, make_cloud: MakeCloud) -> Iterator[Cloud]:
        with contextlib.closing(make_cloud()) as opened:
            yield opened

    def test_capabilities_are_data_that_does_not_change(self, make_cloud: MakeCloud, cloud: Cloud) -> None:
        assert isinstance(cloud.capabilities, Capabilities)
        assert cloud.capabilities == make_cloud().capabilities
        assert cloud.settings.name

    def test_put_then_get_returns_the_bytes(self, cloud: Cloud) -> None:
        cloud.put("cuckoo/a/b.0", content(1, 1000))
        assert cloud.get("cuckoo/a/b.0") == content(1, 1000)

    def test_put_is_seen_by_another_opening(self, make_cloud: MakeCloud, cloud: Cloud) -> None:
        cloud.put("cuckoo/a", b"seen")
        assert make_cloud().get("cuckoo/a") == b"seen"

    def test_put_takes_a_memoryview(self, cloud: Cloud) -> None:
        cloud.put("a/view", memoryview(content(1, 1000))[10:20])
        assert cloud.get("a/view") == content(1, 1000)[10:20]

    @pytest.mark.parametrize("size_bytes", [0, 1, _LARGE_BYTES])
    def test_empty_and_large_objects(self, cloud: Cloud, size_bytes: int) -> None:
        largest = cloud.capabilities.max_object_bytes
        if largest is not None and largest < size_bytes:
            pytest.skip(f"max_object_bytes is {largest}")
        cloud.put("a/object", content(2, size_bytes))
        assert cloud.get("a/object") == content(2, size_bytes)
        assert [info.size_bytes for info in cloud.list("a/")] == [size_bytes]

    def test_put_may_be_repeated(self, cloud: Cloud) -> None:
        for _ in range(3):
            cloud.put("a/object", content(3, 5000))
        assert cloud.get("a/object") == content(3, 5000)
        assert len(list(cloud.list(""))) == 1

    @pytest.mark.parametrize("size_bytes", [10, 1000, 5000])
    def test_put_replaces_a_damaged_object_whole(self, cloud: Cloud, size_bytes: int) -> None:
        cloud.put("a/object", content(4, size_bytes))
        cloud.put("a/object", content(5, 1000))
        assert cloud.get("a/object") == content(5, 1000)

    @pytest.mark.parametrize(("offset", "length_bytes"), [(0, 0), (0, 10), (1, 999), (999, 1), (500, 250), (1000, 0)])
    def test_get_range_returns_exactly_that(self, cloud: Cloud, offset: int, length_bytes: int) -> None:
        cloud.put("a/object", content(6, 1000))
        assert cloud.get_range("a/object", offset, length_bytes) == content(6, 1000)[offset : offset + length_bytes]

    @pytest.mark.parametrize(("offset", "length_bytes"), [(0, 1001), (999, 2), (1000, 1), (5000, 10)])
    def test_get_range_past_the_end_is_corrupt(self, cloud: Cloud, offset: int, length_bytes: int) -> None:
        cloud.put("a/object", content(6, 1000))
        with pytest.raises(CloudCorrupt) as caught:
            cloud.get_range("a/object", offset, length_bytes)
        assert (caught.value.cloud, caught.value.name) == (cloud.settings.name, "a/object")

    def test_get_range_from_the_middle_of_a_large_object(self, cloud: Cloud) -> None:
        cloud.put("a/large", content(7, _LARGE_BYTES))
        assert cloud.get_range("a/large", 5 << 20, 4321) == content(7, _LARGE_BYTES)[5 << 20 :][:4321]

    @pytest.mark.parametrize(("offset", "length_bytes"), [(-1, 5), (0, -1)])
    def test_get_range_refuses_negative_numbers(self, cloud: Cloud, offset: int, length_bytes: int) -> None:
        with pytest.raises(UsageError):
            cloud.get_range("a/object", offset, length_bytes)

    def test_a_missing_object_is_missing(self, cloud: Cloud) -> None:
        cloud.put("a/there", b"x")
        for name in ("a/absent", "b/absent", "absent"):
            with pytest.raises(CloudMissing) as caught:
                cloud.get(name)
            assert (caught.value.cloud, caught.value.name) == (cloud.settings.name, name)
            with pytest.raises(CloudMissing):
                cloud.get_range(name, 0, 1)

    def test_delete_removes_and_may_be_repeated(self, cloud: Cloud) -> None:
        cloud.put("a/one", b"1")
        cloud.put("a/two", b"2")
        for _ in range(2):
            cloud.delete("a/one")
        with pytest.raises(CloudMissing):
            cloud.get("a/one")
        assert cloud.get("a/two") == b"2"
        cloud.delete("never/was/here")
        cloud.put("a/one", b"again")
        assert cloud.get("a/one") == b"again"

    def test_many_are_deleted_at_once_where_it_says_so(self, cloud: Cloud) -> None:
        if cloud.capabilities.delete_batch == 1:
            pytest.skip("delete_batch is 1")
        names = [f"many/{number}" for number in range(12)]
        for name in names:
            cloud.put(name, b"x")
        many = cast(DeletesMany, cloud)
        for _ in range(2):
            many.delete_many([*names[:10], "never/was/here"])
        assert sorted(info.name for info in cloud.list("")) == sorted(names[10:])
        many.delete_many(names[10:11])
        assert [info.name for info in cloud.list("")] == names[11:]

    def test_list_gives_full_names_and_sizes_below_the_prefix(self, cloud: Cloud) -> None:
        for number, name in enumerate(("top", "a/x", "a/b/y", "ab/z", "a.b/w")):
            cloud.put(name, bytes(number))
        everything = {("top", 0), ("a/x", 1), ("a/b/y", 2), ("ab/z", 3), ("a.b/w", 4)}
        assert {(info.name, info.size_bytes) for info in cloud.list("")} == everything
        assert {info.name for info in cloud.list("a/")} == {"a/x", "a/b/y"}
        assert {info.name for info in cloud.list("a/b/")} == {"a/b/y"}
        assert list(cloud.list("nothing/here/")) == []

    @pytest.mark.slow
    def test_list_goes_across_all_pages(self, cloud: Cloud, fill_with: FillWith, wire: Wire | Cannot) -> None:
        names = [f"many/{number % 3:02x}/{number:08x}.0" for number in range(_MANY)]
        fill_with(names)
        assert sorted(info.name for info in cloud.list("many/")) == sorted(names)
        if isinstance(wire, Wire) and wire.page_names is not None:
            with contextlib.closing(wire.make_cloud(PATIENT_TIMEOUT_S)) as far:
                wire.proxy.reset()
                assert len(list(far.list("many/"))) == _MANY
            assert wire.proxy.counts().requests == {"GET": -(-_MANY // wire.page_names)}

    @pytest.mark.parametrize("name", _BAD_NAMES)
    def test_a_name_outside_the_alphabet_is_refused(self, cloud: Cloud, name: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: cloud.put(name, b"x"),
            lambda: cloud.get(name),
            lambda: cloud.get_range(name, 0, 1),
            lambda: cloud.delete(name),
        ]
        for call in calls:
            with pytest.raises(UsageError):
                call()

    @pytest.mark.parametrize("prefix", ["a", "/", "/a/", "a//", "../", "A/"])
    def test_a_prefix_that_is_no_folder_is_refused(self, cloud: Cloud, prefix: str) -> None:
        with pytest.raises(UsageError):
            list(cloud.list(prefix))

    def test_the_longest_name_works(self, cloud: Cloud) -> None:
        name = "/".join(["n" * 39] * 5) + "x"
        assert len(name) == 200
        cloud.put(name, b"long")
        assert cloud.get(name) == b"long"

    def test_eight_threads_do_not_disturb_each_other(self, cloud: Cloud) -> None:
        def name_of(number: int) -> str:
            return f"t/{number % 5}/{number}"

        def put_and_get(number: int) -> bool:
            name, data = name_of(number), content(number, 20_000 + number)
            put_stubbornly(cloud, name, data)
            return cloud.get(name) == data and cloud.get_range(name, 100, 50) == data[100:150]

        def delete_or_get(number: int) -> bool:
            if number % 2:
                cloud.delete(name_of(number))
                return True
            return cloud.get(name_of(number)) == content(number, 20_000 + number)

        assert all(in_threads(put_and_get, 48))
        # Not before: rclone removes a folder that gets empty, and may lose sight of what is put there meanwhile.
        assert all(in_threads(delete_or_get, 48))
        assert len(list(cloud.list("t/"))) == 24

    def test_eight_threads_put_the_same_object(self, cloud: Cloud) -> None:
        data = content(8, 100_000)
        in_threads(lambda _: put_stubbornly(cloud, "same/object", data), 24)
        assert cloud.get("same/object") == data
        assert [info.name for info in cloud.list("same/")] == ["same/object"]

    def test_a_reader_never_sees_a_part(self, cloud: Cloud) -> None:
        if not cloud.capabilities.atomic_put:
            pytest.skip("atomic_put is False")
        data, finished = content(9, 300_000), threading.Event()

        def read(_: int) -> set[bytes]:
            seen = set()
            while not finished.is_set():
                with contextlib.suppress(CloudMissing, CloudUnavailable):  # some servers stumble over the delete
                    seen.add(cloud.get("a/object"))
            return seen

        with ThreadPoolExecutor(2) as readers:
            results = [readers.submit(read, number) for number in range(2)]
            try:
                for _ in range(20):
                    cloud.put("a/object", data)
                    cloud.delete("a/object")
            finally:
                finished.set()
            assert set().union(*(result.result() for result in results)) <= {data}

    def test_space_answers_if_it_says_so(self, cloud: Cloud) -> None:
        room = cloud.space()
        if not cloud.capabilities.reports_space:
            assert room is None
            return
        assert room is not None
        assert 0 <= room.free_bytes <= room.total_bytes

    def test_close_may_be_called_twice(self, make_cloud: MakeCloud) -> None:
        cloud = make_cloud()
        cloud.put("a/object", b"kept")
        cloud.close()
        cloud.close()
        assert make_cloud().get("a/object") == b"kept"
