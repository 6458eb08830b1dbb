"""MultiFS over folder clouds, in this process: placement in use, failing over, reading on, deleting, looking after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import trio
from attrs import evolve

from cuckoo_mount.clouds import jobs
from cuckoo_mount.clouds.base import CloudSettings
from cuckoo_mount.errors import (
    CloudCorrupt,
    CloudError,
    CloudFull,
    CloudMissing,
    CloudNotOurs,
    CloudRefused,
    CloudTimeout,
    CloudUnavailable,
    DataTimeout,
    DataUnavailable,
    FormatError,
    UsageError,
)
from cuckoo_mount.format import identity_name, pack_share_name
from cuckoo_mount.multi.health import Condition, Health
from cuckoo_mount.multi.multifs import MultiFS
from cuckoo_mount.multi.records import CloudEntry, entry_of
from cuckoo_mount.multi.records import transfer_deadline_s as deadline_of
from cuckoo_mount.multi.redundancy import Policy
from cuckoo_mount.types import CloudName, CloudRow, PackNo, PackRow, ShareRow
from tests.packs.packtools import DRIVE, PACK, InlinePool, make_cloud, make_clouds, stored_objects

DIGEST = b"s" * 32
CONTENT = b"the content of a pack" * 10


class Setup:
    """Clouds a, b, c, … in folders, a pool in this process, and a pack file to store."""

    def __init__(self, root: Path, *names: str, clouds: dict[CloudName, CloudEntry] | None = None) -> None:
        self.clouds = make_clouds(root, *names) if clouds is None else clouds
        self.pool = InlinePool()
        self.health = Health(jitter=lambda: 0.0)
        self.multifs = MultiFS(self.clouds, self.pool, self.health, DRIVE)
        self.pack = root / "pack file"
        self.pack.write_bytes(CONTENT)

    async def put(self, policy: str = "1", pack_id: bytes = PACK) -> tuple[ShareRow, ...]:
        return await self.multifs.put_pack(pack_id, str(self.pack), len(CONTENT), policy, DIGEST)

    async def get(self, shares: tuple[ShareRow, ...], deadline_s: float = 30.0) -> bytes:
        return await self.multifs.get_range(PACK, shares, 4, 7, deadline_s=deadline_s)

    def holders(self) -> list[str]:
        return [str(name) for name, entry in self.clouds.items() if stored_objects(entry)]


async def test_a_pack_goes_where_its_name_says(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()
    assert shares == (ShareRow(0, CloudName("a"), DIGEST),)
    path = tmp_path / "a" / pack_share_name(DRIVE, PACK, 0)
    assert path.read_bytes() == CONTENT
    assert await setup.get(shares) == CONTENT[4:11]


async def test_copies_lie_on_distinct_clouds(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b", "c")
    await setup.multifs.probe()
    shares = await setup.put("2")
    assert [share.share for share in shares] == [0, 1]
    assert len({share.cloud for share in shares}) == 2
    assert setup.holders() == sorted(share.cloud for share in shares)


async def test_with_fewer_clouds_there_are_fewer_copies(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    assert len(await setup.put("3")) == 2


async def test_groups_are_kept_apart(tmp_path: Path) -> None:
    clouds = {
        CloudName(name): make_cloud(tmp_path, name, group=group) for name, group in (("a", "x"), ("b", "x"), ("c", ""))
    }
    setup = Setup(tmp_path, clouds=clouds)
    await setup.multifs.probe()
    assert {"c"} < {share.cloud for share in await setup.put("2")}


async def test_nothing_is_written_before_the_identity_was_read(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    await setup.put()
    assert [function for function, _ in setup.pool.calls] == ["check_identity", "put_share"]


async def test_a_folder_without_drive_json_gets_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    (tmp_path / "a" / identity_name(DRIVE)).unlink()
    assert await setup.multifs.probe() == {"a": Condition.NOT_OURS}
    with pytest.raises(CloudUnavailable, match=r"drive\.json"):
        await setup.put()
    assert stored_objects(setup.clouds[CloudName("a")]) == []


@pytest.mark.parametrize(
    "error",
    [CloudFull("full"), CloudUnavailable("down"), CloudTimeout("slow"), CloudRefused("no"), CloudNotOurs("other")],
    ids=lambda error: type(error).__name__,
)
async def test_another_cloud_takes_what_one_refuses(tmp_path: Path, error: CloudError) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    first = (await setup.put(pack_id=b"0" * 16))[0].cloud
    other = next(name for name in setup.clouds if name != first)
    setup.pool.always[other] = error
    (share,) = await setup.put()
    assert share == ShareRow(0, first, DIGEST)
    assert setup.health.state(other).last_error == f"cloud {other}: {error}"


async def test_one_of_two_copies_is_stored_when_one_cloud_fails(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b", "c")
    await setup.multifs.probe()
    setup.pool.always["a"] = CloudUnavailable("down")
    shares = await setup.put("3")
    assert sorted(share.cloud for share in shares) == ["b", "c"]


async def test_nobody_takes_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    setup.pool.always = {"a": CloudFull("no room"), "b": CloudUnavailable("no answer")}
    with pytest.raises(CloudUnavailable, match=r"cloud a: no room.*cloud b: no answer"):
        await setup.put("2")
    # Both are left alone for a while: no request at all.
    before = len(setup.pool.calls)
    with pytest.raises(CloudUnavailable, match="no room"):
        await setup.put()
    assert len(setup.pool.calls) == before


async def test_capacity_and_read_only_are_kept(tmp_path: Path) -> None:
    small = make_cloud(tmp_path, "small", capacity_bytes=len(CONTENT) * 4)
    closed = evolve(make_cloud(tmp_path, "closed"), read_only=True)
    setup = Setup(tmp_path, clouds={CloudName("small"): small, CloudName("closed"): closed})
    await setup.multifs.probe()
    for number in (b"1", b"2", b"3"):
        assert len(await setup.put("2", number * 16)) == 1
    with pytest.raises(CloudUnavailable, match=r"small: has no room.*closed: is read-only"):
        await setup.put("2")
    assert setup.multifs.rooms.short() == ["small"]


async def test_what_is_rewritten_may_take_the_last_room(tmp_path: Path) -> None:
    cloud = make_cloud(tmp_path, "a", capacity_bytes=len(CONTENT) * 4)
    setup = Setup(tmp_path, clouds={CloudName("a"): cloud})
    await setup.multifs.probe()
    for number in (b"1", b"2", b"3"):
        await setup.put("1", number * 16)
    assert not setup.multifs.rooms.has_room(len(CONTENT), Policy(1, 0))
    await setup.multifs.put_pack(b"4" * 16, str(setup.pack), len(CONTENT), "1", DIGEST, rewriting=True)
    with pytest.raises(CloudUnavailable, match="has no room"):
        await setup.multifs.put_pack(b"5" * 16, str(setup.pack), len(CONTENT), "1", DIGEST, rewriting=True)


async def test_a_pack_may_be_as_large_as_all_its_clouds_take(tmp_path: Path) -> None:
    clouds = {
        CloudName(name): make_cloud(tmp_path, name, capacity_bytes=mib << 20)
        for name, mib in {"a": 400, "b": 200, "c": 100}.items()
    }
    setup = Setup(tmp_path, clouds=clouds)
    await setup.multifs.probe()
    largest = [setup.multifs.rooms.largest_pack_bytes(Policy(1, parity), at_least=1) for parity in (0, 1, 2, 3)]
    assert largest == [
        (mib << 20) - spare // 2 for mib, spare in ((400, 16 << 20), (200, 10 << 20), (100, 5 << 20))
    ] + [(100 << 20) - (5 << 19)]
    assert setup.multifs.rooms.largest_pack_bytes(Policy(4, 1), at_least=1) == 0, "four clouds are needed at least"


async def test_packs_on_their_way_count(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b", "c", "d")
    await setup.multifs.probe()
    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(setup.put, "1", bytes([number]) * 16)
    assert setup.holders() == ["a", "b", "c", "d"]


async def test_a_drive_without_clouds_says_so(tmp_path: Path) -> None:
    setup = Setup(tmp_path, clouds={})
    with pytest.raises(CloudUnavailable, match="cuckoo cloud add"):
        await setup.put()
    assert await setup.multifs.probe() == {}


async def test_what_is_no_clouds_fault_is_told_as_it_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    with pytest.raises(UsageError, match="not understood"):
        await setup.put("4+")
    with pytest.raises(FormatError, match="build it again"):
        await setup.multifs.put_pack(PACK, str(setup.pack), 1, "1", DIGEST)
    with pytest.raises(DataUnavailable, match="cannot be read"):
        await setup.multifs.put_pack(PACK, str(tmp_path / "none"), 1, "1", DIGEST)
    assert setup.health.is_up(CloudName("a"))


async def test_settings_that_open_nothing_count_as_refused(tmp_path: Path) -> None:
    entry = CloudEntry(settings=CloudSettings(name="a", url="nonsense://x"), cloud_id=bytes(16))
    setup = Setup(tmp_path, clouds={CloudName("a"): entry})
    assert await setup.multifs.probe() == {"a": Condition.REFUSED}


# -- reading --


async def test_reading_goes_on_to_the_next_share(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    shares = await setup.put("2")
    for share in shares:
        for error in (CloudUnavailable("down"), CloudCorrupt("bad"), CloudRefused("no"), CloudTimeout("slow")):
            setup.pool.failures[share.cloud] = [error]
            assert await setup.get(shares) == CONTENT[4:11]


async def test_a_transfer_that_spoilt_the_bytes_is_made_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Of the only share, once; what is damaged where it lies is an error at the second look, without a pause."""
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()
    started = trio.current_time()
    setup.pool.failures["a"] = [CloudCorrupt("cut off")]
    assert await setup.get(shares) == CONTENT[4:11]
    setup.pool.failures["a"] = [CloudCorrupt("cut off")] * 2
    with pytest.raises(DataUnavailable, match="cut off"):
        await setup.get(shares)
    assert setup.pool.failures["a"] == []
    assert trio.current_time() == started


