"""What `MultiFS.check_invariants` finds, and two ways in which it was once broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from cuckoo_mount.clouds import jobs
from cuckoo_mount.errors import CloudUnavailable
from cuckoo_mount.types import CloudName
from tests.multi.test_multifs import CONTENT, Setup
from tests.packs.packtools import PACK, make_cloud

A, B = CloudName("a"), CloudName("b")
STORED = {A: (1, len(CONTENT)), B: (1, len(CONTENT))}


async def test_the_book_of_room_agrees_with_the_rows(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    check = setup.multifs.check_invariants
    shares = await setup.put("2")
    assert setup.multifs.take_strays(PACK, shares) == frozenset()
    assert check({}, {PACK}) == [], "a pack on its way has no rows"
    assert check(STORED, ()) == []
    assert len(check({}, ())) == 2, "nothing explains it"
    assert len(check({A: (2, 2 * len(CONTENT)), B: STORED[B]}, {PACK})) == 1, "less than the rows say is always wrong"
    setup.multifs.rooms.note_deleted([A], len(CONTENT))
    assert check({B: STORED[B]}, ()) == []


async def test_an_upload_that_is_given_up_is_forgotten(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()
    setup.pool.always = {"a": CloudUnavailable("down"), "b": CloudUnavailable("down")}
    with pytest.raises(CloudUnavailable):
        await setup.put("2")
    assert setup.multifs.check_invariants({}, {PACK}) == []
    assert len(setup.multifs.check_invariants({}, ())) == 1
    setup.multifs.forget_upload(PACK)
    assert setup.multifs.check_invariants({}, ()) == [], "also where an object may be"


async def test_an_answer_from_where_a_cloud_was_says_nothing_about_where_it_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a")
    moved = evolve(make_cloud(tmp_path, "elsewhere"), cloud_id=setup.clouds[A].cloud_id)

    def move() -> None:
        setup.pool.on_step = lambda: None
        setup.multifs.set_cloud(A, moved)

    setup.pool.on_step = move
    await setup.multifs.probe()
    assert not setup.multifs.is_up(A), "its drive.json was read at the old place"
    await setup.multifs.probe()
    assert not setup.multifs.is_up(A), "and another one is at the new"


async def test_an_answer_of_a_cloud_that_was_dropped_is_forgotten(tmp_path: Path) -> None:
    setup = Setup(tmp_path, "a", "b")
    await setup.multifs.probe()

    def drop() -> None:
        setup.pool.on_step = lambda: None
        setup.multifs.drop_cloud(A)

    setup.pool.on_step = drop
    await setup.multifs.ask(A, jobs.capabilities, deadline_s=1.0)
    assert setup.multifs.check_invariants({}, ()) == []
