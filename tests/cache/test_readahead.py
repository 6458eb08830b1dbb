"""How far to fetch ahead of whom: the rules, without anything that is fetched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cuckoo_mount.cache.readahead import LEAD_MAX_BYTES, SLOW_S, START_BYTES, UNREAD_MAX_BYTES, ReadAhead, Trail
from cuckoo_mount.packs.reader import RUN_GAP_BYTES, RUN_MAX_BYTES
from cuckoo_mount.types import CHUNK_SIZE_BYTES, AbsentChunk, ChunkIndex, InodeNo, Location, PackNo, VersionNo

LIMIT_BYTES = 10 << 30
MIB = CHUNK_SIZE_BYTES
CHUNKS_PER_PACK = 16


def at(ino: int, index: int, pack: int, offset: int, size: int) -> AbsentChunk:
    location = Location(PackNo(pack), offset, size + 16, size, b"")
    return AbsentChunk(InodeNo(ino), ChunkIndex(index), VersionNo(1), location)


def chunk_of_stream(index: int, ino: int = 7) -> AbsentChunk:
    """A chunk of a big file that alone fills one pack after the other."""
    pack, place = divmod(index, CHUNKS_PER_PACK)
    return at(ino, index, pack, 64 + place * (MIB + 16), MIB)


def small_file(number: int, size: int = 4096) -> AbsentChunk:
    """A file of one chunk; a thousand fill a pack."""
    pack, place = divmod(number, 1000)
    return at(100 + number, 0, pack, 64 + place * (size + 16), size)


def play_stream(ahead: ReadAhead, count: int) -> list[int]:
    """Read a stream chunk by chunk, everything asked for arriving at once; return the windows as they were."""
    windows, following = [], 0
    for index in range(count):
        chunk = chunk_of_stream(index)
        trail: Trail | None
        if ahead.is_unread((chunk.ino, chunk.index)):
            trail = ahead.used((chunk.ino, chunk.index))
        else:
            trail, following = ahead.missed(chunk, is_small=False), index + 1
        if trail is not None:
            windows.append(trail.window_bytes)
            coming = max(0, trail.window_bytes - trail.ahead_bytes) // MIB
            ahead.launched(trail, [chunk_of_stream(following + number) for number in range(coming)])
            following += coming
    return windows


def test_a_stream_widens_its_window_and_seldom_waits() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    windows = play_stream(ahead, 200)
    assert windows[0] == START_BYTES
    assert windows == sorted(windows)
    assert windows[-1] == LEAD_MAX_BYTES
    assert ahead.hits >= 190
    assert len(windows) < 50


def test_random_reads_of_a_big_file_stay_small() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    for index in (900, 3, 511, 77, 640, 12, 333, 801, 250):
        assert ahead.missed(chunk_of_stream(index), is_small=False).window_bytes == START_BYTES


def test_a_seek_starts_small_and_the_stream_goes_on_where_it_was() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    first = ahead.missed(chunk_of_stream(0), is_small=False)
    second = ahead.missed(chunk_of_stream(1), is_small=False)
    assert ahead.missed(chunk_of_stream(700), is_small=False).window_bytes == START_BYTES
    third = ahead.missed(chunk_of_stream(2), is_small=False)
    assert first.window_bytes < second.window_bytes < third.window_bytes


def test_two_streams_do_not_disturb_each_other() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    trails: list[Trail] = []
    for index in range(6):
        for ino, start in ((7, 0), (8, 1000)):
            trails.append(ahead.missed(chunk_of_stream(start + index, ino), is_small=False))
            assert trails[-1].ino == ino
            assert not trails[-1].whole_folder
    assert trails[-1].window_bytes == trails[-2].window_bytes == LEAD_MAX_BYTES


def test_a_stream_goes_on_in_the_next_pack() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    last = ahead.missed(chunk_of_stream(CHUNKS_PER_PACK - 1), is_small=False)
    following = ahead.missed(chunk_of_stream(CHUNKS_PER_PACK), is_small=False)
    assert following.window_bytes > last.window_bytes
    assert following.pack == last.pack + 1


def test_the_next_file_in_the_pack_makes_a_folder_of_it() -> None:
    """Photos of a few MiB: each is read to its end, then comes the one stored behind it."""
    ahead = ReadAhead(LIMIT_BYTES)
    ahead.missed(at(1, 0, 5, 64, MIB), is_small=False)
    assert not ahead.missed(at(1, 1, 5, 80 + MIB, MIB), is_small=False).whole_folder
    trail = ahead.missed(at(2, 0, 5, 96 + 2 * MIB, MIB), is_small=False)
    assert trail.whole_folder
    assert trail.window_bytes >= 4 * MIB


def test_files_of_a_folder_in_any_order_widen_the_window() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    windows = [
        ahead.missed(small_file(number), is_small=True).window_bytes for number in (500, 3, 900, 100, 700, 20, 999)
    ]
    assert windows == sorted(windows)
    assert windows[-1] == LEAD_MAX_BYTES


def test_small_files_of_other_packs_stay_apart() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    for number in (500, 1500, 2500, 3500):
        assert ahead.missed(small_file(number), is_small=True).window_bytes == START_BYTES


def test_a_folder_goes_on_at_the_start_of_another_pack() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    trail = ahead.missed(small_file(998), is_small=True)
    trail.at_end = True
    assert ahead.missed(small_file(3000), is_small=True).window_bytes > trail.window_bytes


def test_reading_moves_a_trail_on_before_its_window_is_used_up() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    trail = ahead.missed(small_file(0), is_small=True)
    files = [small_file(number) for number in range(1, 64)]
    ahead.launched(trail, files)
    moved = [number for number, chunk in enumerate(files, start=1) if ahead.used((chunk.ino, chunk.index)) is trail]
    assert moved
    assert 20 < moved[0] < 40
    assert ahead.unread_bytes == trail.ahead_bytes == 0


def test_a_trail_that_found_nothing_more_is_left_alone() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    trail = ahead.missed(small_file(0), is_small=True)
    ahead.launched(trail, [small_file(1), small_file(2)])
    trail.at_end = True
    assert ahead.used((InodeNo(101), ChunkIndex(0))) is None
    trail.at_end, trail.busy = False, True
    assert ahead.used((InodeNo(102), ChunkIndex(0))) is None
    assert ahead.hits == 2


def test_what_nobody_reads_loses_its_protection() -> None:
    ahead = ReadAhead(64 << 20)
    assert ahead.budget_bytes == 16 << 20
    trail = ahead.missed(chunk_of_stream(0), is_small=False)
    ahead.launched(trail, [chunk_of_stream(index) for index in range(1, 30)])
    assert ahead.unread_bytes == trail.ahead_bytes == ahead.budget_bytes
    assert not ahead.is_unread((InodeNo(7), ChunkIndex(1)))
    assert ahead.is_unread((InodeNo(7), ChunkIndex(29)))


def test_the_lead_fits_a_small_cache() -> None:
    ahead = ReadAhead(16 << 20)
    assert play_stream(ahead, 100)[-1] == 2 * MIB
    assert ReadAhead(1 << 50).budget_bytes == UNREAD_MAX_BYTES


def test_over_a_thin_line_less_comes_at_a_time() -> None:
    ahead = ReadAhead(LIMIT_BYTES)
    for _ in range(20):
        ahead.note_speed(RUN_MAX_BYTES, SLOW_S + 1)
    stream = [chunk_of_stream(index) for index in range(8)]
    assert [len(run) for run in ahead.runs(stream)] == [1] * 8
    assert play_stream(ahead, 100)[-1] <= 4 * START_BYTES
    ahead.note_speed(100, 0.01)
    assert [len(run) for run in ahead.runs(stream)] == [1] * 8, "a short request says nothing about long ones"
    for size_bytes in (START_BYTES, 2 * START_BYTES, 4 * START_BYTES, 8 * START_BYTES):
        ahead.note_speed(size_bytes, 0.01)
    assert [len(run) for run in ahead.runs(stream)] == [4, 4]


places = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 20 << 20), st.integers(1, MIB)), max_size=40)


@given(places)
def test_runs_keep_the_order_and_their_limits(given_places: list[tuple[int, int, int]]) -> None:
    chunks = [at(number, 0, *place) for number, place in enumerate(given_places)]
    found = list(ReadAhead(LIMIT_BYTES).runs(chunks))
    assert [chunk for run in found for chunk in run] == chunks
    for run in found:
        first, last = run[0].location, run[-1].location
        assert {chunk.location.pack for chunk in run} == {first.pack}
        if len(run) > 1:
            assert last.offset + last.length_bytes - first.offset <= RUN_MAX_BYTES + RUN_GAP_BYTES