async def test_a_share_that_was_wrong_is_left_alone_while_another_is_whole(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    shares = await setup.put("2")
    for share in shares:
        setup.pool.failures[share.cloud] = [CloudCorrupt("bad")]
        setup.pool.calls.clear()
        assert await setup.get(shares) == CONTENT[4:11]
        assert len(setup.pool.calls) <= 2


async def test_lost_everywhere(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    shares = await setup.put("2")
    for entry in setup.clouds.values():
        stored_objects(entry)[0].unlink()
    with pytest.raises(DataUnavailable) as caught:
        await setup.get(shares)
    for share in shares:
        assert f"cloud {share.cloud}: {pack_share_name(DRIVE, PACK, share.share)}" in str(caught.value)
    assert setup.health.is_up(CloudName("a"))


async def test_not_found_in_an_emptied_place_is_not_lost(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()
    shutil.rmtree(tmp_path / "a" / "cuckoo")
    with pytest.raises(DataUnavailable, match=r"no drive\.json"):
        await setup.get(shares)
    assert setup.health.state(CloudName("a")).condition is Condition.NOT_OURS


async def test_a_share_too_short(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()
    stored_objects(setup.clouds[CloudName("a")])[0].write_bytes(CONTENT[:5])
    with pytest.raises(DataUnavailable, match="the object has 5"):
        await setup.get(shares)


async def test_shares_nobody_can_reach(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    with pytest.raises(DataUnavailable, match="has no shares"):
        await setup.get(())
    with pytest.raises(DataUnavailable, match="not one of this drive's"):
        await setup.get((ShareRow(0, CloudName("gone"), DIGEST),))


async def test_trouble_that_passes_is_waited_for(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()
    setup.pool.failures["a"] = [CloudUnavailable("down")] * 4
    started = trio.current_time()
    assert await setup.get(shares, deadline_s=60.0) == CONTENT[4:11]
    assert trio.current_time() - started == pytest.approx(1 + 2 + 4 + 8)


@pytest.mark.parametrize("deadline_s", [1.0, 60.0])
async def test_trouble_that_stays_ends_at_the_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, deadline_s: float
) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()
    setup.pool.always["a"] = CloudUnavailable("no answer")
    started = trio.current_time()
    with pytest.raises(DataTimeout, match=r"cloud a: no answer \(cuckoo/"):
        await setup.get(shares, deadline_s=deadline_s)
    assert trio.current_time() - started == pytest.approx(deadline_s)


async def test_a_cloud_known_to_be_down_is_asked_last(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    shares = await setup.put("2")
    setup.pool.failures[shares[0].cloud] = [CloudUnavailable("down")]
    await setup.get(shares)
    setup.pool.calls.clear()
    await setup.get(shares)
    assert [cloud for _, cloud in setup.pool.calls] == [shares[1].cloud]


async def test_a_hanging_worker_pool_ends_at_the_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    shares = await setup.put()

    async def hang(*args: object, **limits: object) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(setup.pool, "run", hang)
    with pytest.raises(DataTimeout):
        await setup.get(shares, deadline_s=5.0)


# -- deleting --


def row(shares: tuple[ShareRow, ...], pack_id: bytes = PACK) -> PackRow:
    return PackRow(PackNo(1), pack_id, "1", len(CONTENT), 0, True, shares)


async def test_deleting_many_packs(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    ids = [bytes([number]) * 16 for number in range(130)]
    packs = [row(await setup.put("2", pack_id), pack_id) for pack_id in ids]
    assert await setup.multifs.delete_packs(packs) == packs
    assert setup.holders() == []
    assert await setup.multifs.delete_packs(packs) == packs, "again is no error"


async def test_a_pack_with_a_share_out_of_reach_is_not_deleted(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    both, one = await setup.put("2", b"1" * 16), await setup.put("1", b"2" * 16)
    packs = [row(both, b"1" * 16), row(one, b"2" * 16)]
    other = next(name for name in setup.clouds if name != one[0].cloud)
    setup.pool.always[other] = CloudUnavailable("down")
    assert await setup.multifs.delete_packs(packs) == packs[1:]


async def test_a_pack_on_a_removed_cloud_is_no_concern_any_more(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    await setup.multifs.probe()
    gone = row((ShareRow(0, CloudName("removed"), DIGEST),))
    assert await setup.multifs.delete_packs([gone]) == [gone]


async def test_clouds_come_change_and_go(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b", clouds=None)
    b = CloudName("b")
    entry = setup.clouds[b]
    setup.multifs.drop_cloud(b)
    await setup.multifs.probe()
    assert [share.cloud for share in await setup.put("2")] == ["a"]
    with pytest.raises(CloudUnavailable, match="not one of this drive's clouds"):
        await setup.multifs.list_packs(b)
    setup.multifs.set_cloud(b, entry)
    assert [share.cloud for share in await setup.put("2", b"2" * 16)] == ["a", "b"], "it is probed when it is wanted"
    setup.multifs.set_cloud(b, evolve(entry, trouble="the variable SECRET is not set"))
    assert (await setup.multifs.probe())[b] is Condition.NEEDS_LOGIN
    assert "SECRET" in setup.multifs.statistics()[1].last_error
    assert [share.cloud for share in await setup.put("2", b"3" * 16)] == ["a"]
    setup.multifs.set_cloud(b, evolve(entry, read_only=True))
    await setup.multifs.probe()
    assert [share.cloud for share in await setup.put("2", b"4" * 16)] == ["a"]
    assert setup.multifs.is_up(b)


async def test_looking_after_asks_only_who_needs_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.look_after()
    setup.pool.calls.clear()
    await setup.multifs.look_after()
    assert sorted(setup.pool.calls) == [("space", "a"), ("space", "b")], "both were new"
    setup.pool.calls.clear()
    await setup.multifs.look_after()
    assert setup.pool.calls == [], "an idle drive asks for nothing"
    shares = await setup.put()
    setup.pool.calls.clear()
    await setup.multifs.look_after()
    assert setup.pool.calls == [("space", shares[0].cloud)]


async def test_deleting_in_the_wrong_place_confirms_nothing(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    shares = await setup.put()
    (tmp_path / "a").rename(tmp_path / "away")
    (tmp_path / "a").mkdir()
    await setup.multifs.probe()
    assert await setup.multifs.delete_packs([row(shares)]) == []
    assert not await setup.multifs.withdraw(PACK, shares=1)


async def test_withdrawing_finds_every_share(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    await setup.put("2", b"1" * 16)
    # A share that an earlier attempt left elsewhere, with a number beyond the policy.
    jobs.put(setup.clouds[CloudName("a")].settings, pack_share_name(DRIVE, PACK, 17), b"left over")
    kept = len(stored_objects(setup.clouds[CloudName("a")]))
    await setup.put("2")
    assert await setup.multifs.withdraw(PACK, shares=2)
    assert len(stored_objects(setup.clouds[CloudName("a")])) == kept - 1
    assert await setup.multifs.withdraw(PACK, shares=2)


# -- looking after --


async def test_probing_says_how_each_cloud_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b", "c", "d")
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "a" / "cuckoo", tmp_path / "c" / "cuckoo", dirs_exist_ok=True)
    (tmp_path / "d" / identity_name(DRIVE)).write_text(json.dumps({"format": 99, "drive": DRIVE.hex(), "cloud": "00"}))
    assert await setup.multifs.probe() == {
        "a": Condition.OK,
        "b": Condition.DOWN,
        "c": Condition.NOT_OURS,
        "d": Condition.REFUSED,
    }
    (tmp_path / "elsewhere").rename(tmp_path / "b")
    assert (await setup.multifs.probe())[CloudName("b")] is Condition.OK


async def test_listing(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    assert await setup.multifs.list_packs(CloudName("a")) == []
    await setup.put()
    (found,) = await setup.multifs.list_packs(CloudName("a"))
    assert (found.name, found.size_bytes) == (pack_share_name(DRIVE, PACK, 0), len(CONTENT))
    with pytest.raises(CloudError):
        await setup.multifs.list_packs(CloudName("nobody"))


async def test_statistics_have_what_status_shows(tmp_path: Path) -> None:
    entry = evolve(make_cloud(tmp_path, "a"), capacity_bytes=1 << 30)
    secret = evolve(entry.settings, name="s", url="ftp://user:hidden-word@localhost:1/x")
    setup = Setup(tmp_path, clouds={CloudName("a"): entry, CloudName("s"): evolve(entry, settings=secret)})
    setup.multifs.rooms.set_usage({CloudName("a"): (5, 5000)})
    setup.pool.always["s"] = CloudUnavailable("no answer")
    await setup.multifs.probe()
    shares = await setup.put()
    await setup.get(shares)
    a, s = setup.multifs.statistics()
    assert (a.name, a.url, a.state, a.capacity_bytes) == ("a", str(tmp_path / "a"), "ok", 1 << 30)
    assert (a.packs, a.used_bytes) == (6, 5000 + len(CONTENT))
    assert (a.requests, a.errors, a.bytes_up, a.bytes_down, a.last_error) == (3, 0, len(CONTENT), 7, "")
    assert (s.state, s.errors) == ("down", 1)
    assert "hidden-word" not in repr(s)


async def test_space_left_is_what_fits(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    clouds = {CloudName(name): make_cloud(tmp_path, name, capacity_bytes=1000) for name in names}
    setup = Setup(tmp_path, clouds=clouds)
    assert setup.multifs.rooms.usable() == setup.multifs.rooms.usable(Policy(1, 0))
    await setup.multifs.probe()
    await setup.multifs.refresh_space()
    before = len(setup.pool.calls)
    assert setup.multifs.rooms.usable().free_bytes == 3 * 750, "a part is kept for compaction"
    assert setup.multifs.rooms.usable(Policy(1, 2)).total_bytes == 750
    await setup.put("3")
    assert setup.multifs.rooms.usable(Policy(1, 2)).free_bytes == 750 - len(CONTENT)
    assert setup.multifs.rooms.usable(Policy(1, 2)).total_bytes == 750
    assert [function for function, _ in setup.pool.calls[before:]] == ["put_share"] * 3


async def test_space_that_clouds_report_counts(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    assert setup.multifs.rooms.usable().free_bytes == 1 << 40
    await setup.multifs.probe()
    await setup.multifs.refresh_space()
    reported = jobs.space(setup.clouds[CloudName("a")].settings)
    assert reported is not None
    free = setup.multifs.rooms.usable()
    assert 0 < free.free_bytes <= reported.total_bytes
    assert setup.multifs.statistics()[0].capacity_bytes == reported.total_bytes


def test_entries_come_from_rows() -> None:
    settings = CloudSettings(name="a", url="/x")
    entry = entry_of(CloudRow(CloudName("a"), b"i" * 16, "/x", 5, 6, "g", True), settings)
    assert entry == CloudEntry(
        settings=settings, cloud_id=b"i" * 16, capacity_bytes=5, reserve_bytes=6, group="g", read_only=True
    )


def test_deadlines_grow_with_size() -> None:
    assert deadline_of(0) < deadline_of(16 << 20) < 600


def test_missing_is_an_error_of_one_object() -> None:
    error = CloudMissing("no such object", cloud="a", name="x")
    assert str(error) == "cloud a: x: no such object"


async def test_a_cloud_that_failed_may_have_the_object_all_the_same(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b", "c")
    await setup.multifs.probe()
    setup.pool.failures["a"] = [CloudTimeout("no answer")]
    shares = await setup.put()
    assert [share.cloud for share in shares] == ["b"]
    assert setup.multifs.take_strays(PACK, shares) == {"a"}
    assert setup.multifs.take_strays(PACK, shares) == frozenset(), "said once"
    other = await setup.put("2", b"2" * 16)
    assert setup.multifs.take_strays(b"2" * 16, other) == frozenset()
